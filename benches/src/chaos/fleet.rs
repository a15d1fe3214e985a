//! The gateway and its replicas as processes: the built `sluice serve` before several `sluice simulate`, each at a loopback address that
//! no other program here has.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What replicas serve.
pub(super) const MODEL: &str = "chaos/model-simulated";
/// The key that needs no file.
const KEY: &str = "sk-of-the-campaign";
/// Keys beside it.
const MORE_KEYS: [&str; 2] = ["first", "second"];
/// Something starts within this time, or not at all.
const START: Duration = Duration::from_secs(30);
/// Between two looks whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// A process that ends with its value.
struct Process(Child);

impl Process {
    fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One replica: where it listens, how it is started, and its process while it runs.
pub(super) struct Replica {
    sluice: PathBuf,
    address: SocketAddr,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl Replica {
    /// Starts it, if it doesn't run.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if self.process.is_none() {
            let child = Command::new(&self.sluice)
                .args(["simulate", "--listen", &self.address.to_string(), "--model", MODEL])
                .args(&self.arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            self.process = Some(Process(child));
        }
        Ok(())
    }

    /// Requests that it runs or lets wait.
    pub(super) fn present(&self) -> io::Result<f64> {
        sum(
            self.address,
            &["vllm:num_requests_running", "vllm:num_requests_waiting{"],
        )
    }

    /// `kill -9`.
    pub(super) fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and a moment to end by itself.
    pub(super) fn end(&mut self) {
        self.signal(Signal::TERM);
        std::thread::sleep(Duration::from_millis(300));
        self.process = None;
    }

    /// SIGSTOP, SIGCONT.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            process.signal(signal);
        }
    }
}

/// A gateway.
pub(super) struct Gateway {
    process: Process,
    /// Where clients reach it.
    pub(super) address: SocketAddr,
    admin: SocketAddr,
    /// What clients may present.
    pub(super) keys: Vec<String>,
    sluice: PathBuf,
    folder: PathBuf,
}

/// Descriptors that a process has open, and its resident memory in KiB.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    pub(super) descriptors: usize,
    pub(super) resident_kib: u64,
}

impl Usage {
    /// The larger one of each.
    pub(super) fn max(self, other: Usage) -> Usage {
        Usage {
            descriptors: self.descriptors.max(other.descriptors),
            resident_kib: self.resident_kib.max(other.resident_kib),
        }
    }
}

/// Starts replicas with these arguments each, and a gateway before them with these lines of `config.toml`.
pub(super) fn start(
    sluice: &Path,
    folder: &Path,
    replicas: &[Vec<String>],
    config: &str,
) -> io::Result<(Gateway, Vec<Replica>)> {
    let addresses = free(replicas.len() + 2)?;
    let ([listen, admin], rest) = addresses.split_first_chunk().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let mut started = Vec::new();
    let mut toml = format!(
        "[server]\nlisten = \"{listen}\"\nstate_dir = {:?}\nwrite_stall = \"2s\"\n[admin]\nlisten = \"{admin}\"\n{config}\n\
         [[backend]]\nname = \"chaos\"\nmodel = \"{MODEL}\"\n",
        folder.join("state")
    );
    for (number, (address, arguments)) in rest.iter().zip(replicas).enumerate() {
        let mut replica = Replica {
            sluice: sluice.to_owned(),
            address: *address,
            arguments: arguments.clone(),
            process: None,
        };
        replica.start()?;
        started.push(replica);
        let _ = writeln!(
            toml,
            "[[backend.replica]]\nname = \"r{number}\"\nlauncher = \"external\"\nurl = \"http://{address}\"\nprobe = \"500ms\""
        );
    }
    std::fs::create_dir_all(folder)?;
    let file = folder.join("config.toml");
    std::fs::write(&file, toml)?;
    let mut keys = vec![KEY.to_owned()];
    for name in MORE_KEYS {
        let arguments = ["key", "new", "--name", name, "--config"];
        let output = Command::new(sluice)
            .args(arguments)
            .arg(&file)
            .env("HOME", folder)
            .output()?;
        keys.push(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let child = Command::new(sluice)
        .args(["serve", "--config"])
        .arg(&file)
        .env("VLLM_MEDIUM_API_KEY", KEY)
        .env("HOME", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(folder.join("log"))?)
        .spawn()?;
    let gateway = Gateway {
        process: Process(child),
        address: *listen,
        admin: *admin,
        keys,
        sluice: sluice.to_owned(),
        folder: folder.to_owned(),
    };
    for address in addresses.iter().skip(2) {
        listens(*address)?;
    }
    listens(*listen)?;
    gateway.is_before(started.len())?;
    Ok((gateway, started))
}

fn listens(address: SocketAddr) -> io::Result<()> {
    let until = Instant::now() + START;
    while let Err(error) = TcpStream::connect_timeout(&address, START) {
        if Instant::now() >= until {
            return Err(error);
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Addresses that nobody listens at, bound at the same time so that they differ. The process has a loopback address of its own, for
/// what runs beside it looks for free ports too.
fn free(count: usize) -> io::Result<Vec<SocketAddr>> {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    // One above the address that the socket tests take, should a process of theirs run this.
    let own = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, a, b, c)) ^ 0x0080_0000);
    let bound: io::Result<Vec<TcpListener>> = (0..count).map(|_| TcpListener::bind((own, 0))).collect();
    bound?.iter().map(TcpListener::local_addr).collect()
}

/// The sum of these metrics.
fn sum(address: SocketAddr, names: &[&str]) -> io::Result<f64> {
    let mut socket = TcpStream::connect_timeout(&address, START)?;
    socket.set_read_timeout(Some(START))?;
    socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    let lines = text
        .lines()
        .filter(|line| names.iter().any(|name| line.starts_with(name)));
    let values: Vec<f64> = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect();
    if values.len() < names.len() {
        return Err(io::Error::other(format!("{address} doesn't say {names:?}")));
    }
    Ok(values.iter().sum())
}

impl Gateway {
    /// Requests that it works on or lets wait, by its own word.
    pub(super) fn present(&self) -> io::Result<f64> {
        sum(self.admin, &["sluice_in_flight", "sluice_queue_length"])
    }

    /// Waits until so many replicas are up.
    pub(super) fn is_before(&self, replicas: usize) -> io::Result<()> {
        let until = Instant::now() + START;
        while Instant::now() < until {
            if sum(self.admin, &["sluice_replica_up"]).is_ok_and(|up| up >= replicas as f64) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
        Err(io::Error::other(format!("the replicas aren't up:\n{}", self.log()?)))
    }

    /// It hasn't ended.
    pub(super) fn runs(&mut self) -> io::Result<bool> {
        Ok(self.process.0.try_wait()?.is_none())
    }

    /// What it holds now.
    pub(super) fn usage(&self) -> io::Result<Usage> {
        let process = PathBuf::from(format!("/proc/{}", self.process.0.id()));
        let status = std::fs::read_to_string(process.join("status"))?;
        let resident = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap_or_default();
        Ok(Usage {
            descriptors: std::fs::read_dir(process.join("fd"))?.count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap_or(0),
        })
    }

    /// What it has written to its log.
    pub(super) fn log(&self) -> io::Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(self.folder.join("log"))?).into_owned())
    }

    /// Its records, one JSON object a line.
    pub(super) fn records(&self, most: u64) -> io::Result<String> {
        let output = Command::new(&self.sluice)
            .args(["requests", "--json", "--limit", &most.to_string(), "--config"])
            .arg(self.folder.join("config.toml"))
            .env("HOME", &self.folder)
            .output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
