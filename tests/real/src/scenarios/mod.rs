//! What is shown, and in which guest.

mod blockers_lvm;
mod blockers_zfs;
mod crash;
mod differs;
mod faults;
mod fixtures;
mod import;
mod kernel_nbd;
mod lifecycle;
mod machine;
mod race;
mod rare_lvm;
mod rare_zfs;
mod thin_diff;
mod zfs_diff;

use crate::harness::{Group, Scenario};
use crate::{lvm, tap, zfs};

macro_rules! scenario {
    ($group:ident $name:literal $run:path, $shows:literal) => {
        Scenario { group: Group::$group, name: $name, shows: $shows, run: $run }
    };
}

/// All of them, in the order in which they run.
pub const ALL: &[Scenario] = &[
    scenario!(Lvm "lvm-fixtures" fixtures::lvm, "the tools behave as the scenarios assume"),
    scenario!(Lvm "lvm-thin" lifecycle::thin, "the whole life of a slot on a thin volume"),
    scenario!(Lvm "lvm-thick" lifecycle::thick, "the whole life of a slot on a thick volume"),
    scenario!(Lvm "lvm-blockers" blockers_lvm::all, "what stands in the way is named and nothing is changed"),
    scenario!(Lvm "lvm-overflow" blockers_lvm::overflow, "an overflowed thick snapshot is lost, and said to be"),
    scenario!(Lvm "lvm-rare" rare_lvm::all, "external origins, long merges, shared room, volumes that are gone"),
    scenario!(Lvm "lvm-thin-diff" thin_diff::all, "what changed on a thin volume, by its pool's metadata"),
    scenario!(Lvm "lvm-import" import::lvm, "an image put back onto a volume, killed at every command and while it writes"),
    scenario!(Lvm "lvm-drift" faults::lvm_drift, "what a person did behind the engine's back is reported"),
    scenario!(Lvm "lvm-faults" faults::lvm_faults, "a tool that is missing, that fails, no permission"),
    scenario!(Lvm "kernel-nbd" kernel_nbd::all, "the kernel's NBD client on a disk that is served and a snapshot that is opened"),
    scenario!(Lvm "lvm-race" race::lvm, "two engines: one wins, the other says busy"),
    scenario!(Lvm "lvm-thin-crash" crash::thin, "killed at every command, then recovered"),
    scenario!(Lvm "lvm-thick-crash" crash::thick, "killed at every command, then recovered"),
    scenario!(Zfs "zfs-fixtures" fixtures::zfs, "the tools behave as the scenarios assume"),
    scenario!(Zfs "zfs-zvol" lifecycle::zvol, "the whole life of a slot on a volume"),
    scenario!(Zfs "zfs-mounted" lifecycle::mounted, "the whole life of a slot on a mounted file system"),
    scenario!(Zfs "zfs-unmounted" lifecycle::unmounted, "the whole life of a slot on a file system not mounted"),
    scenario!(Zfs "zfs-encrypted" lifecycle::encrypted, "the whole life of a slot on a mounted, encrypted file system"),
    scenario!(Zfs "zfs-encrypted-zvol" lifecycle::encrypted_zvol, "the whole life of a slot on an encrypted volume"),
    scenario!(Zfs "zfs-blockers" blockers_zfs::all, "what stands in the way is named and nothing is changed"),
    scenario!(Zfs "zfs-rare" rare_zfs::all, "replicas, promoted clones, users, what is gone"),
    scenario!(Zfs "zfs-diff" zfs_diff::all, "what was written to a volume, by what ZFS would send"),
    scenario!(Zfs "zfs-import" import::zfs, "the same on a ZFS volume"),
    scenario!(Zfs "zfs-drift" faults::zfs_drift, "what a person did behind the engine's back is reported"),
    scenario!(Zfs "zfs-faults" faults::zfs_faults, "a tool that is missing, that fails, no permission"),
    scenario!(Zfs "zfs-race" race::zfs, "two engines: one wins, the other says busy"),
    scenario!(Zfs "zfs-zvol-crash" crash::zvol, "killed at every command, then recovered"),
    scenario!(Zfs "zfs-mounted-crash" crash::mounted, "killed at every command, then recovered"),
    scenario!(Zfs "machine" machine::all, "LVM and ZFS volumes as one slot: all or none"),
    scenario!(Zfs "machine-crash" machine::crash, "a machine of both killed at every command"),
];

/// What a quick run leaves out: each takes long, and something like it is in. The others that go over every
/// command do so for fewer of them then (see [`crate::harness::Test::is_quick`]).
pub const NOT_QUICK: [&str; 6] = [
    "lvm-thick-crash",
    "zfs-mounted-crash",
    "machine-crash",
    "zfs-unmounted",
    // The same as without encryption but for the key, which `zfs-faults` has.
    "zfs-encrypted",
    "zfs-encrypted-zvol",
];

/// Removes what scenarios make.
pub fn clear() {
    tap::clear();
    lvm::clear();
    zfs::clear();
}
