//! What was found: for people, for programs, for build servers.

use std::fmt::Write;

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
    /// It could not be tried here.
    NotTried {
        /// Why.
        why: String,
    },
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Its name: parts, storage, what is done, where it is disturbed; joined by slashes.
    pub name: String,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    pub milliseconds: u64,
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The plugin's name.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// The component's sha256.
    pub digest: String,
    /// The seed of all choices.
    pub seed: u64,
    /// Every case, in the order run.
    pub cases: Vec<Case>,
}

impl Report {
    /// How many held, failed, were not tried.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |f: fn(&Outcome) -> bool| self.cases.iter().filter(|c| f(&c.outcome)).count();
        (
            count(|o| matches!(o, Outcome::Held)),
            count(|o| matches!(o, Outcome::Failed { .. })),
            count(|o| matches!(o, Outcome::NotTried { .. })),
        )
    }

    /// The failed case that disturbs least: the one to look at first.
    pub fn smallest(&self) -> Option<&Case> {
        // Cases of one kind are run from the smallest disturbance to the largest.
        let failed = self.cases.iter().filter(|c| matches!(c.outcome, Outcome::Failed { .. }));
        failed.min_by_key(|c| (!c.name.starts_with("life"), c.name.matches('/').count()))
    }

    /// For build servers, in JUnit's format.
    pub fn junit(&self) -> String {
        let (_, failed, not_tried) = self.counts();
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" skipped=\"{not_tried}\">\n",
            escaped(&self.plugin),
            self.cases.len()
        );
        for case in &self.cases {
            let seconds = case.milliseconds as f64 / 1000.0;
            let _ = write!(
                xml,
                "  <testcase classname=\"{}\" name=\"{}\" time=\"{seconds:.3}\"",
                escaped(&self.plugin),
                escaped(&case.name)
            );
            let _ = match &case.outcome {
                Outcome::Held => writeln!(xml, "/>"),
                Outcome::Failed { why } => {
                    writeln!(xml, "><failure>{}</failure></testcase>", escaped(why))
                }
                Outcome::NotTried { why } => {
                    writeln!(xml, "><skipped message=\"{}\"/></testcase>", escaped(why))
                }
            };
        }
        xml.push_str("</testsuite>\n");
        xml
    }

    /// A page to read.
    pub fn html(&self) -> String {
        let (held, failed, not_tried) = self.counts();
        let mut page = format!(
            "<!doctype html><meta charset=\"utf-8\"><title>{0} {1}</title>\
             <style>body{{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}}\
             td{{padding:.1em .8em;vertical-align:top}}pre{{white-space:pre-wrap;margin:0}}\
             .failed{{color:#b00020}}.held{{color:#1b7a2f}}.not{{color:#777}}</style>\
             <h1>{0} {1}</h1><p>sha256 {2}, seed {3}</p>\
             <p>{held} held, {failed} failed, {not_tried} not tried</p><table>\n",
            escaped(&self.plugin),
            escaped(&self.version),
            escaped(&self.digest),
            self.seed
        );
        let order = |o: &Outcome| match o {
            Outcome::Failed { .. } => 0,
            Outcome::NotTried { .. } => 1,
            Outcome::Held => 2,
        };
        let mut cases: Vec<&Case> = self.cases.iter().collect();
        cases.sort_by_key(|c| order(&c.outcome));
        for case in cases {
            let (class, word, why) = match &case.outcome {
                Outcome::Held => ("held", "held", ""),
                Outcome::Failed { why } => ("failed", "FAILED", why.as_str()),
                Outcome::NotTried { why } => ("not", "not tried", why.as_str()),
            };
            let _ = writeln!(
                page,
                "<tr class=\"{class}\"><td>{word}<td>{}<td><pre>{}</pre><td>{} ms",
                escaped(&case.name),
                escaped(why),
                case.milliseconds
            );
        }
        page.push_str("</table>\n");
        page
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
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    //! Goal: what is printed is what was found, whatever is in the words.

    use super::*;

    fn report() -> Report {
        let case = |name: &str, outcome| Case { name: name.to_owned(), outcome, milliseconds: 5 };
        Report {
            plugin: "x".to_owned(),
            version: "1".to_owned(),
            digest: "d".to_owned(),
            seed: 1,
            cases: vec![
                case("crash/a/take/1", Outcome::Failed { why: "<b> & \u{1b}[31m".to_owned() }),
                case("life/a/take", Outcome::Failed { why: "w".to_owned() }),
                case("life/b", Outcome::Held),
                case("life/c", Outcome::NotTried { why: "no".to_owned() }),
            ],
        }
    }

    #[test]
    fn all_formats_say_the_same() {
        let report = report();
        assert_eq!(report.counts(), (1, 2, 1));
        assert_eq!(report.smallest().map(|c| c.name.as_str()), Some("life/a/take"));
        let xml = report.junit();
        assert!(xml.contains("tests=\"4\" failures=\"2\" skipped=\"1\""), "{xml}");
        for text in [xml, report.html()] {
            assert!(text.contains("&lt;b&gt; &amp;") && !text.contains('\u{1b}'), "{text}");
        }
    }
}
