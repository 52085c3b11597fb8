//! What the machine allows: copying memory, and one request and answer between two processes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use crate::Outcome;
use crate::bench::Bench;
use crate::table::median;

pub fn measure(bench: &Bench) -> Outcome<()> {
    println!("The machine");
    let from = vec![1_u8; 256 << 20];
    let mut to = vec![0_u8; 256 << 20];
    let copies: Vec<f64> = (0..bench.rounds.max(3))
        .map(|_| {
            let begun = Instant::now();
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&to);
            256.0 / begun.elapsed().as_secs_f64()
        })
        .collect();
    println!("  copying memory, one thread (MiB/s)            {:>10.0}", median(&copies));
    // Two processes that wake each other, 28 bytes there and 16 back with 4 KiB: a request at depth 1.
    let (mut ours, mut theirs) = UnixStream::pair()?;
    const TURNS: u32 = 20_000;
    std::thread::scope(|scope| -> Outcome<()> {
        scope.spawn(move || {
            let mut request = [0; 28];
            let reply = vec![0; 16 + 4096];
            while theirs.read_exact(&mut request).is_ok() && theirs.write_all(&reply).is_ok() {}
        });
        let mut reply = vec![0; 16 + 4096];
        let begun = Instant::now();
        for _ in 0..TURNS {
            ours.write_all(&[0; 28])?;
            ours.read_exact(&mut reply)?;
        }
        let rate = f64::from(TURNS) / begun.elapsed().as_secs_f64();
        println!("  bare request and answer of 4 KiB, sleeping (1/s) {rate:>7.0}");
        drop(ours);
        Ok(())
    })
}
