//! Datagrams of another version: whose they are can be told, and nothing else.

use super::{DATAGRAM_LEN_MAX, RawHeader, TAG_LEN, VERSION};
use crate::id::{Generation, HostId, KeyId};
use zerocopy::FromBytes;

/// No datagram of any version is shorter: the header and the tag.
const LEN_MIN: usize = size_of::<RawHeader>() + TAG_LEN;

/// What all versions have in common. Nothing in it may be believed before
/// [`crate::auth::HostKey::verify_foreign`], and after that only that the host's key has sealed it once: it
/// may be a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign<'a> {
    /// Its version, which is not ours.
    pub version: u8,
    /// Whose it claims to be.
    pub host: HostId,
    /// Which fleet secret that host's key came from.
    pub key_id: KeyId,
    /// Which generation of the host's key.
    pub generation: Generation,
    /// The bytes that the tag covers.
    pub signed: &'a [u8],
    /// The tag.
    pub tag: &'a [u8; TAG_LEN],
}

/// Reads what a datagram of another version has in common with ours; `None`: it is of our version, or no
/// datagram of any.
pub fn foreign(bytes: &[u8]) -> Option<Foreign<'_>> {
    if !(LEN_MIN..=DATAGRAM_LEN_MAX).contains(&bytes.len()) {
        return None;
    }
    let (signed, tag) = bytes.split_last_chunk::<TAG_LEN>()?;
    let (raw, _) = RawHeader::ref_from_prefix(signed).ok()?;
    (raw.version != VERSION).then(|| Foreign {
        version: raw.version,
        host: HostId(raw.host),
        key_id: KeyId(raw.key_id),
        generation: Generation(raw.generation.get()),
        signed,
        tag,
    })
}
