//! A page to read.

use std::fmt::Write;

use super::{Outcome, Report, escaped};

impl Report {
    /// A page to read: what failed comes first, how long things took last.
    pub fn html(&self) -> String {
        let counts = self.counts();
        let mut page = format!(
            "<!doctype html><meta charset=\"utf-8\"><title>{0} {1}</title>\
             <style>body{{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}}\
             td{{padding:.1em .8em;vertical-align:top}}pre{{white-space:pre-wrap;margin:0}}\
             .failed{{color:#b00020}}.held{{color:#1b7a2f}}.not{{color:#777}}</style>\
             <h1>{0} {1}: {2}</h1><p>sha256 {3}, seed {4}, {5} random states{6}</p>\
             <p>{7} held, {8} failed, {9} not tried, {10} do not apply</p>\n",
            escaped(&self.plugin),
            escaped(&self.version),
            self.verdict.word(),
            escaped(&self.digest),
            self.seed,
            self.states,
            self.only.as_ref().map_or_else(String::new, |o| format!(", only {}", escaped(o))),
            counts.held,
            counts.failed,
            counts.not_tried,
            counts.does_not_apply,
        );
        if !self.missing.is_empty() {
            page.push_str("<p>Not tried:</p><ul>\n");
            for what in &self.missing {
                let _ = writeln!(page, "<li>{}", escaped(what));
            }
            page.push_str("</ul>\n");
        }
        page.push_str("<table>\n");
        let order = |o: &Outcome| match o {
            Outcome::Failed { .. } => 0,
            Outcome::NotTried { .. } => 1,
            Outcome::Held => 2,
            Outcome::DoesNotApply { .. } => 3,
        };
        let mut cases: Vec<_> = self.cases.iter().collect();
        cases.sort_by_key(|c| order(&c.outcome));
        for case in cases {
            let (class, word, why) = match &case.outcome {
                Outcome::Held => ("held", "held", case.told.as_deref().unwrap_or_default()),
                Outcome::Failed { why } => ("failed", "FAILED", why.as_str()),
                Outcome::NotTried { why } => ("not", "not tried", why.as_str()),
                Outcome::DoesNotApply { why } => ("not", "does not apply", why.as_str()),
            };
            let _ = writeln!(
                page,
                "<tr class=\"{class}\"><td>{word}<td>{}<td><pre>{}</pre>",
                escaped(&case.name),
                escaped(why),
            );
        }
        page.push_str("</table>\n");
        page.push_str(&self.slowest());
        page
    }

    /// What took longest.
    fn slowest(&self) -> String {
        let mut slow: Vec<_> = self.times.cases.iter().collect();
        slow.sort_by_key(|(_, milliseconds)| std::cmp::Reverse(**milliseconds));
        let mut list = format!("<p>Took {} ms; longest:</p><ul>\n", self.times.milliseconds);
        for (name, milliseconds) in slow.into_iter().take(10) {
            let _ = writeln!(list, "<li>{} {milliseconds} ms", escaped(name));
        }
        list.push_str("</ul>\n");
        list
    }
}
