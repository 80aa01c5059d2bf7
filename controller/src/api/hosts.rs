//! Routes about hosts: list, one, why, import, forget, freeze.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use heartwatch_common::id::HostId;

use super::extract::{Body, Name, Operator, Params, shorten};
use super::problem::Problem;
use super::types::{
    DeliveryJson, EventJson, ForgottenJson, FreezeJson, HostJson, HostsPage, IncidentJson,
    SingleJson, WhyJson, WordBody, cursor_text,
};
use super::{Api, dropped, holds, incidents};
use crate::control::{FREEZE, Freeze, IMPORT_LEN_MAX, ImportHost, ImportReport};
use crate::event::{EventKind, State as HostState};
use crate::policy::{is_action, parse_domain};
use crate::store::{Cursor, DeliveryFilter, DeliveryRow, EventRow, READ_LEN_MAX};
use crate::view::{Filter, HostView};

/// Events of a host that `why` shows.
const WHY_EVENTS_MAX: usize = 200;
/// Deliveries about a host that `why` shows.
const WHY_DELIVERIES_MAX: usize = 50;
/// Reads of deliveries that `why` makes to reach the newest ones.
const WHY_READS_MAX: usize = 20;
/// Pages of the journal in which `why` looks for events of the host's failure domains.
const WHY_AROUND_READS_MAX: usize = 3;
/// Events of its failure domains that `why` shows.
const WHY_AROUND_MAX: usize = 20;
/// Longest name of an imported host, bytes: what a hello can carry.
const NAME_LEN_MAX: usize = 255;
/// Most labels of an imported host.
const LABELS_LEN_MAX: usize = 64;

/// Where a listing goes on: opaque to clients.
pub(super) struct PageToken {
    pub(super) slot: u64,
    cursor: Cursor,
    instance: u64,
}

impl PageToken {
    /// The same listing from another place on.
    pub(super) fn at(&self, slot: u64) -> Self {
        Self { slot, cursor: self.cursor, instance: self.instance }
    }

    pub(super) fn to_text(&self) -> String {
        format!("p{:x}.{:x}.{:x}", self.slot, self.cursor.0, self.instance)
    }

    /// Where a listing is to go on, by its `page`: at the beginning, if it has none.
    pub(super) async fn of(api: &Api, params: &Params) -> Result<Self, Problem> {
        let Some(text) = params.one("page")? else {
            // Before the listing: what happens meanwhile is then told again by the events, not lost.
            let cursor = api.store.head().await?;
            return Ok(Self { slot: 0, cursor, instance: api.instance });
        };
        let token = Self::parse(text).ok_or_else(|| {
            let detail =
                format!("`page={}` is no page token: hand back `next_page`", shorten(text));
            Problem::bad_request(detail)
        })?;
        if token.instance != api.instance {
            let detail = "the page token is from before the controller's restart: start over";
            let title = "the listing cannot be continued";
            return Err(Problem::new(StatusCode::GONE, "page-gone", title, detail));
        }
        Ok(token)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix('p')?.splitn(3, '.').map(|t| u64::from_str_radix(t, 16));
        let mut next = || parts.next()?.ok();
        Some(Self { slot: next()?, cursor: Cursor(next()?), instance: next()? })
    }
}

pub(super) fn filter(params: &Params) -> Result<Filter, Problem> {
    let mut states = Vec::new();
    for text in params.all("state").iter().flat_map(|list| list.split(',')) {
        let state: HostState = text.trim().parse().map_err(|_| {
            Problem::bad_request(format!(
                "`state={}`: use pending, alive, suspect, down, left or duplicate",
                shorten(text)
            ))
        })?;
        states.push(state);
    }
    let mut labels = BTreeMap::new();
    for text in params.all("label") {
        let Some((key, value)) = text.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            let detail = format!("`label={}`: write `label=key=value`", shorten(text));
            return Err(Problem::bad_request(detail));
        };
        if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|old| old != value) {
            let detail = format!("the label `{}` cannot have two values", shorten(key));
            return Err(Problem::bad_request(detail));
        }
    }
    let name_contains = params.one("name")?.map(str::to_owned);
    Ok(Filter { states, labels, name_contains })
}

