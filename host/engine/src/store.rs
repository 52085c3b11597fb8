//! The record of slots: which machines have one, what holds it, what was done.
//!
//! The storage is the truth about snapshots; the record adds what storage cannot say (the note,
//! the consistency, who asked and when). It sits behind [`SlotStore`], so that a fleet can keep
//! it elsewhere; here it is SQLite with a write-ahead log, safe for many processes at once.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde::Serialize;
use snapslot_disk::FileId;
use snapslot_slot::{Moment, Occupant};

/// The record failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database said no.
    #[error("{}", in_words(.0))]
    Database(#[from] rusqlite::Error),
    /// A machine could not be put into it, because its volume is another's.
    #[error("{volume} is another machine's in it")]
    Claimed {
        /// The volume.
        volume: String,
    },
    /// Its directory cannot be made.
    #[error("{path}: {source}")]
    Directory {
        /// The path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Written by a later version of this program.
    #[error("it is of version {found}, and this program knows versions up to {known}")]
    Version {
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A row that does not read.
    #[error("a row of it is damaged: {0}")]
    Damaged(String),
}

impl StoreError {
    /// Whether another process keeps it locked.
    pub fn is_busy(&self) -> bool {
        let StoreError::Database(e) = self else { return false };
        matches!(e.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
    }
}

/// What is wrong, and what helps.
fn in_words(error: &rusqlite::Error) -> String {
    let what_helps = match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "; another process has kept it locked for ten seconds: try again when that has ended"
        }
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            "; the snapshots are in the storage and not in it: with record.sqlite and what begins with that name \
             moved out of the state directory they are found again, without notes and history"
        }
        Some(ErrorCode::DiskFull) => "; make room where the state directory lies",
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure,
        ) => "; the state directory must be one that this user can write (--state-dir)",
        _ => "",
    };
    format!("{error}{what_helps}")
}

/// A machine that has a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Its name; a bare volume's is its locator.
    pub name: String,
    /// The locators of its volumes, in order.
    pub volumes: Vec<String>,
    /// What the record says holds the slot.
    pub occupant: Option<Occupant>,
    /// A mark whose snapshots are still to go: what was replaced or consumed.
    pub pending: Option<String>,
    /// What the volumes were when the slot was filled, where known.
    #[serde(skip)]
    pub seen: Vec<Seen>,
}

impl Machine {
    /// The same with those volumes only that the other one has.
    pub(crate) fn with_volumes_of(mut self, other: &Machine) -> Machine {
        let mut kept = self.volumes.iter().map(|v| other.volumes.contains(v));
        self.seen.retain(|_| kept.next().unwrap_or(true));
        self.volumes.retain(|v| other.volumes.contains(v));
        if let Some(occupant) = &mut self.occupant {
            occupant.parts.retain(|part| other.volumes.contains(&part.volume));
        }
        self
    }
}

/// Which volume it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its file.
    pub file: Option<FileId>,
    /// The storage's own identity of it.
    pub identity: Option<String>,
}

/// An operation, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct OperationRecord {
    /// Its number on this host.
    pub operation: u64,
    /// The machine's name.
    pub machine: String,
    /// What was asked.
    pub verb: String,
    /// When it began.
    pub started: Moment,
    /// When it ended, if it did.
    pub finished: Option<Moment>,
    /// `done`, or an error's code; none while it runs or if it was killed.
    pub outcome: Option<String>,
    /// The process that ran it.
    pub process: u32,
}

