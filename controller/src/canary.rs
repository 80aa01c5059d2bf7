//! The canary: a host inside the controller that falls silent on purpose, to see whether that is found, and
//! whether news of it is delivered, in time. What is known of it, and how it is judged; `app::canary` is the
//! shell that beats and waits.
//!
//! It exists only during a *drill*. It beats over loopback to the controller's own socket, sealed with a key
//! of the fleet secret, and is silenced with its socket open, so that the kernel answers nothing in its
//! place. Shards treat it as any host. Only the policy's shell knows it by its id ([`CANARY`]) and hands its
//! turns here: it stands in no registry, counts in no domain, storm or placement, no rule ever sees it,
//! nothing is failed over for it, and after the drill its shard forgets it. A host on loopback proves nothing
//! about the controller's link, and peers are not chosen from there, so it changes no verdict about others.
//!
//! The second half is a marked test event that goes the way of all others, through store, outbox and worker,
//! to `canary.receiver`, or to the controller's own API, where its signature is checked.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::{Instant, Wall};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::config::CanaryConfig;
use crate::delivery::sign::SigningSecret;
use crate::event::State;

/// Who the canary is, on the wire: `heartwatchcanary` in ASCII.
pub const CANARY: HostId = HostId(*b"heartwatchcanary");
/// The receiver on the controller's own API, if the config names none. No receiver of the config may have it.
pub const OWN_RECEIVER: &str = "heartwatch-canary";
/// How late its beats may be: kept there, so that a drill measures the controller and not what it learned.
pub const MARGIN: Duration = Duration::from_secs(1);
/// Between its beats.
pub const GAP: Duration = Duration::from_millis(200);
/// Beats after its margin was set and before it falls silent.
pub const BEATS: u32 = 5;
/// How far a webhook's time may lie from ours.
const TIMESTAMP_MAX_S: i64 = 300;

/// How far a drill is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// None goes on.
    #[default]
    Idle,
    /// The canary beats, and is to be seen alive.
    Beating,
    /// It is silent, and is to be seen down.
    Silent,
    /// A test event is on its way to its receiver.
    Delivering,
}

impl Phase {
    /// In plain words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Idle => "no drill goes on",
            Self::Beating => "the canary beats; waiting until it is seen alive",
            Self::Silent => "the canary is silent; waiting until it is called down",
            Self::Delivering => "a test event is on its way to the receiver",
        }
    }
}

/// How a drill ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DrillReport {
    /// Its number since the start, from 1.
    pub number: u64,
    /// When it ended, milliseconds since 1970.
    pub ended_ms: Wall,
    /// From its last beat until it was called down; none: it was not, or was never seen alive.
    pub detection_ms: Option<f64>,
    /// From the event until the receiver had it; none: it never had.
    pub delivery_ms: Option<f64>,
    /// To whom.
    pub receiver: String,
    /// What was wrong, with what to do; empty: it passed.
    pub failures: Vec<String>,
}

/// All that is known of drills.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CanaryStatus {
    /// Drills are held by themselves.
    pub scheduled: bool,
    /// How often, seconds.
    pub interval_s: u64,
    /// How far the present one is.
    pub phase: Phase,
    /// Drills begun since the start.
    pub begun: u64,
    /// Drills that failed since the start.
    pub failures: u64,
    /// The newest that ended.
    pub last: Option<DrillReport>,
    /// When one passed last, milliseconds since 1970.
    pub last_success_ms: Option<Wall>,
}

impl CanaryStatus {
    /// Why the newest drill failed; `None`: it passed, or there was none.
    pub fn failing(&self) -> Option<String> {
        let last = self.last.as_ref().filter(|last| !last.failures.is_empty())?;
        Some(format!(
            "the last drill failed: {}; `heartwatchctl drill` tries again",
            last.failures.join("; ")
        ))
    }
}

/// What a drill saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saw {
    /// It was seen alive.
    pub alive: bool,
    /// From its last beat until it was called down.
    pub detection: Option<Duration>,
    /// From the event until the receiver had it.
    pub delivery: Option<Duration>,
    /// What stood in the way of either, as far as it is known.
    pub trouble: Vec<String>,
}

/// What is wrong with what a drill saw, and what to do about it; empty: nothing. Pure.
pub fn judge(saw: &Saw, receiver: &str, limits: &CanaryConfig) -> Vec<String> {
    let mut wrong = saw.trouble.clone();
    let secs = |d: Duration| format!("{:.1} s", d.as_secs_f64());
    match saw.detection {
        None if !saw.alive => wrong.push(format!(
            "the canary's beats did not come through within {}: look at the doubts and rejects in \
             `heartwatchctl status`, and whether a firewall drops loopback UDP to the controller's port",
            secs(limits.detection_max)
        )),
        None => wrong.push(format!(
            "its silence was not found within {} (canary.detection_max): look at the doubts in \
             `heartwatchctl status`; a controller that doubts itself waits",
            secs(limits.detection_max)
        )),
        Some(took) if took > limits.detection_max => wrong.push(format!(
            "its silence was found after {}, and canary.detection_max is {}",
            secs(took),
            secs(limits.detection_max)
        )),
        Some(_) => {}
    }
    match saw.delivery {
        None => wrong.push(format!(
            "the test event did not reach `{receiver}` within {} (canary.delivery_max): look at \
             `heartwatchctl receivers` and `heartwatchctl deliveries --receiver {receiver}`",
            secs(limits.delivery_max)
        )),
        Some(took) if took > limits.delivery_max => wrong.push(format!(
            "the test event took {} to `{receiver}`, and canary.delivery_max is {}",
            secs(took),
            secs(limits.delivery_max)
        )),
        Some(_) => {}
    }
    wrong
}

