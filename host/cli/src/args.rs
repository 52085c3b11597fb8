//! The command line.

use std::path::PathBuf;

use clap::builder::TypedValueParser;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use snapslot_engine::Room;

/// Keep one snapshot of a virtual machine's disk, and go back to it.
///
/// A VOLUME is a path that ends in .qcow2, or BACKEND:PLACE like qcow2:/srv/vm1.img,
/// lvm:vg0/vm1, zfs:tank/vm1 or raw:/srv/vm2.img.
/// A MACHINE is a name given with `enable`, or one of its volumes.
#[derive(Debug, Parser)]
#[command(
    name = "snapslot",
    version,
    after_help = "Examples:
  snapslot take ./disk.qcow2 --note 'before the upgrade'
  snapslot status ./disk.qcow2
  snapslot restore ./disk.qcow2
  snapslot delete ./disk.qcow2

Exit codes: 0 done; 1 failed, nothing changed; 2 usage; 3 slot held; 4 slot empty;
5 busy or disk in use; 6 refused; 7 plugin at fault; 8 needs a person."
)]
pub struct Args {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, ClapArgs)]
pub struct Common {
    /// Print one JSON object instead of words
    #[arg(long, global = true)]
    pub json: bool,
    /// Directory of the record of slots [default: /var/lib/snapslot for root, else the XDG state directory]
    #[arg(
        long,
        global = true,
        env = "SNAPSLOT_STATE_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub state_dir: Option<PathBuf>,
    /// Directory of compiled plugins [default: /var/cache/snapslot for root, else the XDG cache directory]
    #[arg(
        long,
        global = true,
        env = "SNAPSLOT_CACHE_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub cache_dir: Option<PathBuf>,
    /// How deep a plan is rehearsed before it is carried out
    #[arg(
        long,
        global = true,
        env = "SNAPSLOT_REHEARSE",
        value_name = "DEPTH",
        default_value = "bounded",
        hide_env_values = true
    )]
    pub rehearse: Rehearse,
    /// Whether plugins run in a process that can open no file, make no connection and write nothing
    #[arg(
        long,
        global = true,
        env = "SNAPSLOT_CONFINE",
        value_name = "WHEN",
        default_value = "auto",
        hide_env_values = true
    )]
    pub confine: Confine,
    /// Write all that plugins ask, hear and answer into this new file, for a bug report
    #[arg(long, global = true, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Say more; twice for plugins' debug lines
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Confine {
    /// As far as this kernel can
    Auto,
    /// In full, or do nothing
    Always,
    /// Not at all: wasm alone holds them
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rehearse {
    /// The facts, and the first extents of the disk
    Bounded,
    /// The facts, and every extent
    Full,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Give a machine or volume a slot
    #[command(after_help = "Examples:
  snapslot enable ./disk.qcow2
  snapslot enable vm1 --volume /srv/vm1.qcow2 --volume qcow2:/srv/vm1-data.img")]
    Enable {
        /// The machine's name; or a volume, which is then a machine of its own
        #[arg(value_name = "NAME")]
        name: String,
        /// A volume of the machine; repeat for several
        #[arg(long = "volume", value_name = "VOLUME")]
        volumes: Vec<String>,
    },
    /// Remove an empty slot
    Disable {
        /// The machine, or one of its volumes
        machine: String,
    },
    /// Fill the slot: take a snapshot
    #[command(after_help = "Examples:
  snapslot take ./disk.qcow2
  snapslot take vm1 --note 'before the upgrade'
  snapslot take vm1 --replace        # the new one is made before the old one goes
  snapslot take vm1 --dry-run        # print the plan, change nothing
  snapslot take lvm:vg0/vm1 --store-size 20%
  snapslot take raw:/srv/vm2.img --full-copy")]
    Take {
        /// The machine, or one of its volumes
        machine: String,
        /// A note to keep with it, at most 1,024 bytes
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
        /// Fill a held slot anew: make the new snapshot, then delete the old one
        #[arg(long)]
        replace: bool,
        /// Room for what changes while it is held, where the storage wants it said (thick LVM):
        /// bytes, with K, M, G or T, or percent of the volume [default: 100%, capped by what is free]
        #[arg(long, value_name = "SIZE", value_parser = room)]
        store_size: Option<Room>,
        /// Allow a whole copy where the storage can share nothing (raw)
        #[arg(long)]
        full_copy: bool,
        /// Refuse a volume that has no slot yet, instead of giving it one
        #[arg(long, env = "SNAPSLOT_NO_ENABLE", hide_env_values = true,
              value_parser = clap::builder::FalseyValueParser::new())]
        no_enable: bool,
        /// Print the plan that would run, and stop
        #[arg(long)]
        dry_run: bool,
    },
    /// Show a machine's slot and disks
    Status {
        /// The machine, or one of its volumes
        machine: String,
    },
    /// List all machines with a slot
    List,
    /// Set the machine's disks back to the snapshot
    #[command(after_help = "Examples:
  snapslot restore ./disk.qcow2            # shows what would be lost, and asks
  snapslot restore vm1 --yes               # for scripts
  snapslot restore vm1 --yes --consume     # and empties the slot
  snapslot restore raw:/srv/vm2.img --from before.qcow2   # an image that was exported
  snapslot restore lvm:vg0/vm1 --from vm1.raw --dry-run   # whether that could be done, and how")]
    Restore {
        /// The machine, or one of its volumes
        machine: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Delete the snapshot once it is restored
        #[arg(long)]
        consume: bool,
        /// Set the disk to what this image holds, not to the snapshot: a path that ends in .qcow2, or
        /// BACKEND:PLACE like raw:/backup/vm1.raw
        #[arg(long, value_name = "IMAGE", conflicts_with = "consume")]
        from: Option<String>,
        /// A backing file of IMAGE that may be read, the nearest first; repeat for a chain
        #[arg(long, value_name = "VOLUME", requires = "from")]
        backing: Vec<String>,
        /// With --from, where a device can share nothing: make a whole copy of it meanwhile, to go back to
        #[arg(long, requires = "from")]
        full_copy: bool,
        /// Print the plan that would run, and stop
        #[arg(long)]
        dry_run: bool,
    },
    /// Empty the slot: delete the snapshot
    Delete {
        /// The machine, or one of its volumes
        machine: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
        /// Print the plan that would run, and stop
        #[arg(long)]
        dry_run: bool,
    },
    /// Write the snapshot, or the present disk, out as an image of its own
    #[command(after_help = "Examples:
  snapslot export ./disk.qcow2 before.qcow2 --compress zstd
  snapslot export lvm:vg0/vm1 vm1.raw --checksum
  snapslot export vm1 - | ssh backup 'cat > vm1.raw'
  snapslot export ./disk.qcow2 now.qcow2 --live          # the present disk, of a machine that is off
  snapslot export raw:/srv/vm2.img now.raw --live        # served by snapslot: also of one that runs

