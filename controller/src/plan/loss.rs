//! What a way loses, and what that means for suspicions and verdicts.

use std::time::Duration;

/// A way's losses, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each datagram by itself is lost with this chance.
    Independent(f64),
    /// Gilbert-Elliott in time: in bursts all are lost, between them none. Bursts last `mean` on average,
    /// exponentially, but never longer than `longest`, and make `share` of the time.
    Bursts {
        /// Of the time, in [0, 1).
        share: f64,
        /// Before it is cut at `longest`.
        mean: Duration,
        /// `None`: any length.
        longest: Option<Duration>,
    },
}

/// Sure enough never: what is rarer is printed as zero.
const NEVER: f64 = 1e-300;

impl Loss {
    /// P(a burst lasts longer than `s` seconds).
    fn outlasts(mean: Duration, longest: Option<Duration>, s: f64) -> f64 {
        let tail = |s: f64| (-s / mean.as_secs_f64()).exp();
        match longest.map(|l| l.as_secs_f64()) {
            None => tail(s),
            Some(longest) if s >= longest => 0.0,
            Some(longest) => (tail(s) - tail(longest)) / (1.0 - tail(longest)),
        }
    }

    /// The mean length of a burst, seconds: that of an exponential cut at `longest`.
    fn burst_s(mean: Duration, longest: Option<Duration>) -> f64 {
        let mean = mean.as_secs_f64();
        longest.map_or(mean, |l| {
            let l = l.as_secs_f64();
            mean - l * (-l / mean).exp() / (1.0 - (-l / mean).exp())
        })
    }

    /// How often, per beat, the `k` beats after an expected one are lost together with it: how often its
    /// silence exceeds a margin of `k` intervals.
    ///
    /// Independent: p^(k+1). Bursts begin at a rate of share / length; one takes the expected beat, u after
    /// its begin, and k more if it lasts longer than u + k·η, with u uniform in an interval: the integral
    /// of P(D > u + k·η) over u, per burst.
    pub fn misses(&self, k: u32, interval_s: f64) -> f64 {
        match *self {
            Self::Independent(p) => p.powi(k as i32 + 1),
            Self::Bursts { share, mean, longest } => {
                let per_second = share / Self::burst_s(mean, longest);
                // Simpson's rule: the tail is smooth, and exact figures would feign knowledge.
                let f = |u: f64| Self::outlasts(mean, longest, interval_s * (u + f64::from(k)));
                let (n, mut sum) = (64, f(0.0) + f(1.0));
                for i in 1..n {
                    sum += f(f64::from(i) / f64::from(n)) * if i % 2 == 1 { 4.0 } else { 2.0 };
                }
                // Per second and per beat: × η; the mean over u is the sum by 3n.
                per_second * interval_s * sum / (3.0 * f64::from(n))
            }
        }
    }

    /// The chance that a suspicion of a living host is not ended by any answer within `probed`.
    ///
    /// Independent: every way of asking fails by itself. A probe goes out by two sockets; each gets
    /// through and back with (1 − p)². A peer is one more way there and one back, (1 − p)⁴. `probes` rounds,
    /// `requests` to peers in all. Beats that come meanwhile are left out, so this is an upper bound.
    ///
    /// Bursts take all ways alike: the burst must outlast the probing. It has lasted `silent` already.
    pub fn unheard(&self, silent: f64, probed: f64, probes: f64, requests: f64) -> f64 {
        match *self {
            Self::Independent(p) => {
                let trip = 1.0 - (1.0 - p).powi(2);
                let by_peer = 1.0 - (1.0 - p).powi(4);
                (trip * trip).powf(probes) * by_peer.powf(requests)
            }
            Self::Bursts { mean, longest, .. } => {
                let so_far = Self::outlasts(mean, longest, silent);
                if so_far <= NEVER {
                    return 0.0;
                }
                Self::outlasts(mean, longest, silent + probed) / so_far
            }
        }
    }

    /// The longest silence that a host has come back from within `days`: for bursts the expectation of the
    /// longest of all, mean · (ln n + γ) for exponential ones (David and Nagaraja, *Order Statistics*,
    /// 2003, section 4.6), cut at `longest`; for independent losses the longest run that is expected once.
    pub fn longest_s(&self, interval_s: f64, days: f64) -> f64 {
        const GAMMA: f64 = 0.577_215_664_901_532_9;
        match *self {
            Self::Independent(p) if p <= 0.0 => 0.0,
            Self::Independent(p) => {
                let beats = days * 86_400.0 / interval_s;
                (beats.ln() / -p.ln()).floor().max(0.0) * interval_s
            }
            Self::Bursts { share, mean, longest } => {
                let bursts = days * 86_400.0 * share / Self::burst_s(mean, longest);
                if bursts < 1.0 {
                    return 0.0;
                }
                let most = mean.as_secs_f64() * (bursts.ln() + GAMMA);
                longest.map_or(most, |l| most.min(l.as_secs_f64()))
            }
        }
    }
}
