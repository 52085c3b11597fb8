//! From a fuzzer's bytes to things worth trying: images with some fields changed, plans, names.
//!
//! Apart from the targets, which are thin, so that what is generated can be looked at and tested.

use snapslot_capture::{Mask, PlanBuilder, PlanError, Seal};
use snapslot_command::{Grammar, Grant, Guard, Hole};

/// Takes numbers off the front of the fuzzer's bytes; zeroes once they are used up.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number of 64 bits: often a small one, often one at an edge.
    pub fn number(&mut self) -> u64 {
        const EDGES: [u64; 8] =
            [0, 1, u64::MAX, i64::MAX as u64, 1 << 63, u32::MAX as u64, 1 << 32, 1 << 56];
        match self.byte() % 4 {
            0 => u64::from(self.byte()),
            1 => EDGES[usize::from(self.byte()) % EDGES.len()],
            2 => u64::from(self.byte()) << (self.byte() % 64),
            _ => (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte())),
        }
    }

    /// Whether there is more.
    pub fn more(&self) -> bool {
        !self.0.is_empty()
    }

    /// Some text of at most so many bytes.
    pub fn text(&mut self, most: usize) -> String {
        let length = usize::from(self.byte()) % (most + 1);
        let (now, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        String::from_utf8_lossy(now).into_owned()
    }
}

/// Images that qemu-img made (`seeds/make`), small enough that a change matters.
pub const IMAGES: [&[u8]; 3] = [
    include_bytes!("../seeds/images/v3.qcow2"),
    include_bytes!("../seeds/images/snapshots.qcow2"),
    include_bytes!("../seeds/images/v2.qcow2"),
];

/// Where the header's fields begin (the qcow2 specification, "Header").
const FIELDS: [usize; 20] =
    [0, 4, 8, 16, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 80, 88, 96, 100, 104, 112];

/// An image with some of its words changed, and perhaps cut.
pub fn image(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut image = IMAGES[usize::from(bytes.byte()) % IMAGES.len()].to_vec();
    for _ in 0..bytes.byte() % 8 {
        let at = match bytes.byte() % 2 {
            0 => FIELDS[usize::from(bytes.byte()) % FIELDS.len()],
            _ => (usize::from(bytes.byte()) << 8 | usize::from(bytes.byte())) % image.len(),
        };
        let value = bytes.number().to_be_bytes();
        // Fields have 4 or 8 bytes.
        let width = if bytes.byte() % 2 == 0 { 4 } else { 8 };
        for (to, from) in image.iter_mut().skip(at).zip(&value[8 - width..]) {
            *to = *from;
        }
    }
    if bytes.byte() % 8 == 7 {
        image.truncate(bytes.number() as usize % image.len().max(1));
    }
    image
}

/// A plan of some steps, as far as they are well formed.
pub fn plan(bytes: &mut Bytes<'_>) -> PlanBuilder {
    let mut plan = PlanBuilder::new();
    for _ in 0..64 {
        if !bytes.more() {
            break;
        }
        // A malformed step breaks the plan for good: that too is worth trying, but rarely.
        let _: Result<(), PlanError> = step(&mut plan, bytes);
    }
    plan
}

fn step(plan: &mut PlanBuilder, bytes: &mut Bytes<'_>) -> Result<(), PlanError> {
    let offset = |bytes: &mut Bytes<'_>| match bytes.byte() % 8 {
        0 => bytes.number(),
        _ => u64::from(bytes.byte()) * 8,
    };
    match bytes.byte() % 8 {
        0 => plan.seal(Seal { offset: offset(bytes), bits: bytes.number() }),
        1 => {
            let length = usize::from(bytes.byte()) % 96;
            let value = bytes.byte();
            plan.write(offset(bytes), vec![value; length])
        }
        2 => {
            let pattern = bytes.text(16).into_bytes();
            let length = pattern.len() as u64 * u64::from(bytes.byte());
            plan.fill(offset(bytes), length, pattern)
        }
        3 | 4 => {
            let count = u32::from(bytes.byte());
            let select = match bytes.byte() % 2 {
                0 => Vec::new(),
                _ => vec![bytes.byte(); (count as usize).div_ceil(8)],
            };
            let stride = if bytes.byte() % 2 == 0 { 8 } else { 16 };
            let (clear, set) = (bytes.number(), bytes.number());
            plan.mask(Mask { offset: offset(bytes), count, stride, clear, set, select })
        }
        5 => plan.extend(offset(bytes)),
        _ => plan.barrier("phase"),
    }
}

