//! `heartwatchctl token`, `hosts revoke`, `secrets`, and `enroll --offline`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use heartwatch_common::auth::{Keyring, create_secret_file, load_secret};
use heartwatch_common::config::Span;
use heartwatch_common::enrol::Hex;
use heartwatch_common::id::{Generation, HostId};
use heartwatch_common::secret;
use heartwatch_common::time::{Clock, SystemClock};
use rand::rngs::SysRng;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;

use super::args::Global;
use super::remote::Run;
use super::text::{Table, between, clean, count, shorten};
use super::{CtlError, chain, local};
use crate::api::dropped::DroppedOrder;
use crate::api::types::RevokedJson;
use crate::api::{SecretsJson, TokensJson};
use crate::control::ImportHost;
use crate::enrol::decide::Enrolment;
use crate::enrol::{NewToken, Revoked, TokenMade};
use crate::store::DeliveryState;

/// Most hosts that are made keys for at once.
const OFFLINE_MAX: u32 = 100_000;

#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
enum TokenVerb {
    /// Makes a join token and prints it, this once.
    Create(Create),
    /// Lists join tokens; never themselves.
    List,
    /// Ends a join token. Hosts that it let in stay.
    Revoke {
        /// Its name.
        name: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// How long it lives, at most 366d.
    #[arg(long, default_value = "24h")]
    ttl: Span,
    /// How many hosts it lets in.
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// Labels that they get, key=value; they win over what a host says itself.
    #[arg(long, value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,
    /// Gives a host whose id is taken one of its own: for machines that are clones, machine id included.
    #[arg(long)]
    clones: bool,
    /// Its name [default: drawn].
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    by: super::by::By,
}

#[derive(Debug, Subcommand)]
pub(super) enum HostsVerb {
    /// Ends all keys that a host ever had: nothing of it is believed any more, and it leaves the registry.
    ///
    /// Nothing is failed over for it: it was taken out on purpose. It stays out until --lift, and then has to
    /// enrol anew. Its own agent is told, and who asks for the host here.
    Revoke(Revoke),
    /// Says that of two machines under one identity (state duplicate) only one is left.
    ///
    /// While two may be there a failover is held, as the other may still do the work: until that one has been
    /// silent for ten minutes, until the host has a new key, or until somebody says this. What is held of the
    /// host is then judged again. Be certain: a failover may start a second copy of what still runs.
    Single(super::twin::Single),
    /// Lists hosts that enrolled, or were revoked: by which token, with which generation of key, when and
    /// why.
    Enrolled,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["reason", "lift"])))]
pub(super) struct Revoke {
    /// Its id, or its name, also after it was revoked.
    host: String,
    /// Why; others will ask, and its own owner is told.
    #[arg(long)]
    reason: Option<String>,
    /// Lets it enrol again.
    #[arg(long)]
    lift: bool,
    #[command(flatten)]
    by: super::by::By,
}

#[derive(Debug, Args)]
pub(super) struct Secrets {
    #[command(subcommand)]
    verb: Option<SecretsVerb>,
}

