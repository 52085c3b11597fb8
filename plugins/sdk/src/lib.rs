//! What the author of a Snapslot storage backend uses.
//!
//! A backend looks and plans; it never writes. Implement [`Backend`] for a type and name it in
//! [`export_backend!`]; build with `cargo build --release --target wasm32-wasip2` as a `cdylib`.
//! Everything a backend can reach comes in as [`Target`], [`Image`] and [`Plan`], which are
//! traits, so that the same planner runs natively in unit tests with [`double`].
//!
//! Every call gets a fresh instance: keep nothing between calls.
//!
//! ```
//! use snapslot_plugin_sdk::double::{MemoryImage, MemoryTarget};
//! use snapslot_plugin_sdk::{
//!     Backend, Description, Facts, Failure, FailureKind, Goal, ImageGrant, PlaceKind, Plan, Role,
//!     Target, copies,
//! };
//!
//! struct Plain;
//!
//! impl Backend for Plain {
//!     fn describe() -> Description {
//!         Description {
//!             name: "plain".to_owned(),
//!             version: "1.0.0".to_owned(),
//!             summary: "whole copies of plain images".to_owned(),
//!             endings: vec![".plain".to_owned()],
//!             place: PlaceKind::Image,
//!             images: vec![ImageGrant {
//!                 role: Role::Disk,
//!                 changes: false,
//!                 reason: "to see how large the disk is".to_owned(),
//!             }],
//!             copies: Some("the snapshot is a copy of the image".to_owned()),
//!             queries: Vec::new(),
//!             actions: Vec::new(),
//!         }
//!     }
//!
//!     fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
//!         let size = target.image(Role::Disk)?.size();
//!         if size == 0 {
//!             return Err(Failure::new(FailureKind::Corrupt, "empty", "the image has no bytes"));
//!         }
//!         Ok(Facts {
//!             identity: None,
//!             virtual_size: size,
//!             format: "plain".to_owned(),
//!             snapshots: copies::snapshots(target)?,
//!             findings: Vec::new(),
//!             unfinished: None,
//!         })
//!     }
//!
//!     fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
//!         copies::plan(target, goal, plan)
//!     }
//! }
//!
//! // In a component: `snapslot_plugin_sdk::export_backend!(Plain);`
//! let target = MemoryTarget { disk: MemoryImage(vec![0; 4096]), ..MemoryTarget::default() };
//! assert_eq!(Plain::inspect(&target)?.virtual_size, 4096);
//! let empty = Plain::inspect(&MemoryTarget::default()).expect_err("no bytes");
//! assert_eq!((empty.kind, empty.code.as_str()), (FailureKind::Corrupt, "empty"));
//! # Ok::<(), Failure>(())
//! ```

pub mod copies;
mod declared;
pub mod double;
mod guest;
pub mod stretches;

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
///
/// Its bytes are a guest's, or somebody's: check every offset, size and count found in them before it is
/// used. Offsets and sizes are in bytes.
pub trait Image {
    /// Its size in bytes, now.
    fn size(&self) -> u64;

    /// Reads exactly `length` bytes, at most 8 MiB.
    ///
    /// # Errors
    /// `invalid` (code `read-outside`) past the end, `limit` for more, `io` where the storage fails.
    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure>;

    /// Reads many ranges (offset, length), joined in order: at most 65,536 and 8 MiB in all. One call for
    /// many small tables costs what one table costs.
    ///
    /// ```
    /// use snapslot_plugin_sdk::Image;
    /// use snapslot_plugin_sdk::double::MemoryImage;
    ///
    /// let image = &MemoryImage((0..100).collect());
    /// assert_eq!(image.read_ranges(&[(90, 2), (5, 1)])?, [90, 91, 5]);
    /// # Ok::<(), snapslot_plugin_sdk::Failure>(())
    /// ```
    ///
    /// # Errors
    /// As [`read_at`](Image::read_at).
    fn read_ranges(&self, ranges: &[(u64, u32)]) -> Result<Vec<u8>, Failure>;
}

/// One volume, as far as the backend may see it.
pub trait Target {
    /// The place part of its locator: a name to say, not a path to open.
    fn place(&self) -> String;

