//! From the outbox to a receiver.
