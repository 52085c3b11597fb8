//! What recordings of `tests/real/run --record` say was done beside: `@ COMMAND`, as it was typed, `* open PATH`
//! and `* close`.

use super::{Replay, after};

/// The programs that the plugin has run inside ZFS, under the names they were recorded with.
const PROGRAMS: [(&str, &str); 2] = [
    ("/job/record/rollback.lua", include_str!("../../../../plugins/zfs/src/rollback.lua")),
    ("/job/record/destroy.lua", include_str!("../../../../plugins/zfs/src/destroy.lua")),
];
/// The RAM disk as a pool counts it, which keeps as much again for itself.
const POOL_MIB: u64 = 240;

/// The program in this file.
pub fn program(file: &str) -> Option<&'static str> {
    PROGRAMS.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
}

impl Replay {
    /// Does to the model what was done to the real one.
    pub fn typed(&mut self, text: &str) {
        for part in text.split(" && ") {
            self.typed_one(part.trim_end_matches(" || true"));
        }
    }

    fn typed_one(&mut self, part: &str) {
        let words: Vec<&str> = part.split(' ').collect();
        match words[..] {
            ["udevadm", "settle"] | ["zpool", "sync", _] => {}
            ["zpool", "create", .., name, "/dev/ram1"] => self.model.add_pool(name, POOL_MIB << 20),
            ["zpool", "destroy", .., name] => self.model.remove_pool(name),
            // A stream is not followed: its copy never came.
            ["zfs", "destroy", "-r", "tank/copy"] => {}
            ["zfs", ..] => drop(self.model.must(part)),
            ["dd", .., "of=/dev/ram1", "bs=1M", "count=2", _] => {}
            ["dd", from, ..] => {
                let name = after(part, "of=/dev/zvol/").expect("a volume").to_owned();
                match after(part, "count=") {
                    Some(count) => {
                        assert_eq!(after(part, "bs="), Some("64K"), "{part}");
                        self.write(&name, 0, count.parse::<u64>().expect("a count") * 64);
                    }
                    None => {
                        assert_eq!(from, "if=/dev/zero", "{part}");
                        let size = self.model.must(&format!("zfs list -Hp -o volsize {name}"));
                        self.write(&name, 0, size.trim().parse::<u64>().expect("bytes") >> 10);
                    }
                }
            }
            ["echo", .., ">/run/key"] => {}
            ["echo", _, ">/mnt/vm1/file"] => {
                self.value += 1;
                let written = self.model.guest_write("tank/vm1", 0, Some(self.value));
                written.expect("room for a line");
            }
            ["open", path] => {
                let name = path.strip_prefix("/dev/zvol/").expect("a volume").to_owned();
                self.model.open(&name);
                self.opened.push(name);
            }
            ["close"] => self.model.close(&self.opened.pop().expect("something is open")),
            _ => panic!("what is `{part}`?"),
        }
    }

    /// A guid in a command that no list has shown yet stands for that of what the command names.
    pub fn meet_guids(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let (guid, name) = match words[..] {
            ["zfs", "snapshot", .., of, name] => {
                let Some(guid) = of.strip_prefix("snapslot:of=") else { return };
                (guid, name.split('@').next().unwrap_or_default().to_owned())
            }
            ["zfs", "program", "-j", _, "-", dataset, snapshot, guid, ..] => {
                (guid, format!("{dataset}@{snapshot}"))
            }
            _ => return,
        };
        if self.guids.contains_key(guid) {
            return;
        }
        let here = self.model.typed(&format!("zfs list -Hp -o guid {name}"));
        // One that is made up stays so.
        if here.exit_code == 0 && guid.len() > 8 {
            let here = String::from_utf8_lossy(&here.output).trim().to_owned();
            self.guids.insert(guid.to_owned(), here);
        }
    }
}
