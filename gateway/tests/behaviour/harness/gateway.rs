//! The built `sluice` as a process of its own, with a configuration and a folder of its own.

use std::fmt::Write as _;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

use super::client::{Client, Message, Request};
use super::replica::Replica;
use super::{BACKEND_KEY, KEY, MODEL, until, within};

/// Two tests may be given the same free port; then one of them tries again.
const STARTS: usize = 5;

/// What a gateway is started with.
#[derive(Clone, Default)]
pub(crate) struct Settings {
    /// Lines by section.
    sections: Vec<(String, String)>,
    replicas: Vec<(String, String)>,
    backend: String,
    environment: Vec<(String, PathBuf)>,
    more: String,
}

impl Settings {
    /// In front of these replicas, which are called `a`, `b`, …
    pub(crate) fn before(replicas: &[&Replica]) -> Self {
        let names = ('a'..='z').map(String::from);
        let replicas = names
            .zip(replicas.iter().map(|replica| external(&replica.url())))
            .collect();
        Settings {
            replicas,
            ..Settings::default()
        }
    }

    /// In front of so many simulated replicas.
    pub(crate) fn simulated(count: usize) -> Self {
        let names = ('a'..='z').map(String::from).take(count);
        let replicas = names
            .map(|name| (name, "launcher = \"simulated\"".to_owned()))
            .collect();
        Settings {
            replicas,
            ..Settings::default()
        }
    }

    /// In front of these replicas: names and lines.
    pub(crate) fn of(replicas: &[(&str, &str)]) -> Self {
        let replicas = replicas.iter();
        Settings {
            replicas: replicas
                .map(|(name, lines)| ((*name).to_owned(), (*lines).to_owned()))
                .collect(),
            ..Settings::default()
        }
    }

    /// One more line for each replica.
    pub(crate) fn each_replica(mut self, line: &str) -> Self {
        for (_, lines) in &mut self.replicas {
            let _ = write!(lines, "\n{line}");
        }
        self
    }

    /// The same with one more replica of these settings.
    pub(crate) fn with(mut self, name: &str, lines: &str) -> Self {
        self.replicas.push((name.to_owned(), lines.to_owned()));
        self
    }

    /// The same with one more external replica.
    pub(crate) fn with_external(self, name: &str, replica: &Replica) -> Self {
        self.with(name, &external(&replica.url()))
    }

