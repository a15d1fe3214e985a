//! What the next gateway must know of launched replicas: files in the state folder.
//!
//! `supervisor.lock` makes one owner (flock, gone with the process that held it). `replicas/NAME.json`, mode 0600, says which
//! process it is: pid, start time and boot, so that a reused pid is never mistaken, and what it was started with. `replicas/NAME.log`
//! is the process's output; the earlier one is kept as `NAME.log.1`. Written by rename, so that a reader finds the old or the new.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sluice_policy::profile::diagnosis::LOG_TAIL_BYTES;

use super::SupervisorError;

/// A log that is longer is cut to its end: vLLM writes for weeks.
const LOG_BYTES_MAX: u64 = 64 << 20;
/// What is kept of a log that is cut, as `NAME.log.1`.
const LOG_KEPT_BYTES: u64 = 4 << 20;
/// An entry is a few hundred bytes and its arguments.
const ENTRY_BYTES_MAX: u64 = 1 << 20;

/// One launched process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its pid, which is its session's id too.
    pub(super) pid: i32,
    /// Its start time in clock ticks since boot.
    pub(super) start_ticks: u64,
    /// The boot in which it was started.
    pub(super) boot_id: String,
    /// Its start time for people.
    pub(super) started: String,
    /// Where it listens.
    pub(super) port: u16,
    /// What it was started as.
    pub(super) argv: Vec<String>,
    /// A hash over arguments, environment settings and key: whether it is what would be started now.
    pub(super) fingerprint: String,
}

/// The files, and the lock on them.
#[derive(Debug)]
pub(super) struct Ledger {
    folder: PathBuf,
    _lock: File,
}

impl Ledger {
    /// Whether an earlier gateway launched anything here.
    pub(super) fn exists(state_folder: &Path) -> bool {
        replicas(state_folder).is_dir()
    }

    /// Creates the folder if needed, and takes the lock.
    pub(super) fn open(state_folder: &Path) -> Result<Ledger, SupervisorError> {
        let folder = replicas(state_folder);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| SupervisorError::Folder { path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(failed(&folder))?;
        let path = state_folder.join("supervisor.lock");
        let mut options = OpenOptions::new();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed(&path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let known = (&lock).take(32).read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
                let holder = if known {
                    format!("process {}", holder.trim())
                } else {
                    "another process".to_owned()
                };
                return Err(SupervisorError::Locked { path, holder });
            }
            Err(error) => return Err(failed(&path)(error.into())),
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed(&path))?;
        Ok(Ledger { folder, _lock: lock })
    }

    /// The replicas of which there is an entry.
    pub(super) fn names(&self) -> Vec<String> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        files
            .filter_map(|file| file.file_name().to_str()?.strip_suffix(".json").map(str::to_owned))
            .collect()
    }

    /// The entry of a replica; none if there is none, or if it can't be read (which is logged: nothing can be taken over then).
    pub(super) fn read(&self, name: &str) -> Option<Entry> {
        let path = self.entry_path(name);
        let mut text = String::new();
        let read = File::open(&path).and_then(|file| file.take(ENTRY_BYTES_MAX).read_to_string(&mut text));
        match read.and_then(|_| serde_json::from_str(&text).map_err(io::Error::from)) {
            Ok(entry) => Some(entry),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what an earlier gateway noted can't be read");
                None
            }
        }
    }

    pub(super) fn write(&self, name: &str, entry: &Entry) -> io::Result<()> {
        let (path, draft) = (self.entry_path(name), self.folder.join(format!("{name}.json.new")));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        serde_json::to_writer_pretty(&mut file, entry)?;
        file.sync_all()?;
        fs::rename(draft, path)
    }

    /// Forgets a replica whose processes have gone.
    pub(super) fn remove(&self, name: &str) {
        let path = self.entry_path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a note of an ended process can't be removed");
            }
            _ => {}
        }
    }

    /// What was noted of a replica, and its logs, are another name's from now on.
    pub(super) fn rename(&self, was: &str, name: &str) {
        for path in [Self::entry_path, Self::log_path, Self::kept_path] {
            let (from, to) = (path(self, was), path(self, name));
            match fs::rename(&from, &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(from = %from.display(), to = %to.display(), %error, "a renamed replica's file keeps its old name");
                }
                _ => {}
            }
        }
    }

    /// A fresh log for a start; the last one becomes `NAME.log.1`.
    pub(super) fn new_log(&self, name: &str) -> io::Result<File> {
        let path = self.log_path(name);
        if path.exists() {
            fs::rename(&path, self.kept_path(name))?;
        }
        // append: the process goes on writing at the end after the file was cut
        OpenOptions::new().append(true).create(true).mode(0o600).open(path)
    }

    /// Cuts a log that grew too long, keeping its end. A line or two that the process writes meanwhile may be lost.
    pub(super) fn bound_log(&self, name: &str) -> io::Result<()> {
        let path = self.log_path(name);
        let mut log = OpenOptions::new().read(true).write(true).open(path)?;
        if log.metadata()?.len() <= LOG_BYTES_MAX {
            return Ok(());
        }
        log.seek(SeekFrom::End(-(LOG_KEPT_BYTES as i64)))?;
        let mut options = OpenOptions::new();
        let mut kept = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.kept_path(name))?;
        io::copy(&mut (&log).take(LOG_KEPT_BYTES), &mut kept)?;
        log.set_len(0)
    }

    /// The end of a log, for its diagnosis.
    pub(super) fn log_tail(&self, name: &str) -> io::Result<String> {
        let mut log = File::open(self.log_path(name))?;
        let from = log.metadata()?.len().saturating_sub(LOG_TAIL_BYTES as u64);
        log.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::with_capacity(LOG_TAIL_BYTES);
        log.take(LOG_TAIL_BYTES as u64).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn log_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn kept_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log.1"))
    }

    fn entry_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

