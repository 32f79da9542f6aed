//! Power cuts: the catalog on a disk that forgets what was not synced, cut at random moments and opened again.
//!
//! The catalog is the real one, with its threads, its pragmas and its migrations; only what SQLite writes goes to a
//! simulated disk. `ROOST_TEST_ROUNDS` is the number of cuts (`make soak` does 10,000), `ROOST_TEST_SEED` repeats a run's
//! choices; what threads make of them still varies.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod content;
mod model;
mod vfs;
mod world;

use std::time::{SystemTime, UNIX_EPOCH};

use world::{Moment, World};

/// Cuts in `make test`.
const CUTS: u64 = 1_000;
/// Cuts that one disk lives through.
const CUTS_PER_DISK: u64 = 20;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn what_was_acknowledged_survives_power_cuts_at_random_moments() {
    let cuts = variable("ROOST_TEST_ROUNDS").unwrap_or(CUTS);
    let first = variable("ROOST_TEST_SEED").unwrap_or_else(|| {
        u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap()
    });
    println!("ROOST_TEST_SEED={first}");
    let mut hit = [0_u64; Moment::ALL.len()];
    for seed in (first..).take(usize::try_from(cuts.div_ceil(CUTS_PER_DISK)).unwrap()) {
        let mut world = World::new(seed);
        for _ in 0..CUTS_PER_DISK {
            match world.live_and_lose_power() {
                Ok(moment) => hit[moment as usize] += 1,
                Err(loss) => panic!("{loss} (ROOST_TEST_SEED={seed})"),
            }
        }
    }
    for moment in Moment::ALL {
        println!("{} cuts while {moment:?}", hit[moment as usize]);
        assert!(cuts < CUTS || hit[moment as usize] > cuts / 100, "hardly a cut while {moment:?}");
    }
}

/// Whether cuts on any of the disks show a loss.
fn is_found_out(disks: u64, spoil: impl Fn(&mut World)) -> bool {
    (0..disks).any(|seed| {
        let mut world = World::new(seed);
        spoil(&mut world);
        (0..CUTS_PER_DISK).any(|_| world.live_and_lose_power().is_err())
    })
}

#[test]
fn a_disk_that_lies_about_syncing_is_found_out() {
    assert!(is_found_out(5, |world| world.lie_about_sync()));
}

/// A catalog that is killed before the first sync of its write-ahead log leaves a name that SQLite takes for durable.
#[test]
fn an_opening_that_does_not_make_names_durable_is_found_out() {
    assert!(is_found_out(200, World::open_carelessly));
}
