//! What the running agent tells about itself, and how `heartwatch-agent status` asks for it.
//!
//! Over a Unix socket in the runtime folder: whoever connects gets one JSON object and the end of
//! the stream; nothing is read from him. The socket has mode 0660, at most [`ASKERS_MAX`] are
//! served at a time, each for at most [`ANSWER_TIME_MAX`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heartwatch_common::config::Span;
use heartwatch_common::enrol::Revoked;
use heartwatch_common::id::{Boot, HostId};
use heartwatch_common::load::{LoadSample, Share};
use heartwatch_common::wire;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use crate::core::{ControllerStatus, OtherVersion};

/// The socket's name in the runtime folder.
pub const SOCKET_NAME: &str = "agent.sock";
/// At most so many are told the status at a time.
pub const ASKERS_MAX: usize = 8;
/// Who does not take the answer within this gets none.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);
/// No answer is longer.
const ANSWER_LEN_MAX: u64 = 1024 * 1024;

/// What may be the matter with a controller that never answered.
pub const UNHEARD: &str = "has not answered once: it is down or UDP does not reach it, or it does not know this \
    host's key, or it is of a release with another wire format; it counts what it rejects, and why, in \
    `heartwatchctl status`";
/// Requests for an ack after which that is told.
const UNHEARD_MIN: u64 = 10;

/// All that a person may want to know of a running agent. Times are in the unit that ends their
/// name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's version.
    pub version: String,
    /// The version of the wire that it speaks.
    #[serde(default)]
    pub wire_version: u8,
    /// What came in another one, sealed with this host's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_version: Option<OtherVersion>,
    /// This host's id.
    pub host: HostId,
    /// Its name.
    pub name: String,
    /// This life of the agent.
    pub boot: Boot,
    /// Time since its start.
    pub uptime_seconds: u64,
    /// The interval in force.
    pub interval_ms: f64,
    /// The interval without an assignment.
    pub interval_default_ms: f64,
    /// Time until the next beat.
    pub next_beat_ms: f64,
    /// The latest load sample.
    pub load: LoadSample,
    /// Probes passed on to other hosts for a controller.
    pub relayed: u64,
    /// Answers of other hosts brought back to it.
    pub relay_replies: u64,
    /// Datagrams that were ignored, by reason.
    pub rejects: BTreeMap<String, u64>,
    /// The maintenance that it announces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<MaintenanceLine>,
    /// The cluster's operators revoked this host: nobody believes its beats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
    /// One per configured controller.
    pub controllers: Vec<ControllerLine>,
}

/// Maintenance of this host, as it is announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceLine {
    /// Time until its end.
    pub remaining_seconds: u64,
    /// Why.
    pub reason: String,
}

/// One controller: its address, and what its session knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControllerLine {
    /// As configured.
    pub endpoint: String,
    /// The address in use; `None` before the first good lookup.
    pub address: Option<SocketAddr>,
    /// Datagrams handed to the system.
    pub sent: u64,
    /// Datagrams that could not be sent.
    pub send_errors: u64,
    /// Lookups of its name that failed.
    pub lookup_errors: u64,
    /// The protocol's view.
    #[serde(flatten)]
    pub session: ControllerStatus,
}

/// The status cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody listens.
    #[error(
        "the agent does not run: nothing listens on {path}; start it with `systemctl start \
         heartwatch-agent`, or name its folder with --runtime-dir"
    )]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The system said no.
    #[error("cannot ask the agent through {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The answer is not what this version understands.
    #[error("the agent's answer is not understood: is it of another version than this command?")]
    Answer {
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Asks the running agent, and gives the JSON text that it answers.
pub fn ask(runtime_dir: &Path) -> Result<String, StatusError> {
    let path = runtime_dir.join(SOCKET_NAME);
    let read = || {
        let stream = std::os::unix::net::UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        let mut text = String::new();
        stream.take(ANSWER_LEN_MAX).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            StatusError::NotRunning { path: path.clone() }
        }
        _ => StatusError::Io { path: path.clone(), source },
    })
}