    /// The image in this role.
    ///
    /// # Errors
    /// `not-granted` if the description does not ask for it, or nobody approved it.
    fn image(&self, role: Role) -> Result<Box<dyn Image + '_>, Failure>;

    /// Runs a declared query, with a value for each hole that the host does not fill: at most 64 in one
    /// call, 8 MiB of output each. The answer may be some seconds old, from the same operation, where the host
    /// has changed nothing since.
    ///
    /// That its exit code is not 0 is an answer, not a failure.
    ///
    /// # Errors
    /// `not-granted` for what is not declared; `invalid` (code `argument`) for values that do not fit;
    /// `unsupported` (code `tool-missing`) where the program is not here; `io` (codes `tool-failed`,
    /// `tool-hung`, `tool-flood`, `tool-died`) where it gave no answer; `limit`.
    fn ask(&self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure>;

    /// The copies the host keeps of this disk, oldest first.
    ///
    /// # Errors
    /// `not-granted` without the grant `copies`; `io`.
    fn copies(&self) -> Result<Vec<SavedCopy>, Failure>;

    /// What one more would take, in bytes.
    ///
    /// # Errors
    /// As [`copies`](Target::copies).
    fn saving(&self) -> Result<Saving, Failure>;
}

/// A plan being streamed. Steps on bytes concern the image with role `disk`.
///
/// A plan has at most 1,048,576 steps and 1 GiB of data, 64 of its steps actions, and keeps to one of the
/// three ways: bytes, commands or copies. Phases are what stands between barriers; within one the order
/// does not matter, and no two steps touch the same byte. See the guide for what makes an order safe.
///
/// # Errors
/// Every method: `limit` (code `plan`) once the plan is too long, `invalid` (code `plan`) for a malformed
/// step, `not-granted` for what was not granted. The plan is lost then, whatever follows.
pub trait Plan {
    /// Writes bytes, at least one; longer than the 8 MiB of a step is split.
    ///
    /// ```
    /// use snapslot_plugin_sdk::{Plan, double::RecordedPlan};
    ///
    /// let mut plan = RecordedPlan::default();
    /// plan.write(2, b"xy")?;
    /// let mut image = b"abcdef".to_vec();
    /// plan.apply(&mut image);
    /// assert_eq!(image, b"abxyef");
    /// # Ok::<(), snapslot_plugin_sdk::Failure>(())
    /// ```
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure>;

    /// Fills runs with patterns of 1 to 16 bytes; a run's length is a multiple of its pattern's.
    ///
    /// ```
    /// use snapslot_plugin_sdk::{Fill, Plan, double::RecordedPlan};
    ///
    /// let mut plan = RecordedPlan::default();
    /// plan.fill(vec![Fill { offset: 1, length: 4, pattern: vec![1, 2] }])?;
    /// let mut image = vec![0; 6];
    /// plan.apply(&mut image);
    /// assert_eq!(image, [0, 1, 2, 1, 2, 0]);
    /// # Ok::<(), snapslot_plugin_sdk::Failure>(())
    /// ```
    fn fill(&mut self, runs: Vec<Fill>) -> Result<(), Failure>;

    /// Changes bits of 64-bit big-endian words: clears some, then sets some. `offset` is a multiple of 8,
    /// `stride` 8 or 16 bytes; `select` has one bit for each word, lowest first, or is empty for all.
    ///
    /// It touches all bytes from the first word to the last, those it leaves out too.
    ///
    /// ```
    /// use snapslot_plugin_sdk::{Mask, Plan, double::RecordedPlan};
    ///
    /// let mut plan = RecordedPlan::default();
    /// let top = 1 << 63;
    /// let mask =
    ///     Mask { offset: 0, count: 3, stride: 8, clear: 1, set: top, select: vec![0b101] };
    /// plan.mask(vec![mask])?;
    /// let mut image = [1_u64, 1, 1].map(u64::to_be_bytes).concat();
    /// plan.apply(&mut image);
    /// assert_eq!(image, [top, 1, top].map(u64::to_be_bytes).concat());
    /// # Ok::<(), snapslot_plugin_sdk::Failure>(())
    /// ```
    fn mask(&mut self, runs: Vec<Mask>) -> Result<(), Failure>;

