//! How much of a host's silence may be our own deafness.
//!
//! # Drops
//!
//! Time is cut into windows; each knows how many datagrams were received and how many the kernel
//! dropped at our sockets (read between draining them and judging). In a window with drop share p, the
//! chance that *we* lost one given beat is p. A silent host is convicted only once
//! `Σ −ln p ≥ 14` over the beats that it missed: then the chance that we lost them all is under 10⁻⁶.
//! With no drops one missed beat is enough (−ln 0 = ∞); at 1 % it takes four; at 50 % twenty.
//!
//! # Stalls
//!
//! After a pause of a second or more (SIGSTOP, steal, swapping) the mail is read first; when all that
//! arrived during the pause has been read, what is missing against the usual rate without a known drop
//! counts as possibly lost too: a network card that overflowed while nobody served it.
//!
//! # Deafness: cuts and suspends
//!
//! When *nothing at all* arrives although at least 20 datagrams were due by the learned rate, or when
//! [`CUT_HOSTS`] hosts are overdue of which each, and everybody else, has been silent since its beat was
//! due, our own link is the likelier culprit: that so many die in one moment by themselves is out of
//! the question. Then nobody is convicted, and nobody's probes are held against him, until something is
//! heard again. Hosts on the controller's own machine prove nothing about its link, and the link nothing
//! about them. Fewer than [`CUT_HOSTS`] silent hosts prove no cut: they are judged as ever.
//!
//! A host whose beat was due while somebody else could still be heard is none of the [`CUT_HOSTS`], even if
//! its deadline passes within the cut: the link worked when that beat was due, so its silence is explained
//! by its own loss or death, which happens all the time, and says nothing about ours. If it counted, three
//! hosts of a small fleet that die together and one that died a moment before would pass for a cut, and be
//! found only at the next sign of life of anybody. The price is that a lost beat just before a cut can have
//! its host called down before the cut is recognised, as it can the first three. Once it is, it excuses him
//! as well: what he sent since could not come. The simulator holds both
//! (`tests/src/invariants/own_fault.rs`).
//!
//! A suspended machine was as deaf, and its clock stood still besides.
//!
//! After the end of a cut or a suspend a host gets the time in which its next beat must come, and then
//! is judged.
//!
//! So neither a flood nor a trickle of junk nor silence keeps the controller in doubt for ever: beyond
//! `doubt_max` a host is judged all the same: probes over a separate socket then decide, and the shard
//! is *blind* until it has heard well for a while, which holds actions but never states.
//!
//! Cost: a few comparisons a datagram; a judged host costs O(beats that it missed).

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use heartwatch_common::time::Instant;
use serde::{Deserialize, Serialize};

/// Evidence that convicts: −ln of the chance that we lost every missed beat.
pub const EVIDENCE_MIN: f64 = 14.0;
/// Hosts that must be silent at once before their silence is ours.
pub const CUT_HOSTS: u32 = 4;
/// Datagrams that must be missing before silence is ours.
const CUT_BEATS: f64 = 20.0;
/// No shorter silence is a cut: it is below the least margin, and senders do pause for a moment.
const CUT_SILENCE_MIN: Duration = Duration::from_millis(20);
/// Nor one of fewer than so many usual silences: of a fleet that beats in step they are long.
const CUT_USUAL: u32 = 3;
/// A cut that begins so soon after another is the same one: a link that flaps gives nobody a chance.
const CUT_MERGE: Duration = Duration::from_secs(5);
/// Between two looks at a host that a cut excuses.
const CUT_LOOK: Duration = Duration::from_millis(500);
/// A window is closed when it is this old. A long stop of the process makes one long window.
const WINDOW: Duration = Duration::from_millis(250);
/// Windows kept; older ones are older than any `doubt_max` at one window per 250 ms … 10 min.
const WINDOWS_MAX: usize = 2_600;
/// How long the shard must have heard well before it is no longer blind; and for how long a doubt that
/// came and went is shown.
const CLEAR_AFTER: Duration = Duration::from_secs(5);
/// A pause this long is a stall.
const STALL: Duration = Duration::from_secs(1);
/// A wall clock that gained or lost so much against the monotonic one has been stepped.
const CLOCK_STEP_MS: u64 = 500;
/// Judging that lags further behind than this is a doubt.
const LAG_MAX: Duration = Duration::from_secs(1);

