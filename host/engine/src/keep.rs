//! The copies a volume has: as a plugin sees them, and what failed with them in the contract's
//! words.

use std::sync::Arc;

use snapslot_capture::{Copies, CopyError};
use snapslot_runtime::{CopiesView, Failure, FailureKind, SavedCopy, Saving};

/// Copies, for looking.
pub(crate) struct Shelf(pub Arc<Copies>);

impl CopiesView for Shelf {
    fn list(&self) -> Result<Vec<SavedCopy>, Failure> {
        let found = self.0.list().map_err(|e| in_contract(&e))?;
        Ok(found
            .into_iter()
            .map(|c| SavedCopy {
                mark: c.mark,
                identity: c.identity,
                name: c.name,
                taken_seconds: c.taken_seconds,
                taken_nanoseconds: c.taken_nanoseconds,
                size: c.size,
                held_bytes: c.held_bytes,
                lost: c.lost,
            })
            .collect())
    }

    fn saving(&self) -> Result<Saving, Failure> {
        let s = self.0.saving().map_err(|e| in_contract(&e))?;
        Ok(Saving { shares: s.shares, bytes: s.bytes, available: s.available })
    }
}

pub(crate) fn in_contract(error: &CopyError) -> Failure {
    let kind = match error {
        CopyError::NoSpace { .. } => FailureKind::NoSpace,
        CopyError::Missing { .. } => FailureKind::NotFound,
        CopyError::InUse { .. } | CopyError::Busy { .. } => FailureKind::InUse,
        CopyError::Changed { .. } | CopyError::Overtaken { .. } => FailureKind::Changed,
        CopyError::NotShared { .. }
        | CopyError::Unsuitable { .. }
        | CopyError::Untrusted { .. }
        | CopyError::Exists { .. }
        | CopyError::Live { .. }
        | CopyError::Size { .. }
        | CopyError::Time { .. } => FailureKind::Unsupported,
        _ if error.is_no_space() => FailureKind::NoSpace,
        _ => FailureKind::Io,
    };
    Failure::new(kind, error.code(), error.to_string())
}
