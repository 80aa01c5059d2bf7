//! Beats of a fleet in the order in which they come: every host once a second, with a phase of its own and
//! some jitter, and a margin of its own.

use std::time::Duration;

use heartwatch_common::time::Instant;

use crate::eval::schedule::mix;

/// Time between two beats of a host, nanoseconds, and how far one may stray either way.
const GAP_NS: u64 = 1_000_000_000;
const JITTER_NS: u64 = 50_000_000;

/// One beat.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) slot: u32,
    pub(super) at: Instant,
    pub(super) deadline: Instant,
}

/// The beats of a fleet. The same size gives the same stream.
pub(super) struct Stream {
    hosts: u64,
    /// A random order of the hosts, in which they beat in every second.
    order: Vec<u32>,
    next: usize,
    second: u64,
    now: Instant,
    silent: bool,
}

const ORIGIN: Instant = Instant::from_millis(1_000);

impl Stream {
    pub(super) fn new(hosts: usize) -> Self {
        let mut order: Vec<u32> = (0..hosts as u32).collect();
        // Fisher and Yates.
        for i in (1..hosts).rev() {
            order.swap(i, (mix(i as u64) % (i as u64 + 1)) as usize);
        }
        Self { hosts: hosts as u64, order, next: 0, second: 0, now: ORIGIN, silent: false }
    }

    /// Whether a host is among those that fall silent.
    fn is_silent(&self, slot: u32) -> bool {
        self.silent && slot.is_multiple_of(10)
    }

    /// From now on one host in ten sends nothing.
    pub(super) fn silence_a_tenth(&mut self) {
        self.silent = true;
    }

    /// How many are silent.
    pub(super) fn silent(&self) -> usize {
        if self.silent { self.hosts.div_ceil(10) as usize } else { 0 }
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// The beats of the next `span`.
    pub(super) fn block(&mut self, span: Duration, out: &mut Vec<Beat>) {
        out.clear();
        let end = self.now + span;
        loop {
            if self.next == self.order.len() {
                self.next = 0;
                self.second += 1;
            }
            let phase = self.next as u64 * GAP_NS / self.hosts;
            let at = ORIGIN + Duration::from_nanos(self.second * GAP_NS + phase);
            if at >= end {
                break;
            }
            let slot = self.order[self.next];
            self.next += 1;
            if self.is_silent(slot) {
                continue;
            }
            // Margins from 60 ms to 2 s, most of them short, as learned ones are; the gap that a beat
            // announces varies from beat to beat.
            let own = mix(u64::from(slot)) % 1_000;
            let margin_ns = 60_000_000 + own * own * 1_940;
            let jitter_ns = mix(u64::from(slot) << 20 ^ self.second) % (2 * JITTER_NS);
            let gap_ns = GAP_NS - JITTER_NS + jitter_ns;
            out.push(Beat { slot, at, deadline: at + Duration::from_nanos(gap_ns + margin_ns) });
        }
        self.now = end;
    }
}
