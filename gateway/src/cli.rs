//! The command line: arguments in, a call of the room that does the work, an exit code out.
//!
//! One file for each command: its arguments, their doc (which is the help), and what it does. What is printed goes through
//! `output`, so that `sluice … | head` ends well. Exit codes are [`Exit`]'s.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::{
    app::StartError,
    config::{Config, ConfigError, Overrides, Source},
    keys::KeyFileError,
    record::RecordError,
};

mod check_config;
mod instant;
mod key;
mod log;
mod output;
mod parse;
mod requests;
mod serve;
mod simulate;
mod stats;
mod upgrade;

/// Stands below the help of `sluice`.
const EXAMPLES: &str = "\
Examples:
  sluice serve                                    the gateway, with ./config.toml or its defaults
  sluice serve --backend http://127.0.0.1:8000    in front of a vLLM, without a file
  sluice key new --name agent --expires 30d       a key for a client
  sluice requests --since 1h --errors             what failed in the last hour
  sluice check-config                             is the file valid?
  sluice upgrade                                  a new binary takes over, with no stream cut

Exit codes:
  0  done
  1  failed
  2  wrong arguments
  3  the configuration is not valid";

/// How a command ended, as the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done; also when whoever read the output has left.
    Done = 0,
    /// It was tried and failed; standard error says why.
    Failed = 1,
    /// The arguments are wrong.
    Usage = 2,
    /// The configuration is not valid.
    Config = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Sluice: a streaming, OpenAI-compatible gateway in front of vLLM.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 100, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Simulate(simulate::SimulateArgs),
    Requests(requests::RequestsArgs),
    Stats(stats::StatsArgs),
    CheckConfig(check_config::CheckConfigArgs),
    Key(key::KeyArgs),
    Parse(parse::ParseArgs),
    Upgrade(upgrade::UpgradeArgs),
}

/// Runs the program with the process's own arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are "errors" with exit code 0; a closed pipe is none of them.
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                Exit::Usage.into()
            } else {
                Exit::Done.into()
            };
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Requests(args) => requests::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::CheckConfig(args) => check_config::run(&args),
        Command::Key(args) => key::run(&args),
        Command::Parse(args) => parse::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
    };
    match done {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            output::complain(&error.to_string());
            error.exit().into()
        }
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no folder for keys and records: set [server] state_dir, or HOME in the environment")]
    NoStateFolder,
    #[error(transparent)]
    Keys(#[from] KeyFileError),
    #[error(transparent)]
    Records(#[from] RecordError),
    #[error(transparent)]
    Parse(#[from] parse::ParseError),
    #[error(transparent)]
    Simulate(#[from] simulate::SimulateError),
    #[error(transparent)]
    Log(#[from] log::LogError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Upgrade(#[from] upgrade::UpgradeFailure),
    #[error("cannot write the output: {0}")]
    Output(std::io::Error),
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::NoStateFolder | Self::Start(StartError::Config(_) | StartError::NoStateFolder) => {
                Exit::Config
            }
            _ => Exit::Failed,
        }
    }
}

/// Which configuration a command works with.
#[derive(Debug, Clone, Default, clap::Args)]
struct ConfigArgs {
    /// Configuration file [default: ./config.toml, else $XDG_CONFIG_HOME/sluice/config.toml, else built-in]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn source(&self, overrides: Overrides) -> Source {
        Source::find(self.config.clone(), overrides, env)
    }

    fn load(&self) -> Result<Config, CliError> {
        Ok(self.source(Overrides::default()).load()?)
    }
}

/// The folder for keys and records.
fn state_folder(config: &Config) -> Result<PathBuf, CliError> {
    config.server.state_folder(env).ok_or(CliError::NoStateFolder)
}

fn env(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

#[cfg(test)]
mod tests;
