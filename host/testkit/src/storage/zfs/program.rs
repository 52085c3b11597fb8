//! `zfs program`: what a channel program can reach, and what is printed of it.
//!
//! A program that stops with an error has done what it did before that: nothing is taken back.
//! Functions may give more than one value (`zfs.sync.rollback` names the snapshot, `zfs.get_prop`
//! the source), and a program that hands on more than one fails *after* its work.

use std::cell::RefCell;
use std::rc::Rc;

use super::change::{EBUSY, EDQUOT, EEXIST, EINVAL, ENOENT, ENOSPC, ESRCH};
use super::lua;
use super::lua_run::{self, Host, Key, Value};
use super::show::{self, Row};
use super::{Access, Reply, World, names, pool_name};

impl World {
    pub(super) fn program(&mut self, words: &[&str], input: Option<&str>) -> Option<Reply> {
        let ["-j", pool, "-", arguments @ ..] = words else { return None };
        let text = input?;
        if !self.pools.contains_key(*pool) {
            let err = format!("cannot open '{pool}': no such pool\ncannot open pool '{pool}'");
            return Some(Reply::fails(err));
        }
        let failed =
            |text: &str| Reply::fails(format!("Channel program execution failed:\n{text}"));
        if self.access == Access::User {
            return Some(failed("Permission denied. Channel programs must be run as root."));
        }
        let body = match lua::parse(text) {
            Ok(body) => body,
            Err(mistake) => return Some(failed(&mistake)),
        };
        if self.pools[*pool].readonly {
            return Some(Reply::fails("Channel program execution failed: pool is read-only"));
        }
        let argv = Value::list(arguments.iter().map(|a| Value::text(a)));
        let given = [(Key::Text("argv".into()), argv)].into();
        let given = Value::Table(Rc::new(RefCell::new(given)));
        let txg = self.txg(pool);
        let mut reach = Reach { world: self, pool: (*pool).to_owned(), txg };
        Some(match lua_run::run(&body, given, &mut reach) {
            Ok(values) => match &values[..] {
                [] => Reply::says("{}"),
                [value] => Reply::says(format!("{{\"return\":{}}}", json(value))),
                _ => failed("Multiple return values not supported"),
            },
            Err(raised) => {
                let message = raised.message.map(|m| format!("{m}\n")).unwrap_or_default();
                failed(&format!(
                    "{message}stack traceback:\n\t[C]: in function '{}'\n\
                     \t[string \"channel program\"]:{}: in main chunk",
                    raised.within, raised.line
                ))
            }
        })
    }
}

/// A value as `zfs program -j` prints it.
fn json(value: &Value) -> String {
    match value {
        // A pair without a value, which JSON has no word for.
        Value::Nil => "true".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::Text(text) => quoted(text),
        Value::Table(table) => {
            let key = |key: &Key| match key {
                Key::Number(n) => quoted(&n.to_string()),
                Key::Text(text) => quoted(text),
            };
            let item = |(k, v): (&Key, &Value)| format!("{}:{}", key(k), json(v));
            format!("{{{}}}", table.borrow().iter().map(item).collect::<Vec<_>>().join(","))
        }
        other => panic!("lua: {other:?} cannot be given back"),
    }
}

fn quoted(text: &str) -> String {
    let mut out = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out += "\\n",
            '\t' => out += "\\t",
            ' '..='~' => out.push(c),
            // ZFS cuts its output there.
            c => panic!("lua: what is printed of {c:?} is not known"),
        }
    }
    out + "\""
}

/// The `zfs` a program sees.
struct Reach<'a> {
    world: &'a mut World,
    pool: String,
    txg: u64,
}

fn errno(number: i64) -> Result<Vec<Value>, String> {
    Ok(vec![Value::Number(number)])
}

