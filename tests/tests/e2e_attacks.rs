//! Attacks on a running controller and its agents, as `controller/docs/SECURITY.md` lists them.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use heartwatch_common::id::{Boot, Epoch};
use heartwatch_common::wire::LeaveReason;
use heartwatch_tests::fleet::{Fleet, FleetSetup, Flood, FloodSetup, Forgery, count};
use heartwatch_tests::world::{
    Api, Controller, PATIENCE, Plan, Receiver, Station, World, eventually, now, number, story,
    text, throughout, webhook_secret,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

async fn rejected(api: &Api, reason: &str) -> Result<f64> {
    let label = format!("reason=\"{reason}\"");
    api.metric("heartwatch_datagrams_rejected_total", &[&label]).await
}

/// What comes to a socket within `span`: bytes of each, and their sum.
fn collect(socket: &UdpSocket, span: Duration) -> Result<Vec<Vec<u8>>> {
    let end = now() + span;
    let mut got = Vec::new();
    let mut buffer = [0; 2_048];
    while now() < end {
        let left = end.since(now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        if let Ok(len) = socket.recv(&mut buffer) {
            got.push(buffer[..len].to_vec());
        }
    }
    Ok(got)
}

/// A host that has joined, is alive, and of which somebody has recorded so many of its datagrams.
async fn recorded(
    world: &World,
    controller: &Controller,
    name: &str,
) -> Result<(Station, Vec<Vec<u8>>)> {
    let mut host = Station::new(world, name, controller.beats())?;
    host.join()?;
    controller.api()?.wait_state(host.host, "alive").await?;
    let mut recordings = vec![host.hello()?];
    for _ in 0..20 {
        recordings.push(host.beat(1));
    }
    for bytes in &recordings {
        host.send(bytes)?;
    }
    host.pump(Duration::from_millis(500))?;
    Ok((host, recordings))
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_hold_no_dead_host_up_neither_before_nor_after_a_restart() {
    story(async |world: &World| {
        // Stations pass on no probes for others.
        let setup = world.controller().detector("doubt_max", "\"3s\"").detector("peers", "0");
        let mut controller = setup.detector("restart_grace", "\"1s\"").start().await?;
        controller.pin_ports()?;
        let (first, of_first) = recorded(world, &controller, "dies-before").await?;
        let (second, mut of_second) = recorded(world, &controller, "dies-after").await?;
        let (first, second_id) = (first.host, second.host);
        let play = |recordings: &[Vec<u8>], to: SocketAddr| -> Result<()> {
            let attacker = UdpSocket::bind("127.0.0.1:0")?;
            recordings.iter().try_for_each(|bytes| attacker.send_to(bytes, to).map(drop))?;
            Ok(())
        };
        let api = controller.api()?;
        let to = controller.beats();
        let mut second = second;
        // The first is dead; whatever it ever said is played again and again. The second beats on.
        let deadline = now() + PATIENCE;
        while api.state(first).await? != "down" {
            play(&of_first, to)?;
            second.pump(Duration::from_millis(200))?;
            ensure!(now() < deadline, "recordings hold {first} up");
        }
        // The second one dies with the controller; its newest words were recorded too.
        of_second.extend((0..20).map(|_| second.beat(1)));
        drop(second);
        controller.kill()?;
        controller.start().await?;
        let (api, to) = (controller.api()?, controller.beats());
        let deadline = now() + PATIENCE;
        while api.state(second_id).await? != "down" {
            play(&of_second, to)?;
            play(&of_first, to)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            ensure!(now() < deadline, "after the restart recordings hold {second_id} up");
        }
        throughout(Duration::from_secs(2), || async {
            play(&of_second, to)?;
            play(&of_first, to)?;
            for host in [first, second_id] {
                let state = api.state(host).await?;
                ensure!(state == "down", "a recording made {host} {state}");
            }
            Ok(())
        })
        .await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_played_from_elsewhere_moves_no_address_and_is_hardly_answered() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let (mut host, recordings) = recorded(world, &controller, "followed").await?;
        let path = format!("/v1/hosts/{}", host.host);
        let address = text(&api.get(&path).await?, "/address").to_owned();
        let attacker = UdpSocket::bind("127.0.0.1:0")?;
        let begin = now();
        let mut bytes_in = 0;
        for _ in 0..50 {
            for bytes in &recordings {
                attacker.send_to(bytes, controller.beats())?;
                bytes_in += bytes.len();
            }
            host.pump(Duration::from_millis(50))?;
        }
        let span = now().since(begin).as_secs_f64();
        let answers = collect(&attacker, Duration::from_millis(300))?;
        let bytes_out: usize = answers.iter().map(Vec::len).sum();
        println!("{bytes_in} bytes of recordings in {span:.1} s: {bytes_out} bytes of answers");
        // A nonce a second at most, and one more at either end.
        ensure!(answers.len() as f64 <= span + 2.0, "{} answers in {span} s", answers.len());
        let seen = api.get(&path).await?;
        ensure!(text(&seen, "/address") == address, "moved from {address}: {seen:#}");
        ensure!(text(&seen, "/state") == "alive", "{seen:#}");
        let kinds = api.kinds_of(host.host).await?;
        ensure!(kinds == ["host.joined"], "expected nothing but its joining, seen {kinds:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_controller_or_a_host_sends_is_worth_nothing_when_it_is_sent_back() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        // A host that asks so that there is something to reflect: acks, and the probes of a restart.
        let mut host = Station::new(world, "mirrored", controller.beats())?;
        host.join()?;
        let mut reflected = Vec::new();
        for _ in 0..5 {
            let beat = host.beat(1);
            host.send(&beat)?;
            reflected.extend(host.overhear(Duration::from_millis(500))?);
        }
        let boot = std::mem::replace(&mut host.boot, Boot(0));
        let earlier = host.beat(1);
        host.boot = boot;
        host.send(&earlier)?;
        reflected.extend(host.overhear(Duration::from_millis(500))?);
        ensure!(reflected.len() >= 5, "only {} to reflect", reflected.len());

        // Back to the controller.
        let before = rejected(&api, "kind").await?;
        let mirror = UdpSocket::bind("127.0.0.1:0")?;
        for bytes in &reflected {
            mirror.send_to(bytes, controller.beats())?;
        }
        let answers = collect(&mirror, Duration::from_millis(500))?;
        ensure!(answers.is_empty(), "{} answers to what was reflected", answers.len());
        let refused = rejected(&api, "kind").await? - before;
        ensure!(refused >= reflected.len() as f64, "{refused} of {} refused", reflected.len());

        // To another host's agent, and what hosts send too.
        let agent = world.agent("bystander").beats_to(controller.beats()).start()?;
        api.wait_state(agent.host(), "alive").await?;
        let seen = api.get(&format!("/v1/hosts/{}", agent.host())).await?;
        let its: SocketAddr = text(&seen, "/address").parse().context("its address")?;
        reflected.push(host.beat(1));
        reflected.push(host.hello()?);
        reflected.push(host.reply([9; 16]));
        for bytes in &reflected {
            mirror.send_to(bytes, its)?;
        }
        let answers = collect(&mirror, Duration::from_millis(500))?;
        ensure!(answers.is_empty(), "the agent gave {} answers", answers.len());
        let kinds = api.kinds_of(agent.host()).await?;
        ensure!(kinds == ["host.joined"], "{kinds:?}");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_key_speaks_for_no_other_host() {
    story(async |world: &World| {
        let controller = world.controller().detector("peers", "0").start().await?;
        let api = controller.api()?;
        let mut victim = Station::new(world, "victim", controller.beats())?;
        victim.join()?;
        let mut thief = Station::new(world, "compromised", controller.beats())?;
        thief.join()?;
        for host in [victim.host, thief.host] {
            api.wait_state(host, "alive").await?;
        }
        let before = rejected(&api, "unauthentic").await?;
        let (own, epoch) = (thief.host, thief.epoch);
        // Its own key, the other's id: all that a host can say, with numbers above all that were used.
        thief.host = victim.host;
        (thief.seq, thief.epoch) = (1_000_000, epoch);
        let said = [
            thief.hello()?,
            thief.beat(1),
            thief.leave(LeaveReason::Shutdown),
            thief.reply([7; 16]),
        ];
        for bytes in &said {
            thief.send(bytes)?;
        }
        // And a thousand made-up hosts.
        for n in 0..1_000u32 {
            thief.host.0[..4].copy_from_slice(&n.to_be_bytes());
            let hello = thief.hello()?;
            thief.send(&hello)?;
        }
        thief.host = own;
        let answer = thief.overhear(Duration::from_millis(500))?;
        ensure!(answer.is_none(), "{} bytes of answer", answer.map_or(0, |a| a.len()));
        victim.pump(Duration::from_millis(500))?;
        let refused = rejected(&api, "unauthentic").await? - before;
        ensure!(refused >= 1_004.0, "{refused} of 1004 were refused");
        ensure!(api.hosts().await?.len() == 2, "made-up hosts were registered");
        let kinds = api.kinds_of(victim.host).await?;
        ensure!(kinds == ["host.joined"], "something happened to the victim: {kinds:?}");
        ensure!(api.state(victim.host).await? == "alive", "the victim is not alive");
        // Who is dead is found all the same, however much is said in its name.
        let id = victim.host;
        drop(victim);
        let deadline = now() + PATIENCE;
        while api.state(id).await? != "down" {
            for bytes in &said {
                thief.send(bytes)?;
            }
            thief.pump(Duration::from_millis(100))?;
            ensure!(now() < deadline, "forgeries hold a dead host up");
        }
        ensure!(api.state(own).await? == "alive", "the thief itself is alive");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_forged_datagrams_convicts_nobody_and_hides_no_death() {
    story(async |world: &World| {
        const HOSTS: usize = 200;
        const VICTIM: usize = 77;
        const RATE: u32 = 20_000;
        let controller = world.controller().start().await?;
        let api = controller.api()?;
        let fleet = Fleet::start(&FleetSetup {
            controller: controller.beats(),
            secret: world.secret().clone(),
            hosts: HOSTS,
            interval: Duration::from_millis(500),
            seed: 1,
        })?;
        eventually(PATIENCE, "all are alive", || async {
            let status = api.get("/v1/status").await?;
            Ok((number(&status, "/hosts/alive") == HOSTS as u64).then_some(()))
        })
        .await?;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let epoch = number(&api.get("/v1/status").await?, "/epoch");
        let flood = Flood::start(FloodSetup {
            controller: controller.beats(),
            secret: world.secret().clone(),
            hosts: fleet.ids().to_vec(),
            // The one that dies among them.
            recorded: fleet.ids()[50..100].to_vec(),
            epoch: Epoch(u32::try_from(epoch)?),
            rate: RATE,
            kinds: Forgery::ALL.to_vec(),
            sockets: 4,
            seed: 2,
        })?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        fleet.kill(VICTIM);
        let killed = now();
        api.wait_state(fleet.ids()[VICTIM], "down").await?;
        let found = now().since(killed);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sent = count(&flood.counts().sent);
        drop(flood);
        let (events, _) = api.events("").await?;
        let victim = fleet.ids()[VICTIM].to_string();
        let others = events.iter().filter(|e| {
            let bad = ["host.suspect", "host.down", "host.agent-lost", "host.unreachable"];
            bad.contains(&text(e, "/type")) && text(e, "/host") != victim
        });
        let others = others.count();
        println!(
            "{sent} forged datagrams beside {HOSTS} hosts: {others} suspected, the one that died \
             found after {:.1} s",
            found.as_secs_f64()
        );
        ensure!(others == 0, "{others} living hosts were suspected");
        ensure!(api.hosts().await?.len() == HOSTS, "the flood registered hosts");
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_to_the_api_hold_up_no_beat_and_no_failover() {
    story(async |world: &World| {
        const CONNECTIONS: usize = 1_100;
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most.min(65_536), most)?;
        let secret = webhook_secret(3);
        let file = world.write_secret("secret", &secret)?;
        let receiver = Receiver::start(&secret).await?;
        receiver.plan(Plan::ok());
        let controller = world
            .controller()
            .receiver("r", &receiver.url(), &file)
            .rule("all", &["host.down", "host.agent-lost", "host.recovered"], &["r"])
            .top("domains.storm_hosts = 0")
            .start()
            .await?;
        let mut host = Station::new(world, "watched", controller.beats())?;
        host.join()?;
        controller.api()?.wait_state(host.host, "alive").await?;
        host.pump(Duration::from_secs(2))?;
        let address: SocketAddr = controller.url().trim_start_matches("http://").parse()?;
        // More than it takes at once; each has begun a request, and goes on with it a byte at a time.
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).context("cannot connect")?;
            // Beyond those that one source may have it is refused.
            drop(std::io::Write::write_all(&mut stream, b"GET /v1/status HTTP/1.1\r\nX: "));
            slow.push(stream);
        }
        let id = host.host;
        drop(host);
        eventually(PATIENCE, "the failover is ordered", || async {
            for mut stream in &slow {
                // Whoever is cut off is so much the better.
                drop(std::io::Write::write_all(&mut stream, b"x"));
            }
            let calls = receiver.calls();
            let is_it = |c: &&heartwatch_tests::world::Call| {
                ["host.down", "host.agent-lost"].contains(&c.kind()) && c.host() == id.to_string()
            };
            Ok(calls.iter().any(|c| is_it(&c)).then_some(()))
        })
        .await?;
        // When they are gone, the API is there for everybody again.
        drop(slow);
        controller.api()?.wait_state(id, "down").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_climb_lead_nowhere() {
    story(async |world: &World| {
        let controller = world.controller().start().await?;
        let address: SocketAddr = controller.url().trim_start_matches("http://").parse()?;
        for path in [
            "/v1/hosts/..%2f..%2fapi-token",
            "/v1/../../etc/passwd",
            "/../api-token",
            "/v1/deliveries/..%2F..%2Ffleet-secret",
            "//etc/passwd",
            "/%2e%2e/fleet-secret",
        ] {
            // By hand: a client would tidy the path up.
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            std::io::Write::write_all(&mut stream, request.as_bytes())?;
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut stream, &mut answer)?;
            let status = answer.split(' ').nth(1).unwrap_or_default();
            ensure!(["400", "404"].contains(&status), "{path}: {answer}");
            ensure!(!answer.contains("hwf1:") && !answer.contains("root:"), "{path}: {answer}");
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_reads_no_file_and_a_name_of_a_host_is_only_text() {
    story(async |world: &World| {
        // No file can be named in a template: the controller does not even start with it.
        let names = "host = \"{% include '/etc/passwd' %}\"";
        let template = world.write("climb.toml", &format!("body = '''{{{names}}}'''\n"))?;
        let lines = format!(
            "format = \"template\"\nurl = \"http://127.0.0.1:1/\"\ntemplate_file = \"{}\"",
            template.display()
        );
        let refused = world
            .controller()
            .named("climbing")
            .receiver_of("t", &lines)
            .rule("all", &["host.joined"], &["t"])
            .start()
            .await;
        let Err(e) = refused else { bail!("a template that reads files was taken") };
        ensure!(format!("{e:#}").contains("climb.toml"), "{e:#}");

        // A host may call itself what it likes: a command gets that as data, and no shell sees it.
        let (marker, seen) = (world.path("marker"), world.path("seen"));
        let script = format!("#!/bin/sh\ncat >> {}\n", seen.display());
        let program = world.write("act", &script)?;
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let lines = format!("kind = \"exec\"\ncommand = [\"{}\"]", program.display());
        let controller = world
            .controller()
            .receiver_of("x", &lines)
            .rule("all", &["host.joined"], &["x"])
            .start()
            .await?;
        let name = format!("$(touch {0}); `touch {0}` ../../x", marker.display());
        let mut host = Station::new(world, &name, controller.beats())?;
        host.join()?;
        eventually(PATIENCE, "the command is told", || async {
            let told = std::fs::read_to_string(&seen).unwrap_or_default();
            Ok(told.contains("touch").then_some(()))
        })
        .await?;
        ensure!(!marker.exists(), "a name was run as a command");
        Ok(())
    })
    .await;
}
