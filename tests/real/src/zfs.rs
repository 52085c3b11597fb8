//! Fixtures of ZFS: a pool on a RAM disk, a volume or a file system, and what the tools say.

use std::time::Duration;

use crate::content;
use crate::subject::{Content, Storage};
use crate::tools::{run, try_run, try_words, within};

/// The pool's name.
pub const POOL: &str = "tank";
const DISK: &str = "/dev/ram1";
/// The dataset every scenario works on.
pub const DATASET: &str = "tank/vm1";

/// What the dataset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A volume without a reservation.
    Zvol,
    /// A file system, mounted.
    Mounted,
    /// A file system that is not mounted while the engine works.
    Unmounted,
    /// A volume with encryption, its key loaded.
    EncryptedZvol,
    /// A mounted file system with encryption.
    Encrypted,
}

/// `tank/vm1` on a pool of its own.
pub struct Dataset {
    pub kind: Kind,
    locator: String,
    base: String,
}

impl Dataset {
    /// A fresh pool with one dataset.
    #[track_caller]
    pub fn new(kind: Kind, mib: u32) -> Dataset {
        clear();
        make_pool();
        let key = "/run/snapslot/key";
        std::fs::write(key, "a passphrase of some length\n").expect("the key's file");
        let secret =
            format!("-o encryption=on -o keyformat=passphrase -o keylocation=file://{key}");
        match kind {
            Kind::Zvol => run(&format!("zfs create -s -V {mib}M -b 16K {DATASET}")),
            Kind::EncryptedZvol => {
                run(&format!("zfs create -s -V {mib}M -b 16K {secret} {DATASET}"))
            }
            Kind::Mounted => run(&format!("zfs create -o mountpoint=/mnt/vm1 {DATASET}")),
            Kind::Unmounted => {
                run(&format!("zfs create -o mountpoint=/mnt/vm1 -o canmount=noauto {DATASET}"))
            }
            Kind::Encrypted => {
                run(&format!("zfs create -o mountpoint=/mnt/vm1 {secret} {DATASET}"))
            }
        };
        let dataset = Dataset::existing(kind);
        if dataset.is_volume() {
            wait_for_node();
        }
        dataset
    }

    /// `tank/vm1`, which is there.
    pub fn existing(kind: Kind) -> Dataset {
        Dataset { kind, locator: format!("zfs:{DATASET}"), base: layout() }
    }

    /// Whether it is a block device.
    pub fn is_volume(&self) -> bool {
        matches!(self.kind, Kind::Zvol | Kind::EncryptedZvol)
    }

    fn with_mount<T>(&self, work: impl FnOnce(&str) -> T) -> T {
        let by_us = self.kind == Kind::Unmounted;
        if by_us {
            run(&format!("zfs mount {DATASET}"));
        }
        let value = work("/mnt/vm1");
        if by_us {
            run(&format!("zfs unmount {DATASET}"));
        }
        value
    }
}

/// The volume's device node.
pub fn device() -> String {
    format!("/dev/zvol/{DATASET}")
}

/// udev makes the node; this returns when its queue is empty.
#[track_caller]
pub fn wait_for_node() {
    settle();
    let node = device();
    assert!(std::path::Path::new(&node).exists(), "udev made no {node}");
}

/// Waits until udev has nothing to do. On a slow machine it now and then drops the connection
/// instead of answering; asked again later it answers.
pub fn settle() {
    let mut last = String::new();
    let settled = within(Duration::from_secs(120), || {
        let done = try_run("udevadm settle --timeout=30");
        last = done.account();
        done.code == Some(0)
    });
    assert!(settled, "udev did not settle: {last}");
}

/// A pool on the second RAM disk.
#[track_caller]
pub fn make_pool() {
    run(&format!("dd if=/dev/zero of={DISK} bs=1M count=2 status=none"));
    run(&format!("zpool create -f -m none -O compression=off -O atime=off {POOL} {DISK}"));
}

/// Removes whatever there is.
#[track_caller]
pub fn clear() {
    if try_run(&format!("zpool list {POOL}")).code == Some(0) {
        run(&format!("zpool destroy -f {POOL}"));
    }
}

/// Everything of the pool by type and name, with what the engine must not leave changed.
#[track_caller]
pub fn layout() -> String {
    run(&format!(
        "zfs list -Hp -r -t all -s name -o name,type,volsize,mounted,canmount,readonly,userrefs,origin {POOL}"
    ))
}

/// One property of a dataset or snapshot.
#[track_caller]
pub fn property(name: &str, property: &str) -> String {
    let words = ["zfs", "get", "-Hp", "-o", "value", property, name];
    try_words(&words).expect_success().text().trim().to_owned()
}

impl Storage for Dataset {
    fn settle(&self) {
        if self.is_volume() {
            settle();
        }
    }

    fn locator(&self) -> &str {
        &self.locator
    }

    fn scribble(&self, seed: u64) {
        if self.is_volume() {
            content::scribble(&device(), seed, 24);
            // Whoever closes a device it wrote to makes udev look at it, and for that moment udev
            // has it open: the engine would say so, rightly.
            settle();
        } else {
            self.with_mount(|folder| content::scribble_tree(folder, seed, 12));
        }
    }

    fn content(&self) -> Content {
        if self.is_volume() {
            Content::Bytes(content::read(&device()))
        } else {
            self.with_mount(|folder| Content::Tree(content::tree(folder)))
        }
    }

    fn snapshots(&self) -> Vec<String> {
        let all = run(&format!("zfs list -H -t snapshot -o name -s createtxg -d 1 {DATASET}"));
        all.lines().map(str::to_owned).collect()
    }

    fn shown(&self) -> Vec<String> {
        let words = ["zfs", "get", "-Hp", "-o", "value,source", "snapdev", DATASET];
        let said = try_words(&words).expect_success().text().trim().to_owned();
        if said == "hidden\tdefault" { Vec::new() } else { vec![said] }
    }

    fn layout(&self) -> String {
        layout()
    }

    fn base(&self) -> &str {
        &self.base
    }

    fn remove_by_hand(&self, snapshot: &str) {
        run(&format!("zfs destroy {snapshot}"));
    }

    fn replace_by_hand(&self) {
        let size = property(DATASET, "volsize");
        run(&format!("zfs destroy -r {DATASET}"));
        if self.is_volume() {
            run(&format!("zfs create -s -V {size} -b 16K {DATASET}"));
            wait_for_node();
        } else {
            run(&format!("zfs create -o mountpoint=/mnt/vm1 {DATASET}"));
        }
    }
}
