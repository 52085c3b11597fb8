//! A storage so simple that it can be seen to be right, and faulty kinds of it.
//!
//! For trying the crash enumeration itself: with the sound kind it must find nothing, with each
//! faulty kind it must find the fault.
//!
//! ```text
//! 0     "TOY STOR"  seal u64 be  active u64 be  held u64 be  mark [16]  stage u64     one sector
//! 512   16 words; bit 63 is set while nothing is held
//! 1024  three areas of 2048 bytes: the active one, the held one, a free one
//! ```

use snapslot_plugin_sdk::{
    Backend, Description, Facts, Failure, FailureKind, Fill, Goal, Mask, PlaceKind, Plan, Role,
    Snapshot, Target,
};

use crate::rng::digest;
use crate::trial::Judge;

const AREAS: u64 = 1024;
const AREA: u64 = 2048;
const WORDS: u64 = 512;
const SEAL: u64 = 1 << 63;

/// What is wrong with a toy.
pub mod fault {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// The header is switched before the area it switches to is copied.
    pub const EARLY: u8 = 1;
    /// Restoring overwrites the active area.
    pub const IN_PLACE: u8 = 2;
    /// The words are changed after the seal is off.
    pub const LATE: u8 = 3;
}

/// The toy with this fault.
#[derive(Debug)]
pub struct Toy<const FAULT: u8>;

struct Head {
    active: u64,
    held: Option<u64>,
    mark: String,
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Head> {
        let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if bytes.get(..8)? != b"TOY STOR" {
            return None;
        }
        let held = Some(word(24)?).filter(|h| *h != 0);
        let mark = String::from_utf8_lossy(bytes.get(32..48)?).into_owned();
        Some(Head { active: word(16)?, held, mark })
    }

    /// `stage` tells the writes of one plan apart, as a plan must.
    fn write(&self, sealed: bool, stage: u64) -> Vec<u8> {
        let mut bytes = b"TOY STOR".to_vec();
        bytes.extend(if sealed { SEAL } else { 0 }.to_be_bytes());
        bytes.extend(self.active.to_be_bytes());
        bytes.extend(self.held.unwrap_or(0).to_be_bytes());
        bytes.extend(self.mark.as_bytes());
        bytes.extend(stage.to_be_bytes());
        bytes
    }

    fn free(&self) -> u64 {
        let areas = (0..3).map(|i| AREAS + i * AREA);
        areas.into_iter().find(|a| *a != self.active && Some(*a) != self.held).unwrap_or(AREAS)
    }
}

/// A storage with this content, 2048 bytes of one value, and nothing held.
pub fn image(value: u8) -> Vec<u8> {
    let mut bytes = Head { active: AREAS, held: None, mark: "0".repeat(16) }.write(false, 0);
    bytes.resize(WORDS as usize, 0);
    bytes.extend((0..16_u64).flat_map(|i| (SEAL | i).to_be_bytes()));
    bytes.resize(AREAS as usize, 0);
    bytes.resize((AREAS + AREA) as usize, value);
    bytes
}

impl<const FAULT: u8> Toy<FAULT> {
    fn head(target: &dyn Target) -> Result<Head, Failure> {
        let bytes = target.image(Role::Disk)?.read_at(0, 512)?;
        let strange = || Failure::new(FailureKind::Corrupt, "no-toy", "this is no toy");
        Head::read(&bytes).ok_or_else(strange)
    }

    fn words(plan: &mut dyn Plan, set: u64) -> Result<(), Failure> {
        let run = |offset, stride, count, select| Mask {
            offset,
            count,
            stride,
            clear: SEAL,
            set,
            select,
        };
        // All words, in several ways of saying so. Interleaved runs need a phase each.
        plan.mask(vec![run(WORDS, 8, 8, Vec::new()), run(WORDS + 64, 16, 4, vec![0x0f])])?;
        plan.barrier("even words")?;
        plan.mask(vec![run(WORDS + 72, 16, 4, Vec::new())])
    }

