//! What the agent knows about one controller: its own numbering, epoch, acks and hellos.
//!
//! Sessions share nothing: what one controller says, or stops saying, changes no other's session.
//!
//! An ack is believed only if it echoes the seq and the sent time of a datagram that is still in
//! the session's window of unacknowledged ones; the entry is then used up. A recording of an ack
//! therefore changes nothing, and neither does an ack that was meant for another boot or another
//! session.

use std::time::Duration;

use heartwatch_common::backoff::Backoff;
use heartwatch_common::id::{ControllerId, Epoch, Seq};
use heartwatch_common::time::Instant;
use heartwatch_common::wire::Ack;

/// Unacknowledged datagrams that a session remembers; older ones can no longer be acked.
pub const WINDOW_LEN: usize = 32;
/// Epochs given up by a controller that probes may not bring back.
pub const EPOCHS_LEFT_LEN: usize = 4;
/// Requests for an ack that stay without answer before the session counts as lost.
pub const UNANSWERED_MAX: u32 = 3;
/// Time without answer before a session counts as lost: at short intervals three beats may be under
/// way at once on a slow path.
pub const UNANSWERED_AGE_MIN: Duration = Duration::from_secs(2);
/// Two hellos of one session are never closer than this.
pub const HELLO_GAP_MIN: Duration = Duration::from_millis(200);
/// An unacknowledged hello is repeated at least this often.
pub const HELLO_GAP_MAX: Duration = Duration::from_secs(30);
/// A controller's cadence of acks is not taken to be sparser than this.
pub const CADENCE_MAX: u16 = 600;
/// A controller that has not answered once for so long is told of.
pub const UNHEARD_AFTER: Duration = Duration::from_secs(60);
/// How soon, and at most how slowly, a name is looked up again while its controller is not heard.
pub const LOOKUP: Backoff = Backoff { base: Duration::from_secs(4), cap: Duration::from_secs(120) };

/// What a datagram in the window was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// A beat or a leave that asked for no ack; it may still be challenged.
    Silent,
    /// A beat that asked for an ack.
    Asking,
    /// A hello of that revision; always asks for an ack.
    Hello { revision: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    seq: Seq,
    sent_us: u64,
    what: Sent,
}

/// Round-trip times, from the agent's own clock alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RoundTrip {
    /// The latest.
    pub(super) last: Duration,
    /// The one before it.
    before: Duration,
    /// The shortest of this boot.
    pub(super) min: Duration,
    /// Smoothed, a new one weighing 1/8 (as RFC 6298 does).
    pub(super) smoothed: Duration,
}

impl RoundTrip {
    fn first(d: Duration) -> Self {
        Self { last: d, before: d, min: d, smoothed: d }
    }

    fn and(self, d: Duration) -> Self {
        let smoothed = (self.smoothed * 7 + d) / 8;
        Self { last: d, before: self.last, min: self.min.min(d), smoothed }
    }

    /// The shorter of the two newest. An ack that waited while this agent or the controller stood still
    /// tells nothing of the way, and would weigh on a mean for minutes; a way that has become longer
    /// shows with the second ack.
    pub(super) fn usual(&self) -> Duration {
        self.last.min(self.before)
    }
}

/// Counters of one session since the start of this boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Beats sent.
    pub(super) beats: u64,
    /// Hellos sent.
    pub(super) hellos: u64,
    /// Beats and hellos that asked for an ack.
    pub(super) acks_wanted: u64,
    /// Acks that answered such a request.
    pub(super) acks_received: u64,
    /// Acks that said "what you sent proved nothing".
    pub(super) challenges: u64,
    /// Authentic acks that matched nothing unacknowledged: recordings, duplicates, far too late.
    pub(super) acks_unmatched: u64,
    /// Probes answered.
    pub(super) probes_answered: u64,
    /// Times that acks stopped.
    pub(super) lost: u64,
}

/// One controller, as this agent sees it.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The last seq used; 0 = none.
    seq: u32,
    pub(super) epoch: Epoch,
    /// Epochs that this controller had before, newest first; a probe that names one is a recording.
    epochs_left: [Epoch; EPOCHS_LEFT_LEN],
    pub(super) id: Option<ControllerId>,
    window: [Option<Entry>; WINDOW_LEN],
    /// When the next hello is due; `None` once one was acknowledged.
    pub(super) hello_due: Option<Instant>,
    hello_sent: Option<Instant>,
    hello_attempts: u32,
    /// Only an ack for this revision of the hello settles it.
    hello_revision: u32,
    /// Beats between two requests for an ack, if the controller said so.
    cadence: Option<u16>,
    beats_since_asked: u32,
    /// Requests sent since the last ack, and when the first of them was.
    unanswered: u32,
    unanswered_since: Instant,
    /// When it is told that the controller never answered; `None`: that was told.
    unheard_at: Option<Instant>,
    pub(super) acked: Option<Instant>,
    /// Acks stopped, after there had been some.
    pub(super) lost: bool,
    pub(super) assigned: Option<Duration>,
    pub(super) round_trip: Option<RoundTrip>,
    lookup_due: Instant,
    lookups: u32,
    /// A number in 0..1, drawn anew with each beat, for the decisions that are made between two.
    pub(super) draw: f64,
    pub(super) counts: Counts,
}