/// What a client of a network block device sends: often a whole handshake and requests with some
/// fields of the fuzzer's choice, sometimes its bytes as they are.
pub fn nbd_client(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let honest = bytes.byte() % 4 != 0;
    if !honest {
        out.extend_from_slice(bytes.0);
        return out;
    }
    out.extend((u32::from(bytes.byte()) & 3 | 1).to_be_bytes());
    let mut chosen = false;
    for _ in 0..24 {
        if !bytes.more() {
            break;
        }
        if chosen {
            let kind = u16::from(bytes.byte() % 10);
            let flags = u16::from(bytes.byte() & 31);
            let length = match bytes.byte() % 4 {
                0 => bytes.number() as u32,
                _ => u32::from(bytes.byte()) * 64,
            };
            out.extend(0x2560_9513_u32.to_be_bytes());
            out.extend(flags.to_be_bytes());
            out.extend(kind.to_be_bytes());
            out.extend(bytes.number().to_be_bytes());
            out.extend((bytes.number() % 70_000).to_be_bytes());
            out.extend(length.to_be_bytes());
            if kind == 1 {
                out.resize(out.len() + (length as usize).min(1 << 16), bytes.byte());
            }
            continue;
        }
        const KINDS: [u32; 10] = [8, 10, 7, 1, 3, 6, 9, 5, 2, 77];
        let kind = KINDS[usize::from(bytes.byte()) % KINDS.len()];
        let mut data = Vec::new();
        match kind {
            6 | 7 => {
                let name = bytes.text(4);
                data.extend((name.len() as u32).to_be_bytes());
                data.extend(name.as_bytes());
                data.extend(1_u16.to_be_bytes());
                data.extend(3_u16.to_be_bytes());
            }
            9 | 10 => {
                data.extend(0_u32.to_be_bytes());
                data.extend(u32::from(bytes.byte() % 3).to_be_bytes());
                data.extend(15_u32.to_be_bytes());
                data.extend(b"base:allocation");
            }
            _ => {}
        }
        if bytes.byte() % 8 == 0 {
            data.extend(bytes.text(20).as_bytes());
        }
        chosen = kind == 7 || kind == 1;
        out.extend(b"IHAVEOPT");
        out.extend(kind.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
    }
    out
}

/// Words of commands, of which most templates are made, so that some get past the host's table.
const WORDS: [&str; 48] = [
    "lvs",
    "vgs",
    "lvcreate",
    "lvchange",
    "lvconvert",
    "lvremove",
    "lvrename",
    "zfs",
    "btrfs",
    "list",
    "get",
    "holds",
    "snapshot",
    "rollback",
    "destroy",
    "program",
    "subvolume",
    "filesystem",
    "show",
    "delete",
    "usage",
    "-y",
    "-s",
    "-a",
    "-Hp",
    "-H",
    "-o",
    "-n",
    "-L",
    "-r",
    "-pr",
    "-an",
    "-i",
    "1",
    "--merge",
    "--select",
    "--config",
    "--addtag",
    "--deltag",
    "--refresh",
    "-",
    "name",
    "all",
    "lv_uuid=",
    "report/x=\"1\"",
    "x:y=",
    "-d",
    "written@",
];
const HOLES: [(&str, Grammar); 12] = [
    ("g", Grammar::LvmGroup),
    ("v", Grammar::LvmVolume),
    ("o", Grammar::LvmOwn),
    ("p", Grammar::ZfsPool),
    ("d", Grammar::ZfsDataset),
    ("s", Grammar::ZfsOwn),
    ("f", Grammar::Path),
    ("h", Grammar::PathOwn),
    ("m", Grammar::Mark),
    ("n", Grammar::Number),
    ("u", Grammar::Uuid),
    ("t", Grammar::LvmTag),
];
/// Targets as sound templates have them.
const TARGETS: [&str; 10] =
    ["{g}", "{g}/{v}", "{g}/{o}", "{v}", "{o}", "{d}", "{d}@{s}", "{p}", "{f}", "{h}"];

/// A value that its grammar lets through at the places the targets have.
fn fitting(hole: &str) -> &'static str {
    match hole {
        "o" => "vm1_snapslot_a1",
        "s" => "snapslot-a1",
        "h" => "/srv/vms/.vm1.snapslot-a1",
        "m" => "0123456789abcdef",
        "n" => "7",
        "u" => "fO2Njv-fQQz-EhKf-NUQm-x6ZY-Mgle-iQyrbA",
        _ => "a=b/c",
    }
}

