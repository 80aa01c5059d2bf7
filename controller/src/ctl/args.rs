//! The command line as typed.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use heartwatch_common::cli::Generate;
use heartwatch_common::config::Span;
use heartwatch_common::id::HostId;

use super::plan::Share;
use super::receivers::Receivers;
use crate::event::{EventKind, State};
use crate::store::DeliveryState;

/// Asks and steers a Heartwatch controller.
#[derive(Debug, Parser)]
#[command(name = "heartwatchctl", version, about = "Asks and steers a Heartwatch controller")]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// Where the controller's API answers.
    #[arg(long, global = true, env = "HEARTWATCH_URL", default_value = "http://127.0.0.1:2328")]
    pub(super) url: String,
    /// The API token's file, mode 0600. Commands that only read need none on the controller's own machine
    /// [default: /var/lib/heartwatch-controller/api-token].
    #[arg(long, global = true, env = "HEARTWATCH_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) trust: super::trust::TrustArgs,
    /// Prints the API's JSON instead of a table.
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// The controller's config file, for key, restore, replay and plan
    /// [default: /etc/heartwatch/controller.toml if it exists].
    #[arg(long, global = true)]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// How the controller is: hosts by state, doubts, shards, deliveries.
    Status,
    /// Lists hosts; `hosts revoke` ends one's keys, `hosts enrolled` lists who has which, `hosts single` ends
    /// a duplicate.
    Hosts(Hosts),
    /// Shows one host.
    Host {
        /// Its id or its name.
        host: String,
    },
    /// Tells why a host stands where it stands: every fact and decision that is recorded.
    Why {
        /// Its id or its name.
        host: String,
    },
    /// Lists what happened; without --after the newest events.
    Events(Events),
    /// Lists deliveries of webhooks.
    Deliveries(Deliveries),
    /// Shows who is told and how that goes; tries a receiver, or shows what it would get.
    Receivers(Receivers),
    /// Sends dead letters again, after judging each against the present state.
    Redrive(Redrive),
    /// Lists held orders, or approves or rejects them.
    Holds(super::holds::Holds),
    /// Lists open outages and how far their orders are, or reports how an order ended.
    Incidents(super::incidents::Incidents),
    /// Shows what each rule does and whom it means, or tells what rules would do.
    Rules(super::rules::Rules),
    /// Lists maintenance windows, opens one, or ends one.
    Maintenance(super::maintenance::Maintenance),
    /// Tells who could take over from a host, least loaded first, and why others can't.
    Candidates(super::candidates::Candidates),
    /// Tests the whole way now: a canary inside the controller falls silent, and a test event is delivered.
    Drill,
    /// Registers expected hosts from a file: a JSON array, JSON lines, or CSV `id,name,label=value;…`.
    Import {
        /// The file; `-` reads the standard input.
        file: PathBuf,
    },
    /// Removes a host from the registry; it comes back if it says hello again. For good: `hosts revoke`.
    Forget {
        /// Its id or its name.
        host: String,
    },
    /// Keeps a host's margin, whatever its beats teach.
    Freeze {
        /// Its id or its name.
        host: String,
        /// How late its beats may be, 10ms to 10m [default: as it is now].
        #[arg(long)]
        margin: Option<Span>,
    },
    /// Lets a host's margin learn again.
    Unfreeze {
        /// Its id or its name.
        host: String,
    },
    /// Makes, lists and revokes join tokens, by which hosts enrol.
    Token(super::enrol::Token),
    /// Shows the fleet secrets and how many hosts beat under each; makes a new one, retires an old one.
    Secrets(super::enrol::Secrets),
    /// Makes keys and enrolment files for images, from the fleet secret on this machine.
    Enroll(super::enrol::Enroll),
    /// Holds all actions for a time, or ends that.
    Pause(Pause),
    /// Fetches a consistent copy of the controller's store.
    Backup {
        /// The file to write; must not exist.
        file: PathBuf,
    },
    /// Makes a backup the store again, on the controller's machine while the controller is stopped.
    Restore {
        /// The backup.
        file: PathBuf,
        /// The controller's state directory [default: as the config says].
        #[arg(long)]
        state_dir: Option<PathBuf>,
    },
    /// Prints a host's own key for provisioning, from the fleet secret on this machine.
    Key {
        /// 32 hexadecimal digits, as `heartwatch-agent id` prints them.
        host: HostId,
        /// Raise it to revoke the host's older keys [default: the least that is accepted].
        #[arg(long)]
        generation: Option<u16>,
    },
    /// Tells what settings would have done to recorded beats: detection times against mistakes.
    #[command(after_help = REPLAY_HELP)]
    Replay(Replay),
    /// Tells what a fleet costs (datagrams, bits, cores, memory) and what the present config promises it
    /// (detection times, false suspects and downs, availability).
    Plan(Plan),
    /// Makes fleet secrets.
    Secret {
        #[command(subcommand)]
        command: Secret,
    },
    /// Makes, lists and revokes tokens of the API.
    ApiToken {
        #[command(subcommand)]
        command: super::api_token::ApiToken,
    },
    /// Makes manual pages or shell completions.
    #[command(hide = true)]
    Generate(Generate),
}

/// What a recording is.
const REPLAY_HELP: &str = "\
Files are told apart by their first line:
  host,seq,sent_us,gap_us,arrived_us   arrival log, as `heartwatch-controller run --record` writes it;
                                       arrived_us is empty for a beat that was lost
  12.5                                 delay series: one one-way delay in ms, or `lost`, per line

