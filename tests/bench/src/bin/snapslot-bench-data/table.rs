//! Figures by what was done and who did it.

use std::collections::BTreeMap;

/// Who does no work but shows what the machine allows.
pub const LIMIT: &str = "the limit";

/// Figures by who and what.
#[derive(Default)]
pub struct Table {
    rows: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

impl Table {
    pub fn add(&mut self, what: &str, who: &str, figure: f64) {
        self.rows
            .entry(what.to_owned())
            .or_default()
            .entry(who.to_owned())
            .or_default()
            .push(figure);
    }

    /// Prints medians; `more`: a larger figure is the better one.
    pub fn print(&self, unit: &str, more: bool) {
        for (what, all) in &self.rows {
            println!("  {what} ({unit})");
            let medians: BTreeMap<&String, f64> = all.iter().map(|(w, f)| (w, median(f))).collect();
            let ours = |who: &str| who.starts_with("snapslot");
            let limit = medians.iter().find(|(w, _)| w.starts_with(LIMIT)).map(|(_, m)| *m);
            let peers = medians.iter().filter(|(w, _)| !ours(w) && !w.starts_with(LIMIT));
            let best = peers.map(|(_, m)| *m).fold(None, |b: Option<f64>, m| {
                Some(b.map_or(m, |b| if more { b.max(m) } else { b.min(m) }))
            });
            for (who, figure) in &medians {
                let mut said = String::new();
                let better = |than: f64| if more { figure / than } else { than / figure };
                if ours(who) && *figure > 0.0 {
                    if let Some(best) = best.filter(|b| *b > 0.0) {
                        said.push_str(&format!("   {:.2}x the best peer", better(best)));
                    }
                    if let Some(limit) = limit.filter(|l| *l > 0.0) {
                        said.push_str(&format!("   {:.2}x the limit", better(limit)));
                    }
                }
                println!("    {who:<32} {figure:>12.1}{said}");
            }
        }
    }
}

pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
