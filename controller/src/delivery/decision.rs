//! Pure: what a receiver says of an order beside taking it.
//!
//! A 2xx takes an order. Its body may say otherwise, as JSON: `{"decision": "veto", "reason": "…"}` refuses
//! it for good, `{"decision": "hold", "for": "2m", "reason": "…"}` asks to come again after that time, and
//! `{"decision": "accept"}` is what no body means too. A command that is told of events says the same in the
//! last line of its output.
//!
//! Only orders can be refused so; what is mere news is taken with any 2xx.

use std::time::Duration;

/// Bounds on what a receiver may ask to wait.
pub const HOLD: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3_600);
/// How long it waits that does not say.
pub const HOLD_DEFAULT: Duration = Duration::from_secs(60);
/// What an answer with a decision holds.
const KEY: &[u8] = b"\"decision\"";
/// Longest reason kept, bytes.
const REASON_LEN_MAX: usize = 160;

/// A receiver's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It won't be done.
    Veto {
        /// Why, or an empty text.
        reason: String,
    },
    /// Not now: ask again after this time, within [`HOLD`].
    Hold {
        /// How long.
        wait: Duration,
        /// Why, or an empty text.
        reason: String,
    },
    /// Something else, which must not be taken for a yes.
    Unknown {
        /// What it said.
        word: String,
    },
}

impl Decision {
    /// What a body says; `None`: it says yes, or nothing.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let parsed: Result<serde_json::Map<String, serde_json::Value>, _> =
            serde_json::from_slice(body);
        let body = match parsed {
            Ok(body) => body,
            // A veto that was cut short is no yes.
            Err(_) if body.windows(KEY.len()).any(|w| w == KEY) => {
                return Some(Self::Unknown {
                    word: "(an answer that is no whole JSON)".to_owned(),
                });
            }
            Err(_) => return None,
        };
        let text = |key: &str| body.get(key).and_then(|v| v.as_str()).map(one_line);
        let word = match body.get("decision")? {
            serde_json::Value::String(word) => one_line(word),
            other => one_line(&other.to_string()),
        };
        let reason = text("reason").unwrap_or_default();
        match word.as_str() {
            "accept" => None,
            "veto" => Some(Self::Veto { reason }),
            "hold" => {
                let (asked, unread) = match body.get("for") {
                    None => (None, None),
                    Some(given) => match hold_of(given) {
                        None => {
                            let given = one_line(&given.to_string());
                            let why = "is no length of time such as \"2m\", nor seconds";
                            (None, Some(format!("its `for`, {given}, {why}")))
                        }
                        some => (some, None),
                    },
                };
                let wait = asked.unwrap_or(HOLD_DEFAULT).clamp(*HOLD.start(), *HOLD.end());
                let unread = unread.or_else(|| {
                    let asked = asked.filter(|asked| *asked != wait)?;
                    let asked = humantime::format_duration(asked);
                    Some(format!("it asked for {asked}; 1s to 1h is granted"))
                });
                let parts = [Some(reason).filter(|r| !r.is_empty()), unread];
                let reason = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
                Some(Self::Hold { wait, reason })
            }
            _ => Some(Self::Unknown { word }),
        }
    }

    /// For people, after how the attempt ended.
    pub fn words(&self) -> String {
        let because = |reason: &str| match reason {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        match self {
            Self::Veto { reason } => format!("it vetoes the order{}", because(reason)),
            Self::Hold { wait, reason } => {
                let wait = humantime::format_duration(*wait);
                format!("it asks to come again after {wait}{}", because(reason))
            }
            Self::Unknown { word } => {
                format!("its decision `{word}` is none of accept, hold and veto")
            }
        }
    }
}

/// A length of time with its unit, or seconds as a number.
fn hold_of(asked: &serde_json::Value) -> Option<Duration> {
    match asked {
        serde_json::Value::String(text) => humantime::parse_duration(text).ok(),
        number => Duration::try_from_secs_f64(number.as_f64()?).ok(),
    }
}

/// Printable, on one line, and not too long.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim();
    text[..text.floor_char_boundary(REASON_LEN_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yes_is_said_by_nothing_by_anything_else_and_by_the_word() {
        for body in ["", "ok", "{}", "[]", "7", "{\"dec", r#"{"decision": "accept"}"#] {
            assert_eq!(Decision::parse(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn a_veto_and_a_hold_are_understood_and_bounded() {
        let veto = br#"{"decision": "veto", "reason": "in\nuse", "more": 1}"#;
        assert_eq!(Decision::parse(veto), Some(Decision::Veto { reason: "in use".to_owned() }));
        for (body, seconds) in [
            (r#"{"decision": "hold"}"#, 60),
            (r#"{"decision": "hold", "for": "2m"}"#, 120),
            (r#"{"decision": "hold", "for": "0s"}"#, 1),
            (r#"{"decision": "hold", "for": "9 years"}"#, 3_600),
            (r#"{"decision": "hold", "for": 7}"#, 7),
            (r#"{"decision": "hold", "for": 1e300}"#, 60),
        ] {
            let wait = Duration::from_secs(seconds);
            let Some(Decision::Hold { wait: asked, .. }) = Decision::parse(body.as_bytes()) else {
                panic!("{body}");
            };
            assert_eq!(asked, wait, "{body}");
        }
        let odd = br#"{"decision": "hold", "for": "a while", "reason": "busy"}"#;
        let Some(Decision::Hold { wait, reason }) = Decision::parse(odd) else { panic!() };
        assert_eq!(wait, HOLD_DEFAULT);
        assert!(
            reason.starts_with("busy; its `for`, \"a while\", is no length of time"),
            "{reason}"
        );
    }

    #[test]
    fn another_word_is_no_yes() {
        for (body, word) in [
            (r#"{"decision": "deny"}"#, "deny"),
            (r#"{"decision": false}"#, "false"),
            (r#"{"decision": "Accept"}"#, "Accept"),
            (r#"{"decision": "veto", "reas"#, "(an answer that is no whole JSON)"),
        ] {
            let unknown = Decision::Unknown { word: word.to_owned() };
            assert_eq!(Decision::parse(body.as_bytes()), Some(unknown), "{body}");
        }
        let long = format!(r#"{{"decision": "veto", "reason": "{}"}}"#, "ü".repeat(500));
        let Some(Decision::Veto { reason }) = Decision::parse(long.as_bytes()) else { panic!() };
        assert_eq!(reason.len(), 160);
    }
}
