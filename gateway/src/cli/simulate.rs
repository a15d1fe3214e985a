//! `sluice simulate`: a stand-in for vLLM, on a port of its own.
//!
//! The simulator owns its settings; flags are put over its file as TOML, so that both are read, and refused, in one way.

use std::{fs::File, io::Read as _, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, de::DeserializeOwned};
use toml::{Table, Value};

use super::{CliError, output};
use crate::{
    config::read_table,
    simulator::{self, SimConfig, SimulatorError},
};

/// The largest file of simulator settings, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Serve a simulated vLLM: its wire format, KV cache, metrics and faults, without a GPU
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice simulate
  sluice simulate --listen 127.0.0.1:8001 --gpu rtx4090x2 --speed 10
  sluice simulate --setup parsers --fault malformed_call=0.2 --fault reset_mid=0.05 --seed 7
  sluice simulate --set max_num_seqs=4 --set prefix_caching=false

A client makes one request go wrong by a header, a field of the body or a marker in a message:
`Simulator: making it misbehave` in ARCHITECTURE.md has the knobs, the faults and the kinds of calls.")]
pub(super) struct SimulateArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,

    /// TOML file with settings of the simulator; flags come on top
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,

    /// Model id; `-simulated` is added to it
    #[arg(long, value_name = "ID")]
    model: Option<String>,

    /// Whose speed it imitates: h100 or rtx4090x2
    #[arg(long, value_name = "GPU")]
    gpu: Option<String>,

    /// Time factor: 10 is ten times faster, 0 never waits
    #[arg(long, value_name = "FACTOR")]
    speed: Option<f64>,

    /// raw (no parsers) or parsers (hermes and qwen3)
    #[arg(long, value_name = "SETUP")]
    setup: Option<String>,

    /// Seed of everything that is drawn
    #[arg(long, value_name = "N")]
    seed: Option<u32>,

    /// Environment variable with the key that it asks for
    #[arg(long, value_name = "NAME")]
    api_key_env: Option<String>,

    /// Share of requests with a fault, as reset_mid=0.05; may be given several times
    #[arg(long = "fault", value_name = "FAULT=SHARE", value_parser = pair)]
    faults: Vec<(String, Value)>,

    /// Any setting of the simulator, as max_num_seqs=4; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    settings: Vec<(String, Value)>,
}

/// Why the simulator didn't run.
#[derive(Debug, thiserror::Error)]
pub(super) enum SimulateError {
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Simulator(#[from] SimulatorError),
}

/// `key=value`, the value as TOML or else as a text.
fn pair(text: &str) -> Result<(String, Value), PairError> {
    let (key, value) = text.split_once('=').ok_or(PairError)?;
    let (key, value) = (key.trim(), value.trim());
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(PairError);
    }
    let parsed = format!("v = {value}")
        .parse::<Table>()
        .ok()
        .filter(|table| table.len() == 1);
    let parsed = parsed.and_then(|mut table| table.remove("v"));
    Ok((
        key.to_owned(),
        parsed.unwrap_or_else(|| Value::String(value.to_owned())),
    ))
}

#[derive(Debug, thiserror::Error)]
#[error("the form is key=value")]
struct PairError;

impl SimulateArgs {
    /// The simulator's settings: its file with the flags on top.
    fn settings(&self) -> Result<SimConfig, CliError> {
        let table = self.table()?;
        let (who, rest): (Table, Table) = table.into_iter().partition(|(key, _)| WHO.contains(&key.as_str()));
        let Who {
            model,
            aliases,
            api_key_env,
        } = read(&who)?;
        let rest: SimConfig = read(&rest)?;
        Ok(SimConfig {
            model: model.unwrap_or_else(|| rest.model.clone()),
            aliases,
            api_key_env,
            ..rest
        })
    }

    fn table(&self) -> Result<Table, CliError> {
        let mut table = self.file()?;
        let texts = [
            ("model", &self.model),
            ("gpu", &self.gpu),
            ("setup", &self.setup),
            ("api_key_env", &self.api_key_env),
        ];
        for (key, value) in texts {
            if let Some(value) = value {
                table.insert(key.to_owned(), Value::String(value.clone()));
            }
        }
        if let Some(speed) = self.speed {
            table.insert("speed".to_owned(), Value::Float(speed));
        }
        if let Some(seed) = self.seed {
            table.insert("seed".to_owned(), Value::Integer(seed.into()));
        }
        table.extend(self.settings.iter().cloned());
        if !self.faults.is_empty() {
            let faults = table.entry("faults").or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(faults) = faults {
                faults.extend(self.faults.iter().cloned());
            }
        }
        Ok(table)
    }

