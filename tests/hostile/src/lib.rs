//! A plugin that misbehaves as the volume's name tells it to.
//!
//! Its "format": the first sector holds `SNAP` and a mark when there is a snapshot, the rest is
//! the disk. Under the name `sound` it does what it should.

use snapslot_plugin_sdk::{
    Argument, Backend, Content, Description, Extent, ExtentPage, Facts, Failure, FailureKind, Goal,
    ImageGrant, Level, PlaceKind, Plan, Role, Snapshot, Target, View, log,
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

fn forever() -> ! {
    let mut n = 0_u64;
    loop {
        n = std::hint::black_box(n).wrapping_add(1);
    }
}

fn deep(n: u64) -> u64 {
    if std::hint::black_box(n) == u64::MAX { 0 } else { deep(n + 1).wrapping_add(n) }
}

impl Backend for Hostile {
    fn describe() -> Description {
        Description {
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
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
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
        Ok(Facts {
            identity: None,
            virtual_size: image.size() - SECTOR,
            format: "hostile".to_owned(),
            snapshots,
            findings: Vec::new(),
            unfinished: None,
        })
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        let mut head = vec![0; 20];
        if let Goal::Held(new) = goal {
            head[..4].copy_from_slice(b"SNAP");
            head[4..].copy_from_slice(new.mark.as_bytes());
        }
        match told(target).as_str() {
            "plan-traps" => {
                plan.write(0, &head)?;
                panic!("in the middle");
            }
            "plan-loops" => {
                plan.write(0, &head)?;
                forever();
            }
            "plan-does-nothing" => return Ok(()),
            "plan-changes-content" => plan.write(8192, &[0xee; 512])?,
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
        _view: &View,
        cursor: u64,
        _max: u32,
    ) -> Result<ExtentPage, Failure> {
        let size = target.image(Role::Disk)?.size() - SECTOR;
        let told = told(target);
        let extent = match told.as_str() {
            "extents-overlap" => Extent { start: 0, length: u64::MAX, content: Content::Data(9) },
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
}

snapslot_plugin_sdk::export_backend!(crate::Hostile);
