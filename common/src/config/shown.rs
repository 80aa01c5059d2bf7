//! What is said of a text in TOML that cannot be used: the line, without a secret in it.
//!
//! The parser shows the line as it stands. Here a value is hidden if its setting's name says that it is one
//! (`password = "…"`), or if it may be one by itself: rather a harmless value too many, as line and column
//! tell where to look.

use toml::de::{DeTable, DeValue};

use crate::secret;

/// What to do with a secret.
const BELONGS: &str = "a secret does not stand in this file: put it into one that only its owner can read (mode \
                       0600), and name that by";

/// The parser's complaint, as long as it shows no secret; else the same with that hidden, and where it
/// belongs.
pub(super) fn complaint(text: &str, error: &toml::de::Error) -> String {
    let mut plain = error.clone();
    plain.set_input(Some(text));
    let plain = plain.to_string().trim_end().to_owned();
    let Some(span) = error.span() else { return secret::hidden(error.message().trim_end()).into() };
    // The end of a text is shown as that of its last line.
    let begin = span.start.min(text.len().saturating_sub(1));
    let begin = (0..=begin).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let line_begin = text[..begin].rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_begin..].lines().next().unwrap_or_default();
    let shown = Shown::of(line);
    let message = shown.message(error.message().trim_end());
    let is_this_line = plain.lines().nth(2).is_some_and(|told| told.ends_with(line));
    if is_this_line && shown.hidden.is_empty() && message == error.message().trim_end() {
        return plain;
    }
    let (number, column) = (text[..line_begin].matches('\n').count() + 1, begin - line_begin);
    let gutter = " ".repeat(number.to_string().len());
    // Marked is what stands before anything that was hidden.
    let same = line.bytes().zip(shown.text.bytes()).take_while(|(a, b)| a == b).count();
    let len = span.len().max(1).min(same.saturating_sub(column));
    let marks = match len {
        0 => String::new(),
        _ => format!("{gutter} | {}{}\n", " ".repeat(column), "^".repeat(len)),
    };
    let hint = hint(&shown, &message);
    format!(
        "TOML parse error at line {number}, column {}\n{gutter} |\n{number} | {}\n{marks}{message}{hint}",
        column + 1,
        shown.text
    )
}

/// Where the secret of an unknown setting belongs.
fn hint(shown: &Shown<'_>, message: &str) -> String {
    let Some((unknown, expected)) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'))
    else {
        return match shown.hidden.iter().any(|value| secret::is_in(value)) {
            true => format!("\n{BELONGS} its path"),
            false => format!("\n({} stands for what may be a secret)", secret::HIDDEN),
        };
    };
    let is_secret =
        secret::is_named_so(unknown) || shown.hidden.iter().any(|v| secret::may_be_in(v));
    if !is_secret {
        return String::new();
    }
    if let Some((file, whose)) = shown.hidden.iter().find_map(|value| file_of(value)) {
        let is_here = expected.contains(&format!("`{file}`"));
        return format!("\n{BELONGS} `{file}`{}", if is_here { "" } else { whose });
    }
    let files = expected.split('`').filter(|word| word.ends_with("_file"));
    let stem = |file: &str| file.trim_end_matches("_file").to_owned();
    let fits = |file: &&str| stem(file).contains(unknown) || unknown.contains(&stem(file));
    match files.filter(fits).min_by_key(|file| file.len()) {
        Some(file) => format!("\n{BELONGS} `{file}`"),
        None => format!("\n{BELONGS} its path"),
    }
}

/// The setting that names the file of such a secret, and whose it is.
fn file_of(value: &str) -> Option<(&'static str, &'static str)> {
    let kinds = [
        ("whsec_", "secret_file", " of its receiver"),
        ("hwf1:", "fleet_secret_file", " of the controller's config"),
        ("hwk1:", "key_file", " of the agent's config"),
        ("hwj1_", "join_token_file", " of the agent's config"),
    ];
    let mut fitting = kinds.into_iter().filter(|(mark, ..)| value.starts_with(mark));
    fitting.next().map(|(_, file, whose)| (file, whose))
}

/// A line without what may be a secret.
struct Shown<'a> {
    text: String,
    /// What was hidden.
    hidden: Vec<&'a str>,
}

