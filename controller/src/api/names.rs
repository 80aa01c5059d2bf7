//! By which names this machine may be asked without a token.
//!
//! Plain HTTP from the machine itself may read without one, and so might a web page in a browser on it: the
//! page's own name, once loaded, is made to point to loopback (DNS rebinding), and for the browser the
//! controller is then the page's own site. What the page cannot change is the name that the browser sends as
//! `Host`. So only names that are surely this machine's own are taken: `localhost`, loopback addresses, the
//! address that the connection or the listener has, and what `api.host_names` says. A request that names
//! nothing comes from no browser.

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::extract::Request;
use axum::http::header;
use axum::http::uri::Authority;

use super::peer::Peer;

/// See the module.
#[derive(Clone, Debug)]
pub struct HostNames {
    listen: IpAddr,
    names: BTreeSet<String>,
}

impl HostNames {
    /// The listener's address, and names that were configured, in lower case.
    pub fn new(listen: IpAddr, names: impl IntoIterator<Item = String>) -> Self {
        Self { listen: listen.to_canonical(), names: names.into_iter().collect() }
    }

    /// Whether a request that came from this machine itself calls it by names of its own. `Err`: by which
    /// other one.
    pub(super) fn check(&self, request: &Request, peer: &Peer) -> Result<(), String> {
        let hosts = request.headers().get_all(header::HOST).iter().map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (text.parse::<Authority>().ok(), text)
        });
        // An absolute URI counts before the header: whoever sends both must mean us by both.
        let absolute = request.uri().authority().map(|a| (Some(a.clone()), a.to_string()));
        for (parsed, text) in hosts.chain(absolute) {
            if !parsed.is_some_and(|authority| self.is_own(&authority, peer)) {
                return Err(super::extract::shorten(&text));
            }
        }
        Ok(())
    }

    fn is_own(&self, authority: &Authority, peer: &Peer) -> bool {
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host().trim_matches(['[', ']']).to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        match name.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
            // Of a local peer, its address is the machine's own.
            Ok(ip) => ip.is_loopback() || ip == self.listen || ip == peer.address,
            Err(_) => name == "localhost" || self.names.contains(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn check(hosts: &[&str], uri: &str) -> Result<(), String> {
        let names = HostNames::new("192.0.2.7".parse().unwrap(), ["watch.example".to_owned()]);
        let peer = Peer { address: "192.0.2.9".parse().unwrap(), ..Peer::LOCAL };
        let mut request = Request::get(uri).body(Body::empty()).unwrap();
        for host in hosts {
            request.headers_mut().append(header::HOST, host.parse().unwrap());
        }
        names.check(&request, &peer)
    }

    #[test]
    fn only_names_that_are_surely_this_machines_own_are_taken() {
        for own in [
            "localhost",
            "LocalHost:2328",
            "localhost.",
            "127.0.0.1",
            "127.8.9.10:80",
            "[::1]",
            "[::1]:2328",
            "[::ffff:127.0.0.1]:2328",
            "192.0.2.7:2328",
            "192.0.2.9",
            "watch.example:2328",
            "Watch.Example.",
        ] {
            assert_eq!(check(&[own], "/v1/status"), Ok(()), "{own}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil-localhost",
            "localhost@evil.example",
            "evil.example@localhost",
            "192.0.2.8",
            "[2001:db8::1]:2328",
            "x.watch.example",
            "",
            "a b",
        ] {
            assert_eq!(check(&[other], "/v1/status"), Err(other.to_owned()));
        }
        assert_eq!(check(&[], "/v1/status"), Ok(()), "no browser leaves it out");
        assert!(check(&["localhost", "evil.example"], "/").is_err());
        assert!(check(&["localhost"], "http://evil.example/v1/status").is_err());
        assert!(check(&["evil.example"], "http://localhost/v1/status").is_err());
        assert_eq!(check(&["localhost"], "http://localhost/v1/status"), Ok(()));
    }
}
