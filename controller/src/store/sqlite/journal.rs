//! Events come in: tokens, what they end, whom they reach. And the registry rows that go with them.

use std::collections::BTreeSet;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Map, Value};

use super::read::all;
use super::rows::{self, DUE};
use super::{TOKEN_MAX, int, uint};
use crate::event::{EventId, EventKind, IncidentId, payload};
use crate::store::{
    Appended, Audience, Cursor, DeliveryId, DeliveryState, HostRow, NewDelivery, NewEvent,
    READ_LEN_MAX, Settle, StoreError, Token,
};

pub(super) fn save_hosts(c: &Connection, rows: &[HostRow]) -> Result<(), StoreError> {
    if rows.len() > READ_LEN_MAX {
        let n = rows.len();
        return Err(StoreError::Invalid(format!("{n} rows at once: at most {READ_LEN_MAX}")));
    }
    rows.iter().try_for_each(|row| save_host(c, row))
}

fn save_host(c: &Connection, row: &HostRow) -> Result<(), StoreError> {
    let labels =
        serde_json::to_string(&row.labels).map_err(|e| StoreError::Invalid(e.to_string()))?;
    c.prepare_cached(
        "INSERT OR REPLACE INTO hosts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, \
         ?13, ?14, ?15)",
    )?
    .execute(params![
        row.id.0,
        row.name,
        labels,
        row.os,
        row.agent_version,
        row.state.as_str(),
        row.cause.map(|cause| cause.as_str()),
        row.boot.0,
        row.generation.0,
        row.address.map(|a| a.to_string()),
        row.first_seen.0,
        row.since.0,
        row.incident.map(|i| i.0.into_bytes()),
        row.duplicate,
        row.frozen_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
    ])?;
    Ok(())
}

pub(super) fn append(
    c: &Connection,
    epoch: u64,
    events: &[NewEvent],
    most: usize,
) -> Result<Vec<Appended>, StoreError> {
    if events.len() > most {
        let n = events.len();
        return Err(StoreError::Invalid(format!("{n} events at once: at most {most}")));
    }
    events.iter().map(|event| append_one(c, epoch, event)).collect()
}

pub(super) fn forget(
    c: &Connection,
    epoch: u64,
    host: HostId,
    event: &NewEvent,
) -> Result<bool, StoreError> {
    if event.host != Some(host) {
        return Err(StoreError::Invalid(format!("event {} is not about host {host}", event.id)));
    }
    if find(c, event.id)?.is_some() {
        return Ok(true);
    }
    if c.prepare_cached("DELETE FROM hosts WHERE id = ?1")?.execute([host.0])? == 0 {
        return Ok(false);
    }
    append_one(c, epoch, &NewEvent { settle: Settle::All, row: None, ..event.clone() })?;
    Ok(true)
}

pub(super) fn put(c: &Connection, key: &str, value: Option<&str>) -> Result<(), StoreError> {
    match value {
        Some(value) => c
            .prepare_cached(
                "INSERT INTO kv VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = excluded.value",
            )?
            .execute([key, value])?,
        None => c.prepare_cached("DELETE FROM kv WHERE key = ?1")?.execute([key])?,
    };
    Ok(())
}

pub(super) fn check(c: &Connection) -> Result<(), StoreError> {
    // As long as a small event: a disk with room for less than that is as good as full.
    put(c, "store-check", Some(&"x".repeat(2_048)))?;
    put(c, "store-check", None)
}

fn append_one(c: &Connection, epoch: u64, event: &NewEvent) -> Result<Appended, StoreError> {
    if let Some((cursor, token)) = find(c, event.id)? {
        return repeated(c, cursor, token);
    }
    let audience = audience(c, event)?;
    let token = event.host.map(|host| next_token(c, epoch, host)).transpose()?;
    let ended = match (event.host, event.settle) {
        (None, _) | (_, Settle::Nothing) => Vec::new(),
        (Some(host), Settle::All) => unfinished(c, host)?,
        (Some(host), Settle::SameReceivers) => {
            let receivers: BTreeSet<&str> = audience.iter().map(|d| d.receiver.as_str()).collect();
            let mut ended = unfinished(c, host)?;
            ended.retain(|e| receivers.contains(e.receiver.as_str()));
            ended
        }
    };
    let superseded: BTreeSet<(Cursor, EventId)> =
        ended.iter().filter(|e| e.begun).map(|e| (e.cursor, e.event)).collect();
    let fact = Fact {
        id: event.id,
        kind: event.kind,
        at: event.at,
        host: event.host,
        incident: event.incident,
        token,
    };
    let supersedes = superseded.into_iter().map(|(_, id)| id).collect();
    let cursor = insert_event(c, &fact, complete(&fact, supersedes, &event.data))?;
    for e in &ended {
        settle(c, e, event, cursor)?;
    }
    for delivery in audience {
        insert_delivery(c, cursor, &fact, delivery)?;
    }
    if let Some(row) = &event.row {
        save_host(c, row)?;
    }
    let deliveries = deliveries_of(c, cursor)?;
    Ok(Appended { cursor, token, deliveries, settled: ended.iter().map(|e| e.id).collect() })
}

