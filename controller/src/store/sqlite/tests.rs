//! The store's promises, one by one; random histories against the oracle; faults of the disk.

mod faults;
mod group;
mod placed;
mod promises;
mod random;

use std::path::Path;

use heartwatch_common::id::{Boot, ControllerId, Generation, HostId};
use heartwatch_common::time::Wall;
use serde_json::Map;
use uuid::Uuid;

use super::{DB_FILE, Db, EPOCH_FILE};
use crate::event::{EventId, EventKind, IncidentId, State};
use crate::store::{
    Audience, Begin, DeliveryFilter, DeliveryId, DeliveryState, Finish, FinishVerdict, HostRow,
    NewDelivery, NewEvent, Outgoing, Receivers, Settle, StoreError,
};

const NOW: Wall = Wall(1_769_860_800_250);

fn open_in(dir: &Path) -> Result<Db, StoreError> {
    Db::open(&dir.join(DB_FILE), &dir.join(EPOCH_FILE), ControllerId(7))
}

fn host(n: u8) -> HostId {
    HostId([n; 16])
}

fn incident(n: u128) -> IncidentId {
    IncidentId(Uuid::from_u128(n))
}

/// Event number `n` of host 1 in incident 1, to receivers `to`; a name that starts with `~` is held.
fn event(n: u128, kind: EventKind, to: &[&str]) -> NewEvent {
    let delivery = |name: &&str| match name.strip_prefix('~') {
        Some(name) => NewDelivery { receiver: name.to_owned(), hold: Some("storm".to_owned()) },
        None => NewDelivery { receiver: (*name).to_owned(), hold: None },
    };
    NewEvent {
        id: EventId(Uuid::from_u128(n)),
        kind,
        at: NOW,
        host: Some(host(1)),
        incident: Some(incident(1)),
        data: Map::new(),
        row: None,
        settle: Settle::Nothing,
        deliveries: to.iter().map(delivery).collect(),
        audience: Audience::All,
    }
}

fn row(n: u8) -> HostRow {
    HostRow {
        id: host(n),
        name: format!("host{n}"),
        labels: [("rack".to_owned(), "r1".to_owned())].into(),
        os: "linux".to_owned(),
        agent_version: "0.1.0".to_owned(),
        state: State::Alive,
        cause: None,
        boot: Boot(3),
        generation: Generation(1),
        address: Some(([192, 0, 2, n], 4000).into()),
        first_seen: NOW,
        since: NOW,
        incident: None,
        duplicate: false,
        frozen_ms: Some(5_000),
        back_by: Some(Wall(NOW.0 + 5)),
    }
}

fn finish(verdict: FinishVerdict) -> Finish {
    Finish { at: NOW, status: None, detail: "so it ended".to_owned(), verdict }
}

fn go(db: &Db, id: DeliveryId) -> Outgoing {
    match db.begin_attempt(id, NOW).unwrap() {
        Begin::Go(outgoing) => outgoing,
        other => panic!("{id:?}: {other:?}"),
    }
}

fn state(db: &Db, id: DeliveryId) -> DeliveryState {
    let after = Some(DeliveryId(id.0 - 1));
    let filter = DeliveryFilter { after, ..DeliveryFilter::default() };
    let rows = db.deliveries(&filter, 1).unwrap();
    assert_eq!(rows[0].id, id);
    rows[0].state
}

/// Appends one event; answers the ids of its pending deliveries.
fn append(db: &Db, event: NewEvent) -> Vec<DeliveryId> {
    db.append(&[event]).unwrap()[0].deliveries.iter().map(|d| d.id).collect()
}
