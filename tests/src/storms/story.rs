//! What befalls a fleet: drawn once from its seed.

use std::time::Duration;

use heartwatch_common::id::HostId;
use heartwatch_controller::config::{ActionRate, GuardConfig};
use heartwatch_controller::detector::host::Turn;
use heartwatch_controller::event::{Cause, State};
use heartwatch_controller::policy::guard::Target;
use heartwatch_controller::policy::hours::Hours;
use heartwatch_controller::policy::maintenance::Scope;
use heartwatch_controller::policy::parse_domain;
use jiff::tz::TimeZone;
use rand::RngExt;
use rand::rngs::StdRng;

use super::fleet::Host;
use super::maintenance::some_scope;
use super::{STORIES_UNTIL, World};

/// Something that happens at a moment.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    Die {
        host: usize,
        agent_only: bool,
    },
    Return {
        host: usize,
    },
    /// All of these at once.
    DieTogether {
        hosts: Vec<usize>,
    },
    /// What the detector would say, if nothing came between.
    Suspect {
        host: usize,
        life: u32,
    },
    Down {
        host: usize,
        life: u32,
    },
    Heard {
        host: usize,
        life: u32,
    },
    /// A suspicion that proves wrong at once.
    Hiccup {
        host: usize,
    },
    KillController,
    StartController,
    CutLink,
    MendLink,
    Blind,
    Sighted,
    Pause {
        span: Duration,
    },
    ReceiverDown,
    ReceiverUp,
    Operator {
        target: Target,
        approves: bool,
    },
    /// A maintenance window is opened.
    Maintain {
        scope: Scope,
        span: Duration,
    },
    /// A goodbye that says for how long.
    Leave {
        host: usize,
        expected: Duration,
    },
    /// What the detector would say of one that is not back.
    Overdue {
        host: usize,
        life: u32,
    },
}

/// A seed's fleet, settings, and mix of stories.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) zones: usize,
    /// In each zone.
    pub(super) racks: usize,
    /// In each rack.
    pub(super) hosts: usize,
    pub(super) unlabelled: f64,
    pub(super) gap: Duration,
    pub(super) guard: GuardConfig,
    pub(super) patience: Patience,
}

/// What the patient rule waits for.
#[derive(Clone, Debug, Default)]
pub(super) struct Patience {
    pub(super) delay: Duration,
    pub(super) hours: Option<Hours>,
    pub(super) rate: Option<ActionRate>,
}

impl Patience {
    /// The world begins at 22:13:20 UTC and ends 46 minutes later: hours that are on at its end.
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let hours = ["22:20-22:30; 22:40-02:00", "Tue 22:45-24:00", "Mon-Fri 00:00-24:00"];
        let hours = hours.get(rng.random_range(0..6usize));
        let per_minute = [30, 60, 600].get(rng.random_range(0..6usize));
        Self {
            delay: Duration::from_secs([0, 5, 20, 90][rng.random_range(0..4usize)]),
            hours: hours.map(|text| Hours::parse(text, TimeZone::UTC).expect("they are windows")),
            rate: per_minute.map(|per_minute| ActionRate { per_minute: *per_minute, burst: 5 }),
        }
    }
}

impl Plan {
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let seconds = Duration::from_secs;
        let defaults = GuardConfig::default();
        let release_after = match rng.random_range(0..4) {
            0 | 1 => Duration::ZERO,
            2 => seconds(180),
            _ => defaults.release_after,
        };
        let window = if rng.random_bool(0.5) { defaults.storm_window } else { seconds(240) };
        let per_minute = if rng.random_bool(0.7) { 10 } else { 30 };
        Self {
            zones: rng.random_range(1..=3),
            racks: rng.random_range(2..=4),
            hosts: rng.random_range(4..=20),
            unlabelled: if rng.random_bool(0.3) { 0.1 } else { 0.0 },
            gap: seconds(if rng.random_bool(0.8) { 1 } else { 10 }),
            guard: GuardConfig {
                release_after,
                storm_window: window,
                hold_max: seconds(120),
                rate: ActionRate { per_minute, burst: 10 },
                ..defaults
            },
            patience: Patience::default(),
        }
    }
}

