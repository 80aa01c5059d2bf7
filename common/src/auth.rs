//! Why a datagram may be believed: fleet secrets, host keys, tags.
//!
//! The controller holds *fleet secrets*, each with a key id so that they can be rotated. A host holds
//! one key, derived from a fleet secret, that key id, its own id and a generation number:
//!
//! ```text
//! host key = BLAKE3-keyed(fleet secret, "heartwatch host key 1" ‖ key id (1) ‖ generation (2, BE) ‖ host id (16))
//! tag      = first 16 bytes of BLAKE3-keyed(host key, datagram without its tag)
//! ```
//!
//! So a stolen host key speaks for that host alone, the controller needs no table of keys (deriving one
//! costs one BLAKE3 block), and a host is cut off by raising its generation. Source of the keyed mode:
//! the BLAKE3 paper, §2.3 (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020). Directions cannot be
//! confused: the kind of a datagram is under the tag, and no kind is valid both ways.

use std::fmt;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::id::{Generation, HostId, KeyId};
use crate::wire::{Datagram, TAG_LEN};

const DERIVE_CONTEXT: &[u8; 21] = b"heartwatch host key 1";
/// A secret file larger than this is not a secret file.
const SECRET_FILE_LEN_MAX: u64 = 64 * 1024;

/// A key as text is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyTextError {
    /// Not of the form of a host key.
    #[error(
        "a host key looks like `hwk1:KEY_ID:GENERATION:64 hex digits`, as `heartwatchctl key` prints it"
    )]
    HostKey,
    /// Not of the form of a fleet secret.
    #[error("a fleet secret looks like `hwf1:KEY_ID:64 hex digits`")]
    FleetSecret,
    /// A keyring without a secret, or with one key id twice.
    #[error("a fleet secret file needs at least one secret, and each key id once")]
    Keyring,
}

/// A host's own key, with the numbers that say which one it is.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct HostKey {
    #[zeroize(skip)]
    key_id: KeyId,
    #[zeroize(skip)]
    generation: Generation,
    bytes: [u8; 32],
}

impl HostKey {
    /// Which fleet secret it was derived from.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// Its generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Writes the tag over the last 16 bytes of an encoded datagram.
    ///
    /// # Panics
    /// If `datagram` is shorter than a tag: encoders never make such a thing.
    pub fn seal(&self, datagram: &mut [u8]) {
        let (signed, tag) =
            datagram.split_last_chunk_mut::<TAG_LEN>().expect("encoders leave room for the tag");
        tag.copy_from_slice(&self.tag(signed));
    }

    /// Whether the datagram's tag is right, in constant time.
    pub fn verify(&self, datagram: &Datagram<'_>) -> bool {
        use subtle::ConstantTimeEq;
        self.tag(datagram.signed).ct_eq(datagram.tag).into()
    }

    fn tag(&self, signed: &[u8]) -> [u8; TAG_LEN] {
        let hash = blake3::keyed_hash(&self.bytes, signed);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&hash.as_bytes()[..TAG_LEN]);
        tag
    }

    /// The text form, for provisioning: secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.bytes));
        Zeroizing::new(format!("hwk1:{}:{}:{}", self.key_id, self.generation, *digits))
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey(id {}, generation {}, secret)", self.key_id, self.generation)
    }
}

impl FromStr for HostKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let mut parts = text.trim().split(':');
        let (Some("hwk1"), Some(id), Some(generation), Some(digits), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(KeyTextError::HostKey);
        };
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyTextError::HostKey)?;
        Ok(Self {
            key_id: KeyId(id.parse().map_err(|_| KeyTextError::HostKey)?),
            generation: Generation(generation.parse().map_err(|_| KeyTextError::HostKey)?),
            bytes,
        })
    }
}

/// One secret of the fleet, from which host keys are derived.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct FleetSecret {
    #[zeroize(skip)]
    key_id: KeyId,
    bytes: [u8; 32],
}

impl FleetSecret {
    /// A secret made of 32 bytes from a cryptographic source.
    pub fn new(key_id: KeyId, bytes: [u8; 32]) -> Self {
        Self { key_id, bytes }
    }

    /// Derives one host's key.
    pub fn host_key(&self, host: HostId, generation: Generation) -> HostKey {
        let mut input = [0; 40];
        input[..21].copy_from_slice(DERIVE_CONTEXT);
        input[21] = self.key_id.0;
        input[22..24].copy_from_slice(&generation.0.to_be_bytes());
        input[24..].copy_from_slice(&host.0);
        let bytes = *blake3::keyed_hash(&self.bytes, &input).as_bytes();
        HostKey { key_id: self.key_id, generation, bytes }
    }

    /// The text form, one line of a fleet secret file: secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(hex::encode(self.bytes));
        Zeroizing::new(format!("hwf1:{}:{}", self.key_id, *digits))
    }
}

impl fmt::Debug for FleetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FleetSecret(id {}, secret)", self.key_id)
    }
}

impl FromStr for FleetSecret {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let mut parts = text.trim().split(':');
        let (Some("hwf1"), Some(id), Some(digits), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(KeyTextError::FleetSecret);
        };
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| KeyTextError::FleetSecret)?;
        Ok(Self { key_id: KeyId(id.parse().map_err(|_| KeyTextError::FleetSecret)?), bytes })
    }
}

/// All fleet secrets that are still good; the first is the one for new keys.
#[derive(Clone, Debug)]
pub struct Keyring(Vec<FleetSecret>);

impl Keyring {
    /// A ring of at least one secret with distinct key ids.
    pub fn new(secrets: Vec<FleetSecret>) -> Result<Self, KeyTextError> {
        let mut ids: Vec<KeyId> = secrets.iter().map(|s| s.key_id).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() || ids.len() != secrets.len() {
            return Err(KeyTextError::Keyring);
        }
        Ok(Self(secrets))
    }

