//! What the controller says: states, events and the words in them.
//!
//! An [`EventKind`] is journaled when a host's story takes a turn; a *delivery* carries it to a
//! receiver. The JSON body of a webhook is [`payload`]'s; its `data` object is built by the policy and
//! completed (token, superseded deliveries) by the store in the transaction that journals it, so that
//! every retry sends the same bytes.

use std::fmt;
use std::str::FromStr;

use heartwatch_common::time::Wall;
use rand::Rng;
use serde::{Deserialize, Serialize};

/// Where a host stands. `Pending` is expected but never heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Registered or imported, no proof of life yet.
    Pending,
    /// Beats arrive.
    Alive,
    /// Overdue beyond its timeout; being probed.
    Suspect,
    /// Overdue, and no probe was answered by its agent.
    Down,
    /// Said goodbye.
    Left,
    /// Two machines answer under its identity: both are heard, and nothing is ever failed over for it.
    Duplicate,
}

impl State {
    /// Every state, in display order.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Alive, Self::Suspect, Self::Down, Self::Left, Self::Duplicate];

    /// The same as the detector sees it: of a duplicate, too, beats arrive.
    pub const fn heard(self) -> Self {
        match self {
            Self::Duplicate => Self::Alive,
            other => other,
        }
    }

    /// Whether a beat may come at any moment.
    pub const fn may_beat(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect | Self::Down | Self::Duplicate)
    }

    /// As it stands in JSON, labels and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
            Self::Duplicate => "duplicate",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
            format!("`{text}` is not a state: use pending, alive, suspect, down, left or duplicate")
        })
    }
}

