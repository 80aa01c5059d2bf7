//! The thread around a shard: drain the sockets, find the watermark, judge, tell; then wait.
//!
//! # Time
//!
//! [`crate::shard::watch`] says what arrivals and watermarks are. Nobody is judged beyond the watermark,
//! so a process that was stopped for a minute reads its mail first, and one that is never idle still
//! judges.
//!
//! # Bounds
//!
//! A pass drains at most `BATCHES_MAX` batches per socket, takes at most `COMMANDS_PER_PASS`
//! commands and hands on what the policy's queue takes; the rest waits, merged per host.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::Duration;

use heartwatch_common::auth::Keyring;
use heartwatch_common::daemon::Throttle;
use heartwatch_common::id::{Generation, HostId};
use heartwatch_common::time::{Clock, Instant};
use heartwatch_common::wire::HOST_ID_OFFSET;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use tokio::sync::mpsc::error::TrySendError as NoticeError;
use tokio::sync::oneshot;

use crate::control::HostWhy;
use crate::detector::doubt::Waking;
use crate::detector::host::Known;
use crate::ingest::socket::{BATCH_LEN, BatchSocket};
use crate::metrics::{Reject, ShardMetrics, add, bump, get, inc, set};
use crate::shard::core::{Packet, Send, ShardCore, Via};
use crate::shard::foreign::OtherVersion;
use crate::shard::notices::Notice;
use crate::shard::rest::{Left, Rest, Rests};
use crate::shard::route::shard_of;
use crate::shard::watch::{Away, SLACK_MIN, Watch};

/// Batches drained from one socket before judging.
const BATCHES_MAX: usize = 16;
/// Commands that wait for a shard.
pub const COMMANDS_MAX: usize = 4_096;
/// Commands taken in one pass.
const COMMANDS_PER_PASS: usize = 256;

/// What a shard may be asked.
#[derive(Debug)]
pub enum Command {
    /// Register these.
    Register(Vec<Known>),
    /// Forget this host.
    Remove(HostId),
    /// Believe no key of a host below this generation.
    Least(HostId, Generation),
    /// These are the fleet secrets from now on.
    Keyring(Arc<Keyring>),
    /// Tell how many hosts used which key last, by key id.
    Keys(oneshot::Sender<Box<[u32; 256]>>),
    /// Keep a host's margin there, or let it learn.
    Freeze(HostId, Option<Duration>),
    /// Of two machines under this identity one is left.
    Single(HostId),
    /// Tell what came in other versions of the wire.
    OtherVersions(oneshot::Sender<Vec<OtherVersion>>),
    /// Tell what is known of a host.
    Why(HostId, oneshot::Sender<Option<HostWhy>>),
    /// A datagram of yours that came to another shard.
    Datagram {
        /// Its bytes.
        bytes: Box<[u8]>,
        /// Where it came from.
        from: SocketAddr,
        /// When.
        arrival: Instant,
        /// By which of the shards' beat sockets.
        listen: u8,
    },
    /// These addresses are this machine's own.
    Local(Vec<IpAddr>),
    /// Stop.
    Stop,
}

/// How to reach a shard.
#[derive(Clone, Debug)]
pub struct ShardHandle {
    commands: SyncSender<Command>,
    wake: Arc<EventFd>,
    /// Its counters.
    pub metrics: Arc<ShardMetrics>,
}

impl ShardHandle {
    /// A handle and what its worker needs.
    pub fn new(metrics: Arc<ShardMetrics>) -> std::io::Result<(Self, Mailbox)> {
        let (commands, inbox) = std::sync::mpsc::sync_channel(COMMANDS_MAX);
        let flags =
            nix::sys::eventfd::EfdFlags::EFD_NONBLOCK | nix::sys::eventfd::EfdFlags::EFD_CLOEXEC;
        let wake = Arc::new(EventFd::from_flags(flags)?);
        let mailbox = Mailbox { inbox, wake: Arc::clone(&wake) };
        Ok((Self { commands, wake, metrics }, mailbox))
    }

    /// Puts a command into the shard's queue; hands it back if the queue is full or the shard gone.
    pub fn send(&self, command: Command) -> Result<(), Command> {
        self.commands.try_send(command).map_err(|e| match e {
            TrySendError::Full(c) | TrySendError::Disconnected(c) => c,
        })?;
        // The counter can only be full if it was rung 2⁶⁴ times unread: it is awake then.
        if let Err(e) = self.wake.write(1) {
            log::debug!("cannot ring a shard: {e}");
        }
        Ok(())
    }
}

