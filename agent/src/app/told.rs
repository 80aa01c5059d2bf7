//! What somebody on the host tells the running agent.

use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::config::Span;
use heartwatch_common::time::{Instant, Wall};
use heartwatch_common::wire::LeaveReason;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::App;
use crate::control::{self, Answer, Kept, PLANNED_LIFE, Request};
use crate::core::Announced;

/// A request that the loop answers: with words, and with what must be kept in the state folder.
pub(super) struct Told {
    pub(super) request: Request,
    pub(super) answer: oneshot::Sender<Result<Done, String>>,
}

/// What was done.
pub(super) struct Done {
    text: String,
    keep: Option<Option<Kept>>,
}

/// How the next stop is meant.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) reason: LeaveReason,
    pub(super) expected: Duration,
    pub(super) until: Instant,
}

impl App {
    /// Takes up the maintenance of before the restart.
    pub(super) fn resume_maintenance(&mut self, now: Instant) {
        let wall = self.clock.wall();
        let Some(kept) = control::kept(&self.config.state_dir, wall) else { return };
        log::info!("in maintenance until {}: {}", kept.until_ms, kept.reason);
        if let Err(e) = self.core.announce(Some(announced(&kept, wall, now)), now) {
            log::warn!("the maintenance of before the start is not announced: {e}");
        }
    }

    /// Hears somebody out in a task of his own.
    pub(super) fn listen(&self, stream: std::io::Result<UnixStream>) {
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(e) => return log::warn!("cannot accept on the control socket: {e}"),
        };
        // Dropped when too many speak: they see an empty answer.
        let Ok(permit) = Arc::clone(&self.speakers).try_acquire_owned() else { return };
        let (told, state_dir) = (self.told.0.clone(), self.config.state_dir.clone());
        tokio::spawn(async move {
            let done = async {
                let request = control::hear(&mut stream).await?;
                let (answer, answered) = oneshot::channel();
                let stopping = || "the agent is stopping".to_owned();
                told.send(Told { request, answer }).map_err(|_| stopping())?;
                let done = answered.await.map_err(|_| stopping())??;
                if let Some(kept) = done.keep {
                    let keep = move || control::keep(&state_dir, kept.as_ref());
                    let result = tokio::task::spawn_blocking(keep).await;
                    result.map_err(|e| e.to_string())?.map_err(|e| {
                        format!("done, but it will not survive a restart of the agent: {e}")
                    })?;
                }
                Ok(done.text)
            };
            let answer = match done.await {
                Ok(text) => Answer { done: true, text },
                Err(text) => Answer { done: false, text },
            };
            if let Ok(text) = serde_json::to_string(&answer) {
                crate::status::answer(stream, text).await;
            }
            drop(permit);
        });
    }

    /// Does what somebody asked for.
    pub(super) fn obey(&mut self, told: Told, now: Instant) {
        let done = self.act(told.request, now);
        if let Ok(done) = &done {
            log::info!("told on this host: {}", done.text);
        }
        // Whether he still waits is his affair.
        drop(told.answer.send(done));
    }

    fn act(&mut self, request: Request, now: Instant) -> Result<Done, String> {
        match request {
            Request::MaintenanceOn { seconds, reason } => {
                let wall = self.clock.wall();
                let ms = i64::try_from(seconds.saturating_mul(1_000)).unwrap_or(i64::MAX);
                let kept = Kept { until_ms: Wall(wall.0.saturating_add(ms)), reason };
                let fits = self.core.announce(Some(announced(&kept, wall, now)), now);
                fits.map_err(|e| format!("{e}; or give a shorter --reason"))?;
                let text = format!("in maintenance until {}: {}", kept.until_ms, kept.reason);
                Ok(Done { text, keep: Some(Some(kept)) })
            }
            Request::MaintenanceOff => {
                self.core.announce(None, now).map_err(|e| e.to_string())?;
                Ok(Done { text: "no longer in maintenance".to_owned(), keep: Some(None) })
            }
            Request::Leave { reason, seconds } => {
                let expected = Duration::from_secs(seconds);
                self.planned = Some(Planned { reason, expected, until: now + PLANNED_LIFE });
                let away = match seconds {
                    0 => "for good".to_owned(),
                    _ => format!("for {}", Span(expected)),
                };
                let life = Span(PLANNED_LIFE);
                let reason = reason.as_str();
                let text = format!("a stop within {life} will say: {reason}, {away}");
                Ok(Done { text, keep: None })
            }
        }
    }
}

fn announced(kept: &Kept, wall: Wall, now: Instant) -> Announced {
    let left = kept.until_ms.0.saturating_sub(wall.0);
    let ends = now + Duration::from_millis(u64::try_from(left).unwrap_or(0));
    Announced { ends, reason: kept.reason.clone() }
}
