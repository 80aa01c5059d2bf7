//! Maintenance windows as operators ask for them: bounds, and whom they cover.

use std::sync::Arc;
use std::time::Duration;

use super::running::Running;
use crate::control::{ControlError, MaintenanceStatus, Window, WindowAdded};
use crate::policy::driver::{Command, WindowAsk, covered};
use crate::policy::maintenance::{AHEAD_MAX, LENGTH_MIN};

impl Running {
    pub(super) fn maintenance_status(&self) -> MaintenanceStatus {
        let windows = self.driver.maintenance();
        let open = windows.open_len();
        MaintenanceStatus {
            open: open as u64,
            coming: (windows.len() - open) as u64,
            hosts: self.driver.sheltered(),
        }
    }

    /// Checks a window's times, counts whom it covers, and adds it.
    pub(super) async fn open_window(&self, window: Window) -> Result<WindowAdded, ControlError> {
        let now_ms = self.clock.wall().0;
        let (from, until) = (window.from_ms.0, window.until_ms.0);
        let invalid = |message: String| Err(ControlError::Invalid(message));
        let span = |d| heartwatch_common::config::Span(d);
        if until <= from {
            return invalid("a window ends after it begins: give a later end".to_owned());
        }
        if until <= now_ms {
            return invalid("that window would be over already: give a later end".to_owned());
        }
        // A begin that lies back is now.
        let from = from.max(now_ms);
        let millis = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        // As it was asked for: the way here took some of it already.
        let (length, ahead) = (millis(until - window.from_ms.0), millis(from - now_ms));
        if length < LENGTH_MIN || millis(until - from) > self.window_max {
            let (least, most) = (span(LENGTH_MIN), span(self.window_max));
            return invalid(format!(
                "a window lasts {least} to {most} (maintenance.window_max): give another end"
            ));
        }
        if ahead > AHEAD_MAX {
            return invalid(format!("a window begins at most {} ahead", span(AHEAD_MAX)));
        }
        let window = Window { from_ms: heartwatch_common::time::Wall(from), ..window };
        let (view, scope) = (Arc::clone(&self.view), window.scope.clone());
        // Perhaps a million hosts: no task must wait for that.
        let count = tokio::task::spawn_blocking(move || covered(&view, &scope));
        let hosts = count.await.map_err(|e| {
            ControlError::Invalid(format!("counting its hosts broke off, ask again: {e}"))
        })?;
        let ask = |answer| Command::Maintenance(WindowAsk::Add(window, answer));
        let window = (*self.ask(ask).await?).clone();
        Ok(WindowAdded { window, hosts })
    }
}
