//! What the running agent may be told on its host: maintenance on or off, and how it will leave.
//!
//! Over a Unix socket of its own in the runtime folder, mode 0600: only root and the agent's own user may
//! speak there, while more may read the status. Whoever connects sends one line of JSON, a [`Request`], and
//! gets one line back, an [`Answer`]. A request is at most [`REQUEST_LEN_MAX`] bytes, and is waited for no
//! longer than [`REQUEST_TIME_MAX`]; at most [`SPEAKERS_MAX`] are heard at a time.
//!
//! Maintenance is kept in a file of the state folder, so that it survives the agent's restart, and a reboot.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heartwatch_common::secret;
use heartwatch_common::time::Wall;
use heartwatch_common::wire::{LeaveReason, MAINTENANCE_MAX_S, MAINTENANCE_WHY_LEN_MAX};
use serde::{Deserialize, Serialize};

use crate::status::StatusError;

/// The socket's name in the runtime folder.
pub const SOCKET_NAME: &str = "control.sock";
/// At most so many are heard at a time.
pub const SPEAKERS_MAX: usize = 4;
/// No request is longer, bytes.
pub const REQUEST_LEN_MAX: u64 = 4_096;
/// Who has not said what he wants within this is not heard.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(2);
/// A leave that was announced is meant for a stop within this.
pub const PLANNED_LIFE: Duration = Duration::from_secs(600);
/// The file of the state folder that keeps maintenance.
const FILE_NAME: &str = "maintenance.json";
/// How long the agent may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// What the agent may be told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verb", deny_unknown_fields)]
pub enum Request {
    /// This host is being worked on.
    MaintenanceOn {
        /// For so long, 1 to [`MAINTENANCE_MAX_S`].
        seconds: u64,
        /// Why, 1 to [`MAINTENANCE_WHY_LEN_MAX`] bytes in one line.
        reason: String,
    },
    /// It no longer is.
    MaintenanceOff,
    /// The next stop, if it comes within [`PLANNED_LIFE`], is for this reason and for so long.
    Leave {
        /// Why.
        reason: LeaveReason,
        /// How long it will be away; 0: for good.
        seconds: u64,
    },
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done.
    pub done: bool,
    /// In words.
    pub text: String,
}

impl Request {
    /// Whether it is within bounds; `Err` says what is not.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::MaintenanceOn { seconds, reason } => {
                if !(1..=u64::from(MAINTENANCE_MAX_S)).contains(seconds) {
                    return Err("maintenance lasts 1s to 7d: give another --for".to_owned());
                }
                let len = reason.len();
                if len == 0 || len > MAINTENANCE_WHY_LEN_MAX || reason.chars().any(char::is_control)
                {
                    return Err(format!(
                        "a reason has 1 to {MAINTENANCE_WHY_LEN_MAX} bytes in one line: give \
                         another --reason"
                    ));
                }
                if secret::is_no_name(reason) {
                    return Err("the reason holds a key or a token, and is shown to others: give \
                                another --reason"
                        .to_owned());
                }
                Ok(())
            }
            Self::Leave { seconds, .. } if *seconds > u64::from(MAINTENANCE_MAX_S) => {
                Err("a host leaves for at most 7d, or for good (0s): give another --for".to_owned())
            }
            Self::MaintenanceOff | Self::Leave { .. } => Ok(()),
        }
    }
}

/// Maintenance as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Until then, milliseconds since 1970.
    pub until_ms: Wall,
    /// Why.
    pub reason: String,
}