#[derive(Debug, Subcommand)]
enum SecretsVerb {
    /// Lists key ids and how many hosts beat under each.
    List,
    /// Makes a new secret the current one; enrolled hosts fetch their keys under it by themselves.
    Rotate,
    /// Has the keys of an old secret renew only. Refused while hosts beat under it.
    Retire {
        /// Which.
        key_id: u8,
        /// Even so: those hosts fall silent.
        #[arg(long)]
        force: bool,
    },
    /// Reads the secret file anew, after it was edited. Refused if hosts that lately beat would fall silent.
    Reload {
        /// Even so: those hosts fall silent, and are called down.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("who").required(true).args(["host", "count"])))]
pub(super) struct Enroll {
    /// Without asking the controller: the only way that there is on this side.
    #[arg(long, required = true)]
    offline: bool,
    /// For this host id; may be repeated.
    #[arg(long)]
    host: Vec<HostId>,
    /// For so many hosts with ids that are drawn.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(OFFLINE_MAX)))]
    count: Option<u32>,
    /// Where they beat to, host or host:port; may be repeated.
    #[arg(long = "controller", required = true)]
    controllers: Vec<String>,
    /// The controller's API, from which they renew their keys, such as https://controller.example:2328.
    #[arg(long)]
    renew_at: Option<String>,
    /// Labels that they say, key=value.
    #[arg(long, value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,
    /// Raise it to revoke a host's older keys [default: the least that is accepted].
    #[arg(long)]
    generation: Option<u16>,
    /// The folder to make: one folder for each host, with `key` and `enrolment`, and hosts.json for `import`.
    #[arg(long)]
    out: PathBuf,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label: write KEY=VALUE")),
    }
}

/// Labels as they were typed, each key once.
fn labels(typed: &[(String, String)]) -> Result<BTreeMap<String, String>, CtlError> {
    let mut labels = BTreeMap::new();
    for (key, value) in typed {
        if let Some(other) = labels.insert(key.clone(), value.clone()).filter(|o| o != value) {
            return Err(CtlError::Usage(format!(
                "the label `{}` cannot be both `{}` and `{}`: say one",
                clean(key),
                clean(&other),
                clean(value)
            )));
        }
    }
    Ok(labels)
}

/// A name, and not the secret itself: that must not go into a URL, which servers log.
pub(super) fn name_of_token<'a>(name: &'a str, list: &str) -> Result<&'a str, CtlError> {
    if ["hwj1", "hwt1"].iter().any(|begin| name.trim_start().starts_with(begin))
        || secret::is_no_name(name)
        || secret::is_token_digits(name)
    {
        return Err(CtlError::Usage(format!(
            "that is a token itself and not its name: nothing was sent. `heartwatchctl {list}` tells the names; \
             the token is in your shell's history now, so revoke it"
        )));
    }
    Ok(name)
}

impl Run<'_> {
    pub(super) async fn join_tokens(&mut self, args: &Token) -> Result<(), CtlError> {
        match &args.verb {
            TokenVerb::List => {
                let answer = self.client.join_tokens().await?;
                self.print(answer, |out, all: TokensJson| tokens(out, &all))
            }
            TokenVerb::Revoke { name } => {
                self.client.revoke_join_token(name_of_token(name, "token list")?).await?;
                Ok(writeln!(self.out, "{} lets nobody in any more", clean(name))?)
            }
            TokenVerb::Create(create) => {
                let wish = NewToken {
                    name: create.name.clone(),
                    ttl: create.ttl,
                    uses: create.uses,
                    labels: labels(&create.labels)?,
                    clones: create.clones,
                    by: create.by.text(),
                };
                let answer = self.client.add_join_token(&wish).await?;
                if self.global.json {
                    return self.json(&answer);
                }
                let made: TokenMade = super::client::typed(answer)?;
                // The token alone, so that it can go into a file; the rest is for people.
                writeln!(self.out, "{}", *made.token)?;
                let line = format!(
                    "join token {}: {} until {}; it is not shown again\n",
                    clean(&made.row.name),
                    count(made.row.uses, "host"),
                    made.row.expires_ms
                );
                drop(io::stderr().write_all(line.as_bytes()));
                Ok(())
            }
        }
    }

    pub(super) async fn hosts_verb(&mut self, verb: &HostsVerb) -> Result<(), CtlError> {
        match verb {
            HostsVerb::Revoke(args) => self.revoke(args).await,
            HostsVerb::Single(args) => self.single(args).await,
            HostsVerb::Enrolled => self.enrolled().await,
        }
    }

    async fn revoke(&mut self, args: &Revoke) -> Result<(), CtlError> {
        let answer = match &args.reason {
            Some(reason) => {
                let answer = self.client.revoke(&args.host, &args.by.text(), reason).await?;
                return self.print(answer, |out, gone: RevokedJson| {
                    revoked(out, &gone.revoked)?;
                    dropped(out, &gone.revoked.enrolment.host, &gone.dropped)
                });
            }
            None => self.client.lift_revocation(&args.host).await?,
        };
        self.print(answer, |out, e: Enrolment| {
            writeln!(
                out,
                "{} may enrol again; for a key by hand: heartwatchctl key {}",
                called(&e),
                e.host
            )
        })
    }

    async fn enrolled(&mut self) -> Result<(), CtlError> {
        let mut all: Vec<Enrolment> = Vec::new();
        loop {
            let answer = self.client.identities(all.last().map(|e| e.host)).await?;
            let page: Vec<Enrolment> = super::client::typed(answer["enrolments"].clone())?;
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        if self.global.json {
            return self.json(&json!({"enrolments": all}));
        }
        let header = ["NAME", "HOST", "TOKEN", "GENERATION", "AT", "REVOKED", "WHY"];
        let mut table = Table::new(&header, &[]);
        for e in &all {
            table.row([
                if e.name.is_empty() { "-".to_owned() } else { shorten(&e.name, 64) },
                e.host.to_string(),
                shorten(&e.token, 64),
                e.generation.to_string(),
                e.at_ms.to_string(),
                e.revoked_ms.map_or(String::new(), |at| at.to_string()),
                shorten(&e.reason, 80),
            ]);
        }
        Ok(table.write(self.out)?)
    }

    pub(super) async fn secrets(&mut self, args: &Secrets) -> Result<(), CtlError> {
        let answer = match &args.verb {
            None | Some(SecretsVerb::List) => self.client.secrets().await?,
            Some(SecretsVerb::Rotate) => self.client.change_secrets(&["rotate"], false).await?,
            Some(SecretsVerb::Reload { force }) => {
                self.client.change_secrets(&["reload"], *force).await?
            }
            Some(SecretsVerb::Retire { key_id, force }) => {
                let id = key_id.to_string();
                self.client.change_secrets(&[&id, "retire"], *force).await?
            }
        };
        self.print(answer, |out, all: SecretsJson| {
            let mut table = Table::new(&["KEY ID", "STATE", "HOSTS"], &[2]);
            for secret in &all.secrets {
                table.row([
                    secret.key_id.to_string(),
                    secret.state.clone(),
                    secret.hosts.to_string(),
                ]);
            }
            table.write(out)
        })
    }
}

