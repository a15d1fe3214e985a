//! A real vLLM on this CPU, started by `vllm/serve.sh` of the shared folder, ended with the process that started it.
//!
//! Statics aren't dropped, a test process can be killed, and vLLM runs in a session of its own. So each engine hangs on a
//! [`Leash`]: a shell that waits for our end of a pipe to close and then ends the engine's process group.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};

use crate::wire::Call;

/// The key that the engines ask for (`--api-key`). Only the gateway and the tests' own probes know it.
pub(crate) const KEY: &str = "sk-engine-of-the-tests";

/// A start takes 20 s; the first one on a machine installs 6 GB.
const START: Duration = Duration::from_secs(20 * 60);

/// How an engine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetUp {
    /// Without parsers: tags stay in the text, and Sluice does all of it.
    Raw,
    /// `--tool-call-parser hermes --reasoning-parser qwen3`.
    Parsers,
}

impl SetUp {
    pub(crate) const BOTH: [Self; 2] = [Self::Raw, Self::Parsers];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Parsers => "parsers",
        }
    }
}

/// The two processes of a vLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Server,
    Engine,
}

/// A running vLLM.
pub(crate) struct Engine {
    pub(crate) port: u16,
    group: Pid,
    leash: Option<Leash>,
}

/// The engine of a set-up that all tests share, started at its first use.
pub(crate) fn shared(set_up: SetUp) -> &'static Engine {
    static RAW: OnceLock<Result<Engine, String>> = OnceLock::new();
    static PARSERS: OnceLock<Result<Engine, String>> = OnceLock::new();
    let engine = match set_up {
        SetUp::Raw => &RAW,
        SetUp::Parsers => &PARSERS,
    };
    match engine.get_or_init(|| Engine::start(set_up)) {
        Ok(engine) => engine,
        Err(reason) => panic!("no vLLM ({}): {reason}", set_up.name()),
    }
}

impl Engine {
    /// Starts one more, on a free port.
    pub(crate) fn start(set_up: SetUp) -> Result<Self, String> {
        let script = serve_script()?;
        let port = free_port();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let log = folder.join(format!("vllm-{}-{port}.log", set_up.name()));
        let said = folder.join(format!("vllm-{}-{port}.serve.log", set_up.name()));
        let output = || File::create(&said).and_then(|file| Ok((file.try_clone()?, file)));
        let (stdout, stderr) = output().map_err(|error| format!("{}: {error}", said.display()))?;
        let begun = Instant::now();
        let serve = Command::new("bash")
            .arg(&script)
            .arg(set_up.name())
            // Sampling without top-k over the whole vocabulary, and prefill in small steps, so that an engine notices a
            // client that left within one step.
            .args(["--generation-config", "vllm", "--max-num-batched-tokens", "512"])
            .env("PORT", port.to_string())
            .env("API_KEY", KEY)
            .env("LOG", &log)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{}: {error}", script.display()))?;
        // From here on nothing that was started may outlive this function without a leash.
        let ended = wait(serve, START, "serve.sh");
        let group = leader_of(port);
        let words = fs::read_to_string(&said).unwrap_or_default();
        match (ended, group) {
            (Ok(true), Some(group)) => {
                eprintln!(
                    "vLLM ({}) on port {port} after {:.1} s",
                    set_up.name(),
                    begun.elapsed().as_secs_f32()
                );
                Ok(Self {
                    port,
                    group,
                    leash: Some(Leash::on(group)),
                })
            }
            (ended, group) => {
                if let Some(group) = group {
                    kill_process_group(group, Signal::KILL).ok();
                }
                let reason = ended.err().unwrap_or_else(|| "serve.sh failed".to_owned());
                Err(format!("{reason}: {} (log: {})", words.trim(), log.display()))
            }
        }
    }

    /// Where it listens.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Requests that the engine has in its running batch.
    pub(crate) fn running(&self) -> f64 {
        self.metric("vllm:num_requests_running")
    }

