//! What comes from outside when hosts enrol: requests, answers, tokens, and the files that are kept.

use heartwatch_agent::enrol::{Enrolment, Url};
use heartwatch_common::auth::{FleetSecret, Keyring};
use heartwatch_common::enrol::{
    EnrolAnswer, EnrolRequest, Exchange, Hex, JoinToken, NonceAnswer, Purpose, RenewAnswer,
    RenewRequest, StandingAnswer,
};
use heartwatch_common::id::{Generation, HostId, KeyId};
use heartwatch_common::time::Instant;
use heartwatch_controller::enrol::NewToken;
use heartwatch_controller::enrol::nonces::Nonces;

/// Any bytes, as whatever the enrolment's routes and files take.
///
/// # Panics
/// If reading them does, if what was read is not the same when written and read again, or if bytes that no
/// key has sealed pass for sealed.
pub fn enrolment(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<JoinToken>() {
        let again: JoinToken = token.to_text().parse().expect("what was printed can be read");
        assert!(again.hash() == token.hash() && again.pin == token.pin);
    }
    if let Ok(ring) = text.parse::<Keyring>() {
        let again: Keyring = ring.to_text().parse().expect("what was printed can be read");
        assert!(again.key_ids().eq(ring.key_ids()));
    }
    if let Ok(url) = text.parse::<Url>() {
        assert_eq!(url.to_string().parse::<Url>().as_ref(), Ok(&url));
    }
    let key = FleetSecret::new(KeyId(3), [7; 32]).host_key(HostId([0x8a; 16]), Generation(0));
    if let Ok(ask) = serde_json::from_str::<EnrolRequest>(text)
        && let Some(proof) = &ask.proof
    {
        let ex = Exchange { host: ask.host, nonce: proof.nonce, own: ask.attempt };
        assert!(!proof.mac.is(&ex.proof(Purpose::Enrol, &key)), "a forged proof");
    }
    if let Ok(ask) = serde_json::from_str::<RenewRequest>(text) {
        let ex = Exchange { host: ask.host, nonce: ask.nonce, own: ask.own };
        assert!(!ask.mac.is(&ex.proof(Purpose::Renew, &key)), "a forged proof");
        assert!(!ask.mac.is(&ex.proof(Purpose::Standing, &key)), "a forged proof");
        let taken = Nonces::new([1; 32]).take(&ask.nonce, Instant::from_millis(5));
        assert!(taken.is_err(), "a forged nonce");
        let json = serde_json::to_string(&ask).expect("what was read can be written");
        assert!(serde_json::from_str::<RenewRequest>(&json).is_ok());
    }
    if let Ok(answer) = serde_json::from_str::<RenewAnswer>(text) {
        let ex = Exchange { host: HostId([0x8a; 16]), nonce: Hex([0; 48]), own: Hex([0; 16]) };
        assert!(answer.open(&ex, &key).is_none(), "a forged answer");
    }
    if let Ok(answer) = serde_json::from_str::<StandingAnswer>(text) {
        let ex = Exchange { host: HostId([0x8a; 16]), nonce: Hex([0; 48]), own: Hex([0; 16]) };
        assert!(!answer.answers(&ex, &key), "a forged answer");
    }
    if let Ok(kept) = serde_json::from_str::<Enrolment>(text) {
        let json = serde_json::to_string(&kept).expect("what was read can be written");
        assert_eq!(serde_json::from_str::<Enrolment>(&json).ok(), Some(kept));
    }
    drop(serde_json::from_str::<EnrolAnswer>(text));
    drop(serde_json::from_str::<NonceAnswer>(text));
    drop(serde_json::from_str::<NewToken>(text));
}
