use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::auth::{HostKey, load_secret};
use heartwatch_common::config::Span;
use heartwatch_common::enrol::Proof;
use heartwatch_common::time::{Instant, ManualClock};

use super::testing::enrolling;
use super::*;

struct World {
    enrolling: Arc<Enrolling>,
    clock: Arc<ManualClock>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Instant(5_000_000_000), Wall(1_000_000)));
        let view = Arc::<View>::default();
        Self { enrolling: enrolling(dir.path(), &view, clock.clone()), clock, _dir: dir }
    }

    async fn token(&self, uses: u32) -> Zeroizing<String> {
        let wish = NewToken {
            name: None,
            ttl: Span(Duration::from_secs(60)),
            uses,
            labels: BTreeMap::from([("pool".to_owned(), "a".to_owned())]),
            clones: false,
            by: "test".to_owned(),
        };
        self.enrolling.create(wish).await.unwrap().token
    }

    fn ask(&self, token: &str, host: u8) -> EnrolRequest {
        EnrolRequest {
            token: Zeroizing::new(token.to_owned()),
            host: HostId([host; 16]),
            attempt: Hex([host; 16]),
            name: "web-1".to_owned(),
            agent_version: "0.1.0".to_owned(),
            machine: Hex([host; 32]),
            proof: None,
        }
    }
}

#[tokio::test]
async fn a_host_gets_its_key_and_the_tokens_labels_and_then_its_next_key() {
    let w = World::new();
    let token = w.token(1).await;
    let LetIn { answer, expected, gained, news } =
        w.enrolling.enrol(w.ask(&token, 7)).await.unwrap();
    assert_eq!((gained, &news.unwrap()["enrolment"]["how"]), (Gained::New, &json!("new")));
    assert_eq!((expected.id, expected.labels["pool"].as_str()), (HostId([7; 16]), "a"));
    let present: HostKey = answer.key.parse().unwrap();
    assert_eq!((present.key_id(), answer.port), (KeyId(1), 2328));
    assert_eq!(answer.controllers, ["watch.example:2400"], "as the config says");
    let mut labels = BTreeMap::from([("pool".to_owned(), "mine".to_owned())]);
    w.enrolling.p.enrolled.label(HostId([7; 16]), &mut labels);
    assert_eq!(labels["pool"], "a");

    w.enrolling.rotate().await.unwrap();
    let ids: Vec<_> = w.enrolling.secrets().await.unwrap();
    assert_eq!(
        (ids[0].key_id, ids[0].state.as_str(), ids[1].state.as_str()),
        (KeyId(2), "current", "live")
    );
    // Even a secret that was retired long ago renews.
    w.enrolling.retire(KeyId(1), false).await.unwrap();
    assert_eq!(w.enrolling.secrets().await.unwrap()[1].state, "renew-only");
    let own = Hex([3; 16]);
    let renewal = |nonce| {
        let ex = Exchange { host: HostId([7; 16]), nonce, own };
        let (key_id, generation) = (present.key_id(), present.generation());
        let mac = ex.proof(Purpose::Renew, &present);
        (ex, RenewRequest { host: ex.host, key_id, generation, nonce, own, mac })
    };
    let (ex, ask) = renewal(w.enrolling.nonce());
    let answer = w.enrolling.renew(&ask).unwrap();
    let next = answer.open(&ex, &present).unwrap();
    assert_eq!((next.key_id(), answer.pin), (KeyId(2), Some(Hex([5; 32]))));
    let ring: Keyring = load_secret(&w.enrolling.p.secret_file).unwrap();
    assert_eq!(
        *ring.host_key(KeyId(2), ex.host, next.generation()).unwrap().to_text(),
        *next.to_text()
    );
    assert!(matches!(w.enrolling.renew(&ask), Err(EnrolError::Unproved(_))), "a replay");
    let (_, mut forged) = renewal(w.enrolling.nonce());
    forged.host = HostId([8; 16]);
    assert!(matches!(w.enrolling.renew(&forged), Err(EnrolError::Unproved(_))));
    // Used nonces have a bounded place: who proves nothing takes none of it.
    let (_, honest) = renewal(forged.nonce);
    assert!(w.enrolling.renew(&honest).is_ok());
    assert_eq!(w.enrolling.counts().renewals(), 2);
    w.enrolling.revoke(HostId([7; 16]), "lost").await.unwrap();
    let (_, late) = renewal(w.enrolling.nonce());
    let refused = w.enrolling.renew(&late).unwrap_err();
    assert!(refused.to_string().contains("revoked"), "{refused}");
}

