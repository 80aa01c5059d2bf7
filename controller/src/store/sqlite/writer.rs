//! The shell: one writer thread with group commit, and a few read-only connections.
//!
//! Whatever waits when the writer is free goes into one transaction, at most [`GROUP_LEN_MAX`]
//! commands, each in a savepoint of its own; one commit (one fsync) makes them last, and only then are
//! they answered. A slow disk thus makes groups longer, not the queue.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use heartwatch_common::id::{ControllerId, HostId};
use heartwatch_common::time::Wall;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::files::{DB_FILE, EPOCH_FILE};
use super::{Db, backup, connect, read, roll_back};
use crate::crash;
use crate::store::{
    Appended, AttemptRow, Backlog, Begin, Cursor, DeliveryFilter, DeliveryId, DeliveryRow, Due,
    EventRow, Finish, HostRow, NewEvent, Receivers, Retention, Store, StoreError,
};

/// Commands that may wait for the writer; beyond that callers wait to hand theirs over.
pub const COMMANDS_LEN_MAX: usize = 1_024;
/// Most commands in one transaction.
pub const GROUP_LEN_MAX: usize = 100;
/// Most reads at once.
pub const READERS_MAX: usize = 4;

/// Sends an answer, once it is known whether the group was committed.
type Reply = Box<dyn FnOnce(Result<(), StoreError>)>;
/// Runs one operation, or none if the group could not begin.
type Command = Box<dyn FnOnce(Result<&Db, StoreError>) -> Reply + Send>;

/// The embedded store. Cheap reads run beside the writes; see the module.
#[derive(Debug)]
pub struct SqliteStore {
    controller: ControllerId,
    epoch: u64,
    path: PathBuf,
    commands: Mutex<Option<mpsc::Sender<Command>>>,
    stopped: tokio::sync::Mutex<Option<oneshot::Receiver<()>>>,
    readers: Arc<Mutex<Vec<Connection>>>,
    reading: Arc<Semaphore>,
    #[cfg(test)]
    broken: std::sync::atomic::AtomicBool,
}

fn stopped() -> StoreError {
    StoreError::Unavailable("the store is shut down".to_owned())
}

impl SqliteStore {
    /// Opens or creates the store in `state_dir` and starts its writer. `fresh` becomes the
    /// controller's identity if there was none.
    ///
    /// # Errors
    /// [`StoreError::Open`]; see [`Db::open`].
    pub fn open(state_dir: &Path, fresh: ControllerId) -> Result<Self, StoreError> {
        let path = state_dir.join(DB_FILE);
        let db = Db::open(&path, &state_dir.join(EPOCH_FILE), fresh)?;
        let (controller, epoch) = (db.controller(), db.epoch());
        let (commands, queue) = mpsc::channel(COMMANDS_LEN_MAX);
        let (stop, stopped) = oneshot::channel();
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                write(&db, queue);
                drop(db);
                if stop.send(()).is_err() {
                    log::debug!("store: the writer has ended, nobody waits for it");
                }
            })
            .map_err(|e| StoreError::Open(format!("cannot start the writer thread: {e}")))?;
        Ok(Self {
            controller,
            epoch,
            path,
            commands: Mutex::new(Some(commands)),
            stopped: tokio::sync::Mutex::new(Some(stopped)),
            readers: Arc::new(Mutex::new(Vec::new())),
            reading: Arc::new(Semaphore::new(READERS_MAX)),
            #[cfg(test)]
            broken: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// The store epoch: the upper part of every token handed out.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes no more writes, finishes those that wait, folds the log into the database and lets go of
    /// the state directory. Later calls are answered [`StoreError::Unavailable`].
    pub async fn shutdown(&self) {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        drop(self.commands.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(stopped) = self.stopped.lock().await.take()
            && stopped.await.is_err()
        {
            log::error!("store: the writer died before it was told to stop");
        }
    }

    /// Lets go of caches: what a start or a rush has read stays in memory otherwise, some 10 MB. Whoever
    /// comes next finds it in the system's cache.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the writer is not there.
    pub async fn slim(&self) -> Result<(), StoreError> {
        let readers = Arc::clone(&self.readers);
        self.write(move |db| {
            // Connections of those who read just now come back later, and go the next time.
            readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
            Ok(db.c.execute_batch("PRAGMA shrink_memory")?)
        })
        .await
    }

    /// Makes every write fail as on a full disk, or succeed again.
    #[cfg(test)]
    pub(crate) fn break_writes(&self, broken: bool) {
        self.broken.store(broken, std::sync::atomic::Ordering::Relaxed);
    }

    pub(super) async fn write<T: Send + 'static>(
        &self,
        operation: impl FnOnce(&Db) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        #[cfg(test)]
        if self.broken.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(StoreError::Unavailable("broken by a test".to_owned()));
        }
        let sender = self.commands.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |db| {
            let result = db.and_then(operation);
            Box::new(move |committed| {
                // A caller that went away has its write all the same; it is idempotent.
                drop(answer.send(result.and_then(|value| committed.map(|()| value))));
            })
        });
        let sender = sender.ok_or_else(stopped)?;
        if sender.send(command).await.is_err() {
            return Err(StoreError::Unavailable(
                "the store's writer has died: restart the controller".to_owned(),
            ));
        }
        drop(sender);
        answered.await.unwrap_or(Err(StoreError::Unknown))
    }

    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = Arc::clone(&self.reading).acquire_owned().await.map_err(|_| stopped())?;
        let (path, readers) = (self.path.clone(), Arc::clone(&self.readers));
        let task = tokio::task::spawn_blocking(move || {
            let free = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let c = match free {
                Some(c) => c,
                None => reader(&path)?,
            };
            let answer = question(&c);
            if answer.is_ok() {
                readers.lock().unwrap_or_else(PoisonError::into_inner).push(c);
            }
            drop(permit);
            answer
        });
        match task.await {
            Ok(answer) => answer,
            Err(e) => Err(StoreError::Unavailable(format!("a read was broken off: {e}"))),
        }
    }
}

