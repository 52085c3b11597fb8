//! A power cut at every event, and at every event of the recovery from it.

use snapslot_disk::sim::{Files, World};

use super::{Depth, Judge, Tally, Trial, keep};
use crate::crash::{Arrived, Choice, Count, History};
use crate::sim_host::{IMAGE, Recovered};

impl<J: Judge> Trial<'_, J> {
    /// Crashes the operation everywhere.
    pub fn power_cuts(&self, depth: &Depth) -> Result<Tally, String> {
        let mut tally = Tally::default();
        // Redone states at this boundary so far.
        let mut here = (0, 0);
        let states = self.history.visit(&depth.states, |choice, crashed| {
            tally.states.distinct += 1;
            let Some((did, world)) =
                self.judged(choice, &crashed, depth, |crashed| self.judge(crashed))?
            else {
                return Ok(());
            };
            let mut looks = depth.opinion_every > 0
                && tally.states.distinct.is_multiple_of(depth.opinion_every);
            if did == Recovered::Redone {
                looks |= depth.opinion_every > 0 && tally.redone == 0;
                tally.redone += 1;
                here = if here.0 == choice.boundary {
                    (here.0, here.1 + 1)
                } else {
                    (choice.boundary, 1)
                };
                if here.1 <= depth.nested_first || here.1 % depth.nested_every == 0 {
                    self.judged(choice, &crashed, depth, |crashed| {
                        self.inside_recovery(crashed, &world, depth, &mut tally)
                    })?;
                }
            }
            match looks {
                true => {
                    tally.opinions += 1;
                    self.judged(choice, &crashed, depth, |crashed| self.opinion(crashed, &world))
                }
                false => Ok(()),
            }
        })?;
        tally.states = states;
        Ok(tally)
    }

    /// What a look at a crash gives; what is wrong is told with the smallest crash that shows it.
    fn judged<T>(
        &self,
        choice: &Choice,
        crashed: &Files,
        depth: &Depth,
        look: impl FnOnce(&Files) -> Result<T, String>,
    ) -> Result<T, String> {
        look(crashed).map_err(|fault| {
            let seed = depth.states.seed;
            let (choice, fault) = self.shrunk(choice, fault);
            let kept = keep(self.before, &self.history.state(&choice));
            format!(
                "seed {seed}, crashed {choice}:\n  {fault}\n  the history was\n{}{kept}",
                self.history.tell()
            )
        })
    }

    fn opinion(&self, crashed: &Files, settled: &World) -> Result<(), String> {
        let settled = settled.bytes(IMAGE).unwrap_or_default();
        let crashed = World::of(crashed.clone()).files();
        let opinion = self.judge.second_opinion(&crashed, &settled);
        opinion.map_err(|e| format!("second opinion: {e}"))
    }

    /// A crash at every event of a recovery. Much of what it leaves was judged before: recovery does what the
    /// operation did.
    fn inside_recovery(
        &self,
        crashed: &Files,
        world: &World,
        depth: &Depth,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let inside = History::new(crashed.clone(), world.log());
        let mut distinct = 0;
        let count = inside.visit(&depth.nested, |choice, again| {
            let judged = self.judge(&again).map_err(|e| {
                format!("crashed again inside recovery, {choice}: {e}\n{}", inside.tell())
            })?;
            distinct += usize::from(judged.is_some());
            Ok::<_, String>(())
        })?;
        tally.nested_from += 1;
        tally.nested += Count { distinct, ..count };
        Ok(())
    }

    /// The same crash with as little lost as still shows a fault: which writes matter is what one wants to
    /// know first. Gives also what is wrong then.
    fn shrunk(&self, choice: &Choice, fault: String) -> (Choice, String) {
        let (mut least, mut fault) = (choice.clone(), fault);
        for i in 0..least.pending.len() {
            if least.pending[i].1 == Arrived::Kept {
                continue;
            }
            let mut less = least.clone();
            less.pending[i].1 = Arrived::Kept;
            if let Err(still) = self.judge_anew(&self.history.state(&less)) {
                (least, fault) = (less, still);
            }
        }
        (least, fault)
    }
}
