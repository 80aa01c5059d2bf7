//! One shard as a value: datagrams, ICMP errors and time go in; datagrams and news come out.
//!
//! The thread around it ([`crate::shard::worker`]) owns the sockets; the simulator owns a virtual
//! network. Both drive this same code.
//!
//! The way of a beat: admit (decode, authenticate) → prove (fresh?) → observe (alive until when?) → an
//! ack, if it asked. Whatever authenticates but proves nothing is challenged, at most once per
//! [`EPOCH_CHALLENGE_EVERY`] or [`NONCE_CHALLENGE_EVERY`] per host and within the shard's pace; nothing
//! else is answered, and no answer is larger than what caused it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::auth::{HostKey, Keyring, Verdicts};
use heartwatch_common::id::{Boot, ControllerId, Epoch, Generation, HostId};
use heartwatch_common::time::{Instant, micros};
use heartwatch_common::wire::{
    self, ANSWER_LEN, Ack, CHALLENGE_NONCE_LEN, DecodeError, FLAG_ACK_WANTED, FLAG_CHALLENGE,
    FLAG_RENEW, FLAG_SAY_HELLO, Field, Fixed, HOST_ID_OFFSET, Header, Hello, Leave, Message, Probe,
    ProbeReply, ProbeVia, Stamp, ViaDatagram,
};

use crate::canary::CANARY;
use crate::control::HostWhy;
use crate::detector::confirm::{Bucket, NONCE_LIFE};
use crate::detector::doubt::{DoubtReason, Waking};
use crate::detector::host::{Coarse, HELLO_WANTED, KEYED, Known, Transition, Turn};
use crate::detector::knobs::AllKnobs;
use crate::detector::peers::DomainLabels;
use crate::detector::{Ahead, Detector, Judged, Proof, Settings};
use crate::enrol::registry::Enrolled;
use crate::event::State;
use crate::ingest::admit::{Admitted, Challenge, Past, admit, prove};
use crate::ingest::sources::Sources;
use crate::intervals::Assigned;
use crate::intervals::watched::Watched;
use crate::metrics::{Reject, ShardMetrics, add, bump, inc, set};
use crate::replay::record::Recorder;
use crate::shard::foreign::{Foreigners, OtherVersion};
use crate::shard::notices::{Facts, Notice, Notices};
use crate::view::{LiveId, LiveTable};

/// Least time between two challenges of one host by an ack.
pub const EPOCH_CHALLENGE_EVERY: Duration = Duration::from_millis(200);
/// Least time between two challenges of one host by a nonce.
pub const NONCE_CHALLENGE_EVERY: Duration = Duration::from_secs(1);
/// Nonces outstanding at once.
const NONCES_MAX: usize = 65_536;
/// Challenges per second of one shard: paces the return of a whole fleet after a restart.
const CHALLENGE_RATE_MAX: u32 = 50_000;
/// Acks that a shard sends in any case, per second and at once; beyond these one for each so many datagrams
/// that it reads. Who gets none asks again with its next beat. Without a bound a shard that lags is asked by
/// every beat instead of every tenth, and a datagram sent costs some four times one that is read.
pub(crate) const ACK_RATE: u32 = 4_000;
const ACK_BURST: u32 = 4_096;
const READ_PER_ACK: u32 = 64;
/// The slowest cadence, in beats, at which hosts are told to want acks so that all of a shard together want
/// no more than [`ACK_RATE`]: half a million hosts that each want one for every tenth beat would cost more
/// in answers than in beats. Beyond 480,000 beats a second of a shard, [`ShardCore::may_ack`] alone bounds
/// them.
pub(crate) const CADENCE_MAX: u64 = 120;
/// Acks per second of one shard that ask a host to fetch its next key, and at once: a rotation of a million
/// hosts shall take hours, not the controller.
const RENEW_RATE: u32 = 50;
const RENEW_BURST: u32 = 50;
/// Most labels that are taken of one host.
const LABELS_MAX: usize = 64;

/// By which socket to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The beat socket with this number.
    Beats(u8),
    /// The probe socket.
    Probes,
}

/// A datagram to be sent.
#[derive(Clone, Debug)]
pub struct Send {
    /// To whom.
    pub to: SocketAddr,
    /// By which socket.
    pub via: Via,
    /// Sealed.
    pub bytes: Packet,
}

/// The bytes of a sealed datagram.
#[derive(Clone, Debug)]
pub enum Packet {
    /// A probe.
    Fixed(Fixed),
    /// An ack, or a challenge's probe: shorter than whatever caused it.
    Answer([u8; ANSWER_LEN]),
    /// A request to a peer: rare, and twice as long.
    Via(Box<ViaDatagram>),
}

impl AsRef<[u8]> for Packet {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Fixed(bytes) => bytes,
            Self::Answer(bytes) => bytes,
            Self::Via(bytes) => &bytes[..],
        }
    }
}