/// A shard's end of its handle.
#[derive(Debug)]
pub struct Mailbox {
    inbox: Receiver<Command>,
    wake: Arc<EventFd>,
}

/// The thread around a shard.
pub struct Worker {
    /// Its number and how many there are.
    pub shard: u16,
    /// All shards, this one included: for datagrams that belong elsewhere.
    pub peers: Vec<ShardHandle>,
    /// The value that decides.
    pub core: ShardCore,
    /// One beat socket per listen address.
    pub beats: Vec<BatchSocket>,
    /// The probe socket.
    pub probes: BatchSocket,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// Commands.
    pub mailbox: Mailbox,
    /// To the policy.
    pub notices: tokio::sync::mpsc::Sender<Notice>,
    /// Its counters.
    pub metrics: Arc<ShardMetrics>,
}

impl Worker {
    /// Works until told to stop, or until the policy is gone.
    pub fn run(mut self) {
        let now = self.clock.now();
        let mut watches: Vec<Watch> = self.beats.iter().map(|_| Watch::new(now)).collect();
        let mut probe_watch = Watch::new(now);
        let mut sends = Vec::new();
        let mut carried: Option<Notice> = None;
        let complaint = Throttle::new(Duration::from_secs(10));
        let granted = self.beats.iter().filter_map(|s| s.receive_buffer().ok()).min();
        set(&self.metrics.receive_buffer_bytes, granted.unwrap_or(0) as u64);
        let mut clocks = Clocks::read(&*self.clock);
        let mut asked = Duration::ZERO;
        let (mut rests, mut away) = (Rests::new(clocks.now), Away::new(clocks.now));
        loop {
            // Before any mail is read: how was the time since the last pass?
            let before = std::mem::replace(&mut clocks, Clocks::read(&*self.clock));
            self.core.wake(clocks.now, &clocks.since(&before, asked));
            asked = Duration::ZERO;
            let obeyed = self.obey();
            if obeyed == Obeyed::Stop {
                self.read_the_last_mail(&mut watches, &mut probe_watch, &complaint);
                return self.tell_the_rest(carried);
            }
            let longest = away.ends(self.clock.now());
            set(&self.metrics.longest_pass_us, longest.as_micros() as u64);
            let (mut received, mut dropped, mut busy) = (0, 0, false);
            for (i, watch) in watches.iter_mut().enumerate() {
                let via = Via::Beats(i as u8);
                let (n, more) = self.drain(via, watch, &mut sends, &complaint);
                busy |= more;
                received += n as u64;
            }
            away.begins(self.clock.now());
            let (n, more) = self.drain(Via::Probes, &mut probe_watch, &mut sends, &complaint);
            busy |= more;
            received += n as u64;
            self.core.press(busy);
            self.hear_unreachables();
            self.flush(&mut sends);

            // Between draining and judging: what the kernel had to drop.
            for (socket, watch) in
                self.beats.iter().zip(&mut watches).chain([(&self.probes, &mut probe_watch)])
            {
                let drops = socket.drops().unwrap_or(watch.drops);
                // The counter is 32 bits wide and wraps.
                dropped += u64::from((drops as u32).wrapping_sub(watch.drops as u32));
                watch.drops = drops;
            }
            let now = self.clock.now();
            let seen = watches.iter_mut().map(Watch::advance).min().unwrap_or(now).min(now);
            self.core.heard(now, seen, received, dropped);
            let seen_probes = probe_watch.advance().min(now);
            let more = self.core.judge(seen, seen_probes, now, &mut sends);
            self.flush(&mut sends);
            set(&self.metrics.lag_us, now.since(seen).as_micros() as u64);
            inc(&self.metrics.loops);
            rests.read(received, now);

            let full = match self.tell(&mut carried) {
                Ok(full) => full,
                Err(Gone) => return,
            };
            let left = Left {
                datagrams: busy,
                commands: obeyed == Obeyed::More,
                verdicts: more,
                notices: full,
            };
            let due = || {
                // The watermark lags behind now by the slack: it must pass the deadline.
                let slack = watches.iter().map(Watch::slack).max().unwrap_or(SLACK_MIN);
                self.core.next_due().map(|at| (at + slack).since(now))
            };
            match rests.after(left, due) {
                Rest::Go => {}
                Rest::Nap(span) => {
                    asked = span;
                    std::thread::park_timeout(span);
                    rests.found(self.fill());
                }
                Rest::Wait(span) => {
                    asked = span;
                    let begun = self.clock.now();
                    self.wait(span);
                    away.waited(begun, span, self.clock.now());
                }
            }
        }
    }

