//! What systemd is told, where it asks (`Type=notify`): that the gateway is ready, and which process it is.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where systemd listens.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The gateway listens.
pub(super) fn ready() {
    say("READY=1");
}

/// Another process is the gateway now. Said by the old one: systemd hears the main process only.
pub(super) fn main_process(pid: u32) {
    say(&format!("MAINPID={pid}"));
}

fn say(text: &str) {
    let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) else {
        return;
    };
    if let Err(error) = send(&path, text) {
        tracing::warn!(%error, "systemd can't be told");
    }
}

fn send(path: &OsStr, text: &str) -> io::Result<()> {
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}
