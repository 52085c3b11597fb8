//! How long things may take.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Limits of time for one call of a plugin, and for making one ready. Those of the contract are the
/// default, and the most there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// What a call may compute. Waiting for what it asked is not its own time.
    pub computing: Duration,
    /// What a call may have the host wait for storage: reads and copies. Commands have deadlines of
    /// their own, which a person approved.
    pub waiting: Duration,
    /// What compiling may take. A component with a language's whole runtime takes some twenty seconds.
    pub compiling: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            computing: Duration::from_secs(60),
            waiting: Duration::from_secs(600),
            compiling: Duration::from_secs(120),
        }
    }
}

impl Limits {
    /// Those of calls in proportion to what one may compute.
    #[must_use]
    pub fn of_calls(computing: Duration) -> Self {
        let most = Limits::default();
        let computing = computing.min(most.computing);
        Limits { computing, waiting: (10 * computing).min(most.waiting), ..most }
    }

    /// After what time a call is ended from outside, whatever goes on in it: somewhat later than it
    /// would end itself. Commands come on top.
    pub(crate) fn of_a_call(self) -> Duration {
        self.computing + self.waiting + self.computing / 6
    }
}
