//! Recording what arrives, as an arrival log that [`super::read`] reads.
//!
//! Shards hand every accepted proof of life to one thread over a bounded queue and never wait: what does
//! not fit is counted and missing from the file, which shows as a hole in the numbers. The thread writes
//! whole lines, in batches. When FILE has reached half of the size that is granted it becomes FILE.1 and a
//! new FILE is begun, so both together never exceed it.
//!
//! Numbers that were skipped are written as lost, up to [`LOST_MAX`] in a row; when they were sent is not
//! known, so they are spread evenly between their neighbours. More in a row are left out: a hole.
//!
//! A disk that refuses is logged at most once a minute and tried again every `RETRY_EVERY`; meanwhile
//! lines are counted as dropped. No line is ever left half written.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use heartwatch_common::daemon::Throttle;
use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Instant};
use heartwatch_common::wire::Stamp;

use super::read::{HEADER, LINE_LEN_MAX};
use crate::ingest::admit::Newest;
use crate::metrics::{ShardMetrics, add, inc};

/// Proofs of life that wait to be written, of all shards.
const QUEUE_LEN_MAX: usize = 65_536;
/// Lost numbers in a row that are written.
pub const LOST_MAX: u32 = 3_600;
/// Bytes gathered before they are written…
const BATCH_LEN: usize = 64 * 1024;
/// …or this long after the first of them.
const BATCH_WAIT: Duration = Duration::from_millis(500);
/// How long a disk that refused is left alone.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// Least and greatest size that may be granted, bytes.
pub const SIZE: std::ops::RangeInclusive<u64> = 64 * 1024..=1 << 40;

/// What is to be recorded, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The file.
    pub file: PathBuf,
    /// These hosts; `None`: all.
    pub hosts: Option<BTreeSet<HostId>>,
    /// Bytes that the file and its predecessor may have together, within [`SIZE`].
    pub len_max: u64,
}

/// One accepted proof of life, and how many before it were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    host: HostId,
    seq: u32,
    lost: u32,
    /// When the one before those was sent.
    before_us: u64,
    sent_us: u64,
    gap_us: u64,
    arrived_us: u64,
}

/// A shard's end of the queue.
#[derive(Clone, Debug)]
pub struct Recorder {
    hosts: Option<Arc<BTreeSet<HostId>>>,
    queue: SyncSender<Taken>,
}

impl Recorder {
    /// Takes a proof of life that arrived at `arrival`; `seen` is what the host had proved before it.
    pub fn take(
        &self,
        host: HostId,
        seen: &Newest,
        stamp: &Stamp,
        arrival: Instant,
        metrics: &ShardMetrics,
    ) {
        if self.hosts.as_ref().is_some_and(|hosts| !hosts.contains(&host)) {
            return;
        }
        let skipped = stamp.seq.0.saturating_sub(seen.seq.0).saturating_sub(1);
        // Before our own start nothing is known of what was lost.
        let continues = seen.boot == stamp.boot && seen.baseline_ns.is_some();
        let told = continues && skipped <= LOST_MAX && seen.sent <= stamp.sent;
        let taken = Taken {
            host,
            seq: stamp.seq.0,
            lost: if told { skipped } else { 0 },
            before_us: seen.sent.as_micros(),
            sent_us: stamp.sent.as_micros(),
            gap_us: stamp.gap.as_micros() as u64,
            arrived_us: arrival.as_micros(),
        };
        if self.queue.try_send(taken).is_err() {
            inc(&metrics.record_dropped);
        }
    }
}

impl Taken {
    /// How many lines it is.
    fn lines(&self) -> u64 {
        u64::from(self.lost) + 1
    }

    fn write(&self, text: &mut String) {
        let Self { host, seq, lost, before_us, sent_us, gap_us, arrived_us } = self;
        let spacing = sent_us.saturating_sub(*before_us) / (u64::from(*lost) + 1);
        for i in 0..*lost {
            let (seq, sent) = (seq - lost + i, before_us + spacing * (u64::from(i) + 1));
            // Nothing can go wrong when a String is written to.
            writeln!(text, "{host},{seq},{sent},{spacing},").unwrap_or_default();
        }
        writeln!(text, "{host},{seq},{sent_us},{gap_us},{arrived_us}").unwrap_or_default();
    }
}

