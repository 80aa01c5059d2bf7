//! How a file becomes settings: TOML with units, unknown keys refused with their line.
//!
//! A file of settings is read by more people than a secret is for, and what is wrong in it goes into logs. So
//! a secret has no place in it, only the path of its file; and no error shows what looks like one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::secret;

mod shown;

/// A config file longer than this is not a config file.
const CONFIG_LEN_MAX: u64 = 1024 * 1024;

/// A length of time as it stands in files: a number with a unit, `"250ms"`, `"2s"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|e| {
            format!("`{text}` is not a length of time ({e}): write a number with a unit, such as \"250ms\", \"2s\" or \"1h 30m\"")
        })
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A config file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file system said no.
    #[error("cannot read the config file {}", shown_path(path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind; the text shows the line.
    #[error("{}: {message}", shown_path(path))]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// Every key is known, but a value is out of bounds or two contradict each other.
    #[error("{key}: {message}")]
    Value {
        /// The setting, as it is written in the file.
        key: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

impl ConfigError {
    /// A value that cannot be. What looks like a secret in the message is hidden.
    pub fn value(key: &str, message: impl Into<String>) -> Self {
        let (key, message) = (secret::hidden(key).into(), message.into());
        Self::Value { key, message: secret::hidden(&message).into() }
    }
}

/// A path, as far as it is none of a secret that was given in its place.
fn shown_path(path: &Path) -> String {
    secret::hidden(&path.to_string_lossy()).into()
}

/// Reads a TOML file. `T` should carry `#[serde(deny_unknown_fields)]`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let io = |source| ConfigError::Io { path: path.to_owned(), source };
    let len = std::fs::metadata(path).map_err(io)?.len();
    if len > CONFIG_LEN_MAX {
        return Err(ConfigError::Parse {
            path: path.to_owned(),
            message: format!("{len} bytes is too long for a config file"),
        });
    }
    let text = std::fs::read_to_string(path).map_err(io)?;
    parse(&text).map_err(|message| ConfigError::Parse { path: path.to_owned(), message })
}

/// Reads a text in TOML. `T` should carry `#[serde(deny_unknown_fields)]`.
///
/// # Errors
/// In the parser's words, with line and column; what looks like a secret is hidden. And if a secret of ours
/// stands somewhere in the text, though it could be read.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let read = toml::from_str(text).map_err(|e| shown::complaint(text, &e))?;
    shown::secrets(text).map_or(Ok(read), Err)
}

/// Refuses a path that is no path but the secret itself.
pub fn check_path(key: &str, path: Option<&Path>) -> Result<(), ConfigError> {
    if path.is_some_and(|path| secret::is_no_name(&path.to_string_lossy())) {
        let what = "it holds a secret itself: put that into a file that only its owner can read (mode 0600), and \
                    give the file's path";
        return Err(ConfigError::value(key, what));
    }
    Ok(())
}