impl Reach<'_> {
    fn foreign(&self, name: &str) -> bool {
        pool_name(name) != self.pool
    }

    /// What is said of a dataset that is not there, as the first argument of a function.
    fn no_such(&self, name: &str, function: &str) -> String {
        if self.foreign(name) {
            let pool = &self.pool;
            return format!(
                "bad argument #1 to '{function}' (dataset '{name}' is not in the target pool '{pool}')"
            );
        }
        format!("bad argument #1 to '{function}' (no such dataset '{name}')")
    }

    fn get_prop(&self, name: &str, property: &str) -> Result<Vec<Value>, String> {
        const NUMBERS: [&str; 9] = [
            "guid",
            "createtxg",
            "creation",
            "used",
            "referenced",
            "written",
            "userrefs",
            "volsize",
            "available",
        ];
        const TEXTS: [&str; 5] = ["type", "keystatus", "defer_destroy", "name", "mountpoint"];
        const HIDDEN: [&str; 1] = ["prevsnap"];
        let native = show::NATIVE.split(' ').any(|n| n == property);
        if !native && !property.contains(':') && !HIDDEN.contains(&property) {
            return Err(format!("'{property}' is not a valid property"));
        }
        let missing = || Err(self.no_such(name, "get_prop"));
        if !self.world.exists(name) || self.foreign(name) {
            return missing();
        }
        let row = match name.split_once('@') {
            Some((dataset, s)) => Row::Snapshot(dataset.to_owned(), s.to_owned()),
            None => Row::Dataset(name.to_owned()),
        };
        if property == "prevsnap" {
            assert!(!name.contains('@'), "prevsnap of a snapshot is not known");
            let newest = self.world.pool(name).and_then(|p| p.newest(name));
            return Ok(newest.map(|n| vec![Value::text(&n), Value::Nil]).unwrap_or_default());
        }
        if property == "clones" {
            let Some(snapshot) = self.world.snapshot(name) else { return Ok(Vec::new()) };
            let clones = self.world.pool(name).map(|p| p.clones(snapshot.guid)).unwrap_or_default();
            return Ok(vec![Value::list(clones.iter().map(|c| Value::text(c))), Value::Nil]);
        }
        // What is mounted is not known there.
        if property == "mounted" {
            return Ok(Vec::new());
        }
        let is_user = names::is_user_property(property);
        let known = is_user || NUMBERS.contains(&property) || TEXTS.contains(&property);
        let value = self.world.property(&row, property).filter(|_| known).unwrap_or_else(|| {
            panic!("the model of ZFS does not know zfs.get_prop of {property} of {name}")
        });
        let Some(value) = value else {
            return match property {
                "keystatus" => Ok(vec![Value::text("none"), Value::text("default")]),
                _ => Ok(Vec::new()),
            };
        };
        let mut values = vec![match NUMBERS.contains(&property) {
            // Unsigned there, signed here: the upper half is negative.
            true => Value::Number(value.text.parse::<u64>().unwrap_or(0).cast_signed()),
            false => Value::text(&value.text),
        }];
        // Always two: where it is set, or nothing for what cannot be set.
        let from = value.source.strip_prefix("inherited from ").unwrap_or(name);
        let set = is_user || ["volsize", "mountpoint"].contains(&property);
        values.push(if set { Value::text(from) } else { Value::Nil });
        Ok(values)
    }

    fn list(&self, what: &str, name: &str) -> Result<Vec<Value>, String> {
        if !self.world.exists(name) || self.foreign(name) {
            return Err(self.no_such(name, what));
        }
        let dataset = self.world.dataset(name);
        let texts = |names: Vec<String>| names.iter().map(|n| vec![Value::text(n)]).collect();
        let found = match (what, dataset, self.world.snapshot(name)) {
            ("snapshots", Some(d), _) => {
                // The order of the kernel's table; a program must not rely on it.
                let mut names: Vec<_> =
                    d.snapshots.iter().map(|s| format!("{name}@{}", s.name)).collect();
                names.sort();
                texts(names)
            }
            ("bookmarks", Some(d), _) => {
                texts(d.bookmarks.keys().map(|b| format!("{name}#{b}")).collect())
            }
            ("clones", None, Some(s)) => {
                texts(self.world.pool(name).map(|p| p.clones(s.guid)).unwrap_or_default())
            }
            ("holds", None, Some(s)) => {
                let pair = |(tag, at): (&String, &u64)| {
                    vec![Value::text(tag), Value::Number(at.cast_signed())]
                };
                s.holds.iter().map(pair).collect()
            }
            _ => panic!("the model of ZFS does not know zfs.list.{what} of {name}"),
        };
        Ok(vec![Value::Each(Rc::new(RefCell::new(found)))])
    }

    fn destroy(&mut self, name: &str, sync: bool) -> Result<Vec<Value>, String> {
        if self.foreign(name) {
            panic!("the model of ZFS does not know zfs.sync.destroy in another pool");
        }
        if !name.contains('@') {
            let held =
                self.world.dataset(name).is_some_and(|d| d.kind.held() || !d.snapshots.is_empty());
            // Destroying volumes is nobody's business here; that it is refused can be shown.
            assert!(held, "the model of ZFS does not destroy a dataset by program");
            return errno(EBUSY);
        }
        let number = self.world.may_destroy_snapshot(name);
        if number == 0 && sync {
            self.world.remove_snapshot(name);
        }
        errno(number)
    }

    fn rollback(&mut self, name: &str, sync: bool) -> Result<Vec<Value>, String> {
        if name.contains('@') {
            return errno(if self.world.exists(name) { EINVAL } else { ENOENT });
        }
        let number = self.world.may_roll_back(name);
        let held = self.world.dataset(name).is_some_and(|d| d.kind.held());
        // The order of the kernel's checks: who holds it comes before room.
        let number = match number {
            0 | EDQUOT | ENOSPC if held => EBUSY,
            other => other,
        };
        if number != 0 || !sync {
            return errno(number);
        }
        let newest = self.world.dataset(name).and_then(|d| d.snapshots.last());
        let newest = newest.map(|s| s.name.clone()).expect("a rollback that may be has a snapshot");
        self.world.roll_back(name, &newest);
        let target = Value::text(&format!("{name}@{newest}"));
        let details = [(Key::Text("target".into()), target)].into();
        Ok(vec![Value::Number(0), Value::Table(Rc::new(RefCell::new(details)))])
    }

    fn snapshot(&mut self, name: &str, sync: bool) -> Result<Vec<Value>, String> {
        let Some((dataset, short)) = name.split_once('@') else { return errno(EINVAL) };
        let number = self.world.may_snapshot(dataset, short);
        if number == 0 && sync {
            self.world.make_snapshot(dataset, short, self.txg, Default::default());
        }
        errno(number)
    }

    fn set_prop(&mut self, name: &str, property: &str, value: &str) -> Result<Vec<Value>, String> {
        if !names::is_user_property(property) {
            return errno(EINVAL);
        }
        match self.world.own_properties(name) {
            Some(own) => own.insert(property.to_owned(), value.to_owned()),
            None => panic!("the model of ZFS does not know zfs.sync.set_prop of {name}"),
        };
        errno(0)
    }
}

