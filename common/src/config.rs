//! How a file becomes settings: TOML with units, unknown keys refused with their line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
    #[error("cannot read the config file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of the wrong kind; the text shows the line.
    #[error("{path}: {message}")]
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
    /// A value that cannot be.
    pub fn value(key: &str, message: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), message: message.into() }
    }
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
    toml::from_str(&text).map_err(|e| ConfigError::Parse {
        path: path.to_owned(),
        message: e.to_string().trim_end().to_owned(),
    })
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
