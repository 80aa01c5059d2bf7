//! Two machines under one identity: what is known of the other one, and an operator's word on it.

use std::io::{self, Write};

use clap::Args;

use super::CtlError;
use super::remote::Run;
use super::text::{clean, human_ms};
use crate::api::types::{SingleJson, WhyJson, WordBody};
use crate::control::TwinWhy;
use crate::event::State;

/// How many of its gaps the other must have been silent for, at least, to be spoken of in the past.
const GAPS: u64 = 5;

#[derive(Debug, Args)]
pub(super) struct Single {
    /// Its id, or its name.
    host: String,
    /// Why it is certain; others will ask.
    #[arg(long)]
    reason: String,
    /// Who says so.
    #[arg(long, env = "USER", default_value = "an operator")]
    by: String,
}

impl Run<'_> {
    pub(super) async fn single(&mut self, args: &Single) -> Result<(), CtlError> {
        let word = WordBody { by: args.by.clone(), reason: args.reason.clone() };
        let answer = self.client.single(&args.host, &word).await?;
        let host = clean(&args.host);
        self.print(answer, |out, done: SingleJson| {
            writeln!(
                out,
                "One machine is left under the identity of {host}. Should another be heard again, that is told \
                 anew (host.duplicate)."
            )?;
            match done.held {
                true => writeln!(out, "Its held failover is judged again now: heartwatchctl why {host}"),
                false => Ok(()),
            }
        })
    }
}

/// Who the other is, and when it was last heard.
pub(super) fn other(twin: &TwinWhy) -> String {
    let Some(silence) = twin.silence_ms else {
        if twin.over_in_ms == 0 {
            return "the host was given a new key since, and the other has none".to_owned();
        }
        return "the other has not been heard since the controller's start".to_owned();
    };
    let boot = twin.boot.map_or_else(String::new, |boot| format!("life {boot} of its agent, "));
    let at = twin.address.map_or_else(|| "an unknown address".to_owned(), |at| at.to_string());
    let last = if twin.left { "said goodbye" } else { "was last heard" };
    format!("the other ({boot}at {at}) {last} {} ago", human_ms(silence))
}

/// Whether beats of both came just now.
pub(super) fn both_answer(why: &WhyJson) -> bool {
    let Some(detector) = &why.detector else { return false };
    let twin = detector.twin.as_ref().filter(|twin| !twin.left);
    let silence = twin.and_then(|twin| twin.silence_ms);
    silence.is_some_and(|ms| ms < (GAPS * detector.gap_ms).max(1_000))
}

/// What follows from it, for the host's story.
pub(super) fn of_host(out: &mut dyn Write, why: &WhyJson) -> io::Result<()> {
    let host = &why.host;
    if !host.duplicate {
        return Ok(());
    }
    let twin = why.detector.as_ref().and_then(|d| d.twin.as_ref());
    match twin {
        Some(twin) => {
            let verb = if both_answer(why) { "answer" } else { "answered" };
            writeln!(out, "Two machines {verb} under its identity (a clone?): {}.", other(twin))?;
            match twin.over_in_ms {
                0 => {
                    writeln!(out, "That one is taken for gone with the host's next sign of life.")?
                }
                ms => writeln!(
                    out,
                    "If that one stays silent it is taken for gone in {}.",
                    human_ms(ms)
                )?,
            }
        }
        None => writeln!(
            out,
            "Two machines answered under its identity (a clone?), and both may still be there."
        )?,
    }
    match (host.state, &why.hold) {
        (_, Some(_)) => {}
        (State::Down, None) => {
            writeln!(out, "It is silent now; no order of it is held, as none was given.")?;
        }
        (_, None) => {
            writeln!(out, "Should the host be taken for dead before that, its failover is held.")?
        }
    }
    writeln!(
        out,
        "Only one is left? heartwatchctl hosts single {} --reason … Neither is to be believed? heartwatchctl \
         hosts revoke {} --reason …",
        host.id, host.id
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::tests::fixture;
    use heartwatch_common::id::Boot;

    fn told(silence_ms: Option<u64>, over_in_ms: u64) -> String {
        let mut why = fixture();
        (why.host.duplicate, why.host.state) = (true, State::Duplicate);
        let boot = silence_ms.map(|_| Boot(9));
        let address = silence_ms.map(|_| std::net::SocketAddr::from(([192, 0, 2, 2], 4_000)));
        let twin = TwinWhy { boot, address, silence_ms, over_in_ms, left: false };
        why.detector.as_mut().unwrap().twin = Some(twin);
        let mut out = Vec::new();
        crate::ctl::story::write(&mut out, &why).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// It said "from two machines" ten minutes long, of a clone that had lived for two seconds.
    #[test]
    fn of_another_that_fell_silent_it_is_told_when_and_not_that_it_answers() {
        let now = told(Some(700), 599_300);
        assert!(now.contains("Beats arrive, but from two machines."), "{now}");
        let then = told(Some(240_000), 360_000);
        for part in [
            "from one machine now; not long ago two answered",
            "Two machines answered under its identity (a clone?): the other (life 9 of its agent, at 192.0.2.2:4000) \
             was last heard 4m ago.",
            "taken for gone in 6m.",
            "Should the host be taken for dead before that, its failover is held",
            "hosts single 8a4e3b1c5d6f70819203a4b5c6d7e8f9 --reason",
        ] {
            assert!(then.contains(part), "{part}\n{then}");
        }
        let mut why = fixture();
        (why.host.duplicate, why.host.state, why.hold) = (true, State::Down, None);
        let mut out = Vec::new();
        crate::ctl::story::write(&mut out, &why).unwrap();
        let down = String::from_utf8(out).unwrap();
        assert!(down.contains("It is silent now; no order of it is held"), "{down}");
        assert!(!down.contains("Should the host"), "{down}");
        assert!(told(None, 500_000).contains("not been heard since the controller's start"));
        assert!(told(None, 0).contains("was given a new key since"));
        let at = Some(std::net::SocketAddr::from(([192, 0, 2, 2], 4_000)));
        let (boot, silence_ms) = (Some(Boot(9)), Some(700));
        let gone = TwinWhy { boot, address: at, silence_ms, over_in_ms: 599_300, left: true };
        assert!(other(&gone).contains("at 192.0.2.2:4000) said goodbye"), "{}", other(&gone));
        let mut why = fixture();
        why.detector.as_mut().unwrap().twin = Some(gone);
        assert!(!both_answer(&why), "it said goodbye, just now");
    }
}