The image gets its name when it is whole; whatever stops an export leaves nothing behind. The snapshot
can be exported while the machine runs; so can the present disk where a moment of it can be held: of a
disk that is served, and of a ZFS volume.")]
    Export(ExportArgs),
    /// Look inside: serve the snapshot read-only as a network block device
    #[command(after_help = "Examples:
  snapslot open ./disk.qcow2 -- nbdinfo --map {uri}
  snapslot open ./disk.qcow2 -- nbdcopy {uri} before.raw
  snapslot open ./disk.qcow2 -- guestfish --ro --format=raw -a {uri} -i
  snapslot open vm1 --socket /run/vm1.sock          # serves until it is interrupted

{uri} in the command, and NBD_URI in its environment, say where the disk is.")]
    Open(OpenArgs),
    /// Serve a raw disk to a machine, with snapshots while it runs
    #[command(after_help = "Examples:
  snapslot serve raw:/srv/vm2.img --socket /run/vm2.sock
  qemu-system-x86_64 -drive driver=nbd,server.type=unix,server.path=/run/vm2.sock …
  snapslot take raw:/srv/vm2.img                    # in a moment, while the machine writes

The disk must be written through this server alone while its slot is held. It serves until it is
interrupted, and goes on where it was when it is started again.")]
    Serve(ServeArgs),
    /// Show what changed since the take, and where
    #[command(after_help = "Examples:
  snapslot diff ./disk.qcow2
  snapslot diff ./disk.qcow2 --content        # compare bytes, not only where they lie
  snapslot diff vm1 --json | jq '.volumes[].ranges'")]
    Diff {
        /// The machine, or one of its volumes
        machine: String,
        /// Read and compare: a block that was written and is the same does not count
        #[arg(long)]
        content: bool,
        /// A backing file that may be read, the nearest first; repeat for a chain
        #[arg(long, value_name = "VOLUME")]
        backing: Vec<String>,
    },
    /// Look for trouble: unsound images, drift, interrupted changes
    Check {
        /// The machine, or one of its volumes; all machines if left out
        machine: Option<String>,
    },
    /// Finish what a crash interrupted
    Recover {
        /// The machine, or one of its volumes; all machines if left out
        machine: Option<String>,
    },
    /// Show what was done, newest first
    History {
        /// The machine, or one of its volumes; all machines if left out
        machine: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show, add and remove storage plugins
    Plugin {
        #[command(subcommand)]
        command: PluginCommand,
    },
    /// Print a completion script for a shell
    #[command(after_help = "Example:
  snapslot completions bash > /etc/bash_completion.d/snapslot")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all of them into a directory
    Man {
        /// Write snapslot.1, snapslot-take.1, … here instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// List the plugins there are
    List,
    /// Show what a plugin serves, and every grant it has
    Show {
        /// Its name
        name: String,
    },
    /// Install a plugin: shows every grant it asks for, and asks
    #[command(after_help = "Examples:
  snapslot plugin add ./vhd.wasm --dry-run            # shows what it asks for
  snapslot plugin add ./vhd.wasm                      # shows it, asks, installs
  snapslot plugin add ./x.wasm --without 'action destroy' --yes

A later version goes on without what the one before was denied; --with gives it. The component is compiled and asked what it is in a process that can open no file, and copied
into the state directory: what happens to FILE afterwards does not matter.")]
    Add(AddArgs),
    /// Begin a plugin of your own: a small, whole project
    #[command(after_help = "Examples:
  snapslot plugin new myformat                     # snapshots are copies that the host keeps
  snapslot plugin new myzfs --place zfs-dataset    # snapshots are made by the storage's commands")]
    New {
        /// Its name, 1 to 32 of a-z, 0-9 and -
        name: String,
        /// What its volumes are
        #[arg(long, value_name = "KIND", default_value = "image")]
        place: NewPlace,
        /// Where to make it [default: a directory of its name]
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Say whether a component is a plugin for this host, and what is wrong with it
    Check {
        /// The component, a .wasm file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Try a plugin on simulated storage: every verb, every crash, every fault
    ///
    /// No real storage is touched and no program of this machine is run for the plugin.
    #[command(after_help = "Examples:
  snapslot plugin test ./x.wasm
  snapslot plugin test ./vhd.wasm --image sample.vhd
  snapslot plugin test lvm --report report.html --report report.xml
  snapslot plugin test ./x.wasm --fail-fast            # while it is being written
  snapslot plugin test ./x.wasm --only crash/Thin/restore/3/Inside

Exit codes:
  0  sound: everything was tried, and holds
  7  something does not hold, or the component is no plugin
  9  incomplete: nothing failed, but not everything could be tried; it says what and why
  2  no such case, or a report of no known kind")]
    Test(TestArgs),
    /// Ask a plugin again what it was asked in a recording, without the storage
    #[command(after_help = "Examples:
  snapslot --record bug.jsonl take lvm:vg0/vm1
  snapslot plugin replay bug.jsonl                      # does it answer the same?
  snapslot plugin replay bug.jsonl --plugin fixed.wasm  # and one that was mended?")]
    Replay {
        /// A file made with --record
        file: PathBuf,
        /// The component to ask, or the name of a plugin [default: the one that was recorded]
        #[arg(long, value_name = "PLUGIN")]
        plugin: Option<String>,
    },
    /// Remove an installed plugin that no machine needs
    Remove {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
    /// Hold installed plugins against what was approved
    Verify {
        /// Its name; all installed plugins if left out
        name: Option<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub struct AddArgs {
    /// The component, a .wasm file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Do not give this grant, by its name as in "action destroy"; repeat for several
    #[arg(long, value_name = "GRANT")]
    pub without: Vec<String>,
    /// Give this grant, though the version before was denied it; repeat for several
    #[arg(long, value_name = "GRANT")]
    pub with: Vec<String>,
    /// Approve without being asked
    #[arg(long, short)]
    pub yes: bool,
    /// Show what it asks for, and stop
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, ClapArgs)]
pub struct TestArgs {
    /// The component, a .wasm file; or the name of a built-in or installed plugin
    #[arg(value_name = "PLUGIN")]
    pub plugin: String,
    /// A sample image to begin with, for plugins whose volumes are files; repeat for several
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// Seed of all choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Random states at each boundary of a crash with so much pending that not all can be listed
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=100_000).map(|n| n as usize))]
    pub states: usize,
    /// Only the case of this name, and those below it
    #[arg(long, value_name = "NAME")]
    pub only: Option<String>,
    /// End at the first case that fails
    #[arg(long)]
    pub fail_fast: bool,
    /// Write a report; .json, .xml (JUnit) or .html; repeat for several
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct OpenArgs {
    /// The machine, or one of its volumes
    pub machine: String,
    #[command(flatten)]
    pub at: ListenArgs,
    /// Serve the present disk instead of the snapshot; one that is being written must be a served disk or a ZFS volume
    #[arg(long)]
    pub live: bool,
    /// A backing file that may be read, the nearest first; repeat for a chain
    #[arg(long, value_name = "VOLUME")]
    pub backing: Vec<String>,
    /// Run this command, and end when it ends
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// Where clients find a disk that is served.
#[derive(Debug, ClapArgs)]
pub struct ListenArgs {
    /// The unix socket to make [default: one in the state directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Listen on this address and port too, with TLS; port 0 is any that is free, and is said
    #[arg(long, value_name = "ADDRESS:PORT", requires = "tls")]
    pub tcp: Option<std::net::SocketAddr>,
    /// Directory of server-cert.pem, server-key.pem and ca-cert.pem, as QEMU has it: clients need a
    /// certificate of that authority
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct ServeArgs {
    /// The machine, or one of its volumes
    pub machine: String,
    #[command(flatten)]
    pub at: ListenArgs,
    /// Room for what a snapshot saves, and as much for who reads the present disk: bytes, with K, M, G or
    /// T, or percent of the disk [default: no limit but the file system's]
    #[arg(long, value_name = "SIZE", value_parser = room)]
    pub store_size: Option<Room>,
    /// What goes on when that is full
    #[arg(long, value_name = "WHAT", default_value = "lose-snapshot")]
    pub on_full: WhenFull,
    /// Run this command, and end when it ends
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// What goes on when the store of a live snapshot is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// The machine: the snapshot is lost, and that is said
    LoseSnapshot,
    /// The snapshot: the machine's writes fail, for want of room
    FailWrites,
}

#[derive(Debug, ClapArgs)]
pub struct ExportArgs {
    /// The machine, or one of its volumes
    pub machine: String,
    /// The image to make, a block device, or - for standard output
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// The image's format [default: qcow2 if OUT ends in .qcow2 or --compress is given, else raw]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<ImageFormat>,
    /// Compress each cluster: a qcow2 image
    #[arg(long, value_name = "METHOD")]
    pub compress: Option<Compress>,
    /// How hard to compress: zlib 0 to 9 [default: 6], zstd 1 to 22 [default: 1]
    #[arg(long, value_name = "N", requires = "compress", value_parser = clap::value_parser!(i32).range(0..=22), allow_negative_numbers = false)]
    pub level: Option<i32>,
    /// Export the present disk instead of the snapshot; one that is being written must be a served disk or a ZFS volume
    #[arg(long)]
    pub live: bool,
    /// Compute the SHA-256 of the content, as of a raw image
    #[arg(long)]
    pub checksum: bool,
    /// A backing file that may be read, the nearest first; repeat for a chain
    #[arg(long, value_name = "VOLUME")]
    pub backing: Vec<String>,
    /// Replace the file OUT, or overwrite the device
    #[arg(long)]
    pub force: bool,
    /// Do not wait until the image is on the disk: a power cut soon after may lose it
    #[arg(long)]
    pub no_sync: bool,
}

/// The format of an exported image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImageFormat {
    /// The content as it is
    Raw,
    /// QEMU's own, version 3
    Qcow2,
}

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compress {
    /// Any QEMU reads it
    Zlib,
    /// QEMU 5.1 and later; several times faster
    Zstd,
}

/// What the volumes of a new plugin are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NewPlace {
    /// Files
    Image,
    /// ZFS datasets, by ZFS's own commands
    ZfsDataset,
}

/// Reads a size: `10G`, `512M`, `25%`, `1048576`.
fn room(text: &str) -> Result<Room, String> {
    let sense = || format!("{text:?} is no size; sizes look like 10G, 512M or 25%");
    if let Some(number) = text.strip_suffix('%') {
        let percent: u32 = number.parse().map_err(|_| sense())?;
        return match percent {
            1..=1000 => Ok(Room::Percent(percent)),
            _ => Err("percent are 1 to 1000".to_owned()),
        };
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(sense()),
    };
    let number: u64 = digits.parse().map_err(|_| sense())?;
    let bytes = number.checked_mul(1 << shift).filter(|n| *n > 0).ok_or_else(sense)?;
    Ok(Room::Bytes(bytes))
}

impl Command {
    /// Whether it makes faults on purpose.
    pub fn is_noisy(&self) -> bool {
        matches!(self, Command::Plugin { command: PluginCommand::Test(_) })
    }

    /// Whether what it does matters more than who hears of it: a machine's disk is not taken from it, nor a change
    /// stopped half-way, because a reader of our words, a client or a server that was asked has hung up.
    pub fn outlives_its_reader(&self) -> bool {
        matches!(
            self,
            Command::Serve(_)
                | Command::Open(_)
                | Command::Take { .. }
                | Command::Restore { .. }
                | Command::Delete { .. }
                | Command::Recover { .. }
        )
    }

    /// The verb, as `--json` names it.
    pub fn verb(&self) -> &'static str {
        match self {
            Command::Enable { .. } => "enable",
            Command::Disable { .. } => "disable",
            Command::Take { .. } => "take",
            Command::Status { .. } => "status",
            Command::List => "list",
            Command::Restore { .. } => "restore",
            Command::Delete { .. } => "delete",
            Command::Export(_) => "export",
            Command::Open(_) => "open",
            Command::Serve(_) => "serve",
            Command::Diff { .. } => "diff",
            Command::Check { .. } => "check",
            Command::Recover { .. } => "recover",
            Command::History { .. } => "history",
            Command::Plugin { command: PluginCommand::List } => "plugin list",
            Command::Plugin { command: PluginCommand::Show { .. } } => "plugin show",
            Command::Plugin { command: PluginCommand::Add(_) } => "plugin add",
            Command::Plugin { command: PluginCommand::New { .. } } => "plugin new",
            Command::Plugin { command: PluginCommand::Check { .. } } => "plugin check",
            Command::Plugin { command: PluginCommand::Replay { .. } } => "plugin replay",
            Command::Plugin { command: PluginCommand::Test(_) } => "plugin test",
            Command::Plugin { command: PluginCommand::Remove { .. } } => "plugin remove",
            Command::Plugin { command: PluginCommand::Verify { .. } } => "plugin verify",
            Command::Completions { .. } => "completions",
            Command::Man { .. } => "man",
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: a size is what it says, or refused.

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("1", 1), ("10G", 10 << 30), ("512m", 512 << 20), ("3KiB", 3072)] {
            assert_eq!(room(text), Ok(Room::Bytes(bytes)), "{text}");
        }
        assert_eq!(room("25%"), Ok(Room::Percent(25)));
        for bad in ["", "0", "-1", "G", "10X", "0%", "1001%", "1.5G", "99999999T", "10 G"] {
            assert!(room(bad).is_err(), "{bad:?}");
        }
    }
}
