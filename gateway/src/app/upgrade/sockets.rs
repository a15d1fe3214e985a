//! The listening sockets: bound by this process, or taken over from the one before.

use async_trait::async_trait;
use pingora_core::server::{Fds, ListenFds, ShutdownWatch};
use pingora_core::services::Service;
use pingora_core::services::listening;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd};
use std::sync::Arc;
use tokio::sync::watch;

use crate::downstream::listener::{Listener, Serve};

/// Copies of the sockets that are listened on, for a process that takes over. They keep a port open: dropped when this one leaves.
pub struct Sockets(Vec<(SocketAddr, TcpListener)>);

impl Sockets {
    /// Of these, each with its address as configured.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn of<'l>(listeners: impl IntoIterator<Item = (SocketAddr, &'l TcpListener)>) -> io::Result<Sockets> {
        let copies = listeners
            .into_iter()
            .map(|(address, listener)| Ok((address, listener.try_clone()?)));
        Ok(Sockets(copies.collect::<io::Result<_>>()?))
    }

    /// Where they listen.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|(address, _)| *address).collect()
    }

    /// Themselves, in the same order.
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.0.iter().map(|(_, socket)| socket.as_fd()).collect()
    }
}

/// Whether clients are let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Not yet: they wait in the accept queue.
    Shut,
    /// They are.
    Open,
    /// No more.
    Closed,
}

/// The clients' service over a socket that is there already; accepts when it is let.
pub struct Clients<S> {
    inner: listening::Service<Listener<S>>,
    address: String,
    socket: Option<TcpListener>,
    door: Arc<watch::Sender<Door>>,
}

impl<S: Serve> Clients<S> {
    /// `inner` has one listener, for `address`.
    pub fn new(
        inner: listening::Service<Listener<S>>,
        address: String,
        socket: TcpListener,
        door: Arc<watch::Sender<Door>>,
    ) -> Self {
        Clients {
            inner,
            address,
            socket: Some(socket),
            door,
        }
    }
}

#[async_trait]
impl<S: Serve> Service for Clients<S> {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, listeners_per_fd: usize) {
        let mut door = self.door.subscribe();
        let opened = tokio::select! {
            opened = door.wait_for(|door| *door == Door::Open) => opened.is_ok(),
            _ = shutdown.wait_for(|ends| *ends) => false,
        };
        let Some(socket) = self.socket.take().filter(|_| opened) else {
            return;
        };
        // pingora looks for an address in this table before it binds one, and owns what it finds.
        let mut fds = Fds::new();
        fds.add(self.address.clone(), socket.into_raw_fd());
        let fds: ListenFds = Arc::new(fds.into());
        self.inner.start_service(Some(fds), shutdown, listeners_per_fd).await;
        self.door.send_replace(Door::Closed);
    }

    fn name(&self) -> &str {
        self.inner.name()
    }

    fn threads(&self) -> Option<usize> {
        self.inner.threads()
    }
}
