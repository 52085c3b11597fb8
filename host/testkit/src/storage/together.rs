//! Several volumes of one virtual machine, on LVM and ZFS in memory, whose caller dies once.
//!
//! A crash is counted over the commands of all of them, because the engine is one process: after it
//! neither storage hears of it again until [`Together::restart`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapslot_command::{Answer, Command, Executor, RunError};

use super::machine::{BLOCKS, Kind, generation, put_on_lvm, put_on_zfs};
use super::{When, lvm, zfs};

/// The volumes, and the storage they are in. Clones are the same ones.
#[derive(Clone)]
pub struct Together(Arc<Inner>);

struct Inner {
    lvm: lvm::Lvm,
    zfs: zfs::Model,
    kinds: Vec<Kind>,
    caller: Mutex<Caller>,
}

#[derive(Default)]
struct Caller {
    changes: u64,
    crash: Option<(u64, When)>,
    trouble: Option<u64>,
    /// What somebody else types after a command.
    meddle: Option<(u64, Vec<String>)>,
    dead: bool,
    log: Vec<String>,
}

impl Executor for Together {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let mut caller = self.caller();
        caller.log.push(command.to_string());
        if caller.dead {
            return Err(RunError::Killed { command: command.to_string(), signal: 9 });
        }
        if changes(command) {
            caller.changes += 1;
            if let Some((at, when)) = caller.crash
                && at == caller.changes
            {
                caller.dead = true;
                match command.program.as_str() {
                    "zfs" => self.0.zfs.crash_at(1, when),
                    _ => self.0.lvm.crash_at(1, when),
                }
            }
            if caller.trouble == Some(caller.changes) {
                let errors = b"  Something is wrong.\n".to_vec();
                return Ok(Answer { exit_code: 5, output: Vec::new(), errors });
            }
        }
        let meddle = match &caller.meddle {
            Some((at, _)) if changes(command) && *at == caller.changes => caller.meddle.take(),
            _ => None,
        };
        drop(caller);
        let result = match command.program.as_str() {
            "zfs" => self.0.zfs.run(command),
            _ => self.0.lvm.run(command),
        };
        for line in meddle.iter().flat_map(|(_, lines)| lines) {
            self.hand(line);
        }
        result
    }
}

fn changes(command: &Command) -> bool {
    let first = command.arguments.first().map(String::as_str);
    match command.program.as_str() {
        "lvs" | "vgs" => false,
        _ => !matches!(first, Some("list" | "get" | "holds")),
    }
}

impl Together {
    /// New ones, whose guest has written generation 1 to each.
    pub fn new(kinds: &[Kind]) -> Together {
        let inner = Inner {
            lvm: lvm::Lvm::new(7),
            zfs: zfs::Model::with_tank(7),
            kinds: kinds.to_vec(),
            caller: Mutex::default(),
        };
        inner.lvm.add_group("vg", 1 << 30);
        if kinds.contains(&Kind::Thin) {
            inner
                .lvm
                .stage("lvcreate -y --type thin-pool -L 256M --poolmetadatasize 4M -n pool vg");
        }
        let all = Together(Arc::new(inner));
        for (i, kind) in kinds.iter().enumerate() {
            match kind {
                Kind::Thin | Kind::Thick | Kind::ThickInactive => {
                    put_on_lvm(&all.0.lvm, *kind, &all.name(i));
                }
                Kind::Zvol | Kind::Dataset => put_on_zfs(&all.0.zfs, *kind, &all.name(i)),
            }
        }
        all.write(1);
        for (i, kind) in kinds.iter().enumerate() {
            if *kind == Kind::ThickInactive {
                all.0.lvm.stage(&format!("lvchange -an vg/{}", all.name(i)));
            }
        }
        all
    }

