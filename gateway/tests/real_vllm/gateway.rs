//! The built `sluice serve` with a config, a port and a state folder of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::engine::{Engine, KEY, Leash, SetUp, free_port, shared};
use crate::script::MODEL;
use crate::wire::{Answer, Call, Whole};

/// The key of the tests' client.
pub(crate) const CLIENT_KEY: &str = "sk-client-of-the-tests";

/// A start and a clean end take well under a second; the bound is for a busy machine.
const READY: Duration = Duration::from_secs(30);
/// A record is written soon after the request's end.
const RECORDED: Duration = Duration::from_secs(10);

/// A running gateway.
pub(crate) struct Gateway {
    pub(crate) port: u16,
    child: Child,
    leash: Option<Leash>,
    home: TempDir,
}

impl Gateway {
    /// Before the shared engine of a set-up.
    pub(crate) fn before(set_up: SetUp) -> Self {
        Self::over(&[(set_up.name(), shared(set_up))])
    }

    /// Before replicas of one model.
    pub(crate) fn over(replicas: &[(&str, &Engine)]) -> Self {
        Self::over_with(replicas, "")
    }

    /// The same, with more sections in its configuration.
    pub(crate) fn over_with(replicas: &[(&str, &Engine)], sections: &str) -> Self {
        let replicas: Vec<String> = replicas
            .iter()
            .map(|(name, engine)| {
                format!(
                    "name = \"{name}\"\nlauncher = \"external\"\nurl = \"{}\"\n",
                    engine.url()
                )
            })
            .collect();
        let mut gateway = Self::start(&replicas, sections, "");
        gateway.wait_ready(READY);
        gateway
    }

    /// Before one that it launches itself, with these lines, and sections of its own before the backend; waits until it is ready.
    pub(crate) fn launching(replica: &str, sections: &str, profile: &str, limit: Duration) -> Self {
        let mut gateway = Self::start(&[replica.to_owned()], sections, &format!("profile = \"{profile}\"\n"));
        gateway.wait_ready(limit);
        gateway
    }

    fn start(replicas: &[String], sections: &str, backend: &str) -> Self {
        let home = TempDir::with_prefix("sluice-real-vllm-").expect("a folder for the test");
        let (port, admin_port) = (free_port(), free_port());
        let state = home.path().join("state");
        let mut config = format!(
            "[server]\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"{}\"\nkeep_alive = \"1s\"\n\n\
             [admin]\nlisten = \"127.0.0.1:{admin_port}\"\n\n{sections}\n\
             [[backend]]\nname = \"qwen3\"\nmodel = \"{MODEL}\"\naliases = [\"qwen3-alias\"]\nkey_env = \"ENGINE_KEY\"\n{backend}",
            state.display()
        );
        for replica in replicas {
            config += &format!("\n[[backend.replica]]\n{replica}");
        }
        fs::write(home.path().join("config.toml"), config).unwrap();
        let log = File::create(home.path().join("sluice.log")).unwrap();
        let child = sluice(&home, "serve")
            .env("VLLM_MEDIUM_API_KEY", CLIENT_KEY)
            .env("ENGINE_KEY", KEY)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("sluice starts");
        let leash = Some(Leash::on(Pid::from_child(&child)));
        Self {
            port,
            child,
            leash,
            home,
        }
    }

    fn wait_ready(&mut self, limit: Duration) {
        let begun = Instant::now();
        let health = Call {
            port: self.port,
            method: "GET",
            path: "/health",
            key: None,
            headers: &[],
            body: None,
        };
        while !health.whole().is_ok_and(|answer| answer.status == 200) {
            let ended = self.child.try_wait().expect("its state");
            assert!(
                ended.is_none(),
                "sluice ended at its start ({ended:?}):\n{}",
                self.log()
            );
            assert!(
                begun.elapsed() < limit,
                "sluice isn't ready after {limit:?}:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What an OpenAI client takes as `base_url`.
    pub(crate) fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }

    /// A POST with the client's key.
    pub(crate) fn post<'a>(&self, path: &'a str, headers: &'a [(&'a str, &'a str)], body: &'a Value) -> Call<'a> {
        Call {
            port: self.port,
            method: "POST",
            path,
            key: Some(CLIENT_KEY),
            headers,
            body: Some(body),
        }
    }

