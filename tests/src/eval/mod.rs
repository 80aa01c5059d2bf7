//! What judges a failure detector: the beats that a receiver sees, and the detectors of others.
//!
//! A host is a [`schedule::Plan`], which says when it sends, and a series of delays out of
//! [`families`], which says when each beat arrives, if at all. Both follow from a seed. What arrives
//! is shown to a detector; [`rivals`] holds those of the literature and of shipping software, each as
//! strong as its authors made it.

pub mod contest;
pub mod curve;
pub mod downs;
pub mod families;
pub mod fleet;
pub mod measure;
pub mod ours;
pub mod rivals;
pub mod schedule;
pub mod verdict;
