//! The embedded engine: SQLite in WAL mode with `synchronous=FULL`, so that a commit that was answered
//! survives a power cut.
//!
//! [`Db`] is the core: every operation of the [`Store`](super::Store) as a plain blocking method whose
//! time and ids are arguments. The simulator drives it in virtual time ([`Db::memory`]).
//! [`SqliteStore`] is the shell: one writer thread that commits in groups, and a few read-only
//! connections, so that a long read never stalls a write.
//!
//! # Tokens and the store epoch
//!
//! `token = epoch · 2³² + counter`. The epoch stands in the database and in a file beside it, and rises
//! above both at every start: the database may have been replaced by an older copy, one made a minute
//! ago even, and nothing in it would tell. Lost file or lost database, the other one is enough. The
//! file is written first, so whatever dies when, no token is ever handed out twice. Two million epochs
//! would last a controller that restarts every five seconds for four months; after half of them the
//! epoch rises only when the two copies differ.
//!
//! A host whose receiver has seen a higher token than ours (both copies were lost, or the whole
//! directory was put back) goes on above that one, alone.
//!
//! # What a crash leaves
//!
//! Every operation is one transaction, so there is no half of one. An attempt that was begun and never
//! finished, because the controller died in it, counts as begun: the receiver may have got it.

mod backup;
mod enrol;
mod files;
mod journal;
mod keys;
mod leaves;
mod outbox;
mod placed;
mod prune;
mod read;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;
use std::time::Duration;

use heartwatch_common::id::{ControllerId, HostId};
use heartwatch_common::time::Wall;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};
use serde_json::{Map, Value};

pub use backup::restore;
pub use files::{DB_FILE, EPOCH_FILE, LOCK_FILE};
pub use keys::{KeyStanding, standings};
pub use writer::{COMMANDS_LEN_MAX, GROUP_LEN_MAX, READERS_MAX, SqliteStore};

use super::{
    Appended, AttemptRow, BATCH_LEN_MAX, Backlog, Begin, Cursor, DeliveryFilter, DeliveryId,
    DeliveryRow, Due, EventRow, Finish, HostRow, NewEvent, READ_LEN_MAX, RECORD_LEN_MAX, Receivers,
    Retention, StoreError, Token,
};

/// Attempts of one delivery that are kept, the newest.
pub const ATTEMPTS_LEN_MAX: u32 = 100;
/// How often one event is journaled again under a higher token because a receiver says that it has
/// seen a higher one. After that the delivery is dead: such a receiver would never be content.
pub const RENEWALS_MAX: u32 = 8;
/// Most events that one call of [`Db::prune`] throws away, and most dead letters.
pub const PRUNE_LEN_MAX: usize = 1_000;
/// Tokens stay below this, so that JSON numbers carry them exactly.
pub const TOKEN_MAX: u64 = (1 << 53) - 1;
/// A receiver that claims to have seen a token above this is not believed: going on above it would
/// leave its host without tokens. 1,024 epochs below the end.
pub const TOKEN_BELIEVED_MAX: u64 = ((1 << 21) - 1_024) << 32;
const EPOCH_MAX: u64 = (1 << 21) - 1_025;

/// The synchronous core: every operation a plain method, each one transaction.
///
/// The methods mean exactly what those of [`Store`](super::Store) of the same name mean. On error
/// nothing was changed.
#[derive(Debug)]
pub struct Db {
    c: Connection,
    controller: ControllerId,
    epoch: u64,
    _lock: Option<files::Lock>,
}

