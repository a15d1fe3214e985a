//! Counts per kind, as Markdown.

use super::{KINDS, Outcome};
use std::fmt::Write as _;

/// What became of the texts of one kind.
#[derive(Debug, Clone, Copy, Default)]
pub struct Count {
    /// The call that was meant.
    pub equal: u32,
    /// Asked again.
    pub reask: u32,
    /// Asked again, as one edit makes more than one call of it.
    pub ambiguous: u32,
    /// Shown as text.
    pub text: u32,
    /// Another call, which the text has to give.
    pub undecidable: u32,
    /// Another call.
    pub wrong: u32,
}

impl Count {
    /// Counts one text.
    pub fn add(&mut self, outcome: Outcome) {
        let slot = match outcome {
            Outcome::Equal => &mut self.equal,
            Outcome::Reask => &mut self.reask,
            Outcome::Ambiguous => &mut self.ambiguous,
            Outcome::Text => &mut self.text,
            Outcome::Undecidable => &mut self.undecidable,
            Outcome::Wrong => &mut self.wrong,
        };
        *slot += 1;
    }

    /// All of them.
    pub fn all(&self) -> u32 {
        self.repairable() + self.ambiguous + self.undecidable
    }

    /// Those of which one call can be told.
    pub fn repairable(&self) -> u32 {
        self.equal + self.reask + self.text + self.wrong
    }

    /// Percent of those that came back equal.
    pub fn repaired(&self) -> f64 {
        100.0 * f64::from(self.equal) / f64::from(self.repairable().max(1))
    }

    /// Percent of all.
    pub fn share(&self, part: u32) -> f64 {
        100.0 * f64::from(part) / f64::from(self.all().max(1))
    }
}

/// Counts by kind.
#[derive(Debug, Clone)]
pub struct Table(Vec<(&'static str, Count)>);

impl Default for Table {
    fn default() -> Self {
        Table(KINDS.iter().map(|kind| (*kind, Count::default())).collect())
    }
}

impl Table {
    /// Counts one text.
    pub fn add(&mut self, kind: &str, outcome: Outcome) {
        if let Some((_, count)) = self.0.iter_mut().find(|(name, _)| *name == kind) {
            count.add(outcome);
        }
    }

    /// The kinds that have texts.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, Count)> + '_ {
        self.0.iter().copied().filter(|(_, count)| count.all() > 0)
    }

    /// All kinds together.
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        for (_, count) in self.rows() {
            total.equal += count.equal;
            total.reask += count.reask;
            total.ambiguous += count.ambiguous;
            total.text += count.text;
            total.undecidable += count.undecidable;
            total.wrong += count.wrong;
        }
        total
    }

    /// The table, with its sum.
    pub fn markdown(&self) -> String {
        let mut out = String::from(
            "| kind | texts | equal | re-ask | re-ask, ambiguous | as text | not decidable | wrong | equal of repairable |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        let total = [("**all**", self.total())];
        for (kind, count) in self.rows().chain(total) {
            let share = |part| format!("{:.2} %", count.share(part));
            // writing to a string can't fail
            let _ = writeln!(
                out,
                "| {kind} | {} | {} | {} | {} | {} | {} | {} | {:.2} % |",
                count.all(),
                share(count.equal),
                share(count.reask),
                share(count.ambiguous),
                share(count.text),
                share(count.undecidable),
                share(count.wrong),
                count.repaired()
            );
        }
        out
    }
}
