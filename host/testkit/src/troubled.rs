//! What can go wrong with a command, put between whoever runs it and what answers.
//!
//! Trouble is counted in commands, looks too, and comes once or from then on for ever.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapslot_command::{Answer, Command, Executor, RunError};

/// What goes wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It is not run, complains and fails.
    Fails,
    /// It does nothing, hangs, and is ended at its deadline.
    Hangs,
    /// A signal ends it before it did anything.
    Dies,
    /// It does its work, then hangs, and is ended at its deadline.
    DoneThenHangs,
    /// It does its work, then a signal ends it.
    DoneThenDies,
    /// It does its work, and its exit code says otherwise.
    DoneThenFails,
    /// The program is not on this machine.
    Missing,
    /// It does its work and says nothing.
    Silent,
    /// It does its work and says something else.
    Rubbish,
    /// It does its work and says bytes that are no text.
    NotText,
    /// It does its work, and says so much that it is ended.
    Flood,
    /// It does its work, and says as much as is taken in, of which nothing was asked for.
    Huge,
    /// It does its work, and its answer has a column more, as a later release's may have.
    ExtraColumn,
    /// It does its work, and what it says for people is in another language.
    Localised,
}

impl Trouble {
    /// All of it, from what disturbs least on.
    pub const ALL: [Trouble; 14] = [
        Trouble::Fails,
        Trouble::Hangs,
        Trouble::Dies,
        Trouble::Missing,
        Trouble::DoneThenHangs,
        Trouble::DoneThenDies,
        Trouble::DoneThenFails,
        Trouble::Silent,
        Trouble::Rubbish,
        Trouble::NotText,
        Trouble::Flood,
        Trouble::Huge,
        Trouble::ExtraColumn,
        Trouble::Localised,
    ];
}

/// The longest answer that is taken in, as the contract has it.
const OUTPUT_MAX: usize = 8 << 20;

#[derive(Debug, Default)]
struct State {
    ran: u64,
    trouble: Option<(u64, bool, Trouble)>,
}

/// Something that runs commands, and makes trouble when it was told to.
pub struct Troubled {
    inner: Arc<dyn Executor>,
    state: Mutex<State>,
    /// Undisturbed commands that said no.
    refused: Mutex<Vec<String>>,
}

impl Troubled {
    /// No trouble yet.
    pub fn new(inner: Arc<dyn Executor>) -> Troubled {
        Troubled { inner, state: Mutex::default(), refused: Mutex::default() }
    }

    /// The commands so far that were not disturbed and said no all the same, with what they said.
    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn undisturbed(&self, command: &Command) -> Result<Answer, RunError> {
        let said = self.inner.run(command)?;
        if said.exit_code != 0 {
            let words = String::from_utf8_lossy(&said.errors).trim().to_owned();
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            refused.push(format!("{command}: {words}"));
        }
        Ok(said)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes trouble at the n-th coming command, counted from 1, or from it on.
    pub fn at(&self, n: u64, for_ever: bool, trouble: Trouble) {
        *self.state() = State { ran: 0, trouble: Some((n, for_ever, trouble)) };
    }

    /// All is well from here on. Gives whether the trouble came.
    pub fn over(&self) -> bool {
        let State { ran, trouble } = std::mem::take(&mut *self.state());
        trouble.is_some_and(|(n, ..)| ran >= n)
    }

    fn now(&self) -> Option<Trouble> {
        let mut state = self.state();
        state.ran += 1;
        let (n, for_ever, trouble) = state.trouble?;
        (state.ran == n || (for_ever && state.ran > n)).then_some(trouble)
    }
}

impl Executor for Troubled {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let Some(trouble) = self.now() else { return self.undisturbed(command) };
        let deadline = || RunError::Deadline {
            command: command.to_string(),
            seconds: command.deadline.as_secs(),
        };
        let killed = || RunError::Killed { command: command.to_string(), signal: 9 };
        let fails = || Answer {
            exit_code: 5,
            output: Vec::new(),
            errors: b"  Something is wrong.\n".to_vec(),
        };
        match trouble {
            Trouble::Fails => return Ok(fails()),
            Trouble::Hangs => return Err(deadline()),
            Trouble::Dies => return Err(killed()),
            Trouble::Missing => {
                let why = "is not installed".to_owned();
                return Err(RunError::Missing { program: command.program.clone(), why });
            }
            _ => {}
        }
        let said = self.inner.run(command)?;
        match trouble {
            Trouble::DoneThenHangs => Err(deadline()),
            Trouble::DoneThenDies => Err(killed()),
            Trouble::DoneThenFails => Ok(fails()),
            Trouble::Silent => Ok(Answer { output: Vec::new(), errors: Vec::new(), ..said }),
            Trouble::Rubbish => Ok(Answer { output: b"{\"what\": [1,\n\t\n".to_vec(), ..said }),
            Trouble::NotText => Ok(Answer { output: vec![0xff, 0xfe, 0, 0x80, b'\n'], ..said }),
            Trouble::Flood => {
                Err(RunError::TooMuch { command: command.to_string(), limit: OUTPUT_MAX })
            }
            Trouble::Huge => Ok(Answer { output: vec![b'x'; OUTPUT_MAX], ..said }),
            Trouble::ExtraColumn => Ok(Answer { output: with_a_column_more(&said.output), ..said }),
            _ => Ok(Answer { errors: localised(&said.errors), ..said }),
        }
    }
}

