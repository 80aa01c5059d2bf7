//! Families of hosts: how long each beat is under way, and which are lost.
//!
//! A host is a series with one number per planned beat: microseconds from the planned instant to the
//! arrival, or [`LOST`]. [`synthetic`] makes series from a seed, [`traces`] reads measured ones. Beat
//! `k` of a series is grid point `k` of a [`Plan`](super::schedule::Plan); beats may overtake each other.
//!
//! A mix is a fleet under one setting. Its weights say what share of the hosts is of which family:
//! assumptions, kept here so that no figure is quoted without them.

pub mod synthetic;
pub mod traces;

pub use synthetic::{Family, generate};
pub use traces::{TraceFile, host_series, read_traces, trace_weight};

/// In a series: the beat never arrives.
pub const LOST: u32 = u32::MAX;

/// What becomes of a beat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives this many seconds after its planned instant.
    Delay(f32),
}

impl Fate {
    /// What an element of a series stands for.
    #[inline]
    pub fn of(micros: u32) -> Self {
        if micros == LOST { Self::Lost } else { Self::Delay((f64::from(micros) * 1e-6) as f32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_element_is_a_delay_or_a_loss() {
        assert_eq!(Fate::of(0), Fate::Delay(0.0));
        assert_eq!(Fate::of(1_500_000), Fate::Delay(1.5));
        assert_eq!(Fate::of(u32::MAX), Fate::Lost);
    }

    #[test]
    fn the_weights_of_a_mix_add_up_to_one() {
        let synthetic: f64 = Family::ALL.iter().map(|f| f.weight()).sum();
        let traces: f64 = traces::WEIGHTS.iter().map(|(_, weight)| weight).sum();
        assert!((synthetic - 1.0).abs() < 1e-12 && (traces - 1.0).abs() < 1e-12);
    }
}
