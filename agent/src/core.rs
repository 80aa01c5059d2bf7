//! The whole protocol of the agent, as a value.
//!
//! The shell around a [`Core`] waits until [`Core::next_wake`] or a datagram, reads the clock once,
//! calls [`Core::tick`] or [`Core::receive`], and sends what they put into `out`. There is one
//! `Session` per configured controller; each beat goes to all of them, sealed separately, since seq
//! and epoch differ.
//!
//! What comes in is believed only after its tag was checked under the host's own key. Of that:
//! - an *ack* counts only if it answers something unacknowledged; recordings change nothing;
//! - a *probe* is answered at once to where it came from, by as many bytes as it had, in the long
//!   run at most [`PROBES_PER_SECOND`]; it can teach an epoch but nothing else;
//! - a *probe-via* has this agent pass a probe on to another host, and that host's answer back, within
//!   limits of its own ([`RELAYS_PER_SECOND`] and further);
//! - everything else is counted by its [`Reject`] and answered by silence.
//!
//! There is one schedule for all controllers, so two that assign different intervals get the
//! shorter. A controller that was lost has no say as long as another one is heard; when none is,
//! the default interval holds and every beat asks for an ack.
//!
//! Cost: a beat is one keyed hash and one 80-byte array per controller; nothing is allocated but
//! for a hello. Memory is bounded: about 1.5 KiB per controller, and 12 KiB once probes were passed on.

use std::net::SocketAddr;
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{
    self, Ack, Beat, CHALLENGE_NONCE_LEN, DATAGRAM_LEN, DATAGRAM_LEN_MIN, FLAG_ACK_WANTED,
    FLAG_CHALLENGE, FLAG_RENEW, FLAG_SAY_HELLO, HelloTooLong, Leave, LeaveReason, Message, Probe,
    ProbeReply, ProbeVia, RoundTrip, Stamp,
};
use rand::{Rng, RngExt};

use crate::schedule::Schedule;
pub use keys::{KeyNews, PROBATION};
use limit::Bucket;
pub use relay::{RELAY_BURST, RELAY_LIFE, RELAYS_MAX, RELAYS_PER_SECOND};
use relay::{Relays, may_reach};
use session::{AckVerdict, Sent, Session};
pub use session::{
    CADENCE_MAX, EPOCHS_LEFT_LEN, HELLO_GAP_MAX, HELLO_GAP_MIN, LOOKUP, UNANSWERED_AGE_MIN,
    UNANSWERED_MAX, UNHEARD_AFTER, WINDOW_LEN,
};
pub use status::{ControllerStatus, CoreStatus};
pub use types::{Announced, OtherVersion, Outgoing, Packet, Reject, Settings, To};

mod keys;
mod limit;
mod relay;
mod session;
mod status;
mod types;

/// Probes answered per second in the long run.
pub const PROBES_PER_SECOND: u32 = 20;
/// Probes answered at once after a quiet while.
pub const PROBE_BURST: u32 = 40;

/// The agent's protocol. See the module's doc.
#[derive(Clone, Debug)]
pub struct Core {
    settings: Settings,
    schedule: Schedule,
    sessions: Vec<Session>,
    probes: Bucket,
    relays: Relays,
    rejects: [u64; Reject::ALL.len()],
    /// Numbers that a session closed by a reload has used: a later one continues after them.
    seq_floor: u32,
    announced: Option<Announced>,
    keys: keys::Keys,
    has_left: bool,
    other_version: Option<OtherVersion>,
}

impl Core {
    /// An agent that has sent nothing yet. Fails if its hello would not fit the wire.
    pub fn new<R: Rng>(
        settings: Settings,
        now: Instant,
        rng: &mut R,
    ) -> Result<Self, HelloTooLong> {
        settings.check_hello()?;
        let schedule = Schedule::new(settings.pace(), now, rng);
        let sessions = (0..settings.controllers)
            .map(|_| {
                let mut session = Session::new(0, schedule.next());
                session.draw = rng.random();
                session
            })
            .collect();
        let probes = Bucket::new(PROBES_PER_SECOND, PROBE_BURST, now);
        let rejects = [0; Reject::ALL.len()];
        Ok(Self {
            settings,
            schedule,
            sessions,
            probes,
            relays: Relays::new(now),
            rejects,
            seq_floor: 0,
            announced: None,
            keys: keys::Keys::default(),
            has_left: false,
            other_version: None,
        })
    }