/// Why the controller distrusts its own eyes, or its hands are tied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum DoubtReason {
    /// The kernel drops datagrams at a shard's sockets.
    Drops,
    /// A shard's loop stood still for a second or more.
    Stall,
    /// The hypervisor gave the machine's processors to others.
    Steal,
    /// The machine was suspended.
    Suspend,
    /// The wall clock was stepped. It changes no verdict.
    ClockStep,
    /// Nothing at all arrives: the controller's own link is cut.
    Cut,
    /// Just started: not every known host has had its fair chance yet.
    Restarted,
    /// A shard judges hosts as of more than a second ago.
    Lagging,
    /// Own losses have excused hosts for longer than `doubt_max`: actions are held.
    Blind,
    /// The store can't be written: events wait in memory, deliveries rest.
    Store,
}

impl DoubtReason {
    /// Every reason.
    pub const ALL: [Self; 10] = [
        Self::Drops,
        Self::Stall,
        Self::Steal,
        Self::Suspend,
        Self::ClockStep,
        Self::Cut,
        Self::Restarted,
        Self::Lagging,
        Self::Blind,
        Self::Store,
    ];

    /// As it stands in metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drops => "drops",
            Self::Stall => "stall",
            Self::Steal => "steal",
            Self::Suspend => "suspend",
            Self::ClockStep => "clock_step",
            Self::Cut => "cut",
            Self::Restarted => "restarted",
            Self::Lagging => "lagging",
            Self::Blind => "blind",
            Self::Store => "store",
        }
    }

    /// In plain words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Drops => "its own machine lost datagrams; missed beats are judged by that",
            Self::Stall => {
                "it stood still itself; what that may have cost is not held against hosts"
            }
            Self::Steal => "the hypervisor gave its processors to others",
            Self::Suspend => "its machine was suspended; hosts get a fresh chance",
            Self::ClockStep => "its wall clock was stepped; that changes no verdict",
            Self::Cut => {
                "nothing at all arrives: its own link seems cut, and nobody is judged by that"
            }
            Self::Restarted => "it has just started: known hosts get a fresh chance",
            Self::Lagging => "it is behind with its mail: nobody is judged by mail not yet read",
            Self::Blind => "it has lost too much for too long: actions are held",
            Self::Store => "its store cannot be written: events wait in memory",
        }
    }
}

impl fmt::Display for DoubtReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the shell saw of its own time when it came back from waiting, before it reads any mail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waking {
    /// How long it had asked to wait.
    pub asked: Duration,
    /// How much the clock that counts suspends gained on the one that does not.
    pub suspended: Duration,
    /// How much the wall clock gained on the clock that counts suspends, milliseconds.
    pub wall_step_ms: i64,
}

/// What one pass over the sockets brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Everything that arrived before it has been read.
    pub seen: Instant,
    /// Datagrams read.
    pub received: u64,
    /// Datagrams that the kernel dropped at the sockets since the pass before.
    pub dropped: u64,
    /// Hosts that are alive as far as we know.
    pub alive: u64,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    start: Instant,
    end: Instant,
    received: u64,
    dropped: u64,
    /// Missing after a stall, without a known drop.
    missing: u64,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { start: now, end: now, received: 0, dropped: 0, missing: 0 }
    }

    fn lost(&self) -> u64 {
        self.dropped + self.missing
    }

    fn drop_share(&self) -> f64 {
        match self.lost() {
            0 => 0.0,
            // A stop: a full buffer keeps what came first, so of what came last nothing was kept.
            _ if self.end.since(self.start) >= STALL => 1.0,
            lost => lost as f64 / (lost + self.received) as f64,
        }
    }

    fn reason(&self) -> DoubtReason {
        if self.missing > self.dropped { DoubtReason::Stall } else { DoubtReason::Drops }
    }
}

/// A span in which we could hear nothing.
#[derive(Clone, Copy, Debug)]
struct Deaf {
    start: Instant,
    end: Instant,
    why: DoubtReason,
}

