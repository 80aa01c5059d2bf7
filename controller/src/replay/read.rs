//! Recordings: what arrived, and what did not.
//!
//! Two formats, told apart by a file's first line. At most [`LINE_LEN_MAX`] bytes a line and
//! [`BEATS_MAX`] beats in all.
//!
//! **An arrival log** begins with the line [`HEADER`] and has one line per datagram of a host:
//!
//! | column | |
//! | --- | --- |
//! | `host` | any text without a comma, at most [`NAME_LEN_MAX`] bytes |
//! | `seq` | its number within one life of the agent, 0 to 4,294,967,295 |
//! | `sent_us` | when it was sent, µs on the agent's clock, whatever its origin |
//! | `gap_us` | time to the next beat as it announced, µs, at most an hour |
//! | `arrived_us` | when it arrived, µs on the receiver's clock; empty: it was lost |
//!
//! Lines of several hosts may be mixed, and those of one host need not be in order. A number that falls
//! back although the agent's or the receiver's clock says that time has passed begins a new life of the
//! agent. Numbers that have no line are a hole in the recording: nothing is judged across it. A beat that
//! a later one overtook counts as lost, as it does to a detector, which believes the newest only. The two
//! clocks differ by an unknown amount, so the shortest delay nearby is taken for none.
//!
//! **A delay series** has on line k the one-way delay of beat k in milliseconds, or `lost`. It is one host
//! named like the file, and its beats are sent on a fixed grid, each moved off its point by its own
//! uniform draw, as the agent's schedule does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heartwatch_common::wire::GAP_MAX;

/// First line of an arrival log.
pub const HEADER: &str = "host,seq,sent_us,gap_us,arrived_us";
/// Longest line, bytes.
pub const LINE_LEN_MAX: usize = 256;
/// Most beats of all files together: 24 bytes each while they are read.
pub const BEATS_MAX: usize = 20_000_000;
/// Most hosts.
pub const HOSTS_MAX: usize = 100_000;
/// Longest name of a host, bytes.
pub const NAME_LEN_MAX: usize = 64;
/// Longest delay of a delay series, milliseconds.
pub const DELAY_MS_MAX: f64 = 3_600_000.0;
/// A clock that falls back by less is not a new one: datagrams overtake each other.
const OVERTAKE_US: u64 = 60_000_000;
/// In place of an arrival: it was lost.
pub const LOST: u64 = u64::MAX;
/// No clock of a recording is beyond this, µs (317 years), so that nanoseconds fit 64 bits.
const CLOCK_MAX: u64 = 10_000_000_000_000_000;
/// Beats of which the shortest delay is taken for none, together with their neighbours.
const BLOCK: usize = 64;

/// Why a recording can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system said no.
    #[error("cannot read {}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line means nothing.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// In this file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// There is nothing in it.
    #[error("{}: {reason}", path.display())]
    Nothing {
        /// The file or folder.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
}

/// How beats of a delay series are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Between two points of the grid.
    pub interval: Duration,
    /// Share of it by which a gap may differ, 0 to 0.5.
    pub jitter: f64,
    /// Of the draws.
    pub seed: u64,
}

/// One datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// When it was sent, µs.
    pub sent_us: u64,
    /// When it arrived, µs, or [`LOST`].
    pub arrived_us: u64,
    /// The gap that it announces, µs.
    pub gap_us: u32,
    /// Its number.
    pub seq: u32,
}

/// Whether sent and arrived are told by the same clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// They are: delays are known.
    Same,
    /// Only changes of the delay are known.
    Apart,
}

/// One host's beats.
#[derive(Clone, Debug, PartialEq)]
pub struct HostLog {
    /// Its name.
    pub name: String,
    /// How its times may be compared.
    pub clocks: Clocks,
    /// By life and number; arrivals rise.
    pub beats: Vec<Beat>,
    /// Where lives begin, but for the first.
    pub lives: Vec<usize>,
}

