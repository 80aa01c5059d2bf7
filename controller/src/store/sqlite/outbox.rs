//! Deliveries go out: attempts, how they end, and what people do to them.

use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_common::time::Wall;
use rusqlite::{Connection, OptionalExtension, params};

use super::journal::{Fact, Mark, insert_event, raise_token};
use super::placed;
use super::read::{CHAIN, all};
use super::rows::{self, DUE, EVENT};
use super::{ATTEMPTS_LEN_MAX, RENEWALS_MAX, TOKEN_BELIEVED_MAX, int, nanos, uint};
use crate::event::{EventId, EventKind};
use crate::store::{
    Begin, Cursor, DeliveryId, DeliveryState, Due, EventRow, Finish, FinishVerdict, Outgoing,
    Receivers, StoreError, Token,
};

/// A delivery as the decisions here need it.
struct Row {
    id: DeliveryId,
    cursor: Cursor,
    host: Option<HostId>,
    receiver: String,
    state: DeliveryState,
    attempts: u32,
    waited: i64,
    renewals: u32,
}

fn row(c: &Connection, id: DeliveryId) -> Result<Option<Row>, StoreError> {
    let found = c
        .prepare_cached(
            "SELECT cursor, host, receiver, state, attempts, waited_ns, renewals \
             FROM deliveries WHERE id = ?1",
        )?
        .query_row([int(id.0)], |r| {
            Ok((
                Row {
                    id,
                    cursor: Cursor(uint(r.get(0)?)),
                    host: r.get::<_, Option<[u8; 16]>>(1)?.map(HostId),
                    receiver: r.get(2)?,
                    state: DeliveryState::Pending,
                    attempts: r.get(4)?,
                    waited: r.get(5)?,
                    renewals: r.get(6)?,
                },
                r.get::<_, String>(3)?,
            ))
        })
        .optional()?;
    found
        .map(|(row, state)| Ok(Row { state: state.parse().map_err(StoreError::Open)?, ..row }))
        .transpose()
}

fn due(c: &Connection, id: DeliveryId) -> Result<Due, StoreError> {
    let sql = format!("SELECT {DUE} FROM deliveries WHERE id = ?1");
    Ok(c.prepare_cached(&sql)?.query_row([int(id.0)], rows::due)?)
}

fn set_state(
    c: &Connection,
    id: DeliveryId,
    state: DeliveryState,
    reason: Option<&str>,
    at: Wall,
) -> Result<(), StoreError> {
    c.prepare_cached("UPDATE deliveries SET state = ?2, reason = ?3, changed = ?4 WHERE id = ?1")?
        .execute(params![int(id.0), state.as_str(), reason, at.0])?;
    Ok(())
}

pub(super) fn begin_attempt(c: &Connection, id: DeliveryId, at: Wall) -> Result<Begin, StoreError> {
    let Some(row) = row(c, id)? else { return Ok(Begin::Gone) };
    if row.state != DeliveryState::Pending {
        return Ok(Begin::Gone);
    }
    if is_blocked(c, &row)? {
        return Ok(Begin::NotYet);
    }
    let attempt = row.attempts.saturating_add(1);
    c.prepare_cached("UPDATE deliveries SET attempts = ?2 WHERE id = ?1")?
        .execute(params![int(id.0), attempt])?;
    c.prepare_cached("INSERT INTO attempts (delivery, number, began) VALUES (?1, ?2, ?3)")?
        .execute(params![int(id.0), attempt, at.0])?;
    c.prepare_cached("DELETE FROM attempts WHERE delivery = ?1 AND number <= ?2")?
        .execute(params![int(id.0), i64::from(attempt) - i64::from(ATTEMPTS_LEN_MAX)])?;
    let (event, body) = placed::said(c, id, event(c, row.cursor)?)?;
    Ok(Begin::Go(Outgoing {
        event: event.id,
        kind: event.kind,
        host: event.host,
        token: event.token,
        attempt,
        body,
    }))
}

