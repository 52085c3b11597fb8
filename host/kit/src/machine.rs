//! Virtual machines with one volume, as the parts of the kit see them.

use std::path::Path;
use std::sync::Arc;

use snapslot_engine::{Asked, Done, Engine, EngineError, Measure, Verb};
use snapslot_runtime::Sight;
use snapslot_testkit::rng::digest;
use snapslot_testkit::storage::machine::{Kind, Machine};

use crate::bench::{Bench, Directory};
use crate::clock::KitClock;
use crate::tools::KitTools;
use snapslot_testkit::troubled::Troubled;

/// A virtual machine with one volume.
pub trait Live {
    /// Its volume, as a locator.
    fn volume(&self) -> String;
    /// A fresh engine over its storage.
    fn engine(&self) -> Result<Engine, EngineError>;
    /// The clock of its engines.
    fn clock(&self) -> &KitClock;
    /// The guest writes something of this generation. `Ok(false)`: it cannot be made to.
    fn write(&self, generation: u64) -> Result<bool, String>;
    /// What the guest sees, told apart from whatever else it saw.
    fn sees(&self) -> Result<String, String>;
    /// All there is in its storage.
    fn all(&self) -> Result<String, String>;
    /// What is left of us in the storage.
    fn left(&self) -> Vec<String>;
    /// Somebody deletes our snapshot by hand.
    fn others_delete(&self) -> Result<(), String>;
    /// Somebody makes a snapshot by hand, which is none of ours. `Ok(false)`: there is no way to.
    fn others_take(&self) -> Result<bool, String>;
    /// The snapshots of others.
    fn of_others(&self) -> Result<String, String>;
    /// Commands that were run and said no, with what they said; none where no commands are run.
    fn refused(&self) -> Option<Vec<String>> {
        None
    }
    /// What the plugin sees.
    fn sight(&self) -> Result<Sight, String>;
}

/// Runs a verb; copies may be whole ones.
pub fn operate(live: &dyn Live, verb: Verb, asked: Asked) -> Result<Done, EngineError> {
    let asked = Asked { full_copy: true, ..asked };
    live.clock().goes_on();
    live.engine()?.operate(&live.volume(), verb, &asked, &|_, _, _| ())
}

/// The mark of the snapshot that holds the slot.
pub fn mark(live: &dyn Live) -> Result<Option<String>, String> {
    let status = live
        .engine()
        .and_then(|e| e.status(&live.volume(), Measure::Wholly))
        .map_err(|e| e.to_string())?;
    Ok(status.slot.occupant().map(|o| o.mark.clone()))
}

/// A volume on modelled storage.
pub struct StorageMachine<'a> {
    bench: &'a Bench<'a>,
    /// The storage.
    pub storage: Machine,
    /// What stands between it and whoever runs commands.
    pub trouble: Arc<Troubled>,
    clock: Arc<KitClock>,
    state: Directory,
}

impl<'a> StorageMachine<'a> {
    pub fn new(bench: &'a Bench<'a>, kind: Kind) -> Result<Self, String> {
        let storage = Machine::new(kind);
        Ok(StorageMachine {
            bench,
            trouble: Arc::new(Troubled::new(Arc::new(storage.clone()))),
            storage,
            clock: Arc::new(KitClock::new(bench.options.seed, &format!("{kind:?}"))),
            state: bench.directory()?,
        })
    }

    /// All that what comes next depends on: two machines of which this is the same go on alike.
    pub fn everything(&self) -> Result<u128, String> {
        let engine = self.engine().map_err(|e| e.to_string())?;
        let failed = |e: snapslot_engine::StoreError| e.to_string();
        let mut all = format!("{}\n{:?}\n", self.storage.all(), self.clock.state());
        for machine in engine.store().machines().map_err(failed)? {
            let running = engine.store().running(&machine.name).map_err(failed)?;
            all.push_str(&format!("{machine:?}, {running:?}\n"));
        }
        // What else is recorded is journals; the database itself holds history too.
        files(self.state.path(), &mut all).map_err(|e| e.to_string())?;
        Ok(digest(all.as_bytes()))
    }

    fn tools(&self) -> KitTools {
        KitTools::model(self.trouble.clone(), &self.bench.beyond)
    }
}

impl Live for StorageMachine<'_> {
    fn volume(&self) -> String {
        format!("{}:{}", self.bench.name(), self.storage.kind().place())
    }

    fn engine(&self) -> Result<Engine, EngineError> {
        self.bench.engine(self.state.path(), self.tools(), &self.clock)
    }

    fn clock(&self) -> &KitClock {
        &self.clock
    }

    fn write(&self, generation: u64) -> Result<bool, String> {
        self.storage.write(generation);
        Ok(true)
    }

    fn sees(&self) -> Result<String, String> {
        self.storage.sees().map(|g| format!("generation {g}"))
    }

    fn all(&self) -> Result<String, String> {
        Ok(format!("{}, {}", self.sees()?, self.storage.names().join(", ")))
    }

    fn left(&self) -> Vec<String> {
        self.storage.names().into_iter().filter(|n| n.contains("snapslot")).collect()
    }

    fn others_delete(&self) -> Result<(), String> {
        let names = self.left();
        let [name] = names.as_slice() else {
            return Err(format!("a take left {names:?}"));
        };
        let by_hand = match self.storage.kind() {
            Kind::Thin | Kind::Thick | Kind::ThickInactive => format!("lvremove -y vg/{name}"),
            Kind::Zvol | Kind::Dataset => {
                format!("zfs destroy tank/vm1@{}", name.rsplit('@').next().unwrap_or(name))
            }
        };
        self.storage.hand(&by_hand);
        Ok(())
    }

    fn others_take(&self) -> Result<bool, String> {
        match self.storage.kind() {
            Kind::Thin => self.storage.hand("lvcreate -y -s -n foreign vg/vm1"),
            Kind::Zvol | Kind::Dataset => self.storage.hand("zfs snapshot tank/vm1@foreign"),
            // A thick volume that has two snapshots cannot be merged: what is then said is of the
            // storage, not of the plugin.
            Kind::Thick | Kind::ThickInactive => return Ok(false),
        }
        Ok(true)
    }

    fn of_others(&self) -> Result<String, String> {
        let names = self.storage.names().into_iter();
        let foreign: Vec<String> = names.filter(|n| n.contains("foreign")).collect();
        Ok(foreign.join(", "))
    }

    fn refused(&self) -> Option<Vec<String>> {
        Some(self.trouble.refused())
    }

    fn sight(&self) -> Result<Sight, String> {
        let d = self.bench.plugin.description();
        let place = snapslot_command::Place::parse(d.place.into(), self.storage.kind().place());
        Ok(Sight {
            place: place.map_err(|e| e.to_string())?,
            disk: None,
            commands: Some(Arc::new(self.tools())),
            copies: None,
        })
    }
}

/// The files in a directory and below it, by name, with what is in them; without databases.
fn files(directory: &Path, all: &mut String) -> std::io::Result<()> {
    let mut paths = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            files(&path, all)?;
        } else if !name.starts_with("record.sqlite") {
            all.push_str(&format!("{name}: {:032x}\n", digest(&std::fs::read(&path)?)));
        }
    }
    Ok(())
}
