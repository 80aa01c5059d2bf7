//! From bytes on a socket to datagrams that count.

pub mod admit;
pub mod socket;
pub mod sources;
