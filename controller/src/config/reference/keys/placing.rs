//! The keys of who may take over.

use super::super::Form::{Decimal, Span};
use super::super::Key;
use super::key;

pub(super) const PLACEMENT: &[Key] = &[
    key(
        "load_max",
        Decimal("a share of a host's capacity", 0.05, 1.0),
        "Hosts with more load, that of the scarcest of CPU, memory and run queue, are not named; `1.0` leaves \
         nobody out. Lower it if what moves is large.",
    ),
    key(
        "reserve_load",
        Decimal("a share of a host's capacity", 0.0, 1.0),
        "By so much more loaded counts a host that was named first for a failover; `0.0` spreads nothing. \
         Set it to what one host's work adds to another.",
    ),
    key(
        "reserve_half_life",
        Span("1s", "1d"),
        "In which time that halves. Set it to how long work needs after a failover until it shows as load.",
    ),
];
