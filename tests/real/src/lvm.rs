//! Fixtures of LVM: a volume group on a RAM disk, thick and thin volumes, and what the tools
//! say of them.

use crate::content;
use crate::subject::{Content, Storage};
use crate::tools::{run, try_run};

/// The group's name.
pub const VG: &str = "vg";
const DISK: &str = "/dev/ram0";
/// The thin pool's name.
pub const POOL: &str = "pool";

/// How the volume is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Thick,
    Thin,
}

/// One logical volume, `vg/vm1`, on a group of its own.
pub struct Volume {
    pub kind: Kind,
    locator: String,
    device: String,
    base: String,
}

impl Volume {
    /// A fresh group with one volume of so many MiB.
    #[track_caller]
    pub fn new(kind: Kind, mib: u32) -> Volume {
        clear();
        make_group(256);
        match kind {
            Kind::Thick => drop(run(&format!("lvcreate -qq -y -L {mib}M -n vm1 {VG}"))),
            Kind::Thin => {
                let pool = (mib * 4).max(32);
                make_pool(pool);
                run(&format!("lvcreate -qq -y -V {mib}M -T {VG}/{POOL} -n vm1"));
            }
        }
        Volume::existing(kind)
    }

    /// `vg/vm1`, which is there.
    pub fn existing(kind: Kind) -> Volume {
        let device = format!("/dev/{VG}/vm1");
        Volume { kind, locator: format!("lvm:{VG}/vm1"), device, base: layout() }
    }

    pub fn device(&self) -> &str {
        &self.device
    }

    /// What the tools print for one field of a volume of the group.
    #[track_caller]
    pub fn field(&self, name: &str, field: &str) -> String {
        field_of(name, field)
    }
}

/// The group on the first RAM disk, using so many MiB of it.
#[track_caller]
pub fn make_group(mib: u32) {
    run(&format!("dd if=/dev/zero of={DISK} bs=1M count=4 status=none"));
    let whole = if mib >= 256 { String::new() } else { format!(" --setphysicalvolumesize {mib}M") };
    run(&format!("pvcreate -qq -y -ff{whole} {DISK}"));
    run(&format!("vgcreate -qq -s 1M {VG} {DISK}"));
}

/// A thin pool that fails writes at once when it is full.
#[track_caller]
pub fn make_pool(mib: u32) {
    run(&format!(
        "lvcreate -qq -y -T -L {mib}M --poolmetadatasize 2M --chunksize 64K --errorwhenfull y {VG}/{POOL}"
    ));
}

/// One field of a volume of the group, as the tools print it.
#[track_caller]
pub fn field_of(name: &str, field: &str) -> String {
    run(&format!("lvs --noheadings --units b --nosuffix -o {field} {VG}/{name}")).trim().to_owned()
}

/// Removes whatever there is.
#[track_caller]
pub fn clear() {
    if try_run(&format!("vgs {VG}")).code == Some(0) {
        run(&format!("vgremove -qq -y -ff {VG}"));
    }
}

/// The volumes of the group with what must come back to what it was: name, size, pool, origin,
/// tags, attributes without those that tell of use.
#[track_caller]
pub fn layout() -> String {
    let fields =
        "lv_name,lv_size,pool_lv,origin,lv_tags,lv_active,lv_permissions,lv_skip_activation";
    run(&format!(
        "lvs -a --noheadings --units b --nosuffix --separator | -O lv_name -o {fields} {VG}"
    ))
}

impl Storage for Volume {
    fn locator(&self) -> &str {
        &self.locator
    }

    fn scribble(&self, seed: u64) {
        content::scribble(&self.device, seed, 24);
    }

    fn content(&self) -> Content {
        Content::Bytes(content::read(&self.device))
    }

    fn snapshots(&self) -> Vec<String> {
        let all = run(&format!("lvs --noheadings -O lv_name -o lv_name {VG}"));
        let names = all.lines().map(|l| l.trim().to_owned());
        names.filter(|n| !n.is_empty() && n != "vm1" && n != POOL).collect()
    }

    fn shown(&self) -> Vec<String> {
        // A thick one is active as its origin is.
        let mut all = if self.merges() { Vec::new() } else { self.snapshots() };
        all.retain(|name| std::path::Path::new(&format!("/dev/{VG}/{name}")).exists());
        all
    }

    fn layout(&self) -> String {
        layout()
    }

    fn base(&self) -> &str {
        &self.base
    }

    fn merges(&self) -> bool {
        self.kind == Kind::Thick
    }

    fn remove_by_hand(&self, snapshot: &str) {
        run(&format!("lvremove -qq -y {VG}/{snapshot}"));
    }

    fn replace_by_hand(&self) {
        let size = field_of("vm1", "lv_size");
        run(&format!("lvremove -qq -y {VG}/vm1"));
        match self.kind {
            Kind::Thick => run(&format!("lvcreate -qq -y -L {size}b -n vm1 {VG}")),
            Kind::Thin => run(&format!("lvcreate -qq -y -V {size}b -T {VG}/{POOL} -n vm1")),
        };
    }
}