impl Db {
    /// Opens or creates the database at `path` and locks its directory against a second controller.
    /// `epoch_file` keeps the store epoch beside it; `fresh` becomes the controller's identity if the
    /// database is new, and is ignored otherwise.
    ///
    /// # Errors
    /// [`StoreError::Open`] if another controller has it, it is damaged, or of a newer version.
    pub fn open(path: &Path, epoch_file: &Path, fresh: ControllerId) -> Result<Self, StoreError> {
        let lock = files::lock(path)?;
        files::create(path)?;
        let c = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        let mode: String =
            c.pragma_update_and_check(None, "journal_mode", "wal", |r| r.get(0)).map_err(open)?;
        if mode != "wal" {
            return Err(StoreError::Open(format!(
                "{}: this file system cannot do write-ahead logging (it says `{mode}`): keep the \
                 state directory on a local disk",
                path.display()
            )));
        }
        let filed = files::read_epoch(epoch_file)?;
        let known = if schema::version(&c).map_err(at(path))? == 0 {
            None
        } else {
            schema::migrate(&c).map_err(at(path))?;
            Some(meta_epoch(&c)?)
        };
        let highest = filed.max(known).unwrap_or(0);
        let epoch = if filed == known && highest > EPOCH_MAX / 2 {
            highest
        } else {
            highest.saturating_add(1)
        };
        if epoch > EPOCH_MAX {
            return Err(StoreError::Open(format!(
                "the store epoch {epoch} is beyond {EPOCH_MAX}: correct {}",
                epoch_file.display()
            )));
        }
        if filed != Some(epoch) {
            files::write_epoch(epoch_file, epoch)?;
        }
        let db = Self::with(c, epoch, fresh, Some(lock)).map_err(at(path))?;
        Ok(db)
    }

    /// A database that lives as long as this value, with controller id 1 and epoch 1.
    ///
    /// # Errors
    /// Only if there is no memory for it.
    pub fn memory() -> Result<Self, StoreError> {
        Self::with(Connection::open_in_memory().map_err(open)?, 1, ControllerId(1), None)
    }

    fn with(
        c: Connection,
        epoch: u64,
        fresh: ControllerId,
        lock: Option<files::Lock>,
    ) -> Result<Self, StoreError> {
        c.execute_batch(
            "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA temp_store = MEMORY; \
             PRAGMA cache_size = -8000; PRAGMA wal_autocheckpoint = 8000; \
             PRAGMA journal_size_limit = 67108864;",
        )?;
        c.set_prepared_statement_cache_capacity(64);
        // Otherwise a statement is planned anew whenever a value is bound that might choose another plan.
        c.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        schema::migrate(&c)?;
        c.execute(
            "INSERT INTO meta VALUES ('controller', ?1) ON CONFLICT DO NOTHING",
            [fresh.to_string()],
        )?;
        set_meta_epoch(&c, epoch)?;
        let controller: String =
            c.query_row("SELECT value FROM meta WHERE key = 'controller'", [], |r| r.get(0))?;
        let controller = u64::from_str_radix(&controller, 16)
            .map(ControllerId)
            .map_err(|_| StoreError::Open(format!("`{controller}` is not a controller id")))?;
        Ok(Self { c, controller, epoch, _lock: lock })
    }

    /// This controller's lasting identity.
    pub fn controller(&self) -> ControllerId {
        self.controller
    }

    /// The store epoch: the upper part of every token handed out from now on.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Every host of the registry.
    pub fn hosts(&self) -> Result<Vec<HostRow>, StoreError> {
        read::hosts(&self.c)
    }

    /// See [`Store::hosts`](super::Store::hosts).
    pub fn hosts_after(
        &self,
        after: Option<HostId>,
        limit: usize,
    ) -> Result<Vec<HostRow>, StoreError> {
        read::hosts_after(&self.c, after, limit)
    }

    /// See [`Store::record`](super::Store::record).
    pub fn record(
        &self,
        rows: &[HostRow],
        events: &[NewEvent],
    ) -> Result<Vec<Appended>, StoreError> {
        self.atomically(|c| {
            journal::save_hosts(c, rows)?;
            journal::append(c, self.epoch, events, RECORD_LEN_MAX)
        })
    }

    /// See [`Store::save_hosts`](super::Store::save_hosts).
    pub fn save_hosts(&self, rows: &[HostRow]) -> Result<(), StoreError> {
        self.atomically(|c| journal::save_hosts(c, rows))
    }

    /// See [`Store::append`](super::Store::append).
    pub fn append(&self, events: &[NewEvent]) -> Result<Vec<Appended>, StoreError> {
        self.atomically(|c| journal::append(c, self.epoch, events, BATCH_LEN_MAX))
    }