/// Who it is, for people.
fn called(e: &Enrolment) -> String {
    match e.name.as_str() {
        "" => e.host.to_string(),
        name => format!("{} ({})", clean(name), e.host),
    }
}

/// A host that is revoked now, or was before.
fn revoked(out: &mut dyn Write, gone: &Revoked) -> io::Result<()> {
    let e = &gone.enrolment;
    if gone.already {
        let at = e.revoked_ms.map_or_else(String::new, |at| at.to_string());
        return writeln!(
            out,
            "{} is revoked already, since {at}: {}. That stands, with its reason; nothing was changed.",
            called(e),
            clean(&e.reason)
        );
    }
    writeln!(
        out,
        "{} is revoked: keys below generation {} are dead, and it left the registry. Nothing is failed over for \
         it. `heartwatchctl hosts revoke {} --lift` lets it enrol again.",
        called(e),
        e.least,
        e.host
    )
}

/// What became of the orders of a host that was taken out of the registry.
pub(super) fn dropped(
    out: &mut dyn Write,
    host: &HostId,
    dropped: &[DroppedOrder],
) -> io::Result<()> {
    for order in dropped {
        let (kind, event, receiver) = (order.kind, order.event, clean(&order.receiver));
        write!(out, "Its order {kind} for {receiver} (event {event}), which ")?;
        match &order.held_for {
            Some(why) => write!(out, "was held back ({}), ", clean(why))?,
            None => write!(out, "was on its way, ")?,
        }
        match order.state {
            DeliveryState::Cancelled => writeln!(out, "will not be sent.")?,
            DeliveryState::Superseded => writeln!(
                out,
                "is taken back: {receiver} may have heard of it ({}).",
                count(usize::try_from(order.attempts).unwrap_or(usize::MAX), "try")
            )?,
            state => writeln!(out, "is {} now.", state.as_str())?,
        }
    }
    if dropped.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "No controller will order it again: if its work must move all the same, have that done by hand. Who was \
         named to take over stands in its event: heartwatchctl events --after c0 --host {host} --json"
    )
}

fn tokens(out: &mut dyn Write, all: &TokensJson) -> io::Result<()> {
    if all.tokens.is_empty() {
        return writeln!(out, "There is no join token: `heartwatchctl token create` makes one.");
    }
    let now = SystemClock.wall();
    let mut table = Table::new(&["NAME", "LEFT", "OF", "ENDS", "LABELS", "CLONES", "BY"], &[1, 2]);
    for token in &all.tokens {
        let labels: Vec<String> = token.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let ends = if token.revoked_ms.is_some() {
            "revoked".to_owned()
        } else if token.expires_ms <= now {
            "expired".to_owned()
        } else {
            format!("in {}", between(now, token.expires_ms))
        };
        table.row([
            shorten(&token.name, 64),
            token.uses_left.to_string(),
            token.uses.to_string(),
            ends,
            shorten(&labels.join(","), 60),
            if token.clones { "yes" } else { "" }.to_owned(),
            shorten(&token.by, 40),
        ]);
    }
    table.write(out)
}

