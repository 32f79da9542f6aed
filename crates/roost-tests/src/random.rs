//! Repeatable randomness: every random choice of a test comes from one seed, which is printed.
//!
//! `ROOST_TEST_SEED` sets it. The same seed gives the same choices; what threads and kernels make of them still varies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A small generator (SplitMix64): good enough for choosing, not for secrets.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// From `ROOST_TEST_SEED`, or from the clock; prints the seed, so that a failure can be repeated.
    #[allow(clippy::print_stderr, reason = "a test's seed belongs in its output")]
    pub fn from_environment(what: &str) -> Self {
        let seed =
            std::env::var("ROOST_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                (now.as_nanos() as u64) ^ u64::from(std::process::id()).rotate_left(32)
            });
        eprintln!("{what}: ROOST_TEST_SEED={seed}");
        Self::from_seed(seed)
    }

    /// From a given seed.
    pub const fn from_seed(seed: u64) -> Self {
        Self { state: seed }
    }

    /// An independent generator, for another thread or task.
    pub const fn fork(&mut self) -> Self {
        Self::from_seed(self.number())
    }

    /// Any number.
    pub const fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// True once in `n` times.
    pub const fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A duration below `end`.
    pub const fn within(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(end.as_micros() as u64 + 1))
    }

    /// One of `choices`, which is not empty.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    /// `length` characters of `[a-z2-7]`.
    pub fn text(&mut self, length: usize) -> String {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        (0..length).map(|_| char::from(ALPHABET[self.below(32) as usize])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_choices() {
        let (mut one, mut other) = (Random::from_seed(7), Random::from_seed(7));
        assert_eq!(one.text(40), other.text(40));
        assert_eq!(one.within(Duration::from_secs(9)), other.within(Duration::from_secs(9)));
        assert_ne!(Random::from_seed(8).text(40), Random::from_seed(7).text(40));
    }
}