    /// See [`Store::forget`](super::Store::forget).
    pub fn forget(&self, host: HostId, event: &NewEvent) -> Result<bool, StoreError> {
        self.atomically(|c| journal::forget(c, self.epoch, host, event))
    }

    /// See [`Store::pending`](super::Store::pending).
    pub fn pending(
        &self,
        receiver: &str,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        read::pending(&self.c, receiver, after, limit)
    }

    /// See [`Store::begin_attempt`](super::Store::begin_attempt).
    pub fn begin_attempt(&self, id: DeliveryId, at: Wall) -> Result<Begin, StoreError> {
        self.atomically(|c| outbox::begin_attempt(c, id, at))
    }

    /// See [`Store::finish_attempt`](super::Store::finish_attempt).
    pub fn finish_attempt(&self, id: DeliveryId, finish: &Finish) -> Result<Vec<Due>, StoreError> {
        self.atomically(|c| outbox::finish_attempt(c, self.epoch, id, finish))
    }

    /// See [`Store::release`](super::Store::release).
    pub fn release(
        &self,
        host: HostId,
        which: &Receivers,
        verdict: Result<(), String>,
        at: Wall,
    ) -> Result<Vec<Due>, StoreError> {
        self.atomically(|c| outbox::release(c, self.epoch, host, which, verdict, at))
    }

    /// See [`Store::release_placed`](super::Store::release_placed).
    pub fn release_placed(
        &self,
        host: HostId,
        which: &Receivers,
        data: &Map<String, Value>,
        at: Wall,
    ) -> Result<Vec<Due>, StoreError> {
        self.atomically(|c| placed::release(c, self.epoch, host, which, data, at))
    }

    /// See [`Store::held_hosts`](super::Store::held_hosts).
    pub fn held_hosts(&self) -> Result<Vec<HostId>, StoreError> {
        read::held_hosts(&self.c)
    }

    /// See [`Store::redrive`](super::Store::redrive).
    pub fn redrive(&self, id: DeliveryId, at: Wall) -> Result<Option<Due>, StoreError> {
        self.atomically(|c| outbox::redrive(c, id, at))
    }

    /// See [`Store::cancel`](super::Store::cancel).
    pub fn cancel(&self, id: DeliveryId, reason: &str, at: Wall) -> Result<bool, StoreError> {
        self.atomically(|c| outbox::cancel(c, id, reason, at))
    }

    /// See [`Store::events`](super::Store::events).
    pub fn events(
        &self,
        after: Cursor,
        host: Option<HostId>,
        limit: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        read::events(&self.c, after, host, limit)
    }

    /// See [`Store::events_of`](super::Store::events_of).
    pub fn events_of(&self, host: HostId, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        read::events_of(&self.c, host, limit)
    }

    /// See [`Store::head`](super::Store::head).
    pub fn head(&self) -> Result<Cursor, StoreError> {
        read::head(&self.c)
    }

    /// See [`Store::deliveries`](super::Store::deliveries).
    pub fn deliveries(
        &self,
        filter: &DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        read::deliveries(&self.c, filter, limit)
    }

    /// See [`Store::attempts`](super::Store::attempts).
    pub fn attempts(&self, id: DeliveryId) -> Result<Vec<AttemptRow>, StoreError> {
        read::attempts(&self.c, id)
    }

    /// See [`Store::backlog`](super::Store::backlog).
    pub fn backlog(&self) -> Result<Backlog, StoreError> {
        read::backlog(&self.c)
    }

    /// See [`Store::prune`](super::Store::prune).
    pub fn prune(&self, retention: Retention, now: Wall) -> Result<u64, StoreError> {
        self.atomically(|c| prune::prune(c, retention, now))
    }

