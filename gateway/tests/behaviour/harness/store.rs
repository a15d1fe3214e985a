//! A Redis or Valkey server of the test's own, on a loopback port of its own, without a file.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, AsyncTypedCommands, Client, IntoConnectionInfo};
use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

use super::until;

/// The server's password.
pub(crate) const STORE_PASSWORD: &str = "of-the-store";

/// Programs and the name that each is to be started by. Debian's `redis-tools` has the server under the name of one of its tools, and
/// starts no service, as `redis-server` would.
const PROGRAMS: [(&str, &str); 3] = [
    ("valkey-server", "valkey-server"),
    ("redis-server", "redis-server"),
    ("redis-check-rdb", "redis-server"),
];

/// See the module. It is ended with its value.
pub(crate) struct Store {
    child: Child,
    port: u16,
    arguments: Vec<String>,
    _folder: TempDir,
}

impl Store {
    /// Started, and ready.
    pub(crate) async fn start() -> Store {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let store = Store::with(port, folder, &["--port".to_owned(), port.to_string()]);
        store.is_ready().await;
        store
    }

    /// The same over TLS only, for `localhost`, with this certificate and its key.
    pub(crate) async fn start_tls([cert, key]: &[std::path::PathBuf; 2]) -> Store {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let own = |path: &Path| path.display().to_string();
        let tls = [
            ("--port", "0".to_owned()),
            ("--tls-port", port.to_string()),
            ("--tls-cert-file", own(cert)),
            ("--tls-key-file", own(key)),
            ("--tls-ca-cert-file", own(cert)),
            ("--tls-auth-clients", "no".to_owned()),
        ];
        let tls: Vec<String> = tls
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect();
        let store = Store::with(port, folder, &tls);
        until("the store listens", async || {
            tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()
        })
        .await;
        store
    }

    fn with(port: u16, folder: TempDir, more: &[String]) -> Store {
        let given = [
            ("--bind", "127.0.0.1".to_owned()),
            ("--dir", folder.path().display().to_string()),
            ("--save", String::new()),
            ("--appendonly", "no".to_owned()),
            ("--requirepass", STORE_PASSWORD.to_owned()),
        ];
        let given = given.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let arguments: Vec<String> = given.chain(more.iter().cloned()).collect();
        Store {
            child: spawn(&arguments),
            port,
            arguments,
            _folder: folder,
        }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Killed, as by a machine that goes down.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Back again after [`Store::kill`], with nothing in it.
    pub(crate) async fn again(&mut self) {
        self.child = spawn(&self.arguments);
        self.is_ready().await;
    }

    /// It takes connections and answers nothing.
    pub(crate) fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// It answers again.
    pub(crate) fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// All that is stored.
    pub(crate) async fn everything(&self) -> Vec<(String, String)> {
        let mut connection = self.connection().await.unwrap();
        let keys = connection.keys("*").await.unwrap();
        let mut all = Vec::with_capacity(keys.len());
        for key in keys {
            // It may have expired since.
            if let Some(value) = connection.get(&key).await.unwrap() {
                all.push((key, value));
            }
        }
        all
    }

    async fn is_ready(&self) {
        until("the store answers", async || self.connection().await?.ping().await.ok()).await;
    }

    async fn connection(&self) -> Option<MultiplexedConnection> {
        let info = format!("redis://:{STORE_PASSWORD}@127.0.0.1:{}", self.port);
        let client = Client::open(info.into_connection_info().unwrap()).unwrap();
        // As patient as the tests: the machine may be busy.
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(super::PATIENCE));
        client.get_multiplexed_async_connection_with_config(&config).await.ok()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(arguments: &[String]) -> Child {
    let started = PROGRAMS.iter().find_map(|(program, name)| {
        let mut command = Command::new(program);
        command.arg0(OsStr::new(name)).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().ok()
    });
    started.expect("no valkey-server, redis-server or redis-tools here: ./test installs one")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
