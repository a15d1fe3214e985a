//! The launcher against real child processes: `fake_vllm.py` behaves and misbehaves as vLLM and its engine do.

use std::fs;
use std::path::PathBuf;

use tokio::time::timeout;

use super::super::tests::spec;
use super::super::{ExternalConfig, LauncherConfig, Settings, StartSimulation, Supervisor, SupervisorError};
use super::*;

const FAKE_VLLM: &str = include_str!("fake_vllm.py");

/// A state folder and a free port for one test.
struct Bench {
    folder: tempfile::TempDir,
    script: PathBuf,
    port: u16,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("fake_vllm.py");
        fs::write(&script, FAKE_VLLM).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Bench { folder, script, port }
    }

    fn config(&self, mode: &str) -> ProcessConfig {
        let mut config = ProcessConfig::on_port(self.port);
        config.command = vec!["python3".to_owned(), self.script.display().to_string()];
        config.env.insert("FAKE".to_owned(), mode.to_owned());
        config.stop_grace = Duration::from_secs(1);
        config
    }

    fn replica(&self, mode: &str) -> ReplicaSpec {
        spec("a", LauncherConfig::Process(self.config(mode)))
    }

    fn start(&self, spec: ReplicaSpec) -> Running {
        let settings = Settings {
            state_folder: self.folder.path().to_owned(),
            secret_variables: vec!["HOME".to_owned()], // stands for the clients' key: set wherever the tests run
        };
        let supervisor = Supervisor::start(settings, vec![spec], no_simulation()).unwrap();
        let state = supervisor.watch("a").unwrap();
        Running { supervisor, state }
    }

    fn entry(&self) -> Option<Entry> {
        let text = fs::read_to_string(self.folder.path().join("replicas/a.json")).ok()?;
        Some(serde_json::from_str(&text).unwrap())
    }
}

fn no_simulation() -> StartSimulation {
    Arc::new(|_, _| Err(io::Error::other("not in this test")))
}

struct Running {
    supervisor: Supervisor,
    state: watch::Receiver<ReplicaState>,
}

impl Running {
    async fn until(&mut self, what: &str, holds: impl FnMut(&ReplicaState) -> bool) -> ReplicaState {
        let found = timeout(Duration::from_secs(40), self.state.wait_for(holds))
            .await
            .map(|state| state.unwrap().clone());
        found.unwrap_or_else(|_| panic!("never {what}: {:?}", self.state.borrow()))
    }

    async fn ready(&mut self) -> ReplicaState {
        self.until("ready", |state| state.url().is_some()).await
    }

    /// The finding, failures, and whether there is a next try, once what crashed has been cleared away.
    async fn crashed(&mut self, failures: u32, again: bool) -> Finding {
        let state = self
            .until("crashed", |state| {
                matches!(state, ReplicaState::Crashed { restarts, next_try, .. } if *restarts == failures && next_try.is_some() == again)
            })
            .await;
        let ReplicaState::Crashed { finding, .. } = state else {
            panic!("{state:?}")
        };
        finding
    }
}

/// The living processes of a session, whoever started it.
fn members(session: i32) -> Vec<i32> {
    procfs::processes()
        .filter(|stat| stat.session == session && !stat.zombie)
        .map(|stat| stat.pid)
        .collect()
}

