//! What may be seen of a qcow2 image at a crash and after it.

use std::collections::BTreeMap;

use snapslot_disk::sim::World;

use crate::qcow2_model::{Flaw, Picture, Qcow2};
use crate::qemu::Bench;
use crate::sim_host::{IMAGE, Recovered, recover};
use crate::trial::Judge;

/// Autoclear bits that the specification knows: bitmaps, raw external data.
const KNOWN_AUTOCLEAR: u64 = 3;

/// Judges by the model, and on a sample by QEMU.
pub struct Qcow2Judge {
    /// Version of the image when nothing is under way.
    pub version: u32,
    /// Content of the backing file.
    pub backing: Vec<u8>,
    /// Where QEMU works; the backing file is there too.
    pub bench: Bench,
}

impl Qcow2Judge {
    /// For an image made in `bench`.
    ///
    /// # Panics
    /// If it is no qcow2 image.
    pub fn new(bench: Bench, image: &[u8], backing: Vec<u8>) -> Self {
        let version = Qcow2::read(image).expect("an image that QEMU made").header().version;
        Qcow2Judge { version, backing, bench }
    }

    fn expect(&self, image: &[u8], wanted: &Picture, when: &str) -> Result<(), String> {
        let found = self.picture(image).map_err(|e| format!("{when}: {e}"))?;
        if found != *wanted {
            return Err(format!("{when}:\n  found  {found:x?}\n  wanted {wanted:x?}"));
        }
        Ok(())
    }

    /// Recovery after QEMU wrote to the image must keep its hands off.
    fn recovery_keeps_off(
        &self,
        crashed: &BTreeMap<String, Vec<u8>>,
        image: Vec<u8>,
        when: &str,
    ) -> Result<(), String> {
        let mut files = crashed.clone();
        files.insert(IMAGE.to_owned(), image.clone());
        let world = World::new(files);
        let did = recover(&world).map_err(|e| format!("{when}: {e}"))?;
        if did == Recovered::Redone || world.bytes(IMAGE) != Some(image) {
            return Err(format!("{when}, recovery ({did:?}) changed the image"));
        }
        Ok(())
    }
}

impl Judge for Qcow2Judge {
    type Picture = Picture;

    fn picture(&self, image: &[u8]) -> Result<Picture, String> {
        Qcow2::read(image)?.picture(&self.backing)
    }

    /// Without a dirty bit nothing may be wrong but leaks. With it QEMU counts anew before it
    /// writes, so that a wrong COPIED bit is excused; a refcount that is too low is not, since
    /// this project's order of writes never needs it.
    fn check_crashed(&self, image: &[u8]) -> Result<(), String> {
        let image = Qcow2::read(image)?;
        let verdict = image.judge();
        let dirty = image.header().dirty();
        if verdict.errors.is_empty() && (dirty || verdict.copied.is_empty()) {
            return Ok(());
        }
        Err(format!("dirty: {dirty}{verdict}"))
    }

    fn check_settled(&self, image: &[u8]) -> Result<(), String> {
        let image = Qcow2::read(image)?;
        let header = image.header();
        if header.dirty() || header.autoclear_features & !KNOWN_AUTOCLEAR != 0 {
            return Err("it is still marked".to_owned());
        }
        if header.version != self.version {
            return Err(format!("it has version {}, not {}", header.version, self.version));
        }
        let verdict = image.judge();
        if verdict.clean() { Ok(()) } else { Err(verdict.to_string()) }
    }

    /// QEMU finds the recovered image right. QEMU repairs the crashed one, or a guest starts on
    /// it and writes: content stays, and recovery afterwards leaves it alone.
    fn second_opinion(
        &self,
        crashed: &BTreeMap<String, Vec<u8>>,
        settled: &[u8],
    ) -> Result<(), String> {
        let bench = &self.bench;
        bench.write("settled.qcow2", settled);
        let (status, text) = bench.check("settled.qcow2", false);
        if status != 0 {
            return Err(format!("qemu-img check after recovery, status {status}: {text}"));
        }
        let image = crashed.get(IMAGE).ok_or("the image is gone")?;
        let picture = self.picture(image)?;

        bench.write("crashed.qcow2", image);
        let (status, text) = bench.check("crashed.qcow2", true);
        let repaired = bench.read("crashed.qcow2");
        if status != 0 {
            return Err(format!("qemu-img check -r all before recovery, status {status}: {text}"));
        }
        self.expect(&repaired, &picture, "after QEMU's repair")?;
        self.recovery_keeps_off(crashed, repaired, "after QEMU's repair")?;

        bench.write("crashed.qcow2", image);
        let at = 512 * ((image.len() as u64 / 512 * 7) % (picture.size / 512));
        let write = format!("write -q -P 0x5a {at} 512");
        let out = bench.try_io("crashed.qcow2", &[&write]);
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            return Err(format!("a guest cannot start on the crashed image: {said}"));
        }
        let written = bench.read("crashed.qcow2");
        let model = Qcow2::read(&written)?;
        let crashed_image = Qcow2::read(image)?;
        let mut wanted = crashed_image.active_clusters(&self.backing)?;
        let cluster = crashed_image.header().cluster_size();
        let (start, within) = (at / cluster * cluster, (at % cluster) as usize);
        let length = cluster.min(picture.size - start) as usize;
        wanted.entry(start).or_insert_with(|| vec![0; length])[within..within + 512].fill(0x5a);
        if model.active_clusters(&self.backing)? != wanted {
            return Err("a guest wrote to the crashed image and sees something else".to_owned());
        }
        let kept = model.picture(&self.backing)?.snapshots;
        if kept != picture.snapshots {
            return Err("a guest wrote to the crashed image and a snapshot changed".to_owned());
        }
        let mut verdict = model.judge();
        // QEMU's repair looks at counts only as far as the file reaches. What was counted for clusters that the
        // crash kept from being written stays counted when the file grows over them: a leak, and no more.
        let end = (image.len() as u64).div_ceil(model.header().cluster_size());
        let beyond =
            |flaw: &Flaw| matches!(flaw, Flaw::Leak { cluster, .. } if *cluster + 1 >= end);
        verdict.leaks.retain(|flaw| !beyond(flaw));
        if !verdict.clean() {
            return Err(format!("after a guest wrote to the crashed image:{verdict}"));
        }
        self.recovery_keeps_off(crashed, written, "after a guest wrote")
    }
}