/// JSON's objects get a member more, lines of columns a column.
fn with_a_column_more(output: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(output);
    match text.trim_start().starts_with(['{', '[']) {
        // In front, so that what follows stays as it is; LVM's rows are objects of strings.
        true => text.replace("{\"", "{\"new_in_a_later_release\":\"1\",\"").into_bytes(),
        false => text.lines().map(|line| format!("{line}\tnew\n")).collect::<String>().into_bytes(),
    }
}

/// Another language, as far as a program that reads the words is concerned.
fn localised(errors: &[u8]) -> Vec<u8> {
    match errors {
        [] => Vec::new(),
        _ => "  Etwas ist schiefgegangen: Gerät oder Ressource belegt («größer»)\n"
            .as_bytes()
            .to_vec(),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: trouble comes when it was told to, once or for ever, and does what its name says.

    use std::time::Duration;

    use super::*;

    struct Counting(Mutex<u32>);

    impl Executor for Counting {
        fn run(&self, _: &Command) -> Result<Answer, RunError> {
            *self.0.lock().expect("no panic") += 1;
            let output = br#"{"report":[{"lv":[{"lv_name":"x"}]}]}"#.to_vec();
            Ok(Answer { exit_code: 0, output, errors: b"words\n".to_vec() })
        }
    }

    #[test]
    fn each_does_what_its_name_says() {
        let command = Command {
            program: "lvs".to_owned(),
            arguments: Vec::new(),
            input: None,
            deadline: Duration::from_secs(3),
        };
        for trouble in Trouble::ALL {
            for for_ever in [false, true] {
                let counting = Arc::new(Counting(Mutex::new(0)));
                let troubled = Troubled::new(counting.clone());
                let sound = troubled.run(&command).expect("an answer");
                troubled.at(2, for_ever, trouble);
                let runs: Vec<bool> = (0..4)
                    .map(|_| troubled.run(&command).is_ok_and(|answer| answer == sound))
                    .collect();
                let wanted = [true, false, !for_ever, !for_ever];
                assert_eq!(runs, wanted, "{trouble:?}, for ever {for_ever}");
                assert!(troubled.over());
                assert!(troubled.run(&command).is_ok_and(|a| a == sound), "{trouble:?}: over");
                let undone = matches!(
                    trouble,
                    Trouble::Fails | Trouble::Hangs | Trouble::Dies | Trouble::Missing
                );
                let skipped = if undone { if for_ever { 3 } else { 1 } } else { 0 };
                assert_eq!(*counting.0.lock().expect("it"), 6 - skipped, "{trouble:?}");
            }
        }
        let more = with_a_column_more(br#"{"a":[{"b":"1"}]}"#);
        assert!(
            String::from_utf8_lossy(&more).contains(r#"{"new_in_a_later_release":"1","b":"1"}"#)
        );
        assert_eq!(with_a_column_more(b"a\tb\nc\td\n"), b"a\tb\tnew\nc\td\tnew\n");
    }
}
