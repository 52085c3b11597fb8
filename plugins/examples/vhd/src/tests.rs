//! Goal: sound images are read as they are, everything else is refused in words. Method: images made
//! by hand from the specification, and every byte of their footer and header changed.

use snapslot_plugin_sdk::double::{MemoryImage, MemoryTarget, Recorded, RecordedPlan};
use snapslot_plugin_sdk::{Backend, Content, FailureKind, Goal, NewSnapshot, Saving, View};

use crate::VhdBackend;

fn sealed(mut bytes: Vec<u8>, own: usize) -> Vec<u8> {
    bytes[own..own + 4].fill(0);
    let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
    bytes[own..own + 4].copy_from_slice(&(!sum).to_be_bytes());
    bytes
}

fn footer(kind: u32, size: u64, header_at: u64) -> Vec<u8> {
    let mut f = b"conectix".to_vec();
    f.resize(512, 0);
    f[16..24].copy_from_slice(&header_at.to_be_bytes());
    f[48..56].copy_from_slice(&size.to_be_bytes());
    f[60..64].copy_from_slice(&kind.to_be_bytes());
    sealed(f, 64)
}

/// A dynamic image of four blocks of 4 KiB: the second is there, with sectors 0 to 2 and 7.
fn dynamic() -> Vec<u8> {
    let mut header = b"cxsparse".to_vec();
    header.resize(1024, 0);
    header[16..24].copy_from_slice(&1536_u64.to_be_bytes());
    header[28..32].copy_from_slice(&4_u32.to_be_bytes());
    header[32..36].copy_from_slice(&4096_u32.to_be_bytes());
    let footer = footer(3, 4 * 4096, 512);
    let mut image = footer.clone();
    image.extend(sealed(header, 36));
    image.extend([u32::MAX, 4, u32::MAX, u32::MAX].iter().flat_map(|e| e.to_be_bytes()));
    image.resize(2048, 0);
    image.push(0b1110_0001);
    image.resize(2048 + 512, 0);
    image.resize(2048 + 512 + 4096, 0xaa);
    image.extend(footer);
    image
}

fn fixed() -> Vec<u8> {
    let mut image = vec![7; 8192];
    image.extend(footer(2, 8192, u64::MAX));
    image
}

fn target(image: Vec<u8>) -> MemoryTarget {
    MemoryTarget {
        place: "/srv/vm1.vhd".to_owned(),
        disk: MemoryImage(image),
        saving: Some(Saving { shares: true, bytes: 8192, available: 1 << 30 }),
        ..MemoryTarget::default()
    }
}

#[test]
fn sound_images_are_read_as_they_are() {
    let facts = VhdBackend::inspect(&target(fixed())).expect("facts");
    assert_eq!((facts.virtual_size, facts.format.as_str()), (8192, "VHD, fixed"));
    let facts = VhdBackend::inspect(&target(dynamic())).expect("facts");
    assert_eq!(facts.virtual_size, 4 * 4096);
    assert!(facts.findings.is_empty());
}

#[test]
fn extents_follow_table_and_bitmap() {
    let all = VhdBackend::extents(&target(dynamic()), &View::Current, 0, 100).expect("extents");
    let found: Vec<_> = all.extents.iter().map(|e| (e.start, e.length, e.content)).collect();
    let data = 2048 + 512;
    let expected = [
        (0, 4096, Content::Zero),
        (4096, 1536, Content::Data(data)),
        (5632, 2048, Content::Zero),
        (7680, 512, Content::Data(data + 3584)),
        (8192, 8192, Content::Zero),
    ];
    assert_eq!(found, expected);
    // In pages of one, from the middle of a sector on, it is the same content.
    let (mut cursor, mut seen) = (4097, Vec::new());
    loop {
        let page = VhdBackend::extents(&target(dynamic()), &View::Current, cursor, 1).expect("one");
        seen.extend(page.extents.iter().map(|e| (e.start, e.length, e.content)));
        match page.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    assert_eq!(seen[0], (4097, 1535, Content::Data(data + 1)));
    assert_eq!(seen[1..], expected[2..]);
}

#[test]
fn a_take_is_a_copy() {
    let new = NewSnapshot {
        mark: "00000000000000ab".to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 2,
        room: None,
        beside: 0,
        full_copy: false,
    };
    let mut plan = RecordedPlan::default();
    VhdBackend::plan(&target(fixed()), &Goal::Held(new.clone()), &mut plan).expect("a plan");
    assert_eq!(plan.steps, [Recorded::Save(new)]);
}

#[test]
fn whatever_is_changed_is_refused_or_harmless() {
    let mut refused = 0;
    for image in [fixed(), dynamic()] {
        let size = image.len();
        let places = (size - 512..size).chain((0..2048).filter(|_| size > 9000 - 512 - 1));
        for at in places.filter(|at| *at < size) {
            for flip in [1, 0x80, 0xff] {
                let mut changed = image.clone();
                changed[at] ^= flip;
                let changed = target(changed);
                match VhdBackend::inspect(&changed) {
                    Ok(facts) => {
                        assert!(facts.virtual_size > 0);
                        let all = VhdBackend::extents(&changed, &View::Current, 0, 10_000);
                        let end = all.expect("extents").extents.last().map(|e| e.start + e.length);
                        assert_eq!(end, Some(facts.virtual_size));
                    }
                    Err(failure) => {
                        refused += 1;
                        let kinds = [FailureKind::Corrupt, FailureKind::Unsupported];
                        assert!(kinds.contains(&failure.kind), "{at}: {failure:?}");
                    }
                }
            }
        }
    }
    assert!(refused > 1500, "only {refused} changes were refused");
    for cut in [0, 1, 511, 512, 600, 2000] {
        let failure = VhdBackend::inspect(&target(dynamic()[..cut].to_vec())).expect_err("cut");
        assert_eq!(failure.kind, FailureKind::Corrupt, "{cut}");
    }
}

#[test]
fn differencing_images_are_refused_in_words() {
    let mut image = dynamic();
    let size = image.len();
    image.splice(size - 512.., footer(4, 4 * 4096, 512));
    let failure = VhdBackend::inspect(&target(image)).expect_err("refused");
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Unsupported, "differencing"));
}
