//! What the routers know, over a restart: `routing.json` in the state folder, written now and then and at the end.
//!
//! Enters: the fleet. Leaves: a file of hashes and ages, never a text of a conversation. It is only ever a hint: a file that is missing,
//! torn, too large or of another version is left alone with a line in the log, and the next one takes its place.

use serde::{Deserialize, Serialize};
use sluice_policy::route::saved::Saved;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::upstream::{Backend, Fleet};

/// How often it is written.
pub const EVERY: Duration = Duration::from_secs(5 * 60);

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
#[derive(Debug, Clone)]
pub struct Remembered {
    path: PathBuf,
}

impl Remembered {
    /// In this state folder.
    pub fn new(state_folder: &Path) -> Remembered {
        Remembered {
            path: state_folder.join("routing.json"),
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
        let since = Duration::from_secs(seconds().saturating_sub(document.saved_at));
        for backend in &fleet.backends {
            if let Some(saved) = document.backends.get(backend.name.as_ref())
                && !backend.routing().restore(saved, &texts(&names(backend)), since)
            {
                tracing::warn!(backend = %backend.name, "what was known of conversations is another version's: it is left out");
            }
        }
    }

    /// Writes what is known now, beside the old file and then in its place.
    pub fn save(&self, fleet: &Fleet) {
        if let Err(error) = self.write(fleet) {
            tracing::warn!(path = %self.path.display(), %error, "what is known of conversations can't be saved");
        }
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
                .map(|backend| {
                    (
                        backend.name.to_string(),
                        backend.routing().save(&texts(&names(backend))),
                    )
                })
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
    use crate::upstream::{Address, Choice, Replica, Wanted};
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
