//! How a host stands with its controller: asked by an agent that no controller answers any more, over HTTPS,
//! as datagrams under a revoked key are never answered.
//!
//! The question proves the host's present key, revoked or not, so strangers learn nothing. The answer is
//! sealed under the same key, so that nobody between can tell a host that it was taken out:
//!
//! ```text
//! mac = BLAKE3-keyed(BLAKE3-keyed(host key, "heartwatch standing answer 1"),
//!                    parts ‖ revoked (1): 0 or 1 ‖ when (8, BE, milliseconds since 1970) ‖ why (UTF-8))
//! ```

use serde::{Deserialize, Serialize};

use super::{Exchange, Hex, RenewRequest};
use crate::auth::HostKey;
use crate::time::Wall;

/// Route that takes a [`StandingRequest`].
pub const STANDING_PATH: &str = "/v1/enrol/standing";

/// "Am I still believed?" The same members as a renewal, with a proof for
/// [`Purpose::Standing`](super::Purpose::Standing).
pub type StandingRequest = RenewRequest;

/// That a host was revoked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// When, milliseconds since 1970.
    pub at_ms: Wall,
    /// Why, and who said so.
    pub reason: String,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingAnswer {
    /// It was revoked; nothing: its key is good, or was replaced by a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Revoked>,
    /// Over that and the exchange.
    pub mac: Hex<32>,
}

impl StandingAnswer {
    /// Seals it for who has `present`.
    pub fn seal(ex: &Exchange, present: &HostKey, revoked: Option<Revoked>) -> Self {
        let mac = tag(ex, present, revoked.as_ref());
        Self { revoked, mac }
    }

    /// Whether this comes from who has `present` too and answers that exchange.
    pub fn answers(&self, ex: &Exchange, present: &HostKey) -> bool {
        self.mac.is(&tag(ex, present, self.revoked.as_ref()))
    }
}

fn tag(ex: &Exchange, present: &HostKey, revoked: Option<&Revoked>) -> Hex<32> {
    let [a, b, c] = ex.parts();
    let at = revoked.map_or(0, |r| r.at_ms.0).to_be_bytes();
    let reason = revoked.map_or("", |r| r.reason.as_str());
    let parts: [&[u8]; 6] = [a, b, c, &[u8::from(revoked.is_some())], &at, reason.as_bytes()];
    Hex(present.mac(b"heartwatch standing answer 1", &parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::FleetSecret;
    use crate::id::{Generation, HostId, KeyId};

    #[test]
    fn only_who_has_the_key_can_tell_a_host_that_it_was_taken_out_and_only_in_answer() {
        let key = |secret| {
            FleetSecret::new(KeyId(1), [secret; 32]).host_key(HostId([7; 16]), Generation(3))
        };
        let ex = |n| Exchange { host: HostId([7; 16]), nonce: Hex([n; 48]), own: Hex([n; 16]) };
        let why = Revoked { at_ms: Wall(5), reason: "lost (ann)".to_owned() };
        for revoked in [None, Some(why.clone())] {
            let answer = StandingAnswer::seal(&ex(1), &key(9), revoked);
            let text = serde_json::to_string(&answer).unwrap();
            let back: StandingAnswer = serde_json::from_str(&text).unwrap();
            assert!(back.answers(&ex(1), &key(9)) && back == answer);
            assert!(!back.answers(&ex(2), &key(9)) && !back.answers(&ex(1), &key(8)));
            let bent = [
                None,
                Some(why.clone()),
                Some(Revoked { at_ms: Wall(6), ..why.clone() }),
                Some(Revoked { reason: "lost (bob)".to_owned(), ..why.clone() }),
            ];
            for revoked in bent.into_iter().filter(|r| *r != answer.revoked) {
                let other = StandingAnswer { revoked, ..answer.clone() };
                assert!(!other.answers(&ex(1), &key(9)), "{other:?}");
            }
        }
    }
}
