//! The table, how it came to be, and how a record becomes a row and a row a record.
//!
//! Migrations only add: a table, an index, a column with a default. So an older gateway can go on writing to a newer
//! file, and a newer `sluice requests` can read an older file (a missing column reads as NULL). Durations are whole
//! microseconds, instants microseconds since the epoch, hashes the bits of an `i64`, booleans 0 and 1.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Row, Statement, ToSql, TransactionBehavior};

use super::{Record, RecordError};

/// Marks a file as ours ("SLUC"), so that another program's database is never written to.
const APPLICATION_ID: i32 = 0x534c_5543;

/// A writer waits this long for another one's lock, then the transaction fails and is tried again later.
const BUSY: Duration = Duration::from_secs(1);

/// A reader waits this long. Writing never locks it out, but the last one who closes the file does, for as long as a slow disk
/// takes to sync it, and nobody tries again for a command.
const READ_BUSY: Duration = Duration::from_secs(10);

/// Longest text of a cell, in bytes; ids and model names may come from the client.
const TEXT_LIMIT_BYTES: usize = 256;

/// Each entry leads from the `user_version` of its index to the next one.
pub(super) const MIGRATIONS: &[&str] = &["
    CREATE TABLE requests (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL, started_us INTEGER NOT NULL, key_name TEXT NOT NULL, endpoint TEXT NOT NULL,
        model TEXT NOT NULL, profile TEXT NOT NULL, replica TEXT NOT NULL,
        session_hash INTEGER, session_source TEXT, route TEXT NOT NULL, attempts INTEGER NOT NULL, stream INTEGER NOT NULL,
        prompt_tokens INTEGER, cached_tokens INTEGER, completion_tokens INTEGER, reasoning_tokens INTEGER,
        tokens_estimated INTEGER NOT NULL,
        queue_us INTEGER NOT NULL, ttft_engine_us INTEGER, ttft_client_us INTEGER, tool_hold_us INTEGER NOT NULL,
        itl_p50_us INTEGER, itl_p99_us INTEGER, itl_max_us INTEGER, tpot_us INTEGER, tokens_per_s REAL,
        duration_us INTEGER NOT NULL, bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL, tool_calls INTEGER NOT NULL,
        finish TEXT, status INTEGER NOT NULL, error TEXT, error_side TEXT,
        cancelled INTEGER NOT NULL, simulated INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX requests_by_start ON requests (started_us);
", "
    ALTER TABLE requests ADD COLUMN engine_tokens INTEGER;
    ALTER TABLE requests ADD COLUMN verdicts TEXT;
", "
    ALTER TABLE requests ADD COLUMN history_changes INTEGER NOT NULL DEFAULT 0;
", "
    ALTER TABLE requests ADD COLUMN continuations INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE requests ADD COLUMN seam TEXT;
", "
    ALTER TABLE requests ADD COLUMN route_reason TEXT NOT NULL DEFAULT '';
"];

/// The columns in the order in which [`bind`] and [`read`] take them.
pub(super) const COLUMNS: [&str; 42] = [
    "id",
    "started_us",
    "key_name",
    "endpoint",
    "model",
    "profile",
    "replica",
    "session_hash",
    "session_source",
    "route",
    "attempts",
    "stream",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "tokens_estimated",
    "queue_us",
    "ttft_engine_us",
    "ttft_client_us",
    "tool_hold_us",
    "itl_p50_us",
    "itl_p99_us",
    "itl_max_us",
    "tpot_us",
    "tokens_per_s",
    "duration_us",
    "bytes_in",
    "bytes_out",
    "tool_calls",
    "finish",
    "status",
    "error",
    "error_side",
    "cancelled",
    "simulated",
    "engine_tokens",
    "verdicts",
    "history_changes",
    "continuations",
    "seam",
    "route_reason",
];

/// Opens the file for writing: made with mode 0600 if missing, WAL, schema up to date.
///
/// A new file is made under another name and gets its own when it is complete: while it is made, each step locks readers out
/// until the disk has synced it.
pub(super) fn open_write(path: &Path) -> Result<Connection, RecordError> {
    let file = |cause| RecordError::File {
        path: path.to_owned(),
        cause,
    };
    create_folder(path).map_err(file)?;
    if !path.exists() {
        let new = unborn(path);
        let published = open_existing(&new)
            .and_then(|db| {
                db.close().map_err(|(_, cause)| RecordError::Database {
                    path: new.clone(),
                    cause,
                })
            })
            // Not a rename: another gateway's file that is there by now must stay.
            .and_then(|()| fs::hard_link(&new, path).map_err(file));
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let mut name = new.clone().into_os_string();
            name.push(suffix);
            fs::remove_file(name).ok();
        }
        // Whoever lost a race, or has a file system without links, goes on with what is there.
        if let Err(error) = published {
            tracing::debug!(%error, "records: the new file is made in its place");
        }
    }
    open_existing(path)
}

/// Opens the file for writing. If it is empty or missing, it is made in its place.
fn open_existing(path: &Path) -> Result<Connection, RecordError> {
    let file = |cause| RecordError::File {
        path: path.to_owned(),
        cause,
    };
    create_private(path).map_err(file)?;
    let database = |cause| RecordError::Database {
        path: path.to_owned(),
        cause,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(path, flags).map_err(database)?;
    db.busy_timeout(BUSY).map_err(database)?;
    let owner = owner(&db).map_err(database)?;
    if let Owner::Other = owner {
        return Err(RecordError::Foreign(path.to_owned()));
    }
    make_private(path).map_err(file)?;
    prepare(&db, owner).map_err(database)?;
    migrate(&mut db, MIGRATIONS).map_err(database)?;
    Ok(db)
}

/// Opens the file of a running gateway, or of none, for reading only.
pub(super) fn open_read(path: &Path) -> Result<Connection, RecordError> {
    if !path.exists() {
        return Err(RecordError::Missing(path.to_owned()));
    }
    let database = |cause| RecordError::Database {
        path: path.to_owned(),
        cause,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(database)?;
    db.busy_timeout(READ_BUSY).map_err(database)?;
    match owner(&db).map_err(database)? {
        Owner::Us => Ok(db),
        Owner::Nobody => Err(RecordError::Missing(path.to_owned())),
        Owner::Other => Err(RecordError::Foreign(path.to_owned())),
    }
}

/// Brings the schema from its `user_version` to the end of `migrations`, each step in a transaction of its own. Safe
/// beside another process that does the same; a newer version is left alone.
pub(super) fn migrate(db: &mut Connection, migrations: &[&str]) -> rusqlite::Result<()> {
    // Looking first spares every later start the write lock.
    while user_version(db)? < migrations.len() {
        let step = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version = user_version(&step)?;
        if let Some(sql) = migrations.get(version) {
            step.execute_batch(sql)?;
            step.pragma_update(None, "user_version", i64::try_from(version + 1).unwrap_or(i64::MAX))?;
        }
        step.commit()?;
    }
    Ok(())
}

/// The statement that [`bind`] fills.
pub(super) fn insert_sql() -> String {
    let marks = vec!["?"; COLUMNS.len()].join(", ");
    format!("INSERT INTO requests ({}) VALUES ({marks})", COLUMNS.join(", "))
}

/// Whether this file has the column: an older one may not.
pub(super) fn has_column(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM pragma_table_info('requests') WHERE name = ?";
    db.query_row(sql, [name], |row| row.get::<_, i64>(0))
        .map(|count| count > 0)
}

/// The select list for [`read`]; what an older file lacks reads as NULL.
pub(super) fn select_list(db: &Connection) -> rusqlite::Result<String> {
    let mut info = db.prepare("SELECT name FROM pragma_table_info('requests')")?;
    let present = info
        .query_map([], |row| row.get::<_, String>(0))?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let column = |name: &&str| {
        if present.iter().any(|p| p == name) {
            (*name).to_owned()
        } else {
            format!("NULL AS {name}")
        }
    };
    Ok(COLUMNS.iter().map(column).collect::<Vec<_>>().join(", "))
}

/// Fills an insert with a record, in the order of [`COLUMNS`].
pub(super) fn bind<S: AsRef<str>>(statement: &mut Statement<'_>, r: &Record<S>) -> rusqlite::Result<()> {
    let mut to = Binder { statement, next: 1 };
    to.text(&r.id)?;
    to.put(r.started.as_microsecond())?;
    to.text(&r.key_name)?;
    to.text(r.endpoint.as_ref())?;
    to.text(&r.model)?;
    to.text(&r.profile)?;
    to.text(&r.replica)?;
    to.put(r.session_hash.map(u64::cast_signed))?;
    to.maybe_text(r.session_source.as_ref().map(S::as_ref))?;
    to.text(r.route.as_ref())?;
    to.put(r.attempts)?;
    to.put(r.stream)?;
    to.count(r.prompt_tokens)?;
    to.count(r.cached_tokens)?;
    to.count(r.completion_tokens)?;
    to.count(r.reasoning_tokens)?;
    to.put(r.tokens_estimated)?;
    to.time(Some(r.queue))?;
    to.time(r.ttft_engine)?;
    to.time(r.ttft_client)?;
    to.time(Some(r.tool_hold))?;
    to.time(r.itl_p50)?;
    to.time(r.itl_p99)?;
    to.time(r.itl_max)?;
    to.time(r.tpot)?;
    // SQLite has no NaN: it would be read back as NULL anyway.
    to.put(r.tokens_per_s.filter(|rate| rate.is_finite()))?;
    to.time(Some(r.duration))?;
    to.count(Some(r.bytes_in))?;
    to.count(Some(r.bytes_out))?;
    to.put(r.tool_calls)?;
    to.maybe_text(r.finish.as_deref())?;
    to.put(r.status)?;
    to.maybe_text(r.error.as_deref())?;
    to.maybe_text(r.error_side.as_ref().map(S::as_ref))?;
    to.put(r.cancelled)?;
    to.put(r.simulated)?;
    to.count(r.engine_tokens)?;
    // Bounded where it is made: a clipped one would be no JSON.
    to.put(r.verdicts.as_deref())?;
    to.put(r.history_changes)?;
    to.put(r.continuations)?;
    to.maybe_text(r.seam.as_ref().map(S::as_ref))?;
    to.text(r.route_reason.as_ref())
}

/// Reads a row that was selected with [`select_list`].
pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Record<String>> {
    let mut from = Reader { row, next: 0 };
    Ok(Record {
        id: from.or_default()?,
        started: jiff::Timestamp::from_microsecond(from.or_default()?).unwrap_or_default(),
        key_name: from.or_default()?,
        endpoint: from.or_default()?,
        model: from.or_default()?,
        profile: from.or_default()?,
        replica: from.or_default()?,
        session_hash: from.get::<i64>()?.map(i64::cast_unsigned),
        session_source: from.get()?,
        route: from.or_default()?,
        attempts: from.or_default()?,
        stream: from.or_default()?,
        prompt_tokens: from.count()?,
        cached_tokens: from.count()?,
        completion_tokens: from.count()?,
        reasoning_tokens: from.count()?,
        tokens_estimated: from.or_default()?,
        queue: from.time()?.unwrap_or_default(),
        ttft_engine: from.time()?,
        ttft_client: from.time()?,
        tool_hold: from.time()?.unwrap_or_default(),
        itl_p50: from.time()?,
        itl_p99: from.time()?,
        itl_max: from.time()?,
        tpot: from.time()?,
        tokens_per_s: from.get()?,
        duration: from.time()?.unwrap_or_default(),
        bytes_in: from.count()?.unwrap_or_default(),
        bytes_out: from.count()?.unwrap_or_default(),
        tool_calls: from.or_default()?,
        finish: from.get()?,
        status: from.or_default()?,
        error: from.get()?,
        error_side: from.get()?,
        cancelled: from.or_default()?,
        simulated: from.or_default()?,
        engine_tokens: from.count()?,
        verdicts: from.get()?,
        history_changes: from.or_default()?,
        continuations: from.or_default()?,
        seam: from.get()?,
        route_reason: from.or_default()?,
    })
}

struct Binder<'a, 'c> {
    statement: &'a mut Statement<'c>,
    next: usize,
}

impl Binder<'_, '_> {
    fn put(&mut self, value: impl ToSql) -> rusqlite::Result<()> {
        self.statement.raw_bind_parameter(self.next, value)?;
        self.next += 1;
        Ok(())
    }

    fn text(&mut self, value: &str) -> rusqlite::Result<()> {
        let end = (0..=TEXT_LIMIT_BYTES.min(value.len()))
            .rev()
            .find(|end| value.is_char_boundary(*end))
            .unwrap_or(0);
        self.put(value.get(..end).unwrap_or_default())
    }

    fn maybe_text(&mut self, value: Option<&str>) -> rusqlite::Result<()> {
        match value {
            Some(value) => self.text(value),
            None => self.put(rusqlite::types::Null),
        }
    }

    fn count(&mut self, value: Option<u64>) -> rusqlite::Result<()> {
        self.put(value.map(|count| i64::try_from(count).unwrap_or(i64::MAX)))
    }

    fn time(&mut self, value: Option<Duration>) -> rusqlite::Result<()> {
        self.put(value.map(|time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX)))
    }
}

struct Reader<'a, 'r> {
    row: &'a Row<'r>,
    next: usize,
}

impl Reader<'_, '_> {
    fn get<T: rusqlite::types::FromSql>(&mut self) -> rusqlite::Result<Option<T>> {
        let value = self.row.get(self.next)?;
        self.next += 1;
        Ok(value)
    }

    fn or_default<T: rusqlite::types::FromSql + Default>(&mut self) -> rusqlite::Result<T> {
        Ok(self.get()?.unwrap_or_default())
    }

    fn count(&mut self) -> rusqlite::Result<Option<u64>> {
        Ok(self.get::<i64>()?.and_then(|count| u64::try_from(count).ok()))
    }

    fn time(&mut self) -> rusqlite::Result<Option<Duration>> {
        Ok(self.count()?.map(Duration::from_micros))
    }
}

fn create_folder(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => fs::DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

/// The name of a file while it is made: of its own for each maker.
fn unborn(path: &Path) -> PathBuf {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let mut name = path.as_os_str().to_owned();
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{number}.new", std::process::id()));
    PathBuf::from(name)
}

/// SQLite would make the file readable for all; its `-wal` and `-shm` take over the file's mode.
fn create_private(path: &Path) -> std::io::Result<()> {
    let new = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match new {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map(drop),
    }
}

/// For a file of ours that somebody else made, or opened up.
fn make_private(path: &Path) -> std::io::Result<()> {
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// Whose file it is.
enum Owner {
    /// It is empty.
    Nobody,
    Us,
    Other,
}

fn owner(db: &Connection) -> rusqlite::Result<Owner> {
    // One view of both: a file that is being made has the one before the other.
    let db = db.unchecked_transaction()?;
    let id: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match (id, tables) {
        // Between its first setting and its first table it has our mark only.
        (APPLICATION_ID | 0, 0) => Owner::Nobody,
        (APPLICATION_ID, _) => Owner::Us,
        _ => Owner::Other,
    })
}

/// Settings of a new file (kept in it) and of this connection.
fn prepare(db: &Connection, owner: Owner) -> rusqlite::Result<()> {
    if let Owner::Nobody = owner {
        // Works only before the first table: so that retention can give pages back without rewriting the file.
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    db.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    // A crash of the machine may lose the last batches, never the file; a crash of the process loses nothing.
    db.pragma_update(None, "synchronous", "NORMAL")?;
    db.query_row("PRAGMA journal_size_limit = 16777216", [], |_| Ok(()))
}

fn user_version(db: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    Ok(usize::try_from(version).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::super::tests::full;
    use super::*;

    /// A column that a later version might add.
    const LATER: &str =
        "ALTER TABLE requests ADD COLUMN later TEXT NOT NULL DEFAULT 'none'; CREATE INDEX l ON requests (later)";

    fn insert(db: &Connection, record: &Record) -> rusqlite::Result<()> {
        let mut statement = db.prepare(&insert_sql())?;
        bind(&mut statement, record)?;
        statement.raw_execute().map(drop)
    }

    fn ids(db: &Connection) -> Vec<String> {
        let sql = format!("SELECT {} FROM requests ORDER BY seq", select_list(db).unwrap());
        let mut statement = db.prepare(&sql).unwrap();
        let rows = statement.query_map([], read).unwrap();
        rows.map(|row| row.unwrap().id).collect()
    }

    #[test]
    fn an_older_file_is_brought_up_to_date_with_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        let mut db = open_write(&path).unwrap();
        assert_eq!(user_version(&db).unwrap(), MIGRATIONS.len());
        insert(&db, &full(1)).unwrap();
        let newer = [MIGRATIONS, &[LATER]].concat();
        migrate(&mut db, &newer).unwrap();
        assert_eq!(user_version(&db).unwrap(), newer.len());
        let later: String = db
            .query_row("SELECT later FROM requests", [], |row| row.get(0))
            .unwrap();
        assert_eq!(later, "none");
        migrate(&mut db, &newer).unwrap();
        // This version's code goes on writing to and reading from the newer file.
        drop(db);
        let db = open_write(&path).unwrap();
        assert_eq!(user_version(&db).unwrap(), newer.len());
        insert(&db, &full(2)).unwrap();
        assert_eq!(ids(&open_read(&path).unwrap()), ["req-1", "req-2"]);
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_and_the_rows() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, MIGRATIONS).unwrap();
        insert(&db, &full(1)).unwrap();
        let broken = [MIGRATIONS, &["CREATE TABLE more (x); CREATE TABLE more (x)"]].concat();
        assert!(migrate(&mut db, &broken).is_err());
        assert_eq!(user_version(&db).unwrap(), MIGRATIONS.len());
        let left: i64 = db
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'more'", [], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!((left, ids(&db)), (0, vec!["req-1".to_owned()]));
    }

    #[test]
    fn two_processes_migrate_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        let newer = [MIGRATIONS, &[LATER]].concat();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| migrate(&mut open_write(&path).unwrap(), &newer).unwrap());
            }
        });
        let db = open_write(&path).unwrap();
        assert_eq!(user_version(&db).unwrap(), newer.len());
    }

    #[test]
    fn what_an_older_file_lacks_reads_as_unknown() {
        let db = Connection::open_in_memory().unwrap();
        db.execute_batch("CREATE TABLE requests (seq INTEGER PRIMARY KEY, id TEXT, status INTEGER)")
            .unwrap();
        db.execute("INSERT INTO requests (id, status) VALUES ('old', 200)", [])
            .unwrap();
        let sql = format!("SELECT {} FROM requests", select_list(&db).unwrap());
        let row = db.query_row(&sql, [], read).unwrap();
        assert_eq!(
            row,
            Record {
                id: "old".to_owned(),
                status: 200,
                ..Record::default()
            }
        );
    }

    #[test]
    fn the_time_range_has_an_index() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, MIGRATIONS).unwrap();
        let sql = "EXPLAIN QUERY PLAN SELECT * FROM requests WHERE started_us >= 1 AND started_us < 2";
        let plan: String = db.query_row(sql, [], |row| row.get(3)).unwrap();
        assert!(plan.contains("USING INDEX requests_by_start"), "{plan}");
    }
}
