//! Who may enrol, as whom, and under which generation of key (pure).
//!
//! The order of questions: is the token good? was this very enrolment granted before (a lost answer)? may
//! this host have the id that it wants? A join token lets machines *in*; it must let nobody take over the
//! id of a machine that is in already. What a use pays for is that: a machine let in, or one that gets the
//! labels of a token and did not have them. Who proves its key and gains nothing pays nothing, also with a
//! token that is used up: `enroll` may be run as often as one likes. So an id that is heard, or that another
//! machine enrolled, goes to whoever proves its present key and to nobody else. An id whose machine is down
//! or has said goodbye goes to any bearer of a token: a reinstalled host has lost its key. Its generation is
//! then raised, which ends the old key, stolen or not.

use std::collections::BTreeMap;

use heartwatch_common::enrol::Hex;
use heartwatch_common::id::{Generation, HostId};
use heartwatch_common::time::Wall;
use serde::{Deserialize, Serialize};

use crate::event::State;

/// A join token as it is kept: not the token, but what it lets whom do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRow {
    /// Its name: nothing secret.
    pub name: String,
    /// Hosts that it lets in, in all.
    pub uses: u32,
    /// How many of these are left.
    pub uses_left: u32,
    /// Until then.
    pub expires_ms: Wall,
    /// Whether a host whose id is taken gets one of its own.
    pub clones: bool,
    /// Labels that its hosts get.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created_ms: Wall,
    /// By whom.
    pub by: String,
    /// When it was revoked, if it was.
    pub revoked_ms: Option<Wall>,
}

/// What is kept of a host's enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// Who.
    pub host: HostId,
    /// By which token, by name; empty: by none, a key made by hand.
    pub token: String,
    /// Which try of the agent it was.
    pub attempt: Hex<16>,
    /// Which machine, as far as that can be told.
    pub machine: Hex<32>,
    /// Generation of the key that it was given.
    pub generation: Generation,
    /// Least generation that is accepted of it.
    pub least: Generation,
    /// Labels that it was given.
    pub labels: BTreeMap<String, String>,
    /// When.
    pub at_ms: Wall,
    /// Its key was revoked then.
    pub revoked_ms: Option<Wall>,
    /// Why, and who said so.
    pub reason: String,
    /// What it was called as it enrolled, or was revoked; empty: it is not known.
    #[serde(default)]
    pub name: String,
}

/// How the registry knows a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not at all.
    Unknown,
    /// It is expected, and was never heard.
    Expected,
    /// It is down, or said goodbye.
    Away,
    /// It is heard, or it is not certain that it is not.
    Here,
}

impl From<Option<State>> for Standing {
    fn from(state: Option<State>) -> Self {
        match state {
            None => Self::Unknown,
            Some(State::Pending) => Self::Expected,
            Some(State::Down | State::Left) => Self::Away,
            Some(State::Alive | State::Suspect | State::Duplicate) => Self::Here,
        }
    }
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Hash of the token that it brings.
    pub token: Hex<32>,
    /// Who it would like to be.
    pub host: HostId,
    /// Which try this is.
    pub attempt: Hex<16>,
    /// Which machine.
    pub machine: Hex<32>,
    /// It proved the host's present key, of this generation.
    pub proved: Option<Generation>,
    /// What it is called.
    pub name: String,
    /// How the registry knows `host`.
    pub standing: Standing,
    /// Least generation by the registry.
    pub generation: Generation,
    /// A random id, for a clone.
    pub fresh: HostId,
    /// Now.
    pub at: Wall,
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such token.
    #[error("this join token is not known here: make one with `heartwatchctl token create`")]
    UnknownToken,
    /// Revoked.
    #[error("the join token `{0}` was revoked: make another with `heartwatchctl token create`")]
    TokenRevoked(String),
    /// Too late.
    #[error("the join token `{0}` has expired: make another with `heartwatchctl token create`")]
    TokenExpired(String),
    /// Too many.
    #[error(
        "the join token `{0}` is used up: make another with `heartwatchctl token create --uses N`"
    )]
    TokenUsedUp(String),
    /// That host was taken out on purpose.
    #[error(
        "host {0} was revoked: if it may come back, an operator says so first with `heartwatchctl \
         hosts revoke {0} --lift`"
    )]
    HostRevoked(HostId),
    /// Another machine has that id.
    #[error(
        "host id {0} is taken by a machine that is enrolled or alive. If this is that machine: stop its \
         agent and wait until it is down or has left, or enrol where its key still is. If this is a clone of \
         it: give it a machine id of its own (empty /etc/machine-id, run systemd-machine-id-setup), or use a \
         token made with `heartwatchctl token create --clones`"
    )]
    Taken(HostId),
    /// 65,535 generations.
    #[error("host {0} has used up its key generations: set another `host_id` for it")]
    Exhausted(HostId),
}

