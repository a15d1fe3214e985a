//! What a campaign came to: verdicts by the clients, and figures by the gateway's records and log.

use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use super::agent::Outcome;
use super::fleet::Usage;
use super::judge::{Verdict, Wrong};

/// Defects that are written out.
const SHOWN: usize = 20;

/// See the module. Displayed as tables.
#[derive(Debug, Default)]
pub struct Report {
    /// By label: streams, whole answers.
    rows: BTreeMap<String, [u64; 2]>,
    lost: u64,
    doubled: u64,
    wrong: u64,
    defects: Vec<String>,
    figures: Vec<(String, String)>,
}

impl Report {
    /// Answers that were neither whole nor honestly refused or ended; 0 is the bar.
    pub fn defects(&self) -> u64 {
        self.lost + self.doubled + self.wrong
    }

    /// Answers that were whole.
    pub fn whole(&self) -> u64 {
        let rows = self.rows.iter().filter(|(label, _)| label.starts_with("whole"));
        rows.flat_map(|(_, counts)| counts).sum()
    }

    /// Answers that were whole though a replica was lost in their middle, by the records.
    pub fn continued(&self) -> u64 {
        self.rows.get(CONTINUED).into_iter().flatten().sum()
    }

    pub(super) fn figure(&mut self, name: &str, value: impl fmt::Display) {
        self.figures.push((name.to_owned(), value.to_string()));
    }

    pub(super) fn usage(&mut self, before: Usage, peak: Usage, after: Usage) {
        let figure = |of: fn(Usage) -> u64| format!("{} / {} / {}", of(before), of(peak), of(after));
        self.figure(
            "descriptors of the gateway: before / peak / after",
            figure(|usage| usage.descriptors as u64),
        );
        self.figure(
            "resident KiB of the gateway: before / peak / after",
            figure(|usage| usage.resident_kib),
        );
    }

    /// Counts all outcomes.
    pub(super) fn count(&mut self, outcomes: &[Outcome], records: &Records) {
        for outcome in outcomes {
            let label = match &outcome.verdict {
                Ok(Verdict::Whole) => records.whole(&outcome.id).to_owned(),
                Ok(Verdict::Refused(status, code)) => format!("refused: {status} {code}"),
                Ok(Verdict::ErrorEvent(code)) => format!("error event: {code}"),
                Ok(Verdict::Left) => "the client left, or didn't read".to_owned(),
                Err(wrong) => {
                    self.defect(
                        format!("{} ({:.1} s): {wrong}", outcome.id, outcome.took.as_secs_f64()),
                        wrong,
                    );
                    continue;
                }
            };
            let row = self.rows.entry(label).or_default();
            row[usize::from(!outcome.stream)] += 1;
        }
        let longest = outcomes
            .iter()
            .map(|outcome| outcome.took)
            .max()
            .unwrap_or(Duration::ZERO);
        self.figure("longest answer, s", format!("{:.1}", longest.as_secs_f64()));
        let unrecorded = outcomes
            .iter()
            .filter(|outcome| !records.rows.contains_key(&outcome.id))
            .count();
        self.figure("requests without a record", unrecorded);
    }

    /// One more defect.
    pub(super) fn defect(&mut self, what: String, wrong: &Wrong) {
        match wrong {
            Wrong::Lost(_) => self.lost += 1,
            Wrong::Doubled(_) => self.doubled += 1,
            Wrong::Other(_) => self.wrong += 1,
        }
        if self.defects.len() < SHOWN {
            self.defects.push(what);
        }
    }
}

const CONTINUED: &str = "whole, went on elsewhere";

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| outcome | streams | whole answers |\n| --- | --- | --- |")?;
        for (label, [streams, whole]) in &self.rows {
            writeln!(f, "| {label} | {streams} | {whole} |")?;
        }
        writeln!(f, "\n| figure | |\n| --- | --- |")?;
        writeln!(
            f,
            "| **lost / doubled / wrong** | {} / {} / {} |",
            self.lost, self.doubled, self.wrong
        )?;
        for (name, value) in &self.figures {
            writeln!(f, "| {name} | {value} |")?;
        }
        self.defects.iter().try_for_each(|defect| writeln!(f, "- {defect}"))
    }
}

/// What the gateway says of its requests: for figures only.
#[derive(Debug, Default)]
pub(super) struct Records {
    rows: HashMap<String, Row>,
    held: HashSet<String>,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    attempts: u64,
    continuations: u64,
}

impl Records {
    /// From the lines of `sluice requests --json`, and the log.
    pub(super) fn read(records: &str, log: &str) -> Records {
        let rows = records
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let number = |row: &Value, field: &str| row.get(field).and_then(Value::as_u64).unwrap_or(0);
        let rows = rows.filter_map(|row| {
            let of = Row {
                attempts: number(&row, "attempts"),
                continuations: number(&row, "continuations"),
            };
            Some((row.get("id")?.as_str()?.to_owned(), of))
        });
        let held = log.lines().filter(|line| line.contains("held until a replica is back"));
        let held = held.filter_map(|line| {
            line.split("request=")
                .nth(1)?
                .split_whitespace()
                .next()
                .map(str::to_owned)
        });
        Records {
            rows: rows.collect(),
            held: held.collect(),
        }
    }

    fn whole(&self, id: &str) -> &'static str {
        match self.rows.get(id) {
            Some(row) if row.continuations > 0 => CONTINUED,
            _ if self.held.contains(id) => "whole, held",
            Some(row) if row.attempts > 1 => "whole, retried",
            _ => "whole, undisturbed",
        }
    }
}
