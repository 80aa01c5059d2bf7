//! Real binaries in a data centre of network namespaces that is cut, in one direction or both, made
//! lossy, stopped and flooded: who is called down, who is not, and what the controller says of itself.
//!
//! One data centre serves all cases, one after the other; a table at the end tells what was expected
//! and what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heartwatch_common::id::HostId;
use heartwatch_common::time::{Clock, Instant, SystemClock};
use heartwatch_tests::world::{
    Agent, Api, Controller, Net, PATIENCE, Place, Receiver, Way, World, eventually, now, number,
    skip, stop_span, story, text, webhook_secret,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const RACKS: usize = 3;
const HOSTS: usize = 6;
/// How long the controller is cut off or stopped, unless `HEARTWATCH_TEST_STOP` says otherwise.
const STOP: Duration = Duration::from_secs(20);
/// Junk until the kernel has dropped so much of it; sent in steps, and no more in all.
const OVERRUN: u64 = 1_000;
const JUNK_STEP: u32 = 5_000;
const JUNK_MAX: u32 = 2_000_000;
const BEATS_PORT: u16 = 2328;
const LOSSY: Duration = Duration::from_secs(60);

const FALSE: [&str; 3] = ["host.suspect", "host.down", "host.agent-lost"];
const DOWN: [&str; 2] = ["host.down", "host.agent-lost"];

/// What is told of a host whose datagrams do not reach the controller, while its peers reach both.
const ONE_WAY: &str = "host.unreachable";

/// All that is there.
struct Centre {
    agents: BTreeMap<String, Agent>,
    places: Vec<Place>,
    controller: Controller,
    api: Api,
    receiver: Receiver,
    // Last: it is taken down when the processes are gone.
    net: Net,
}

struct Row {
    case: String,
    expected: &'static str,
    observed: String,
    verdict: Result<()>,
}

impl Centre {
    async fn start(world: &World) -> Result<Self> {
        let (net, places) = Net::new(RACKS, HOSTS)?;
        let (there, here) = net.management();
        let secret = webhook_secret(3);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start_at(here, &secret).await?;
        let controller = world
            .controller()
            .within(&net.controller())
            .listen("0.0.0.0:2328")
            .api_listen(&format!("{there}:2328"))
            .receiver("r", &receiver.url(), &file)
            .rule(
                "all",
                &["host.down", "host.agent-lost", "host.unreachable", "host.recovered"],
                &["r"],
            )
            .start()
            .await?;
        let api = controller.api()?;
        let mut agents = BTreeMap::new();
        for place in &places {
            let rack = format!("r{}", place.rack);
            let agent = world
                .agent(&place.name)
                .within(&place.space)
                .label("rack", &rack)
                .beats_to("10.77.0.1:2328".parse()?)
                .start()?;
            agents.insert(place.name.clone(), agent);
        }
        let centre = Self { agents, places, controller, api, receiver, net };
        centre.all_alive().await?;
        // Past the cold start: some beats of everybody.
        tokio::time::sleep(Duration::from_secs(10)).await;
        centre.all_alive().await?;
        Ok(centre)
    }

    async fn all_alive(&self) -> Result<()> {
        let count = self.places.len() as u64;
        eventually(PATIENCE, "all hosts are alive", || async {
            let status = self.api.get("/v1/status").await?;
            let alive = number(&status, "/hosts/alive");
            ensure!(alive == count, "{alive} of {count} are: {}", status["hosts"]);
            Ok(Some(()))
        })
        .await
    }

    fn host(&self, name: &str) -> Result<HostId> {
        Ok(self.agents.get(name).with_context(|| format!("no agent {name}"))?.host())
    }

    fn agent(&mut self, name: &str) -> Result<&mut Agent> {
        self.agents.get_mut(name).with_context(|| format!("no agent {name}"))
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.places.iter().find(|p| p.name == name).with_context(|| format!("no place {name}"))
    }

    async fn cursor(&self) -> Result<String> {
        Ok(self.api.events("").await?.1)
    }

    /// Names of hosts with an event of one of `kinds` after a cursor, but for `except`.
    async fn told(&self, after: &str, kinds: &[&str], except: &[&str]) -> Result<BTreeSet<String>> {
        let (events, _) = self.api.events(after).await?;
        let names: BTreeMap<String, &String> =
            self.agents.iter().map(|(name, a)| (a.host().to_string(), name)).collect();
        let of_kind = events.iter().filter(|e| kinds.contains(&text(e, "/type")));
        let named = of_kind.filter_map(|e| names.get(text(e, "/host")).map(|n| (*n).clone()));
        Ok(named.filter(|n| !except.contains(&n.as_str())).collect())
    }

    /// The power of a host fails.
    fn power_off(&mut self, name: &str) -> Result<()> {
        let place = self.place(name)?.clone();
        self.net.host_link(&place, false)?;
        self.agent(name)?.kill()
    }

    async fn power_on(&mut self, name: &str) -> Result<()> {
        let place = self.place(name)?.clone();
        self.net.host_link(&place, true)?;
        self.agent(name)?.start()?;
        self.all_alive().await
    }

    /// How long after `since` a host was down.
    async fn down_after(&self, name: &str, since: Instant) -> Result<Duration> {
        self.api.wait_state(self.host(name)?, "down").await?;
        Ok(SystemClock.now().since(since))
    }

    async fn doubts(&self) -> Result<BTreeSet<String>> {
        let status = self.api.get("/v1/status").await?;
        let doubts = status["doubts"].as_array().context("`doubts` is a list")?;
        Ok(doubts.iter().map(|d| text(d, "/reason").to_owned()).collect())
    }
}

fn none(what: &str, hosts: &BTreeSet<String>) -> Result<()> {
    ensure!(hosts.is_empty(), "{what}: {hosts:?}");
    Ok(())
}

/// (i) What a host sends does not reach the controller; what the controller sends reaches it, and its
/// peers reach both.
async fn one_way(c: &mut Centre) -> Result<String> {
    let (name, after) = ("r0-h0", c.cursor().await?);
    let ip = c.place(name)?.ip;
    c.net.drop_at_controller(Way::In, &format!("ip saddr {ip}"))?;
    c.api.wait_event(c.host(name)?, ONE_WAY, PATIENCE).await?;
    // As long as its peers speak for it, it is not down.
    tokio::time::sleep(Duration::from_secs(10)).await;
    c.net.drop_nothing()?;
    c.all_alive().await?;
    none("called down", &c.told(&after, &DOWN, &[]).await?)?;
    Ok(format!("{ONE_WAY}, not down in 10 s more, alive again"))
}

/// (ii) The controller's own link is cut; a machine dies meanwhile.
async fn link_cut(c: &mut Centre) -> Result<String> {
    let (name, after) = ("r1-h1", c.cursor().await?);
    c.net.controller_link(false)?;
    let cut = stop_span(STOP);
    eventually(cut.max(STOP), "the controller says that its link is cut", || async {
        Ok(c.doubts().await?.contains("cut").then_some(()))
    })
    .await?;
    let shown = c.controller.ctl(&["status"])?.ok()?;
    ensure!(shown.contains("cut"), "heartwatchctl status: {shown}");
    tokio::time::sleep(cut / 2).await;
    c.power_off(name)?;
    tokio::time::sleep(cut / 2).await;
    let during = c.told(&after, &FALSE, &[]).await?;
    c.net.controller_link(true)?;
    let found = c.down_after(name, now()).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    none("called down", &c.told(&after, &DOWN, &[name]).await?)?;
    let suspects = c.told(&after, &FALSE, &[name]).await?.len();
    c.power_on(name).await?;
    Ok(format!(
        "0 down, {suspects} suspected ({} during the cut), the dead found after {found:.1?}",
        during.len()
    ))
}

/// (iii) A rack's uplink is cut.
async fn rack_cut(c: &mut Centre) -> Result<String> {
    let after = c.cursor().await?;
    c.net.rack_link(2, false)?;
    let names: Vec<String> =
        c.places.iter().filter(|p| p.rack == 2).map(|p| p.name.clone()).collect();
    for name in &names {
        let event = c.api.wait_event(c.host(name)?, "host.down", PATIENCE).await?;
        ensure!(text(&event, "/data/cause") == "silent", "{name}: {event:#}");
    }
    c.net.rack_link(2, true)?;
    c.all_alive().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let except: Vec<&str> = names.iter().map(String::as_str).collect();
    none("others", &c.told(&after, &DOWN, &except).await?)?;
    Ok(format!("{} down, silent; 0 others; all alive again", names.len()))
}

/// (iv) A fifth of all datagrams is lost, both ways.
async fn lossy(c: &mut Centre) -> Result<String> {
    let after = c.cursor().await?;
    let lost = || c.api.metric("heartwatch_beats_lost_total", &[]);
    let before = lost().await?;
    for way in [Way::In, Way::Out] {
        c.net.drop_at_controller(way, "numgen random mod 100 < 20")?;
    }
    tokio::time::sleep(LOSSY).await;
    c.net.drop_nothing()?;
    none("called down", &c.told(&after, &DOWN, &[]).await?)?;
    let suspects = c.told(&after, &["host.suspect"], &[]).await?.len();
    c.all_alive().await?;
    let lost = lost().await? - before;
    ensure!(lost > 100.0, "only {lost} beats were lost");
    Ok(format!("0 down in {LOSSY:?}, {suspects} hosts suspected, {lost} beats lost"))
}

/// (v) The controller stands still; a machine dies meanwhile.
async fn stopped(c: &mut Centre) -> Result<String> {
    let (name, after) = ("r0-h3", c.cursor().await?);
    c.controller.freeze()?;
    let stop = stop_span(STOP);
    tokio::time::sleep(stop / 4).await;
    c.power_off(name)?;
    tokio::time::sleep(stop * 3 / 4).await;
    c.controller.thaw()?;
    let found = c.down_after(name, now()).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    none("called down", &c.told(&after, &DOWN, &[name]).await?)?;
    let suspects = c.told(&after, &FALSE, &[name]).await?.len();
    c.power_on(name).await?;
    Ok(format!("0 down, {suspects} suspected, the dead found after {found:.1?}"))
}

/// (vi) One agent stands still: its kernel lives, and its socket is still bound.
async fn frozen(c: &mut Centre) -> Result<String> {
    let name = "r2-h2";
    let host = c.host(name)?;
    c.agent(name)?.process()?.signal(Signal::SIGSTOP)?;
    let after = c.cursor().await?;
    c.api.wait_state(host, "down").await?;
    let down = c.api.wait_event(host, "host.down", PATIENCE).await?;
    ensure!(text(&down, "/data/cause") == "silent", "{down:#}");
    c.agent(name)?.process()?.signal(Signal::SIGCONT)?;
    c.all_alive().await?;
    let id = host.to_string();
    let is_back = |e: &Value| text(e, "/type") == "host.recovered" && text(e, "/host") == id;
    // States are shown at once, events when they are journaled.
    let back = eventually(PATIENCE, "host.recovered", || async {
        Ok(c.api.events(&after).await?.0.into_iter().find(is_back))
    })
    .await?;
    ensure!(back["data"]["same_boot"] == Value::Bool(true), "{back:#}");
    Ok("down (silent), then recovered, same boot".into())
}

/// Datagrams that the kernel dropped at each socket with that port in a process's network namespace.
fn kernel_drops(pid: u32, port: u16) -> Result<Vec<u64>> {
    let table = format!("/proc/{pid}/net/udp");
    let table = std::fs::read_to_string(&table).with_context(|| format!("cannot read {table}"))?;
    let here = format!(":{port:04X}");
    let drops = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let drops = drops.filter(|f| f.get(1).is_some_and(|local| local.ends_with(&here)));
    let drops: Vec<u64> = drops.filter_map(|f| f.last()?.parse().ok()).collect();
    ensure!(!drops.is_empty(), "process {pid} has no socket with port {port}");
    Ok(drops)
}

/// (vii) The controller's receive buffers are overrun.
async fn overrun(c: &mut Centre) -> Result<String> {
    let after = c.cursor().await?;
    let to = (c.net.management().0, BEATS_PORT);
    let junk = UdpSocket::bind("0.0.0.0:0")?;
    let dropped = || c.api.metric("heartwatch_datagrams_dropped_total", &[]);
    let before = dropped().await?;
    let pid = c.controller.process()?.pid();
    let dropped_at = || Ok::<u64, anyhow::Error>(kernel_drops(pid, BEATS_PORT)?.iter().sum());
    c.controller.freeze()?;
    let at_first = dropped_at()?;
    // How many fill a buffer depends on the machine, and it may lose some on the way: the kernel tells
    // when it is full. (20,000, as this test once sent, were not enough on a machine it had not met.)
    let mut sent = 0u32;
    while dropped_at()? - at_first < OVERRUN {
        ensure!(sent < JUNK_MAX, "{sent} datagrams did not fill a receive buffer");
        for _ in 0..JUNK_STEP {
            // As if of one host, so all of it to one shard. What the kernel does not take is lost as well.
            drop(junk.send_to(&[0; 80], to));
        }
        sent += JUNK_STEP;
    }
    tokio::time::sleep(stop_span(STOP) / 2).await;
    c.controller.thaw()?;
    eventually(PATIENCE, "the drops are told", || async {
        Ok(c.doubts().await?.contains("drops").then_some(()))
    })
    .await?;
    let lost = dropped().await? - before;
    ensure!(lost > 0.0, "nothing was dropped");
    tokio::time::sleep(Duration::from_secs(5)).await;
    none("called down", &c.told(&after, &DOWN, &[]).await?)?;
    let suspects = c.told(&after, &FALSE, &[]).await?.len();
    c.all_alive().await?;
    Ok(format!("0 down, {suspects} suspected, {lost} dropped and told"))
}

fn show(rows: &[Row]) {
    println!("{:<34} {:<44} {:<8} observed", "case", "expected", "verdict");
    for row in rows {
        let verdict = if row.verdict.is_ok() { "ok" } else { "WRONG" };
        println!("{:<34} {:<44} {verdict:<8} {}", row.case, row.expected, row.observed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_cut_made_lossy_stopped_and_flooded() {
    if let Some(why) = Net::refused() {
        return skip("networks_are_cut_made_lossy_stopped_and_flooded", &why);
    }
    story(async |world: &World| {
        let mut c = Centre::start(world).await?;
        let mut rows = Vec::new();
        let span = humantime::format_duration(stop_span(STOP)).to_string();
        macro_rules! case {
            ($name:literal, $expected:expr, $case:ident) => {{
                let seen = $case(&mut c).await;
                let (observed, verdict) = match seen {
                    Ok(seen) => (seen, Ok(())),
                    Err(e) => (format!("{e:#}"), Err(e)),
                };
                rows.push(Row {
                    case: $name.replace("SPAN", &span),
                    expected: $expected,
                    observed,
                    verdict,
                });
                if rows.last().is_some_and(|r| r.verdict.is_err()) {
                    show(&rows);
                    bail!("case `{}` went wrong", $name);
                }
            }};
        }
        case!("one-way cut, host to controller", ONE_WAY, one_way);
        case!("controller's link cut for SPAN", "0 down; the dead found soon after", link_cut);
        case!("rack cut", "its hosts down (silent), no others", rack_cut);
        case!("20 % loss both ways for 60 s", "0 down", lossy);
        case!("controller stopped for SPAN", "0 down; the dead found", stopped);
        case!("agent stopped", "down (silent), then back, same boot", frozen);
        case!("receive buffers overrun", "0 down; drops told", overrun);
        show(&rows);
        let bad = c.receiver.calls().iter().filter(|call| call.verified.is_err()).count();
        ensure!(bad == 0, "{bad} webhooks were not rightly signed");
        Ok(())
    })
    .await;
}
