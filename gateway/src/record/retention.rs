//! What is thrown away: rows that are too old, and the oldest ones while the file is too large.
//!
//! Deleting goes in slices of [`SLICE_ROWS`], each a transaction of its own, and ends after [`SLICES`] of them with
//! "more to do", so that new rows never wait long behind it. Freed pages are given back to the file system bit by bit.

use std::time::Duration;

use rusqlite::Connection;

/// Rows of one delete: some 10 ms of the writer's time.
const SLICE_ROWS: u32 = 1_000;

/// Deletes of one run.
const SLICES: u32 = 20;

/// Pages that one run gives back to the file system (4 KiB each).
const VACUUM_PAGES: u32 = 2_000;

/// How much may be kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Rows that started longer ago are deleted.
    pub(super) max_age: Duration,
    /// Above this many bytes in use the oldest rows are deleted.
    pub(super) max_bytes: u64,
}

/// Deletes what is over the limits at `now`; `true` if there is more to do.
pub(super) fn retain(db: &Connection, limits: &Limits, now: jiff::Timestamp) -> rusqlite::Result<bool> {
    let max_age_us = i64::try_from(limits.max_age.as_micros()).unwrap_or(i64::MAX);
    let oldest_us = now.as_microsecond().saturating_sub(max_age_us);
    let mut deleted_all = false;
    for _ in 0..SLICES {
        let deleted = if used_bytes(db)? > limits.max_bytes {
            db.execute(
                "DELETE FROM requests WHERE seq IN (SELECT seq FROM requests ORDER BY seq LIMIT ?1)",
                [SLICE_ROWS],
            )?
        } else {
            db.execute(
                "DELETE FROM requests WHERE seq IN
                    (SELECT seq FROM requests WHERE started_us < ?1 ORDER BY started_us LIMIT ?2)",
                [oldest_us, i64::from(SLICE_ROWS)],
            )?
        };
        if deleted == 0 {
            deleted_all = true;
            break;
        }
    }
    give_back(db)?;
    Ok(!deleted_all)
}

/// Bytes of the pages that hold something. Pages in the free list are used again before the file grows.
pub(super) fn used_bytes(db: &Connection) -> rusqlite::Result<u64> {
    let pragma = |name| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let pages = pragma("page_count")?.saturating_sub(pragma("freelist_count")?);
    Ok(u64::try_from(pages.saturating_mul(pragma("page_size")?)).unwrap_or(0))
}

fn give_back(db: &Connection) -> rusqlite::Result<()> {
    let mut vacuum = db.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    let mut freed = vacuum.query([])?;
    // One step frees one page.
    while freed.next()?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::super::tests::{at, full};
    use super::*;

    fn filled(path: &std::path::Path, rows: u64) -> Connection {
        let mut db = schema::open_write(path).unwrap();
        let transaction = db.transaction().unwrap();
        let mut insert = transaction.prepare(&schema::insert_sql()).unwrap();
        for number in 0..rows {
            schema::bind(&mut insert, &full(number)).unwrap();
            insert.raw_execute().unwrap();
        }
        drop(insert);
        transaction.commit().unwrap();
        db
    }

    fn oldest_and_count(db: &Connection) -> (i64, i64) {
        db.query_row("SELECT min(started_us), count(*) FROM requests", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap()
    }

    #[test]
    fn by_age_exactly() {
        let folder = tempfile::tempdir().unwrap();
        let db = filled(&folder.path().join("requests.db"), 3_000);
        let limits = Limits {
            max_age: Duration::from_secs(100),
            max_bytes: u64::MAX,
        };
        assert!(!retain(&db, &limits, at(2_600)).unwrap());
        assert_eq!(oldest_and_count(&db), (at(2_500).as_microsecond(), 500));
        assert!(!retain(&db, &limits, at(2_600)).unwrap());
        assert_eq!(oldest_and_count(&db).1, 500);
    }

    #[test]
    fn by_size_the_oldest_go_and_the_file_shrinks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        let db = filled(&path, 10_000);
        let before = used_bytes(&db).unwrap();
        let limits = Limits {
            max_age: Duration::from_secs(u32::MAX.into()),
            max_bytes: before / 2,
        };
        assert!(!retain(&db, &limits, at(10_000)).unwrap());
        assert!(used_bytes(&db).unwrap() <= before / 2);
        let (oldest, count) = oldest_and_count(&db);
        assert!(
            (3_000..5_500).contains(&count),
            "it deletes no more than it must: {count}"
        );
        assert_eq!(oldest, at(10_000 - count).as_microsecond(), "the oldest went");
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        let file = std::fs::metadata(&path).unwrap().len();
        assert!(file <= before * 6 / 10, "{file} of {before}");
    }

    #[test]
    fn a_long_job_is_done_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let part = u64::from(SLICES * SLICE_ROWS);
        let db = filled(&folder.path().join("requests.db"), part + 10);
        let limits = Limits {
            max_age: Duration::from_secs(1),
            max_bytes: u64::MAX,
        };
        assert!(retain(&db, &limits, at(1_000_000)).unwrap(), "there is more to do");
        assert_eq!(oldest_and_count(&db).1, 10);
        assert!(!retain(&db, &limits, at(1_000_000)).unwrap());
        assert_eq!(
            db.query_row("SELECT count(*) FROM requests", [], |row| row.get::<_, i64>(0))
                .unwrap(),
            0
        );
    }
}
