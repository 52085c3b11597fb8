//! First writes to a disk whose snapshot is held: 4 KiB in each 64 KiB, so that each is the first in its block.
//!
//! Three loads: as fast as they go; the same with a flush at the end, whose time counts; and with a flush after every
//! 64 writes, as file systems in a machine do. After a flush ours are on the disk, and so is what they overwrote.
//! QEMU's are in the page cache of the target as long as nobody flushes that; nbdkit's are thrown away at exit.

use std::path::Path;
use std::process::Command;

use crate::Outcome;
use crate::bench::{Bench, there};
use crate::table::Table;

const LOADS: [(&str, &[&str]); 3] = [
    ("", &[]),
    (", flushed at the end", &["--end_fsync=1"]),
    (", a flush for 64", &["--fsync=64"]),
];

pub fn measure(bench: &Bench) -> Outcome<()> {
    if !there("fio") {
        return Ok(());
    }
    let mib = (bench.mib * 4).clamp(64, 4096);
    println!("First writes with a snapshot held: 4 KiB in each 64 KiB of {mib} MiB, random order");
    let disk = bench.dir.join("disk.img");
    bench.random(&disk, mib)?;
    let volume = format!("raw:{}", disk.display());
    let mut table = Table::default();
    let mut peers = vec!["snapslot"];
    if there("qemu-storage-daemon") {
        peers.push("qemu copy-before-write");
    }
    if there("nbdkit") {
        peers.extend(["nbdkit cow, 64 KiB", "nbdkit cow, 4 KiB"]);
    }
    for round in 0..bench.rounds {
        let mut order = peers.clone();
        order.rotate_left(round % peers.len());
        for who in order {
            for (load, flags) in LOADS {
                for depth in [1, 16] {
                    // Flushes cost what the disk costs: an eighth of the writes is enough to tell.
                    let part = if load.ends_with("64") { 8 } else { 1 };
                    let count = format!("--number_ios={}", mib * 16 / part);
                    let size = format!("--size={mib}m");
                    let io_size = format!("--io_size={}k", mib * 64 / part);
                    let mut more =
                        vec!["--blockalign=64k", &size, &io_size, &count, "--randseed=7"];
                    more.extend(flags);
                    let server = bench.start(server(bench, who, &disk, &volume, mib)?)?;
                    if who == "snapslot" {
                        bench.done(bench.snapslot().args(["take", &volume]))?;
                    }
                    let figure = bench.fio("randwrite", "4k", depth, &more)?;
                    if who == "snapslot" {
                        bench.done(bench.snapslot().args(["delete", "--yes", &volume]))?;
                    }
                    table.add(&format!("depth {depth}{load}"), who, figure);
                    drop(server);
                }
            }
        }
    }
    table.print("operations a second", true);
    let _ = std::fs::remove_file(&disk);
    Ok(())
}

fn server(bench: &Bench, who: &str, disk: &Path, volume: &str, mib: u64) -> Outcome<Command> {
    let socket = bench.socket();
    Ok(match who {
        "snapslot" => {
            let mut command = bench.snapslot();
            command.args(["serve", volume, "--socket"]).arg(&socket);
            command
        }
        "qemu copy-before-write" => {
            let scratch = bench.dir.join("scratch.qcow2");
            let _ = std::fs::remove_file(&scratch);
            let mut make = Command::new("qemu-img");
            make.args(["create", "-q", "-f", "qcow2"]).arg(&scratch).arg(format!("{mib}M"));
            bench.done(&mut make)?;
            let mut command = Command::new("qemu-storage-daemon");
            for node in [
                format!("driver=file,node-name=f,filename={}", disk.display()),
                "driver=raw,node-name=d,file=f".to_owned(),
                format!("driver=file,node-name=tf,filename={}", scratch.display()),
                "driver=qcow2,node-name=t,file=tf".to_owned(),
                "driver=copy-before-write,node-name=c,file=d,target=t".to_owned(),
            ] {
                command.arg("--blockdev").arg(node);
            }
            command.arg("--nbd-server");
            command.arg(format!("addr.type=unix,addr.path={}", socket.display()));
            command.args(["--export", "type=nbd,id=e,node-name=c,name=,writable=on"]);
            command
        }
        cow => {
            let mut command = Command::new("nbdkit");
            command.args(["-f", "-U"]).arg(&socket).args(["--filter=cow", "file"]).arg(disk);
            if cow.ends_with(", 4 KiB") {
                command.arg("cow-block-size=4096");
            }
            command
        }
    })
}