    /// See [`Store::get`](super::Store::get).
    pub fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        read::get(&self.c, key)
    }

    /// See [`Store::list`](super::Store::list).
    pub fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        read::list(&self.c, prefix)
    }

    /// See [`Store::put`](super::Store::put).
    pub fn put(&self, key: &str, value: Option<&str>) -> Result<(), StoreError> {
        self.atomically(|c| journal::put(c, key, value))
    }

    /// See [`Store::backup`](super::Store::backup).
    pub fn backup(&self, to: &Path) -> Result<(), StoreError> {
        backup::backup(&self.c, to)
    }

    /// See [`Store::check`](super::Store::check).
    pub fn check(&self) -> Result<(), StoreError> {
        self.atomically(journal::check)
    }

    /// Runs one operation in a transaction of its own, or in a savepoint if one is open already: there
    /// a failure leaves the others of the group alone.
    fn atomically<T>(
        &self,
        operation: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let c = &self.c;
        let (begin, commit) = if c.is_autocommit() {
            ("BEGIN IMMEDIATE", "COMMIT")
        } else {
            ("SAVEPOINT operation", "RELEASE operation")
        };
        c.execute_batch(begin)?;
        let result = operation(c).and_then(|value| {
            c.execute_batch(commit)?;
            Ok(value)
        });
        // A full disk can make SQLite roll back by itself, the whole group with it; then there is
        // nothing left to undo here, and `writer` finds out by `is_autocommit`.
        if result.is_err() && !c.is_autocommit() {
            if begin == "BEGIN IMMEDIATE" {
                roll_back(c);
            } else if let Err(e) = c.execute_batch("ROLLBACK TO operation; RELEASE operation") {
                log::error!("store: cannot undo a failed operation, undoing its whole group: {e}");
                roll_back(c);
            }
        }
        result
    }
}

/// Undoes the open transaction, if there is one.
fn roll_back(c: &Connection) {
    if c.is_autocommit() {
        return;
    }
    if let Err(e) = c.execute_batch("ROLLBACK") {
        log::error!("store: cannot roll back: {e}");
    }
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let c = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|e| at(path)(open(e)))?;
    // Nobody else may write here (the lock sees to that), so waiting would only hide a mistake.
    c.busy_timeout(Duration::ZERO).map_err(open)?;
    Ok(c)
}

fn meta_epoch(c: &Connection) -> Result<u64, StoreError> {
    let text: Option<String> =
        c.query_row("SELECT value FROM meta WHERE key = 'epoch'", [], |r| r.get(0)).optional()?;
    match text {
        // The controller died between making the tables and filling them.
        None => Ok(0),
        Some(t) => t.parse().map_err(|_| StoreError::Open(format!("`{t}` is not a store epoch"))),
    }
}

fn set_meta_epoch(c: &Connection, epoch: u64) -> Result<(), StoreError> {
    c.execute(
        "INSERT INTO meta VALUES ('epoch', ?1) ON CONFLICT DO UPDATE SET value = excluded.value",
        [epoch.to_string()],
    )?;
    Ok(())
}

fn open(e: rusqlite::Error) -> StoreError {
    StoreError::Open(e.to_string())
}

/// Turns any error into one that says which file could not be opened.
fn at(path: &Path) -> impl Fn(StoreError) -> StoreError {
    move |e| match e {
        StoreError::Open(text) => StoreError::Open(format!("{}: {text}", path.display())),
        other => StoreError::Open(format!("{}: {other}", path.display())),
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(e: rusqlite::Error) -> Self {
        let advice = match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => "free space on the disk of the state directory",
            Some(ErrorCode::SystemIoFailure) => "the disk fails: look into the kernel's log",
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                "make the state directory writable for the controller"
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                "another program has the database locked: close it"
            }
            Some(ErrorCode::OutOfMemory) => "memory is short",
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                return Self::Open(format!(
                    "the database is damaged ({e}): stop the controller and run `heartwatchctl restore`"
                ));
            }
            _ => return Self::Invalid(e.to_string()),
        };
        Self::Unavailable(format!("{e}; {advice}"))
    }
}

/// SQLite's integers are signed; every number of ours that is stored stays far below the sign.
fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn uint(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX)
}

fn limit(n: usize) -> i64 {
    i64::try_from(n.min(READ_LEN_MAX)).unwrap_or(0)
}

fn token(n: Option<i64>) -> Option<Token> {
    n.map(|n| Token(uint(n)))
}