#[tokio::test]
async fn who_proves_a_key_that_was_revoked_is_told_so_and_nobody_else() {
    let w = World::new();
    let token = w.token(1).await;
    let LetIn { answer, .. } = w.enrolling.enrol(w.ask(&token, 7)).await.unwrap();
    let present: HostKey = answer.key.parse().unwrap();
    let ask = |purpose| {
        let ex = Exchange { host: HostId([7; 16]), nonce: w.enrolling.nonce(), own: Hex([3; 16]) };
        let (key_id, generation) = (present.key_id(), present.generation());
        let mac = ex.proof(purpose, &present);
        let ask = StandingRequest {
            host: ex.host,
            key_id,
            generation,
            nonce: ex.nonce,
            own: ex.own,
            mac,
        };
        (ex, ask)
    };
    let (ex, good) = ask(Purpose::Standing);
    let answer = w.enrolling.standing(&good).await.unwrap();
    assert!(answer.answers(&ex, &present) && answer.revoked.is_none());
    w.enrolling.revoke(HostId([7; 16]), "lost (ann)").await.unwrap();
    let (ex, late) = ask(Purpose::Standing);
    let answer = w.enrolling.standing(&late).await.unwrap();
    assert!(answer.answers(&ex, &present));
    assert_eq!(answer.revoked.unwrap().reason, "lost (ann)");
    // Not to who proved something else, nor to who only heard it.
    assert!(matches!(w.enrolling.standing(&late).await, Err(EnrolError::Unproved(_))));
    let (_, other) = ask(Purpose::Renew);
    let refused = w.enrolling.standing(&other).await.unwrap_err().to_string();
    assert!(!refused.contains("revoked") && !refused.contains("lost"), "{refused}");
    w.enrolling.lift(HostId([7; 16])).await.unwrap();
    let (_, lifted) = ask(Purpose::Standing);
    assert_eq!(w.enrolling.standing(&lifted).await.unwrap().revoked, None);
}

#[tokio::test]
async fn strangers_the_used_up_and_the_late_are_told_so() {
    let w = World::new();
    let other = "hwj1_00112233445566778899aabbccddeeff";
    let refused = w.enrolling.enrol(w.ask(other, 7)).await.err().unwrap();
    assert!(matches!(refused, EnrolError::Refused(Refusal::UnknownToken)));
    let token = w.token(1).await;
    w.enrolling.enrol(w.ask(&token, 7)).await.unwrap();
    let again = w.enrolling.enrol(w.ask(&token, 7)).await.unwrap();
    assert!(again.gained == Gained::Repeated && again.news.is_none());
    let refused = w.enrolling.enrol(w.ask(&token, 8)).await.err().unwrap();
    assert!(matches!(refused, EnrolError::Refused(Refusal::TokenUsedUp(_))));
    let token = w.token(9).await;
    w.clock.step_wall(60_000);
    let refused = w.enrolling.enrol(w.ask(&token, 8)).await.err().unwrap();
    assert!(matches!(refused, EnrolError::Refused(Refusal::TokenExpired(_))));
    let canary = EnrolRequest { host: CANARY, ..w.ask(&token, 8) };
    assert!(matches!(w.enrolling.enrol(canary).await, Err(EnrolError::Invalid(_))));
}

#[tokio::test]
async fn who_proves_its_key_keeps_its_generation() {
    let w = World::new();
    let token = w.token(9).await;
    let LetIn { answer, .. } = w.enrolling.enrol(w.ask(&token, 7)).await.unwrap();
    let key: HostKey = answer.key.parse().unwrap();
    let again = |nonce: Hex<NONCE_LEN>| {
        let attempt = Hex([99; 16]);
        let ex = Exchange { host: HostId([7; 16]), nonce, own: attempt };
        let mac = ex.proof(Purpose::Enrol, &key);
        let proof = Proof { nonce, key_id: key.key_id(), generation: key.generation(), mac };
        EnrolRequest { attempt, proof: Some(proof), ..w.ask(&token, 7) }
    };
    let LetIn { answer, gained, .. } = w.enrolling.enrol(again(w.enrolling.nonce())).await.unwrap();
    assert_eq!(gained, Gained::Kept);
    assert_eq!(*answer.key, *key.to_text());
    // Without the proof it is a machine that lost its key: the old one dies.
    let lost = EnrolRequest { attempt: Hex([98; 16]), ..w.ask(&token, 7) };
    let LetIn { answer, gained, news, .. } = w.enrolling.enrol(lost).await.unwrap();
    assert_eq!(gained, Gained::Rekeyed);
    assert!(news.unwrap()["reason"].as_str().unwrap().contains("older keys are dead"));
    let granted: Vec<u64> = w.enrolling.counts().granted().iter().map(|g| g.1).collect();
    assert_eq!(granted, [1, 1, 1, 0]);
    assert_eq!(answer.key.parse::<HostKey>().unwrap().generation(), Generation(1));
    assert_eq!(w.enrolling.p.enrolled.least(HostId([7; 16])), Generation(1));
}