    /// Takes changed settings; host, key and boot stay as they are, whatever `settings` says.
    ///
    /// `kept[i]` names the old index of the controller that now has index `i`; `None` = it is new.
    /// The planned beat stays where it was announced, assignments hold, and every controller hears
    /// a new hello. On an error nothing has changed.
    pub fn reload(
        &mut self,
        settings: Settings,
        kept: &[Option<usize>],
        now: Instant,
    ) -> Result<(), HelloTooLong> {
        let settings = Settings {
            host: self.settings.host,
            key: self.settings.key.clone(),
            boot: self.settings.boot,
            controllers: kept.len(),
            ..settings
        };
        settings.check_hello_with(self.announced.as_ref().map(|a| a.reason.as_str()))?;
        // A controller that was dropped and comes back must see no number twice.
        let used = self.sessions.iter().map(Session::seq).max().unwrap_or(0);
        self.seq_floor = self.seq_floor.max(used);
        self.sessions = kept
            .iter()
            .map(|old| match old.and_then(|i| self.sessions.get(i)) {
                Some(session) => session.clone(),
                None => Session::new(self.seq_floor, now),
            })
            .collect();
        for session in &mut self.sessions {
            session.renew_hello(now);
        }
        self.schedule.set_pace(settings.pace());
        self.settings = settings;
        self.assign();
        Ok(())
    }

    /// When [`Core::tick`] has something to do; [`Instant::FAR`] after a goodbye.
    pub fn next_wake(&self) -> Instant {
        if self.has_left {
            return Instant::FAR;
        }
        let hello = self.sessions.iter().filter_map(|s| s.hello_due).min();
        hello.map_or(self.schedule.next(), |due| due.min(self.schedule.next()))
    }

