//! Goal: a damaged journal is never taken for another plan.
//! Method: journals with every kind of step, and real ones; every bit flipped, cut at every
//! byte, every sector zeroed, swapped or repeated. What is read must be the very same plan,
//! "never committed", or an error.

use std::collections::BTreeMap;

use snapslot_capture::journal::{Found, commit, note_work, parse, read};
use snapslot_capture::{Mask, Plan, PlanBuilder, Seal};
use snapslot_disk::sim::World;
use snapslot_testkit::rng::Rng;

const META: &[u8] = br#"{"verb":"take","machine":"m"}"#;

fn plan() -> Plan {
    let mut p = PlanBuilder::new();
    let mask = |offset, stride, select: Vec<u8>| Mask {
        offset,
        count: 9,
        stride,
        clear: 1 << 63,
        set: 5,
        select,
    };
    let all = [
        p.seal(Seal { offset: 88, bits: 1 << 63 }),
        p.write(0, vec![7; 512]),
        p.barrier("seal"),
        p.extend(1 << 20),
        p.fill(4096, 96, vec![1, 2, 3]),
        p.mask(mask(8192, 8, Vec::new())),
        p.mask(mask(16384, 16, vec![0xa5, 1])),
        p.barrier("work"),
        p.write(0, (0..=255).collect()),
        p.barrier(""),
    ];
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    p.finish().expect("a plan")
}

fn written(plan: &Plan) -> Vec<u8> {
    let world = World::new(BTreeMap::new());
    let place = world.companion("j");
    commit(&place, META, plan).expect("no fault");
    assert!(
        matches!(read(&place), Ok(Found::Committed { plan: p, meta, .. }) if p == *plan && meta == META)
    );
    world.bytes("j").expect("the journal")
}

/// Whether it was taken for committed; panics if for another plan.
fn judged(bytes: &[u8], plan: &Plan, what: &str) -> bool {
    match parse(bytes, "j") {
        Ok(Found::Committed { plan: found, meta, .. }) => {
            assert!(found == *plan && meta == META, "another plan: {what}");
            true
        }
        Ok(Found::Uncommitted) | Err(_) => false,
        Ok(Found::Nothing) => panic!("a journal that is there is not nothing: {what}"),
    }
}

#[test]
fn every_bit() {
    let plan = plan();
    let bytes = written(&plan);
    let mut tried = 0;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            let what = format!("bit {bit} of byte {at}");
            assert!(!judged(&damaged, &plan, &what), "taken for sound: {what}");
            tried += 1;
        }
    }
    println!("journal: {tried} bits flipped");
}

#[test]
fn every_length() {
    let plan = plan();
    let bytes = written(&plan);
    for length in 0..bytes.len() {
        let cut = &bytes[..length];
        assert!(matches!(parse(cut, "j"), Ok(Found::Uncommitted)), "cut at {length}");
        let mut zeroes = cut.to_vec();
        zeroes.resize(bytes.len(), 0);
        if zeroes != bytes {
            assert!(!judged(&zeroes, &plan, "zeroes at the end"), "zeroes from {length}");
        }
        // The end of a longer journal that was there before. So much as the note of work has may be that.
        let mut long = bytes.clone();
        long.extend(&bytes[..length + 1]);
        let taken = judged(&long, &plan, "more behind it");
        assert_eq!(taken, length < NOTE, "{length} bytes more");
    }
    println!("journal: {} lengths", bytes.len());
}

/// Bytes of the note that the work on images has begun.
const NOTE: usize = 16;

/// Whatever is left of the note of work says that work has begun; without it, it has not.
#[test]
fn the_note_of_work_torn_or_damaged_counts() {
    let plan = plan();
    let world = World::new(BTreeMap::new());
    let place = world.companion("j");
    commit(&place, META, &plan).expect("no fault");
    let without = world.bytes("j").expect("the journal");
    note_work(&place).expect("no fault");
    let noted = world.bytes("j").expect("the journal");
    assert_eq!(noted.len(), without.len() + NOTE);
    let works = |bytes: &[u8]| match parse(bytes, "j") {
        Ok(Found::Committed { plan: found, meta, work }) => {
            assert!(found == plan && meta == META, "another plan");
            work
        }
        other => panic!("no committed plan: {other:?}"),
    };
    assert!(!works(&without));
    let mut tried = 0;
    for length in without.len() + 1..=noted.len() {
        assert!(works(&noted[..length]), "cut at {length}");
        tried += 1;
    }
    for at in without.len()..noted.len() {
        for bit in 0..8 {
            let mut damaged = noted.clone();
            damaged[at] ^= 1 << bit;
            assert!(works(&damaged), "bit {bit} of byte {at}");
            tried += 1;
        }
    }
    // Its bytes may be there before what is in them is.
    let mut zeroes = without;
    zeroes.resize(noted.len(), 0);
    assert!(works(&zeroes));
    println!("journal: {tried} notes of work, torn or damaged");
}

#[test]
fn every_sector() {
    let mut p = PlanBuilder::new();
    let mut rng = Rng::new(5);
    for i in 0..40 {
        p.write(i * 4096, (0..300).map(|_| rng.next_u64() as u8).collect()).expect("a step");
        if i % 7 == 0 {
            p.barrier("some").expect("a step");
        }
    }
    let plan = p.finish().expect("a plan");
    let bytes = written(&plan);
    let sectors = bytes.len().div_ceil(512);
    let range = |i: usize| i * 512..((i + 1) * 512).min(bytes.len());
    let mut tried = 0;
    for i in 0..sectors {
        let mut zeroed = bytes.clone();
        zeroed[range(i)].fill(0);
        assert!(matches!(parse(&zeroed, "j"), Ok(Found::Uncommitted)), "sector {i} lost");
        for j in 0..sectors - 1 {
            let mut swapped = bytes.clone();
            let other = bytes[range(j)].to_vec();
            if range(i).len() == 512 && i != j {
                swapped[range(i)].copy_from_slice(&other);
                assert!(!judged(&swapped, &plan, "a sector repeated"), "{j} at {i}");
                tried += 1;
            }
        }
    }
    for round in 0..4000 {
        let mut torn = bytes.clone();
        let mut lost = 0;
        for i in 0..sectors {
            if rng.coin() {
                torn[range(i)].fill(0);
                lost += 1;
            }
        }
        if lost > 0 {
            let found = parse(&torn, "j");
            assert!(matches!(found, Ok(Found::Uncommitted)), "round {round}: {found:?}");
        }
        tried += 1;
    }
    println!("journal: {tried} arrangements of sectors");
}