/// Where the record is kept. Narrow on purpose.
pub trait SlotStore {
    /// The machine of this name.
    fn machine(&self, name: &str) -> Result<Option<Machine>, StoreError>;
    /// The machine to which this volume belongs.
    fn machine_of(&self, volume: &str) -> Result<Option<Machine>, StoreError>;
    /// All machines, by name.
    fn machines(&self) -> Result<Vec<Machine>, StoreError>;
    /// Records a machine; false if the name or a volume is taken.
    fn enable(&self, name: &str, volumes: &[String]) -> Result<bool, StoreError>;
    /// Forgets a machine. Its history stays.
    fn disable(&self, name: &str) -> Result<(), StoreError>;
    /// Records what holds the slot, a mark whose snapshots are still to go, and with both that an operation is done.
    /// Durable when it returns.
    fn set_occupant(
        &self,
        name: &str,
        occupant: Option<&Occupant>,
        pending: Option<&str>,
        seen: &[Seen],
        done: Option<(u64, Moment)>,
    ) -> Result<(), StoreError>;
    /// Records that an operation begins; returns its number.
    fn begin(&self, machine: &str, verb: &str, started: Moment) -> Result<u64, StoreError>;
    /// Records how an operation ended.
    fn end(&self, operation: u64, finished: Moment, outcome: &str) -> Result<(), StoreError>;
    /// The operation that was begun last and has not ended.
    fn running(&self, machine: &str) -> Result<Option<OperationRecord>, StoreError>;
    /// What was done, newest first.
    fn history(&self, machine: Option<&str>, most: u32)
    -> Result<Vec<OperationRecord>, StoreError>;
}

const VERSION: i64 = 2;
/// Another process holds the database for milliseconds; a stopped one must not hang us for ever.
const WAIT: Duration = Duration::from_secs(10);
/// Pages of the log after which it is written back: ten operations or so. Reading them again costs
/// a tenth of a millisecond, writing them back two flushes.
const LOG_PAGES: u32 = 64;

/// The record in a SQLite file.
pub struct SqliteStore {
    db: Connection,
}

impl SqliteStore {
    /// Opens `record.sqlite` in this directory, making both where needed.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|source| {
            StoreError::Directory { path: directory.display().to_string(), source }
        })?;
        let db = Connection::open(directory.join("record.sqlite"))?;
        db.busy_timeout(WAIT)?;
        let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if found > VERSION {
            return Err(StoreError::Version { found, known: VERSION });
        }
        if found == 1 {
            db.execute_batch("BEGIN IMMEDIATE")?;
            // Another process may have been quicker.
            let now: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if now == 1 {
                db.execute_batch(
                    "ALTER TABLE volume ADD COLUMN identity TEXT; PRAGMA user_version = 2;",
                )?;
            }
            db.execute_batch("COMMIT")?;
        }
        if found < 1 {
            // Two processes may be here at once: whoever comes second finds it done.
            log_ahead(&db)?;
            db.execute_batch(
                "BEGIN IMMEDIATE;
                 CREATE TABLE IF NOT EXISTS machine (
                     name TEXT PRIMARY KEY, occupant TEXT, pending TEXT) STRICT;
                 CREATE TABLE IF NOT EXISTS volume (
                     locator TEXT PRIMARY KEY,
                     machine TEXT NOT NULL REFERENCES machine(name) ON DELETE CASCADE,
                     position INTEGER NOT NULL, device INTEGER, inode INTEGER,
                     identity TEXT) STRICT;
                 CREATE TABLE IF NOT EXISTS operation (
                     id INTEGER PRIMARY KEY AUTOINCREMENT, machine TEXT NOT NULL,
                     verb TEXT NOT NULL, started INTEGER NOT NULL, started_ns INTEGER NOT NULL,
                     finished INTEGER, finished_ns INTEGER, outcome TEXT,
                     process INTEGER NOT NULL) STRICT;
                 CREATE INDEX IF NOT EXISTS operation_machine ON operation(machine, id);
                 PRAGMA user_version = 2;
                 COMMIT;",
            )?;
        }
        // Commits reach the disk before they return, but for the bookkeeping of `begin`.
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        // The first process to come reads the whole log again: it is kept short.
        db.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
        // The log stays for the next process: tidying it up at every exit costs three flushes.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        Ok(SqliteStore { db })
    }

    fn read_machine(&self, name: &str) -> Result<Option<Machine>, StoreError> {
        let sql = "SELECT occupant, pending FROM machine WHERE name = ?1";
        let found: Option<(Option<String>, Option<String>)> = self
            .db
            .prepare_cached(sql)?
            .query_row([name], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((occupant, pending)) = found else { return Ok(None) };
        let occupant = match occupant {
            None => None,
            Some(text) => {
                Some(serde_json::from_str(&text).map_err(|e| StoreError::Damaged(e.to_string()))?)
            }
        };
        let sql = "SELECT locator, device, inode, identity FROM volume WHERE machine = ?1 ORDER BY position";
        let mut query = self.db.prepare_cached(sql)?;
        let rows = query.query_map([name], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, Option<i64>>(1)?,
                row.get::<_, Option<i64>>(2)?,
                row.get::<_, Option<String>>(3)?,
            ))
        })?;
        let (mut volumes, mut seen) = (Vec::new(), Vec::new());
        for row in rows {
            let (locator, device, inode, identity) = row?;
            volumes.push(locator);
            let file = device.zip(inode).map(|(device, inode)| FileId {
                device: device.cast_unsigned(),
                inode: inode.cast_unsigned(),
            });
            seen.push(Seen { file, identity });
        }
        Ok(Some(Machine { name: name.to_owned(), volumes, occupant, pending, seen }))
    }
}