impl Session {
    /// A session whose first hello is due at `start` and whose numbers continue after `seq`.
    pub(super) fn new(seq: u32, start: Instant) -> Self {
        Self {
            seq,
            epoch: Epoch(0),
            epochs_left: [Epoch(0); EPOCHS_LEFT_LEN],
            id: None,
            window: [None; WINDOW_LEN],
            hello_due: Some(start),
            hello_sent: None,
            hello_attempts: 0,
            hello_revision: 0,
            cadence: None,
            beats_since_asked: 0,
            unanswered: 0,
            unanswered_since: start,
            unheard_at: Some(start + UNHEARD_AFTER),
            acked: None,
            lost: false,
            assigned: None,
            round_trip: None,
            lookup_due: start + LOOKUP.base,
            lookups: 0,
            draw: 0.5,
            counts: Counts::default(),
        }
    }

    /// The last seq used.
    pub(super) fn seq(&self) -> u32 {
        self.seq
    }

    /// The number of the next datagram. At the end of the numbers (136 years at one a second) it
    /// stays there: such datagrams are refused as replays, which is better than wrapping into old
    /// ones.
    pub(super) fn take_seq(&mut self) -> Seq {
        self.seq = self.seq.saturating_add(1);
        Seq(self.seq)
    }

    #[cfg(test)]
    pub(super) fn skip_to(&mut self, seq: u32) {
        self.seq = seq;
    }

    /// Remembers a datagram that may be acked. The window is a ring by seq.
    pub(super) fn remember(&mut self, seq: Seq, now: Instant, what: Sent) {
        if what != Sent::Silent {
            self.counts.acks_wanted = self.counts.acks_wanted.saturating_add(1);
        }
        self.window[seq.0 as usize % WINDOW_LEN] =
            Some(Entry { seq, sent_us: now.as_micros(), what });
    }

    /// Whether the beat sent now should ask for an ack, and the bookkeeping of having asked. `own`
    /// is the agent's own cadence, `interval` the one in force.
    pub(super) fn ask(&mut self, own: u16, now: Instant, interval: Duration) -> bool {
        let stopped = self.unanswered >= UNANSWERED_MAX
            && now.since(self.unanswered_since) >= UNANSWERED_AGE_MIN.max(interval * 2);
        if stopped && self.is_heard() {
            self.lose(now);
        }
        let cadence = u32::from(self.cadence.unwrap_or(own)).max(1);
        self.beats_since_asked = self.beats_since_asked.saturating_add(1);
        // A request that found no answer yet is repeated with the next beat: three lost in a row
        // are then noticed within three beats rather than thirty.
        let ask = self.acked.is_none()
            || self.lost
            || self.unanswered > 0
            || self.beats_since_asked >= cadence;
        if ask {
            self.beats_since_asked = 0;
            if self.unanswered == 0 {
                self.unanswered_since = now;
            }
            self.unanswered = self.unanswered.saturating_add(1);
        }
        ask
    }

    /// Acks stopped: what the controller assigned no longer holds.
    fn lose(&mut self, now: Instant) {
        self.assigned = None;
        self.cadence = None;
        self.lost = true;
        self.counts.lost = self.counts.lost.saturating_add(1);
        self.lookup_due = now;
    }

    /// Whether this session has a controller that answers.
    pub(super) fn is_heard(&self) -> bool {
        self.acked.is_some() && !self.lost
    }

    /// The position in the window of the datagram that `ack` answers.
    fn position(&self, ack: &Ack) -> Option<usize> {
        let at = ack.seq.0 as usize % WINDOW_LEN;
        let entry = self.window[at]?;
        let same = entry.seq == ack.seq && entry.sent_us == ack.echoed_sent.as_micros();
        same.then_some(at)
    }

    /// Whether `ack` answers something unacknowledged.
    pub(super) fn matches(&self, ack: &Ack) -> bool {
        self.position(ack).is_some()
    }

