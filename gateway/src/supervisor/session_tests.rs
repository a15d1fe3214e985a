//! Real processes: shells that misbehave as a vLLM and its engine can.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

/// Runs a shell script in a session of its own.
fn shell(script: &str, folder: &Path) -> Session {
    let log = File::options()
        .append(true)
        .create(true)
        .open(folder.join("log"))
        .unwrap();
    Session::spawn("sh", &["-c".to_owned(), script.to_owned()], &[], log).unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The script says when it is set up.
async fn ready(folder: &Path) {
    until("the script is ready", || folder.join("ready").exists()).await;
}

#[tokio::test]
async fn a_process_is_the_leader_of_a_session_of_its_own_and_logs_to_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = shell("echo out; echo err >&2; exit 3", folder.path());
    session.ended().await;
    assert_eq!(session.ending().unwrap(), "ended with exit status 3");
    until("gone", || session.is_gone()).await;
    assert_eq!(
        std::fs::read_to_string(folder.path().join("log")).unwrap(),
        "out\nerr\n"
    );
    assert_eq!(procfs::stat(session.pid()), None, "reaped");

    let ready_at = folder.path().join("ready");
    let mut session = shell(&format!("touch {}; exec sleep 1000", ready_at.display()), folder.path());
    ready(folder.path()).await;
    let leader = procfs::stat(session.pid()).unwrap();
    assert_eq!(leader.session, leader.pid);
    assert_ne!(
        Some(leader.session),
        procfs::stat(std::process::id() as i32).map(|me| me.session)
    );
    session.signal(Signal::TERM);
    session.ended().await;
    until("gone", || session.is_gone()).await;
}

#[tokio::test]
async fn a_grandchild_that_outlives_the_leader_keeps_the_session_until_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let ready_at = folder.path().join("ready");
    // the engine ignores SIGTERM and is in a process group of its own, so that a signal to the leader's group misses it
    let script = format!(
        "setsid_less() {{ set -m; sh -c 'trap \"\" TERM; touch {}; while :; do sleep 1; done' & }}; setsid_less; sleep 0.2; exit 0",
        ready_at.display()
    );
    let mut session = shell(&script, folder.path());
    ready(folder.path()).await;
    session.ended().await;
    assert!(!session.is_gone(), "its engine lives");
    assert!(
        procfs::stat(session.pid()).is_some_and(|leader| leader.zombie),
        "the pid is kept while the session isn't empty"
    );
    session.signal(Signal::TERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!session.is_gone(), "it ignores SIGTERM");
    let engine = session.members();
    until("killed", || {
        session.signal(Signal::KILL);
        session.is_gone()
    })
    .await;
    for (pid, start_ticks) in engine {
        assert!(
            procfs::stat(pid).is_none_or(|stat| stat.zombie || stat.start_ticks != start_ticks),
            "{pid} lives"
        );
    }
}

#[tokio::test]
async fn the_environment_is_set_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let log = File::options()
        .append(true)
        .create(true)
        .open(folder.path().join("log"))
        .unwrap();
    let environment = [
        ("HOME".to_owned(), None),
        ("A".to_owned(), Some("1".to_owned())),
        ("A".to_owned(), Some("2".to_owned())),
    ];
    let args = ["-c".to_owned(), "echo ${HOME-none} $A".to_owned()];
    let mut session = Session::spawn("sh", &args, &environment, log).unwrap();
    session.ended().await;
    until("gone", || session.is_gone()).await;
    assert_eq!(std::fs::read_to_string(folder.path().join("log")).unwrap(), "none 2\n");
}

#[tokio::test]
async fn a_missing_program_is_named_and_nothing_starts() {
    let folder = tempfile::tempdir().unwrap();
    let log = || {
        File::options()
            .append(true)
            .create(true)
            .open(folder.path().join("log"))
            .unwrap()
    };
    for program in ["sluice-no-such-program", "/no/such/program"] {
        let error = Session::spawn(program, &[], &[], log()).unwrap_err();
        assert_eq!(error.to_string(), format!("`{program}` isn't found in PATH"));
    }
}

#[tokio::test]
async fn a_living_process_is_adopted_and_its_end_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = shell("exec sleep 1000", folder.path());
    let mut second = Session::adopt(first.pid(), first.start_ticks()).unwrap().unwrap();
    assert_eq!(second.ending(), None, "not our child");
    tokio::time::timeout(Duration::from_millis(100), second.ended())
        .await
        .unwrap_err();
    second.signal(Signal::TERM);
    second.ended().await;
    until("gone", || second.is_gone()).await;
    until("reaped by its parent", || first.is_gone()).await;
    assert!(
        Session::adopt(first.pid(), first.start_ticks()).unwrap().is_none(),
        "nothing is left"
    );
}

#[tokio::test]
async fn a_pid_of_another_start_time_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    // exec: a shell that is killed while it forks would leave its child to the next look
    let mut session = shell("exec sleep 1000", folder.path());
    assert!(
        Session::adopt(session.pid(), session.start_ticks() - 1)
            .unwrap()
            .is_none()
    );
    assert!(
        Session::adopt(session.pid(), session.start_ticks() + 1)
            .unwrap()
            .is_none()
    );
    session.signal(Signal::KILL);
    session.ended().await;
    until("gone", || session.is_gone()).await;
}

#[tokio::test]
async fn an_engine_whose_leader_has_gone_is_adopted_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = shell("sleep 1000 & exit 0", folder.path());
    first.ended().await;
    let mut rest = Session::adopt(first.pid(), first.start_ticks())
        .unwrap()
        .expect("its sleep lives");
    tokio::time::timeout(Duration::from_secs(1), rest.ended())
        .await
        .expect("its leader has ended before");
    assert!(!rest.is_gone());
    rest.signal(Signal::TERM);
    until("gone", || rest.is_gone()).await;
    until("reaped", || first.is_gone()).await;
}
