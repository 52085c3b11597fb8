//! A command, and what came of running it.

use std::fmt;
use std::ops::ControlFlow;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// A command made from a grant: a program of the host's table and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The program's bare name.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Text for its standard input.
    pub input: Option<String>,
    /// How long it may take.
    pub deadline: Duration,
}

/// As a person would type it.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)?;
        for word in &self.arguments {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-:+@%=,#&!".contains(&b);
            if !word.is_empty() && word.bytes().all(plain) {
                write!(f, " {word}")?;
            } else {
                write!(f, " '{}'", word.replace('\'', "'\\''"))?;
            }
        }
        Ok(())
    }
}

/// What a command said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status.
    pub exit_code: i32,
    /// Its standard output.
    pub output: Vec<u8>,
    /// Its standard error.
    pub errors: Vec<u8>,
}

impl Answer {
    /// The first line of its standard error that says something.
    pub fn complaint(&self) -> String {
        let words = String::from_utf8_lossy(&self.errors);
        let line = words.lines().map(str::trim).find(|l| !l.is_empty());
        line.unwrap_or("it gave no reason").chars().filter(|c| !c.is_control()).take(512).collect()
    }
}

/// A command that gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program is not on this machine, or is not to be trusted.
    #[error("{program} is needed and {why}")]
    Missing {
        /// Its bare name.
        program: String,
        /// Where it was looked for, or what is wrong with it.
        why: String,
    },
    /// It could not be started, or talked to.
    #[error("{program} could not be run: {source}")]
    Start {
        /// Its bare name.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It took too long and was ended.
    #[error("`{command}` took longer than {seconds} s and was ended")]
    Deadline {
        /// The command.
        command: String,
        /// How long it had.
        seconds: u64,
    },
    /// It said more than is taken in, and was ended.
    #[error("`{command}` wrote more than {limit} bytes and was ended")]
    TooMuch {
        /// The command.
        command: String,
        /// How much is taken in.
        limit: usize,
    },
    /// It took too long, and the kernel does not let it be ended.
    #[error(
        "`{command}` took longer than {seconds} s and cannot be ended: process {pid} waits in the kernel, mostly for a device"
    )]
    Unkillable {
        /// The command.
        command: String,
        /// How long it had.
        seconds: u64,
        /// Its process.
        pid: u32,
    },
    /// A signal ended it.
    #[error("`{command}` was ended by signal {signal}")]
    Killed {
        /// The command.
        command: String,
        /// The signal's number.
        signal: i32,
    },
}

/// The one way a command is run.
pub trait Executor: Send + Sync {
    /// Runs it to its end.
    fn run(&self, command: &Command) -> Result<Answer, RunError>;

    /// The same, and it keeps this descriptor open for as long as it lives, also when whoever runs it
    /// is killed meanwhile: what is locked through it stays so until the command has ended.
    fn run_holding(&self, command: &Command, held: BorrowedFd<'_>) -> Result<Answer, RunError> {
        let _ = held;
        self.run(command)
    }

    /// The same, and what it writes to its standard output is heard as it comes, however much it is; the
    /// answer's is empty. In silence nothing is heard now and then. Its deadline is how long it may be silent.
    /// Once who hears it breaks off it is ended, and there is no answer.
    fn run_listening(
        &self,
        command: &Command,
        hear: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<Option<Answer>, RunError> {
        let answer = self.run(command)?;
        let broken_off = hear(&answer.output).is_break();
        Ok((!broken_off).then(|| Answer { output: Vec::new(), ..answer }))
    }
}
