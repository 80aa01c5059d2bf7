//! What goes wrong in a run: drawn once from its seed.

use std::time::Duration;

use heartwatch_agent::core::Core;
use heartwatch_common::time::Instant;
use rand::RngExt;
use rand::rngs::StdRng;

use super::host::Truth;
use super::net::Ways;
use super::peers::Look;
use super::{FAULTS_UNTIL, World};

/// Something that goes wrong, or right again.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the variants say it")]
pub enum Fault {
    Start {
        host: usize,
    },
    Restart {
        host: usize,
        forgets_boot: bool,
    },
    KillAgent {
        host: usize,
    },
    KillMachine {
        host: usize,
    },
    Leave {
        host: usize,
    },
    StopAgent {
        host: usize,
        span: Duration,
    },
    Snapshot {
        host: usize,
    },
    RestoreSnapshot {
        host: usize,
        core: Box<Core>,
    },
    Cut {
        host: usize,
        up: bool,
        down: bool,
    },
    /// From the controller alone.
    CutOff {
        host: usize,
        up: bool,
        down: bool,
    },
    Mend {
        host: usize,
    },
    Replay {
        host: usize,
    },
    KillController,
    StartController,
    StopController {
        span: Duration,
    },
    ContinueController,
    SuspendController {
        span: Duration,
    },
    ResumeController {
        span: Duration,
    },
    CutLink,
    MendLink,
    DeafEnded {
        ended: Instant,
    },
    Flood {
        share: f64,
    },
    EndFlood,
    FillDisk,
    EmptyDisk,
    StepWall {
        ms: i64,
    },
    ReceiverDown,
    ReceiverUp,
    Pause {
        span: Duration,
    },
    Unpause,
}

/// How long a host's margin may show what was done to it.
const DISTURBED_FOR: Duration = Duration::from_secs(45);

impl Fault {
    /// Whose behaviour it changes.
    fn host(&self) -> Option<usize> {
        match *self {
            Self::Start { host }
            | Self::Restart { host, .. }
            | Self::KillAgent { host }
            | Self::KillMachine { host }
            | Self::Leave { host }
            | Self::StopAgent { host, .. }
            | Self::Snapshot { host }
            | Self::RestoreSnapshot { host, .. }
            | Self::Cut { host, .. }
            | Self::Mend { host } => Some(host),
            _ => None,
        }
    }
}

/// A run's mix of faults.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Chance that a datagram is lost.
    pub loss: f64,
    /// Chance that it comes twice.
    pub duplicate: f64,
    /// Greatest extra delay.
    pub jitter_us: u64,
    /// Chance of a delay of up to 1.5 s.
    pub tail: f64,
    /// Somebody records and replays.
    pub replays: bool,
    /// Datagrams that a socket buffer of the controller holds.
    pub buffer_len: usize,
    /// Datagrams read from one socket in a pass: a full mailbox takes several passes.
    pub read_max: usize,
    /// Chance that a host lies when it is asked to probe another.
    pub liars: f64,
    /// How long own losses excuse a host.
    pub doubt_max: Duration,
    /// Chance that a webhook fails.
    pub receiver_fails: f64,
    /// Faults per host in the whole run.
    host_faults: f64,
    /// Faults of the controller in the whole run.
    controller_faults: u32,
}

