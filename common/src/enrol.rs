//! How a host gets its key, and the next one: what agent and controller say to each other over HTTPS.
//!
//! # Join token
//!
//! ```text
//! hwj1_<secret: 32 hexadecimal digits>[_<pin: 64 hexadecimal digits>]
//! ```
//!
//! The secret is 128 random bits; the controller keeps only its hash. The pin is the SHA-256 of the
//! controller's certificate (DER), so that the token alone says whom to trust; without it the agent needs
//! the certificate of an authority (`--ca`).
//!
//! # Proofs
//!
//! A host that has a key proves it without showing it, over a nonce that the controller gave:
//!
//! ```text
//! mac key = BLAKE3-keyed(host key, context)
//! proof   = BLAKE3-keyed(mac key, host id (16) ‖ the controller's nonce (48) ‖ the agent's nonce (16))
//! ```
//!
//! with the context `heartwatch enrol proof 1`, `heartwatch renew proof 1` or `heartwatch standing proof 1`.
//! Tags of datagrams are made of bodies that begin with the byte 1, contexts begin with a letter: one can't
//! stand for the other.
//!
//! # Renewal
//!
//! The answer to a renewal is sealed under the host's present key, whatever TLS says: so a host that was
//! off while the controller's certificate was replaced can still renew, and whoever stands between learns
//! nothing.
//!
//! ```text
//! parts  = the three parts of the proof
//! stream = BLAKE3-keyed(BLAKE3-keyed(host key, "heartwatch renew seal 1"), parts)
//! sealed = new key XOR stream
//! mac    = BLAKE3-keyed(BLAKE3-keyed(host key, "heartwatch renew answer 1"),
//!                       parts ‖ key id (1) ‖ generation (2, BE) ‖ sealed (32) ‖ pin (32), if there is one)
//! ```

mod standing;

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::auth::HostKey;
use crate::id::{ControllerId, Generation, HostId, KeyId};
pub use standing::{Revoked, STANDING_PATH, StandingAnswer, StandingRequest};

/// Route that gives a nonce.
pub const NONCE_PATH: &str = "/v1/enrol/nonce";
/// Route that takes an [`EnrolRequest`].
pub const ENROL_PATH: &str = "/v1/enrol";
/// Route that takes a [`RenewRequest`].
pub const RENEW_PATH: &str = "/v1/enrol/renew";
/// Bytes of a controller's nonce.
pub const NONCE_LEN: usize = 48;
/// Most bytes of a request or an answer of these routes.
pub const MESSAGE_LEN_MAX: usize = 16 * 1024;
/// A host name has at most this many bytes here.
pub const NAME_LEN_MAX: usize = 255;

/// A text is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolTextError {
    /// No join token.
    #[error(
        "a join token looks like `hwj1_…`, as `heartwatchctl token create` printed it: copy all of it, \
         on one line"
    )]
    Token,
    /// Not so many hexadecimal digits.
    #[error("{0} hexadecimal digits are needed")]
    Hex(usize),
}

/// Bytes that travel as hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> Hex<N> {
    /// Random ones.
    pub fn draw<R: Rng + ?Sized>(rng: &mut R) -> Self {
        let mut bytes = [0; N];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Whether they are the same, in constant time.
    pub fn is(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.0.ct_eq(&other.0).into()
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    /// Some of these are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hex({N} bytes)")
    }
}

impl<const N: usize> FromStr for Hex<N> {
    type Err = EnrolTextError;

    fn from_str(text: &str) -> Result<Self, EnrolTextError> {
        let mut bytes = [0; N];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| EnrolTextError::Hex(2 * N))?;
        Ok(Self(bytes))
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// SHA-256 of a certificate (DER).
pub type Pin = Hex<32>;

/// What lets hosts enrol: secret.
#[derive(Clone)]
pub struct JoinToken {
    secret: Zeroizing<[u8; 16]>,
    /// The certificate of the controller that it is for.
    pub pin: Option<Pin>,
}

impl JoinToken {
    /// A new one, from a cryptographic source.
    pub fn draw<R: Rng + ?Sized>(pin: Option<Pin>, rng: &mut R) -> Self {
        let mut secret = Zeroizing::new([0; 16]);
        rng.fill_bytes(&mut *secret);
        Self { secret, pin }
    }

    /// What the controller keeps of it. The secret has 128 random bits, so no slow hash is needed.
    pub fn hash(&self) -> Hex<32> {
        Hex(blake3::derive_key("heartwatch join token 1", &*self.secret))
    }

