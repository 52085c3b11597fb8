//! A virtual machine's volume on modelled storage: written to by its guest, read by a judge, and with a
//! crash or a fault at any command.
//!
//! The guest writes *generations*: every block gets a value of the same one, so that a judge sees
//! at once whether content is of one moment or a mixture.

use std::collections::BTreeMap;
use std::sync::Arc;

use snapslot_command::{Answer, Command, Executor, RunError};

use super::{When, lvm, zfs};

/// Blocks that the guest writes.
pub(super) const BLOCKS: u64 = 6;

/// A kind of volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A thin logical volume.
    Thin,
    /// A thick one.
    Thick,
    /// A thick one that is not active.
    ThickInactive,
    /// A ZFS volume.
    Zvol,
    /// A ZFS file system.
    Dataset,
}

impl Kind {
    /// All of LVM's.
    pub const LVM: [Kind; 3] = [Kind::Thin, Kind::Thick, Kind::ThickInactive];
    /// All of ZFS's.
    pub const ZFS: [Kind; 2] = [Kind::Zvol, Kind::Dataset];
    /// All there are.
    pub const ALL: [Kind; 5] =
        [Kind::Thin, Kind::Thick, Kind::ThickInactive, Kind::Zvol, Kind::Dataset];

    /// The volume's place in its storage's own terms.
    pub fn place(self) -> &'static str {
        match self {
            Kind::Thin | Kind::Thick | Kind::ThickInactive => "vg/vm1",
            Kind::Zvol | Kind::Dataset => "tank/vm1",
        }
    }
}

/// What goes wrong with one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is not run, complains and fails.
    Fails,
    /// It does nothing, hangs, and is ended at its deadline.
    Hangs,
    /// A signal ends it before it did anything.
    Dies,
    /// It does its work and says nothing.
    Silent,
    /// It does its work and says something else.
    Rubbish,
    /// It does its work and says bytes that are no text.
    NotText,
}

impl Trouble {
    /// All of it.
    pub const ALL: [Trouble; 6] = [
        Trouble::Fails,
        Trouble::Hangs,
        Trouble::Dies,
        Trouble::Silent,
        Trouble::Rubbish,
        Trouble::NotText,
    ];
}

/// The storage.
#[derive(Clone)]
enum Model {
    Lvm(Arc<lvm::Lvm>),
    Zfs(Arc<zfs::Model>),
}

/// The volume, and the storage it is in. Clones are the same one.
#[derive(Clone)]
pub struct Machine {
    kind: Kind,
    model: Model,
}

impl Executor for Machine {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        match &self.model {
            Model::Lvm(model) => model.run(command),
            Model::Zfs(model) => model.run(command),
        }
    }
}

/// Makes a logical volume of this kind and name in the group `vg`; a thin one in `pool` there.
pub(super) fn put_on_lvm(model: &lvm::Lvm, kind: Kind, name: &str) {
    match kind {
        Kind::Thin => model.stage(&format!("lvcreate -y -V 64M --thinpool pool -n {name} vg")),
        _ => model.stage(&format!("lvcreate -y -L 64M -n {name} vg")),
    }
}

/// Makes a dataset of this kind and name in the pool `tank`.
pub(super) fn put_on_zfs(model: &zfs::Model, kind: Kind, name: &str) {
    match kind {
        Kind::Zvol => model.must(&format!("zfs create -V 32M tank/{name}")),
        _ => model.must(&format!("zfs create -o mountpoint=/mnt/{name} tank/{name}")),
    };
}

/// The generation of this content; an error if it is a mixture or not there.
pub(super) fn generation(content: Option<&BTreeMap<u64, u64>>) -> Result<u64, String> {
    let content = content.ok_or("the volume is not there")?;
    let mut generations: Vec<u64> =
        (0..BLOCKS).map(|b| content.get(&b).copied().unwrap_or(0) / 100).collect();
    generations.dedup();
    match generations.as_slice() {
        [one] => Ok(*one),
        mixed => Err(format!("a mixture of {mixed:?}")),
    }
}

