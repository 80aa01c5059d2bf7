//! How a client knows that it speaks with its controller.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use heartwatch_common::auth::read_secret_file;
use reqwest::{Certificate, ClientBuilder, Identity};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use zeroize::Zeroizing;

use super::ClientError;
use crate::tls::Fingerprint;

/// Longest file of certificates, bytes.
const PEM_LEN_MAX: u64 = 1024 * 1024;

/// What a client believes of an https server, and shows of itself. The default: the system's authorities,
/// and nothing.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Authorities, PEM, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The server's certificate has this SHA-256; nothing else of it counts, names and dates neither.
    pub pin: Option<Fingerprint>,
    /// A certificate of our own and its key, PEM.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl Trust {
    pub(super) fn apply(&self, builder: ClientBuilder) -> Result<ClientBuilder, ClientError> {
        if let Some(pin) = self.pin {
            return Ok(builder.tls_backend_preconfigured(self.pinned(pin)?));
        }
        let mut builder = builder;
        if let Some(path) = &self.ca {
            let bad = |why: String| ClientError::Trust { path: path.clone(), why };
            let all = Certificate::from_pem_bundle(&read(path)?)
                .map_err(|_| bad("holds no certificates in PEM".to_owned()))?;
            if all.is_empty() {
                return Err(bad("holds no certificates in PEM".to_owned()));
            }
            builder = builder.tls_certs_only(all);
        }
        if let Some((certificate, key)) = &self.identity {
            let mut pem = Zeroizing::new(read(certificate)?);
            pem.push(b'\n');
            pem.extend_from_slice(secret(key)?.as_bytes());
            let identity = Identity::from_pem(&pem).map_err(|_| pair(certificate, key))?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }

    fn pinned(&self, pin: Fingerprint) -> Result<ClientConfig, ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Arc::new(Pinned { pin, provider: Arc::clone(&provider) });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring knows the versions that rustls has")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let Some((certificate, key)) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let wrong = || pair(certificate, key);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(certificate)?)
            .collect::<Result<_, _>>()
            .map_err(|_| wrong())?;
        let private =
            PrivateKeyDer::from_pem_slice(secret(key)?.as_bytes()).map_err(|_| wrong())?;
        builder.with_client_auth_cert(chain, private).map_err(|_| wrong())
    }
}

fn pair(certificate: &Path, key: &Path) -> ClientError {
    let why = format!("and {} are no certificate and its key in PEM", key.display());
    ClientError::Trust { path: certificate.to_owned(), why }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    use std::io::Read;
    let bad = |e: std::io::Error| ClientError::Trust {
        path: path.to_owned(),
        why: format!("cannot be read: {e}"),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(bad)?;
    file.take(PEM_LEN_MAX).read_to_end(&mut bytes).map_err(bad)?;
    Ok(bytes)
}

fn secret(path: &Path) -> Result<Zeroizing<String>, ClientError> {
    read_secret_file(path)
        .map_err(|e| ClientError::Trust { path: path.to_owned(), why: e.to_string() })
}

/// Believes the one certificate that was pinned. That the server has its key is proved by the handshake's
/// signature, as for any other.
#[derive(Debug)]
struct Pinned {
    pin: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let seen = Fingerprint::of(end_entity);
        if seen == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!("its SHA-256 is {seen}, and {} is pinned", self.pin)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What TLS itself objected to, if that is why a request failed.
pub(super) fn objection(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(tls) = e.downcast_ref::<rustls::Error>() {
            return Some(tls.to_string());
        }
        // An `io::Error` passes over what it wraps when it is asked for its source.
        let wrapped = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(inner) => Some(inner),
            None => e.source(),
        };
    }
    None
}
