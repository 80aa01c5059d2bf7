//! The HTTP API: what people and programs may see of the controller, and the few things they may ask it
//! to do.
//!
//! | Route | Answers |
//! | --- | --- |
//! | `GET /v1/hosts?state=&label=k=v&name=&limit=&page=` | a page of the registry, and the cursor from which `/v1/events` continues it |
//! | `GET /v1/hosts/{id or name}` | one host |
//! | `GET /v1/hosts/{id or name}/why` | everything known about why it stands where it stands |
//! | `GET /v1/events?after=&host=&kind=&limit=&wait=` | the journal, oldest first; `wait=30s` waits for news; `tail=N` the newest N; with `kind` a page may be empty and still say `more` |
//! | `GET /v1/deliveries?state=&receiver=&host=&incident=&after=&limit=` | the outbox |
//! | `GET /v1/deliveries/{id}` | one delivery with its attempts |
//! | `GET /v1/holds?domain=&after=&limit=` | held orders with age and reason, the oldest first; `domain=zone=a,rack=7` or `fleet` |
//! | `GET /v1/rules` | each rule on one line, how many known hosts it means, what waits for it; what is odd about them |
//! | `POST /v1/rules/test` | `{"host", "as": "down", "at_ms"}`: which rules would match, who would be told what and when; changes nothing |
//! | `GET /v1/maintenance` | maintenance windows, the coming ones too |
//! | `GET /v1/candidates?host=&same=&limit=` | who could take over from a host, least loaded first, and why others can't; `labels=zone=a,pool=web` instead of `host` |
//! | `GET /v1/receivers` | where each receiver stands: health, backlog, the age of the oldest |
//! | `GET /v1/drill` | how the controller's own drills go |
//! | `POST /v1/drill` | ▲ holds one now, or joins the one that goes on: answers its number |
//! | `POST /v1/canary` | where drills' own webhooks arrive; their signature is their pass |
//! | `GET /v1/status`, `/metrics`, `/healthz`, `/readyz` | the controller itself |
//! | `POST /v1/hosts/import`, `DELETE /v1/hosts/{id or name}` | ▲ expected hosts in, hosts out (`dropped`: its orders that nobody had taken, and that nobody will get) |
//! | `PUT`, `DELETE /v1/hosts/{id or name}/freeze` | ▲ its margin kept (`{"margin_ms": 5000}`, `null`: as it is), or learning again |
//! | `POST /v1/hosts/{id or name}/single` | ▲ `{"by", "reason"}`: of two machines under its identity one is left |
//! | `POST /v1/pause`, `DELETE /v1/pause` | ▲ hold all actions for a time |
//! | `POST /v1/holds/{host id or name}/approve`, `…/reject` | ▲ `{"by", "reason"}`: one held order goes, or is cancelled |
//! | `POST /v1/holds/approve?domain=`, `…/reject?domain=` | ▲ the same for all of a domain; approved ones go at its action rate |
//! | `POST /v1/maintenance` | ▲ opens a window: `host`, `domain` or `labels` (`pool=db,zone!=a`); `for` or `until_ms`; `from_ms`; `by`, `reason` |
//! | `DELETE /v1/maintenance/{window}?by=&reason=` | ▲ ends it now: who is still down is judged now |
//! | `POST /v1/deliveries/redrive` | ▲ dead letters on their way again |
//! | `POST /v1/receivers/{name}/test` | ▲ a marked test event to one receiver, by the way of all others |
//! | `/v1/enrol…`, `/v1/join-tokens…`, `/v1/identities`, `/v1/hosts/{host}/revoke`, `/v1/secrets…` | how hosts get keys |
//! | `POST /v1/backup` | ▲ a consistent copy of the store |
//! | `GET /v1/tokens` | ▲ tokens that were given out, without themselves |
//! | `POST /v1/tokens` | ▲ `{"name", "scope": "operate", "ttl": "90d"}`: a new one, shown once |
//! | `DELETE /v1/tokens/{name}` | ▲ it is refused from now on |
//!
//! ▲ = changes something (or hands out everything): needs `Authorization: Bearer TOKEN`. The rest needs one
//! too, but for plain HTTP from this machine itself. Which scope each needs, and what anybody may ask, stands
//! in `access/routes.rs`.
//!
//! **Keeping a copy.** Read every page of `/v1/hosts`, remember the `cursor`, then follow
//! `/v1/events?after=cursor`. The cursor is read before the first page is, and all pages of one listing
//! carry the same, so what happens while the pages are read is seen twice rather than never. `410`
//! says that a cursor or page token is from before a restore or restart: start over.
//!
//! Every error is a [`problem::Problem`]. Every request is bounded in time, size and number.