/// Whether something earlier must end first. What is held may do so in an hour: notices overtake it.
fn is_blocked(c: &Connection, row: &Row) -> Result<bool, StoreError> {
    // 'pending' is behind 'held' in the alphabet.
    let before: Option<String> = c
        .prepare_cached(
            "SELECT max(state) FROM deliveries WHERE state IN ('held', 'pending') \
             AND host IS ?1 AND receiver = ?2 AND id < ?3",
        )?
        .query_row(params![row.host.map(|h| h.0), row.receiver, int(row.id.0)], |r| r.get(0))?;
    match before.as_deref() {
        None => Ok(false),
        Some("held") => Ok(!event(c, row.cursor)?.0.kind.is_notice()),
        Some(_) => Ok(true),
    }
}

fn event(c: &Connection, cursor: Cursor) -> Result<(EventRow, String), StoreError> {
    let sql = format!("SELECT {EVENT} FROM events WHERE cursor = ?1");
    Ok(c.prepare_cached(&sql)?
        .query_row([int(cursor.0)], |r| Ok((rows::event_row(r)?, r.get(7)?)))?)
}

pub(super) fn finish_attempt(
    c: &Connection,
    epoch: u64,
    id: DeliveryId,
    finish: &Finish,
) -> Result<Vec<Due>, StoreError> {
    let Some(row) = row(c, id)? else {
        return Err(StoreError::Invalid(format!("there is no delivery {}", id.0)));
    };
    let ended = c
        .prepare_cached(
            "UPDATE attempts SET ended = ?3, status = ?4, detail = ?5 \
             WHERE delivery = ?1 AND number = ?2 AND ended IS NULL",
        )?
        .execute(params![int(id.0), row.attempts, finish.at.0, finish.status, finish.detail])?;
    if ended == 0 {
        if row.attempts == 0 {
            return Err(StoreError::Invalid(format!("delivery {} was never begun", id.0)));
        }
        // Said before, by a caller that got no answer.
        return renewed(c, &row);
    }
    c.prepare_cached("UPDATE deliveries SET last_outcome = ?2 WHERE id = ?1")?
        .execute(params![int(id.0), finish.detail])?;
    match &finish.verdict {
        FinishVerdict::Delivered => {
            set_state(c, id, DeliveryState::Delivered, None, finish.at)?;
        }
        // Settled while the attempt ran: only a success changes that.
        _ if row.state != DeliveryState::Pending => {}
        FinishVerdict::Retry { wait } => {
            let waited = row.waited.saturating_add(nanos(*wait));
            c.prepare_cached("UPDATE deliveries SET waited_ns = ?2 WHERE id = ?1")?
                .execute(params![int(id.0), waited])?;
        }
        FinishVerdict::Dead { reason } => {
            set_state(c, id, DeliveryState::Dead, Some(reason), finish.at)?;
        }
        FinishVerdict::Vetoed { reason } => {
            set_state(c, id, DeliveryState::Vetoed, Some(reason), finish.at)?;
        }
        FinishVerdict::Conflict { highest } => {
            return conflict(c, epoch, &row, *highest, finish.at);
        }
    }
    Ok(Vec::new())
}

/// The receiver has seen `highest`. Whose was it?
fn conflict(
    c: &Connection,
    epoch: u64,
    row: &Row,
    highest: Token,
    at: Wall,
) -> Result<Vec<Due>, StoreError> {
    let (event, _) = placed::said(c, row.id, event(c, row.cursor)?)?;
    let end = |state, reason: &str| set_state(c, row.id, state, Some(reason), at);
    let dead = |reason: &str| end(DeliveryState::Dead, reason).map(|()| Vec::new());
    let (Some(host), Some(token)) = (row.host, event.token) else {
        return dead("the receiver refused a token (409), but this event has none");
    };
    if highest < token {
        // It contradicts itself; a higher token would not content it either. An attempt like another.
        return Ok(Vec::new());
    }
    if highest == token && row.attempts > 1 {
        // An earlier attempt, of which we never heard the end, did arrive.
        set_state(c, row.id, DeliveryState::Delivered, None, at)?;
        return Ok(Vec::new());
    }
    if highest > token && is_newer_news(c, host, highest)? {
        let reason = format!("the receiver has seen a later event (token {})", highest.0);
        end(DeliveryState::Superseded, &reason)?;
        return Ok(Vec::new());
    }
    if highest.0 > TOKEN_BELIEVED_MAX {
        return dead(&format!(
            "the receiver says it has seen token {}, which cannot be",
            highest.0
        ));
    }
    if row.renewals >= RENEWALS_MAX {
        return dead(&format!("the receiver refused {RENEWALS_MAX} ever higher tokens"));
    }
    raise_token(c, host, highest)?;
    renew(c, epoch, row, &event, at)
}

