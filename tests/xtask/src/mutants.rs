//! Puts old bugs back, one at a time, and demands that the simulator notices each: a simulator that has
//! never caught a planted bug is unproven.
//!
//! Works on a copy of the tree under `target/mutants`, with a build directory of its own, so that
//! nothing of it can be mistaken for the product.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::{cargo, root, target_dir};
use crate::run::stream;

struct Mutant {
    name: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
}

const MUTANTS: [Mutant; 27] = [
    Mutant {
        name: "watermark ignored: hosts are judged while their beats lie unread",
        file: "controller/src/shard/watch.rs",
        from: "let seen = self.empty_at.max(self.newest) - self.slack;",
        to: "let seen = Instant::FAR;",
    },
    Mutant {
        name: "replay window off by one: the newest beat may come again",
        file: "controller/src/ingest/admit.rs",
        from: "if stamp.seq <= newest.seq ||",
        to: "if stamp.seq < newest.seq ||",
    },
    Mutant {
        name: "delivery marked as delivered before it is sent",
        file: "controller/src/store/sqlite/outbox.rs",
        from: "UPDATE deliveries SET attempts = ?2 WHERE id = ?1",
        to: "UPDATE deliveries SET attempts = ?2, state = 'delivered' WHERE id = ?1",
    },
    Mutant {
        name: "stale probe plan: a suspect that answered is probed on, and called down",
        file: "controller/src/detector/observe.rs",
        from: "            self.confirm.end(slot);\n            self.file(slot, deadline",
        to: "            self.file(slot, deadline",
    },
    Mutant {
        name: "a recovery leaves stale orders alone",
        file: "controller/src/policy/mod.rs",
        from: "        state: State::Alive,\n        settle: Settle::All,",
        to: "        state: State::Alive,\n        settle: Settle::Nothing,",
    },
    Mutant {
        // Checked never, no recording passes: whoever echoes an earlier epoch is then not challenged by an
        // ack, so no life of which nothing was proved since the start is believed without a nonce.
        name: "epoch checked now and then: recordings from before a restart prove life",
        file: "controller/src/ingest/admit.rs",
        from: "if stamp.epoch != epoch {",
        to: "if stamp.epoch != epoch && arrival.as_micros().is_multiple_of(2) {",
    },
    Mutant {
        name: "forged peer reply accepted: the tag of what a peer brings back is not verified",
        file: "controller/src/ingest/admit.rs",
        from: "let is_sealed = verdict.unwrap_or_else(alone);",
        to: "let is_sealed = nonce_of(&datagram.message).is_some() || verdict.unwrap_or_else(alone);",
    },
    Mutant {
        name: "recorded peer reply accepted: its nonce is not compared",
        file: "controller/src/detector/confirm.rs",
        from: "waiting.find(|r| r.nonce == *nonce)",
        to: "waiting.find(|r| r.nonce != [0; 16])",
    },
    Mutant {
        name: "recordings count as heard: who replays hides that the own link is cut",
        file: "controller/src/shard/core.rs",
        from: "let Some(slot) = found else {",
        to: "self.detector.hear(from, arrival);\n        let Some(slot) = found else {",
    },
    Mutant {
        name: "nobody is asked: a host cut off from the controller alone is called down",
        file: "controller/src/detector/confirm.rs",
        from: "self.peers > 0 && due && !spare",
        to: "self.peers > 200 && due && !spare",
    },
    Mutant {
        name: "learning from own pause: a cut of the own link makes hosts look unreliable",
        file: "controller/src/detector/doubt.rs",
        from: "|| self.deaf.is_some_and(|d| d.end > last && d.end > expected)",
        to: "|| self.deaf.is_some_and(|d| d.end > last && d.end > expected && lost > 9_999)",
    },
    Mutant {
        name: "doubt never ending: own losses excuse a host for ever",
        file: "controller/src/detector/doubt.rs",
        from: "seen.since(since) >= self.doubt_max) {",
        to: "seen.since(since) >= self.doubt_max * 9_999) {",
    },
    Mutant {
        name: "a cut that is not recognised: all hosts are called down for it",
        file: "controller/src/detector/doubt.rs",
        from: "if self.silent_hosts >= CUT_HOSTS {",
        to: "if self.silent_hosts >= CUT_HOSTS * 999 {",
    },
    Mutant {
        name: "stale estimate after reboot: a new boot is judged by the old one's clock",
        file: "controller/src/detector/observe.rs",
        from: "            h.learned.rebase();\n",
        to: "",
    },
    Mutant {
        name: "slow cascade forgotten: who was acted upon is no evidence any more",
        file: "controller/src/policy/guard.rs",
        from: "self.wake(host, Some(self.now + self.config.storm_window));",
        to: "self.wake(host, Some(self.now));",
    },
    Mutant {
        name: "rate ignored: all that a storm held goes at once",
        file: "controller/src/policy/guard.rs",
        from: "domain.action_due - ahead <= self.now",
        to: "domain.action_due - ahead <= Instant::FAR",
    },
    Mutant {
        name: "the first slip through: nobody waits although others are silent",
        file: "controller/src/policy/guard.rs",
        from: "&& others > 0\n",
        to: "&& others > 99_999\n",
    },
    Mutant {
        name: "restart forgets: what a storm held is held on, and nobody sees it",
        file: "controller/src/policy/guard.rs",
        from: "self.stage(host, Stage::Held(Why::Own), since);",
        to: "self.stage(host, Stage::Acted, since);",
    },
    Mutant {
        name: "overdue untold: what is held for long is held unseen",
        file: "controller/src/policy/guard/steps.rs",
        from: "group.count += 1;",
        to: "group.count += 0;",
    },
    Mutant {
        name: "storm told again and again: one event for each look at it",
        file: "controller/src/policy/guard/storms.rs",
        from: "storm.told = true;",
        to: "storm.told = false;",
    },
    Mutant {
        name: "fleet unguarded: our own cut link fails everybody over",
        file: "controller/src/policy/guard/storms.rs",
        from: "        hosts > 0\n",
        to: "        hosts > 0 && id != DomainId::FLEET\n",
    },
    Mutant {
        name: "a restart forgets the delay: what a rule kept back goes at once",
        file: "controller/src/policy/waiting.rs",
        from: "let left = rule.delay.saturating_sub(held_for);",
        to: "let left = held_for.saturating_sub(held_for);",
    },
    Mutant {
        name: "a hold that ends lets all go: also what rules still keep back",
        file: "controller/src/policy/waiting.rs",
        from: "orders.push(Order::Release(host, but));",
        to: "orders.push(Order::Release(host, but[..0].to_vec()));",
    },
    Mutant {
        name: "hours ignored: what a rule delayed goes at night",
        file: "controller/src/policy/waiting.rs",
        from: "if !rule.is_open(at) {",
        to: "if !rule.is_open(at) && !its_turn && rule.delay.is_zero() {",
    },
    Mutant {
        name: "maintenance unheeded: what dies in a window is failed over in it",
        file: "controller/src/policy/guard.rs",
        from: "if let Some(by) = self.sheltered.get(&host) {",
        to: "if let Some(by) = self.sheltered.get(&host).filter(|by| by.0 > 999) {",
    },
    Mutant {
        name: "maintenance forgets: what a window held is not judged at its end",
        file: "controller/src/policy/guard/shelter.rs",
        from: "                self.again.push_back(host);\n",
        to: "",
    },
    Mutant {
        name: "promise forgotten: after a restart nobody waits for who said it would be back",
        file: "controller/src/store/sqlite/journal.rs",
        from: "        row.back_by.map(|at| at.0),\n",
        to: "        None::<i64>,\n",
    },
];