fn seconds(from: u64, to: u64, rng: &mut StdRng) -> Duration {
    Duration::from_millis(rng.random_range(from * 1_000..to * 1_000))
}

/// Hosts with this label.
fn with(hosts: &[Host], label: &str, value: &str) -> Vec<usize> {
    let has = |h: &Host| h.labels.get(label).is_some_and(|v| v == value);
    (0..hosts.len()).filter(|i| has(&hosts[*i])).collect()
}

pub(super) fn draw(plan: &Plan, hosts: &[Host], rng: &mut StdRng) -> Vec<(Duration, Happening)> {
    let mut story = Vec::new();
    let last = STORIES_UNTIL.as_secs() - 60;
    for _ in 0..rng.random_range(0..6) {
        let host = rng.random_range(0..hosts.len());
        let agent_only = rng.random_bool(0.2);
        let at = seconds(20, last, rng);
        story.push((at, Happening::Die { host, agent_only }));
        if rng.random_bool(0.5) {
            story.push((at + seconds(1, 600, rng), Happening::Return { host }));
        }
    }
    for _ in 0..rng.random_range(0..60) {
        let host = rng.random_range(0..hosts.len());
        story.push((seconds(20, last, rng), Happening::Hiccup { host }));
    }
    for _ in 0..rng.random_range(0..=3) {
        let at = seconds(30, last - 400, rng);
        let rack = rng.random_range(0..plan.zones * plan.racks);
        match rng.random_range(0..8) {
            0 | 1 => together(with(hosts, "rack", &format!("r{rack}")), at, &mut story, rng),
            2 => together(with(hosts, "power", &format!("p{}", rack % 2)), at, &mut story, rng),
            3 => {
                // A slow cascade, one by one.
                let zone = with(hosts, "zone", &format!("z{}", rack % plan.zones));
                let every = rng.random_range(5..50);
                for (n, host) in zone.into_iter().enumerate().take(24) {
                    let die = Happening::Die { host, agent_only: false };
                    story.push((at + Duration::from_secs(every * n as u64), die));
                }
            }
            4 => {
                story.push((at, Happening::CutLink));
                story.push((at + seconds(5, 300, rng), Happening::MendLink));
            }
            5 => flapping(hosts.len(), at, &mut story, rng),
            6 => {
                let (what, end) = match rng.random_bool(0.5) {
                    true => (Happening::Blind, Happening::Sighted),
                    false => (Happening::Pause { span: seconds(10, 200, rng) }, Happening::Sighted),
                };
                story.push((at, what));
                story.push((at + seconds(10, 200, rng), end));
                let host = rng.random_range(0..hosts.len());
                let die = Happening::Die { host, agent_only: false };
                story.push((at + seconds(1, 10, rng), die));
            }
            _ => {
                story.push((at, Happening::ReceiverDown));
                story.push((at + seconds(10, 120, rng), Happening::ReceiverUp));
            }
        }
        if rng.random_bool(0.4) {
            let kill = at + seconds(0, 90, rng);
            story.push((kill, Happening::KillController));
            story.push((kill + seconds(1, 40, rng), Happening::StartController));
        }
        if rng.random_bool(0.25) {
            let host = rng.random_range(0..hosts.len());
            let zone = format!("zone=z{}", rack % plan.zones);
            let target = match (rng.random_range(0..3), parse_domain(&zone)) {
                (0, _) | (_, Err(_)) => Target::Host(hosts[host].id),
                (1, Ok(zone)) => Target::Domain(zone),
                _ => Target::Domain(hosts[host].labels.clone()),
            };
            let approves = rng.random_bool(0.7);
            story.push((at + seconds(5, 300, rng), Happening::Operator { target, approves }));
        }
    }
    planned(plan, hosts, last, &mut story, rng);
    story.sort_by_key(|(at, _)| *at);
    story
}

