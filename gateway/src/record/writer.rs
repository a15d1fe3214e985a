//! The writer: a bounded queue and one thread that owns the connection.
//!
//! Problem: a request's end must cost next to nothing, and the disk may be slow, full, locked or broken. Rule: the queue
//! is a mutex around boxed rows, held for a push only; the thread is woken by the first row and by a full batch, and
//! writes what has come together after [`BATCH_DELAY`]. Recovery: a failed batch is kept and tried again on a new
//! connection, ever more slowly up to [`RETRY_MAX`]; meanwhile the queue fills, and what doesn't fit is shed and counted.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use tracing::warn;

use super::retention::{self, Limits};
use super::{Counts, Record, RecordError, schema};

/// Rows of one transaction.
const BATCH_ROWS: usize = 256;

/// How long the first row of a batch waits for others.
const BATCH_DELAY: Duration = Duration::from_millis(200);

/// First and longest pause after a failure.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Retention runs this often, and after this many rows.
const RETENTION_EVERY: Duration = Duration::from_secs(60);
const RETENTION_ROWS: u64 = 10_000;

/// A failure that goes on is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Steps that the thread steps back behind the requests (`nice`): a row may wait, a token mustn't. Not more, so that on a
/// machine that is busy without end it still gets a quarter of a core, three times what the rows of the requests there cost.
const NICE: i32 = 5;

/// How long the last handle waits for the queue to be written.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The owning side. Dropping it writes what is queued, for [`CLOSE_LIMIT`] at most.
pub(super) struct Writer {
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Writer {
    /// Starts the thread. The file is opened there, so that a bad one can't fail the start.
    pub(super) fn start(path: PathBuf, limits: Limits, queue_rows: usize) -> Result<Self, RecordError> {
        let shared = Arc::new(Shared {
            queue_rows,
            ..Shared::default()
        });
        let thread = Thread::new(Arc::clone(&shared), path.clone(), limits);
        std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || thread.run())
            .map_err(RecordError::Spawn)?;
        Ok(Self { shared, path })
    }

    /// Counts a row that is not kept.
    pub(super) fn shed(&self) {
        self.shared.shed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn submit(&self, record: Record) {
        // Boxed outside the lock: the queue moves pointers, and costs nothing while it is empty.
        let row = Box::new(record);
        let mut queue = self.shared.lock();
        if queue.rows.len() >= self.shared.queue_rows || queue.ended {
            drop(queue);
            self.shed();
            return;
        }
        queue.rows.push_back(row);
        queue.accepted += 1;
        let waiting = queue.rows.len();
        drop(queue);
        if waiting == 1 || waiting == BATCH_ROWS {
            self.shared.work.notify_one();
        }
    }

    pub(super) fn flush(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut queue = self.shared.lock();
        let target = queue.accepted;
        queue.flushing += 1;
        self.shared.work.notify_one();
        while queue.settled < target && !queue.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = wait(&self.shared.settled, queue, left);
        }
        queue.flushing -= 1;
        queue.settled >= target
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let until = Instant::now() + CLOSE_LIMIT;
        let mut queue = self.shared.lock();
        queue.closed = true;
        self.shared.work.notify_one();
        while !queue.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let rows = queue.accepted.saturating_sub(queue.settled);
                warn!(path = %self.path.display(), rows, "records: the database is too slow, rows are left unwritten");
                return;
            }
            queue = wait(&self.shared.settled, queue, left);
        }
    }
}

/// What the handles and the thread share.
#[derive(Default)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// The thread waits here for rows, a flush, or the end.
    work: Condvar,
    /// Flushes and the end wait here for rows to be settled.
    settled: Condvar,
    queue_rows: usize,
    written: AtomicU64,
    shed: AtomicU64,
    failures: AtomicU64,
}

#[derive(Default)]
struct Queue {
    rows: VecDeque<Box<Record>>,
    /// Rows ever taken in, and rows of these that are on disk or given up.
    accepted: u64,
    settled: u64,
    /// Flushes that wait now.
    flushing: u32,
    closed: bool,
    ended: bool,
}