/// What the parts of the controller share of the canary.
#[derive(Debug)]
pub struct Canary {
    status: Mutex<CanaryStatus>,
    /// What it is seen to be, and since when.
    seen: watch::Sender<Option<(State, Instant)>>,
    /// The newest test event that arrived at the own receiver, by its id, and when.
    arrived: watch::Sender<Option<(String, Instant)>>,
    secret: OnceLock<SigningSecret>,
    /// Somebody wants a drill now.
    pub(crate) wanted: Notify,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            status: Mutex::default(),
            seen: watch::Sender::new(None),
            arrived: watch::Sender::new(None),
            secret: OnceLock::new(),
            wanted: Notify::new(),
        }
    }
}

impl Canary {
    pub(crate) fn lock(&self) -> MutexGuard<'_, CanaryStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of drills.
    pub fn status(&self) -> CanaryStatus {
        self.lock().clone()
    }

    /// Wants a drill now, or joins the one that goes on. Answers its number.
    pub fn drill(&self) -> u64 {
        let status = self.lock();
        match status.phase {
            Phase::Idle => {
                self.wanted.notify_one();
                status.begun + 1
            }
            _ => status.begun,
        }
    }

    /// The canary's state turned, at this moment.
    pub fn turned(&self, state: State, now: Instant) {
        self.seen.send_replace(Some((state, now)));
    }

    pub(crate) fn seen(&self) -> watch::Receiver<Option<(State, Instant)>> {
        self.seen.subscribe()
    }

    pub(crate) fn arrived(&self) -> watch::Receiver<Option<(String, Instant)>> {
        self.arrived.subscribe()
    }

    pub(crate) fn set_secret(&self, secret: SigningSecret) {
        // There is one start only.
        drop(self.secret.set(secret));
    }

    /// A webhook came to the own receiver. `false`: its signature is not ours, or it is from another time.
    pub fn arrive(
        &self,
        id: &str,
        timestamp: &str,
        signatures: &str,
        body: &[u8],
        now: (Instant, Wall),
    ) -> bool {
        let Some(secret) = self.secret.get() else { return false };
        let Ok(at) = timestamp.parse::<i64>() else { return false };
        let old = now.1.as_secs().saturating_sub(at).saturating_abs() > TIMESTAMP_MAX_S;
        let right = secret.sign(id, at, body);
        if old || !signatures.split(' ').any(|one| same(one.as_bytes(), right.as_bytes())) {
            return false;
        }
        self.arrived.send_replace(Some((id.to_owned(), now.0)));
        true
    }
}

/// Whether two texts are the same, in a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> CanaryConfig {
        CanaryConfig {
            enabled: true,
            interval: Duration::from_secs(3_600),
            detection_max: Duration::from_secs(30),
            delivery_max: Duration::from_secs(10),
            receiver: None,
        }
    }

    #[test]
    fn a_drill_passes_only_if_both_halves_were_in_time_and_else_says_what_to_do() {
        let secs = |s| Some(Duration::from_secs(s));
        let good =
            Saw { alive: true, detection: secs(30), delivery: secs(10), trouble: Vec::new() };
        assert_eq!(judge(&good, "r", &limits()), Vec::<String>::new());
        let told = |saw: &Saw| judge(saw, "r", &limits()).join("; ");
        let late = Saw { detection: secs(31), ..good.clone() };
        assert!(told(&late).contains("after 31.0 s") && told(&late).contains("30.0 s"));
        let unseen = Saw { detection: None, ..good.clone() };
        assert!(
            told(&unseen).contains("not found") && told(&unseen).contains("heartwatchctl status")
        );
        let deaf = Saw { alive: false, detection: None, ..good.clone() };
        assert!(told(&deaf).contains("beats did not come through"));
        let lost = Saw { delivery: None, ..good.clone() };
        assert!(told(&lost).contains("deliveries --receiver r"));
        let trouble = Saw { trouble: vec!["no socket".to_owned()], ..good };
        assert_eq!(told(&trouble), "no socket");
    }

    #[test]
    fn only_a_webhook_with_the_right_signature_and_time_counts() {
        let canary = Canary::default();
        let text = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let secret = SigningSecret::parse_all(text).unwrap().remove(0);
        let now = (Instant(7), Wall(1_700_000_000_500));
        let signature = secret.sign("id", 1_700_000_000, b"{}");
        let arrive = |id: &str, at: &str, body: &[u8]| canary.arrive(id, at, &signature, body, now);
        assert!(!arrive("id", "1700000000", b"{}"), "there is no secret yet");
        canary.set_secret(secret.clone());
        assert!(!arrive("id", "1700000000", b"[]") && !arrive("other", "1700000000", b"{}"));
        assert!(!arrive("id", "1700000001", b"{}") && !arrive("id", "soon", b"{}"));
        assert_eq!(*canary.arrived().borrow(), None);
        assert!(arrive("id", "1700000000", b"{}"));
        assert_eq!(*canary.arrived().borrow(), Some(("id".to_owned(), Instant(7))));
        let late = (Instant(9), Wall(1_700_000_400_000));
        assert!(!canary.arrive("id", "1700000000", &signature, b"{}", late), "a recording");
    }

    #[test]
    fn a_drill_that_goes_on_is_joined() {
        let canary = Canary::default();
        assert_eq!(canary.drill(), 1);
        *canary.lock() = CanaryStatus { phase: Phase::Silent, begun: 1, ..CanaryStatus::default() };
        assert_eq!(canary.drill(), 1);
        let failed = DrillReport { failures: vec!["x".to_owned()], ..DrillReport::default() };
        *canary.lock() = CanaryStatus { begun: 1, last: Some(failed), ..CanaryStatus::default() };
        assert_eq!(canary.drill(), 2);
        assert!(canary.status().failing().unwrap().contains("failed: x"));
    }
}
