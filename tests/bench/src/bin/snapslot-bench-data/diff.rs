//! What changed on a large disk, from metadata alone: nobody else tells that, so there is no peer but reading both.

use std::process::Command;

use crate::Outcome;
use crate::bench::{Bench, there};
use crate::table::Table;

pub fn measure(bench: &Bench) -> Outcome<()> {
    if !there("qemu-img") {
        return Ok(());
    }
    let gib = if bench.mib < 256 { 8 } else { 1024 };
    println!("A diff of a disk of {gib} GiB, all of it allocated, clusters of 64 KiB");
    let image = bench.dir.join("large.qcow2");
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"]);
    bench.done(make.arg(&image).arg(format!("{gib}G")))?;
    bench.done(bench.snapslot().arg("take").arg(&image))?;
    let mut table = Table::default();
    let mut run = |what: &str| -> Outcome<()> {
        for _ in 0..bench.rounds {
            let took = bench.done(bench.snapslot().arg("diff").arg(&image))?;
            table.add(what, "snapslot diff", took);
            let took = bench.done(bench.snapslot().arg("status").arg(&image))?;
            table.add(what, "snapslot status", took);
        }
        Ok(())
    };
    run("1 nothing changed")?;
    let mut write = Command::new("qemu-io");
    write.args(["-f", "qcow2"]);
    // A step that is a multiple of nothing: the writes fall into a thousand different tables or so.
    for i in 0..1000_u64 {
        let at = ((i * 1_099_511_627 + i * 4096) % (gib << 30)) & !4095;
        write.args(["-c", &format!("write -q {at} 4k")]);
    }
    bench.done(write.arg(&image))?;
    run("2 after 1,000 random writes of 4 KiB")?;
    table.print("ms", false);
    let _ = std::fs::remove_file(&image);
    Ok(())
}
