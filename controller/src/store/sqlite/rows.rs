//! Columns to values and back.

use std::time::Duration;

use heartwatch_common::id::{Boot, Generation, HostId};
use heartwatch_common::time::Wall;
use rusqlite::Row;
use rusqlite::types::Type;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{token, uint};
use crate::event::{Cause, EventId, IncidentId};
use crate::store::{AttemptRow, Cursor, DeliveryId, DeliveryRow, Due, EventRow, HostRow};

type Sql<T> = rusqlite::Result<T>;

fn damaged(
    column: usize,
    what: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, what.into())
}

fn word<T: std::str::FromStr<Err = String>>(r: &Row<'_>, column: usize) -> Sql<T> {
    r.get_ref(column)?.as_str()?.parse().map_err(|e: String| damaged(column, e))
}

fn host(r: &Row<'_>, column: usize) -> Sql<Option<HostId>> {
    Ok(r.get::<_, Option<[u8; 16]>>(column)?.map(HostId))
}

fn incident(r: &Row<'_>, column: usize) -> Sql<Option<IncidentId>> {
    Ok(r.get::<_, Option<[u8; 16]>>(column)?.map(|b| IncidentId(Uuid::from_bytes(b))))
}

fn event(r: &Row<'_>, column: usize) -> Sql<EventId> {
    Ok(EventId(Uuid::from_bytes(r.get(column)?)))
}

fn number<T: TryFrom<i64>>(r: &Row<'_>, column: usize) -> Sql<T> {
    let n = r.get::<_, i64>(column)?;
    T::try_from(n).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, n))
}

/// Columns of [`host_row`], in order.
pub(super) const HOST: &str = "id, name, labels, os, agent_version, state, cause, boot, generation, \
                               address, first_seen, since, incident, duplicate, \
                               frozen_ms, back_by";

pub(super) fn host_row(r: &Row<'_>) -> Sql<HostRow> {
    let cause = match r.get_ref(6)?.as_str_or_null()? {
        None => None,
        Some(text) => Some(
            Cause::ALL
                .into_iter()
                .find(|c| c.as_str() == text)
                .ok_or_else(|| damaged(6, format!("`{text}` is not a cause")))?,
        ),
    };
    let address = match r.get_ref(9)?.as_str_or_null()? {
        None => None,
        Some(text) => Some(text.parse().map_err(|e| damaged(9, Box::new(e)))?),
    };
    Ok(HostRow {
        id: HostId(r.get(0)?),
        name: r.get(1)?,
        labels: serde_json::from_str(r.get_ref(2)?.as_str()?).map_err(|e| damaged(2, e))?,
        os: r.get(3)?,
        agent_version: r.get(4)?,
        state: word(r, 5)?,
        cause,
        boot: Boot(number(r, 7)?),
        generation: Generation(number(r, 8)?),
        address,
        first_seen: Wall(r.get(10)?),
        since: Wall(r.get(11)?),
        incident: incident(r, 12)?,
        duplicate: r.get(13)?,
        frozen_ms: r.get::<_, Option<i64>>(14)?.map(uint),
        back_by: r.get::<_, Option<i64>>(15)?.map(Wall),
    })
}

/// Columns of [`event_row`], in order.
pub(super) const EVENT: &str = "cursor, id, kind, at, host, incident, token, body";

pub(super) fn event_row(r: &Row<'_>) -> Sql<EventRow> {
    Ok(EventRow {
        cursor: Cursor(uint(r.get(0)?)),
        id: event(r, 1)?,
        kind: word(r, 2)?,
        at_ms: Wall(r.get(3)?),
        host: host(r, 4)?,
        incident: incident(r, 5)?,
        token: token(r.get(6)?),
        data: body_data(r.get_ref(7)?.as_str()?).map_err(|e| damaged(7, e))?,
    })
}

/// The `data` of a body that was journaled.
pub(super) fn body_data(body: &str) -> serde_json::Result<Map<String, Value>> {
    #[derive(serde::Deserialize)]
    struct Body {
        data: Map<String, Value>,
    }
    Ok(serde_json::from_str::<Body>(body)?.data)
}

/// Columns of [`due`], in order.
pub(super) const DUE: &str = "id, receiver, host, attempts - attempts_base, waited_ns";

pub(super) fn due(r: &Row<'_>) -> Sql<Due> {
    Ok(Due {
        id: DeliveryId(uint(r.get(0)?)),
        receiver: r.get(1)?,
        host: host(r, 2)?,
        attempts: number(r, 3)?,
        waited: Duration::from_nanos(uint(r.get(4)?)),
    })
}

/// Columns of [`delivery_row`], in order, of `deliveries d` joined to `events e`; then
/// [`placed::COLUMN`](super::placed::COLUMN).
pub(super) const DELIVERY: &str = "d.id, e.id, e.kind, d.host, d.incident, d.receiver, d.state, \
                                   d.reason, e.token, d.attempts, d.created, d.changed, d.last_outcome";

pub(super) fn delivery_row(r: &Row<'_>) -> Sql<DeliveryRow> {
    Ok(DeliveryRow {
        id: DeliveryId(uint(r.get(0)?)),
        event: event(r, 1)?,
        kind: word(r, 2)?,
        host: host(r, 3)?,
        incident: incident(r, 4)?,
        receiver: r.get(5)?,
        state: word(r, 6)?,
        reason: r.get(7)?,
        token: token(r.get(8)?),
        attempts: number(r, 9)?,
        created_ms: Wall(r.get(10)?),
        changed_ms: Wall(r.get(11)?),
        last_outcome: r.get(12)?,
        placed: match r.get_ref(13)?.as_str_or_null()? {
            None => None,
            Some(text) => Some(serde_json::from_str(text).map_err(|e| damaged(13, e))?),
        },
    })
}

/// Columns of [`attempt_row`], in order.
pub(super) const ATTEMPT: &str = "number, began, ended, status, detail";

pub(super) fn attempt_row(r: &Row<'_>) -> Sql<AttemptRow> {
    Ok(AttemptRow {
        number: number(r, 0)?,
        began_ms: Wall(r.get(1)?),
        ended_ms: r.get::<_, Option<i64>>(2)?.map(Wall),
        status: r.get::<_, Option<i64>>(3)?.and_then(|s| u16::try_from(s).ok()),
        detail: r.get(4)?,
    })
}
