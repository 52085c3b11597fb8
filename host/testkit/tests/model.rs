//! Goal: the model reads images as QEMU does and calls right what QEMU calls right.
//! Method: images of every kind made by qemu-img and qemu-io; content compared with
//! `qemu-img convert`, the verdict with `qemu-img check`; then damage, which must be seen.

use snapslot_testkit::qcow2_model::{Flaw, Qcow2};
use snapslot_testkit::qemu::Bench;

struct Kind {
    options: &'static str,
    size: &'static str,
    writes: &'static [&'static str],
}

const KINDS: [Kind; 12] = [
    Kind { options: "cluster_size=512", size: "256K", writes: SMALL },
    Kind { options: "cluster_size=512,compat=0.10", size: "256K", writes: SMALL },
    Kind { options: "cluster_size=4096", size: "2M", writes: SMALL },
    Kind { options: "cluster_size=65536", size: "2M", writes: SMALL },
    Kind { options: "cluster_size=65536,compat=0.10", size: "2M", writes: SMALL },
    Kind { options: "cluster_size=512,refcount_bits=2", size: "256K", writes: SMALL },
    Kind { options: "cluster_size=4096,refcount_bits=4", size: "2M", writes: SMALL },
    Kind { options: "cluster_size=4096,refcount_bits=8", size: "2M", writes: SMALL },
    Kind { options: "cluster_size=512,refcount_bits=32", size: "256K", writes: SMALL },
    Kind { options: "cluster_size=512,refcount_bits=64", size: "256K", writes: SMALL },
    Kind { options: "cluster_size=16384,extended_l2=on", size: "1M", writes: SMALL },
    Kind { options: "cluster_size=65536,extended_l2=on", size: "2M", writes: SMALL },
];

const SMALL: &[&str] = &[
    "write -q -P 1 0 40k",
    "write -q -z 8k 4k",
    "write -q -z -u 100k 4k",
    "write -q -P 3 120k 33k",
    "write -q -P 4 200k 512",
];

fn made(bench: &Bench, kind: &Kind) -> Vec<u8> {
    bench.img(&["create", "-q", "-f", "qcow2", "-o", kind.options, "a.qcow2", kind.size]);
    bench.io("a.qcow2", kind.writes);
    bench.read("a.qcow2")
}

fn agree(bench: &Bench, what: &str, backing: &[u8]) {
    let bytes = bench.read("a.qcow2");
    let image = Qcow2::read(&bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
    let verdict = image.judge();
    assert!(verdict.clean(), "{what}:{verdict}");
    let (status, text) = bench.check("a.qcow2", false);
    assert_eq!(status, 0, "{what}: {text}");
    bench.img(&["convert", "-f", "qcow2", "-O", "raw", "a.qcow2", "a.raw"]);
    assert!(image.active_content(backing).expect("content") == bench.read("a.raw"), "{what}");
    for s in image.snapshots() {
        let which = format!("snapshot.id={}", s.id);
        bench.img(&["convert", "-f", "qcow2", "-l", &which, "-O", "raw", "a.qcow2", "a.raw"]);
        let raw = bench.read("a.raw");
        let content = image.snapshot_content(s, backing).expect("content");
        assert!(content == raw, "{what}, snapshot {}", s.name);
    }
}

#[test]
fn agrees_with_qemu() {
    let mut looks = 0;
    for kind in &KINDS {
        let bench = Bench::new();
        made(&bench, kind);
        agree(&bench, kind.options, &[]);
        bench.img(&["snapshot", "-c", "one", "a.qcow2"]);
        agree(&bench, kind.options, &[]);
        bench.io("a.qcow2", &["write -q -P 9 4k 20k", "discard 36k 8k", "write -q -z 140k 1k"]);
        agree(&bench, kind.options, &[]);
        if !kind.options.contains("refcount_bits=2") {
            bench.img(&["snapshot", "-c", "two", "a.qcow2"]);
            bench.io("a.qcow2", &["write -q -P 11 0 30k"]);
            agree(&bench, kind.options, &[]);
            bench.img(&["snapshot", "-a", "one", "a.qcow2"]);
            agree(&bench, kind.options, &[]);
        }
        bench.img(&["snapshot", "-d", "one", "a.qcow2"]);
        agree(&bench, kind.options, &[]);
        looks += 6;
    }
    println!("model: {looks} images agreed upon");
}

#[test]
fn reads_compressed_and_backed_images() {
    let bench = Bench::new();
    let noise: Vec<u8> = (0..300_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> (i / 5000 % 24)) as u8)
        .collect();
    for (options, size) in [("cluster_size=65536", 65536), ("cluster_size=4096", 4096)] {
        let mut raw = noise.clone();
        raw.resize(320 * 1024, 0);
        bench.write("base.raw", &raw);
        bench.img(&["convert", "-c", "-O", "qcow2", "-o", options, "base.raw", "a.qcow2"]);
        agree(&bench, options, &[]);
        bench.img(&["snapshot", "-c", "one", "a.qcow2"]);
        bench.io("a.qcow2", &[&format!("write -q -P 9 {size} 3k")]);
        agree(&bench, options, &[]);
    }
    for options in ["compat=0.10", "compat=1.1", "extended_l2=on"] {
        let backed = format!("backing_file=base.raw,backing_fmt=raw,{options}");
        bench.img(&["create", "-q", "-f", "qcow2", "-o", &backed, "a.qcow2", "400K"]);
        let zero =
            if options == "compat=0.10" { "write -q -P 0 64k 64k" } else { "write -q -z 64k 4k" };
        bench.io("a.qcow2", &["write -q -P 5 10k 3k", zero]);
        agree(&bench, options, &bench.read("base.raw"));
    }
}