#[tokio::test]
async fn it_starts_answers_rests_and_starts_anew() {
    let bench = Bench::new();
    let mut replica = bench.replica("");
    replica.key = ReplicaKey::Given("sk-secret".to_owned());
    replica.aliases = vec!["alias".to_owned()];
    let mut running = bench.start(replica);
    let state = running.ready().await;
    let url = format!("http://127.0.0.1:{}", bench.port);
    assert!(
        matches!(&state, ReplicaState::Ready { url: at, version: Some(v), .. } if *at == url && v == "0.32.0"),
        "{state:?}"
    );

    let entry = bench.entry().expect("noted for the next gateway");
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", entry.pid)).unwrap();
    assert!(read("environ").split('\0').any(|pair| pair == "VLLM_API_KEY=sk-secret"));
    assert!(
        !read("environ").contains("\0HOME="),
        "the gateway's secrets stay with it"
    );
    assert!(
        read("cmdline").contains("\0serve\0Qwen/Qwen3-32B-AWQ\0"),
        "{}",
        read("cmdline")
    );
    assert!(!read("cmdline").contains("sk-secret") && !serde_json::to_string(&entry).unwrap().contains("sk-secret"));
    assert_eq!(entry.argv[2..4], ["serve", "Qwen/Qwen3-32B-AWQ"]);

    assert!(running.supervisor.rest("a") && !running.supervisor.rest("b"));
    running.until("stopped", |state| *state == ReplicaState::Stopped).await;
    assert_eq!(members(entry.pid), [0; 0]);
    assert_eq!(bench.entry(), None);
    assert!(running.supervisor.resume("a"));
    running.ready().await;
    let second = bench.entry().unwrap().pid;
    running.supervisor.shutdown().await;
    assert_eq!(members(second), [0; 0]);
    assert_eq!(bench.entry(), None);
}