    /// Takes commands.
    fn obey(&mut self) -> Obeyed {
        // Nothing to read is the usual case.
        self.mailbox.wake.read().unwrap_or(0);
        for _ in 0..COMMANDS_PER_PASS {
            let Ok(command) = self.mailbox.inbox.try_recv() else { return Obeyed::All };
            let now = self.clock.now();
            match command {
                Command::Register(hosts) => {
                    for known in hosts {
                        if !self.core.register(known, now) {
                            self.metrics.reject(Reject::Full);
                        }
                    }
                }
                Command::Remove(host) => {
                    self.core.remove(host);
                }
                Command::Freeze(host, margin) => self.core.freeze(host, margin),
                Command::Single(host) => self.core.single_out(host, now),
                Command::Least(host, least) => self.core.raise(host, least),
                Command::Keyring(ring) => self.core.set_keyring(Keyring::clone(&ring)),
                // The asker may have given up; nothing is lost then.
                Command::Keys(answer) => drop(answer.send(Box::new(*self.core.keyed()))),
                // The asker may have given up; nothing is lost then.
                Command::OtherVersions(answer) => drop(answer.send(self.core.other_versions(now))),
                Command::Why(host, answer) => {
                    let lag = Duration::from_micros(get(&self.metrics.lag_us));
                    // The asker may have given up; nothing is lost then.
                    drop(answer.send(self.core.why(host, now, lag)));
                }
                Command::Datagram { bytes, from, arrival, listen } => {
                    let mut sends = Vec::new();
                    let via = Via::Beats(listen);
                    self.core.receive(&bytes, from, via, arrival, now, &mut sends);
                    self.flush(&mut sends);
                }
                Command::Local(addresses) => self.core.set_local(addresses),
                Command::Stop => return Obeyed::Stop,
            }
        }
        Obeyed::More
    }

    /// Reads what a socket holds, at most `BATCHES_MAX` batches. Answers how many datagrams, and whether
    /// there may be more.
    fn drain(
        &mut self,
        via: Via,
        watch: &mut Watch,
        sends: &mut Vec<Send>,
        complaint: &Throttle,
    ) -> (usize, bool) {
        let mut total = 0;
        for _ in 0..BATCHES_MAX {
            let before = self.clock.now();
            let socket = match via {
                Via::Beats(i) => &mut self.beats[usize::from(i)],
                Via::Probes => &mut self.probes,
            };
            let n = match socket.receive() {
                Ok(n) => n,
                Err(e) => {
                    // A pending ICMP error shows here once and is read from the error queue.
                    if let Some(more) = complaint.pass(before)
                        && e.raw_os_error() != Some(libc::ECONNREFUSED)
                    {
                        log::warn!("cannot receive: {e} ({more} more like this)");
                    }
                    // Telling it has cleared it: what lies in the socket must still be read.
                    continue;
                }
            };
            let drained = socket.is_drained();
            for from in (0..n).step_by(BATCH_LEN) {
                self.take(via, from..n.min(from + BATCH_LEN), watch, sends);
            }
            bump(&self.metrics.received, n as u64);
            total += n;
            if drained {
                watch.found_empty(before);
                return (total, false);
            }
            if total >= BATCHES_MAX * BATCH_LEN {
                break;
            }
        }
        (total, true)
    }

    /// Takes a part of the batch that was received last.
    fn take(&mut self, via: Via, part: Range<usize>, watch: &mut Watch, sends: &mut Vec<Send>) {
        let Self { core, beats, probes, .. } = self;
        let socket = match via {
            Via::Beats(i) => &beats[usize::from(i)],
            Via::Probes => probes,
        };
        let (now, wall_ns) = (self.clock.now(), self.clock.wall_ns());
        let shards = self.peers.len() as u16;
        core.look_at(part.clone().map(|i| socket.bytes(i)));
        let mut bytes = 0;
        for (place, i) in part.enumerate() {
            let Some(got) = socket.get(i) else { continue };
            bytes += got.bytes.len();
            let arrival = watch.arrival(got.stamp_ns, wall_ns, now);
            if let Some((owner, listen)) = elsewhere(got.bytes, via, self.shard, shards) {
                self.metrics.reject(Reject::OtherShard);
                let bytes = Box::from(got.bytes);
                let command = Command::Datagram { bytes, from: got.from, arrival, listen };
                if self.peers[usize::from(owner)].send(command).is_err() {
                    inc(&self.metrics.dropped);
                }
                continue;
            }
            core.receive_next(place, got.bytes, got.from, via, arrival, now, sends);
        }
        bump(&self.metrics.received_bytes, bytes as u64);
    }