pub(super) fn log_path(state_folder: &Path, name: &str) -> PathBuf {
    replicas(state_folder).join(format!("{name}.log"))
}

fn replicas(state_folder: &Path) -> PathBuf {
    state_folder.join("replicas")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry() -> Entry {
        Entry {
            pid: 4711,
            start_ticks: 987_654,
            boot_id: "b".to_owned(),
            started: "2026-11-24T05:00:00Z".to_owned(),
            port: 8000,
            argv: vec!["vllm".to_owned(), "serve".to_owned()],
            fingerprint: "f".to_owned(),
        }
    }

    #[test]
    fn an_entry_is_written_private_read_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!Ledger::exists(folder.path()));
        let ledger = Ledger::open(folder.path()).unwrap();
        assert!(Ledger::exists(folder.path()));
        assert_eq!(ledger.read("a"), None);
        ledger.write("a", &entry()).unwrap();
        assert_eq!(ledger.read("a"), Some(entry()));
        assert_eq!(ledger.names(), ["a"]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(ledger.entry_path("a")), 0o600);
        assert_eq!(mode(ledger.folder.clone()), 0o700);
        ledger.remove("a");
        ledger.remove("a"); // a second time is no error
        assert_eq!(ledger.names(), [""; 0]);
    }

    #[test]
    fn a_broken_entry_is_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path()).unwrap();
        fs::write(ledger.entry_path("a"), "{\"pid\":").unwrap();
        assert_eq!(ledger.read("a"), None);
    }

    #[test]
    fn the_folder_has_one_owner_who_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = Ledger::open(folder.path()).unwrap();
        let error = Ledger::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.contains("supervisor.lock"), "{error}");
        drop(first);
        Ledger::open(folder.path()).unwrap();
    }

    #[test]
    fn a_start_keeps_the_log_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path()).unwrap();
        for text in ["first", "second", "third"] {
            ledger.new_log("a").unwrap().write_all(text.as_bytes()).unwrap();
        }
        assert_eq!(ledger.log_tail("a").unwrap(), "third");
        assert_eq!(fs::read_to_string(ledger.kept_path("a")).unwrap(), "second");
    }

    #[test]
    fn a_long_log_is_cut_while_its_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path()).unwrap();
        let mut writer = ledger.new_log("a").unwrap();
        writer.write_all(b"short").unwrap();
        ledger.bound_log("a").unwrap();
        assert_eq!(ledger.log_tail("a").unwrap(), "short");
        writer.set_len(LOG_BYTES_MAX).unwrap(); // a hole: it costs no disk
        writer.write_all(b"end").unwrap();
        ledger.bound_log("a").unwrap();
        writer.write_all(b"goes on").unwrap();
        assert_eq!(ledger.log_tail("a").unwrap(), "goes on");
        let kept = fs::read(ledger.kept_path("a")).unwrap();
        assert_eq!(kept.len() as u64, LOG_KEPT_BYTES);
        assert!(kept.ends_with(b"end"));
    }

    #[test]
    fn a_tail_is_bounded_and_survives_bytes_that_are_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path()).unwrap();
        let mut log = ledger.new_log("a").unwrap();
        log.write_all(&[0xff; 3 * LOG_TAIL_BYTES]).unwrap();
        log.write_all(b"last").unwrap();
        let tail = ledger.log_tail("a").unwrap();
        assert!(tail.ends_with("last"));
        assert_eq!(tail.chars().count(), LOG_TAIL_BYTES);
    }
}
