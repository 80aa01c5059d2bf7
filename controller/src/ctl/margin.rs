//! The part of `why` about the margin: how late a beat may be, and what made it so.

use std::io::{self, Write};

use super::text::{clean, human_f64};
use crate::control::{HostWhy, OverdueBin};
use crate::detector::timeout::DISTURBED_FOR;

/// Width of the longest bar of a histogram.
const BAR_LEN: f64 = 40.0;
/// Most bins of a histogram that are drawn.
const BINS_MAX: usize = 60;
/// Most residuals that are shown.
const OVERDUE_MAX: usize = 16;

/// What the margin is, what set it, and what each knob did.
pub(super) fn write(out: &mut dyn Write, d: &HostWhy) -> io::Result<()> {
    let Some(margin_ms) = d.margin_ms else {
        return writeln!(out, "  No beat is expected of it, so it cannot be late.");
    };
    let k = &d.knobs;
    let cost = format!("C = {}s", k.false_suspicion_cost_s.round());
    let chosen = match d.context.as_str() {
        "disturbed" => d.margin_disturbed_ms,
        _ => d.margin_calm_ms,
    };
    let least = format!("{} would cost least for {cost}", human_f64(chosen));
    let set_by = match d.margin_source.as_str() {
        "learned" => {
            format!(", which costs least for {cost} (detector.false_suspicion_cost)")
        }
        "prior" => format!(
            ", the usual of its group at {cost}, for it has not sent enough beats of its own yet"
        ),
        "floor" => format!(": the least (detector.timeout_min); {least}"),
        "ceiling" => format!(": the most (detector.timeout_max); {least}"),
        "frozen" => ": an operator froze it there, until `heartwatchctl unfreeze HOST`".to_owned(),
        other => format!(", set by {}", clean(other)),
    };
    writeln!(out, "  It may come {} late (the margin){set_by}.", human_f64(margin_ms))?;
    if let Some(rate) = k.max_mistakes_per_host_day {
        writeln!(
            out,
            "  C is steered to {rate} mistakes per host and day (detector.max_mistakes_per_host_day)."
        )?;
    }
    if !k.name.is_empty() {
        writeln!(
            out,
            "  The override `{}` holds for it: margins of {} to {}.",
            clean(&k.name),
            human_f64(k.timeout_min_ms as f64),
            human_f64(k.timeout_max_ms as f64)
        )?;
    }
    if k.frozen_ms.is_some() {
        return Ok(());
    }
    let lasts = format!(
        "disturbed, which lasts {DISTURBED_FOR} beats after a missing or unusually late one"
    );
    let (calm, disturbed) = (human_f64(d.margin_calm_ms), human_f64(d.margin_disturbed_ms));
    if d.context == "disturbed" {
        writeln!(out, "  It is disturbed now: {disturbed}; calm, it would be {calm} ({lasts}).")?;
    } else {
        writeln!(out, "  It is calm now: {calm}; {lasts}, it would be {disturbed}.")?;
    }
    let group = match d.group.as_str() {
        "" => "of hosts without a group".to_owned(),
        name => format!("of its group ({})", clean(name)),
    };
    writeln!(
        out,
        "  That is learned from {:.0} of its own beats and from {} {group}.",
        d.beats_learned, d.group_beats
    )?;
    match d.mistakes_foreseen_per_day {
        Some(n) => writeln!(out, "  {} wrong suspicions of it a day are foreseen.", rate(n)),
        None => Ok(()),
    }
}

/// Two figures that count.
fn rate(per_day: f64) -> String {
    match per_day {
        n if n >= 10.0 => format!("{n:.0}"),
        n if n >= 0.095 => format!("{n:.1}"),
        n if n >= 0.000_95 => format!("{n:.3}").trim_end_matches('0').to_owned(),
        _ => "Less than 0.001".to_owned(),
    }
}

/// How far apart its beats came.
pub(super) fn arrivals(out: &mut dyn Write, d: &HostWhy) -> io::Result<()> {
    if d.inter_arrival_mean_ms <= 0.0 {
        return Ok(());
    }
    writeln!(
        out,
        "  Beats came {} apart on average, give or take {}, 99 of 100 within {}.",
        human_f64(d.inter_arrival_mean_ms),
        human_f64(d.inter_arrival_deviation_ms),
        human_f64(d.inter_arrival_p99_ms)
    )
}

/// What its beats have taught: histograms, and the newest.
pub(super) fn learned(out: &mut dyn Write, d: &HostWhy) -> io::Result<()> {
    let sum = |bins: &[OverdueBin]| drawn(bins).map(|b| b.count).sum::<f64>();
    let late = sum(&d.overdue) + sum(&d.overdue_disturbed);
    if d.beats_learned < 0.5 {
        writeln!(out, "  It has not learned from any beat yet.")?;
    } else {
        let beats = d.beats_learned;
        let on_time = (beats - late).max(0.0);
        writeln!(
            out,
            "  Of {beats:.0} beats learned from (old ones count less), {on_time:.0} were on time.{}",
            if late < 0.5 { "" } else { " How late the others were, bars in powers of ten:" }
        )?;
        histogram(out, "While calm", &d.overdue)?;
        histogram(out, "While disturbed", &d.overdue_disturbed)?;
    }
    if d.last_overdue_ms.is_empty() {
        return Ok(());
    }
    writeln!(out, "  The newest beats, newest first:")?;
    let late = d.last_late_ms.iter().copied().chain(std::iter::repeat(0));
    for (overdue, late) in d.last_overdue_ms.iter().zip(late).take(OVERDUE_MAX) {
        if *overdue >= 0.0 {
            // A timer's lateness is told in whole milliseconds, so it may seem to exceed the whole.
            let own = f64::from(late).min(overdue.ceil());
            let own = format!("of which {own:.0}ms its own timer");
            writeln!(out, "    {} overdue, {own}", human_f64(*overdue))?;
        } else {
            let own = match late {
                0 => String::new(),
                ms => format!(", {ms}ms late by its own timer"),
            };
            writeln!(out, "    {} early{own}", human_f64(-overdue))?;
        }
    }
    Ok(())
}

fn drawn(bins: &[OverdueBin]) -> impl Iterator<Item = &OverdueBin> {
    bins.iter().filter(|b| b.count.is_finite() && b.count > 0.0).take(BINS_MAX)
}

fn histogram(out: &mut dyn Write, title: &str, bins: &[OverdueBin]) -> io::Result<()> {
    let most = drawn(bins).map(|b| b.count).fold(0.0, f64::max);
    if most <= 0.0 {
        return Ok(());
    }
    writeln!(out, "  {title}:")?;
    let labels: Vec<String> = drawn(bins).map(|b| edge(b.above_ms)).collect();
    let width = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    for (bin, label) in drawn(bins).zip(labels) {
        let len = (bin.count.ln_1p() / most.ln_1p() * BAR_LEN).round() as usize;
        // A rare one shall be seen, but not be taken for a whole one.
        let bar = if bin.count < 0.5 || len == 0 { ".".to_owned() } else { "#".repeat(len) };
        writeln!(out, "    {label:>width$}  {bar} {:.1}", bin.count)?;
    }
    Ok(())
}

/// The lower edge of a bin.
fn edge(ms: f64) -> String {
    let (value, unit) = if ms < 1_000.0 { (ms, "ms") } else { (ms / 1e3, "s") };
    let number = format!("{value:.2}");
    format!("≥ {} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
}
