//! `heartwatchctl drill`: has the canary fall silent now, and tells how that went.

use std::time::Duration;

use super::CtlError;
use super::client::typed;
use super::remote::Run;
use super::text::clean;
use crate::canary::{CanaryStatus, DrillReport, Phase};

/// How often it is asked how far the drill is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Looks after which it is given up: longer than the longest drill that a config allows, twice 10 minutes for
/// each half and 10 minutes for the beats before.
const LOOKS_MAX: u32 = 55 * 60 * 5;

impl Run<'_> {
    pub(super) async fn drill(&mut self) -> Result<(), CtlError> {
        let number = self.client.drill().await?.number;
        let mut shown = Phase::Idle;
        for _ in 0..LOOKS_MAX {
            let answer = self.client.canary().await?;
            let status: CanaryStatus = typed(answer)?;
            if let Some(last) = status.last.as_ref().filter(|last| last.number >= number) {
                return self.drilled(last);
            }
            if status.begun < number
                && status.phase == Phase::Idle
                && status.last.is_none()
                && number > 1
            {
                return Err(CtlError::Failed(
                    "the controller was restarted during the drill: ask again".to_owned(),
                ));
            }
            if status.phase != shown && status.phase != Phase::Idle && !self.global.json {
                writeln!(self.out, "{}…", status.phase.words())?;
                self.out.flush()?;
            }
            shown = status.phase;
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(CtlError::Failed("the drill does not end: look at the controller's log".to_owned()))
    }

    fn drilled(&mut self, report: &DrillReport) -> Result<(), CtlError> {
        if self.global.json {
            self.json(report)?;
        } else {
            let secs = |ms: Option<f64>| {
                ms.map_or_else(|| "never".to_owned(), |ms| format!("{:.2} s", ms / 1e3))
            };
            writeln!(self.out, "from its last beat to down:  {}", secs(report.detection_ms))?;
            let receiver = clean(&report.receiver);
            let took = secs(report.delivery_ms);
            writeln!(self.out, "from the event to {receiver}:  {took}")?;
        }
        if report.failures.is_empty() {
            if !self.global.json {
                writeln!(self.out, "The drill passed.")?;
            }
            return Ok(());
        }
        let failures: Vec<String> = report.failures.iter().map(|f| clean(f)).collect();
        Err(CtlError::Failed(format!("the drill failed: {}", failures.join("; "))))
    }
}