    fn caller(&self) -> MutexGuard<'_, Caller> {
        self.0.caller.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, at: usize) -> String {
        format!("vm{}", at + 1)
    }

    /// The volume's place in its storage's own terms.
    pub fn place(&self, at: usize) -> String {
        match self.0.kinds[at] {
            Kind::Thin | Kind::Thick | Kind::ThickInactive => format!("vg/{}", self.name(at)),
            Kind::Zvol | Kind::Dataset => format!("tank/{}", self.name(at)),
        }
    }

    /// The volumes as the engine is told of them.
    pub fn locators(&self) -> Vec<String> {
        let backend = |kind: &Kind| if Kind::LVM.contains(kind) { "lvm" } else { "zfs" };
        let all = self.0.kinds.iter().enumerate();
        all.map(|(i, kind)| format!("{}:{}", backend(kind), self.place(i))).collect()
    }

    /// The group that logical volumes are in.
    pub fn lvm(&self) -> &lvm::Lvm {
        &self.0.lvm
    }

    /// The pool that datasets are in.
    pub fn zfs(&self) -> &zfs::Model {
        &self.0.zfs
    }

    /// The guest writes to all of them: every block gets a value of this generation.
    ///
    /// # Panics
    /// If the storage has no room for it.
    pub fn write(&self, generation: u64) {
        for (i, kind) in self.0.kinds.iter().enumerate() {
            let place = self.place(i);
            let lvm = &self.0.lvm;
            let inactive = Kind::LVM.contains(kind) && lvm.field(&place, "lv_active") != "active";
            if inactive {
                lvm.stage(&format!("lvchange -ay {place}"));
            }
            for block in 0..BLOCKS {
                let value = generation * 100 + block;
                match Kind::LVM.contains(kind) {
                    true => lvm.guest_write(&place, block, value).expect("room"),
                    false => self.0.zfs.guest_write(&place, block, Some(value)).expect("room"),
                }
            }
            if inactive {
                lvm.stage(&format!("lvchange -an {place}"));
            }
        }
    }

    /// The generation of what the guest sees of each; an error if one is a mixture or nothing.
    pub fn sees(&self) -> Result<Vec<u64>, String> {
        let one = |(i, kind): (usize, &Kind)| {
            let place = self.place(i);
            let content = match Kind::LVM.contains(kind) {
                // In the middle of a restore it may have no volume of its name.
                true if !self.0.lvm.names("vg").contains(&self.name(i)) => None,
                true => self.0.lvm.content(&place),
                false => self.0.zfs.content(&place),
            };
            generation(content.as_ref()).map_err(|e| format!("{place}: {e}"))
        };
        self.0.kinds.iter().enumerate().map(one).collect()
    }

    /// Names of what is in the storage beside the volumes themselves and their pool.
    pub fn others(&self) -> Vec<String> {
        let mut names = Vec::new();
        if self.0.kinds.iter().any(|kind| Kind::LVM.contains(kind)) {
            names.extend(self.0.lvm.names("vg"));
        }
        for (i, kind) in self.0.kinds.iter().enumerate() {
            if Kind::ZFS.contains(kind) {
                names.extend(self.0.zfs.snapshots(&self.place(i)).into_iter().map(|(n, _)| n));
            }
        }
        names.retain(|n| n.contains("_snapslot_") || n.contains("snapslot-"));
        names
    }

    /// The caller dies at its n-th command that changes something, counted from 1.
    pub fn crash_at(&self, n: u64, when: When) {
        let mut caller = self.caller();
        caller.crash = Some((caller.changes + n, when));
    }

    /// The n-th coming command that changes something is not run, complains and fails.
    pub fn fail_at(&self, n: u64) {
        let mut caller = self.caller();
        caller.trouble = Some(caller.changes + n);
    }

    /// Somebody types this after the n-th coming command that changes something.
    pub fn meddle_at(&self, n: u64, lines: &[&str]) {
        let mut caller = self.caller();
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        caller.meddle = Some((caller.changes + n, lines));
    }

    /// Whether what was to be typed was typed.
    pub fn meddled(&self) -> bool {
        self.caller().meddle.is_none()
    }

    /// Runs a command as typed by somebody else.
    ///
    /// # Panics
    /// If it fails.
    pub fn hand(&self, line: &str) {
        match line.starts_with("zfs ") {
            true => drop(self.0.zfs.must(line)),
            false => self.0.lvm.stage(line),
        }
    }

    /// All there is, as the tools and a reader tell it: what must be the same if nothing was changed.
    pub fn account(&self) -> String {
        let mut all = format!("{:?}\n", self.sees());
        if self.0.kinds.iter().any(|kind| Kind::LVM.contains(kind)) {
            let fields = "lv_name,lv_uuid,lv_tags,lv_active,lv_attr,origin";
            let said = self.0.lvm.hand(&format!("lvs -a --noheadings -o {fields} vg"));
            all.push_str(&String::from_utf8_lossy(&said.output));
        }
        for (i, kind) in self.0.kinds.iter().enumerate() {
            if Kind::ZFS.contains(kind) {
                all.push_str(&format!("{:?}\n", self.0.zfs.snapshots(&self.place(i))));
            }
        }
        all
    }

    /// Whether the crash or the failure came to pass; and from here on all is well again.
    pub fn restart(&self) -> bool {
        self.0.lvm.restart();
        self.0.zfs.restart();
        let mut caller = self.caller();
        let failed = caller.trouble.is_some_and(|at| at <= caller.changes);
        let came = caller.dead || failed;
        (caller.dead, caller.crash, caller.trouble) = (false, None, None);
        came
    }

    /// The commands run by the engine, oldest first.
    pub fn log(&self) -> Vec<String> {
        self.caller().log.clone()
    }
}
