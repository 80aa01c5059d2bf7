//! What a delivery says in place of its event: a held order that goes names the candidates of the moment when
//! it goes, and not of that when it was held.
//!
//! The journaled event stays as it is, for others may have been sent it already and must get the same bytes
//! again. So what is new stands beside, by delivery: members of the event's `data`, as a JSON object.

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Map, Value};

use super::{int, outbox};
use crate::event;
use crate::store::{DeliveryId, Due, EventRow, Receivers, StoreError};

/// A step to version 4 of the schema.
pub(super) const TABLES: &str = "
CREATE TABLE IF NOT EXISTS placed (
    delivery INTEGER PRIMARY KEY REFERENCES deliveries (id) ON DELETE CASCADE,
    data TEXT NOT NULL
) STRICT;
";

/// The column of a delivery `d` that holds it, for queries.
pub(super) const COLUMN: &str = "(SELECT data FROM placed WHERE delivery = d.id)";

/// Lets what is held of a host go, naming this.
pub(super) fn release(
    c: &Connection,
    epoch: u64,
    host: HostId,
    which: &Receivers,
    data: &Map<String, Value>,
    at: Wall,
) -> Result<Vec<Due>, StoreError> {
    let due = outbox::release(c, epoch, host, which, Ok(()), at)?;
    let text = Value::Object(data.clone()).to_string();
    let mut put =
        c.prepare_cached("INSERT OR REPLACE INTO placed (delivery, data) VALUES (?1, ?2)")?;
    for one in &due {
        put.execute(params![int(one.id.0), text])?;
    }
    Ok(due)
}

/// What a delivery says in place of its event.
fn of(c: &Connection, id: DeliveryId) -> Result<Option<Map<String, Value>>, StoreError> {
    let text: Option<String> = c
        .prepare_cached("SELECT data FROM placed WHERE delivery = ?1")?
        .query_row([int(id.0)], |r| r.get(0))
        .optional()?;
    let parse = |text: String| {
        serde_json::from_str(&text)
            .map_err(|e| StoreError::Open(format!("delivery {} is damaged: {e}", id.0)))
    };
    text.map(parse).transpose()
}

/// The event and body of a delivery, given those of its event.
pub(super) fn said(
    c: &Connection,
    id: DeliveryId,
    (event, body): (EventRow, String),
) -> Result<(EventRow, String), StoreError> {
    let Some(placed) = of(c, id)? else { return Ok((event, body)) };
    let mut data = event.data;
    data.extend(placed);
    let body = event::payload(event.kind, event.at_ms, &data);
    Ok((EventRow { data, ..event }, body))
}