    /// The interval in force.
    pub fn interval(&self) -> Duration {
        self.schedule.interval()
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Sends what is due: hellos, and the beat. `checks` are the 16 check results, bit k set =
    /// check k fails. Before [`Core::next_wake`] it does nothing.
    pub fn tick<R: Rng>(
        &mut self,
        now: Instant,
        load: &LoadSample,
        checks: u16,
        rng: &mut R,
        out: &mut Vec<Outgoing>,
    ) {
        if self.has_left {
            return;
        }
        self.judge_key(now);
        let fired = self.schedule.fire(now, rng);
        let late_ms = fired.map_or(0, |f| f.late_ms);
        // After `fire`, so that a hello just before a beat announces the beat after it: if that
        // beat gets lost, the hello must not have promised it for the next microsecond.
        let gap = self.schedule.gap(now);
        for index in 0..self.sessions.len() {
            if self.sessions[index].hello_is_due(now) {
                self.say_hello(index, now, late_ms, out);
            }
            if fired.is_some() {
                self.sessions[index].draw = rng.random();
                self.beat(index, now, late_ms, gap, checks, load, out);
            }
        }
        if fired.is_some() {
            self.assign();
        }
    }

    /// Takes a datagram that came in. `controller` is the configured controller to whose address
    /// `from` belongs, if any.
    pub fn receive(
        &mut self,
        from: SocketAddr,
        controller: Option<usize>,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) {
        let controller = controller.filter(|i| *i < self.sessions.len());
        if let Err(reject) = self.admit(from, controller, bytes, now, out) {
            let count = &mut self.rejects[reject as usize];
            *count = count.saturating_add(1);
        }
    }

    /// Announces maintenance, or that there is none (any more): by a hello to every controller, repeated
    /// until each has acknowledged it, and by every later hello. On an error nothing has changed.
    pub fn announce(
        &mut self,
        maintenance: Option<Announced>,
        now: Instant,
    ) -> Result<(), HelloTooLong> {
        self.settings.check_hello_with(maintenance.as_ref().map(|a| a.reason.as_str()))?;
        self.announced = maintenance;
        for session in &mut self.sessions {
            session.renew_hello(now);
        }
        Ok(())
    }

    /// The maintenance that is announced now.
    pub fn announced(&self, now: Instant) -> Option<&Announced> {
        self.announced.as_ref().filter(|a| a.seconds_left(now) > 0)
    }

    /// Says goodbye to all controllers, after which nothing but further goodbyes is sent.
    /// `expected` is how long the host will be away; zero = not known. Meant to be called twice, a
    /// moment apart.
    pub fn leave(
        &mut self,
        reason: LeaveReason,
        expected: Duration,
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) {
        self.has_left = true;
        let gap = self.schedule.interval();
        for index in 0..self.sessions.len() {
            let stamp = self.stamp(index, now, gap);
            let leave = Leave { stamp, reason, expected };
            let bytes = leave.encode(&self.settings.header(0));
            self.seal(To::Controller(index), Packet::Fixed(bytes), out);
        }
    }

    /// Whether a controller's name should be looked up again because it is not heard. Saying so
    /// sets the time before it is said again: about 4 s, doubling up to two minutes until it is
    /// heard.
    pub fn needs_lookup(&mut self, controller: usize, now: Instant) -> bool {
        !self.has_left && self.sessions.get_mut(controller).is_some_and(|s| s.needs_lookup(now))
    }

    /// That controller can be sent to only now: no hello has left, so the next is the first.
    pub fn reaches(&mut self, controller: usize, now: Instant) {
        if let Some(session) = self.sessions.get_mut(controller) {
            session.no_hello_has_left(now);
        }
    }

    /// Whether that controller answers at present.
    pub fn is_heard(&self, controller: usize) -> bool {
        self.sessions.get(controller).is_some_and(Session::is_heard)
    }

    /// What came last in another version of the wire, sealed with this host's key.
    pub fn other_version(&self) -> Option<&OtherVersion> {
        self.other_version.as_ref()
    }

    /// Whether that controller has not answered once for [`UNHEARD_AFTER`] and more. Says so once.
    pub fn is_news_unheard(&mut self, controller: usize, now: Instant) -> bool {
        !self.has_left && self.sessions.get_mut(controller).is_some_and(|s| s.is_news_unheard(now))
    }

    /// Looks whose a datagram of another version is: nothing else of it is read, and it changes nothing but
    /// what people are told.
    fn foreign(&mut self, from: SocketAddr, bytes: &[u8]) -> Reject {
        let own =
            |told: &wire::Foreign<'_>| told.host == self.settings.host && self.opens_foreign(told);
        let Some(told) = wire::foreign(bytes).filter(own) else { return Reject::Unknown };
        let seen = self.other_version.filter(|seen| seen.version == told.version);
        let datagrams = seen.map_or(0, |seen| seen.datagrams).saturating_add(1);
        self.other_version = Some(OtherVersion { version: told.version, datagrams, from });
        Reject::OtherVersion
    }

    fn say_hello(&mut self, index: usize, now: Instant, late_ms: u16, out: &mut Vec<Outgoing>) {
        let stamp = self.stamp(index, now, self.schedule.gap(now));
        let session = &mut self.sessions[index];
        let sent = session.hello_goes_out(now, self.settings.interval);
        session.remember(stamp.seq, now, sent);
        let announced = self.announced(now).map(|a| (a.seconds_left(now), a.reason.as_str()));
        let hello = self
            .settings
            .hello(FLAG_ACK_WANTED, &stamp, late_ms, announced)
            .expect("`new`, `reload` and `announce` refuse what does not fit in a hello");
        self.seal(To::Controller(index), Packet::Hello(hello), out);
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a beat, each from elsewhere")]
    fn beat(
        &mut self,
        index: usize,
        now: Instant,
        late_ms: u16,
        gap: Duration,
        checks: u16,
        load: &LoadSample,
        out: &mut Vec<Outgoing>,
    ) {
        let stamp = self.stamp(index, now, gap);
        let interval = self.schedule.interval();
        let session = &mut self.sessions[index];
        let asks = session.ask(self.settings.ack_every, now, interval);
        session.remember(stamp.seq, now, if asks { Sent::Asking } else { Sent::Silent });
        session.counts.beats = session.counts.beats.saturating_add(1);
        let flags = if asks { FLAG_ACK_WANTED } else { 0 };
        let trip = session.round_trip.map_or(RoundTrip::UNKNOWN, |r| RoundTrip::new(r.usual()));
        let beat = Beat { stamp, late_ms, checks, load: *load, round_trip: trip };
        let bytes = beat.encode(&self.settings.header(flags));
        self.seal(To::Controller(index), Packet::Fixed(bytes), out);
    }

    /// The stamp of the next datagram of a session.
    fn stamp(&mut self, index: usize, now: Instant, gap: Duration) -> Stamp {
        let session = &mut self.sessions[index];
        Stamp {
            boot: self.settings.boot,
            seq: session.take_seq(),
            sent: now,
            gap,
            epoch: session.epoch,
        }
    }

    fn seal(&self, to: To, mut bytes: Packet, out: &mut Vec<Outgoing>) {
        self.settings.key.seal(match &mut bytes {
            Packet::Fixed(b) => b,
            Packet::Short(b) => b,
            Packet::Hello(b) => b,
        });
        out.push(Outgoing { to, bytes });
    }

    fn admit(
        &mut self,
        from: SocketAddr,
        controller: Option<usize>,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Reject> {
        let datagram = wire::decode(bytes).map_err(|e| match e {
            wire::DecodeError::Version => self.foreign(from, bytes),
            wire::DecodeError::Kind => Reject::Unknown,
            _ => Reject::Malformed,
        })?;
        if datagram.header.host != self.settings.host {
            return match datagram.message {
                Message::ProbeReply(reply) if !self.has_left => {
                    self.bring_back(datagram.header.host, &reply, bytes, now, out)
                }
                _ => Err(Reject::WrongHost),
            };
        }
        let by_present = self.opens(&datagram).ok_or(Reject::WrongTag)?;
        if self.has_left {
            return Err(Reject::Left);
        }
        match datagram.message {
            Message::Ack(ack) => {
                let flags = datagram.header.flags;
                let verdict = AckVerdict {
                    say_hello: flags & FLAG_SAY_HELLO != 0,
                    challenge: flags & FLAG_CHALLENGE != 0,
                };
                self.take_ack(controller, &ack, verdict, now, out)?;
                if by_present {
                    self.keys.proved();
                    if flags & FLAG_RENEW != 0 {
                        self.keys.want();
                    }
                }
                Ok(())
            }
            Message::Probe(probe) => {
                let is_short = bytes.len() < DATAGRAM_LEN;
                self.answer(from, controller, (&probe, is_short), now, out)
            }
            Message::ProbeVia(via) => self.pass_on(from, &via, now, out),
            Message::Beat(_) | Message::Hello(_) | Message::Leave(_) | Message::ProbeReply(_) => {
                Err(Reject::WrongKind)
            }
        }
    }

    /// The session that an ack is about: the one of its sender's address unless another one is
    /// known to be that controller's; for an unknown address and controller, one that awaits it.
    fn session_of(&self, controller: Option<usize>, ack: &Ack) -> Option<usize> {
        let id = ack.controller;
        let is_or_may_be = |i: &usize| self.sessions[*i].id.is_none_or(|known| known == id);
        controller
            .filter(is_or_may_be)
            .or_else(|| self.sessions.iter().position(|s| s.id == Some(id)))
            .or(controller)
            .or_else(|| self.sessions.iter().position(|s| s.id.is_none() && s.matches(ack)))
    }

    fn take_ack(
        &mut self,
        controller: Option<usize>,
        ack: &Ack,
        verdict: AckVerdict,
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Reject> {
        if ack.boot != self.settings.boot {
            return Err(Reject::OtherBoot);
        }
        let index = self.session_of(controller, ack).ok_or(Reject::Unmatched)?;
        let assigned =
            (!ack.interval.is_zero()).then(|| self.schedule.pace().bounded(ack.interval));
        let session = &mut self.sessions[index];
        if !session.take_ack(ack, assigned, verdict, now) {
            return Err(Reject::Unmatched);
        }
        let answer = verdict.say_hello || verdict.challenge;
        if answer && session.hello_is_due(now) {
            self.say_hello(index, now, 0, out);
        }
        self.assign();
        Ok(())
    }

    /// Works out the interval from what the controllers assign: the shortest of those that are
    /// heard, where one that leaves it to the agent stands for the default.
    fn assign(&mut self) {
        let default = self.settings.interval;
        let heard = self.sessions.iter().filter(|s| s.is_heard());
        let shortest = heard.map(|s| s.assigned.unwrap_or(default)).min();
        self.schedule.assign(shortest);
    }

    fn answer(
        &mut self,
        from: SocketAddr,
        controller: Option<usize>,
        (probe, is_short): (&Probe, bool),
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Reject> {
        let index = self
            .sessions
            .iter()
            .position(|s| s.id == Some(probe.controller))
            .or(controller)
            .unwrap_or(0);
        // Its reply would be longer than it is. Controllers leave out zeros only of nonces that end in them.
        if is_short && probe.nonce[CHALLENGE_NONCE_LEN..].iter().any(|byte| *byte != 0) {
            return Err(Reject::Malformed);
        }
        if self.sessions.is_empty() || !self.probes.take(now) {
            return Err(Reject::ProbeLimit);
        }
        self.sessions[index].learn_epoch_from_probe(probe.epoch);
        let stamp = Stamp { epoch: probe.epoch, ..self.stamp(index, now, self.schedule.gap(now)) };
        let counts = &mut self.sessions[index].counts;
        counts.probes_answered = counts.probes_answered.saturating_add(1);
        let reply = ProbeReply { stamp, nonce: probe.nonce };
        let full = reply.encode(&self.settings.header(0));
        // What zeros the probe left out is left out here too, and a little more: less goes out than came in.
        let short = is_short.then(|| wire::shorter::<DATAGRAM_LEN_MIN>(&full)).flatten();
        let bytes = short.map_or(Packet::Fixed(full), Packet::Short);
        self.seal(To::Addr(from), bytes, out);
        Ok(())
    }

    /// Passes a controller's probe on to another host; see [`relay`].
    fn pass_on(
        &mut self,
        from: SocketAddr,
        via: &ProbeVia<'_>,
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Reject> {
        let present = |s: &Session| s.id == Some(via.controller) && s.epoch == via.epoch;
        if !self.sessions.iter().any(present) {
            return Err(Reject::RelayStale);
        }
        let inner = wire::decode(via.probe).map_err(|_| Reject::Malformed)?;
        let (host, Message::Probe(probe)) = (inner.header.host, inner.message) else {
            return Err(Reject::Malformed);
        };
        if host == self.settings.host || !may_reach(via.to, from) {
            return Err(Reject::RelayAddress);
        }
        self.relays.pass_on(probe.nonce, host, from, now)?;
        out.push(Outgoing { to: To::Addr(via.to), bytes: Packet::Fixed(*via.probe) });
        Ok(())
    }

    /// Brings another host's answer, as it is, to the controller that waits for it.
    fn bring_back(
        &mut self,
        host: HostId,
        reply: &ProbeReply,
        bytes: &[u8],
        now: Instant,
        out: &mut Vec<Outgoing>,
    ) -> Result<(), Reject> {
        let back = self.relays.bring_back(&reply.nonce, host, now).ok_or(Reject::WrongHost)?;
        let bytes = bytes.try_into().map_err(|_| Reject::Malformed)?;
        out.push(Outgoing { to: To::Addr(back), bytes: Packet::Fixed(bytes) });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