/// Reads the JSON text of a status.
pub fn parse(text: &str) -> Result<AgentStatus, StatusError> {
    serde_json::from_str(text).map_err(|source| StatusError::Answer { source })
}

/// The listening socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct StatusSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl StatusSocket {
    /// Listens in `runtime_dir`, which is made if missing. A socket file that nobody listens on any
    /// more is replaced; one that is answered is left alone and an error, as is a file that is no
    /// socket.
    pub fn open(runtime_dir: &Path) -> io::Result<Self> {
        Self::open_as(runtime_dir, SOCKET_NAME, 0o660)
    }

    /// The same under another name and mode.
    pub(crate) fn open_as(runtime_dir: &Path, name: &str, mode: u32) -> io::Result<Self> {
        std::fs::create_dir_all(runtime_dir)?;
        let path = runtime_dir.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file is in the way"));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(&path).is_ok() => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another agent answers there: do two run on this host?",
                ));
            }
            Ok(_) => std::fs::remove_file(&path)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let listener = UnixListener::bind(&path)?;
        let socket = Self { listener, path };
        std::fs::set_permissions(&socket.path, std::fs::Permissions::from_mode(mode))?;
        Ok(socket)
    }

    /// Waits for somebody who asks. Cancel-safe.
    pub async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // A file left behind is replaced by the next start.
        drop(std::fs::remove_file(&self.path));
    }
}

/// Sends the answer and closes; gives up on whoever does not take it in time.
pub async fn answer(mut stream: tokio::net::UnixStream, text: String) {
    use tokio::io::AsyncWriteExt;
    let write = async {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await
    };
    // Whether the asker got it is his affair.
    drop(tokio::time::timeout(ANSWER_TIME_MAX, write).await);
}

/// In one line: what comes of a controller that is older or newer than this agent.
pub fn other_version(seen: &OtherVersion) -> String {
    let (version, ours) = (seen.version, wire::VERSION);
    let upgrade = match version < ours {
        true => "upgrade the controller first",
        false => "upgrade this agent",
    };
    format!(
        "{} datagram(s) in wire format {version} came from {}, sealed with this host's key, and this agent speaks \
         format {ours}: neither understands the other, {upgrade}",
        seen.datagrams, seen.from
    )
}

fn millis(ms: f64) -> String {
    if ms >= 1_000.0 {
        Span(Duration::from_millis(ms as u64)).to_string()
    } else {
        format!("{ms:.1}ms")
    }
}

fn or_unknown(ms: Option<f64>) -> String {
    ms.map_or_else(|| "unknown".to_owned(), millis)
}

fn percent(share: Share) -> String {
    share.ratio().map_or_else(|| "unknown".to_owned(), |r| format!("{:.0} %", r * 100.0))
}

fn load_text(load: &LoadSample) -> String {
    let queue = match load.run_queue_centi {
        u16::MAX => "unknown".to_owned(),
        centi => format!("{:.2} per core", f64::from(centi) / 100.0),
    };
    let network = match load.network_kib_per_s {
        u32::MAX => "unknown".to_owned(),
        kib => format!("{kib} KiB/s"),
    };
    format!(
        "CPU {}, memory {}, swap {}, fullest disk {}, run queue {queue}, network {network}, \
         pressure CPU {}, memory {}, I/O {}",
        percent(load.cpu_busy),
        percent(load.memory_used),
        percent(load.swap_used),
        percent(load.disk_used),
        percent(load.psi_cpu),
        percent(load.psi_memory),
        percent(load.psi_io),
    )
}

