//! What is kept of a request: one `Record` when it ends, one row in SQLite soon after.
//!
//! A finished request enters by `Recorder::submit`, which never waits: a bounded queue takes it, one thread writes
//! it, and when the queue is full the row is shed and counted. Rows leave by `query`, which other processes use on the
//! live file. Prompts, answers and keys never enter: a record has names, numbers and codes only. A broken or locked
//! database never stops serving. The schema is in `schema`, the thread in `writer`, what is thrown away in `retention`.

pub mod print;
pub mod query;
mod retention;
mod schema;
mod stats;
pub mod verdicts;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One request, from accepted to its last byte. Times are lengths, not instants, but for `started`.
///
/// `S` is the type of the closed sets: `&'static str` where a request is recorded, `String` where a row is read back
/// ([`query::Row`]). `Default` is an empty record at the epoch, so that a caller can fill in what it knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Record<S = &'static str> {
    /// The request id that the client saw (its own `x-request-id` if it sent one, so it need not be unique).
    pub id: String,
    /// When the request head was accepted.
    pub started: jiff::Timestamp,
    /// Name of the key, never the key; empty if none was accepted.
    pub key_name: String,
    /// The route by name, like `chat` or `completions`.
    pub endpoint: S,
    /// Configured name of the model; empty if the request was refused before one was chosen.
    pub model: String,
    /// Launch profile of the replica; empty if no replica was chosen.
    pub profile: String,
    /// The replica that gave the answer, or that was tried last; empty if none was tried.
    pub replica: String,
    /// Hash of the session key.
    pub session_hash: Option<u64>,
    /// Where the session key came from, like `x-session-id`.
    pub session_source: Option<S>,
    /// `hit`, `miss`, `repin` or `new`.
    pub route: S,
    /// Upstream attempts, 0 if none was made.
    pub attempts: u32,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Prompt tokens as the engine counted them.
    pub prompt_tokens: Option<u64>,
    /// Prompt tokens that the engine found in its prefix cache; `None` if it doesn't say.
    pub cached_tokens: Option<u64>,
    /// Tokens of the answer, reasoning included.
    pub completion_tokens: Option<u64>,
    /// Tokens of the answer that are reasoning.
    pub reasoning_tokens: Option<u64>,
    /// Whether any of the token counts was counted from chunks instead of told by the engine.
    pub tokens_estimated: bool,
    /// Waiting for a place at a replica.
    pub queue: Duration,
    /// Dispatched → first upstream token, first attempts only. `None` for a non-stream answer.
    pub ttft_engine: Option<Duration>,
    /// Accepted → first reasoning, text or call byte sent. `None` for a non-stream answer.
    pub ttft_client: Option<Duration>,
    /// Longest time that a tool call was held back before it was shown.
    pub tool_hold: Duration,
    /// Median gap between tokens.
    pub itl_p50: Option<Duration>,
    /// 99th percentile of the gaps between tokens.
    pub itl_p99: Option<Duration>,
    /// Longest gap between tokens.
    pub itl_max: Option<Duration>,
    /// (last − first) / (tokens − 1).
    pub tpot: Option<Duration>,
    /// Tokens a second, from the first token to the last.
    pub tokens_per_s: Option<f64>,
    /// Accepted → last byte sent, or given up.
    pub duration: Duration,
    /// Bytes of the request body.
    pub bytes_in: u64,
    /// Bytes of the response body as sent.
    pub bytes_out: u64,
    /// Tool calls that the client was shown.
    pub tool_calls: u32,
    /// `finish_reason` of the first choice.
    pub finish: Option<String>,
    /// The status that the client got; 0 if it left before one was sent.
    pub status: u16,
    /// Code of the fault. Never text of a prompt or an answer.
    pub error: Option<String>,
    /// Whose fault: `downstream`, `upstream` or `internal`.
    pub error_side: Option<S>,
    /// The client left, or cancelled the request.
    pub cancelled: bool,
    /// The answer came from a simulated replica.
    pub simulated: bool,
    /// Completion tokens of all attempts together, where a call was asked again; `completion_tokens` are what the client got.
    pub engine_tokens: Option<u64>,
    /// What became of the tool calls, as a JSON array of `{"tool","verdict","kinds"}`; `None` without any.
    pub verdicts: Option<String>,
    /// Past turns that were changed before they were sent (B30).
    pub history_changes: u32,
    /// How often the answer went on elsewhere after its replica was lost.
    pub continuations: u32,
    /// What it went on from: `text` (tokenized again, so that the tokens may differ from those of the first engine). Penalties and
    /// seeds begin anew there.
    pub seam: Option<S>,
    /// Why it went there, like `session` or `moved: load`; empty if it went nowhere.
    pub route_reason: S,
}

impl<S> Record<S> {
    /// Whether the prompt was mostly in the prefix cache when the engine began.
    pub fn warmth(&self) -> Warmth {
        Warmth::of(self.cached_tokens, self.prompt_tokens)
    }
}

/// Whether a prompt's KV cache was there already: TTFT means nothing without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Warmth {
    /// Less than half of the prompt was cached.
    Cold,
    /// Half of the prompt or more was cached.
    Warm,
    /// The engine didn't say.
    Unknown,
}

impl Warmth {
    /// Warm from `cached / prompt ≥ 0.5` on; unknown if either count is missing or the prompt is empty.
    pub fn of(cached_tokens: Option<u64>, prompt_tokens: Option<u64>) -> Self {
        match (cached_tokens, prompt_tokens) {
            (Some(cached), Some(prompt)) if prompt > 0 => {
                if cached.saturating_mul(2) >= prompt {
                    Self::Warm
                } else {
                    Self::Cold
                }
            }
            _ => Self::Unknown,
        }
    }
}

