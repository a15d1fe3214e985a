//! Who sits on a port, and is there a vLLM: what the start-up messages need.

use std::fmt;

use super::probe;
use super::procfs;
use crate::upstream::Address;

/// The process that listens on a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its pid; none if it belongs to another user, or to another container.
    pub pid: Option<i32>,
    /// Its command line, keys masked.
    pub command: String,
}

impl Holder {
    fn is_vllm(&self) -> bool {
        let word = |arg: &str| {
            arg.rsplit('/')
                .next()
                .is_some_and(|name| name == "vllm" || name.starts_with("vllm."))
        };
        self.command.starts_with("VLLM::") || self.command.split(' ').any(word)
    }

    fn is_container(&self) -> bool {
        self.command.split(' ').next().is_some_and(|program| {
            ["docker-proxy", "rootlessport", "slirp4netns", "conmon"]
                .iter()
                .any(|name| program.ends_with(name))
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}: {}", self.command),
            None => f.write_str(&self.command),
        }
    }
}

/// Who listens on `port` of this machine, on any address; none if nobody does. Reads `/proc`, so Linux only.
pub fn port_holder(port: u16) -> Option<Holder> {
    let inodes = procfs::listening_inodes(port);
    if inodes.is_empty() {
        return None;
    }
    let pid = procfs::pids().find(|&pid| procfs::has_socket(pid, &inodes));
    let command = match pid {
        Some(pid) => procfs::command_line(pid).unwrap_or_else(|| "a process that has just ended".to_owned()),
        None => "a process that this user can't see (sudo ss -ltnp names it)".to_owned(),
    };
    Some(Holder { pid, command })
}

/// The pid of a process among `pids` that listens on `port`.
pub(super) fn listener_among(port: u16, pids: impl IntoIterator<Item = i32>) -> Option<i32> {
    let inodes = procfs::listening_inodes(port);
    pids.into_iter()
        .find(|&pid| !inodes.is_empty() && procfs::has_socket(pid, &inodes))
}

/// What to print when the gateway's own port is taken: by whom, and the move that puts the gateway in front.
///
/// Where vLLM itself sits there, clients need no change: it moves to `vllm_port`, and the gateway takes the port they know.
pub fn busy_port_message(port: u16, holder: Option<&Holder>, vllm_port: u16) -> String {
    let Some(holder) = holder else {
        return format!(
            "port {port} is taken, by whom can't be seen; `sudo ss -ltnp 'sport = :{port}'` names the process"
        );
    };
    let held = format!("port {port} is held by {holder}");
    let move_it = if holder.is_container() {
        format!("publish the container's port as \"127.0.0.1:{vllm_port}:...\" in its compose file, and start it anew")
    } else if holder.is_vllm() {
        format!("start that vLLM anew with --host 127.0.0.1 --port {vllm_port} instead of {port}")
    } else {
        return format!("{held}\nEnd it, or give Sluice another address: --listen, or [server] listen.");
    };
    format!(
        "{held}\nTwo steps put Sluice in front of it, and no client has to change:\n  1. {move_it}\n  \
         2. sluice serve --backend http://127.0.0.1:{vllm_port}   (--backend-key-env NAME if it wants a key)"
    )
}

/// The version of a vLLM that answers at `address` (`host:port`); none if nobody does, or something else. Takes 5 s at most for
/// each of two looks, and a few milliseconds where nobody listens.
pub async fn vllm_at(address: &str) -> Option<String> {
    let address = Address::from_url(&format!("http://{address}")).ok()?;
    let version = probe::version(&address).await?;
    probe::health(&address).await.then_some(version)
}

/// The one line that uses a vLLM that [`vllm_at`] found.
pub fn vllm_hint(address: &str, version: &str) -> String {
    format!("a vLLM {version} answers on {address}; to use it: sluice serve --backend http://{address}")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn holder(pid: Option<i32>, command: &str) -> Holder {
        Holder {
            pid,
            command: command.to_owned(),
        }
    }

    #[test]
    fn we_are_named_as_the_holder_of_our_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let me = i32::try_from(std::process::id()).unwrap();
        let found = port_holder(port).unwrap();
        assert_eq!(found.pid, Some(me));
        assert!(!found.command.is_empty());
        assert_eq!(listener_among(port, [1, me]), Some(me));
        assert_eq!(listener_among(port, [i32::MAX]), None);
        drop(listener);
        assert_eq!(port_holder(port), None);
    }

    #[test]
    fn ipv6_listeners_count() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        assert!(port_holder(listener.local_addr().unwrap().port()).is_some());
    }

    #[test]
    fn the_deployment_gets_its_two_steps() {
        let vllm = holder(
            Some(812),
            "/usr/bin/python3 /usr/local/bin/vllm serve Qwen/Qwen3-32B-AWQ --port 5002",
        );
        assert_eq!(
            busy_port_message(5002, Some(&vllm), 8000),
            "port 5002 is held by pid 812: /usr/bin/python3 /usr/local/bin/vllm serve Qwen/Qwen3-32B-AWQ --port 5002\n\
             Two steps put Sluice in front of it, and no client has to change:\n  \
             1. start that vLLM anew with --host 127.0.0.1 --port 8000 instead of 5002\n  \
             2. sluice serve --backend http://127.0.0.1:8000   (--backend-key-env NAME if it wants a key)"
        );
        let proxy = holder(
            Some(99),
            "/usr/bin/docker-proxy -proto tcp -host-port 5002 -container-ip 172.17.0.2",
        );
        let message = busy_port_message(5002, Some(&proxy), 8000);
        assert!(
            message.contains("\"127.0.0.1:8000:...\"") && message.contains("2. sluice serve"),
            "{message}"
        );
    }

    #[test]
    fn another_holder_is_only_named() {
        let message = busy_port_message(5002, Some(&holder(Some(7), "nginx: master process")), 8000);
        assert!(
            message.starts_with("port 5002 is held by pid 7: nginx") && !message.contains("sluice serve"),
            "{message}"
        );
        let message = busy_port_message(5002, None, 8000);
        assert!(message.contains("ss -ltnp"), "{message}");
    }

    #[tokio::test]
    async fn nobody_is_no_vllm() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(vllm_at(&format!("127.0.0.1:{port}")).await, None);
        assert!(vllm_hint("127.0.0.1:8000", "0.32.0").contains("sluice serve --backend http://127.0.0.1:8000"));
    }
}