    /// A GET with the client's key.
    pub(crate) fn get<'a>(&self, path: &'a str) -> Call<'a> {
        Call {
            port: self.port,
            method: "GET",
            path,
            key: Some(CLIENT_KEY),
            headers: &[],
            body: None,
        }
    }

    /// A chat answer as one body.
    pub(crate) fn chat(&self, body: &Value) -> Whole {
        let answer = self.post("/v1/chat/completions", &[], body).whole().expect("an answer");
        assert_eq!(answer.status, 200, "{}", self.log());
        answer
    }

    /// A chat answer as a stream; `body` asks for one.
    pub(crate) fn stream(&self, id: &str, body: &Value) -> Answer {
        self.streams(id, &[("x-request-id", id)], body)
    }

    /// The same in a session.
    pub(crate) fn stream_in(&self, session: &str, id: &str, body: &Value) -> Answer {
        self.streams(id, &[("x-request-id", id), ("x-session-id", session)], body)
    }

    fn streams(&self, id: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
        let answer = self.post("/v1/chat/completions", headers, body).open().expect("a head");
        assert_eq!(answer.status, 200, "{}", self.log());
        assert_eq!(answer.headers.get("x-request-id"), Some(id));
        answer
    }

    /// The row of a request, once it is written: `sluice requests --json`.
    pub(crate) fn record(&self, id: &str) -> Value {
        let begun = Instant::now();
        loop {
            if let Some(row) = self.records().into_iter().find(|row| row["id"] == id) {
                return row;
            }
            assert!(
                begun.elapsed() < RECORDED,
                "no record of {id} after {RECORDED:?}:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The rows of the requests whose ids begin with `prefix`, once there are `count` of them.
    pub(crate) fn records_of(&self, prefix: &str, count: usize) -> Vec<Value> {
        let begun = Instant::now();
        loop {
            let mut rows = self.records();
            rows.retain(|row| row["id"].as_str().is_some_and(|id| id.starts_with(prefix)));
            if rows.len() >= count {
                assert_eq!(rows.len(), count, "one row for each request");
                return rows;
            }
            assert!(
                begun.elapsed() < RECORDED,
                "{} rows of {count} after {RECORDED:?}:\n{}",
                rows.len(),
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// A key that may send what is refused by default, taken up by the running gateway.
    pub(crate) fn key_with(&self, grant: &str) -> String {
        let made = sluice(&self.home, "key new")
            .args(["--name", "granted", "--grant", grant])
            .output()
            .expect("sluice key new");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        let key = std::str::from_utf8(&made.stdout).expect("text").trim().to_owned();
        let begun = Instant::now();
        let models = || Call {
            key: Some(&key),
            ..self.get("/v1/models")
        };
        while !models().whole().is_ok_and(|answer| answer.status == 200) {
            assert!(
                begun.elapsed() < READY,
                "the key isn't known after {READY:?}:\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
        key
    }

    /// All rows, one JSON object a line.
    fn records(&self) -> Vec<Value> {
        let listed = sluice(&self.home, "requests")
            .args(["--json", "--limit", "1000"])
            .output()
            .expect("sluice requests");
        let said = String::from_utf8_lossy(&listed.stderr);
        assert!(listed.status.success(), "{said}");
        let lines = std::str::from_utf8(&listed.stdout).expect("text").lines();
        lines
            .map(|line| serde_json::from_str(line).expect("a row is a JSON line"))
            .collect()
    }

    /// The end of its log, for a failed expectation.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(self.home.path().join("sluice.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// The first process of a replica that it has launched.
    pub(crate) fn launched(&self, replica: &str) -> Pid {
        let noted = self.home.path().join(format!("state/replicas/{replica}.json"));
        let noted: Value = serde_json::from_slice(&fs::read(noted).unwrap()).unwrap();
        let pid = noted["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).expect("its pid")
    }

    /// Every file that it has written: its log, its state folder.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.home.path().join("sluice.log")];
        let state = fs::read_dir(self.home.path().join("state")).expect("its state folder");
        files.extend(state.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
        files
    }

    /// SIGTERM; with nothing running it must leave at once and cleanly.
    fn stop(&mut self) -> Result<(), String> {
        kill_process(Pid::from_child(&self.child), Signal::TERM).map_err(|error| error.to_string())?;
        let begun = Instant::now();
        while begun.elapsed() < READY {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("it ended with {status}")),
                Ok(None) => thread::sleep(Duration::from_millis(20)),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(format!("it still runs {READY:?} after SIGTERM"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let stopped = self.stop();
        if stopped.is_err() {
            kill_process_group(Pid::from_child(&self.child), Signal::KILL).ok();
            self.child.wait().ok();
        }
        if let Some(leash) = self.leash.take() {
            leash.let_go();
        }
        if let Err(reason) = stopped
            && !thread::panicking()
        {
            panic!("sluice doesn't stop cleanly: {reason}\n{}", self.log());
        }
    }
}

fn sluice(home: &TempDir, subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command
        .args(subcommand.split(' '))
        .arg("--config")
        .arg(home.path().join("config.toml"));
    command
}
