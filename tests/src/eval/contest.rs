//! Every detector on the same beats, at many settings of its knob.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use heartwatch_common::time::Instant;
use heartwatch_controller::detector::timeout::target::Target;
use heartwatch_controller::detector::timeout::{GroupId, Patience, Siblings};

use super::fleet::{Fleet, INTERVAL_S};
use super::measure::{Tally, Walk};
use super::ours::{Common, Ours};
use super::rivals::{
    AkkaPhi, Bertier, CassandraPhi, Chen, Detector, Fixed, Schedule, Share, TwoWindow, WINDOW,
};

/// Beats by which the hosts of a fleet are advanced side by side.
const STEP: u32 = 600;

/// One detector at one setting.
#[derive(Clone, Debug)]
pub enum Setting {
    /// The product's, at a cost of a false suspicion in seconds.
    Ours(f32),
    /// The product's, steered to a rate of mistakes per host-day.
    Steered(f64),
    /// A fixed timeout, seconds.
    Fixed(f64),
    /// NFD-E, by its safety margin.
    Chen(Schedule, f64),
    /// By phi.
    Bertier(f64),
    /// By acceptable pause and threshold.
    Akka(f64, f64),
    /// By threshold; `true`: as newer versions record.
    Cassandra(bool, f64),
    /// By its safety margin.
    TwoWindow(Schedule, f64),
    /// By window and share.
    Share(f64, f64),
    /// The product's expectation with the same constant margin for every host; one step of the oracle.
    Constant(f64),
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Point {
    /// The setting.
    pub setting: Setting,
    /// By family.
    pub families: Vec<Tally>,
    /// The mix.
    pub mix: Tally,
    /// Mean detection time and mistakes per day of each host; for the oracle alone.
    pub hosts: Vec<(f64, f64)>,
    /// Bytes of state of one host.
    pub state_bytes: usize,
}

/// A line of settings along which one knob rises; best settings are looked for along lines.
pub type Line = Vec<Setting>;

/// What a detector's table calls it, and its lines.
pub fn contestants() -> Vec<(&'static str, Vec<Line>)> {
    let margins = [
        0.05, 0.2, 0.6, 1.05, 1.3, 1.7, 2.1, 2.6, 3.1, 4.1, 5.1, 6.1, 7.1, 8.1, 10.1, 13.0, 17.0,
        21.0,
    ];
    let along = |f: &dyn Fn(f64) -> Setting| margins.iter().map(|m| f(*m)).collect::<Line>();
    let thresholds = [0.5, 1.5, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0];
    let pauses = [0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 8.0, 11.0];
    let line = |pause: f64| thresholds.iter().map(|t| Setting::Akka(pause, *t)).collect();
    let convictions = [0.7, 0.9, 1.2, 1.5, 2.0, 2.6, 3.4, 4.4, 5.8, 8.0];
    let cassandra =
        |all: bool| convictions.iter().map(|t| Setting::Cassandra(all, *t)).collect::<Line>();
    let shares = [0.95, 0.8, 0.6, 0.4, 0.25, 0.1];
    let share = |w: f64| shares.iter().map(|s| Setting::Share(w, *s)).collect::<Line>();
    let phis = [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
    let costs = [1e2, 1e3, 3e3, 1e4, 3e4, 6e4, 1e5, 2e5, 4e5, 1e6, 3e6];
    vec![
        ("ours", vec![costs.iter().map(|c| Setting::Ours(*c)).collect()]),
        ("akka_best", pauses.iter().map(|p| line(*p)).collect()),
        ("cassandra", vec![cassandra(false), cassandra(true)]),
        (
            "chen",
            vec![
                along(&|m| Setting::Chen(Schedule::Raw, m)),
                along(&|m| Setting::Chen(Schedule::Announced, m)),
            ],
        ),
        ("bertier", vec![phis.iter().map(|p| Setting::Bertier(*p)).collect()]),
        (
            "two_window",
            vec![
                along(&|m| Setting::TwoWindow(Schedule::Raw, m)),
                along(&|m| Setting::TwoWindow(Schedule::Announced, m)),
            ],
        ),
        ("share", vec![share(10.0), share(30.0), share(60.0)]),
        ("fixed", vec![along(&|m| Setting::Fixed(1.0 + m))]),
    ]
}

/// Akka's settings as shipped: a pause of 3 s and threshold 8.
pub const AKKA_DEFAULT: Setting = Setting::Akka(3.0, 8.0);

/// Margins among which the oracle chooses, seconds.
pub fn oracle_margins() -> Vec<f64> {
    (0..34).map(|i| 0.012 * 1.27f64.powi(i)).collect()
}

/// Runs all settings, two or more at a time; `done` is told how many are done.
pub fn run(fleet: &Fleet, settings: &[Setting], done: impl Fn(usize) + Sync) -> Vec<Point> {
    let next = AtomicUsize::new(0);
    let points = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(settings.len()) {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(setting) = settings.get(i) else { return };
                    let point = one(fleet, setting);
                    let mut points = points.lock().expect("no thread panics while it holds this");
                    points.push((i, point));
                    done(points.len());
                }
            });
        }
    });
    let mut points = points.into_inner().expect("no thread panics while it holds this");
    points.sort_by_key(|(i, _)| *i);
    points.into_iter().map(|(_, point)| point).collect()
}

