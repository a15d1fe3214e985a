//! `sluice requests`: the records, newest last.

use std::{ops::ControlFlow, path::PathBuf};

use jiff::Timestamp;

use super::{CliError, ConfigArgs, instant, output, state_folder};
use crate::record::{RecordError, print, query};

/// List recorded requests
///
/// Reads the records of the gateway on this machine, which may be running. There is never a prompt or an answer in them.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice requests
  sluice requests --since 1h --errors
  sluice requests --model Qwen/Qwen3-32B-AWQ --since 2026-11-24 --limit 1000
  sluice requests --json --limit 100000 | jq -r 'select(.ttft_client_ms > 1500) | .id'

Times: 30m, 2h, 7d ago; 2026-11-24 (UTC); 2026-11-24T12:00:00Z.")]
pub(super) struct RequestsArgs {
    #[command(flatten)]
    records: RecordsArgs,

    /// Started at this time or later
    #[arg(long, value_name = "TIME", value_parser = instant::parse)]
    since: Option<Timestamp>,

    /// Started before this time
    #[arg(long, value_name = "TIME", value_parser = instant::parse)]
    until: Option<Timestamp>,

    /// Of this model
    #[arg(long, value_name = "ID")]
    model: Option<String>,

    /// Of this key's name
    #[arg(long, value_name = "NAME")]
    key: Option<String>,

    /// Answered by this replica
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,

    /// With this HTTP status
    #[arg(long, value_name = "STATUS", value_parser = clap::value_parser!(u16).range(100..=599))]
    status: Option<u16>,

    /// Only what failed
    #[arg(long)]
    errors: bool,

    /// The newest so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Which records.
#[derive(Debug, clap::Args)]
pub(super) struct RecordsArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Database of records [default: the configuration's, in its state folder]
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    file: Option<PathBuf>,
}

impl RecordsArgs {
    /// What was `read`, or `nothing` (and a note) where no gateway has written records yet. A file that was named must be there.
    pub(super) fn or<T>(&self, read: Result<T, RecordError>, nothing: impl FnOnce() -> T) -> Result<T, CliError> {
        match read {
            Err(RecordError::Missing(path)) if self.file.is_none() => {
                output::note(&format!("no gateway has written records to {} yet", path.display()));
                Ok(nothing())
            }
            read => Ok(read?),
        }
    }

    pub(super) fn path(&self) -> Result<PathBuf, CliError> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let config = self.config.load()?;
        Ok(config.records.file(&state_folder(&config)?))
    }
}

impl RequestsArgs {
    fn filter(&self) -> query::Filter {
        query::Filter {
            since: self.since,
            until: self.until,
            model: self.model.clone(),
            key: self.key.clone(),
            replica: self.replica.clone(),
            status: self.status,
            errors_only: self.errors,
            limit: self.limit,
        }
    }
}

pub(super) fn run(args: &RequestsArgs) -> Result<(), CliError> {
    let path = args.records.path()?;
    let filter = args.filter();
    if !args.json {
        let rows = args.records.or(query::list(&path, &filter), Vec::new)?;
        return output::print(|out| out.write_all(print::table(&rows).as_bytes()));
    }
    // Row by row: an export may be larger than memory, and ends with its reader.
    let mut asked = Ok(());
    output::print(|out| {
        let mut written = Ok(());
        asked = query::each(&path, &filter, |row| {
            written = writeln!(out, "{}", print::json_line(&row));
            if written.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        written
    })?;
    args.records.or(asked, || ())
}