    /// The same without this replica.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.replicas.retain(|(known, _)| known != name);
        self
    }

    /// The same with another name for this replica.
    pub(crate) fn renamed(mut self, was: &str, name: &str) -> Self {
        let known = self.replicas.iter_mut().find(|(known, _)| known == was);
        known.unwrap().0 = name.to_owned();
        self
    }

    /// The backend's own lines, in place of its model.
    pub(crate) fn backend(mut self, lines: &str) -> Self {
        self.backend = lines.to_owned();
        self
    }

    /// Everything behind the backend and its replicas.
    pub(crate) fn then(mut self, toml: &str) -> Self {
        self.more.push_str(toml);
        self
    }

    /// In front of whatever listens at these addresses and serves `model`.
    pub(crate) fn external(model: &str, addresses: &[SocketAddr]) -> Self {
        let names = ('a'..='z').map(String::from);
        let urls = addresses.iter().map(|address| external(&format!("http://{address}")));
        Settings {
            replicas: names.zip(urls).collect(),
            backend: format!("model = \"{model}\"\n"),
            ..Settings::default()
        }
    }

    /// One line of a section.
    pub(crate) fn set(mut self, section: &str, line: &str) -> Self {
        self.sections.push((section.to_owned(), line.to_owned()));
        self
    }

    /// A variable of its environment.
    pub(crate) fn env(mut self, name: &str, value: &Path) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same for `[limits]`.
    pub(crate) fn limit(self, line: &str) -> Self {
        self.set("limits", line)
    }

    fn toml(&self, listen: SocketAddr, admin: SocketAddr, folder: &Path) -> String {
        let given = [
            (
                "server".to_owned(),
                format!(
                    "listen = \"{listen}\"\nthreads = 2\nstate_dir = {:?}",
                    folder.join("state")
                ),
            ),
            ("admin".to_owned(), format!("listen = \"{admin}\"")),
        ];
        let mut names: Vec<&String> = Vec::new();
        for (name, _) in given.iter().chain(&self.sections) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let mut toml = String::new();
        for name in names {
            let _ = writeln!(toml, "[{name}]");
            for (_, line) in given
                .iter()
                .chain(&self.sections)
                .filter(|(section, _)| section == name)
            {
                let _ = writeln!(toml, "{line}");
            }
        }
        let _ = writeln!(toml, "[[backend]]\nname = \"test\"\nkey_env = \"TEST_BACKEND_KEY\"");
        if self.backend.is_empty() {
            let _ = writeln!(toml, "model = \"{MODEL}\"");
        } else {
            toml.push_str(&self.backend);
        }
        for (name, replica) in &self.replicas {
            let _ = writeln!(toml, "[[backend.replica]]\nname = \"{name}\"\n{replica}");
        }
        toml.push_str(&self.more);
        toml
    }

    /// Starts it and waits until all replicas are ready.
    pub(crate) async fn start(self) -> Gateway {
        let gateway = self.start_unready().await;
        let names: Vec<&str> = gateway
            .settings
            .replicas
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        gateway.has_ready(&names).await;
        gateway
    }

    /// Starts it and waits until it listens.
    pub(crate) async fn start_unready(self) -> Gateway {
        for _ in 0..STARTS {
            if let Some(gateway) = self.try_start().await {
                return gateway;
            }
        }
        panic!("no start with a port of its own in {STARTS} tries");
    }

    async fn try_start(&self) -> Option<Gateway> {
        let folder = tempfile::tempdir().unwrap();
        let [listen, admin] = free_addresses();
        let config = folder.path().join("config.toml");
        std::fs::write(&config, self.toml(listen, admin, folder.path())).unwrap();
        let log = folder.path().join("log");
        let child = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .env("VLLM_MEDIUM_API_KEY", KEY)
            .env("TEST_BACKEND_KEY", BACKEND_KEY)
            .env("HOME", folder.path())
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut gateway = Gateway {
            child,
            listen,
            admin,
            folder,
            settings: self.clone(),
            successors: Vec::new(),
        };
        let listens = until("the gateway listens", async || {
            match gateway.child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => tokio::net::TcpStream::connect(listen).await.is_ok().then_some(true),
            }
        })
        .await;
        let taken = gateway.log().contains("in use") || gateway.log().contains("is held by");
        assert!(listens || taken, "the gateway ended at its start:\n{}", gateway.log());
        listens.then_some(gateway)
    }
}

/// A gateway before two replicas.
pub(crate) async fn two() -> (Gateway, Replica, Replica) {
    two_with(|settings| settings).await
}

/// The same with `more` settings.
pub(crate) async fn two_with(more: impl FnOnce(Settings) -> Settings) -> (Gateway, Replica, Replica) {
    let (a, b) = (Replica::start().await, Replica::start().await);
    (more(Settings::before(&[&a, &b])).start().await, a, b)
}

fn external(url: &str) -> String {
    format!("launcher = \"external\"\nurl = \"{url}\"")
}

/// Bound at the same time: one after the other they may be one and the same. Each process of tests has a loopback address of its own:
/// a port that is free for a moment may be taken by a gateway of another one, and both would listen there.
fn free_addresses() -> [SocketAddr; 2] {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let bound = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::new(127, a, b, c), 0)).unwrap());
    bound.each_ref().map(|listener| listener.local_addr().unwrap())
}

/// A running gateway; it is ended with its value.
pub(crate) struct Gateway {
    child: Child,
    /// For clients.
    pub(crate) listen: SocketAddr,
    /// For operators.
    pub(crate) admin: SocketAddr,
    folder: TempDir,
    settings: Settings,
    /// Processes that took over.
    successors: Vec<u32>,
}

