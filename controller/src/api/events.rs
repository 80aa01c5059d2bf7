//! The journal, page by page, and waiting for its next page.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use heartwatch_common::id::HostId;

use super::extract::{Params, shorten};
use super::problem::Problem;
use super::types::{EventJson, EventsPage, cursor_text, parse_cursor};
use super::{Api, hosts};
use crate::event::EventKind;
use crate::store::{Cursor, EventRow, READ_LEN_MAX};

/// Longest wait for news.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(60);
/// How often a waiting request looks at the head of the journal.
const POLL: Duration = Duration::from_millis(500);
/// How far back the newest events of one kind are looked for.
const SCAN_MAX: u64 = 50_000;

/// `GET /v1/events`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<EventsPage>, Problem> {
    let params = params.only(&["after", "host", "kind", "limit", "wait", "tail"])?;
    let limit = params.limit()?;
    let host = params.one("host")?.map(|name| hosts::find_id(&api, name)).transpose()?;
    let which = Which { host, kind: params.parsed("kind")? };
    let wait = params.span("wait", WAIT_MAX)?.unwrap_or_default();
    let tail = params.number("tail", 1, READ_LEN_MAX as u64)?;
    let after = match params.one("after")? {
        None => Cursor(0),
        Some(text) => parse_cursor(text).ok_or_else(|| {
            Problem::bad_request(format!(
                "`after={}` is no cursor: hand back the `cursor` of an earlier answer",
                shorten(text)
            ))
        })?,
    };
    if let Some(count) = tail {
        if ["after", "limit", "wait"].iter().any(|key| !params.all(key).is_empty()) {
            let detail = "`tail` cannot be combined with `after`, `limit` or `wait`";
            return Err(Problem::bad_request(detail));
        }
        return newest(&api, which, count).await.map(Json);
    }
    let head = api.store.head().await?;
    if after > head {
        let title = "the journal does not reach that far";
        let detail = "this cursor lies beyond the journal's end, which was probably restored from a \
                      backup: list /v1/hosts again and continue at its cursor";
        return Err(Problem::new(StatusCode::GONE, "cursor-gone", title, detail));
    }
    let page = read(&api, after, head, which, limit).await?;
    if !page.events.is_empty() || page.more || wait.is_zero() {
        return Ok(Json(page));
    }
    follow(&api, page, head, which, limit, wait).await.map(Json)
}

/// Which events.
#[derive(Clone, Copy)]
struct Which {
    host: Option<HostId>,
    /// Looked for among those that are read: a page that has none of it may be empty, with more to come.
    kind: Option<EventKind>,
}

/// One page. `head` was read before: with nothing more to come, reading continues behind it, also if the
/// filter let nothing through.
async fn read(
    api: &Api,
    after: Cursor,
    head: Cursor,
    which: Which,
    limit: usize,
) -> Result<EventsPage, Problem> {
    let read_len = if which.kind.is_some() { READ_LEN_MAX } else { limit };
    let mut events = api.store.events(after, which.host, read_len).await?;
    let mut more = events.len() >= read_len;
    let mut last = events.last().map_or(after, |e| e.cursor);
    if let Some(kind) = which.kind {
        events.retain(|e| e.kind == kind);
        if events.len() > limit {
            events.truncate(limit);
            last = events.last().map_or(after, |e| e.cursor);
            more = true;
        }
    }
    Ok(page(events, if more { last } else { last.max(head) }, more))
}

fn page(events: Vec<EventRow>, cursor: Cursor, more: bool) -> EventsPage {
    let events = events.into_iter().map(EventJson::from).collect();
    EventsPage { events, cursor: cursor_text(cursor), more }
}

/// Waits until there is something, at most `wait`.
async fn follow(
    api: &Api,
    empty: EventsPage,
    mut head: Cursor,
    which: Which,
    limit: usize,
    wait: Duration,
) -> Result<EventsPage, Problem> {
    let Ok(_permit) = api.followers.try_acquire() else {
        let detail = "too many requests wait for events: try again, or ask without `wait`";
        return Err(Problem::of_status(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let mut latest = empty;
    let news = async {
        loop {
            tokio::time::sleep(POLL).await;
            let seen = api.store.head().await?;
            if seen == head {
                continue;
            }
            latest = read(api, head, seen, which, limit).await?;
            if !latest.events.is_empty() || latest.more {
                return Ok::<(), Problem>(());
            }
            head = seen;
        }
    };
    // Out of time is no error: the page is then empty, and the caller asks again.
    match tokio::time::timeout(wait, news).await {
        Ok(Err(problem)) => Err(problem),
        Ok(Ok(())) | Err(_) => Ok(latest),
    }
}

/// The newest events, oldest first, and the cursor behind them.
async fn newest(api: &Api, which: Which, count: u64) -> Result<EventsPage, Problem> {
    let head = api.store.head().await?;
    let count_len = usize::try_from(count).unwrap_or(READ_LEN_MAX);
    let events = match which.host {
        _ if which.kind.is_some() => newest_of(api, which, head, count_len).await?,
        Some(host) => {
            let mut events = api.store.events_of(host, count_len).await?;
            events.reverse();
            events
        }
        // Cursors rise by at least one per event, so that this reaches back no further than asked.
        None => {
            let after = Cursor(head.0.saturating_sub(count));
            api.store.events(after, None, count_len).await?
        }
    };
    let cursor = events.last().map_or(head, |e| e.cursor.max(head));
    Ok(page(events, cursor, false))
}

/// The newest events of a kind, oldest first, among the newest [`SCAN_MAX`].
async fn newest_of(
    api: &Api,
    which: Which,
    head: Cursor,
    count: usize,
) -> Result<Vec<EventRow>, Problem> {
    let (mut found, mut end) = (VecDeque::new(), head);
    let least = head.0.saturating_sub(SCAN_MAX);
    while end.0 > least && found.len() < count {
        let begin = Cursor(end.0.saturating_sub(READ_LEN_MAX as u64).max(least));
        let rows = api.store.events(begin, which.host, READ_LEN_MAX).await?;
        let of_kind = rows.into_iter().filter(|e| e.cursor <= end && Some(e.kind) == which.kind);
        for event in of_kind.collect::<Vec<_>>().into_iter().rev() {
            found.push_front(event);
        }
        end = begin;
    }
    found.drain(..found.len().saturating_sub(count));
    Ok(found.into())
}
