//! The keys of what is seen: margins, probes, doubt, and how often hosts beat.

use super::super::Form::{Count, Decimal, Free, List, Rate, Span, Text};
use super::super::Key;
use super::key;

pub(super) const DETECTOR: &[Key] = &[
    key(
        "interval",
        Span("100ms", "1h"),
        "The interval assigned to all agents. Shorten it for faster detection at the price of more beats, \
         or set a budget instead.",
    )
    .within("at most `gap_max`, and only without `intervals.budget`")
    .off("\"0s\"", "each agent keeps its own"),
    key(
        "gap_max",
        Span("1s", "1h"),
        "The longest gap that a beat may announce; longer ones are clamped. Raise it for hosts that beat \
         less than twice a minute.",
    ),
    key(
        "ack_every",
        Count("beats", 1, 1000),
        "How many beats an agent sends before it asks for an ack again. Raise it to send less; new \
         intervals reach agents later then. Agents of a shard that reads more than 40,000 beats a second are \
         told to ask less often, up to every 120th beat.",
    ),
    key(
        "timeout_min",
        Span("10ms", "1m"),
        "The least margin by which a beat may be late. Raise it if short freezes are of no interest to you.",
    )
    .within("at most `timeout_max`"),
    key(
        "timeout_max",
        Span("100ms", "10m"),
        "The greatest margin by which a beat may be late. Lower it to bound the detection time of \
         unreliable hosts, for more false suspicions of them.",
    )
    .within("at least `timeout_min`"),
    key(
        "false_suspicion_cost",
        Span("1s", "1000000000s"),
        "How much later detection one false suspicion per beat is worth. Raise it for fewer suspicions and \
         slower detection; try it on recorded beats with `heartwatchctl replay`.",
    ),
    key(
        "max_mistakes_per_host_day",
        Decimal("suspicions per host and day that prove wrong", 0.0001, 1000.0),
        "Steers the cost by the mistakes that are seen. Set it if you would rather say how many mistakes \
         you bear than what one costs.",
    )
    .off("0.0", "steers nothing"),
    key(
        "group_labels",
        List("labels", 0, 8),
        "Hosts with equal values of these learn together: a new host starts with what its group knows. Set \
         it to the labels of hosts with like hardware, work and network.",
    ),
    key(
        "overrides",
        List("tables, see below", 0, 64),
        "Other margins for some hosts. Add one where hosts need another trade of speed against mistakes.",
    ),
    key(
        "probes",
        Count("probes", 1, 20),
        "How many probes a suspect must leave unanswered before it is down. Raise it where single datagrams \
         are often lost; each takes `probe_spacing` longer.",
    ),
    key(
        "probe_spacing",
        Span("20ms", "10s"),
        "The least time between probes, and after the last; slow links get more by themselves. Lower it \
         for faster failover on a good network.",
    ),
    key(
        "confirm_max",
        Span("0s", "10m"),
        "The most time that a suspect which has come back from silences before is probed on, beyond its \
         expected beat; 0s gives nobody more. Lower it if failing over too early is cheaper than too late.",
    ),
    key(
        "probe_rate_max",
        Count("probes per second and shard", 10, 1_000_000),
        "Bounds what a storm of suspects sends. Lower it if the network cannot bear so many.",
    ),
    key(
        "peers",
        Count("hosts", 0, 8),
        "How many hosts of other failure domains probe a suspect too, with each of the last two probes; 0 \
         asks nobody. Raise it where paths between domains often fail one by one.",
    ),
    key(
        "domain_labels",
        List("labels", 1, 8),
        "Peers must differ from a suspect in one of these. Set it to the labels of what can be cut off \
         from the controller as a whole.",
    ),
    key(
        "doubt_max",
        Span("1s", "10m"),
        "How long the controller's own losses, or a cut of its own link, may excuse a host. Set it to longer \
         than your switches take to restart.",
    ),
    key(
        "restart_grace",
        Span("1s", "10m"),
        "No known host is judged by its silence before this after a restart of the controller, and each is \
         within an eighth of it then. If the controller assigns an interval, it is one and a half of that at least. \
         Raise it if the controller's network takes longer to come up, or if hosts beat more rarely by their \
         own config.",
    ),
    key(
        "missing_after",
        Span("1s", "30d"),
        "An expected host that was never heard is missing after this. Raise it if hosts are announced long \
         before they are installed.",
    ),
    key(
        "leave_max",
        Span("1s", "7d"),
        "The longest absence that a goodbye may announce; longer ones are cut to this. Raise it if hosts are \
         taken away for longer on purpose, and should still be missed if they do not come back.",
    ),
    key(
        "leave_grace",
        Span("0s", "1h"),
        "A host that announced how long it would be away is overdue so much later. Raise it if reboots often \
         take longer than was said.",
    ),
    key(
        "forget_after",
        Span("1m", "3650d"),
        "Hosts that left, or have been down, for this long are forgotten. Lower it where hosts live for \
         hours only, so that lists stay short.",
    ),
];