impl Gateway {
    /// A connection to it.
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.listen).await
    }

    /// One request on a connection of its own; the answer as a whole.
    pub(crate) async fn ask(&self, request: Request) -> Message {
        let mut client = self.connect().await;
        client.send(&request).await;
        client.message().await
    }

    /// The same, if it answers at all.
    pub(crate) async fn try_ask(&self, request: Request) -> Option<Message> {
        let mut client = Client::try_connect(self.listen).await?;
        client.send(&request).await;
        client.try_message().await
    }

    /// One request on a connection of its own, its head sent and its answer not read.
    pub(crate) async fn open(&self, request: Request) -> Client {
        let mut client = self.connect().await;
        client.send(&request).await;
        client
    }

    /// What it has written to its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// What operators see at `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        let mut client = Client::connect(self.admin).await;
        client.send(&Request::get("/metrics").without_key()).await;
        client.message().await.text()
    }

    /// Its file of records.
    pub(crate) fn records(&self) -> PathBuf {
        self.folder.path().join("state/requests.db")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it has used, in the kernel's ticks.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// These replicas are ready, and there are no others.
    pub(crate) async fn has_ready(&self, names: &[&str]) {
        until(&format!("{names:?} are ready"), async || {
            let health = self.try_ask(Request::get("/health").without_key()).await?.json();
            let replicas = health["replicas"].as_array()?;
            let all_ready = replicas.iter().all(|replica| replica["state"] == "ready");
            let mut known: Vec<&str> = replicas.iter().filter_map(|replica| replica["name"].as_str()).collect();
            let mut names = names.to_vec();
            known.sort_unstable();
            names.sort_unstable();
            (all_ready && known == names).then_some(())
        })
        .await;
    }

    /// Has these settings from now on, and is told.
    pub(crate) fn configure(&mut self, settings: Settings) {
        let toml = settings.toml(self.listen, self.admin, self.folder.path());
        self.settings = settings;
        let draft = self.folder.path().join("config.new");
        std::fs::write(&draft, toml).unwrap();
        std::fs::rename(draft, self.folder.path().join("config.toml")).unwrap();
        self.hang_up();
    }

    /// Its settings.
    pub(crate) fn settings(&self) -> Settings {
        self.settings.clone()
    }

    /// Rewrites its configuration with one more setting; it is not told.
    pub(crate) fn rewrite(&self, section: &str, line: &str) {
        let settings = self.settings.clone().set(section, line);
        let toml = settings.toml(self.listen, self.admin, self.folder.path());
        std::fs::write(self.folder.path().join("config.toml"), toml).unwrap();
    }

    /// A new key in its key file, by the command line with more arguments.
    pub(crate) fn new_key(&self, name: &str, more: &[&str]) -> String {
        let arguments = [&["new", "--name", name], more].concat();
        self.key_command(&arguments).trim().to_owned()
    }

    /// Takes a key out of its key file.
    pub(crate) fn revoke_key(&self, name: &str) {
        self.key_command(&["revoke", name]);
    }

    fn key_command(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_sluice"))
            .arg("key")
            .args(arguments)
            .arg("--config")
            .arg(self.folder.path().join("config.toml"))
            .env("HOME", self.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Tells it that another process is to take over.
    pub(crate) fn upgrade_command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        command.arg("upgrade").args(more).arg("--config").arg(self.config());
        command.env("HOME", self.folder.path());
        command
    }

    /// Another process takes over: its pid, or why it doesn't.
    pub(crate) async fn upgrade(&mut self, more: &[&str]) -> Result<u32, String> {
        let mut command = self.upgrade_command(more);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        if !output.status.success() {
            return Err(String::from_utf8(output.stderr).unwrap());
        }
        let said = String::from_utf8(output.stdout).unwrap();
        let pid = said.split(' ').nth(1).unwrap().parse().unwrap();
        self.successors.push(pid);
        Ok(pid)
    }

    /// Tells a process that took over to end.
    pub(crate) fn terminate_successor(&self, pid: u32) {
        assert!(self.successors.contains(&pid));
        signal(pid, rustix::process::Signal::TERM);
    }

    /// Tells it to end.
    pub(crate) fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Tells it to read its configuration again.
    pub(crate) fn hang_up(&self) {
        self.signal(rustix::process::Signal::HUP);
    }

    fn signal(&self, name: rustix::process::Signal) {
        signal(self.pid(), name);
    }

    /// Its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let child = &mut self.child;
        within("the gateway ends", async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }

    /// It hasn't ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// A process has ended; whoever is to reap it may not have done so.
pub(crate) fn is_gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(')')
                .map(|(_, rest)| rest.trim_start().starts_with('Z'))
        })
        .unwrap_or(true)
}

impl Drop for Gateway {
    fn drop(&mut self) {
        for pid in &self.successors {
            // Nobody else has this folder in its arguments.
            let folder = self.folder.path().to_str().unwrap();
            let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if arguments.contains(folder) {
                signal(*pid, rustix::process::Signal::KILL);
            }
        }
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the gateway\n{}", self.log());
        }
    }
}