/// Windows, some while things die in them, and goodbyes, some of which are promises that are broken.
fn planned(
    plan: &Plan,
    hosts: &[Host],
    last: u64,
    story: &mut Vec<(Duration, Happening)>,
    rng: &mut StdRng,
) {
    for _ in 0..rng.random_range(0..4) {
        let at = seconds(20, last, rng);
        let rack = rng.random_range(0..plan.zones * plan.racks);
        let host = rng.random_range(0..hosts.len());
        let pick = rng.random_range(0..4);
        let scope = some_scope(rack % plan.zones, rack, hosts[host].id, pick);
        let span = seconds(5, 400, rng);
        story.push((at, Happening::Maintain { scope, span }));
        match rng.random_range(0..4) {
            0 => {
                let die = at + seconds(1, 100, rng);
                together(with(hosts, "rack", &format!("r{rack}")), die, story, rng);
            }
            1 => {
                story.push((at + seconds(1, 100, rng), Happening::Die { host, agent_only: false }))
            }
            _ => {}
        }
    }
    for _ in 0..rng.random_range(0..5) {
        let host = rng.random_range(0..hosts.len());
        let (at, expected) = (seconds(20, last, rng), seconds(10, 300, rng));
        story.push((at, Happening::Leave { host, expected }));
        if rng.random_bool(0.7) {
            let back = expected.mul_f64(rng.random_range(0.3..1.3));
            story.push((at + back, Happening::Return { host }));
        }
    }
}

/// All at once; later some, all or none come back.
fn together(
    hosts: Vec<usize>,
    at: Duration,
    story: &mut Vec<(Duration, Happening)>,
    rng: &mut StdRng,
) {
    let back = [0.0, 0.3, 0.6, 1.0][rng.random_range(0..4usize)];
    let end = at + seconds(5, 300, rng);
    for host in &hosts {
        if rng.random_bool(back) {
            story.push((end + seconds(0, 20, rng), Happening::Return { host: *host }));
        }
    }
    story.push((at, Happening::DieTogether { hosts }));
}

fn flapping(hosts: usize, at: Duration, story: &mut Vec<(Duration, Happening)>, rng: &mut StdRng) {
    let flappers = rng.random_range(1..=hosts.min(12));
    for _ in 0..flappers {
        let host = rng.random_range(0..hosts);
        let mut t = at + seconds(0, 30, rng);
        for _ in 0..rng.random_range(3..12) {
            story.push((t, Happening::Die { host, agent_only: false }));
            t += seconds(1, 15, rng);
            story.push((t, Happening::Return { host }));
            t += seconds(1, 20, rng);
        }
        if rng.random_bool(0.4) {
            story.push((t, Happening::Die { host, agent_only: false }));
        }
    }
}

