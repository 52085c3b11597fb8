//! What listens while a plugin is answered.

use std::sync::{Arc, Mutex};

use snapslot_command::{Answer, Command, Executor, RunError};
use snapslot_disk::{Disk, DiskError, Range};

use super::{Bytes, HEARD_MAX, Heard, NotRun, lock};
use crate::bindings::types::{Failure, SavedCopy, Saving};
use crate::host::{CopiesView, Sight};
use crate::read_fault::ReadFault;

/// What was heard in one call.
#[derive(Clone, Default)]
pub(crate) struct Ears {
    heard: Arc<Mutex<(Vec<Heard>, usize)>>,
}

impl Ears {
    fn hear(&self, heard: Heard, bytes: usize) {
        let mut all = lock(&self.heard);
        // A word takes room too, however little it says.
        all.1 += bytes + 64;
        if all.1 <= HEARD_MAX {
            all.0.push(heard);
        }
    }

    /// All of it, and how many bytes it has.
    pub(super) fn all(&self) -> (Vec<Heard>, usize) {
        std::mem::take(&mut *lock(&self.heard))
    }

    /// The same sight, listened to.
    pub(crate) fn at(&self, sight: &Sight) -> Sight {
        let ears = || self.clone();
        Sight {
            place: sight.place.clone(),
            disk: (sight.disk.clone()).map(|d| Arc::new(HeardDisk(d, ears())) as Arc<dyn Disk>),
            commands: (sight.commands.clone())
                .map(|c| Arc::new(HeardCommands(c, ears())) as Arc<dyn Executor>),
            copies: (sight.copies.clone())
                .map(|c| Arc::new(HeardCopies(c, ears())) as Arc<dyn CopiesView>),
        }
    }
}

struct HeardDisk(Arc<dyn Disk>, Ears);

impl Disk for HeardDisk {
    fn size(&self) -> Result<u64, DiskError> {
        let result = self.0.size();
        self.1.hear(
            match &result {
                Ok(size) => Heard::Size(*size),
                Err(error) => Heard::SizeFailed(ReadFault::from(error)),
            },
            8,
        );
        result
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let (result, length) = (self.0.read_at(offset, buf), buf.len());
        match &result {
            Ok(()) => self.1.hear(Heard::Read { offset, length, bytes: Bytes::of(buf) }, length),
            Err(error) => {
                let fault = ReadFault::from(error);
                self.1.hear(Heard::ReadFailed { offset, length, fault }, 0);
            }
        }
        result
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.write_at(offset, data)
    }

    fn extend(&self, size: u64) -> Result<(), DiskError> {
        self.0.extend(size)
    }

    fn reserve(&self, ranges: &[Range]) -> Result<bool, DiskError> {
        self.0.reserve(ranges)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        self.0.release_reserve()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.0.flush()
    }
}

struct HeardCommands(Arc<dyn Executor>, Ears);

impl Executor for HeardCommands {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let result = self.0.run(command);
        let command = command.to_string();
        match &result {
            Ok(a) => self.1.hear(
                Heard::Ran {
                    command,
                    exit_code: a.exit_code,
                    output: Bytes::of(&a.output),
                    errors: Bytes::of(&a.errors),
                },
                a.output.len() + a.errors.len(),
            ),
            Err(error) => self.1.hear(Heard::NotRun { command, fault: NotRun::from(error) }, 0),
        }
        result
    }
}

struct HeardCopies(Arc<dyn CopiesView>, Ears);

impl CopiesView for HeardCopies {
    fn list(&self) -> Result<Vec<SavedCopy>, Failure> {
        let result = self.0.list();
        self.1.hear(Heard::Copies(result.clone()), 1024);
        result
    }

    fn saving(&self) -> Result<Saving, Failure> {
        let result = self.0.saving();
        self.1.hear(Heard::Saving(result.clone()), 64);
        result
    }
}