impl HostLog {
    /// What to add to each beat's time of sending to have it on the receiver's clock, µs.
    pub fn offsets(&self) -> Vec<i64> {
        if self.clocks == Clocks::Same {
            return vec![0; self.beats.len().div_ceil(BLOCK)];
        }
        let offset =
            |b: &Beat| (b.arrived_us != LOST).then(|| b.arrived_us.wrapping_sub(b.sent_us) as i64);
        let mut of_block: Vec<Option<i64>> =
            self.beats.chunks(BLOCK).map(|c| c.iter().filter_map(offset).min()).collect();
        // Blocks without an arrival have the offset of those before, or of the first that has one.
        let mut last = of_block.iter().copied().flatten().next();
        for block in &mut of_block {
            last = block.or(last);
            *block = last;
        }
        let known: Vec<i64> = of_block.into_iter().map(Option::unwrap_or_default).collect();
        let near = |i: usize| known[i.saturating_sub(1)..(i + 2).min(known.len())].iter().min();
        (0..known.len()).map(|i| near(i).copied().unwrap_or_default()).collect()
    }

    /// The block of [`Self::offsets`] to which a beat belongs.
    pub fn block(beat: usize) -> usize {
        beat / BLOCK
    }
}

/// Reads files and folders; hosts are sorted by name.
pub fn read(paths: &[PathBuf], pace: &Pace) -> Result<Vec<HostLog>, ReadError> {
    let mut reading = Reading::default();
    for path in paths {
        let files = files_of(path)?;
        if files.is_empty() {
            let reason = "no file in it is named *.csv, *.csv.1 or *.delays";
            return Err(ReadError::Nothing { path: path.clone(), reason });
        }
        for file in files {
            reading.file(&file, pace)?;
        }
    }
    Ok(reading.hosts.into_iter().map(|(name, host)| host.finish(name)).collect())
}

/// The file itself, or the recordings of a folder, a rotated one before its successor.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(io)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (stem, newer) = name.strip_suffix(".1").map_or((name.as_str(), true), |s| (s, false));
        let wanted = stem.ends_with(".csv") || newer && stem.ends_with(".delays");
        if wanted && file.is_file() {
            files.push((stem.to_owned(), newer, file));
        }
    }
    files.sort();
    Ok(files.into_iter().map(|(_, _, file)| file).collect())
}

/// A host while its lines come.
struct Gathered {
    clocks: Clocks,
    beats: Vec<Beat>,
    lives: Vec<usize>,
    /// Greatest number, time of sending and arrival of the life, to tell the next.
    newest: Option<Beat>,
    /// What is added to arrivals: the receiver's clock began anew.
    shift_us: u64,
}

#[derive(Default)]
struct Reading {
    hosts: BTreeMap<String, Gathered>,
    beats: usize,
}

/// A line, or why not.
type Parsed<T> = Result<T, String>;

impl Reading {
    fn file(&mut self, path: &Path, pace: &Pace) -> Result<(), ReadError> {
        let io = |source| ReadError::Io { path: path.to_owned(), source };
        let mut lines = Lines { file: BufReader::new(File::open(path).map_err(io)?), no: 0 };
        let mut room = Vec::new();
        let wrong = |line, reason| ReadError::Line { path: path.to_owned(), line, reason };
        let Some(first) = lines.next(&mut room).map_err(io)? else {
            return Err(ReadError::Nothing { path: path.to_owned(), reason: "it is empty" });
        };
        let first = first.map_err(|reason| wrong(1, reason))?;
        let before = self.beats;
        if first == HEADER {
            while let Some(line) = lines.next(&mut room).map_err(io)? {
                let no = lines.no;
                line.and_then(|l| self.arrival(l)).map_err(|reason| wrong(no, reason))?;
            }
        } else if first == "lost" || first.parse::<f64>().is_ok() {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let mut grid = Grid::new(pace, self.name(&name).map_err(|reason| wrong(1, reason))?);
            let mut line = Some(Ok(first));
            while let Some(text) = line {
                let no = lines.no;
                text.and_then(|l| self.delay(&name, &mut grid, l))
                    .map_err(|reason| wrong(no, reason))?;
                line = lines.next(&mut room).map_err(io)?;
            }
        } else {
            let reason = format!(
                "neither the header `{HEADER}` of an arrival log nor a delay in milliseconds"
            );
            return Err(wrong(1, reason));
        }
        if self.beats == before {
            return Err(ReadError::Nothing { path: path.to_owned(), reason: "it holds no beat" });
        }
        Ok(())
    }