fn one(fleet: &Fleet, setting: &Setting) -> Point {
    let eta = INTERVAL_S;
    match *setting {
        Setting::Ours(cost_s) => ours(fleet, setting, cost_s, None),
        Setting::Steered(rate) => ours(fleet, setting, 1e5, Some(Target::new(rate, Instant(0)))),
        Setting::Fixed(t) => alone(fleet, setting, |_| Fixed::new(t)),
        Setting::Chen(s, m) => alone(fleet, setting, |_| Chen::new(s, WINDOW, eta, m)),
        Setting::Bertier(phi) => alone(fleet, setting, |_| Bertier::new(eta, phi)),
        Setting::Akka(pause, t) => alone(fleet, setting, |_| AkkaPhi::new(eta, pause, t)),
        Setting::Cassandra(true, t) => {
            alone(fleet, setting, |_| CassandraPhi::recording_all(eta, t))
        }
        Setting::Cassandra(false, t) => alone(fleet, setting, |_| CassandraPhi::new(eta, t)),
        Setting::TwoWindow(s, m) => alone(fleet, setting, |_| TwoWindow::new(s, WINDOW, eta, m)),
        Setting::Share(w, s) => alone(fleet, setting, |_| Share::new(w, s, eta)),
        Setting::Constant(m) => alone(fleet, setting, |_| Constant::new(m)),
    }
}

/// Hosts that learn from nobody but themselves, one after the other.
fn alone<D: Detector>(fleet: &Fleet, setting: &Setting, new: impl Fn(usize) -> D) -> Point {
    let mut point = Point::empty(fleet, setting);
    for (i, series) in fleet.hosts.iter().enumerate() {
        let (mut walk, mut tally) = (Walk::new(new(i)), Tally::default());
        walk.on(series, u32::MAX, fleet.counted_from(), &mut tally);
        point.state_bytes = walk.detector.state_bytes();
        point.families[series.family].add(&tally, 1.0);
        if matches!(setting, Setting::Constant(_)) {
            point.hosts.push((tally.mean_s(), tally.mistakes_per_day()));
        }
    }
    point.finish(fleet)
}

