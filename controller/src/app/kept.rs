//! Sockets that outlive the process: the service manager keeps them over a restart or a crash
//! ([`heartwatch_common::fdstore`], ADR 23), so that what arrives meanwhile waits in the kernel.
//!
//! Kept are the beat sockets, named `beats-SHARD-ADDRESS`, and the API's listener, `api-ADDRESS`. Taken over
//! is only what the present settings would make anew: [`sort`] decides that, from what descriptors say of
//! themselves. All others are closed here and at the manager *before* anything is bound, as they would
//! hold their ports and get a share of the beats that nobody reads.
//!
//! The number in a name is the socket's place in its `SO_REUSEPORT` group, by which the kernel's program
//! chooses it. Places never change as long as all of a group stay open, which the manager sees to; a group
//! of which one is missing is not taken over.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use heartwatch_common::fdstore;
use socket2::SockRef;

use super::AppError;
use crate::ingest::socket::{BatchSocket, Role};

/// How long the manager may take to let go of what is not wanted.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// Datagrams that are thrown away, at most, of a socket whose shard is no more.
const SURPLUS_MAX: usize = 1 << 20;

/// What a kept descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Shard and address of a socket for beats.
    Beats(u16, SocketAddr),
    /// Where the API listened.
    Api(SocketAddr),
    /// None that this controller would have given away: why.
    Foreign(&'static str),
}

/// Which of the descriptors, by their places in the list, go on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sorted {
    /// The sockets of each address, in the order of their shards.
    beats: BTreeMap<SocketAddr, Vec<usize>>,
    api: Option<usize>,
    /// Which do not, and why.
    refused: Vec<(usize, &'static str)>,
}

/// Decides what of `found` goes on under the settings `listen` and `api_listen`.
fn sort(found: &[What], listen: &[SocketAddr], api_listen: SocketAddr) -> Sorted {
    let mut sorted = Sorted::default();
    let mut groups: BTreeMap<SocketAddr, Vec<(u16, usize)>> = BTreeMap::new();
    for (at, what) in found.iter().enumerate() {
        match *what {
            What::Beats(shard, address) if listen.contains(&address) => {
                groups.entry(address).or_default().push((shard, at));
            }
            What::Api(address) if address == api_listen && sorted.api.is_none() => {
                sorted.api = Some(at);
            }
            What::Foreign(why) => sorted.refused.push((at, why)),
            _ => sorted.refused.push((at, "the settings name this address no more")),
        }
    }
    for (address, mut group) in groups {
        group.sort_unstable();
        let is_whole = (0u16..).zip(&group).all(|(place, (shard, _))| place == *shard);
        let members = group.into_iter().map(|(_, at)| at);
        if is_whole {
            sorted.beats.insert(address, members.collect());
        } else {
            let why = "its group is not complete, and the kernel would steer beats wrongly";
            sorted.refused.extend(members.map(|at| (at, why)));
        }
    }
    sorted.refused.sort_unstable_by_key(|(at, _)| *at);
    sorted
}

/// What a descriptor is, by its name and by what the kernel says of it.
fn identify(name: &str, fd: &OwnedFd) -> What {
    let socket = SockRef::from(fd);
    let Some(address) = socket.local_addr().ok().and_then(|a| a.as_socket()) else {
        return What::Foreign("it is no socket of the internet");
    };
    let is = |kind| socket.r#type().is_ok_and(|k| k == kind);
    if name.starts_with("api-") {
        let listens = is(socket2::Type::STREAM) && socket.is_listener().unwrap_or(false);
        return if listens { What::Api(address) } else { What::Foreign("it listens to nobody") };
    }
    let shard = name.strip_prefix("beats-").and_then(|rest| rest.split('-').next()?.parse().ok());
    let Some(shard) = shard else { return What::Foreign("its name says nothing to this version") };
    let open_to_all = socket.peer_addr().is_err() && socket.reuse_port().unwrap_or(false);
    if is(socket2::Type::DGRAM) && open_to_all {
        What::Beats(shard, address)
    } else {
        What::Foreign("it is no socket that beats come to")
    }
}

fn beats_name(shard: usize, address: SocketAddr) -> String {
    // Names may hold anything but colons.
    format!("beats-{shard}-{address}").replace(':', "_")
}

fn api_name(address: SocketAddr) -> String {
    format!("api-{address}").replace(':', "_")
}

/// What was kept and goes on.
pub(super) struct Kept {
    beats: BTreeMap<SocketAddr, Vec<(String, OwnedFd)>>,
    api: Option<TcpListener>,
}