impl World {
    pub(super) fn happen(&mut self, what: Happening) {
        let ended = self.now.since(super::ORIGIN) >= STORIES_UNTIL;
        let inner = matches!(
            what,
            Happening::Suspect { .. }
                | Happening::Down { .. }
                | Happening::Heard { .. }
                | Happening::Overdue { .. }
                | Happening::StartController
                | Happening::MendLink
                | Happening::Sighted
        );
        if ended && !inner {
            return;
        }
        if !matches!(
            what,
            Happening::Suspect { .. }
                | Happening::Down { .. }
                | Happening::Heard { .. }
                | Happening::Overdue { .. }
        ) {
            self.tell(format!("{what:?}"));
        }
        match what {
            Happening::Die { host, agent_only } => self.die(host, agent_only),
            Happening::DieTogether { hosts } => {
                let live = hosts.iter().filter(|h| !self.is_silent(**h));
                let ids: Vec<HostId> = live.map(|h| self.hosts[*h].id).collect();
                self.promises.died_together(&ids, self.plan.gap, self.now);
                hosts.into_iter().for_each(|host| self.die(host, false));
            }
            Happening::Return { host } => {
                if self.hosts[host].dead {
                    self.hosts[host].dead = false;
                    self.hosts[host].boot += 1;
                    self.is_heard(host);
                }
            }
            Happening::Suspect { host, life } => {
                let state = self.rows.get(&self.hosts[host].id).map(|r| r.state);
                if self.hosts[host].life == life && state == Some(State::Alive) {
                    self.turn(host, Turn::Suspect, State::Suspect);
                }
            }
            Happening::Down { host, life } => {
                if self.hosts[host].life == life {
                    let lost = self.hosts[host].agent_only && !self.link_cut;
                    let cause = if lost { Cause::AgentLost } else { Cause::Silent };
                    self.turn(host, Turn::Down(cause), State::Down);
                }
            }
            Happening::Heard { host, life } => self.heard(host, life),
            Happening::Hiccup { host } => {
                let state = self.rows.get(&self.hosts[host].id).map(|r| r.state);
                if !self.is_silent(host) && state == Some(State::Alive) {
                    self.turn(host, Turn::Suspect, State::Suspect);
                    let life = self.hosts[host].life;
                    let back = Duration::from_millis(self.rng.random_range(100..600));
                    self.at(self.now + back, Happening::Heard { host, life });
                }
            }
            Happening::KillController => {
                // What was decided is written first: a kill between the two is the e2e tests' matter.
                self.tick();
                self.policy = None;
                self.work.clear();
                self.due.clear();
            }
            Happening::StartController => {
                if self.policy.is_none() {
                    self.start_controller();
                }
            }
            Happening::CutLink => {
                self.link_cut = true;
                for host in 0..self.hosts.len() {
                    if !self.hosts[host].dead {
                        // Doubt excuses them for a while.
                        let doubt = seconds(1, 90, &mut self.rng);
                        self.falls_silent(host, doubt);
                    }
                }
            }
            Happening::MendLink => {
                self.link_cut = false;
                let live: Vec<_> = (0..self.hosts.len()).filter(|h| !self.hosts[*h].dead).collect();
                live.into_iter().for_each(|host| self.is_heard(host));
            }
            Happening::Blind => self.set_blind(true),
            Happening::Sighted => {
                if self.blind {
                    self.set_blind(false);
                }
            }
            Happening::Pause { span } => self.pause(span),
            Happening::ReceiverDown => self.receiver_down = true,
            Happening::ReceiverUp => self.receiver_down = false,
            Happening::Operator { target, approves } => self.operator(&target, approves),
            Happening::Maintain { scope, span } => self.maintain(scope, span),
            Happening::Leave { host, expected } => self.say_goodbye(host, expected),
            Happening::Overdue { host, life } => self.is_overdue(host, life),
        }
    }

    pub(super) fn die(&mut self, host: usize, agent_only: bool) {
        if !self.hosts[host].dead {
            let unheard = self.is_silent(host);
            (self.hosts[host].dead, self.hosts[host].agent_only) = (true, agent_only);
            if !unheard {
                self.falls_silent(host, Duration::ZERO);
            }
        }
    }

    /// Its next beat does not come, nor the answers to its probes.
    pub(super) fn falls_silent(&mut self, host: usize, later: Duration) {
        let h = &mut self.hosts[host];
        h.life += 1;
        let (life, gap) = (h.life, h.gap.as_millis() as u64);
        let rest = self.rng.random_range(0..gap) + self.rng.random_range(30..600);
        let suspect = self.now + later + Duration::from_millis(rest);
        let probes = Duration::from_millis(self.rng.random_range(600..1_600));
        self.at(suspect, Happening::Suspect { host, life });
        self.at(suspect + probes, Happening::Down { host, life });
    }

    /// Its next beat comes.
    fn is_heard(&mut self, host: usize) {
        if self.link_cut {
            return;
        }
        let h = &mut self.hosts[host];
        h.life += 1;
        let (life, gap) = (h.life, h.gap.as_millis() as u64);
        let wait = Duration::from_millis(self.rng.random_range(0..gap));
        self.at(self.now + wait, Happening::Heard { host, life });
    }

    fn heard(&mut self, host: usize, life: u32) {
        let h = &self.hosts[host];
        if h.life != life || self.is_silent(host) {
            return;
        }
        let Some(row) = self.rows.get(&h.id) else { return };
        let same_boot = row.boot.0 == h.boot;
        match row.state {
            State::Suspect | State::Down => {
                self.turn(host, Turn::Recovered { same_boot }, State::Alive);
            }
            State::Left if same_boot => {
                self.turn(host, Turn::Recovered { same_boot }, State::Alive);
            }
            State::Left => self.turn(host, Turn::Restarted, State::Alive),
            State::Alive if !same_boot => self.turn(host, Turn::Restarted, State::Alive),
            _ => {}
        }
    }
}
