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
use crate::wire::{Datagram, Foreign, TAG_LEN};

mod lanes;
mod many;

pub use many::{Verdicts, seal_many};

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
        self.is_tag(datagram.signed, datagram.tag)
    }

    /// The same of a datagram of another version.
    pub fn verify_foreign(&self, datagram: &Foreign<'_>) -> bool {
        self.is_tag(datagram.signed, datagram.tag)
    }

    fn is_tag(&self, signed: &[u8], tag: &[u8; TAG_LEN]) -> bool {
        use subtle::ConstantTimeEq;
        // As one number: sixteen bytes, each behind a barrier of its own, cost a twentieth of a beat.
        u128::from_ne_bytes(self.tag(signed)).ct_eq(&u128::from_ne_bytes(*tag)).into()
    }

    fn tag(&self, signed: &[u8]) -> [u8; TAG_LEN] {
        let hash = blake3::keyed_hash(&self.bytes, signed);
        let mut tag = [0; TAG_LEN];
        tag.copy_from_slice(&hash.as_bytes()[..TAG_LEN]);
        tag
    }

    /// A MAC for one purpose that is no datagram; see [`crate::enrol`]. `context` begins with a letter.
    pub(crate) fn mac(&self, context: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let own = Zeroizing::new(*blake3::keyed_hash(&self.bytes, context).as_bytes());
        let mut hasher = blake3::Hasher::new_keyed(&own);
        for part in parts {
            hasher.update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// Its bytes under a stream of as many.
    pub(crate) fn xored(&self, stream: &[u8; 32]) -> [u8; 32] {
        std::array::from_fn(|i| self.bytes[i] ^ stream[i])
    }

    /// The key whose [`xored`](Self::xored) bytes these are.
    pub(crate) fn sealed(
        key_id: KeyId,
        generation: Generation,
        sealed: &[u8; 32],
        stream: &[u8; 32],
    ) -> Self {
        Self { key_id, generation, bytes: std::array::from_fn(|i| sealed[i] ^ stream[i]) }
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

    /// Its number.
    pub fn key_id(&self) -> KeyId {
        self.key_id
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

/// All fleet secrets; the first is the one for new keys.
///
/// A secret is *live* (its keys beat) or *renew-only*: its keys prove nothing but that a host may have its
/// next one, so that a host that was off for a year is not locked out.
#[derive(Clone, Debug)]
pub struct Keyring {
    live: Vec<FleetSecret>,
    renew_only: Vec<FleetSecret>,
}

/// What stands behind a secret whose keys may renew but not beat.
const RENEW_ONLY: &str = "renew-only";

impl Keyring {
    /// A ring of at least one secret with distinct key ids, all live.
    pub fn new(secrets: Vec<FleetSecret>) -> Result<Self, KeyTextError> {
        Self::with(secrets, Vec::new())
    }

    fn with(live: Vec<FleetSecret>, renew_only: Vec<FleetSecret>) -> Result<Self, KeyTextError> {
        let mut ids: Vec<KeyId> = live.iter().chain(&renew_only).map(|s| s.key_id).collect();
        let len = ids.len();
        ids.sort_unstable();
        ids.dedup();
        if live.is_empty() || ids.len() != len {
            return Err(KeyTextError::Keyring);
        }
        Ok(Self { live, renew_only })
    }

    /// The secret from which new keys are derived.
    pub fn current(&self) -> &FleetSecret {
        &self.live[0]
    }

    fn live_secret(&self, key_id: KeyId) -> Option<&FleetSecret> {
        self.live.iter().find(|s| s.key_id == key_id)
    }

    /// The key of a host under the live secret with that id, if there is one.
    pub fn host_key(&self, key_id: KeyId, host: HostId, generation: Generation) -> Option<HostKey> {
        self.live_secret(key_id).map(|s| s.host_key(host, generation))
    }

    /// The same under any secret: good for a renewal, not for a beat.
    pub fn renewable_key(
        &self,
        key_id: KeyId,
        host: HostId,
        generation: Generation,
    ) -> Option<HostKey> {
        let mut all = self.live.iter().chain(&self.renew_only);
        all.find(|s| s.key_id == key_id).map(|s| s.host_key(host, generation))
    }

    /// All key ids, live ones first, the current one first of all; and whether they are live.
    pub fn key_ids(&self) -> impl Iterator<Item = (KeyId, bool)> {
        let live = self.live.iter().map(|s| (s.key_id, true));
        live.chain(self.renew_only.iter().map(|s| (s.key_id, false)))
    }

    /// Secrets whose keys beat under this ring and would not under `next`: gone, renew-only, or another
    /// secret under the same id.
    pub fn lost_in(&self, next: &Self) -> Vec<KeyId> {
        use subtle::ConstantTimeEq;
        let stays = |old: &FleetSecret| {
            let new = next.live.iter().find(|new| new.key_id == old.key_id);
            new.is_some_and(|new| new.bytes.ct_eq(&old.bytes).into())
        };
        self.live.iter().filter(|old| !stays(old)).map(|old| old.key_id).collect()
    }

    /// The ring with a new current secret, under the lowest key id that is free; the one that was current
    /// stays live.
    ///
    /// # Errors
    /// If all 256 key ids are taken.
    pub fn rotated(&self, bytes: [u8; 32]) -> Result<Self, KeyTextError> {
        let taken = |id: &u8| self.key_ids().any(|(known, _)| known == KeyId(*id));
        let free = (1..=255).chain([0]).find(|id| !taken(id)).ok_or(KeyTextError::Keyring)?;
        let mut live = vec![FleetSecret::new(KeyId(free), bytes)];
        live.extend_from_slice(&self.live);
        Self::with(live, self.renew_only.clone())
    }

    /// The ring in which that secret's keys only renew. `None`: it is the current one, or not live.
    pub fn retired(&self, key_id: KeyId) -> Option<Self> {
        let at = self.live.iter().position(|s| s.key_id == key_id).filter(|at| *at > 0)?;
        let mut ring = self.clone();
        let old = ring.live.remove(at);
        ring.renew_only.insert(0, old);
        Some(ring)
    }

    /// The text form, a fleet secret file: secret.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        for secret in &self.live {
            text.push_str(&secret.to_text());
            text.push('\n');
        }
        for secret in &self.renew_only {
            text.push_str(&secret.to_text());
            text.push(' ');
            text.push_str(RENEW_ONLY);
            text.push('\n');
        }
        text
    }
}

impl FromStr for Keyring {
    type Err = KeyTextError;

    /// One secret a line, with `renew-only` behind it if its keys may no longer beat; blank lines and lines
    /// that start with `#` are skipped.
    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        let (mut live, mut renew_only) = (Vec::new(), Vec::new());
        for line in lines {
            match line.strip_suffix(RENEW_ONLY) {
                Some(secret) => renew_only.push(secret.parse()?),
                None => live.push(line.parse()?),
            }
        }
        Self::with(live, renew_only)
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
    #[error("the secret file {path} is not a short text file: is it the right path?")]
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
    // Whose name was given by mistake must not be told to change the mode of a folder.
    if !meta.is_file() {
        return Err(SecretFileError::NotText { path: path.to_owned() });
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Mode { path: path.to_owned(), mode });
    }
    if meta.len() > SECRET_FILE_LEN_MAX {
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

/// Writes a secret file that only its owner can read, in place of what was there: a crash leaves the old
/// one or the new one, never half of one. It belongs to `owner` (user, group), if one is given.
pub fn replace_secret_file(
    path: &Path,
    text: &str,
    owner: Option<(u32, u32)>,
) -> std::io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let staged = dir.join(name);
    match std::fs::remove_file(&staged) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    create_secret_file(&staged, text.trim_end_matches('\n'))?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::chown(&staged, Some(user), Some(group))?;
    }
    std::fs::rename(&staged, path)?;
    // The rename itself must survive a power cut too.
    std::fs::File::open(dir)?.sync_all()
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
    fn a_ring_rotates_and_retires_and_survives_its_text_form() {
        let ring = Keyring::new(vec![secret(1)]).unwrap();
        let ids = |ring: &Keyring| ring.key_ids().collect::<Vec<_>>();
        assert!(ring.retired(KeyId(1)).is_none(), "the current one cannot be retired");
        let two = ring.rotated([9; 32]).unwrap();
        assert_eq!(ids(&two), [(KeyId(2), true), (KeyId(1), true)]);
        let retired = two.retired(KeyId(1)).unwrap();
        let back: Keyring = retired.to_text().parse().unwrap();
        assert_eq!(ids(&back), [(KeyId(2), true), (KeyId(1), false)]);
        let (host, generation) = (HostId([7; 16]), Generation(0));
        assert!(back.host_key(KeyId(1), host, generation).is_none());
        let old = back.renewable_key(KeyId(1), host, generation).unwrap();
        assert_eq!(old.bytes, secret(1).host_key(host, generation).bytes);
        assert!(format!("{} renew-only", *secret(1).to_text()).parse::<Keyring>().is_err());
        assert_eq!(ids(&back.rotated([8; 32]).unwrap())[0], (KeyId(3), true));
    }

    #[test]
    fn a_ring_tells_whose_keys_another_would_not_believe() {
        let ring = Keyring::new(vec![secret(3), secret(2), secret(1)]).unwrap();
        let lost = |next: Keyring| ring.lost_in(&next).iter().map(|id| id.0).collect::<Vec<_>>();
        assert!(lost(ring.rotated([9; 32]).unwrap()).is_empty());
        assert_eq!(lost(ring.retired(KeyId(1)).unwrap()), [1], "renew-only");
        assert_eq!(lost(Keyring::new(vec![secret(2)]).unwrap()), [3, 1], "gone");
        let other = FleetSecret::new(KeyId(2), [9; 32]);
        assert_eq!(lost(Keyring::new(vec![secret(1), other, secret(3)]).unwrap()), [2]);
    }

    #[test]
    fn a_secret_file_is_replaced_whole_and_stays_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for n in [1, 2] {
            replace_secret_file(&path, &secret(n).to_text(), None).unwrap();
            assert_eq!(load_secret::<Keyring>(&path).unwrap().current().key_id, KeyId(n));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
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
        // "chmod 600 /tmp" was the advice to somebody who gave a folder.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(load_secret::<Keyring>(dir.path()), Err(SecretFileError::NotText { .. })));
        std::fs::write(&binary, "hello").unwrap();
        assert!(matches!(load_secret::<Keyring>(&binary), Err(SecretFileError::Content { .. })));
    }
}