#[tokio::test]
async fn a_crash_is_diagnosed_and_tried_again_after_a_pause() {
    let bench = Bench::new();
    let mut replica = bench.replica("oom");
    replica.key = ReplicaKey::Given("sk-secret".to_owned());
    let mut running = bench.start(replica);
    let first = running.crashed(1, true).await;
    let at = Instant::now();
    assert_eq!(first.diagnosis, Diagnosis::OutOfMemory);
    assert!(first.evidence[0].contains("Tried to allocate 50.00 MiB"), "{first:?}");
    running.crashed(2, true).await;
    assert!(
        at.elapsed() >= Duration::from_millis(1_900),
        "the first pause is 2 s: {:?}",
        at.elapsed()
    );
    let kept = fs::read_to_string(bench.folder.path().join("replicas/a.log.1")).unwrap();
    assert!(kept.contains("out of memory"), "the log of the start before is kept");
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn what_cannot_pass_is_not_tried_again_until_asked() {
    let bench = Bench::new();
    let mut running = bench.start(bench.replica("flag"));
    let finding = running.crashed(1, false).await;
    let first = running
        .until("given up", |state| matches!(state, ReplicaState::Crashed { .. }))
        .await;
    assert_eq!(finding.diagnosis, Diagnosis::UnknownFlag);
    assert_eq!(
        finding.evidence,
        ["vllm: error: unrecognized arguments: --enable-turbo"]
    );
    tokio::time::sleep(Duration::from_millis(2_500)).await; // longer than the first pause
    assert_eq!(*running.state.borrow(), first);
    running.supervisor.resume("a");
    running
        .until("another start", |state| matches!(state, ReplicaState::Starting { .. }))
        .await;
    running.crashed(1, false).await;
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn one_that_ignores_sigterm_is_killed_with_its_engine() {
    let bench = Bench::new();
    let mut running = bench.start(bench.replica("stubborn"));
    running.ready().await;
    let pid = bench.entry().unwrap().pid;
    assert_eq!(members(pid).len(), 2);
    let at = Instant::now();
    running.supervisor.shutdown().await;
    assert!(
        at.elapsed() >= Duration::from_secs(1),
        "it had its grace: {:?}",
        at.elapsed()
    );
    assert_eq!(members(pid), [0; 0]);
}

#[tokio::test]
async fn an_engine_left_behind_is_ended_before_the_next_start() {
    let bench = Bench::new();
    let mut running = bench.start(bench.replica("orphan"));
    running.ready().await;
    let pid = bench.entry().unwrap().pid;
    let engine = members(pid).into_iter().find(|member| *member != pid).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let clearing = running
        .until("crashed", |state| matches!(state, ReplicaState::Crashed { .. }))
        .await;
    assert!(
        matches!(clearing, ReplicaState::Crashed { next_try: None, .. }),
        "nothing starts while the engine lives: {clearing:?}"
    );
    assert_eq!(members(pid), [engine]);
    let finding = running.crashed(1, true).await;
    assert!(finding.evidence.last().unwrap().contains("signal 9"), "{finding:?}");
    assert_eq!(members(pid), [0; 0], "the engine ignored SIGTERM and was killed");
    running.ready().await;
    assert_ne!(bench.entry().unwrap().pid, pid);
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn one_that_never_listens_is_ended_with_the_last_look_as_proof() {
    let bench = Bench::new();
    let mut config = bench.config("deaf");
    config.start_timeout = Duration::from_secs(1);
    let mut running = bench.start(spec("a", LauncherConfig::Process(config)));
    let pid = bench.entry();
    let finding = running.crashed(1, true).await;
    assert_eq!(finding.diagnosis, Diagnosis::Timeout);
    assert!(
        finding.evidence[0].starts_with("not ready after 1s: /health: "),
        "{finding:?}"
    );
    running.supervisor.shutdown().await;
    assert_eq!(pid.map_or(0, |entry| members(entry.pid).len()), 0);
}

#[tokio::test]
async fn one_that_serves_another_model_never_counts_as_ready() {
    let bench = Bench::new();
    let mut config = bench.config("other");
    config.start_timeout = Duration::from_secs(3);
    let mut running = bench.start(spec("a", LauncherConfig::Process(config)));
    let finding = running.crashed(1, true).await;
    assert!(
        finding.evidence[0].ends_with("/v1/models lists `something-else`, not `m`"),
        "{finding:?}"
    );
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_holder_before_anything_starts() {
    let bench = Bench::new();
    let _listener = std::net::TcpListener::bind(("127.0.0.1", bench.port)).unwrap();
    let mut running = bench.start(bench.replica(""));
    let finding = running.crashed(1, true).await;
    assert_eq!(finding.diagnosis, Diagnosis::PortTaken);
    let holder = format!("port {} is held by pid {}: ", bench.port, std::process::id());
    assert!(finding.evidence[0].starts_with(&holder), "{finding:?}");
    assert_eq!(bench.entry(), None);
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn the_health_of_a_stranger_on_the_port_is_not_ours() {
    let bench = Bench::new();
    let mut config = bench.config("deaf");
    config.start_timeout = Duration::from_secs(5);
    let mut running = bench.start(spec("a", LauncherConfig::Process(config)));
    let launched = || bench.entry().is_some();
    while !launched() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let args: Vec<String> = [
        &bench.script.display().to_string(),
        "--port",
        &bench.port.to_string(),
        "--served-model-name",
        "m",
    ]
    .map(str::to_owned)
    .to_vec();
    let log = fs::File::create(bench.folder.path().join("stranger.log")).unwrap();
    let mut stranger = Session::spawn("python3", &args, &[], log).unwrap();
    let finding = running.crashed(1, true).await;
    let held = format!("port {} answers, but is held by pid {}", bench.port, stranger.pid());
    assert!(finding.evidence[0].contains(&held), "{finding:?}");
    running.supervisor.shutdown().await;
    stranger.signal(Signal::KILL);
    stranger.ended().await;
    while !stranger.is_gone() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_external_one_is_watched_and_named_when_it_refuses_us() {
    let bench = Bench::new();
    let args = [
        &bench.script.display().to_string(),
        "--port",
        &bench.port.to_string(),
        "--served-model-name",
        "m",
    ];
    let args: Vec<String> = args.map(str::to_owned).to_vec();
    let log = fs::File::create(bench.folder.path().join("external.log")).unwrap();
    let environment = [(KEY_VARIABLE.to_owned(), Some("sk-1".to_owned()))];
    let mut vllm = Session::spawn("python3", &args, &environment, log).unwrap();
    let url = format!("http://127.0.0.1:{}", bench.port);
    let external = |key: &str| ReplicaSpec {
        key: ReplicaKey::Given(key.to_owned()),
        ..spec(
            "a",
            LauncherConfig::External(ExternalConfig {
                url: url.clone(),
                probe: Duration::from_secs(1),
            }),
        )
    };
    let mut running = bench.start(external("sk-1"));
    let state = running.ready().await;
    assert!(
        matches!(&state, ReplicaState::Ready { url: at, .. } if *at == url),
        "{state:?}"
    );
    running.supervisor.shutdown().await;
    assert!(!vllm.is_gone(), "it isn't ours to end");

    let mut running = bench.start(external("sk-2"));
    let state = running
        .until("refused", |state| matches!(state, ReplicaState::Unreachable { .. }))
        .await;
    let ReplicaState::Unreachable { why, .. } = state else {
        panic!("{state:?}")
    };
    assert!(why.contains("401") && why.contains("key_env"), "{why}");
    running.supervisor.shutdown().await;

    let mut running = bench.start(external("sk-1"));
    running.ready().await;
    while !vllm.is_gone() {
        vllm.signal(Signal::KILL);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running
        .until("gone", |state| matches!(state, ReplicaState::Unreachable { .. }))
        .await;
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn without_its_key_or_program_nothing_starts() {
    let bench = Bench::new();
    let mut replica = bench.replica("");
    replica.key = ReplicaKey::Missing {
        variable: "VLLM_MEDIUM_KEY".to_owned(),
    };
    let mut running = bench.start(replica);
    let finding = running.crashed(1, false).await;
    assert_eq!(finding.diagnosis, Diagnosis::MissingApiKey);
    assert!(finding.evidence[0].contains("VLLM_MEDIUM_KEY"), "{finding:?}");
    assert_eq!(bench.entry(), None);
    running.supervisor.shutdown().await;

    let mut config = bench.config("");
    config.command = vec!["sluice-no-such-vllm".to_owned()];
    let mut running = bench.start(spec("a", LauncherConfig::Process(config)));
    let finding = running.crashed(1, false).await;
    assert_eq!(finding.diagnosis, Diagnosis::CommandNotFound);
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn one_left_running_is_taken_over_if_it_is_what_would_be_started() {
    let bench = Bench::new();
    let leaving = |mode: &str| {
        let config = ProcessConfig {
            on_exit: OnExit::Leave,
            ..bench.config(mode)
        };
        spec("a", LauncherConfig::Process(config))
    };
    let mut running = bench.start(leaving(""));
    running.ready().await;
    let first = bench.entry().unwrap();
    running.supervisor.shutdown().await;
    assert_eq!(members(first.pid), [first.pid], "left, as configured");

    let mut running = bench.start(leaving(""));
    running.ready().await;
    assert_eq!(bench.entry().unwrap(), first, "the very same process");
    running.supervisor.shutdown().await;

    let mut changed = leaving("");
    changed.model = "m2".to_owned();
    let mut running = bench.start(changed);
    running.ready().await;
    let second = bench.entry().unwrap();
    assert_ne!(second.pid, first.pid);
    assert_eq!(members(first.pid), [0; 0], "ended before the other was started");
    running.supervisor.shutdown().await;
    assert_eq!(members(second.pid), [second.pid]);

    // the replica is no longer configured: it is ended
    let settings = Settings {
        state_folder: bench.folder.path().to_owned(),
        secret_variables: Vec::new(),
    };
    let supervisor = Supervisor::start(settings, Vec::new(), no_simulation()).unwrap();
    timeout(Duration::from_secs(20), async {
        while bench.entry().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the stray is ended");
    assert_eq!(members(second.pid), [0; 0]);
    supervisor.shutdown().await;
}

#[tokio::test]
async fn another_gateway_takes_over_and_gives_back() {
    let bench = Bench::new();
    let spec = bench.replica("");
    let mut running = bench.start(spec.clone());
    running.ready().await;
    let before = bench.entry().unwrap();
    running.supervisor.let_go().await;
    assert!(running.supervisor.has_let_go());
    // Nobody holds the lock: it can be taken while this supervisor lives.
    let mut other = bench.start(spec.clone());
    other.ready().await;
    assert_eq!(bench.entry().unwrap(), before);
    other.supervisor.let_go().await;
    running.supervisor.take_back(vec![spec]).unwrap();
    running.state = running.supervisor.watch("a").unwrap();
    running.ready().await;
    assert_eq!(bench.entry().unwrap(), before);
    // A supervisor that has let go ends nothing.
    other.supervisor.shutdown().await;
    assert!(members(before.pid).contains(&before.pid));
    running.supervisor.shutdown().await;
    assert!(members(before.pid).is_empty());
}

/// A gateway that is killed leaves its processes whatever `on_exit` says; the next one takes them over, and stops them in order.
#[test]
fn after_a_killed_gateway_the_next_takes_over() {
    let bench = Bench::new();
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let killed = runtime();
    let supervisor = killed.block_on(async {
        let mut running = bench.start(bench.replica(""));
        running.ready().await;
        running.supervisor
    });
    killed.shutdown_timeout(Duration::from_secs(10)); // its tasks are dropped where they stand
    drop(supervisor); // nobody hears it any more; the lock is released with it
    let first = bench.entry().unwrap();
    assert_eq!(members(first.pid), [first.pid]);
    runtime().block_on(async {
        // the lock is released when the last task of the killed runtime has been dropped, too
        let mut running = loop {
            let settings = Settings {
                state_folder: bench.folder.path().to_owned(),
                secret_variables: vec!["HOME".to_owned()],
            };
            match Supervisor::start(settings, vec![bench.replica("")], no_simulation()) {
                Ok(supervisor) => {
                    break Running {
                        state: supervisor.watch("a").unwrap(),
                        supervisor,
                    };
                }
                Err(SupervisorError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        };
        running.ready().await;
        assert_eq!(bench.entry().unwrap().pid, first.pid);
        running.supervisor.shutdown().await;
        assert_eq!(members(first.pid), [0; 0], "on_exit = stop");
    });
}

#[tokio::test]
async fn a_renamed_one_runs_on_with_its_files_and_its_name_and_port_wait_for_its_end() {
    let bench = Bench::new();
    let mut running = bench.start(bench.replica(""));
    running.ready().await;
    let first = bench.entry().unwrap();
    let renamed = bench.folder.path().join("replicas/b.json");
    let change = ("a".to_owned(), "b".to_owned(), ReplicaKey::NotWanted);
    running.supervisor.change(&[change]);
    while !renamed.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(bench.entry().is_none() && members(first.pid) == [first.pid]);
    assert!(running.state.borrow().url().is_some(), "it isn't started anew");

    // Dropped, and its port given to another one, which starts only when nothing is left of it.
    let leaving = running.supervisor.release("b").unwrap();
    let mut state = running.supervisor.add(bench.replica("")).unwrap();
    assert_eq!(members(first.pid), [first.pid], "it runs on until it is told to end");
    leaving.end().await;
    assert_eq!(members(first.pid), [0; 0]);
    assert!(!renamed.exists());
    let ready = timeout(Duration::from_secs(40), state.wait_for(|state| state.url().is_some())).await;
    ready.unwrap().unwrap();
    assert_ne!(bench.entry().unwrap().pid, first.pid);
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn one_gateway_owns_a_state_folder() {
    let bench = Bench::new();
    let running = bench.start(bench.replica("deaf"));
    let settings = Settings {
        state_folder: bench.folder.path().to_owned(),
        secret_variables: Vec::new(),
    };
    let second = Supervisor::start(settings, vec![bench.replica("deaf")], no_simulation());
    assert!(matches!(second, Err(SupervisorError::Locked { .. })));
    running.supervisor.shutdown().await;
}

#[tokio::test]
async fn wrong_specs_are_named() {
    let bench = Bench::new();
    let start = |specs: Vec<ReplicaSpec>| {
        let settings = Settings {
            state_folder: bench.folder.path().to_owned(),
            secret_variables: Vec::new(),
        };
        Supervisor::start(settings, specs, no_simulation())
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert!(start(vec![bench.replica(""), bench.replica("")]).contains("two replicas are named `a`"));
    let named = |name: &str| ReplicaSpec {
        name: name.to_owned(),
        ..bench.replica("")
    };
    for name in ["", "../x", ".hidden", "a b", &"x".repeat(65)] {
        assert!(start(vec![named(name)]).contains("replica name"), "{name}");
    }
    let with = |change: fn(&mut ProcessConfig)| {
        let mut config = bench.config("");
        change(&mut config);
        start(vec![spec("a", LauncherConfig::Process(config))])
    };
    assert!(with(|config| config.port = 0).contains("`a`: port"));
    assert!(with(|config| config.command.clear()).contains("`a`: command"));
    assert!(with(|config| drop(config.env.insert(KEY_VARIABLE.to_owned(), "k".to_owned()))).contains("key_env"));
}
