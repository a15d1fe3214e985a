//! The key file: names, hashes and what each key may do. Never a key itself.
//!
//! It is written whole: to a new file with mode 0600, synced, renamed into place, under a lock file, so that a reader never
//! sees half of it and two writers don't lose each other's change.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    num::NonZeroU32,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Digest, KeyLimits, Secret};
use sluice_policy::admission::queue::Priority;

use crate::config::{ConfigError, ReasoningNames, ReleaseMode, read_table};

/// The largest key file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Keys in a file: each request is compared with all of them.
const KEYS_MAX: usize = 1_000;
/// Letters of a key's name: it is a metric label.
const NAME_CHARS_MAX: usize = 64;
/// How long a writer waits for another.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const HASH_PREFIX: &str = "sha256:";
const HEAD: &str = "# Keys of Sluice, as hashes. `sluice key` writes this file and keeps no comments. A change takes effect at once.\n";

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    #[serde(default)]
    key: Vec<Entry>,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Unique; letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub hash: String,
    /// When it was made.
    #[serde(with = "instant")]
    pub created: Timestamp,
    /// From this instant on it isn't accepted any more. Absent = never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Instantly>,
    /// Model ids that it may use. Empty or absent = all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// What it may send that is refused by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grants: Vec<Grant>,
    /// The names under which it gets reasoning. Absent = `[reasoning] names`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<ReasoningNames>,
    /// When its streams show tool calls. Absent = `[tools] release`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseMode>,
    /// How urgent its requests are at most. Absent = normal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<KeyPriority>,
    /// Requests that it may send in a minute, all of them at once if it wants. Absent = as many as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens of prompts and answers that it may use in a minute. Absent = as many as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests that it may have at once. Absent = as many as it likes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<NonZeroU32>,
}

/// An instant inside an `Option`, where `with` can't reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Instantly(#[serde(with = "instant")] Timestamp);

/// What a key may send that is refused by default (B4), because it reaches past the conversation into the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum Grant {
    /// Media that vLLM would fetch: `http:`, `https:`, `file:`.
    RemoteMedia,
    /// `kv_transfer_params`.
    KvTransfer,
    /// `prompt_embeds`.
    PromptEmbeds,
    /// `chat_template`.
    ChatTemplate,
    /// `vllm_xargs`.
    VllmXargs,
    /// `logits_processors`.
    LogitsProcessors,
}

/// How urgent a key's requests are at most; one of them may say that it is less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum KeyPriority {
    /// Before all others.
    High,
    /// As most.
    Normal,
    /// When nothing else waits.
    Low,
}

impl From<KeyPriority> for Priority {
    fn from(priority: KeyPriority) -> Priority {
        match priority {
            KeyPriority::High => Priority::High,
            KeyPriority::Normal => Priority::Normal,
            KeyPriority::Low => Priority::Low,
        }
    }
}

/// A key to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewKey {
    /// Unique.
    pub name: String,
    /// How long it is accepted; `None` = for ever.
    pub expires_in: Option<Duration>,
    /// Model ids that it may use; empty = all.
    pub models: Vec<String>,
    /// What it may send that is refused by default.
    pub grants: Vec<Grant>,
    /// The names under which it gets reasoning; `None` = as the configuration says.
    pub reasoning: Option<ReasoningNames>,
    /// When its streams show tool calls; `None` = as the configuration says.
    pub release: Option<ReleaseMode>,
    /// How urgent its requests are at most; `None` = normal.
    pub priority: Option<KeyPriority>,
    /// What it may use.
    pub limits: KeyLimits,
}