impl Kept {
    /// Takes what the service manager kept, and lets go of all that does not fit the settings.
    pub(super) fn take(listen: &[SocketAddr], api_listen: SocketAddr) -> Self {
        let found = fdstore::take();
        let whats: Vec<What> = found.iter().map(|(name, fd)| identify(name, fd)).collect();
        let sorted = sort(&whats, listen, api_listen);
        for (at, why) in &sorted.refused {
            let name = &found[*at].0;
            log::warn!("the socket {name} was kept by the service manager and is closed: {why}");
        }
        let mut found: Vec<Option<(String, OwnedFd)>> = found.into_iter().map(Some).collect();
        let mut pick = |at: usize| found[at].take().expect("`sort` names each place once");
        let beats = sorted
            .beats
            .into_iter()
            .map(|(address, places)| (address, places.into_iter().map(&mut pick).collect()))
            .collect();
        let api = sorted.api.map(|at| TcpListener::from(pick(at).1));
        let gone: Vec<String> = found.into_iter().flatten().map(|(name, _)| name).collect();
        forget(&gone);
        Self { beats, api }
    }

    /// One socket per shard and address, taken over or bound; answers them by shard.
    pub(super) fn bind_shards(
        &mut self,
        listen: &[SocketAddr],
        count: u16,
        gro: bool,
    ) -> Result<Vec<Vec<BatchSocket>>, AppError> {
        let mut shards: Vec<Vec<BatchSocket>> = (0..count).map(|_| Vec::new()).collect();
        for &wanted in listen {
            let error = |source| AppError::Listen { protocol: "UDP", address: wanted, source };
            let kept = self.beats.remove(&wanted).unwrap_or_default();
            let taken = kept.len();
            let mut group = take_group(wanted, kept).map_err(error)?;
            let address = match group.first() {
                Some(first) => first.local_addr(),
                None => nobody_is_at(wanted),
            };
            let address = address.map_err(error)?;
            while group.len() < usize::from(count) {
                let mut socket = BatchSocket::bind(address, Role::Beats).map_err(error)?;
                if gro {
                    socket.gather();
                }
                keep(&beats_name(group.len(), address), &socket);
                group.push(socket);
            }
            // Steered first: from then on none comes to those that are too many.
            if (count > 1 || taken > 1)
                && let Err(e) = group[0].steer(count)
            {
                log::warn!("the kernel does not steer beats by host ({e}); shards hand them over");
            }
            drop_surplus(&mut group, usize::from(count), address);
            for (sockets, socket) in shards.iter_mut().zip(group) {
                sockets.push(socket);
            }
        }
        Ok(shards)
    }

    /// The API's listener: taken over, with whoever waits to be accepted, or bound.
    pub(super) fn listen_tcp(&mut self, address: SocketAddr) -> Result<TcpListener, AppError> {
        let error = |source| AppError::Listen { protocol: "TCP", address, source };
        if let Some(listener) = self.api.take() {
            listener.set_nonblocking(true).map_err(error)?;
            return Ok(listener);
        }
        let listener = super::listen_tcp(address)?;
        let bound = listener.local_addr().map_err(error)?;
        keep(&api_name(bound), &listener);
        Ok(listener)
    }
}

/// Goes on with the sockets of one address.
fn take_group(address: SocketAddr, kept: Vec<(String, OwnedFd)>) -> io::Result<Vec<BatchSocket>> {
    let take = |(_, fd)| BatchSocket::take_over(UdpSocket::from(fd));
    let group: Vec<BatchSocket> = kept.into_iter().map(take).collect::<io::Result<_>>()?;
    if !group.is_empty() {
        let waiting: u64 = group.iter().filter_map(|s| s.waiting().ok()).sum();
        log::info!(
            "{} sockets at UDP {address} go on from the life before; {waiting} bytes wait in them",
            group.len()
        );
    }
    Ok(group)
}

/// Binds without sharing, to find out whether another controller is there: with `SO_REUSEPORT` alone two of
/// them would silently split the beats. Answers the address, its port chosen.
fn nobody_is_at(wanted: SocketAddr) -> io::Result<SocketAddr> {
    UdpSocket::bind(wanted)?.local_addr()
}

/// Fewer shards than before: what waits in the sockets that are too many belongs to hosts of others by now.
/// Those hosts lose a beat, and beat again.
fn drop_surplus(group: &mut Vec<BatchSocket>, count: usize, address: SocketAddr) {
    let mut gone = Vec::new();
    let mut lost = 0;
    // The last first: the kernel fills the place of one that is closed with the last of its group.
    while group.len() > count {
        let Some(mut socket) = group.pop() else { break };
        while let Ok(n @ 1..) = socket.receive() {
            lost += n;
            if lost >= SURPLUS_MAX {
                break;
            }
        }
        gone.push(beats_name(group.len(), address));
    }
    if !gone.is_empty() {
        log::warn!("fewer shards than before: {lost} datagrams that waited for them are lost");
        forget(&gone);
    }
}

fn keep(name: &str, fd: &impl AsFd) {
    if let Err(e) = fdstore::keep(name, fd.as_fd()) {
        log::warn!(
            "the service manager does not take the socket {name} ({e}): what arrives during a restart \
             will be lost"
        );
    }
}

