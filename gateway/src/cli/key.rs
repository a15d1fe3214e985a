//! `sluice key`: the keys that clients present. A running gateway sees a change at once.

use std::{io, num::NonZeroU32, path::PathBuf, time::Duration};

use clap::{Subcommand, ValueEnum as _};
use jiff::Timestamp;
use serde_json::json;

use super::{CliError, ConfigArgs, output, state_folder};
use crate::{
    config::{ReasoningNames, ReleaseMode, duration},
    keys::{Entry, Grant, KeyFile, KeyFileError, KeyLimits, KeyPriority, NewKey},
};

/// Make, list and revoke clients' keys
///
/// Only hashes are kept, in keys.toml of the state folder (mode 0600). A running gateway takes a change at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice key new --name agent
  KEY=$(sluice key new --name ci --expires 30d --model Qwen/Qwen3-32B-AWQ)
  sluice key new --name batch --requests-per-minute 60 --tokens-per-minute 200000 --concurrency 4
  sluice key list
  sluice key revoke agent")]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    New(NewArgs),
    List(ListArgs),
    Revoke(RevokeArgs),
}

/// Make a key and print it, this once
#[derive(Debug, clap::Args)]
struct NewArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Name in records and metrics; letters, digits, `-`, `_`, `.`
    #[arg(long)]
    name: String,

    /// How long it is accepted [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    expires: Option<Duration>,

    /// Model id that it may use; may be given several times [default: all]
    #[arg(long = "model", value_name = "ID")]
    models: Vec<String>,

    /// What it may send that is refused by default; may be given several times
    #[arg(long = "grant", value_enum, value_name = "GRANT")]
    grants: Vec<Grant>,

    /// Names under which it gets reasoning [default: as the configuration says]
    #[arg(long, value_enum, value_name = "NAMES")]
    reasoning: Option<ReasoningNames>,

    /// When its streams show tool calls [default: as the configuration says]
    #[arg(long, value_enum, value_name = "MODE")]
    release: Option<ReleaseMode>,

    /// How urgent its requests are at most, where they have to wait [default: normal]
    #[arg(long, value_enum, value_name = "PRIORITY")]
    priority: Option<KeyPriority>,

    /// Requests that it may send in a minute [default: as many as it likes]
    #[arg(long, value_name = "COUNT")]
    requests_per_minute: Option<NonZeroU32>,

    /// Tokens of prompts and answers that it may use in a minute [default: as many as it likes]
    #[arg(long, value_name = "COUNT")]
    tokens_per_minute: Option<NonZeroU32>,

    /// Requests that it may have at once [default: as many as it likes]
    #[arg(long, value_name = "COUNT")]
    concurrency: Option<NonZeroU32>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// List the keys; never a key itself
#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// Refuse a key from now on
#[derive(Debug, clap::Args)]
struct RevokeArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// The key's name
    name: String,
}

pub(super) fn run(args: &KeyArgs) -> Result<(), CliError> {
    match &args.command {
        KeyCommand::New(args) => new(args),
        KeyCommand::List(args) => list(args),
        KeyCommand::Revoke(args) => revoke(args),
    }
}

fn new(args: &NewArgs) -> Result<(), CliError> {
    let key = NewKey {
        name: args.name.clone(),
        expires_in: args.expires,
        models: args.models.clone(),
        grants: args.grants.clone(),
        reasoning: args.reasoning,
        release: args.release,
        priority: args.priority,
        limits: KeyLimits {
            requests_per_minute: args.requests_per_minute,
            tokens_per_minute: args.tokens_per_minute,
            concurrency: args.concurrency,
        },
    };
    let path = key_path(&args.config)?;
    let secret = KeyFile::add(&path, &key, Timestamp::now())?;
    output::note(&format!(
        "The key \"{}\"; it is shown this once, {} keeps its hash:",
        args.name,
        path.display()
    ));
    output::print(|out| match args.json {
        true => writeln!(out, "{}", json!({"name": args.name, "key": secret.reveal()})),
        false => writeln!(out, "{}", secret.reveal()),
    })
}

fn list(args: &ListArgs) -> Result<(), CliError> {
    let path = key_path(&args.config)?;
    let file = KeyFile::read(&path)?.unwrap_or_default();
    if file.keys().is_empty() && !args.json {
        output::note(&format!("no keys in {}", path.display()));
    }
    let now = Timestamp::now();
    output::print(|out| match args.json {
        true => file
            .keys()
            .iter()
            .try_for_each(|key| writeln!(out, "{}", json_line(key, now))),
        false => write_table(out, file.keys(), now),
    })
}

fn revoke(args: &RevokeArgs) -> Result<(), CliError> {
    let path = key_path(&args.config)?;
    match KeyFile::read(&path)? {
        None => {
            return Err(KeyFileError::Unknown(args.name.clone(), format!("; {} is not there", path.display())).into());
        }
        Some(_) => KeyFile::revoke(&path, &args.name)?,
    }
    output::print(|out| writeln!(out, "revoked {}", args.name))
}

fn key_path(args: &ConfigArgs) -> Result<PathBuf, CliError> {
    let config = args.load()?;
    Ok(config.auth.key_path(&state_folder(&config)?))
}

fn json_line(key: &Entry, now: Timestamp) -> serde_json::Value {
    json!({
        "name": key.name,
        "created": key.created.to_string(),
        "expires": key.expires().map(|at| at.to_string()),
        "expired": !key.is_alive(now),
        "models": key.models,
        "grants": key.grants,
        "reasoning": key.reasoning,
        "release": key.release,
        "priority": key.priority,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "concurrency": key.concurrency,
    })
}

/// Columns as wide as their widest cell, two spaces between them.
fn write_table(out: &mut dyn io::Write, keys: &[Entry], now: Timestamp) -> io::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let head = ["name", "created (UTC)", "expires (UTC)", "models", "limits", "grants"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head)
        .chain(keys.iter().map(|key| cells(key, now)))
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(at, cell)| format!("{cell:<width$}", width = width(at)))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn cells(key: &Entry, now: Timestamp) -> [String; 6] {
    let minute = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M").to_string();
    let expires = key.expires().map_or("never".to_owned(), |at| {
        if key.is_alive(now) {
            minute(at)
        } else {
            format!("{} (expired)", minute(at))
        }
    });
    // The file may have been written by hand: no cell may write to the terminal.
    let models = if key.models.is_empty() {
        "all".to_owned()
    } else {
        key.models.join(", ").escape_debug().to_string()
    };
    let grant = |grant: &Grant| grant.to_possible_value().map(|value| value.get_name().to_owned());
    let grants: Vec<String> = key.grants.iter().filter_map(grant).collect();
    let grants = if grants.is_empty() {
        "-".to_owned()
    } else {
        grants.join(", ")
    };
    [
        key.name.clone(),
        minute(key.created),
        expires,
        models,
        limits(key.limits()),
        grants,
    ]
}

fn limits(limits: KeyLimits) -> String {
    let each = [
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrency, "at once"),
    ];
    let said: Vec<String> = each
        .iter()
        .filter_map(|(limit, of)| Some(format!("{} {of}", (*limit)?)))
        .collect();
    if said.is_empty() {
        "-".to_owned()
    } else {
        said.join(", ")
    }
}
