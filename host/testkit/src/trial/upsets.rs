//! Every call going wrong in every way, once and from then on for ever.
//!
//! | what goes wrong | what must hold |
//! |---|---|
//! | it is told: an error number, a short read, a short write, a flush that fails | the operation says that it failed; what is on the disk is as a crash may leave it; recovery leads to before or after |
//! | it is not told: a stale read, a write that went elsewhere, a flipped bit | whoever has no second copy cannot survive that. The operation ends, well or not; the image is then answered for or refused, recovery ends, and nothing breaks down |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use snapslot_disk::sim::upset::{Mishap, Upset};
use snapslot_disk::sim::{Event, Fate, Files, World};

use super::{Depth, Judge, Tally, Trial};
use crate::crash::{Choice, History};
use crate::rng::Rng;
use crate::sim_host::{IMAGE, carry_out, prepare, recover};

impl<J: Judge> Trial<'_, J> {
    /// Makes every call go wrong.
    pub fn upsets(&self, depth: &Depth) -> Result<Tally, String> {
        let seed = depth.states.seed;
        let mut tally = Tally::default();
        let mut rng = Rng::new(seed);
        for at in (0..self.calls).step_by(depth.upset_every) {
            for upset in Upset::ALL {
                for for_ever in [false, true] {
                    let (world, result) = self.upset(Mishap { at, for_ever, upset });
                    // What cannot befall this call befalls none.
                    if world.upsets() == 0 {
                        continue;
                    }
                    let tell = |e: String| self.told(seed, &world, at, upset, for_ever, &e);
                    let result = result.map_err(tell)?;
                    let judged = match upset.is_told() {
                        true if result.is_ok() => {
                            Err("the operation says that it succeeded".to_owned())
                        }
                        true => {
                            tally.faults += 1;
                            self.after_upset(&world, &mut rng)
                        }
                        false => {
                            tally.lies += 1;
                            self.after_lie(&world, &mut rng)
                        }
                    };
                    tally.after_faults += judged.map_err(tell)?;
                }
            }
        }
        self.upset_recovery(depth, &mut rng, &mut tally)?;
        Ok(tally)
    }

    fn told(
        &self,
        seed: u64,
        world: &World,
        at: usize,
        upset: Upset,
        for_ever: bool,
        what: &str,
    ) -> String {
        let history = History::new(self.start.clone(), world.log());
        let how = if for_ever { " and all after it" } else { "" };
        format!("seed {seed}, {upset:?} at call {at}{how}: {what}\n{}", history.tell())
    }

    /// Runs the operation with this mishap. The outer error: something broke down.
    fn upset(&self, mishap: Mishap) -> (World, Result<Result<(), String>, String>) {
        let world = World::of(self.start.clone());
        // Up to the plan nothing is written, so that what goes wrong later has the same plan.
        let plans = mishap.at < self.planning;
        let at = if plans { mishap.at } else { mishap.at - self.planning };
        world.mishap(Some(Mishap { at, ..mishap }));
        let result = quietly(|| match plans {
            true => {
                let plan = prepare(self.planner, &world, self.goal).map_err(|e| e.to_string())?;
                carry_out(&world, &plan).map_err(|e| e.to_string())
            }
            false => carry_out(&world, &self.plan).map_err(|e| e.to_string()),
        });
        world.mishap(None);
        (world, result)
    }

    /// What failed may be on the disk or not; with all kept it is a restart without a crash.
    fn after_upset(&self, world: &World, rng: &mut Rng) -> Result<usize, String> {
        let all = left(world, rng);
        for after in &all {
            self.judge(after)?;
        }
        Ok(all.len())
    }

    /// Recovery ends, and the image is looked at or refused.
    fn after_lie(&self, world: &World, rng: &mut Rng) -> Result<usize, String> {
        let all = left(world, rng);
        for after in &all {
            let world = World::of(after.clone());
            quietly(|| {
                let _ = recover(&world);
                let _ = self.planner.inspect(Arc::new(world.disk(IMAGE)));
                // And a second time nothing new happens.
                let once = world.contents();
                if recover(&world).is_ok()
                    && recover(&world).is_ok()
                    && world.contents().len() > once.len()
                {
                    return Err("recovery leaves more with every time".to_owned());
                }
                Ok(())
            })??;
        }
        Ok(all.len())
    }

    /// Recovery that goes wrong at each of its calls, and is then done again.
    fn upset_recovery(
        &self,
        depth: &Depth,
        rng: &mut Rng,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let log = self.history.log();
        let flushes: Vec<usize> = (0..log.len())
            .filter(|i| matches!(&log[*i], Event::Flush { file } if file == IMAGE))
            .collect();
        for flush in flushes {
            let crashed = self.history.state(&Choice { boundary: flush + 1, pending: Vec::new() });
            let whole = World::of(crashed.clone());
            recover(&whole)?;
            for at in (0..whole.calls()).step_by(depth.upset_every) {
                for upset in Upset::ALL {
                    for for_ever in [false, true] {
                        let world = World::of(crashed.clone());
                        world.mishap(Some(Mishap { at, for_ever, upset }));
                        let result = quietly(|| recover(&world));
                        if world.upsets() == 0 {
                            continue;
                        }
                        world.mishap(None);
                        let how = if for_ever { " and all after it" } else { "" };
                        let tell = |e: String| {
                            format!(
                                "after event {flush}, recovery with {upset:?} at its call {at}{how}: {e}"
                            )
                        };
                        let result = result.map_err(tell)?;
                        let judged = match upset.is_told() {
                            true if result.is_ok() => Err("it says that it succeeded".to_owned()),
                            true => {
                                tally.faults += 1;
                                self.after_upset(&world, rng)
                            }
                            false => {
                                tally.lies += 1;
                                self.after_lie(&world, rng)
                            }
                        };
                        tally.after_faults += judged.map_err(tell)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What may be left of a run that ended early: all of it, none of what is pending, and two halves.
fn left(world: &World, rng: &mut Rng) -> Vec<Files> {
    let upto = world.log().len();
    let seed = rng.next_u64();
    let fates: [&dyn Fn(usize) -> Fate; 4] = [
        &|_| Fate::Kept,
        &|_| Fate::Lost,
        &|i| if Rng::new(seed ^ i as u64).coin() { Fate::Kept } else { Fate::Lost },
        &|i| if Rng::new(!seed ^ i as u64).coin() { Fate::Kept } else { Fate::Lost },
    ];
    fates.into_iter().map(|fate| world.crash(upto, fate).contents()).collect()
}

/// What breaks down is told with what led there.
fn quietly<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let words = (panic.downcast_ref::<String>().map(String::as_str))
            .or_else(|| panic.downcast_ref::<&str>().copied());
        format!("it breaks down: {}", words.unwrap_or("without a word"))
    })
}