impl<'a> Shown<'a> {
    fn of(line: &'a str) -> Self {
        let mut shown = Self { text: String::new(), hidden: Vec::new() };
        let is_header = line.trim_start().starts_with('[');
        let assigned = line.find('=').filter(|_| !is_header);
        let Some(at) = assigned else {
            // A table's name, or a part of a value of several lines.
            shown.put(line);
            return shown;
        };
        let (key, value) = line.split_at(at + 1);
        shown.put(key);
        let named = secret::is_named_so(key.trim_end_matches('=').trim().trim_matches(['"', '\'']));
        if named {
            let inner = value.trim().trim_matches(['"', '\'']);
            shown.hidden.extend((!inner.is_empty()).then_some(inner));
            shown.text.push_str(&format!(" \"{}\"", secret::HIDDEN));
        } else {
            shown.put(value);
        }
        shown
    }

    /// Adds a piece of the line: what stands in quotes as a whole or not at all, the rest word by word.
    fn put(&mut self, piece: &'a str) {
        let mut rest = piece;
        while let Some(begin) = rest.find(['"', '\'']) {
            self.words(&rest[..begin]);
            let quote = &rest[begin..=begin];
            let inner = &rest[begin + 1..];
            let end = end_of(inner, quote);
            let (value, behind) = inner.split_at(end);
            self.text.push_str(quote);
            if secret::may_be_in(value) {
                self.hidden.push(value);
                self.text.push_str(secret::HIDDEN);
            } else {
                self.text.push_str(value);
            }
            self.text.push_str(&behind[..behind.len().min(1)]);
            rest = behind.get(1..).unwrap_or_default();
        }
        self.words(rest);
    }

    fn words(&mut self, text: &'a str) {
        for word in text.split_inclusive(|c: char| c.is_whitespace() || ",[]{}=".contains(c)) {
            if secret::may_be_in(word) {
                self.hidden.push(word);
                self.text.push_str(secret::HIDDEN);
            } else {
                self.text.push_str(word);
            }
        }
    }

    /// The parser's message without what was hidden.
    fn message(&self, message: &str) -> String {
        let mut shown = secret::hidden(message).into_owned();
        for value in self.hidden.iter().filter(|value| value.len() > 2) {
            shown = shown.replace(value, secret::HIDDEN);
        }
        // It quotes in its own way: backslashes, and what stood over several lines.
        let quoted: Vec<String> = shown
            .split(['`', '"'])
            .filter(|part| secret::may_be_in(part) && !part.contains(' '))
            .map(str::to_owned)
            .collect();
        for part in quoted {
            shown = shown.replace(&part, secret::HIDDEN);
        }
        shown
    }
}

/// Where a quoted text ends: at its quote, or with the line.
fn end_of(inner: &str, quote: &str) -> usize {
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        if !escaped && quote.starts_with(c) {
            return at;
        }
        escaped = !escaped && c == '\\' && quote == "\"";
    }
    inner.len()
}

/// What is said of secrets that stand in a text which could be read all the same. `None`: there is none.
pub(super) fn secrets(text: &str) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    let mut found = Vec::new();
    in_table(table.get_ref(), "", &mut found);
    let told = found.into_iter().map(|(key, at)| {
        let line = text[..at.min(text.len())].matches('\n').count() + 1;
        format!(
            "line {line}: `{key}` holds a secret itself, which does not stand in this file: put it into one that only \
             its owner can read (mode 0600), and name that by its path"
        )
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { None } else { Some(told.join("\n")) }
}

fn in_table(table: &DeTable<'_>, path: &str, found: &mut Vec<(String, usize)>) {
    for (name, value) in table {
        let key = name.get_ref();
        let at = name.span().start;
        let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
        if secret::is_in(key) {
            found.push((secret::hidden(&path).into_owned(), at));
            continue;
        }
        in_value(value.get_ref(), value.span().start, &path, found);
    }
}

fn in_value(value: &DeValue<'_>, at: usize, path: &str, found: &mut Vec<(String, usize)>) {
    match value {
        DeValue::String(text) => {
            let is_path = path.ends_with("_file") || path.contains(".secrets.");
            if secret::is_in(text) || is_path && secret::is_token_digits(text) {
                found.push((secret::hidden(path).into_owned(), at));
            }
        }
        DeValue::Array(list) => {
            for each in list.iter() {
                in_value(each.get_ref(), each.span().start, path, found);
            }
        }
        DeValue::Table(table) => in_table(table, path, found),
        _ => {}
    }
}
