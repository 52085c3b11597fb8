//! What is said is so: errors, dry runs, and what others do meanwhile.

use snapslot_engine::{Asked, EngineError, Verb};
use snapslot_slot::State;
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::Kind;
use snapslot_testkit::storage::zfs;

use crate::machines::{Image, Machine, NAME, ready};
use crate::{Act, KINDS};

/// A machine of one volume that was interrupted at its n-th command.
fn interrupted(kinds: &[Kind], act: Act, n: u64, when: When) -> Option<Machine> {
    let (machine, _) = ready(kinds, Image::None, act);
    let (verb, asked) = act.verb();
    machine.storage.crash_at(n, when);
    let _ = machine.run(verb, &asked);
    machine.storage.restart().then_some(machine)
}

#[test]
fn a_dry_run_after_a_crash_changes_nothing() {
    // Story: a dry run recovered first, and so removed, renamed and merged volumes.
    let mut refused = 0;
    for kind in KINDS {
        for act in Act::ALL {
            for n in 1.. {
                let Some(machine) = interrupted(&[kind], act, n, When::After) else { break };
                let before = machine.storage.account();
                for verb in [Verb::Take, Verb::Restore, Verb::Delete] {
                    let at = format!("{kind:?} {act:?} {n}, dry {verb:?}");
                    machine.storage.crash_at(1, When::Before);
                    let asked = Asked { dry_run: true, replace: true, ..Asked::default() };
                    match machine.run(verb, &asked) {
                        Ok(_) => panic!("{at}: it planned over what was interrupted"),
                        Err(error @ EngineError::Unrecovered { .. }) => {
                            assert_eq!((error.exit(), error.code().as_str()), (8, "unrecovered"));
                            assert!(error.to_string().contains("snapslot recover"), "{error}");
                            refused += 1;
                        }
                        Err(error) => panic!("{at}: {error}"),
                    }
                    assert!(!machine.storage.restart(), "{at}: a dry run ran something");
                    assert_eq!(machine.storage.account(), before, "{at}");
                }
                // What it told of is there to be recovered still.
                machine.engine().recover(NAME).unwrap_or_else(|e| panic!("{kind:?} {n}: {e}"));
                machine.sees().unwrap_or_else(|e| panic!("{kind:?} {act:?} {n}: {e}"));
            }
        }
    }
    println!("{refused} dry runs refused");
    assert!(refused >= 50, "only {refused} dry runs met something interrupted");
}

#[test]
fn nothing_was_changed_is_said_only_if_nothing_was() {
    // Story: every failure of recovery said that nothing was changed, whatever it had done by then.
    let (mut claims, mut others) = (0, 0);
    for kinds in
        [&[Kind::Thin][..], &[Kind::Thick], &[Kind::ThickInactive], &[Kind::Thin, Kind::Zvol]]
    {
        for act in [Act::Take, Act::Restore, Act::Consume] {
            for n in 1.. {
                if interrupted(kinds, act, n, When::Inside).is_none() {
                    break;
                }
                for fails in 1.. {
                    let Some(machine) = interrupted(kinds, act, n, When::Inside) else { break };
                    let before = machine.storage.account();
                    machine.storage.fail_at(fails);
                    let result = machine.engine().recover(NAME);
                    if !machine.storage.restart() {
                        break;
                    }
                    let at = format!("{kinds:?} {act:?} {n}, recovery fails at {fails}");
                    let Err(error) = result else { panic!("{at}: it says all is well") };
                    let says = error.to_string();
                    if says.contains("othing was changed") {
                        assert_eq!(machine.storage.account(), before, "{at}: {says}");
                        claims += 1;
                    } else {
                        assert!(matches!(error.exit(), 5 | 8), "{at}: {says}");
                        assert!(says.contains("snapslot recover"), "{at}: {says}");
                        others += 1;
                    }
                    machine.engine().recover(NAME).unwrap_or_else(|e| panic!("{at}, again: {e}"));
                    machine.sees().unwrap_or_else(|e| panic!("{at}: {e}"));
                }
            }
        }
    }
    println!("{claims} failures changed nothing and said so, {others} said what they did");
    assert!(claims >= 10 && others >= 10, "{claims} and {others}");
}

