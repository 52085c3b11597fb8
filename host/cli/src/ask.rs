//! Asking before something is lost.

use std::io::{self, BufRead, IsTerminal, Write};

/// What came of asking.
pub enum Answer {
    /// Go on.
    Yes,
    /// The person said no.
    No,
    /// There is nobody to ask.
    Nobody,
}

/// Asks on the terminal; only a full "yes" counts, or "y".
pub fn confirm(question: &str) -> Answer {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Answer::Nobody;
    }
    eprint!("{question} [y/N] ");
    let _ = io::stderr().flush();
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(_) if matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes") => Answer::Yes,
        _ => Answer::No,
    }
}
