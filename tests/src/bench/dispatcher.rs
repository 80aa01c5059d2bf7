//! `dispatcher`: one thread that receives and hands batches to workers (the classic design) against
//! sockets among which the kernel chooses by the host id (ours).
//!
//! The sockets are filled first and drained then, so no generator is in the way; what is told is CPU time
//! per datagram, from `recvmmsg` to a worker's having touched the host's 64-byte record. From it follows
//! what the machine could take at most: with a dispatcher, what *its* thread can receive and hand on,
//! however many workers there are; with steering, what all cores can, less what the busiest shard has too
//! many.
//!
//! Both give a host to the same shard, so the shares of the busiest shard are the same; they are told for
//! ids at random, ids that count up, ids that differ in one middle byte alone, and for fleets in which one
//! host in a hundred beats fifty times as often.

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use heartwatch_common::id::HostId;
use heartwatch_common::wire::HOST_ID_OFFSET;
use heartwatch_controller::ingest::socket::{BATCH_LEN, BatchSocket, Role};
use heartwatch_controller::shard::route::shard_of;

use super::{Context, Figures};
use crate::eval::schedule::mix;
use crate::machine::thread_time;

/// Workers, or shards.
const SHARDS: u16 = 2;
/// Datagrams that lie in the sockets when draining begins; a socket's buffer holds some 80,000.
const FILLED: usize = 40_000;
/// Times that the sockets are filled and drained in a run.
const ROUNDS: usize = 10;
/// Batches under way to a worker.
const QUEUE_LEN_MAX: usize = 1_024;
/// Records that workers touch.
const RECORDS: usize = 1 << 20;

type Datagram = [u8; 80];

fn id(n: u64) -> HostId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&mix(n).to_be_bytes());
    id[8..].copy_from_slice(&mix(!n).to_be_bytes());
    HostId(id)
}

fn id_of(bytes: &[u8]) -> Option<HostId> {
    Some(HostId(bytes.get(HOST_ID_OFFSET..HOST_ID_OFFSET + 16)?.try_into().ok()?))
}

/// What a worker does with a datagram: it touches the host's record.
struct Work(Vec<[u64; 8]>);

impl Work {
    fn new() -> Self {
        Self(vec![[0; 8]; RECORDS])
    }

    fn take(&mut self, bytes: &[u8]) {
        let Some(id) = id_of(bytes) else { return };
        let at = u64::from_be_bytes(id.0[..8].try_into().unwrap_or_default()) as usize % RECORDS;
        self.0[at][0] += 1;
    }

    fn done(&self) -> u64 {
        self.0.iter().map(|r| r[0]).sum()
    }
}

fn sockets(count: u16) -> Result<(Vec<BatchSocket>, SocketAddr)> {
    let mut address = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = BatchSocket::bind(address, Role::Beats).context("cannot bind a socket")?;
        address = socket.local_addr()?;
        sockets.push(socket);
    }
    sockets[0].steer(count).context("cannot steer")?;
    Ok((sockets, address))
}

/// Fills the sockets behind an address.
fn fill(to: SocketAddr, round: usize) -> Result<()> {
    let mut from = BatchSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0)), Role::Probes)?;
    let datagrams: Vec<(SocketAddr, Datagram)> = (0..FILLED)
        .map(|n| {
            let mut bytes = [0; 80];
            let id = id((round * FILLED + n) as u64);
            bytes[HOST_ID_OFFSET..HOST_ID_OFFSET + 16].copy_from_slice(&id.0);
            (to, bytes)
        })
        .collect();
    let failed = from.send(&datagrams);
    ensure!(failed == 0, "{failed} datagrams could not be sent");
    Ok(())
}

/// Reads what lies in a socket, batch by batch.
fn drain(socket: &mut BatchSocket, mut take: impl FnMut(&[u8])) {
    while let Ok(n @ 1..) = socket.receive() {
        for i in 0..n {
            if let Some(got) = socket.get(i) {
                take(got.bytes);
            }
        }
    }
}