fn reader(path: &Path) -> Result<Connection, StoreError> {
    let c = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // A checkpoint may hold readers up for a moment, never for long.
    c.busy_timeout(Duration::from_secs(5))?;
    c.execute_batch("PRAGMA query_only = ON; PRAGMA cache_size = -1000;")?;
    Ok(c)
}

fn write(db: &Db, mut queue: mpsc::Receiver<Command>) {
    let mut group = Vec::with_capacity(GROUP_LEN_MAX);
    while let Some(first) = queue.blocking_recv() {
        group.push(first);
        while group.len() < GROUP_LEN_MAX
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        run(db, group.drain(..));
    }
    if let Err(e) = db.c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        log::warn!("store: cannot fold the log into the database: {e}");
    }
}

/// Runs commands in one transaction and answers them after its commit.
pub(super) fn run(db: &Db, commands: impl Iterator<Item = Command>) {
    let mut waiting: Vec<Reply> = Vec::new();
    for command in commands {
        if db.c.is_autocommit()
            && let Err(e) = db.c.execute_batch("BEGIN IMMEDIATE")
        {
            let e = StoreError::from(e);
            command(Err(e.clone()))(Err(e));
            continue;
        }
        waiting.push(command(Ok(db)));
        if db.c.is_autocommit() {
            // A full disk made SQLite roll back everything, not only this one's savepoint.
            let text = "the disk is full or failing: a write of the same group could not be made";
            for reply in waiting.drain(..) {
                reply(Err(StoreError::Unavailable(text.to_owned())));
            }
        }
    }
    if waiting.is_empty() {
        roll_back(&db.c);
        return;
    }
    crash::pass("commit");
    let committed = db.c.execute_batch("COMMIT").map_err(StoreError::from);
    if committed.is_err() {
        roll_back(&db.c);
    }
    for reply in waiting {
        reply(committed.clone());
    }
}

#[async_trait]
impl Store for SqliteStore {
    fn controller(&self) -> ControllerId {
        self.controller
    }

    async fn hosts(&self, after: Option<HostId>, limit: usize) -> Result<Vec<HostRow>, StoreError> {
        self.read(move |c| read::hosts_after(c, after, limit)).await
    }

