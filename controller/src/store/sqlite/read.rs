//! Every question that changes nothing. Takes a connection, so that the writer's and the read-only
//! ones answer alike.

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};

use super::placed;
use super::rows::{self, ATTEMPT, DELIVERY, DUE, EVENT, HOST};
use super::{int, limit, uint};
use crate::store::{
    AttemptRow, Backlog, Cursor, DeliveryFilter, DeliveryId, DeliveryRow, DeliveryState, Due,
    EventRow, HostRow, StoreError,
};

/// Runs a query and maps its rows.
pub(super) fn all<T>(
    c: &Connection,
    sql: &str,
    params: impl Params,
    map: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = c.prepare_cached(sql)?;
    let rows = statement.query_map(params, map)?.collect::<Result<_, _>>()?;
    Ok(rows)
}

/// The newest `?3` events of host `?1` (-1: all) after cursor `?2`, as a table `chain` of cursors.
pub(super) const CHAIN: &str = "WITH RECURSIVE chain (cursor) AS \
     (SELECT head FROM (SELECT coalesce((SELECT head FROM hosts WHERE id = ?1), \
                                        (SELECT head FROM tokens WHERE host = ?1)) AS head) \
      WHERE head > ?2 \
      UNION ALL SELECT e.prev FROM chain JOIN events e USING (cursor) WHERE e.prev > ?2 LIMIT ?3)";

pub(super) fn hosts(c: &Connection) -> Result<Vec<HostRow>, StoreError> {
    all(c, &format!("SELECT {HOST} FROM hosts ORDER BY n"), [], rows::host_row)
}

pub(super) fn hosts_after(
    c: &Connection,
    after: Option<HostId>,
    n: usize,
) -> Result<Vec<HostRow>, StoreError> {
    let place: Option<i64> = match after {
        None => Some(0),
        Some(host) => c
            .prepare_cached("SELECT n FROM hosts WHERE id = ?1")?
            .query_row([host.0], |r| r.get(0))
            .optional()?,
    };
    let Some(place) = place else {
        let text =
            "the page was to begin after a host that was forgotten meanwhile: read from the start";
        return Err(StoreError::Invalid(text.to_owned()));
    };
    let sql = format!("SELECT {HOST} FROM hosts WHERE n > ?1 ORDER BY n LIMIT ?2");
    all(c, &sql, params![place, limit(n)], rows::host_row)
}

pub(super) fn pending(
    c: &Connection,
    receiver: &str,
    after: Option<DeliveryId>,
    n: usize,
) -> Result<Vec<Due>, StoreError> {
    let sql = format!(
        "SELECT {DUE} FROM deliveries WHERE state IN ('held', 'pending', 'dead') \
         AND receiver = ?1 AND state = 'pending' AND id > ?2 ORDER BY id LIMIT ?3"
    );
    all(c, &sql, params![receiver, int(after.map_or(0, |d| d.0)), limit(n)], rows::due)
}

pub(super) fn held_hosts(c: &Connection) -> Result<Vec<HostId>, StoreError> {
    let sql = "SELECT DISTINCT host FROM deliveries WHERE state IN ('held', 'pending') \
               AND state = 'held' AND host IS NOT NULL ORDER BY host";
    all(c, sql, [], |r| r.get(0).map(HostId))
}

pub(super) fn events(
    c: &Connection,
    after: Cursor,
    host: Option<HostId>,
    n: usize,
) -> Result<Vec<EventRow>, StoreError> {
    match host {
        None => all(
            c,
            &format!("SELECT {EVENT} FROM events WHERE cursor > ?1 ORDER BY cursor LIMIT ?2"),
            params![int(after.0), limit(n)],
            rows::event_row,
        ),
        Some(host) => all(
            c,
            &format!(
                "{CHAIN} SELECT {EVENT} FROM events WHERE cursor IN chain ORDER BY cursor LIMIT ?4"
            ),
            params![host.0, int(after.0), -1, limit(n)],
            rows::event_row,
        ),
    }
}

