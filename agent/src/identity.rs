//! Who this host is: its id, its key, its boot number.
//!
//! **Host id.** The machine id must not go on the network (machine-id(5)), so the id is derived
//! from it:
//!
//! ```text
//! host id = first 16 bytes of HMAC-SHA256(key = machine id, 16 bytes; message = APP_ID, 16 bytes)
//! ```
//!
//! the construction of `sd_id128_get_machine_app_specific`, but with all 128 bits kept: no UUID
//! version or variant is written over six of them.
//!
//! **Boot number.** `max(stored + 1, seconds since 2020-01-01 by the wall clock)`, stored before
//! the first beat. So it rises with every start even if the clock steps back, and it rises by way
//! of the clock if the state folder is lost. Written to a temporary file, synced, renamed: a crash
//! leaves the old or the new number, never half of one.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use heartwatch_common::auth::{HostKey, SecretFileError, load_secret};
use heartwatch_common::id::{Boot, HostId};
use heartwatch_common::time::Wall;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What makes the id Heartwatch's own; never to be changed.
pub const APP_ID: [u8; 16] = [
    0x5e, 0x1b, 0x6a, 0xd0, 0x9c, 0x47, 0x4f, 0x0e, 0xb3, 0x82, 0x2f, 0x71, 0xd8, 0x04, 0xc6, 0x9a,
];
/// Where systemd keeps the machine id.
pub const MACHINE_ID_PATH: &str = "/etc/machine-id";
/// An operating system's name is cut to this many bytes before it goes into a hello.
pub const OS_LEN_MAX: usize = 64;
/// Stands for the longest operating system's name when the length of a hello is checked.
pub(crate) const OS_LEN_WORST: &str =
    "oooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooooo";

/// 2020-01-01T00:00:00Z in seconds since 1970.
const BOOT_ORIGIN: i64 = 1_577_836_800;
/// A file longer than this is none of the small ones read here.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Who this host is cannot be found out, or its boot number cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The machine id cannot be read.
    #[error(
        "cannot read the machine id from {path}: run `systemd-machine-id-setup`, or set `host_id`"
    )]
    MachineIdIo {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The machine id is empty or says "uninitialized": the first boot has not come that far.
    #[error(
        "the machine id in {path} is not initialised yet: run `systemd-machine-id-setup` and start \
         again, or set `host_id`"
    )]
    MachineIdUninitialised {
        /// The file.
        path: PathBuf,
    },
    /// The machine id is something else.
    #[error(
        "the machine id in {path} is not 32 hexadecimal digits: run `systemd-machine-id-setup`, or \
         set `host_id`"
    )]
    MachineIdMalformed {
        /// The file.
        path: PathBuf,
    },
    /// The host's key cannot be had.
    #[error(
        "there is no usable key for this host: put what `heartwatchctl key HOST_ID` prints into \
         {path}, mode 600, or set `key_file`"
    )]
    Key {
        /// The file that was tried.
        path: PathBuf,
        /// What is wrong with it.
        source: SecretFileError,
    },
    /// The boot number cannot be kept.
    #[error(
        "cannot write {path}: the agent must keep its boot number there, make the folder writable \
         for it or set `state_dir`"
    )]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

