//! An enrolment service over a store of its own, for tests.

use std::path::Path;
use std::sync::Arc;

use heartwatch_common::auth::{FleetSecret, Keyring, create_secret_file};
use heartwatch_common::id::{ControllerId, KeyId};
use heartwatch_common::time::Clock;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::registry::Enrolled;
use super::{Enrolling, Parts};
use crate::store::sqlite::SqliteStore;
use crate::view::View;

/// No shards, one fleet secret (key id 1) in a file of `home`, a fixed seed.
pub(crate) fn enrolling(home: &Path, view: &Arc<View>, clock: Arc<dyn Clock>) -> Arc<Enrolling> {
    let store = Arc::new(SqliteStore::open(home, ControllerId(1)).unwrap());
    let keyring = Keyring::new(vec![FleetSecret::new(KeyId(1), [9; 32])]).unwrap();
    let secret_file = home.join("fleet-secret");
    create_secret_file(&secret_file, keyring.to_text().trim_end()).unwrap();
    let parts = Parts {
        store,
        enrolled: Arc::<Enrolled>::default(),
        keyring,
        secret_file,
        view: Arc::clone(view),
        shards: Vec::new(),
        controller: ControllerId(1),
        port: 2328,
        beat_addresses: vec!["watch.example:2400".to_owned()],
        pin: Box::new(|| Some(heartwatch_common::enrol::Hex([5; 32]))),
        clock,
        rng: StdRng::seed_from_u64(1),
    };
    let load = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Enrolling::load(parts)).unwrap()
    };
    // A run time within a run time is not allowed, another thread is.
    Arc::new(std::thread::spawn(load).join().unwrap())
}
