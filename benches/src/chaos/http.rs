//! An agent's connection: HTTP/1.1 by hand on a blocking socket, so that pauses, leaving and cut-off ends are exactly what the agent does.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// An answer that takes longer than this never ends: a long one whose replicas are lost three times takes a minute and a half.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at the clock.
const LOOK: Duration = Duration::from_secs(5);
/// Head lines of an answer.
const LINES_MAX: usize = 64;
/// What is read at once.
const PIECE_BYTES: usize = 16 * 1024;

/// A connection to the gateway.
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
    key: String,
}

/// How much is left of a body.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// Of the body.
    Length(u64),
    /// Of this chunk; then another one follows.
    Chunk(u64),
    /// Nothing.
    Nothing,
}

/// An answer whose head has come.
pub(super) struct Answer<'c> {
    connection: &'c mut Connection,
    /// Of the head.
    pub(super) status: u16,
    left: Left,
    first_chunk: bool,
    until: Instant,
}

impl Connection {
    /// With this key. `narrow`: the socket takes little while nobody reads.
    pub(super) fn open(address: SocketAddr, key: &str, narrow: bool) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        if narrow {
            socket.set_recv_buffer_size(4096)?;
        }
        socket.connect_timeout(&address.into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LOOK))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection {
            stream: BufReader::with_capacity(PIECE_BYTES, stream),
            key: key.to_owned(),
        })
    }

    /// Sends a request. `session`: its header, if it has one.
    pub(super) fn send(&mut self, path: &str, id: &str, session: Option<&str>, body: &str) -> io::Result<()> {
        let session = session
            .map(|name| format!("x-session-id: {name}\r\n"))
            .unwrap_or_default();
        let (key, length) = (&self.key, body.len());
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\nx-request-id: {id}\r\n\
             {session}content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        let socket = self.stream.get_mut();
        socket.write_all(head.as_bytes())?;
        socket.write_all(body.as_bytes())
    }

    /// The head of its answer.
    ///
    /// # Errors
    /// `TimedOut`: none came. `UnexpectedEof`: the connection was closed.
    pub(super) fn answer(&mut self) -> io::Result<Answer<'_>> {
        let until = Instant::now() + PATIENCE;
        let status = self.line(until)?;
        let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("no status line"))?;
        let mut left = Left::Nothing;
        for _ in 0..LINES_MAX {
            let line = self.line(until)?.to_ascii_lowercase();
            if line.is_empty() {
                return Ok(Answer {
                    connection: self,
                    status,
                    left,
                    first_chunk: true,
                    until,
                });
            }
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("content-length", length)) => {
                    left = Left::Length(length.parse().map_err(io::Error::other)?);
                }
                Some(("transfer-encoding", "chunked")) => left = Left::Chunk(0),
                _ => {}
            }
        }
        Err(io::Error::other("more head lines than any answer has"))
    }

    /// One line without its end.
    fn line(&mut self, until: Instant) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            // What a timeout interrupts stays in `line`.
            match self.stream.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => break,
                Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => waits(error, until)?,
            }
        }
        let line = line.trim_ascii_end();
        Ok(String::from_utf8_lossy(line).into_owned())
    }

    fn piece(&mut self, most: u64, until: Instant) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; PIECE_BYTES.min(most as usize)];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    piece.truncate(length);
                    return Ok(piece);
                }
                Err(error) => waits(error, until)?,
            }
        }
    }
}

/// A read that only took longer than one look is tried again.
fn waits(error: io::Error, until: Instant) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if Instant::now() < until => Ok(()),
        io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

impl Answer<'_> {
    /// The next bytes of the body; `None` at its proper end.
    ///
    /// # Errors
    /// As [`Connection::answer`].
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Left::Chunk(0) = self.left {
            if !std::mem::take(&mut self.first_chunk) {
                self.connection.line(self.until)?;
            }
            let line = self.connection.line(self.until)?;
            let length = u64::from_str_radix(&line, 16).map_err(io::Error::other)?;
            if length == 0 {
                self.connection.line(self.until)?;
                self.left = Left::Nothing;
            } else {
                self.left = Left::Chunk(length);
            }
        }
        if Instant::now() >= self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let most = match self.left {
            Left::Nothing | Left::Length(0) => return Ok(None),
            Left::Length(left) | Left::Chunk(left) => left,
        };
        let piece = self.connection.piece(most, self.until)?;
        let left = most - piece.len() as u64;
        self.left = match self.left {
            Left::Chunk(_) => Left::Chunk(left),
            Left::Length(_) | Left::Nothing => Left::Length(left),
        };
        Ok(Some(piece))
    }

    /// All that is left of the body.
    ///
    /// # Errors
    /// As [`Connection::answer`].
    pub(super) fn rest(mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = self.next()? {
            body.extend(piece);
        }
        Ok(body)
    }
}