    fn file(&self) -> Result<Table, CliError> {
        let Some(path) = &self.config else {
            return Ok(Table::new());
        };
        let failed = |source| SimulateError::File {
            path: path.clone(),
            source,
        };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        read_table(&path.display().to_string(), &text).map_err(CliError::Config)
    }
}

/// Whom the simulator stands for: in a gateway its backend says that, here the file or the flags.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Who {
    model: Option<String>,
    aliases: Vec<String>,
    api_key_env: String,
}

/// The keys of [`Who`].
const WHO: [&str; 3] = ["model", "aliases", "api_key_env"];

/// Writes the table out and reads it as a `T`: an error names the key, wherever it came from.
fn read<T: DeserializeOwned>(table: &Table) -> Result<T, CliError> {
    let text = toml::to_string(table).map_err(|error| CliError::Output(std::io::Error::other(error)))?;
    Ok(read_table("the simulator's settings", &text)?)
}

pub(super) fn run(args: &SimulateArgs) -> Result<(), CliError> {
    let settings = args.settings()?;
    output::note(&format!(
        "simulating {} on http://{}; no answer is real",
        settings.served_model(),
        args.listen
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(SimulateError::Runtime)?;
    Ok(runtime
        .block_on(simulator::run(settings, args.listen))
        .map_err(SimulateError::from)?)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::simulator::FaultRates;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn settings(args: &[&str]) -> Result<SimConfig, CliError> {
        let only = Only::try_parse_from(std::iter::once(&"simulate").chain(args)).unwrap();
        only.args.settings()
    }

    #[test]
    fn flags_come_on_top_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sim.toml");
        std::fs::write(&file, "seed = 1\nspeed = 2.0\n[faults]\nstall = 0.1\nhang = 0.1\n").unwrap();
        let file = file.to_str().unwrap();
        let args = [
            "--config",
            file,
            "--speed",
            "10",
            "--fault",
            "stall=0.5",
            "--set",
            "prefix_caching=false",
            "--set",
            "model=a/b",
        ];
        let faults = FaultRates {
            stall: 0.5,
            hang: 0.1,
            ..FaultRates::default()
        };
        let expect = SimConfig {
            seed: 1,
            speed: 10.0,
            prefix_caching: false,
            model: "a/b".to_owned(),
            faults,
            ..SimConfig::default()
        };
        assert_eq!(settings(&args).unwrap(), expect);
        assert_eq!(settings(&[]).unwrap(), SimConfig::default());
        let who = settings(&["--set", "aliases=['m']", "--api-key-env", "KEY"]).unwrap();
        assert_eq!((who.aliases, who.api_key_env), (vec!["m".to_owned()], "KEY".to_owned()));
    }

    #[test]
    fn a_setting_that_is_none_is_named_with_the_nearest() {
        for (args, near) in [
            (["--set", "sped=1"], "did you mean `speed`?"),
            (["--fault", "stal=0.1"], "did you mean `stall`?"),
        ] {
            let error = settings(&args).unwrap_err().to_string();
            assert!(error.contains(near), "{error}");
        }
        let error = settings(&["--fault", "slow_start_time=250"]).unwrap_err().to_string();
        assert!(error.contains("needs a unit"), "{error}");
    }

    #[test]
    fn a_pair_is_key_and_toml_or_text() {
        assert_eq!(pair("a=1").unwrap(), ("a".to_owned(), Value::Integer(1)));
        assert_eq!(
            pair("a = Qwen/Qwen3").unwrap(),
            ("a".to_owned(), Value::String("Qwen/Qwen3".to_owned()))
        );
        // One value, never a way to write more keys.
        assert_eq!(
            pair("a=1\nb = 2").unwrap(),
            ("a".to_owned(), Value::String("1\nb = 2".to_owned()))
        );
        for bad in ["", "a", "=1", "a.b=1", "a b=1"] {
            assert!(pair(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = settings(&["--config", "/nonexistent/sim.toml"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("/nonexistent/sim.toml"), "{error}");
    }
}