    /// The engine's own account of itself, past Sluice.
    fn metric(&self, name: &str) -> f64 {
        let call = Call {
            port: self.port,
            method: "GET",
            path: "/metrics",
            key: Some(KEY),
            headers: &[],
            body: None,
        };
        let page = call.whole().expect("an engine's metrics").text();
        let mut rows = page
            .lines()
            .filter(|row| row.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')));
        let row = rows.next().unwrap_or_else(|| panic!("{name} is among vLLM's metrics"));
        row.rsplit(' ').next().unwrap().parse().expect("a number")
    }

    /// Waits until the engine runs `count` requests, looking every 10 ms, and says how long that took.
    pub(crate) fn wait_running(&self, count: f64, limit: Duration) -> Duration {
        let begun = Instant::now();
        loop {
            let running = self.running();
            if running == count {
                return begun.elapsed();
            }
            assert!(
                begun.elapsed() < limit,
                "vLLM runs {running} requests instead of {count} after {limit:?}"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The same engine under another port, where something stands before it. It isn't ended with this value.
    pub(crate) fn seen_at(&self, port: u16) -> Self {
        Self {
            port,
            group: self.group,
            leash: None,
        }
    }

    /// A signal to its API server, or to the process of the engine behind it.
    pub(crate) fn signal(&self, process: Process, signal: Signal) {
        let pid = match process {
            Process::Server => self.group,
            Process::Engine => engine_of(self.group).expect("the engine has a process of its own"),
        };
        kill_process(pid, signal).expect("it runs");
    }

    /// `kill -9`, API server and engine alike.
    pub(crate) fn kill(&mut self) {
        kill_process_group(self.group, Signal::KILL).expect("the engine runs");
        if let Some(leash) = self.leash.take() {
            leash.let_go();
        }
    }
}

/// Ends a process group when this process ends, however it ends.
pub(crate) struct Leash(Child);

impl Leash {
    /// Takes `group` on the leash.
    pub(crate) fn on(group: Pid) -> Self {
        let group = group.as_raw_nonzero();
        // The shell outlives a Ctrl-C and waits for a word, or for the pipe's end.
        let script = format!(
            "trap '' INT TERM HUP
             read -r word && exit
             kill -s TERM -- -{group} 2> /dev/null || exit
             for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.5; kill -s 0 -- -{group} 2> /dev/null || exit; done
             kill -s KILL -- -{group}"
        );
        let shell = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        Self(shell.expect("sh starts"))
    }

    /// The group has ended already: nothing is left to do.
    pub(crate) fn let_go(mut self) {
        self.0.stdin.take().expect("the pipe").write_all(b"ended\n").ok();
        self.0.wait().ok();
    }
}

impl Drop for Engine {
    /// An engine of one test ends with it. (The shared ones are never dropped.)
    fn drop(&mut self) {
        let Some(leash) = self.leash.take() else { return };
        kill_process_group(self.group, Signal::KILL).ok();
        leash.let_go();
    }
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// Waits for a child's end and says whether it succeeded. One that takes too long is ended.
pub(crate) fn wait(mut child: Child, limit: Duration, name: &str) -> Result<bool, String> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status.success()),
            Ok(None) if begun.elapsed() < limit => thread::sleep(Duration::from_millis(20)),
            Ok(None) => {
                // Its group, if it leads one.
                kill_process_group(Pid::from_child(&child), Signal::KILL).ok();
                child.kill().ok();
                child.wait().ok();
                return Err(format!("{name} took longer than {limit:?}"));
            }
            Err(error) => return Err(format!("{name}: {error}")),
        }
    }
}

/// The folder with the fixtures.
fn shared_folder() -> PathBuf {
    std::env::var_os("SLUICE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    )
}

fn serve_script() -> Result<PathBuf, String> {
    let script = shared_folder().join("vllm/serve.sh");
    if script.is_file() {
        Ok(script)
    } else {
        Err(format!(
            "{} doesn't exist; set SLUICE_SHARED to the folder with vllm/serve.sh",
            script.display()
        ))
    }
}

/// The vLLM that listens on `port` leads a process group of its own; its command line names the port.
fn leader_of(port: u16) -> Option<Pid> {
    let port = port.to_string();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find_map(|number| {
            let pid = Pid::from_raw(number)?;
            let mut line = Vec::new();
            File::open(format!("/proc/{number}/cmdline"))
                .ok()?
                .take(64 << 10)
                .read_to_end(&mut line)
                .ok()?;
            let words: Vec<&[u8]> = line.split(|&byte| byte == 0).collect();
            let serves = words.iter().any(|word| word.ends_with(b"launch.py"))
                && words
                    .windows(2)
                    .any(|pair| pair[0] == b"--port" && pair[1] == port.as_bytes());
            // Forked children have the same command line; the leader is the one whose group is itself.
            (serves && test_kill_process_group(pid).is_ok()).then_some(pid)
        })
}

/// The engine's process, a child of the API server that calls itself so.
pub(crate) fn engine_of(server: Pid) -> Option<Pid> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .find_map(|number| {
            let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
            let (name, rest) = stat.rsplit_once(')')?;
            let parent = rest.split_whitespace().nth(1)?.parse::<i32>().ok()?;
            let is_it = name.contains("EngineCor") && parent == server.as_raw_nonzero().get();
            is_it.then(|| Pid::from_raw(number)).flatten()
        })
}
