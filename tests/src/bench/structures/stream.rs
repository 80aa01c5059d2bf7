//! Beats of a fleet in the order in which they come: every host once a second, with a phase of its own, a
//! jitter of up to a fifth of a second, the true gap announced, and a margin of its own.
//!
//! The jitter matters: in the same order in every second, neighbours in a list would be neighbours in time,
//! and lists would look cheaper than they are.

use std::time::Duration;

use heartwatch_common::time::Instant;

use crate::eval::schedule::mix;

/// Mean time between two beats of a host, nanoseconds.
const GAP_NS: u64 = 1_000_000_000;
/// Hosts change places within this part of a second.
const WINDOWS: usize = 5;

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
    /// The order in which hosts beat in this second, and in the next.
    order: Vec<u32>,
    order_next: Vec<u32>,
    /// Each host's place in the next.
    place_next: Vec<u32>,
    next: usize,
    second: u64,
    now: Instant,
    silent: bool,
}

/// Fisher and Yates.
fn shuffle(of: &mut [u32], seed: u64) {
    for i in (1..of.len()).rev() {
        of.swap(i, (mix(seed ^ mix(i as u64)) % (i as u64 + 1)) as usize);
    }
}

const ORIGIN: Instant = Instant::from_millis(1_000);

impl Stream {
    pub(super) fn new(hosts: usize) -> Self {
        let mut order: Vec<u32> = (0..hosts as u32).collect();
        shuffle(&mut order, 0);
        let mut stream = Self {
            hosts: hosts as u64,
            order_next: order.clone(),
            place_next: vec![0; hosts],
            order,
            next: 0,
            second: 0,
            now: ORIGIN,
            silent: false,
        };
        stream.foresee();
        stream
    }

    /// Draws the order of the next second.
    fn foresee(&mut self) {
        self.order_next.copy_from_slice(&self.order);
        let window = (self.order.len() / WINDOWS).max(1);
        // Every other second the windows lie half a window on, so that all get about.
        let begin = if self.second % 2 == 1 { window / 2 } else { 0 };
        for (i, part) in self.order_next[begin..].chunks_mut(window).enumerate() {
            shuffle(part, mix(self.second << 8 | i as u64));
        }
        for (place, slot) in (0..).zip(&self.order_next) {
            self.place_next[*slot as usize] = place;
        }
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

    fn time(&self, second: u64, place: u64) -> Instant {
        ORIGIN + Duration::from_nanos(second * GAP_NS + place * GAP_NS / self.hosts)
    }

    /// The beats of the next `span`.
    pub(super) fn block(&mut self, span: Duration, out: &mut Vec<Beat>) {
        out.clear();
        let end = self.now + span;
        loop {
            if self.next == self.order.len() {
                self.next = 0;
                self.second += 1;
                std::mem::swap(&mut self.order, &mut self.order_next);
                self.foresee();
            }
            let at = self.time(self.second, self.next as u64);
            if at >= end {
                break;
            }
            let slot = self.order[self.next];
            self.next += 1;
            if self.is_silent(slot) {
                continue;
            }
            // Margins from 60 ms to 2 s, most of them short, as learned ones are.
            let own = mix(u64::from(slot)) % 1_000;
            let margin = Duration::from_nanos(60_000_000 + own * own * 1_940);
            let next = self.time(self.second + 1, u64::from(self.place_next[slot as usize]));
            out.push(Beat { slot, at, deadline: next + margin });
        }
        self.now = end;
    }
}
