//! Why the agent cannot start, and the exit code that tells it.

use heartwatch_common::config::ConfigError;
use heartwatch_common::daemon;

use crate::enrol::EnrolError;
use crate::enrol::file::BadFile;
use crate::identity::IdentityError;

/// The agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The settings do not work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Who this host is is not known, or cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// This host cannot enrol.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The enrolment file is damaged.
    #[error(transparent)]
    Enrolment(#[from] BadFile),
    /// The identity that lies here is another machine's: this one is a copy of it.
    #[error(
        "the identity kept here (host {host}) belongs to another machine, of which this one is a copy: run \
         `heartwatch-agent enroll`, or leave a join token (join_token_file), to get one of its own"
    )]
    Foreign {
        /// Whose.
        host: heartwatch_common::id::HostId,
    },
    /// Nobody has told the agent yet whom it should beat to, or as whom.
    #[error(
        "this host is not set up yet: {missing}; run `heartwatch-agent enroll`, or see heartwatch-agent(1), \
         then `systemctl start heartwatch-agent`"
    )]
    NotSetUp {
        /// What there must be.
        missing: String,
    },
    /// The system refused something that the agent cannot do without.
    #[error("cannot {what}")]
    System {
        /// What.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

impl AppError {
    /// The exit code for it: 78 where only somebody who changes the configuration can help.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Identity(_)
            | Self::Enrolment(_)
            | Self::Foreign { .. }
            | Self::NotSetUp { .. } => daemon::EXIT_CONFIG,
            Self::Enrol(e) if !e.may_pass() => daemon::EXIT_CONFIG,
            Self::Enrol(_) => daemon::EXIT_FAILURE,
            Self::System { .. } => daemon::EXIT_FAILURE,
        }
    }
}

/// An error with all its causes, one behind the other.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_person_can_mend_exits_with_78() {
        let config = AppError::from(ConfigError::value("jitter", "is wrong"));
        assert_eq!(config.exit_code(), 78);
        let system = AppError::System { what: "x", source: std::io::ErrorKind::Other.into() };
        assert_eq!(system.exit_code(), 1);
        assert!(chain(&system).starts_with("cannot x: "));
    }
}