fn word(bytes: &mut Bytes<'_>) -> String {
    let plain = |bytes: &mut Bytes<'_>| WORDS[usize::from(bytes.byte()) % WORDS.len()].to_owned();
    match bytes.byte() % 8 {
        0..=2 => plain(bytes),
        3 | 4 => TARGETS[usize::from(bytes.byte()) % TARGETS.len()].to_owned(),
        // A hole somewhere in a word: where holes have been misused.
        5 => {
            let hole = HOLES[usize::from(bytes.byte()) % HOLES.len()].0;
            let (before, after) = (plain(bytes), bytes.text(4));
            match bytes.byte() % 3 {
                0 => format!("{before}{{{hole}}}"),
                1 => format!("{{{hole}}}{after}"),
                _ => format!("{}{{{hole}}}{after}", &before[..before.len().min(3)]),
            }
        }
        6 => bytes.text(24),
        _ => format!("--{}", bytes.text(6)),
    }
}

/// A grant whose holes may stand anywhere in its words, and values for them.
pub fn grant(bytes: &mut Bytes<'_>) -> (Grant, Vec<(String, String)>) {
    let template = |bytes: &mut Bytes<'_>| -> Vec<String> {
        let mut words = vec![WORDS[usize::from(bytes.byte()) % 9].to_owned()];
        words.extend((0..bytes.byte() % 9).map(|_| word(bytes)));
        words
    };
    let words = template(bytes);
    let guard =
        (bytes.byte() % 4 == 0).then(|| Guard { template: template(bytes), equals: "u".into() });
    let guarded = guard.iter().flat_map(|g| &g.template);
    let stands = |hole: &str| {
        (guard.is_some() && hole == "u")
            || words.iter().chain(guarded.clone()).any(|w| w.contains(&format!("{{{hole}}}")))
    };
    let holes: Vec<Hole> = (HOLES.iter().filter(|(name, _)| stands(name)))
        .map(|&(name, grammar)| Hole { name: name.to_owned(), grammar })
        .collect();
    let host_fills = |g: Grammar| {
        matches!(
            g,
            Grammar::LvmGroup
                | Grammar::LvmVolume
                | Grammar::ZfsPool
                | Grammar::ZfsDataset
                | Grammar::Path
        )
    };
    let values = (holes.iter().filter(|h| !host_fills(h.grammar)))
        .map(|h| {
            let value = match bytes.byte() % 4 {
                0 => bytes.text(40),
                _ => fitting(&h.name).to_owned(),
            };
            (h.name.clone(), value)
        })
        .collect();
    let grant = Grant {
        name: "x".to_owned(),
        template: words,
        holes,
        input: None,
        guard,
        deadline_seconds: 1,
    };
    (grant, values)
}

#[cfg(test)]
mod tests {
    //! Goal: what is generated reaches what it is for.

    use super::*;

    #[test]
    fn no_bytes_give_a_sound_image_and_no_plan() {
        assert_eq!(image(&mut Bytes(&[])), IMAGES[0]);
        assert!(plan(&mut Bytes(&[])).is_empty());
    }

    #[test]
    fn bytes_change_images_and_make_steps() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_ne!(image(&mut Bytes(&bytes)), IMAGES[0]);
        assert!(!plan(&mut Bytes(&bytes)).is_empty());
    }

    /// A generator whose grants are all refused would find nothing.
    #[test]
    fn some_grants_get_past_the_table() {
        use snapslot_command::{PlaceKind, Purpose};
        let mut noise = 1_u64;
        let mut passed = 0;
        for _ in 0..200_000 {
            let bytes: Vec<u8> = (0..64)
                .map(|_| {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (noise >> 40) as u8
                })
                .collect();
            let (grant, _) = grant(&mut Bytes(&bytes));
            let kinds = [PlaceKind::LvmVolume, PlaceKind::ZfsDataset, PlaceKind::Directory];
            let had = kinds.iter().any(|&kind| grant.check(kind, Purpose::Change).is_ok());
            passed += usize::from(had);
        }
        println!("{passed} of 200,000");
        assert!(passed > 100, "only {passed}");
    }
}
