//! A web page whose name was made to point to loopback reads nothing.

use super::*;
use crate::api::{HostNames, Peer};

async fn ask(router: axum::Router, host: &str, path: &str, token: Option<&str>) -> (u16, String) {
    let mut request = Request::get(path).header(header::HOST, host);
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_web_page_that_has_its_own_name_point_to_loopback_reads_nothing() {
    let world = World::changed(|state| {
        let names = ["watch.example".to_owned()];
        state.names = HostNames::new("127.0.0.1".parse().unwrap(), names);
    });
    fleet(&world, 2);
    let reads = ["/v1/status", "/v1/hosts", "/v1/events", "/metrics", "/v1/rules", "/nowhere"];
    for path in reads {
        let (status, told) = ask(world.router.clone(), "evil.example:2328", path, None).await;
        assert_eq!(status, 421, "{path}: {told}");
        assert!(told.contains("evil.example") && told.contains("api.host_names"), "{told}");
        assert!(!told.contains("host-1"), "{told}");
        for own in ["localhost:2328", "127.0.0.1:2328", "[::1]:2328", "watch.example"] {
            let (status, told) = ask(world.router.clone(), own, path, None).await;
            assert_eq!(status, if path == "/nowhere" { 404 } else { 200 }, "{own}{path}: {told}");
        }
        // Whoever has a token is no such page.
        let (status, _) = ask(world.router.clone(), "evil.example", path, Some(TOKEN)).await;
        assert_ne!(status, 421, "{path}");
        // From elsewhere it is no question of names.
        let afar = Peer { address: "192.0.2.9".parse().unwrap(), local: false, ..Peer::STRANGER };
        let (status, _) = ask(world.seen_by(afar), "evil.example", path, None).await;
        assert_eq!(status, 401, "{path}");
    }
    // What anybody may see tells it nothing more than anybody.
    let (status, _) = ask(world.router.clone(), "evil.example", "/healthz", None).await;
    assert_eq!(status, 200);
    let (_, metrics) = ask(world.router.clone(), "localhost", "/metrics", None).await;
    let refused = format!("heartwatch_api_refused_total{{reason=\"name\"}} {}", reads.len());
    assert!(metrics.contains(&refused), "{metrics}");
}