/// Why the key file can't be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Reading or writing failed.
    #[error("cannot {doing} the key file {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It isn't TOML of the right shape.
    #[error(transparent)]
    Shape(#[from] ConfigError),
    /// An entry contradicts the rules or another entry.
    #[error("{}: the key \"{name}\" {fault}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// The entry's name.
        name: String,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// Too many.
    #[error("{}: more than {KEYS_MAX} keys", .0.display())]
    TooMany(PathBuf),
    /// The file is there and has no key, and none comes from the environment.
    #[error(
        "there is no key: {} has none and the environment has none. Make one with `sluice key new --name NAME`",
        .0.display()
    )]
    NoKey(PathBuf),
    /// The file was there and isn't any more.
    #[error("the key file {} has gone; its keys stay in effect until a restart or until it is back", .0.display())]
    Gone(PathBuf),
    /// A key of this name exists.
    #[error("there is a key \"{0}\" already; revoke it first, or choose another name")]
    Taken(String),
    /// No key of this name exists.
    #[error("there is no key \"{0}\"{1}")]
    Unknown(String, String),
    /// The name can't be one.
    #[error("\"{0}\" is no name for a key: 1 to {NAME_CHARS_MAX} letters, digits, `-`, `_` or `.`")]
    Name(String),
    /// The expiry lies beyond what a calendar holds.
    #[error("this expiry is too far away")]
    Expiry,
    /// Another process holds the lock.
    #[error("{} is being changed by another process (waited {} s for {})", .0.display(), LOCK_PATIENCE.as_secs(), .1.display())]
    Locked(PathBuf, PathBuf),
    /// The system has no random source.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl Entry {
    /// The hash as bytes; of an entry that [`KeyFile::read`] let through.
    pub(super) fn digest(&self) -> Digest {
        parse_hash(&self.hash).unwrap_or_default()
    }

    /// What it may use.
    pub fn limits(&self) -> KeyLimits {
        KeyLimits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrency: self.concurrency,
        }
    }

    /// From when on it isn't accepted any more.
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires.map(|Instantly(at)| at)
    }

    /// Whether it is accepted at `now`.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        self.expires().is_none_or(|expires| now < expires)
    }
}

impl KeyFile {
    /// All keys, oldest first as they were added.
    pub fn keys(&self) -> &[Entry] {
        &self.key
    }