/// A stall of which not all mail has been read.
#[derive(Clone, Copy, Debug)]
struct Stall {
    start: Instant,
    end: Instant,
    /// Datagrams read or known as dropped since.
    accounted: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Showing {
    since: Option<Instant>,
    until: Instant,
}

/// A host whose deadline has passed.
#[derive(Clone, Copy, Debug)]
pub struct Overdue {
    /// When its next beat was expected.
    pub expected: Instant,
    /// Its gaps are about this long.
    pub gap: Duration,
    /// How much later than expected a beat may come.
    pub margin: Duration,
    /// When it was last heard.
    pub last: Option<Instant>,
    /// It is on the controller's own machine.
    pub local: bool,
    /// Since when it has been excused. That, not its deadline, is where `doubt_max` counts from: after
    /// a long stop every deadline is long past, and everybody deserves a chance to be heard again.
    pub excused_since: Option<Instant>,
    /// It was judged before for the same missing beat.
    pub again: bool,
}

/// What doubt says about a host whose deadline has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// It had its fair chance.
    None,
    /// We may have lost its beats: look again at this instant.
    Until(Instant, DoubtReason),
    /// Excused for `doubt_max`: let probes decide. The shard is blind.
    Exhausted(DoubtReason),
}

/// One shard's record of its own losses.
#[derive(Clone, Debug)]
pub struct Doubt {
    windows: VecDeque<Window>,
    open: Window,
    /// End of the last window in which something was dropped, or missing after a stall.
    dropped_until: Instant,
    /// End of the last stall or suspend.
    stood_until: Instant,
    /// Datagrams per second that reached our sockets lately, dropped ones included.
    rate: f64,
    stall: Option<Stall>,
    /// When somebody on another machine was last heard; at first, the start.
    heard: Instant,
    /// Datagrams of other machines per second, lately, and those of the open window.
    heard_rate: f64,
    heard_count: u64,
    /// Longest silence between two of them lately.
    usual_silence: Duration,
    /// Hosts whose deadline passed while nobody was heard since their beat was due.
    silent_hosts: u32,
    /// The cut that goes on, from when somebody was last heard.
    cut: Option<Instant>,
    /// The last cut or suspend that is over.
    deaf: Option<Deaf>,
    blind: bool,
    doubt_max: Duration,
    showing: [Showing; DoubtReason::ALL.len()],
}

impl Doubt {
    /// No losses so far.
    pub fn new(now: Instant, doubt_max: Duration) -> Self {
        Self {
            windows: VecDeque::new(),
            open: Window::new(now),
            dropped_until: Instant(0),
            stood_until: Instant(0),
            rate: 0.0,
            stall: None,
            heard: now,
            heard_rate: 0.0,
            heard_count: 0,
            usual_silence: Duration::ZERO,
            silent_hosts: 0,
            cut: None,
            deaf: None,
            blind: false,
            doubt_max,
            showing: Default::default(),
        }
    }

    fn show(&mut self, why: DoubtReason, since: Instant, until: Instant) {
        let showing = &mut self.showing[why as usize];
        showing.since.get_or_insert(since);
        showing.until = showing.until.max(until);
    }

    /// Since when a reason holds; one that came and went is told for five seconds more.
    pub fn since(&self, why: DoubtReason) -> Option<Instant> {
        self.showing[why as usize].since
    }

    /// Takes note of how time went by while the shell waited. To be called before any mail is read:
    /// nothing is to be learned from gaps that our own pause made.
    pub fn wake(&mut self, now: Instant, waking: &Waking) {
        if waking.suspended >= STALL {
            // Our clock stood still: every expectation is older than it looks.
            self.deaf = Some(Deaf { start: now, end: now, why: DoubtReason::Suspend });
            self.cut = None;
            (self.heard, self.silent_hosts) = (now, 0);
            self.stood_until = now;
            self.show(DoubtReason::Suspend, now, now + CLEAR_AFTER);
        }
        let late = now.since(self.open.end).saturating_sub(waking.asked);
        if late >= STALL {
            let start = self.stall.map_or(self.open.end, |s| s.start);
            let accounted = self.stall.map_or(0, |s| s.accounted);
            self.stall = Some(Stall { start, end: now, accounted });
            self.stood_until = now;
            self.show(DoubtReason::Stall, now - late, now + CLEAR_AFTER);
        }
        if waking.wall_step_ms.unsigned_abs() >= CLOCK_STEP_MS {
            self.show(DoubtReason::ClockStep, now, now + CLEAR_AFTER);
        }
    }

