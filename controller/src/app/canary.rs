//! The canary's shell: it beats, falls silent, has a test event delivered, and tells how that went. What all
//! that means stands in [`crate::canary`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use heartwatch_common::auth::{Keyring, create_secret_file};
use heartwatch_common::id::{Boot, Epoch, Generation, HostId, Seq};
use heartwatch_common::load::LoadSample;
use heartwatch_common::time::{Clock, Instant};
use heartwatch_common::wire::{self, Beat, Field, Header, RoundTrip, Stamp};
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::secrets::SecretError;
use crate::canary::{
    BEATS, CANARY, Canary, DrillReport, GAP, MARGIN, OWN_RECEIVER, Phase, Saw, judge,
};
use crate::config::{CanaryConfig, Config, RawReceiver, Receiver};
use crate::delivery::DeliveryHandle;
use crate::delivery::sample::test_data;
use crate::delivery::sign::SigningSecret;
use crate::event::{EventId, EventKind, State};
use crate::policy::driver::Command;
use crate::shard::route::shard_of;
use crate::shard::worker::{Command as ShardCommand, ShardHandle};
use crate::store::{
    Audience, DeliveryFilter, DeliveryId, DeliveryState, NewDelivery, NewEvent, Settle, Store,
};

/// The own receiver's secret, in the state directory: another one at each start.
const SECRET_FILE: &str = "canary-secret";
/// How often the store is asked whether a delivery has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Adds the own receiver to those of the config, if the config names no other for drills.
pub(super) fn add_receiver<R: Rng + ?Sized>(
    config: &mut Config,
    canary: &Canary,
    api: SocketAddr,
    rng: &mut R,
) -> Result<(), SecretError> {
    if config.canary.receiver.is_some() {
        return Ok(());
    }
    use base64::Engine;
    let mut bytes = [0; 32];
    rng.fill_bytes(&mut bytes);
    let text = format!("whsec_{}", base64::engine::general_purpose::STANDARD.encode(bytes));
    let path = config.state_dir.join(SECRET_FILE);
    let failed = |source| SecretError::Create { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    create_secret_file(&path, &text).map_err(failed)?;
    if let Some(secret) = SigningSecret::parse_all(&text).unwrap_or_default().pop() {
        canary.set_secret(secret);
    }
    let url = format!("http://{}/v1/canary", reachable(api));
    let receiver: Receiver = RawReceiver::own(url, path).into_receiver(OWN_RECEIVER);
    config.receivers.insert(OWN_RECEIVER.to_owned(), receiver);
    Ok(())
}

/// Where this machine reaches a listener of its own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Holds drills, until it is aborted.
pub(super) struct Drills {
    pub(super) canary: Arc<Canary>,
    pub(super) config: CanaryConfig,
    pub(super) keyrings: Arc<RwLock<Arc<Keyring>>>,
    pub(super) epoch: Epoch,
    /// Where the controller hears beats.
    pub(super) listen: SocketAddr,
    pub(super) shards: Vec<ShardHandle>,
    pub(super) store: Arc<dyn Store>,
    pub(super) delivery: Arc<DeliveryHandle>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) name: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) rng: StdRng,
}