impl std::fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let up = Span(Duration::from_secs(self.uptime_seconds));
        writeln!(f, "host        {} ({})", self.host, self.name)?;
        let wire = match self.wire_version {
            0 => String::new(),
            n => format!(" (wire format {n})"),
        };
        writeln!(f, "agent       {}{wire}, boot {}, up {up}", self.version, self.boot)?;
        writeln!(
            f,
            "interval    {} (default {}), next beat in {}",
            millis(self.interval_ms),
            millis(self.interval_default_ms),
            millis(self.next_beat_ms)
        )?;
        if let Some(r) = &self.revoked {
            writeln!(
                f,
                "REVOKED     by the cluster's operators at {}: {}\n            nobody believes its beats; once an \
                 operator has lifted that, enrol it again: heartwatch-agent enroll",
                r.at_ms, r.reason
            )?;
        }
        if let Some(seen) = &self.other_version {
            writeln!(f, "OTHER WIRE  {}", other_version(seen))?;
        }
        if let Some(m) = &self.maintenance {
            writeln!(f, "maintenance {}", m.text(&self.controllers))?;
        }
        writeln!(f, "load        {}", load_text(&self.load))?;
        if self.relayed > 0 {
            let (probes, answers) = (self.relayed, self.relay_replies);
            writeln!(f, "passed on   {probes} probes to other hosts, {answers} answers back")?;
        }
        let mut ignored = String::new();
        for (reason, count) in &self.rejects {
            write!(ignored, "{}{count} {reason}", if ignored.is_empty() { "" } else { ", " })?;
        }
        writeln!(f, "ignored     {}", if ignored.is_empty() { "nothing" } else { &ignored })?;
        for c in &self.controllers {
            write!(f, "\n{c}")?;
        }
        Ok(())
    }
}

impl MaintenanceLine {
    /// In one line, with who knows of it.
    pub fn text(&self, controllers: &[ControllerLine]) -> String {
        let knows = controllers.iter().filter(|c| c.session.hello_acked).count();
        format!(
            "{} more ({}); {knows} of {} controllers know of it",
            Span(Duration::from_secs(self.remaining_seconds)),
            self.reason,
            controllers.len()
        )
    }
}

