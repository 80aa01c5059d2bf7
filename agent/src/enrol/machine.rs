//! Which machine this is, as far as that can be told without telling: hashes to compare by.
//!
//! Of the machine id, and of the DMI product UUID, which differs between virtual machines that were cloned
//! with their disks. Only root may read the latter; what could not be read is not compared. Both are keyed,
//! so that neither goes on the network.

use std::path::Path;

use heartwatch_common::enrol::Hex;
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Where Linux tells the product's UUID.
const PRODUCT_UUID: &str = "/sys/class/dmi/id/product_uuid";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Of the machine id; without one, of nothing.
    pub id: Hex<32>,
    /// Of the product UUID, if it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub product: Option<Hex<32>>,
}

fn hash(what: &[u8], text: &str) -> Hex<32> {
    let mut mac =
        <Hmac<Sha256> as KeyInit>::new_from_slice(what).expect("HMAC takes keys of any length");
    mac.update(text.trim().to_ascii_lowercase().as_bytes());
    Hex(mac.finalize().into_bytes().into())
}

impl Machine {
    /// This one.
    pub fn this(machine_id: &Path) -> Self {
        Self::of(
            &std::fs::read_to_string(machine_id).unwrap_or_default(),
            std::fs::read_to_string(PRODUCT_UUID).ok().as_deref(),
        )
    }

    fn of(machine_id: &str, product: Option<&str>) -> Self {
        let product = product.map(str::trim).filter(|p| p.bytes().any(|b| b.is_ascii_hexdigit()));
        Self {
            id: hash(b"heartwatch machine id 1", machine_id),
            product: product.map(|p| hash(b"heartwatch product uuid 1", p)),
        }
    }

    /// Whether this may be that machine: nothing that is known of both differs.
    pub fn may_be(&self, other: &Self) -> bool {
        let products = self.product.zip(other.product);
        self.id == other.id && products.is_none_or(|(a, b)| a == b)
    }

    /// Both in one, for the controller.
    pub fn hash(&self) -> Hex<32> {
        let product = self.product.map_or(String::new(), |p| p.to_string());
        hash(b"heartwatch machine 1", &format!("{} {product}", self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_told_by_its_machine_id_or_its_product() {
        let a = Machine::of("11\n", Some("4C4C-AA\n"));
        assert!(a.may_be(&Machine::of("11", Some("4c4c-aa"))));
        assert!(a.may_be(&Machine::of("11", None)), "what is not known is not compared");
        assert!(!a.may_be(&Machine::of("12", Some("4c4c-aa"))));
        assert!(!a.may_be(&Machine::of("11", Some("4c4c-ab"))));
        assert!(Machine::of("11", Some(" \n")).product.is_none());
        assert!(a.hash() != Machine::of("11", None).hash() && a.hash() != a.id);
    }
}
