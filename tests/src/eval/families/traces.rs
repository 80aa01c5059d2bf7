//! Measured series, read from files.
//!
//! A file `NAME.delays` is one host's way to the controller. Line `k` is the one-way delay of beat `k`
//! in milliseconds, a decimal number from 0 to 3,600,000, or the word `lost`. Blank lines are allowed
//! at the end only; a file needs one delay at least. Files of other names are passed over.
//!
//! The family is the known one whose name the file's begins with (`wan-levels-07` is of `wan-levels`,
//! `satellite-lagos` of `satellite`), or else the name without a trailing number. A trace that is too
//! short for a host is repeated, from an offset drawn by the host's seed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::LOST;

/// The share of hosts that each family has in the mix of traces.
pub const WEIGHTS: [(&str, f64); 5] = [
    ("busy-host", 0.60),
    ("satellite", 0.10),
    ("home-devices", 0.10),
    ("wan-levels", 0.10),
    ("mobile-5g", 0.10),
];
/// Known, but reported apart: its outages last longer than any operator's patience.
const APART: [&str; 1] = ["cellular"];

/// Longest delay that a trace may hold.
pub const DELAY_MS_MAX: f64 = 3_600_000.0;
const _: () = assert!(DELAY_MS_MAX * 1e3 < LOST as f64, "every delay fits a series");

/// One measured series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceFile {
    /// The file's name without `.delays`.
    pub name: String,
    /// What it is reported as.
    pub family: String,
    /// Microseconds or [`LOST`], one per beat; never empty, never all lost.
    pub delays: Vec<u32>,
}

/// Why traces cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or the folder cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder holds no trace.
    #[error("{} holds no file named *.delays", path.display())]
    None {
        /// The folder.
        path: PathBuf,
    },
    /// A line is neither a delay nor `lost`.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file has no delay in it.
    #[error("{} holds no delay", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// Share of the hosts in the mix of traces; zero for what is reported apart and for unknown families.
pub fn trace_weight(family: &str) -> f64 {
    WEIGHTS.iter().find(|(name, _)| *name == family).map_or(0.0, |(_, weight)| *weight)
}

/// Reads all traces of a folder, in the order of their names.
pub fn read_traces(dir: &Path) -> Result<Vec<TraceFile>, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| Error::Read { path, source }
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed(dir))? {
        let path = entry.map_err(failed(dir))?.path();
        if path.extension().is_some_and(|e| e == "delays") {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(Error::None { path: dir.to_owned() });
    }
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).map_err(failed(path))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(TraceFile { family: family_of(&name), name, delays: parse(path, &text)? })
    };
    paths.iter().map(read).collect()
}

