//! Questions to the rows: which requests there were ([`list`], [`each`]) and how they did ([`stats`]).
//!
//! A path and a [`Filter`] or [`Range`] enter, [`Row`]s or [`Stats`] leave. The file is opened for reading only; that of
//! a running gateway, in another process, is fine. How figures are counted is in `stats`, how all of it is printed in
//! [`super::print`].

use std::ops::ControlFlow;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

pub use super::stats::{CODE_LIMIT, Group, MODEL_LIMIT, OTHER_MODELS, Range, Spread, Stats, stats};
use super::{Record, RecordError, schema};

/// A record as it is read back.
pub type Row = Record<String>;

/// Rows that [`list`] returns at most; more are to be had with [`each`].
pub const LIST_LIMIT: usize = 100_000;

/// Rows that are read at once.
const PAGE_ROWS: usize = 1_000;

/// Which rows. `Default` is the newest 50.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Started at this instant or later.
    pub since: Option<Timestamp>,
    /// Started before this instant.
    pub until: Option<Timestamp>,
    /// Name of the model.
    pub model: Option<String>,
    /// Name of the key.
    pub key: Option<String>,
    /// Name of the replica.
    pub replica: Option<String>,
    /// Status that the client got.
    pub status: Option<u16>,
    /// Only what failed: a fault's code, or a status of 400 and above. What the client cancelled is no failure.
    pub errors_only: bool,
    /// The newest so many.
    pub limit: usize,
}

impl Default for Filter {
    fn default() -> Self {
        Self {
            since: None,
            until: None,
            model: None,
            key: None,
            replica: None,
            status: None,
            errors_only: false,
            limit: 50,
        }
    }
}

impl Filter {
    fn clause(&self) -> Where {
        let mut clause = Where::range(self.since, self.until);
        clause.and("model = ?", self.model.clone());
        clause.and("key_name = ?", self.key.clone());
        clause.and("replica = ?", self.replica.clone());
        clause.and("status = ?", self.status.map(i64::from));
        if self.errors_only {
            clause.terms.push(FAILED.to_owned());
        }
        clause
    }
}