    /// The text form: secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(hex::encode(*self.secret));
        Zeroizing::new(match self.pin {
            Some(pin) => format!("hwj1_{}_{pin}", *secret),
            None => format!("hwj1_{}", *secret),
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(secret)")
    }
}

impl FromStr for JoinToken {
    type Err = EnrolTextError;

    fn from_str(text: &str) -> Result<Self, EnrolTextError> {
        let mut parts = text.trim().split('_');
        let (Some("hwj1"), Some(digits), pin, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(EnrolTextError::Token);
        };
        let mut secret = Zeroizing::new([0; 16]);
        hex::decode_to_slice(digits, &mut *secret).map_err(|_| EnrolTextError::Token)?;
        let pin = pin.map(Pin::from_str).transpose().map_err(|_| EnrolTextError::Token)?;
        Ok(Self { secret, pin })
    }
}

/// What an exchange hangs on: all three are under every proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// Whose.
    pub host: HostId,
    /// The controller's nonce: good once, for a minute.
    pub nonce: Hex<NONCE_LEN>,
    /// The agent's own.
    pub own: Hex<16>,
}

/// What a proof is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To enrol anew while the host is watched.
    Enrol,
    /// To get the next key.
    Renew,
    /// To hear whether it is believed.
    Standing,
}

impl Purpose {
    const fn context(self) -> &'static [u8] {
        match self {
            Self::Enrol => b"heartwatch enrol proof 1",
            Self::Renew => b"heartwatch renew proof 1",
            Self::Standing => b"heartwatch standing proof 1",
        }
    }
}

impl Exchange {
    fn parts(&self) -> [&[u8]; 3] {
        [&self.host.0, &self.nonce.0, &self.own.0]
    }

    /// The proof that whoever makes it has `key`.
    pub fn proof(&self, purpose: Purpose, key: &HostKey) -> Hex<32> {
        Hex(key.mac(purpose.context(), &self.parts()))
    }
}

/// Proof of the key that a host has now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proof {
    /// The controller's nonce.
    pub nonce: Hex<NONCE_LEN>,
    /// Which key.
    pub key_id: KeyId,
    /// Which of its generations.
    pub generation: Generation,
    /// [`Exchange::proof`]; the agent's own nonce is [`EnrolRequest::attempt`].
    pub mac: Hex<32>,
}

/// "Let me in." Unknown members are ignored, so that newer agents may say more.
#[derive(Clone, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// [`JoinToken`] as text, with its pin or without.
    pub token: Zeroizing<String>,
    /// The id that the host would like, from its machine id.
    pub host: HostId,
    /// Drawn once for an enrolment and kept until it is done: whoever repeats it is the same.
    pub attempt: Hex<16>,
    /// Its name, for people, at most [`NAME_LEN_MAX`] bytes.
    #[serde(default)]
    pub name: String,
    /// Version of its agent, for people.
    #[serde(default)]
    pub agent_version: String,
    /// What tells machines apart whose machine ids are copies, as far as it can: a hash.
    pub machine: Hex<32>,
    /// That it has the key of that id now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// "Welcome." Holds the key: secret.
#[derive(Clone, Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// Who the host is from now on: not always who it wanted to be.
    pub host: HostId,
    /// Its key, `hwk1:…`.
    pub key: Zeroizing<String>,
    /// Where to beat to, as `host` or `host:port`; empty: to the host of the URL.
    #[serde(default)]
    pub controllers: Vec<String>,
    /// The UDP port where `controllers` says none, or nothing.
    pub port: u16,
    /// Labels that the controller gives it.
    #[serde(default)]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Which controller.
    pub controller: ControllerId,
}

/// A controller's nonce.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NonceAnswer {
    /// It.
    pub nonce: Hex<NONCE_LEN>,
}

/// "Give me my next key."
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Who.
    pub host: HostId,
    /// Its present key's id.
    pub key_id: KeyId,
    /// And generation.
    pub generation: Generation,
    /// The controller's nonce.
    pub nonce: Hex<NONCE_LEN>,
    /// The agent's.
    pub own: Hex<16>,
    /// [`Exchange::proof`].
    pub mac: Hex<32>,
}

/// The next key, sealed under the present one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewAnswer {
    /// The next key's id.
    pub key_id: KeyId,
    /// And generation.
    pub generation: Generation,
    /// The key, sealed.
    pub sealed: Hex<32>,
    /// The controller's present certificate, if it serves TLS itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Over all of that.
    pub mac: Hex<32>,
}

