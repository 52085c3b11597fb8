//! A plugin that misbehaves as the volume's name tells it to.
//!
//! Its "format": the first sector holds `SNAP` and a mark when there is a snapshot, the rest is
//! the disk. Under the name `sound` it does what it should. On ZFS datasets it is another: see `commands`.

mod at_start;
mod commands;
mod descriptions;
mod raw;

use descriptions::{described, number};
use snapslot_plugin_sdk::{
    Answer, Argument, Backend, Change, Content, Description, Extent, ExtentPage, Facts, Failure,
    FailureKind, Fill, Finding, Goal, ImageGrant, Level, Mask, PlaceKind, Plan, Role, Snapshot,
    Stretch, StretchPage, Target, View, log,
};

const SECTOR: u64 = 512;

/// The plugin.
#[derive(Debug)]
pub struct Hostile;

/// The file's name without its ending: what to do.
fn told(target: &dyn Target) -> String {
    let place = target.place();
    let name = place.rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default().to_owned()
}

pub(crate) fn forever() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n).wrapping_add(1);
    }
}

pub(crate) fn deep(n: u64) -> u64 {
    if std::hint::black_box(n) == u64::MAX { 0 } else { deep(n + 1).wrapping_add(n) }
}

impl Backend for Hostile {
    fn describe() -> Description {
        described(Description {
            name: "hostile".to_owned(),
            version: "0".to_owned(),
            summary: "misbehaves as it is told".to_owned(),
            endings: Vec::new(),
            place: PlaceKind::Image,
            images: vec![ImageGrant {
                role: Role::Disk,
                changes: true,
                reason: "to try".to_owned(),
            }],
            copies: None,
            queries: Vec::new(),
            actions: Vec::new(),
        })
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        if commands::is_on() {
            return commands::inspect(target);
        }
        match told(target).as_str() {
            "inspect-traps" => panic!("as told"),
            "inspect-loops" => forever(),
            "inspect-recurses" => {
                std::hint::black_box(deep(0));
            }
            "inspect-eats-memory" => {
                let mut all: Vec<Vec<u8>> = Vec::new();
                loop {
                    all.push(std::hint::black_box(vec![1; 16 << 20]));
                }
            }
            "inspect-blames-itself" => {
                return Err(Failure::new(FailureKind::Internal, "oops", "\x1b[31mred\x07"));
            }
            "inspect-hoards-handles" => {
                let all: Vec<_> = (0..1000).map(|_| target.image(Role::Disk)).collect();
                std::hint::black_box(&all);
            }
            "inspect-makes-a-million-handles" => {
                for _ in 0..1_000_000 {
                    std::mem::forget(target.image(Role::Disk)?);
                }
            }
            // Kept beyond the call, in which it would be of use to nobody.
            "inspect-keeps-a-handle" => std::mem::forget(target.image(Role::Disk)?),
            "inspect-reads-for-ever" => {
                let image = target.image(Role::Disk)?;
                loop {
                    std::hint::black_box(image.read_at(0, 1 << 21)?);
                }
            }
            "inspect-asks-the-size-for-ever" => {
                let image = target.image(Role::Disk)?;
                loop {
                    std::hint::black_box(image.size());
                }
            }
            "inspect-prints-for-ever" => loop {
                println!("\x1b]0;mine\x07");
            },
            "inspect-exits" => std::process::exit(0),
            // What languages' runtimes do of themselves is no fault.
            "sound-and-talkative" => {
                let map: std::collections::HashMap<u32, u32> = (0..100).map(|n| (n, n)).collect();
                println!("there are {} in it", map.values().sum::<u32>());
                eprint!("{:?} {:?}", std::env::var("HOME"), std::env::args().count());
            }
            "inspect-reads-outside" => {
                let image = target.image(Role::Disk)?;
                let outside = image.read_at(u64::MAX - 4, 8);
                return Err(outside.err().unwrap_or_else(|| {
                    Failure::new(FailureKind::Internal, "read", "a read outside succeeded")
                }));
            }
            "inspect-wants-the-backing-file" => {
                target.image(Role::Backing)?;
            }
            "inspect-reads-four-gibibytes" => {
                target.image(Role::Disk)?.read_at(0, u32::MAX)?;
            }
            "inspect-reads-too-many-ranges" => {
                let many = vec![(0, 1); 65_537];
                target.image(Role::Disk)?.read_ranges(&many)?;
            }
            "inspect-reads-too-much-in-ranges" => {
                target.image(Role::Disk)?.read_ranges(&[(0, 1 << 20); 9])?;
            }
            "inspect-wants-copies" => {
                target.copies()?;
            }
            "inspect-wants-to-know-what-a-copy-costs" => {
                target.saving()?;
            }
            "inspect-forges-a-handle" => raw::forged(9999),
            "inspect-uses-the-volume-as-an-image" => raw::forged(1),
            "inspect-drops-a-handle-twice" => raw::dropped_twice(),
            "inspect-uses-a-dropped-handle" => raw::used_after_drop(),
            "inspect-complains-for-ever" => {
                let words = "\x1b]0;mine\x07 no ".repeat(200_000);
                return Err(Failure::new(FailureKind::Corrupt, "\x1b[31m", words));
            }
            "inspect-gives-a-million-figures" => {
                let mut failure = Failure::new(FailureKind::Corrupt, "figures", "many");
                for n in 0..100_000 {
                    failure = failure.with("\x1b[2J", n);
                }
                return Err(failure);
            }
            "inspect-asks" => {
                let argument = Argument { hole: "v".to_owned(), value: "--help".to_owned() };
                target.ask("rm", &[argument])?;
            }
            _ => {}
        }
        let image = target.image(Role::Disk)?;
        let head = image.read_at(0, SECTOR as u32)?;
        let snapshots = if &head[..4] == b"SNAP" {
            let mark = String::from_utf8_lossy(&head[4..20]).into_owned();
            vec![Snapshot {
                identity: mark.clone(),
                name: mark.clone(),
                mark: Some(mark),
                taken_seconds: 1,
                taken_nanoseconds: 0,
                virtual_size: image.size() - SECTOR,
                vm_state_size: 0,
                lost: false,
            }]
        } else {
            Vec::new()
        };
        let mut facts = Facts {
            identity: None,
            virtual_size: image.size() - SECTOR,
            format: "hostile".to_owned(),
            snapshots,
            findings: Vec::new(),
            unfinished: None,
        };
        lie(&told(target), &mut facts);
        Ok(facts)
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        if commands::is_on() {
            return commands::plan(target, goal, plan);
        }
        let told = told(target);
        match goal {
            Goal::Restored(_) | Goal::Consumed(_) => return restored(&told, plan),
            Goal::Empty(_) => emptied(&told, plan)?,
            Goal::Held(_) | Goal::Settled => {}
        }
        let mut head = vec![0; 20];
        if let Goal::Held(new) = goal {
            head[..4].copy_from_slice(b"SNAP");
            head[4..].copy_from_slice(new.mark.as_bytes());
        }
        match told.as_str() {
            "plan-traps" => {
                plan.write(0, &head)?;
                panic!("in the middle");
            }
            "plan-loops" => {
                plan.write(0, &head)?;
                forever();
            }
            "plan-does-nothing" => return Ok(()),
            "extents-claim-nothing" | "plan-changes-content" => plan.write(8192, &[0xee; 512])?,
            "plan-fills-content" => {
                for at in [4096, 1 << 20] {
                    plan.write(at, &[0; 16])?;
                }
                plan.barrier("quietly")?;
            }
            "plan-reaches-outside" => plan.write(1 << 40, &[1; 64])?,
            "plan-overflows" => plan.write(u64::MAX - 8, &[1; 64])?,
            "plan-overlaps" => plan.write(10, &[1; 64])?,
            "plan-grows" => plan.extend(1 << 42)?,
            "plan-has-no-seal" => {
                plan.write(256, &[0; 8])?;
                plan.barrier("first")?;
            }
            "plan-lies-about-its-seal" => {
                plan.seal(256, 1)?;
                plan.write(264, &[0; 8])?;
                plan.barrier("first")?;
            }
            "plan-never-ends" => loop {
                // What it is told is of no interest to it.
                let _ = plan.write(300, &[1; 8]);
                let _ = plan.barrier("again");
            },
            "plan-masks-unaligned" => plan.mask(vec![mask(3, 1, 8, Vec::new())])?,
            "plan-masks-past-everything" => {
                plan.mask(vec![mask(u64::MAX - 7, u32::MAX, 16, Vec::new())])?;
            }
            "plan-masks-by-a-stride-of-none" => plan.mask(vec![mask(0, 8, 0, Vec::new())])?,
            "plan-masks-no-words" => plan.mask(vec![mask(0, 0, 8, Vec::new())])?,
            "plan-chooses-words-that-are-not-there" => {
                plan.mask(vec![mask(0, 8, 8, vec![0xff; 100])])?;
            }
            "plan-fills-with-nothing" => plan.fill(vec![fill(0, 512, Vec::new())])?,
            "plan-fills-with-too-much" => plan.fill(vec![fill(0, 34, vec![1; 17])])?,
            "plan-fills-a-part-of-a-pattern" => plan.fill(vec![fill(0, 511, vec![1, 2])])?,
            "plan-fills-past-everything" => {
                plan.fill(vec![fill(u64::MAX - 511, 1024, vec![1, 2])])?;
            }
            "plan-seals-twice" => {
                plan.seal(256, 1)?;
                plan.seal(264, 1)?;
            }
            "plan-seals-nothing" => plan.seal(256, 0)?,
            "plan-names-another-snapshot" => head[4..].copy_from_slice(b"0000000000000000"),
            "plan-saves-a-copy" => match goal {
                Goal::Held(new) => plan.save(new)?,
                _ => return Ok(()),
            },
            "plan-puts-back-a-copy" => plan.put_back("0000000000000000")?,
            "plan-removes-a-copy" => plan.discard("../../etc/passwd")?,
            "plan-talks-for-ever" => {
                for n in 0..1000 {
                    plan.note(&format!("\x1b[2J{n}"))?;
                }
            }
            "plan-blames-itself" => {
                return Err(Failure::new(FailureKind::Internal, "\0", "\x1b[31mred\x07"));
            }
            "plan-says-no-in-colours" => {
                return Err(Failure::new(FailureKind::Unsupported, "no", "\x1b[31mno\x07"));
            }
            "plan-changes-all-at-once" => {
                for at in 0..2000 {
                    plan.write(512 + at * 1024, &[0; 512])?;
                }
            }
            "plan-acts" => plan.act("rm", &[])?,
            "plan-floods-the-log" => {
                for _ in 0..1000 {
                    log(Level::Debug, &"\x1b]0;\x07".repeat(4096));
                }
                panic!("after the flood");
            }
            _ => {}
        }
        plan.write(0, &head)?;
        plan.barrier("mark")
    }

