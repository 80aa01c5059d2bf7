//! What `/proc` says, as text in and figures out; see proc(5) and the kernel's
//! `accounting/psi.rst`.
//!
//! Every parser takes the whole text and gives `None` when it is not what the kernel documents: an
//! old kernel, PSI switched off, or a container that hides the file.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use heartwatch_common::load::Share;
use heartwatch_common::time::Instant;

/// No file that is read here is longer; what lies beyond is not looked at.
pub const READ_LEN_MAX: u64 = 1024 * 1024;
/// At most so many interfaces, or mounts, are looked at.
pub const LINES_MAX: usize = 4_096;
/// A run queue longer than this is told as this (65,535 means unknown).
const QUEUE_MAX: f64 = 65_534.0;
/// Weight of the latest reading of the run queue, which is a mere instant.
const QUEUE_WEIGHT: f64 = 0.25;

/// Reads a small file, at most [`READ_LEN_MAX`] bytes of it.
pub fn read(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(READ_LEN_MAX).read_to_end(&mut bytes)?;
    // Mount points need not be UTF-8; a mangled one is merely not found later.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `some avg10` of a file in `/proc/pressure`: the share of the last 10 s in which some task
/// waited.
///
/// The line: `some avg10=1.53 avg60=0.80 avg300=0.20 total=58761459`, in percent.
pub fn psi_some_avg10(text: &str) -> Option<Share> {
    let line = text.lines().find_map(|l| l.strip_prefix("some "))?;
    let value = line.split_ascii_whitespace().find_map(|f| f.strip_prefix("avg10="))?;
    let percent: f64 = value.parse().ok()?;
    percent.is_finite().then(|| Share::from_ratio(percent / 100.0))
}

/// Runnable tasks from `/proc/loadavg`, less the one that reads it.
///
/// The line: `0.20 0.18 0.12 1/80 11206`; the fourth field is runnable tasks over all tasks.
pub fn runnable(text: &str) -> Option<u32> {
    let (running, _) = text.split_ascii_whitespace().nth(3)?.split_once('/')?;
    Some(running.parse::<u32>().ok()?.saturating_sub(1))
}

/// The run queue per core, smoothed over a few readings.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunQueue {
    smoothed: Option<f64>,
}

impl RunQueue {
    /// Takes a reading; gives hundredths of a task per core, 65,535 = unknown.
    pub fn observe(&mut self, runnable: Option<u32>, cores: usize) -> u16 {
        let Some(runnable) = runnable.filter(|_| cores > 0) else {
            self.smoothed = None;
            return u16::MAX;
        };
        let reading = f64::from(runnable) * 100.0 / cores as f64;
        let smoothed = self.smoothed.map_or(reading, |old| old + (reading - old) * QUEUE_WEIGHT);
        self.smoothed = Some(smoothed);
        smoothed.round().min(QUEUE_MAX) as u16
    }
}

/// Bytes received and sent since its start, by interface, from `/proc/net/dev`; without loopback.
///
/// A line: `  eth0: 1296 16 0 0 0 0 0 0 2240 28 …`; received bytes are the first field, sent bytes
/// the ninth. Two header lines have no such form.
pub fn interfaces(text: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, fields) = line.split_once(':')?;
        let mut fields = fields.split_ascii_whitespace();
        let received: u64 = fields.next()?.parse().ok()?;
        let sent: u64 = fields.nth(7)?.parse().ok()?;
        let name = name.trim();
        (name != "lo").then(|| (name.to_owned(), received.saturating_add(sent)))
    };
    text.lines().take(LINES_MAX).filter_map(line).collect()
}

/// Network traffic as a rate.
#[derive(Clone, Debug, Default)]
pub struct Network {
    last: Option<(Instant, BTreeMap<String, u64>)>,
}

