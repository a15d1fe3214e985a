//! The running configuration: read without a lock, replaced as a whole when the file changes (B37).
//!
//! A request takes the [`Config`] that it starts with and keeps it to its end. An invalid new file changes nothing and is
//! said in the log with the whole error. Settings that only a restart can change keep their effect too, and are named.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use tokio::signal::unix::{SignalKind, signal};

use super::{Config, ConfigError, Source};

/// Puts one setting of the process's start into a new configuration.
type Keep = fn(&mut Config, &Config);

/// What only a restart brings into effect: its name in the file, and how to keep the value that it had at the start.
///
/// `[auth]` is among them for safety: `listen` and `allow_no_key` are judged together, and `listen` can't change.
const RESTART: [(&str, Keep); 11] = [
    ("server.listen", |new, start| new.server.listen = start.server.listen),
    ("server.threads", |new, start| new.server.threads = start.server.threads),
    ("server.work_stealing", |new, start| {
        new.server.work_stealing = start.server.work_stealing
    }),
    ("server.http2", |new, start| new.server.http2 = start.server.http2),
    ("server.state_dir", |new, start| {
        new.server.state_dir.clone_from(&start.server.state_dir)
    }),
    ("server.tls", |new, start| new.server.tls.clone_from(&start.server.tls)),
    ("limits.buffered_bytes", |new, start| {
        new.limits.buffered_bytes = start.limits.buffered_bytes
    }),
    ("auth", |new, start| new.auth.clone_from(&start.auth)),
    ("admin", |new, start| new.admin.clone_from(&start.admin)),
    ("records", |new, start| new.records.clone_from(&start.records)),
    ("log", |new, start| new.log.clone_from(&start.log)),
];

/// The configuration in effect and where it came from.
#[derive(Debug)]
pub struct Live {
    source: Source,
    /// What the process started with: settings of [`RESTART`] have the effect that they had then.
    started: Arc<Config>,
    running: ArcSwap<Config>,
    read: Mutex<Read>,
}

/// What the last reload read.
#[derive(Debug)]
enum Read {
    /// A valid file; it differs from the running configuration where a setting needs a restart.
    Valid(Box<Config>),
    /// An invalid one, with its error, so that a file that stays broken is said once.
    Invalid(String),
}

/// What a reload did.
#[derive(Debug)]
pub enum Reload {
    /// The file says what is in effect.
    Unchanged,
    /// It is in effect, but for the settings that need a restart.
    Applied {
        /// Their names; they differ from what the process started with.
        restart: Vec<&'static str>,
    },
    /// It can't be used; nothing changed.
    Refused(ConfigError),
}

impl Live {
    /// Takes `config`, which was loaded from `source`, into effect.
    pub fn new(source: Source, config: Config) -> Self {
        let started = Arc::new(config);
        let read = Mutex::new(Read::Valid(Box::new((*started).clone())));
        Self {
            source,
            running: ArcSwap::from(Arc::clone(&started)),
            started,
            read,
        }
    }

    /// The configuration in effect now.
    pub fn get(&self) -> Arc<Config> {
        self.running.load_full()
    }

    /// Where it came from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Reads the source again. Call it when the file may have changed; it blocks for the reading.
    pub fn reload(&self) -> Reload {
        // Held over reading and storing: of two reloads the later reading wins.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match self.source.load() {
            Ok(config) if matches!(&*read, Read::Valid(last) if **last == config) => Reload::Unchanged,
            Ok(config) => {
                let restart = self.apply(config.clone());
                *read = Read::Valid(Box::new(config));
                Reload::Applied { restart }
            }
            Err(error) => {
                let text = error.to_string();
                if !matches!(&*read, Read::Invalid(last) if *last == text) {
                    tracing::error!("the new configuration is not used, the running one stays:\n{text}");
                    *read = Read::Invalid(text);
                }
                Reload::Refused(error)
            }
        }
    }

    /// Stores `config`, but for what needs a restart: that keeps its value, so that nobody reads what isn't in effect.
    fn apply(&self, mut config: Config) -> Vec<&'static str> {
        let mut restart = Vec::new();
        for (name, keep) in RESTART {
            let wanted = config.clone();
            keep(&mut config, &self.started);
            if config != wanted {
                restart.push(name);
            }
        }
        self.running.store(Arc::new(config));
        let source = &self.source;
        if restart.is_empty() {
            tracing::info!(%source, "configuration reloaded");
        } else {
            tracing::warn!(%source, "configuration reloaded; these settings need a restart: {}", restart.join(", "));
        }
        restart
    }
}

/// Calls `reload` at each SIGHUP, on a thread where it may block. Never returns but for an error.
///
/// # Errors
/// The signal can't be listened to.
pub async fn on_hangup(reload: impl Fn() + Send + Sync + 'static) -> io::Result<()> {
    let mut hangups = signal(SignalKind::hangup())?;
    let reload = Arc::new(reload);
    while hangups.recv().await.is_some() {
        let reload = Arc::clone(&reload);
        if tokio::task::spawn_blocking(move || reload()).await.is_err() {
            tracing::error!("a reload at SIGHUP failed inside");
        }
    }
    Err(io::Error::other("no more signals come"))
}

#[cfg(test)]
mod tests;
