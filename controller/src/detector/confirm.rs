//! From suspect to a verdict: the probe plan.
//!
//! A suspect gets a burst of probes, each with the same random nonce. An answer by its agent ends the
//! plan (the shard takes the suspect out); if none has come when the watermark has passed the last
//! probe's waiting time, the host is down: `agent-lost` if its kernel said that nobody listens and
//! quoted our nonce, else `silent`. The watermark matters: an answer that lies unread in our mail must
//! not be missed.
//!
//! Work is bounded by a token bucket: who has been silent longest is probed first, the others wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use heartwatch_common::time::Instant;

use crate::event::Cause;

/// Tokens gathered at `rate` per second up to `burst`; pure.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: u32, burst: u32, now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { rate: f64::from(rate), burst, tokens: burst, filled: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let gathered = now.since(self.filled).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gathered).min(self.burst);
        self.filled = self.filled.max(now);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// How suspects are probed.
#[derive(Clone, Copy, Debug)]
pub struct ProbePlan {
    /// Probes before a verdict.
    pub probes: u8,
    /// Time between probes, and after the last.
    pub spacing: Duration,
    /// Probes per second.
    pub rate_max: u32,
}

/// One suspect.
#[derive(Clone, Copy, Debug)]
pub struct Suspect {
    /// Since when.
    pub since: Instant,
    /// Probes sent.
    pub sent: u8,
    /// How many of them its kernel answered with "nobody listens".
    pub unreachable: u8,
    /// What a true answer must contain.
    pub nonce: [u8; 16],
    /// When something is to be done next.
    next: Instant,
}

/// What to do about a suspect now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send probe number `number` with this nonce.
    Probe {
        /// Whom.
        slot: u32,
        /// From 1.
        number: u8,
        /// To be sent back.
        nonce: [u8; 16],
    },
    /// Nobody answered.
    Down {
        /// Who.
        slot: u32,
        /// Why.
        cause: Cause,
        /// Probes that its kernel answered with "nobody listens".
        unreachable: u8,
    },
}

/// All suspects of a shard.
#[derive(Clone, Debug)]
pub struct Confirm {
    plan: ProbePlan,
    suspects: BTreeMap<u32, Suspect>,
    /// Suspects by the moment of their next step; ties and backlog go to the lowest, the longest waiting.
    queue: BTreeSet<(Instant, u32)>,
    budget: Bucket,
}

impl Confirm {
    /// No suspects.
    pub fn new(plan: ProbePlan, now: Instant) -> Self {
        let budget = Bucket::new(plan.rate_max, plan.rate_max.div_ceil(10), now);
        Self { plan, suspects: BTreeMap::new(), queue: BTreeSet::new(), budget }
    }

    /// Begins to probe a host.
    pub fn begin(&mut self, slot: u32, nonce: [u8; 16], now: Instant) {
        self.end(slot);
        let suspect = Suspect { since: now, sent: 0, unreachable: 0, nonce, next: now };
        self.suspects.insert(slot, suspect);
        self.queue.insert((now, slot));
    }

    /// Ends the plan of a host: it answered, left, or was forgotten.
    pub fn end(&mut self, slot: u32) -> Option<Suspect> {
        let suspect = self.suspects.remove(&slot)?;
        self.queue.remove(&(suspect.next, slot));
        Some(suspect)
    }

    /// The suspect in a slot.
    pub fn get(&self, slot: u32) -> Option<&Suspect> {
        self.suspects.get(&slot)
    }

    /// Whether `nonce` is what the suspect in `slot` was asked to send back, after it was asked.
    pub fn answers(&self, slot: u32, nonce: &[u8; 16]) -> bool {
        self.suspects.get(&slot).is_some_and(|s| s.sent > 0 && s.nonce == *nonce)
    }

    /// The host's kernel says that nobody listens, quoting `nonce`. `false` if it quotes something else.
    pub fn unreachable(&mut self, slot: u32, nonce: &[u8; 16]) -> bool {
        let Some(s) = self.suspects.get_mut(&slot).filter(|s| s.sent > 0 && s.nonce == *nonce)
        else {
            return false;
        };
        s.unreachable = s.unreachable.saturating_add(1);
        true
    }

    /// How many suspects there are.
    pub fn len(&self) -> usize {
        self.suspects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.suspects.is_empty()
    }

    /// The probe plan.
    pub fn plan(&self) -> &ProbePlan {
        &self.plan
    }