#[test]
fn counts_bitmaps() {
    let bench = Bench::new();
    made(&bench, &KINDS[2]);
    bench.img(&["bitmap", "--add", "a.qcow2", "b0"]);
    bench.io("a.qcow2", &["write -q -P 1 1m 4k"]);
    bench.img(&["bitmap", "--add", "-g", "512", "a.qcow2", "b1"]);
    agree(&bench, "bitmaps", &[]);
}

#[test]
fn sees_damage() {
    let bench = Bench::new();
    let sound = made(&bench, &KINDS[2]);
    let h = Qcow2::read(&sound).expect("sound").header().clone();
    let word = |at: u64| {
        let at = at as usize;
        u64::from_be_bytes(sound[at..at + 8].try_into().expect("eight bytes"))
    };
    let l2 = word(h.l1_table_offset) & 0x00ff_ffff_ffff_fe00;
    let data = word(l2) & 0x00ff_ffff_ffff_fe00;
    let block = word(h.refcount_table_offset);
    let damaged = |at: u64, bytes: &[u8]| {
        let mut image = sound.clone();
        image[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        image
    };
    let count = block + data / 4096 * 2;
    let low = damaged(count, &[0, 0]);
    let verdict = Qcow2::read(&low).expect("readable").judge();
    assert!(matches!(verdict.errors[..], [Flaw::Low { references: 1, .. }]), "{verdict}");
    let leak = damaged(count, &[0, 2]);
    let verdict = Qcow2::read(&leak).expect("readable").judge();
    assert!(verdict.errors.is_empty() && verdict.leaks.len() == 1 && verdict.copied.len() == 1);
    let uncopied = damaged(l2, &(word(l2) & !(1 << 63)).to_be_bytes());
    let verdict = Qcow2::read(&uncopied).expect("readable").judge();
    assert!(verdict.errors.is_empty() && verdict.leaks.is_empty() && verdict.copied.len() == 1);
    let outside = damaged(l2, &(1_u64 << 63 | 1 << 40).to_be_bytes());
    let verdict = Qcow2::read(&outside).expect("readable").judge();
    assert!(verdict.errors.iter().any(|f| matches!(f, Flaw::Outside { .. })), "{verdict}");
    let twice = damaged(l2 + 8, &word(l2).to_be_bytes());
    let verdict = Qcow2::read(&twice).expect("readable").judge();
    assert!(
        verdict.errors.iter().any(|f| matches!(f, Flaw::Low { references: 2, .. })),
        "{verdict}"
    );
}

/// The judge looks at whatever a crash left: it must never panic.
#[test]
fn survives_garbage() {
    let bench = Bench::new();
    made(&bench, &KINDS[2]);
    bench.img(&["snapshot", "-c", "one", "a.qcow2"]);
    let sound = bench.read("a.qcow2");
    let mut rng = snapslot_testkit::rng::Rng::new(11);
    let mut readable = 0;
    for _ in 0..3000 {
        let mut image = sound.clone();
        for _ in 0..1 + rng.below(4) {
            let reach = [112, sound.len() as u64][rng.below(2) as usize];
            let at = rng.below(reach) as usize;
            image[at] = rng.next_u64() as u8;
        }
        image.truncate(image.len() - (rng.below(4) / 3 * rng.below(40_000)) as usize);
        if let Ok(read) = Qcow2::read(&image) {
            readable += 1;
            let _ = read.judge();
            let _ = read.picture(&[]);
        }
    }
    assert!(readable > 1000, "{readable}");
}
