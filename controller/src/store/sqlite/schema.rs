//! The tables, and how an older database becomes a newer one.
//!
//! | table | one row per | notes |
//! | --- | --- | --- |
//! | `meta` | `controller` (16 hex digits), `epoch` (decimal) | who wrote this, and the store epoch |
//! | `kv` | small named value | [`Store::put`](crate::store::Store::put) |
//! | `hosts` | host | the registry, columns as in [`HostRow`](crate::store::HostRow); `labels` is a JSON object; then its *mark*, see below |
//! | `tokens` | host with a mark and no row | the marks of hosts that were forgotten |
//! | `events` | event | `cursor` rises and is never used again; `body` is what is sent, and holds `data`; `prev` is the cursor of the host's event before, whether or not that is still there |
//! | `deliveries` | event and receiver | see below |
//! | `placed` | delivery that says something in place of its event | see [`placed`](super::placed) |
//! | `join_tokens`, `enrolments` | join token; host that enrolled | see [`enrol`](super::enrol) |
//! | `attempts` | begun attempt | newest [`ATTEMPTS_LEN_MAX`](super::ATTEMPTS_LEN_MAX) of a delivery |
//!
//! A host's mark: the last `token` (in `tokens`: `last`) handed out or learnt of; `pruned`, the highest
//! token whose event was thrown away; `head`, the cursor of its newest event, 0 if there was none. From
//! there `prev` leads back through all of its events: an index by host would cost every event a page of
//! its own, for hosts come in any order, where the mark lies in the row that is written anyway.
//!
//! Ids of events, incidents and hosts are 16-byte blobs; times are milliseconds since 1970; kinds and
//! states stand as the words that the API uses, so that plain `sqlite3` can inspect a backup.
//!
//! Of a delivery, `attempts` counts all that were ever begun, `attempts_base` how many of them lie
//! before the last redrive, `waited_ns` the waits since then, `renewals` how often its event was
//! journaled again under a higher token, `settled_by` the cursor of the event that ended it.

use rusqlite::Connection;

use crate::store::StoreError;

/// Marks a file as ours (`HWDB`).
pub(super) const APPLICATION_ID: i64 = 0x4857_4442;

/// What a database of each version lacks to become the next.
const MIGRATIONS: [&[&str]; 6] =
    [&[V1], &[V2], &[V3], V4, &[super::enrol::STEP], &[super::enrol::NAMES]];

/// The newest version that this code knows.
pub(super) const VERSION: usize = MIGRATIONS.len();

// The partial indexes keep the hot questions (what is unfinished?) independent of how much history is
// kept. Queries must repeat their WHERE term word for word, or SQLite does not use them.
const V1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE hosts (
    id BLOB PRIMARY KEY,
    name TEXT NOT NULL,
    labels TEXT NOT NULL,
    os TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT,
    boot INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    address TEXT,
    first_seen INTEGER NOT NULL,
    since INTEGER NOT NULL,
    incident BLOB,
    duplicate INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
    host BLOB PRIMARY KEY,
    last INTEGER NOT NULL,
    pruned INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    cursor INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    host BLOB,
    incident BLOB,
    token INTEGER,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX events_host ON events (host, cursor);
CREATE INDEX events_at ON events (at);
CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    cursor INTEGER NOT NULL REFERENCES events (cursor),
    host BLOB,
    incident BLOB,
    receiver TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    attempts_base INTEGER NOT NULL DEFAULT 0,
    waited_ns INTEGER NOT NULL DEFAULT 0,
    renewals INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    last_outcome TEXT,
    settled_by INTEGER,
    UNIQUE (cursor, receiver)
) STRICT;
CREATE INDEX deliveries_host ON deliveries (host, id);
CREATE INDEX deliveries_incident ON deliveries (incident, receiver) WHERE incident IS NOT NULL;
CREATE INDEX deliveries_unfinished ON deliveries (host, id) WHERE state IN ('held', 'pending');
CREATE INDEX deliveries_backlog ON deliveries (receiver, state, id, created)
    WHERE state IN ('held', 'pending', 'dead');
CREATE TABLE attempts (
    delivery INTEGER NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    began INTEGER NOT NULL,
    ended INTEGER,
    status INTEGER,
    detail TEXT,
    PRIMARY KEY (delivery, number)
) STRICT, WITHOUT ROWID;
";

/// Margins can be frozen.
const V2: &str = "ALTER TABLE hosts ADD COLUMN frozen_ms INTEGER;";

