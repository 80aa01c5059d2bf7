//! What the schema knows of enrolments since version 5: join tokens, and who came in by which.
//!
//! | table | one row per | notes |
//! | --- | --- | --- |
//! | `join_tokens` | token | `hash` is of its secret, which is nowhere kept; `labels` is a JSON object |
//! | `enrolments` | host that enrolled, or was revoked | `generation` of the key that it was given, `least` the lowest one that is accepted; `attempt`, `machine`: who asked; `name` (since version 6): its name then, or as it was revoked. Stays when the host is forgotten |

use std::collections::BTreeMap;

use async_trait::async_trait;
use heartwatch_common::enrol::Hex;
use heartwatch_common::id::{Generation, HostId};
use heartwatch_common::time::Wall;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Db, SqliteStore};
use crate::enrol::decide::{Asked, Enrolment, Grant, Refusal, TokenRow, decide};
use crate::enrol::{EnrolStore, Revocation, Revoked, TOKENS_MAX};
use crate::store::{READ_LEN_MAX, StoreError};

/// The step; see [`super::schema`].
pub(super) const STEP: &str = "
CREATE TABLE join_tokens (
    name TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    uses INTEGER NOT NULL,
    uses_left INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    clones INTEGER NOT NULL,
    labels TEXT NOT NULL,
    created INTEGER NOT NULL,
    by TEXT NOT NULL,
    revoked INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE enrolments (
    host BLOB PRIMARY KEY,
    token TEXT NOT NULL,
    attempt BLOB NOT NULL UNIQUE,
    machine BLOB NOT NULL,
    generation INTEGER NOT NULL,
    least INTEGER NOT NULL,
    labels TEXT NOT NULL,
    at INTEGER NOT NULL,
    revoked INTEGER,
    reason TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Names of hosts that are in the registry no more: whoever lifts a revocation knows no id.
pub(super) const NAMES: &str = "
ALTER TABLE enrolments ADD COLUMN name TEXT NOT NULL DEFAULT '';
CREATE INDEX enrolments_revoked ON enrolments (name) WHERE revoked IS NOT NULL;
";

const TOKEN: &str =
    "SELECT name, uses, uses_left, expires, clones, labels, created, by, revoked FROM join_tokens";
const ENROLMENT: &str = "SELECT host, token, attempt, machine, generation, least, labels, at, revoked, reason, name \
                         FROM enrolments";

fn json(labels: &BTreeMap<String, String>) -> Result<String, StoreError> {
    serde_json::to_string(labels).map_err(|e| StoreError::Invalid(format!("labels: {e}")))
}

/// Labels that cannot be read are none: nobody's enrolment hangs on them.
fn labels(row: &Row<'_>, at: usize) -> rusqlite::Result<BTreeMap<String, String>> {
    Ok(serde_json::from_str(&row.get::<_, String>(at)?).unwrap_or_default())
}

fn token(row: &Row<'_>) -> rusqlite::Result<TokenRow> {
    Ok(TokenRow {
        name: row.get(0)?,
        uses: row.get(1)?,
        uses_left: row.get(2)?,
        expires_ms: Wall(row.get(3)?),
        clones: row.get(4)?,
        labels: labels(row, 5)?,
        created_ms: Wall(row.get(6)?),
        by: row.get(7)?,
        revoked_ms: row.get::<_, Option<i64>>(8)?.map(Wall),
    })
}

fn enrolment(row: &Row<'_>) -> rusqlite::Result<Enrolment> {
    Ok(Enrolment {
        host: HostId(row.get(0)?),
        token: row.get(1)?,
        attempt: Hex(row.get(2)?),
        machine: Hex(row.get(3)?),
        generation: Generation(row.get(4)?),
        least: Generation(row.get(5)?),
        labels: labels(row, 6)?,
        at_ms: Wall(row.get(7)?),
        revoked_ms: row.get::<_, Option<i64>>(8)?.map(Wall),
        reason: row.get(9)?,
        name: row.get(10)?,
    })
}

fn of_host(c: &Connection, host: HostId) -> Result<Option<Enrolment>, StoreError> {
    let mut found = c.prepare_cached(&format!("{ENROLMENT} WHERE host = ?1"))?;
    Ok(found.query_row([host.0], enrolment).optional()?)
}

fn save(c: &Connection, e: &Enrolment) -> Result<(), StoreError> {
    c.prepare_cached(
        "INSERT OR REPLACE INTO enrolments VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        e.host.0,
        e.token,
        e.attempt.0,
        e.machine.0,
        e.generation.0,
        e.least.0,
        json(&e.labels)?,
        e.at_ms.0,
        e.revoked_ms.map(|at| at.0),
        e.reason,
        e.name,
    ])?;
    Ok(())
}

impl Db {
    /// See [`EnrolStore::add_token`].
    pub fn add_token(&self, hash: &Hex<32>, new: &TokenRow) -> Result<bool, StoreError> {
        self.atomically(|c| {
            // What no longer lets anybody in is kept for a month, for people who look it up.
            let old = new.created_ms.0.saturating_sub(30 * 86_400_000);
            c.execute("DELETE FROM join_tokens WHERE expires < ?1", [old])?;
            let n: i64 = c.query_row("SELECT count(*) FROM join_tokens", [], |r| r.get(0))?;
            if n >= TOKENS_MAX as i64 {
                let text = format!("there are {n} join tokens, at most {TOKENS_MAX} are kept");
                return Err(StoreError::Invalid(text));
            }
            let sql = "INSERT INTO join_tokens VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, NULL) \
                       ON CONFLICT DO NOTHING";
            let added = c.execute(
                sql,
                params![
                    new.name,
                    hash.0,
                    new.uses,
                    new.uses_left,
                    new.expires_ms.0,
                    new.clones,
                    json(&new.labels)?,
                    new.created_ms.0,
                    new.by,
                ],
            )?;
            Ok(added == 1)
        })
    }

    /// See [`EnrolStore::tokens`].
    pub fn join_tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        let mut all = self.c.prepare_cached(&format!("{TOKEN} ORDER BY created DESC, name"))?;
        let rows = all.query_map([], token)?.collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// See [`EnrolStore::token_hashes`].
    pub fn token_hashes(&self) -> Result<Vec<Hex<32>>, StoreError> {
        let mut all = self.c.prepare_cached("SELECT hash FROM join_tokens")?;
        let rows = all.query_map([], |r| r.get(0).map(Hex))?.collect::<rusqlite::Result<_>>()?;
        Ok(rows)
    }

    /// See [`EnrolStore::revoke_token`].
    pub fn revoke_token(&self, name: &str, at: Wall) -> Result<bool, StoreError> {
        self.atomically(|c| {
            let sql = "UPDATE join_tokens SET revoked = coalesce(revoked, ?2) WHERE name = ?1";
            Ok(c.execute(sql, params![name, at.0])? == 1)
        })
    }

    /// See [`EnrolStore::enrol`].
    pub fn enrol(&self, asked: &Asked) -> Result<Result<Grant, Refusal>, StoreError> {
        self.atomically(|c| {
            let known = c
                .prepare_cached(&format!("{TOKEN} WHERE hash = ?1"))?
                .query_row([asked.token.0], token)
                .optional()?;
            let same = c
                .prepare_cached(&format!("{ENROLMENT} WHERE attempt = ?1"))?
                .query_row([asked.attempt.0], enrolment)
                .optional()?;
            let present = of_host(c, asked.host)?;
            let granted = decide(asked, known.as_ref(), same.as_ref(), present.as_ref());
            if let Ok(Grant::Kept(kept)) = &granted {
                save(c, kept)?;
            }
            if let Ok(Grant::New(new)) = &granted {
                save(c, new)?;
                let sql = "UPDATE join_tokens SET uses_left = uses_left - 1 WHERE hash = ?1";
                c.prepare_cached(sql)?.execute([asked.token.0])?;
            }
            Ok(granted)
        })
    }

    /// See [`EnrolStore::revoke_host`].
    pub fn revoke_host(&self, what: &Revocation) -> Result<Revoked, StoreError> {
        let Revocation { host, generation, at, .. } = *what;
        self.atomically(|c| {
            let mut e = of_host(c, host)?.unwrap_or_else(|| Enrolment {
                host,
                token: String::new(),
                attempt: what.fresh,
                machine: Hex([0; 32]),
                generation,
                least: generation,
                labels: BTreeMap::new(),
                at_ms: at,
                revoked_ms: None,
                reason: String::new(),
                name: String::new(),
            });
            let newest = e.generation.max(e.least).max(generation).0;
            let Some(least) = newest.checked_add(1) else {
                let text = format!("host {host} has used up its key generations: `forget` it");
                return Err(StoreError::Invalid(text));
            };
            let already = e.revoked_ms.is_some();
            if !already {
                e.least = Generation(least);
                e.revoked_ms = Some(at);
                e.reason.clone_from(&what.reason);
                if !what.name.is_empty() {
                    e.name.clone_from(&what.name);
                }
                save(c, &e)?;
            }
            Ok(Revoked { enrolment: e, already })
        })
    }

    /// See [`EnrolStore::lift`].
    pub fn lift(&self, host: HostId) -> Result<Option<Enrolment>, StoreError> {
        self.atomically(|c| {
            let Some(mut e) = of_host(c, host)?.filter(|e| e.revoked_ms.is_some()) else {
                return Ok(None);
            };
            e.revoked_ms = None;
            save(c, &e)?;
            Ok(Some(e))
        })
    }

    /// See [`EnrolStore::enrolments`].
    pub fn enrolments(&self, after: Option<HostId>) -> Result<Vec<Enrolment>, StoreError> {
        let mut all = self
            .c
            .prepare_cached(&format!("{ENROLMENT} WHERE host > ?1 ORDER BY host LIMIT ?2"))?;
        let after = after.map_or(Vec::new(), |h| h.0.to_vec());
        let rows = all.query_map(params![after, READ_LEN_MAX as i64], enrolment)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// See [`EnrolStore::revoked_named`].
    pub fn revoked_named(&self, name: &str) -> Result<Vec<Enrolment>, StoreError> {
        let mut all = self.c.prepare_cached(&format!(
            "{ENROLMENT} WHERE revoked IS NOT NULL AND name = ?1 ORDER BY host LIMIT 2"
        ))?;
        let rows = all.query_map([name], enrolment)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// See [`EnrolStore::enrolment`].
    pub fn enrolment(&self, host: HostId) -> Result<Option<Enrolment>, StoreError> {
        of_host(&self.c, host)
    }
}

#[async_trait]
impl EnrolStore for SqliteStore {
    async fn add_token(&self, hash: Hex<32>, new: TokenRow) -> Result<bool, StoreError> {
        self.write(move |db| db.add_token(&hash, &new)).await
    }

    async fn tokens(&self) -> Result<Vec<TokenRow>, StoreError> {
        self.write(Db::join_tokens).await
    }

    async fn token_hashes(&self) -> Result<Vec<Hex<32>>, StoreError> {
        self.write(Db::token_hashes).await
    }

    async fn revoke_token(&self, name: String, at: Wall) -> Result<bool, StoreError> {
        self.write(move |db| db.revoke_token(&name, at)).await
    }

    async fn enrol(&self, asked: Asked) -> Result<Result<Grant, Refusal>, StoreError> {
        self.write(move |db| db.enrol(&asked)).await
    }

    async fn revoke_host(&self, what: Revocation) -> Result<Revoked, StoreError> {
        self.write(move |db| db.revoke_host(&what)).await
    }

    async fn revoked_named(&self, name: String) -> Result<Vec<Enrolment>, StoreError> {
        self.write(move |db| db.revoked_named(&name)).await
    }

    async fn lift(&self, host: HostId) -> Result<Option<Enrolment>, StoreError> {
        self.write(move |db| db.lift(host)).await
    }

    async fn enrolments(&self, after: Option<HostId>) -> Result<Vec<Enrolment>, StoreError> {
        self.write(move |db| db.enrolments(after)).await
    }

    async fn enrolment(&self, host: HostId) -> Result<Option<Enrolment>, StoreError> {
        self.write(move |db| db.enrolment(host)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::decide::Standing;

    fn token_row(name: &str, uses: u32) -> TokenRow {
        TokenRow {
            name: name.to_owned(),
            uses,
            uses_left: uses,
            expires_ms: Wall(1_000),
            clones: false,
            labels: BTreeMap::from([("pool".to_owned(), "a".to_owned())]),
            created_ms: Wall(1),
            by: "somebody".to_owned(),
            revoked_ms: None,
        }
    }

    fn asked(host: u8, attempt: u8) -> Asked {
        Asked {
            token: Hex([1; 32]),
            host: HostId([host; 16]),
            attempt: Hex([attempt; 16]),
            machine: Hex([host; 32]),
            proved: None,
            standing: Standing::Unknown,
            generation: Generation(0),
            name: "web-1".to_owned(),
            fresh: HostId([99; 16]),
            at: Wall(10),
        }
    }

    #[test]
    fn uses_are_counted_once_for_a_host_however_often_it_asks() {
        let db = Db::memory().unwrap();
        assert!(db.add_token(&Hex([1; 32]), &token_row("t", 2)).unwrap());
        assert!(!db.add_token(&Hex([2; 32]), &token_row("t", 2)).unwrap(), "the name is taken");
        let left = || db.join_tokens().unwrap()[0].uses_left;
        let first = db.enrol(&asked(1, 1)).unwrap().unwrap();
        assert!(matches!(first, Grant::New(_)) && left() == 1);
        let again = db.enrol(&asked(1, 1)).unwrap().unwrap();
        assert!(matches!(&again, Grant::Again(_)) && left() == 1);
        assert_eq!(again.enrolment(), first.enrolment());
        db.enrol(&asked(2, 2)).unwrap().unwrap();
        assert_eq!(left(), 0);
        let refused = db.enrol(&asked(3, 3)).unwrap().unwrap_err();
        assert_eq!(refused, Refusal::TokenUsedUp("t".to_owned()));
        assert!(db.enrol(&asked(2, 2)).unwrap().is_ok(), "its own lost answer it may have");
        assert_eq!(db.enrolments(None).unwrap().len(), 2);
        assert_eq!(db.enrolments(Some(HostId([1; 16]))).unwrap()[0].host, HostId([2; 16]));
    }

    #[test]
    fn a_revocation_raises_the_generation_for_good_and_can_be_lifted() {
        let db = Db::memory().unwrap();
        db.add_token(&Hex([1; 32]), &token_row("t", 9)).unwrap();
        db.enrol(&asked(1, 1)).unwrap().unwrap();
        let what = Revocation {
            host: HostId([1; 16]),
            name: String::new(),
            generation: Generation(0),
            reason: "lost".to_owned(),
            fresh: Hex([7; 16]),
            at: Wall(20),
        };
        let gone = db.revoke_host(&what).unwrap();
        assert!(!gone.already);
        let gone = gone.enrolment;
        assert_eq!((gone.least, gone.revoked_ms), (Generation(1), Some(Wall(20))));
        let again = Revocation { reason: "x".to_owned(), at: Wall(30), ..what.clone() };
        assert_eq!(db.revoke_host(&again).unwrap(), Revoked { enrolment: gone, already: true });
        assert_eq!(db.revoked_named("web-1").unwrap()[0].host, HostId([1; 16]), "as it enrolled");
        let refused = db.enrol(&asked(1, 2)).unwrap().unwrap_err();
        assert_eq!(refused, Refusal::HostRevoked(HostId([1; 16])));
        assert_eq!(db.lift(HostId([1; 16])).unwrap().unwrap().least, Generation(1));
        assert!(db.lift(HostId([1; 16])).unwrap().is_none());
        assert!(db.revoked_named("web-1").unwrap().is_empty());
        let back = db.enrol(&asked(1, 2)).unwrap().unwrap();
        assert_eq!(back.enrolment().generation, Generation(2));
        // One that never enrolled, but has a key made by hand.
        let by_hand = Revocation {
            host: HostId([5; 16]),
            name: "db-1".to_owned(),
            generation: Generation(3),
            fresh: Hex([9; 16]),
            ..what
        };
        let by_hand = db.revoke_host(&by_hand).unwrap().enrolment;
        assert_eq!((by_hand.least, by_hand.token.as_str()), (Generation(4), ""));
        assert_eq!(db.revoked_named("db-1").unwrap(), [by_hand]);
    }

    #[test]
    fn a_revoked_token_stays_listed_and_lets_nobody_in() {
        let db = Db::memory().unwrap();
        db.add_token(&Hex([1; 32]), &token_row("t", 9)).unwrap();
        assert!(db.revoke_token("t", Wall(5)).unwrap());
        assert!(db.revoke_token("t", Wall(6)).unwrap() && !db.revoke_token("u", Wall(6)).unwrap());
        assert_eq!(db.join_tokens().unwrap()[0].revoked_ms, Some(Wall(5)));
        let refused = db.enrol(&asked(1, 1)).unwrap().unwrap_err();
        assert_eq!(refused, Refusal::TokenRevoked("t".to_owned()));
    }
}