fn read_small(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// The host id that belongs to the machine id in `path`.
pub fn host_id(path: &Path) -> Result<HostId, IdentityError> {
    let text = read_small(path)
        .map_err(|source| IdentityError::MachineIdIo { path: path.to_owned(), source })?;
    match machine_id(text.trim()) {
        Ok(id) => Ok(derive(&id)),
        Err(NoMachineId::Uninitialised) => {
            Err(IdentityError::MachineIdUninitialised { path: path.to_owned() })
        }
        Err(NoMachineId::Malformed) => {
            Err(IdentityError::MachineIdMalformed { path: path.to_owned() })
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum NoMachineId {
    Uninitialised,
    Malformed,
}

fn machine_id(text: &str) -> Result<[u8; 16], NoMachineId> {
    if text.is_empty() || text == "uninitialized" || text.bytes().all(|b| b == b'0') {
        return Err(NoMachineId::Uninitialised);
    }
    if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(NoMachineId::Malformed);
    }
    let number = u128::from_str_radix(text, 16).map_err(|_| NoMachineId::Malformed)?;
    Ok(number.to_be_bytes())
}

fn derive(machine_id: &[u8; 16]) -> HostId {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(machine_id)
        .expect("HMAC takes keys of any length");
    mac.update(&APP_ID);
    let digest = mac.finalize().into_bytes();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    HostId(id)
}

/// Where the key is: as configured, else systemd's credential of the name `key` if there is one,
/// else `key` in the state folder.
pub fn key_path(
    configured: Option<&Path>,
    credentials: Option<&Path>,
    state_dir: &Path,
) -> PathBuf {
    let credential = credentials.map(|dir| dir.join("key")).filter(|path| path.exists());
    configured.map(Path::to_owned).or(credential).unwrap_or_else(|| state_dir.join("key"))
}

/// Reads the host's key; refuses a file that others may read.
pub fn host_key(path: &Path) -> Result<HostKey, IdentityError> {
    load_secret(path).map_err(|source| IdentityError::Key { path: path.to_owned(), source })
}

/// Takes the next boot number and stores it, durably, before it is returned. Creates the state
/// folder (mode 0700) if it is missing.
///
/// A stored number that cannot be read costs a warning: the wall clock then decides alone.
pub fn next_boot(state_dir: &Path, wall: Wall) -> Result<Boot, IdentityError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::State { path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(error(state_dir))?;
    let path = state_dir.join("boot");
    let stored = stored_boot(&path);
    let by_clock = u32::try_from((wall.as_secs() - BOOT_ORIGIN).max(0)).unwrap_or(u32::MAX);
    let boot = stored.map_or(0, |n| n.saturating_add(1)).max(by_clock).max(1);
    let new = state_dir.join("boot.new");
    let store = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(format!("{boot}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        // The rename itself must survive a power cut too.
        File::open(state_dir)?.sync_all()
    };
    store().map_err(error(&path))?;
    Ok(Boot(boot))
}

fn stored_boot(path: &Path) -> Option<u32> {
    let text = match read_small(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => {
            log::warn!("cannot read {}, the clock decides the boot number: {e}", path.display());
            return None;
        }
    };
    let number = text.trim().parse().ok();
    if number.is_none() {
        log::warn!("{} holds no number, the clock decides the boot number", path.display());
    }
    number
}

/// The operating system's name from the text of os-release(5), at most [`OS_LEN_MAX`] bytes.
pub fn os_name(os_release: &str) -> String {
    let value = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let value = value.trim().trim_matches(['"', '\'']);
    let mut name: String = value.chars().filter(|c| !c.is_control()).collect();
    while name.len() > OS_LEN_MAX {
        name.pop();
    }
    name
}

/// The operating system's name, for people.
pub fn os() -> String {
    let text = ["/etc/os-release", "/usr/lib/os-release"]
        .iter()
        .find_map(|path| read_small(Path::new(path)).ok());
    os_name(&text.unwrap_or_default())
}

/// The system's host name; `localhost` if it has none.
pub fn hostname() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok());
    name.filter(|n| !n.is_empty()).unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const WALL: Wall = Wall(1_800_000_000_000);
    const BY_CLOCK: u32 = (1_800_000_000 - BOOT_ORIGIN) as u32;

    #[test]
    fn the_host_id_is_derived_and_never_the_machine_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        fs::write(&path, "8a4e3b1c5d6f70819203a4b5c6d7e8f9\n").unwrap();
        let id = host_id(&path).unwrap();
        // Computed independently with Python's hmac and hashlib.
        assert_eq!(id.to_string(), "90be009b7f338807899f999c9d21ff3a");
        fs::write(&path, "8a4e3b1c5d6f70819203a4b5c6d7e8fa\n").unwrap();
        assert_ne!(host_id(&path).unwrap(), id);
    }

    #[test]
    fn a_machine_id_that_is_none_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        let error = host_id(&path).unwrap_err();
        assert!(matches!(error, IdentityError::MachineIdIo { .. }));
        for (text, what) in [
            ("", "not initialised"),
            ("uninitialized\n", "not initialised"),
            ("00000000000000000000000000000000", "not initialised"),
            ("8a4e", "32 hexadecimal"),
            ("+a4e3b1c5d6f70819203a4b5c6d7e8f9", "32 hexadecimal"),
            ("8a4e3b1c-5d6f-7081-9203-a4b5c6d7e8f9", "32 hexadecimal"),
        ] {
            fs::write(&path, text).unwrap();
            let error = host_id(&path).unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("host_id"), "{text:?}: {error}");
        }
    }

    #[test]
    fn the_boot_number_rises_even_if_the_clock_steps_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("made/on/the/way");
        assert_eq!(next_boot(&state, WALL).unwrap(), Boot(BY_CLOCK));
        assert_eq!(next_boot(&state, WALL).unwrap(), Boot(BY_CLOCK + 1));
        assert_eq!(next_boot(&state, Wall(WALL.0 - 3_600_000)).unwrap(), Boot(BY_CLOCK + 2));
        assert_eq!(next_boot(&state, Wall(0)).unwrap(), Boot(BY_CLOCK + 3));
        assert_eq!(next_boot(&state, Wall(WALL.0 + 60_000)).unwrap(), Boot(BY_CLOCK + 60));
    }

    #[test]
    fn without_state_and_clock_it_is_still_a_number() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(next_boot(dir.path(), Wall(i64::MIN)).unwrap(), Boot(1));
        fs::write(dir.path().join("boot"), u32::MAX.to_string()).unwrap();
        assert_eq!(next_boot(dir.path(), WALL).unwrap(), Boot(u32::MAX));
    }

    #[test]
    fn a_broken_state_file_leaves_it_to_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        for broken in [&b""[..], b"x", b"-1", b"99999999999", &[0xff, 0xfe]] {
            fs::write(dir.path().join("boot"), broken).unwrap();
            assert_eq!(next_boot(dir.path(), WALL).unwrap(), Boot(BY_CLOCK), "{broken:?}");
        }
    }

    #[test]
    fn a_state_folder_that_cannot_be_written_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        // A file in the way of the folder, and a folder in the way of the file: both stop root too.
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = next_boot(&file.join("state"), WALL).unwrap_err().to_string();
        assert!(error.contains("file/state") && error.contains("state_dir"), "{error}");
        fs::create_dir_all(dir.path().join("boot/occupied")).unwrap();
        let error = next_boot(dir.path(), WALL).unwrap_err().to_string();
        assert!(error.contains("boot"), "{error}");
    }

    #[test]
    fn the_key_is_looked_for_where_it_was_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let (state, credentials) = (dir.path().join("state"), dir.path().join("cred"));
        fs::create_dir_all(&credentials).unwrap();
        let found = |configured: Option<&Path>| key_path(configured, Some(&credentials), &state);
        assert_eq!(found(None), state.join("key"), "no such credential");
        fs::write(credentials.join("key"), "").unwrap();
        assert_eq!(found(None), credentials.join("key"));
        assert_eq!(found(Some(Path::new("/else"))), Path::new("/else"));
    }

    #[test]
    fn a_key_that_cannot_be_used_says_where_to_get_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(host_key(&path).unwrap_err().to_string().contains("heartwatchctl key"));
        fs::write(&path, format!("hwk1:1:0:{}\n", "ab".repeat(32))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = host_key(&path).unwrap_err();
        assert!(matches!(error, IdentityError::Key { source: SecretFileError::Mode { .. }, .. }));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(host_key(&path).is_ok());
    }

    #[test]
    fn the_operating_system_is_named_as_people_know_it() {
        assert_eq!(os_name("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 13\"\n"), "Debian GNU/Linux 13");
        assert_eq!(os_name(""), "Linux");
        assert_eq!(os_name(&format!("PRETTY_NAME={}", "ü".repeat(99))).len(), OS_LEN_MAX);
        assert_eq!(OS_LEN_WORST.len(), OS_LEN_MAX);
    }
}