impl Packet {
    /// Seals what answers something.
    fn answer(mut full: Fixed, key: &HostKey) -> Self {
        if let Some(mut bytes) = wire::shorter(&full) {
            key.seal(&mut bytes);
            return Self::Answer(bytes);
        }
        // Only with a lease, which nobody has yet.
        key.seal(&mut full);
        Self::Fixed(full)
    }
}

/// What makes a shard this controller's.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The shard's number.
    pub shard: u16,
    /// Whose acks these are.
    pub controller: ControllerId,
    /// Drawn at this start; never zero.
    pub epoch: Epoch,
    /// Fleet secrets.
    pub keyring: Keyring,
    /// Interval assigned by acks, and beats between two acks, by class.
    pub assigned: Arc<Assigned>,
    /// Who waits how long, and who learns together.
    pub knobs: Arc<AllKnobs>,
    /// Which labels make a failure domain.
    pub domains: DomainLabels,
    /// Least generations and labels that hosts were given.
    pub enrolled: Arc<Enrolled>,
    /// Where live figures are published.
    pub live: Arc<LiveTable>,
    /// Seed for nonces and rounding; from the operating system in production.
    pub seed: u64,
}

/// One shard.
#[derive(Debug)]
pub struct ShardCore {
    identity: Identity,
    detector: Detector,
    settings: Settings,
    nonces: BTreeMap<u32, ([u8; 16], Instant)>,
    watched: Watched,
    nonce_count: u64,
    /// When nonces past their life are next thrown away.
    sweep_at: Instant,
    pace: Bucket,
    acks: Bucket,
    renewals: Bucket,
    /// Hosts by the id of the key that they used last.
    keyed: Box<[u32; 256]>,
    /// Datagrams read that have not paid for an ack yet.
    read: u32,
    notices: Notices,
    metrics: Arc<ShardMetrics>,
    sources: Sources,
    foreigners: Foreigners,
    recorder: Option<Recorder>,
    turns: Vec<Transition>,
    judged: Vec<Judged>,
    ahead: Ahead,
    verdicts: Verdicts,
    blind: bool,
}

impl ShardCore {
    /// A shard without hosts.
    pub fn new(
        identity: Identity,
        settings: Settings,
        metrics: Arc<ShardMetrics>,
        now: Instant,
    ) -> Self {
        let mut detector = Detector::new(settings, &identity.knobs, identity.seed, now);
        detector.publish_to(Arc::clone(&identity.live), identity.shard);
        Self {
            sources: Sources::new(identity.seed),
            foreigners: Foreigners::new(now),
            detector,
            identity,
            settings,
            nonces: BTreeMap::new(),
            watched: Watched::default(),
            nonce_count: 0,
            sweep_at: now,
            pace: Bucket::new(CHALLENGE_RATE_MAX, CHALLENGE_RATE_MAX / 10, now),
            acks: Bucket::new(ACK_RATE, ACK_BURST, now),
            renewals: Bucket::new(RENEW_RATE, RENEW_BURST, now),
            keyed: Box::new([0; 256]),
            read: 0,
            notices: Notices::default(),
            metrics,
            recorder: None,
            turns: Vec::new(),
            judged: Vec::new(),
            ahead: Ahead::default(),
            verdicts: Verdicts::default(),
            blind: false,
        }
    }