/// Whether the token is of later news from this store, which takes the place of what was said before: it is
/// of an event that somebody was told, and no mere notice, or of one that has been thrown away since.
fn is_newer_news(c: &Connection, host: HostId, token: Token) -> Result<bool, StoreError> {
    let sql = format!(
        "{CHAIN} SELECT e.kind FROM events e JOIN deliveries d USING (cursor) \
         WHERE cursor IN chain AND e.token = ?4 AND d.attempts > 0 LIMIT 1"
    );
    let kind: Option<String> = c
        .prepare_cached(&sql)?
        .query_row(params![host.0, 0, -1, int(token.0)], |r| r.get(0))
        .optional()?;
    if let Some(kind) = kind {
        let kind: EventKind = kind.parse().map_err(StoreError::Open)?;
        return Ok(!kind.is_notice());
    }
    let pruned = "SELECT coalesce((SELECT pruned FROM hosts WHERE id = ?1), \
                                  (SELECT pruned FROM tokens WHERE host = ?1), 0) >= ?2";
    Ok(c.prepare_cached(pruned)?.query_row(params![host.0, int(token.0)], |r| r.get(0))?)
}

/// Journals the event again under a new id and token, for this receiver alone.
fn renew(
    c: &Connection,
    epoch: u64,
    row: &Row,
    event: &EventRow,
    at: Wall,
) -> Result<Vec<Due>, StoreError> {
    let Some(host) = row.host else { return Ok(Vec::new()) };
    let begun = row.attempts > 0;
    let mark = Mark::of(c, host)?;
    let token = mark.next(epoch, host)?;
    // Derived, not drawn: the same history makes the same ids.
    let hash = blake3::Hasher::new_derive_key("heartwatch renewed event 1")
        .update(event.id.0.as_bytes())
        .update(&row.id.0.to_be_bytes())
        .finalize();
    let mut random = [0; 10];
    random.copy_from_slice(&hash.as_bytes()[..10]);
    let ms = u64::try_from(event.at_ms.0).unwrap_or(0);
    let fact = Fact {
        id: EventId(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()),
        kind: event.kind,
        at: event.at_ms,
        host: row.host,
        incident: event.incident,
        token: Some(token),
    };
    let supersedes: &[EventId] = if begun { &[event.id] } else { &[] };
    let cursor = insert_event(c, &fact, mark.head, supersedes, &event.data)?;
    mark.put(c, host, token, cursor)?;
    c.prepare_cached(
        "INSERT INTO deliveries \
         (cursor, host, incident, receiver, state, waited_ns, renewals, created, changed) \
         SELECT ?2, host, incident, receiver, 'pending', waited_ns, renewals + ?4, ?3, ?3 \
         FROM deliveries WHERE id = ?1",
    )?
    .execute(params![int(row.id.0), int(cursor.0), at.0, begun])?;
    let born = DeliveryId(uint(c.last_insert_rowid()));
    let (state, reason) = if begun {
        (
            "superseded",
            format!("superseded by {} {}, the same under a higher token", fact.kind, fact.id),
        )
    } else {
        let as_now = format!("sent as {} {}, with a higher token", fact.kind, fact.id);
        ("cancelled", format!("never sent as it was: {as_now}, as other news went first"))
    };
    c.prepare_cached(
        "UPDATE deliveries SET state = ?5, reason = ?2, changed = ?3, settled_by = ?4 WHERE id = ?1",
    )?
    .execute(params![int(row.id.0), reason, at.0, int(cursor.0), state])?;
    Ok(vec![due(c, born)?])
}