/// CPU time of each shard's thread for one round, and what it took.
fn steered(sockets: &mut [BatchSocket], works: &mut [Work]) -> Vec<Duration> {
    let barrier = Barrier::new(sockets.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = sockets
            .iter_mut()
            .zip(works)
            .map(|(socket, work)| {
                scope.spawn(|| {
                    barrier.wait();
                    let begin = thread_time();
                    drain(socket, |bytes| work.take(bytes));
                    thread_time().saturating_sub(begin)
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap_or_default()).collect()
    })
}

fn worker(inbox: &Receiver<Vec<Datagram>>, work: &mut Work) -> Duration {
    let begin = thread_time();
    while let Ok(batch) = inbox.recv() {
        batch.iter().for_each(|bytes| work.take(bytes));
    }
    thread_time().saturating_sub(begin)
}

/// CPU time of the dispatcher, and of all workers, for one round.
fn dispatched(socket: &mut BatchSocket, works: &mut [Work]) -> (Duration, Duration) {
    let shards = works.len();
    std::thread::scope(|scope| {
        let (mut queues, mut threads) = (Vec::new(), Vec::new());
        for work in works {
            let (queue, inbox) = sync_channel(QUEUE_LEN_MAX);
            queues.push(queue);
            threads.push(scope.spawn(move || worker(&inbox, work)));
        }
        let begin = thread_time();
        let mut batches = vec![Vec::with_capacity(BATCH_LEN); shards];
        drain(socket, |bytes| {
            let (Some(id), Ok(bytes)) = (id_of(bytes), bytes.try_into()) else { return };
            let shard = usize::from(shard_of(id, shards as u16));
            batches[shard].push(bytes);
            if batches[shard].len() == BATCH_LEN {
                let full = std::mem::replace(&mut batches[shard], Vec::with_capacity(BATCH_LEN));
                // A full queue makes the dispatcher wait, as it must; a dead worker shows in the count.
                drop(queues[shard].send(full));
            }
        });
        for (batch, queue) in batches.into_iter().zip(queues) {
            drop(queue.send(batch));
        }
        let own = thread_time().saturating_sub(begin);
        let all = threads.into_iter().map(|t| t.join().unwrap_or_default()).sum();
        (own, all)
    })
}

/// Load of the busiest shard, in means: 1 is even.
fn busiest(shards: u16, hosts: impl Iterator<Item = (HostId, u64)>) -> f64 {
    let mut loads = vec![0u64; usize::from(shards)];
    hosts.for_each(|(id, load)| loads[usize::from(shard_of(id, shards))] += load);
    let mean = loads.iter().sum::<u64>() as f64 / f64::from(shards);
    loads.into_iter().max().unwrap_or(0) as f64 / mean
}

fn one_run() -> Result<Vec<(&'static str, f64)>> {
    let mut works: Vec<Work> = (0..SHARDS).map(|_| Work::new()).collect();
    let (mut steer, mut steer_busiest) = (Duration::ZERO, Duration::ZERO);
    let (mut receive, mut work) = (Duration::ZERO, Duration::ZERO);
    let (mut shards, to_shards) = sockets(SHARDS)?;
    let (mut one, to_one) = sockets(1)?;
    // Round 0 warms up.
    for round in 0..=ROUNDS {
        fill(to_shards, round)?;
        let times = steered(&mut shards, &mut works);
        fill(to_one, round)?;
        let (own, workers) = dispatched(&mut one[0], &mut works);
        if round > 0 {
            steer += times.iter().sum::<Duration>();
            steer_busiest += times.into_iter().max().unwrap_or_default();
            receive += own;
            work += workers;
        }
    }
    let taken: u64 = works.iter().map(Work::done).sum();
    let sent = 2 * FILLED as u64 * (ROUNDS as u64 + 1);
    ensure!(taken == sent, "{taken} of {sent} datagrams arrived");
    let per = |time: Duration| time.as_secs_f64() * 1e9 / (ROUNDS * FILLED) as f64;
    let (steer_ns, dispatch_ns) = (per(steer), per(receive + work));
    Ok(vec![
        ("steer_cpu_ns", steer_ns),
        ("dispatch_cpu_ns", dispatch_ns),
        ("dispatch_receiver_ns", per(receive)),
        ("cpu_ratio", dispatch_ns / steer_ns),
        // Both with two cores.
        ("steer_max_per_s", 1e9 / per(steer_busiest)),
        ("dispatch_max_per_s", 1e9 / per(receive).max(dispatch_ns / 2.0)),
    ])
}

/// Measures both, and how even the shards are.
pub(super) fn run(ctx: &Context) -> Result<Figures> {
    let runs = (0..ctx.fewer_runs()).map(|_| one_run()).collect::<Result<Vec<_>>>()?;
    let mut figures = Figures::medians(&runs);
    const HOSTS: u64 = 1_000_000;
    let counting = |n: u64| {
        let mut id = [0xA5; 16];
        id[8..].copy_from_slice(&n.to_be_bytes());
        HostId(id)
    };
    // A fleet whose ids differ in one byte in the middle and nowhere else, 256 of them.
    let middle = |n: u64| {
        let mut id = [0x42; 16];
        id[6] = n as u8;
        HostId(id)
    };
    let skewed = |n: u64| if n.is_multiple_of(100) { 50 } else { 1 };
    figures.values.extend([
        ("busiest_random_2", busiest(2, (0..HOSTS).map(|n| (id(n), 1)))),
        ("busiest_counting_2", busiest(2, (0..HOSTS).map(|n| (counting(n), 1)))),
        ("busiest_one_byte_2", busiest(2, (0..256).map(|n| (middle(n), 1)))),
        ("busiest_skewed_2", busiest(2, (0..HOSTS).map(|n| (id(n), skewed(n))))),
        ("busiest_random_16", busiest(16, (0..HOSTS).map(|n| (id(n), 1)))),
        ("busiest_counting_16", busiest(16, (0..HOSTS).map(|n| (counting(n), 1)))),
        ("busiest_one_byte_16", busiest(16, (0..256).map(|n| (middle(n), 1)))),
        ("busiest_skewed_16", busiest(16, (0..HOSTS).map(|n| (id(n), skewed(n))))),
    ]);
    for (name, value) in &figures.values {
        println!("  {name:<22} {value:>12.2}");
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_designs_lose_nothing_and_give_hosts_to_the_same_shards() {
        let (mut shards, to) = sockets(SHARDS).unwrap();
        let mut steered_works: Vec<Work> = (0..SHARDS).map(|_| Work::new()).collect();
        fill(to, 0).unwrap();
        steered(&mut shards, &mut steered_works);
        let (mut one, to) = sockets(1).unwrap();
        let mut works: Vec<Work> = (0..SHARDS).map(|_| Work::new()).collect();
        fill(to, 0).unwrap();
        dispatched(&mut one[0], &mut works);
        let done = |works: &[Work]| works.iter().map(Work::done).collect::<Vec<_>>();
        assert_eq!(done(&steered_works), done(&works));
        assert_eq!(done(&works).iter().sum::<u64>(), FILLED as u64);
    }

    #[test]
    fn the_busiest_shard_is_told_in_means() {
        let load = |n: u64| if n == 0 { 30 } else { 10 };
        let one = |n| HostId([n as u8; 16]);
        assert!((busiest(1, (0..4).map(|n| (one(n), load(n)))) - 1.0).abs() < 1e-12);
        let all_alike = busiest(4, (0..4).map(|_| (one(3), 1)));
        assert!((all_alike - 4.0).abs() < 1e-12);
    }
}
