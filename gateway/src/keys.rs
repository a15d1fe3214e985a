//! Who may ask (B2, B3): the keys as hashes, and the verdict on what a request presents.
//!
//! A key comes from the environment or from the key file; of both only the SHA-256 digest is kept. A presented key is hashed
//! and compared with every digest, in constant time and without an early end, so that unknown, expired and revoked keys look
//! and time alike. A changed key file takes effect at [`KeyRing::reload`]; a broken one changes nothing. The file itself is
//! `keys::file`'s, a fresh key `keys::secret`'s.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use sluice_policy::admission::queue::Priority;
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

use crate::config::{AuthConfig, ReasoningNames, ReleaseMode};

pub use self::{
    allowance::{Allowance, Charge, Exceeded, KeyLimits, Rate, Spent},
    file::{Entry, Grant, KeyFile, KeyFileError, KeyPriority, NewKey},
    secret::Secret,
};

mod allowance;
mod file;
mod secret;

/// The SHA-256 of a key.
pub(crate) type Digest = [u8; 32];

/// The name under which the key of the environment stands in records.
const ENV_NAME: &str = "env";
/// The name of the key that is made at the first start.
const FIRST_NAME: &str = "first";

/// Whose key it is and what it may do; what a request carries along.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId {
    /// Name in records and metrics; `env` for the key of the environment.
    pub name: Arc<str>,
    /// Model ids that it may use; empty = all.
    pub models: Vec<String>,
    /// What it may send that is refused by default (B4).
    pub grants: Vec<Grant>,
    /// The names under which it gets reasoning (B14); `None` = `[reasoning] names`.
    pub reasoning: Option<ReasoningNames>,
    /// How urgent its requests are at most (B34).
    pub priority: Priority,
    /// When its streams show tool calls (B20); `None` = `[tools] release`.
    pub release: Option<ReleaseMode>,
    /// What it may use, if that is limited (B3).
    pub allowance: Option<Allowance>,
}

impl KeyId {
    /// Whether it may use `model`.
    pub fn may_use(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|allowed| allowed == model)
    }

    fn unlimited(name: &str) -> Self {
        Self {
            name: name.into(),
            models: Vec::new(),
            grants: Vec::new(),
            reasoning: None,
            priority: Priority::default(),
            release: None,
            allowance: None,
        }
    }
}

/// What is said of a presented key. All but `Accepted` are a 401; its message tells the three apart, and nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyVerdict {
    /// There is no `Authorization` header.
    Missing,
    /// There is one, but not of the form `Bearer KEY`.
    NotBearer,
    /// The key is unknown, expired or revoked.
    NotAccepted,
    /// It may go on.
    Accepted(Arc<KeyId>),
    /// No key that is known, and the configuration lets everybody in.
    Open,
}

/// All keys.
#[derive(Debug)]
pub struct KeyRing {
    path: PathBuf,
    /// The key of the environment; read once, a process's environment doesn't change.
    env: Option<Key>,
    keys: ArcSwap<Vec<Key>>,
    /// Everybody may ask, `[auth] allow_no_key`.
    open: bool,
}

#[derive(Clone)]
struct Key {
    digest: Digest,
    expires: Option<Timestamp>,
    id: Arc<KeyId>,
}

/// A digest of a weak key can be guessed: it is not shown either.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// The keys at a start, and the one that was made if there was none.
#[derive(Debug)]
pub struct Opened {
    /// Ready to judge.
    pub ring: KeyRing,
    /// Made just now; to be shown once, it is kept nowhere.
    pub first: Option<Secret>,
}

