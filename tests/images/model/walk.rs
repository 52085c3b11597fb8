//! One walk: random steps on one image, judged after every verb.

use std::fmt;

use serde_json::Value;
use snapslot_test_support::{
    Image, Outcome, Scratch, Snapshot, Snapslot, SplitMix64, assert_same, difference, digest,
    setting,
};

use super::feature::Feature;
use super::reference::{Action, Doing, Pattern, SECTOR};
use crate::{be32, be64, snapslot};

const BITMAP: &str = "changed";

/// What walks have done.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    takes: u64,
    replaces: u64,
    restores: u64,
    deletes: u64,
    refusals: u64,
    guest: u64,
    compressed: u64,
    resizes: u64,
    foreign: u64,
}

impl Counts {
    pub(super) fn add(&mut self, other: &Counts) {
        self.takes += other.takes;
        self.replaces += other.replaces;
        self.restores += other.restores;
        self.deletes += other.deletes;
        self.refusals += other.refusals;
        self.guest += other.guest;
        self.compressed += other.compressed;
        self.resizes += other.resizes;
        self.foreign += other.foreign;
    }

    /// The verbs must have had something to do: a walk of refusals proves nothing.
    pub(super) fn assert_worked(&self, test: &str) {
        if test == "one_bit_refcounts" {
            assert!(self.takes == 0 && self.refusals > 0, "{test}: {self}");
        } else {
            assert!(self.takes > 0 && self.restores > 0 && self.deletes > 0, "{test}: {self}");
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { takes, replaces, restores, deletes, refusals, .. } = self;
        let Counts { guest, compressed, resizes, foreign, .. } = self;
        write!(
            f,
            "{takes} takes ({replaces} of them replacing), {restores} restores, {deletes} deletes, \
             {refusals} refusals; {guest} guest actions ({compressed} compressed), {resizes} resizes, \
             {foreign} foreign snapshots"
        )
    }
}

/// The `n`-th walk on these features; each set of features walks its own way.
pub(super) fn walk(test: &str, feature: &Feature, seed: u64, n: u64) -> Counts {
    let own = digest(feature.words().as_bytes()).wrapping_add(n);
    let mut random = SplitMix64::new(seed ^ own);
    let scratch = Scratch::new();
    let product = snapslot(&scratch);
    let patterns = Pattern::set(&scratch, &mut random);
    let (image, content) = feature.create(&scratch, &mut random);
    let mut walk = Walk {
        story: Story { test: test.to_owned(), seed, words: feature.words(), steps: Vec::new() },
        feature,
        patterns,
        product,
        content,
        slot: None,
        others: Vec::new(),
        names: 0,
        counts: Counts::default(),
        image,
        _scratch: scratch,
    };
    walk.story.steps.push(format!("{} bytes", walk.content.len()));
    // At least one cluster in use, at the start, where no shrinking reaches it.
    walk.guest(&[Action { offset: 0, length: SECTOR, doing: Doing::Byte(1) }]);
    walk.ensure_bitmap();
    if feature.foreign {
        walk.someone_else(&mut random);
    }
    for _ in 0..setting("SNAPSLOT_TEST_STEPS", 24) {
        walk.step(&mut random);
    }
    // Every walk ends with every verb.
    if walk.slot.is_some() {
        walk.restore(&[]);
        walk.delete();
    }
    walk.take(&[]);
    walk.some_guest_actions(&mut random);
    if walk.slot.is_some() {
        walk.restore(&[]);
        walk.delete();
    }
    walk.counts
}

/// What happened, printed when the walk fails.
struct Story {
    test: String,
    seed: u64,
    words: String,
    steps: Vec<String>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Story { test, seed, words, steps } = self;
            eprintln!("the walk, on {words}:\n  {}", steps.join("\n  "));
            eprintln!(
                "seed {seed}; replay with\n  SNAPSLOT_TEST_SEED={seed} cargo test --release -p snapslot \
                 --test images model::{test} -- --exact --nocapture"
            );
        }
    }
}

