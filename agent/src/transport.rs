//! The sockets, and the names of the controllers behind them.
//!
//! One unconnected UDP socket per address family, made when it is first needed, on a port that the
//! system chooses: probes may come from any address, and must be answered. Sending never waits:
//! what the system does not take at once is counted and dropped, as the next beat is a second away.
//! No error here ends the agent; the network may be down, or not up yet.
//!
//! Names are looked up by tasks on the blocking pool; their answers come back as [`Found`].

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use heartwatch_common::daemon::Throttle;
use heartwatch_common::time::Instant;
use heartwatch_common::wire::DATAGRAM_LEN_MAX;
use tokio::net::UdpSocket;
use tokio::sync::mpsc::UnboundedSender;

use crate::config::Endpoint;
use crate::core::{Outgoing, To};
pub use target::Target;

pub mod target;

/// At most so many datagrams are received before the agent looks at its clock again.
pub const RECEIVE_BATCH: usize = 32;
/// One log line about failures per this long.
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// What a lookup found.
#[derive(Debug)]
pub struct Found {
    /// Whose name.
    pub endpoint: Endpoint,
    /// Its addresses, or why there are none.
    pub result: io::Result<Vec<SocketAddr>>,
}

/// Two handles of one socket: Tokio's waits for datagrams, the plain one sends without asking Tokio
/// whether it may (which says no before it has asked the system).
#[derive(Debug)]
struct Socket {
    receiver: UdpSocket,
    sender: std::net::UdpSocket,
}