/// `GET /v1/hosts`
pub(super) async fn list(
    State(api): State<Api>,
    params: Params,
) -> Result<Json<HostsPage>, Problem> {
    let params = params.only(&["state", "label", "name", "limit", "page"])?;
    let (filter, limit) = (filter(&params)?, params.limit()?);
    let token = PageToken::of(&api, &params).await?;
    // A part of a name is looked for in every name: no task must wait for that.
    let view = Arc::clone(&api.view);
    let look = tokio::task::spawn_blocking(move || view.list(&filter, token.slot, limit));
    let (hosts, next) = look.await.map_err(|e| {
        let detail = format!("looking through the hosts broke off: {e}");
        Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR, &detail)
    })?;
    let (now, windows) = (api.clock.now(), api.control.maintenance());
    Ok(Json(HostsPage {
        hosts: hosts.iter().map(|h| HostJson::new(h, &windows, now)).collect(),
        next_page: next.map(|slot| token.at(slot).to_text()),
        cursor: cursor_text(token.cursor),
        now_ms: api.clock.wall(),
    }))
}

/// The one registered host of that id, or of that name if only one has it.
pub(super) fn find(api: &Api, name: &str) -> Result<HostView, Problem> {
    if let Some(host) = name.parse().ok().and_then(|id| api.view.get(id)) {
        return Ok(host);
    }
    let mut named = api.view.by_name(name);
    match (named.pop(), named.is_empty()) {
        (Some(host), true) => Ok(host),
        (Some(_), false) => Err(Problem::new(
            StatusCode::CONFLICT,
            "ambiguous-name",
            "more than one host has this name",
            format!("more than one host is named `{}`: use an id", shorten(name)),
        )),
        (None, _) => Err(Problem::unknown_host(&shorten(name))),
    }
}

/// The same; of a host that was revoked it is told when, why and by whom.
pub(super) async fn find_or_say(api: &Api, name: &str) -> Result<HostView, Problem> {
    match find(api, name) {
        Err(unknown) if unknown.status == StatusCode::NOT_FOUND.as_u16() => {
            Err(api.enrol.revocation(name).await?.map_or(unknown, |e| Problem::revoked(&e)))
        }
        found => found,
    }
}

/// The id that a filter means: any id (the host may be forgotten by now), or a registered host's name.
pub(super) fn find_id(api: &Api, name: &str) -> Result<HostId, Problem> {
    name.parse().or_else(|_| find(api, name).map(|h| h.row.id))
}

