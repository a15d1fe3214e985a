//! TCP_NODELAY on both sides: without it a token waits for the acknowledgement of the one before (up to 40 ms).
//!
//! A delay can't be asserted without a clock, and no file shows the option. So the sockets of the running gateway are
//! borrowed (`pidfd_getfd`, which a parent may do to its child) and asked.

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::json;
use socket2::SockRef;
use std::net::SocketAddr;

use super::harness::{Gateway, Replica, Request, Settings, delta};

/// Established TCP connections of the gateway: own address, other's address, and whether small writes leave at once.
fn connections(gateway: &Gateway) -> Vec<(SocketAddr, SocketAddr, bool)> {
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).unwrap()).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let mut connections = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap() {
        let entry = entry.unwrap();
        if !std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")) {
            continue;
        }
        let number = entry.file_name().to_string_lossy().parse().unwrap();
        let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
            .unwrap_or_else(|error| panic!("pidfd_getfd: {error}; a container needs CAP_SYS_PTRACE for this test"));
        let socket = SockRef::from(&socket);
        let address = |address: std::io::Result<socket2::SockAddr>| address.ok()?.as_socket();
        if let (Some(own), Some(other)) = (address(socket.local_addr()), address(socket.peer_addr())) {
            connections.push((own, other, socket.tcp_nodelay().unwrap()));
        }
    }
    connections
}

#[tokio::test]
async fn small_writes_leave_at_once_on_both_sides() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let upstream = replica.url().replace("http://", "").parse::<SocketAddr>().unwrap();
    let mut replica = replica;
    let mut client = gateway.open(Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.stream().await;
    client.head().await;
    asked.event(&delta(json!({"role": "assistant", "content": "hi"}))).await;
    client.read_to("hi").await;
    let connections = connections(&gateway);
    let (mut down, mut up) = (0, 0);
    for (own, other, at_once) in &connections {
        down += usize::from(*own == gateway.listen);
        up += usize::from(*other == upstream);
        assert!(at_once, "{own} to {other} waits for acknowledgements");
    }
    assert!(down >= 1 && up >= 1, "{connections:?}");
}