impl Drills {
    pub(super) async fn run(mut self) {
        {
            let mut status = self.canary.lock();
            status.scheduled = self.config.enabled;
            status.interval_s = self.config.interval.as_secs();
        }
        let canary = Arc::clone(&self.canary);
        loop {
            let scheduled = async {
                match self.config.enabled {
                    true => tokio::time::sleep(self.config.interval).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = scheduled => {}
                () = canary.wanted.notified() => {}
            }
            self.drill().await;
        }
    }

    fn phase(&self, phase: Phase) {
        self.canary.lock().phase = phase;
    }

    async fn drill(&mut self) {
        let number = {
            let mut status = self.canary.lock();
            status.begun += 1;
            status.phase = Phase::Beating;
            status.begun
        };
        let receiver = self.config.receiver.clone().unwrap_or_else(|| OWN_RECEIVER.to_owned());
        let mut saw = Saw::default();
        if let Err(e) = self.fall_silent(&mut saw).await {
            saw.trouble.push(format!("the canary cannot beat: {e}"));
        }
        // Whatever was seen: what is left of it must not be called down a second time.
        self.tell_shard(ShardCommand::Remove(CANARY));
        self.phase(Phase::Delivering);
        self.deliver(&receiver, &mut saw).await;
        let failures = judge(&saw, &receiver, &self.config);
        self.end(number, receiver, &saw, failures).await;
    }

    /// Beats until it is seen alive and somewhat longer, then no more, until it is called down.
    async fn fall_silent(&mut self, saw: &mut Saw) -> std::io::Result<()> {
        let mut seen = self.canary.seen();
        seen.mark_unchanged();
        let target = reachable(self.listen);
        let socket = UdpSocket::bind(SocketAddr::new(target.ip(), 0)).await?;
        let boot = Boot(u32::try_from(self.clock.wall().as_secs()).unwrap_or(1));
        let (mut seq, mut alive_beats) = (0, 0);
        let deadline = self.clock.now() + self.config.detection_max;
        let mut last;
        loop {
            seq += 1;
            last = self.clock.now();
            let bytes = self.datagram(boot, seq, last, !saw.alive);
            socket.send_to(&bytes, target).await?;
            // A challenge or an ack is not needed: the epoch is known. Nothing is read, and nothing
            // answers a probe.
            tokio::time::sleep(GAP).await;
            let state = seen.borrow_and_update().map(|(state, _)| state);
            if state == Some(State::Alive) && !saw.alive {
                saw.alive = true;
                self.tell_shard(ShardCommand::Freeze(CANARY, Some(MARGIN)));
            }
            alive_beats += u32::from(saw.alive);
            if alive_beats > BEATS {
                break;
            }
            if self.clock.now() >= deadline {
                return Ok(());
            }
        }
        self.phase(Phase::Silent);
        let down = async {
            loop {
                if let Some((State::Down, at)) = *seen.borrow_and_update() {
                    return Some(at);
                }
                seen.changed().await.ok()?;
            }
        };
        // Longer than allowed, so that a late one is told by its figure.
        if let Ok(Some(at)) = tokio::time::timeout(self.config.detection_max * 2, down).await {
            saw.detection = Some(at.since(last));
        }
        Ok(())
    }

    /// A hello and beats by turns until it is known, then beats.
    fn datagram(&self, boot: Boot, seq: u32, now: Instant, introduce: bool) -> Vec<u8> {
        let ring = Arc::clone(&self.keyrings.read().unwrap_or_else(PoisonError::into_inner));
        let key = ring.current().host_key(CANARY, Generation(0));
        let header =
            Header { host: CANARY, key_id: key.key_id(), generation: key.generation(), flags: 0 };
        let stamp = Stamp { boot, seq: Seq(seq), sent: now, gap: GAP, epoch: self.epoch };
        let hello = (introduce && seq % 2 == 1)
            .then(|| wire::encode_hello(&header, &stamp, 0, GAP, &[Field::Name("canary")]).ok());
        let mut bytes = hello.flatten().unwrap_or_else(|| {
            let (load, round_trip) = (LoadSample::UNKNOWN, RoundTrip::UNKNOWN);
            Beat { stamp, late_ms: 0, checks: 0, load, round_trip }.encode(&header).to_vec()
        });
        key.seal(&mut bytes);
        bytes
    }

    fn tell_shard(&self, command: ShardCommand) {
        let shard = usize::from(shard_of(CANARY, self.shards.len() as u16));
        if self.shards[shard].send(command).is_err() {
            log::warn!("the canary's shard is too busy to be told of it");
        }
    }

    /// Has a marked test event delivered, as any other.
    async fn deliver(&mut self, receiver: &str, saw: &mut Saw) {
        let at = self.clock.wall();
        let id = EventId::new(at, &mut self.rng);
        let author = json!({ "id": self.store.controller(), "name": self.name });
        let mut data = test_data(id, author);
        let reason = "a drill of the controller's canary: nothing happened, do nothing";
        data.insert("reason".to_owned(), json!(reason));
        let event = NewEvent {
            id,
            kind: EventKind::Test,
            at,
            host: None::<HostId>,
            incident: None,
            data,
            row: None,
            settle: Settle::Nothing,
            deliveries: vec![NewDelivery { receiver: receiver.to_owned(), hold: None }],
            audience: Audience::All,
        };
        let began = self.clock.now();
        let limit = self.config.delivery_max * 2;
        let way = async {
            let appended = self.store.append(vec![event]).await.map_err(|e| e.to_string())?;
            let due: Vec<_> = appended.into_iter().flat_map(|a| a.deliveries).collect();
            let delivery = due.first().map(|d| d.id).ok_or("the store made no delivery")?;
            self.delivery.wake(due);
            match receiver {
                OWN_RECEIVER => self.own_arrival(id).await,
                _ => self.other_arrival(delivery).await,
            }
        };
        match tokio::time::timeout(limit, way).await {
            Ok(Ok(at)) => saw.delivery = Some(at.since(began)),
            Ok(Err(why)) => saw.trouble.push(why),
            Err(_) => {}
        }
    }

    async fn own_arrival(&self, id: EventId) -> Result<Instant, String> {
        let mut arrived = self.canary.arrived();
        let id = id.to_string();
        loop {
            if let Some((_, at)) = arrived.borrow_and_update().as_ref().filter(|(of, _)| *of == id)
            {
                return Ok(*at);
            }
            arrived.changed().await.map_err(|e| e.to_string())?;
        }
    }

    async fn other_arrival(&self, id: DeliveryId) -> Result<Instant, String> {
        let filter = DeliveryFilter {
            after: id.0.checked_sub(1).map(DeliveryId),
            ..DeliveryFilter::default()
        };
        loop {
            let rows = self.store.deliveries(filter.clone(), 1).await.map_err(|e| e.to_string())?;
            match rows.first().filter(|row| row.id == id) {
                Some(row) if row.state == DeliveryState::Delivered => return Ok(self.clock.now()),
                Some(row) if row.state == DeliveryState::Pending => {}
                Some(row) => {
                    return Err(format!("the test event's delivery is {}", row.state.as_str()));
                }
                None => return Err("the test event's delivery is gone".to_owned()),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn end(&mut self, number: u64, receiver: String, saw: &Saw, failures: Vec<String>) {
        let ms = |d: Option<Duration>| d.map(|d| d.as_secs_f64() * 1e3);
        let passed = failures.is_empty();
        let report = DrillReport {
            number,
            ended_ms: self.clock.wall(),
            detection_ms: ms(saw.detection),
            delivery_ms: ms(saw.delivery),
            receiver,
            failures,
        };
        let failed_before = {
            let mut status = self.canary.lock();
            let before = status.failing().is_some();
            status.phase = Phase::Idle;
            status.failures += u64::from(!passed);
            if passed {
                status.last_success_ms = Some(report.ended_ms);
            }
            status.last = Some(report.clone());
            before
        };
        let told = match (failed_before, passed) {
            (false, false) => {
                let reason =
                    format!("the controller's own drill failed: {}", report.failures.join("; "));
                Some((EventKind::ControllerCanaryFailed, reason))
            }
            (true, true) => {
                let reason = "the controller's own drill passes again".to_owned();
                Some((EventKind::ControllerCanaryPassed, reason))
            }
            _ => None,
        };
        if let Some((kind, reason)) = told
            && self.commands.send(Command::Tell(kind, reason)).await.is_err()
        {
            log::debug!("the drill's end is told to nobody: the controller stops");
        }
    }
}