use std::future::Future;
use std::io;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::middleware;
use axum::routing::{delete, get, post, put};
use heartwatch_common::time::Clock;
use tokio::sync::{Semaphore, watch};
use tower_http::catch_panic::CatchPanicLayer;

use crate::control::Control;
use crate::enrol::Enrolling;
use crate::metrics::ShardMetrics;
use crate::store::Store;
use crate::tls::Tls;
use crate::view::View;

mod access;
pub mod asked;
mod candidates;
mod controller;
mod deliveries;
mod drill;
pub mod dropped;
mod enrol;
mod events;
mod extract;
mod holds;
mod hosts;
mod incidents;
mod listener;
mod maintenance;
pub mod metrics;
mod names;
mod peer;
pub mod problem;
mod receivers;
mod rules;
mod server;
mod shield;
mod sources;
mod token;
mod tokens;
pub mod types;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use access::{Scope, TOKENS_MAX, TokenBook, TokenRow};
pub use metrics::{DeliveryMetricRow, DeliveryMetricsFn};
pub use names::HostNames;
pub use peer::Peer;
pub use token::{ApiToken, ApiTokenError};

pub(crate) use enrol::{SecretsJson, TokensJson};
pub(crate) use hosts::check_import;
use problem::Problem;

/// Rows on a page that does not say how many it wants.
pub const PAGE_LEN_DEFAULT: usize = 100;
/// Longest body of an import: [`crate::control::IMPORT_LEN_MAX`] hosts with some labels.
pub const IMPORT_BODY_LEN_MAX: usize = 32 * 1024 * 1024;
/// Longest body of any other request.
pub const BODY_LEN_MAX: usize = 64 * 1024;
/// Requests under way at once; more are told to come back.
const REQUESTS_MAX: usize = 512;
/// Of these, requests that wait for news.
const FOLLOWERS_MAX: usize = 64;
/// How long answers under way may take once the controller stops.
const SHUTDOWN_MAX: Duration = Duration::from_secs(3);

/// What the API needs of the rest of the controller.
pub struct ApiState {
    /// The running controller.
    pub control: Arc<dyn Control>,
    /// The journal and the outbox, for reading.
    pub store: Arc<dyn Store>,
    /// The registry.
    pub view: Arc<View>,
    /// One per shard, in their order.
    pub shards: Vec<Arc<ShardMetrics>>,
    /// The delivery's counters, read at every scrape.
    pub delivery: DeliveryMetricsFn,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// How hosts get keys.
    pub enrol: Arc<Enrolling>,
    /// The token of the config, which may do everything.
    pub token: ApiToken,
    /// Those that were given out.
    pub tokens: Arc<TokenBook>,
    /// Whether this machine itself may read without one.
    pub loopback_reads: bool,
    /// By which names it may do so.
    pub names: HostNames,
    /// The API's certificate; `None` serves plain HTTP only.
    pub tls: Option<Arc<Tls>>,
    /// What everybody may know of the settings.
    pub config: types::ConfigSummary,
    /// Where a backup's copy stands while it is made: as big as the store, and only the controller's.
    pub state_dir: PathBuf,
}

struct Inner {
    state: ApiState,
    /// Tells apart page tokens of different lives of this process.
    instance: u64,
    requests: Semaphore,
    followers: Semaphore,
    backups: Semaphore,
    guard: access::Guard,
}

impl Deref for Inner {
    type Target = ApiState;

    fn deref(&self) -> &ApiState {
        &self.state
    }
}

