//! Breaks calls and prints what repair makes of them, as Markdown: `mutate [--each N] [--wrong N] [--kind KIND]`.
//!
//! Twenty broken texts of each kind and sample, from a fixed seed. `--wrong` shows that many of the wrong ones.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use serde_json::Value;
use sluice_benches::broken::{Outcome, Sample, Table, coding, mutants, public, read};
use sluice_benches::seed::Seed;
use std::path::PathBuf;
use std::process::ExitCode;

/// Characters that are shown around the first difference, on each side.
const AROUND: usize = 70;

struct Wants {
    each: usize,
    show: usize,
    outcome: Outcome,
    kind: Option<String>,
}

fn main() -> ExitCode {
    let mut wants = Wants {
        each: 20,
        show: 0,
        outcome: Outcome::Wrong,
        kind: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().unwrap_or_default();
        match flag.as_str() {
            "--each" => wants.each = value.parse().unwrap_or(wants.each),
            "--wrong" => wants.show = value.parse().unwrap_or(0),
            "--reask" => {
                wants.show = value.parse().unwrap_or(0);
                wants.outcome = Outcome::Reask;
            }
            "--kind" => wants.kind = Some(value),
            _ => {
                eprintln!("unknown: {flag}");
                return ExitCode::FAILURE;
            }
        }
    }
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(|| PathBuf::from("../shared"), PathBuf::from);
    let (public, coding) = match (public(&shared), coding(&mut Seed::new(3), 300)) {
        (Ok(public), Ok(coding)) => (public, coding),
        (Err(error), _) => {
            eprintln!("{}: {error}; set SLUICE_SHARED", shared.display());
            return ExitCode::FAILURE;
        }
        (_, Err(error)) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    for (name, samples) in [("BFCL", public), ("Coding agents", coding)] {
        println!(
            "### {name}: {} calls\n\n{}",
            samples.len(),
            run(&samples, &mut wants).markdown()
        );
    }
    ExitCode::SUCCESS
}

fn run(samples: &[Sample], wants: &mut Wants) -> Table {
    let mut table = Table::default();
    for (at, sample) in samples.iter().enumerate() {
        for mutant in mutants(sample, &mut Seed::new(at as u64), wants.each) {
            if wants.kind.as_ref().is_some_and(|kind| kind != mutant.kind) {
                continue;
            }
            let outcome = sample.judge(&mutant);
            if outcome == wants.outcome && wants.show > 0 {
                wants.show -= 1;
                let (calls, invalid, content) = read(&sample.tools, &mutant.text);
                println!("--- {} {}: {invalid} invalid", sample.id, mutant.kind);
                let meant = sample.meant(&mutant);
                println!("meant {}", differing(&sample.text(), &mutant.text).0);
                println!("text  {}", differing(&sample.text(), &mutant.text).1);
                let (meant, calls) = (Value::from(meant).to_string(), Value::from(calls).to_string());
                println!("calls {}", differing(&meant, &calls).1);
                println!("content {content}");
            }
            table.add(mutant.kind, outcome);
        }
    }
    table
}

/// Both texts around their first difference.
fn differing(one: &str, other: &str) -> (String, String) {
    let same = one.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let near = |text: &str| -> String {
        text.chars()
            .skip(same.saturating_sub(AROUND))
            .take(2 * AROUND)
            .collect()
    };
    (near(one), near(other))
}
