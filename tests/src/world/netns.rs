//! A small data centre of network namespaces: a controller, a router, racks, and hosts in them, each
//! with an address and a kernel's network stack of its own. Needs root, `ip` and `nft`.
//!
//! ```text
//! this process ── 10.214.n.1/30 ── controller ── 10.77.0.1/16 ── router ─┬─ rack 0 ── hosts 10.77.1.x
//!                  (management)                                          ├─ rack 1 ── hosts 10.77.2.x
//! ```
//!
//! The management network stays whole whatever is cut. Names carry the process id; all of it is gone
//! when the value is dropped, also by a panic.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A data centre.
pub struct Net {
    prefix: String,
    third: u8,
    spaces: Vec<String>,
}

/// A host's place.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name, such as `r1-h0`.
    pub name: String,
    /// Its rack.
    pub rack: usize,
    /// Its namespace.
    pub space: String,
    /// Its address.
    pub ip: Ipv4Addr,
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program} {}: {}", args.join(" "), said.trim());
    Ok(())
}

fn ip(args: &str) -> Result<()> {
    run("ip", &args.split_whitespace().collect::<Vec<_>>())
}

impl Net {
    /// Why no data centre can be made here, if so.
    pub fn refused() -> Option<String> {
        let space = format!("hw{}probe", std::process::id());
        let probe = || -> Result<()> {
            ip(&format!("netns add {space}"))?;
            run("ip", &["netns", "exec", &space, "nft", "list", "ruleset"])?;
            run("ip", &["netns", "exec", &space, "setpriv", "--version"])
        };
        let refused = probe().err().map(|e| format!("no network namespaces: {e:#}"));
        drop(ip(&format!("netns del {space}")));
        refused
    }

    /// A controller, a router, and `racks` of `hosts` each.
    pub fn new(racks: usize, hosts: usize) -> Result<(Self, Vec<Place>)> {
        let pid = std::process::id();
        let prefix = format!("hw{pid}");
        let third = (pid % 250) as u8;
        let mut net = Self { prefix, third, spaces: Vec::new() };
        let places = net.build(racks, hosts)?;
        Ok((net, places))
    }

    fn build(&mut self, racks: usize, hosts: usize) -> Result<Vec<Place>> {
        let (router, controller) = (self.add("rt")?, self.add("ct")?);
        let n = self.third;
        ip(&format!("-n {router} link add core type bridge"))?;
        ip(&format!("-n {router} link set core up"))?;
        self.join(&controller, "10.77.0.1", &router, "ctl", "core")?;
        let mgmt = format!("{}m", self.prefix);
        ip(&format!("link add {mgmt} type veth peer name mgmt netns {controller}"))?;
        ip(&format!("addr add 10.214.{n}.1/30 dev {mgmt}"))?;
        ip(&format!("link set {mgmt} up"))?;
        ip(&format!("-n {controller} addr add 10.214.{n}.2/30 dev mgmt"))?;
        ip(&format!("-n {controller} link set mgmt up"))?;
        let mut places = Vec::new();
        for rack in 0..racks {
            // The rack's switch and its uplink.
            ip(&format!("-n {router} link add rack{rack} type bridge"))?;
            ip(&format!("-n {router} link set rack{rack} up"))?;
            ip(&format!("-n {router} link add up{rack} type veth peer name down{rack}"))?;
            ip(&format!("-n {router} link set up{rack} master core up"))?;
            ip(&format!("-n {router} link set down{rack} master rack{rack} up"))?;
            for host in 0..hosts {
                let space = self.add(&format!("r{rack}h{host}"))?;
                let address = Ipv4Addr::new(10, 77, 1 + rack as u8, 1 + host as u8);
                let port = format!("p{rack}x{host}");
                self.join(&space, &address.to_string(), &router, &port, &format!("rack{rack}"))?;
                places.push(Place { name: format!("r{rack}-h{host}"), rack, space, ip: address });
            }
        }
        Ok(places)
    }

    fn add(&mut self, name: &str) -> Result<String> {
        let space = format!("{}{name}", self.prefix);
        ip(&format!("netns add {space}"))?;
        self.spaces.push(space.clone());
        ip(&format!("-n {space} link set lo up"))?;
        Ok(space)
    }

    fn join(
        &self,
        space: &str,
        address: &str,
        router: &str,
        port: &str,
        bridge: &str,
    ) -> Result<()> {
        ip(&format!("-n {router} link add {port} type veth peer name eth0 netns {space}"))?;
        ip(&format!("-n {router} link set {port} master {bridge} up"))?;
        ip(&format!("-n {space} addr add {address}/16 dev eth0"))?;
        ip(&format!("-n {space} link set eth0 up"))
    }

    fn space(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The controller's namespace.
    pub fn controller(&self) -> String {
        self.space("ct")
    }

    /// The controller's address in the management network, and ours.
    pub fn management(&self) -> (Ipv4Addr, Ipv4Addr) {
        (Ipv4Addr::new(10, 214, self.third, 2), Ipv4Addr::new(10, 214, self.third, 1))
    }

    /// Cuts or mends the controller's own link.
    pub fn controller_link(&self, up: bool) -> Result<()> {
        self.port("ctl", up)
    }

    /// Cuts or mends a rack's uplink.
    pub fn rack_link(&self, rack: usize, up: bool) -> Result<()> {
        self.port(&format!("up{rack}"), up)
    }

    /// Cuts or mends a host's link.
    pub fn host_link(&self, place: &Place, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&format!("-n {} link set eth0 {state}", place.space))
    }

    fn port(&self, port: &str, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        ip(&format!("-n {} link set {port} {state}", self.space("rt")))
    }

    /// Drops UDP at the controller that a rule matches, on its way in, or out; by `nft`'s words.
    pub fn drop_at_controller(&self, way: Way, rule: &str) -> Result<()> {
        let (space, chain) = (self.controller(), way.chain());
        let hook = format!("{{ type filter hook {chain} priority 0 ; }}");
        let nft = |words: &str| {
            let mut args = vec!["netns", "exec", &space, "nft"];
            args.extend(words.split_whitespace());
            run("ip", &args)
        };
        nft("add table inet hw")?;
        nft(&format!("add chain inet hw {chain} {hook}"))?;
        nft(&format!("add rule inet hw {chain} meta l4proto udp {rule} drop"))
    }

    /// Drops nothing any more.
    pub fn drop_nothing(&self) -> Result<()> {
        let space = self.controller();
        run("ip", &["netns", "exec", &space, "nft", "flush", "ruleset"])
    }
}

/// Which way datagrams go, as the controller sees it.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// Towards it.
    In,
    /// Away from it.
    Out,
}

impl Way {
    const fn chain(self) -> &'static str {
        match self {
            Self::In => "input",
            Self::Out => "output",
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for space in &self.spaces {
            if let Err(e) = ip(&format!("netns del {space}")) {
                eprintln!("{e:#}");
            }
        }
        // Gone with the controller's namespace, as a rule.
        drop(ip(&format!("link del {}m", self.prefix)));
    }
}

/// `program` inside a namespace; every step replaces the process, so its id stays. Without the right to
/// force large receive buffers, as most controllers run: a stop of some seconds overruns them.
pub(super) fn inside(space: &str, program: &std::path::Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", space, "setpriv", "--bounding-set", "-net_admin"]);
    command.arg(program);
    command
}