/// `[records]`: which requests leave a row, where, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordConfig {
    /// Whether rows are written at all. Default `true`. `/metrics` doesn't depend on it.
    pub enabled: bool,
    /// The SQLite file; a relative path is taken from the state folder. Default `"requests.db"`. Its mode is 0600.
    pub path: PathBuf,
    /// Rows that started longer ago are deleted. Default `"30d"`.
    #[serde(with = "crate::config::duration")]
    pub max_age: Duration,
    /// Above this size of the file, in bytes, the oldest rows are deleted. Default 1 GiB (some 4 million rows), at least
    /// 1 MiB. The write-ahead log beside it comes on top (a few MiB).
    #[serde(with = "crate::config::size")]
    pub max_bytes: u64,
    /// Finished requests that may wait for the writer; more are shed and counted. Default 10,000, at least 1.
    pub queue_rows: usize,
}

impl Default for RecordConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            path: PathBuf::from("requests.db"),
            max_age: Duration::from_secs(30 * 24 * 60 * 60),
            max_bytes: 1 << 30,
            queue_rows: 10_000,
        }
    }
}

/// Smallest accepted `max_bytes`: an empty file has a few pages already, and retention works in slices of rows.
const MIN_BYTES: u64 = 1 << 20;

impl RecordConfig {
    /// Where the file is for this state folder.
    pub fn file(&self, state_dir: &Path) -> PathBuf {
        state_dir.join(&self.path)
    }

    /// Refuses values that can't work.
    ///
    /// # Errors
    /// [`RecordError::Setting`] names the setting.
    pub fn check(&self) -> Result<(), RecordError> {
        let setting = |name, why| Err(RecordError::Setting { name, why });
        if self.queue_rows == 0 {
            return setting("queue_rows", "must be at least 1");
        }
        if self.max_bytes < MIN_BYTES {
            return setting("max_bytes", "must be at least 1048576 (1 MiB)");
        }
        if self.max_age.is_zero() {
            return setting(
                "max_age",
                "must be longer than nothing; `enabled = false` switches records off",
            );
        }
        if self.path.as_os_str().is_empty() {
            return setting("path", "must not be empty");
        }
        Ok(())
    }
}

/// What can go wrong around the records. None of these ever reaches a client.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A setting of `[records]` can't work.
    #[error("[records] {name} {why}")]
    Setting {
        /// Key of the setting.
        name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The writer thread could not be started.
    #[error("can't start the record writer: {0}")]
    Spawn(#[source] std::io::Error),
    /// There is no such file: no gateway has written records there yet.
    #[error("no records at {}", .0.display())]
    Missing(PathBuf),
    /// The file or its folder can't be created or read.
    #[error("can't use {} for records: {cause}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// A SQLite file, but not one of ours: it is left as it is.
    #[error("{} is a database of another program", .0.display())]
    Foreign(PathBuf),
    /// SQLite refused: locked, corrupt, full.
    #[error("records in {}: {cause}", .path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        cause: rusqlite::Error,
    },
}

/// Starts the writer for `config` and hands out its handle. The file is opened by the writer thread, again and again if
/// need be: a database that can't be opened costs rows, never a request.
///
/// # Errors
/// A setting that can't work, or no thread to be had.
pub fn open(config: &RecordConfig, state_dir: &Path) -> Result<Recorder, RecordError> {
    config.check()?;
    if !config.enabled {
        return Ok(Recorder::off());
    }
    let limits = retention::Limits {
        max_age: config.max_age,
        max_bytes: config.max_bytes,
    };
    let writer = writer::Writer::start(config.file(state_dir), limits, config.queue_rows)?;
    Ok(Recorder {
        writer: Some(Arc::new(writer)),
    })
}

/// Handle to the writer; clones are cheap. Dropping the last one blocks until what is queued is written, for 2 s at most.
#[derive(Clone)]
pub struct Recorder {
    writer: Option<Arc<writer::Writer>>,
}

impl Recorder {
    /// A recorder that keeps nothing (`enabled = false`).
    pub fn off() -> Self {
        Self { writer: None }
    }

    /// Takes the record of a finished request. Never waits for the disk: if the queue is full the row is shed and
    /// counted.
    pub fn submit(&self, record: Record) {
        if let Some(writer) = &self.writer {
            writer.submit(record);
        }
    }

    /// Counts a row that its maker decided not to keep.
    pub fn shed(&self) {
        if let Some(writer) = &self.writer {
            writer.shed();
        }
    }

    /// Waits until everything that was submitted before is on disk, at most `limit`; `false` if it isn't by then. Blocks
    /// the thread: call it from `spawn_blocking`, or when the runtime is gone.
    pub fn flush(&self, limit: Duration) -> bool {
        self.writer.as_ref().is_none_or(|writer| writer.flush(limit))
    }

    /// What became of the rows so far.
    pub fn counts(&self) -> Counts {
        self.counting()()
    }

    /// [`Self::counts`] for one who must not keep the writer alive, like the metrics.
    pub fn counting(&self) -> impl Fn() -> Counts + Send + Sync + use<> {
        let shared = self.writer.as_ref().map(|writer| writer.shared());
        move || shared.as_ref().map_or_else(Counts::default, |shared| shared.counts())
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

/// What became of the rows since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Rows on disk.
    pub written: u64,
    /// Rows that were not kept: the queue was full, the database could not take them before the end, or too many came from
    /// requests without a key.
    pub shed: u64,
    /// Rows in the queue now.
    pub queued: u64,
    /// Transactions and openings that failed; each is tried again.
    pub failures: u64,
}

#[cfg(test)]
mod tests;