    /// Records proofs of life from now on.
    pub fn record_to(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// The hosts.
    pub fn detector(&self) -> &Detector {
        &self.detector
    }

    /// News for the policy.
    pub fn notices(&mut self) -> &mut Notices {
        &mut self.notices
    }

    /// Registers a known or expected host. Until it is heard its beats are taken to be as far apart as those
    /// of its class are meant to be: what it announced before our start is not kept.
    pub fn register(&mut self, mut known: Known, now: Instant) -> bool {
        let least = self.identity.enrolled.least(known.id);
        let rekeyed = known.generation < least;
        known.generation = known.generation.max(least);
        let slot = self.detector.register(known, now);
        if let Some(slot) = slot {
            let h = self.detector.record(slot);
            let interval = self.identity.assigned.get(h.class).0;
            if h.last_arrival().is_none() && !interval.is_zero() {
                h.gap_us = micros(interval);
            }
        }
        if rekeyed && let Some(slot) = slot {
            self.detector.rekeyed(slot);
        }
        slot.is_some()
    }

    /// Begins to listen; the time before does not count as a pause of our own.
    pub fn begin(&mut self, now: Instant) {
        self.detector.begin(now);
    }

    /// Forgets a host.
    pub fn remove(&mut self, host: HostId) -> bool {
        if let Some(slot) = self.detector.slot(host) {
            self.nonces.remove(&slot);
            self.watched.forget(slot);
            let h = self.detector.record(slot);
            if h.is(KEYED) && h.id != CANARY {
                let n = &mut self.keyed[usize::from(h.key_id.0)];
                *n = n.saturating_sub(1);
            }
        }
        self.notices.forget(host);
        self.detector.remove(host)
    }

    /// Keeps a host's margin there, or lets it learn; nothing if it is not registered (any more).
    pub fn freeze(&mut self, host: HostId, margin: Option<Duration>) {
        if let Some(slot) = self.detector.slot(host) {
            self.detector.freeze(slot, margin);
        }
    }

    /// From now on no key of a host below this generation is believed.
    pub fn raise(&mut self, host: HostId, least: Generation) {
        let Some(slot) = self.detector.slot(host) else { return };
        if self.detector.record(slot).generation < least {
            self.detector.record(slot).generation = least;
            self.detector.rekeyed(slot);
        }
    }

    /// An operator says that of two machines under one identity one is left.
    pub fn single_out(&mut self, host: HostId, now: Instant) {
        if let Some(slot) = self.detector.slot(host) {
            self.detector.single_out(slot, now);
        }
    }

    /// Takes other fleet secrets.
    pub fn set_keyring(&mut self, keyring: Keyring) {
        self.identity.keyring = keyring;
        // They were of keys that may be believed no more.
        self.verdicts = Verdicts::default();
    }

    /// How many hosts used which key last, by key id.
    pub fn keyed(&self) -> &[u32; 256] {
        &self.keyed
    }

    /// What is known of a host right now, for people.
    pub fn why(&self, host: HostId, now: Instant, lag: Duration) -> Option<HostWhy> {
        let slot = self.detector.slot(host)?;
        let why = self.detector.why(slot, self.identity.shard, now, lag);
        let heard = self.detector.last_arrival(host);
        Some(HostWhy { other_version: self.foreigners.of(host, heard, now), ..why })
    }

    /// What came lately in other versions of the wire, of hosts that have not been heard in ours since.
    pub fn other_versions(&self, now: Instant) -> Vec<OtherVersion> {
        self.foreigners.summary(|host| self.detector.last_arrival(host), now)
    }

    /// Looks at a batch of datagrams before any of them is taken, so that what they need is fetched and their
    /// tags are looked at side by side.
    pub fn look_at<'a>(&mut self, batch: impl Iterator<Item = &'a [u8]> + Clone) {
        self.identity.keyring.verify_many(batch.clone(), &mut self.verdicts);
        let hosts = batch.map(|bytes| {
            let id = bytes.get(HOST_ID_OFFSET..)?.first_chunk::<16>()?;
            Some(HostId(*id))
        });
        self.detector.look_at(hosts, &mut self.ahead);
    }

    /// Takes number `i` of the batch that was looked at; see [`Self::receive`].
    #[expect(clippy::too_many_arguments, reason = "what came with a datagram; a struct renames it")]
    pub fn receive_next(
        &mut self,
        i: usize,
        bytes: &[u8],
        from: SocketAddr,
        via: Via,
        arrival: Instant,
        now: Instant,
        out: &mut Vec<Send>,
    ) {
        self.detector.look_ahead(i, &mut self.ahead);
        self.take(Some(i), bytes, from, via, arrival, now, out);
    }

