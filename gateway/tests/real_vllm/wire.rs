//! An HTTP/1.1 client over a bare socket: it sees every byte as it comes and can leave at any moment.
//!
//! One request per connection. It tells a body that ended as its framing promised from one that was cut.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// No read may be silent for longer: a bound for the whole suite, generous for a busy machine.
const SILENCE: Duration = Duration::from_secs(60);
/// No body of these tests is larger.
const BODY_BYTES: u64 = 16 << 20;
/// No line of a head or a chunk header is longer.
const LINE_BYTES: u64 = 64 << 10;

/// A request to a loopback port.
pub(crate) struct Call<'a> {
    pub(crate) port: u16,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) key: Option<&'a str>,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: Option<&'a Value>,
}

impl Call<'_> {
    /// Sends the request and reads nothing.
    pub(crate) fn send(&self) -> io::Result<TcpStream> {
        let mut socket = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], self.port)), SILENCE)?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.set_write_timeout(Some(SILENCE))?;
        socket.set_nodelay(true)?;
        let mut head = format!(
            "{} {} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n",
            self.method, self.path, self.port
        );
        if let Some(key) = self.key {
            head += &format!("Authorization: Bearer {key}\r\n");
        }
        for (name, value) in self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let body = self.body.map(Value::to_string).unwrap_or_default();
        if self.body.is_some() {
            head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        socket.write_all((head + "\r\n" + &body).as_bytes())?;
        Ok(socket)
    }

    /// Sends the request and reads the answer's head.
    pub(crate) fn open(&self) -> io::Result<Answer> {
        Answer::read(self.send()?)
    }

    /// Sends the request and reads the whole answer. A body that was cut is an error.
    pub(crate) fn whole(&self) -> io::Result<Whole> {
        let mut answer = self.open()?;
        let mut body = Vec::new();
        answer.body.by_ref().take(BODY_BYTES).read_to_end(&mut body)?;
        Ok(Whole {
            status: answer.status,
            headers: answer.headers,
            body,
        })
    }
}

/// An answer whose body has been read.
pub(crate) struct Whole {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
}

impl Whole {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("status {}: the body is no JSON: {error}", self.status))
    }
}

/// The headers of an answer.
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(have, _)| have.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// An answer whose body is still coming.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    body: BufReader<Body>,
}

impl Answer {
    /// Reads the head of the answer to a request that was sent.
    pub(crate) fn read(socket: TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(socket);
        let status = line(&mut reader)?;
        let status = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no HTTP status line"))?;
        let mut headers = Headers(Vec::new());
        loop {
            let field = line(&mut reader)?;
            let Some((name, value)) = field.split_once(':') else {
                break;
            };
            headers.0.push((name.to_owned(), value.trim().to_owned()));
        }
        let framing = match headers.get("content-length") {
            Some(length) => Framing::Length(length.parse().map_err(io::Error::other)?),
            None if headers.get("transfer-encoding") == Some("chunked") => Framing::Chunk { left: 0, first: true },
            None => Framing::ToTheEnd,
        };
        Ok(Self {
            status,
            headers,
            body: BufReader::new(Body { reader, framing }),
        })
    }

    /// The next event of the stream with its closing blank line, or `None` at the body's proper end.
    pub(crate) fn event(&mut self) -> io::Result<Option<String>> {
        let mut event = String::new();
        loop {
            let before = event.len();
            if self.body.by_ref().take(BODY_BYTES).read_line(&mut event)? == 0 {
                return if event.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            if event.len() - before == 1 {
                return Ok(Some(event));
            }
        }
    }

    /// All further events.
    pub(crate) fn events(&mut self) -> io::Result<Vec<String>> {
        std::iter::from_fn(|| self.event().transpose()).collect()
    }

    /// Leaves: the connection is closed at once.
    pub(crate) fn leave(self) {
        let Body { reader, .. } = self.body.into_inner();
        reader.into_inner().shutdown(Shutdown::Both).ok();
    }
}

/// How far a body goes.
enum Framing {
    Length(u64),
    Chunk { left: u64, first: bool },
    ToTheEnd,
    Ended,
}

/// A body without its framing.
struct Body {
    reader: BufReader<TcpStream>,
    framing: Framing,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunk { left: left @ 0, first } = &mut self.framing {
            if !*first {
                line(&mut self.reader)?;
            }
            *first = false;
            let size = line(&mut self.reader)?;
            *left = u64::from_str_radix(size.split(';').next().unwrap_or_default(), 16).map_err(io::Error::other)?;
            if *left == 0 {
                line(&mut self.reader)?;
                self.framing = Framing::Ended;
            }
        }
        match &mut self.framing {
            Framing::Ended | Framing::Length(0) => Ok(0),
            Framing::ToTheEnd => self.reader.read(buffer),
            Framing::Length(left) | Framing::Chunk { left, .. } => {
                let got = self.reader.by_ref().take(*left).read(buffer)?;
                if got == 0 && !buffer.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                *left -= got as u64;
                Ok(got)
            }
        }
    }
}

/// One line without its end. End of file instead of it is an error: every line here is promised by the framing.
fn line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.take(LINE_BYTES).read_line(&mut line)?;
    if !line.ends_with('\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}