    /// Checks that a delay series has a host for itself; answers what its draws are mixed with.
    fn name(&self, name: &str) -> Parsed<u64> {
        if self.hosts.contains_key(name) {
            return Err(format!("there are beats of a host `{name}` already"));
        }
        Ok(self.hosts.len() as u64)
    }

    fn host(&mut self, name: &str, clocks: Clocks) -> Parsed<&mut Gathered> {
        self.beats += 1;
        if self.beats > BEATS_MAX {
            return Err(format!("more than {BEATS_MAX} beats in all: replay fewer files at once"));
        }
        if !self.hosts.contains_key(name) {
            if self.hosts.len() >= HOSTS_MAX {
                return Err(format!("more than {HOSTS_MAX} hosts"));
            }
            let (beats, lives) = (Vec::new(), Vec::new());
            let host = Gathered { clocks, beats, lives, newest: None, shift_us: 0 };
            self.hosts.insert(name.to_owned(), host);
        }
        let host = self.hosts.get_mut(name).filter(|h| h.clocks == clocks);
        host.ok_or_else(|| format!("host `{name}` stands in a delay series already"))
    }

    fn arrival(&mut self, line: &str) -> Parsed<()> {
        let cells: Vec<&str> = line.split(',').collect();
        let [name, seq, sent, gap, arrived] = cells[..] else {
            return Err(format!("{} cells instead of the 5 of `{HEADER}`", cells.len()));
        };
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(format!("a host's name has 1 to {NAME_LEN_MAX} bytes"));
        }
        let beat = Beat {
            seq: number("seq", seq, u64::from(u32::MAX))? as u32,
            sent_us: number("sent_us", sent, CLOCK_MAX)?,
            gap_us: number("gap_us", gap, GAP_MAX.as_micros() as u64)? as u32,
            arrived_us: match arrived {
                "" => LOST,
                text => number("arrived_us", text, CLOCK_MAX)?,
            },
        };
        self.host(name, Clocks::Apart)?.push(beat)
    }

    fn delay(&mut self, name: &str, grid: &mut Grid, line: &str) -> Parsed<()> {
        let delay_us = match line {
            "lost" => None,
            text => {
                let ms = text.parse::<f64>().ok().filter(|ms| (0.0..=DELAY_MS_MAX).contains(ms));
                let ms = ms.ok_or_else(|| {
                    format!("`{text}` is neither a delay of 0 to {DELAY_MS_MAX} ms nor `lost`")
                })?;
                Some((ms * 1e3).round() as u64)
            }
        };
        let (seq, sent_us, gap_us) = grid.next();
        let arrived_us = delay_us.map_or(LOST, |d| sent_us + d);
        self.host(name, Clocks::Same)?.beats.push(Beat { sent_us, arrived_us, gap_us, seq });
        Ok(())
    }
}

fn number(what: &str, text: &str, max: u64) -> Parsed<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let value = text.parse().ok().filter(|n| digits && *n <= max);
    value.ok_or_else(|| format!("{what} is `{text}`, not a whole number of 0 to {max}"))
}

impl Gathered {
    fn push(&mut self, mut beat: Beat) -> Parsed<()> {
        if beat.arrived_us != LOST {
            beat.arrived_us += self.shift_us;
        }
        if let Some(newest) = self.newest {
            let back =
                |now: u64, then: u64| now != LOST && then != LOST && now + OVERTAKE_US < then;
            let receiver_began_anew = back(beat.arrived_us, newest.arrived_us);
            let agent_began_anew =
                beat.sent_us > newest.sent_us || back(beat.sent_us, newest.sent_us);
            if receiver_began_anew {
                // How much time passed meanwhile is not known; a second is as good as any.
                let more = newest.arrived_us + 1_000_000 - beat.arrived_us;
                self.shift_us += more;
                beat.arrived_us += more;
            }
            if receiver_began_anew || beat.seq <= newest.seq && agent_began_anew {
                self.lives.push(self.beats.len());
                self.newest = None;
            }
        }
        if beat.arrived_us != LOST && beat.arrived_us > CLOCK_MAX {
            return Err("arrived_us falls back too often".to_owned());
        }
        let newest = self.newest.get_or_insert(beat);
        newest.seq = newest.seq.max(beat.seq);
        newest.sent_us = newest.sent_us.max(beat.sent_us);
        newest.arrived_us = match (newest.arrived_us, beat.arrived_us) {
            (LOST, at) | (at, LOST) => at,
            (then, at) => then.max(at),
        };
        self.beats.push(beat);
        Ok(())
    }