#[test]
fn a_verb_that_fails_says_what_it_left() {
    let (mut claims, mut others) = (0, 0);
    for kinds in [&[Kind::Thin][..], &[Kind::Thick], &[Kind::Zvol], &[Kind::Thick, Kind::Zvol]] {
        for act in Act::ALL {
            for n in 1.. {
                let (machine, _) = ready(kinds, Image::None, act);
                let before = machine.storage.account();
                let (verb, asked) = act.verb();
                machine.storage.fail_at(n);
                let result = machine.run(verb, &asked);
                if !machine.storage.restart() {
                    break;
                }
                let at = format!("{kinds:?} {act:?} {n}");
                match result {
                    Err(error) if error.to_string().contains("othing was changed") => {
                        assert_eq!(machine.storage.account(), before, "{at}: {error}");
                        claims += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.exit(), 8, "{at}: {error}");
                        others += 1;
                    }
                    // It was past its point of no return, and was ended.
                    Ok(_) => {}
                }
                machine.engine().recover(NAME).unwrap_or_else(|e| panic!("{at}: {e}"));
                machine.sees().unwrap_or_else(|e| panic!("{at}: {e}"));
            }
        }
    }
    println!("{claims} failures changed nothing, {others} something");
    assert!(claims >= 10 && others >= 5, "{claims} and {others}");
}

#[test]
fn a_command_that_gave_no_answer_may_have_done_its_work() {
    // Story: a rollback was ended at its deadline and had been done. It was said that nothing was
    // changed, because ZFS shows no difference.
    let (machine, _) = ready(&[Kind::Zvol], Image::None, Act::Restore);
    // One look comes before the program.
    machine.storage.zfs().fault_at(2, zfs::Fault::Hang { done: true });
    let error = machine.run(Verb::Restore, &Asked::default()).expect_err("no answer came");
    assert_eq!(machine.sees(), Ok(1));
    assert_eq!(error.exit(), 8, "{error}");
    assert!(!error.to_string().contains("nothing was changed"), "{error}");
    machine.storage.restart();
    machine.engine().recover(NAME).expect("recovered");
    assert!(matches!(machine.slot(), State::Held { .. }));
}

#[test]
fn what_others_do_with_their_snapshots_meanwhile_is_no_fault() {
    // Story: somebody's nightly snapshot came or went while a slot was filled, and the verb ended with
    // 8 and the advice to leave the machine off.
    let cases: [(Kind, &str, &str); 3] = [
        (Kind::Thin, "lvcreate -y -s -n nightly vg/vm1", "lvremove -y vg/nightly"),
        (Kind::Zvol, "zfs snapshot tank/vm1@nightly", "zfs destroy tank/vm1@nightly"),
        (Kind::Dataset, "zfs snapshot tank/vm1@nightly", "zfs destroy tank/vm1@nightly"),
    ];
    for (kind, make, remove) in cases {
        for act in [Act::Take, Act::Restore, Act::Delete] {
            for comes in [true, false] {
                // It would be newer than the slot's, and stand in ZFS's way.
                if act != Act::Take && !comes && kind != Kind::Thin {
                    continue;
                }
                let (machine, _) = ready(&[kind], Image::None, act);
                if !comes {
                    machine.storage.hand(make);
                }
                machine.storage.meddle_at(1, &[if comes { make } else { remove }]);
                let (verb, asked) = act.verb();
                let done = machine.run(verb, &asked);
                done.unwrap_or_else(|e| panic!("{kind:?} {act:?}, comes {comes}: {e}"));
                assert!(machine.storage.meddled(), "{kind:?} {act:?}: nobody came");
            }
        }
    }
}
