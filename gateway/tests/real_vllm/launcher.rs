//! The process launcher before a real vLLM: it is started with a profile's flags, becomes ready, answers, and nothing of it is
//! left when it has been stopped; a flag that it doesn't know is diagnosed from its own words; its own parser takes the flags of
//! every profile that ships.
//!
//! Needs `vllm/launch.py` of the shared folder (`SLUICE_SHARED`, else `shared/` beside the checkout) and the environment that
//! `vllm/serve.sh` installs (`VLLM_VENV`, else `~/.cache/vllm-cpu`); without them the tests fail and say so.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde_json::{Map, Value, json};
use sluice_gateway::supervisor::{
    LauncherConfig, ProcessConfig, ReplicaKey, ReplicaSpec, ReplicaState, Settings, StartSimulation, Supervisor,
    log_path,
};
use sluice_policy::profile::{Diagnosis, Profile, Serving, argv, builtin, builtins};
use tokio::sync::watch;

use crate::engine::{Leash, free_port};

const MODEL: &str = "Qwen/Qwen3-32B-AWQ";
const KEY: &str = "sk-of-the-launcher-test";
/// The profile that the tests' own begins from.
pub(crate) const BASE: &str = "chunked_only_safe";
/// A start takes 20 s of one core here; the machine may be busy.
pub(crate) const START: Duration = Duration::from_secs(180);

/// A real vLLM on this CPU and what starts it.
pub(crate) struct RealVllm {
    pub(crate) python: PathBuf,
    pub(crate) shared: PathBuf,
    pub(crate) model: PathBuf,
}

impl RealVllm {
    pub(crate) fn find() -> RealVllm {
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
        let home = || path("HOME").expect("HOME or VLLM_VENV is set").join(".cache/vllm-cpu");
        let venv = path("VLLM_VENV").unwrap_or_else(home);
        let found = RealVllm {
            python: venv.join("bin/python"),
            shared: path("SLUICE_SHARED").unwrap_or_else(beside).join("vllm"),
            model: path("VLLM_MODEL").unwrap_or_else(|| venv.join("tiny-qwen3")),
        };
        for needed in [
            found.shared.join("launch.py"),
            found.python.clone(),
            found.model.join("config.json"),
        ] {
            let needed = needed.display();
            assert!(
                Path::new(&needed.to_string()).exists(),
                "{needed} is missing; the shared vllm/serve.sh makes it"
            );
        }
        found
    }

    /// The tiny model with what a CPU can do, otherwise as the champion.
    fn profile(&self, extra: &[&str]) -> Profile {
        Profile::derived("cpu", builtin(BASE).unwrap(), self.changes(extra)).unwrap()
    }

    /// What differs from [`BASE`].
    pub(crate) fn changes(&self, extra: &[&str]) -> Map<String, Value> {
        let extra_args = [&["--enforce-eager", "--generation-config", "vllm"], extra].concat();
        let changes = json!({
            "model": self.model, "quantization": "engine-default", "dtype": "float32",
            "tensor_parallel_size": "engine-default", "gpu_memory_utilization": "engine-default",
            "max_model_len": 32768, "max_num_batched_tokens": 512, "kv_cache_dtype": "engine-default",
            "hf_overrides": "engine-default",
            "extra_args": extra_args,
        });
        let Value::Object(changes) = changes else {
            unreachable!("written as an object")
        };
        changes
    }

    fn replica(&self, port: u16, extra: &[&str]) -> ReplicaSpec {
        let mut config = ProcessConfig::on_port(port);
        config.command = [&self.python, &self.shared.join("launch.py")]
            .map(|path| path.display().to_string())
            .to_vec();
        config.env = [("PYTHONPATH".to_owned(), self.shared.display().to_string())].into();
        config.start_timeout = START;
        ReplicaSpec {
            name: "real".to_owned(),
            model: MODEL.to_owned(),
            aliases: vec!["qwen3".to_owned()],
            key: ReplicaKey::Given(KEY.to_owned()),
            profile: self.profile(extra),
            tls: None,
            launcher: LauncherConfig::Process(config),
        }
    }
}

fn start(folder: &Path, replica: ReplicaSpec) -> (Supervisor, watch::Receiver<ReplicaState>) {
    let no_simulation: StartSimulation = Arc::new(|_, _| Err(io::Error::other("not in this test")));
    let settings = Settings {
        state_folder: folder.to_owned(),
        secret_variables: Vec::new(),
    };
    let supervisor = Supervisor::start(settings, vec![replica], no_simulation).unwrap();
    let state = supervisor.watch("real").unwrap();
    (supervisor, state)
}

/// Ready, or given up.
async fn settled(folder: &Path, state: &mut watch::Receiver<ReplicaState>) -> ReplicaState {
    let settled = |state: &ReplicaState| state.url().is_some() || matches!(state, ReplicaState::Crashed { .. });
    match tokio::time::timeout(START, state.wait_for(settled)).await {
        Ok(state) => state.unwrap().clone(),
        Err(_) => panic!("neither ready nor given up, see {}", log_path(folder, "real").display()),
    }
}

