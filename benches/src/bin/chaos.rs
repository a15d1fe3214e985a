//! The fault campaign from copied programs alone, no cargo needed: `chaos campaign|single|crowd|growth --sluice PATH [--KEY VALUE …]`.
//!
//! | run | what | keys |
//! | --- | --- | --- |
//! | `campaign` | agents through the gateway before four replicas that are killed, stopped, slowed and reset | `requests` 10000, `agents` 48, `replicas` 4, `seed` 1, `gap-ms` 6000, `speed` 1, `time-s` 1800 |
//! | `single` | the same before one replica, with `[hold]` | `requests` 1000, `agents` 12, … |
//! | `crowd` | streams at once that lose a replica | `streams` 2000, `rounds` 3, `replicas` 3, `itl-ms` 800 |
//! | `growth` | short requests, what the gateway holds after each 10,000 | `requests` 200000, `connections` 16 |
//!
//! The last report is tables on standard output; state, log and evidence of defects stay in `--folder` (else a new one in the system's
//! folder for such). The exit code is 1 if an answer was lost, doubled or wrong.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use sluice_benches::chaos::{Campaign, Crowd, Growth, Report};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// How long a gateway is left alone before what it holds is looked at.
const REST: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run() {
        Ok(report) => {
            println!("{report}");
            ExitCode::from(u8::from(report.defects() > 0))
        }
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::from(2)
        }
    }
}

struct Given(HashMap<String, String>);

impl Given {
    fn number<T: std::str::FromStr>(&self, key: &str, default: T) -> io::Result<T> {
        let Some(value) = self.0.get(key) else {
            return Ok(default);
        };
        value
            .parse()
            .map_err(|_| wrong(&format!("--{key} {value}: no such number")))
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.0.get(key).map(PathBuf::from)
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn run() -> io::Result<Report> {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let mut given = Given(HashMap::new());
    while let Some(key) = args.next() {
        let key = key
            .strip_prefix("--")
            .ok_or_else(|| wrong("arguments are --KEY VALUE"))?
            .to_owned();
        given
            .0
            .insert(key, args.next().ok_or_else(|| wrong("a key without a value"))?);
    }
    let sluice = given
        .path("sluice")
        .ok_or_else(|| wrong("--sluice PATH names the built program"))?;
    let unique = format!("sluice-chaos-{}", std::process::id());
    let folder = given
        .path("folder")
        .unwrap_or_else(|| std::env::temp_dir().join(unique));
    eprintln!("# state, log and evidence: {}", folder.display());
    let campaign = |requests, agents, replicas| -> io::Result<Report> {
        let campaign = Campaign {
            sluice: sluice.clone(),
            folder: folder.clone(),
            requests: given.number("requests", requests)?,
            time: Duration::from_secs(given.number("time-s", 1800)?),
            agents: given.number("agents", agents)?,
            replicas: given.number("replicas", replicas)?,
            seed: given.number("seed", 1)?,
            gap: Duration::from_millis(given.number("gap-ms", 6000)?),
            speed: given.number("speed", 1.0)?,
            rest: REST,
        };
        campaign.run()
    };
    match what.as_str() {
        "campaign" => campaign(10_000, 48, 4),
        "single" => campaign(1_000, 12, 1),
        "crowd" => Crowd {
            sluice: sluice.clone(),
            folder: folder.clone(),
            streams: given.number("streams", 2_000)?,
            rounds: given.number("rounds", 3)?,
            replicas: given.number("replicas", 3)?,
            itl: Duration::from_millis(given.number("itl-ms", 800)?),
            rest: REST,
        }
        .run(),
        "growth" => Growth {
            sluice: sluice.clone(),
            folder: folder.clone(),
            requests: given.number("requests", 200_000)?,
            connections: given.number("connections", 16)?,
            each: 10_000,
            rest: REST,
        }
        .run(),
        _ => Err(wrong("campaign, single, crowd or growth")),
    }
}
