//! One HTTPS request at a time, over blocking sockets: for enrolment and renewal, which are rare, small and
//! never made on the thread that sends beats.
//!
//! HTTP/1.0, so that no answer comes in chunks and each ends with its connection; JSON both ways; at most
//! [`MESSAGE_LEN_MAX`] bytes; TLS 1.2 or 1.3 by rustls. No redirects, no proxies, no cookies.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use heartwatch_common::enrol::{Hex, MESSAGE_LEN_MAX, Pin};
use heartwatch_common::time::Clock;
use heartwatch_common::wire::PORT;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::Endpoint;

/// How long to wait for a connection to one address.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long to wait for the next bytes.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long all of it may take once connected.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Longest head of an answer, bytes.
const HEAD_LEN_MAX: usize = 16 * 1024;

/// Where a controller's API is: `https://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(pub Endpoint);

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.trim().strip_prefix("https://").ok_or_else(|| {
            format!("`{text}` is no URL of a controller: write https://HOST:{PORT}")
        })?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if let Some(at) = authority.find(['/', '?', '#', '@']) {
            let (host, extra) = authority.split_at(at);
            return Err(if extra.starts_with('@') {
                format!("`{text}`: a controller's URL has no user name: write https://HOST:{PORT}")
            } else {
                format!(
                    "`{text}`: a controller's URL has no path (`{extra}`): write https://{host}"
                )
            });
        }
        let endpoint = authority.parse().map_err(|e: String| format!("`{text}`: {e}"))?;
        Ok(Self(endpoint))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}", self.0)
    }
}

/// Why to believe who answers.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Its certificate has this SHA-256.
    Pin(Pin),
    /// An authority of this PEM file signed its certificate.
    Ca(std::path::PathBuf),
    /// What is said is sealed by itself; TLS only keeps it from prying eyes.
    Sealed,
}

/// It could not be asked, or said no.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody answers there.
    #[error("cannot reach {url}: is the name right, and is TCP open to it?")]
    Connect {
        /// Where.
        url: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is not who it should be.
    #[error(
        "{url} is not the controller that the join token is for (its certificate is another one): do not \
         go on unless you know why; if the certificate was replaced, make a new token"
    )]
    WrongPin {
        /// Where.
        url: String,
    },
    /// TLS says no.
    #[error("{url} cannot be trusted or speaks no TLS: {reason}")]
    Tls {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// The authority's file.
    #[error("{path} holds no certificate in PEM form: {reason}")]
    Ca {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It broke off.
    #[error("{url} broke off")]
    Broken {
        /// Where.
        url: String,
        /// What happened.
        source: io::Error,
    },
    /// What answers is no controller.
    #[error("{url} does not answer as a controller does")]
    Foreign {
        /// Where.
        url: String,
    },
    /// The controller refuses.
    #[error("the controller refuses: {detail}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// In its words.
        detail: String,
    },
}

impl HttpError {
    /// Whether the same may be asked again later with hope.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Broken { .. } => true,
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            _ => false,
        }
    }
}

/// Sends `body` to `path` (without one: asks for it) and answers what came back with a 2xx.
pub fn request(
    url: &Url,
    trust: &Trust,
    path: &str,
    body: Option<&str>,
    clock: &dyn Clock,
) -> Result<Zeroizing<String>, HttpError> {
    let shown = url.to_string();
    let connection = connection(url, trust)?;
    let tcp = connect(url).map_err(|source| HttpError::Connect { url: shown.clone(), source })?;
    let mut stream = rustls::StreamOwned::new(connection, tcp);
    let broken = |source: io::Error| of_io(&shown, source);
    let method = if body.is_some() { "POST" } else { "GET" };
    let body = body.unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nhost: {}\r\nuser-agent: heartwatch-agent/{}\r\n\
         accept: application/json\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        url.0,
        env!("CARGO_PKG_VERSION"),
        body.len()
    );
    stream.write_all(head.as_bytes()).map_err(broken)?;
    stream.write_all(body.as_bytes()).map_err(broken)?;
    stream.flush().map_err(broken)?;
    let until = clock.now() + TIME_MAX;
    let mut answer = Zeroizing::new(Vec::with_capacity(4_096));
    let mut piece = Zeroizing::new([0; 4_096]);
    loop {
        if let Some(done) = complete(&answer) {
            let (status, body) = done.map_err(|()| HttpError::Foreign { url: shown.clone() })?;
            return told(status, body, &shown);
        }
        if answer.len() > HEAD_LEN_MAX + MESSAGE_LEN_MAX {
            return Err(HttpError::Foreign { url: shown });
        }
        if clock.now() >= until {
            return Err(broken(io::ErrorKind::TimedOut.into()));
        }
        match stream.read(&mut *piece).map_err(broken)? {
            0 => return Err(HttpError::Foreign { url: shown }),
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
}

/// The answer as far as it has come: `None` if there must be more, else its status and body.
fn complete(bytes: &[u8]) -> Option<Result<(u16, &[u8]), ()>> {
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() > HEAD_LEN_MAX { Some(Err(())) } else { None };
    };
    let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return Some(Err(())) };
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|status| status.parse().ok());
    let len = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok());
    let (Some(status), Some(len)) = (status, len.filter(|len| *len <= MESSAGE_LEN_MAX)) else {
        return Some(Err(()));
    };
    bytes[end + 4..].get(..len).map(|body| Ok((status, body)))
}

