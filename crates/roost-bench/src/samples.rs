//! Durations of one thing measured many times, and what is said of them.

use std::time::Duration;

/// Measured durations, in milliseconds, in no particular order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    milliseconds: Vec<f64>,
}

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, duration: Duration) {
        self.push_value(duration.as_secs_f64() * 1e3);
    }

    /// Adds one that is in milliseconds already, or a plain number.
    pub(crate) fn push_value(&mut self, value: f64) {
        let at = self.milliseconds.partition_point(|&other| other < value);
        self.milliseconds.insert(at, value);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.milliseconds.len()
    }

    /// The smallest value that at least `share` of all are no larger than (nearest rank); NaN when there are none.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = (share * self.milliseconds.len() as f64).ceil() as usize;
        self.milliseconds.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// Half are no larger.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Nine of ten are no larger.
    pub(crate) fn p90(&self) -> f64 {
        self.quantile(0.9)
    }

    /// Ninety-nine of a hundred are no larger. Of fewer than a hundred samples this is the largest.
    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_that_were_measured() {
        let mut samples = Samples::default();
        for value in (1..=200).rev() {
            samples.push(Duration::from_millis(value));
        }
        assert_eq!(samples.len(), 200);
        assert_eq!(samples.median(), 100.0);
        assert_eq!(samples.p90(), 180.0);
        assert_eq!(samples.p99(), 198.0);
        assert_eq!(samples.quantile(1.0), 200.0);
    }

    #[test]
    fn nothing_measured_is_no_number() {
        assert!(Samples::default().median().is_nan());
    }
}
