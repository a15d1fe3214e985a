//! `sluice serve`: the gateway itself.

use std::net::SocketAddr;

use super::{CliError, ConfigArgs, log};
use crate::{
    app::{self, StartError, upgrade::predecessor::Predecessor},
    config::{BackendOverride, Overrides, Source},
};

/// Start the gateway
///
/// It serves clients on port 5002 until SIGTERM or Ctrl-C, then lets running streams finish. Without a configuration file
/// and without --backend it answers from two simulated replicas, and says so.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice serve
  sluice serve --config /etc/sluice/config.toml
  sluice serve --backend http://127.0.0.1:8000
  sluice serve --backend http://10.0.0.7:8000 --backend-key-env VLLM_KEY --listen 0.0.0.0:5002

The configuration is reloaded when it changes and at SIGHUP.
Clients need a key: that of VLLM_MEDIUM_API_KEY, or one of `sluice key new`.")]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// The vLLM to stand in front of, in place of every [[backend]] of the configuration
    #[arg(long, value_name = "URL")]
    backend: Option<String>,

    /// Environment variable that holds the vLLM's key (its --api-key)
    #[arg(long, value_name = "NAME", requires = "backend")]
    backend_key_env: Option<String>,

    /// Address for clients, in place of [server] listen
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,

    /// Said by a running gateway to the process that it starts to take over; standard input is their socket
    #[arg(long, hide = true)]
    takes_over: bool,
}

impl ServeArgs {
    fn source(self) -> Source {
        let key_env = self.backend_key_env.unwrap_or_default();
        let backend = self.backend.map(|url| BackendOverride { url, key_env });
        self.config.source(Overrides {
            listen: self.listen,
            backend,
        })
    }
}

/// Returns only if the gateway can't start: it ends its process itself.
pub(super) fn run(args: ServeArgs) -> Result<(), CliError> {
    let predecessor = match args.takes_over {
        true => Some(Predecessor::meet().map_err(StartError::from)?),
        false => None,
    };
    let tell = predecessor.as_ref().map(Predecessor::tell);
    let started = start(args, predecessor);
    if let (Err(error), Some(tell)) = (&started, tell) {
        tell.failed(&error.to_string());
    }
    started
}

fn start(args: ServeArgs, predecessor: Option<Predecessor>) -> Result<(), CliError> {
    let source = args.source();
    let config = source.load()?;
    log::install(&config.log)?;
    Ok(app::run(source, config, predecessor)?)
}
