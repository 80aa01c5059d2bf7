//! Takes new certificates into use while the controller runs, and warns before one ends.

use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::time::Clock;

use super::{Refresh, Tls};

/// How often the files are looked at, unless SIGHUP says to.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// How often a certificate that is about to end is warned of.
const WARN_EVERY: Duration = Duration::from_secs(86_400);

/// Watches until it is aborted.
pub async fn watch(tls: Arc<Tls>, clock: Arc<dyn Clock>) {
    let mut warned = None;
    loop {
        let now = clock.now();
        if let Some(text) = tls.current().warning(clock.wall())
            && warned.is_none_or(|at| now.since(at) >= WARN_EVERY)
        {
            log::warn!("{text}");
            warned = Some(now);
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = tls.nudge.notified() => {}
        }
        let (looked_at, wall) = (Arc::clone(&tls), clock.wall());
        match tokio::task::spawn_blocking(move || looked_at.refresh(wall)).await {
            Ok(Refresh::Same) => {}
            Ok(Refresh::Taken) => {
                let current = tls.current();
                log::info!(
                    "the API's certificate is a new one: SHA-256 {}, until {}",
                    current.fingerprint,
                    current.not_after
                );
                warned = None;
            }
            Ok(Refresh::Refused(e)) => log::error!(
                "the API's certificate was changed to one that cannot be used, and the one before stays \
                 in use: {}",
                told(&e)
            ),
            Err(e) => log::error!("looking at the API's certificate failed: {e}"),
        }
    }
}

/// An error with its causes.
fn told(e: &dyn std::error::Error) -> String {
    match e.source() {
        Some(cause) => format!("{e}: {}", told(cause)),
        None => e.to_string(),
    }
}
