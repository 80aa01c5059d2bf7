//! The Heartwatch controller: from a beat to a failover.
//!
//! Data flows one way, and every arrow is one named type:
//!
//! ```text
//! Datagram ─▶ Admitted ─▶ Proof ─▶ Transition ─▶ Decision ─▶ NewEvent ─▶ Outgoing ─▶ Outcome
//!  ingest      ingest     detector   shard        policy      store       delivery
//! ```
//!
//! Read in this order: [`event`] (the words), [`ingest::admit`] (what counts), [`detector`] (who is
//! overdue), [`shard`] (one thread that owns its hosts), [`policy`] (what it means and who is told),
//! [`store`] (what survives), [`delivery`] (getting it there), [`view`] and [`api`] (seeing it), [`app`]
//! (wiring); [`replay`] runs recordings through the detector, [`intervals`] says how often hosts beat,
//! [`plan`] what all that costs and promises. *Values decide, shells act*: `detector`,
//! `policy` (but for its `driver`), `ingest::admit`, `shard` (but for its `worker`) and
//! `delivery::schedule` open nothing, read no clock and draw no ambient randomness; the simulator drives
//! the same values in virtual time.
//!
//! # Glossary
//!
//! | word | means |
//! | --- | --- |
//! | *host* | a machine with an agent |
//! | *beat* | one heartbeat; *boot*: one life of an agent; *seq*: number of a datagram in it |
//! | *gap* | time between two beats, announced by the first; *silence*: now − last arrival |
//! | *margin* | how much later than expected a beat may come; *deadline*: expected + margin |
//! | *state* | pending, alive, suspect, down, left |
//! | *transition* | one turn of a host's story; *incident*: one outage of one host |
//! | *event* | a journaled turn; *delivery*: an event on its way to a *receiver* |
//! | *attempt* | one request, or run of a command, for a delivery or several; *outcome*: how it ended |
//! | *verdict* | what becomes of an event at a receiver; *hold*: an action kept back, with its reason |
//! | *wait* | what a rule itself keeps back: its delay, hours, or rate; ends by itself |
//! | *domain* | hosts that share a fate: rack, zone, power tree, fleet; *storm*: too many of one are silent |
//! | *order* | the action that a host's fall asks for; held by `policy::guard`; *course*: what follows it |
//! | *token* | fencing number, rising per host; *dead letter*: a delivery that was given up |
//! | *context* | calm or disturbed: whether a host's last beats came as usual |
//! | *doubt* | the controller distrusts its own eyes; *blind*: for too long, so actions are held |
//! | *canary* | a host inside the controller that falls silent on purpose; *drill*: when it does |
//! | *watermark* | the instant before which everything that arrived has been read |
//! | *epoch* | random number of one life of a controller, echoed by beats |

pub mod api;
pub mod app;
pub mod canary;
pub mod config;
pub mod control;
pub mod crash;
pub mod ctl;
pub mod delivery;
pub mod detector;
pub mod enrol;
pub mod event;
pub mod ingest;
pub mod intervals;
pub mod memory;
pub mod metrics;
pub mod plan;
pub mod policy;
pub mod replay;
pub mod shard;
pub mod store;
pub mod tls;
pub mod view;
