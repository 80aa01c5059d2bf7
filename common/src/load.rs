//! How busy a host is: fixed-point figures that fit a beat.

use serde::{Deserialize, Serialize};

/// A share between 0 and 1 in steps of 1/250, or unknown.
///
/// On the wire: one byte, 0..=250 for 0..=100 %, 255 for "unknown"; 251..=254 read as unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share(u8);

impl Share {
    /// Not measured, or not measurable on this kernel.
    pub const UNKNOWN: Self = Self(255);

    /// The share nearest to `ratio`, clamped to 0..=1; not-a-number is unknown.
    pub fn from_ratio(ratio: f64) -> Self {
        if ratio.is_nan() {
            return Self::UNKNOWN;
        }
        Self((ratio.clamp(0.0, 1.0) * 250.0).round() as u8)
    }

    /// `part / whole`, or unknown if `whole` is zero.
    pub fn of(part: u64, whole: u64) -> Self {
        if whole == 0 { Self::UNKNOWN } else { Self::from_ratio(part as f64 / whole as f64) }
    }

    /// The byte on the wire.
    #[inline]
    pub const fn to_byte(self) -> u8 {
        self.0
    }

    /// Reads the byte on the wire.
    #[inline]
    pub const fn from_byte(byte: u8) -> Self {
        if byte > 250 { Self::UNKNOWN } else { Self(byte) }
    }

    /// The share in 0..=1, or `None` if unknown.
    pub fn ratio(self) -> Option<f64> {
        (self != Self::UNKNOWN).then(|| f64::from(self.0) / 250.0)
    }
}

impl Default for Share {
    fn default() -> Self {
        Self::UNKNOWN
    }
}

impl Serialize for Share {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.ratio().serialize(s)
    }
}

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Option::<f64>::deserialize(d)?.map_or(Self::UNKNOWN, Self::from_ratio))
    }
}

/// One reading of a host's load. Every figure may be unknown; none is ever negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadSample {
    /// Share of all CPU time that was not idle since the reading before.
    #[serde(rename = "cpu_busy_ratio")]
    pub cpu_busy: Share,
    /// Share of memory that is not available to new work.
    #[serde(rename = "memory_used_ratio")]
    pub memory_used: Share,
    /// Share of swap in use; unknown without swap.
    #[serde(rename = "swap_used_ratio")]
    pub swap_used: Share,
    /// Used share of the fullest local file system.
    #[serde(rename = "disk_used_ratio")]
    pub disk_used: Share,
    /// Runnable tasks per core in hundredths (100 = one per core), at most 65,534; 65,535 = unknown.
    #[serde(rename = "run_queue_centi")]
    pub run_queue_centi: u16,
    /// Received and sent by non-loopback interfaces, KiB per second; `u32::MAX` = unknown.
    #[serde(rename = "network_kib_per_s")]
    pub network_kib_per_s: u32,
    /// Share of the last 10 s in which some task waited for a CPU (PSI `some avg10`).
    #[serde(rename = "psi_cpu_ratio")]
    pub psi_cpu: Share,
    /// Share of the last 10 s in which some task waited for memory (PSI `some avg10`).
    #[serde(rename = "psi_memory_ratio")]
    pub psi_memory: Share,
    /// Share of the last 10 s in which some task waited for I/O (PSI `some avg10`).
    #[serde(rename = "psi_io_ratio")]
    pub psi_io: Share,
}

impl LoadSample {
    /// Nothing measured yet.
    pub const UNKNOWN: Self = Self {
        cpu_busy: Share::UNKNOWN,
        memory_used: Share::UNKNOWN,
        swap_used: Share::UNKNOWN,
        disk_used: Share::UNKNOWN,
        run_queue_centi: u16::MAX,
        network_kib_per_s: u32::MAX,
        psi_cpu: Share::UNKNOWN,
        psi_memory: Share::UNKNOWN,
        psi_io: Share::UNKNOWN,
    };

    /// One figure for ranking hosts by load: 0 = idle, 1000 = every known resource exhausted.
    ///
    /// The largest of CPU busy, memory used and run queue (half-weighted beyond one task per core),
    /// since work placed on a host fails on the resource that is scarcest. An unknown figure counts
    /// as half used: a host that says nothing is neither preferred nor excluded.
    pub fn score(&self) -> u16 {
        let per_mille = |s: Share| s.ratio().map_or(500, |r| (r * 1000.0) as u16);
        let queue = match self.run_queue_centi {
            u16::MAX => 500,
            centi => (u32::from(centi) * 5).min(1000) as u16,
        };
        per_mille(self.cpu_busy).max(per_mille(self.memory_used)).max(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_clamped_and_unknown_survives_the_wire() {
        assert_eq!(Share::from_ratio(2.0).to_byte(), 250);
        assert_eq!(Share::from_ratio(-1.0).to_byte(), 0);
        assert_eq!(Share::from_ratio(f64::NAN), Share::UNKNOWN);
        assert_eq!(Share::of(1, 0), Share::UNKNOWN);
        assert_eq!(Share::of(1, 4).ratio(), Some(0.252));
        for byte in 0..=255u8 {
            let share = Share::from_byte(byte);
            assert_eq!(share.ratio().is_some(), byte <= 250, "{byte}");
        }
    }

    #[test]
    fn the_scarcest_resource_decides_the_score() {
        let idle = LoadSample {
            cpu_busy: Share::from_ratio(0.1),
            memory_used: Share::from_ratio(0.2),
            run_queue_centi: 10,
            ..LoadSample::UNKNOWN
        };
        let full = LoadSample { memory_used: Share::from_ratio(0.9), ..idle };
        assert_eq!((idle.score(), full.score()), (200, 900));
        assert_eq!(LoadSample::UNKNOWN.score(), 500);
    }
}
