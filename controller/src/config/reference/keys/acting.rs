//! The keys of what is done: storms, holds and rates, who is told, and of what.

use super::super::Form::{Count, Decimal, Flag, Free, List, OneOf, Rate, Span};
use super::super::Key;
use super::key;

pub(super) const DOMAINS: &[Key] = &[
    key(
        "trees",
        List("lists of 1 to 8 labels", 0, 8),
        "Labels that make failure domains, each list from the largest domain down; `[]` leaves the fleet as \
         the only one. Set it to what fails as a whole: buildings, racks, power.",
    ),
    key(
        "storm_share",
        Decimal("a share of a domain's hosts", 0.01, 1.0),
        "A storm is so large a share of a domain silent. Raise it where domains of few hosts often lose \
         several at once for good reason.",
    ),
    key(
        "storm_hosts",
        Count("hosts", 2, 1_000_000),
        "A storm is at least so many hosts of a domain silent. Raise it where several hosts fail together \
         every day.",
    )
    .off("0", "the guard of domains is off"),
    key(
        "fleet_share",
        Decimal("a share of all hosts", 0.01, 1.0),
        "The same for the whole fleet, where the controller asks whether it is itself at fault. Lower it if \
         no real failure can take so many of your hosts.",
    ),
    key(
        "fleet_hosts",
        Count("hosts", 2, 1_000_000),
        "And at least so many of them. Raise it for fleets of a few hosts that are often switched off \
         together.",
    )
    .off("0", "the guard of the fleet is off"),
    key(
        "storm_window",
        Span("10s", "1d"),
        "Hosts that were acted upon count as silent for this long after it. Raise it to see slower cascades.",
    ),
    key(
        "settle",
        Span("0s", "1m"),
        "How long an action waits while other hosts of its domain are silent, or as long as the host's own \
         gap between beats if that is longer. Raise it if hosts of one rack are found dead further apart.",
    ),
    key(
        "calm",
        Span("1s", "1h"),
        "A storm is over when less than half of what it takes is silent for this long. Raise it if storms \
         come in waves.",
    ),
    key(
        "release_after",
        Span("1m", "7d"),
        "Or when for this long no host of the domain has fallen silent or come back: what is dead then is \
         acted upon, at the domain's rate. Lower it where nobody is at hand to approve; the fleet's storm \
         never ends so.",
    )
    .off("\"0s\"", "never, somebody must approve"),
    key(
        "hold_max",
        Span("1m", "7d"),
        "An action held for longer raises `hold.overdue`. Set it to how long people may take to look.",
    ),
    key(
        "actions_per_minute",
        Count("actions per minute", 1, 1_000_000),
        "The most failovers in one domain in the long run. Lower it to what your orchestrator can take.",
    )
    .off("0", "no limit"),
    key(
        "actions_burst",
        Count("actions", 1, 1_000_000),
        "How many of them at once after a rest. Lower it if failovers disturb each other.",
    ),
    key(
        "fleet_actions_per_minute",
        Count("actions per minute", 1, 1_000_000),
        "The most failovers in the whole fleet in the long run. Lower it to what your orchestrator can take.",
    )
    .off("0", "no limit"),
    key(
        "fleet_actions_burst",
        Count("actions", 1, 1_000_000),
        "How many of them at once after a rest. Lower it to what the hosts that take over can bear.",
    ),
];

pub(super) const FLAPS: &[Key] = &[
    key(
        "half_life",
        Span("10s", "1d"),
        "In which time a host's penalty halves. Raise it to catch hosts that come and go more slowly.",
    ),
    key(
        "suppress",
        Count("points", 500, 1_000_000),
        "From this penalty on a host flaps. Raise it if hosts that restart a few times for good reason are \
         taken for flapping.",
    )
    .off("0", "nobody is damped"),
    key(
        "reuse",
        Count("points", 100, 999_999),
        "Below this penalty it no longer does. Lower it if hosts are steady only for a while between two \
         bouts.",
    )
    .within("less than `suppress`"),
    key(
        "suppress_max",
        Span("1m", "7d"),
        "The longest that a host is said to flap after its last fall. Lower it to trust hosts again sooner.",
    ),
    key(
        "act_after",
        Span("0s", "1d"),
        "A flapping host is acted upon only after it has been down for this long. Raise it if failing over a \
         host that comes back at once is worse than waiting.",
    ),
];

