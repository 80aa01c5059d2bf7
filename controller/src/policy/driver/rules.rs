//! What operators ask about rules: nothing of it changes anything.

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use tokio::sync::oneshot;

use super::Running;
use crate::config::Rule;
use crate::control::ControlError;
use crate::event::EventKind;
use crate::policy::question::Foresight;
use crate::policy::waits::WaitStatus;

/// The rules, in order, and how much waits for each.
pub type Waiting = (Vec<Rule>, Vec<u64>);

/// A question about rules.
#[derive(Debug)]
pub enum AskRules {
    /// The rules, and how much waits for each.
    All(oneshot::Sender<Result<Waiting, ControlError>>),
    /// What they keep back of a host.
    Of(HostId, oneshot::Sender<Result<Vec<WaitStatus>, ControlError>>),
    /// What they would do if this happened to a host then; `None`: now.
    Foresee(HostId, EventKind, Option<Wall>, oneshot::Sender<Result<Foresight, ControlError>>),
}

impl Running {
    pub(super) fn answer_of_rules(&self, ask: AskRules) {
        let (policy, wall) = (&self.d.policy, self.d.clock.wall());
        // Whoever asked may have given up waiting.
        match ask {
            AskRules::All(answer) => {
                drop(answer.send(Ok((policy.rules().to_vec(), policy.waiting()))));
            }
            AskRules::Of(host, answer) => drop(answer.send(Ok(policy.waits_of(host, wall)))),
            AskRules::Foresee(host, kind, at, answer) => {
                let known = self.d.view.get(host).ok_or(ControlError::UnknownHost(host));
                let foresight = known.and_then(|known| {
                    let foreseen = policy.foresee(&known.row, kind, at.unwrap_or(wall));
                    foreseen.map_err(ControlError::Invalid)
                });
                drop(answer.send(foresight));
            }
        }
    }
}