impl Shared {
    pub(super) fn counts(&self) -> Counts {
        let queue = self.lock();
        let queued = queue.accepted.saturating_sub(queue.settled);
        drop(queue);
        Counts {
            written: self.written.load(Ordering::Relaxed),
            shed: self.shed.load(Ordering::Relaxed),
            queued,
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// No code panics while it holds the lock; if it did, the queue would still be whole.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a batch and takes it; an empty one says that `until` is over. `None` at the end.
    fn next_batch(&self, until: Instant) -> Option<VecDeque<Box<Record>>> {
        let mut queue = self.lock();
        while queue.rows.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if queue.closed {
                return None;
            }
            if left.is_zero() {
                return Some(VecDeque::new());
            }
            queue = wait(&self.work, queue, left);
        }
        let full = Instant::now() + BATCH_DELAY;
        while queue.rows.len() < BATCH_ROWS && !queue.closed && queue.flushing == 0 {
            let left = full.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = wait(&self.work, queue, left);
        }
        let rows = queue.rows.len().min(BATCH_ROWS);
        let batch = queue.rows.drain(..rows).collect();
        if queue.rows.is_empty() {
            // After a flood the memory goes back.
            queue.rows.shrink_to(BATCH_ROWS);
        }
        Some(batch)
    }

    /// Waits before a retry; `true` if the end has come meanwhile.
    fn pause(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut queue = self.lock();
        while !queue.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = wait(&self.work, queue, left);
        }
        true
    }

    fn settle(&self, rows: usize) {
        self.lock().settled += rows as u64;
        self.settled.notify_all();
    }

    fn end(&self) {
        let mut queue = self.lock();
        let lost = queue.rows.len() as u64;
        queue.rows.clear();
        queue.settled += lost;
        queue.ended = true;
        drop(queue);
        self.shed.fetch_add(lost, Ordering::Relaxed);
        self.settled.notify_all();
    }
}

/// On Linux a thread has a priority of its own, elsewhere this would be the process's. Refused (a seccomp filter), it is as before.
fn step_back() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpriority_process, setpriority_process};
        let thread = Some(rustix::thread::gettid());
        let _ = getpriority_process(thread).and_then(|now| setpriority_process(thread, now + NICE));
    }
}

/// The thread's side: the connection and what it knows about it.
struct Thread {
    shared: Arc<Shared>,
    path: PathBuf,
    limits: Limits,
    open: Option<Open>,
    next_retention: Instant,
    rows_since_retention: u64,
    log: Paced,
}

struct Open {
    db: Connection,
    insert: String,
    /// Device and inode, to notice that the file was moved away.
    file: Option<(u64, u64)>,
}

/// What to do with a batch that could not be written.
enum Failure {
    /// The database: try again.
    Database(RecordError),
    /// The rows themselves: no retry can help.
    Rows(RecordError),
}

impl Thread {
    fn new(shared: Arc<Shared>, path: PathBuf, limits: Limits) -> Self {
        let next_retention = Instant::now();
        Self {
            shared,
            path,
            limits,
            open: None,
            next_retention,
            rows_since_retention: 0,
            log: Paced::default(),
        }
    }

    fn run(mut self) {
        // Also when something below panics: nobody must wait for a thread that is gone.
        let _end = AtEnd(Arc::clone(&self.shared));
        step_back();
        while let Some(batch) = self.shared.next_batch(self.next_retention) {
            if !batch.is_empty() && !self.store(&batch) {
                return;
            }
            let due = self.next_retention <= Instant::now() || self.rows_since_retention >= RETENTION_ROWS;
            if due && !self.shared.lock().closed {
                self.retain();
            }
        }
    }

