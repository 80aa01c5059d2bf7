//! `heartwatchctl candidates`: who could take over from a host, and why others can't.

use std::io::{self, Write};

use clap::{ArgGroup, Args};

use super::CtlError;
use super::client::CandidatesQuery;
use super::remote::Run;
use super::text::{Table, clean, count, percent, points};
use crate::control::CandidatesReport;
use crate::policy::placement::Candidate;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).args(["host", "labels"])))]
pub(super) struct Candidates {
    /// From this host, by id or name.
    host: Option<String>,
    /// From a host with these labels, such as zone=a,pool=web.
    #[arg(long)]
    labels: Option<String>,
    /// Labels in which they must equal it, such as pool,zone [default: as the rules for host.down say].
    #[arg(long)]
    same: Option<String>,
    /// At most this many.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    limit: u64,
}

impl Run<'_> {
    pub(super) async fn candidates(&mut self, args: &Candidates) -> Result<(), CtlError> {
        let query = CandidatesQuery {
            host: args.host.clone(),
            labels: args.labels.clone(),
            same: args.same.clone(),
            limit: Some(args.limit),
        };
        let answer = self.client.candidates(&query).await?;
        self.print(answer, |out, report: CandidatesReport| write(out, &report))
    }
}

fn figures(c: &Candidate) -> [String; 7] {
    let queue = match c.load.run_queue_centi {
        u16::MAX => "-".to_owned(),
        centi => format!("{:.2}", f64::from(centi) / 100.0),
    };
    [
        if c.name.is_empty() { "-".to_owned() } else { c.name.clone() },
        points(c.load_score),
        points(c.reserved),
        percent(c.load.cpu_busy.ratio()),
        percent(c.load.memory_used.ratio()),
        queue,
        c.id.to_string(),
    ]
}

fn write(out: &mut dyn Write, report: &CandidatesReport) -> io::Result<()> {
    let found = &report.placement;
    if found.candidates.is_empty() {
        writeln!(out, "Nobody could take over.")?;
    } else {
        let header = ["HOST", "LOAD", "PROMISED", "CPU", "MEMORY", "QUEUE", "ID", "LABELS"];
        let mut table = Table::new(&header, &[1, 2, 3, 4, 5]);
        for candidate in &found.candidates {
            let labels = candidate.labels.iter().map(|(k, v)| format!("{k}={v}"));
            let labels = labels.collect::<Vec<_>>().join(",");
            table.row(figures(candidate).into_iter().chain([labels]));
        }
        table.write(out)?;
    }
    let pool = match report.same.as_slice() {
        [] => "All hosts may take over, as no rule for host.down has `candidates_same`".to_owned(),
        same => format!("They equal it in {}", clean(&same.join(", "))),
    };
    let how = if found.whole { "all" } else { "drawn from more" };
    writeln!(out, "{pool}; {} looked at, {how}.", count(found.looked_at, "host"))?;
    if !found.left_out.is_empty() {
        writeln!(out, "Left out:")?;
    }
    for (why, n) in &found.left_out {
        writeln!(out, "  {n:>6}  {}", why.words())?;
    }
    Ok(())
}

/// Who was named to take over, on one line, for a host's story; `None`: the event names nobody's places.
pub(super) fn sentence(data: &serde_json::Map<String, serde_json::Value>) -> Option<String> {
    let list = data.get("candidates")?.as_array()?;
    let named = list.iter().map(|c| {
        let name = c["name"].as_str().filter(|name| !name.is_empty());
        let name = name.or(c["id"].as_str()).unwrap_or("?");
        let load = c["load_score"].as_u64().and_then(|n| u16::try_from(n).ok()).unwrap_or(0);
        format!("{} (load {})", clean(name), points(load))
    });
    let named: Vec<String> = named.collect();
    if !named.is_empty() {
        return Some(format!("could take over, the least loaded first: {}", named.join(", ")));
    }
    let left_out = data.get("placement").and_then(|p| p.get("left_out")?.as_object());
    let reasons = left_out.into_iter().flatten().map(|(why, n)| {
        let words =
            serde_json::from_value::<crate::policy::placement::LeftOut>(why.as_str().into());
        format!("{n} {}", words.map_or_else(|_| clean(why), |why| why.words().to_owned()))
    });
    let reasons: Vec<String> = reasons.collect();
    Some(match reasons.is_empty() {
        true => "nobody could take over: there is no other host of its pool".to_owned(),
        false => format!("nobody could take over: of the other hosts are {}", reasons.join(", ")),
    })
}