/// Keeps maintenance over a restart, or forgets it. Written anew and renamed: never half of it.
pub fn keep(state_dir: &Path, kept: Option<&Kept>) -> io::Result<()> {
    let path = state_dir.join(FILE_NAME);
    let Some(kept) = kept else {
        return match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
    };
    let new = state_dir.join("maintenance.new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(serde_json::to_string(kept)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, &path)
}

/// What was kept, if it is not over by now. What cannot be read costs a warning.
pub fn kept(state_dir: &Path, now: Wall) -> Option<Kept> {
    let path = state_dir.join(FILE_NAME);
    let read = || -> io::Result<Kept> {
        let mut text = String::new();
        std::fs::File::open(&path)?.take(REQUEST_LEN_MAX).read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    };
    match read() {
        Ok(kept) => {
            let left = kept.until_ms.0.saturating_sub(now.0);
            // A clock that was set back must not lengthen it beyond all bounds.
            (1..=i64::from(MAINTENANCE_MAX_S) * 1_000).contains(&left).then_some(kept)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            log::warn!("{}: maintenance is not announced: {e}", path.display());
            None
        }
    }
}

/// Tells the running agent something, and gives its answer.
pub fn tell(runtime_dir: &Path, request: &Request) -> Result<Answer, StatusError> {
    let path = runtime_dir.join(SOCKET_NAME);
    let io_error = |source| io_error(&path, source);
    let text = serde_json::to_string(request).map_err(|source| StatusError::Answer { source })?;
    let speak = || -> io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        stream.write_all(text.as_bytes())?;
        stream.write_all(b"\n")?;
        let mut answer = String::new();
        stream.take(REQUEST_LEN_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = speak().map_err(io_error)?;
    serde_json::from_str(&answer).map_err(|source| StatusError::Answer { source })
}

fn io_error(path: &Path, source: io::Error) -> StatusError {
    let path = PathBuf::from(path);
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            StatusError::NotRunning { path }
        }
        _ => StatusError::Io { path, source },
    }
}

/// Reads what somebody wants. `Err`: what to tell him.
pub async fn hear(stream: &mut tokio::net::UnixStream) -> Result<Request, String> {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
    let mut line = String::new();
    let mut limited = BufReader::new(stream.take(REQUEST_LEN_MAX));
    let read = tokio::time::timeout(REQUEST_TIME_MAX, limited.read_line(&mut line)).await;
    match read {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => return Err(e.to_string()),
        Err(_) => return Err("nothing was asked in time".to_owned()),
    }
    let request: Request = serde_json::from_str(&line).map_err(|e| {
        format!("the agent does not understand it (is it of another version?): {e}")
    })?;
    request.check()?;
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_bounded() {
        let on =
            |seconds, reason: &str| Request::MaintenanceOn { seconds, reason: reason.to_owned() };
        assert_eq!(on(1_800, "new disk").check(), Ok(()));
        for bad in [on(0, "x"), on(604_801, "x"), on(5, ""), on(5, "a\nb"), on(5, &"x".repeat(201))]
        {
            assert!(bad.check().unwrap_err().contains("--"), "{bad:?}");
        }
        // The reason is told to the controllers, which show and journal it.
        for secret in ["key hwk1:1:0:00ff leaked", &"00ff".repeat(16)] {
            let refused = on(5, secret).check().unwrap_err();
            assert!(refused.contains("--reason") && !refused.contains("00ff"), "{refused}");
        }
        let leave = |seconds| Request::Leave { reason: LeaveReason::Upgrade, seconds };
        assert!(leave(0).check().is_ok() && leave(604_801).check().is_err());
        let text = serde_json::to_string(&leave(120)).unwrap();
        assert_eq!(text, r#"{"verb":"leave","reason":"upgrade","seconds":120}"#);
    }

    #[test]
    fn maintenance_is_kept_until_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let wall = Wall(1_700_000_000_000);
        assert_eq!(kept(dir.path(), wall), None);
        let one = Kept { until_ms: Wall(wall.0 + 60_000), reason: "new disk".to_owned() };
        keep(dir.path(), Some(&one)).unwrap();
        assert_eq!(kept(dir.path(), wall), Some(one.clone()));
        assert_eq!(kept(dir.path(), Wall(wall.0 + 60_000)), None, "it is over");
        assert_eq!(kept(dir.path(), Wall(0)), None, "a clock that lies by years is not believed");
        keep(dir.path(), None).unwrap();
        keep(dir.path(), None).unwrap();
        assert_eq!(kept(dir.path(), wall), None);
        std::fs::write(dir.path().join(FILE_NAME), "{").unwrap();
        assert_eq!(kept(dir.path(), wall), None);
    }

    #[test]
    fn without_an_agent_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = tell(dir.path(), &Request::MaintenanceOff).unwrap_err();
        assert!(error.to_string().contains("systemctl start"));
    }
}