fn find(c: &Connection, id: EventId) -> Result<Option<(Cursor, Option<Token>)>, StoreError> {
    let row = c
        .prepare_cached("SELECT cursor, token FROM events WHERE id = ?1")?
        .query_row([id.0.into_bytes()], |r| Ok((Cursor(uint(r.get(0)?)), super::token(r.get(1)?))))
        .optional()?;
    Ok(row)
}

/// The same answer again, from what is journaled.
fn repeated(c: &Connection, cursor: Cursor, token: Option<Token>) -> Result<Appended, StoreError> {
    // By host, so that the index narrows it down; only an event of a host settles anything.
    let sql = "SELECT d.id FROM deliveries d JOIN events e ON d.host = e.host \
               WHERE e.cursor = ?1 AND d.settled_by = ?1 ORDER BY d.id";
    let settled = all(c, sql, [int(cursor.0)], |r| Ok(DeliveryId(uint(r.get(0)?))))?;
    Ok(Appended { cursor, token, deliveries: deliveries_of(c, cursor)?, settled })
}

fn deliveries_of(c: &Connection, cursor: Cursor) -> Result<Vec<crate::store::Due>, StoreError> {
    let sql =
        format!("SELECT {DUE} FROM deliveries WHERE cursor = ?1 AND state = 'pending' ORDER BY id");
    all(c, &sql, [int(cursor.0)], rows::due)
}

/// Who gets it: each receiver once, the first mention counts.
fn audience<'a>(c: &Connection, event: &'a NewEvent) -> Result<Vec<&'a NewDelivery>, StoreError> {
    let told: Option<BTreeSet<String>> = match (event.audience, event.incident) {
        (Audience::All, _) => None,
        (Audience::Told, None) => Some(BTreeSet::new()),
        (Audience::Told, Some(incident)) => {
            let sql = "SELECT DISTINCT receiver FROM deliveries \
                       WHERE incident IS NOT NULL AND incident = ?1 AND attempts > 0";
            let names = all(c, sql, [incident.0.into_bytes()], |r| r.get(0))?;
            Some(names.into_iter().collect())
        }
    };
    let mut seen = BTreeSet::new();
    Ok(event
        .deliveries
        .iter()
        .filter(|d| told.as_ref().is_none_or(|t| t.contains(&d.receiver)))
        .filter(|d| seen.insert(d.receiver.as_str()))
        .collect())
}

/// Takes the host's next token.
pub(super) fn next_token(c: &Connection, epoch: u64, host: HostId) -> Result<Token, StoreError> {
    let last: Option<i64> = c
        .prepare_cached("SELECT last FROM tokens WHERE host = ?1")?
        .query_row([host.0], |r| r.get(0))
        .optional()?;
    let next = uint(last.unwrap_or(0)).max(epoch << 32) + 1;
    if next > TOKEN_MAX {
        return Err(StoreError::Invalid(format!("host {host} has no tokens left")));
    }
    raise_token(c, host, Token(next))?;
    Ok(Token(next))
}

/// Makes the host's next token lie above `token`.
pub(super) fn raise_token(c: &Connection, host: HostId, token: Token) -> Result<(), StoreError> {
    c.prepare_cached(
        "INSERT INTO tokens (host, last) VALUES (?1, ?2) \
         ON CONFLICT DO UPDATE SET last = max(last, excluded.last)",
    )?
    .execute(params![host.0, int(token.0)])?;
    Ok(())
}

struct Unfinished {
    id: DeliveryId,
    receiver: String,
    begun: bool,
    cursor: Cursor,
    event: EventId,
}