    /// The secret from which new keys are derived.
    pub fn current(&self) -> &FleetSecret {
        &self.0[0]
    }

    /// The key of a host under the secret with that id, if there is one.
    pub fn host_key(&self, key_id: KeyId, host: HostId, generation: Generation) -> Option<HostKey> {
        self.0.iter().find(|s| s.key_id == key_id).map(|s| s.host_key(host, generation))
    }
}

impl FromStr for Keyring {
    type Err = KeyTextError;

    /// One secret a line; blank lines and lines that start with `#` are skipped.
    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        Self::new(lines.map(FleetSecret::from_str).collect::<Result<_, _>>()?)
    }
}

/// A secret could not be read from its file.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// The file system said no.
    #[error("cannot read the secret file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others than its owner may read it.
    #[error(
        "the secret file {path} has mode {mode:03o}: only its owner may read it, run `chmod 600 {path}`"
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Its content is not what was expected.
    #[error("the secret file {path} is not usable")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyTextError,
    },
    /// Its content is not text, or far too long for a secret.
    #[error("the secret file {path} is not a short text file")]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a secret file after checking that nobody but its owner can (group read is allowed only to
/// root's own groups by way of systemd credentials, which are mode 0400 and so pass).
pub fn read_secret_file(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let io = |source| SecretFileError::Io { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Mode { path: path.to_owned(), mode });
    }
    if !meta.is_file() || meta.len() > SECRET_FILE_LEN_MAX {
        return Err(SecretFileError::NotText { path: path.to_owned() });
    }
    let mut text = Zeroizing::new(String::new());
    file.by_ref().take(SECRET_FILE_LEN_MAX).read_to_string(&mut text).map_err(|e| {
        match e.kind() {
            std::io::ErrorKind::InvalidData => SecretFileError::NotText { path: path.to_owned() },
            _ => io(e),
        }
    })?;
    Ok(text)
}

/// Reads and parses a secret file: a [`HostKey`] or a [`Keyring`].
pub fn load_secret<T: FromStr<Err = KeyTextError>>(path: &Path) -> Result<T, SecretFileError> {
    let text = read_secret_file(path)?;
    text.parse().map_err(|source| SecretFileError::Content { path: path.to_owned(), source })
}

/// Creates a secret file that only its owner can read; fails if it exists.
pub fn create_secret_file(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn secret(id: u8) -> FleetSecret {
        FleetSecret::new(KeyId(id), [id; 32])
    }

    #[test]
    fn keys_differ_by_secret_host_and_generation() {
        let a = secret(1).host_key(HostId([1; 16]), Generation(0));
        let others = [
            secret(2).host_key(HostId([1; 16]), Generation(0)),
            secret(1).host_key(HostId([2; 16]), Generation(0)),
            secret(1).host_key(HostId([1; 16]), Generation(1)),
        ];
        for other in others {
            assert_ne!(a.bytes, other.bytes);
        }
    }

    #[test]
    fn keys_and_secrets_survive_their_text_form() {
        let key = secret(3).host_key(HostId([7; 16]), Generation(2));
        let back: HostKey = key.to_text().parse().unwrap();
        assert_eq!(
            (back.bytes, back.key_id, back.generation),
            (key.bytes, KeyId(3), Generation(2))
        );
        let ring: Keyring =
            format!("# fleet\n{}\n\n{}\n", *secret(2).to_text(), *secret(1).to_text())
                .parse()
                .unwrap();
        assert_eq!(ring.current().key_id, KeyId(2));
        assert!(ring.host_key(KeyId(1), HostId([0; 16]), Generation(0)).is_some());
        assert!(ring.host_key(KeyId(9), HostId([0; 16]), Generation(0)).is_none());
    }

    #[test]
    fn malformed_keys_are_refused() {
        for bad in ["", "hwk1:1:0", "hwk1:1:0:zz", "hwf1:1:00", "hwk1:300:0:00", "x:y:z:w"] {
            assert_eq!(bad.parse::<HostKey>().unwrap_err(), KeyTextError::HostKey);
            assert_eq!(bad.parse::<FleetSecret>().unwrap_err(), KeyTextError::FleetSecret);
        }
        let twice = format!("{0}\n{0}", *secret(1).to_text());
        assert_eq!(twice.parse::<Keyring>().unwrap_err(), KeyTextError::Keyring);
        assert_eq!("# none".parse::<Keyring>().unwrap_err(), KeyTextError::Keyring);
    }

    #[test]
    fn secrets_never_show_in_debug_output() {
        let shown =
            format!("{:?} {:?}", secret(1), secret(1).host_key(HostId([1; 16]), Generation(0)));
        assert!(!shown.contains("0101"), "{shown}");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet-secret");
        create_secret_file(&path, &secret(1).to_text()).unwrap();
        assert!(load_secret::<Keyring>(&path).is_ok());
        for mode in [0o644, 0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = load_secret::<Keyring>(&path).unwrap_err();
            assert!(matches!(error, SecretFileError::Mode { .. }), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn an_unreadable_or_foreign_file_is_a_clear_error() {
        let dir = tempfile::tempdir().unwrap();
        let missing = load_secret::<Keyring>(&dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, SecretFileError::Io { .. }));
        let binary = dir.path().join("binary");
        create_secret_file(&binary, "x").unwrap();
        std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
        assert!(matches!(load_secret::<Keyring>(&binary), Err(SecretFileError::NotText { .. })));
        std::fs::write(&binary, "hello").unwrap();
        assert!(matches!(load_secret::<Keyring>(&binary), Err(SecretFileError::Content { .. })));
    }
}
