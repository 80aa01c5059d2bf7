//! `pages`: how long a filtered page out of a million hosts takes while beats flow.
//!
//! Generator and controller share the machine's cores, as in `million`. The hosts beat every two seconds:
//! 500,000 beats a second of a million, about half of what the controller sustains. Pages of [`LIMIT`] hosts
//! are asked for over HTTP, one after the other, with a pause between two; each kind of filter is asked for
//! [`ASKED`] times a run. `…_ms` are medians of a kind, `page_ms` is the worst of them and `page_p99_ms` of
//! all that were asked. All kinds but the first look through the whole registry:
//!
//! - `first_ms`: without a filter, from the middle on;
//! - `state_ms`: a state that no host is in;
//! - `label_ms`: one rack of 25,000, the last;
//! - `labels_ms`: a pool in a zone, from the middle on: a match for every fifteenth host;
//! - `name_ms`: a part of the name that no host has, without digits;
//! - `digits_ms`: a part of the name that one host has, digits alone.
//!
//! `dropped` and `false_suspects` are of the whole run and must be 0: nobody dies.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::stage::{Stage, StageSetup};
use super::{Context, Figures, median, quantile};
use crate::fleet::MassFacts;
use crate::machine;
use crate::world::{World, now};

/// Hosts of a page.
const LIMIT: usize = 100;
/// Pages of each kind in a run.
const ASKED: usize = 20;
/// Between two pages: an operator's dashboards, not a flood.
const PAUSE: Duration = Duration::from_millis(50);

/// A kind of page: the figure's name, the query, and how many hosts it must show.
type Kind = (&'static str, String, usize);

/// What is asked for, of a mass of `hosts`; `middle` is the token of a page in the middle of the registry.
fn kinds(hosts: usize, middle: &str) -> Vec<Kind> {
    let last = MassFacts::of(hosts - 1);
    let [(_, _), (_, _), (_, rack)] = last.labels();
    // The last rack need not be full.
    let racked = (0..hosts).rev().take_while(|n| MassFacts::of(*n).labels()[2].1 == rack).count();
    let digits: String = last.name.chars().filter(char::is_ascii_digit).collect();
    vec![
        ("first_ms", format!("page={middle}"), LIMIT),
        ("state_ms", "state=down".into(), 0),
        ("label_ms", format!("label=rack={rack}"), racked.min(LIMIT)),
        ("labels_ms", format!("label=pool=cache&label=zone=zone-1&page={middle}"), LIMIT),
        ("name_ms", "name=nobody".into(), 0),
        ("digits_ms", format!("name={digits}"), 1),
    ]
}

/// The token of the page after half of the hosts.
async fn middle(stage: &Stage<'_>) -> Result<String> {
    let mut token = String::new();
    for _ in 0..stage.setup.hosts / 2 / 1_000 {
        let answer = stage.api.get(&format!("/v1/hosts?limit=1000{token}")).await?;
        let next = answer["next_page"].as_str().context("there are more hosts")?;
        token = format!("&page={next}");
    }
    Ok(token.trim_start_matches("&page=").to_owned())
}

/// Asks for one page; answers how long it took, ms.
async fn ask(stage: &Stage<'_>, (what, query, wanted): &Kind) -> Result<f64> {
    let begin = now();
    let answer = stage.api.get(&format!("/v1/hosts?limit={LIMIT}&{query}")).await?;
    let took = now().since(begin).as_secs_f64() * 1e3;
    let shown = answer["hosts"].as_array().map_or(0, Vec::len);
    ensure!(shown == *wanted, "{what} ({query}) shows {shown} hosts instead of {wanted}");
    Ok(took)
}

async fn measure(ctx: &Context) -> Result<Figures> {
    let world = World::new()?;
    let setup = StageSetup {
        hosts: ctx.fewer_hosts(),
        interval: Duration::from_secs(2),
        shards: machine::cores().len().clamp(1, 64) as u16,
        gro: true,
        controller_core: None,
        fleet_core: None,
    };
    let mut stage = Stage::raise(&world, setup).await?;
    tokio::time::sleep(Duration::from_secs(if ctx.quick { 5 } else { 20 })).await;
    let middle = middle(&stage).await?;
    let kinds = kinds(ctx.fewer_hosts(), &middle);
    let asked = if ctx.quick { ASKED / 2 } else { ASKED };
    let mut runs = Vec::new();
    for run in 1..=ctx.runs() {
        let backlog = machine::backlog_drops();
        let before = stage.look().await?;
        let (mut figures, mut all) = (Vec::new(), Vec::new());
        for kind in &kinds {
            let mut took = Vec::new();
            for _ in 0..asked {
                tokio::time::sleep(PAUSE).await;
                took.push(ask(&stage, kind).await?);
            }
            all.extend_from_slice(&took);
            figures.push((kind.0, median(took)));
        }
        let w = stage.look().await?.since(&before);
        let dropped = w.dropped + machine::backlog_drops().saturating_sub(backlog) as f64;
        let worst = figures.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
        let shown: Vec<String> = figures
            .iter()
            .map(|(name, ms)| format!("{} {ms:.1}", name.trim_end_matches("_ms")))
            .collect();
        println!(
            "  run {run}: medians in ms: {}; {:.0} beats/s, {dropped} dropped, {} suspects; controller \
             {:.3} cores",
            shown.join(", "),
            w.beats / w.wall,
            w.suspects,
            w.cpu / w.wall,
        );
        figures.extend([
            ("page_ms", worst),
            ("page_p99_ms", quantile(all, 0.99)),
            ("beats_per_s", w.beats / w.wall),
            ("dropped", dropped),
            ("false_suspects", w.suspects),
        ]);
        runs.push(figures);
    }
    Ok(Figures::medians(&runs))
}

pub(super) fn run(ctx: &Context) -> Result<Figures> {
    ctx.runtime.block_on(measure(ctx))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_asks_for_something_else_and_the_last_rack_is_counted() {
        let kinds = kinds(1_000_000, "p7");
        let of = |name: &str| kinds.iter().find(|k| k.0 == name).map(|k| (k.1.as_str(), k.2));
        assert_eq!(of("label_ms"), Some(("label=rack=r024999", 40)));
        assert_eq!(of("digits_ms"), Some(("name=0999999", 1)));
        let mut queries: Vec<&str> = kinds.iter().map(|k| k.1.as_str()).collect();
        queries.sort_unstable();
        queries.dedup();
        assert_eq!(queries.len(), 6);
    }
}
