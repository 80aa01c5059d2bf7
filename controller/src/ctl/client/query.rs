//! What can be asked for.

use std::time::Duration;

use crate::event::EventKind;

/// Which hosts to list.
#[derive(Clone, Debug, Default)]
pub struct HostsQuery {
    /// In one of these states; empty = any.
    pub states: Vec<String>,
    /// With all of these labels, `key=value`.
    pub labels: Vec<String>,
    /// With this text in the name.
    pub name: Option<String>,
    /// Page length.
    pub limit: Option<u64>,
    /// `next_page` of the answer before.
    pub page: Option<String>,
}

/// Which events to read.
#[derive(Clone, Debug, Default)]
pub struct EventsQuery {
    /// Behind this cursor.
    pub after: Option<String>,
    /// Of this host.
    pub host: Option<String>,
    /// Page length.
    pub limit: Option<u64>,
    /// Wait this long for news, at most 60 s.
    pub wait: Option<Duration>,
    /// Of this kind.
    pub kind: Option<EventKind>,
    /// The newest ones instead; excludes `after`, `limit` and `wait`.
    pub tail: Option<u64>,
}

/// Which deliveries to list.
#[derive(Clone, Debug, Default)]
pub struct DeliveriesQuery {
    /// In this state.
    pub state: Option<String>,
    /// To this receiver.
    pub receiver: Option<String>,
    /// About this host.
    pub host: Option<String>,
    /// Of this outage.
    pub incident: Option<String>,
    /// With a higher number.
    pub after: Option<u64>,
    /// Page length.
    pub limit: Option<u64>,
}

/// Which held orders to list.
#[derive(Clone, Debug, Default)]
pub struct HoldsQuery {
    /// Of this failure domain, `zone=a,rack=7` or `fleet`.
    pub domain: Option<String>,
    /// `next_after` of the answer before.
    pub after: Option<String>,
    /// Page length.
    pub limit: Option<u64>,
}

/// Which open outages to list.
#[derive(Clone, Debug, Default)]
pub struct IncidentsQuery {
    /// `next_page` of the answer before.
    pub page: Option<String>,
    /// Hosts looked at for a page.
    pub limit: Option<u64>,
}

/// Who could take over: from a host, or from one with some labels.
#[derive(Clone, Debug, Default)]
pub struct CandidatesQuery {
    /// From this host.
    pub host: Option<String>,
    /// From a host with these labels, `zone=a,pool=web`.
    pub labels: Option<String>,
    /// Who equals it in these, `pool,zone`; else as the rules say.
    pub same: Option<String>,
    /// At most so many, 1 to 100.
    pub limit: Option<u64>,
}