    /// Reads and checks it; `None` if there is no file.
    ///
    /// # Errors
    /// It can't be read, isn't TOML of this shape, or an entry is wrong.
    pub fn read(path: &Path) -> Result<Option<Self>, KeyFileError> {
        let failed = |source| KeyFileError::Io {
            doing: "read",
            path: path.to_path_buf(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mode = file.metadata().map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(file = %path.display(), mode = format!("{:04o}", mode & 0o7777), "others can read or write the key file; chmod 600 it");
        }
        let mut text = String::new();
        let bytes = file
            .take(FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if bytes as u64 > FILE_BYTES_MAX {
            return Err(failed(io::Error::other("larger than 1 MiB")));
        }
        let keys: Self = read_table(&path.display().to_string(), &text)?;
        keys.check(path)?;
        Ok(Some(keys))
    }

    fn check(&self, path: &Path) -> Result<(), KeyFileError> {
        if self.key.len() > KEYS_MAX {
            return Err(KeyFileError::TooMany(path.to_path_buf()));
        }
        let mut names = HashSet::new();
        for entry in &self.key {
            let fault = if !is_name(&entry.name) {
                "has no valid name: 1 to 64 letters, digits, `-`, `_` or `.`"
            } else if !names.insert(&entry.name) {
                "stands there twice"
            } else if parse_hash(&entry.hash).is_none() {
                "has no valid hash: \"sha256:\" and 64 hexadecimal digits"
            } else {
                continue;
            };
            return Err(KeyFileError::Entry {
                path: path.to_path_buf(),
                name: entry.name.clone(),
                fault,
            });
        }
        Ok(())
    }

    /// Makes a key and keeps its hash.
    ///
    /// # Errors
    /// The name is taken or not valid, or the file can't be changed.
    pub fn add(path: &Path, new: &NewKey, now: Timestamp) -> Result<Secret, KeyFileError> {
        change(path, |file| file.push(new, now))
    }

    /// Makes the first key if there still is no file: of two processes that start at once, one makes it.
    pub(super) fn add_first(path: &Path, name: &str) -> Result<Option<Secret>, KeyFileError> {
        change(path, |file| {
            if !file.key.is_empty() {
                return Ok(None);
            }
            file.push(
                &NewKey {
                    name: name.to_owned(),
                    ..NewKey::default()
                },
                Timestamp::now(),
            )
            .map(Some)
        })
    }

    /// Forgets the key of this name. A running gateway refuses it at once.
    ///
    /// # Errors
    /// There is no such key, or the file can't be changed.
    pub fn revoke(path: &Path, name: &str) -> Result<(), KeyFileError> {
        change(path, |file| {
            let before = file.key.len();
            file.key.retain(|entry| entry.name != name);
            if file.key.len() < before {
                Ok(())
            } else {
                Err(file.unknown(name))
            }
        })
    }

    fn push(&mut self, new: &NewKey, now: Timestamp) -> Result<Secret, KeyFileError> {
        if !is_name(&new.name) {
            return Err(KeyFileError::Name(new.name.clone()));
        }
        if self.key.iter().any(|entry| entry.name == new.name) {
            return Err(KeyFileError::Taken(new.name.clone()));
        }
        let expires = match new.expires_in {
            Some(after) => Some(Instantly(now.checked_add(after).map_err(|_| KeyFileError::Expiry)?)),
            None => None,
        };
        let secret = Secret::draw()?;
        self.key.push(Entry {
            name: new.name.clone(),
            hash: format_hash(&secret.digest()),
            created: now,
            expires,
            models: new.models.clone(),
            grants: new.grants.clone(),
            reasoning: new.reasoning,
            release: new.release,
            priority: new.priority,
            requests_per_minute: new.limits.requests_per_minute,
            tokens_per_minute: new.limits.tokens_per_minute,
            concurrency: new.limits.concurrency,
        });
        Ok(secret)
    }

    fn unknown(&self, name: &str) -> KeyFileError {
        let names: Vec<&str> = self.key.iter().map(|entry| entry.name.as_str()).collect();
        let known = if names.is_empty() {
            "; there is none at all".to_owned()
        } else {
            format!("; there are {}", names.join(", "))
        };
        KeyFileError::Unknown(name.to_owned(), known)
    }
}

/// Reads, changes and writes under the lock.
fn change<T>(path: &Path, edit: impl FnOnce(&mut KeyFile) -> Result<T, KeyFileError>) -> Result<T, KeyFileError> {
    let failed = |doing| {
        move |source| KeyFileError::Io {
            doing,
            path: path.to_path_buf(),
            source,
        }
    };
    // Behind a link the file that it leads to is replaced, not the link.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let folder = target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed("make the folder of"))?;
    let _lock = lock(&target)?;
    let mut file = KeyFile::read(&target)?.unwrap_or_default();
    let made = edit(&mut file)?;
    file.check(&target)?;
    let text = toml::to_string(&file).map_err(|error| failed("write")(io::Error::other(error)))?;
    replace(&target, folder, &format!("{HEAD}\n{text}")).map_err(failed("write"))?;
    Ok(made)
}

/// The lock is held until the returned file is dropped, also by a crash.
fn lock(target: &Path) -> Result<File, KeyFileError> {
    let path = beside(target, ".lock");
    let failed = |source| KeyFileError::Io {
        doing: "lock",
        path: target.to_path_buf(),
        source,
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if start.elapsed() > LOCK_PATIENCE => {
                return Err(KeyFileError::Locked(target.to_path_buf(), path));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Puts `text` in the place of `target`: whole or not at all, and on the disk.
fn replace(target: &Path, folder: &Path, text: &str) -> io::Result<()> {
    let new = beside(target, ".new");
    // Left by a crash; the lock says that nobody else writes it now.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, target)?;
    File::open(folder)?.sync_all()
}

fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    target.with_file_name(name)
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(plain)
}

fn format_hash(digest: &Digest) -> String {
    digest
        .iter()
        .fold(HASH_PREFIX.to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn parse_hash(text: &str) -> Option<Digest> {
    let hex = text.strip_prefix(HASH_PREFIX)?.as_bytes();
    let nibble = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|nibble| u8::try_from(nibble).ok())
    };
    let mut digest = Digest::default();
    if hex.len() != digest.len() * 2 {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(digest)
}

/// Instants as RFC 3339 text.
mod instant {
    use jiff::Timestamp;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| de::Error::custom("expected an instant such as \"2027-01-31T12:00:00Z\""))
    }
}
