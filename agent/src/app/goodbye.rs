//! Why the agent leaves, and for how long.

use std::time::Duration;

use heartwatch_common::wire::LeaveReason;

/// Names why the agent will be stopped: `shutdown` (the default), `restart`, `reboot` or `upgrade`.
pub const LEAVE_REASON_VAR: &str = "HEARTWATCH_LEAVE_REASON";

/// The reason that the text of [`LEAVE_REASON_VAR`] names; a shutdown if it names none.
pub(super) fn leave_reason(text: Option<&str>) -> LeaveReason {
    match text {
        None | Some("" | "shutdown") => LeaveReason::Shutdown,
        Some("restart") => LeaveReason::Restart,
        Some("reboot") => LeaveReason::Reboot,
        Some("upgrade") => LeaveReason::Upgrade,
        Some(other) => {
            log::warn!(
                "{LEAVE_REASON_VAR}={other} is none of shutdown, restart, reboot, upgrade: \
                 shutdown is taken"
            );
            LeaveReason::Shutdown
        }
    }
}

/// How long a host that leaves for that reason may reasonably be away; zero = for good.
pub fn expected_absence(reason: LeaveReason) -> Duration {
    match reason {
        LeaveReason::Shutdown => Duration::ZERO,
        LeaveReason::Restart => Duration::from_secs(60),
        LeaveReason::Upgrade => Duration::from_secs(300),
        LeaveReason::Reboot => Duration::from_secs(600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_goodbye_comes_from_the_environment() {
        for (text, reason) in [
            (None, LeaveReason::Shutdown),
            (Some("restart"), LeaveReason::Restart),
            (Some("reboot"), LeaveReason::Reboot),
            (Some("upgrade"), LeaveReason::Upgrade),
            (Some("holiday"), LeaveReason::Shutdown),
        ] {
            assert_eq!(leave_reason(text), reason);
        }
        assert_eq!(expected_absence(LeaveReason::Shutdown), Duration::ZERO);
    }
}
