//! One page of what differs.

use crate::{Failure, FailureKind, Stretch, StretchPage};

/// Runs of one page.
const PAGE_MAX: u32 = 10_000;

/// Collects runs that differ, in ascending order, for [`Backend::differences`](crate::Backend::differences): joined
/// where one goes on with the other, cut to what the page is of. Those that no longer fit are for the next page.
///
/// ```
/// use snapslot_plugin_sdk::stretches::Stretches;
///
/// let mut found = Stretches::new(0, 1)?.up_to(100);
/// found.add(10, 20);
/// found.add(20, 30);
/// assert!(!found.is_full());
/// found.add(40, 50);
/// assert!(found.is_full());
/// let page = found.into_page();
/// assert_eq!((page.stretches[0].length, page.next), (20, Some(40)));
/// # Ok::<(), snapslot_plugin_sdk::Failure>(())
/// ```
#[derive(Debug)]
pub struct Stretches {
    cursor: u64,
    end: u64,
    max: usize,
    page: StretchPage,
}

impl Stretches {
    /// A page of at most `max` runs from `cursor` on.
    ///
    /// # Errors
    /// `invalid` (code `max`) unless a page has 1 to 10,000 runs.
    pub fn new(cursor: u64, max: u32) -> Result<Self, Failure> {
        if !(1..=PAGE_MAX).contains(&max) {
            return Err(Failure::new(FailureKind::Invalid, "max", "a page has 1 to 10,000 runs"));
        }
        let page = StretchPage { stretches: Vec::new(), next: None };
        Ok(Stretches { cursor, end: u64::MAX, max: max as usize, page })
    }

    /// Of a disk that ends there.
    #[must_use]
    pub fn up_to(self, end: u64) -> Self {
        Stretches { end, ..self }
    }

    /// Where it begins: what ends before need not be looked at.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Adds the run from `start` to `end`.
    pub fn add(&mut self, start: u64, end: u64) {
        let (start, end) = (start.max(self.cursor), end.min(self.end));
        if start >= end || self.page.next.is_some() {
            return;
        }
        if let Some(last) = self.page.stretches.last_mut()
            && last.start + last.length >= start
        {
            last.length = last.length.max(end - last.start);
        } else if self.page.stretches.len() == self.max {
            self.page.next = Some(start);
        } else {
            self.page.stretches.push(Stretch { start, length: end - start });
        }
    }

    /// Whether one did not fit: what comes after it need not be looked for.
    pub fn is_full(&self) -> bool {
        self.page.next.is_some()
    }

    /// The page.
    pub fn into_page(self) -> StretchPage {
        self.page
    }
}