/// Seeds per mutant, and for the unharmed tree.
const SEEDS: &str = "400";

/// Runs the mutants whose name contains one of `filters`; all without any.
pub(crate) fn run(filters: &[String]) -> Result<(), String> {
    let wanted = |m: &&Mutant| filters.is_empty() || filters.iter().any(|f| m.name.contains(f));
    let chosen: Vec<_> = MUTANTS.iter().filter(wanted).collect();
    if chosen.is_empty() {
        let names: Vec<_> = MUTANTS.iter().map(|m| m.name).collect();
        return Err(format!("no planted bug is called so; there are\n  {}", names.join("\n  ")));
    }
    let copy = target_dir().join("mutants/tree");
    let build = target_dir().join("mutants/build");
    copy_tree(&copy)?;
    println!("the unharmed tree first (the first build takes some minutes)…");
    if !survives(&copy, &build)? {
        return Err("the simulator fails without any planted bug: mend that first".to_owned());
    }
    let mut missed = 0;
    for m in &chosen {
        let path = copy.join(m.file);
        let good = read(&path)?;
        if good.matches(m.from).count() != 1 {
            return Err(format!("{}: the line to change is not there (once): {}", m.file, m.from));
        }
        write(&path, &good.replace(m.from, m.to))?;
        let survived = survives(&copy, &build)?;
        write(&path, &good)?;
        println!("{} {}", if survived { "MISSED" } else { "caught" }, m.name);
        missed += u32::from(survived);
    }
    println!("{} passed, {missed} failed", chosen.len() as u32 - missed);
    if missed == 0 { Ok(()) } else { Err(format!("{missed} planted bugs were not noticed")) }
}