    /// Takes one datagram that arrived at `arrival` by socket `via`.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        from: SocketAddr,
        via: Via,
        arrival: Instant,
        now: Instant,
        out: &mut Vec<Send>,
    ) {
        self.take(None, bytes, from, via, arrival, now, out);
    }

    /// `ahead`: the datagram's number in the batch that was looked at.
    #[expect(clippy::too_many_arguments, reason = "what came with a datagram; a struct renames it")]
    fn take(
        &mut self,
        ahead: Option<usize>,
        bytes: &[u8],
        from: SocketAddr,
        via: Via,
        arrival: Instant,
        now: Instant,
        out: &mut Vec<Send>,
    ) {
        if self.sources.is_pressed(now) && self.sources.skips(from.ip(), now) {
            return self.metrics.reject(Reject::OverBudget);
        }
        let decoded = wire::decode(bytes);
        let datagram = match &decoded {
            Ok(datagram) => datagram,
            Err(DecodeError::Version) => return self.foreign(bytes, from, now),
            Err(why) => return self.refuse(Reject::from(*why), from, now),
        };
        let Self { detector, identity, ahead: looked, verdicts, .. } = self;
        let mut found = None;
        let verdict = ahead.and_then(|i| verdicts.take(i));
        let admitted = admit(datagram, &identity.keyring, verdict, |host| {
            found = match ahead {
                Some(i) => detector.slot_ahead(i, host, looked),
                None => detector.slot(host),
            };
            found.map_or(Generation(0), |slot| detector.record(slot).generation)
        });
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(why) => return self.refuse(why, from, now),
        };
        let Some(slot) = found else {
            return self.stranger(&admitted, from, via, now, out);
        };
        self.read = (self.read + 1).min(ACK_BURST * READ_PER_ACK);
        let stamp = admitted.stamp;
        let newest = self.detector.newest(slot);
        let past = || self.detector.past(slot);
        let tolerance = self.detector.tolerance(slot);
        let proved = prove(&newest, past, stamp, arrival, self.identity.epoch, tolerance);
        let rebase = match (&datagram.message, proved) {
            (Message::ProbeReply(reply), proved) => {
                if !self.takes_nonce(slot, reply, arrival) {
                    return self.testimony(slot, stamp, reply, from, arrival);
                }
                inc(&self.metrics.probe_replies);
                proved.is_err()
            }
            (_, Ok(())) => false,
            (Message::Leave(leave), Err(_))
                if self.leaves_other(slot, leave, stamp, from, arrival) =>
            {
                return;
            }
            (_, Err((why, how))) => {
                self.metrics.reject(why);
                if why == Reject::NotRising && stamp.seq < newest.seq {
                    inc(&self.metrics.beats_late);
                }
                return self.challenge(slot, &admitted, how, from, via, now, out);
            }
        };
        let came_back = self.proof(slot, &admitted, from, via, arrival, rebase, now);
        // A host that came back is told at once to beat faster, if it said so by a beat of its own.
        let wants = came_back || admitted.datagram.header.flags & FLAG_ACK_WANTED != 0;
        if wants
            && !matches!(admitted.datagram.message, Message::ProbeReply(_) | Message::Leave(_))
            && self.may_ack(now)
        {
            let h = self.detector.record(slot);
            let (class, hello) = (h.class, h.is(HELLO_WANTED));
            bump(&self.metrics.acks, 1);
            let renew = self.asks_to_renew(&admitted, now);
            let flags = if hello { FLAG_SAY_HELLO } else { 0 } | renew;
            let watched = self.watched.is_watched(slot, now);
            out.extend(self.ack(&admitted, (class, watched), flags, from, via));
        }
    }

    /// Counts what nobody answers.
    #[inline(never)]
    fn refuse(&mut self, why: Reject, from: SocketAddr, now: Instant) {
        self.sources.failed(from.ip(), now);
        self.metrics.reject(why);
    }

    /// Takes note of a datagram of another version; see [`crate::shard::foreign`].
    // Out of the way of true beats.
    #[cold]
    #[inline(never)]
    fn foreign(&mut self, bytes: &[u8], from: SocketAddr, now: Instant) {
        let looked = Some(()).filter(|()| self.foreigners.may_look(now));
        let why = match looked.and_then(|()| wire::foreign(bytes)) {
            None => Reject::Version,
            Some(told) => {
                let known = self.detector.slot(told.host);
                let least = known.map_or_else(
                    || self.identity.enrolled.least(told.host),
                    |slot| self.detector.record(slot).generation,
                );
                let key = self.identity.keyring.host_key(told.key_id, told.host, told.generation);
                match key {
                    _ if told.generation < least => Reject::Revoked,
                    Some(key) if key.verify_foreign(&told) => {
                        self.foreigners.note(told.host, told.version, from, now);
                        Reject::OtherVersion
                    }
                    _ => Reject::Version,
                }
            }
        };
        if why != Reject::OtherVersion {
            self.sources.failed(from.ip(), now);
        }
        self.metrics.reject(why);
    }

    /// The flag that has a host fetch its next key, if its present one is not of the current secret; not of
    /// too many hosts at once.
    fn asks_to_renew(&mut self, admitted: &Admitted<'_>, now: Instant) -> u8 {
        let is_current =
            admitted.datagram.header.key_id == self.identity.keyring.current().key_id();
        if is_current || !self.renewals.take(now) { 0 } else { FLAG_RENEW }
    }

    fn may_ack(&mut self, now: Instant) -> bool {
        if self.read >= READ_PER_ACK {
            self.read -= READ_PER_ACK;
            return true;
        }
        self.acks.take(now)
    }

    /// Whether a goodbye that the life which is known did not say was said by the other of two machines.
    #[cold]
    fn leaves_other(
        &mut self,
        slot: u32,
        leave: &Leave,
        stamp: &Stamp,
        from: SocketAddr,
        arrival: Instant,
    ) -> bool {
        let Some(other) = self.detector.other_newest(slot) else { return false };
        let tolerance = self.detector.tolerance(slot);
        let proved =
            prove(&other, Past::default, stamp, arrival, self.identity.epoch, tolerance).is_ok();
        if proved {
            inc(&self.metrics.leaves);
            self.detector.hear(from, arrival);
            self.detector.leave_other(slot, leave, stamp, arrival);
        }
        proved
    }

    /// A proof of life, fresh beyond doubt. Answers whether it ended a suspicion of a host that is watched
    /// from now on.
    #[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
    fn proof(
        &mut self,
        slot: u32,
        admitted: &Admitted<'_>,
        from: SocketAddr,
        via: Via,
        arrival: Instant,
        rebase: bool,
        now: Instant,
    ) -> bool {
        let (late_ms, load) = match &admitted.datagram.message {
            Message::Beat(beat) => (beat.late_ms, Some(&beat.load)),
            Message::Hello(hello) => (hello.late_ms, None),
            _ => (0, None),
        };
        if self.sources.is_watching(now) {
            self.sources.proved(from.ip(), now);
        }
        let asked = matches!(admitted.datagram.message, Message::ProbeReply(_));
        let stamp = admitted.stamp;
        self.detector.hear(from, arrival);
        let proof = Proof { stamp, arrival, from, late_ms, load, asked, rebase };
        let mut turns = std::mem::take(&mut self.turns);
        let m = &*self.metrics;
        let mut came_back = false;
        if let Message::Leave(leave) = &admitted.datagram.message {
            inc(&m.leaves);
            self.detector.leave(slot, leave, &proof, now, &mut turns);
        } else {
            let before = self.recorder.is_some().then(|| self.detector.newest(slot));
            let observed = self.detector.observe(slot, &proof, &mut turns);
            if let (Some(recorder), Some(seen)) = (&self.recorder, before) {
                // What the detector took for its arrival: the receive stamps of two may be out of order.
                let at = self.detector.record(slot).last_arrival().unwrap_or(arrival);
                let host = admitted.datagram.header.host;
                recorder.take(host, &seen, stamp, at, m);
            }
            bump(&m.beats, 1);
            bump(&m.beats_lost, u64::from(observed.lost));
            if observed.mistake.is_some() {
                let watch = self.identity.assigned.watch();
                self.watched.came_back(slot, self.detector.len(), watch, now);
                came_back = self.watched.is_watched(slot, now);
            }
            match observed.mistake {
                Some(State::Suspect) => inc(&m.mistakes),
                Some(_) => {
                    inc(&m.mistakes);
                    inc(&m.false_downs);
                }
                None => {}
            }
            if observed.moved {
                let host = admitted.datagram.header.host;
                self.notices.push(Notice::Moved { host, address: from });
            }
        }
        let h = self.detector.record(slot);
        if let Message::Beat(beat) = &admitted.datagram.message
            && beat.round_trip.duration().is_some()
        {
            h.round_trip = beat.round_trip;
        }
        let Header { key_id, generation, .. } = admitted.datagram.header;
        if !h.is(KEYED) || h.key_id != key_id {
            // The canary is no host; its key is always made anew.
            if h.id != CANARY {
                if h.is(KEYED) {
                    let n = &mut self.keyed[usize::from(h.key_id.0)];
                    *n = n.saturating_sub(1);
                }
                self.keyed[usize::from(key_id.0)] += 1;
            }
            h.flag(KEYED, true);
        }
        (h.key_id, h.key_generation) = (key_id, generation);
        // A newer key was used: older ones are revoked from now on.
        let rekeyed = generation > h.generation;
        if rekeyed {
            h.generation = generation;
        }
        if let Via::Beats(listen) = via {
            h.listen = listen;
        }
        if rekeyed {
            self.detector.rekeyed(slot);
        }
        if let Message::Hello(hello) = &admitted.datagram.message {
            inc(&m.hellos);
            self.hello(slot, admitted, hello, from);
        }
        for turn in turns.drain(..) {
            self.notices.push(Notice::Turn(turn));
        }
        self.turns = turns;
        came_back
    }

    /// Takes what a fresh hello says.
    fn hello(&mut self, slot: u32, admitted: &Admitted<'_>, hello: &Hello<'_>, from: SocketAddr) {
        let mut hasher = std::hash::DefaultHasher::new();
        admitted.datagram.header.generation.hash(&mut hasher);
        let enrolled = Arc::clone(&self.identity.enrolled);
        let host = admitted.datagram.header.host;
        enrolled.mark(host).hash(&mut hasher);
        for field in hello.fields() {
            match field {
                Field::Name(t) => (1, t, "").hash(&mut hasher),
                Field::AgentVersion(t) => (2, t, "").hash(&mut hasher),
                Field::Os(t) => (3, t, "").hash(&mut hasher),
                Field::Label(k, v) => (4, k, v).hash(&mut hasher),
                Field::Maintenance(seconds, why) => (5, seconds, why).hash(&mut hasher),
            }
        }
        let hash = hasher.finish();
        let h = self.detector.record(slot);
        h.flag(HELLO_WANTED, false);
        if h.facts_hash != hash {
            h.facts_hash = hash;
            let live = self.detector.live_of(slot);
            let mut facts = facts(admitted, hello, from, false, live);
            enrolled.label(host, &mut facts.labels);
            let domain = self.identity.domains.domain(&facts.labels);
            self.detector.record(slot).domain = domain;
            self.detector.set_profile(slot, self.identity.knobs.profile(&facts.labels));
            self.notices.push(Notice::Facts(Box::new(facts)));
        }
    }

    /// An authenticated datagram of a host that is not registered: a hello registers it, as pending;
    /// anything else is asked to say hello. Neither proves life yet.
    fn stranger(
        &mut self,
        admitted: &Admitted<'_>,
        from: SocketAddr,
        via: Via,
        now: Instant,
        out: &mut Vec<Send>,
    ) {
        let host = admitted.datagram.header.host;
        if admitted.datagram.header.generation < self.identity.enrolled.least(host) {
            return self.metrics.reject(Reject::Revoked);
        }
        if !self.notices.takes_strangers() || !self.pace.take(now) {
            return self.metrics.reject(Reject::UnknownHost);
        }
        let Message::Hello(hello) = &admitted.datagram.message else {
            self.metrics.reject(Reject::UnknownHost);
            if !matches!(admitted.datagram.message, Message::ProbeReply(_)) {
                let flags = FLAG_SAY_HELLO | FLAG_CHALLENGE;
                out.extend(self.ack(admitted, (0, false), flags, from, via));
            }
            return;
        };
        let live = self.identity.live.take(self.identity.shard);
        let mut facts = facts(admitted, hello, from, true, live);
        self.identity.enrolled.label(host, &mut facts.labels);
        let known = Known {
            id: host,
            state: State::Pending,
            boot: Default::default(),
            generation: self.identity.enrolled.least(host),
            address: None,
            in_state: Duration::ZERO,
            missing_reported: false,
            duplicate: false,
            agent_lost: false,
            profile: self.identity.knobs.profile(&facts.labels),
            frozen: None,
            back_in: None,
            domain: self.identity.domains.domain(&facts.labels),
            live,
        };
        let Some(slot) = self.detector.register(known, now) else {
            return self.metrics.reject(Reject::Full);
        };
        facts.live = self.detector.live_of(slot);
        self.notices.push(Notice::Facts(Box::new(facts)));
        self.challenge(slot, admitted, Challenge::Epoch, from, via, now, out);
    }

    /// Asks an authenticated sender for proof of life.
    #[expect(clippy::too_many_arguments, reason = "two call sites that hold all of these")]
    fn challenge(
        &mut self,
        slot: u32,
        admitted: &Admitted<'_>,
        how: Challenge,
        from: SocketAddr,
        via: Via,
        now: Instant,
        out: &mut Vec<Send>,
    ) {
        let h = self.detector.record(slot);
        let next = match how {
            Challenge::Epoch => h.challenge_next,
            Challenge::Nonce => h.nonce_next,
        };
        if !next.is_over(now) {
            return;
        }
        self.detector.await_proof(slot, admitted.stamp.gap, now);
        if !self.pace.take(now) {
            return;
        }
        let h = self.detector.record(slot);
        inc(&self.metrics.challenges);
        match how {
            Challenge::Epoch => {
                h.challenge_next = Coarse::at_least(now + EPOCH_CHALLENGE_EVERY);
                // Time for the next beat to come, twice over, and then some for the way.
                let gap = admitted.stamp.gap.min(self.settings.gap_max);
                h.challenged_until = Coarse::at_least(now + gap * 2 + Duration::from_secs(5));
                let is_hello = matches!(admitted.datagram.message, Message::Hello(_));
                let hello = if h.is(HELLO_WANTED) || is_hello { FLAG_SAY_HELLO } else { 0 };
                let class = h.class;
                out.extend(self.ack(admitted, (class, false), FLAG_CHALLENGE | hello, from, via));
            }
            Challenge::Nonce => {
                h.nonce_next = Coarse::at_least(now + NONCE_CHALLENGE_EVERY);
                let boot = h.boot;
                let nonce = self.nonce(slot);
                if now >= self.sweep_at {
                    self.sweep_at = now + NONCE_LIFE;
                    self.nonces.retain(|_, (_, until)| *until >= now);
                }
                if self.nonces.len() < NONCES_MAX {
                    self.nonces.insert(slot, (nonce, now + NONCE_LIFE));
                    self.detector.hear_out(slot, now);
                    let header = Header { flags: 0, ..admitted.datagram.header };
                    let probe = Probe {
                        boot,
                        number: 0,
                        controller: self.identity.controller,
                        epoch: self.identity.epoch,
                        nonce,
                    };
                    let key = admitted.key(&self.identity.keyring);
                    let bytes = key.map(|key| Packet::answer(probe.encode(&header), &key));
                    out.extend(bytes.map(|bytes| Send { to: from, via, bytes }));
                }
            }
        }
    }

    /// A nonce that nobody can foresee and that no other challenge of this run has.
    fn nonce(&mut self, slot: u32) -> [u8; 16] {
        self.nonce_count += 1;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.identity.seed.to_be_bytes());
        hasher.update(&self.nonce_count.to_be_bytes());
        hasher.update(&slot.to_be_bytes());
        let mut nonce = [0; 16];
        let drawn = &mut nonce[..CHALLENGE_NONCE_LEN];
        drawn.copy_from_slice(&hasher.finalize().as_bytes()[..CHALLENGE_NONCE_LEN]);
        nonce
    }

    /// Whether a reply answers a nonce of ours: a suspect's, or a challenge's (good once).
    fn takes_nonce(&mut self, slot: u32, reply: &ProbeReply, arrival: Instant) -> bool {
        if self.detector.answers_probe(slot, &reply.nonce, arrival) {
            return true;
        }
        let good = self
            .nonces
            .get(&slot)
            .is_some_and(|(nonce, until)| *nonce == reply.nonce && arrival <= *until);
        if good {
            self.nonces.remove(&slot);
        }
        good
    }

    /// An answer of a suspect that answers none of our own probes: a peer that was asked brought it back,
    /// or it is a recording. It proves nothing but that the host lives: its number and address, and what
    /// else it says, are left alone.
    fn testimony(
        &mut self,
        slot: u32,
        stamp: &Stamp,
        reply: &ProbeReply,
        from: SocketAddr,
        arrival: Instant,
    ) {
        if stamp.epoch == self.identity.epoch && self.detector.testify(slot, &reply.nonce) {
            self.detector.hear(from, arrival);
            inc(&self.metrics.testimonies);
        } else {
            self.metrics.reject(Reject::UnaskedReply);
        }
    }

    /// An ack for a host of that class, watched or not. `None` only where [`Admitted::key`] says so.
    fn ack(
        &self,
        admitted: &Admitted<'_>,
        (class, watched): (u8, bool),
        flags: u8,
        to: SocketAddr,
        via: Via,
    ) -> Option<Send> {
        let stamp: &Stamp = admitted.stamp;
        let assigned = &self.identity.assigned;
        let (interval, cadence) = assigned.get(class);
        let interval = if watched { assigned.watch().hasten(interval) } else { interval };
        let cadence = cadence.max(self.least_cadence(admitted, interval));
        let ack = Ack {
            boot: stamp.boot,
            seq: stamp.seq,
            echoed_sent: stamp.sent,
            interval,
            epoch: self.identity.epoch,
            controller: self.identity.controller,
            cadence,
            lease: Duration::ZERO,
        };
        let full = ack.encode(&Header { flags, ..admitted.datagram.header });
        let key = admitted.key(&self.identity.keyring)?;
        Some(Send { to, via, bytes: Packet::answer(full, &key) })
    }

    /// For how many beats a host shall want one ack at the most, if all of the shard beat as often as it:
    /// by the interval that it is told; else by its own, which a hello tells, and a beat's gap. A hello's gap
    /// is the time to its first beat, and may be next to nothing.
    fn least_cadence(&self, admitted: &Admitted<'_>, told: Duration) -> u16 {
        let own = match &admitted.datagram.message {
            Message::Hello(hello) => hello.interval,
            Message::Beat(beat) => beat.stamp.gap,
            _ => Duration::ZERO,
        };
        let interval = if told.is_zero() { own } else { told };
        if interval.is_zero() {
            return 0;
        }
        let beats_per_s = self.detector.len() as u64 * 1_000 / interval.as_millis().max(1) as u64;
        (beats_per_s / u64::from(ACK_RATE)).min(CADENCE_MAX) as u16
    }

    /// The network says that nobody listens where a datagram of ours went; `quoted` is that datagram.
    pub fn unreachable(&mut self, quoted: &[u8], now: Instant) {
        let Ok(datagram) = wire::decode(quoted) else { return };
        let Message::Probe(probe) = datagram.message else { return };
        let Some(slot) = self.detector.slot(datagram.header.host) else { return };
        if self.detector.unreachable(slot, &probe.nonce, now) {
            inc(&self.metrics.unreachables);
        }
    }

    /// Takes note of how time went by while the shell waited; to be called before any mail is read.
    pub fn wake(&mut self, now: Instant, waking: &Waking) {
        self.detector.wake(now, waking);
    }

    /// Says which addresses are this machine's own.
    pub fn set_local(&mut self, addresses: Vec<IpAddr>) {
        self.detector.set_local(addresses);
    }

    /// Says whether more waits in the sockets than one pass reads.
    pub fn press(&mut self, behind: bool) {
        self.sources.press(behind);
    }

    /// Records what a pass over the sockets received and what the kernel dropped, as of the watermark
    /// `seen`.
    pub fn heard(&mut self, now: Instant, seen: Instant, received: u64, dropped: u64) {
        self.detector.heard(now, seen, received, dropped);
        add(&self.metrics.dropped, dropped);
        let doubt = self.detector.doubt();
        set(&self.metrics.drop_ppm, doubt.drop_ppm());
        for why in DoubtReason::ALL {
            self.metrics.doubts.set(why, doubt.since(why), now);
        }
    }

    /// Judges what is due, and answers whether more may be; see [`Detector::judge`].
    pub fn judge(
        &mut self,
        seen: Instant,
        seen_probes: Instant,
        now: Instant,
        out: &mut Vec<Send>,
    ) -> bool {
        let mut judged = std::mem::take(&mut self.judged);
        let more = self.detector.judge(seen, seen_probes, now, &mut judged);
        for one in judged.drain(..) {
            match one {
                Judged::Turn(turn) => self.count(&turn),
                Judged::Excused => inc(&self.metrics.excused),
                Judged::Probe { host, to, boot, number, nonce } => {
                    let Some((bytes, listen)) = self.probe_for(host, boot, number, nonce) else {
                        continue;
                    };
                    inc(&self.metrics.probes);
                    // By the beats' own way, which is known to pass any address translation, and by a
                    // socket of its own, whose buffer no flood of beats fills and which hears ICMP.
                    let bytes = Packet::Fixed(bytes);
                    out.push(Send { to, via: Via::Beats(listen), bytes: bytes.clone() });
                    out.push(Send { to, via: Via::Probes, bytes });
                }
                Judged::Ask { peer, peer_at, host, to, boot, number, nonce } => {
                    let Some((probe, _)) = self.probe_for(host, boot, number, nonce) else {
                        continue;
                    };
                    let Some((key, listen)) = self.key_of(peer) else { continue };
                    let via = ProbeVia {
                        number: u32::from(number),
                        controller: self.identity.controller,
                        epoch: self.identity.epoch,
                        to,
                        probe: &probe,
                    };
                    let mut bytes = Box::new(via.encode(&header_of(peer, &key)));
                    key.seal(&mut bytes[..]);
                    inc(&self.metrics.vias);
                    // By the peer's beats' own way alone: that one is known to pass, and the answer comes
                    // back by it.
                    let bytes = Packet::Via(bytes);
                    out.push(Send { to: peer_at, via: Via::Beats(listen), bytes });
                }
            }
        }
        self.judged = judged;
        let blind = self.detector.doubt().is_blind();
        if blind != self.blind {
            self.blind = blind;
            self.metrics.blind.store(blind, std::sync::atomic::Ordering::Relaxed);
            self.notices.push(Notice::Blind { shard: self.identity.shard, blind });
        }
        set(&self.metrics.hosts, self.detector.len() as u64);
        set(&self.metrics.probing, self.detector.probing() as u64);
        set(&self.metrics.unreachable_hosts, self.detector.unreachable_len() as u64);
        set(&self.metrics.outbox_len, self.notices.len() as u64);
        for (gauge, n) in self.metrics.class_hosts.iter().zip(self.detector.classes()) {
            set(gauge, *n);
        }
        more
    }

    /// A sealed probe for a host, and the beat socket by which that host is reached.
    fn probe_for(
        &mut self,
        host: HostId,
        boot: Boot,
        number: u16,
        nonce: [u8; 16],
    ) -> Option<(Fixed, u8)> {
        let (key, listen) = self.key_of(host)?;
        let probe = Probe {
            boot,
            number: u32::from(number),
            controller: self.identity.controller,
            epoch: self.identity.epoch,
            nonce,
        };
        let mut bytes = probe.encode(&header_of(host, &key));
        key.seal(&mut bytes);
        Some((bytes, listen))
    }

    /// The key that a host used last; if it has not been heard since the start, or that secret is gone,
    /// its key under the current one. And the beat socket that it used last.
    fn key_of(&mut self, host: HostId) -> Option<(HostKey, u8)> {
        let slot = self.detector.slot(host)?;
        let h = self.detector.record(slot);
        let (listen, least, used) = (h.listen, h.generation, h.key());
        let ring = &self.identity.keyring;
        let key = used
            .and_then(|(id, generation)| ring.host_key(id, host, generation))
            .unwrap_or_else(|| ring.current().host_key(host, least));
        Some((key, listen))
    }

    fn count(&mut self, turn: &Transition) {
        match turn.turn {
            Turn::Suspect => inc(&self.metrics.suspects),
            Turn::Down(_) => {
                inc(&self.metrics.downs);
                // Of one not heard since our start, or without an agent, nobody knows when it fell silent.
                // Of two machines the one that is missed may have been silent while the other beat.
                let known = !turn.evidence.unheard && !turn.evidence.agent_lost;
                if known && !turn.duplicate {
                    self.metrics.detected(turn.evidence.silence_ms.saturating_mul(1_000));
                }
            }
            _ => {}
        }
        self.notices.push(Notice::Turn(*turn));
    }

    /// When judging has something to do next.
    pub fn next_due(&self) -> Option<Instant> {
        self.detector.next_due()
    }
}