/// The file and its length in whole lines.
struct Log {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Log {
    /// Opens a log to go on with, or begins one. What is there and is no arrival log is not touched.
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut len = file.metadata()?.len();
        let header = format!("{HEADER}\n");
        if len == 0 {
            file.write_all(header.as_bytes())?;
            len = header.len() as u64;
        } else {
            let mut first = vec![0; header.len()];
            let is_log = file.read_exact(&mut first).is_ok() && first == header.as_bytes();
            if !is_log {
                return Err(io::Error::other("it is there and not a recording"));
            }
            // A life before this may have ended in the middle of a line.
            let tail = file.seek(SeekFrom::Start(len.saturating_sub(LINE_LEN_MAX as u64)))?;
            let mut end = Vec::new();
            file.read_to_end(&mut end)?;
            if let Some(last) = end.iter().rposition(|b| *b == b'\n') {
                len = tail + last as u64 + 1;
                file.set_len(len)?;
            }
        }
        Ok(Self { path: path.to_owned(), file, len })
    }

    /// Writes whole lines, all or none.
    fn append(&mut self, lines: &str) -> io::Result<()> {
        match self.file.write_all(lines.as_bytes()) {
            Ok(()) => {
                self.len += lines.len() as u64;
                Ok(())
            }
            Err(e) => {
                self.file.set_len(self.len)?;
                Err(e)
            }
        }
    }

    /// Makes the file its own predecessor and begins a new one.
    fn rotate(self) -> io::Result<Self> {
        std::fs::rename(&self.path, rotated(&self.path))?;
        Self::open(&self.path)
    }
}

/// FILE.1
fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// The thread that writes.
struct Writer {
    plan: Plan,
    inbox: Receiver<Taken>,
    /// `None`: the disk refused.
    log: Option<Log>,
    retry_at: Instant,
    clock: Arc<dyn Clock>,
    /// Where lines are counted that could not be written.
    metrics: Arc<ShardMetrics>,
    complaint: Throttle,
}

/// Opens the file and starts the thread that writes it, until the last recorder is gone. Lines that the
/// disk refuses are counted in `metrics`.
pub fn start(
    plan: Plan,
    clock: Arc<dyn Clock>,
    metrics: Arc<ShardMetrics>,
) -> io::Result<(Recorder, JoinHandle<()>)> {
    let log = Some(Log::open(&plan.file)?);
    let (queue, inbox) = sync_channel(QUEUE_LEN_MAX);
    let recorder = Recorder { hosts: plan.hosts.clone().map(Arc::new), queue };
    let complaint = Throttle::new(Duration::from_secs(60));
    let writer = Writer { plan, inbox, log, retry_at: Instant(0), clock, metrics, complaint };
    let thread =
        std::thread::Builder::new().name("recorder".to_owned()).spawn(move || writer.run())?;
    Ok((recorder, thread))
}