impl Refusal {
    /// As it stands in metrics and problems.
    pub const fn slug(&self) -> &'static str {
        match self {
            Self::UnknownToken => "join-token-unknown",
            Self::TokenRevoked(_) => "join-token-revoked",
            Self::TokenExpired(_) => "join-token-expired",
            Self::TokenUsedUp(_) => "join-token-used-up",
            Self::HostRevoked(_) => "host-revoked",
            Self::Taken(_) => "host-taken",
            Self::Exhausted(_) => "host-exhausted",
        }
    }
}

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// It was granted before: the same again, and no use is taken.
    Again(Enrolment),
    /// A new enrolment, which takes a use.
    New(Enrolment),
    /// The host proved its key and gains nothing: it is kept, and no use is taken.
    Kept(Enrolment),
}

impl Grant {
    /// The enrolment.
    pub fn enrolment(&self) -> &Enrolment {
        match self {
            Self::Again(e) | Self::New(e) | Self::Kept(e) => e,
        }
    }
}

/// Of a host that did not enrol.
static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// Decides. `token`: the one of that hash; `same`: the enrolment of that attempt, whoever it became;
/// `present`: the enrolment of the host that is asked for.
pub fn decide(
    asked: &Asked,
    token: Option<&TokenRow>,
    same: Option<&Enrolment>,
    present: Option<&Enrolment>,
) -> Result<Grant, Refusal> {
    let token = token.ok_or(Refusal::UnknownToken)?;
    if token.revoked_ms.is_some() {
        return Err(Refusal::TokenRevoked(token.name.clone()));
    }
    if asked.at >= token.expires_ms {
        return Err(Refusal::TokenExpired(token.name.clone()));
    }
    if let Some(same) = same.filter(|e| e.token == token.name && e.machine.is(&asked.machine)) {
        if same.revoked_ms.is_some() {
            return Err(Refusal::HostRevoked(same.host));
        }
        return Ok(Grant::Again(same.clone()));
    }
    if present.is_some_and(|e| e.revoked_ms.is_some()) {
        return Err(Refusal::HostRevoked(asked.host));
    }
    let as_who = |host, generation, least| Enrolment {
        host,
        token: token.name.clone(),
        attempt: asked.attempt,
        machine: asked.machine,
        generation,
        least,
        labels: token.labels.clone(),
        at_ms: asked.at,
        revoked_ms: None,
        reason: String::new(),
        name: asked.name.clone(),
    };
    let least = asked.generation.max(present.map_or(Generation(0), |e| e.least));
    if let Some(proved) = asked.proved.filter(|g| *g >= least) {
        // The same key again: the agent that runs goes on with it until it takes up the rest.
        let has = present.map_or(&NO_LABELS, |e| &e.labels);
        // It keeps what another token gave it, or rules that choose it by that would mean it no more.
        let mut labels = has.clone();
        labels.extend(token.labels.clone());
        let gains = labels != *has;
        let same_key = Enrolment { labels, ..as_who(asked.host, proved, least) };
        return match (!gains, token.uses_left) {
            (true, _) => Ok(Grant::Kept(same_key)),
            (false, 0) => Err(Refusal::TokenUsedUp(token.name.clone())),
            (false, _) => Ok(Grant::New(same_key)),
        };
    }
    if token.uses_left == 0 {
        return Err(Refusal::TokenUsedUp(token.name.clone()));
    }
    let newest = least.max(present.map_or(Generation(0), |e| e.generation));
    let raised = newest.0.checked_add(1).map(Generation).ok_or(Refusal::Exhausted(asked.host));
    let is_free = match (asked.standing, present) {
        (Standing::Unknown | Standing::Expected, None) => {
            return Ok(Grant::New(as_who(asked.host, newest, least)));
        }
        (Standing::Unknown | Standing::Away, _) => true,
        // Enrolled and not yet heard: only the same machine can be sure to be itself.
        (Standing::Expected, Some(e)) => e.machine.is(&asked.machine),
        (Standing::Here, _) => false,
    };
    if is_free {
        let raised = raised?;
        return Ok(Grant::New(as_who(asked.host, raised, raised)));
    }
    if token.clones {
        return Ok(Grant::New(as_who(asked.fresh, Generation(0), Generation(0))));
    }
    Err(Refusal::Taken(asked.host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TokenRow {
        TokenRow {
            name: "t".to_owned(),
            uses: 2,
            uses_left: 1,
            expires_ms: Wall(1_000),
            clones: false,
            labels: BTreeMap::from([("pool".to_owned(), "a".to_owned())]),
            created_ms: Wall(0),
            by: "somebody".to_owned(),
            revoked_ms: None,
        }
    }

    fn asked(standing: Standing) -> Asked {
        Asked {
            token: Hex([1; 32]),
            host: HostId([1; 16]),
            attempt: Hex([2; 16]),
            machine: Hex([3; 32]),
            proved: None,
            name: String::new(),
            standing,
            generation: Generation(0),
            fresh: HostId([9; 16]),
            at: Wall(10),
        }
    }

    fn enrolled() -> Enrolment {
        Enrolment {
            host: HostId([1; 16]),
            token: "t".to_owned(),
            attempt: Hex([4; 16]),
            machine: Hex([3; 32]),
            generation: Generation(2),
            least: Generation(1),
            labels: BTreeMap::new(),
            at_ms: Wall(5),
            revoked_ms: None,
            reason: String::new(),
            name: String::new(),
        }
    }

    /// Who it became, its generation and the least one.
    fn outcome(grant: Result<Grant, Refusal>) -> Result<(u8, u16, u16), &'static str> {
        match grant {
            Ok(Grant::New(e)) => {
                assert_eq!(e.labels["pool"], "a");
                Ok((e.host.0[0], e.generation.0, e.least.0))
            }
            Ok(Grant::Kept(e)) => Ok((e.host.0[0] + 100, e.generation.0, e.least.0)),
            Ok(Grant::Again(_)) => Err("again"),
            Err(e) => Err(e.slug()),
        }
    }

    #[test]
    fn an_id_goes_to_whom_it_is_free_for_or_who_proves_its_key() {
        use Standing::{Away, Expected, Here, Unknown};
        let (same, other) = (enrolled(), Enrolment { machine: Hex([8; 32]), ..enrolled() });
        let gone = Enrolment { revoked_ms: Some(Wall(6)), ..enrolled() };
        let taken = Err("host-taken");
        let cases = [
            (Unknown, None, None, Ok((1, 0, 0))),
            (Expected, None, None, Ok((1, 0, 0))),
            (Away, None, None, Ok((1, 1, 1))),
            (Here, None, None, taken),
            (Unknown, Some(&same), None, Ok((1, 3, 3))),
            (Expected, Some(&same), None, Ok((1, 3, 3))),
            (Expected, Some(&other), None, taken),
            (Away, Some(&other), None, Ok((1, 3, 3))),
            (Here, Some(&same), None, taken),
            (Here, Some(&same), Some(2), Ok((1, 2, 1))),
            (Here, Some(&same), Some(0), taken),
            (Here, None, Some(0), Ok((1, 0, 0))),
            (Away, Some(&gone), None, Err("host-revoked")),
            (Here, Some(&gone), Some(2), Err("host-revoked")),
        ];
        for (standing, present, proved, expected) in cases {
            let ask = Asked { proved: proved.map(Generation), ..asked(standing) };
            let got = outcome(decide(&ask, Some(&token()), None, present));
            assert_eq!(got, expected, "{standing:?} {present:?} {proved:?}");
            // A token for clones changes one thing: who is refused for the id gets another one.
            let clones = TokenRow { clones: true, ..token() };
            let got = outcome(decide(&ask, Some(&clones), None, present));
            assert_eq!(got, if expected == taken { Ok((9, 0, 0)) } else { expected });
        }
        let last = Enrolment { generation: Generation(u16::MAX), ..enrolled() };
        let got = outcome(decide(&asked(Away), Some(&token()), None, Some(&last)));
        assert_eq!(got, Err("host-exhausted"));
    }

    #[test]
    fn who_proves_its_key_and_gains_nothing_takes_no_use() {
        let ask = |host: u8| Asked {
            host: HostId([host; 16]),
            proved: Some(Generation(2)),
            ..asked(Standing::Here)
        };
        let labels = token().labels;
        let has = Enrolment { labels, token: "an older one".to_owned(), ..enrolled() };
        let used_up = TokenRow { uses_left: 0, ..token() };
        let other = TokenRow { labels: BTreeMap::new(), ..used_up.clone() };
        let with = |token: &TokenRow, present: Option<&Enrolment>| {
            outcome(decide(&ask(1), Some(token), None, present))
        };
        for token in [token(), used_up.clone()] {
            assert_eq!(with(&token, Some(&has)), Ok((101, 2, 1)));
        }
        // Other labels are let out as often as the token says, and no more.
        assert_eq!(with(&token(), Some(&enrolled())), Ok((1, 2, 1)));
        assert_eq!(with(&used_up, Some(&enrolled())), Err("join-token-used-up"));
        assert_eq!(with(&used_up, None), Err("join-token-used-up"));
        assert_eq!(with(&other, None), Ok((101, 2, 0)), "a key made by hand, and no labels");
        // A token without labels, or with others, takes none away.
        let of_zone = BTreeMap::from([("zone".to_owned(), "z2".to_owned())]);
        let zoned = TokenRow { labels: of_zone.clone(), ..self::token() };
        let plain = TokenRow { labels: BTreeMap::new(), ..self::token() };
        let labels = |token: &TokenRow| {
            decide(&ask(1), Some(token), None, Some(&has)).unwrap().enrolment().labels.clone()
        };
        assert_eq!(with(&plain, Some(&has)), Ok((101, 2, 1)), "nothing is gained");
        assert_eq!(labels(&plain), has.labels);
        assert_eq!(with(&zoned, Some(&has)), Ok((1, 2, 1)), "a label is");
        let both: BTreeMap<_, _> = has.labels.clone().into_iter().chain(of_zone).collect();
        assert_eq!((labels(&zoned), both.len()), (both.clone(), has.labels.len() + 1));
        // A revoked or late token does nothing, for nobody.
        let late = TokenRow { expires_ms: Wall(10), ..token() };
        assert_eq!(with(&late, Some(&has)), Err("join-token-expired"));
    }

    #[test]
    fn a_token_must_be_known_unrevoked_in_time_and_not_used_up() {
        let ask = asked(Standing::Unknown);
        let with = |token: TokenRow| outcome(decide(&ask, Some(&token), None, None));
        assert_eq!(outcome(decide(&ask, None, None, None)), Err("join-token-unknown"));
        let revoked = TokenRow { revoked_ms: Some(Wall(1)), ..token() };
        assert_eq!(with(revoked), Err("join-token-revoked"));
        assert_eq!(with(TokenRow { expires_ms: Wall(10), ..token() }), Err("join-token-expired"));
        assert_eq!(with(TokenRow { uses_left: 0, ..token() }), Err("join-token-used-up"));
    }

    #[test]
    fn a_lost_answer_is_given_again_to_the_same_machine_under_the_same_token() {
        let ask = asked(Standing::Here);
        let same = Enrolment { attempt: ask.attempt, ..enrolled() };
        let used_up = TokenRow { uses_left: 0, ..token() };
        let again = |token: &TokenRow, same: &Enrolment| {
            outcome(decide(&ask, Some(token), Some(same), Some(same)))
        };
        assert_eq!(again(&used_up, &same), Err("again"));
        let elsewhere = Enrolment { machine: Hex([7; 32]), ..same.clone() };
        assert_eq!(again(&used_up, &elsewhere), Err("join-token-used-up"));
        let other = Enrolment { token: "u".to_owned(), ..same.clone() };
        assert_eq!(again(&used_up, &other), Err("join-token-used-up"));
        let gone = Enrolment { revoked_ms: Some(Wall(6)), ..same.clone() };
        assert_eq!(again(&token(), &gone), Err("host-revoked"));
        let revoked = TokenRow { revoked_ms: Some(Wall(1)), ..token() };
        assert_eq!(again(&revoked, &same), Err("join-token-revoked"));
    }
}