/// What an answer means.
fn told(status: u16, body: &[u8], url: &str) -> Result<Zeroizing<String>, HttpError> {
    let text = std::str::from_utf8(body).map_err(|_| HttpError::Foreign { url: url.to_owned() })?;
    if (200..300).contains(&status) {
        return Ok(Zeroizing::new(text.to_owned()));
    }
    let problem: Option<serde_json::Value> = serde_json::from_str(text).ok();
    let detail = problem.as_ref().and_then(|p| p["detail"].as_str());
    let detail = detail.map(|d| d.chars().filter(|c| !c.is_control()).take(1_000).collect());
    let detail = detail.unwrap_or_else(|| format!("HTTP status {status}"));
    Err(HttpError::Refused { status, detail })
}

fn connect(url: &Url) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in (url.0.host.as_str(), url.0.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_MAX) {
            Ok(stream) => {
                stream.set_read_timeout(Some(SILENCE_MAX))?;
                stream.set_write_timeout(Some(SILENCE_MAX))?;
                return Ok(stream);
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Tells a wrong certificate from a broken connection.
fn of_io(url: &str, source: io::Error) -> HttpError {
    let url = url.to_owned();
    let tls = source.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::ApplicationVerificationFailure,
        )) => HttpError::WrongPin { url },
        Some(e) => HttpError::Tls { url, reason: e.to_string() },
        None => HttpError::Broken { url, source },
    }
}

fn connection(url: &Url, trust: &Trust) -> Result<ClientConnection, HttpError> {
    let provider = Arc::new(ring::default_provider());
    let tls = |e: rustls::Error| HttpError::Tls { url: url.to_string(), reason: e.to_string() };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(tls)?;
    let config = match trust {
        Trust::Ca(path) => builder.with_root_certificates(roots(path)?),
        Trust::Pin(_) | Trust::Sealed => {
            let pin = if let Trust::Pin(pin) = trust { Some(*pin) } else { None };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Pinned { pin, provider }))
        }
    };
    let name = ServerName::try_from(url.0.host.clone())
        .map_err(|e| HttpError::Tls { url: url.to_string(), reason: e.to_string() })?;
    ClientConnection::new(Arc::new(config.with_no_client_auth()), name).map_err(tls)
}

fn roots(path: &Path) -> Result<RootCertStore, HttpError> {
    let wrong = |reason: String| HttpError::Ca { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(e.to_string()))? {
        let certificate = certificate.map_err(|e| wrong(e.to_string()))?;
        roots.add(certificate).map_err(|e| wrong(e.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("it is empty".to_owned())) } else { Ok(roots) }
}

/// Takes the one certificate that has the pin, whoever signed it and whatever names it holds; without a pin
/// any. That the other side has its key is checked as always.
#[derive(Debug)]
struct Pinned {
    pin: Option<Pin>,
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
        let seen = Hex(Sha256::digest(end_entity).into());
        if self.pin.is_none_or(|pin| pin.is(&seen)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_https_with_a_host_and_a_port() {
        let parsed = |text: &str| text.parse::<Url>().map(|u| u.to_string());
        assert_eq!(parsed("https://c.example").unwrap(), "https://c.example:2328");
        assert_eq!(parsed("https://[2001:db8::1]:99/").unwrap(), "https://[2001:db8::1]:99");
        for bad in ["http://c", "c:2328", "https://", "https://c/path", "https://u@c:99x"] {
            assert!(parsed(bad).unwrap_err().contains("https://"), "{bad}");
        }
        let told = parsed("https://c:2328/foo").unwrap_err();
        assert!(
            told.contains("has no path (`/foo`)") && told.ends_with("https://c:2328"),
            "{told}"
        );
        assert!(parsed("https://u@c").unwrap_err().contains("no user name"));
    }

    #[test]
    fn an_answer_is_whole_when_its_length_has_come() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\nx: y\r\n\r\n{\"\"}";
        for cut in 0..whole.len() {
            assert!(complete(&whole[..cut]).is_none(), "{cut}");
        }
        assert_eq!(complete(whole), Some(Ok((200, &b"{\"\"}"[..]))));
        for bad in [
            "SMTP\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 x OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            assert_eq!(complete(bad.as_bytes()), Some(Err(())), "{bad}");
        }
        assert_eq!(complete(&[b'x'; HEAD_LEN_MAX + 1]), Some(Err(())));
    }

    #[test]
    fn a_refusal_is_told_in_the_controllers_words() {
        let refused = told(409, br#"{"detail":"taken\u0007"}"#, "u").unwrap_err();
        assert_eq!(refused.to_string(), "the controller refuses: taken");
        assert!(!refused.may_pass() && told(503, b"", "u").unwrap_err().may_pass());
        assert_eq!(*told(200, b"{}", "u").unwrap(), "{}");
    }
}
