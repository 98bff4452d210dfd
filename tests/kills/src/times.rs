//! How long something took, many times.

use std::fmt;
use std::time::Duration;

/// Durations, shortest first.
#[derive(Clone, Debug)]
pub struct Times(Vec<Duration>);

impl Times {
    /// The time that so many in a hundred took at most; none, if nothing was measured.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let last = self.0.len().checked_sub(1)?;
        self.0.get(last * percent / 100).copied()
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort_unstable();
        Self(times)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, percent) in [("p50", 50), ("p99", 99), ("at most", 100)] {
            let millis = self.percentile(percent).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
            write!(f, "{name} {millis:.1} ms, ")?;
        }
        write!(f, "{} times", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Times = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!(times.percentile(50), Some(Duration::from_millis(51)));
        assert_eq!(times.to_string(), "p50 51.0 ms, p99 100.0 ms, at most 101.0 ms, 101 times");
        assert_eq!(Times::from_iter([]).percentile(99), None);
    }
}
