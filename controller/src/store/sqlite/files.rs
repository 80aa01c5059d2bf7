//! What lies beside the database: the lock, the epoch, and how files are written for good.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::store::StoreError;

/// The database in the state directory.
pub const DB_FILE: &str = "heartwatch.db";
/// The store epoch, decimal, in the state directory.
pub const EPOCH_FILE: &str = "store-epoch";
/// Locked by the controller that runs; holds its pid. In the state directory.
pub const LOCK_FILE: &str = "lock";

/// A decimal number of 64 bits and a line end fit.
const SMALL_FILE_LEN_MAX: u64 = 32;

/// The state directory is ours for as long as this lives; the kernel ends it with the process, however
/// that dies.
pub(super) type Lock = Flock<File>;

pub(super) fn cannot(verb: &str, path: &Path, e: &std::io::Error) -> StoreError {
    StoreError::Open(format!("cannot {verb} {}: {e}", path.display()))
}

/// The directory that a file lies in.
pub(super) fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Locks the directory of `db` against a second controller, without waiting.
pub(super) fn lock(db: &Path) -> Result<Lock, StoreError> {
    let path = dir_of(db).join(LOCK_FILE);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| cannot("open", &path, &e))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut held) => {
            let pid = format!("{}\n", std::process::id());
            held.set_len(0)
                .and_then(|()| held.write_all(pid.as_bytes()))
                .map_err(|e| cannot("write", &path, &e))?;
            Ok(held)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            let pid = small_file(&path).ok().flatten();
            let pid = pid.map_or_else(String::new, |p| format!(" (pid {})", p.trim()));
            Err(StoreError::Open(format!(
                "{} is locked by a running controller{pid}: stop it first",
                path.display()
            )))
        }
        Err((_, errno)) => Err(cannot("lock", &path, &errno.into())),
    }
}

/// Makes the file if it is not there, for its owner alone; SQLite's own files take over its mode.
pub(super) fn create(path: &Path) -> Result<(), StoreError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|e| cannot("open", path, &e))
}

fn small_file(path: &Path) -> std::io::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut text = String::new();
    file.take(SMALL_FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// The epoch in the file, if there is one.
pub(super) fn read_epoch(path: &Path) -> Result<Option<u64>, StoreError> {
    let Some(text) = small_file(path).map_err(|e| cannot("read", path, &e))? else {
        return Ok(None);
    };
    text.trim().parse().map(Some).map_err(|_| {
        StoreError::Open(format!(
            "{} does not hold a number: write into it one above the highest epoch ever used here \
             (a fencing token divided by 4294967296)",
            path.display()
        ))
    })
}

/// Puts the epoch into the file; when this returns it is on the disk.
pub(super) fn write_epoch(path: &Path, epoch: u64) -> Result<(), StoreError> {
    let new = with_suffix(path, ".new");
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        writeln!(file, "{epoch}")?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        sync_dir(path)
    };
    write().map_err(|e| cannot("write", path, &e))
}

/// Makes what happened to the names in a file's directory lasting.
pub(super) fn sync_dir(path: &Path) -> std::io::Result<()> {
    File::open(dir_of(path))?.sync_all()
}

/// `path` with `suffix` at its end.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Removes a file that may not be there.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
