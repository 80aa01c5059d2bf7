//! Who may ask the API for what.

use std::sync::atomic::Ordering;

use axum::http::StatusCode;
use heartwatch_common::time::Wall;

use super::metrics::Families;
use super::peer::Peer;
use super::problem::Problem;
use crate::tls::Tls;

/// What begins the routes by which a host gets its identity: it has no certificate yet.
const ENROL: &str = "/v1/enrol";

/// Refuses TLS clients without a certificate, where `api.client_ca_file` asks for one. The handshake cannot:
/// it is over before a path is known.
pub(super) fn check_certificate(tls: Option<&Tls>, peer: &Peer, path: &str) -> Result<(), Problem> {
    let asked = peer.tls && tls.is_some_and(Tls::asks_clients);
    if !asked || peer.certificate || path.starts_with(ENROL) {
        return Ok(());
    }
    let detail = "the controller's api.client_ca_file asks for a certificate: show one (heartwatchctl \
                  --client-cert and --client-key)";
    let title = "a client certificate is needed";
    Err(Problem::new(StatusCode::FORBIDDEN, "certificate-needed", title, detail))
}

/// What `/metrics` shows of the API's certificate and handshakes.
pub(super) fn tls_families(f: &mut Families, tls: &Tls, now_ms: i64) {
    let help = "Days until the API's certificate ends; negative: since.";
    f.gauge("api_certificate_days_left", help, tls.current().days_left(Wall(now_ms)));
    let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let c = &tls.counts;
    let by = |value: &str| vec![("outcome", value.to_owned())];
    let help = "Changes of the API's certificate files: taken, or refused and the one before kept.";
    let reloads = [(by("taken"), count(&c.reloads)), (by("refused"), count(&c.reloads_refused))];
    f.counters("api_certificate_reloads_total", help, reloads);
    let help = "TLS handshakes of the API.";
    let handshakes =
        [(by("done"), count(&c.handshakes)), (by("failed"), count(&c.handshakes_failed))];
    f.counters("api_tls_handshakes_total", help, handshakes);
    let help = "Connections from other machines that spoke plain HTTP and were told to use https.";
    f.counters("api_plain_refused_total", help, [(Vec::new(), count(&c.plain_refused))]);
}