fn family_of(name: &str) -> String {
    let known = WEIGHTS.iter().map(|(known, _)| *known).chain(APART);
    let is_of = |known: &str| {
        name.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    if let Some(known) = known.into_iter().find(|known| is_of(known)) {
        return known.to_owned();
    }
    match name.rsplit_once('-') {
        Some((stem, digits))
            if !stem.is_empty()
                && !digits.is_empty()
                && digits.bytes().all(|b| b.is_ascii_digit()) =>
        {
            stem.to_owned()
        }
        _ => name.to_owned(),
    }
}

fn parse(path: &Path, text: &str) -> Result<Vec<u32>, Error> {
    let text = text.trim_end();
    let mut delays = Vec::with_capacity(text.len() / 6);
    for (i, line) in text.lines().enumerate() {
        let delay = parse_line(line.trim()).map_err(|reason| Error::Line {
            path: path.to_owned(),
            line: i + 1,
            reason,
        })?;
        delays.push(delay);
    }
    if delays.iter().all(|&d| d == LOST) {
        return Err(Error::Empty { path: path.to_owned() });
    }
    Ok(delays)
}

fn parse_line(line: &str) -> Result<u32, String> {
    if line == "lost" {
        return Ok(LOST);
    }
    if line.is_empty() {
        return Err("a blank line before the end".into());
    }
    let Ok(ms) = line.parse::<f64>() else {
        let start: String = line.chars().take(40).collect();
        return Err(format!("`{start}` is neither milliseconds nor `lost`"));
    };
    // Refuses NaN and the infinities too.
    if !(0.0..=DELAY_MS_MAX).contains(&ms) {
        return Err(format!("{ms} ms is out of bounds, 0 to {DELAY_MS_MAX} are allowed"));
    }
    Ok((ms * 1e3).round() as u32)
}

/// The series of one host: `beats` elements of the trace, repeated, from an offset drawn by `seed`.
///
/// # Panics
///
/// If the trace is empty, which none that was read is.
pub fn host_series(trace: &[u32], seed: u64, beats: usize) -> Vec<u32> {
    assert!(!trace.is_empty(), "a trace holds something");
    let offset = StdRng::seed_from_u64(seed).random_range(0..trace.len());
    trace[offset..].iter().chain(trace.iter().cycle()).take(beats).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(name: &str, text: &str) -> Result<TraceFile, Error> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(name), text).unwrap();
        fs::write(dir.path().join("README.md"), "not a trace").unwrap();
        read_traces(dir.path()).map(|mut traces| traces.remove(0))
    }

    fn wrong(text: &str) -> String {
        let message = read_one("a.delays", text).unwrap_err().to_string();
        message.rsplit_once("a.delays").unwrap().1.to_owned()
    }

    #[test]
    fn lines_are_milliseconds_or_lost() {
        let trace = read_one("wan-levels-07.delays", "0.174\nlost\r\n3600000\n0\n1e2\n\n").unwrap();
        assert_eq!(trace.delays, [174, LOST, 3_600_000_000, 0, 100_000]);
        assert_eq!((&*trace.name, &*trace.family), ("wan-levels-07", "wan-levels"));
        assert_eq!(read_one("x.delays", "5").unwrap().delays, [5_000]);
    }

    #[test]
    fn the_family_is_the_known_prefix_or_the_name_without_its_number() {
        for (name, family) in [
            ("busy-host", "busy-host"),
            ("satellite-lagos", "satellite"),
            ("cellular-lte-driving", "cellular"),
            ("mobile-5g", "mobile-5g"),
            ("home-devices-39", "home-devices"),
            ("satellites-3", "satellites"),
            ("moon-base-12", "moon-base"),
            ("moon", "moon"),
            ("-7", "-7"),
            ("moon-", "moon-"),
        ] {
            assert_eq!(family_of(name), family, "{name}");
        }
        assert_eq!(trace_weight("busy-host"), 0.6);
        assert_eq!([trace_weight("cellular"), trace_weight("moon")], [0.0, 0.0]);
    }

    #[test]
    fn an_error_names_file_line_and_reason() {
        assert_eq!(wrong("1\n2\nabc\n"), ":3: `abc` is neither milliseconds nor `lost`");
        assert_eq!(wrong("1\n\n2\n"), ":2: a blank line before the end");
        for value in ["-1", "3600000.5", "NaN", "inf", "1e300"] {
            let message = wrong(&format!("{value}\n"));
            assert!(message.starts_with(":1: "), "{message}");
            assert!(message.ends_with("0 to 3600000 are allowed"), "{message}");
        }
        assert_eq!(wrong("LOST"), ":1: `LOST` is neither milliseconds nor `lost`");
        assert!(wrong("1 2").starts_with(":1: `1 2` is neither"));
        for empty in ["", "\n\n", "lost\nlost\n"] {
            assert_eq!(wrong(empty), " holds no delay");
        }
    }

    #[test]
    fn a_folder_without_traces_is_an_error() {
        let message = read_one("a.txt", "1\n").unwrap_err().to_string();
        assert!(message.ends_with("holds no file named *.delays"), "{message}");
        let missing = read_traces(Path::new("no/such/folder")).unwrap_err();
        assert!(matches!(missing, Error::Read { .. }), "{missing}");
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.delays"), [0xff, 0xfe]).unwrap();
        assert!(matches!(read_traces(dir.path()), Err(Error::Read { .. })));
    }

    #[test]
    fn files_come_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b-02.delays", "a.delays", "b-01.delays"] {
            fs::write(dir.path().join(name), "1\n").unwrap();
        }
        let names: Vec<String> =
            read_traces(dir.path()).unwrap().into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["a", "b-01", "b-02"]);
    }

    #[test]
    fn a_host_repeats_its_trace_from_a_random_offset() {
        let trace: Vec<u32> = (0..10).collect();
        let mut offsets = [0; 10];
        for seed in 0..500 {
            let series = host_series(&trace, seed, 25);
            assert_eq!(series, host_series(&trace, seed, 25));
            assert_eq!(series.len(), 25);
            assert!(series.windows(2).all(|w| w[1] == (w[0] + 1) % 10), "{series:?}");
            offsets[series[0] as usize] += 1;
        }
        assert!(offsets.iter().all(|n| (25..80).contains(n)), "{offsets:?}");
        assert_eq!(host_series(&trace, 1, 3).len(), 3);
    }
}
