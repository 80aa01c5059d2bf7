//! A controller as it stands in the configuration.

use std::fmt;
use std::str::FromStr;

use heartwatch_common::wire::PORT;

/// A controller as it is written: `host`, `host:port`, `192.0.2.1:2328` or `[2001:db8::1]:2328`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A name, or an address without brackets.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| {
            Err(format!(
                "`{text}` is no controller ({what}): write \"host\", \"host:port\" or \
                 \"[ipv6]:port\""
            ))
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let Some((host, after)) = rest.split_once(']') else {
                return wrong("a bracket is not closed");
            };
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return wrong("no IPv6 address in the brackets");
            }
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return wrong("unexpected text after the bracket"),
            }
        } else {
            match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return wrong("IPv6 addresses stand in brackets");
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        if host.is_empty() || host.len() > 253 {
            return wrong("the host must have 1 to 253 characters");
        }
        if host.chars().any(|c| c.is_whitespace() || c.is_control() || "/[]=,".contains(c)) {
            return wrong("the host holds a character that no name has");
        }
        let port = match port.map(str::parse::<u16>) {
            None => PORT,
            Some(Ok(port)) if port != 0 => port,
            Some(_) => return wrong("the port must be 1 to 65535"),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}