    fn extents(
        target: &dyn Target,
        view: &View,
        cursor: u64,
        max: u32,
    ) -> Result<ExtentPage, Failure> {
        let size = target.image(Role::Disk)?.size() - SECTOR;
        let told = told(target);
        let extent = match told.as_str() {
            // Another's snapshot that stays, and whose content does not.
            "extents-of-another-move" if matches!(view, View::Snapshot(_)) => {
                let marked = &target.image(Role::Disk)?.read_at(0, 4)? == b"SNAP";
                let at = SECTOR + cursor + if marked { SECTOR } else { 0 };
                Extent { start: cursor, length: size - SECTOR - cursor, content: Content::Data(at) }
            }
            "extents-overlap" => Extent { start: 0, length: u64::MAX, content: Content::Data(9) },
            "extents-trap" => panic!("as told"),
            "extents-loop" => forever(),
            "extents-of-no-length" => Extent { start: cursor, length: 0, content: Content::Zero },
            "extents-go-back" => {
                let extent = Extent { start: cursor, length: 512, content: Content::Zero };
                return Ok(ExtentPage { extents: vec![extent], next: Some(0) });
            }
            "extents-without-end" => {
                let extent = Extent { start: cursor, length: 1, content: Content::Zero };
                return Ok(ExtentPage { extents: vec![extent; 400_000], next: None });
            }
            "facts-of-an-endless-disk" => {
                let one = |n| Extent { start: cursor + n, length: 1, content: Content::Zero };
                let extents: Vec<Extent> = (0..u64::from(max)).map(one).collect();
                return Ok(ExtentPage { next: Some(cursor + extents.len() as u64), extents });
            }
            "extents-claim-nothing" => {
                Extent { start: cursor, length: size - cursor, content: Content::Zero }
            }
            "extents-end-early" => Extent { start: cursor, length: 512, content: Content::Zero },
            "extents-never-end" => {
                return Ok(ExtentPage { extents: Vec::new(), next: Some(cursor) });
            }
            _ => Extent {
                start: cursor,
                length: size - cursor,
                content: Content::Data(SECTOR + cursor),
            },
        };
        Ok(ExtentPage { extents: vec![extent], next: None })
    }

