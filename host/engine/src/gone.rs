//! Machines whose volumes are gone: their slot is emptied, and they are forgotten.

use snapslot_slot::{Refusal, Request, State, decide};

use crate::engine::{Engine, refused, share};
use crate::error::EngineError;
use crate::operate::{Asked, Done};
use crate::status::Measure;
use crate::store::Machine;

impl Engine {
    /// Removes a slot; only an empty one. Volumes that are gone hold nothing.
    pub fn disable(&self, text: &str) -> Result<Machine, EngineError> {
        let (machine, known) = self.resolve(text)?;
        // Of what is gone nobody can be taking a snapshot.
        let there: Vec<String> =
            machine.volumes.iter().filter(|v| !self.is_missing_file(v)).cloned().collect();
        let opened = self.shared(&there).unwrap_or_default();
        let _shares = share(&opened)?;
        let status_of = |machine: &Machine| {
            self.status_of(machine, true, Measure::Not, &self.looks()).map(|status| status.slot)
        };
        let state = match status_of(&machine) {
            _ if !known => State::Disabled,
            Ok(state) => state,
            Err(error) if error.is_not_found() => match self.without_gone(&machine)? {
                None => return Err(error),
                Some(rest) if rest.volumes.is_empty() => State::Empty,
                Some(rest) => status_of(&rest)?,
            },
            Err(error) => return Err(error),
        };
        decide(&state, Request::Disable).map_err(|r| refused(&machine.name, r))?;
        self.store.disable(&machine.name)?;
        let now = self.now();
        let operation = self.store.begin(&machine.name, "disable", now)?;
        self.store.end(operation, now, "done")?;
        Ok(machine)
    }

    /// Empties the record's slot of a machine whose volumes are all gone.
    pub(crate) fn forget(&self, machine: &Machine, asked: &Asked) -> Result<Done, EngineError> {
        if machine.occupant.is_none() && machine.pending.is_none() {
            return Err(refused(&machine.name, Refusal::Empty));
        }
        if !asked.dry_run {
            self.store.set_occupant(&machine.name, None, None, &[], None)?;
        }
        Ok(Done::nothing(&machine.name))
    }

    /// The machine with those of its volumes that are there; none if all are.
    pub(crate) fn without_gone(&self, machine: &Machine) -> Result<Option<Machine>, EngineError> {
        let mut rest = Machine { volumes: Vec::new(), seen: Vec::new(), ..machine.clone() };
        for (volume, seen) in machine.volumes.iter().zip(&machine.seen) {
            if !self.is_gone(volume)? {
                rest.volumes.push(volume.clone());
                rest.seen.push(seen.clone());
            }
        }
        if let Some(occupant) = &mut rest.occupant {
            occupant.parts.retain(|part| rest.volumes.contains(&part.volume));
        }
        Ok((rest.volumes.len() < machine.volumes.len()).then_some(rest))
    }

    /// Whether there is no such volume, for certain. That it cannot be looked at says nothing: its
    /// group may be missing, its pool not imported.
    fn is_gone(&self, volume: &str) -> Result<bool, EngineError> {
        let locator = self.located(volume)?;
        if locator.path().is_some() {
            return Ok(self.is_missing_file(volume));
        }
        match self.look(&locator) {
            Ok(_) => Ok(false),
            Err(error) if error.is_not_found() => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn is_missing_file(&self, volume: &str) -> bool {
        let located = self.located(volume);
        located.is_ok_and(|l| l.path().is_some_and(|p| matches!(p.try_exists(), Ok(false))))
    }
}