/// The delivery that took this one's place by [`renew`], if it is still pending.
fn renewed(c: &Connection, row: &Row) -> Result<Vec<Due>, StoreError> {
    if row.state != DeliveryState::Superseded {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT {DUE} FROM deliveries WHERE receiver = ?2 AND state = 'pending' AND renewals > 0 \
         AND cursor = (SELECT settled_by FROM deliveries WHERE id = ?1)"
    );
    all(c, &sql, params![int(row.id.0), row.receiver], rows::due)
}

/// Whether something later went to the receiver before this one, under a higher token.
fn is_overtaken(c: &Connection, row: &Row) -> Result<bool, StoreError> {
    let Some(host) = row.host else { return Ok(false) };
    let sql = format!(
        "{CHAIN} SELECT EXISTS (SELECT 1 FROM deliveries \
         WHERE cursor IN chain AND receiver = ?4 AND attempts > 0)"
    );
    let values = params![host.0, int(row.cursor.0), -1, row.receiver];
    Ok(c.prepare_cached(&sql)?.query_row(values, |r| r.get(0))?)
}

/// Lets one held delivery go.
fn let_go(c: &Connection, epoch: u64, id: DeliveryId, at: Wall) -> Result<Vec<Due>, StoreError> {
    let Some(row) = row(c, id)? else { return Ok(Vec::new()) };
    if is_overtaken(c, &row)? {
        let (event, _) = event(c, row.cursor)?;
        return renew(c, epoch, &row, &event, at);
    }
    set_state(c, id, DeliveryState::Pending, None, at)?;
    Ok(vec![due(c, id)?])
}

pub(super) fn release(
    c: &Connection,
    epoch: u64,
    host: HostId,
    which: &Receivers,
    verdict: Result<(), String>,
    at: Wall,
) -> Result<Vec<Due>, StoreError> {
    let sql = "SELECT id, receiver FROM deliveries WHERE state IN ('held', 'pending') AND host = ?1 \
               AND state = 'held' ORDER BY id";
    let held =
        all(c, sql, [host.0], |r| Ok((DeliveryId(uint(r.get(0)?)), r.get::<_, String>(1)?)))?;
    let meant = held.into_iter().filter(|(_, receiver)| which.has(receiver));
    let held: Vec<DeliveryId> = meant.map(|(id, _)| id).collect();
    let mut going = Vec::new();
    for id in held {
        match &verdict {
            Ok(()) => going.extend(let_go(c, epoch, id, at)?),
            Err(reason) => set_state(c, id, DeliveryState::Cancelled, Some(reason), at)?,
        }
    }
    Ok(going)
}

pub(super) fn redrive(c: &Connection, id: DeliveryId, at: Wall) -> Result<Option<Due>, StoreError> {
    let Some(row) = row(c, id)? else { return Ok(None) };
    match row.state {
        DeliveryState::Dead => {
            c.prepare_cached(
                "UPDATE deliveries SET state = 'pending', reason = NULL, changed = ?2, \
                 attempts_base = attempts, waited_ns = ?3, renewals = 0 WHERE id = ?1",
            )?
            .execute(params![int(id.0), at.0, nanos(Duration::ZERO)])?;
        }
        DeliveryState::Pending => {}
        _ => return Ok(None),
    }
    due(c, id).map(Some)
}

pub(super) fn cancel(
    c: &Connection,
    id: DeliveryId,
    reason: &str,
    at: Wall,
) -> Result<bool, StoreError> {
    let Some(row) = row(c, id)? else { return Ok(false) };
    let in_time = match row.state {
        DeliveryState::Dead | DeliveryState::Held => true,
        DeliveryState::Pending => row.attempts == 0,
        _ => false,
    };
    if in_time {
        set_state(c, id, DeliveryState::Cancelled, Some(reason), at)?;
    }
    Ok(in_time)
}