/// Gives a new record its write-ahead log. Here SQLite answers *busy* without waiting, however long the
/// time-out: it goes from a reader's lock to a writer's, and two that do so at once would wait for each
/// other. Each lets go when it is refused, so asking again is all it takes.
fn log_ahead(db: &Connection) -> Result<(), StoreError> {
    let begun = Instant::now();
    loop {
        match db.pragma_update(None, "journal_mode", "WAL") {
            Err(e)
                if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && begun.elapsed() < WAIT =>
            {
                std::thread::sleep(Duration::from_micros(
                    500 + u64::from(std::process::id() % 64) * 50,
                ));
            }
            result => return Ok(result?),
        }
    }
}

impl SqliteStore {
    fn ended(&self, operation: u64, finished: Moment, outcome: &str) -> Result<(), StoreError> {
        let sql =
            "UPDATE operation SET finished = ?2, finished_ns = ?3, outcome = ?4 WHERE id = ?1";
        let (seconds, nanoseconds) = (finished.seconds, finished.nanoseconds);
        self.db.execute(sql, params![operation.cast_signed(), seconds, nanoseconds, outcome])?;
        Ok(())
    }
}

impl SlotStore for SqliteStore {
    fn machine(&self, name: &str) -> Result<Option<Machine>, StoreError> {
        self.read_machine(name)
    }

    fn machine_of(&self, volume: &str) -> Result<Option<Machine>, StoreError> {
        let sql = "SELECT machine FROM volume WHERE locator = ?1";
        let name: Option<String> =
            self.db.prepare_cached(sql)?.query_row([volume], |row| row.get(0)).optional()?;
        name.map_or(Ok(None), |name| self.read_machine(&name))
    }

