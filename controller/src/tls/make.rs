//! The certificate that a controller makes for itself at its first start.
//!
//! It proves nothing by an authority; it is known by its fingerprint, which join tokens carry and operators
//! may give to `heartwatchctl --pin`. So it is made once and lasts twenty years: a new one would lock out
//! whoever pinned the old one. It names this machine, so that `--ca` with a copy of it works too.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use heartwatch_common::auth::create_secret_file;
use heartwatch_common::time::Wall;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};

use super::TlsError;

/// The certificate's file in the state directory; not secret.
pub const CERTIFICATE_FILE: &str = "api-certificate.pem";
/// Its key's.
pub const KEY_FILE: &str = "api-key.pem";
/// For how long it is good, years.
const YEARS: i32 = 20;

/// The pair of files in a state directory, made if there is none. Half a pair is made anew: the certificate
/// is written last, and its key alone has been given to nobody.
pub fn ensure(
    state_dir: &Path,
    listen: SocketAddr,
    now: Wall,
) -> Result<(PathBuf, PathBuf), TlsError> {
    let (certificate, key) = (state_dir.join(CERTIFICATE_FILE), state_dir.join(KEY_FILE));
    if !certificate.exists() {
        make(&certificate, &key, &names(listen), now)
            .map_err(|source| TlsError::Make { path: certificate.clone(), source })?;
        log::info!("made a certificate for the API in {}", certificate.display());
    }
    Ok((certificate, key))
}

/// Who it is for: this machine, by every name that it knows.
fn names(listen: SocketAddr) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if let Ok(host) = nix::unistd::gethostname()
        && let Ok(host) = host.into_string()
    {
        names.push(host);
    }
    let ip: IpAddr = listen.ip().to_canonical();
    if !ip.is_unspecified() {
        names.push(ip.to_string());
    }
    names.sort();
    names.dedup();
    names
}

fn make(
    certificate: &Path,
    key: &Path,
    names: &[String],
    now: Wall,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // A host name with an underscore is no DNS name; the rest are still good.
    let usable = names.iter().filter(|n| CertificateParams::new(vec![(*n).clone()]).is_ok());
    let mut params = CertificateParams::new(usable.cloned().collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, "heartwatch-controller");
    params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    let year = jiff::Timestamp::from_millisecond(now.0)?.to_zoned(jiff::tz::TimeZone::UTC).year();
    // From the year before: a client whose clock is behind must not find it too young.
    params.not_before = date_time_ymd(i32::from(year) - 1, 1, 1);
    params.not_after = date_time_ymd(i32::from(year) + YEARS, 12, 31);
    let pair = KeyPair::generate()?;
    let made = params.self_signed(&pair)?;
    match std::fs::remove_file(key) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    create_secret_file(key, zeroize::Zeroizing::new(pair.serialize_pem()).trim_end())?;
    // Under its name only when it is whole: it says that the key beside it is good.
    let staged = certificate.with_extension("pem.new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o644).open(&staged)?;
    file.write_all(made.pem().as_bytes())?;
    file.sync_all()?;
    Ok(std::fs::rename(&staged, certificate)?)
}
