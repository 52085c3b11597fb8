//! A disk that takes a while: large, its metadata allocated, marked in a few places.

use std::path::Path;

use snapslot_test_support::{Image, Scratch, setting};

/// Marks are this far apart: each lies under a second-level table of its own.
const STEP: u64 = 11 << 30;
const MARK: u64 = 64 << 10;
const FOREIGN: &str = "foreign";

/// A disk whose content is known by its *generation*: the byte that stands at every mark.
pub(crate) struct Subject {
    pub(crate) image: Image,
    size: u64,
    generation: u8,
}

impl Subject {
    /// `SNAPSLOT_TEST_GIB` (100) of disk, all of its metadata allocated, next to no data.
    pub(crate) fn new(scratch: &Scratch) -> Subject {
        let size = setting("SNAPSLOT_TEST_GIB", 100) << 30;
        assert!(size > 4 * STEP, "too small for several marks");
        let image = Image::create(scratch.join("disk.qcow2"), &["preallocation=metadata"], size);
        let mut subject = Subject { image, size, generation: 0 };
        subject.next_generation();
        // Somebody else's snapshot, which must outlive everything done here.
        subject.image.qemu_img(&["snapshot", "-c", FOREIGN], &[]).expect_success();
        subject
    }

    pub(crate) fn path(&self) -> &Path {
        self.image.path()
    }

    fn marks(&self) -> impl Iterator<Item = u64> {
        (0..self.size - MARK).step_by(STEP as usize)
    }

    fn reads(&self, generation: u8) -> Vec<String> {
        self.marks().map(|at| format!("read -P {generation} {at} {MARK}")).collect()
    }

    /// The guest writes: another byte at every mark, and zeroes over 8 GiB, which change as many
    /// entries of the second-level tables as there are clusters in them.
    pub(crate) fn next_generation(&mut self) -> u8 {
        self.generation = self.generation % 250 + 1;
        let generation = self.generation;
        let zeroes = (2..10).map(|n| format!("write -z {n}G 1G"));
        let marks = self.marks().map(|at| format!("write -P {generation} {at} {MARK}"));
        self.image.guest(zeroes.chain(marks)).expect_success();
        generation
    }

    /// What the guest wrote last.
    pub(crate) fn generation(&self) -> u8 {
        self.generation
    }

    /// The disk was set back: the guest goes on from this generation.
    pub(crate) fn is_at(&mut self, generation: u8) {
        self.generation = generation;
    }

    /// Which of these generations the disk shows, at every mark the same.
    #[track_caller]
    pub(crate) fn shown(&self, candidates: &[u8]) -> u8 {
        let shows = |g: &&u8| self.image.look(self.reads(**g)).code == Some(0);
        match candidates.iter().find(shows) {
            Some(generation) => *generation,
            None => panic!(
                "the disk shows none of the generations {candidates:?}: {}",
                self.image.look(self.reads(candidates[0])).account()
            ),
        }
    }

    /// The names of the snapshots in the image beside the foreign one, which must be there.
    #[track_caller]
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.image.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
        let foreign = names.iter().position(|name| name == FOREIGN);
        names.remove(foreign.expect("the foreign snapshot, which nobody deleted"));
        names
    }

    /// Which of these generations the snapshot holds.
    #[track_caller]
    pub(crate) fn held(&self, name: &str, candidates: &[u8]) -> u8 {
        let look = |g: u8| self.image.look_at_snapshot(name, self.reads(g));
        match candidates.iter().find(|g| look(**g).code == Some(0)) {
            Some(generation) => *generation,
            None => panic!(
                "snapshot {name} holds none of the generations {candidates:?}: {}",
                look(candidates[0]).account()
            ),
        }
    }
}
