//! What was found: for people, for programs, for build servers.
//!
//! All but the times is the same for the same seed, to the letter; so times are apart from the rest.

mod page;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// What must hold holds.
    Held,
    /// It does not.
    Failed {
        /// What was found instead.
        why: String,
    },
    /// It could not be tried here: nobody knows whether it holds.
    NotTried {
        /// Why.
        why: String,
    },
    /// There is nothing to try: the plugin does not do this kind of thing.
    DoesNotApply {
        /// Why.
        why: String,
    },
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Case {
    /// Its name: parts, storage, what is done, where it is disturbed; joined by slashes.
    pub name: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What was looked at, where that is to be counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
}

/// What a run says of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// All was tried that was to be, and held.
    Sound,
    /// Nothing failed, and not all could be tried: the plugin may be right or wrong.
    Incomplete,
    /// Something does not hold.
    Failed,
}

impl Verdict {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Sound => "sound",
            Verdict::Incomplete => "incomplete",
            Verdict::Failed => "failed",
        }
    }
}

/// How many cases came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Held.
    pub held: usize,
    /// Failed.
    pub failed: usize,
    /// Could not be tried.
    pub not_tried: usize,
    /// Had nothing to try.
    pub does_not_apply: usize,
}

/// How long it took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Times {
    /// All of it, by the clock on the wall.
    pub milliseconds: u64,
    /// Each case, by its name.
    pub cases: BTreeMap<String, u64>,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// The plugin's name.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// The component's sha256.
    pub digest: String,
    /// The seed of all choices.
    pub seed: u64,
    /// Random states at each boundary of a crash.
    pub states: usize,
    /// What was selected, if not everything.
    pub only: Option<String>,
    /// What the run says.
    pub verdict: Verdict,
    /// What was not tried, and why: what stands between `incomplete` and `sound`.
    pub missing: Vec<String>,
    /// Every case, in an order that is always the same.
    pub cases: Vec<Case>,
    /// How long it took: the only part that differs from run to run.
    pub times: Times,
}

/// What a run looks at: the first parts of names.
pub const PARTS: [&str; 7] = ["describe", "life", "plan", "limits", "crash", "trouble", "damage"];

/// What a run with these cases says, and what is missing in it.
pub fn verdict(cases: &[Case], only: Option<&str>) -> (Verdict, Vec<String>) {
    let failed = cases.iter().any(|c| matches!(c.outcome, Outcome::Failed { .. }));
    let mut missing: Vec<String> = (cases.iter())
        .filter_map(|c| match &c.outcome {
            Outcome::NotTried { why } => Some(format!("{}: {why}", c.name)),
            _ => None,
        })
        .collect();
    let held = |c: &Case| matches!(c.outcome, Outcome::Held);
    match only {
        Some(_) if !cases.iter().any(held) && !failed && missing.is_empty() => {
            missing.push("none of the cases that were selected has anything to try".to_owned());
        }
        Some(_) => {}
        // A part of which nothing was looked at must never pass for one that holds.
        None => {
            for part in PARTS {
                if !cases.iter().any(|c| c.name.split('/').next() == Some(part)) {
                    missing.push(format!("{part}: no case of it was run"));
                }
            }
            if !cases.iter().any(|c| c.name.starts_with("life/") && held(c)) && missing.is_empty() {
                missing.push("life: nothing of it holds".to_owned());
            }
        }
    }
    let verdict = match (failed, missing.is_empty()) {
        (true, _) => Verdict::Failed,
        (false, true) => Verdict::Sound,
        (false, false) => Verdict::Incomplete,
    };
    (verdict, missing)
}

