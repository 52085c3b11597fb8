//! What is no component of this contract, or one that holds a bomb.

use snapslot_engine::Measure;

use crate::{HASTY, PATIENT, component, confined, engine};

#[test]
fn what_is_no_component_of_this_contract_is_refused() {
    let sound = component();
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = sound.clone();
        let mut any = false;
        for at in 0..bytes.len() - from.len() {
            if bytes[at..at + from.len()] == *from.as_bytes() {
                bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
                any = true;
            }
        }
        assert!(any, "{from} is not in it");
        bytes
    };
    let mut cases = vec![
        ("nothing", Vec::new(), "is empty"),
        ("text", b"(component)".to_vec(), "written as text"),
        ("rubbish", vec![0x5a; 5000], "no WebAssembly"),
        ("a module", b"\0asm\x01\0\0\0".to_vec(), "not a component"),
        ("an empty component", b"\0asm\x0d\0\x01\0".to_vec(), "does not export"),
        ("half of it", sound[..sound.len() / 2].to_vec(), "does not compile"),
        ("all but a byte", sound[..sound.len() - 1].to_vec(), "does not compile"),
        (
            "another version",
            replaced("sight@0.1.0", "sight@0.2.0"),
            "speaks snapslot:backend/sight@0.2.0",
        ),
        ("another backend", replaced("backend/backend@0.1.0", "backend/backend@0.3.0"), "0.3.0"),
        ("another import", replaced("wasi:io/poll@", "wasi:xx/poll@"), "imports wasi:xx/poll"),
        // Story: a plugin of a later 0.1 was told in the linker's words that a resource is missing.
        (
            "a later function",
            replaced("[method]image.size", "[method]image.hole"),
            "it was built for a later 0.1",
        ),
        (
            "a later interface",
            replaced("snapslot:backend/log@", "snapslot:backend/mmm@"),
            "a later 0.1",
        ),
        ("another export", replaced("inspect", "inspekt"), ""),
        ("a huge one", vec![0; 65 << 20], "at most 67108864"),
    ];
    let mut noise = 0x1234_5678_9abc_def0_u64;
    for _ in 0..20 {
        let mut bytes = sound.clone();
        for _ in 0..8 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (noise >> 33) as usize % bytes.len().min(4096);
            bytes[at] ^= (noise >> 20) as u8 | 1;
        }
        cases.push(("damaged", bytes, ""));
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a volume");
    let volume = format!("hostile:{}", path.display());
    let count = cases.len();
    for (what, bytes, expected) in cases {
        let engine = engine(scratch.path(), bytes, confined(), PATIENT).expect("an engine");
        let result = engine.status(&volume, Measure::Wholly);
        let Err(error) = result else {
            // Damage may fall where nobody looks.
            assert_eq!(what, "damaged");
            continue;
        };
        let text = error.to_string();
        println!("{what}: {}", text.chars().take(200).collect::<String>());
        assert!(text.contains(expected), "{what}: {text}");
        assert!(error.exit() == 7 && !text.chars().any(char::is_control), "{what}: {text:?}");
        assert!(std::fs::read(&path).expect("it").iter().all(|b| *b == 0), "{what}");
    }
    println!("{count} components");
}

/// A module of wasm's own, with a section of memories, tables or a start function.
fn module(sections: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = b"\0asm\x01\0\0\0".to_vec();
    for (id, content) in sections {
        bytes.push(*id);
        bytes.extend(number(content.len()));
        bytes.extend(*content);
    }
    bytes
}

/// As wasm writes numbers.
fn number(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (n & 0x7f) as u8;
        n >>= 7;
        bytes.push(if n == 0 { low } else { low | 0x80 });
        if n == 0 {
            return bytes;
        }
    }
}

/// The component with these modules in it, each made into an instance when it is.
fn holding(modules: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = component();
    // How many modules there are already: sections with number 1 of the component itself.
    let (mut at, mut there) = (8, 0);
    while at < bytes.len() {
        let id = bytes[at];
        let (mut length, mut shift) = (0_usize, 0);
        at += 1;
        loop {
            let byte = bytes[at];
            length |= usize::from(byte & 0x7f) << shift;
            (at, shift) = (at + 1, shift + 7);
            if byte & 0x80 == 0 {
                break;
            }
        }
        there += usize::from(id == 1);
        at += length;
    }
    for (n, module) in modules.iter().enumerate() {
        bytes.push(1);
        bytes.extend(number(module.len()));
        bytes.extend(module);
        let instance = [vec![1, 0], number(there + n), vec![0]].concat();
        bytes.push(2);
        bytes.extend(number(instance.len()));
        bytes.extend(instance);
    }
    bytes
}

#[test]
fn bombs_in_a_component_go_off_in_its_own_hands() {
    let memory = |pages: usize| module(&[(5, &[vec![1, 0], number(pages)].concat())]);
    let table = |elements: usize| module(&[(4, &[vec![1, 0x70, 0], number(elements)].concat())]);
    let tables = [vec![40], [0x70, 0, 1].repeat(40)].concat();
    let code = |body: &[u8]| {
        // One function without parameters, which is the start.
        let body = [&[0], body].concat();
        let bodies = [vec![1], number(body.len()), body].concat();
        module(&[(1, &[1, 0x60, 0, 0]), (3, &[1, 0]), (8, &[0]), (10, &bodies)])
    };
    let cases = [
        ("a loop at the start", vec![code(&[0x03, 0x40, 0x0c, 0, 0x0b, 0x0b])], "computed"),
        ("a trap at the start", vec![code(&[0x00, 0x0b])], "unreachable"),
        ("recursion at the start", vec![code(&[0x10, 0, 0x0b])], "stack"),
        ("a memory of a gibibyte", vec![memory(16_384)], "memory"),
        ("two of three hundred mebibytes", vec![memory(4_800), memory(4_800)], "memory"),
        ("more memories than there may be", vec![memory(1); 5], "memor"),
        ("a table of a million", vec![table(1_000_000)], "table"),
        ("two tables of sixty thousand", vec![table(60_000), table(60_000)], "table"),
        ("more tables than there may be", vec![module(&[(4, &tables)])], "table"),
        ("more instances than there may be", vec![module(&[]); 60], "instance"),
    ];
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a volume");
    let volume = format!("hostile:{}", path.display());
    // One that holds nothing dangerous is sound: what is refused below is the bomb.
    let sound = holding(&[module(&[]), memory(1), table(10), code(&[0x0b])]);
    let engine_with =
        |bytes, limit| engine(scratch.path(), bytes, confined(), limit).expect("an engine");
    engine_with(sound, PATIENT).status(&volume, Measure::Wholly).expect("a status");
    for (what, modules, says) in cases {
        let limit = if what == "a loop at the start" { HASTY } else { PATIENT };
        let engine = engine_with(holding(&modules), limit);
        let error = engine.status(&volume, Measure::Wholly).expect_err(what);
        let text = error.to_string();
        println!("{what}: {}", text.chars().take(200).collect::<String>());
        assert!(text.contains(says) && text.contains("hostile"), "{what}: {text}");
        assert!(error.exit() == 7 && !text.chars().any(char::is_control), "{what}: {text:?}");
        assert!(std::fs::read(&path).expect("it").iter().all(|b| *b == 0), "{what}");
    }
}
