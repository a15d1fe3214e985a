//! Replicas by a file: a list of names and URLs that somebody else writes.
//!
//! JSON is a list of objects, TOML a list of `[[replica]]`. The whole file is used or nothing of it; an error names the place. A list without
//! an entry is one: all have gone.

use async_trait::async_trait;
use serde::Deserialize;
use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

use super::{DiscoveryError, Found, REPLICAS_MAX, ServiceDiscovery};
use crate::config::Watch;
use crate::supervisor::{NAME_BYTES_MAX, is_replica_name};
use crate::upstream::Address;

/// 256 replicas with long names have 40 KB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Without a watch on the file it is looked at so often.
const LOOK: Duration = Duration::from_secs(10);

/// See the module.
pub(super) struct ReplicaFile {
    path: PathBuf,
    changes: Arc<Notify>,
    watch: Option<Watch>,
}

impl ReplicaFile {
    /// Watched from now on; it need not exist yet.
    pub(super) fn new(path: PathBuf) -> ReplicaFile {
        let changes = Arc::<Notify>::default();
        let tell = changes.clone();
        let watch = Watch::start(vec![path.clone()], move || tell.notify_one());
        let watch = watch.inspect_err(
            |error| tracing::warn!(path = %path.display(), %error, "the file of replicas can't be watched: it is read now and then"),
        );
        ReplicaFile {
            watch: watch.ok(),
            path,
            changes,
        }
    }
}

#[async_trait]
impl ServiceDiscovery for ReplicaFile {
    async fn discover(&self) -> Result<Found, DiscoveryError> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        read.unwrap_or(Err(DiscoveryError::Slow))
    }

    async fn changed(&self) {
        match &self.watch {
            Some(_) => self.changes.notified().await,
            None => tokio::time::sleep(LOOK).await,
        }
    }
}

/// One entry of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    url: String,
}

/// The file's form in TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    replica: Vec<Entry>,
}

fn read(path: &Path) -> Result<Found, DiscoveryError> {
    let mut text = String::new();
    let opened = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    opened.map_err(|source| DiscoveryError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    parse(&text, is_json).map_err(|problem| DiscoveryError::Invalid {
        path: path.to_owned(),
        problem,
    })
}

/// The error is for people: it names the place.
fn parse(text: &str, is_json: bool) -> Result<Found, String> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    let entries: Vec<Entry> = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        let document: Document = toml::from_str(text).map_err(|error| error.to_string())?;
        document.replica
    };
    if entries.len() > REPLICAS_MAX {
        return Err(format!("{} replicas are more than {REPLICAS_MAX}", entries.len()));
    }
    let mut found = Found::new();
    let mut urls = HashSet::new();
    for (index, Entry { name, url }) in entries.into_iter().enumerate() {
        let at = |problem: String| Err(format!("entry {} (name \"{name}\"): {problem}", index + 1));
        if !is_replica_name(&name) {
            return at(format!(
                "a name has 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`"
            ));
        }
        let address = match Address::from_url(&url) {
            Ok(address) => address.url(),
            // Not the URL: it may hold a password.
            Err(fault) => return at(fault.to_string()),
        };
        if !urls.insert(address.clone()) {
            return at(format!("{address} is another entry's already"));
        }
        if found.contains_key(&name) {
            return at("the name is another entry's already".to_owned());
        }
        found.insert(name, address);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let json = r#"[{"name": "a", "url": "http://10.0.0.1:8000/"}, {"name": "b", "url": "https://gpu-box"}]"#;
        let toml = "[[replica]]\nname = \"a\"\nurl = \"http://10.0.0.1:8000\"\n[[replica]]\nname = \"b\"\nurl = \"https://gpu-box:443\"\n";
        let of = |pairs: &[(&str, &str)]| -> Found {
            let pairs = pairs.iter();
            pairs
                .map(|(name, url)| ((*name).to_owned(), (*url).to_owned()))
                .collect()
        };
        let both = of(&[("a", "http://10.0.0.1:8000"), ("b", "https://gpu-box:443")]);
        for (text, is_json, found) in [
            (json, true, &both),
            (toml, false, &both),
            ("[]", true, &Found::new()),
            ("", false, &Found::new()),
        ] {
            assert_eq!(parse(text, is_json).as_ref(), Ok(found), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_as_a_whole_with_its_place() {
        let many = format!(
            "[{}]",
            (0..=REPLICAS_MAX)
                .map(|i| format!("{{\"name\": \"r{i}\", \"url\": \"http://h{i}\"}}"))
                .collect::<Vec<_>>()
                .join(",")
        );
        for (text, is_json, part) in [
            ("[{\"name\": \"a\"}]", true, "missing field `url` at line 1"),
            (
                "[{\"name\": \"a\", \"url\": \"http://a\",\n \"x\": 1}]",
                true,
                "unknown field `x`, expected `name` or `url` at line 2",
            ),
            ("[[replica]]\nname = \"a\"\nurll = \"http://a\"", false, "line 3"),
            ("[{\"name\": \"a\"", true, "EOF"),
            ("", true, "EOF"),
            (
                "[{\"name\": \"a b\", \"url\": \"http://a\"}]",
                true,
                "entry 1 (name \"a b\")",
            ),
            (
                "[{\"name\": \"a\", \"url\": \"http://u:p@a\"}]",
                true,
                "entry 1 (name \"a\"): a URL holds no user",
            ),
            (
                "[{\"name\": \"a\", \"url\": \"http://a\"},{\"name\": \"a\", \"url\": \"http://b\"}]",
                true,
                "entry 2 (name \"a\"): the name",
            ),
            (
                "[{\"name\": \"a\", \"url\": \"http://a\"},{\"name\": \"b\", \"url\": \"http://a:80/\"}]",
                true,
                "http://a:80 is another",
            ),
            (&many, true, "257 replicas are more than 256"),
        ] {
            let error = parse(text, is_json).unwrap_err();
            assert!(error.contains(part) && !error.contains("u:p"), "{text:.80}: {error}");
        }
    }
}