impl Plan {
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let calm = rng.random_bool(0.1);
        let mut some = |chance: f64, value: f64| {
            if !calm && rng.random_bool(chance) { value } else { 0.0 }
        };
        let (loss, duplicate, tail) = (some(0.5, 0.03), some(0.4, 0.05), some(0.2, 0.01));
        let (receiver_fails, host_faults) = (some(0.6, 0.5), some(0.9, 2.0));
        let liars = some(0.4, 0.3);
        let loss = if loss > 0.0 { rng.random_range(0.001..0.10) } else { 0.0 };
        Self {
            loss,
            duplicate,
            jitter_us: rng.random_range(0..20_000),
            tail,
            replays: !calm && rng.random_bool(0.7),
            buffer_len: if rng.random_bool(0.3) { rng.random_range(4..64) } else { 4_096 },
            read_max: match rng.random_range(0..4) {
                0 => 1,
                1 => rng.random_range(4..40),
                _ => 2_048,
            },
            liars,
            doubt_max: if rng.random_bool(0.5) {
                Duration::from_millis(rng.random_range(5_000..15_000))
            } else {
                Duration::from_secs(90)
            },
            receiver_fails,
            host_faults,
            controller_faults: if calm { 0 } else { rng.random_range(0..6) },
        }
    }

    pub(super) fn faults(&self, hosts: usize, rng: &mut StdRng) -> Vec<(Duration, Fault)> {
        let mut faults = Vec::new();
        let until = FAULTS_UNTIL.as_millis() as u64;
        let when = |rng: &mut StdRng| Duration::from_millis(rng.random_range(8_000..until - 5_000));
        for host in 0..hosts {
            let count = (self.host_faults * rng.random_range(0.0..1.5)).round() as u32;
            for _ in 0..count {
                let at = when(rng);
                let back = at + Duration::from_millis(rng.random_range(100..60_000));
                let mut then = |at, fault| faults.push((at, fault));
                match rng.random_range(0..13) {
                    0 | 1 => then(at, Fault::KillMachine { host }),
                    2 => {
                        then(at, Fault::KillAgent { host });
                        if rng.random_bool(0.6) {
                            then(back, Fault::Start { host });
                        }
                    }
                    3 => {
                        then(at, Fault::KillMachine { host });
                        then(back, Fault::Start { host });
                    }
                    4 => {
                        let forgets_boot = rng.random_bool(0.3);
                        then(at, Fault::Restart { host, forgets_boot });
                    }
                    5 => then(at, Fault::Leave { host }),
                    6 => {
                        let span = Duration::from_millis(rng.random_range(500..30_000));
                        then(at, Fault::StopAgent { host, span });
                    }
                    7 => then(at, Fault::Snapshot { host }),
                    way @ 10..=12 => {
                        // Mostly both directions; then it lives on, or dies unheard.
                        let (up, down) = [(true, true), (true, false), (false, true)][way - 10];
                        then(at, Fault::CutOff { host, up: up || rng.random_bool(0.5), down });
                        match rng.random_range(0..3) {
                            0 => {
                                let end = at + (back - at).mul_f64(rng.random_range(0.1..0.9));
                                then(end, Fault::KillMachine { host });
                            }
                            1 => {
                                let end = at + (back - at).mul_f64(rng.random_range(0.1..0.9));
                                then(end, Fault::KillAgent { host });
                            }
                            _ => {}
                        }
                        then(back, Fault::Mend { host });
                    }
                    _ => {
                        let (up, down) = match rng.random_range(0..3) {
                            0 => (true, true),
                            1 => (true, false),
                            _ => (false, true),
                        };
                        then(at, Fault::Cut { host, up, down });
                        then(back, Fault::Mend { host });
                    }
                }
            }
            if self.replays {
                for _ in 0..12 {
                    faults.push((when(rng), Fault::Replay { host }));
                }
            }
        }
        for _ in 0..self.controller_faults {
            let at = when(rng);
            let span = Duration::from_millis(rng.random_range(500..30_000));
            let long = Duration::from_millis(rng.random_range(5_000..60_000));
            match rng.random_range(0..12) {
                8 => {
                    faults.push((at, Fault::SuspendController { span }));
                    faults.push((at + span, Fault::ResumeController { span }));
                }
                9 | 10 => {
                    faults.push((at, Fault::CutLink));
                    faults.push((at + long, Fault::MendLink));
                    if self.replays {
                        let every = Duration::from_millis(300);
                        let times = long.as_millis() / every.as_millis();
                        for n in 0..times as u32 {
                            let host = rng.random_range(0..hosts);
                            faults.push((at + every * n, Fault::Replay { host }));
                        }
                    }
                }
                11 => {
                    let share = rng.random_range(0.3..0.99);
                    faults.push((at, Fault::Flood { share }));
                    faults.push((at + long, Fault::EndFlood));
                }
                0 | 1 => {
                    faults.push((at, Fault::KillController));
                    faults.push((at + span, Fault::StartController));
                }
                2 | 3 => {
                    faults.push((at, Fault::StopController { span }));
                    faults.push((at + span, Fault::ContinueController));
                }
                4 => {
                    faults.push((at, Fault::FillDisk));
                    faults.push((at + span, Fault::EmptyDisk));
                }
                5 => {
                    let hour = 3_600_000;
                    let ms = if rng.random_bool(0.5) { hour } else { -hour };
                    faults.push((at, Fault::StepWall { ms }));
                }
                6 => {
                    // A whole rack, as the controller sees it.
                    let rack = rng.random_range(0..3);
                    for host in (rack..hosts).step_by(3) {
                        faults.push((at, Fault::CutOff { host, up: true, down: true }));
                        faults.push((at + span, Fault::Mend { host }));
                    }
                }
                _ => {
                    if rng.random_bool(0.5) {
                        faults.push((at, Fault::ReceiverDown));
                        faults.push((at + span, Fault::ReceiverUp));
                    } else {
                        faults.push((at, Fault::Pause { span }));
                        faults.push((at + span, Fault::Unpause));
                    }
                }
            }
        }
        faults
    }
}

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        if self.now.since(Instant::from_millis(1_000_000)) < FAULTS_UNTIL
            || matches!(
                fault,
                Fault::StartController
                    | Fault::ContinueController
                    | Fault::ResumeController { .. }
                    | Fault::DeafEnded { .. }
                    | Fault::Unpause
            )
        {
            let at = self.now.since(Instant::from_millis(1_000_000));
            if !matches!(fault, Fault::RestoreSnapshot { .. }) {
                self.faults.push(format!("{:.3} s {fault:?}", at.as_secs_f64()));
            }
        } else if !matches!(
            fault,
            Fault::EmptyDisk
                | Fault::ReceiverUp
                | Fault::Mend { .. }
                | Fault::MendLink
                | Fault::EndFlood
        ) {
            // The time of faults is over.
            return;
        }
        if let Some(host) = fault.host() {
            // A stopped agent goes on at most 30 s later, a snapshot is restored in 20.
            self.hosts[host].disturbed_until = self.now + DISTURBED_FOR;
        }
        match fault {
            Fault::Start { host } => {
                if self.hosts[host].truth != Truth::Running {
                    self.start_host(host, false);
                }
            }
            Fault::Restart { host, forgets_boot } => {
                if self.hosts[host].truth == Truth::Running {
                    self.start_host(host, forgets_boot);
                }
            }
            Fault::KillAgent { host } => {
                if self.hosts[host].truth == Truth::Running {
                    self.end_host(host, Truth::AgentDead);
                }
            }
            Fault::KillMachine { host } => self.end_host(host, Truth::MachineDead),
            Fault::Leave { host } => {
                if self.hosts[host].truth == Truth::Running && self.controller.hears(host) {
                    self.leave_host(host);
                }
            }
            Fault::StopAgent { host, span } => self.stop_agent(host, span),
            Fault::Snapshot { host } => {
                if let Some(core) = self.snapshot(host) {
                    let back = Duration::from_millis(self.rng.random_range(3_000..20_000));
                    let core = Box::new(core);
                    let what = Fault::RestoreSnapshot { host, core };
                    self.at(self.now + back, super::Happening::Fault(what));
                }
            }
            Fault::RestoreSnapshot { host, core } => {
                if self.hosts[host].truth == Truth::Running {
                    self.restore_snapshot(host, *core);
                    let life = self.hosts[host].life;
                    self.at(self.now, super::Happening::Wake { host, life });
                }
            }
            Fault::Cut { host, up, down } => {
                (self.net.cut_up[host], self.net.cut_down[host]) = (up, down);
                self.disturb(host);
            }
            Fault::CutOff { host, up, down } => {
                self.net.cut_off[host] = Some((self.now, Ways { up, down }));
                if up && self.is_held_alive(self.hosts[host].id) {
                    self.look_later(Look::CutOff { host, at: self.now });
                }
            }
            Fault::Mend { host } => {
                (self.net.cut_up[host], self.net.cut_down[host]) = (false, false);
                self.net.cut_off[host] = None;
                self.disturb(host);
            }
            Fault::Replay { host } => self.replay(host),
            // Nothing happens to the process of a machine that is asleep.
            Fault::KillController | Fault::StopController { .. } | Fault::ContinueController
                if self.controller.suspended.is_some() => {}
            Fault::KillController => self.kill_controller(),
            Fault::StartController => self.start_controller(),
            Fault::StopController { span } => {
                self.deaf_begins(false);
                self.controller.stopped_until = Some(self.now + span);
                self.controller.calm_since = self.now + span;
            }
            Fault::ContinueController => {
                self.controller.stopped_until = None;
                self.controller.calm_since = self.now;
                self.ledger.controller_back(self.now);
                self.deaf_ends();
            }
            Fault::SuspendController { span } => self.suspend_controller(span),
            Fault::ResumeController { span } => self.resume_controller(span),
            Fault::CutLink => {
                self.deaf_begins(true);
                self.net.cut_link = true;
                self.controller.calm_since = Instant::FAR - Duration::from_secs(3_600);
            }
            Fault::MendLink => {
                self.net.cut_link = false;
                self.controller.calm_since = self.now;
                self.deaf_ends();
            }
            Fault::DeafEnded { ended } => {
                let margins = self.margins();
                self.ledger.deaf_ended(ended, &margins);
            }
            Fault::Flood { share } => {
                self.controller.flood = Some(share);
                self.controller.calm_since = Instant::FAR - Duration::from_secs(3_600);
            }
            Fault::EndFlood => {
                self.controller.flood = None;
                self.controller.calm_since = self.now;
            }
            Fault::FillDisk => self.controller.disk_full = true,
            Fault::EmptyDisk => self.controller.disk_full = false,
            Fault::StepWall { ms } => {
                self.wall_offset_ms += ms;
                self.controller.calm_since = self.controller.calm_since.max(self.now);
            }
            Fault::ReceiverDown => self.receiver.down = true,
            Fault::ReceiverUp => self.receiver.down = false,
            Fault::Pause { span } => self.pause_controller(span),
            Fault::Unpause => self.unpause_controller(),
        }
    }
}
