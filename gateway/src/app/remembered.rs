//! What the routers know, over a restart: `routing.json` in the state folder, written now and then and at the end.
//!
//! Enters: the fleet. Leaves: a file of hashes and ages, never a text of a conversation. It is only ever a hint: a file that is missing,
//! torn, too large or of another version is left alone with a line in the log, and the next one takes its place.
//!
//! Replicas that discovery finds aren't there when it is read: what it says of them is kept for `LATE`.

use serde::{Deserialize, Serialize};
use sluice_policy::route::saved::{Saved, SavedReplica};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::upstream::{Backend, Fleet};

/// How often it is written.
pub const EVERY: Duration = Duration::from_secs(5 * 60);

/// For so long after the start what is known of a replica that isn't there waits for it. It is a part of the file, and no larger.
const LATE: Duration = EVERY;

/// A larger file isn't read: the largest that is written has about 40 bytes for each of 100,000 links and as many sessions, a backend.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The file's form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// Seconds since the epoch.
    saved_at: u64,
    /// By the backend's name.
    backends: BTreeMap<String, Saved>,
}

/// See the module.
#[derive(Clone)]
pub struct Remembered {
    path: PathBuf,
    late: Arc<Mutex<Late>>,
}

/// What was read of replicas that aren't there yet.
struct Late {
    saved_at: u64,
    until: Instant,
    /// By the backend's name.
    replicas: BTreeMap<String, Vec<SavedReplica>>,
}

impl Late {
    fn none() -> Late {
        Late {
            saved_at: 0,
            until: Instant::now(),
            replicas: BTreeMap::new(),
        }
    }
}

impl Remembered {
    /// In this state folder.
    pub fn new(state_folder: &Path) -> Remembered {
        Remembered {
            path: state_folder.join("routing.json"),
            late: Arc::new(Mutex::new(Late::none())),
        }
    }

    /// Takes over what an earlier gateway knew.
    pub fn restore(&self, fleet: &Fleet) {
        let document = match self.read() {
            Ok(document) => document,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                return tracing::warn!(path = %self.path.display(), %error, "what was known of conversations can't be read: it is left out");
            }
        };
        let Document {
            saved_at,
            backends: mut saved,
        } = document;
        let mut late = Late {
            saved_at,
            until: Instant::now() + LATE,
            replicas: BTreeMap::new(),
        };
        for backend in &fleet.backends {
            let Some(mut saved) = saved.remove(backend.name.as_ref()) else {
                continue;
            };
            let names = names(backend);
            if !backend.routing().restore(&saved, &texts(&names), age(saved_at)) {
                tracing::warn!(backend = %backend.name, "what was known of conversations is another version's: it is left out");
                continue;
            }
            saved.replicas.retain(|replica| !is_among(replica, &names));
            late.replicas.insert(backend.name.to_string(), saved.replicas);
        }
        *self.late() = late;
    }

    /// Other replicas are there now: they get what was known of them.
    pub fn restore_late(&self, fleet: &Fleet) {
        let mut late = self.late();
        if Instant::now() >= late.until {
            *late = Late::none();
        }
        let since = age(late.saved_at);
        for backend in &fleet.backends {
            let Some(waiting) = late.replicas.get_mut(backend.name.as_ref()) else {
                continue;
            };
            let names = names(backend);
            let come: Vec<SavedReplica> = waiting.extract_if(.., |replica| is_among(replica, &names)).collect();
            if !come.is_empty() {
                backend.routing().restore_late(&come, &texts(&names), since);
            }
        }
    }

    fn late(&self) -> MutexGuard<'_, Late> {
        // Nothing that can panic runs under the lock.
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what is known now, beside the old file and then in its place.
    pub fn save(&self, fleet: &Fleet) {
        if let Err(error) = self.write(fleet) {
            tracing::warn!(path = %self.path.display(), %error, "what is known of conversations can't be saved");
        }
    }

    /// What is known of a backend's replicas, and of those that were there and may come yet.
    fn saved(&self, backend: &Backend) -> Saved {
        let names = names(backend);
        let mut saved = backend.routing().save(&texts(&names));
        let late = self.late();
        let older = age(late.saved_at).as_secs();
        let waiting = late.replicas.get(backend.name.as_ref()).into_iter().flatten();
        let waiting = waiting.filter(|replica| Instant::now() < late.until && !is_among(replica, &names));
        saved.replicas.extend(waiting.cloned().map(|mut replica| {
            replica.links.iter_mut().for_each(|(_, _, age)| *age += older);
            replica.sessions.iter_mut().for_each(|(_, age)| *age += older);
            replica
        }));
        saved
    }

    fn read(&self) -> io::Result<Document> {
        let file = File::open(&self.path)?;
        if file.metadata()?.len() > MAX_BYTES {
            return Err(io::Error::other("larger than any that was written"));
        }
        Ok(serde_json::from_reader(BufReader::new(file.take(MAX_BYTES)))?)
    }

    fn write(&self, fleet: &Fleet) -> io::Result<()> {
        let backends = fleet.backends.iter();
        let document = Document {
            saved_at: seconds(),
            backends: backends
                .map(|backend| (backend.name.to_string(), self.saved(backend)))
                .collect(),
        };
        let draft = self.path.with_extension("json.new");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        let mut file = BufWriter::new(file);
        serde_json::to_writer(&mut file, &document)?;
        file.flush()?;
        fs::rename(draft, &self.path)
    }
}