/// Checks that a length of time lies within bounds (both included).
pub fn bounded(
    key: &str,
    span: Span,
    min: Duration,
    max: Duration,
) -> Result<Duration, ConfigError> {
    if (min..=max).contains(&span.0) {
        return Ok(span.0);
    }
    let message = format!("{span} is out of bounds, {} to {} are allowed", Span(min), Span(max));
    Err(ConfigError::value(key, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Toy {
        interval: Span,
    }

    fn toy(text: &str) -> Result<Toy, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("toy.toml");
        std::fs::write(&path, text).unwrap();
        load(&path)
    }

    #[test]
    fn durations_carry_units() {
        assert_eq!(toy("interval = \"250ms\"").unwrap().interval.0, Duration::from_millis(250));
        for bad in ["interval = 5", "interval = \"5\"", "interval = \"5 parsecs\""] {
            let error = toy(bad).unwrap_err().to_string();
            assert!(error.contains("line 1"), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let error = toy("interval = \"1s\"\nintervall = \"2s\"").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("intervall"), "{error}");
    }

    /// `secret = "whsec_…"` was shown as it stood, in the log of every start.
    #[test]
    fn no_error_shows_a_secret() {
        let digits = "00112233445566778899aabbccddeeff";
        let key = digits.repeat(2);
        let random = "C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let texts = [
            format!("interval = \"1s\"\nsecret = \"whsec_{random}\""),
            "interval = \"1s\"\npassword = \"hunter2\"".to_owned(),
            "interval = \"1s\"\npassword = hunter2".to_owned(),
            "interval = \"1s\"\nwebhook.token = 'hunter2' # hunter2".to_owned(),
            format!("\ninterval = \"hwt1_{key}\""),
            format!("\ninterval = \"{key}\""),
            format!("\ninterval = hwk1:1:0:{key}"),
            format!("\ninterval = \"whsec_{random}"),
            format!("\ninterval = ['{random}']"),
            format!("\n\"hwj1_{digits}\" = 1"),
            format!("\n[hwf1:1:{key}]"),
            format!("x = \"\"\"\n{random}\"\"\""),
            "\ninterval = \"https://ann:hunter2@x/\"".to_owned(),
        ];
        for text in texts {
            let error = toy(&text).unwrap_err().to_string();
            for secret in [random, digits, "hunter2"] {
                assert!(!error.contains(secret), "{text}\n{error}");
            }
            assert!(error.contains("line ") && error.contains("column "), "{error}");
        }
    }

    /// The name of a table is no value: `[receivers.whsec_…]` was taken for a name and shown as one.
    #[test]
    fn a_secret_in_the_place_of_a_tables_name_or_of_a_files_is_not_shown() {
        let digits = "00112233445566778899aabbccddeeff";
        let tables = "[a.whsec_C2FVsBQIhrscChlQIMV]\nb = 1";
        let error = parse::<toml::Table>(tables).unwrap_err();
        assert!(
            error.contains("line 1: `a.…` holds a secret") && !error.contains("C2FV"),
            "{error}"
        );
        for name in [format!("hwt1_{digits}"), digits.repeat(2)] {
            let error = load::<toml::Table>(Path::new(&name)).unwrap_err().to_string();
            assert!(error.contains("cannot read") && !error.contains(digits), "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_stands_around_a_secret_it_is_not_shown(
            before in "([ -~\n]|é|secret = |\"|'|\\[a\\]\n){0,20}",
            after in "([ -~\n]|é|\"|'|,){0,20}",
            secret in proptest::sample::select(vec!["hwt1_", "hwk1:1:0:", "whsec_", ""]),
        ) {
            let digits = "0a1b2c3d".repeat(8);
            let text = format!("{before}{secret}{digits}{after}");
            if let Err(error) = parse::<Toy>(&text) {
                proptest::prop_assert!(!error.contains(&digits[..32]), "{}\n{}", text, error);
            }
        }
    }

    #[test]
    fn who_writes_a_secret_is_told_where_it_belongs() {
        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Receiver {
            #[expect(dead_code, reason = "only what cannot be read is looked at")]
            secret_file: Option<PathBuf>,
            #[expect(dead_code, reason = "only what cannot be read is looked at")]
            bearer_token_file: Option<PathBuf>,
        }
        let told = |text: &str| parse::<Receiver>(text).unwrap_err();
        let error = told("secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"");
        assert_eq!(
            error,
            "TOML parse error at line 1, column 1\n  |\n1 | secret = \"…\"\n  | ^^^^^^\nunknown field `secret`, \
             expected `secret_file` or `bearer_token_file`\na secret does not stand in this file: put it into one \
             that only its owner can read (mode 0600), and name that by `secret_file`"
        );
        assert!(told("x = \"hwk1:1:0:00ff\"").ends_with("by `key_file` of the agent's config"));
        assert!(told("token = \"abc\"").contains("by `bearer_token_file`"));
        assert!(told("url = \"hwt1_00ff\"").contains("name that by its path"));
        // One that could be read as a path is none.
        for value in ["whsec_MfKQ9r8GKYqr", &"0f".repeat(32)] {
            let error = told(&format!("# whsec_abcd\n\nsecret_file = \"{value}\""));
            assert!(error.contains("line 3: `secret_file` holds a secret itself"), "{error}");
            assert!(!error.contains(value), "{error}");
        }
        assert!(check_path("key_file", Some(Path::new("hwk1:1:0:00ff"))).is_err());
        assert!(check_path("key_file", Some(Path::new("/etc/key"))).is_ok());
    }

    #[test]
    fn what_is_no_secret_is_shown_as_it_stands() {
        let error = toy("interval = \"5 parsecs\"").unwrap_err().to_string();
        assert!(error.contains("1 | interval = \"5 parsecs\"\n"), "{error}");
        let error = toy("interval = \"1s\"\nintervall = \"2s\"").unwrap_err().to_string();
        assert!(error.contains("2 | intervall = \"2s\"\n  | ^^^^^^^^^\n"), "{error}");
    }

    #[test]
    fn bounds_are_told() {
        let error = bounded(
            "interval",
            Span(Duration::from_secs(99)),
            Duration::from_millis(100),
            Duration::from_secs(60),
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "interval: 1m 39s is out of bounds, 100ms to 1m are allowed");
    }
}