/// `enroll --offline`
pub(super) fn offline(global: &Global, args: &Enroll, out: &mut dyn Write) -> Result<(), CtlError> {
    let config = local::config(global)?;
    let file = config.fleet_secret_file;
    let ring: Keyring = load_secret(&file).map_err(|e| CtlError::Config(chain(&e)))?;
    let mut rng = StdRng::try_from_rng(&mut SysRng)
        .map_err(|e| CtlError::Failed(format!("the system gives no randomness: {e}")))?;
    let mut hosts = args.host.clone();
    hosts.extend((0..args.count.unwrap_or(0)).map(|_| HostId(Hex::<16>::draw(&mut rng).0)));
    let generations = local::generations(&config.state_dir, &hosts, args.generation)?;
    let labels = labels(&args.labels)?;
    let shown = args.out.display();
    let cannot = |e: io::Error| CtlError::Failed(format!("{shown}: {e}"));
    std::fs::create_dir(&args.out).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => CtlError::Failed(format!(
            "{shown} exists: --out makes a new folder, so that no key is written over another; name one that is \
             not there yet"
        )),
        io::ErrorKind::NotFound => {
            CtlError::Failed(format!("cannot make {shown}: the folder above it is not there"))
        }
        _ => CtlError::Failed(format!("cannot make {shown}: {e}")),
    })?;
    let mut expected = Vec::with_capacity(hosts.len());
    for (host, generation) in hosts.into_iter().zip(generations) {
        let known = ImportHost { id: host, name: String::new(), labels: labels.clone() };
        crate::api::check_import(&known).map_err(|e| CtlError::Usage(format!("labels: {e}")))?;
        let key = ring.current().host_key(host, Generation(generation));
        let mut enrolment =
            json!({"host": host, "controllers": args.controllers, "labels": labels});
        if let Some(url) = &args.renew_at {
            enrolment["url"] = json!(url);
        }
        let dir = args.out.join(host.to_string());
        let make = || -> io::Result<()> {
            std::fs::create_dir(&dir)?;
            create_secret_file(&dir.join("key"), &key.to_text())?;
            create_secret_file(&dir.join("enrolment"), &format!("{enrolment:#}"))
        };
        make().map_err(cannot)?;
        expected.push(known);
    }
    let list = serde_json::to_string_pretty(&expected).unwrap_or_default();
    std::fs::write(args.out.join("hosts.json"), list).map_err(cannot)?;
    if global.json {
        writeln!(out, "{}", json!({"hosts": expected.len(), "out": args.out}))?;
        return Ok(());
    }
    writeln!(
        out,
        "{} in {shown}: copy a host's `key` and `enrolment` into its",
        count(expected.len(), "host")
    )?;
    writeln!(
        out,
        "/var/lib/heartwatch-agent (owner heartwatch-agent, mode 600), or hand them over as"
    )?;
    writeln!(out, "credentials of the same names; then `heartwatchctl import {shown}/hosts.json`")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::daemon::EXIT_USAGE;

    #[test]
    fn offline_keys_are_those_that_the_controller_derives() {
        let dir = tempfile::tempdir().unwrap();
        let secret = "hwf1:3:0909090909090909090909090909090909090909090909090909090909090909";
        let file = dir.path().join("fleet-secret");
        create_secret_file(&file, secret).unwrap();
        let config = dir.path().join("controller.toml");
        let state = dir.path().join("state");
        let text = format!("fleet_secret_file = {file:?}\nstate_dir = {state:?}\n");
        std::fs::write(&config, text).unwrap();
        let out = dir.path().join("made");
        let host = "8a4e3b1c5d6f70819203a4b5c6d7e8f9";
        let code = super::super::run(
            [
                "heartwatchctl",
                "--json",
                "--config",
                config.to_str().unwrap(),
                "enroll",
                "--offline",
                "--host",
                host,
                "--controller",
                "c.example",
                "--labels",
                "pool=a,rack=7",
                "--out",
                out.to_str().unwrap(),
            ]
            .map(Into::into),
        );
        assert_eq!(code, 0);
        let ring: Keyring = secret.parse().unwrap();
        let id: HostId = host.parse().unwrap();
        let key = std::fs::read_to_string(out.join(host).join("key")).unwrap();
        assert_eq!(key.trim(), *ring.current().host_key(id, Generation(0)).to_text());
        let text = std::fs::read_to_string(out.join(host).join("enrolment")).unwrap();
        let enrolment: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(enrolment["controllers"], json!(["c.example"]));
        assert_eq!(enrolment["labels"], json!({"pool": "a", "rack": "7"}));
        let list = super::super::import::read(&out.join("hosts.json")).unwrap();
        assert_eq!((list[0].id, list[0].labels["rack"].as_str()), (id, "7"));
    }

    /// A held failover was dropped without a word.
    #[test]
    fn of_a_held_order_that_goes_with_its_host_it_is_told_what_becomes_of_it() {
        use crate::event::{EventId, EventKind};
        use crate::store::DeliveryId;
        let host = HostId([7; 16]);
        let order = |was, state, attempts| DroppedOrder {
            event: EventId(crate::api::testing::uuid(9)),
            kind: EventKind::HostDown,
            incident: None,
            delivery: DeliveryId(4),
            receiver: "orchestrator".to_owned(),
            was,
            held_for: (was == DeliveryState::Held).then(|| "a storm in rack=7".to_owned()),
            attempts,
            state,
        };
        let told = |orders: &[DroppedOrder]| {
            let mut out = Vec::new();
            dropped(&mut out, &host, orders).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(told(&[]), "");
        let held = told(&[order(DeliveryState::Held, DeliveryState::Cancelled, 0)]);
        for part in [
            "Its order host.down for orchestrator (event 00000000-",
            "which was held back (a storm in rack=7), will not be sent.",
            "have that done by hand",
            "--host 07070707",
        ] {
            assert!(held.contains(part), "{part}\n{held}");
        }
        let begun = told(&[order(DeliveryState::Pending, DeliveryState::Superseded, 2)]);
        assert!(
            begun.contains(
                "was on its way, is taken back: orchestrator may have heard of it (2 tries)"
            ),
            "{begun}"
        );
    }

    #[test]
    fn a_label_has_one_value_and_a_token_is_not_its_name() {
        let pair = |value: &str| ("pool".to_owned(), value.to_owned());
        assert_eq!(labels(&[pair("a"), pair("a")]).unwrap()["pool"], "a");
        let told = labels(&[pair("a"), pair("b")]).unwrap_err();
        assert!(told.to_string().contains("both `a` and `b`") && told.exit_code() == EXIT_USAGE);
        assert_eq!(name_of_token("ci-hwj1", "token list").unwrap(), "ci-hwj1");
        let digits = "00".repeat(16);
        for secret in
            ["hwj1_00112233", " hwj1_00", "hwt1_00ff", &digits, &"00".repeat(32), "hwk1:1:0:00"]
        {
            let told = name_of_token(secret, "token list").unwrap_err().to_string();
            assert!(told.contains("nothing was sent") && !told.contains("00"), "{told}");
        }
    }

    /// They were made without a word, and nothing of the host was believed.
    #[test]
    fn no_key_is_made_by_hand_for_a_host_that_is_revoked_nor_one_that_is_dead_already() {
        use crate::enrol::{EnrolStore, Revocation};
        use crate::store::sqlite::SqliteStore;
        use heartwatch_common::id::ControllerId;
        use heartwatch_common::time::Wall;
        let dir = tempfile::tempdir().unwrap();
        let host = HostId([7; 16]);
        let made = |asked| local::generations(dir.path(), &[host], asked);
        assert_eq!(made(None).unwrap(), [0], "without a store nothing is known");
        // It is open, as a running controller's is.
        let store = SqliteStore::open(dir.path(), ControllerId(1)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let what = Revocation {
            host,
            name: "web-1".to_owned(),
            generation: Generation(4),
            reason: "lost (ann)".to_owned(),
            fresh: Hex([1; 16]),
            at: Wall(0),
        };
        runtime.block_on(store.revoke_host(what)).unwrap();
        let told = made(None).unwrap_err().to_string();
        assert!(told.contains("lost (ann)") && told.contains("--lift"), "{told}");
        runtime.block_on(store.lift(host)).unwrap();
        assert_eq!(made(None).unwrap(), [5]);
        assert_eq!(made(Some(9)).unwrap(), [9]);
        assert!(made(Some(4)).unwrap_err().to_string().contains("below generation 5"));
    }
}