fn header_of(host: HostId, key: &HostKey) -> Header {
    Header { host, key_id: key.key_id(), generation: key.generation(), flags: 0 }
}

fn facts(
    admitted: &Admitted<'_>,
    hello: &Hello<'_>,
    from: SocketAddr,
    new: bool,
    live: LiveId,
) -> Facts {
    let mut facts = Facts {
        host: admitted.datagram.header.host,
        name: String::new(),
        labels: BTreeMap::new(),
        os: String::new(),
        agent_version: String::new(),
        address: from,
        boot: admitted.stamp.boot,
        generation: admitted.datagram.header.generation,
        maintenance: None,
        new,
        live,
    };
    for field in hello.fields() {
        match field {
            Field::Name(t) => facts.name = t.to_owned(),
            Field::AgentVersion(t) => facts.agent_version = t.to_owned(),
            Field::Os(t) => facts.os = t.to_owned(),
            Field::Label(k, v) if facts.labels.len() < LABELS_MAX => {
                facts.labels.insert(k.to_owned(), v.to_owned());
            }
            Field::Label(..) => {}
            Field::Maintenance(seconds, why) => {
                // For people, in one line.
                let why = why.chars().filter(|c| !c.is_control()).collect();
                facts.maintenance = Some((Duration::from_secs(seconds.into()), why));
            }
        }
    }
    facts
}

#[cfg(test)]
mod tests;