impl Writer {
    fn run(mut self) {
        let (mut text, mut lines) = (String::new(), 0);
        let mut until = Instant::FAR;
        loop {
            let now = self.clock.now();
            let got = match until {
                // Nothing is gathered: nothing to hurry for.
                Instant::FAR => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                until => self.inbox.recv_timeout(until.since(now)),
            };
            if let Ok(taken) = &got {
                taken.write(&mut text);
                lines += taken.lines();
                until = until.min(now + BATCH_WAIT);
            }
            if got.is_err() || text.len() >= BATCH_LEN {
                if !text.is_empty() && !self.write(&text) {
                    add(&self.metrics.record_dropped, lines);
                }
                text.clear();
                (lines, until) = (0, Instant::FAR);
            }
            if matches!(got, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
        }
    }

    /// Writes a batch; `false` if it could not be.
    fn write(&mut self, text: &str) -> bool {
        let now = self.clock.now();
        if self.log.is_none() && now < self.retry_at {
            return false;
        }
        let written = self.try_write(text);
        if let Err(e) = &written {
            self.log = None;
            self.retry_at = now + RETRY_EVERY;
            if let Some(more) = self.complaint.pass(now) {
                let file = self.plan.file.display();
                log::warn!("cannot record to {file}: {e} ({more} more like this)");
            }
        }
        written.is_ok()
    }

    /// On an error the log is closed, and opened again at the next attempt.
    fn try_write(&mut self, text: &str) -> io::Result<()> {
        let mut log = match self.log.take() {
            Some(log) => log,
            None => Log::open(&self.plan.file)?,
        };
        if log.len + text.len() as u64 > self.plan.len_max / 2 && log.len > HEADER.len() as u64 + 1
        {
            log = log.rotate()?;
        }
        log.append(text)?;
        self.log = Some(log);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::read::{HostLog, LOST, Pace, read};
    use super::*;
    use heartwatch_common::id::{Boot, Epoch, Seq};
    use heartwatch_common::time::SystemClock;

    const HOST: HostId = HostId([7; 16]);

    fn seen(boot: u32, seq: u32, sent_us: u64) -> Newest {
        Newest {
            boot: Boot(boot),
            seq: Seq(seq),
            sent: Instant::from_micros(sent_us),
            baseline_ns: Some(0),
        }
    }

    fn stamp(boot: u32, seq: u32, sent_us: u64) -> Stamp {
        Stamp {
            boot: Boot(boot),
            seq: Seq(seq),
            sent: Instant::from_micros(sent_us),
            gap: Duration::from_secs(1),
            epoch: Epoch(1),
        }
    }

    /// Records from a shard of its own and answers what was written, and what was dropped.
    fn record(plan: &Plan, say: impl FnOnce(&Recorder, &ShardMetrics)) -> u64 {
        let metrics = Arc::new(ShardMetrics::default());
        let (recorder, thread) =
            start(plan.clone(), Arc::new(SystemClock), Arc::clone(&metrics)).unwrap();
        say(&recorder, &metrics);
        drop(recorder);
        thread.join().unwrap();
        crate::metrics::get(&metrics.record_dropped)
    }

    fn plan(dir: &tempfile::TempDir, len_max: u64) -> Plan {
        Plan { file: dir.path().join("beats.csv"), hosts: None, len_max }
    }

    fn logs(plan: &Plan) -> Vec<HostLog> {
        let pace = Pace { interval: Duration::from_secs(1), jitter: 0.0, seed: 1 };
        read(&[plan.file.parent().unwrap().to_owned()], &pace).unwrap()
    }

    #[test]
    fn what_is_recorded_reads_back_with_the_lost_ones_between() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir, 1 << 20);
        let dropped = record(&plan, |r, m| {
            let at = Instant::from_micros;
            // The first of all is told without what may have been lost before our start.
            r.take(
                HOST,
                &Newest { baseline_ns: None, ..seen(1, 0, 0) },
                &stamp(1, 9, 1_000_000),
                at(50),
                m,
            );
            r.take(HOST, &seen(1, 9, 1_000_000), &stamp(1, 12, 4_000_000), at(3_000_050), m);
            r.take(HOST, &seen(1, 12, 4_000_000), &stamp(2, 1, 9_000_000), at(8_000_050), m);
            r.take(HOST, &seen(2, 1, 9_000_000), &stamp(2, 9_000, 10_000_000), at(9_000_050), m);
        });
        assert_eq!(dropped, 0);
        let text = std::fs::read_to_string(&plan.file).unwrap();
        let expected = format!(
            "{HEADER}\n{HOST},9,1000000,1000000,50\n{HOST},10,2000000,1000000,\n\
             {HOST},11,3000000,1000000,\n{HOST},12,4000000,1000000,3000050\n\
             {HOST},1,9000000,1000000,8000050\n{HOST},9000,10000000,1000000,9000050\n"
        );
        assert_eq!(text, expected);
        let log = logs(&plan).remove(0);
        assert_eq!((log.beats.len(), log.lives.clone()), (6, vec![4, 5]));
        assert_eq!(log.beats.iter().filter(|b| b.arrived_us == LOST).count(), 2);
    }

