//! The process that this one takes over from.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::wire::{self, Taken, ToPredecessor, ToSuccessor};

/// The old process answers within this time, or it has gone.
const ANSWER: Duration = Duration::from_secs(60);

/// Why nothing can be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// `--takes-over` without a gateway that said it.
    #[error("--takes-over is said by a running gateway to its successor only; use `sluice upgrade`")]
    Nobody,
    /// The old process speaks otherwise.
    #[error("the running gateway speaks version {0} of what is said at an upgrade; restart it instead")]
    Version(u32),
    /// It doesn't speak as it should, or has gone.
    #[error("the running gateway can't be heard: {0}")]
    Talk(#[from] io::Error),
}

/// See the module.
pub struct Predecessor {
    stream: Arc<UnixStream>,
    sockets: Vec<(SocketAddr, TcpListener)>,
    ready: Vec<String>,
}

impl Predecessor {
    /// It speaks first, by this process's standard input.
    ///
    /// # Errors
    /// Nobody is there, or not one of our kind.
    pub fn meet() -> Result<Predecessor, TakeOverError> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream
            .set_read_timeout(Some(ANSWER))
            .map_err(|_| TakeOverError::Nobody)?;
        let (line, sockets) = wire::receive(&stream)?;
        let ToSuccessor::TakeOver {
            version,
            listens,
            ready,
        } = wire::word(&line)?
        else {
            return Err(out_of_turn().into());
        };
        if version != wire::VERSION {
            return Err(TakeOverError::Version(version));
        }
        let sockets = listens
            .into_iter()
            .zip(sockets.into_iter().map(TcpListener::from))
            .collect();
        Ok(Predecessor {
            stream: Arc::new(stream),
            sockets,
            ready,
        })
    }

    /// The socket that listens there, if it has one. Sockets that nobody takes are closed with this value.
    pub fn socket(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.sockets.iter().position(|(listens, _)| *listens == address)?;
        Some(self.sockets.swap_remove(at).1)
    }

    /// Replicas that were ready.
    pub fn ready(&self) -> &[String] {
        &self.ready
    }

    /// Says that all is built, and waits for the word to go.
    ///
    /// # Errors
    /// The old process has gone, or goes on by itself.
    pub fn prepared(&self) -> Result<(), TakeOverError> {
        self.tell().say(&ToPredecessor::Prepared)?;
        match self.hear()? {
            ToSuccessor::Go => Ok(()),
            _ => Err(out_of_turn().into()),
        }
    }

    /// Says that new connections are accepted as soon as it is known what is [taken](Self::taken) there.
    ///
    /// # Errors
    /// The old process has gone.
    pub fn serving(&self) -> Result<(), TakeOverError> {
        Ok(self.tell().say(&ToPredecessor::Serving)?)
    }

    /// What requests take there; blocks until it is told. `None`: the old process has left.
    ///
    /// # Errors
    /// It can't be heard.
    pub fn taken(&self) -> Result<Option<Taken>, TakeOverError> {
        // It may have nothing to say for as long as its streams run.
        self.stream.set_read_timeout(None)?;
        match self.hear() {
            Ok(ToSuccessor::Taken(taken)) => Ok(Some(taken)),
            Ok(_) => Err(out_of_turn().into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// For whoever finds that it isn't possible.
    pub fn tell(&self) -> Tell {
        Tell(self.stream.clone())
    }

    fn hear(&self) -> io::Result<ToSuccessor> {
        wire::word(&wire::read_line(&self.stream)?)
    }
}

fn out_of_turn() -> io::Error {
    io::Error::other("a word out of its turn")
}

/// Speaks to the old process.
#[derive(Clone)]
pub struct Tell(Arc<UnixStream>);

impl Tell {
    /// It isn't possible. Nobody is there to hear it if the old process has gone.
    pub fn failed(&self, why: &str) {
        let _ = self.say(&ToPredecessor::Failed(why.to_owned()));
    }

    fn say(&self, word: &ToPredecessor) -> io::Result<()> {
        (&*self.0).write_all(&wire::line(word)?)
    }
}
