//! What the author of a Snapslot storage backend uses.
//!
//! A backend looks and plans; it never writes. Implement [`Backend`] for a type and name it in
//! [`export_backend!`]; build with `cargo build --release --target wasm32-wasip2` as a `cdylib`.
//! Everything a backend can reach comes in as [`Target`], [`Image`] and [`Plan`], which are
//! traits, so that the same planner runs natively in unit tests with [`double`].
//!
//! Every call gets a fresh instance: keep nothing between calls.

pub mod copies;
pub mod double;
mod guest;

#[doc(hidden)]
pub use guest::bindings;
pub use guest::bindings::snapslot::backend::types::{
    Answer, Argument, Change, CommandGrant, Compression, Content, Description, Extent, ExtentPage,
    Facts, Failure, FailureKind, Finding, Goal, Grammar, Guard, Hole, ImageGrant, NewSnapshot,
    Packed, PlaceKind, Role, SavedCopy, Saving, Snapshot, Stretch, StretchPage, View,
};
pub use guest::bindings::snapslot::backend::{log::Level, planning::Fill, planning::Mask};
pub use guest::{GuestImage, GuestPlan, GuestTarget, log, report_panics};

/// An image, for reading.
pub trait Image {
    /// Its size in bytes, now.
    fn size(&self) -> u64;
    /// Reads exactly `length` bytes, at most 8 MiB.
    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure>;
    /// Reads many ranges (offset, length), joined in order: at most 65,536 and 8 MiB in all.
    fn read_ranges(&self, ranges: &[(u64, u32)]) -> Result<Vec<u8>, Failure>;
}

/// One volume, as far as the backend may see it.
pub trait Target {
    /// The place part of its locator: a name to say.
    fn place(&self) -> String;
    /// The image in this role.
    fn image(&self, role: Role) -> Result<Box<dyn Image + '_>, Failure>;
    /// Runs a declared query.
    fn ask(&self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure>;
    /// The copies the host keeps of this disk, oldest first.
    fn copies(&self) -> Result<Vec<SavedCopy>, Failure>;
    /// What one more would take.
    fn saving(&self) -> Result<Saving, Failure>;
}

/// A plan being streamed. Steps on bytes concern the image with role `disk`.
pub trait Plan {
    /// Writes bytes; longer than a step may be is split.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure>;
    /// Fills runs with patterns.
    fn fill(&mut self, runs: Vec<Fill>) -> Result<(), Failure>;
    /// Changes bits of words.
    fn mask(&mut self, runs: Vec<Mask>) -> Result<(), Failure>;
    /// Makes the image at least this long, in bytes.
    fn extend(&mut self, size: u64) -> Result<(), Failure>;
    /// Runs a declared action.
    ///
    /// Actions run one after the other; if one fails, a plan to [`Goal::Settled`] follows.
    fn act(&mut self, action: &str, arguments: &[Argument]) -> Result<(), Failure>;
    /// Saves a copy of the disk's present content, whole or not at all.
    fn save(&mut self, new: &NewSnapshot) -> Result<(), Failure>;
    /// Sets the disk's content back to that of the copy with this mark, wholly or not at all.
    fn put_back(&mut self, mark: &str) -> Result<(), Failure>;
    /// Removes the copy with this mark.
    fn discard(&mut self, mark: &str) -> Result<(), Failure>;
    /// Something the person should know about this plan, in a sentence.
    fn note(&mut self, message: &str) -> Result<(), Failure>;
    /// Ends a phase; `title` says what it did.
    fn barrier(&mut self, title: &str) -> Result<(), Failure>;
    /// Declares the seal: these bits of the word at `offset`.
    fn seal(&mut self, offset: u64, bits: u64) -> Result<(), Failure>;
}

/// A storage backend.
pub trait Backend {
    /// What it is and every grant it needs.
    fn describe() -> Description;
    /// Looks at the volume.
    fn inspect(target: &dyn Target) -> Result<Facts, Failure>;
    /// Streams the steps from what is there to the goal; none if it is reached.
    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure>;
    /// Lists content from the guest offset `cursor` on.
    fn extents(
        _target: &dyn Target,
        _view: &View,
        _cursor: u64,
        _max: u32,
    ) -> Result<ExtentPage, Failure> {
        Err(Failure::new(
            FailureKind::Unsupported,
            "no-extents",
            "this backend cannot list where content is",
        ))
    }
    /// Measures how far the machine has moved away from the snapshot. `quick`: some ten mebibytes of
    /// metadata are read at most, and what they show is told as `at_least`.
    fn measure(_target: &dyn Target, _identity: &str, _quick: bool) -> Result<Change, Failure> {
        Err(Failure::new(
            FailureKind::Unsupported,
            "no-measure",
            "this backend cannot measure change",
        ))
    }
    /// Lists where the machine's content lies elsewhere than the snapshot's, from metadata alone.
    fn differences(
        _target: &dyn Target,
        _identity: &str,
        _cursor: u64,
        _max: u32,
    ) -> Result<StretchPage, Failure> {
        Err(Failure::new(
            FailureKind::Unsupported,
            "no-differences",
            "this backend cannot list what changed",
        ))
    }
    /// Puts into the contract's words what a declared command said when it failed.
    fn explain(command: &str, answer: &Answer) -> Failure {
        let words = String::from_utf8_lossy(&answer.errors);
        let line =
            words.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("it said nothing");
        let message = format!("{command} failed with exit code {}: {line}", answer.exit_code);
        Failure::new(FailureKind::Io, "command-failed", message)
    }
}

/// Whether it is a mark of the slot's: 16 lower-case hexadecimal digits.
pub fn is_mark(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// An argument for a hole.
pub fn argument(hole: &str, value: impl ToString) -> Argument {
    Argument { hole: hole.to_owned(), value: value.to_string() }
}

/// A hole of a template.
pub fn hole(name: &str, grammar: Grammar) -> Hole {
    Hole { name: name.to_owned(), grammar }
}

impl Failure {
    /// A failure with a stable code and a sentence.
    pub fn new(kind: FailureKind, code: &str, message: impl Into<String>) -> Self {
        Failure { kind, code: code.to_owned(), message: message.into(), data: Vec::new() }
    }

    /// Adds a figure or name, by key.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.data.push((key.to_owned(), value.to_string()));
        self
    }
}
