//! What is past its retention goes, a bounded amount at a time.

use std::time::Duration;

use heartwatch_common::time::Wall;
use rusqlite::{Connection, OptionalExtension, params};

use super::read::{CHAIN, all};
use super::{PRUNE_LEN_MAX, int, uint};
use crate::store::{Retention, StoreError};

/// Throws away dead letters, then events none of whose deliveries is unfinished or dead, oldest first.
/// Answers how many deliveries and events went.
pub(super) fn prune(c: &Connection, keep: Retention, now: Wall) -> Result<u64, StoreError> {
    let max = i64::try_from(PRUNE_LEN_MAX).unwrap_or(i64::MAX);
    let dead = c
        .prepare_cached(
            "DELETE FROM deliveries WHERE id IN (SELECT id FROM deliveries \
             WHERE state IN ('held', 'pending', 'dead') AND state = 'dead' AND changed < ?1 \
             ORDER BY id LIMIT ?2)",
        )?
        .execute(params![before(now, keep.dead), max])?;
    let finished = "NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.cursor = events.cursor \
                    AND d.state IN ('held', 'pending', 'dead'))";
    let by_age = format!(
        "SELECT cursor FROM events WHERE at < ?1 AND {finished} ORDER BY at, cursor LIMIT ?2"
    );
    let first = |r: &rusqlite::Row<'_>| r.get::<_, i64>(0);
    let mut cursors = all(c, &by_age, params![before(now, keep.events), max], first)?;
    let room = max - i64::try_from(cursors.len()).unwrap_or(max);
    let left = events_len(c, keep.events_max)? - i64::try_from(cursors.len()).unwrap_or(0);
    let surplus = left.saturating_sub(int(keep.events_max)).min(room);
    if surplus > 0 {
        // More than needed are asked for, since some may be among those that go by age.
        let by_count =
            format!("SELECT cursor FROM events WHERE {finished} ORDER BY cursor LIMIT ?1");
        let oldest = all(c, &by_count, [surplus + max - room], first)?;
        let aged: std::collections::BTreeSet<i64> = cursors.iter().copied().collect();
        let surplus = usize::try_from(surplus).unwrap_or(0);
        cursors.extend(oldest.into_iter().filter(|c| !aged.contains(c)).take(surplus));
    }
    let mut gone = uint(i64::try_from(dead).unwrap_or(0));
    for cursor in cursors {
        gone += remove(c, cursor)?;
    }
    Ok(gone)
}

fn before(now: Wall, age: Duration) -> i64 {
    now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// How many events there are; counted only if there can be more than `max`, since that reads them all.
fn events_len(c: &Connection, max: u64) -> Result<i64, StoreError> {
    let at_most: i64 = c
        .prepare_cached(
            "SELECT coalesce((SELECT max(cursor) FROM events) - (SELECT min(cursor) FROM events) + 1, 0)",
        )?
        .query_row([], |r| r.get(0))?;
    if at_most <= int(max) {
        return Ok(at_most);
    }
    Ok(c.prepare_cached("SELECT count(*) FROM events")?.query_row([], |r| r.get(0))?)
}

fn remove(c: &Connection, cursor: i64) -> Result<u64, StoreError> {
    let found = c
        .prepare_cached("SELECT host, token, prev FROM events WHERE cursor = ?1")?
        .query_row([cursor], |r| {
            Ok((r.get::<_, Option<[u8; 16]>>(0)?, r.get::<_, Option<i64>>(1)?, r.get::<_, i64>(2)?))
        })
        .optional()?;
    if let Some((Some(host), token, prev)) = found {
        let told = c
            .prepare_cached("SELECT 1 FROM deliveries WHERE cursor = ?1 AND attempts > 0")?
            .exists([cursor])?;
        if told {
            // A receiver may yet name this token (409); it must be known for ours without the event.
            for sql in [
                "UPDATE hosts SET pruned = max(pruned, ?2) WHERE id = ?1",
                "UPDATE tokens SET pruned = max(pruned, ?2) WHERE host = ?1",
            ] {
                c.prepare_cached(sql)?.execute(params![host, token.unwrap_or(0)])?;
            }
        }
        if prev > 0 && c.prepare_cached("SELECT 1 FROM events WHERE cursor = ?1")?.exists([prev])? {
            // An older one stays, for a delivery of it is unfinished: the chain must not lose it.
            let sql =
                format!("{CHAIN} UPDATE events SET prev = ?4 WHERE cursor IN chain AND prev = ?2");
            c.prepare_cached(&sql)?.execute(params![host, cursor, -1, prev])?;
            for sql in [
                "UPDATE hosts SET head = ?3 WHERE id = ?1 AND head = ?2",
                "UPDATE tokens SET head = ?3 WHERE host = ?1 AND head = ?2",
            ] {
                c.prepare_cached(sql)?.execute(params![host, cursor, prev])?;
            }
        }
    }
    let deliveries =
        c.prepare_cached("DELETE FROM deliveries WHERE cursor = ?1")?.execute([cursor])?;
    let events = c.prepare_cached("DELETE FROM events WHERE cursor = ?1")?.execute([cursor])?;
    Ok(uint(i64::try_from(deliveries + events).unwrap_or(0)))
}