    /// Somebody on another machine was heard: our link works.
    pub fn hear(&mut self, arrival: Instant) {
        self.heard_count += 1;
        self.silent_hosts = 0;
        if arrival <= self.heard {
            return;
        }
        let silence = arrival.since(self.heard);
        // However long one silence was, it takes several to make it usual.
        if silence > self.usual_silence {
            let usual = silence.min(self.usual_silence * 2 + Duration::from_millis(5));
            self.usual_silence = self.usual_silence.max(usual);
        }
        self.heard = arrival;
        if let Some(start) = self.cut.take() {
            self.deaf = Some(Deaf { start, end: arrival, why: DoubtReason::Cut });
            self.show(DoubtReason::Cut, start, arrival + CLEAR_AFTER);
        }
    }

    fn begin_cut(&mut self) {
        let before =
            self.deaf.filter(|d| d.why == DoubtReason::Cut && self.heard.since(d.end) < CUT_MERGE);
        let start = before.map_or(self.heard, |d| d.start);
        self.cut = Some(start);
        self.show(DoubtReason::Cut, start, start);
    }

    /// Records what one pass received and what the kernel dropped since the pass before.
    pub fn record(&mut self, now: Instant, pass: &Pass) {
        self.open.end = now.max(self.open.end);
        self.open.received += pass.received;
        self.open.dropped += pass.dropped;
        if let Some(stall) = &mut self.stall {
            stall.accounted += pass.received + pass.dropped;
            if pass.seen >= stall.end {
                let expected = (self.rate * stall.end.since(stall.start).as_secs_f64()) as u64;
                // Statistical slack: a few beats more or less prove nothing.
                let slack = 4 + expected / 16;
                self.open.missing += expected.saturating_sub(stall.accounted + slack);
                self.stall = None;
            }
        }
        if self.open.lost() > 0 {
            self.dropped_until = self.open.end;
            self.show(self.open.reason(), now, now + CLEAR_AFTER);
        }
        if self.stall.is_none() && self.open.end.since(self.open.start) >= WINDOW {
            self.close_window(now);
        }
        let silence = pass.seen.since(self.heard);
        if self.cut.is_none()
            && pass.alive >= u64::from(CUT_HOSTS)
            && self.heard_rate * silence.as_secs_f64() >= CUT_BEATS
            && silence >= CUT_SILENCE_MIN.max(self.usual_silence * CUT_USUAL)
        {
            self.begin_cut();
        }
        let lag = now.since(pass.seen);
        if lag > LAG_MAX {
            self.show(DoubtReason::Lagging, now - lag, now + WINDOW);
        }
        if self.blind && now.since(self.impaired_until(now)) >= CLEAR_AFTER {
            self.blind = false;
        }
        if self.blind {
            self.show(DoubtReason::Blind, now, now);
        }
        let cut = self.cut.is_some();
        for why in DoubtReason::ALL {
            let showing = &mut self.showing[why as usize];
            let goes_on = match why {
                DoubtReason::Cut => cut || now < showing.until,
                DoubtReason::Blind => self.blind,
                _ => now < showing.until,
            };
            if !goes_on {
                *showing = Showing::default();
            }
        }
    }

    fn close_window(&mut self, now: Instant) {
        let span = self.open.end.since(self.open.start);
        if span < STALL && self.cut.is_none() {
            let seconds = span.as_secs_f64();
            let seen = (self.open.received + self.open.lost()) as f64;
            self.rate += (seen / seconds - self.rate) / 16.0;
            self.heard_rate += (self.heard_count as f64 / seconds - self.heard_rate) / 16.0;
        }
        self.heard_count = 0;
        self.usual_silence -= self.usual_silence / 64;
        self.windows.push_back(self.open);
        if self.windows.len() > WINDOWS_MAX {
            self.windows.pop_front();
        }
        self.open = Window::new(now);
    }

    /// Until when our own hearing was last impaired.
    fn impaired_until(&self, now: Instant) -> Instant {
        let deaf = self.deaf.map_or(Instant(0), |d| d.end);
        if self.cut.is_some() { now } else { self.dropped_until.max(deaf) }
    }

    /// Whether actions must be held because own losses have lasted beyond `doubt_max`.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// Whether unanswered probes prove nothing right now: a cut that is not yet older than `doubt_max`.
    pub fn holds_verdicts(&self, seen: Instant) -> bool {
        self.cut.is_some_and(|start| seen.since(start) < self.doubt_max)
    }

