//! What looks like a secret: the one place that knows, for all that must not show, send or keep one.
//!
//! Some texts surely are secrets: ours begin in ways of their own ([`is_in`]). Others may be: digits without
//! their beginning, or a text as random as a key ([`may_be_in`]). The first are refused wherever they do not
//! belong; the second are hidden where they would be shown, and refused only in the place of a name, as a
//! certificate's SHA-256 looks the same.

use std::borrow::Cow;
use std::ops::Range;

/// How secrets begin: join tokens, API tokens, host keys, fleet secrets, webhook secrets.
const MARKS: [&str; 5] = ["hwj1_", "hwt1_", "hwk1:", "hwf1:", "whsec_"];
/// What a private key in PEM has in its first line.
const PEM: &str = "PRIVATE KEY-----";
/// What stands in the place of a secret.
pub const HIDDEN: &str = "…";
/// As many hexadecimal digits are a key, a token, or a certificate's hash. A host id has half of them.
const KEY_DIGITS: usize = 64;
/// As many are a join token without its beginning, or a host id.
const TOKEN_DIGITS: usize = 32;
/// A word of mixed letters and digits that is as long is nobody's name for anything.
const RANDOM_LEN: usize = 20;
/// Words that say in the name of a setting that a secret stands there.
const NAMES: [&str; 15] = [
    "secret",
    "secrets",
    "token",
    "tokens",
    "key",
    "password",
    "passwd",
    "passphrase",
    "pass",
    "pw",
    "psk",
    "bearer",
    "credential",
    "credentials",
    "authorization",
];

/// Characters that secrets are made of behind their beginning.
fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_:+/=-".contains(c)
}

/// Where the first secret of ours stands that begins at or behind `from`.
fn find(text: &str, from: usize) -> Option<Range<usize>> {
    let found = MARKS.iter().flat_map(|mark| {
        text[from..].match_indices(mark).filter_map(move |(at, _)| {
            let behind = from + at + mark.len();
            let rest = &text[behind..];
            let len = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            // `hwk1:KEY_ID:…` is how a key is written about.
            let numbered = !mark.ends_with(':') || rest.starts_with(|c: char| c.is_ascii_digit());
            (len >= 2 && numbered).then_some(from + at..behind + len)
        })
    });
    found.min_by_key(|range| range.start)
}

/// Where the first secret in a text begins that surely is one.
pub fn begins_at(text: &str) -> Option<usize> {
    let pem = text.find(PEM);
    find(text, 0).map(|range| range.start).into_iter().chain(pem).min()
}

/// Whether a text holds what surely is a secret.
pub fn is_in(text: &str) -> bool {
    begins_at(text).is_some()
}

/// Whether a word is nothing but the digits of a key or a token that has lost its beginning: at least 64
/// hexadecimal ones, `_` or `:` between them.
pub fn is_key_digits(word: &str) -> bool {
    is_digits(word, KEY_DIGITS)
}

/// The same with half of the digits: a join token, but a host id too.
pub fn is_token_digits(word: &str) -> bool {
    is_digits(word, TOKEN_DIGITS)
}

fn is_digits(word: &str, least: usize) -> bool {
    let word = word.trim();
    word.chars().all(|c| c.is_ascii_hexdigit() || "_:".contains(c))
        && word.chars().filter(char::is_ascii_hexdigit).count() >= least
}

/// Whether a text stands in the place of the name of something though it is, or may be, a secret. A host id
/// is none.
pub fn is_no_name(text: &str) -> bool {
    is_in(text) || is_key_digits(text)
}

fn is_random(word: &str) -> bool {
    let has = |is: fn(&char) -> bool| word.chars().any(|c| is(&c));
    word.len() >= RANDOM_LEN
        && has(char::is_ascii_digit)
        && has(char::is_ascii_lowercase)
        && has(char::is_ascii_uppercase)
}

/// Whether a text holds what may be a secret: too much rather than too little, for what is only shown or not.
pub fn may_be_in(text: &str) -> bool {
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_+=-".contains(c)));
    let mut digits = text.split(|c: char| !c.is_ascii_hexdigit());
    is_in(text)
        || password_in(text).is_some()
        || words.any(is_random)
        || digits.any(|word| word.len() >= TOKEN_DIGITS)
}

/// Where the name and the password stand in the first URL of a text that has them: `https://NAME:PASSWORD@…`.
fn password_in(text: &str) -> Option<Range<usize>> {
    text.match_indices("://").find_map(|(at, mark)| {
        let begin = at + mark.len();
        let rest = &text[begin..];
        let end = rest.find(['/', '?', '#', ' ', '"', '\'', '`']).unwrap_or(rest.len());
        Some(begin..begin + rest[..end].rfind('@')?)
    })
}

/// A text with every secret in it hidden that surely is one, and every key's digits.
pub fn hidden(text: &str) -> Cow<'_, str> {
    let mut shown = surely_hidden(text);
    let is_digit = |c: char| c.is_ascii_hexdigit() || c == '_';
    let digits: Vec<String> = shown
        .split(|c: char| !is_digit(c))
        .filter(|word| is_key_digits(word))
        .map(str::to_owned)
        .collect();
    for word in digits {
        shown = Cow::Owned(shown.replace(&word, HIDDEN));
    }
    shown
}