/// (pid, name) of the processes of a session of which at least a thread lives, by the fields of `/proc/PID/stat`.
fn members(session: i32) -> Vec<(i32, String)> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_session = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let lives = fields[0] != "Z" || fields[17] != "1"; // state, threads
        (lives && fields[3].parse() == Ok(session)).then(|| (pid, name.to_owned()))
    };
    pids.filter_map(of_session).collect()
}

/// One chat request; status and body.
fn ask(port: u16, key: &str) -> (u16, Value) {
    let body = json!({
        "model": "qwen3", "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "Hello"}],
    });
    let body = body.to_string();
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Authorization: Bearer {key}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    socket.take(1 << 20).read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        serde_json::from_str(body).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_real_vllm_is_launched_answers_and_leaves_nothing_behind() {
    let (vllm, folder, port) = (RealVllm::find(), tempfile::tempdir().unwrap(), free_port());
    let (supervisor, mut state) = start(folder.path(), vllm.replica(port, &[]));
    let noted = folder.path().join("replicas/real.json");
    let begun = Instant::now();
    let pid = loop {
        assert!(begun.elapsed() < START, "nothing was launched: {:?}", state.borrow());
        match fs::read(&noted) {
            Ok(entry) => {
                break serde_json::from_slice::<Value>(&entry).unwrap()["pid"]
                    .as_i64()
                    .unwrap() as i32;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    // should this test be killed: the launcher is made so that its processes outlive it
    let leash = Leash::on(Pid::from_raw(pid).unwrap());

    let ready = settled(folder.path(), &mut state).await;
    let ReplicaState::Ready { url, version, .. } = ready else {
        panic!("{ready:?}")
    };
    assert_eq!(url, format!("http://127.0.0.1:{port}"));
    assert!(version.is_some_and(|version| version.starts_with("0.")));

    let (status, answer) = tokio::task::spawn_blocking(move || ask(port, KEY)).await.unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert!(
        cached.is_u64(),
        "the profile switches the details on: {}",
        answer["usage"]
    );
    let (status, _) = tokio::task::spawn_blocking(move || ask(port, "sk-another"))
        .await
        .unwrap();
    assert_eq!(status, 401, "the key reached it by environment");
    let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!arguments.contains(KEY));

    let before = members(pid);
    assert!(before.len() >= 2, "API server and engine: {before:?}");
    let begun = Instant::now();
    supervisor.shutdown().await;
    assert_eq!(members(pid), [], "nothing of its session is left");
    assert!(
        begun.elapsed() < Duration::from_secs(35),
        "SIGTERM and its grace: {:?}",
        begun.elapsed()
    );
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "and its first process is reaped"
    );
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("its port is free again");
    assert!(!noted.exists());
    leash.let_go();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_real_vllm_with_an_unknown_flag_is_diagnosed() {
    let (vllm, folder) = (RealVllm::find(), tempfile::tempdir().unwrap());
    let (supervisor, mut state) = start(folder.path(), vllm.replica(free_port(), &["--enable-turbo"]));
    let crashed = settled(folder.path(), &mut state).await;
    let ReplicaState::Crashed { finding, .. } = crashed else {
        panic!("{crashed:?}")
    };
    assert_eq!(finding.diagnosis, Diagnosis::UnknownFlag);
    assert!(
        finding.evidence.iter().any(|line| line.contains("--enable-turbo")),
        "{finding:?}"
    );
    supervisor.shutdown().await;
}

/// vLLM's own parser, without an engine: a flag that a version renames is found here, not on the GPU machine.
#[test]
fn a_real_vllm_understands_the_flags_of_every_builtin_profile() {
    const SCRIPT: &str = "
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = make_arg_parser(FlexibleArgumentParser())
for line in sys.stdin:
    args = parser.parse_args(json.loads(line)[1:])
    print(json.dumps([args.model_tag, args.max_model_len, args.enable_prefix_caching, args.hf_overrides,
                      args.gpu_memory_utilization, args.tool_call_parser, args.served_model_name]))
";
    let vllm = RealVllm::find();
    let mut python = Command::new(&vllm.python)
        .args(["-c", SCRIPT])
        .env("VLLM_NO_USAGE_STATS", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let names = [MODEL.to_owned()];
    let serving = Serving {
        host: "127.0.0.1",
        port: 8000,
        served_names: &names,
    };
    let mut lines = python.stdin.take().unwrap();
    for profile in builtins() {
        writeln!(lines, "{}", serde_json::to_string(&argv(profile, &serving)).unwrap()).unwrap();
    }
    drop(lines);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "vLLM's parser refused a profile");
    let said = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<Value> = said
        .lines()
        .filter(|line| line.starts_with('['))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), builtins().len(), "{said}");
    for (profile, row) in builtins().iter().zip(rows) {
        let overrides = profile.hf_overrides.set().cloned().unwrap_or_else(Map::new);
        let wanted = json!([
            profile.model,
            profile.max_model_len,
            profile.prefix_caching.set(),
            overrides,
            profile.gpu_memory_utilization,
            "hermes",
            [MODEL],
        ]);
        assert_eq!(row, wanted, "{}", profile.name);
    }
}
