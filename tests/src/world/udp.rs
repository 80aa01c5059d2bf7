//! A host made by hand: every datagram as the test wants it, the sound ones and the others.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use heartwatch_common::auth::HostKey;
use heartwatch_common::id::{Boot, Epoch, Generation, HostId, Seq};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::{
    self, Ack, Beat, FLAG_ACK_WANTED, Field, Header, Leave, LeaveReason, Message, Probe,
    ProbeReply, RoundTrip, Stamp,
};

use super::{World, host_id, now};

/// What a controller said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// An ack, with its flags.
    Ack(Ack, u8),
    /// A probe.
    Probe(Probe),
}

/// A hand-made host with a socket of its own.
pub struct Station {
    /// Who.
    pub host: HostId,
    /// This life; change it at will.
    pub boot: Boot,
    /// The last number used; change it at will.
    pub seq: u32,
    /// The epoch that it echoes; learnt by [`Station::pump`] and [`Station::join`].
    pub epoch: Epoch,
    /// What it announces.
    pub gap: Duration,
    /// Whether [`Station::pump`] answers probes.
    pub answers: bool,
    key: HostKey,
    name: String,
    socket: UdpSocket,
    controller: SocketAddr,
    next_beat: Instant,
}

impl Station {
    /// A host named `name` that beats every 200 ms to `controller`.
    pub fn new(world: &World, name: &str, controller: SocketAddr) -> Result<Self> {
        let host = host_id(name);
        let any = if controller.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let socket = UdpSocket::bind(any).context("cannot bind")?;
        Ok(Self {
            host,
            boot: Boot(1),
            seq: 0,
            epoch: Epoch(0),
            gap: Duration::from_millis(200),
            answers: true,
            key: world.key(host),
            name: name.to_owned(),
            socket,
            controller,
            next_beat: now(),
        })
    }

    /// Uses another generation of its key from now on.
    pub fn rekey(&mut self, world: &World, generation: u16) {
        self.key = world.secret().host_key(self.host, Generation(generation));
    }

    /// Its header with these flags.
    pub fn header(&self, flags: u8) -> Header {
        Header {
            host: self.host,
            key_id: self.key.key_id(),
            generation: self.key.generation(),
            flags,
        }
    }

    /// The stamp of the next datagram.
    pub fn stamp(&mut self) -> Stamp {
        self.seq += 1;
        Stamp { boot: self.boot, seq: Seq(self.seq), sent: now(), gap: self.gap, epoch: self.epoch }
    }

    /// Seals with its own key.
    pub fn seal(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        self.key.seal(&mut bytes);
        bytes
    }

    /// A sealed beat, not sent.
    pub fn beat(&mut self, flags: u8) -> Vec<u8> {
        let (load, round_trip) = (LoadSample::UNKNOWN, RoundTrip::UNKNOWN);
        let beat = Beat { stamp: self.stamp(), late_ms: 0, checks: 0, load, round_trip };
        self.seal(beat.encode(&self.header(flags)).to_vec())
    }

    /// A sealed hello, not sent.
    pub fn hello(&mut self) -> Result<Vec<u8>> {
        let stamp = self.stamp();
        let fields = [Field::Name(&self.name), Field::Label("made", "by-hand")];
        let header = self.header(FLAG_ACK_WANTED);
        let bytes = wire::encode_hello(&header, &stamp, 0, self.gap, &fields)?;
        Ok(self.seal(bytes))
    }

    /// A sealed goodbye, not sent.
    pub fn leave(&mut self, reason: LeaveReason) -> Vec<u8> {
        let leave = Leave { stamp: self.stamp(), reason, expected: Duration::ZERO };
        self.seal(leave.encode(&self.header(0)).to_vec())
    }

    /// A sealed answer to a probe, not sent.
    pub fn reply(&mut self, nonce: [u8; 16]) -> Vec<u8> {
        let reply = ProbeReply { stamp: self.stamp(), nonce };
        self.seal(reply.encode(&self.header(0)).to_vec())
    }

    /// Sends bytes as they are.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        self.socket.send_to(bytes, self.controller).context("cannot send")?;
        Ok(())
    }

    /// The bytes that come next, whatever they are, if any come within `patience`.
    pub fn overhear(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        self.socket
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))))
            .context("cannot set a time limit")?;
        let mut buffer = [0; 2048];
        Ok(self.socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec()))
    }

    /// The next thing that the controller says, if it says anything within `patience`. Anything that is
    /// not sealed with this host's key is an error: a controller sends no such thing.
    pub fn hear(&self, patience: Duration) -> Result<Option<Said>> {
        self.socket
            .set_read_timeout(Some(patience.max(Duration::from_millis(1))))
            .context("cannot set a time limit")?;
        let mut buffer = [0; 2048];
        let len = match self.socket.recv_from(&mut buffer) {
            Ok((len, _)) => len,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            // An ICMP answer to what we sent: nobody is listening there right now.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(None),
            Err(e) => return Err(e).context("cannot receive"),
        };
        let datagram = wire::decode(&buffer[..len]).context("the controller sent nonsense")?;
        if !self.key.verify(&datagram) {
            bail!("the controller sent something that is not sealed with this host's key");
        }
        Ok(match datagram.message {
            Message::Ack(ack) => Some(Said::Ack(ack, datagram.header.flags)),
            Message::Probe(probe) => Some(Said::Probe(probe)),
            other => bail!("a controller never sends this: {other:?}"),
        })
    }

    /// Beats and answers for `span`, as an agent would; says hello when asked. Answers all that was said.
    pub fn pump(&mut self, span: Duration) -> Result<Vec<Said>> {
        let end = now() + span;
        let mut said = Vec::new();
        while now() < end {
            if now() >= self.next_beat {
                self.next_beat = now() + self.gap;
                let beat = self.beat(FLAG_ACK_WANTED);
                self.send(&beat)?;
            }
            let wait = self.next_beat.min(end).since(now());
            let Some(heard) = self.hear(wait)? else { continue };
            said.push(heard);
            match heard {
                Said::Ack(ack, flags) => {
                    self.epoch = ack.epoch;
                    if flags & wire::FLAG_SAY_HELLO != 0 {
                        let hello = self.hello()?;
                        self.send(&hello)?;
                    }
                }
                Said::Probe(probe) if self.answers => {
                    let epoch = std::mem::replace(&mut self.epoch, probe.epoch);
                    let reply = self.reply(probe.nonce);
                    self.epoch = epoch;
                    self.send(&reply)?;
                }
                Said::Probe(_) => {}
            }
        }
        Ok(said)
    }

    /// Says hello and beats until the controller has acknowledged it under its present epoch.
    pub fn join(&mut self) -> Result<()> {
        let deadline = now() + super::PATIENCE;
        let hello = self.hello()?;
        self.send(&hello)?;
        while now() < deadline {
            let said = self.pump(self.gap)?;
            let is_taken = |s: &Said| matches!(s, Said::Ack(_, flags) if *flags == 0);
            if said.iter().any(is_taken) {
                return Ok(());
            }
        }
        bail!("expected an ack without flags, but none came in {:?}", super::PATIENCE)
    }
}