impl Network {
    /// Takes the counters read at `now`; gives KiB per second since the reading before, `u32::MAX`
    /// = unknown. An interface that came, went or started anew adds nothing.
    pub fn observe(&mut self, counters: Option<BTreeMap<String, u64>>, now: Instant) -> u32 {
        let Some(counters) = counters else {
            self.last = None;
            return u32::MAX;
        };
        let rate = self.last.as_ref().and_then(|(at, before)| {
            let seconds = now.since(*at).as_secs_f64();
            let bytes: u64 = counters
                .iter()
                .filter_map(|(name, bytes)| bytes.checked_sub(*before.get(name)?))
                .fold(0, u64::saturating_add);
            (seconds > 0.0).then(|| bytes as f64 / 1024.0 / seconds)
        });
        self.last = Some((now, counters));
        // `as` saturates; one less than the mark for unknown is the largest figure.
        rate.map_or(u32::MAX, |r| (r.round() as u32).min(u32::MAX - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn pressure_is_the_some_line_over_ten_seconds() {
        let text = "some avg10=12.40 avg60=0.80 avg300=0.20 total=58761459\n\
                    full avg10=99.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(psi_some_avg10(text), Some(Share::from_ratio(0.124)));
        for bad in ["", "full avg10=1.00", "some avg60=1.00", "some avg10=x", "some avg10=nan"] {
            assert_eq!(psi_some_avg10(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_reader_itself_is_not_counted_as_runnable() {
        assert_eq!(runnable("0.20 0.18 0.12 1/80 11206\n"), Some(0));
        assert_eq!(runnable("9.20 0.18 0.12 17/80 11206\n"), Some(16));
        for bad in ["", "0.20 0.18 0.12", "0.20 0.18 0.12 x/80 1", "0.2 0.1 0.1 180 1"] {
            assert_eq!(runnable(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_run_queue_is_per_core_and_smoothed() {
        let mut queue = RunQueue::default();
        assert_eq!(queue.observe(Some(8), 4), 200);
        assert_eq!(queue.observe(Some(0), 4), 150);
        assert_eq!(queue.observe(None, 4), u16::MAX);
        assert_eq!(queue.observe(Some(4), 4), 100, "after a gap it starts anew");
        assert_eq!(queue.observe(Some(4), 0), u16::MAX);
        assert_eq!(queue.observe(Some(u32::MAX), 1), 65_534);
    }

    const DEV: &str = "\
Inter-|   Receive                              |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo …
    lo: 999999      16    0    0    0     0          0         0  999999      16    0    0    0
  eth0:1024      16    0    0    0     0          0         0     2048      28    0    0    0    0
  eth1: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0
  odd: 5 1
";

    #[test]
    fn interfaces_are_read_without_loopback() {
        let got = interfaces(DEV);
        assert_eq!(got, BTreeMap::from([("eth0".to_owned(), 3_072), ("eth1".to_owned(), 11)]));
    }

    #[test]
    fn traffic_is_a_rate_over_the_time_that_passed() {
        let at = |ms| Instant::from_millis(ms);
        let counters = |list: &[(&str, u64)]| {
            Some(list.iter().map(|(n, b)| ((*n).to_owned(), *b)).collect::<BTreeMap<_, _>>())
        };
        let mut network = Network::default();
        assert_eq!(network.observe(counters(&[("a", 0), ("b", 9_000)]), at(0)), u32::MAX);
        assert_eq!(network.observe(counters(&[("a", 20_480), ("b", 0)]), at(2_000)), 10);
        assert_eq!(network.observe(counters(&[("a", 20_480), ("c", 9_999)]), at(3_000)), 0);
        assert_eq!(network.observe(counters(&[("a", 20_480)]), at(3_000)), u32::MAX);
        assert_eq!(network.observe(None, at(4_000)), u32::MAX);
        network.observe(counters(&[("a", 0)]), at(5_000));
        let soon = at(5_000) + Duration::from_nanos(1);
        assert_eq!(network.observe(counters(&[("a", u64::MAX)]), soon), u32::MAX - 1);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,300}") {
            psi_some_avg10(&text);
            runnable(&text);
            interfaces(&text);
        }
    }
}
