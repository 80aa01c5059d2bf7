//! Who and which: identifiers as distinct types, so that one cannot be passed for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A host's identity: 128 bits, uniformly distributed, never the raw machine id.
///
/// Shown and parsed as 32 hexadecimal digits (dashes are accepted when parsing).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub [u8; 16]);

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostId({self})")
    }
}

/// The text is not a host id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a host id is 32 hexadecimal digits, for example 8a4e3b1c5d6f70819203a4b5c6d7e8f9")]
pub struct HostIdError;

impl FromStr for HostId {
    type Err = HostIdError;

    fn from_str(text: &str) -> Result<Self, HostIdError> {
        if text.len() > 64 {
            return Err(HostIdError);
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let mut id = [0u8; 16];
        hex::decode_to_slice(&digits, &mut id).map_err(|_| HostIdError)?;
        Ok(Self(id))
    }
}

impl Serialize for HostId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// One life of an agent: rises with every start of the agent process, even if the clock steps back.
    Boot(u32)
}
number! {
    /// Number of a datagram within a boot; every datagram that proves life takes the next one.
    Seq(u32)
}
number! {
    /// Drawn at random at each start of a controller, never zero; beats echo it to show that they are
    /// not recordings from before. Zero on the wire means "none learnt yet".
    Epoch(u32)
}
number! {
    /// Which fleet secret a key was derived from.
    KeyId(u8)
}
number! {
    /// Per-host key generation: raised to revoke one host's older keys.
    Generation(u16)
}

/// A controller's identity: drawn once, kept in its store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControllerId(pub u64);

impl fmt::Display for ControllerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ControllerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControllerId({self})")
    }
}

impl Serialize for ControllerId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ControllerId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        u64::from_str_radix(&text, 16).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_id_is_shown_and_parsed_as_32_hex_digits() {
        let id: HostId = "8a4e3b1c-5d6f-7081-9203-a4b5c6d7e8f9".parse().unwrap();
        assert_eq!(id.to_string(), "8a4e3b1c5d6f70819203a4b5c6d7e8f9");
        assert_eq!(id.to_string().parse::<HostId>(), Ok(id));
    }

    #[test]
    fn what_is_not_a_host_id_is_refused() {
        for bad in
            ["", "8a4e", "zz4e3b1c5d6f70819203a4b5c6d7e8f9", &"0".repeat(33), &"0".repeat(99)]
        {
            assert_eq!(bad.parse::<HostId>(), Err(HostIdError), "{bad}");
        }
    }

    #[test]
    fn ids_travel_through_json_as_text() {
        let id = ControllerId(0xfeed_0000_0000_0001);
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(text, "\"feed000000000001\"");
        assert_eq!(serde_json::from_str::<ControllerId>(&text).unwrap(), id);
    }
}
