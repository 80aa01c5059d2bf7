//! The keys, table by table, in the order of the example file.

use super::Form::{Count, Flag, Free, List, OneOf, Span, Text};
use super::{Key, Section, fill};
use crate::config::{
    RawApi, RawCanary, RawClass, RawConfig, RawDetector, RawDomains, RawFlaps, RawIntervals,
    RawMaintenance, RawOverride, RawPlacement, RawRetention, RawRule,
};

mod acting;
mod api;
mod canary;
mod placing;
mod seeing;

use acting::{DOMAINS, FLAPS, RECEIVERS, RULES};
use api::API;
use canary::CANARY;
use placing::PLACEMENT;
use seeing::{CLASSES, DETECTOR, INTERVALS, OVERRIDES};

const fn key(name: &'static str, form: super::Form, when: &'static str) -> Key {
    Key::new(name, form, when)
}

pub(super) static SECTIONS: [Section; 14] = [
    Section {
        head: "",
        intro: "Where the controller listens and keeps its things.",
        keys: TOP,
        least: "",
        fill: fill::<RawConfig>,
    },
    Section {
        head: "[api]",
        intro: "How the API proves who it is, and what it asks of those who come. TLS and plain HTTP share \
                `api_listen`; plain HTTP is served to this machine itself alone.",
        keys: API,
        least: "",
        fill: fill::<RawApi>,
    },
    Section {
        head: "[detector]",
        intro: "When a host is suspect, and when it is down.",
        keys: DETECTOR,
        least: "",
        fill: fill::<RawDetector>,
    },
    Section {
        head: "[[detector.overrides]]",
        intro: "Other margins for hosts with some labels; the first that matches holds.",
        keys: OVERRIDES,
        least: "name = \"\"\nmatch = {}",
        fill: fill::<RawOverride>,
    },
    Section {
        head: "[intervals]",
        intro: "How often hosts beat. `min` and `max` are checked, and hold, only with a budget.",
        keys: INTERVALS,
        least: "",
        fill: fill::<RawIntervals>,
    },
    Section {
        head: "[[intervals.classes]]",
        intro: "Other intervals for hosts with some labels; the first that matches holds. They need a \
                budget.",
        keys: CLASSES,
        least: "name = \"\"\nmatch = {}",
        fill: fill::<RawClass>,
    },
    Section {
        head: "[domains]",
        intro: "Failure domains, and when failovers in them are held. States are always true at once; \
                only actions wait.",
        keys: DOMAINS,
        least: "",
        fill: fill::<RawDomains>,
    },
    Section {
        head: "[flaps]",
        intro: "When a host that comes and goes is taken for one that flaps, after RFC 2439: a fall to \
                down costs 1000 points, a mere suspicion 250.",
        keys: FLAPS,
        least: "",
        fill: fill::<RawFlaps>,
    },
    Section {
        head: "[maintenance]",
        intro: "How long hosts may be in maintenance: what would be acted upon waits that long.",
        keys: MAINTENANCE,
        least: "",
        fill: fill::<RawMaintenance>,
    },
    Section {
        head: "[placement]",
        intro: "Which hosts a failover names to take over, and how failovers are spread.",
        keys: PLACEMENT,
        least: "",
        fill: fill::<RawPlacement>,
    },
    Section {
        head: "[canary]",
        intro: "Drills: a host inside the controller falls silent, and a test event is delivered. A failing \
                one shows in `/readyz`, in metrics, and as `controller.canary-failed`.",
        keys: CANARY,
        least: "",
        fill: fill::<RawCanary>,
    },
    Section {
        head: "[retention]",
        intro: "How long things are kept.",
        keys: RETENTION,
        least: "",
        fill: fill::<RawRetention>,
    },
    Section {
        head: "[receivers.NAME]",
        intro: "Who is told, and how: one table each. NAME is yours, 1 to 63 letters, digits, `-`, `_` or \
                `.`. Keys of another kind or format are refused.",
        keys: RECEIVERS,
        least: "",
        fill: super::fill_receiver,
    },
    Section {
        head: "[[rules]]",
        intro: "Which events go to whom; every rule that matches counts.",
        keys: RULES,
        least: "name = \"\"\nevents = []\nreceivers = []",
        fill: fill::<RawRule>,
    },
];

const TOP: &[Key] = &[
    key(
        "name",
        Text(1, 63),
        "This controller's name in events and logs. Change it if receivers hear of more than one \
         controller.",
    ),
    key(
        "listen",
        List("addresses", 1, 16),
        "UDP addresses on which beats are received; `[::]` takes IPv4 too. Change it to listen on some of \
         the machine's networks only, or on another port.",
    ),
    key(
        "beat_addresses",
        List("names or addresses, with a port or without", 0, 8),
        "Where hosts that enrol are told to send their beats: how they reach this controller. Set it where \
         that is not the host of the URL by which they enrol: behind a NAT or a proxy, or with a network of \
         its own for beats. A host beats to each of them: a second one is another controller with the same \
         fleet secrets, and no second address of this one. Without a port it is that of the first `listen`.",
    ),
    key(
        "api_listen",
        Free("a TCP address"),
        "Where the HTTP API listens. Change it to reach it from other machines, which must use https; see \
         `[api]`.",
    ),
    key(
        "state_dir",
        Free("a directory"),
        "Holds the store, and the secrets made at first start. Change it to put them on another disk: a \
         fast one, as each event is synced to it.",
    ),
    key(
        "fleet_secret_file",
        Free("a file of mode 0600, one secret a line"),
        "The secrets from which the hosts' keys are derived. Set it where secrets are provisioned, not made; \
         a file outside of `state_dir` must be there.",
    )
    .unset("`fleet-secret` in `state_dir`, made at first start"),
    key(
        "api_token_file",
        Free("a file of mode 0600"),
        "A bearer token of the API, of scope admin: whoever has it may do everything. Programs and people get \
         tokens of smaller scopes by `heartwatchctl api-token create`. Set it where secrets are provisioned, \
         not made; a file outside of `state_dir` must be there.",
    )
    .unset("`api-token` in `state_dir`, made at first start"),
    key(
        "shards",
        Count("threads", 1, 64),
        "Threads that receive and judge. Set it to leave cores of a shared machine to others.",
    )
    .off("0", "one per core"),
    key(
        "gro",
        Flag,
        "Lets the kernel hand over datagrams of one flow in one piece (UDP GRO). Switch it off only if a \
         network driver is known to do that wrongly.",
    ),
    key(
        "log_level",
        OneOf(&["error", "warn", "info", "debug"]),
        "What is logged at all. Set it to debug while you look for something.",
    ),
];

const MAINTENANCE: &[Key] = &[
    key(
        "window_max",
        Span("1m", "90d"),
        "The longest maintenance window that an operator may open. Lower it if windows are forgotten; they \
         can be renewed.",
    ),
    key(
        "announced_max",
        Span("1m", "7d"),
        "The longest maintenance that a host's own agent may announce for itself; longer ones are cut to \
         this. Lower it if host owners must ask for more than that.",
    )
    .off("\"0s\"", "what agents announce is not heeded"),
];

const RETENTION: &[Key] = &[
    key(
        "events",
        Span("1h", "3650d"),
        "Events and finished deliveries are kept for this long. Raise it if `why` must explain older \
         outages.",
    ),
    key(
        "dead_letters",
        Span("1h", "3650d"),
        "What could not be delivered is kept for this long. Raise it if people take longer to redrive it.",
    ),
    key(
        "events_max",
        Count("events", 1_000, 100_000_000),
        "The most events kept, whatever their age. Lower it where the disk is small.",
    ),
];
