//! Copies of the whole store, and how one becomes the store again.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::files::{self, DB_FILE, EPOCH_FILE, with_suffix};
use super::{EPOCH_MAX, at, connect, meta_epoch, schema, set_meta_epoch};
use crate::store::StoreError;

/// Writes a consistent copy to `to`, which must not exist; it appears there only when it is whole and
/// on the disk. Reads from `c` alone, so a read-only connection will do.
pub(super) fn backup(c: &Connection, to: &Path) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| {
        StoreError::Unavailable(format!("cannot write the backup {}: {e}", to.display()))
    };
    if to.symlink_metadata().is_ok() {
        let text = format!("{} exists: a backup never overwrites", to.display());
        return Err(StoreError::Invalid(text));
    }
    let partial = with_suffix(to, ".partial");
    files::remove(&partial).map_err(failed)?;
    let Some(name) = partial.to_str() else {
        return Err(StoreError::Invalid(format!("{} is not a UTF-8 path", to.display())));
    };
    let written = write_copy(c, name, &partial).and_then(|()| {
        // A link fails if the name exists, where a rename would overwrite.
        std::fs::hard_link(&partial, to).map_err(failed)
    });
    let removed = files::remove(&partial).map_err(failed);
    written?;
    removed?;
    files::sync_dir(to).map_err(failed)
}

fn write_copy(c: &Connection, name: &str, partial: &Path) -> Result<(), StoreError> {
    let io = |e: std::io::Error| {
        StoreError::Unavailable(format!("cannot write {}: {e}", partial.display()))
    };
    // An empty file is a valid target; made first so that nobody else can read what comes into it.
    let file = File::create_new(partial).map_err(io)?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
    c.execute("VACUUM INTO ?1", [name])?;
    file.sync_all().map_err(io)
}

/// Makes the backup the store in `state_dir`. The controller must be stopped. The store epoch rises
/// above every one seen, so that tokens of the lost history are never handed out again. On error the
/// present store is still there.
///
/// # Errors
/// [`StoreError::Open`] if a controller runs, or the backup is damaged, not one of ours or of a newer
/// version.
pub fn restore(backup: &Path, state_dir: &Path) -> Result<(), StoreError> {
    let db = state_dir.join(DB_FILE);
    let epoch_file = state_dir.join(EPOCH_FILE);
    let _lock = files::lock(&db)?;
    let staged = with_suffix(&db, ".restore");
    let result = stage(backup, &staged, &db, &epoch_file)
        .and_then(|()| put_in_place(&staged, &db).map_err(|e| files::cannot("replace", &db, &e)));
    if result.is_err()
        && let Err(e) = files::remove(&staged)
    {
        log::warn!("store: cannot remove {}: {e}", staged.display());
    }
    result
}

/// Copies the backup beside the database, checks it, and raises its epoch.
fn stage(backup: &Path, staged: &Path, db: &Path, epoch_file: &Path) -> Result<(), StoreError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let stale = with_suffix(staged, suffix);
        files::remove(&stale).map_err(|e| files::cannot("remove", &stale, &e))?;
    }
    copy(backup, staged)?;
    let c = connect(staged, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let wrong = at(backup);
    let verdict: String = c
        .query_row("PRAGMA quick_check", [], |r| r.get(0))
        .map_err(|e| wrong(StoreError::Open(format!("not a usable backup: {e}"))))?;
    if verdict != "ok" {
        return Err(wrong(StoreError::Open(format!("the backup is damaged: {verdict}"))));
    }
    if schema::version(&c).map_err(&wrong)? == 0 {
        return Err(wrong(StoreError::Open("not a backup of a Heartwatch store".to_owned())));
    }
    schema::migrate(&c).map_err(&wrong)?;
    // The present database may be what is broken: whatever it cannot say does not count.
    let present = present_epoch(db).unwrap_or(0);
    let filed = files::read_epoch(epoch_file)?.unwrap_or(0);
    let epoch = present.max(filed).max(meta_epoch(&c).map_err(&wrong)?) + 1;
    if epoch > EPOCH_MAX {
        return Err(StoreError::Open(format!("the store epoch {epoch} is beyond {EPOCH_MAX}")));
    }
    set_meta_epoch(&c, epoch).map_err(&wrong)?;
    c.close().map_err(|(_, e)| wrong(e.into()))?;
    File::open(staged)
        .and_then(|f| f.sync_all())
        .map_err(|e| files::cannot("write", staged, &e))?;
    files::write_epoch(epoch_file, epoch)
}

fn copy(backup: &Path, staged: &Path) -> Result<(), StoreError> {
    let cannot_write = |e: std::io::Error| files::cannot("write", staged, &e);
    let mut from = File::open(backup).map_err(|e| files::cannot("open", backup, &e))?;
    let mut to = File::create_new(staged).map_err(cannot_write)?;
    to.set_permissions(Permissions::from_mode(0o600)).map_err(cannot_write)?;
    std::io::copy(&mut from, &mut to).map_err(cannot_write)?;
    to.sync_all().map_err(cannot_write)
}

/// The epoch of the database that is about to be replaced; folds its log into it on the way, so that
/// the file alone is whole should the power fail before the new one is in place.
fn present_epoch(db: &Path) -> Option<u64> {
    let c = connect(db, OpenFlags::SQLITE_OPEN_READ_WRITE).ok()?;
    let epoch = meta_epoch(&c).ok();
    if let Err(e) = c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
        log::warn!("store: cannot fold the log into {}: {e}", db.display());
    }
    epoch
}

fn put_in_place(staged: &Path, db: &Path) -> std::io::Result<()> {
    // First the old log: beside the new database it would be replayed into it.
    for suffix in ["-wal", "-shm", "-journal"] {
        files::remove(&with_suffix(db, suffix))?;
    }
    files::sync_dir(db)?;
    std::fs::rename(staged, db)?;
    files::sync_dir(db)
}