/// `GET /v1/hosts/{host}`
pub(super) async fn one(
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<HostJson>, Problem> {
    params.only(&[])?;
    let host = find_or_say(&api, &name).await?;
    let mut shown = HostJson::new(&host, &api.control.maintenance(), api.clock.now());
    if shown.duplicate {
        // A busy shard must not hide the rest.
        shown.twin = api.control.why(shown.id).await.ok().and_then(|why| why.twin);
    }
    Ok(Json(shown))
}

/// The newest deliveries about a host, newest first, and whether some are not among them.
async fn newest_deliveries(api: &Api, host: HostId) -> Result<(Vec<DeliveryRow>, bool), Problem> {
    let mut newest = VecDeque::with_capacity(WHY_DELIVERIES_MAX + 1);
    let mut filter = DeliveryFilter { host: Some(host), ..DeliveryFilter::default() };
    let mut truncated = false;
    for _ in 0..WHY_READS_MAX {
        let rows = api.store.deliveries(filter.clone(), READ_LEN_MAX).await?;
        let full = rows.len() >= READ_LEN_MAX;
        filter.after = rows.last().map(|r| r.id);
        for row in rows {
            newest.push_front(row);
            truncated |= newest.len() > WHY_DELIVERIES_MAX;
            newest.truncate(WHY_DELIVERIES_MAX);
        }
        if !full {
            return Ok((newest.into(), truncated));
        }
    }
    Ok((newest.into(), true))
}

/// What happened to a host's failure domains since its newest outage began: the newest, newest first. Looks
/// through no more than [`WHY_AROUND_READS_MAX`] pages of the journal: in a storm of thousands that reaches
/// what follows the host's fall, and not all that was said later.
async fn around(
    api: &Api,
    events: &[EventRow],
    labels: &BTreeMap<String, String>,
) -> Result<Vec<EventRow>, Problem> {
    let outage = events.iter().find_map(|e| e.incident);
    let first = events.iter().rfind(|e| outage.is_some() && e.incident == outage);
    let Some(first) = first else { return Ok(Vec::new()) };
    let mut after = first.cursor;
    let mut found = VecDeque::new();
    for _ in 0..WHY_AROUND_READS_MAX {
        let page = api.store.events(after, None, READ_LEN_MAX).await?;
        let full = page.len() >= READ_LEN_MAX;
        after = page.last().map_or(after, |e| e.cursor);
        for event in page {
            if event.host.is_none() && is_around(event.kind, &event.data, labels) {
                found.push_front(event);
                found.truncate(WHY_AROUND_MAX);
            }
        }
        if !full {
            break;
        }
    }
    // Of an outage that is over, what happened since is another story.
    let over = events
        .iter()
        .find(|e| e.incident == outage)
        .filter(|e| matches!(e.kind, EventKind::HostRecovered | EventKind::HostLeft));
    found.retain(|e| over.is_none_or(|over| e.cursor < over.cursor));
    Ok(found.into())
}

/// Whether an event tells of a failure domain of a host with these labels.
fn is_around(
    kind: EventKind,
    data: &serde_json::Map<String, serde_json::Value>,
    labels: &BTreeMap<String, String>,
) -> bool {
    let told = matches!(
        kind,
        EventKind::DomainDown
            | EventKind::DomainStorm
            | EventKind::DomainCalm
            | EventKind::HoldApproved
            | EventKind::HoldRejected
    );
    let domain = data.get("domain").and_then(serde_json::Value::as_str);
    let domain = domain.and_then(|name| parse_domain(name).ok());
    told && domain.is_some_and(|d| d.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// `GET /v1/hosts/{host}/why`
pub(super) async fn why(
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<WhyJson>, Problem> {
    params.only(&[])?;
    let id = find_or_say(&api, &name).await?.row.id;
    // A busy shard must not hide the rest of the story: it is then told why that part is missing.
    let (detector, detector_error) = match api.control.why(id).await {
        Ok(why) => (Some(why), None),
        Err(e) => (None, Some(e.to_string())),
    };
    let events = api.store.events_of(id, WHY_EVENTS_MAX).await?;
    let (rows, deliveries_truncated) = newest_deliveries(&api, id).await?;
    let mut orders: Vec<DeliveryRow> = rows.iter().filter(|r| is_action(r.kind)).cloned().collect();
    let mut deliveries = Vec::with_capacity(rows.len());
    for delivery in rows {
        let attempt_log = match delivery.attempts {
            0 => Vec::new(),
            _ => api.store.attempts(delivery.id).await?,
        };
        deliveries.push(DeliveryJson { delivery, attempt_log });
    }
    let status = api.control.status().await;
    // The rest of the story is worth telling without it.
    let hold = api.control.hold_of(id).await.unwrap_or_default();
    let waits = api.control.waits_of(id).await.unwrap_or_default();
    // Read last, so that the host is no older than its events.
    let windows = api.control.maintenance();
    let host = HostJson::new(&find(&api, &name)?, &windows, api.clock.now());
    let around = around(&api, &events, &host.labels).await?;
    orders.retain(|order| order.incident == host.incident);
    let incident = host.incident.map(|id| IncidentJson {
        id,
        opened_ms: events.iter().filter(|e| e.incident == Some(id)).map(|e| e.at_ms).min(),
        stage: incidents::stage(&orders, &events),
    });
    Ok(Json(WhyJson {
        now_ms: api.clock.wall(),
        host,
        detector,
        detector_error,
        incident,
        events_truncated: events.len() == WHY_EVENTS_MAX,
        events: events.into_iter().map(EventJson::from).collect(),
        deliveries,
        deliveries_truncated,
        doubts: status.doubts,
        pause: status.pause,
        hold,
        waits,
        around: around.into_iter().map(EventJson::from).collect(),
    }))
}

/// `POST /v1/hosts/import`
pub(super) async fn import(
    _: Operator,
    State(api): State<Api>,
    params: Params,
    Body(hosts): Body<Vec<ImportHost>>,
) -> Result<Json<ImportReport>, Problem> {
    params.only(&[])?;
    if hosts.len() > IMPORT_LEN_MAX {
        let detail =
            format!("{} hosts in one import: at most {IMPORT_LEN_MAX} are allowed", hosts.len());
        return Err(Problem::bad_request(detail));
    }
    for (i, host) in hosts.iter().enumerate() {
        check_import(host)
            .map_err(|e| Problem::bad_request(format!("host {i} ({}): {e}", host.id)))?;
    }
    let (revoked, hosts): (Vec<_>, Vec<_>) =
        hosts.into_iter().partition(|host| api.enrol.is_revoked(host.id));
    let report = api.control.import(hosts).await?;
    Ok(Json(ImportReport { revoked: revoked.into_iter().map(|host| host.id).collect(), ..report }))
}

/// Whether a host can be imported: its texts are bounded and hold no control characters.
pub(crate) fn check_import(host: &ImportHost) -> Result<(), String> {
    let plain = |what: &str, text: &str| {
        if text.len() > NAME_LEN_MAX {
            return Err(format!("{what} is longer than {NAME_LEN_MAX} bytes"));
        }
        if text.chars().any(char::is_control) {
            return Err(format!("{what} holds a control character"));
        }
        Ok(())
    };
    plain("its name", &host.name)?;
    if host.labels.len() > LABELS_LEN_MAX {
        return Err(format!("it has more than {LABELS_LEN_MAX} labels"));
    }
    for (key, value) in &host.labels {
        if key.is_empty() {
            return Err("a label has no key".to_owned());
        }
        plain("a label's key", key)?;
        plain("a label's value", value)?;
    }
    Ok(())
}

/// `DELETE /v1/hosts/{host}`
pub(super) async fn forget(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<ForgottenJson>, Problem> {
    params.only(&[])?;
    let host = find_or_say(&api, &name).await?.row.id;
    let orders = dropped::unfinished(&api, host).await?;
    api.control.forget(host).await?;
    Ok(Json(ForgottenJson { host, dropped: dropped::become_of(&api, host, orders).await? }))
}

/// Body of `PUT /v1/hosts/{host}/freeze`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FreezeBody {
    /// Where; `null` or nothing: as it is now.
    #[serde(default)]
    margin_ms: Option<u64>,
}

/// `PUT /v1/hosts/{host}/freeze`
pub(super) async fn freeze(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
    Body(body): Body<FreezeBody>,
) -> Result<Json<FreezeJson>, Problem> {
    params.only(&[])?;
    let what = match body.margin_ms {
        None => Freeze::AsItIs,
        Some(ms) => Freeze::At(Duration::from_millis(ms)),
    };
    if matches!(what, Freeze::At(margin) if !FREEZE.contains(&margin)) {
        return Err(Problem::bad_request("`margin_ms`: 10 to 600000 are allowed"));
    }
    frozen(&api, &name, what).await
}

/// `DELETE /v1/hosts/{host}/freeze`
pub(super) async fn unfreeze(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
) -> Result<Json<FreezeJson>, Problem> {
    params.only(&[])?;
    frozen(&api, &name, Freeze::Off).await
}

/// `POST /v1/hosts/{host}/single`
pub(super) async fn single(
    _: Operator,
    State(api): State<Api>,
    Name(name): Name,
    params: Params,
    Body(body): Body<WordBody>,
) -> Result<Json<SingleJson>, Problem> {
    params.only(&[])?;
    let host = find_or_say(&api, &name).await?.row.id;
    let held = api.control.hold_of(host).await?.is_some();
    api.control.single(host, holds::word(body)?).await?;
    Ok(Json(SingleJson { host, held }))
}

async fn frozen(api: &Api, name: &str, what: Freeze) -> Result<Json<FreezeJson>, Problem> {
    let host = find_or_say(api, name).await?.row.id;
    let margin = api.control.freeze(host, what).await?;
    Ok(Json(FreezeJson { host, frozen_ms: margin.map(|m| m.as_millis() as u64) }))
}
