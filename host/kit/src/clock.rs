//! Time and chance in the kit: from the seed alone.

use std::sync::{Mutex, PoisonError};

use snapslot_engine::Clock;
use snapslot_slot::Moment;
use snapslot_testkit::rng::{Rng, digest};

/// The moment at which all begins: 2023-11-14T22:13:20Z.
pub const EPOCH: i64 = 1_700_000_000;

/// A clock that advances by a second with every verb, and jumps where it is told to.
#[derive(Debug)]
pub struct KitClock(Mutex<State>);

/// How far a clock is.
#[derive(Clone, Debug)]
pub struct State {
    seconds: i64,
    rng: Rng,
    /// After so many looks it shows that moment.
    jump: Option<(u32, i64)>,
}

impl KitClock {
    /// One for this seed, and for this use of it: each has marks of its own.
    pub fn new(seed: u64, what: &str) -> KitClock {
        let rng = Rng::new(seed ^ digest(what.as_bytes()) as u64);
        KitClock(Mutex::new(State { seconds: EPOCH, rng, jump: None }))
    }

    /// A second passes.
    pub fn goes_on(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).seconds += 1;
    }

    /// After so many looks at it, it shows this moment and goes on from there.
    pub fn jumps(&self, looks: u32, seconds: i64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).jump = Some((looks, seconds));
    }

    /// Where it is now.
    pub fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets it back: what is done from here on has the same moments and marks as then.
    pub fn back_to(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Clock for KitClock {
    fn now(&self) -> Moment {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.jump {
            Some((0, seconds)) => (state.seconds, state.jump) = (seconds, None),
            Some((looks, seconds)) => state.jump = Some((looks - 1, seconds)),
            None => {}
        }
        Moment { seconds: state.seconds, nanoseconds: 7 }
    }

    fn chance(&self) -> std::io::Result<[u8; 8]> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(state.rng.next_u64().to_be_bytes())
    }
}