/// The same without the digits, where the fingerprint of a certificate is told, which looks the same.
pub fn surely_hidden(text: &str) -> Cow<'_, str> {
    let mut shown = Cow::Borrowed(text);
    if let Some(pem) = text.find(PEM) {
        shown = Cow::Owned(format!("{}{HIDDEN}", &text[..pem]));
    }
    let mut from = 0;
    while let Some(range) = password_in(&shown[from..]) {
        let range = from + range.start..from + range.end;
        from = range.start + HIDDEN.len();
        shown.to_mut().replace_range(range, HIDDEN);
    }
    let mut from = 0;
    while let Some(range) = find(&shown, from) {
        from = range.start + HIDDEN.len();
        shown.to_mut().replace_range(range, HIDDEN);
    }
    shown
}

/// Whether a setting's name says that its value is a secret, and not only where one stands.
pub fn is_named_so(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let mut words = key.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    let tells_where = words
        .clone()
        .next_back()
        .is_some_and(|last| ["file", "files", "path", "dir", "id"].contains(&last));
    !tells_where && words.any(|word| NAMES.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn our_own_secrets_are_known_by_their_beginning_and_what_is_written_about_them_is_none() {
        for secret in [
            "hwj1_00ff_aa",
            "hwt1_00ff",
            "hwk1:1:0:00ff",
            "hwf1:1:00ff",
            "whsec_MfKQ",
            "-----BEGIN PRIVATE KEY-----",
        ] {
            assert!(is_in(secret) && is_in(&format!("the key {secret} leaked")), "{secret}");
            assert!(may_be_in(secret) && is_no_name(secret), "{secret}");
        }
        for plain in
            ["ci-hwj1", "`whsec_` and base64", "whsec_…", "hwk1:KEY_ID:GENERATION", "", DIGITS]
        {
            assert!(!is_in(plain) && !is_no_name(plain), "{plain}");
        }
        assert_eq!(begins_at("key hwk1:1:0:00ff and hwt1_00"), Some(4));
    }

    #[test]
    fn digits_without_their_beginning_may_be_a_key_and_a_host_id_is_a_name() {
        let key = DIGITS.repeat(2);
        assert!(is_key_digits(&key) && is_key_digits(&format!("{DIGITS}_{key}")));
        assert!(is_token_digits(DIGITS) && !is_key_digits(DIGITS));
        for name in ["web-1", "deadbeef", &format!("web-{key}"), "", "_"] {
            assert!(!is_key_digits(name) && !is_token_digits(name), "{name}");
        }
        assert!(is_no_name(&key) && !is_no_name(DIGITS));
    }

    #[test]
    fn what_may_be_a_secret_is_more_than_what_surely_is_one() {
        for text in [
            DIGITS,
            &format!("x{DIGITS}="),
            "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            "https://ann:pw@x/",
            "xoxb-123456789012-AbCdEf",
        ] {
            assert!(may_be_in(text) && !is_in(text), "{text}");
        }
        for text in [
            "/etc/heartwatch/webhook-secret",
            "max_mistakes_per_host_day",
            "2026-11-23T00:00:00Z",
            "[::]:2328",
        ] {
            assert!(!may_be_in(text), "{text}");
        }
    }

    #[test]
    fn a_text_is_shown_without_the_secrets_in_it() {
        let key = DIGITS.repeat(2);
        for (text, shown) in [
            ("nothing".to_owned(), "nothing"),
            (format!("`hwk1:1:0:{key}` is no host"), "`…` is no host"),
            (format!("hwt1_{DIGITS}, hwj1_{DIGITS}."), "…, …."),
            (format!("`{key}` is no name"), "`…` is no name"),
            ("https://ann:pw@x:1/y is no URL".to_owned(), "https://…@x:1/y is no URL"),
            (
                "not https://x/ but https://ann:pw@y/, https://bob:q@z/".to_owned(),
                "not https://x/ but https://…@y/, https://…@z/",
            ),
            (format!("host {DIGITS}"), &format!("host {DIGITS}")),
        ] {
            assert_eq!(hidden(&text), shown, "{text}");
        }
        let pinned =
            format!("its SHA-256 is {key}, and https://ann:pw@x/ is not", key = DIGITS.repeat(2));
        assert_eq!(surely_hidden(&pinned), pinned.replace("ann:pw", "…"), "a fingerprint");
    }

    #[test]
    fn a_name_tells_of_a_secret_but_not_of_where_one_stands() {
        for key in
            ["secret", "api_token", "key", "receivers.x.password", "private-key", "Authorization"]
        {
            assert!(is_named_so(key), "{key}");
        }
        for key in
            ["secret_file", "key_file", "key_id", "keyboard", "interval", "domain_labels", ""]
        {
            assert!(!is_named_so(key), "{key}");
        }
    }
}