pub(super) const OVERRIDES: &[Key] = &[
    key("name", Free("a text"), "For people and for `why`. Choose one that says which hosts it is for."),
    key(
        "match",
        Free("a table of labels, at least one"),
        "Labels that a host must have, all of them. Add labels to be stricter.",
    ),
    key(
        "timeout_min",
        Span("10ms", "1m"),
        "As in `[detector]`. Raise it for hosts whose short freezes are of no interest.",
    )
    .within("at most `timeout_max`")
    .unset("that of `[detector]`"),
    key(
        "timeout_max",
        Span("100ms", "10m"),
        "As in `[detector]`. Lower it for hosts that must be found dead soon, whatever they did before.",
    )
    .within("at least `timeout_min`")
    .unset("that of `[detector]`"),
    key(
        "false_suspicion_cost",
        Span("1s", "1000000000s"),
        "As in `[detector]`. Raise it for hosts whose failover is dear.",
    )
    .unset("that of `[detector]`"),
    key(
        "max_mistakes_per_host_day",
        Decimal("suspicions per host and day that prove wrong", 0.0001, 1000.0),
        "As in `[detector]`. Set it for hosts of which you bear more mistakes, or fewer.",
    )
    .off("0.0", "steers nothing")
    .unset("that of `[detector]`, unless a cost is given here"),
];

pub(super) const INTERVALS: &[Key] = &[
    key(
        "budget",
        Rate("beats of the whole fleet", 1, 100_000_000),
        "The controller assigns agents their intervals, within the agents' own bounds, so that they send no \
         more than this. Set it to what network and controller shall bear: `heartwatchctl plan` tells.",
    )
    .off("\"0/s\"", "no budget, `detector.interval` holds"),
    key(
        "min",
        Span("100ms", "30m"),
        "The shortest interval assigned. Lower it to use the budget for faster detection while the fleet \
         is small.",
    )
    .within("at most `max`"),
    key(
        "max",
        Span("100ms", "30m"),
        "The longest interval assigned, even if that exceeds the budget. Raise it if slow detection is \
         better than a budget that is not kept.",
    )
    .within("at least `min` and at most half of `detector.gap_max`"),
    key(
        "change_max",
        Decimal("a factor a minute", 1.05, 10.0),
        "The most that an interval grows or shrinks by in a minute. Raise it for fleets that multiply within \
         minutes.",
    ),
    key(
        "watch_factor",
        Decimal("a factor", 1.0, 10.0),
        "A host that came back from a suspicion beats this many times as often for a while, wherever \
         intervals are assigned. Set it to 1.0 to ask nobody to.",
    ),
    key(
        "watch_for",
        Span("1m", "1h"),
        "For how long after its last suspicion. Raise it if trouble often comes back later.",
    ),
    key(
        "classes",
        List("tables, see below", 0, 15),
        "Other rules for some hosts. Add one where hosts shall be watched more closely than others.",
    ),
];

pub(super) const CLASSES: &[Key] = &[
    key(
        "name",
        Text(1, 63),
        "For people, in the status and in metrics; no two classes share one. Choose one that says which \
         hosts it is for.",
    ),
    key(
        "match",
        Free("a table of labels, at least one"),
        "Labels that a host must have, all of them. Add labels to be stricter.",
    ),
    key(
        "weight",
        Decimal("a factor", 0.01, 100.0),
        "How many times as often as other hosts these beat, where the bounds allow it. Raise it for hosts \
         that matter more.",
    ),
    key(
        "min",
        Span("100ms", "30m"),
        "The shortest interval. Lower it to let a weight take effect in a small fleet.",
    )
    .within("at most `max`")
    .unset("that of `[intervals]`"),
    key(
        "max",
        Span("100ms", "30m"),
        "The longest interval. Lower it to bound the detection time of these hosts, however large the fleet \
         grows.",
    )
    .within("at least `min` and at most half of `detector.gap_max`")
    .unset("that of `[intervals]`"),
];
