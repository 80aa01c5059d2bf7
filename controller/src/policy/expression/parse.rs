//! Reads a condition: words, then what they mean. Every error says where.

use super::{DEPTH_MAX, ExpressionError, LEN_MAX, Node, TERMS_MAX, Test, What};

const SYMBOLS: [(&str, Symbol); 8] = [
    ("!=", Symbol::IsNot),
    ("!~", Symbol::NotLike),
    ("==", Symbol::Is),
    ("=", Symbol::Is),
    ("~", Symbol::Like),
    ("(", Symbol::Open),
    (")", Symbol::Close),
    (",", Symbol::Comma),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symbol {
    Is,
    IsNot,
    Like,
    NotLike,
    Open,
    Close,
    Comma,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    /// Not in quotes: may be `and`, `or`, `not`, `in`.
    Bare(String),
    Quoted(String),
    Symbol(Symbol),
    End,
}

#[derive(Clone, Debug)]
struct Token {
    word: Word,
    from: usize,
    to: usize,
}

pub(super) fn parse(text: &str) -> Result<Node, ExpressionError> {
    if text.len() > LEN_MAX {
        let message = format!("longer than {LEN_MAX} bytes: split it over several rules");
        return Err(ExpressionError { column: 1, message });
    }
    let tokens = words(text)?;
    let mut reader = Reader { text, tokens, at: 0, depth: 0, terms: 0 };
    let root = reader.any()?;
    match reader.peek().word {
        Word::End => Ok(root),
        Word::Symbol(Symbol::Close) => Err(reader.error("this bracket closes nothing")),
        _ => Err(reader.error("expected `and`, `or` or the end here")),
    }
}

fn at(text: &str, byte: usize, message: impl Into<String>) -> ExpressionError {
    let column = text.get(..byte).map_or(0, |before| before.chars().count()) + 1;
    ExpressionError { column, message: message.into() }
}

fn is_bare(c: char) -> bool {
    c.is_alphanumeric() || "_-./:@+%*?".contains(c)
}

fn words(text: &str) -> Result<Vec<Token>, ExpressionError> {
    let mut tokens = Vec::new();
    let mut from = 0;
    while let Some(rest) = text.get(from..) {
        let Some(first) = rest.chars().next() else { break };
        if first.is_whitespace() {
            from += first.len_utf8();
            continue;
        }
        let (word, len) = if is_bare(first) {
            let len = rest.find(|c| !is_bare(c)).unwrap_or(rest.len());
            (Word::Bare(rest[..len].to_owned()), len)
        } else if matches!(first, '"' | '\'') {
            quoted(text, from, first)?
        } else if let Some((sign, symbol)) = SYMBOLS.iter().find(|(s, _)| rest.starts_with(s)) {
            (Word::Symbol(*symbol), sign.len())
        } else {
            let instead = match first {
                '&' => ": write `and`",
                '|' => ": write `or`",
                '!' => ": write `not`, or `!=` before a value",
                _ => ": put texts with such characters in quotes",
            };
            return Err(at(text, from, format!("`{first}` means nothing here{instead}")));
        };
        tokens.push(Token { word, from, to: from + len });
        from += len;
    }
    tokens.push(Token { word: Word::End, from: text.len(), to: text.len() });
    Ok(tokens)
}

fn quoted(text: &str, from: usize, quote: char) -> Result<(Word, usize), ExpressionError> {
    let (mut word, mut escaped) = (String::new(), false);
    for (i, c) in text[from..].char_indices().skip(1) {
        match c {
            _ if escaped => {
                if !matches!(c, '\\' | '"' | '\'') {
                    return Err(at(
                        text,
                        from + i,
                        "`\\` stands before a quote or another `\\` only",
                    ));
                }
                word.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            c if c == quote => return Ok((Word::Quoted(word), i + quote.len_utf8())),
            c => word.push(c),
        }
    }
    Err(at(text, from, "this quote is never closed"))
}

struct Reader<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
    terms: usize,
}

impl Reader<'_> {
    fn peek(&self) -> &Token {
        // The last token is the end, which is never passed.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn error(&self, message: impl Into<String>) -> ExpressionError {
        at(self.text, self.peek().from, message)
    }

    fn is_keyword(&self, keyword: &str) -> bool {
        matches!(&self.peek().word, Word::Bare(word) if word == keyword)
    }

    fn takes(&mut self, keyword: &str) -> bool {
        let is = self.is_keyword(keyword);
        self.at += usize::from(is);
        is
    }

    fn term(&mut self) -> Result<(), ExpressionError> {
        self.terms += 1;
        if self.terms > TERMS_MAX {
            let message = format!("more than {TERMS_MAX} labels and values: split it over rules");
            return Err(self.error(message));
        }
        Ok(())
    }

    fn deeper(&mut self) -> Result<(), ExpressionError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let message = format!("more than {DEPTH_MAX} brackets and `not` within each other");
            return Err(self.error(message));
        }
        Ok(())
    }

    fn any(&mut self) -> Result<Node, ExpressionError> {
        self.list("or", Self::all, What::Any)
    }

    fn all(&mut self) -> Result<Node, ExpressionError> {
        self.list("and", Self::one, What::All)
    }

    fn list(
        &mut self,
        keyword: &str,
        part: impl Fn(&mut Self) -> Result<Node, ExpressionError>,
        together: impl Fn(Vec<Node>) -> What,
    ) -> Result<Node, ExpressionError> {
        let first = part(self)?;
        if !self.is_keyword(keyword) {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.takes(keyword) {
            parts.push(part(self)?);
        }
        let from = parts.first().map_or(0, |p| p.from);
        let to = parts.last().map_or(0, |p| p.to);
        Ok(Node { from, to, what: together(parts) })
    }

    fn one(&mut self) -> Result<Node, ExpressionError> {
        let from = self.peek().from;
        if self.takes("not") {
            self.deeper()?;
            let part = self.one()?;
            self.depth -= 1;
            return Ok(Node { from, to: part.to, what: What::Not(Box::new(part)) });
        }
        if self.peek().word == Word::Symbol(Symbol::Open) {
            self.deeper()?;
            self.at += 1;
            let inner = self.any()?;
            if self.peek().word != Word::Symbol(Symbol::Close) {
                return Err(self.error("expected `)`, `and` or `or` here"));
            }
            let to = self.take().to;
            self.depth -= 1;
            return Ok(Node { from, to, what: inner.what });
        }
        self.label()
    }

    fn label(&mut self) -> Result<Node, ExpressionError> {
        self.term()?;
        let token = self.peek().clone();
        let label = match token.word {
            Word::Bare(word) if matches!(word.as_str(), "and" | "or" | "in") => {
                return Err(self.error(format!(
                    "expected a label before `{word}` (one of that name stands in quotes)"
                )));
            }
            Word::Bare(word) if word.contains(['*', '?']) => {
                return Err(self.error("`*` and `?` stand in values behind `~` only"));
            }
            Word::Bare(word) | Word::Quoted(word) => word,
            Word::End => return Err(self.error("expected a label, `not` or `(` here")),
            Word::Symbol(_) => return Err(self.error("expected a label before this")),
        };
        if label.is_empty() {
            return Err(self.error("a label has a name"));
        }
        self.at += 1;
        let test = self.test()?;
        let to = self.tokens[self.at - 1].to;
        Ok(Node { from: token.from, to, what: What::Label(label, test) })
    }

    fn test(&mut self) -> Result<Test, ExpressionError> {
        let symbol = match self.peek().word {
            Word::Symbol(symbol) => Some(symbol),
            _ => None,
        };
        let test: fn(String) -> Test = match symbol {
            Some(Symbol::Is) => |v| Test::In(vec![v]),
            Some(Symbol::IsNot) => |v| Test::NotIn(vec![v]),
            Some(Symbol::Like) => Test::Like,
            Some(Symbol::NotLike) => Test::NotLike,
            Some(Symbol::Open | Symbol::Comma) => {
                return Err(self.error("expected `in` before a list of values"));
            }
            Some(Symbol::Close) | None => {
                if self.takes("in") {
                    return self.values().map(Test::In);
                }
                let next = self.tokens.get(self.at + 1).map(|t| &t.word);
                if self.is_keyword("not") && next == Some(&Word::Bare("in".to_owned())) {
                    self.at += 2;
                    return self.values().map(Test::NotIn);
                }
                return Ok(Test::Has);
            }
        };
        self.at += 1;
        let like = matches!(symbol, Some(Symbol::Like | Symbol::NotLike));
        self.value(like).map(test)
    }

    fn values(&mut self) -> Result<Vec<String>, ExpressionError> {
        if self.peek().word != Word::Symbol(Symbol::Open) {
            return Err(self.error("expected `(` and a list of values behind `in`"));
        }
        self.at += 1;
        let mut values = Vec::new();
        loop {
            values.push(self.value(false)?);
            match self.peek().word {
                Word::Symbol(Symbol::Comma) => self.at += 1,
                Word::Symbol(Symbol::Close) => {
                    self.at += 1;
                    return Ok(values);
                }
                _ => return Err(self.error("expected `,` or `)` in this list")),
            }
        }
    }

    fn value(&mut self, like: bool) -> Result<String, ExpressionError> {
        self.term()?;
        match &self.peek().word {
            Word::Bare(word) if !like && word.contains(['*', '?']) => Err(self.error(
                "`*` and `?` mean something behind `~` only: write `~`, or put the value in quotes",
            )),
            Word::Bare(word) | Word::Quoted(word) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            Word::Symbol(_) | Word::End => Err(self.error("expected a value here")),
        }
    }
}