/// The newest rows that fit, oldest first; `limit` counts up to [`LIST_LIMIT`].
///
/// # Errors
/// No file, not ours, or SQLite refused.
pub fn list(path: &Path, filter: &Filter) -> Result<Vec<Row>, RecordError> {
    let filter = Filter {
        limit: filter.limit.min(LIST_LIMIT),
        ..filter.clone()
    };
    let mut rows = Vec::new();
    each(path, &filter, |row| {
        rows.push(row);
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

/// Hands the rows of [`list`] over one by one, for an export of any length, until `visit` breaks.
///
/// # Errors
/// As [`list`].
pub fn each(path: &Path, filter: &Filter, visit: impl FnMut(Row) -> ControlFlow<()>) -> Result<(), RecordError> {
    let db = schema::open_read(path)?;
    visit_rows(&db, filter, visit).map_err(|cause| RecordError::Database {
        path: path.to_owned(),
        cause,
    })
}

/// One `WHERE` clause and what its question marks stand for.
pub(super) struct Where {
    terms: Vec<String>,
    pub(super) values: Vec<Value>,
}

impl Where {
    pub(super) fn range(since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
        let mut clause = Self {
            terms: Vec::new(),
            values: Vec::new(),
        };
        clause.and("started_us >= ?", since.map(|at| at.as_microsecond()));
        clause.and("started_us < ?", until.map(|at| at.as_microsecond()));
        clause
    }

    fn and(&mut self, term: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.terms.push(term.to_owned());
            self.values.push(value.into());
        }
    }

    pub(super) fn sql(&self) -> String {
        if self.terms.is_empty() {
            "true".to_owned()
        } else {
            self.terms.join(" AND ")
        }
    }
}

/// A cancelled request may have a fault's code beside it (a deadline, a drain): the client's leaving is what counts.
pub(super) const FAILED: &str = "(cancelled = 0 AND (error IS NOT NULL OR status >= 400))";

/// Page by page, each a short read transaction: whoever stops reading in the middle (a pager) must not hold the file back
/// from being tidied up.
fn visit_rows(db: &Connection, filter: &Filter, mut visit: impl FnMut(Row) -> ControlFlow<()>) -> rusqlite::Result<()> {
    let clause = filter.clause();
    let Some(newest) = place(db, &clause, 0)? else {
        return Ok(());
    };
    let mut left = filter.limit;
    let Some(last) = left.checked_sub(1) else { return Ok(()) };
    let mut from = place(db, &clause, last)?.unwrap_or((i64::MIN, i64::MIN));
    let sql = format!(
        "SELECT {}, seq FROM requests WHERE {} AND (started_us, seq) >= (?, ?) AND (started_us, seq) <= (?, ?)
            ORDER BY started_us, seq LIMIT ?",
        schema::select_list(db)?,
        clause.sql()
    );
    let mut statement = db.prepare(&sql)?;
    while left > 0 {
        let size = left.min(PAGE_ROWS);
        let bounds = [
            from.0,
            from.1,
            newest.0,
            newest.1,
            i64::try_from(size).unwrap_or(i64::MAX),
        ]
        .map(Value::Integer);
        let values = params_from_iter(clause.values.iter().cloned().chain(bounds));
        let read = |row: &rusqlite::Row<'_>| Ok((schema::read(row)?, row.get::<_, i64>(schema::COLUMNS.len())?));
        let page = statement
            .query_map(values, read)?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let Some((row, seq)) = page.last() else { break };
        from = (row.started.as_microsecond(), seq.saturating_add(1));
        left = if page.len() < size { 0 } else { left - size };
        for (row, _) in page {
            if visit(row).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Start and number of the row that comes after `newer` newer ones, if there are so many.
fn place(db: &Connection, clause: &Where, newer: usize) -> rusqlite::Result<Option<(i64, i64)>> {
    let sql = format!(
        "SELECT started_us, seq FROM requests WHERE {} ORDER BY started_us DESC, seq DESC LIMIT 1 OFFSET ?",
        clause.sql()
    );
    let offset = Value::Integer(i64::try_from(newer).unwrap_or(i64::MAX));
    let values = params_from_iter(clause.values.iter().cloned().chain([offset]));
    db.query_row(&sql, values, |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, full, store};
    use super::*;

    #[test]
    fn pages_meet_without_a_gap_or_a_row_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        let rows = PAGE_ROWS as u64 * 2 + 500;
        // Many rows of one instant, across the page's end: the row's number goes on where the time doesn't.
        store(
            &path,
            (0..rows).map(|number| Record {
                started: at(number as i64 / 700),
                ..full(number)
            }),
        );
        for limit in [
            1,
            PAGE_ROWS - 1,
            PAGE_ROWS,
            PAGE_ROWS + 1,
            2 * PAGE_ROWS,
            2 * PAGE_ROWS + 500,
            usize::MAX,
        ] {
            let listed = list(
                &path,
                &Filter {
                    limit,
                    ..Filter::default()
                },
            )
            .unwrap();
            let first = rows.saturating_sub(limit as u64);
            let wanted = (first..rows).map(|number| format!("req-{number}")).collect::<Vec<_>>();
            assert_eq!(
                listed.into_iter().map(|row| row.id).collect::<Vec<_>>(),
                wanted,
                "limit {limit}"
            );
        }
    }

    #[test]
    fn a_reader_that_stops_does_not_hold_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        store(&path, (0..PAGE_ROWS as u64 * 2).map(full));
        let writer = schema::open_write(&path).unwrap();
        let mut visited = 0;
        each(
            &path,
            &Filter {
                limit: usize::MAX,
                ..Filter::default()
            },
            |_| {
                visited += 1;
                if visited == 1 {
                    store(&path, (0..100).map(full));
                    // Busy is 1 when a reader keeps the log from being emptied.
                    let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
                    assert_eq!(writer.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap(), 0);
                }
                ControlFlow::Continue(())
            },
        )
        .unwrap();
        assert!(visited >= PAGE_ROWS * 2);
    }

    #[test]
    fn each_filter_by_itself_and_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        let fine = |number| Record {
            error: None,
            cancelled: false,
            ..full(number)
        };
        store(
            &path,
            [
                fine(0),
                Record {
                    model: "other".to_owned(),
                    ..fine(1)
                },
                Record {
                    key_name: "ci".to_owned(),
                    ..fine(2)
                },
                Record {
                    replica: "sim-b".to_owned(),
                    ..fine(3)
                },
                Record { status: 429, ..fine(4) },
                Record {
                    error: Some("upstream_ended".to_owned()),
                    ..fine(5)
                },
                Record {
                    cancelled: true,
                    error: Some("cancelled".to_owned()),
                    ..fine(6)
                },
            ],
        );
        let some = |text: &str| Some(text.to_owned());
        let all = Filter::default();
        for (filter, wanted) in [
            (all.clone(), vec![0, 1, 2, 3, 4, 5, 6]),
            (
                Filter {
                    limit: 2,
                    ..all.clone()
                },
                vec![5, 6],
            ),
            (
                Filter {
                    limit: 0,
                    ..all.clone()
                },
                vec![],
            ),
            (
                Filter {
                    since: Some(at(2)),
                    until: Some(at(5)),
                    ..all.clone()
                },
                vec![2, 3, 4],
            ),
            (
                Filter {
                    until: Some(at(5)),
                    limit: 2,
                    ..all.clone()
                },
                vec![3, 4],
            ),
            (
                Filter {
                    model: some("other"),
                    ..all.clone()
                },
                vec![1],
            ),
            (
                Filter {
                    key: some("ci"),
                    ..all.clone()
                },
                vec![2],
            ),
            (
                Filter {
                    replica: some("sim-b"),
                    ..all.clone()
                },
                vec![3],
            ),
            (
                Filter {
                    status: Some(429),
                    ..all.clone()
                },
                vec![4],
            ),
            (
                Filter {
                    errors_only: true,
                    ..all.clone()
                },
                vec![4, 5],
            ),
            (
                Filter {
                    errors_only: true,
                    status: Some(200),
                    ..all.clone()
                },
                vec![5],
            ),
            (
                Filter {
                    model: some("x' OR '1'='1"),
                    ..all.clone()
                },
                vec![],
            ),
        ] {
            let rows = list(&path, &filter).unwrap();
            let numbers = rows
                .iter()
                .map(|row| row.id.trim_start_matches("req-").parse().unwrap())
                .collect::<Vec<u64>>();
            assert_eq!(numbers, wanted, "{filter:?}");
        }
        let mut visited = 0;
        each(&path, &all, |_| {
            visited += 1;
            if visited == 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
        assert_eq!(visited, 3);
    }
}
