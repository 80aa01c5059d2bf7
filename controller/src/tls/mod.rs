//! The API's certificate: which one is in use, where it comes from, and how it is changed while we run.
//!
//! A controller always has one. An operator's stands in two PEM files (`api.certificate_file`,
//! `api.key_file`); without them one is made at the first start ([`make`]) and kept in the state directory,
//! and clients know it by its [`Fingerprint`]. With `api.client_ca_file` TLS clients must show a certificate
//! by that authority; the handshake lets them in without, so that a host that has none yet can enrol, and
//! the API's guard then refuses every other route.
//!
//! [`Tls`] is what handshakes take their settings from. Its files are looked at every few seconds and on
//! SIGHUP ([`watch`]); what cannot be used changes nothing: the certificate in use stays in use. Connections
//! that exist keep what they began with.

use std::fmt;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use heartwatch_common::auth::{SecretFileError, read_secret_file};
use heartwatch_common::time::Wall;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

mod der;
pub mod make;
pub mod watch;

#[cfg(test)]
mod tests;

/// Longest file of certificates that is read, bytes.
const PEM_LEN_MAX: u64 = 1024 * 1024;
/// A certificate that is good for less than this is warned of.
pub const EXPIRY_WARN: Duration = Duration::from_secs(14 * 86_400);
/// Milliseconds of a day.
const DAY_MS: f64 = 86_400_000.0;

/// The SHA-256 of a certificate as it is sent (DER): what clients pin.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Of an end-entity certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    /// 64 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// A text is no fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a certificate's SHA-256 is 64 hexadecimal digits, as `heartwatchctl status` shows it")]
pub struct FingerprintError;

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Takes colons between the digits, a `sha256:` before them, and either case, as other tools print it.
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let text = text.trim();
        let text = match text.get(..7) {
            Some(head) if head.eq_ignore_ascii_case("sha256:") => &text[7..],
            _ => text,
        };
        let digits: String = text.chars().filter(|c| *c != ':').collect();
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| FingerprintError)?;
        Ok(Self(bytes))
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The key's file cannot.
    #[error(transparent)]
    Key(#[from] SecretFileError),
    /// A file of certificates cannot, or what stands in it.
    #[error("{path} {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Both files are good, but not together.
    #[error("the certificate {certificate} and the key {key} cannot be used together")]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the library said.
        source: rustls::Error,
    },
    /// The certificate could not be made.
    #[error("cannot make a certificate for the API in {path}")]
    Make {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where a certificate comes from.
#[derive(Clone, Debug)]
pub struct Files {
    /// The end-entity certificate and what leads to its authority, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM, mode 0600.
    pub key: PathBuf,
    /// Authorities of clients, PEM; `None` asks clients for no certificate.
    pub client_ca: Option<PathBuf>,
}

/// A certificate in use.
pub struct Current {
    /// What a handshake needs.
    pub config: Arc<ServerConfig>,
    /// What clients may pin.
    pub fingerprint: Fingerprint,
    /// When it ends.
    pub not_after: Wall,
}

impl Current {
    /// Days until it ends; negative: since.
    pub fn days_left(&self, now: Wall) -> f64 {
        self.not_after.0.saturating_sub(now.0) as f64 / DAY_MS
    }

    /// What to say about its end, if that is near.
    pub fn warning(&self, now: Wall) -> Option<String> {
        let days = self.days_left(now);
        if days * DAY_MS >= EXPIRY_WARN.as_millis() as f64 {
            return None;
        }
        Some(if days <= 0.0 {
            format!("the API's certificate ended at {}: put a new one in its place", self.not_after)
        } else {
            format!("the API's certificate ends in {} days, at {}", days as u32, self.not_after)
        })
    }
}

/// What tells one state of the files from another without reading them: each one's inode, length and time
/// of change.
type Stamp = Vec<Option<(u64, u64, i64, i64)>>;

/// What was seen of the files last.
#[derive(Default)]
struct Seen {
    stamp: Stamp,
    content: Option<blake3::Hash>,
}

/// What a look at the files has led to.
#[derive(Debug)]
pub enum Refresh {
    /// They are as they were.
    Same,
    /// They are in use now.
    Taken,
    /// They cannot be used; what was in use still is.
    Refused(TlsError),
}

/// Counters of the API's TLS, for metrics.
#[derive(Debug, Default)]
pub struct TlsCounts {
    /// Handshakes that led to a connection.
    pub handshakes: AtomicU64,
    /// Handshakes that failed or took too long.
    pub handshakes_failed: AtomicU64,
    /// Plain connections from other machines, which were told to use https.
    pub plain_refused: AtomicU64,
    /// Connections of sources that had as many as they may.
    pub connections_refused: AtomicU64,
    /// Times that changed files were taken.
    pub reloads: AtomicU64,
    /// Times that changed files could not be used.
    pub reloads_refused: AtomicU64,
}

/// The API's certificate, and its files.
pub struct Tls {
    files: Files,
    current: RwLock<Arc<Current>>,
    seen: Mutex<Seen>,
    /// Wakes the watch: somebody said that the files have changed.
    pub nudge: Notify,
    /// Counters.
    pub counts: TlsCounts,
}

impl Tls {
    /// Reads the files. Unlike a later change of them, what cannot be used now is an error.
    pub fn open(files: Files) -> Result<Self, TlsError> {
        let stamp = stamp(&files);
        let read = Material::read(&files)?;
        let seen = Seen { stamp, content: Some(read.content()) };
        let current = RwLock::new(Arc::new(read.check(&files)?));
        let (nudge, counts) = (Notify::new(), TlsCounts::default());
        Ok(Self { files, current, seen: Mutex::new(seen), nudge, counts })
    }

    /// What the next handshake takes.
    pub fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The fingerprint of the certificate in use: what a join token carries as its pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.current().fingerprint
    }

    /// The certificate's file.
    pub fn certificate_file(&self) -> &Path {
        &self.files.certificate
    }

    /// Whether clients must show a certificate.
    pub fn asks_clients(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Looks at the files, and takes them into use if they have changed and are good. A pair that has ended
    /// by `now` is not. Blocks on the disk. The same bad files are refused once, not at every look.
    pub fn refresh(&self, now: Wall) -> Refresh {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.files);
        if stamp == seen.stamp {
            return Refresh::Same;
        }
        seen.stamp = stamp;
        let refused = |e| {
            self.counts.reloads_refused.fetch_add(1, Ordering::Relaxed);
            Refresh::Refused(e)
        };
        let read = match Material::read(&self.files) {
            Ok(read) => read,
            Err(e) => {
                seen.content = None;
                return refused(e);
            }
        };
        let content = read.content();
        if seen.content.replace(content) == Some(content) {
            return Refresh::Same;
        }
        match read.check(&self.files) {
            Ok(fresh) if fresh.not_after.0 <= now.0 => refused(TlsError::File {
                path: self.files.certificate.clone(),
                why: format!("holds a certificate that ended at {}", fresh.not_after),
            }),
            Ok(fresh) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                self.counts.reloads.fetch_add(1, Ordering::Relaxed);
                Refresh::Taken
            }
            Err(e) => refused(e),
        }
    }
}