/// Why a host is down, or stays suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Nothing answered: neither its agent nor its kernel.
    Silent,
    /// Its kernel says that nobody listens: the host is up, its agent is gone.
    AgentLost,
    /// It answers hosts in other failure domains, but not the controller: not down, only suspect.
    Unreachable,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 3] = [Self::Silent, Self::AgentLost, Self::Unreachable];

    /// As it stands in JSON, labels and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::AgentLost => "agent-lost",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// First proof of life of a host.
    HostJoined,
    /// Overdue; probes are on their way. May be a mistake.
    HostSuspect,
    /// Still suspect: it lives, as hosts in other failure domains testify, but the controller cannot hear it.
    HostUnreachable,
    /// Down, cause silent: fail its work over.
    HostDown,
    /// Down, cause agent-lost: the host is up but its agent is gone. An alert, unless a rule acts on it.
    HostAgentLost,
    /// Back from suspect, down or left. `same_boot: true` means that we were wrong, or that only the network
    /// between us was cut.
    HostRecovered,
    /// A new life of the agent without an outage in between.
    HostRestarted,
    /// Said goodbye.
    HostLeft,
    /// Expected, but not heard within `missing_after`.
    HostMissing,
    /// Two machines answer under one identity: their boots or their addresses take turns.
    HostDuplicate,
    /// Only one of them answers any more.
    HostSingle,
    /// It said goodbye and when it would be back, and is not: probes are on their way.
    HostOverdue,
    /// Removed from the registry, by an operator or by `forget_after`.
    HostForgotten,
    /// An operator keeps its margin where it is, or elsewhere.
    HostFrozen,
    /// Its margin learns again.
    HostUnfrozen,
    /// A join token let it in, or gave it another key or other labels.
    HostEnrolled,
    /// The controller can't trust its own eyes: actions are held.
    ControllerBlind,
    /// It can again: what was held has been judged again.
    ControllerSighted,
    /// An operator paused all actions.
    ControllerPaused,
    /// The pause ended.
    ControllerResumed,
    /// It comes and goes: until it is steady again its suspicions are told to nobody.
    HostFlapping,
    /// It no longer does.
    HostSteady,
    /// All hosts of a failure domain are silent: failovers of its hosts are held.
    DomainDown,
    /// Many hosts of a failure domain fell silent together: failovers of its hosts are held.
    DomainStorm,
    /// That is over: what was held is judged again.
    DomainCalm,
    /// Somebody let held orders go.
    HoldApproved,
    /// Somebody had held orders cancelled.
    HoldRejected,
    /// Orders are held for longer than `domains.hold_max`.
    HoldOverdue,
    /// A receiver says that it has done what an order asked for.
    IncidentCompleted,
    /// A receiver says that it could not do it, or nobody did it in time and nobody is left to ask.
    IncidentFailed,
    /// A receiver refused an order, with a reason: it is not repeated.
    IncidentVetoed,
    /// An order was not accepted or not completed in time: the rule's next receiver is told, or asked.
    IncidentEscalated,
    /// Hosts are being worked on: what would be acted upon waits.
    MaintenanceStarted,
    /// That is over: what waited is judged again.
    MaintenanceEnded,
    /// The controller's own drill failed: it may not find, or not tell, what it should.
    ControllerCanaryFailed,
    /// It passes again.
    ControllerCanaryPassed,
    /// Somebody had the API change something, or tried to: who, what, and how it was answered.
    ControllerAudit,
    /// An operator tries a receiver (`heartwatchctl receivers test`), or a drill does. Nothing happened; no
    /// rule names it.
    Test,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 38] = [
        Self::HostJoined,
        Self::HostSuspect,
        Self::HostUnreachable,
        Self::HostDown,
        Self::HostAgentLost,
        Self::HostRecovered,
        Self::HostRestarted,
        Self::HostLeft,
        Self::HostMissing,
        Self::HostDuplicate,
        Self::HostSingle,
        Self::HostOverdue,
        Self::HostForgotten,
        Self::HostFrozen,
        Self::HostUnfrozen,
        Self::HostEnrolled,
        Self::ControllerBlind,
        Self::ControllerSighted,
        Self::ControllerPaused,
        Self::ControllerResumed,
        Self::HostFlapping,
        Self::HostSteady,
        Self::DomainDown,
        Self::DomainStorm,
        Self::DomainCalm,
        Self::HoldApproved,
        Self::HoldRejected,
        Self::HoldOverdue,
        Self::IncidentCompleted,
        Self::IncidentFailed,
        Self::IncidentVetoed,
        Self::IncidentEscalated,
        Self::MaintenanceStarted,
        Self::MaintenanceEnded,
        Self::ControllerCanaryFailed,
        Self::ControllerCanaryPassed,
        Self::ControllerAudit,
        Self::Test,
    ];

    /// Whether it tells of something that goes on, and so is no longer true when that ends. News of an end
    /// stays true, and is owed to whoever was told of the beginning.
    pub const fn goes_on(self) -> bool {
        matches!(
            self,
            Self::HostSuspect
                | Self::HostUnreachable
                | Self::HostDown
                | Self::HostAgentLost
                | Self::HostMissing
                | Self::HostOverdue
                | Self::IncidentEscalated
        )
    }

    /// Whether it tells of something beside the host's own state, so that what was ordered before is as right
    /// after it as it was: it does not wait behind orders that are held.
    pub const fn is_notice(self) -> bool {
        matches!(
            self,
            Self::HostFrozen
                | Self::HostUnfrozen
                | Self::HostEnrolled
                | Self::HostFlapping
                | Self::HostSteady
                | Self::HoldApproved
                | Self::HoldRejected
                | Self::HoldOverdue
                | Self::IncidentCompleted
                | Self::IncidentFailed
                | Self::IncidentVetoed
                | Self::IncidentEscalated
                | Self::MaintenanceStarted
                | Self::MaintenanceEnded
        )
    }

    /// Whether it tells how an order ended, by its receiver's word or for want of one.
    pub const fn is_report(self) -> bool {
        matches!(self, Self::IncidentCompleted | Self::IncidentFailed | Self::IncidentVetoed)
    }

    /// Whether it tells that something is over. Who may have heard of the beginning is owed that word.
    pub const fn is_end(self) -> bool {
        matches!(
            self,
            Self::HostRecovered
                | Self::HostLeft
                | Self::HostForgotten
                | Self::HostUnfrozen
                | Self::HostSteady
                | Self::HostSingle
                | Self::MaintenanceEnded
                | Self::ControllerCanaryPassed
                | Self::DomainCalm
                | Self::ControllerSighted
                | Self::ControllerResumed
        )
    }

    /// As it stands in config, JSON and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HostJoined => "host.joined",
            Self::HostSuspect => "host.suspect",
            Self::HostUnreachable => "host.unreachable",
            Self::HostDown => "host.down",
            Self::HostAgentLost => "host.agent-lost",
            Self::HostRecovered => "host.recovered",
            Self::HostRestarted => "host.restarted",
            Self::HostLeft => "host.left",
            Self::HostMissing => "host.missing",
            Self::HostDuplicate => "host.duplicate",
            Self::HostSingle => "host.single",
            Self::HostOverdue => "host.overdue",
            Self::HostForgotten => "host.forgotten",
            Self::HostFrozen => "host.frozen",
            Self::HostUnfrozen => "host.unfrozen",
            Self::HostEnrolled => "host.enrolled",
            Self::ControllerBlind => "controller.blind",
            Self::ControllerSighted => "controller.sighted",
            Self::ControllerPaused => "controller.paused",
            Self::ControllerResumed => "controller.resumed",
            Self::HostFlapping => "host.flapping",
            Self::HostSteady => "host.steady",
            Self::DomainDown => "domain.down",
            Self::DomainStorm => "domain.storm",
            Self::DomainCalm => "domain.calm",
            Self::HoldApproved => "hold.approved",
            Self::HoldRejected => "hold.rejected",
            Self::HoldOverdue => "hold.overdue",
            Self::IncidentCompleted => "incident.completed",
            Self::IncidentFailed => "incident.failed",
            Self::IncidentVetoed => "incident.vetoed",
            Self::IncidentEscalated => "incident.escalated",
            Self::MaintenanceStarted => "maintenance.started",
            Self::MaintenanceEnded => "maintenance.ended",
            Self::ControllerCanaryFailed => "controller.canary-failed",
            Self::ControllerCanaryPassed => "controller.canary-passed",
            Self::ControllerAudit => "controller.audit",
            Self::Test => "heartwatch.test",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|k| k.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|k| k.as_str()).collect();
            format!("`{text}` is not an event; known are {}", known.join(", "))
        })
    }
}