pub(super) fn events_of(
    c: &Connection,
    host: HostId,
    n: usize,
) -> Result<Vec<EventRow>, StoreError> {
    let sql =
        format!("{CHAIN} SELECT {EVENT} FROM events WHERE cursor IN chain ORDER BY cursor DESC");
    all(c, &sql, params![host.0, 0, limit(n)], rows::event_row)
}

pub(super) fn head(c: &Connection) -> Result<Cursor, StoreError> {
    // The highest ever handed out, not the highest left: pruning must not move the head back.
    let n: Option<i64> = c
        .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = 'events'")?
        .query_row([], |r| r.get(0))
        .optional()?;
    Ok(Cursor(uint(n.unwrap_or(0))))
}

pub(super) fn deliveries(
    c: &Connection,
    filter: &DeliveryFilter,
    n: usize,
) -> Result<Vec<DeliveryRow>, StoreError> {
    let after = int(filter.after.map_or(0, |d| d.0));
    let mut values: Vec<Box<dyn rusqlite::ToSql>> = Vec::new();
    let mut sql = String::new();
    let mut of_host = "";
    if let Some(host) = filter.host {
        values.extend([Box::new(host.0) as Box<dyn rusqlite::ToSql>, Box::new(0), Box::new(-1)]);
        sql += CHAIN;
        of_host = " AND d.cursor IN chain";
    }
    values.push(Box::new(after));
    sql += &format!(
        " SELECT {DELIVERY}, {} FROM deliveries d JOIN events e USING (cursor) WHERE d.id > ?{}{of_host}",
        placed::COLUMN,
        values.len()
    );
    // States are our own words; written out they let SQLite use the partial indexes.
    if let Some(state) = filter.state {
        sql += &format!(" AND d.state = '{}'", state.as_str());
        if matches!(state, DeliveryState::Held | DeliveryState::Pending | DeliveryState::Dead) {
            sql += " AND d.state IN ('held', 'pending', 'dead')";
        }
    }
    let mut term = |column: &str, value: Box<dyn rusqlite::ToSql>| {
        values.push(value);
        sql += &format!(" AND d.{column} = ?{}", values.len());
    };
    if let Some(receiver) = &filter.receiver {
        term("receiver", Box::new(receiver.clone()));
    }
    if let Some(incident) = filter.incident {
        term("incident", Box::new(incident.0.into_bytes()));
    }
    values.push(Box::new(limit(n)));
    sql += &format!(" ORDER BY d.id LIMIT ?{}", values.len());
    all(c, &sql, rusqlite::params_from_iter(values), rows::delivery_row)
}

pub(super) fn attempts(c: &Connection, id: DeliveryId) -> Result<Vec<AttemptRow>, StoreError> {
    let sql = format!("SELECT {ATTEMPT} FROM attempts WHERE delivery = ?1 ORDER BY number");
    all(c, &sql, [int(id.0)], rows::attempt_row)
}

pub(super) fn backlog(c: &Connection) -> Result<Backlog, StoreError> {
    let sql = "SELECT receiver, state, count(*), min(created) FROM deliveries \
               WHERE state IN ('held', 'pending', 'dead') GROUP BY receiver, state";
    let counts = all(c, sql, [], |r| {
        let state: String = r.get(1)?;
        Ok((r.get::<_, String>(0)?, state, uint(r.get(2)?), Wall(r.get(3)?)))
    })?;
    let mut backlog = Backlog::default();
    for (receiver, state, n, oldest) in counts {
        let state: DeliveryState = state.parse().map_err(StoreError::Open)?;
        if state == DeliveryState::Pending {
            let older = backlog.oldest_pending.map_or(oldest, |o| o.min(oldest));
            backlog.oldest_pending = Some(older);
        }
        backlog.by_receiver.insert((receiver, state), n);
    }
    Ok(backlog)
}

pub(super) fn list(c: &Connection, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
    let sql = "SELECT key, value FROM kv WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 ORDER BY key";
    let mut statement = c.prepare_cached(sql)?;
    let rows = statement.query_map([prefix], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn get(c: &Connection, key: &str) -> Result<Option<String>, StoreError> {
    let value = c
        .prepare_cached("SELECT value FROM kv WHERE key = ?1")?
        .query_row([key], |r| r.get(0))
        .optional()?;
    Ok(value)
}
