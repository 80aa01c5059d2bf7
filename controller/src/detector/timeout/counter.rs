//! Counters of one byte that count to two million.
//!
//! A logarithmic counter c stands for `0.05 · (2^(c/10) − 1)`; between two steps one is taken at random
//! so that the expectation is exact (Morris, "Counting large numbers of events in small registers",
//! CACM 21(10), 1978).

use std::sync::OnceLock;

/// What each counter stands for.
pub(super) fn values() -> &'static [f32; 256] {
    static TABLE: OnceLock<[f32; 256]> = OnceLock::new();
    TABLE.get_or_init(|| std::array::from_fn(|c| 0.05 * ((c as f32 / 10.0).exp2() - 1.0)))
}

/// What a counter stands for.
pub(super) fn value(c: u8) -> f32 {
    values()[usize::from(c)]
}

/// The counter for `target`. `dice` is uniformly random.
pub(super) fn counting(target: f32, dice: u16) -> u8 {
    let (mut low, mut high) = (0u8, u8::MAX);
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if value(mid) <= target {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    if low == u8::MAX {
        return low;
    }
    let (floor, step) = (value(low), value(low + 1) - value(low));
    let share = (target - floor) / step;
    low + u8::from(f32::from(dice) < share * 65_536.0)
}