    fn measure(target: &dyn Target, _identity: &str, _quick: bool) -> Result<Change, Failure> {
        match told(target).as_str() {
            "measure-traps" => panic!("as told"),
            "measure-loops" => forever(),
            _ => Ok(Change { changed_bytes: u64::MAX, held_bytes: u64::MAX, at_least: false }),
        }
    }

    fn differences(
        target: &dyn Target,
        _identity: &str,
        cursor: u64,
        _max: u32,
    ) -> Result<StretchPage, Failure> {
        let page = |start, length, next| {
            Ok(StretchPage { stretches: vec![Stretch { start, length }], next })
        };
        match told(target).as_str() {
            "differences-trap" => panic!("as told"),
            "differences-loop" => forever(),
            "differences-of-no-length" => page(cursor, 0, None),
            "differences-overflow" => page(u64::MAX, u64::MAX, None),
            "differences-go-back" => page(cursor, 512, Some(0)),
            "differences-never-end" => {
                Ok(StretchPage { stretches: Vec::new(), next: Some(cursor) })
            }
            "differences-without-end" => {
                let one = Stretch { start: cursor, length: 1 };
                Ok(StretchPage { stretches: vec![one; 400_000], next: None })
            }
            _ => page(0, 512, None),
        }
    }

    fn explain(command: &str, answer: &Answer) -> Failure {
        commands::explain(command, answer)
    }
}

