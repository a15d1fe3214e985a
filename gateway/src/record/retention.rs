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