    /// Whether our own pause, cut or drops may have made the gap from `last` to a beat that was expected
    /// at `expected` and came `lost` numbers later: it teaches nothing about the host.
    #[inline]
    pub fn explains(&self, last: Instant, expected: Instant, lost: u32) -> bool {
        self.stood_until > last
            || self.deaf.is_some_and(|d| d.end > last && d.end > expected)
            // Of a host none of whose beats was lost, none was dropped here.
            || (lost > 0 && self.dropped_until > last)
    }

    /// Share of datagrams dropped in the newest closed window, parts per million.
    pub fn drop_ppm(&self) -> u64 {
        let newest = self.windows.back().unwrap_or(&self.open);
        (newest.drop_share().max(self.open.drop_share()) * 1e6) as u64
    }

    /// The greatest drop share of any window that overlaps `from..=to`, and what made it.
    fn worst(&self, from: Instant, to: Instant) -> (f64, DoubtReason) {
        // In order of time, so the first that reaches the span is found by halving: in the worst hour every
        // host of the fleet is judged here, and each of its missed beats asks.
        let first = self.windows.partition_point(|w| w.end < from);
        let closed = self.windows.range(first..).take_while(|w| w.start <= to);
        let open = Some(&self.open).filter(|w| w.end >= from && w.start <= to);
        closed
            .chain(open)
            .map(|w| (w.drop_share(), w.reason()))
            .fold((0.0, DoubtReason::Drops), |a, b| if b.0 >= a.0 { b } else { a })
    }

    /// Judges a host whose deadline has passed, as of the watermark `seen`: everything up to it has been
    /// read.
    pub fn judge(&mut self, host: &Overdue, seen: Instant) -> Excuse {
        let &Overdue { expected, gap, margin, last, local, excused_since, again } = host;
        // Counted once: who is excused, or late in a hush, is judged again and again.
        let first = excused_since.is_none() && !again;
        if first && !local && self.cut.is_none() && self.heard < expected {
            self.silent_hosts += 1;
            if self.silent_hosts >= CUT_HOSTS {
                self.begin_cut();
            }
        }
        // Jitter is at most half an interval, so each span of 1.5 gaps holds at least one beat.
        let span = (gap + gap / 2).max(Duration::from_millis(1));
        let (mut from, mut to) = (expected, expected + margin);
        let mut doubted = None;
        if self.cut.is_some_and(|start| !local && to > start) {
            to = seen + CUT_LOOK;
            doubted = Some(DoubtReason::Cut);
        } else if let Some(deaf) = self.deaf.filter(|d| {
            let unheard = last.is_none_or(|last| last < d.end);
            let missed = match d.why {
                DoubtReason::Suspend => true,
                _ => !local && expected < d.end && to > d.start,
            };
            unheard && missed
        }) {
            (from, to) = (deaf.end + Duration::from_nanos(1), deaf.end + span + margin);
            doubted = Some(deaf.why);
        } else if let Some(stall) = self.stall.filter(|s| to > s.start) {
            // What is missing from it is known once all its mail has been read.
            to = stall.end.max(seen + Duration::from_millis(1));
            doubted = Some(DoubtReason::Stall);
        } else if self.dropped_until < expected {
            return Excuse::None;
        }
        // One span after the last loss is all the chance that anybody needs, wherever its beats fall.
        let clean = self.dropped_until.max(from) + Duration::from_nanos(1) + span + margin;
        if to <= seen && clean <= seen {
            return Excuse::None;
        }
        let spared = to <= seen;
        let mut evidence = 0.0;
        while to <= seen {
            let (p, why) = self.worst(from, to);
            evidence += if p > 0.0 { -p.min(0.999).ln() } else { f64::INFINITY };
            if evidence >= EVIDENCE_MIN {
                return Excuse::None;
            }
            doubted = Some(why);
            from = if from == expected { expected + Duration::from_nanos(1) } else { from + span };
            to = from + span + margin;
        }
        let why = doubted.unwrap_or_else(|| self.worst(from, seen.max(from)).1);
        if excused_since.is_some_and(|since| seen.since(since) >= self.doubt_max) {
            self.blind = true;
            return Excuse::Exhausted(why);
        }
        let to = if spared { to.min(clean) } else { to };
        Excuse::Until(to.max(seen + Duration::from_millis(10)), why)
    }
}

#[cfg(test)]
mod tests;
