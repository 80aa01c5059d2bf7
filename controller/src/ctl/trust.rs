//! Whom the command line believes to be the controller, and by what it proves itself.

use std::path::PathBuf;

use clap::Args;

use super::CtlError;
use super::args::Global;
use super::client::{Trust, is_loopback};
use super::local::config_file;
use crate::config::RawConfig;
use crate::tls::Fingerprint;
use crate::tls::make::CERTIFICATE_FILE;

#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// Authorities, PEM, one of which must stand behind the controller's https certificate
    /// [default: the system's; on the controller's machine, the certificate that it made itself].
    #[arg(long, global = true, env = "HEARTWATCH_CA", value_name = "FILE", conflicts_with = "pin")]
    ca: Option<PathBuf>,
    /// SHA-256 of the controller's https certificate, as its log and `status` show it.
    #[arg(long, global = true, env = "HEARTWATCH_PIN", value_name = "SHA256")]
    pin: Option<Fingerprint>,
    /// Certificate, PEM, to show where the controller asks for one (`api.client_ca_file`).
    #[arg(long, global = true, env = "HEARTWATCH_CLIENT_CERT", value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// Its key, PEM, mode 0600.
    #[arg(long, global = true, env = "HEARTWATCH_CLIENT_KEY", value_name = "FILE")]
    client_key: Option<PathBuf>,
}

impl TrustArgs {
    /// What was said; for https on loopback without a word, the certificate that the controller made itself,
    /// if it can be read here.
    pub(super) fn for_url(&self, global: &Global) -> Result<Trust, CtlError> {
        let identity = match (&self.client_cert, &self.client_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            _ => {
                let message = "--client-cert and --client-key belong together: say both";
                return Err(CtlError::Usage(message.to_owned()));
            }
        };
        let mut trust = Trust { ca: self.ca.clone(), pin: self.pin, identity };
        let local = reqwest::Url::parse(&global.url)
            .is_ok_and(|url| url.scheme() == "https" && is_loopback(&url));
        if local && trust.ca.is_none() && trust.pin.is_none() {
            trust.ca = own_certificate(global);
        }
        Ok(trust)
    }
}

/// In the state directory: beside the token, where it stands by default, or where the config says. A config
/// with a certificate of the operator's is not answered by one that was made before.
fn own_certificate(global: &Global) -> Option<PathBuf> {
    let raw = config_file(global).and_then(|path| RawConfig::load(Some(&path)).ok());
    if raw.as_ref().is_some_and(|raw| raw.api.certificate_file.is_some()) {
        return None;
    }
    let beside = super::token::path(global).parent().map(|dir| dir.join(CERTIFICATE_FILE));
    let in_state = raw.map(|raw| raw.state_dir.join(CERTIFICATE_FILE));
    beside.into_iter().chain(in_state).find(|path| std::fs::File::open(path).is_ok())
}
