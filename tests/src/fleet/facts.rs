//! What the hosts of a mass say of themselves: names, racks, zones and pools.

/// Hosts in a rack, racks in a zone, pools.
const RACK: usize = 40;
const ZONES: usize = 3;
/// All as long, so that all hellos are: they travel together.
const POOLS: [&str; 5] = ["front", "cache", "batch", "store", "index"];

/// The facts of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MassFacts {
    /// Its name.
    pub name: String,
    pool: &'static str,
    zone: String,
    rack: String,
}

impl MassFacts {
    /// The operating system of all.
    pub const OS: &str = "Debian GNU/Linux 13";
    /// The agent's version of all.
    pub const AGENT_VERSION: &str = env!("CARGO_PKG_VERSION");

    /// Those of host number `n`.
    pub fn of(n: usize) -> Self {
        Self {
            name: format!("host-{n:07}.fleet.example"),
            pool: POOLS[n % POOLS.len()],
            zone: format!("zone-{}", n / RACK % ZONES),
            rack: format!("r{:06}", n / RACK),
        }
    }

    /// Its labels.
    pub fn labels(&self) -> [(&'static str, &str); 3] {
        [("pool", self.pool), ("zone", &self.zone), ("rack", &self.rack)]
    }
}