/// Has the manager let go of these, and waits until it has: they hold their ports as long as it does not.
fn forget(names: &[String]) {
    if names.is_empty() {
        return;
    }
    for name in names {
        if let Err(e) = fdstore::forget(name) {
            log::warn!("the service manager cannot be told to close {name}: {e}");
        }
    }
    match fdstore::settle(SETTLE_MAX) {
        Ok(true) => {}
        Ok(false) => log::warn!("the service manager has not said that old sockets are closed"),
        Err(e) => log::warn!("cannot wait for the service manager: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_the_settings_would_make_anew_goes_on_and_all_else_is_refused() {
        let (here, there, api) = (at("[::]:2328"), at("127.0.0.1:9"), at("127.0.0.1:2328"));
        let found = [
            What::Beats(1, here),
            What::Api(api),
            What::Beats(0, there),
            What::Beats(0, here),
            What::Foreign("odd"),
            What::Api(there),
        ];
        let sorted = sort(&found, &[here], api);
        assert_eq!(sorted.beats, [(here, vec![3, 0])].into());
        assert_eq!(sorted.api, Some(1));
        let gone = "the settings name this address no more";
        assert_eq!(sorted.refused, [(2, gone), (4, "odd"), (5, gone)]);
        assert_eq!(sort(&[], &[here], api), Sorted::default());
    }

    #[test]
    fn a_group_that_is_not_whole_is_refused_as_a_whole() {
        let (here, api) = (at("[::]:2328"), at("127.0.0.1:2328"));
        for shards in [vec![1], vec![0, 2], vec![0, 0, 1], vec![0, 1, 1]] {
            let found: Vec<_> = shards.iter().map(|s| What::Beats(*s, here)).collect();
            let sorted = sort(&found, &[here], api);
            assert!(sorted.beats.is_empty(), "{shards:?}");
            assert_eq!(sorted.refused.len(), shards.len());
        }
    }

    #[test]
    fn descriptors_are_known_by_what_they_are_and_not_by_name_alone() {
        let udp = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let shared = BatchSocket::bind(at("127.0.0.1:0"), Role::Beats).unwrap();
        let address = shared.local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let api = listener.local_addr().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let connected = BatchSocket::bind(at("127.0.0.1:0"), Role::Beats).unwrap();
        let twin = UdpSocket::from(connected.as_fd().try_clone_to_owned().unwrap());
        twin.connect(address).unwrap();
        let fd = |s: &dyn AsFd| s.as_fd().try_clone_to_owned().unwrap();
        let cases = [
            (beats_name(3, address), fd(&shared), Some(What::Beats(3, address))),
            (api_name(api), fd(&listener), Some(What::Api(api))),
            ("beats-0-x".into(), fd(&listener), None),
            ("beats-0-x".into(), fd(&udp()), None),
            ("beats-0-x".into(), fd(&connected), None),
            ("beats-70000-x".into(), fd(&shared), None),
            ("api-x".into(), fd(&shared), None),
            ("stored".into(), fd(&shared), None),
            ("beats-0-x".into(), fd(&file), None),
        ];
        for (name, fd, wanted) in cases {
            let what = identify(&name, &fd);
            match wanted {
                Some(wanted) => assert_eq!(what, wanted, "{name}"),
                None => assert!(matches!(what, What::Foreign(_)), "{name}: {what:?}"),
            }
            assert!(!name.contains(':') && name.len() <= fdstore::NAME_LEN_MAX);
        }
    }

    #[test]
    fn fewer_shards_close_the_last_sockets_and_the_rest_are_steered_as_before() {
        let any = at("127.0.0.1:0");
        let first = BatchSocket::bind(any, Role::Beats).unwrap();
        let address = first.local_addr().unwrap();
        let mut group = vec![first];
        group.extend((1..4).map(|_| BatchSocket::bind(address, Role::Beats).unwrap()));
        let fds: Vec<_> = group.iter().map(|s| s.as_fd().try_clone_to_owned().unwrap()).collect();
        drop(group);
        let names = (0..4).map(|n| beats_name(n, address));
        let mut kept = Kept { beats: [(address, names.zip(fds).collect())].into(), api: None };
        let mut shards = kept.bind_shards(&[address], 2, false).unwrap();
        assert_eq!(shards.len(), 2);
        let peer = UdpSocket::bind(any).unwrap();
        for n in 0..40u8 {
            let mut datagram = [0; 80];
            datagram[8..24].fill(n);
            datagram[9] = n.wrapping_mul(7);
            peer.send_to(&datagram, address).unwrap();
        }
        let mut total = 0;
        for (shard, sockets) in shards.iter_mut().enumerate() {
            while let n @ 1.. = sockets[0].receive().unwrap() {
                for i in 0..n {
                    let id = sockets[0].bytes(i)[8..24].try_into().unwrap();
                    let id = heartwatch_common::id::HostId(id);
                    assert_eq!(usize::from(crate::shard::route::shard_of(id, 2)), shard);
                }
                total += n;
            }
        }
        assert_eq!(total, 40);
    }
}