    /// The next thing to do, if anything is due. `seen`: everything that arrived before it has been read.
    pub fn step(&mut self, now: Instant, seen: Instant) -> Option<Step> {
        let &(due, slot) = self.queue.first()?;
        if due > now {
            return None;
        }
        let suspect = self.suspects.get_mut(&slot)?;
        if suspect.sent >= self.plan.probes {
            if seen < due {
                // Its answer may lie unread.
                return None;
            }
            let unreachable = suspect.unreachable;
            let cause = if unreachable > 0 { Cause::AgentLost } else { Cause::Silent };
            self.end(slot);
            return Some(Step::Down { slot, cause, unreachable });
        }
        if !self.budget.take(now) {
            return None;
        }
        self.queue.pop_first();
        suspect.sent += 1;
        suspect.next = now + self.plan.spacing;
        self.queue.insert((suspect.next, slot));
        Some(Step::Probe { slot, number: suspect.sent, nonce: suspect.nonce })
    }

    /// When the next step is due; it may have to wait for the watermark or the budget.
    pub fn next_due(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: ProbePlan =
        ProbePlan { probes: 3, spacing: Duration::from_millis(200), rate_max: 1_000 };

    fn ms(n: u64) -> Instant {
        Instant::from_millis(n)
    }

    fn steps(confirm: &mut Confirm, at: u64) -> Vec<Step> {
        std::iter::from_fn(|| confirm.step(ms(at), ms(at))).collect()
    }

    #[test]
    fn three_unanswered_probes_make_a_host_down_and_not_one_fewer() {
        let mut confirm = Confirm::new(PLAN, ms(0));
        confirm.begin(7, [1; 16], ms(0));
        for (at, number) in [(0, 1), (200, 2), (400, 3)] {
            let want = Step::Probe { slot: 7, number, nonce: [1; 16] };
            assert_eq!(steps(&mut confirm, at), [want]);
            assert_eq!(steps(&mut confirm, at + 199), []);
        }
        assert_eq!(
            steps(&mut confirm, 600),
            [Step::Down { slot: 7, cause: Cause::Silent, unreachable: 0 }]
        );
        assert!(confirm.is_empty() && confirm.next_due().is_none());
    }

    #[test]
    fn no_verdict_falls_while_an_answer_may_lie_unread() {
        let mut confirm = Confirm::new(PLAN, ms(0));
        confirm.begin(7, [1; 16], ms(0));
        for at in [0, 200, 400] {
            steps(&mut confirm, at);
        }
        assert_eq!(confirm.step(ms(60_000), ms(599)), None);
        assert!(confirm.step(ms(60_000), ms(600)).is_some());
    }

    #[test]
    fn a_kernel_that_quotes_our_nonce_makes_the_cause_agent_lost() {
        let mut confirm = Confirm::new(PLAN, ms(0));
        confirm.begin(7, [1; 16], ms(0));
        assert!(!confirm.unreachable(7, &[1; 16]), "nothing was sent yet");
        steps(&mut confirm, 0);
        assert!(!confirm.unreachable(7, &[2; 16]) && !confirm.unreachable(8, &[1; 16]));
        assert!(confirm.unreachable(7, &[1; 16]));
        for at in [200, 400] {
            steps(&mut confirm, at);
        }
        assert_eq!(
            steps(&mut confirm, 600),
            [Step::Down { slot: 7, cause: Cause::AgentLost, unreachable: 1 }]
        );
    }

    #[test]
    fn a_crowd_of_suspects_is_probed_within_the_budget_longest_silent_first() {
        let mut confirm = Confirm::new(PLAN, ms(0));
        for slot in 0..500 {
            confirm.begin(slot, [1; 16], ms(u64::from(slot)));
        }
        let first = steps(&mut confirm, 500);
        assert_eq!(first.len(), 100, "a tenth of a second's worth at once");
        assert_eq!(first[0], Step::Probe { slot: 0, number: 1, nonce: [1; 16] });
        let total: usize = (501..=2_600).map(|at| steps(&mut confirm, at).len()).sum();
        let downs = 500 - confirm.len();
        assert!(total + 100 - downs <= 2_200, "{total} steps, {downs} downs");
        let rest: usize = (2_601..9_000).map(|at| steps(&mut confirm, at).len()).sum();
        assert_eq!(total + 100 + rest, 500 * 4, "three probes and a verdict each");
    }
}
