//! The life of an operation.
//!
//! ```text
//! lock → recover → inspect → policy → plan → check → rehearse → [dry run stops here]
//!      → commit (journal durable) → execute → inspect again → record → release
//! ```
//!
//! The engine ties storage plugins, the plan executor, the slot's rule and the record together,
//! for one command at a time. It knows no format: what a volume is, plugins say.

mod carry;
mod clock;
mod compare;
mod decide;
mod engine;
mod error;
mod gone;
mod held;
mod import;
mod installed;
mod keep;
mod live;
mod locator;
mod looks;
mod meta;
mod operate;
mod others;
mod part;
mod plugins;

mod recover;
mod rehearse;
mod serving;
mod settle;
mod status;
mod store;
mod target;
mod view;
mod volume;

pub use clock::Clock;
pub use compare::Compared;
pub use engine::{Engine, Settings, Tools};
pub use error::EngineError;
pub use import::{Import, Imported, Way};
pub use installed::{InstallError, Installed};
pub use live::{LiveExport, ServeOptions};
pub use locator::{Known, Locator, LocatorError, is_machine_name};
pub use operate::{Asked, Done, Observer, PlannedPhase, Room, Shown, Verb, VolumeDone};
pub use plugins::{Candidate, Checked, Verified, read_component};
pub use recover::Recovered;
pub use rehearse::Depth;
pub use serving::ReadOnly;
pub use snapslot_command::PlaceKind;
pub use snapslot_content as content;
pub use snapslot_disk::{Holder, Users};
pub use snapslot_live::{OnFull, Standing};
pub use snapslot_nbd as nbd;
pub use snapslot_runtime::{
    ARGUMENT as PLUGINS_ARGUMENT, Confine, Confinement, serve as serve_plugins,
    start_early as start_plugins_early,
};
pub use snapslot_runtime::{CommandGrant, Description, Finding, ImageGrant, Role};
pub use snapslot_runtime::{Flaw, Recorded, plain, read_recording};
pub use status::{FoundSnapshot, Measure, Status, VolumeStatus};
pub use store::{Machine, OperationRecord, Seen, SlotStore, SqliteStore, StoreError};
pub use view::{Opened, Which};
