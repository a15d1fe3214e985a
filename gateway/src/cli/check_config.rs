//! `sluice check-config`: is the file valid, and what does it come to?

use std::io;

use super::{CliError, ConfigArgs, output};
use crate::config::{Config, Overrides};

/// Check a configuration file
///
/// Says what is wrong with it, with line, key and remedy, and changes nothing. A file that can't be read as it stands (syntax, an
/// unknown key, a value of the wrong kind) is told at its first fault, what can't work together all at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice check-config
  sluice check-config --config new.toml && mv new.toml /etc/sluice/config.toml
  sluice check-config --effective

Exit code 3: the configuration is not valid.")]
pub(super) struct CheckConfigArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Print every setting in effect, defaults too, as TOML
    #[arg(long)]
    effective: bool,
}

pub(super) fn run(args: &CheckConfigArgs) -> Result<(), CliError> {
    let source = args.config.source(Overrides::default());
    let config = source.load()?;
    if args.effective {
        let text = toml::to_string(&config).map_err(|error| CliError::Output(io::Error::other(error)))?;
        return output::print(|out| out.write_all(text.as_bytes()));
    }
    output::print(|out| writeln!(out, "{source}: valid; {}", summary(&config)))
}

/// What the configuration comes to, in one line.
fn summary(config: &Config) -> String {
    let replicas = || config.backend.iter().flat_map(|backend| &backend.replica);
    let simulated = replicas().filter(|replica| replica.launcher.is_simulated()).count();
    let simulated = if simulated == 0 {
        String::new()
    } else {
        format!(" ({simulated} simulated)")
    };
    let (models, replicas) = (config.backend.len(), replicas().count());
    let scheme = if config.server.tls.enabled { "https" } else { "http" };
    format!(
        "{models} {}, {replicas} {}{simulated}, clients on {scheme}://{}",
        if models == 1 { "model" } else { "models" },
        if replicas == 1 { "replica" } else { "replicas" },
        config.server.listen
    )
}
