//! Failure detectors of the literature and of shipping software, for comparison only.
//!
//! Each answers an arrival with the instant at which it would suspect the host if nothing more came,
//! so a replay needs no clock: a mistake is an answer that the next arrival comes after. Each is as
//! its authors made it, at its best: where a source rounds to milliseconds, microseconds are kept
//! here; where it says nothing, the choice that helps it is taken and said so in its module.
//!
//! None of them learns that it was wrong other than through arrivals, none has a floor or a ceiling,
//! and none restarts after a suspicion; whoever replays may clamp the answers of all alike.
//!
//! A beat costs a few nanoseconds: windows are rings with running sums of whole microseconds, which do
//! not drift, and nothing is allocated after construction.

mod akka;
mod bertier;
mod cassandra;
mod chen;
mod fixed;
mod share;
mod two_window;
mod window;

pub use akka::AkkaPhi;
pub use bertier::Bertier;
pub use cassandra::CassandraPhi;
pub use chen::Chen;
pub use fixed::Fixed;
pub use share::Share;
pub use two_window::TwoWindow;
pub use window::Schedule;

/// Values that a window holds in every source that names a number.
pub const WINDOW: usize = 1_000;

/// One received beat as a receiver sees it. All times in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Which beat: grid point `seq` of the sender's schedule.
    pub seq: u32,
    /// When it was sent, on the sender's own clock, whose offset is arbitrary.
    pub sent_s: f64,
    /// Time from `sent_s` to the next planned beat, as the beat announces it.
    pub gap_s: f64,
    /// When it was received, on the receiver's clock.
    pub at_s: f64,
}

/// Something that says from a host's arrivals when to suspect it.
pub trait Detector {
    /// Takes an arrival and answers the instant, on the receiver's clock in seconds, at which the
    /// host is suspected if nothing more arrives.
    ///
    /// Arrivals come in order of `at_s` with rising `seq`. An answer that is not after `at_s` means
    /// that the host is suspected all the same: a beat that came too late does not restore trust in
    /// a detector that by then expected one more.
    fn observe(&mut self, a: &Arrival) -> f64;

    /// Bytes of state per host, windows included.
    fn state_bytes(&self) -> usize;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats every second on the grid, all 20 ms under way, the sender's clock 500 s ahead.
    fn steady(seq: u32) -> Arrival {
        let k = f64::from(seq);
        Arrival { seq, sent_s: 500.0 + k, gap_s: 1.0, at_s: k + 0.02 }
    }

    fn last_of<D: Detector>(mut detector: D, seqs: impl Iterator<Item = u32>) -> f64 {
        seqs.map(|seq| detector.observe(&steady(seq))).last().unwrap()
    }

    #[test]
    fn a_million_regular_beats_leave_every_answer_where_theory_puts_it() {
        let n = 1_000_000;
        let at = f64::from(n - 1) + 0.02;
        let near = |answer: f64, wait: f64| {
            assert!((answer - at - wait).abs() < 1e-6, "{} instead of {wait}", answer - at);
        };
        near(last_of(Fixed::new(3.0), 0..n), 3.0);
        for schedule in [Schedule::Raw, Schedule::Announced] {
            near(last_of(Chen::new(schedule, WINDOW, 1.0, 0.5), 0..n), 1.5);
            near(last_of(TwoWindow::new(schedule, WINDOW, 1.0, 0.5), 0..n), 1.5);
        }
        near(last_of(Bertier::new(1.0, 4.0), 0..n), 1.0);
        // Sixteen beats of twenty: the sixteenth newest is 15 s old and leaves after 5 s.
        near(last_of(Share::new(20.0, 0.8, 1.0), 0..n), 5.0);
        // The mean is one second to the microsecond; 8 · ln 10 = 18.4206807.
        near(last_of(CassandraPhi::new(1.0, 8.0), 0..n), 18.420_680_74);
    }

    #[test]
    fn after_an_hour_of_silence_all_go_on_without_a_panic() {
        let beats = || (0..50).chain(3_650..3_700);
        let at = 3_699.02;
        assert!(last_of(Fixed::new(3.0), beats()) > at);
        for schedule in [Schedule::Raw, Schedule::Announced] {
            assert!(last_of(Chen::new(schedule, WINDOW, 1.0, 0.5), beats()) > at);
            assert!(last_of(TwoWindow::new(schedule, WINDOW, 1.0, 0.5), beats()) > at);
        }
        assert!(last_of(Bertier::new(1.0, 4.0), beats()) > at);
        assert!(last_of(AkkaPhi::new(1.0, 3.0, 8.0), beats()) > at);
        assert!(last_of(CassandraPhi::new(1.0, 8.0), beats()) > at);
        assert!(last_of(Share::new(20.0, 0.8, 1.0), beats()) > at);
    }

    #[test]
    fn state_counts_the_window() {
        assert_eq!(Fixed::new(1.0).state_bytes(), 8);
        let chen = Chen::new(Schedule::Raw, WINDOW, 1.0, 0.5).state_bytes();
        assert!((8_000..8_200).contains(&chen), "{chen}");
        assert!(AkkaPhi::new(1.0, 3.0, 8.0).state_bytes() > 8_000);
        assert!(CassandraPhi::new(1.0, 8.0).state_bytes() > 8_000);
        assert!(Bertier::new(1.0, 4.0).state_bytes() > 8_000);
        assert!((160..300).contains(&Share::new(20.0, 0.95, 1.0).state_bytes()));
    }
}
