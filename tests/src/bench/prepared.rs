//! A state folder in which a whole mass is registered, as a controller that was stopped leaves it.

use std::path::Path;

use anyhow::Result;
use heartwatch_common::id::{Boot, ControllerId, HostId};
use heartwatch_common::time::{Clock, SystemClock};
use heartwatch_controller::event::State;
use heartwatch_controller::policy::new_row;
use heartwatch_controller::store::sqlite::SqliteStore;
use heartwatch_controller::store::{HostRow, READ_LEN_MAX, Store};

use crate::fleet::{Mass, MassFacts, mass_id};

/// The row of host number `n` of a mass in its first boot.
fn row(mass: &Mass, n: usize, id: HostId) -> HostRow {
    let facts = MassFacts::of(n);
    let labels = facts.labels().map(|(k, v)| (k.to_owned(), v.to_owned()));
    HostRow {
        labels: labels.into(),
        name: facts.name,
        os: MassFacts::OS.into(),
        agent_version: MassFacts::AGENT_VERSION.into(),
        state: State::Alive,
        boot: Boot(1),
        address: Some(mass.address(n)),
        ..new_row(id, SystemClock.wall())
    }
}

/// Registers the hosts of a mass in a state folder, which is made; through the controller's own store, in
/// the order of their ids, which is the quickest.
pub(super) async fn fill(dir: &Path, mass: &Mass, hosts: usize) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let store = SqliteStore::open(dir, ControllerId(1))?;
    let mut ids: Vec<_> = (0..hosts).map(|n| (mass_id(n), n)).collect();
    ids.sort_unstable();
    for chunk in ids.chunks(READ_LEN_MAX) {
        store.save_hosts(chunk.iter().map(|(id, n)| row(mass, *n, *id)).collect()).await?;
    }
    store.shutdown().await;
    Ok(())
}
