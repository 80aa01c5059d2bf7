//! Certificates of both sides.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::*;

/// An authority of its own.
fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate for a name, as PEM with its key, and as DER.
fn leaf(
    ca: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
) -> (String, String, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let cert = params.signed_by(&key, ca).unwrap();
    (cert.pem(), key.serialize_pem(), cert.der().clone())
}

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }
}

fn files() -> Files {
    Files { dir: tempfile::tempdir().unwrap() }
}

#[tokio::test]
async fn with_its_own_authority_and_a_certificate_a_receiver_that_asks_for_one_is_reached() {
    let (ca, files) = (authority(), files());
    let (_, server_key, server_cert) = leaf(&ca, "localhost");
    let (client_pem, client_key, _) = leaf(&ca, "heartwatch");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let key = PrivateKeyDer::try_from(KeyPair::from_pem(&server_key).unwrap().serialize_der());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![server_cert], key.unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listen().await;
    let url = format!("https://localhost:{}/", address.port());

    let ca_file = files.write("ca.pem", &ca.pem(), 0o644);
    let cert = files.write("client.pem", &client_pem, 0o644);
    let key = files.write("client.key", &client_key, 0o600);
    let generous = Duration::from_secs(20);
    let with_all = Receiver {
        ca_file: Some(ca_file.clone()),
        client_files: Some((cert, key)),
        connect_timeout: generous,
        first_byte_timeout: generous,
        timeout: generous,
        ..receiver(&url)
    };
    let post = async |receiver: &Receiver| {
        let hook = webhook(receiver).unwrap();
        let server = async {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut buffer = [0; 4_096];
                if stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    drop(stream.write_all(&http("200 OK", "connection: close\r\n", "")).await);
                }
                drop(stream.shutdown().await);
            }
        };
        let out = outgoing();
        tokio::select! {
            outcome = hook.post(std::slice::from_ref(&out), Wall(0)) => outcome,
            () = server => unreachable!(),
        }
    };
    let outcome = post(&with_all).await;
    assert_eq!(outcome.class, OutcomeClass::Success, "{outcome:?}");
    let stranger = Receiver { client_files: None, ..with_all.clone() };
    assert!(post(&stranger).await.class.is_failing(), "no certificate");
    let trusting_none = Receiver { ca_file: None, ..with_all.clone() };
    let outcome = post(&trusting_none).await;
    assert_eq!(outcome.class, OutcomeClass::Connect, "{outcome:?}");
}

#[test]
fn files_that_others_may_write_and_keys_that_others_may_read_are_refused() {
    let (ca, files) = (authority(), files());
    let (cert_pem, key_pem, _) = leaf(&ca, "heartwatch");
    let using = |ca: Option<PathBuf>, client: Option<(PathBuf, PathBuf)>| {
        webhook(&Receiver { ca_file: ca, client_files: client, ..receiver("https://localhost/") })
            .map(drop)
            .map_err(|e| e.to_string())
    };
    let cert = files.write("cert", &cert_pem, 0o644);
    let key = files.write("key", &key_pem, 0o600);
    assert_eq!(using(Some(cert.clone()), Some((cert.clone(), key.clone()))), Ok(()));
    let loose = files.write("loose", &cert_pem, 0o664);
    let error = using(Some(loose.clone()), None).unwrap_err();
    assert!(error.contains("chmod go-w") && error.contains("loose"), "{error}");
    assert!(using(None, Some((loose, key.clone()))).is_err());
    let open = files.write("open.key", &key_pem, 0o640);
    assert!(using(None, Some((cert.clone(), open))).is_err());
    let junk = files.write("junk", "no certificate", 0o600);
    assert!(using(Some(junk.clone()), None).is_err());
    assert!(using(None, Some((cert, junk))).is_err());
    assert!(using(Some("/nonexistent/ca".into()), None).is_err());
}
