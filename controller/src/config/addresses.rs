//! Where hosts that enrol are told to send their beats.

use std::net::{IpAddr, Ipv6Addr};

use heartwatch_common::config::ConfigError;

use super::RawConfig;

/// Most of them: as many controllers as an agent beats to.
const BEAT_ADDRESSES_MAX: usize = 8;

/// A controller as an agent may be told: a name or an address, with a port or without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeatAddress {
    host: String,
    port: Option<u16>,
}

impl BeatAddress {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or("a bracket is not closed")?;
                host.parse::<Ipv6Addr>().map_err(|_| "no IPv6 address in the brackets")?;
                let port = after.strip_prefix(':');
                if port.is_none() && !after.is_empty() {
                    return Err("unexpected text after the bracket");
                }
                (host, port)
            }
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err("IPv6 addresses stand in brackets");
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() || ip.is_multicast() => {
                return Err("nobody can be reached there: write the address that hosts know it by");
            }
            Ok(_) => {}
            Err(_) if !(1..=253).contains(&host.len()) || !host.chars().all(is_name) => {
                return Err("that is no host name");
            }
            Err(_) => {}
        }
        let port = match port.map(str::parse::<u16>) {
            None => None,
            Some(Ok(port)) if port > 0 => Some(port),
            Some(_) => return Err("the port must be 1 to 65535"),
        };
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    /// As agents take it; `port` where none was said.
    pub fn text(&self, port: u16) -> String {
        let port = self.port.unwrap_or(port);
        if self.host.contains(':') {
            format!("[{}]:{port}", self.host)
        } else {
            format!("{}:{port}", self.host)
        }
    }
}

impl RawConfig {
    pub(super) fn check_beat_addresses(&self) -> Result<Vec<BeatAddress>, ConfigError> {
        let wrong = |message: String| ConfigError::value("beat_addresses", message);
        if self.beat_addresses.len() > BEAT_ADDRESSES_MAX {
            return Err(wrong(format!("at most {BEAT_ADDRESSES_MAX} are allowed")));
        }
        let mut all = Vec::new();
        for text in &self.beat_addresses {
            let address = BeatAddress::parse(text).map_err(|why| {
                wrong(format!("`{text}`: {why}; write \"host\", \"host:port\" or \"[ipv6]:port\""))
            })?;
            if all.contains(&address) {
                return Err(wrong(format!("`{text}` is there twice")));
            }
            all.push(address);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(list: &[&str]) -> Result<Vec<String>, String> {
        let beat_addresses = list.iter().map(|text| (*text).to_owned()).collect();
        let raw = RawConfig { beat_addresses, ..RawConfig::default() };
        let all = raw.check_beat_addresses().map_err(|e| e.to_string())?;
        Ok(all.iter().map(|address| address.text(2_400)).collect())
    }

    #[test]
    fn addresses_are_such_as_agents_take_with_the_port_that_is_listened_on() {
        assert_eq!(check(&[]).unwrap(), [""; 0]);
        let good = ["Watch.example", "192.0.2.7:99", "[2001:db8::7]", "[2001:db8::8]:99"];
        let told = ["watch.example:2400", "192.0.2.7:99", "[2001:db8::7]:2400", "[2001:db8::8]:99"];
        assert_eq!(check(&good).unwrap(), told);
        for (bad, why) in [
            ("", "no host name"),
            ("https://x", "1 to 65535"),
            ("a b", "no host name"),
            ("x:0", "1 to 65535"),
            ("x:70000", "1 to 65535"),
            ("2001:db8::7", "brackets"),
            ("[2001:db8::7", "not closed"),
            ("[x]:1", "no IPv6"),
            ("0.0.0.0", "nobody can be reached"),
            ("[::]:2328", "nobody can be reached"),
            ("239.1.1.1", "nobody can be reached"),
        ] {
            let told = check(&[bad]).unwrap_err();
            assert!(told.contains(why) && told.contains("beat_addresses"), "{bad}: {told}");
        }
        assert!(check(&["x", "X"]).unwrap_err().contains("twice"));
        assert!(
            check(&["a", "b", "c", "d", "e", "f", "g", "h", "i"])
                .unwrap_err()
                .contains("at most 8")
        );
    }
}
