//! The single-slot rule.

use crate::types::{Refusal, Request, State};

/// Whether a slot in this state may be asked this. Pure.
///
/// One snapshot at a time: a held slot must be emptied before it is filled again, or the take
/// must say that it replaces. A drifted slot can be emptied, which forgets the record of a
/// snapshot that is gone; nothing else is done to it.
pub fn decide(state: &State, request: Request) -> Result<(), Refusal> {
    use Request as R;
    use State as S;
    match (state, request) {
        (S::Taking { running } | S::Restoring { running } | S::Deleting { running }, _) => {
            Err(Refusal::Busy { running: running.clone() })
        }
        (S::Disabled, R::Enable) => Ok(()),
        (S::Disabled, _) => Err(Refusal::Disabled),
        (_, R::Enable) => Err(Refusal::AlreadyEnabled),
        (S::Drifted { .. }, R::Delete) => Ok(()),
        (S::Drifted { drift, .. }, _) => Err(Refusal::Drifted { drift: *drift }),
        (S::Empty, R::Disable | R::Take { .. }) => Ok(()),
        (S::Empty, R::Restore { .. } | R::Delete) => Err(Refusal::Empty),
        (S::Held { .. }, R::Take { replace: true } | R::Restore { .. } | R::Delete) => Ok(()),
        (S::Held { occupant }, R::Disable | R::Take { replace: false }) => {
            Err(Refusal::Occupied { occupant: Box::new(occupant.clone()) })
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the rule is what the contract says, for every state and request.

    use super::*;
    use crate::types::{Consistency, Drift, Moment, Occupant, Running};

    fn states() -> Vec<State> {
        let taken = Moment { seconds: 1, nanoseconds: 0 };
        let occupant = Occupant {
            mark: "0123456789abcdef".to_owned(),
            taken,
            note: None,
            consistency: Consistency::Offline,
            parts: Vec::new(),
        };
        let running = Running { operation: 1, since: taken, process: Some(1) };
        vec![
            State::Disabled,
            State::Empty,
            State::Held { occupant },
            State::Taking { running: running.clone() },
            State::Restoring { running: running.clone() },
            State::Deleting { running },
            State::Drifted { drift: Drift::SnapshotGone, recorded: None },
        ]
    }

    #[test]
    fn the_whole_table() {
        let requests = [
            Request::Enable,
            Request::Disable,
            Request::Take { replace: false },
            Request::Take { replace: true },
            Request::Restore { consume: false },
            Request::Restore { consume: true },
            Request::Delete,
        ];
        // One row a state, one letter a request: y yes, a already enabled, d disabled,
        // o occupied, e empty, b busy, x drifted.
        let table = ["ydddddd", "ayyyeee", "aooyyyy", "bbbbbbb", "bbbbbbb", "bbbbbbb", "axxxxxy"];
        for (state, row) in states().iter().zip(table) {
            for (request, expected) in requests.iter().zip(row.chars()) {
                let letter = match decide(state, *request) {
                    Ok(()) => 'y',
                    Err(Refusal::AlreadyEnabled) => 'a',
                    Err(Refusal::Disabled) => 'd',
                    Err(Refusal::Occupied { .. }) => 'o',
                    Err(Refusal::Empty) => 'e',
                    Err(Refusal::Busy { .. }) => 'b',
                    Err(Refusal::Drifted { .. }) => 'x',
                    Err(Refusal::Policy { .. }) => 'p',
                };
                assert_eq!(letter, expected, "{} asked {request:?}", state.word());
            }
        }
    }

    #[test]
    fn a_held_slot_is_never_filled_without_being_told_to() {
        for state in states() {
            let filled = decide(&state, Request::Take { replace: false }).is_ok();
            assert!(!(filled && state.occupant().is_some()));
        }
    }
}
