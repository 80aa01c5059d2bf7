//! Answers that are shorter than what caused them: zeros at the end of a body are left out.

use super::{BODY_LEN, DATAGRAM_LEN, Fixed, TAG_LEN};

/// Most bytes that are left out: of the zeros that end an ack, a probe or a probe-reply.
pub const LEFT_OUT_MAX: usize = 8;
/// No datagram is shorter.
pub const DATAGRAM_LEN_MIN: usize = DATAGRAM_LEN - LEFT_OUT_MAX;
/// Length of an ack without its reserved bytes and its lease, and of a challenge's probe: shorter than all
/// that can cause one.
pub const ANSWER_LEN: usize = DATAGRAM_LEN - 6;
/// Bytes of a challenge's nonce that are drawn; the rest is zero. It is good once, for seconds, and what
/// answers it is sealed: nobody gains by guessing.
pub const CHALLENGE_NONCE_LEN: usize = 16 - LEFT_OUT_MAX;
/// What a body has behind the header.
const TAIL_LEN: usize = BODY_LEN - 24;

/// An unsealed datagram of `LEN` bytes that says the same; `None` if what would be left out is not zero.
pub fn shorter<const LEN: usize>(full: &Fixed) -> Option<[u8; LEN]> {
    const { assert!(DATAGRAM_LEN_MIN <= LEN && LEN <= DATAGRAM_LEN) };
    let body = LEN - TAG_LEN;
    full[body..BODY_LEN].iter().all(|byte| *byte == 0).then(|| {
        let mut out = [0; LEN];
        out[..body].copy_from_slice(&full[..body]);
        out
    })
}

/// What stands behind the header, with what was left out. The decoder has seen to it that it fits.
pub(super) fn filled(rest: &[u8]) -> [u8; TAIL_LEN] {
    let mut tail = [0; TAIL_LEN];
    let len = rest.len().min(TAIL_LEN);
    tail[..len].copy_from_slice(&rest[..len]);
    tail
}