    /// Takes what an ack says if it answers something unacknowledged, and tells whether it did; if
    /// not, nothing but a counter has changed. `assigned` is the interval that it assigns, already
    /// brought into bounds.
    pub(super) fn take_ack(
        &mut self,
        ack: &Ack,
        assigned: Option<Duration>,
        verdict: AckVerdict,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.position(ack).and_then(|at| self.window[at].take()) else {
            self.counts.acks_unmatched = self.counts.acks_unmatched.saturating_add(1);
            return false;
        };
        if entry.what != Sent::Silent {
            self.counts.acks_received = self.counts.acks_received.saturating_add(1);
        }
        let epoch_is_news = self.epoch != ack.epoch;
        self.learn_epoch(ack.epoch);
        self.id = Some(ack.controller);
        self.assigned = assigned;
        self.cadence = (ack.cadence != 0).then_some(ack.cadence.min(CADENCE_MAX));
        self.acked = Some(now);
        self.lost = false;
        self.unanswered = 0;
        self.lookups = 0;
        let trip = Duration::from_micros(now.as_micros().saturating_sub(entry.sent_us));
        self.round_trip = Some(match self.round_trip {
            Some(r) => r.and(trip),
            None => RoundTrip::first(trip),
        });
        let hello = matches!(entry.what, Sent::Hello { .. });
        if verdict.challenge {
            self.counts.challenges = self.counts.challenges.saturating_add(1);
        }
        if verdict.say_hello || (hello && verdict.challenge && epoch_is_news) {
            self.want_hello(now);
        } else if entry.what == (Sent::Hello { revision: self.hello_revision })
            && !verdict.challenge
        {
            self.hello_due = None;
            self.hello_attempts = 0;
        }
        true
    }

    /// Makes a hello due as soon as the limit allows.
    pub(super) fn want_hello(&mut self, now: Instant) {
        self.hello_attempts = 0;
        let due = self.hello_sent.map_or(now, |sent| now.max(sent + HELLO_GAP_MIN));
        self.hello_due = Some(self.hello_due.map_or(due, |planned| planned.min(due)));
    }

    /// The hellos so far went nowhere: one is due, and its repetitions are counted from it.
    pub(super) fn no_hello_has_left(&mut self, now: Instant) {
        self.hello_sent = None;
        self.want_hello(now);
    }

    /// Makes a hello with new content due; acks for older content no longer settle it.
    pub(super) fn renew_hello(&mut self, now: Instant) {
        self.hello_revision = self.hello_revision.wrapping_add(1);
        self.want_hello(now);
    }

    /// Books a hello that is sent now, and when it is repeated without an ack: after about one
    /// `interval`, then twice that, up to [`HELLO_GAP_MAX`].
    pub(super) fn hello_goes_out(&mut self, now: Instant, interval: Duration) -> Sent {
        self.hello_attempts = self.hello_attempts.saturating_add(1);
        let backoff =
            Backoff { base: interval.clamp(HELLO_GAP_MIN, HELLO_GAP_MAX), cap: HELLO_GAP_MAX };
        let wait = backoff.bound(self.hello_attempts).mul_f64(0.75 + self.draw / 4.0);
        self.hello_sent = Some(now);
        self.hello_due = Some(now + wait.max(HELLO_GAP_MIN));
        self.counts.hellos = self.counts.hellos.saturating_add(1);
        Sent::Hello { revision: self.hello_revision }
    }

    /// Whether a hello is due.
    pub(super) fn hello_is_due(&self, now: Instant) -> bool {
        self.hello_due.is_some_and(|due| due <= now)
    }

    /// Takes an epoch from a matched ack.
    fn learn_epoch(&mut self, epoch: Epoch) {
        if epoch == self.epoch || epoch == Epoch(0) {
            return;
        }
        if self.epoch != Epoch(0) {
            self.epochs_left.rotate_right(1);
            self.epochs_left[0] = self.epoch;
        }
        self.epoch = epoch;
    }

    /// Takes an epoch from a probe, unless this controller is known to have given it up: acks are
    /// matched to what was sent, but a probe can be a recording.
    pub(super) fn learn_epoch_from_probe(&mut self, epoch: Epoch) {
        if !self.epochs_left.contains(&epoch) {
            self.learn_epoch(epoch);
        }
    }

    /// Whether no ack came for [`UNHEARD_AFTER`]. Says so once.
    pub(super) fn is_news_unheard(&mut self, now: Instant) -> bool {
        let news = self.acked.is_none() && self.unheard_at.is_some_and(|at| at <= now);
        if news {
            self.unheard_at = None;
        }
        news
    }

    /// Whether the controller's name should be looked up again: it is not heard, and not too soon.
    pub(super) fn needs_lookup(&mut self, now: Instant) -> bool {
        if self.is_heard() || now < self.lookup_due {
            return false;
        }
        self.lookups = self.lookups.saturating_add(1);
        self.lookup_due = now + LOOKUP.bound(self.lookups).mul_f64(0.5 + self.draw / 2.0);
        true
    }

    /// Requests that were lost on the way, or their acks: those neither answered nor still young.
    pub(super) fn acks_missing(&self, now: Instant) -> u64 {
        let young = self
            .window
            .iter()
            .flatten()
            .filter(|e| e.what != Sent::Silent)
            .filter(|e| now.as_micros().saturating_sub(e.sent_us) < ACK_AGE_MAX_US)
            .count() as u64;
        self.counts.acks_wanted.saturating_sub(self.counts.acks_received).saturating_sub(young)
    }
}

/// An unanswered request older than this is counted as lost, microseconds.
const ACK_AGE_MAX_US: u64 = 2_000_000;

/// The flags of an ack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AckVerdict {
    /// "Say hello again."
    pub(super) say_hello: bool,
    /// "What you sent proved nothing."
    pub(super) challenge: bool,
}
