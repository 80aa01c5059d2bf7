//! The keys of how the API is reached.

use super::super::Form::{Flag, Free, List};
use super::super::Key;
use super::key;

pub(super) const API: &[Key] = &[
    key(
        "certificate_file",
        Free("a PEM file"),
        "The API's certificate, followed by what leads to its authority. Set it, with `key_file`, where \
         certificates are given out; a changed file is taken within seconds, or at SIGHUP.",
    )
    .unset("`api-certificate.pem` in `state_dir`, made at first start; clients pin its SHA-256"),
    key(
        "key_file",
        Free("a PEM file of mode 0600"),
        "The key of that certificate. Set it together with `certificate_file`.",
    )
    .unset("`api-key.pem` in `state_dir`, made at first start"),
    key(
        "client_ca_file",
        Free("a PEM file"),
        "TLS clients must show a certificate by one of these authorities, beside their token. Set it where \
         every client has one; hosts that enrol need none.",
    )
    .unset("clients need no certificate"),
    key(
        "loopback_reads",
        Flag,
        "Plain HTTP from this machine itself may read without a token. Switch it off where people are on \
         the machine who may not see the fleet, and give Prometheus a token.",
    ),
    key(
        "host_names",
        List("names", 0, 32),
        "Names of this machine, beside `localhost` and its addresses, by which it may read so: others are \
         answered with 421, as a web page could make its own name point here (DNS rebinding). Set it where \
         people on the machine, or a proxy on it, ask for it by its name.",
    ),
];