    /// Writes a batch, however long it takes; `false` if the end came first.
    fn store(&mut self, batch: &VecDeque<Box<Record>>) -> bool {
        let mut pause = RETRY_MIN;
        let mut last_try = false;
        loop {
            let failure = match self.try_store(batch) {
                Ok(()) => {
                    self.shared.written.fetch_add(batch.len() as u64, Ordering::Relaxed);
                    self.rows_since_retention += batch.len() as u64;
                    self.shared.settle(batch.len());
                    return true;
                }
                Err(failure) => failure,
            };
            self.open = None;
            match failure {
                Failure::Rows(error) => {
                    self.failed(&error);
                    self.give_up(batch.len());
                    return true;
                }
                Failure::Database(error) => self.failed(&error),
            }
            if last_try {
                self.give_up(batch.len());
                return false;
            }
            last_try = self.shared.pause(pause);
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn try_store(&mut self, batch: &VecDeque<Box<Record>>) -> Result<(), Failure> {
        let path = self.path.clone();
        let open = self.connect().map_err(Failure::Database)?;
        insert_all(open, batch).map_err(|cause| {
            let rows = matches!(
                cause.sqlite_error_code(),
                Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
            );
            let error = RecordError::Database { path, cause };
            if rows {
                Failure::Rows(error)
            } else {
                Failure::Database(error)
            }
        })
    }

    /// The connection, a new one if the last failed or its file is no longer the one at our path.
    fn connect(&mut self) -> Result<&mut Open, RecordError> {
        let kept = self
            .open
            .take()
            .filter(|open| open.file.is_some() && open.file == identity(&self.path));
        let open = match kept {
            Some(open) => open,
            None => Open {
                db: schema::open_write(&self.path)?,
                insert: schema::insert_sql(),
                file: identity(&self.path),
            },
        };
        Ok(self.open.insert(open))
    }

    fn retain(&mut self) {
        let limits = self.limits;
        let path = self.path.clone();
        let done = self.connect().and_then(|open| {
            retention::retain(&open.db, &limits, jiff::Timestamp::now())
                .map_err(|cause| RecordError::Database { path, cause })
        });
        self.rows_since_retention = 0;
        self.next_retention = Instant::now() + RETENTION_EVERY;
        match done {
            Ok(false) => {}
            Ok(true) => self.next_retention = Instant::now(),
            Err(error) => {
                self.open = None;
                self.failed(&error);
            }
        }
    }

    fn give_up(&self, rows: usize) {
        self.shared.shed.fetch_add(rows as u64, Ordering::Relaxed);
        self.shared.settle(rows);
    }

    fn failed(&mut self, error: &RecordError) {
        let failures = self.shared.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if self.log.due(Instant::now()) {
            let shed = self.shared.shed.load(Ordering::Relaxed);
            warn!(%error, failures, shed, "records can't be written; requests are served all the same, and it is tried again");
        }
    }
}

/// Lets a log line pass that would come again and again, once in [`LOG_EVERY`].
#[derive(Default)]
struct Paced {
    last: Option<Instant>,
}

impl Paced {
    fn due(&mut self, now: Instant) -> bool {
        let due = self.last.is_none_or(|last| now.duration_since(last) >= LOG_EVERY);
        if due {
            self.last = Some(now);
        }
        due
    }
}

struct AtEnd(Arc<Shared>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn insert_all(open: &mut Open, batch: &VecDeque<Box<Record>>) -> rusqlite::Result<()> {
    let transaction = open.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut insert = transaction.prepare_cached(&open.insert)?;
        for record in batch {
            schema::bind(&mut insert, record)?;
            insert.raw_execute()?;
        }
    }
    transaction.commit()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

fn wait<'a>(on: &Condvar, queue: MutexGuard<'a, Queue>, left: Duration) -> MutexGuard<'a, Queue> {
    on.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_that_goes_on_is_logged_once_a_minute() {
        let start = Instant::now();
        let mut paced = Paced::default();
        let lines = (0..180).filter(|second| paced.due(start + Duration::from_secs(*second)));
        assert_eq!(lines.collect::<Vec<_>>(), [0, 60, 120]);
    }
}
