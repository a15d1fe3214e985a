//! What the two processes say to each other: lines of JSON, the first of them with the sockets.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sluice_policy::admission::room::Holds;

use crate::keys::Spent;

/// A process of another form of these words refuses.
pub(super) const VERSION: u32 = 1;
/// Sockets that are handed on: clients, operators.
pub(super) const SOCKETS_MAX: usize = 2;
/// One line; the longest has a few dozen bytes for each of a thousand keys.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;

/// The old process's words.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ToSuccessor {
    /// Comes with the sockets.
    TakeOver {
        /// [`VERSION`].
        version: u32,
        /// Where each of the sockets listens, as configured.
        listens: Vec<SocketAddr>,
        /// Replicas that are ready.
        ready: Vec<String>,
    },
    /// The replicas are yours.
    Go,
    /// The clients are yours; this is what was and is taken. Said again for what ends later.
    Taken(Taken),
}

/// What requests of the old process take, of keys and replicas that have limits. Who isn't named takes nothing any more.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Taken {
    /// By the key's name: since it was last said.
    pub(super) keys: BTreeMap<String, Spent>,
    /// By the replica's name: now.
    pub(super) replicas: BTreeMap<String, Holds>,
}

/// The new process's words.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ToPredecessor {
    /// All is built.
    Prepared,
    /// New connections will be accepted.
    Serving,
    /// It isn't possible.
    Failed(String),
}

/// A word as a line.
pub(super) fn line<T: Serialize>(word: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(word)?;
    line.push(b'\n');
    Ok(line)
}

/// A line as a word.
pub(super) fn word<T: DeserializeOwned>(line: &[u8]) -> io::Result<T> {
    Ok(serde_json::from_slice(line)?)
}

/// Sends the first line, and the sockets with it.
pub(super) fn send(stream: &UnixStream, line: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("more sockets than are handed on"));
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
    if sent < line.len() {
        return Err(io::Error::other("the first word is too long"));
    }
    Ok(())
}

/// Receives the first line and the sockets. They aren't handed down to processes that are started.
pub(super) fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut line = vec![0; LINE_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut line)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds);
        }
    }
    line.truncate(received.bytes);
    if line.last() != Some(&b'\n') {
        line.extend(read_line(stream)?);
    }
    Ok((line, sockets))
}

/// The rest of a line; byte by byte, so that nothing behind it is taken. Lines are few and short.
pub(super) fn read_line(mut stream: &UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        if stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.extend(byte);
        if line.len() > LINE_BYTES_MAX {
            return Err(io::Error::other("a line without an end"));
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_socket_goes_from_one_to_the_other_with_who_waits_in_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (old, new) = UnixStream::pair().unwrap();
        let said = ToSuccessor::TakeOver {
            version: VERSION,
            listens: vec![address],
            ready: vec!["a".to_owned()],
        };
        send(&old, &line(&said).unwrap(), &[listener.as_fd()]).unwrap();
        // Its connection stands in the accept queue while the old process goes.
        let waiting = TcpStream::connect(address).unwrap();
        drop((listener, old));
        let (heard, mut sockets) = receive(&new).unwrap();
        assert!(matches!(
            word(&heard).unwrap(),
            ToSuccessor::TakeOver { version: VERSION, listens, ready } if listens == [address] && ready == ["a"]
        ));
        let listener = TcpListener::from(sockets.pop().unwrap());
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, waiting.local_addr().unwrap());
        assert!(sockets.is_empty());
        assert_eq!(read_line(&new).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