    /// Before the end: a goodbye that lies in a socket must not be lost, or its host is called down after
    /// the restart. Nobody is judged any more.
    fn read_the_last_mail(
        &mut self,
        watches: &mut [Watch],
        probe_watch: &mut Watch,
        complaint: &Throttle,
    ) {
        let mut sends = Vec::new();
        for (i, watch) in watches.iter_mut().enumerate() {
            self.drain(Via::Beats(i as u8), watch, &mut sends, complaint);
        }
        self.drain(Via::Probes, probe_watch, &mut sends, complaint);
        self.flush(&mut sends);
    }

    fn hear_unreachables(&mut self) {
        let mut room = [0; 128];
        for _ in 0..BATCHES_MAX * BATCH_LEN {
            match self.probes.unreachable(&mut room) {
                Ok(Some((quoted, _))) => self.core.unreachable(quoted, self.clock.now()),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn flush(&mut self, sends: &mut Vec<Send>) {
        if sends.is_empty() {
            return;
        }
        let mut batch: Vec<(SocketAddr, &Packet)> = Vec::with_capacity(sends.len());
        let mut failed = 0;
        for i in 0..self.beats.len() {
            batch.clear();
            let mine = |s: &&Send| s.via == Via::Beats(i as u8);
            batch.extend(sends.iter().filter(mine).map(|s| (s.to, &s.bytes)));
            failed += self.beats[i].send(&batch);
        }
        batch.clear();
        let probes = sends.iter().filter(|s| s.via == Via::Probes);
        batch.extend(probes.map(|s| (s.to, &s.bytes)));
        failed += self.probes.send(&batch);
        add(&self.metrics.send_errors, failed as u64);
        sends.clear();
    }

    /// Hands news to the policy. `Ok(true)`: its queue is full.
    fn tell(&mut self, carried: &mut Option<Notice>) -> Result<bool, Gone> {
        while let Some(notice) = carried.take().or_else(|| self.core.notices().pop()) {
            match self.notices.try_send(notice) {
                Ok(()) => {}
                Err(NoticeError::Full(notice)) => {
                    *carried = Some(notice);
                    return Ok(true);
                }
                Err(NoticeError::Closed(_)) => return Err(Gone),
            }
        }
        Ok(false)
    }

    /// Hands on all that is left, waiting for room, until the policy takes no more.
    fn tell_the_rest(&mut self, mut carried: Option<Notice>) {
        self.core.notices().goodbyes_first();
        while let Some(notice) = carried.take().or_else(|| self.core.notices().pop()) {
            if self.notices.blocking_send(notice).is_err() {
                let (shard, hosts) = (self.shard, self.core.notices().len());
                return log::warn!(
                    "shard {shard}: for news of {hosts} hosts there was no time left; they are judged anew \
                     after the start"
                );
            }
        }
    }

    /// How full the fullest of its beat sockets is, as a share of its buffer; 1 if that can't be told.
    fn fill(&self) -> f64 {
        self.beats.iter().map(|s| s.fill().unwrap_or(1.0)).fold(0.0, f64::max)
    }

    fn wait(&self, span: Duration) {
        let mut fds: Vec<PollFd<'_>> = self
            .beats
            .iter()
            .chain([&self.probes])
            .map(|s| PollFd::new(s.as_fd(), PollFlags::POLLIN))
            .collect();
        fds.push(PollFd::new(self.mailbox.wake.as_fd(), PollFlags::POLLIN));
        let ms = u16::try_from(span.as_micros().div_ceil(1_000)).unwrap_or(u16::MAX);
        // An interrupted wait is a short wait.
        poll(&mut fds, PollTimeout::from(ms)).unwrap_or(0);
    }
}

/// All clocks at one moment.
struct Clocks {
    now: Instant,
    boottime: Instant,
    wall_ns: i64,
}

impl Clocks {
    fn read(clock: &dyn Clock) -> Self {
        Self { now: clock.now(), boottime: clock.boottime(), wall_ns: clock.wall_ns() }
    }

    /// How time went by since `before`.
    fn since(&self, before: &Self, asked: Duration) -> Waking {
        let boottime = self.boottime.since(before.boottime);
        let wall_ns = i128::from(self.wall_ns) - i128::from(before.wall_ns);
        let step_ms = (wall_ns - boottime.as_nanos() as i128) / 1_000_000;
        Waking {
            asked,
            suspended: boottime.saturating_sub(self.now.since(before.now)),
            wall_step_ms: i64::try_from(step_ms).unwrap_or(i64::MAX),
        }
    }
}

/// What taking commands came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obeyed {
    /// None is left.
    All,
    /// As many as a pass takes: more may wait.
    More,
    /// The last one was to stop.
    Stop,
}

/// The policy's end of the channel is closed.
struct Gone;

/// The shard to which a datagram belongs, if it is not this one.
fn elsewhere(bytes: &[u8], via: Via, shard: u16, shards: u16) -> Option<(u16, u8)> {
    let Via::Beats(listen) = via else { return None };
    if shards < 2 {
        return None;
    }
    let id = bytes.get(HOST_ID_OFFSET..HOST_ID_OFFSET + 16)?;
    let owner = shard_of(HostId(id.try_into().ok()?), shards);
    (owner != shard).then_some((owner, listen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    use heartwatch_common::auth::{FleetSecret, Keyring};
    use heartwatch_common::id::{ControllerId, Epoch, KeyId};
    use heartwatch_common::time::SystemClock;

    use crate::config::RawConfig;
    use crate::detector::Settings;
    use crate::ingest::socket::Role;
    use crate::intervals::Assigned;
    use crate::shard::core::Identity;

    fn worker() -> Worker {
        let clock = Arc::new(SystemClock);
        let metrics = Arc::new(ShardMetrics::default());
        let (handle, mailbox) = ShardHandle::new(Arc::clone(&metrics)).unwrap();
        let config = RawConfig::default().check().unwrap();
        let identity = Identity {
            shard: 0,
            controller: ControllerId(1),
            epoch: Epoch(1),
            keyring: Keyring::new(vec![FleetSecret::new(KeyId(1), [9; 32])]).unwrap(),
            enrolled: Arc::default(),
            assigned: Arc::new(Assigned::fixed(Duration::ZERO, 10)),
            knobs: Arc::new(config.knobs),
            domains: config.domain_labels,
            live: Arc::default(),
            seed: 1,
        };
        let settings = Settings::new(&config.detector);
        let core = ShardCore::new(identity, settings, Arc::clone(&metrics), clock.now());
        let any = "127.0.0.1:0".parse().unwrap();
        Worker {
            shard: 0,
            peers: vec![handle],
            core,
            beats: vec![BatchSocket::bind(any, Role::Beats).unwrap()],
            probes: BatchSocket::bind(any, Role::Probes).unwrap(),
            clock,
            mailbox,
            notices: tokio::sync::mpsc::channel(1).0,
            metrics,
        }
    }

    #[test]
    fn a_pending_icmp_error_leaves_no_datagram_unread() {
        let mut w = worker();
        let to = w.probes.local_addr().unwrap();
        // Nobody listens where a probe goes: the kernel notes an error at the probe socket…
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
        let nobody = gone.local_addr().unwrap();
        drop(gone);
        assert_eq!(w.probes.send(&[(nobody, [0; 80])]), 0);
        // …and an answer of somebody else lies there too.
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[1; 80], to).unwrap();
        let mut watch = Watch::new(w.clock.now());
        let complaint = Throttle::new(Duration::from_secs(10));
        assert_eq!(w.drain(Via::Probes, &mut watch, &mut Vec::new(), &complaint), (1, false));
        assert_eq!(get(&w.metrics.received), 1);
    }

    /// The bell had been answered, so the shard rested, and what was left waited: up to a tenth of a second
    /// for each 256 commands.
    #[test]
    fn commands_that_a_pass_leaves_are_told_so_that_nobody_rests() {
        let mut w = worker();
        for _ in 0..COMMANDS_PER_PASS + 1 {
            w.peers[0].send(Command::Remove(HostId([1; 16]))).unwrap();
        }
        assert_eq!(w.obey(), Obeyed::More);
        assert_eq!(w.obey(), Obeyed::All);
        w.peers[0].send(Command::Stop).unwrap();
        assert_eq!(w.obey(), Obeyed::Stop);
    }

    #[test]
    fn a_datagram_of_another_shard_is_recognised() {
        let mut bytes = [0; 80];
        bytes[8..24].copy_from_slice(&[9; 16]);
        let owner = shard_of(HostId([9; 16]), 4);
        for shard in 0..4 {
            let found = elsewhere(&bytes, Via::Beats(1), shard, 4);
            assert_eq!(found, (owner != shard).then_some((owner, 1)));
        }
        assert_eq!(elsewhere(&bytes[..20], Via::Beats(0), 0, 4), None);
        assert_eq!(elsewhere(&bytes, Via::Probes, 9, 4), None);
    }
}
