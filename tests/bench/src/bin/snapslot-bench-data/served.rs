//! A raw disk that is served, without a snapshot: against qemu-nbd, as it comes and with its faster ways, and nbdkit.

use std::process::Command;

use crate::Outcome;
use crate::bench::{Bench, there};
use crate::table::Table;

pub fn measure(bench: &Bench) -> Outcome<()> {
    if !there("fio") {
        return Ok(());
    }
    println!("A served raw disk of 1 GiB in the page cache, unix socket, no snapshot");
    let disk = bench.dir.join("disk.img");
    bench.random(&disk, 1024.min(bench.mib.max(64)))?;
    let volume = format!("raw:{}", disk.display());
    let (mut iops, mut rate) = (Table::default(), Table::default());
    let runtime = format!("--runtime={}", bench.seconds);
    let size = format!("--size={}", std::fs::metadata(&disk)?.len());
    let more = ["--time_based", runtime.as_str(), size.as_str()];
    let mut peers = vec!["snapslot"];
    if there("qemu-nbd") {
        peers.extend(["qemu-nbd", "qemu-nbd --aio=io_uring", "qemu-nbd -n --aio=native"]);
    }
    if there("nbdkit") {
        peers.push("nbdkit file");
    }
    for round in 0..bench.rounds {
        let mut order = peers.clone();
        order.rotate_left(round % peers.len());
        for who in order {
            let mut command = Command::new(who.split(' ').next().unwrap_or(who));
            match who {
                "snapslot" => {
                    command = bench.snapslot();
                    command.args(["serve", &volume, "--socket"]).arg(bench.socket());
                }
                "nbdkit file" => {
                    command.args(["-f", "-U"]).arg(bench.socket()).arg("file").arg(&disk);
                }
                qemu => {
                    command.args(qemu.split(' ').skip(1));
                    command.args(["-f", "raw", "-t", "-e", "8", "-k"]);
                    command.arg(bench.socket()).arg(&disk);
                }
            }
            let server = match bench.start(command) {
                Ok(server) => server,
                Err(e) if who.contains("--aio") => {
                    println!("  {who} does not start here, and is left out: {e}");
                    peers.retain(|p| *p != who);
                    continue;
                }
                Err(e) => return Err(e),
            };
            for (what, load, block, depth) in [
                ("random read, 4 KiB, depth 1", "randread", "4k", 1),
                ("random read, 4 KiB, depth 16", "randread", "4k", 16),
                ("random write, 4 KiB, depth 1", "randwrite", "4k", 1),
                ("random write, 4 KiB, depth 16", "randwrite", "4k", 16),
            ] {
                iops.add(what, who, bench.fio(load, block, depth, &more)?);
            }
            for (what, load, depth) in [
                ("sequential read, 1 MiB, depth 1", "read", 1),
                ("sequential read, 1 MiB, depth 4", "read", 4),
                ("sequential write, 1 MiB, depth 1", "write", 1),
                ("sequential write, 1 MiB, depth 4", "write", 4),
            ] {
                rate.add(what, who, bench.fio(load, "1m", depth, &more)?);
            }
            drop(server);
        }
    }
    iops.print("operations a second", true);
    rate.print("MiB a second", true);
    let _ = std::fs::remove_file(&disk);
    Ok(())
}