/// The snapshot in the slot.
struct Held {
    name: String,
    content: Vec<u8>,
}

/// A snapshot of somebody else's.
struct Other {
    listed: Snapshot,
    content: Vec<u8>,
}

struct Walk<'a> {
    // First, so that it is told before the files go.
    story: Story,
    feature: &'a Feature,
    patterns: Vec<Pattern>,
    product: Snapslot,
    content: Vec<u8>,
    slot: Option<Held>,
    others: Vec<Other>,
    names: u32,
    counts: Counts,
    image: Image,
    _scratch: Scratch,
}

impl Walk<'_> {
    fn step(&mut self, random: &mut SplitMix64) {
        match random.below(20) {
            0..=6 => self.some_guest_actions(random),
            7..=8 => self.resize(random),
            9..=11 => self.take(&[]),
            12..=13 => self.take(&["--replace"]),
            14..=15 => self.restore(&[]),
            16 => self.restore(&["--consume"]),
            17 => self.delete(),
            _ if self.feature.foreign => self.someone_else(random),
            _ => self.some_guest_actions(random),
        }
    }

    fn some_guest_actions(&mut self, random: &mut SplitMix64) {
        let size = self.content.len() as u64;
        let actions: Vec<Action> =
            (0..random.between(1, 6)).map(|_| Action::random(self.feature, size, random)).collect();
        self.guest(&actions);
        self.ensure_bitmap();
    }

    /// Lets the guest act. Neighbours go into one `qemu-io`; a compressed write and a discard,
    /// whose effect is for QEMU to say, go alone.
    fn guest(&mut self, actions: &[Action]) {
        let alone = |a: &Action| matches!(a.doing, Doing::Discard | Doing::Compressed(_));
        for group in actions.chunk_by(|a, b| !alone(a) && !alone(b)) {
            let commands: Vec<String> = group.iter().map(|a| a.command(&self.patterns)).collect();
            self.story.steps.push(format!("guest: {}", commands.join("; ")));
            let done = self.image.guest(&commands);
            self.counts.guest += group.len() as u64;
            match group[0].doing {
                Doing::Compressed(_) if done.code != Some(0) => {
                    // QEMU compresses only into clusters that are not the guest's own already.
                    assert!(done.text().contains("write failed"), "{}", done.account());
                    continue;
                }
                Doing::Compressed(_) => self.counts.compressed += 1,
                _ => {}
            }
            done.expect_success();
            for action in group {
                action.apply(&self.patterns, &mut self.content);
            }
            if let Doing::Discard = group[0].doing {
                self.look_at_discarded(&group[0]);
            }
        }
    }

    fn look_at_discarded(&mut self, action: &Action) {
        let seen = self.image.active();
        let (start, end) = (action.offset as usize, (action.offset + action.length) as usize);
        assert_same("before what was discarded", &seen[..start], &self.content[..start]);
        assert_same("after what was discarded", &seen[end..], &self.content[end..]);
        self.content = seen;
    }

    fn resize(&mut self, random: &mut SplitMix64) {
        if self.feature.version_2 && (self.slot.is_some() || !self.others.is_empty()) {
            return; // QEMU does not resize such images.
        }
        let size = self.feature.size(random);
        self.story.steps.push(format!("resize to {size}"));
        let size_text = size.to_string();
        let done = self.image.qemu_img(&["resize", "-q", "--shrink"], &[&size_text]);
        let hidden = self.feature.version_2 && self.feature.backing.is_some();
        if done.code != Some(0) && (self.feature.bitmap || hidden) {
            // QEMU does not resize with a bitmap it calls inconsistent, and cannot hide a longer
            // backing file in version 2.
            return;
        }
        done.expect_success();
        self.content.resize(size as usize, 0);
        self.counts.resizes += 1;
    }

    fn someone_else(&mut self, random: &mut SplitMix64) {
        if self.others.is_empty() || (self.others.len() < 3 && random.chance(1, 2)) {
            // Names that are numbers, and numbers that are ids of others.
            self.names += 1;
            let name = match self.names % 3 {
                0 => format!("nightly-{}", self.names),
                _ => self.names.to_string(),
            };
            self.story.steps.push(format!("qemu-img snapshot -c {name}"));
            self.image.qemu_img(&["snapshot", "-c", &name], &[]).expect_success();
            let listed = self.image.snapshots().into_iter().find(|s| s.name == name);
            let listed = listed.expect("the snapshot QEMU made just now");
            self.others.push(Other { listed, content: self.content.clone() });
            self.counts.foreign += 1;
        } else {
            let other = self.others.remove(random.below(self.others.len() as u64) as usize);
            // By `-d` QEMU looks for the id before the name, so another may be meant.
            let taken = |o: &Other| o.listed.id == other.listed.name;
            let slot_id = self.image.snapshots().into_iter().any(|s| s.id == other.listed.name);
            if slot_id || self.others.iter().any(taken) {
                self.others.push(other);
                self.others.sort_by_key(|o| o.listed.id.parse::<u64>().unwrap_or(0));
                return;
            }
            self.story.steps.push(format!("qemu-img snapshot -d {}", other.listed.name));
            self.image.qemu_img(&["snapshot", "-d", &other.listed.name], &[]).expect_success();
        }
    }

    fn ensure_bitmap(&mut self) {
        if !self.feature.bitmap || self.bitmap() == Some(true) {
            return;
        }
        if self.bitmap().is_some() {
            self.image.qemu_img(&["bitmap", "--remove"], &[BITMAP]).expect_success();
        }
        self.story.steps.push("qemu-img bitmap --add".to_owned());
        self.image.qemu_img(&["bitmap", "--add"], &[BITMAP]).expect_success();
    }

    /// The bitmap, if there is one: whether QEMU trusts it.
    fn bitmap(&self) -> Option<bool> {
        let info = self.image.info();
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array()?;
        let found = bitmaps.iter().find(|b| b["name"] == BITMAP)?;
        let flags = found["flags"].as_array().map_or(&[][..], Vec::as_slice);
        Some(!flags.iter().any(|flag| flag == "in-use"))
    }

    /// Runs a verb and sees that the image is what it was where it must be.
    fn verb(&mut self, verb: &str, more: &[&str]) -> (Outcome, Vec<u8>) {
        let before = self.image.bytes();
        let outcome = self.product.verb(verb, self.image.path(), more);
        self.story.steps.push(format!("{verb} {}: exit {}", more.join(" "), outcome.code()));
        if outcome.code() == 0 {
            self.check_header(&before, verb == "restore");
        } else {
            assert_same("the image after a refusal", &self.image.bytes(), &before);
            self.counts.refusals += 1;
        }
        (outcome, before)
    }

    /// A verb changes where the tables are and nothing else in the header.
    fn check_header(&self, before: &[u8], restore: bool) {
        let after = self.image.bytes();
        let version = be32(before, 4);
        assert_eq!(be32(&after, 4), version, "the image's version");
        assert_same("the header, bytes 0 to 24", &after[..24], &before[..24]);
        assert_eq!(be32(&after, 32), be32(before, 32), "the encryption method");
        if version == 2 {
            assert_same("the first sector from byte 72 on", &after[72..512], &before[72..512]);
            return;
        }
        assert_same("the feature bits", &after[72..88], &before[72..88]);
        let (autoclear, was) = (be64(&after, 88), be64(before, 88));
        let bitmaps_dropped = restore && was & !autoclear == 1;
        assert!(
            autoclear == was || bitmaps_dropped,
            "autoclear bits {was:#x} became {autoclear:#x}"
        );
        if !(restore && self.feature.bitmap) {
            assert_same("the first sector from byte 96 on", &after[96..512], &before[96..512]);
        }
    }

    fn take(&mut self, more: &[&str]) {
        let (outcome, _) = self.verb("take", more);
        let replacing = !more.is_empty();
        if self.slot.is_some() && !replacing {
            outcome.expect(3);
        } else if self.feature.refcount_bits == 1 {
            outcome.expect(6);
        } else if outcome.code() == 6 && self.counts_may_overflow() {
            // Refused in words, and nothing changed.
        } else {
            outcome.expect(0);
            let name = outcome.snapshot_name();
            let mark = outcome.json.as_ref().and_then(|j| j["slot"]["occupant"]["mark"].as_str());
            assert_eq!(mark.map(|m| format!("snapslot-{m}")).as_deref(), Some(name.as_str()));
            if let Some(old) = &self.slot {
                assert_ne!(old.name, name, "a mark used twice");
                self.counts.replaces += 1;
            }
            self.slot = Some(Held { name, content: self.content.clone() });
            self.counts.takes += 1;
        }
        self.judge();
    }

    /// Pieces of compressed clusters share a host cluster and count in it each.
    fn counts_may_overflow(&self) -> bool {
        self.feature.compression.is_some() && self.feature.refcount_bits <= 4
    }

    fn restore(&mut self, more: &[&str]) {
        let trusted = self.feature.bitmap && self.bitmap() == Some(true);
        let (outcome, _) = self.verb("restore", more);
        let Some(held) = &self.slot else {
            outcome.expect(4);
            return self.judge();
        };
        if self.feature.bitmap && outcome.code() == 6 {
            return self.judge();
        }
        outcome.expect(0);
        let differs = difference(&self.content, &held.content).is_some();
        self.content.clone_from(&held.content);
        self.counts.restores += 1;
        if !more.is_empty() {
            self.slot = None;
        }
        if trusted && differs {
            let still = self.bitmap() == Some(true);
            assert!(!still, "QEMU still trusts the bitmap, which does not know of the restore");
        }
        self.judge();
        self.ensure_bitmap();
    }

    fn delete(&mut self) {
        let trusted = self.feature.bitmap.then(|| self.bitmap());
        let (outcome, _) = self.verb("delete", &[]);
        if self.slot.is_none() {
            outcome.expect(4);
        } else {
            outcome.expect(0);
            self.slot = None;
            self.counts.deletes += 1;
        }
        assert_eq!(self.feature.bitmap.then(|| self.bitmap()), trusted, "the bitmap");
        self.judge();
    }

    /// Asks QEMU, and the product itself, what there is now.
    fn judge(&self) {
        self.image.assert_clean();
        let ours = |s: &Snapshot| s.name.starts_with("snapslot-");
        let (found, others): (Vec<_>, Vec<_>) = self.image.snapshots().into_iter().partition(ours);
        let expected: Vec<&Snapshot> = self.others.iter().map(|o| &o.listed).collect();
        assert_eq!(others.iter().collect::<Vec<_>>(), expected, "the foreign snapshots");
        let names: Vec<&str> = found.iter().map(|s| s.name.as_str()).collect();
        let held: Vec<&str> = self.slot.iter().map(|held| held.name.as_str()).collect();
        assert_eq!(names, held, "the snapshots of the slot");

        assert_same("the disk", &self.image.active(), &self.content);
        let snapshots = self.slot.iter().map(|held| (&held.name, &held.content));
        for (name, content) in
            snapshots.chain(self.others.iter().map(|o| (&o.listed.name, &o.content)))
        {
            // QEMU shows a snapshot as long as the disk is now.
            let shown = self.image.snapshot(name);
            let shared = shown.len().min(content.len());
            assert_same(&format!("snapshot {name}"), &shown[..shared], &content[..shared]);
        }

        let status = self.product.verb("status", self.image.path(), &[]);
        let json: &Value = status.expect(0);
        match status.slot() {
            "held" => {
                assert_eq!(Some(status.snapshot_name()), self.slot.as_ref().map(|h| h.name.clone()))
            }
            "empty" | "disabled" => assert!(self.slot.is_none(), "status says {}", json["slot"]),
            other => panic!("status says {other}: {json}"),
        }
    }
}