    #[test]
    fn files_never_exceed_what_was_granted_and_others_hosts_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let len_max = *SIZE.start();
        let plan = Plan { hosts: Some([HOST].into()), ..plan(&dir, len_max) };
        for life in 0..8u32 {
            record(&plan, |r, m| {
                for k in life * 200 + 1..=life * 200 + 200 {
                    let sent = u64::from(k) * 1_000_000;
                    let at = Instant::from_micros(sent);
                    r.take(HostId([8; 16]), &seen(1, k - 1, sent), &stamp(1, k, sent), at, m);
                    r.take(HOST, &seen(1, k - 1, sent - 1_000_000), &stamp(1, k, sent), at, m);
                }
            });
            let len = |p: &Path| std::fs::metadata(p).map_or(0, |m| m.len());
            assert!(len(&plan.file) + len(&rotated(&plan.file)) <= len_max);
        }
        let logs = logs(&plan);
        assert_eq!((logs.len(), logs[0].lives.len()), (1, 0), "one host, nothing missing between");
        let last = logs[0].beats.last().unwrap();
        assert_eq!(last.seq, 1_600);
        assert!((400..1_600).contains(&logs[0].beats.len()), "{}", logs[0].beats.len());
    }

    #[test]
    fn a_half_written_line_is_cut_off_and_a_foreign_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir, 1 << 20);
        std::fs::write(&plan.file, format!("{HEADER}\n{HOST},1,1,1,1\n{HOST},2,2")).unwrap();
        record(&plan, |r, m| {
            r.take(HOST, &seen(1, 1, 1), &stamp(1, 2, 2), Instant::from_micros(2), m);
        });
        let text = std::fs::read_to_string(&plan.file).unwrap();
        assert_eq!(text, format!("{HEADER}\n{HOST},1,1,1,1\n{HOST},2,2,1000000,2\n"));

        std::fs::write(&plan.file, "precious\n".repeat(9)).unwrap();
        let metrics = Arc::new(ShardMetrics::default());
        assert!(start(plan.clone(), Arc::new(SystemClock), metrics).is_err());
        assert!(std::fs::read_to_string(&plan.file).unwrap().starts_with("precious"));
    }

    #[test]
    fn a_disk_that_refuses_costs_lines_and_nothing_else() {
        let plan = Plan { file: PathBuf::from("/dev/full"), hosts: None, len_max: 1 << 20 };
        let dir = tempfile::tempdir().unwrap();
        let fine = Plan { file: dir.path().join("x.csv"), ..plan.clone() };
        let metrics = Arc::new(ShardMetrics::default());
        let (queue, inbox) = sync_channel(8);
        let mut writer = Writer {
            plan,
            inbox,
            log: Some(Log {
                path: PathBuf::from("/dev/full"),
                file: File::options().append(true).open("/dev/full").unwrap(),
                len: 0,
            }),
            retry_at: Instant(0),
            clock: Arc::new(SystemClock),
            metrics: Arc::clone(&metrics),
            complaint: Throttle::new(Duration::from_secs(60)),
        };
        assert!(!writer.write("a,1,1,1,1\n"));
        assert!(!writer.write("a,2,1,1,1\n"), "it is left alone for a while");
        writer.plan = fine.clone();
        writer.retry_at = Instant(0);
        assert!(writer.write("a,3,1,1,1\n"), "and taken up again");
        drop((queue, writer));
        assert_eq!(std::fs::read_to_string(&fine.file).unwrap(), format!("{HEADER}\na,3,1,1,1\n"));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (queue, _inbox) = sync_channel(1);
        let recorder = Recorder { hosts: None, queue };
        let metrics = ShardMetrics::default();
        for k in 1..=3 {
            let at = Instant::from_micros(u64::from(k));
            recorder.take(HOST, &seen(1, k - 1, 1), &stamp(1, k, 1), at, &metrics);
        }
        assert_eq!(crate::metrics::get(&metrics.record_dropped), 2);
    }
}