impl Report {
    /// How many cases came to what.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for case in &self.cases {
            *match case.outcome {
                Outcome::Held => &mut counts.held,
                Outcome::Failed { .. } => &mut counts.failed,
                Outcome::NotTried { .. } => &mut counts.not_tried,
                Outcome::DoesNotApply { .. } => &mut counts.does_not_apply,
            } += 1;
        }
        counts
    }

    /// The failed case that disturbs least: the one to look at first.
    pub fn smallest(&self) -> Option<&Case> {
        // Cases of one kind are run from the smallest disturbance to the largest.
        let failed = self.cases.iter().filter(|c| matches!(c.outcome, Outcome::Failed { .. }));
        failed.min_by_key(|c| (!c.name.starts_with("life"), c.name.matches('/').count()))
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// For build servers, in JUnit's format.
    pub fn junit(&self) -> String {
        let counts = self.counts();
        let skipped = counts.not_tried + counts.does_not_apply;
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{}\" skipped=\"{skipped}\">\n  <properties><property name=\"verdict\" value=\"{}\"/></properties>\n",
            escaped(&self.plugin),
            self.cases.len(),
            counts.failed,
            self.verdict.word(),
        );
        for case in &self.cases {
            let milliseconds = self.times.cases.get(&case.name).copied().unwrap_or(0);
            let seconds = Duration::from_millis(milliseconds).as_secs_f64();
            let _ = write!(
                xml,
                "  <testcase classname=\"{}\" name=\"{}\" time=\"{seconds:.3}\"",
                escaped(&self.plugin),
                escaped(&case.name)
            );
            let _ = match (&case.outcome, &case.told) {
                (Outcome::Held, None) => writeln!(xml, "/>"),
                (Outcome::Held, Some(told)) => {
                    writeln!(xml, "><system-out>{}</system-out></testcase>", escaped(told))
                }
                (Outcome::Failed { why }, _) => {
                    writeln!(xml, "><failure>{}</failure></testcase>", escaped(why))
                }
                (Outcome::NotTried { why } | Outcome::DoesNotApply { why }, _) => {
                    writeln!(xml, "><skipped message=\"{}\"/></testcase>", escaped(why))
                }
            };
        }
        xml.push_str("</testsuite>\n");
        xml
    }
}

/// Fit for XML and HTML. Control characters are in neither.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && c != '\n' => out.push(' '),
            // Neither may stand in XML at all.
            '\u{fffe}' | '\u{ffff}' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    //! Goal: what is printed is what was found, whatever is in the words; and nothing passes for
    //! sound that was not looked at.

    use super::*;

    fn case(name: &str, outcome: Outcome) -> Case {
        Case { name: name.to_owned(), outcome, told: None }
    }

    fn report(cases: Vec<Case>) -> Report {
        let (verdict, missing) = verdict(&cases, None);
        Report {
            plugin: "x".to_owned(),
            version: "1".to_owned(),
            digest: "d".to_owned(),
            seed: 1,
            states: 20,
            only: None,
            verdict,
            missing,
            cases,
            times: Times::default(),
        }
    }

    #[test]
    fn all_formats_say_the_same() {
        let report = report(vec![
            case("crash/a/take/1", Outcome::Failed { why: "<b> & \u{1b}[31m".to_owned() }),
            case("life/a/take", Outcome::Failed { why: "w".to_owned() }),
            case("life/b", Outcome::Held),
            case("life/c", Outcome::NotTried { why: "no".to_owned() }),
            case("plan/d", Outcome::DoesNotApply { why: "none".to_owned() }),
        ]);
        let counts = Counts { held: 1, failed: 2, not_tried: 1, does_not_apply: 1 };
        assert_eq!(report.counts(), counts);
        assert_eq!(report.smallest().map(|c| c.name.as_str()), Some("life/a/take"));
        assert_eq!(report.verdict, Verdict::Failed);
        let xml = report.junit();
        assert!(xml.contains("tests=\"5\" failures=\"2\" skipped=\"2\""), "{xml}");
        for text in [xml, report.html()] {
            assert!(text.contains("&lt;b&gt; &amp;") && !text.contains('\u{1b}'), "{text}");
            assert!(text.contains("failed"), "{text}");
        }
    }

    #[test]
    fn what_was_not_looked_at_is_not_sound() {
        let held = |name: &str| case(name, Outcome::Held);
        let all: Vec<Case> = PARTS.iter().map(|p| held(&format!("{p}/x"))).collect();
        assert_eq!(verdict(&all, None), (Verdict::Sound, Vec::new()));
        for n in 0..all.len() {
            let mut some = all.clone();
            let gone = some.remove(n);
            let (found, missing) = verdict(&some, None);
            assert_eq!((found, missing.len()), (Verdict::Incomplete, 1), "{gone:?}: {missing:?}");
            some.push(case(&gone.name, Outcome::NotTried { why: "no".to_owned() }));
            assert_eq!(verdict(&some, None).0, Verdict::Incomplete, "{gone:?}");
            some.push(case("damage/y", Outcome::Failed { why: "no".to_owned() }));
            assert_eq!(verdict(&some, None).0, Verdict::Failed, "{gone:?}");
        }
        // What is not of this plugin's kind may be missing; but not all of it.
        let none = |name: &str| case(name, Outcome::DoesNotApply { why: "no".to_owned() });
        let mut some = all.clone();
        some[4] = none("crash/x");
        assert_eq!(verdict(&some, None).0, Verdict::Sound);
        some[1] = none("life/x");
        assert_eq!(verdict(&some, None).0, Verdict::Incomplete);
        // Of what was selected, something must hold.
        assert_eq!(verdict(&[held("life/x")], Some("life")).0, Verdict::Sound);
        assert_eq!(verdict(&[none("life/x")], Some("life")).0, Verdict::Incomplete);
    }
}