/// One page changes for an event, beside those at the ends of tables: marks stand in the registry, and the
/// indexes by host give way to a chain. Rows lie in the order in which hosts came, so that a fleet that
/// registers fills page after page, and not in the order of their ids, which is none.
const V3: &str = "
CREATE TABLE registry (
    n INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    labels TEXT NOT NULL,
    os TEXT NOT NULL,
    agent_version TEXT NOT NULL,
    state TEXT NOT NULL,
    cause TEXT,
    boot INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    address TEXT,
    first_seen INTEGER NOT NULL,
    since INTEGER NOT NULL,
    incident BLOB,
    duplicate INTEGER NOT NULL,
    frozen_ms INTEGER,
    token INTEGER NOT NULL DEFAULT 0,
    pruned INTEGER NOT NULL DEFAULT 0,
    head INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO registry
SELECT NULL, h.*, coalesce(t.last, 0), coalesce(t.pruned, 0),
    coalesce((SELECT max(e.cursor) FROM events e WHERE e.host = h.id), 0)
FROM hosts h LEFT JOIN tokens t ON t.host = h.id ORDER BY h.id;
DROP TABLE hosts;
ALTER TABLE registry RENAME TO hosts;
ALTER TABLE tokens ADD COLUMN head INTEGER NOT NULL DEFAULT 0;
DELETE FROM tokens WHERE host IN (SELECT id FROM hosts);
UPDATE tokens
SET head = coalesce((SELECT max(e.cursor) FROM events e WHERE e.host = tokens.host), 0);
ALTER TABLE events ADD COLUMN prev INTEGER NOT NULL DEFAULT 0;
UPDATE events SET prev = coalesce(
    (SELECT max(e.cursor) FROM events e WHERE e.host = events.host AND e.cursor < events.cursor), 0)
WHERE host IS NOT NULL;
DROP INDEX events_host;
DROP INDEX deliveries_host;
";

/// Each part of the controller that brought something has a step of its own.
const V4: &[&str] = &[super::leaves::STEP, super::placed::TABLES];

/// The schema version of a database; 0 is an empty one.
pub(super) fn version(c: &Connection) -> Result<usize, StoreError> {
    let n: i64 = c.pragma_query_value(None, "user_version", |r| r.get(0))?;
    usize::try_from(n).map_err(|_| StoreError::Open(format!("{n} is not a schema version")))
}

/// Brings an older database up to [`VERSION`], one transaction a step; refuses a newer one, and one
/// that something else wrote.
pub(super) fn migrate(c: &Connection) -> Result<(), StoreError> {
    let from = version(c)?;
    let application: i64 = c.pragma_query_value(None, "application_id", |r| r.get(0))?;
    if from > 0 && application != APPLICATION_ID {
        return Err(StoreError::Open("the file is not a Heartwatch store".to_owned()));
    }
    if from > VERSION {
        return Err(StoreError::Open(format!(
            "the store was written by a newer controller (schema {from}, this one knows {VERSION}): \
             install that version, or restore a backup made before the upgrade"
        )));
    }
    for (done, steps) in MIGRATIONS.iter().enumerate().skip(from) {
        let sql = steps.concat();
        let step = format!(
            "BEGIN IMMEDIATE; {sql} PRAGMA application_id = {APPLICATION_ID}; \
             PRAGMA user_version = {}; COMMIT;",
            done + 1
        );
        if let Err(e) = c.execute_batch(&step) {
            super::roll_back(c);
            return Err(e.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Cursor;
    use crate::store::sqlite::{journal, read};
    use heartwatch_common::id::HostId;

    #[test]
    fn a_database_of_the_second_version_keeps_marks_and_finds_the_events_of_each_host() {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(&format!("{V1}{V2}")).unwrap();
        let id = |n: u8| format!("x'{}'", format!("{n:02x}").repeat(16));
        let host = |n| {
            format!(
                "INSERT INTO hosts VALUES ({}, 'h', '{{}}', 'linux', '0.1.0', 'alive', NULL, 3, 1, \
                 NULL, 5, 6, NULL, 0, NULL); INSERT INTO tokens VALUES ({}, {n}00, {n}0);",
                id(n),
                id(n)
            )
        };
        let event = |n: u8, of: u8| {
            let body = r#"{"data":{}}"#;
            format!(
                "INSERT INTO events (id, kind, at, host, body) VALUES \
                 ({}, 'host.down', 7, {}, '{body}');",
                id(n),
                id(of)
            )
        };
        let of: [u8; 6] = [2, 1, 2, 3, 1, 2];
        let events: String = of.iter().zip(10..).map(|(of, n)| event(n, *of)).collect();
        // Host 3 was forgotten.
        let hosts = [host(2), host(1), host(3)].concat();
        c.execute_batch(&format!(
            "{hosts}{events} DELETE FROM hosts WHERE id = {};
             PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 2;",
            id(3)
        ))
        .unwrap();
        migrate(&c).unwrap();
        for n in 1..4u8 {
            let host = HostId([n; 16]);
            let found = read::events(&c, Cursor(0), Some(host), 9).unwrap();
            let own = (1..).zip(of).filter(|(_, of)| *of == n).map(|(cursor, _)| Cursor(cursor));
            assert!(found.iter().map(|e| e.cursor).eq(own));
            let mark = journal::Mark::of(&c, host).unwrap();
            assert_eq!(mark.next(0, host).unwrap().0, u64::from(n) * 100 + 1);
        }
        assert_eq!(read::hosts(&c).unwrap().len(), 2);
    }

    #[test]
    fn a_database_of_the_first_version_keeps_its_hosts_and_learns_of_frozen_margins() {
        let c = Connection::open_in_memory().unwrap();
        c.execute_batch(V1).unwrap();
        c.execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;
             INSERT INTO hosts VALUES (x'01010101010101010101010101010101', 'old', '{{\"a\":\"b\"}}', \
             'linux', '0.1.0', 'alive', NULL, 3, 1, '192.0.2.1:4000', 5, 6, NULL, 0);"
        ))
        .unwrap();
        migrate(&c).unwrap();
        assert_eq!(version(&c).unwrap(), VERSION);
        let mut rows = read::hosts(&c).unwrap();
        assert_eq!((rows[0].name.as_str(), rows[0].since.0, rows[0].frozen_ms), ("old", 6, None));
        rows[0].frozen_ms = Some(5_000);
        journal::save_hosts(&c, &rows).unwrap();
        assert_eq!(read::hosts(&c).unwrap(), rows);
    }
}
