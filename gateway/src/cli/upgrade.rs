//! `sluice upgrade`: another process takes over from the running gateway.

use std::path::PathBuf;

use super::{CliError, ConfigArgs, output, state_folder};
use crate::app::upgrade::control::{self, CallError, Order, Outcome};

/// Replace the running gateway by a new process, without refusing a connection or cutting a stream
///
/// The running gateway starts the new program with its own arguments and environment and hands it its sockets; once that
/// one serves, the old one finishes what it has ([server] drain at most) and leaves. If the new one can't start, nothing
/// changes. Settings that need a restart take effect by it, too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo install -m 755 target/release/sluice /usr/local/bin/sluice && sluice upgrade
  sluice upgrade --binary ./target/release/sluice
  sluice upgrade --config /etc/sluice/config.toml")]
pub(super) struct UpgradeArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Program that takes over [default: the file that the running one was started from]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
}

/// Why the same process serves.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeFailure {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}; the running gateway goes on")]
    Failed(String),
    #[error("--binary {}: {source}", path.display())]
    Binary { path: PathBuf, source: std::io::Error },
}

pub(super) fn run(args: &UpgradeArgs) -> Result<(), CliError> {
    let config = args.config.load()?;
    let folder = state_folder(&config)?;
    // The gateway has a working folder of its own.
    let absolute = |path: &PathBuf| {
        std::path::absolute(path).map_err(|source| UpgradeFailure::Binary {
            path: path.clone(),
            source,
        })
    };
    let program = args.binary.as_ref().map(absolute).transpose()?;
    match control::call(&folder, &Order { program }).map_err(UpgradeFailure::from)? {
        Outcome::Done { pid, leaves } => output::print(|out| {
            writeln!(
                out,
                "process {pid} serves now; process {leaves} leaves when its last stream has ended"
            )
        }),
        Outcome::Failed(why) => Err(UpgradeFailure::Failed(why).into()),
    }
}
