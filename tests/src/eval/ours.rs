//! The product's own detector, on the same arrivals as the others.
//!
//! Unlike the others it does not work alone: hosts of a fleet teach each other, so those of one run share
//! their [`Siblings`], and the run must advance them side by side.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use heartwatch_common::time::{Instant, micros};
use heartwatch_controller::detector::dice::Dice;
use heartwatch_controller::detector::timeout::target::Target;
use heartwatch_controller::detector::timeout::{
    GroupId, Histograms, LEARN_MAX, Learned, Patience, Siblings,
};

use super::rivals::{Arrival, Detector};

/// What the hosts of one run have in common. A closed loop may move the patience between two steps.
#[derive(Debug)]
pub struct Common {
    /// What they teach each other.
    pub siblings: Siblings,
    /// The knobs.
    pub patience: Patience,
    /// The closed loop that turns one of them, if any.
    pub target: Option<Target>,
}

impl Common {
    /// Lets the closed loop look at what was seen.
    pub fn look(&mut self, hosts: u64, now: Instant) {
        if let Some(target) = &mut self.target {
            self.patience.cost_s = target.look(self.patience.cost_s, hosts, now);
        }
    }
}

/// One host's timeout, as [`heartwatch_controller::detector::Detector`] keeps it.
#[derive(Debug)]
pub struct Ours {
    learned: Learned,
    histograms: Histograms,
    expected: Option<Instant>,
    deadline: Instant,
    group: GroupId,
    dice: Dice,
    common: Rc<RefCell<Common>>,
}

impl Ours {
    /// A host that has not been heard yet.
    pub fn new(common: Rc<RefCell<Common>>, group: GroupId, seed: u64) -> Self {
        Self {
            learned: Learned::default(),
            histograms: Histograms::default(),
            expected: None,
            deadline: Instant::FAR,
            group,
            dice: Dice::new(seed),
            common,
        }
    }
}

/// Seconds on anybody's clock; an hour is added so that none lies before its origin.
fn instant(s: f64) -> Instant {
    Instant(((s + 3_600.0) * 1e9) as u64)
}

impl Detector for Ours {
    fn observe(&mut self, a: &Arrival) -> f64 {
        let Common { siblings, patience, target } = &mut *self.common.borrow_mut();
        let (at, gap) = (instant(a.at_s), Duration::from_secs_f64(a.gap_s));
        let dice = self.dice.roll();
        if let Some(target) = target
            && at > self.deadline
        {
            target.mistake();
        }
        if let Some(expected) = self.expected {
            let overdue_ns = at.0.wrapping_sub(expected.0) as i64;
            if overdue_ns < LEARN_MAX.as_nanos() as i64 {
                let Self { learned, histograms, .. } = self;
                learned.learn(histograms, overdue_ns, patience, siblings, self.group, dice);
            }
        }
        let next = self.learned.expect(at, instant(a.sent_s), micros(gap));
        if self.expected.is_none() {
            self.learned.choose(&self.histograms, patience, siblings.prior(self.group));
        }
        self.expected = Some(next);
        self.deadline = next + self.learned.margin(patience).0;
        self.deadline.0 as f64 / 1e9 - 3_600.0
    }

    fn state_bytes(&self) -> usize {
        size_of::<Learned>() + size_of::<Histograms>() + size_of::<Instant>()
    }
}