pub(super) const RECEIVERS: &[Key] = &[
    key(
        "kind",
        OneOf(&["webhook", "exec"]),
        "How it is reached: by HTTP, or by running a command on the controller's machine. Set it to exec \
         where there is no HTTP orchestrator.",
    ),
    key(
        "format",
        OneOf(&["native", "alertmanager", "masakari", "template"]),
        "What a webhook's body looks like; native is described by `controller/docs/event.schema.json`. \
         Change it for products that speak their own language.",
    ),
    key(
        "url",
        Free("an http:// or https:// URL"),
        "Where to send: the base for alertmanager and masakari, to which their path is added. Set it for every \
         webhook but a template that names its own.",
    )
    .unset("webhooks need it, commands have none"),
    key(
        "cloudevents",
        Flag,
        "Of native: wraps each event in a CloudEvents 1.0 envelope. Set it for an event bus that wants one.",
    ),
    key(
        "secret_file",
        Free("a file of mode 0600, one or two `whsec_…` lines"),
        "Secrets that sign what is sent, each of them, after Standard Webhooks. Set it for every receiver \
         that checks signatures; put a second line while you change the secret.",
    )
    .unset("nothing is signed"),
    key(
        "bearer_token_file",
        Free("a file of mode 0600"),
        "A token to send, read for every attempt. Set it if the receiver demands one.",
    )
    .unset("none is sent"),
    key(
        "client_cert_file",
        Free("a PEM file"),
        "The certificate chain by which the controller shows who it is. Set it, with its key, for \
         receivers that demand mutual TLS.",
    )
    .unset("none is shown"),
    key(
        "client_key_file",
        Free("a PEM file of mode 0600"),
        "The key of `client_cert_file`. Set both or neither.",
    )
    .unset("none"),
    key(
        "ca_file",
        Free("a PEM file that only its owner may write"),
        "Authorities that are trusted beside the system's. Set it if the receiver's certificate is of your \
         own authority.",
    )
    .unset("the system's alone"),
    key(
        "connect_timeout",
        Span("100ms", "1m"),
        "Time to connect. Lower it for receivers nearby, so that one that is off is noticed sooner.",
    ),
    key(
        "first_byte_timeout",
        Span("100ms", "5m"),
        "Time from the start of an attempt until the answer begins. Raise it for receivers that work before \
         they answer.",
    ),
    key(
        "timeout",
        Span("100ms", "5m"),
        "Time for the whole attempt, or for the command. Raise it for commands that take longer.",
    ),
    key(
        "concurrency",
        Count("attempts", 1, 1000),
        "Attempts under way at once. Lower it to what the receiver can take; one host's are never side by \
         side.",
    ),
    key(
        "max_batch",
        Count("deliveries", 1, 100),
        "Deliveries in one request, of native and alertmanager. Raise it for receivers that take arrays: \
         above 1 a native body is one.",
    ),
    key(
        "rate",
        Rate("requests", 1, 100_000),
        "The most requests in the long run. Set it for receivers that limit their callers.",
    )
    .off("\"0/s\"", "no limit"),
    key(
        "burst",
        Count("requests", 1, 10_000),
        "How many requests at once after a rest, while `rate` limits them. Lower it if the receiver counts \
         over short times.",
    ),
    key(
        "retry_base",
        Span("10ms", "1m"),
        "Bounds the first wait between attempts; it doubles. Raise it if a receiver in trouble should be left \
         alone.",
    ),
    key(
        "retry_cap",
        Span("1s", "1h"),
        "Bounds every wait between attempts. Lower it to be sooner back with a receiver that was away for \
         long.",
    ),
    key(
        "give_up_after",
        Span("1m", "30d"),
        "Time waited in all before a delivery becomes a dead letter. Raise it for receivers that may be away \
         for a weekend.",
    ),
    key(
        "resend_every",
        Span("10s", "1h"),
        "Of alertmanager: how often what goes on is said again; an alert that is not, for four times as \
         long, ends by itself. Raise it to send less.",
    ),
    key(
        "generator_url",
        Free("an http:// or https:// URL"),
        "Of alertmanager: where people find this controller's API. Set it so that alerts link to it.",
    )
    .unset("no link"),
    key(
        "template_file",
        Free("a file"),
        "Of template, which needs it: what is sent. Ready ones are in `packaging/examples/templates`; change \
         to another as the product behind changes.",
    )
    .unset("only templates have one"),
    key(
        "allow_hosts",
        Free("a list of host names, or `*.` and a domain, without port"),
        "Of template: hosts that its URLs may name. Set it if they depend on the event.",
    )
    .unset("only the host that they name whatever the event is"),
    key(
        "vars",
        Free("a table of texts"),
        "Of template: what it calls `vars.NAME`, beside those that its own file sets. Set what differs from \
         site to site.",
    )
    .unset("none"),
    key(
        "secrets",
        Free("a table of files, mode 0600"),
        "Of template: files whose content it calls `secrets.NAME`. Set it for keys that the product demands.",
    )
    .unset("none"),
    key(
        "command",
        Free("a list: the program's absolute path, and its arguments"),
        "Of exec, which needs it: gets the event on its standard input, no shell is between. Change it as \
         the command does.",
    )
    .unset("only exec has one"),
];