    async fn record(
        &self,
        rows: Arc<[HostRow]>,
        events: Arc<[NewEvent]>,
    ) -> Result<Vec<Appended>, StoreError> {
        self.write(move |db| db.record(&rows, &events)).await
    }

    async fn save_hosts(&self, rows: Vec<HostRow>) -> Result<(), StoreError> {
        self.write(move |db| db.save_hosts(&rows)).await
    }

    async fn append(&self, events: Vec<NewEvent>) -> Result<Vec<Appended>, StoreError> {
        self.write(move |db| db.append(&events)).await
    }

    async fn forget(&self, host: HostId, event: NewEvent) -> Result<bool, StoreError> {
        self.write(move |db| db.forget(host, &event)).await
    }

    async fn pending(
        &self,
        receiver: &str,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Due>, StoreError> {
        let receiver = receiver.to_owned();
        self.read(move |c| read::pending(c, &receiver, after, limit)).await
    }

    async fn begin_attempt(&self, id: DeliveryId, at: Wall) -> Result<Begin, StoreError> {
        self.write(move |db| db.begin_attempt(id, at)).await
    }

    async fn finish_attempt(&self, id: DeliveryId, finish: Finish) -> Result<Vec<Due>, StoreError> {
        self.write(move |db| db.finish_attempt(id, &finish)).await
    }

    async fn release(
        &self,
        host: HostId,
        which: Receivers,
        verdict: Result<(), String>,
        at: Wall,
    ) -> Result<Vec<Due>, StoreError> {
        self.write(move |db| db.release(host, &which, verdict, at)).await
    }

    async fn release_placed(
        &self,
        host: HostId,
        which: Receivers,
        data: Map<String, Value>,
        at: Wall,
    ) -> Result<Vec<Due>, StoreError> {
        self.write(move |db| db.release_placed(host, &which, &data, at)).await
    }

    async fn held_hosts(&self) -> Result<Vec<HostId>, StoreError> {
        self.read(read::held_hosts).await
    }

    async fn redrive(&self, id: DeliveryId, at: Wall) -> Result<Option<Due>, StoreError> {
        self.write(move |db| db.redrive(id, at)).await
    }

    async fn cancel(&self, id: DeliveryId, reason: String, at: Wall) -> Result<bool, StoreError> {
        self.write(move |db| db.cancel(id, &reason, at)).await
    }

    async fn events(
        &self,
        after: Cursor,
        host: Option<HostId>,
        limit: usize,
    ) -> Result<Vec<EventRow>, StoreError> {
        self.read(move |c| read::events(c, after, host, limit)).await
    }

    async fn events_of(&self, host: HostId, limit: usize) -> Result<Vec<EventRow>, StoreError> {
        self.read(move |c| read::events_of(c, host, limit)).await
    }

    async fn head(&self) -> Result<Cursor, StoreError> {
        self.read(read::head).await
    }

    async fn deliveries(
        &self,
        filter: DeliveryFilter,
        limit: usize,
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        self.read(move |c| read::deliveries(c, &filter, limit)).await
    }

    async fn attempts(&self, id: DeliveryId) -> Result<Vec<AttemptRow>, StoreError> {
        self.read(move |c| read::attempts(c, id)).await
    }

    async fn backlog(&self) -> Result<Backlog, StoreError> {
        self.read(read::backlog).await
    }

    async fn prune(&self, retention: Retention, now: Wall) -> Result<u64, StoreError> {
        self.write(move |db| db.prune(retention, now)).await
    }

    async fn get(&self, key: &str) -> Result<Option<String>, StoreError> {
        let key = key.to_owned();
        self.read(move |c| read::get(c, &key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, String)>, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |c| read::list(c, &prefix)).await
    }

    async fn put(&self, key: &str, value: Option<String>) -> Result<(), StoreError> {
        let key = key.to_owned();
        self.write(move |db| db.put(&key, value.as_deref())).await
    }

    async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let (path, to) = (self.path.clone(), to.to_owned());
        // A connection of its own: `query_only` connections may not VACUUM, and a copy of a large
        // store takes long enough to be in the way of other reads.
        let copy = move || backup::backup(&connect(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?, &to);
        tokio::task::spawn_blocking(copy)
            .await
            .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("the backup broke off: {e}"))))
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.write(Db::check).await
    }
}