/// Whether the simulator finds nothing wrong.
fn survives(tree: &Path, build: &Path) -> Result<bool, String> {
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--profile", "ci", "-p", "heartwatch-tests", "--bin", "sim"])
        .arg("--target-dir")
        .arg(build)
        .current_dir(tree);
    if !stream(&mut command)?.success {
        return Err("a tree with a planted bug does not build: change the mutant".to_owned());
    }
    let sim = build.join("ci/sim");
    let output = Command::new(sim)
        .args(["--seeds", SEEDS])
        .output()
        .map_err(|e| format!("cannot run the simulator: {e}"))?;
    Ok(output.status.success())
}

/// Copies what git tracks, as it stands in the working tree.
fn copy_tree(to: &Path) -> Result<(), String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .map_err(|e| format!("cannot list the files (git): {e}"))?;
    let names = String::from_utf8_lossy(&listed.stdout).into_owned();
    let known = names.split('\0').filter(|n| !n.is_empty()).map(|n| to.join(n)).collect();
    remove_strangers(to, &known)?;
    for name in names.split('\0').filter(|n| !n.is_empty()) {
        let (from, to) = (root().join(name), to.join(name));
        let Some(parent) = to.parent() else { continue };
        if !from.is_file() {
            continue;
        }
        std::fs::create_dir_all(parent)
            .map_err(|e| format!("cannot make {}: {e}", parent.display()))?;
        // Only what changed, so that the next run builds little.
        let text = std::fs::read(&from).map_err(|e| format!("cannot read {name}: {e}"))?;
        if std::fs::read(&to).ok().as_ref() != Some(&text) {
            std::fs::write(&to, text).map_err(|e| format!("cannot write {}: {e}", to.display()))?;
        }
    }
    Ok(())
}

/// Removes what an earlier copy left and git no longer knows: a module that moved would be there twice.
fn remove_strangers(dir: &Path, known: &BTreeSet<PathBuf>) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("cannot clean {}: {e}", dir.display());
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            remove_strangers(&path, known)?;
        } else if !known.contains(&path) {
            std::fs::remove_file(&path).map_err(failed)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of them once rotted unseen, as the code that they change had been rewritten.
    #[test]
    fn every_planted_bug_still_finds_its_line() {
        for m in &MUTANTS {
            let text = read(&root().join(m.file)).unwrap();
            assert_eq!(text.matches(m.from).count(), 1, "{}: {}", m.file, m.name);
            assert_ne!(m.from, m.to);
        }
    }
}
