//! What SIGHUP has read anew while the controller runs: the API's certificate and the fleet secrets.

use std::sync::Arc;

use crate::enrol::Enrolling;
use crate::tls::Tls;

/// See the module.
#[derive(Clone)]
pub struct Reloading {
    tls: Arc<Tls>,
    enrolling: Arc<Enrolling>,
}

impl Reloading {
    pub(super) fn new(tls: Arc<Tls>, enrolling: Arc<Enrolling>) -> Self {
        Self { tls, enrolling }
    }

    /// Begins to read, beside whatever else goes on; how it went is logged. What cannot be used, and what
    /// would silence hosts, changes nothing: what was in force stays in force.
    pub fn begin(&self) {
        log::info!(
            "SIGHUP: reading the API's certificate and the fleet secrets anew; all other settings are read at \
             start, restart the controller to change them"
        );
        self.tls.nudge.notify_one();
        let enrolling = Arc::clone(&self.enrolling);
        tokio::spawn(async move {
            if let Err(e) = enrolling.reload(false).await {
                log::error!("SIGHUP: the fleet secrets stay as they were: {e}");
            }
        });
    }
}
