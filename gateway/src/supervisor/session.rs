//! The processes of one launch: a session whose first process we started, or found running.
//!
//! Identity: a pid can be used again, so a process is (pid, start time) within one boot, and is only signalled through a pidfd
//! opened before that was compared. A pid is not given out again while any process has it as its session's id; therefore our own
//! child is reaped only after the rest of its session has gone, and a session whose leader's pid belongs to somebody else is
//! empty. vLLM's engine lives in the session of its API server and outlives it: "stopped" means that the session is empty.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, pidfd_open, pidfd_send_signal, waitid, waitpid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::procfs;

/// The session of one launch.
#[derive(Debug)]
pub(super) struct Session {
    pid: i32,
    start_ticks: u64,
    /// Readable when the first process has ended; none if it had ended before we came.
    leader: Option<AsyncFd<OwnedFd>>,
    /// Ours to reap, if we started it.
    child: Option<Child>,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    /// The program, or `setsid`, isn't there.
    #[error("`{0}` isn't found in PATH")]
    NotFound(String),
    /// The system refused.
    #[error("`{program}` can't be started: {source}")]
    System { program: String, source: io::Error },
}

impl Session {
    /// Starts `program` with `args` in a session of its own, its output appended to `log`. `environment` is applied last: a value
    /// sets a variable, none removes it. Must be called inside a tokio runtime.
    pub(super) fn spawn(
        program: &str,
        args: &[String],
        environment: &[(String, Option<String>)],
        log: File,
    ) -> Result<Session, SpawnError> {
        let system = |source| SpawnError::System {
            program: program.to_owned(),
            source,
        };
        let find = |name: &str| {
            let path = environment
                .iter()
                .rev()
                .find(|(name, _)| name == "PATH")
                .and_then(|(_, path)| path.clone());
            found(name, path).ok_or_else(|| SpawnError::NotFound(name.to_owned()))
        };
        find(program)?;
        let mut command = Command::new(find("setsid")?);
        command.arg(program).args(args).stdin(Stdio::null());
        command.stdout(log.try_clone().map_err(system)?).stderr(log);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let mut child = command.spawn().map_err(system)?;
        match Session::of_child(&child) {
            Ok((pid, start_ticks, leader)) => Ok(Session {
                pid,
                start_ticks,
                leader: Some(leader),
                child: Some(child),
            }),
            Err(error) => {
                // without a pidfd it can't be watched: end it, it has hardly begun
                let _ = child.kill();
                let _ = child.wait();
                Err(system(error))
            }
        }
    }

    fn of_child(child: &Child) -> io::Result<(i32, u64, AsyncFd<OwnedFd>)> {
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        let leader = watched(open(pid)?)?;
        // a child that nobody has reaped keeps its pid, ended or not
        let stat = procfs::stat(pid).ok_or_else(|| io::Error::other("no entry in /proc"))?;
        Ok((pid, stat.start_ticks, leader))
    }

    /// Takes over what is left of an earlier launch, which the caller knows to be of this boot; none if nothing is.
    pub(super) fn adopt(pid: i32, start_ticks: u64) -> io::Result<Option<Session>> {
        let session = |leader| Session {
            pid,
            start_ticks,
            leader,
            child: None,
        };
        let pidfd = open(pid).ok(); // before the look at it: it stays the process that we looked at
        match procfs::stat(pid) {
            Some(stat) if stat.start_ticks != start_ticks => Ok(None), // the pid is somebody else's: the session was empty
            Some(stat) if !stat.zombie => match pidfd {
                Some(pidfd) => Ok(Some(session(Some(watched(pidfd)?)))),
                None => Err(io::Error::other("the process can't be opened")),
            },
            _ => {
                let rest = session(None);
                Ok((!rest.members().is_empty()).then_some(rest))
            }
        }
    }

    /// The pid of the first process, which is the session's id.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn start_ticks(&self) -> u64 {
        self.start_ticks
    }

    /// Waits until the first process has ended. Cancel-safe.
    pub(super) async fn ended(&self) {
        if let Some(leader) = &self.leader {
            // an error can only be the runtime's end; then nothing is to be waited for any more
            let _ = leader.readable().await;
        }
    }

    /// The living processes of the session, as (pid, start time).
    pub(super) fn members(&self) -> Vec<(i32, u64)> {
        let ours = |stat: &procfs::Stat| {
            // the leader before its setsid() still is in our own session; a later start is a must for all others
            (stat.pid == self.pid && stat.start_ticks == self.start_ticks)
                || (stat.session == self.pid && stat.start_ticks >= self.start_ticks)
        };
        procfs::processes()
            .filter(|stat| ours(stat) && !stat.zombie)
            .map(|stat| (stat.pid, stat.start_ticks))
            .collect()
    }

    /// Sends a signal to every process of the session, each once.
    pub(super) fn signal(&self, signal: Signal) {
        for (pid, start_ticks) in self.members() {
            let Ok(pidfd) = open(pid) else { continue }; // it ended meanwhile
            if procfs::stat(pid).is_some_and(|stat| stat.start_ticks == start_ticks)
                && let Err(error) = pidfd_send_signal(&pidfd, signal)
                && error != rustix::io::Errno::SRCH
            {
                tracing::warn!(pid, ?signal, %error, "a process of a replica can't be signalled");
            }
        }
    }

    /// Whether nothing lives any more; if so, the first process is reaped. Ended processes that fell to us (as PID 1 of a
    /// container) are reaped on the way.
    pub(super) fn is_gone(&mut self) -> bool {
        if !self.members().is_empty() {
            return false;
        }
        self.reap_orphans();
        // an error only says that it is reaped already
        self.child
            .as_mut()
            .is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// How the first process ended, in words, if it was our child. It stays unreaped.
    pub(super) fn ending(&self) -> Option<String> {
        self.child.as_ref()?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(Pid::from_raw(self.pid)?), options).ok()??;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (_, Some(9)) => {
                "ended by signal 9 (SIGKILL; the kernel does that when the machine's memory runs out)".to_owned()
            }
            (_, Some(signal)) => format!("ended by signal {signal}"),
            (Some(code), None) => format!("ended with exit status {code}"),
            (None, None) => "ended".to_owned(),
        })
    }

    fn reap_orphans(&self) {
        let me = i32::try_from(std::process::id()).unwrap_or_default();
        let orphan =
            |stat: &procfs::Stat| stat.zombie && stat.parent == me && stat.session == self.pid && stat.pid != self.pid;
        for stat in procfs::processes().filter(orphan) {
            let _ = waitpid(Pid::from_raw(stat.pid), WaitOptions::NOHANG);
        }
    }
}

fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("pid 0"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

// Its successor is an unsafe fn that asks for a promise: the same open descriptor for as long as it is watched. An OwnedFd that
// nothing replaces keeps it.
#[allow(deprecated)]
fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

/// The program's file: looked up as exec would, so that a missing one is told before anything is started.
fn found(program: &str, path: Option<String>) -> Option<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let runs = |file: &std::path::Path| {
        file.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if program.contains('/') {
        return Some(program.into()).filter(|file: &std::path::PathBuf| runs(file));
    }
    let path = path.map(Into::into).or_else(|| std::env::var_os("PATH"))?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|file| runs(file))
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
