//! Which shard owns a host: the same rule here and in the kernel's filter.
//!
//! The id's four words are folded and mixed, so that ids which count up spread as well as random ones:
//! `((w0 ^ w1 ^ w2 ^ w3) · 0x9E3779B1 mod 2³²) >> 16 mod shards`.

use heartwatch_common::id::HostId;
use heartwatch_common::wire::HOST_ID_OFFSET;

const MIX: u32 = 0x9E37_79B1;

/// The shard that owns a host.
///
/// # Panics
/// If `shards` is zero.
pub fn shard_of(host: HostId, shards: u16) -> u16 {
    let folded = host
        .0
        .chunks_exact(4)
        .fold(0u32, |acc, w| acc ^ u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    ((folded.wrapping_mul(MIX) >> 16) % u32::from(shards)) as u16
}

/// Classic BPF that computes [`shard_of`] of a datagram. For datagrams too short for an id the kernel
/// answers 0; they fail to decode there.
pub fn steering_program(shards: u16) -> Vec<libc::sock_filter> {
    let op = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |word: u32| {
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, HOST_ID_OFFSET as u32 + 4 * word)
    };
    let alu = |what: u32, k: u32| op(libc::BPF_ALU | what | libc::BPF_K, k);
    let mut program = vec![load(0)];
    for word in 1..4 {
        // X = A; A = next word; A ^= X
        program.push(op(libc::BPF_MISC | libc::BPF_TAX, 0));
        program.push(load(word));
        program.push(op(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0));
    }
    program.push(alu(libc::BPF_MUL, MIX));
    program.push(alu(libc::BPF_RSH, 16));
    program.push(alu(libc::BPF_MOD, u32::from(shards)));
    program.push(op(libc::BPF_RET | libc::BPF_A, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingest::socket::{BatchSocket, Role};
    use std::net::UdpSocket;

    fn id(n: u64) -> HostId {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&n.to_be_bytes());
        HostId(bytes)
    }

    #[test]
    fn even_ids_that_count_up_spread_over_the_shards() {
        let mut counts = [0u32; 4];
        (0..40_000).for_each(|n| counts[usize::from(shard_of(id(n), 4))] += 1);
        assert!(counts.iter().all(|c| (9_000..11_000).contains(c)), "{counts:?}");
    }

    #[test]
    fn the_kernel_steers_as_we_compute() {
        let shards = 3;
        let mut sockets = Vec::new();
        let mut address = "127.0.0.1:0".parse().unwrap();
        for _ in 0..shards {
            let socket = BatchSocket::bind(address, Role::Beats).unwrap();
            address = socket.local_addr().unwrap();
            sockets.push(socket);
        }
        sockets[0].steer(shards).unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..60 {
            let mut datagram = [0; 80];
            datagram[8..24].copy_from_slice(&id(n).0);
            peer.send_to(&datagram, address).unwrap();
        }
        let mut total = 0;
        for (shard, socket) in sockets.iter_mut().enumerate() {
            let n = socket.receive().unwrap();
            for i in 0..n {
                let bytes: [u8; 16] = socket.get(i).unwrap().bytes[8..24].try_into().unwrap();
                assert_eq!(usize::from(shard_of(HostId(bytes), shards)), shard);
            }
            total += n;
        }
        assert_eq!(total, 60);
    }
}