/// A restore: the disk is as the snapshot has it, always.
fn restored(told: &str, plan: &mut dyn Plan) -> Result<(), Failure> {
    match told {
        "restore-traps" => panic!("as told"),
        "restore-loops" => forever(),
        "restore-removes-the-snapshot" => plan.write(0, &[0; 20]),
        "restore-renames-the-snapshot" => plan.write(4, b"00000000000000bb"),
        "restore-changes-content" => plan.write(8192, &[0xee; 512]),
        "restore-grows" => plan.extend(1 << 42),
        "restore-reaches-outside" => plan.write(1 << 40, &[1; 64]),
        _ => Ok(()),
    }
}

/// What it does before it does a delete.
fn emptied(told: &str, plan: &mut dyn Plan) -> Result<(), Failure> {
    match told {
        "delete-traps" => panic!("as told"),
        "delete-loops" => forever(),
        "delete-changes-content" => plan.write(8192, &[0xee; 512]),
        "delete-never-ends" => loop {
            let _ = plan.barrier("again");
            let _ = plan.write(300, &[1; 8]);
        },
        "delete-says-no-in-colours" => {
            Err(Failure::new(FailureKind::Unsupported, "no", "\x1b[31m\u{202e}no\x07"))
        }
        _ => Ok(()),
    }
}

fn mask(offset: u64, count: u32, stride: u32, select: Vec<u8>) -> Mask {
    Mask { offset, count, stride, clear: 0, set: u64::MAX, select }
}

fn fill(offset: u64, length: u64, pattern: Vec<u8>) -> Fill {
    Fill { offset, length, pattern }
}

/// Facts that are none.
fn lie(told: &str, facts: &mut Facts) {
    let snapshot = |identity: &str, mark: Option<&str>| Snapshot {
        identity: identity.to_owned(),
        name: "\x1b[2Jname".to_owned(),
        mark: mark.map(str::to_owned),
        taken_seconds: u64::MAX,
        taken_nanoseconds: u32::MAX,
        virtual_size: facts.virtual_size,
        vm_state_size: u64::MAX,
        lost: false,
    };
    match told {
        "facts-too-many-snapshots" => facts.snapshots = vec![snapshot("1", None); 65_537],
        "facts-too-many-findings" => {
            let finding = Finding { code: "x".to_owned(), message: "x".to_owned(), blocks: false };
            facts.findings = vec![finding; 65];
        }
        "facts-of-a-huge-disk" => facts.virtual_size = u64::MAX,
        "facts-with-a-long-identity" => facts.snapshots = vec![snapshot(&"i".repeat(513), None)],
        "facts-with-an-identity-in-colours" => facts.identity = Some("\x1b[31m".to_owned()),
        "facts-with-a-mark-that-is-none" => facts.snapshots = vec![snapshot("1", Some("../../x"))],
        "facts-with-one-mark-twice" => {
            let mark = Some("00000000000000aa");
            facts.snapshots = vec![snapshot("1", mark), snapshot("2", mark)];
        }
        "facts-that-block-in-colours" => facts.findings.push(Finding {
            code: "\x1b[31m".to_owned(),
            message: "\x1b]0;mine\x07blocked".to_owned(),
            blocks: true,
        }),
        // Facts that change between calls: as soon as there is a snapshot.
        "facts-that-grow-with-the-mark" if !facts.snapshots.is_empty() => facts.virtual_size += 512,
        "facts-that-lose-others-with-the-mark" if facts.snapshots.is_empty() => {
            facts.snapshots.push(snapshot("other", None));
        }
        "extents-of-another-move" => facts.snapshots.insert(0, snapshot("other", None)),
        "facts-that-block-with-the-mark" if !facts.snapshots.is_empty() => {
            let (code, message) = ("no".to_owned(), "no".to_owned());
            facts.findings.push(Finding { code, message, blocks: true });
        }
        // With pieces of a byte there is no end to a disk like this.
        "facts-of-an-endless-disk" => {
            facts.virtual_size = 1 << 62;
            facts.snapshots.iter_mut().for_each(|s| s.virtual_size = 1 << 62);
        }
        "facts-that-deceive" => {
            facts.format = "safe \u{202e}yortsed".to_owned();
            facts.identity = Some("a\u{200b}b".to_owned());
        }
        "facts-that-are-half-done-for-ever" => {
            facts.unfinished = Some("\x1b[2Jhalf done".to_owned());
        }
        _ => {}
    }
}

snapslot_plugin_sdk::export_backend!(crate::Hostile);
