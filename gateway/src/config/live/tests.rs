//! Reload with a real file, a real watch and a real signal.

use std::{
    fs,
    path::Path,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use super::*;
use crate::config::{Origin, Overrides, SHIPPED, watch::Watch};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(file: &Path, overrides: Overrides) -> Arc<Live> {
    let source = Source {
        origin: Origin::Named(file.to_path_buf()),
        overrides,
    };
    let config = source.load().unwrap_or_else(|error| panic!("{error}"));
    Arc::new(Live::new(source, config))
}

/// The shipped file with some lines replaced.
fn with(replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(SHIPPED.to_owned(), |text, (line, instead)| {
        assert!(text.contains(line), "{line}");
        text.replacen(line, instead, 1)
    })
}

/// Replaces `file` as editors do.
fn replace(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, file).unwrap();
}

#[test]
fn a_valid_change_is_applied_and_a_running_request_keeps_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, SHIPPED).unwrap();
    let live = start(&file, Overrides::default());
    assert!(matches!(live.reload(), Reload::Unchanged));
    let request = live.get();
    replace(&file, &with(&[("\nstall = \"60s\"", "\nstall = \"7s\"")]));
    let Reload::Applied { restart } = live.reload() else {
        panic!("not applied")
    };
    assert_eq!(restart, [] as [&str; 0]);
    assert_eq!(live.get().upstream.stall, Duration::from_secs(7));
    assert_eq!(request.upstream.stall, Duration::from_secs(60));
    assert!(matches!(live.reload(), Reload::Unchanged));
}

#[test]
fn an_invalid_file_changes_nothing_and_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, SHIPPED).unwrap();
    let live = start(&file, Overrides::default());
    let before = live.get();
    let broken = with(&[("attempts = 3", "attempts = 0"), ("drain = \"120s\"", "drain = \"1s\"")]);
    replace(&file, &broken);
    let Reload::Refused(error) = live.reload() else {
        panic!("not refused")
    };
    let line = broken.lines().position(|line| line == "attempts = 0").unwrap() + 1;
    assert!(error.to_string().contains(&format!("config.toml:{line}:1")), "{error}");
    assert!(Arc::ptr_eq(&before, &live.get()), "half of an invalid file took effect");
    fs::remove_file(&file).unwrap();
    assert!(matches!(live.reload(), Reload::Refused(ConfigError::Unreadable { .. })));
    assert!(Arc::ptr_eq(&before, &live.get()));
    replace(&file, SHIPPED);
    assert!(!matches!(live.reload(), Reload::Refused(_)));
}

#[test]
fn what_needs_a_restart_is_named_and_keeps_its_value() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, SHIPPED).unwrap();
    let live = start(&file, Overrides::default());
    let changed = with(&[
        ("listen = \"127.0.0.1:5002\"", "listen = \"127.0.0.1:6002\""),
        ("threads = 0", "threads = 3"),
        ("state_dir = \"\"", "state_dir = \"/srv/sluice\""),
        ("allow_no_key = false", "allow_no_key = true"),
        ("drain = \"120s\"", "drain = \"9s\""),
    ]);
    replace(&file, &changed);
    let Reload::Applied { restart } = live.reload() else {
        panic!("not applied")
    };
    assert_eq!(restart, ["server.listen", "server.threads", "server.state_dir", "auth"]);
    let now = live.get();
    assert_eq!((now.server.listen.port(), now.server.threads), (5002, 0));
    assert!(!now.auth.allow_no_key);
    assert_eq!(now.server.drain, Duration::from_secs(9));
    // The same file again is no news, although it differs from what runs.
    assert!(matches!(live.reload(), Reload::Unchanged));
    replace(&file, SHIPPED);
    let Reload::Applied { restart } = live.reload() else {
        panic!("not applied")
    };
    assert_eq!(
        restart,
        [] as [&str; 0],
        "back at the start's values nothing needs a restart"
    );
}

#[test]
fn the_command_line_stays_on_top_of_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, SHIPPED).unwrap();
    let listen = Some("127.0.0.1:7777".parse().unwrap());
    let live = start(&file, Overrides { listen, backend: None });
    replace(&file, &with(&[("drain = \"120s\"", "drain = \"9s\"")]));
    let Reload::Applied { restart } = live.reload() else {
        panic!("not applied")
    };
    assert_eq!(restart, [] as [&str; 0]);
    assert_eq!(live.get().server.listen.port(), 7777);
}

/// What is logged while `run` runs.
fn logged(run: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(log, run);
    String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn the_log_has_the_whole_error_once_and_names_what_needs_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, SHIPPED).unwrap();
    let live = start(&file, Overrides::default());
    replace(&file, &with(&[("attempts = 3", "atempts = 3")]));
    let log = logged(|| drop((live.reload(), live.reload())));
    assert_eq!(log.matches("the running one stays").count(), 1, "{log}");
    assert!(
        log.contains("unknown key `atempts` in [upstream]") && log.contains("config.toml:"),
        "{log}"
    );
    assert!(log.contains("did you mean `attempts`?"), "{log}");
    replace(
        &file,
        &with(&[("threads = 0", "threads = 2"), ("drain = \"120s\"", "drain = \"9s\"")]),
    );
    let log = logged(|| drop(live.reload()));
    assert!(
        log.contains("need a restart: server.threads source=") && log.contains(file.to_str().unwrap()),
        "{log}"
    );
}

/// Sends what each reload did.
fn watched(live: &Arc<Live>, file: &Path) -> (Watch, Receiver<Reload>) {
    let (send, reloads) = channel();
    let live = Arc::clone(live);
    let watch = Watch::start(vec![file.to_path_buf()], move || {
        let _ = send.send(live.reload());
    });
    (watch.unwrap(), reloads)
}

#[test]
fn a_watched_file_takes_effect_by_itself_and_a_broken_one_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, SHIPPED).unwrap();
    let live = start(&file, Overrides::default());
    let (_watch, reloads) = watched(&live, &file);
    assert!(
        matches!(reloads.recv_timeout(PATIENCE), Ok(Reload::Unchanged)),
        "the look at the start"
    );
    replace(&file, &with(&[("drain = \"120s\"", "drain = \"nine\"")]));
    assert!(matches!(reloads.recv_timeout(PATIENCE), Ok(Reload::Refused(_))));
    assert_eq!(live.get().server.drain, Duration::from_secs(120));
    replace(&file, &with(&[("drain = \"120s\"", "drain = \"9s\"")]));
    loop {
        match reloads.recv_timeout(PATIENCE) {
            Ok(Reload::Applied { .. }) => break,
            Ok(_) => {}
            Err(error) => panic!("the watch never applied the new file: {error}"),
        }
    }
    assert_eq!(live.get().server.drain, Duration::from_secs(9));
}

#[tokio::test]
async fn sighup_reloads() {
    let (send, mut calls) = tokio::sync::mpsc::unbounded_channel();
    let listening = tokio::spawn(on_hangup(move || {
        let _ = send.send(());
    }));
    // Until the handler stands, the signal would end the process: the first is sent once the task has been polled.
    tokio::task::yield_now().await;
    let _own = signal(SignalKind::hangup()).unwrap();
    for _ in 0..2 {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        tokio::time::timeout(PATIENCE, calls.recv()).await.unwrap().unwrap();
    }
    listening.abort();
}
