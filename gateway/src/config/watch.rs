//! Files that are watched for changes: a callback runs on a thread of its own, soon after one of them changed.
//!
//! Watched are the *folders*, because an editor that renames a new file into place leaves a watch on the old file behind;
//! of a symbolic link every hop's folder, so that a swapped link (as Kubernetes does it) is seen. Events only say that it is
//! worth a look: the callback reads the file and judges whether anything changed. It runs once at the start, too: a change
//! between reading and watching is not lost. A folder that is replaced as a whole is not seen; SIGHUP is for that.

use std::{
    collections::HashSet,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

/// An editor writes in several steps: the callback waits until they have been quiet for this time.
pub const DEBOUNCE: Duration = Duration::from_millis(200);
/// But not longer than this, so that a file that never rests is read all the same.
const DEBOUNCE_MAX: Duration = Duration::from_secs(2);
/// Symbolic links that are followed, as many as Linux does.
const LINKS_MAX: usize = 40;

/// A running watch. Dropping it ends its thread.
#[derive(Debug)]
pub struct Watch {
    look: SyncSender<()>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches `files`, of which none needs to exist yet (their folders do), and calls `changed` once now and after changes.
    ///
    /// # Errors
    /// The system gives no watch or no thread (Linux: `fs.inotify.max_user_instances`). SIGHUP still works then.
    pub fn start(files: Vec<PathBuf>, changed: impl FnMut() + Send + 'static) -> io::Result<Self> {
        // One pending look is as good as many.
        let (look, looks) = sync_channel(1);
        let names = Arc::new(Mutex::new(HashSet::new()));
        let watcher =
            notify::recommended_watcher(on_event(look.clone(), Arc::clone(&names))).map_err(io::Error::other)?;
        let ended = Arc::new(AtomicBool::new(false));
        let folders = Folders {
            files,
            names,
            watcher,
            watched: HashSet::new(),
        };
        let loop_ended = Arc::clone(&ended);
        let thread = std::thread::Builder::new()
            .name("config-watch".to_owned())
            .spawn(move || run(&looks, &loop_ended, folders, changed))?;
        Ok(Self {
            look,
            ended,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Full means that a look is pending, which wakes the thread as well.
        let _ = self.look.try_send(());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What notify calls, on its own thread: decides whether an event is worth a look.
fn on_event(
    look: SyncSender<()>,
    names: Arc<Mutex<HashSet<OsString>>>,
) -> impl FnMut(notify::Result<notify::Event>) + Send + 'static {
    move |event| {
        let worth = match event {
            // Reading the file is an event too; it must not lead to the next reading.
            Ok(event) if is_read(event.kind) => false,
            Ok(event) if event.need_rescan() => true,
            Ok(event) => {
                let names = names.lock().unwrap_or_else(PoisonError::into_inner);
                event
                    .paths
                    .iter()
                    .filter_map(|path| path.file_name())
                    .any(|name| names.contains(name))
            }
            // Events were lost: look.
            Err(_) => true,
        };
        if worth {
            let _ = look.try_send(());
        }
    }
}

fn is_read(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

fn run(looks: &Receiver<()>, ended: &AtomicBool, mut folders: Folders, mut changed: impl FnMut()) {
    loop {
        folders.follow();
        changed();
        if looks.recv().is_err() {
            return;
        }
        let first = Instant::now();
        while !ended.load(Ordering::Acquire) && first.elapsed() < DEBOUNCE_MAX {
            match looks.recv_timeout(DEBOUNCE) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        if ended.load(Ordering::Acquire) {
            return;
        }
    }
}

/// The folders that are watched at the moment.
struct Folders {
    files: Vec<PathBuf>,
    /// File names whose events are worth a look, shared with [`on_event`].
    names: Arc<Mutex<HashSet<OsString>>>,
    watcher: RecommendedWatcher,
    watched: HashSet<PathBuf>,
}

impl Folders {
    /// Watches what the files' links lead to now.
    fn follow(&mut self) {
        let hops: Vec<PathBuf> = self.files.iter().flat_map(|file| hops(file)).collect();
        let wanted: HashSet<PathBuf> = hops
            .iter()
            .filter_map(|hop| hop.parent())
            .map(Path::to_path_buf)
            .collect();
        let names = hops
            .iter()
            .filter_map(|hop| hop.file_name())
            .map(OsString::from)
            .collect();
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        for folder in wanted.difference(&self.watched.clone()) {
            match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(folder.clone());
                }
                Err(error) => tracing::warn!(folder = %folder.display(), %error, "cannot watch a folder for changes"),
            }
        }
        for folder in self.watched.difference(&wanted).cloned().collect::<Vec<_>>() {
            let _ = self.watcher.unwatch(&folder);
            self.watched.remove(&folder);
        }
    }
}

/// Every symbolic link on the way to `file`, and where they end.
fn hops(file: &Path) -> Vec<PathBuf> {
    let mut hops = Vec::new();
    let mut path = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    for _ in 0..LINKS_MAX {
        let Some((link, target)) = first_link(&path) else { break };
        hops.push(link);
        path = target;
    }
    hops.push(path);
    hops
}

/// The first component of `path` that is a link, and `path` with that link resolved.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut walked = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        walked.push(component);
        if let Ok(target) = std::fs::read_link(&walked) {
            // `join` takes an absolute target as it is.
            let resolved = walked
                .parent()
                .unwrap_or(Path::new("/"))
                .join(target)
                .join(components.as_path());
            return Some((walked, resolved));
        }
    }
    None
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
        assert_eq!(texts.recv_timeout(DEBOUNCE * 4), Err(RecvTimeoutError::Timeout));
        fs::write(&file, "two").unwrap();
        wait_for(&texts, "two");
    }

    #[test]
    fn links_in_a_ring_end() {
        let folder = tempfile::tempdir().unwrap();
        symlink(folder.path().join("b"), folder.path().join("a")).unwrap();
        symlink(folder.path().join("a"), folder.path().join("b")).unwrap();
        assert!(hops(&folder.path().join("a")).len() <= LINKS_MAX + 1);
    }
}