    fn switch(old: &Head, new: &Head, copy: &[u8], plan: &mut dyn Plan) -> Result<(), Failure> {
        plan.seal(8, SEAL)?;
        plan.write(0, &old.write(true, 1))?;
        plan.barrier("seal")?;
        if FAULT == fault::EARLY {
            plan.write(0, &new.write(true, 2))?;
            plan.barrier("switch")?;
        }
        if !copy.is_empty() {
            let in_place = FAULT == fault::IN_PLACE && old.held.is_some();
            let to = if in_place { old.active } else { old.free() };
            plan.extend(to + AREA)?;
            let (head, tail) = copy.split_at(700);
            plan.write(to, head)?;
            for (i, byte) in tail.chunks(674).enumerate() {
                let offset = to + 700 + i as u64 * 674;
                plan.fill(vec![Fill { offset, length: 674, pattern: vec![byte[0]; 2] }])?;
            }
            plan.barrier("copy")?;
        }
        if FAULT != fault::EARLY {
            plan.write(0, &new.write(true, 2))?;
            plan.barrier("switch")?;
        }
        let set = if new.held.is_some() { 0 } else { SEAL };
        if FAULT != fault::LATE {
            Self::words(plan, set)?;
            plan.barrier("words")?;
        }
        plan.write(0, &new.write(false, 0))?;
        plan.barrier("unseal")?;
        if FAULT == fault::LATE {
            Self::words(plan, set)?;
        }
        Ok(())
    }
}

impl<const FAULT: u8> Backend for Toy<FAULT> {
    fn describe() -> Description {
        Description {
            name: "toy".to_owned(),
            version: "0".to_owned(),
            summary: "Three areas and a header.".to_owned(),
            endings: Vec::new(),
            place: PlaceKind::Image,
            images: Vec::new(),
            copies: None,
            queries: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        let head = Self::head(target)?;
        let snapshot = |_| Snapshot {
            identity: head.mark.clone(),
            name: head.mark.clone(),
            mark: Some(head.mark.clone()),
            taken_seconds: 0,
            taken_nanoseconds: 0,
            virtual_size: AREA,
            vm_state_size: 0,
            lost: false,
        };
        Ok(Facts {
            identity: None,
            virtual_size: AREA,
            format: "toy".to_owned(),
            snapshots: head.held.iter().map(snapshot).collect(),
            findings: Vec::new(),
            unfinished: None,
        })
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        let old = Self::head(target)?;
        let read = |area| target.image(Role::Disk)?.read_at(area, AREA as u32);
        let none = || Failure::new(FailureKind::NotFound, "no-snapshot", "nothing is held");
        match goal {
            Goal::Held(wanted) => {
                let new =
                    Head { active: old.active, held: Some(old.free()), mark: wanted.mark.clone() };
                Self::switch(&old, &new, &read(old.active)?, plan)
            }
            Goal::Restored(_) | Goal::Consumed(_) => {
                let held = old.held.ok_or_else(none)?;
                let active = if FAULT == fault::IN_PLACE { old.active } else { old.free() };
                let new = Head { active, held: Some(held), mark: old.mark.clone() };
                Self::switch(&old, &new, &read(held)?, plan)
            }
            Goal::Settled => Ok(()),
            Goal::Empty(_) => {
                old.held.ok_or_else(none)?;
                let new = Head { active: old.active, held: None, mark: "0".repeat(16) };
                Self::switch(&old, &new, &[], plan)
            }
        }
    }
}

/// Knows what a toy shows.
#[derive(Debug)]
pub struct ToyJudge;

impl Judge for ToyJudge {
    type Picture = (u128, Option<(String, u128)>);

    fn picture(&self, image: &[u8]) -> Result<Self::Picture, String> {
        let head = Head::read(image).ok_or("no toy")?;
        let area = |at: u64| {
            let bytes = image.get(at as usize..(at + AREA) as usize);
            bytes.map(digest).ok_or_else(|| format!("area {at} is outside"))
        };
        let held = head.held.map(|h| Ok::<_, String>((head.mark.clone(), area(h)?))).transpose()?;
        Ok((area(head.active)?, held))
    }

    fn check_crashed(&self, _image: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn check_settled(&self, image: &[u8]) -> Result<(), String> {
        let head = Head::read(image).ok_or("no toy")?;
        let words = image.get(WORDS as usize..AREAS as usize).unwrap_or(&[]);
        let free = words.chunks(8).take(16).filter(|w| w[0] & 0x80 != 0).count();
        let wanted = if head.held.is_some() { 0 } else { 16 };
        if image.get(8).is_none_or(|b| *b != 0) || free != wanted {
            return Err(format!("sealed, or {free} of {wanted} words free"));
        }
        Ok(())
    }
}
