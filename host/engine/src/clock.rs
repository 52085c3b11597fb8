//! What time it is, and what marks a new snapshot.

use std::time::SystemTime;

use snapslot_slot::Moment;

/// Where moments and marks come from.
pub trait Clock: Send + Sync {
    /// The present moment.
    fn now(&self) -> Moment;
    /// Bytes that no other snapshot has: its mark.
    fn chance(&self) -> std::io::Result<[u8; 8]>;
}

/// This machine's clock and its kernel's randomness.
pub(crate) struct OfThisMachine;

impl Clock for OfThisMachine {
    /// A clock before 1970 counts as 1970.
    fn now(&self) -> Moment {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        }
    }

    fn chance(&self) -> std::io::Result<[u8; 8]> {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(|e| std::io::Error::other(e.to_string()))?;
        Ok(bytes)
    }
}