    fn machines(&self) -> Result<Vec<Machine>, StoreError> {
        let mut query = self.db.prepare_cached("SELECT name FROM machine ORDER BY name")?;
        let names = query.query_map([], |row| row.get::<_, String>(0))?;
        let names: Vec<String> = names.collect::<Result<_, _>>()?;
        Ok(names
            .iter()
            .map(|name| self.read_machine(name))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    fn enable(&self, name: &str, volumes: &[String]) -> Result<bool, StoreError> {
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let insert = || -> Result<bool, StoreError> {
            let sql = "INSERT OR IGNORE INTO machine (name) VALUES (?1)";
            if self.db.execute(sql, [name])? == 0 {
                return Ok(false);
            }
            let sql =
                "INSERT OR IGNORE INTO volume (locator, machine, position) VALUES (?1, ?2, ?3)";
            for (position, volume) in volumes.iter().enumerate() {
                if self.db.execute(sql, params![volume, name, position as i64])? == 0 {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let result = insert();
        let end = if matches!(result, Ok(true)) { "COMMIT" } else { "ROLLBACK" };
        self.db.execute_batch(end)?;
        result
    }

    fn disable(&self, name: &str) -> Result<(), StoreError> {
        self.db.execute("DELETE FROM machine WHERE name = ?1", [name])?;
        Ok(())
    }

    fn set_occupant(
        &self,
        name: &str,
        occupant: Option<&Occupant>,
        pending: Option<&str>,
        seen: &[Seen],
        done: Option<(u64, Moment)>,
    ) -> Result<(), StoreError> {
        let text = occupant.and_then(|o| serde_json::to_string(o).ok());
        self.db.execute_batch("BEGIN IMMEDIATE")?;
        let update = || -> Result<(), StoreError> {
            let sql = "UPDATE machine SET occupant = ?2, pending = ?3 WHERE name = ?1";
            self.db.execute(sql, params![name, text, pending])?;
            let sql = "UPDATE volume SET device = ?3, inode = ?4, identity = ?5
                 WHERE machine = ?1 AND position = ?2";
            for (position, one) in seen.iter().enumerate() {
                let (device, inode) =
                    one.file.map(|f| (f.device.cast_signed(), f.inode.cast_signed())).unzip();
                self.db
                    .execute(sql, params![name, position as i64, device, inode, one.identity])?;
            }
            match done {
                Some((operation, finished)) => self.ended(operation, finished, "done"),
                None => Ok(()),
            }
        };
        let result = update();
        self.db.execute_batch(if result.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
        result
    }

    fn begin(&self, machine: &str, verb: &str, started: Moment) -> Result<u64, StoreError> {
        // Bookkeeping: the journal is what survives a power cut, so no flush is spent here.
        self.db.pragma_update(None, "synchronous", "NORMAL")?;
        let sql = "INSERT INTO operation (machine, verb, started, started_ns, process)
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        let values =
            params![machine, verb, started.seconds, started.nanoseconds, std::process::id()];
        let inserted = self.db.execute(sql, values);
        self.db.pragma_update(None, "synchronous", "FULL")?;
        inserted?;
        Ok(self.db.last_insert_rowid().cast_unsigned())
    }

    fn end(&self, operation: u64, finished: Moment, outcome: &str) -> Result<(), StoreError> {
        self.db.pragma_update(None, "synchronous", "NORMAL")?;
        let updated = self.ended(operation, finished, outcome);
        self.db.pragma_update(None, "synchronous", "FULL")?;
        updated
    }

    fn running(&self, machine: &str) -> Result<Option<OperationRecord>, StoreError> {
        let last = self.history(Some(machine), 1)?.into_iter().next();
        Ok(last.filter(|o| o.finished.is_none()))
    }

    fn history(
        &self,
        machine: Option<&str>,
        most: u32,
    ) -> Result<Vec<OperationRecord>, StoreError> {
        let sql = "SELECT id, machine, verb, started, started_ns, finished, finished_ns, outcome,
                          process
                   FROM operation WHERE ?1 IS NULL OR machine = ?1 ORDER BY id DESC LIMIT ?2";
        let mut query = self.db.prepare_cached(sql)?;
        let rows = query.query_map(params![machine, most], |row| {
            let finished: Option<i64> = row.get(5)?;
            let finished_ns: Option<u32> = row.get(6)?;
            Ok(OperationRecord {
                operation: row.get::<_, i64>(0)?.cast_unsigned(),
                machine: row.get(1)?,
                verb: row.get(2)?,
                started: Moment { seconds: row.get(3)?, nanoseconds: row.get(4)? },
                finished: finished
                    .map(|seconds| Moment { seconds, nanoseconds: finished_ns.unwrap_or(0) }),
                outcome: row.get(7)?,
                process: row.get(8)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Story: of two first commands ever, started together, one failed with "database is locked": see
    /// [`log_ahead`]. Before the mending some of these rounds failed each time.
    #[test]
    fn a_new_record_is_made_by_many_at_once() {
        const TOGETHER: usize = 8;
        for round in 0..60 {
            let directory = tempfile::tempdir().expect("room");
            let ready = Barrier::new(TOGETHER);
            let made: Vec<Result<bool, StoreError>> = std::thread::scope(|scope| {
                let one = |n: usize| {
                    let (directory, ready) = (directory.path(), &ready);
                    scope.spawn(move || {
                        ready.wait();
                        let store = SqliteStore::open(directory)?;
                        store.enable(&format!("vm{n}"), &[format!("qcow2:/vm{n}.qcow2")])
                    })
                };
                let all: Vec<_> = (0..TOGETHER).map(one).collect();
                all.into_iter().map(|t| t.join().expect("no panic")).collect()
            });
            for result in made {
                assert!(result.unwrap_or_else(|e| panic!("round {round}: {e}")), "round {round}");
            }
            let store = SqliteStore::open(directory.path()).expect("a record");
            assert_eq!(store.machines().expect("a record").len(), TOGETHER);
        }
    }
}
