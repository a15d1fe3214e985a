//! What became of the tool calls (B29): as text in a row, and counted over the rows of a time range.
//!
//! A row keeps a JSON array of `{"tool","verdict","kinds"}`, one for each call that was judged: names of declared tools and closed
//! sets, never what the model wrote. SQLite takes it apart again, so that memory depends on what is told apart, not on the rows.

use std::path::Path;

use rusqlite::{Connection, params_from_iter};
use serde_json::json;
use sluice_policy::turn::Judged;

use super::query::{Range, Where};
use super::{RecordError, schema};

/// Calls of one answer that a row keeps; few answers have more than a handful.
const CALL_LIMIT: usize = 32;
/// Longest name of a tool in it, in characters: OpenAI's own limit.
const NAME_LIMIT: usize = 64;
/// Kinds of one call: there are no more.
const KIND_LIMIT: usize = 16;

/// Rows that [`tools`] returns at most, the most frequent ones.
pub const TOOL_ROWS: usize = 1_000;

/// The text of a row; `None` without a call.
pub fn text(judged: &[Judged]) -> Option<String> {
    let calls: Vec<_> = judged
        .iter()
        .take(CALL_LIMIT)
        .map(|Judged { tool, verdict }| {
            let tool: String = tool.chars().take(NAME_LIMIT).collect();
            let kinds: Vec<_> = verdict.kinds().take(KIND_LIMIT).collect();
            json!({"tool": tool, "verdict": verdict.name(), "kinds": kinds})
        })
        .collect();
    (!calls.is_empty()).then(|| json!(calls).to_string())
}

/// Calls of one tool that came to the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCount {
    /// The model.
    pub model: String,
    /// The tool; empty if the model named none that is declared.
    pub tool: String,
    /// The verdict's label.
    pub verdict: String,
    /// The labels of its kinds.
    pub kinds: Vec<String>,
    /// How many calls.
    pub calls: u64,
}

/// The calls of a time range by model, tool, verdict and kinds, the most frequent first.
///
/// # Errors
/// No file, not ours, or SQLite refused.
pub fn tools(path: &Path, range: Range) -> Result<Vec<ToolCount>, RecordError> {
    let db = schema::open_read(path)?;
    count(&db, range).map_err(|cause| RecordError::Database {
        path: path.to_owned(),
        cause,
    })
}

fn count(db: &Connection, range: Range) -> rusqlite::Result<Vec<ToolCount>> {
    // A file of an older version knows of no verdicts.
    if !schema::has_column(db, "verdicts")? {
        return Ok(Vec::new());
    }
    let clause = Where::range(range.since, range.until);
    let sql = format!(
        "SELECT model, coalesce(json_extract(call.value, '$.tool'), ''), coalesce(json_extract(call.value, '$.verdict'), ''),
            coalesce(json_extract(call.value, '$.kinds'), '[]'), count(*)
         FROM requests, json_each(iif(json_valid(verdicts), verdicts, '[]')) AS call
         WHERE verdicts IS NOT NULL AND {} GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC, 1, 2, 3, 4 LIMIT {TOOL_ROWS}",
        clause.sql()
    );
    let mut statement = db.prepare(&sql)?;
    let rows = statement.query_map(params_from_iter(&clause.values), |row| {
        Ok(ToolCount {
            model: row.get(0)?,
            tool: row.get(1)?,
            verdict: row.get(2)?,
            kinds: serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default(),
            calls: row.get::<_, i64>(4)?.unsigned_abs(),
        })
    })?;
    rows.collect()
}

#[cfg(test)]
mod tests {
    use sluice_policy::tool_call::{Kind, Reason, Verdict};

    use super::super::Record;
    use super::super::tests::{at, full, store};
    use super::*;

    fn judged(tool: &str, verdict: Verdict) -> Judged {
        Judged {
            tool: tool.to_owned(),
            verdict,
        }
    }

    fn counted(model: &str, tool: &str, verdict: &str, kinds: &[&str], calls: u64) -> ToolCount {
        ToolCount {
            model: model.to_owned(),
            tool: tool.to_owned(),
            verdict: verdict.to_owned(),
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            calls,
        }
    }

    #[test]
    fn calls_are_counted_by_what_became_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        let repaired = || Verdict::Repaired(vec![Kind::Number, Kind::Null]);
        let unknown = || {
            Verdict::Refused(Reason::UnknownTool {
                name: "secret".to_owned(),
            })
        };
        let with = |number: u64, judged: &[Judged]| Record {
            verdicts: text(judged),
            ..full(number)
        };
        let broken = Record {
            verdicts: Some("[{".to_owned()),
            ..full(4)
        };
        store(
            &path,
            [
                with(
                    1,
                    &[
                        judged("now", Verdict::Passed),
                        judged("now", repaired()),
                        judged("", unknown()),
                    ],
                ),
                with(2, &[judged("now", Verdict::Passed), judged("now", Verdict::Reasked(1))]),
                with(3, &[]),
                broken,
                with(9, &[judged("now", Verdict::Passed)]),
            ],
        );
        let range = Range {
            since: Some(at(0)),
            until: Some(at(9)),
        };
        assert_eq!(
            tools(&path, range).unwrap(),
            [
                counted("qwen3", "now", "passed", &[], 2),
                counted("qwen3", "", "refused", &["unknown_tool"], 1),
                counted("qwen3", "now", "reasked", &[], 1),
                counted("qwen3", "now", "repaired", &["number", "null"], 1),
            ]
        );
        assert!(!std::fs::read(&path).unwrap().windows(6).any(|bytes| bytes == b"secret"));
    }

    #[test]
    fn a_row_is_bounded() {
        let many: Vec<_> = (0..100).map(|_| judged(&"x".repeat(1000), Verdict::Passed)).collect();
        assert!(text(&many).unwrap().len() < 4096);
        assert_eq!(text(&[]), None);
    }
}
