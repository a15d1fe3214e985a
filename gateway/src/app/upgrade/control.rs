//! Where `sluice upgrade` finds the running gateway: a Unix socket in the state folder, for the same user and root only.
//!
//! One line of JSON in, one out, one caller at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// The socket's name in the state folder.
const NAME: &str = "upgrade.sock";
/// One line.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// A caller says what it wants within this time.
const CALLER: Duration = Duration::from_secs(5);
/// And waits so long for what became of it: longer than the gateway tries.
const OUTCOME: Duration = Duration::from_secs(180);

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// The program that takes over; `None`: what stands now where the running one was started from.
    pub program: Option<PathBuf>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// Another process serves.
    Done {
        /// Its pid.
        pid: u32,
        /// The pid of the one that leaves.
        leaves: u32,
    },
    /// The same process serves.
    Failed(String),
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens.
    #[error("no gateway runs with this state folder ({}: {source})", path.display())]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was lost on the way.
    #[error("the gateway didn't say what became of the upgrade: {0}")]
    Lost(#[from] io::Error),
}

/// Asks the gateway of this state folder.
///
/// # Errors
/// It isn't there, or doesn't say what became of it.
pub fn call(state_folder: &Path, order: &Order) -> Result<Outcome, CallError> {
    let path = state_folder.join(NAME);
    let mut stream = StdUnixStream::connect(&path).map_err(|source| CallError::Nobody { path, source })?;
    stream.set_read_timeout(Some(OUTCOME))?;
    let mut line = serde_json::to_vec(order).map_err(io::Error::from)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX)).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(serde_json::from_str(&answer).map_err(io::Error::from)?)
}

/// The gateway's end.
pub struct Control {
    listener: UnixListener,
}

impl Control {
    /// Listens, in the place of whoever did before: this process serves now.
    ///
    /// # Errors
    /// The folder can't be written, or its path is too long for a socket.
    pub fn open(state_folder: &Path) -> io::Result<Control> {
        let (path, draft) = (state_folder.join(NAME), state_folder.join(format!("{NAME}.new")));
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&draft)?;
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(draft, path)?;
        Ok(Control { listener })
    }

    /// The next order, with whom to tell. Whoever isn't of this user, or says nothing that is one, gets no answer.
    pub async fn next(&self) -> (Order, Caller) {
        loop {
            match self.hear().await {
                Ok(called) => return called,
                Err(error) => {
                    tracing::warn!(%error, "a caller of the upgrade's socket");
                    // What can't be accepted now can't be accepted at once either.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn hear(&self) -> io::Result<(Order, Caller)> {
        let (mut stream, _) = self.listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        if uid != 0 && uid != rustix::process::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut line = Vec::new();
        let mut bounded = tokio::io::BufReader::new((&mut stream).take(LINE_BYTES_MAX));
        tokio::time::timeout(CALLER, bounded.read_until(b'\n', &mut line)).await??;
        Ok((serde_json::from_slice(&line)?, Caller(stream)))
    }
}

/// Who asked.
pub struct Caller(UnixStream);

impl Caller {
    /// Says what became of it; the caller may have left.
    pub async fn tell(mut self, outcome: &Outcome) {
        let Ok(mut line) = serde_json::to_vec(outcome) else {
            return;
        };
        line.push(b'\n');
        let _ = self.0.write_all(&line).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_order_comes_through_and_its_outcome_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        assert!(matches!(
            call(&path, &Order { program: None }),
            Err(CallError::Nobody { .. })
        ));
        let control = Control::open(&path).unwrap();
        let mode = std::fs::metadata(path.join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Who takes over opens it again.
        let control = {
            drop(control);
            Control::open(&path).unwrap()
        };
        let order = Order {
            program: Some("/usr/bin/sluice".into()),
        };
        let asked = order.clone();
        let calling = tokio::task::spawn_blocking(move || call(&path, &asked));
        let (heard, caller) = control.next().await;
        assert_eq!(heard, order);
        let outcome = Outcome::Done { pid: 2, leaves: 1 };
        caller.tell(&outcome).await;
        assert_eq!(calling.await.unwrap().unwrap(), outcome);
    }
}
