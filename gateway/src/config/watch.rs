//! Files that are watched for changes: a callback runs on a thread of its own, soon after one of them changed.
//!
//! The thread looks at their metadata twice a second. Links are followed, so that a file renamed into place, a swapped link (as
//! Kubernetes does it) and a folder replaced as a whole are all seen, on any file system. A look only says that it is worth
//! reading: the callback judges whether anything changed. It runs once at the start, too, behind the first look: a change
//! between reading and watching is not lost.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Pause between two looks. A look is one system call a file.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// An editor writes in several steps: the callback waits until they have been quiet for this time.
pub const DEBOUNCE: Duration = Duration::from_millis(200);
/// But not longer than this, so that a file that never rests is read all the same.
const DEBOUNCE_MAX: Duration = Duration::from_secs(2);

/// A running watch. Dropping it ends its thread.
#[derive(Debug)]
pub struct Watch {
    /// Dropped first, which wakes the thread and ends it.
    alive: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `files`, of which none needs to exist yet, and calls `changed` once now and after changes.
    ///
    /// # Errors
    /// The system gives no thread. SIGHUP still works then.
    pub fn start(files: Vec<PathBuf>, changed: impl FnMut() + Send + 'static) -> io::Result<Self> {
        let (alive, ended) = sync_channel(0);
        let thread = std::thread::Builder::new()
            .name("config-watch".to_owned())
            .spawn(move || run(&files, &ended, changed))?;
        Ok(Self {
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What tells one state of a file from another.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds of the last write, and of the last change of anything.
    written: (i64, i64),
    changed: (i64, i64),
}

/// `None` if there is no such file.
fn stamp(file: &Path) -> Option<Stamp> {
    let found = fs::metadata(file).ok()?;
    Some(Stamp {
        device: found.dev(),
        inode: found.ino(),
        bytes: found.size(),
        written: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

fn run(files: &[PathBuf], ended: &Receiver<()>, mut changed: impl FnMut()) {
    let look = || files.iter().map(|file| stamp(file)).collect::<Vec<_>>();
    let over = |pause| ended.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
    let mut known = look();
    changed();
    loop {
        if over(LOOK_EVERY) {
            return;
        }
        let mut seen = look();
        if seen == known {
            continue;
        }
        let first = Instant::now();
        while first.elapsed() < DEBOUNCE_MAX {
            if over(DEBOUNCE) {
                return;
            }
            let before = std::mem::replace(&mut seen, look());
            if before == seen {
                break;
            }
        }
        // Taken before the file is read: what is written meanwhile is the next change.
        known = seen;
        changed();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        sync::mpsc::{Receiver, channel},
    };

    use super::*;

    /// Long enough for a slow machine; a test that passes doesn't wait for it.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Watches `file` and sends its text at each call.
    fn texts(file: &Path) -> (Watch, Receiver<String>) {
        let (send, receive) = channel();
        let path = file.to_path_buf();
        let watch = Watch::start(vec![file.to_path_buf()], move || {
            let _ = send.send(fs::read_to_string(&path).unwrap_or_default());
        });
        (watch.unwrap(), receive)
    }

    fn wait_for(texts: &Receiver<String>, wanted: &str) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if texts.recv_timeout(PATIENCE).is_ok_and(|text| text == wanted) {
                return;
            }
        }
        panic!("the watch never saw {wanted:?}");
    }

    #[test]
    fn a_file_written_in_place_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, "one").unwrap();
        let (_watch, texts) = texts(&file);
        wait_for(&texts, "one");
        fs::write(&file, "two").unwrap();
        wait_for(&texts, "two");
    }

    #[test]
    fn a_file_renamed_into_place_is_seen_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.toml");
        fs::write(&file, "0").unwrap();
        let (_watch, texts) = texts(&file);
        wait_for(&texts, "0");
        for round in ["1", "2", "3"] {
            let new = folder.path().join(".config.toml.swp");
            fs::write(&new, round).unwrap();
            fs::rename(&new, &file).unwrap();
            wait_for(&texts, round);
        }
    }

    #[test]
    fn a_file_that_appears_later_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        let (_watch, texts) = texts(&file);
        wait_for(&texts, "");
        fs::write(&file, "made").unwrap();
        wait_for(&texts, "made");
    }

    /// As Kubernetes mounts a ConfigMap: config.toml → ..data/config.toml, ..data → ..v1, and ..data is swapped.
    #[test]
    fn a_swapped_link_is_seen_and_what_it_leads_to_is_watched() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (version, text) in [("..v1", "one"), ("..v2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("config.toml"), text).unwrap();
        }
        symlink("..v1", at("..data")).unwrap();
        symlink("..data/config.toml", at("config.toml")).unwrap();
        let (_watch, texts) = texts(&at("config.toml"));
        wait_for(&texts, "one");
        symlink("..v2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        wait_for(&texts, "two");
        fs::write(at("..v2").join("config.toml"), "three").unwrap();
        wait_for(&texts, "three");
    }

    /// A mounted folder that is replaced, not only a file or link in it.
    #[test]
    fn a_folder_that_is_replaced_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, text) in [("etc", "one"), ("new", "two")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("config.toml"), text).unwrap();
        }
        let (_watch, texts) = texts(&at("etc").join("config.toml"));
        wait_for(&texts, "one");
        fs::rename(at("etc"), at("old")).unwrap();
        fs::rename(at("new"), at("etc")).unwrap();
        wait_for(&texts, "two");
    }

    /// Reading must not cause the next reading, and neighbours (the records' database lies beside the keys) don't count.
    #[test]
    fn neither_reading_nor_a_neighbour_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        fs::write(&file, "one").unwrap();
        let (_watch, texts) = texts(&file);
        wait_for(&texts, "one");
        for round in 0..20 {
            fs::write(folder.path().join("requests.db"), round.to_string()).unwrap();
            fs::read_to_string(&file).unwrap();
        }
        assert_eq!(
            texts.recv_timeout(LOOK_EVERY + DEBOUNCE * 4),
            Err(RecvTimeoutError::Timeout)
        );
        fs::write(&file, "two").unwrap();
        wait_for(&texts, "two");
    }

    #[test]
    fn links_in_a_ring_end() {
        let folder = tempfile::tempdir().unwrap();
        symlink(folder.path().join("b"), folder.path().join("a")).unwrap();
        symlink(folder.path().join("a"), folder.path().join("b")).unwrap();
        assert_eq!(stamp(&folder.path().join("a")), None);
    }
}