/// [`ApiState`] with the bounds on what goes on at once, as routes see it.
#[derive(Clone)]
struct Api(Arc<Inner>);

impl Deref for Api {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// All routes.
pub fn router(state: ApiState) -> Router {
    let api = Api(Arc::new(Inner {
        instance: state.clock.now().0,
        state,
        requests: Semaphore::new(REQUESTS_MAX),
        followers: Semaphore::new(FOLLOWERS_MAX),
        backups: Semaphore::new(1),
        guard: access::Guard::default(),
    }));
    // Which scope each route needs, and how long its body may be, stands in `access::routes`.
    Router::new()
        .route("/v1/hosts", get(hosts::list))
        .route("/v1/hosts/import", post(hosts::import))
        .route("/v1/hosts/{host}", get(hosts::one).delete(hosts::forget))
        .route("/v1/hosts/{host}/why", get(hosts::why))
        .route("/v1/hosts/{host}/freeze", put(hosts::freeze).delete(hosts::unfreeze))
        .route("/v1/hosts/{host}/single", post(hosts::single))
        .merge(enrol::routes())
        .route("/v1/events", get(events::list))
        .route("/v1/deliveries", get(deliveries::list))
        .route("/v1/deliveries/redrive", post(deliveries::redrive))
        .route("/v1/deliveries/{id}", get(deliveries::one))
        .route("/v1/holds", get(holds::list))
        .route("/v1/holds/approve", post(holds::approve_domain))
        .route("/v1/holds/reject", post(holds::reject_domain))
        .route("/v1/holds/{host}/approve", post(holds::approve))
        .route("/v1/holds/{host}/reject", post(holds::reject))
        .route("/v1/incidents", get(incidents::list))
        .route("/v1/incidents/{id}", get(incidents::one))
        .route("/v1/incidents/{id}/complete", post(incidents::complete))
        .route("/v1/rules", get(rules::list))
        .route("/v1/rules/test", post(rules::test))
        .route("/v1/maintenance", get(maintenance::list).post(maintenance::add))
        .route("/v1/maintenance/{window}", delete(maintenance::end))
        .route("/v1/drill", get(drill::status).post(drill::begin))
        .route("/v1/canary", post(drill::arrive))
        .route("/v1/candidates", get(candidates::list))
        .route("/v1/receivers", get(receivers::list))
        .route("/v1/receivers/{name}/test", post(receivers::test))
        .route("/v1/tokens", get(tokens::list).post(tokens::create))
        .route("/v1/tokens/{name}", delete(tokens::revoke))
        .route("/v1/status", get(controller::status))
        .route("/v1/pause", post(controller::pause).delete(controller::resume))
        .route("/v1/backup", post(controller::backup))
        .route("/metrics", get(metrics::scrape))
        .route("/healthz", get(controller::healthz))
        .route("/readyz", get(controller::readyz))
        .fallback(|| async { Problem::of_status(StatusCode::NOT_FOUND, "") })
        .method_not_allowed_fallback(|| async {
            Problem::of_status(StatusCode::METHOD_NOT_ALLOWED, "")
        })
        .layer(CatchPanicLayer::custom(shield::panicked))
        .layer(middleware::from_fn_with_state(api.clone(), access::guard))
        .layer(middleware::from_fn_with_state(api.clone(), shield::shield))
        .with_state(api)
}

/// Serves until `shutdown` is ready, then lets answers under way end, but for a few seconds at most.
/// Without `tls` it serves plain HTTP only.
pub async fn serve(
    listener: tokio::net::TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stop, mut stopped) = watch::channel(false);
    let graceful = async move {
        shutdown.await;
        stop.send_replace(true);
    };
    let server = server::run(listener::Bounded::new(listener, tls), router, graceful);
    let overdue = async {
        // An error means that the sender is gone after sending, which is as good as the value.
        drop(stopped.wait_for(|s| *s).await);
        tokio::time::sleep(SHUTDOWN_MAX).await;
    };
    tokio::select! {
        ended = server => ended,
        () = overdue => Ok(()),
    }
}