/// Reads the files as [`Tls::open`] does, each by itself; answers what is wrong with any, or with all
/// together.
pub fn inspect(files: &Files) -> Result<Arc<Current>, Vec<TlsError>> {
    let certificate = read_pem(&files.certificate)
        .and_then(|pem| certificates(&files.certificate, &pem).map(drop));
    let key = read_secret_file(&files.key).map_err(TlsError::from);
    let key = key.and_then(|pem| private_key(&files.key, &pem).map(drop));
    let client_ca = files.client_ca.as_deref().map_or(Ok(()), inspect_authorities);
    let wrong: Vec<_> = [certificate, key, client_ca].into_iter().filter_map(Result::err).collect();
    if wrong.is_empty() {
        return Tls::open(files.clone()).map(|tls| tls.current()).map_err(|e| vec![e]);
    }
    Err(wrong)
}

/// Reads authorities of clients.
pub fn inspect_authorities(path: &Path) -> Result<(), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    clients(path, &read_pem(path)?, provider).map(drop)
}

fn private_key(path: &Path, pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    let why = || "holds no private key in PEM".to_owned();
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| TlsError::File { path: path.to_owned(), why: why() })
}

fn stamp(files: &Files) -> Stamp {
    let of = |m: Metadata| (m.ino(), m.len(), m.mtime(), m.mtime_nsec());
    [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| std::fs::metadata(path).ok().map(of))
        .collect()
}

/// What stands in the files, not looked at yet.
struct Material {
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<String>,
    client_ca: Option<Vec<u8>>,
}

impl Material {
    fn read(files: &Files) -> Result<Self, TlsError> {
        Ok(Self {
            certificate: read_pem(&files.certificate)?,
            key: read_secret_file(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read_pem).transpose()?,
        })
    }

    fn content(&self) -> blake3::Hash {
        let mut hash = blake3::Hasher::new();
        for part in
            [&self.certificate, self.key.as_bytes(), self.client_ca.as_deref().unwrap_or(b"")]
        {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize()
    }

    fn check(&self, files: &Files) -> Result<Current, TlsError> {
        let chain = certificates(&files.certificate, &self.certificate)?;
        let bad =
            |path: &Path, why: &str| TlsError::File { path: path.to_owned(), why: why.to_owned() };
        let end = &chain[0];
        let fingerprint = Fingerprint::of(end);
        let not_after = der::not_after(end)
            .ok_or_else(|| bad(&files.certificate, "does not say when it ends"))?;
        let key = private_key(&files.key, &self.key)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let pair = |source| TlsError::Pair {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            source,
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(pem)) => {
                builder.with_client_cert_verifier(clients(path, pem, provider)?)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Current { config: Arc::new(config), fingerprint, not_after })
    }
}

fn clients(
    path: &Path,
    pem: &[u8],
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let bad = |why: String| TlsError::File { path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|e| bad(format!("holds no usable authority: {e}")))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad(format!("cannot be used to judge clients: {e}")))
}

/// All certificates of a PEM text: at least one.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |why: String| TlsError::File { path: path.to_owned(), why };
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| bad(format!("is not PEM: {e}")))?;
    if all.is_empty() { Err(bad("holds no certificate in PEM".to_owned())) } else { Ok(all) }
}

/// A file that anybody may read but only its owner may write: whoever writes it chooses who is trusted.
fn read_pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    let bad = |why: String| TlsError::File { path: path.to_owned(), why };
    let io = |e: std::io::Error| bad(format!("cannot be read: {e}"));
    let file = std::fs::File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    let mode = meta.mode() & 0o777;
    if mode & 0o022 != 0 {
        return Err(bad(format!("may be written by others (mode {mode:04o}): chmod go-w")));
    }
    if !meta.is_file() || meta.len() > PEM_LEN_MAX {
        return Err(bad("is not a file of certificates".to_owned()));
    }
    let mut bytes = Vec::new();
    file.take(PEM_LEN_MAX).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}
