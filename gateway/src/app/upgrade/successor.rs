//! The process that takes over from this one.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::UpgradeError;
use super::sockets::Sockets;
use super::wire::{self, Taken, ToPredecessor, ToSuccessor};

/// Configuration, keys, records and fleet are read within this time.
const PREPARE: Duration = Duration::from_secs(60);
/// Replicas that run are found again within this time; longer than the successor waits for them.
const SERVE: Duration = Duration::from_secs(60);
/// A process that has hung up ends within this time.
const END: Duration = Duration::from_secs(5);
/// Said to the process that is started, and not handed on by it.
pub const TAKES_OVER: &str = "--takes-over";

/// See the module. It lives on when this value is dropped: [`Successor::end`] ends it.
pub struct Successor {
    process: Child,
    stream: BufReader<UnixStream>,
}

impl Successor {
    /// Starts it with this process's arguments and environment, and hands it the sockets. `ready` are the replicas that are.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(program: Option<PathBuf>, sockets: &Sockets, ready: Vec<String>) -> Result<Successor, UpgradeError> {
        if std::process::id() == 1 {
            return Err(UpgradeError::FirstProcess);
        }
        let program = match program {
            Some(program) => program,
            None => own_program()?,
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let said = ToSuccessor::TakeOver {
            version: wire::VERSION,
            listens: sockets.addresses(),
            ready,
        };
        // Before there is a process: one that ends at once can't close its end before.
        wire::send(&ours, &wire::line(&said)?, &sockets.fds())?;
        ours.set_nonblocking(true)?;
        let stream = BufReader::new(UnixStream::from_std(ours)?);
        let process = Command::new(&program)
            .args(arguments(std::env::args_os().skip(1)))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn();
        match process {
            Ok(process) => Ok(Successor { process, stream }),
            Err(source) => Err(UpgradeError::Start {
                program: program.display().to_string(),
                source,
            }),
        }
    }

    /// Its pid.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits until all is built there.
    ///
    /// # Errors
    /// It can't, or says nothing.
    pub async fn prepared(&mut self) -> Result<(), UpgradeError> {
        match self.hears("prepared", PREPARE).await? {
            ToPredecessor::Prepared => Ok(()),
            word => Err(unexpected(word)),
        }
    }

    /// Hands over the replicas, and waits until it can serve.
    ///
    /// # Errors
    /// It can't, or says nothing.
    pub async fn serves(&mut self) -> Result<(), UpgradeError> {
        self.says(&ToSuccessor::Go).await?;
        match self.hears("serving", SERVE).await? {
            ToPredecessor::Serving => Ok(()),
            word => Err(unexpected(word)),
        }
    }

    /// Tells it what requests take here.
    ///
    /// # Errors
    /// It has gone.
    pub async fn taken(&mut self, taken: Taken) -> Result<(), UpgradeError> {
        self.says(&ToSuccessor::Taken(taken)).await
    }

    /// Ends it, and waits for that: what it had taken is free then.
    pub async fn end(mut self) {
        if let Err(error) = self.process.kill().await {
            tracing::warn!(%error, "the process that was to take over can't be ended");
        }
    }

    async fn says(&mut self, word: &ToSuccessor) -> Result<(), UpgradeError> {
        match self.stream.write_all(&wire::line(word)?).await {
            Err(error) if has_left(&error) => Err(self.ended(END).await),
            written => Ok(written?),
        }
    }

    /// It has closed its end: how it ended.
    async fn ended(&mut self, limit: Duration) -> UpgradeError {
        match tokio::time::timeout(limit, self.process.wait()).await {
            Ok(Ok(status)) => UpgradeError::Ended(status.to_string()),
            Ok(Err(error)) => UpgradeError::Talk(error),
            Err(_) => UpgradeError::Garbled("it hung up".to_owned()),
        }
    }

    async fn hears(&mut self, what: &'static str, limit: Duration) -> Result<ToPredecessor, UpgradeError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.stream).take(wire::LINE_BYTES_MAX as u64);
        let read = tokio::time::timeout(limit, bounded.read_until(b'\n', &mut line));
        match read.await.map_err(|_| UpgradeError::Late { what, limit })? {
            Ok(0) => return Err(self.ended(END).await),
            // What it was told and didn't read is lost with it.
            Err(error) if has_left(&error) => return Err(self.ended(END).await),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        wire::word(&line).map_err(|error| UpgradeError::Garbled(error.to_string()))
    }
}

fn has_left(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

fn unexpected(word: ToPredecessor) -> UpgradeError {
    match word {
        ToPredecessor::Failed(why) => UpgradeError::Failed(why),
        ToPredecessor::Prepared | ToPredecessor::Serving => UpgradeError::Garbled(format!("{word:?} out of its turn")),
    }
}

/// The file that this process was started from: where another one stands now, if it was replaced.
fn own_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let text = path.to_string_lossy();
    // Linux says so of a file that has another one in its place.
    Ok(match text.strip_suffix(" (deleted)") {
        Some(replaced) if !path.exists() => Path::new(replaced).to_path_buf(),
        _ => path,
    })
}

/// This process's arguments for the next one.
fn arguments(own: impl Iterator<Item = OsString>) -> Vec<OsString> {
    own.filter(|argument| argument != TAKES_OVER)
        .chain([TAKES_OVER.into()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_to_take_over_is_said_once() {
        let own = ["serve", "--config", "c.toml"];
        let first = arguments(own.map(OsString::from).into_iter());
        assert_eq!(first, ["serve", "--config", "c.toml", "--takes-over"]);
        assert_eq!(arguments(first.clone().into_iter()), first);
    }
}