impl RenewAnswer {
    /// Seals `next` for who has `present`.
    pub fn seal(ex: &Exchange, present: &HostKey, next: &HostKey, pin: Option<Pin>) -> Self {
        let sealed = Hex(next.xored(&present.mac(b"heartwatch renew seal 1", &ex.parts())));
        let (key_id, generation) = (next.key_id(), next.generation());
        let mut answer = Self { key_id, generation, sealed, pin, mac: Hex([0; 32]) };
        answer.mac = answer.tag(ex, present);
        answer
    }

    fn tag(&self, ex: &Exchange, present: &HostKey) -> Hex<32> {
        let [a, b, c] = ex.parts();
        let generation = self.generation.0.to_be_bytes();
        let pin = self.pin.map_or(Vec::new(), |p| p.0.to_vec());
        let parts: [&[u8]; 7] = [a, b, c, &[self.key_id.0], &generation, &self.sealed.0, &pin];
        Hex(present.mac(b"heartwatch renew answer 1", &parts))
    }

    /// The next key, if this comes from who has `present` too and answers that exchange.
    pub fn open(&self, ex: &Exchange, present: &HostKey) -> Option<HostKey> {
        if !self.mac.is(&self.tag(ex, present)) {
            return None;
        }
        let stream = present.mac(b"heartwatch renew seal 1", &ex.parts());
        Some(HostKey::sealed(self.key_id, self.generation, &self.sealed.0, &stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::FleetSecret;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const HOST: HostId = HostId([7; 16]);

    fn key(secret: u8, host: HostId) -> HostKey {
        FleetSecret::new(KeyId(secret), [secret; 32]).host_key(host, Generation(3))
    }

    fn exchange(seed: u64) -> Exchange {
        let mut rng = StdRng::seed_from_u64(seed);
        Exchange { host: HOST, nonce: Hex::draw(&mut rng), own: Hex::draw(&mut rng) }
    }

    #[test]
    fn a_join_token_survives_its_text_and_never_shows() {
        let mut rng = StdRng::seed_from_u64(1);
        for pin in [None, Some(Hex([9; 32]))] {
            let token = JoinToken::draw(pin, &mut rng);
            let text = token.to_text();
            let back: JoinToken = format!("{}\n", *text).parse().unwrap();
            assert!(back.hash() == token.hash() && back.pin == pin);
            assert!(!format!("{token:?}").contains(&text[5..37]));
            assert!(!token.hash().to_string().contains(&text[5..37]));
        }
        for bad in ["", "hwj1", "hwj1_", "hwj1_00", "hwk1_00112233445566778899aabbccddeeff"] {
            assert_eq!(bad.parse::<JoinToken>().unwrap_err(), EnrolTextError::Token, "{bad}");
        }
        let cut = "hwj1_00112233445566778899aabbccddeeff_0011";
        assert_eq!(cut.parse::<JoinToken>().unwrap_err(), EnrolTextError::Token);
    }

    #[test]
    fn a_proof_is_of_one_key_purpose_and_exchange() {
        let (ex, other) = (exchange(1), exchange(2));
        let proof = ex.proof(Purpose::Enrol, &key(1, HOST));
        assert!(proof.is(&ex.proof(Purpose::Enrol, &key(1, HOST))));
        assert!(!proof.is(&ex.proof(Purpose::Renew, &key(1, HOST))));
        assert!(!proof.is(&ex.proof(Purpose::Enrol, &key(2, HOST))));
        assert!(!proof.is(&other.proof(Purpose::Enrol, &key(1, HOST))));
        let elsewhere = Exchange { host: HostId([8; 16]), ..ex };
        assert!(!proof.is(&elsewhere.proof(Purpose::Enrol, &key(1, HOST))));
    }

    #[test]
    fn the_next_key_is_opened_by_the_present_one_alone_and_not_bent_on_the_way() {
        let (ex, present, next) = (exchange(1), key(1, HOST), key(2, HOST));
        let answer = RenewAnswer::seal(&ex, &present, &next, Some(Hex([4; 32])));
        let text = serde_json::to_string(&answer).unwrap();
        assert!(!text.contains(&next.to_text()[9..73]));
        let back: RenewAnswer = serde_json::from_str(&text).unwrap();
        assert_eq!(*back.open(&ex, &present).unwrap().to_text(), *next.to_text());
        assert!(back.open(&ex, &key(1, HostId([8; 16]))).is_none());
        assert!(back.open(&exchange(2), &present).is_none());
        let mut bent = [back.clone(), back.clone(), back.clone(), back.clone()];
        bent[0].sealed.0[5] ^= 1;
        bent[1].key_id = KeyId(9);
        bent[2].generation = Generation(4);
        bent[3].pin = None;
        for answer in bent {
            assert!(answer.open(&ex, &present).is_none(), "{answer:?}");
        }
    }
}