Example:
  heartwatchctl replay beats.csv.1 beats.csv \\
    --set detector.timeout_max=5s \\
    --set detector.timeout_max=5s,detector.false_suspicion_cost=1000s";

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// Arrival logs or delay series, oldest first; of a folder all *.csv and *.delays.
    #[arg(required = true, value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Another setting to try beside the present one: `detector.KEY=VALUE`, several with commas
    /// between. Each --set is an alternative of its own; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE,…")]
    pub(super) sets: Vec<String>,
    /// Draws detection time against mistakes for false_suspicion_cost from 100 s to 10,000,000 s.
    #[arg(long, value_name = "OUT")]
    pub(super) svg: Option<PathBuf>,
    /// Interval at which a delay series is sent, 10ms to 30m.
    #[arg(long, default_value = "1s")]
    pub(super) interval: Span,
    /// Share of the interval by which its gaps differ, 0 to 0.5.
    #[arg(long, default_value_t = 0.1)]
    pub(super) jitter: f64,
    /// Of the draws; the same seed gives the same figures.
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Beginning of each host's recording that only teaches and is not measured
    /// [default: 1h, or a tenth of it if that is less].
    #[arg(long)]
    pub(super) skip: Option<Span>,
}

#[derive(Debug, Args)]
pub(super) struct Plan {
    /// How many hosts.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(super) hosts: u64,
    /// Time between two beats, 10ms to 1h [default: what the config assigns].
    #[arg(long)]
    pub(super) interval: Option<Span>,
    /// Wanted time from a crash to `down`, of 99 in 100: answers the longest interval that keeps it, or
    /// says whether --interval does.
    #[arg(long)]
    pub(super) detect: Option<Span>,
    /// Share of datagrams lost on the way, in each direction, such as 0.01 or 1%.
    #[arg(long, default_value = "0.01%")]
    pub(super) loss: Share,
    /// They are lost in bursts of this mean length [default: each by itself].
    #[arg(long)]
    pub(super) burst: Option<Span>,
    /// And no burst is longer than this.
    #[arg(long)]
    pub(super) burst_longest: Option<Span>,
    /// How much later than usual all but one datagram in 10,000 come.
    #[arg(long, default_value = "5ms")]
    pub(super) delay_spread: Span,
    /// Round trip between controller and hosts.
    #[arg(long, default_value = "1ms")]
    pub(super) round_trip: Span,
    /// Mean time between failures of one host, at least 1s.
    #[arg(long, default_value = "365d", value_parser = super::plan::at_least_a_second)]
    pub(super) mtbf: Span,
    /// Time from `down` until the host's work runs elsewhere.
    #[arg(long, default_value = "30s")]
    pub(super) failover: Span,
    /// The longest time for which the controller may not read its sockets.
    #[arg(long, default_value = "100ms")]
    pub(super) stall: Span,
    /// Datagrams go over IPv6.
    #[arg(long)]
    pub(super) ipv6: bool,
    /// Prints how each figure is computed, and whose formula it is.
    #[arg(long)]
    pub(super) explain: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Hosts {
    #[command(subcommand)]
    pub(super) verb: Option<super::enrol::HostsVerb>,
    /// Only in this state; may be repeated.
    #[arg(long)]
    pub(super) state: Vec<State>,
    /// Only with this label, key=value; may be repeated.
    #[arg(long)]
    pub(super) label: Vec<String>,
    /// Only with this text in the name.
    #[arg(long)]
    pub(super) name: Option<String>,
    /// At most this many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) limit: u64,
    /// All of them.
    #[arg(long, conflicts_with = "limit")]
    pub(super) all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Continues behind this cursor, oldest first.
    #[arg(long)]
    pub(super) after: Option<String>,
    /// Only of this host, by id or name.
    #[arg(long)]
    pub(super) host: Option<String>,
    /// Only of this kind, such as host.down or controller.audit.
    #[arg(long)]
    pub(super) kind: Option<EventKind>,
    /// At most this many at first.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(super) limit: u64,
    /// Goes on and prints what happens.
    #[arg(long, short)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct Deliveries {
    /// held, pending, delivered, cancelled, superseded, dead or vetoed.
    #[arg(long)]
    pub(super) state: Option<DeliveryState>,
    /// Only to this receiver.
    #[arg(long)]
    pub(super) receiver: Option<String>,
    /// Only about this host, by id or name.
    #[arg(long)]
    pub(super) host: Option<String>,
    /// Only with a higher number.
    #[arg(long)]
    pub(super) after: Option<u64>,
    /// At most this many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(super) limit: u64,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["ids", "dead"])))]
pub(super) struct Redrive {
    /// Numbers of dead deliveries.
    pub(super) ids: Vec<u64>,
    /// All dead letters, the oldest 1,000.
    #[arg(long, conflicts_with = "ids")]
    pub(super) dead: bool,
    /// Only to this receiver.
    #[arg(long, requires = "dead", conflicts_with = "ids")]
    pub(super) receiver: Option<String>,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["span", "end"])))]
pub(super) struct Pause {
    /// For how long, such as 10m; at most 7d.
    #[arg(long = "for", requires = "reason")]
    pub(super) span: Option<Span>,
    /// Why; others will ask.
    #[arg(long, requires = "span")]
    pub(super) reason: Option<String>,
    /// Ends the pause.
    #[arg(long, conflicts_with_all = ["span", "reason"])]
    pub(super) end: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Secret {
    /// Prints a fresh line for a fleet secret file.
    New {
        /// Its number, 0 to 255; each secret of a file needs its own.
        #[arg(long)]
        key_id: u8,
    },
}