pub(super) const RULES: &[Key] = &[
    key("name", Free("a text"), "For people and for `why`. Choose one that says what it is for."),
    key(
        "match",
        Free(
            "a table of labels, or a label expression such as `\"pool in (db, cache) and not canary\"`",
        ),
        "Labels that a host must have, all of them, or a condition on them (`=`, `!=`, `in (…)`, `not in (…)`, \
         `~` with `*` and `?`, a label alone, `and`, `or`, `not`, brackets); none is every host, and the \
         controller's own events. Set it where some hosts have other receivers.",
    ),
    key(
        "events",
        Free("a list of event kinds, at least one"),
        "What is told. Name those that its receivers act upon, and `host.recovered`, which ends them.",
    ),
    key(
        "receivers",
        Free("a list of names of receivers, at least one"),
        "Who is told. Name more than one if each must hear of it.",
    ),
    key(
        "from",
        Free("a list of `suspect`, `down` and `left`"),
        "Of `host.recovered` alone: only hosts that stood so before; none is all. Set it if the end of a mere \
         suspicion is of no interest.",
    ),
    key(
        "delay",
        Span("0s", "1d"),
        "How long a host must stand so before its news goes, by the monotonic clock; it is judged again then. \
         Only what goes on waits (suspect, unreachable, down, agent-lost, missing), ends never do. Raise it \
         where hosts often come back by themselves, and a failover costs more than the wait.",
    ),
    key(
        "hours",
        Free("windows of days and times, such as `\"Mon-Fri 08:00-18:00; Sat 10:00-14:00\"`"),
        "When the rule is on, by the wall clock of `timezone`. Set it if its receivers must be left alone at \
         other times; ends of what they were told still go.",
    )
    .unset("always"),
    key(
        "timezone",
        Free("an IANA name, such as `Europe/Berlin`"),
        "Whose clock `hours` means, its summer time included. Set it to where the people are.",
    ),
    key(
        "outside",
        OneOf(&["hold", "suppress"]),
        "What becomes, outside the hours, of news of what goes on: held until they begin and judged again \
         then, or not sent; other news but ends is not sent. Set it to suppress if another rule tells \
         somebody at those times.",
    ),
    key(
        "actions_per_minute",
        Count("actions", 1, 1_000_000),
        "The most actions of this rule in the long run; others wait in line. Lower it to what its receivers \
         can take, beside the limits of `[domains]`.",
    )
    .off("0", "no limit"),
    key(
        "actions_burst",
        Count("actions", 1, 1_000_000),
        "How many actions at once after a rest, while `actions_per_minute` limits them. Lower it if even a few \
         at once are too many.",
    ),
    key(
        "candidates_same",
        Free("a list of labels"),
        "Labels in which hosts that may take over must equal the failed one. Set it if work can only move \
         within a pool, or a zone.",
    ),
    key(
        "dry_run",
        Flag,
        "Decides and records, but sends nothing. Set it for a rule that you want to watch first.",
    ),
    key(
        "always",
        Flag,
        "Never holds what this rule sends, whatever storms, pauses or rates hold elsewhere. Set it for \
         alerts, never for failovers.",
    ),
    key(
        "first",
        List("receivers", 0, 8),
        "Receivers that must have done what an order asks, one after another, before `receivers` are ordered \
         to; if one fails or refuses, nobody is. With `complete_within` they must report, too. They are not told of \
         recoveries. Set it to fence a host before its work is started elsewhere.",
    ),
    key(
        "accept_within",
        Span("1s", "1d"),
        "Longest that an order may wait for being accepted before it is escalated. Set it to how long users \
         may be without service before people must know.",
    )
    .off("\"0s\"", "as long as deliveries are tried"),
    key(
        "complete_within",
        Span("1s", "7d"),
        "Longest that it may take after that until the receiver reports at /v1/incidents/ID/complete that it is \
         done. Set it for receivers that report; with others every order would be escalated.",
    )
    .off("\"0s\"", "accepted is as good as done"),
    key(
        "escalate",
        List("receivers", 0, 8),
        "Receivers that are turned to, in this order, if nobody did it: told of it, each if the one before \
         cannot be told. Set it for orders that somebody must know of when they are not done.",
    ),
    key(
        "escalate_acts",
        Flag,
        "Orders those to act, under a higher token, where the one before has not. Set it only if receivers \
         refuse tokens below the highest that they have seen: both may have begun.",
    ),
];