impl Socket {
    fn open(local: SocketAddr) -> io::Result<Self> {
        let sender = std::net::UdpSocket::bind(local)?;
        sender.set_nonblocking(true)?;
        let receiver = UdpSocket::from_std(sender.try_clone()?)?;
        Ok(Self { receiver, sender })
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn of(address: SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Sockets and controllers. Must be used within a Tokio runtime.
#[derive(Debug)]
pub struct Transport {
    v4: Option<Socket>,
    v6: Option<Socket>,
    targets: Vec<Target>,
    throttle: Throttle,
}

/// Waits until a datagram can be read from `socket`; for ever without one.
async fn readable(socket: Option<&Socket>) {
    match socket {
        // An error shows again, and is counted, when the datagram is read.
        Some(socket) => drop(socket.receiver.readable().await),
        None => std::future::pending().await,
    }
}

impl Transport {
    /// No socket yet; every name is to be looked up at once.
    pub fn new(endpoints: &[Endpoint], now: Instant) -> Self {
        let targets = endpoints.iter().map(|e| Target::new(e.clone(), now)).collect();
        Self { v4: None, v6: None, targets, throttle: Throttle::new(LOG_PERIOD) }
    }

    /// The controllers, in the order of the configuration.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Takes a new list of controllers. Gives, for each, its index in the old list.
    pub fn reload(&mut self, endpoints: &[Endpoint], now: Instant) -> Vec<Option<usize>> {
        let position = |e: &Endpoint| self.targets.iter().position(|t| t.endpoint == *e);
        let kept: Vec<_> = endpoints.iter().map(position).collect();
        let target = |(e, old): (&Endpoint, &Option<usize>)| match old {
            Some(at) => self.targets[*at].clone(),
            None => Target::new(e.clone(), now),
        };
        self.targets = endpoints.iter().zip(&kept).map(target).collect();
        kept
    }

    /// Which controller has that address.
    pub fn controller_at(&self, from: SocketAddr) -> Option<usize> {
        let current = self.targets.iter().position(|t| t.address() == Some(from));
        current.or_else(|| self.targets.iter().position(|t| t.has_address(from)))
    }

    /// Sends, without waiting. `true` if the system took it.
    pub fn send(&mut self, outgoing: &Outgoing, now: Instant) -> bool {
        let (index, address) = match outgoing.to {
            To::Addr(address) => (None, Some(address)),
            To::Controller(index) => {
                (Some(index), self.targets.get(index).and_then(Target::address))
            }
        };
        let result = match address {
            // The failed lookup was logged; until it succeeds there is nothing new to say.
            None => Err(None),
            Some(address) => self.send_to(address, outgoing.bytes.as_slice()).map_err(Some),
        };
        let target = index.and_then(|i| self.targets.get_mut(i));
        match result {
            Ok(()) => {
                if let Some(target) = target {
                    target.sent = target.sent.saturating_add(1);
                }
                true
            }
            Err(error) => {
                if let Some(target) = target {
                    target.send_errors = target.send_errors.saturating_add(1);
                }
                if let (Some(error), Some(address)) = (error, address) {
                    self.log(now, &format!("cannot send to {address}: {error}"));
                }
                false
            }
        }
    }

    fn send_to(&mut self, address: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let (slot, any) = match Family::of(address) {
            Family::V4 => (&mut self.v4, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            Family::V6 => (&mut self.v6, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        if slot.is_none() {
            *slot = Some(Socket::open(any)?);
        }
        match slot {
            Some(socket) => socket.sender.send_to(bytes, address).map(drop),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Waits until a datagram can be received, and tells by which family. Cancel-safe.
    pub async fn readable(&self) -> Family {
        tokio::select! {
            () = readable(self.v4.as_ref()) => Family::V4,
            () = readable(self.v6.as_ref()) => Family::V6,
        }
    }

    /// Receives one datagram without waiting, into `buffer`; longer ones are cut, which makes them
    /// malformed. `None` when there is none, or its error was counted.
    pub fn receive(
        &self,
        family: Family,
        buffer: &mut [u8; DATAGRAM_LEN_MAX + 1],
        now: Instant,
    ) -> Option<(usize, SocketAddr)> {
        let socket = match family {
            Family::V4 => self.v4.as_ref()?,
            Family::V6 => self.v6.as_ref()?,
        };
        match socket.receiver.try_recv_from(buffer) {
            Ok((len, from)) => Some((len, SocketAddr::new(from.ip().to_canonical(), from.port()))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(e) => {
                self.log(now, &format!("cannot receive: {e}"));
                None
            }
        }
    }

    /// When the next name is to be looked up.
    pub fn next_lookup(&self) -> Instant {
        self.targets.iter().map(Target::lookup_due).min().unwrap_or(Instant::FAR)
    }

    /// Makes a lookup of that controller's name due now.
    pub fn hurry(&mut self, controller: usize, now: Instant) {
        if let Some(target) = self.targets.get_mut(controller) {
            target.hurry(now);
        }
    }

    /// Starts the lookups that are due; their answers go into `found`. One at a time per
    /// controller, so the queue is as short as the list of controllers.
    pub fn look_up(&mut self, now: Instant, found: &UnboundedSender<Found>) {
        for target in self.targets.iter_mut().filter(|t| t.lookup_due() <= now) {
            target.lookup_begins();
            let (endpoint, found) = (target.endpoint.clone(), found.clone());
            tokio::spawn(async move {
                let name = (endpoint.host.as_str(), endpoint.port);
                let result = tokio::net::lookup_host(name).await;
                let result = result.map(|all| all.take(target::ADDRESSES_MAX).collect());
                // An error means that the agent ends.
                drop(found.send(Found { endpoint, result }));
            });
        }
    }

    /// Takes a lookup's answer. `is_heard` tells whether the controller of an index answers. Answers which
    /// controller can be sent to only now, if one is.
    pub fn found(
        &mut self,
        found: Found,
        is_heard: impl Fn(usize) -> bool,
        now: Instant,
        draw: f64,
    ) -> Option<usize> {
        // Not there any more: a reload has dropped it.
        let index = self.targets.iter().position(|t| t.endpoint == found.endpoint)?;
        let target = self.targets.get_mut(index)?;
        let unreached = target.address().is_none();
        let (addresses, problem) = match found.result {
            Ok(list) if list.is_empty() => (list, Some("it has no address".to_owned())),
            Ok(list) => (list, None),
            Err(e) => (Vec::new(), Some(e.to_string())),
        };
        let moved = target.lookup_ends(addresses, is_heard(index), now, draw);
        if let (true, Some(address)) = (moved, target.address()) {
            log::info!("controller {} is at {address}", found.endpoint);
        }
        if let Some(problem) = problem {
            self.log(now, &format!("cannot look up controller {}: {problem}", found.endpoint));
        }
        (unreached && moved).then_some(index)
    }

    fn log(&self, now: Instant, what: &str) {
        match self.throttle.pass(now) {
            Some(0) => log::warn!("{what}"),
            Some(n) => log::warn!("{what} ({n} more like this not shown)"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Packet;
    use tokio::sync::mpsc::unbounded_channel;

    const NOW: Instant = Instant::from_millis(1_000_000);

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn to(to: To) -> Outgoing {
        Outgoing { to, bytes: Packet::Hello(b"hello".to_vec()) }
    }

    #[test]
    fn a_resolved_controller_gets_datagrams_and_can_answer() {
        converse("127.0.0.1:0");
    }

    #[test]
    fn so_does_one_that_speaks_ipv6() {
        if std::net::UdpSocket::bind("[::1]:0").is_ok() {
            converse("[::1]:0");
        } else {
            eprintln!("skipped: this machine has no IPv6 loopback");
        }
    }

    fn converse(local: &str) {
        runtime().block_on(async {
            let sink = std::net::UdpSocket::bind(local).unwrap();
            let address = sink.local_addr().unwrap();
            let endpoint: Endpoint = address.to_string().parse().unwrap();
            let name = Endpoint { host: "ctl".to_owned(), port: address.port() };
            let mut transport = Transport::new(std::slice::from_ref(&name), NOW);
            assert!(!transport.send(&to(To::Controller(0)), NOW), "no address yet");
            assert_eq!(transport.controller_at(address), None);
            let found = || Found { endpoint: name.clone(), result: Ok(vec![address]) };
            assert_eq!(transport.found(found(), |_| false, NOW, 0.5), Some(0));
            assert_eq!(transport.found(found(), |_| false, NOW, 0.5), None, "it had one before");
            assert_eq!(transport.controller_at(address), Some(0));
            assert!(transport.send(&to(To::Controller(0)), NOW), "looked up");
            let target = &transport.targets()[0];
            assert_eq!((target.sent, target.send_errors), (1, 1));
            let mut buffer = [0; DATAGRAM_LEN_MAX + 1];
            assert_eq!(sink.recv_from(&mut buffer).unwrap().0, b"hello".len());
            let mut transport = Transport::new(&[endpoint], NOW);
            assert!(transport.send(&to(To::Controller(0)), NOW), "an address, and no name");
            let (tx, mut rx) = unbounded_channel();
            transport.look_up(NOW, &tx);
            assert_eq!(transport.next_lookup(), Instant::FAR);
            let found = rx.recv().await.unwrap();
            assert_eq!(transport.found(found, |_| false, NOW, 0.5), None);
            assert_eq!(transport.controller_at(address), Some(0));
            let (len, from) = sink.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"hello");
            sink.send_to(b"back", from).unwrap();
            let (len, from) = loop {
                let family = transport.readable().await;
                if let Some(got) = transport.receive(family, &mut buffer, NOW) {
                    break got;
                }
            };
            assert_eq!((&buffer[..len], from), (&b"back"[..], address));
            assert_eq!(transport.receive(Family::of(address), &mut buffer, NOW), None);
            let target = &transport.targets()[0];
            assert_eq!((target.sent, target.send_errors), (1, 0));
        });
    }

    #[test]
    fn what_cannot_be_sent_is_counted_and_ends_nothing() {
        runtime().block_on(async {
            let mut transport = Transport::new(&["ctl".parse().unwrap()], NOW);
            // Port 0 cannot be sent to, on any system.
            let nowhere = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
            let endpoint = transport.targets()[0].endpoint.clone();
            transport.found(Found { endpoint, result: Ok(nowhere) }, |_| false, NOW, 0.5);
            assert!(!transport.send(&to(To::Controller(0)), NOW));
            assert!(!transport.send(&to(To::Controller(7)), NOW), "no such controller");
            assert_eq!(transport.targets()[0].send_errors, 1);
        });
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_the_controllers_that_stay() {
        let list = |names: &[&str]| -> Vec<Endpoint> {
            names.iter().map(|n| n.parse().unwrap()).collect()
        };
        let mut transport = Transport::new(&list(&["a", "b"]), NOW);
        let address = SocketAddr::from(([192, 0, 2, 1], 2328));
        let found =
            |name: &str| Found { endpoint: name.parse().unwrap(), result: Ok(vec![address]) };
        transport.found(found("b"), |_| false, NOW, 0.5);
        assert_eq!(transport.reload(&list(&["c", "b"]), NOW), [None, Some(1)]);
        assert_eq!(transport.controller_at(address), Some(1));
        transport.found(found("a"), |_| false, NOW, 0.5);
        assert_eq!(transport.controller_at(address), Some(1), "a late answer is ignored");
    }
}