    /// Puts each life in order, cuts it where numbers are missing, and takes what was overtaken for lost.
    fn finish(mut self, name: String) -> HostLog {
        let (mut starts, mut len, mut from) = (Vec::new(), 0, 0);
        self.lives.push(self.beats.len());
        for end in std::mem::take(&mut self.lives) {
            let life = &mut self.beats[from..end];
            life.sort_unstable_by_key(|b| (b.seq, b.arrived_us));
            let mut earliest_later = LOST;
            for beat in life.iter_mut().rev().filter(|b| b.arrived_us != LOST) {
                if beat.arrived_us > earliest_later {
                    beat.arrived_us = LOST;
                } else {
                    earliest_later = beat.arrived_us;
                }
            }
            let mut last: Option<u32> = None;
            for at in from..end {
                let beat = self.beats[at];
                if last == Some(beat.seq) {
                    continue;
                }
                if len > 0 && last.and_then(|seq| seq.checked_add(1)) != Some(beat.seq) {
                    starts.push(len);
                }
                last = Some(beat.seq);
                self.beats[len] = beat;
                len += 1;
            }
            from = end;
        }
        self.beats.truncate(len);
        HostLog { name, clocks: self.clocks, beats: self.beats, lives: starts }
    }
}

/// When the beats of a delay series are sent: whole microseconds.
struct Grid {
    interval_us: f64,
    jitter: f64,
    key: u64,
    k: u32,
}

/// The first point of the grid, µs: no beat is sent before the origin of time.
const GRID_START_US: f64 = 3_600e6;
/// 2⁶⁴ divided by the golden ratio: successive multiples differ in about half of their bits.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A bijection of 64 bits after which neighbouring inputs have nothing in common (SplitMix64's).
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Grid {
    fn new(pace: &Pace, host: u64) -> Self {
        let key = mix(pace.seed.wrapping_add(mix(host.wrapping_add(GOLDEN))));
        let interval_us = pace.interval.as_secs_f64() * 1e6;
        Self { interval_us, jitter: pace.jitter, key, k: 0 }
    }

    fn planned(&self, k: u32) -> u64 {
        let draw = mix(self.key.wrapping_add(u64::from(k).wrapping_mul(GOLDEN))) as f64;
        let stray = (draw / u64::MAX as f64 - 0.5) * self.jitter * self.interval_us;
        (GRID_START_US + f64::from(k) * self.interval_us + stray) as u64
    }

    /// Number, time and gap of the next beat.
    fn next(&mut self) -> (u32, u64, u32) {
        let (sent, next) = (self.planned(self.k), self.planned(self.k + 1));
        self.k += 1;
        (self.k, sent, (next - sent).min(GAP_MAX.as_micros() as u64) as u32)
    }
}

/// Lines of bounded length.
struct Lines<R> {
    file: R,
    no: usize,
}

impl<R: BufRead> Lines<R> {
    /// The next line without its end; `None` after the last.
    fn next<'a>(&mut self, room: &'a mut Vec<u8>) -> std::io::Result<Option<Parsed<&'a str>>> {
        room.clear();
        self.no += 1;
        let mut capped = (&mut self.file).take(LINE_LEN_MAX as u64 + 2);
        if capped.read_until(b'\n', room)? == 0 {
            return Ok(None);
        }
        let line = room.strip_suffix(b"\n").unwrap_or(room);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > LINE_LEN_MAX {
            return Ok(Some(Err(format!("longer than {LINE_LEN_MAX} bytes"))));
        }
        Ok(Some(std::str::from_utf8(line).map_err(|_| "not text".to_owned())))
    }
}
