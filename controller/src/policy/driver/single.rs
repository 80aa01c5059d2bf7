//! An operator's word that of two machines under one identity one is left.

use heartwatch_common::id::HostId;
use tokio::sync::oneshot;

use super::{Running, ShardCommand, line};
use crate::control::ControlError;
use crate::policy::holds::Word;
use crate::policy::queue::Work;
use crate::store::HostRow;

impl Running {
    /// Believes it: what is held of the host for the other one's sake is judged again. The shard forgets the
    /// other; should that one be heard again, both are told anew.
    pub(super) fn single(
        &mut self,
        host: HostId,
        word: &Word,
        answer: oneshot::Sender<Result<(), ControlError>>,
    ) {
        let Some(known) = self.d.view.get(host) else {
            drop(answer.send(Err(ControlError::UnknownHost(host))));
            return;
        };
        let before = known.row;
        if !before.duplicate {
            let text = format!(
                "only one machine answers under the identity of host {host}: there is nothing to end"
            );
            drop(answer.send(Err(ControlError::Conflict(text))));
            return;
        }
        let mut row = HostRow { duplicate: false, ..before.clone() };
        let wall = self.d.clock.wall();
        if row.state != row.state.heard() {
            (row.state, row.since) = (row.state.heard(), wall);
        }
        self.d.policy.changed(Some(&before), Some(&row));
        let event = self.d.policy.singled(&row, word, wall, &mut self.rng);
        log::info!("{} {}", event.kind, line(&row, &event));
        self.tell_shard(self.shard_of(host), ShardCommand::Single(host));
        self.d.view.upsert(&row, None);
        self.work.push(Work::Event(Box::new(event)));
        self.answer_when_written(answer, Ok(()));
    }
}