impl KeyRing {
    /// Reads the keys of `config`; `env` is the process's environment. If there is neither an environment key nor a key file
    /// and a key is wanted, one is made and its hash kept in a new key file (mode 0600).
    ///
    /// # Errors
    /// The key file can't be read or written or isn't valid, or it is there and has no key: nobody could ask.
    pub fn open(
        config: &AuthConfig,
        state_folder: &Path,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Opened, KeyFileError> {
        let path = config.key_path(state_folder);
        let env = env_key(&config.key_env, env);
        let open = config.allow_no_key;
        let mut file = KeyFile::read(&path)?;
        let mut first = None;
        if env.is_none() && !open {
            match &file {
                Some(file) if file.keys().is_empty() => return Err(KeyFileError::NoKey(path)),
                Some(_) => {}
                None => {
                    first = KeyFile::add_first(&path, FIRST_NAME)?;
                    file = KeyFile::read(&path)?;
                }
            }
        }
        let keys = file.as_ref().map(|file| keys_of(file, &[])).unwrap_or_default();
        Ok(Opened {
            ring: Self {
                path,
                env,
                keys: ArcSwap::from_pointee(keys),
                open,
            },
            first,
        })
    }

    /// Reads the key file again; a request that is running keeps the key it came with. Returns the number of keys in the file.
    ///
    /// # Errors
    /// The file can't be read or isn't valid, or it has gone; the keys stay as they were.
    pub fn reload(&self) -> Result<usize, KeyFileError> {
        let keys = match KeyFile::read(&self.path)? {
            Some(file) => keys_of(&file, &self.keys.load()),
            None if self.keys.load().is_empty() => return Ok(0),
            None => return Err(KeyFileError::Gone(self.path.clone())),
        };
        let count = keys.len();
        self.keys.store(Arc::new(keys));
        Ok(count)
    }

    /// What keys with limits have used since it was last asked, by name: counted from now on by the process that takes over.
    pub fn hand_over(&self) -> BTreeMap<String, Spent> {
        let keys = self.keys.load();
        let limited = keys
            .iter()
            .filter_map(|key| Some((&key.id, key.id.allowance.as_ref()?)));
        limited
            .map(|(id, allowance)| (id.name.to_string(), allowance.hand_over()))
            .collect()
    }

    /// The same of the process before comes to what is used here. Of keys that it doesn't name, nothing runs there any more.
    pub fn go_on_from(&self, spent: &BTreeMap<String, Spent>) {
        for key in self.keys.load().iter() {
            if let Some(allowance) = &key.id.allowance {
                allowance.go_on_from(spent.get(&*key.id.name).copied().unwrap_or_default());
            }
        }
    }

    /// The key file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Judges what a request presents now: the value of `Authorization`, and of Anthropic's `x-api-key` where that counts. With
    /// both it is enough that one is accepted; otherwise the `Authorization` is what is complained of.
    pub fn judge(&self, authorization: Option<&[u8]>, api_key: Option<&[u8]>) -> KeyVerdict {
        let now = Timestamp::now();
        match (api_key.map(|key| self.check_key(key, now)), authorization) {
            (Some(KeyVerdict::NotAccepted), Some(value)) => self.check(Some(value), now),
            (Some(verdict), _) => verdict,
            (None, value) => self.check(value, now),
        }
    }

    /// Judges the value of an `Authorization` header at `now`.
    pub fn check(&self, authorization: Option<&[u8]>, now: Timestamp) -> KeyVerdict {
        match authorization.map(bearer) {
            Some(Some(key)) => self.check_key(key, now),
            _ if self.open => KeyVerdict::Open,
            Some(None) => KeyVerdict::NotBearer,
            None => KeyVerdict::Missing,
        }
    }

    /// Judges a bare key at `now`.
    pub fn check_key(&self, presented: &[u8], now: Timestamp) -> KeyVerdict {
        let digest: Digest = Sha256::digest(presented).into();
        let keys = self.keys.load();
        let all = || self.env.iter().chain(keys.iter());
        // Index of the accepted key, counted from 1; every key is compared, whichever fits.
        let mut found = 0u64;
        for (index, key) in (1u64..).zip(all()) {
            let alive = Choice::from(u8::from(key.expires.is_none_or(|expires| now < expires)));
            found.conditional_assign(&index, key.digest.ct_eq(&digest) & alive);
        }
        let key = found
            .checked_sub(1)
            .and_then(|index| all().nth(usize::try_from(index).ok()?));
        match key {
            Some(key) => KeyVerdict::Accepted(Arc::clone(&key.id)),
            None if self.open => KeyVerdict::Open,
            None => KeyVerdict::NotAccepted,
        }
    }
}

/// The key of `Bearer KEY`: the scheme in any case, at least one space, then something.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.trim_ascii().split_at_checked(6)?;
    let spaced = key.first().is_some_and(|byte| *byte == b' ');
    let key = key.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer") && spaced && !key.is_empty()).then_some(key)
}

fn env_key(name: &str, env: impl Fn(&str) -> Option<OsString>) -> Option<Key> {
    let value = if name.is_empty() { None } else { env(name) }?;
    let value = value.as_encoded_bytes().trim_ascii();
    let key = |value| Key {
        digest: Sha256::digest(value).into(),
        expires: None,
        id: Arc::new(KeyId::unlimited(ENV_NAME)),
    };
    (!value.is_empty()).then(|| key(value))
}

/// The keys of a file; those that were there `before` go on with what they have used.
fn keys_of(file: &KeyFile, before: &[Key]) -> Vec<Key> {
    let key = |entry: &Entry| Key {
        digest: entry.digest(),
        expires: entry.expires(),
        id: Arc::new(KeyId {
            name: entry.name.as_str().into(),
            models: entry.models.clone(),
            grants: entry.grants.clone(),
            reasoning: entry.reasoning,
            priority: entry.priority.map_or(Priority::default(), Priority::from),
            release: entry.release,
            allowance: {
                let same = before.iter().find(|key| key.digest == entry.digest());
                Allowance::new(entry.limits(), same.and_then(|key| key.id.allowance.as_ref()))
            },
        }),
    };
    file.keys().iter().map(key).collect()
}

#[cfg(test)]
mod tests;