impl Serialize for EventKind {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for EventKind {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub uuid::Uuid);

        impl $name {
            /// A new id: version 7 of RFC 9562, from a time and randomness that are passed in.
            pub fn new<R: Rng + ?Sized>(at: Wall, rng: &mut R) -> Self {
                let mut random = [0; 10];
                rng.fill_bytes(&mut random);
                let ms = u64::try_from(at.0).unwrap_or(0);
                Self(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0.as_hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                uuid::Uuid::try_parse(text).map(Self).map_err(|e| format!("`{text}`: {e}"))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

uuid_id! {
    /// Names one event for ever; the idempotency key of its deliveries.
    EventId
}
uuid_id! {
    /// Names one outage of one host, from its first suspicion to its end.
    IncidentId
}

/// The body of a webhook: `{"type", "timestamp", "data"}` (Standard Webhooks' shape). `data` holds at
/// least `event_id` and, for events of a host, `host`, `incident`, `token` and `supersedes`.
pub fn payload(kind: EventKind, at: Wall, data: &impl Payload) -> String {
    #[derive(Serialize)]
    struct Body<'a, D> {
        r#type: EventKind,
        timestamp: String,
        data: &'a D,
    }
    serde_json::to_string(&Body { r#type: kind, timestamp: at.to_string(), data })
        .expect("objects with text for keys can be written")
}

/// What can be a payload's `data`: an object of JSON values, which can always be written.
pub trait Payload: Serialize {}

impl Payload for serde_json::Map<String, serde_json::Value> {}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn kinds_and_states_survive_their_text_form() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for state in State::ALL {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
        assert!("host.dwon".parse::<EventKind>().unwrap_err().contains("host.down"));
    }

    #[test]
    fn ids_of_one_millisecond_differ_and_survive_their_text_form() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let a = EventId::new(Wall(1_700_000_000_000), &mut rng);
        let b = EventId::new(Wall(1_700_000_000_000), &mut rng);
        assert_ne!(a, b);
        assert_eq!(a.to_string().parse(), Ok(a));
    }
}