/// Hosts that teach each other, side by side, each family one group.
fn ours(fleet: &Fleet, setting: &Setting, cost_s: f32, target: Option<Target>) -> Point {
    let mut siblings = Siblings::default();
    let groups: Vec<GroupId> = fleet.members.iter().map(|_| siblings.add_group()).collect();
    let (min, max) = (Duration::from_millis(25), Duration::from_secs(30));
    let patience = Patience::new(cost_s, min, max);
    let common = Rc::new(RefCell::new(Common { siblings, patience, target }));
    let mut point = Point::empty(fleet, setting);
    let mut walks: Vec<_> = fleet
        .hosts
        .iter()
        .enumerate()
        .map(|(i, s)| Walk::new(Ours::new(Rc::clone(&common), groups[s.family], 2 * i as u64 + 1)))
        .collect();
    let (mut until, beats) = (0, fleet.beats());
    while until < beats {
        until += STEP;
        for (walk, series) in walks.iter_mut().zip(&fleet.hosts) {
            walk.on(series, until, fleet.counted_from(), &mut point.families[series.family]);
        }
        let now = Instant::from_millis((f64::from(until) * INTERVAL_S * 1e3) as u64);
        common.borrow_mut().look(fleet.hosts.len() as u64, now);
    }
    point.state_bytes = walks.first().map_or(0, |w| w.detector.state_bytes());
    point.finish(fleet)
}

impl Point {
    fn empty(fleet: &Fleet, setting: &Setting) -> Self {
        Self {
            setting: setting.clone(),
            families: vec![Tally::default(); fleet.members.len()],
            mix: Tally::default(),
            hosts: Vec::new(),
            state_bytes: 0,
        }
    }

    /// Weighs the families: each as if it had been watched equally long.
    fn finish(mut self, fleet: &Fleet) -> Self {
        for (tally, member) in self.families.iter().zip(&fleet.members) {
            self.mix.add(&tally.scaled(), member.weight);
        }
        self
    }
}

/// The product's expectation (`sent + gap + max(offset, its slow average)`) and a constant margin.
#[derive(Debug)]
struct Constant {
    margin_s: f64,
    slow_s: Option<f64>,
}

impl Constant {
    fn new(margin_s: f64) -> Self {
        Self { margin_s, slow_s: None }
    }
}

impl Detector for Constant {
    fn observe(&mut self, a: &super::rivals::Arrival) -> f64 {
        let offset = a.at_s - a.sent_s;
        let slow = self.slow_s.map_or(offset, |slow| slow + (offset - slow) / 64.0);
        self.slow_s = Some(slow);
        a.sent_s + a.gap_s + offset.max(slow) + self.margin_s
    }

    fn state_bytes(&self) -> usize {
        16
    }
}

/// What the oracle reaches at one price of a mistake.
#[derive(Clone, Debug)]
pub struct Hindsight {
    /// Mistakes per host-day of the mix.
    pub rate: f64,
    /// Its mean detection time, seconds.
    pub mean_s: f64,
    /// Both for each family.
    pub families: Vec<(f64, f64)>,
}

/// The oracle: for every host the constant margin that is best in hindsight, at one price of a mistake
/// after the other.
pub fn oracle(fleet: &Fleet, constants: &[Point]) -> Vec<Hindsight> {
    (0..=80)
        .map(|i| 10f64.powf(-5.0 + f64::from(i) * 0.1))
        .map(|price_s| {
            let mut families = vec![(0.0, 0.0, 0.0); fleet.members.len()];
            for (h, series) in fleet.hosts.iter().enumerate() {
                let cost = |(mean, rate): &(f64, f64)| mean + price_s * rate;
                let best = constants
                    .iter()
                    .map(|p| p.hosts[h])
                    .min_by(|a, b| cost(a).total_cmp(&cost(b)))
                    .expect("there is a margin to choose");
                let family = &mut families[series.family];
                *family = (family.0 + best.1, family.1 + best.0, family.2 + 1.0);
            }
            let means: Vec<_> = families.iter().map(|f| (f.0 / f.2, f.1 / f.2)).collect();
            let weighted = |of: &dyn Fn(&(f64, f64)) -> f64| {
                means.iter().zip(&fleet.members).map(|(m, f)| f.weight * of(m)).sum::<f64>()
            };
            Hindsight { rate: weighted(&|m| m.0), mean_s: weighted(&|m| m.1), families: means }
        })
        .collect()
}