fn is_among(replica: &SavedReplica, names: &[Arc<str>]) -> bool {
    names.iter().any(|name| **name == *replica.name)
}

/// Since that second.
fn age(saved_at: u64) -> Duration {
    Duration::from_secs(seconds().saturating_sub(saved_at))
}

/// By slot; one that nobody has is without a name.
fn names(backend: &Backend) -> Vec<Arc<str>> {
    let members = backend.members();
    let name = |slot| members.get(slot).map_or("".into(), |replica| replica.name());
    (0..members.slots()).map(name).collect()
}

fn texts(names: &[Arc<str>]) -> Vec<&str> {
    names.iter().map(AsRef::as_ref).collect()
}

fn seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::replica::Readiness;
    use crate::upstream::{Address, Choice, Member, Replica, Wanted};
    use sluice_policy::admission::room::Capacity;
    use sluice_policy::route::choose::{Margins, RouteSettings};
    use sluice_policy::route::session::{SessionKey, SessionSource};
    use std::os::unix::fs::PermissionsExt;

    fn fleet(names: &[&str]) -> Fleet {
        let replicas = names.iter().map(|name| {
            let replica = Replica::new(name, false, None, Some(Address::loopback(9)));
            replica.set_readiness(Readiness::Ready);
            Arc::new(replica)
        });
        let backend = Backend::new("b", "m", vec![], "p", replicas.collect(), RouteSettings::default());
        Fleet {
            backends: vec![Arc::new(backend)],
        }
    }

    fn choose(fleet: &Fleet, session: u64) -> Choice {
        let session = SessionKey {
            hash: session,
            source: SessionSource::SessionIdHeader,
        };
        let chosen = fleet.backends[0].choose(Wanted {
            session,
            chain: &Arc::default(),
            has_past: false,
            tried: &[],
            hint: None,
            margins: Margins::default(),
        });
        chosen.unwrap()
    }

    #[test]
    fn sessions_are_found_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(folder.path());
        let before = fleet(&["a", "b", "c"]);
        remembered.restore(&before);
        let homes: Vec<_> = (0..20).map(|session| choose(&before, session).replica.name()).collect();
        remembered.save(&before);
        let mode = fs::metadata(&remembered.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let after = fleet(&["c", "a", "b"]);
        remembered.restore(&after);
        for (session, home) in (0..20).zip(homes) {
            let choice = choose(&after, session);
            assert_eq!((choice.route.as_str(), choice.replica.name()), ("hit", home));
        }
    }

    #[test]
    fn what_is_known_of_one_that_is_found_later_waits_for_it_and_outlives_another_restart() {
        let folder = tempfile::tempdir().unwrap();
        let before = fleet(&["a"]);
        let home = choose(&before, 1).replica.name();
        Remembered::new(folder.path()).save(&before);
        for _ in 0..2 {
            // Nobody was found this time.
            let remembered = Remembered::new(folder.path());
            let nobody = fleet(&[]);
            remembered.restore(&nobody);
            remembered.save(&nobody);
        }
        let remembered = Remembered::new(folder.path());
        let after = fleet(&[]);
        remembered.restore(&after);
        let replica = Arc::new(Replica::new("a", false, None, Some(Address::loopback(9))));
        replica.set_readiness(Readiness::Ready);
        after.backends[0].enrol(vec![Member::New {
            replica,
            capacity: Capacity::default(),
        }]);
        remembered.restore_late(&after);
        let choice = choose(&after, 1);
        assert_eq!((choice.route.as_str(), choice.replica.name()), ("hit", home));
        assert!(
            remembered.late().replicas.values().all(Vec::is_empty),
            "it is taken once"
        );
    }

    #[test]
    fn a_file_that_is_none_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(folder.path());
        for text in ["", "{\"saved_at\":1", "[]", "{\"saved_at\":1,\"backends\":{\"b\":{}}}"] {
            fs::write(&remembered.path, text).unwrap();
            let fleet = fleet(&["a"]);
            remembered.restore(&fleet);
            assert_eq!(choose(&fleet, 1).route.as_str(), "new", "{text}");
            remembered.save(&fleet);
            assert!(remembered.read().is_ok());
        }
    }
}
