//! The summary at the end: one row a stage, what was skipped and why, and one closing line.

use std::path::PathBuf;
use std::time::Duration;

/// How many checks ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) const ONE_PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const ONE_FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };
    pub(crate) const ONE_SKIPPED: Self = Self { passed: 0, failed: 0, skipped: 1 };

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads one closing line of a test binary; anything else counts nothing.
    pub(crate) fn of_line(line: &str) -> Self {
        let Some(rest) = line.trim().strip_prefix("test result: ") else { return Self::default() };
        let number = |word: &str| {
            rest.split(['.', ';'])
                .filter_map(|part| part.trim().strip_suffix(word))
                .find_map(|n| n.trim().parse().ok())
                .unwrap_or(0)
        };
        Self { passed: number("passed"), failed: number("failed"), skipped: number("ignored") }
    }
}

/// What became of one stage.
struct Row {
    name: String,
    took: Duration,
    counts: Counts,
}

/// All stages of one run.
pub(crate) struct Report {
    rows: Vec<Row>,
    skips: Vec<String>,
    skip_log: PathBuf,
}

impl Report {
    /// An empty report; tests write why they skip into `skip_log`.
    pub(crate) fn new(skip_log: PathBuf) -> Self {
        drop(std::fs::remove_file(&skip_log));
        Self { rows: Vec::new(), skips: Vec::new(), skip_log }
    }

    /// Where tests say why they skip.
    pub(crate) fn skip_log(&self) -> &std::path::Path {
        &self.skip_log
    }

    /// Books a stage. Tests that skipped themselves were counted as passed by the test binary.
    pub(crate) fn book(&mut self, name: &str, took: Duration, mut counts: Counts) {
        let text = std::fs::read_to_string(&self.skip_log).unwrap_or_default();
        drop(std::fs::remove_file(&self.skip_log));
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let skipped = (lines.len() as u64).min(counts.passed);
        counts.passed -= skipped;
        counts.skipped += skipped;
        self.skips.extend(lines);
        self.rows.push(Row { name: name.to_owned(), took, counts });
    }

    /// Books a stage that could not run at all.
    pub(crate) fn skip(&mut self, name: &str, why: &str) {
        println!("SKIPPED {name}: {why}");
        self.skips.push(format!("{name}: {why}"));
        self.rows.push(Row {
            name: name.to_owned(),
            took: Duration::ZERO,
            counts: Counts::ONE_SKIPPED,
        });
    }

    /// Whether a stage failed so far.
    pub(crate) fn is_red(&self) -> bool {
        self.total().failed > 0
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        self.rows.iter().for_each(|r| total.add(r.counts));
        total
    }

    /// Prints the table, what was skipped, and the closing line.
    pub(crate) fn print(&self) {
        let total = self.total();
        println!(
            "\n{:<28} {:>9} {:>8} {:>8} {:>8}",
            "stage", "seconds", "passed", "failed", "skipped"
        );
        for row in &self.rows {
            let Counts { passed, failed, skipped } = row.counts;
            let mark = if failed > 0 { "  <-- FAILED" } else { "" };
            println!(
                "{:<28} {:>9.1} {passed:>8} {failed:>8} {skipped:>8}{mark}",
                row.name,
                row.took.as_secs_f64()
            );
        }
        let took: Duration = self.rows.iter().map(|r| r.took).sum();
        println!("{:<28} {:>9.1}", "total", took.as_secs_f64());
        if self.skips.is_empty() {
            println!("\nnothing was skipped");
        } else {
            println!("\nskipped:");
            self.skips.iter().for_each(|s| println!("  {s}"));
        }
        println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_test_binaries_are_counted() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.31s";
        assert_eq!(Counts::of_line(line), Counts { passed: 12, failed: 2, skipped: 1 });
        assert_eq!(Counts::of_line("running 12 tests"), Counts::default());
    }

    #[test]
    fn a_test_that_skipped_itself_is_not_counted_as_passed() {
        let log = std::env::temp_dir().join(format!("xtask-skip-{}", std::process::id()));
        let mut report = Report::new(log.clone());
        std::fs::write(&log, "disk_full: not root\n").unwrap();
        report.book("e2e", Duration::ZERO, Counts { passed: 3, failed: 0, skipped: 0 });
        assert_eq!(report.total(), Counts { passed: 2, failed: 0, skipped: 1 });
        assert!(!report.is_red());
    }
}