impl Machine {
    /// A new one, whose guest has written generation 1.
    pub fn new(kind: Kind) -> Machine {
        let model = match kind {
            Kind::Thin | Kind::Thick | Kind::ThickInactive => {
                let model = lvm::Lvm::new(7);
                model.add_group("vg", 1 << 30);
                if kind == Kind::Thin {
                    model.stage(
                        "lvcreate -y --type thin-pool -L 256M --poolmetadatasize 4M -n pool vg",
                    );
                }
                put_on_lvm(&model, kind, "vm1");
                Model::Lvm(Arc::new(model))
            }
            Kind::Zvol | Kind::Dataset => {
                let model = zfs::Model::with_tank(7);
                put_on_zfs(&model, kind, "vm1");
                Model::Zfs(Arc::new(model))
            }
        };
        let machine = Machine { kind, model };
        machine.write(1);
        if kind == Kind::ThickInactive {
            machine.hand("lvchange -an vg/vm1");
        }
        machine
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Runs a command as typed by somebody else.
    ///
    /// # Panics
    /// If it fails.
    pub fn hand(&self, line: &str) {
        match &self.model {
            Model::Lvm(model) => model.stage(line),
            Model::Zfs(model) => {
                model.must(line);
            }
        }
    }

    /// The guest writes: every block gets a value of this generation.
    ///
    /// # Panics
    /// If the storage has no room for it.
    pub fn write(&self, generation: u64) {
        let inactive = match &self.model {
            Model::Lvm(m) => m.field("vg/vm1", "lv_active") != "active",
            Model::Zfs(_) => false,
        };
        if inactive {
            self.hand("lvchange -ay vg/vm1");
        }
        for block in 0..BLOCKS {
            let value = generation * 100 + block;
            match &self.model {
                Model::Lvm(m) => m.guest_write("vg/vm1", block, value).expect("room"),
                Model::Zfs(m) => m.guest_write("tank/vm1", block, Some(value)).expect("room"),
            }
        }
        if inactive {
            self.hand("lvchange -an vg/vm1");
        }
    }

    /// The generation of what the guest sees; an error if it is a mixture or nothing.
    pub fn sees(&self) -> Result<u64, String> {
        let content = match &self.model {
            Model::Lvm(m) => m.content("vg/vm1"),
            Model::Zfs(m) => m.content("tank/vm1"),
        };
        generation(content.as_ref())
    }

    /// Names of what there is in the storage: volumes of the group, snapshots of the dataset.
    pub fn names(&self) -> Vec<String> {
        match &self.model {
            Model::Lvm(m) => m.names("vg"),
            Model::Zfs(m) => m.snapshots("tank/vm1").into_iter().map(|(n, _)| n).collect(),
        }
    }

    /// All there is in the storage, in words.
    pub fn all(&self) -> String {
        match &self.model {
            Model::Lvm(m) => m.all(),
            Model::Zfs(m) => m.all(),
        }
    }

    /// The caller dies at its n-th command that changes something, counted from 1.
    pub fn crash_at(&self, n: u64, when: When) {
        match &self.model {
            Model::Lvm(m) => m.crash_at(n, when),
            Model::Zfs(m) => m.crash_at(n, when),
        }
    }

    /// Something goes wrong with the n-th coming command, counted from 1.
    pub fn trouble_at(&self, n: u64, trouble: Trouble) {
        match &self.model {
            Model::Lvm(m) => m.fault_at(
                n,
                match trouble {
                    Trouble::Fails => lvm::Fault::Fails(5, "  Something is wrong.\n".to_owned()),
                    Trouble::Hangs => lvm::Fault::Hangs(When::Before),
                    Trouble::Dies => lvm::Fault::Dies(When::Before),
                    Trouble::Silent => lvm::Fault::Silent,
                    Trouble::Rubbish => lvm::Fault::Prints(b"{\"what\": [1,\n".to_vec()),
                    Trouble::NotText => lvm::Fault::Prints(vec![0xff, 0xfe, 0, 0x80, b'\n']),
                },
            ),
            Model::Zfs(m) => m.fault_at(
                n,
                match trouble {
                    Trouble::Fails => zfs::Fault::Says(Answer {
                        exit_code: 1,
                        output: Vec::new(),
                        errors: b"cannot do it: something is wrong\n".to_vec(),
                    }),
                    Trouble::Hangs => zfs::Fault::Hang { done: false },
                    Trouble::Dies => zfs::Fault::Dies { done: false },
                    Trouble::Silent => zfs::Fault::Empty,
                    Trouble::Rubbish => zfs::Fault::Rubbish,
                    Trouble::NotText => zfs::Fault::NotText,
                },
            ),
        }
    }

    /// Whether the crash came to pass; and from here on all is well again.
    pub fn restart(&self) -> bool {
        match &self.model {
            Model::Lvm(m) => {
                let crashed = m.crashed();
                m.restart();
                crashed
            }
            Model::Zfs(m) => {
                let crashed = m.is_dead();
                m.restart();
                crashed
            }
        }
    }

    /// The commands run by the engine, oldest first.
    pub fn log(&self) -> Vec<String> {
        match &self.model {
            Model::Lvm(m) => m.log(),
            Model::Zfs(m) => m.log(),
        }
    }
}
