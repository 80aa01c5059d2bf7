//! The keys of the controller's own drills.

use super::super::Form::{Flag, Free, Span};
use super::super::Key;
use super::key;

pub(super) const CANARY: &[Key] = &[
    key(
        "enabled",
        Flag,
        "Holds drills by themselves; `heartwatchctl drill` holds one whenever it is asked. Switch it off where \
         something else tests the whole way.",
    ),
    key(
        "interval",
        Span("1m", "7d"),
        "Between two drills, and before the first. Lower it to learn sooner that something is broken.",
    ),
    key(
        "detection_max",
        Span("2s", "10m"),
        "A drill fails if the canary's silence is found later. Set it to what was promised: it takes about two \
         seconds.",
    ),
    key(
        "delivery_max",
        Span("1s", "10m"),
        "A drill fails if its test event is delivered later. Raise it if its receiver is slow.",
    ),
    key(
        "receiver",
        Free("a receiver's name"),
        "To which receiver a drill's test event goes. Set it to one that ignores `heartwatch.test`, to test \
         the way to it too.",
    )
    .unset("the controller's own API"),
];
