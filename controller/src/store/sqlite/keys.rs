//! What a store says of hosts' keys, read beside a controller that may be running: for who makes keys by
//! hand.

use std::path::Path;

use heartwatch_common::id::{Generation, HostId};
use heartwatch_common::time::Wall;
use rusqlite::{OpenFlags, OptionalExtension};

use super::files::DB_FILE;
use super::{connect, schema};
use crate::store::StoreError;

/// The first version of the schema that knows of enrolments.
const VERSION_MIN: usize = 5;

/// What is known of one host's keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyStanding {
    /// The least generation that is accepted.
    pub least: Generation,
    /// When it was revoked, why, and who said so, if it is.
    pub revoked: Option<(Wall, String)>,
}

/// What the store in `state_dir` says of each host. Nothing is written, and nobody is kept waiting. Without a
/// store, or with one of an older controller, nothing is known of anybody.
///
/// # Errors
/// The store is there and cannot be read.
pub fn standings(state_dir: &Path, hosts: &[HostId]) -> Result<Vec<KeyStanding>, StoreError> {
    let path = state_dir.join(DB_FILE);
    if !path.try_exists().unwrap_or(true) {
        return Ok(vec![KeyStanding::default(); hosts.len()]);
    }
    let c = connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    if schema::version(&c)? < VERSION_MIN {
        return Ok(vec![KeyStanding::default(); hosts.len()]);
    }
    let mut enrolled =
        c.prepare("SELECT least, revoked, reason FROM enrolments WHERE host = ?1")?;
    let mut row = c.prepare("SELECT generation FROM hosts WHERE id = ?1")?;
    let standing = |host: &HostId| -> Result<KeyStanding, StoreError> {
        let known: Option<(u16, Option<i64>, String)> =
            enrolled.query_row([host.0], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).optional()?;
        let used: Option<u16> = row.query_row([host.0], |r| r.get(0)).optional()?;
        let (least, revoked, reason) = known.unwrap_or_default();
        Ok(KeyStanding {
            least: Generation(least.max(used.unwrap_or(0))),
            revoked: revoked.map(|at| (Wall(at), reason)),
        })
    };
    hosts.iter().map(standing).collect()
}