impl Host for Reach<'_> {
    fn call(&mut self, function: &str, arguments: &[Value]) -> Result<Vec<Value>, String> {
        let texts: Option<Vec<&str>> = arguments
            .iter()
            .map(|a| if let Value::Text(text) = a { Some(&**text) } else { None })
            .collect();
        let texts = texts.unwrap_or_default();
        match (function, &texts[..]) {
            ("zfs.exists", [name]) => {
                if self.foreign(name) {
                    return Err(format!("dataset '{name}' is not in the target pool"));
                }
                Ok(vec![Value::Bool(self.world.exists(name))])
            }
            ("zfs.get_prop", [name, property]) => self.get_prop(name, property),
            ("zfs.sync.destroy", [name]) => self.destroy(name, true),
            ("zfs.check.destroy", [name]) => self.destroy(name, false),
            ("zfs.sync.rollback", [name]) => self.rollback(name, true),
            ("zfs.check.rollback", [name]) => self.rollback(name, false),
            ("zfs.sync.snapshot", [name]) => self.snapshot(name, true),
            ("zfs.check.snapshot", [name]) => self.snapshot(name, false),
            ("zfs.sync.set_prop", [name, property, value]) => self.set_prop(name, property, value),
            (list, [name]) if list.starts_with("zfs.list.") => self.list(&list[9..], name),
            _ => {
                panic!("the model of ZFS does not know this in a program: {function} {arguments:?}")
            }
        }
    }

    fn global(&self, name: &str) -> Option<Value> {
        const FUNCTIONS: [&str; 7] =
            ["zfs", "string", "error", "assert", "type", "tostring", "tonumber"];
        let number = match name {
            "ENOENT" => ENOENT,
            "ESRCH" => ESRCH,
            "EBUSY" => EBUSY,
            "EEXIST" => EEXIST,
            "EINVAL" => EINVAL,
            "ENOSPC" => ENOSPC,
            "EDQUOT" => EDQUOT,
            // Not there: neither in the kernel's Lua.
            "pcall" | "print" | "os" | "io" | "load" | "dofile" => return None,
            name if FUNCTIONS.contains(&name) => return Some(Value::Native(name.to_owned())),
            name => panic!("the model of ZFS does not know `{name}` in a program"),
        };
        Some(Value::Number(number))
    }
}