    /// Makes the image at least this long, in bytes; what is new reads as zeroes.
    fn extend(&mut self, size: u64) -> Result<(), Failure>;

    /// Runs a declared action, with a value for each hole that the host does not fill.
    ///
    /// Actions run one after the other; if one fails, a plan to [`Goal::Settled`] follows.
    fn act(&mut self, action: &str, arguments: &[Argument]) -> Result<(), Failure>;

    /// Saves a copy of the disk's present content, whole or not at all.
    fn save(&mut self, new: &NewSnapshot) -> Result<(), Failure>;

    /// Sets the disk's content back to that of the copy with this mark, wholly or not at all.
    fn put_back(&mut self, mark: &str) -> Result<(), Failure>;

    /// Removes the copy with this mark.
    fn discard(&mut self, mark: &str) -> Result<(), Failure>;

    /// Something the person should know about this plan, in a sentence: at most 16, of 1,024 bytes.
    fn note(&mut self, message: &str) -> Result<(), Failure>;

    /// Ends a phase; `title` says in a few words (at most 120 bytes) what it did. All before it is durable
    /// before anything after it begins.
    fn barrier(&mut self, title: &str) -> Result<(), Failure>;

    /// Declares the seal: these bits, at least one, of the 64-bit big-endian word at `offset`, a multiple of
    /// 8. A plan of more than one phase on an image needs one.
    ///
    /// The first phase is one write within 512 bytes that sets them, the last is one that clears them, and
    /// no two writes of the word are the same. After a crash the host carries the plan on only while they are
    /// set.
    fn seal(&mut self, offset: u64, bits: u64) -> Result<(), Failure>;
}

/// A storage backend. Each function is one call, with 60 seconds of computing and 512 MiB of memory.
pub trait Backend {
    /// What it is and every grant it needs, with reasons. It sees nothing, computes nothing, and is always
    /// the same: this is what a person approves.
    fn describe() -> Description;

    /// Looks at the volume. Snapshots of the slot's bear its mark ([`is_mark`]); those of others bear none.
    ///
    /// # Errors
    /// `corrupt` for storage that contradicts itself, `unsupported` for sound storage that it does not
    /// handle, what [`Target`] failed with. What is merely in the way is a [`Finding`].
    fn inspect(target: &dyn Target) -> Result<Facts, Failure>;

    /// Streams the steps from what is there *now* to the goal; none if it is reached. Asked again after a
    /// crash, it plans the rest.
    ///
    /// # Errors
    /// As [`inspect`](Backend::inspect); `not-found` for a snapshot that is gone; `no-space` with `needed`
    /// and `available` in bytes; what [`Plan`] failed with.
    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure>;

    /// Lists content from the guest offset `cursor` on, without gaps, at most `max` (1 to 10,000)
    /// extents; `next` is where the next page begins, none at the end of the disk.
    ///
    /// Needed by whoever plans on an image's bytes: without it such a plan is refused.
    ///
    /// # Errors
    /// `not-found` for a snapshot that is gone; left out: `unsupported`.
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
    /// Lists where the machine's content lies elsewhere than the snapshot's, from metadata alone, in runs from
    /// the guest offset `cursor` on, at most `max` (1 to 10,000). What is listed need not differ; what
    /// differs is listed.
    ///
    /// # Errors
    /// `not-found` for a snapshot that is gone; left out: `unsupported`, and content is compared by extents.
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

    /// Puts into the contract's words what a declared command said when it failed. Left out: the first line
    /// of its complaint.
    fn explain(command: &str, answer: &Answer) -> Failure {
        let words = String::from_utf8_lossy(&answer.errors);
        let line =
            words.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("it said nothing");
        let message = format!("{command} failed with exit code {}: {line}", answer.exit_code);
        Failure::new(FailureKind::Io, "command-failed", message)
    }
}

/// Whether it is a mark of the slot's: 16 lower-case hexadecimal digits.
///
/// ```
/// use snapslot_plugin_sdk::is_mark;
///
/// assert!(is_mark("0123456789abcdef"));
/// assert!(!is_mark("0123456789ABCDEF"));
/// ```
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
