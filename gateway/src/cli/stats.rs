//! `sluice stats`: how the requests of a time range did.

use jiff::Timestamp;

use super::{CliError, instant, output, requests::RecordsArgs};
use crate::record::{print, query, verdicts};

/// Show TTFT, tokens per second and errors of a time range
///
/// TTFT is told apart by whether the prompt was mostly in the prefix cache (warm) or not (cold).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice stats
  sluice stats --since 7d
  sluice stats --since 2026-11-23 --until 2026-11-24 --json
  sluice stats --tools

Times: 30m, 2h, 7d ago; 2026-11-24 (UTC); 2026-11-24T12:00:00Z.")]
pub(super) struct StatsArgs {
    #[command(flatten)]
    records: RecordsArgs,

    /// Started at this time or later
    #[arg(long, value_name = "TIME", value_parser = instant::parse, default_value = "24h")]
    since: Timestamp,

    /// Started before this time
    #[arg(long, value_name = "TIME", value_parser = instant::parse)]
    until: Option<Timestamp>,

    /// Show what became of the tool calls instead, and why
    #[arg(long)]
    tools: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatsArgs) -> Result<(), CliError> {
    let range = query::Range {
        since: Some(args.since),
        until: args.until,
    };
    if args.tools {
        let counts = args
            .records
            .or(verdicts::tools(&args.records.path()?, range), Vec::new)?;
        return output::print(|out| match args.json {
            true => writeln!(out, "{}", print::tools_json(range, &counts)),
            false => out.write_all(print::tools(range, &counts).as_bytes()),
        });
    }
    let stats = query::stats(&args.records.path()?, range);
    let stats = args.records.or(stats, || query::Stats::nothing(range))?;
    output::print(|out| match args.json {
        true => writeln!(out, "{}", print::stats_json(&stats)),
        false => out.write_all(print::stats(&stats).as_bytes()),
    })
}