fn unfinished(c: &Connection, host: HostId) -> Result<Vec<Unfinished>, StoreError> {
    // The kinds that go on; news of an end is not touched.
    let kinds: Vec<String> = EventKind::ALL
        .iter()
        .filter(|k| k.goes_on())
        .map(|k| format!("'{}'", k.as_str()))
        .collect();
    let sql = format!(
        "SELECT d.id, d.receiver, d.attempts > 0, d.cursor, e.id \
         FROM deliveries d JOIN events e USING (cursor) \
         WHERE d.state IN ('held', 'pending') AND d.host = ?1 AND e.kind IN ({}) ORDER BY d.id",
        kinds.join(", ")
    );
    all(c, &sql, [host.0], |r| {
        Ok(Unfinished {
            id: DeliveryId(uint(r.get(0)?)),
            receiver: r.get(1)?,
            begun: r.get(2)?,
            cursor: Cursor(uint(r.get(3)?)),
            event: EventId(uuid::Uuid::from_bytes(r.get(4)?)),
        })
    })
}

fn settle(
    c: &Connection,
    ended: &Unfinished,
    by: &NewEvent,
    cursor: Cursor,
) -> Result<(), StoreError> {
    let (state, reason) = if ended.begun {
        (DeliveryState::Superseded, format!("superseded by {} {}", by.kind, by.id))
    } else {
        let reason = format!("never sent: {} {} came before the first attempt", by.kind, by.id);
        (DeliveryState::Cancelled, reason)
    };
    c.prepare_cached(
        "UPDATE deliveries SET state = ?2, reason = ?3, changed = ?4, settled_by = ?5 WHERE id = ?1",
    )?
    .execute(params![int(ended.id.0), state.as_str(), reason, by.at.0, int(cursor.0)])?;
    Ok(())
}

/// The columns of an event.
pub(super) struct Fact {
    pub(super) id: EventId,
    pub(super) kind: EventKind,
    pub(super) at: Wall,
    pub(super) host: Option<HostId>,
    pub(super) incident: Option<IncidentId>,
    pub(super) token: Option<Token>,
}

/// `data` with what the store knows in front; its own words win over the caller's.
pub(super) fn complete(
    fact: &Fact,
    supersedes: Vec<EventId>,
    data: &Map<String, Value>,
) -> Map<String, Value> {
    let mut whole = Map::new();
    whole.insert("event_id".to_owned(), fact.id.to_string().into());
    if let Some(host) = fact.host {
        let incident = fact.incident.map_or(Value::Null, |i| i.to_string().into());
        let supersedes: Vec<String> = supersedes.iter().map(EventId::to_string).collect();
        let named = data.get("host").cloned();
        whole.insert("host".to_owned(), named.unwrap_or_else(|| host.to_string().into()));
        whole.insert("incident".to_owned(), incident);
        whole.insert("token".to_owned(), fact.token.map_or(Value::Null, |t| t.0.into()));
        whole.insert("supersedes".to_owned(), supersedes.into());
    }
    for (key, value) in data {
        if !whole.contains_key(key) {
            whole.insert(key.clone(), value.clone());
        }
    }
    whole
}

pub(super) fn insert_event(
    c: &Connection,
    fact: &Fact,
    data: Map<String, Value>,
) -> Result<Cursor, StoreError> {
    let body = payload(fact.kind, fact.at, data).to_string();
    c.prepare_cached(
        "INSERT INTO events (id, kind, at, host, incident, token, body) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?
    .execute(params![
        fact.id.0.into_bytes(),
        fact.kind.as_str(),
        fact.at.0,
        fact.host.map(|h| h.0),
        fact.incident.map(|i| i.0.into_bytes()),
        fact.token.map(|t| int(t.0)),
        body,
    ])?;
    Ok(Cursor(uint(c.last_insert_rowid())))
}

fn insert_delivery(
    c: &Connection,
    cursor: Cursor,
    fact: &Fact,
    delivery: &NewDelivery,
) -> Result<(), StoreError> {
    let state = if delivery.hold.is_some() { DeliveryState::Held } else { DeliveryState::Pending };
    c.prepare_cached(
        "INSERT INTO deliveries (cursor, host, incident, receiver, state, reason, created, changed) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
    )?
    .execute(params![
        int(cursor.0),
        fact.host.map(|h| h.0),
        fact.incident.map(|i| i.0.into_bytes()),
        delivery.receiver,
        state.as_str(),
        delivery.hold,
        fact.at.0,
    ])?;
    Ok(())
}
