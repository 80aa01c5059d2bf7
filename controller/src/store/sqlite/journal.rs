//! Events come in: tokens, what they end, whom they reach. And the registry rows that go with them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use rusqlite::{Connection, OptionalExtension, params};
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value};

use super::read::{CHAIN, all};
use super::rows::{self, DUE};
use super::{TOKEN_MAX, int, uint};
use crate::event::{EventId, EventKind, IncidentId, Payload, payload};
use crate::store::{
    Appended, Audience, Cursor, DeliveryId, DeliveryState, HostRow, NewDelivery, NewEvent,
    READ_LEN_MAX, Settle, StoreError, Token,
};

pub(super) fn save_hosts(c: &Connection, rows: &[HostRow]) -> Result<(), StoreError> {
    if rows.len() > READ_LEN_MAX {
        let n = rows.len();
        return Err(StoreError::Invalid(format!("{n} rows at once: at most {READ_LEN_MAX}")));
    }
    rows.iter().try_for_each(|row| save_host(c, row, None))
}

/// Writes the row, and the mark that goes with it: the token and cursor of an event that was just journaled.
fn save_host(
    c: &Connection,
    row: &HostRow,
    told: Option<(Token, Cursor)>,
) -> Result<(), StoreError> {
    let labels =
        serde_json::to_string(&row.labels).map_err(|e| StoreError::Invalid(e.to_string()))?;
    let (token, head) = told.map_or((0, 0), |(token, cursor)| (int(token.0), int(cursor.0)));
    let address = row.address.map(|a| a.to_string());
    let values = params![
        row.id.0,
        row.name,
        labels,
        row.os,
        row.agent_version,
        row.state.as_str(),
        row.cause.map(|cause| cause.as_str()),
        row.boot.0,
        row.generation.0,
        address,
        row.first_seen.0,
        row.since.0,
        row.incident.map(|i| i.0.into_bytes()),
        row.duplicate,
        row.frozen_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
        row.back_by.map(|at| at.0),
        token,
        head,
    ];
    let known = c
        .prepare_cached(
            "UPDATE hosts SET name = ?2, labels = ?3, os = ?4, agent_version = ?5, state = ?6, \
             cause = ?7, boot = ?8, generation = ?9, address = ?10, first_seen = ?11, since = ?12, \
             incident = ?13, duplicate = ?14, frozen_ms = ?15, back_by = ?16, \
             token = max(token, ?17), head = max(head, ?18) WHERE id = ?1",
        )?
        .execute(values)?;
    if known == 0 {
        // A host that was forgotten and comes back goes on above its old tokens.
        c.prepare_cached(
            "INSERT INTO hosts (id, name, labels, os, agent_version, state, cause, boot, generation, \
             address, first_seen, since, incident, duplicate, frozen_ms, back_by, token, pruned, head) \
             SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, \
             ?14, ?15, ?16, max(?17, coalesce(t.last, 0)), coalesce(t.pruned, 0), \
             max(?18, coalesce(t.head, 0)) FROM (SELECT 1) LEFT JOIN tokens t ON t.host = ?1",
        )?
        .execute(values)?;
        c.prepare_cached("DELETE FROM tokens WHERE host = ?1")?.execute([row.id.0])?;
    }
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
    c.prepare_cached(
        "INSERT INTO tokens (host, last, pruned, head) SELECT id, token, pruned, head FROM hosts \
         WHERE id = ?1",
    )?
    .execute([host.0])?;
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
    if let Some(found) = find(c, event.id)? {
        return repeated(c, found);
    }
    let audience = audience(c, event)?;
    let mark = event.host.map(|host| Mark::of(c, host)).transpose()?;
    let token = match (event.host, &mark) {
        (Some(host), Some(mark)) => Some(mark.next(epoch, host)?),
        _ => None,
    };
    let ended = match (event.host, &event.settle) {
        (None, _) | (_, Settle::Nothing) => Vec::new(),
        (Some(host), Settle::All) => unfinished(c, host)?,
        (Some(host), Settle::SameReceivers) => {
            let mut ended = unfinished(c, host)?;
            ended.retain(|e| audience.iter().any(|d| d.receiver == e.receiver));
            ended
        }
        (Some(host), Settle::At(receivers)) => {
            let mut ended = unfinished(c, host)?;
            ended.retain(|e| receivers.contains(&e.receiver));
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
    let supersedes: Vec<EventId> = superseded.into_iter().map(|(_, id)| id).collect();
    let prev = mark.as_ref().map_or(Cursor(0), |m| m.head);
    let cursor = insert_event(c, &fact, prev, &supersedes, &event.data)?;
    for e in &ended {
        settle(c, e, event, cursor)?;
    }
    let alone = audience.is_empty();
    for delivery in audience {
        insert_delivery(c, cursor, &fact, delivery)?;
    }
    let told = token.map(|token| (token, cursor));
    match &event.row {
        Some(row) if Some(row.id) == event.host => save_host(c, row, told)?,
        row => {
            if let Some(row) = row {
                save_host(c, row, None)?;
            }
            if let (Some(host), Some(mark), Some(token)) = (event.host, mark, token) {
                mark.put(c, host, token, cursor)?;
            }
        }
    }
    let deliveries = if alone { Vec::new() } else { deliveries_of(c, cursor)? };
    Ok(Appended { cursor, token, deliveries, settled: ended.iter().map(|e| e.id).collect() })
}

type Found = (Cursor, Option<HostId>, Option<Token>);

fn find(c: &Connection, id: EventId) -> Result<Option<Found>, StoreError> {
    let row = c
        .prepare_cached("SELECT cursor, host, token FROM events WHERE id = ?1")?
        .query_row([id.0.into_bytes()], |r| {
            let host = r.get::<_, Option<[u8; 16]>>(1)?.map(HostId);
            Ok((Cursor(uint(r.get(0)?)), host, super::token(r.get(2)?)))
        })
        .optional()?;
    Ok(row)
}

/// The same answer again, from what is journaled.
fn repeated(c: &Connection, (cursor, host, token): Found) -> Result<Appended, StoreError> {
    // By host, which narrows it down; only an event of a host settles anything.
    let settled = match host {
        None => Vec::new(),
        Some(host) => {
            let sql = format!(
                "{CHAIN} SELECT id FROM deliveries WHERE cursor IN chain AND settled_by = ?4 ORDER BY id"
            );
            all(c, &sql, params![host.0, 0, -1, int(cursor.0)], |r| {
                Ok(DeliveryId(uint(r.get(0)?)))
            })?
        }
    };
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

/// What the store knows of a host beside its row; see `schema`.
pub(super) struct Mark {
    token: u64,
    /// Cursor of its newest event, 0 if there is none.
    pub(super) head: Cursor,
}

impl Mark {
    pub(super) fn of(c: &Connection, host: HostId) -> Result<Self, StoreError> {
        for sql in [
            "SELECT token, head FROM hosts WHERE id = ?1",
            "SELECT last, head FROM tokens WHERE host = ?1",
        ] {
            let found = c
                .prepare_cached(sql)?
                .query_row([host.0], |r| {
                    Ok(Self { token: uint(r.get(0)?), head: Cursor(uint(r.get(1)?)) })
                })
                .optional()?;
            if let Some(mark) = found {
                return Ok(mark);
            }
        }
        Ok(Self { token: 0, head: Cursor(0) })
    }

    /// The host's next token.
    pub(super) fn next(&self, epoch: u64, host: HostId) -> Result<Token, StoreError> {
        let next = self.token.max(epoch << 32) + 1;
        if next > TOKEN_MAX {
            return Err(StoreError::Invalid(format!("host {host} has no tokens left")));
        }
        Ok(Token(next))
    }

    /// Notes an event that was just journaled under `token`.
    pub(super) fn put(
        &self,
        c: &Connection,
        host: HostId,
        token: Token,
        cursor: Cursor,
    ) -> Result<(), StoreError> {
        let values = params![host.0, int(token.0), int(cursor.0)];
        let sql = "UPDATE hosts SET token = max(token, ?2), head = max(head, ?3) WHERE id = ?1";
        if c.prepare_cached(sql)?.execute(values)? == 0 {
            c.prepare_cached(
                "INSERT INTO tokens (host, last, head) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE \
                 SET last = max(last, excluded.last), head = max(head, excluded.head)",
            )?
            .execute(values)?;
        }
        Ok(())
    }
}

/// Makes the host's next token lie above `token`.
pub(super) fn raise_token(c: &Connection, host: HostId, token: Token) -> Result<(), StoreError> {
    let mark = Mark::of(c, host)?;
    mark.put(c, host, token, mark.head)
}

struct Unfinished {
    id: DeliveryId,
    receiver: String,
    begun: bool,
    cursor: Cursor,
    event: EventId,
}

/// Of the kinds that go on; news of an end is not touched.
static UNFINISHED: LazyLock<String> = LazyLock::new(|| {
    let kinds: Vec<String> = EventKind::ALL
        .iter()
        .filter(|k| k.goes_on())
        .map(|k| format!("'{}'", k.as_str()))
        .collect();
    format!(
        "SELECT d.id, d.receiver, d.attempts > 0, d.cursor, e.id \
         FROM deliveries d JOIN events e USING (cursor) \
         WHERE d.state IN ('held', 'pending') AND d.host = ?1 AND e.kind IN ({}) ORDER BY d.id",
        kinds.join(", ")
    )
});

fn unfinished(c: &Connection, host: HostId) -> Result<Vec<Unfinished>, StoreError> {
    all(c, &UNFINISHED, [host.0], |r| {
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

/// The body of a webhook: `data` with what the store knows in front; its own words win over the caller's.
struct Body<'a> {
    fact: &'a Fact,
    supersedes: &'a [EventId],
    data: &'a Map<String, Value>,
}

impl Payload for Body<'_> {}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let (fact, data) = (self.fact, self.data);
        let mut map = s.serialize_map(None)?;
        map.serialize_entry("event_id", &fact.id)?;
        let mut own = ["event_id", "", "", "", ""];
        if let Some(host) = fact.host {
            match data.get("host") {
                Some(named) => map.serialize_entry("host", named)?,
                None => map.serialize_entry("host", &host)?,
            }
            map.serialize_entry("incident", &fact.incident)?;
            map.serialize_entry("token", &fact.token)?;
            map.serialize_entry("supersedes", self.supersedes)?;
            own = ["event_id", "host", "incident", "token", "supersedes"];
        }
        for (key, value) in data {
            if !own.contains(&key.as_str()) {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

pub(super) fn insert_event(
    c: &Connection,
    fact: &Fact,
    prev: Cursor,
    supersedes: &[EventId],
    data: &Map<String, Value>,
) -> Result<Cursor, StoreError> {
    let body = payload(fact.kind, fact.at, &Body { fact, supersedes, data });
    c.prepare_cached(
        "INSERT INTO events (id, kind, at, host, incident, token, body, prev) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        fact.id.0.into_bytes(),
        fact.kind.as_str(),
        fact.at.0,
        fact.host.map(|h| h.0),
        fact.incident.map(|i| i.0.into_bytes()),
        fact.token.map(|t| int(t.0)),
        body,
        int(prev.0),
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
