//! Hosts in zones, racks and power trees.

use std::collections::BTreeMap;
use std::time::Duration;

use heartwatch_common::id::{Boot, HostId};
use heartwatch_common::time::Wall;
use heartwatch_controller::event::State;
use heartwatch_controller::policy::new_row;
use heartwatch_controller::store::HostRow;
use rand::RngExt;
use rand::rngs::StdRng;

use super::story::Plan;

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    /// Who.
    pub(super) id: HostId,
    /// Its labels.
    pub(super) labels: BTreeMap<String, String>,
    /// It is off.
    pub(super) dead: bool,
    /// When it dies its kernel goes on: not a case for a failover.
    pub(super) agent_only: bool,
    /// Between its beats.
    pub(super) gap: Duration,
    /// Life of its agent.
    pub(super) boot: u32,
    /// Rises with whatever happens to it: what was foreseen before is void.
    pub(super) life: u32,
}

impl Host {
    pub(super) fn row(&self, at: Wall) -> HostRow {
        HostRow {
            labels: self.labels.clone(),
            state: State::Alive,
            boot: Boot(self.boot),
            ..new_row(self.id, at)
        }
    }
}

pub(super) fn draw(plan: &Plan, rng: &mut StdRng) -> Vec<Host> {
    let mut hosts = Vec::new();
    for rack in 0..plan.zones * plan.racks {
        for _ in 0..plan.hosts {
            let n = hosts.len() as u32;
            let mut id = [0; 16];
            id[..4].copy_from_slice(&rng.random::<u32>().to_be_bytes());
            id[12..].copy_from_slice(&n.to_be_bytes());
            let mut labels = BTreeMap::new();
            // Somebody always forgets some.
            if !rng.random_bool(plan.unlabelled) {
                labels.insert("zone".to_owned(), format!("z{}", rack % plan.zones));
                labels.insert("rack".to_owned(), format!("r{rack}"));
                labels.insert("power".to_owned(), format!("p{}", rack / plan.zones % 2));
            }
            hosts.push(Host {
                id: HostId(id),
                labels,
                dead: false,
                agent_only: false,
                gap: plan.gap,
                boot: 1,
                life: 0,
            });
        }
    }
    hosts
}