impl std::fmt::Display for ControllerLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let s = &self.session;
        let address =
            self.address.map_or_else(|| "an unknown address".to_owned(), |a| a.to_string());
        let state = match (s.heard, s.last_ack_age_ms) {
            (true, _) => "heard",
            (false, Some(_)) => "no longer heard",
            (false, None) => "never heard",
        };
        writeln!(f, "controller  {} at {address}: {state}", self.endpoint)?;
        if s.last_ack_age_ms.is_none() && s.acks_wanted >= UNHEARD_MIN {
            writeln!(f, "  WHY         it {UNHEARD}")?;
        }
        let ack = s.last_ack_age_ms.map_or_else(|| "none".to_owned(), |ms| millis(ms) + " ago");
        writeln!(f, "  last ack    {ack}")?;
        writeln!(
            f,
            "  round trip  last {}, least {}, smoothed {}",
            or_unknown(s.rtt_last_ms),
            or_unknown(s.rtt_min_ms),
            or_unknown(s.rtt_smoothed_ms)
        )?;
        let assigned = s.assigned_interval_ms.map_or_else(|| "no interval".to_owned(), millis);
        writeln!(f, "  assigned    {assigned}")?;
        let share = s.loss_ratio.map_or(0.0, |r| r * 100.0);
        writeln!(f, "  losses      {} of {} round trips ({share:.1} %)", s.losses, s.acks_wanted)?;
        writeln!(
            f,
            "  sent        {} beats, {} hellos, {} answers to probes; {} errors",
            s.beats_sent, s.hellos_sent, s.probes_answered, self.send_errors
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::time::Wall;

    fn status() -> AgentStatus {
        let session = r#"{"id":"00000000000003e8","heard":true,"last_ack_age_ms":120.5,
            "rtt_last_ms":0.3,"rtt_min_ms":0.2,"rtt_smoothed_ms":0.25,"assigned_interval_ms":2000,
            "epoch_known":true,"hello_acked":true,"seq":9,"beats_sent":8,"hellos_sent":1,
            "acks_wanted":4,"acks_received":3,"losses":1,"loss_ratio":0.25,"challenges":1,
            "acks_unmatched":0,"probes_answered":0,"lost":0}"#;
        AgentStatus {
            version: "0.1.0".to_owned(),
            wire_version: 2,
            other_version: None,
            host: HostId([0x8a; 16]),
            name: "db-1".to_owned(),
            boot: Boot(7),
            uptime_seconds: 75,
            interval_ms: 2_000.0,
            interval_default_ms: 1_000.0,
            next_beat_ms: 412.25,
            load: LoadSample { cpu_busy: Share::from_ratio(0.5), ..LoadSample::UNKNOWN },
            relayed: 5,
            relay_replies: 4,
            rejects: BTreeMap::from([("wrong_tag".to_owned(), 3)]),
            maintenance: Some(MaintenanceLine {
                remaining_seconds: 90,
                reason: "new disk".to_owned(),
            }),
            revoked: Some(Revoked { at_ms: Wall(0), reason: "lost (ann)".to_owned() }),
            controllers: vec![ControllerLine {
                endpoint: "ctl:2328".to_owned(),
                address: Some(SocketAddr::from(([192, 0, 2, 1], 2328))),
                sent: 9,
                send_errors: 0,
                lookup_errors: 0,
                session: serde_json::from_str(session).unwrap(),
            }],
        }
    }

    #[test]
    fn the_status_survives_json() {
        let text = serde_json::to_string(&status()).unwrap();
        assert_eq!(parse(&text).unwrap(), status());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["controllers"][0]["rtt_last_ms"], 0.3);
        assert!(parse("{}").is_err());
    }

    #[test]
    fn a_person_can_read_it() {
        let text = status().to_string();
        for part in [
            "boot 7, up 1m 15s",
            "2s (default 1s)",
            "CPU 50 %, memory unknown",
            "maintenance 1m 30s more (new disk); 1 of 1 controllers know of it",
            "REVOKED     by the cluster's operators at 1970-01-01T00:00:00",
            ": lost (ann)",
            "5 probes to other hosts, 4 answers back",
            "3 wrong_tag",
            "ctl:2328 at 192.0.2.1:2328: heard",
            "120.5ms ago",
            "1 of 4 round trips (25.0 %)",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert!(!text.contains("OTHER WIRE") && !text.contains("WHY"), "{text}");
    }

    /// It said "never heard", and only a counter told more.
    #[test]
    fn of_a_controller_that_never_answers_and_of_another_wire_format_it_is_told() {
        let mut status = status();
        let from = SocketAddr::from(([192, 0, 2, 1], 2328));
        status.other_version = Some(OtherVersion { version: 1, datagrams: 7, from });
        let session = &mut status.controllers[0].session;
        (session.heard, session.last_ack_age_ms, session.acks_wanted) = (false, None, 40);
        let text = status.to_string();
        for part in [
            "agent       0.1.0 (wire format 2), boot 7",
            "OTHER WIRE  7 datagram(s) in wire format 1 came from 192.0.2.1:2328",
            "this agent speaks format 2: neither understands the other, upgrade the controller first",
            ": never heard",
            "WHY         it has not answered once",
            "another wire format",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        let newer = OtherVersion { version: 3, datagrams: 1, from };
        assert!(other_version(&newer).ends_with("upgrade this agent"));
    }

    #[test]
    fn without_an_agent_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let error = ask(dir.path()).unwrap_err();
        assert!(matches!(error, StatusError::NotRunning { .. }));
        assert!(error.to_string().contains("systemctl start"));
    }

    #[test]
    fn whoever_asks_is_answered_and_a_stale_socket_is_replaced() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET_NAME);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        runtime.block_on(async {
            let socket = StatusSocket::open(dir.path()).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o660);
            let asker = std::thread::spawn({
                let dir = dir.path().to_owned();
                move || ask(&dir).unwrap()
            });
            let stream = socket.accept().await.unwrap();
            answer(stream, "{\"a\":1}".to_owned()).await;
            assert_eq!(asker.join().unwrap(), "{\"a\":1}");
            let second = StatusSocket::open(dir.path()).unwrap_err();
            assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        });
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        let in_the_way = runtime.block_on(async { StatusSocket::open(dir.path()).unwrap_err() });
        assert_eq!(in_the_way.kind(), io::ErrorKind::AlreadyExists);
    }
}
