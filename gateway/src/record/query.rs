//! Questions to the rows: which requests there were ([`list`], [`each`]) and how they did ([`stats`]).
//!
//! A path and a [`Filter`] or [`Range`] enter, [`Row`]s or [`Stats`] leave. The file is opened for reading only; that of
//! a running gateway, in another process, is fine. Each question is one read transaction, so that its parts agree.
//! How figures are counted is in `stats`, how all of it is printed in [`super::print`].

use std::ops::ControlFlow;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

pub use super::stats::{CODE_LIMIT, Group, MODEL_LIMIT, OTHER_MODELS, Range, Spread, Stats, stats};
use super::{Record, RecordError, schema};

/// A record as it is read back.
pub type Row = Record<String>;

/// Rows that [`list`] returns at most; more are to be had with [`each`].
pub const LIST_LIMIT: usize = 100_000;

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

fn visit_rows(db: &Connection, filter: &Filter, mut visit: impl FnMut(Row) -> ControlFlow<()>) -> rusqlite::Result<()> {
    let mut clause = Where::range(filter.since, filter.until);
    clause.and("model = ?", filter.model.clone());
    clause.and("key_name = ?", filter.key.clone());
    clause.and("replica = ?", filter.replica.clone());
    clause.and("status = ?", filter.status.map(i64::from));
    if filter.errors_only {
        clause.terms.push(FAILED.to_owned());
    }
    clause
        .values
        .push(Value::Integer(i64::try_from(filter.limit).unwrap_or(i64::MAX)));
    // The inner one finds the newest, the outer one puts them in order.
    let sql = format!(
        "SELECT {} FROM requests WHERE seq IN
            (SELECT seq FROM requests WHERE {} ORDER BY started_us DESC, seq DESC LIMIT ?) ORDER BY started_us, seq",
        schema::select_list(db)?,
        clause.sql()
    );
    let mut statement = db.prepare(&sql)?;
    let mut rows = statement.query(params_from_iter(clause.values))?;
    while let Some(row) = rows.next()? {
        if visit(schema::read(row)?).is_break() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, full, store};
    use super::*;

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
