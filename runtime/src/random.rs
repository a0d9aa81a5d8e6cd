//! Chance: jitter, epochs and ids, from one generator that a test may seed.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rand::rngs::{StdRng, SysRng};
use rand::{RngExt, SeedableRng};
use uuid::{Builder, Uuid};

/// Makes ids, from a generator of its own, which shares no state.
#[derive(Debug)]
pub struct Ids(StdRng);

impl Ids {
    /// Repeatable: the same `seed` gives the same ids for the same times.
    pub fn seeded(seed: u64) -> Self {
        Ids(StdRng::seed_from_u64(seed))
    }

    /// A UUIDv7 made at `time`.
    pub fn uuid(&mut self, time: Timestamp) -> Uuid {
        uuid(time, self.0.random())
    }
}

/// A source of random numbers; cheap to clone, and clones draw from the same sequence.
#[derive(Debug, Clone)]
pub struct Random(Arc<Mutex<StdRng>>);

impl Random {
    /// Seeded by the operating system.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, which no box survives for long.
    pub fn from_system() -> Self {
        let rng = StdRng::try_from_rng(&mut SysRng).expect("the system's random numbers");
        Random(Arc::new(Mutex::new(rng)))
    }

    /// Repeatable: the same `seed` gives the same sequence.
    pub fn seeded(seed: u64) -> Self {
        Random(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A number in 0..1, for the jitter of a backoff.
    pub fn unit(&self) -> f64 {
        self.draw(|rng| rng.random())
    }

    /// Any number: an epoch, or the seed of another generator.
    pub fn number(&self) -> u64 {
        self.draw(|rng| rng.random())
    }

    /// A UUIDv7 made at `time`.
    pub fn uuid(&self, time: Timestamp) -> Uuid {
        uuid(time, self.draw(|rng| rng.random()))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        // A generator is whole between two draws, whatever panicked beside it.
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn uuid(time: Timestamp, random: [u8; 10]) -> Uuid {
    let millis = u64::try_from(time.as_millisecond()).unwrap_or(0);
    Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_sequence_and_clones_share_it() {
        let (one, other) = (Random::seeded(7), Random::seeded(7));
        let drawn: Vec<u64> = (0..4).map(|_| one.number()).collect();
        let shared: Vec<u64> = (0..4).map(|_| other.clone().number()).collect();
        assert_eq!(drawn, shared);
        assert_ne!(drawn[0], Random::seeded(8).number());
        assert!((0.0..1.0).contains(&one.unit()));
    }

    #[test]
    fn ids_are_ordered_by_time() {
        let random = Random::from_system();
        let at = |millis| random.uuid(Timestamp::from_millisecond(millis).expect("in range"));
        let mut ids = Ids::seeded(1);
        assert!(ids.uuid(Timestamp::UNIX_EPOCH) < ids.uuid(Timestamp::MAX));
        let (first, second) = (at(1_767_225_600_000), at(1_767_225_600_001));
        assert_eq!(first.get_version_num(), 7);
        assert!(first < second, "{first} {second}");
    }
}
