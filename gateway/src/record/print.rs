//! Rows and figures as text: tables that fit 100 columns, and JSON lines for programs.
//!
//! Names may come from clients: whatever is not printable is replaced, so that a row can't write to the terminal.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::query::{Group, OTHER_MODELS, Range, Row, Spread, Stats};
use super::verdicts::ToolCount;

/// Widths of the table's columns; 100 with the spaces between them.
const TABLE: [Column; 11] = [
    Column {
        head: "started (UTC)",
        width: 14,
        left: true,
    },
    Column {
        head: "model",
        width: 17,
        left: true,
    },
    Column {
        head: "replica",
        width: 9,
        left: true,
    },
    Column {
        head: "st",
        width: 3,
        left: false,
    },
    Column {
        head: "prompt",
        width: 6,
        left: false,
    },
    Column {
        head: "hit%",
        width: 4,
        left: false,
    },
    Column {
        head: "compl",
        width: 5,
        left: false,
    },
    Column {
        head: "ttft",
        width: 6,
        left: false,
    },
    Column {
        head: "tok/s",
        width: 5,
        left: false,
    },
    Column {
        head: "total",
        width: 6,
        left: false,
    },
    Column {
        head: "end",
        width: 15,
        left: true,
    },
];

struct Column {
    head: &'static str,
    width: usize,
    left: bool,
}

/// The rows of `sluice requests`, with a head line. Times say their unit; `-` is unknown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    line(&mut text, TABLE.map(|column| column.head.to_owned()));
    for row in rows {
        line(&mut text, cells(row));
    }
    text
}

/// One row as a JSON object without a line end: the fields of a record by name, times in milliseconds.
pub fn json_line(row: &Row) -> String {
    let fields = [
        ("id", json!(row.id)),
        ("started", json!(row.started.to_string())),
        ("key_name", json!(row.key_name)),
        ("endpoint", json!(row.endpoint)),
        ("model", json!(row.model)),
        ("profile", json!(row.profile)),
        ("replica", json!(row.replica)),
        (
            "session_hash",
            json!(row.session_hash.map(|hash| format!("{hash:016x}"))),
        ),
        ("session_source", json!(row.session_source)),
        ("route", json!(row.route)),
        ("attempts", json!(row.attempts)),
        ("stream", json!(row.stream)),
        ("prompt_tokens", json!(row.prompt_tokens)),
        ("cached_tokens", json!(row.cached_tokens)),
        ("completion_tokens", json!(row.completion_tokens)),
        ("reasoning_tokens", json!(row.reasoning_tokens)),
        ("tokens_estimated", json!(row.tokens_estimated)),
        ("queue_ms", ms(row.queue)),
        ("ttft_engine_ms", maybe(row.ttft_engine, ms)),
        ("ttft_client_ms", maybe(row.ttft_client, ms)),
        ("tool_hold_ms", ms(row.tool_hold)),
        ("itl_p50_ms", maybe(row.itl_p50, ms)),
        ("itl_p99_ms", maybe(row.itl_p99, ms)),
        ("itl_max_ms", maybe(row.itl_max, ms)),
        ("tpot_ms", maybe(row.tpot, ms)),
        ("tokens_per_s", json!(row.tokens_per_s)),
        ("duration_ms", ms(row.duration)),
        ("bytes_in", json!(row.bytes_in)),
        ("bytes_out", json!(row.bytes_out)),
        ("tool_calls", json!(row.tool_calls)),
        ("finish", json!(row.finish)),
        ("status", json!(row.status)),
        ("error", json!(row.error)),
        ("error_side", json!(row.error_side)),
        ("cancelled", json!(row.cancelled)),
        ("simulated", json!(row.simulated)),
        ("engine_tokens", json!(row.engine_tokens)),
        (
            "verdicts",
            json!(
                row.verdicts
                    .as_deref()
                    .and_then(|text| serde_json::from_str::<Value>(text).ok())
            ),
        ),
        ("history_changes", json!(row.history_changes)),
        ("continuations", json!(row.continuations)),
        ("seam", json!(row.seam)),
        ("route_reason", json!(row.route_reason)),
    ];
    object(fields).to_string()
}

/// The figures of `sluice stats`, all requests first, then model by model if there is more than one.
pub fn stats(stats: &Stats) -> String {
    let mut text = format!("{}\n\n", range(stats.range));
    group(&mut text, "all models", &stats.total);
    if stats.models.len() > 1 {
        for (name, figures) in &stats.models {
            text.push('\n');
            group(&mut text, if name.is_empty() { "(no model)" } else { name }, figures);
        }
    }
    text
}

/// The same as one JSON object without a line end; times in milliseconds.
pub fn stats_json(stats: &Stats) -> String {
    let end = |at: Option<jiff::Timestamp>| json!(at.map(|at| at.to_string()));
    let models = stats
        .models
        .iter()
        .map(|(name, figures)| (name.clone(), group_json(figures)))
        .collect::<Map<_, _>>();
    object([
        ("since", end(stats.range.since)),
        ("until", end(stats.range.until)),
        ("total", group_json(&stats.total)),
        ("models", Value::Object(models)),
    ])
    .to_string()
}

/// What became of the calls of each tool, the most frequent first.
pub fn tools(since: Range, counts: &[ToolCount]) -> String {
    let mut text = format!("{}\n\n", range(since));
    let _ = writeln!(
        text,
        "{:<22} {:<24} {:<16} {:<24} {:>10}",
        "model", "tool", "verdict", "kinds", "calls"
    );
    for row in counts {
        let _ = writeln!(
            text,
            "{:<22} {:<24} {:<16} {:<24} {:>10}",
            fit(&row.model, 22),
            fit(&row.tool, 24),
            fit(&row.verdict, 16),
            fit(&row.kinds.join(","), 24),
            row.calls
        );
    }
    text
}

/// The same as one JSON object without a line end.
pub fn tools_json(since: Range, counts: &[ToolCount]) -> String {
    let end = |at: Option<jiff::Timestamp>| json!(at.map(|at| at.to_string()));
    let calls: Vec<_> = counts
        .iter()
        .map(|row| {
            json!({"model": row.model, "tool": row.tool, "verdict": row.verdict, "kinds": row.kinds, "calls": row.calls})
        })
        .collect();
    object([
        ("since", end(since.since)),
        ("until", end(since.until)),
        ("tool_calls", json!(calls)),
    ])
    .to_string()
}

fn cells(row: &Row) -> [String; 11] {
    let dash = || "-".to_owned();
    let hit = match (row.cached_tokens, row.prompt_tokens) {
        (Some(cached), Some(prompt)) if prompt > 0 => format!("{:.0}", cached as f64 * 100.0 / prompt as f64),
        _ => dash(),
    };
    let end = match (&row.error, row.cancelled) {
        (_, true) => "cancelled".to_owned(),
        (Some(code), false) => code.clone(),
        (None, false) => row.finish.clone().unwrap_or_else(dash),
    };
    [
        row.started.strftime("%m-%d %H:%M:%S").to_string(),
        row.model.clone(),
        row.replica.clone(),
        row.status.to_string(),
        row.prompt_tokens.map_or_else(dash, count),
        hit,
        row.completion_tokens.map_or_else(dash, count),
        row.ttft_client.map_or_else(dash, time),
        row.tokens_per_s.map_or_else(dash, rate),
        time(row.duration),
        end,
    ]
}

fn line(text: &mut String, cells: [String; 11]) {
    let start = text.len();
    for (column, cell) in TABLE.iter().zip(cells) {
        let cell = fit(&cell, column.width);
        let width = column.width;
        // Writing to a String can't fail.
        let _ = if column.left {
            write!(text, "{cell:<width$} ")
        } else {
            write!(text, "{cell:>width$} ")
        };
    }
    let end = start + text.get(start..).map_or(0, |line| line.trim_end().len());
    text.truncate(end);
    text.push('\n');
}

fn group(text: &mut String, name: &str, figures: &Group) {
    let name = if name == OTHER_MODELS {
        name.to_owned()
    } else {
        fit(name, 98)
    };
    let _ = writeln!(text, "{name}");
    let hit = if figures.prompt_tokens == 0 {
        "-".to_owned()
    } else {
        format!(
            "{:.1} %",
            figures.cached_tokens as f64 * 100.0 / figures.prompt_tokens as f64
        )
    };
    let _ = writeln!(
        text,
        "  requests {}, failed {}, cancelled {}, simulated {}, tool calls {}",
        figures.requests, figures.failed, figures.cancelled, figures.simulated, figures.tool_calls
    );
    let _ = writeln!(
        text,
        "  tokens: prompt {}, cached {} ({hit}), completion {}",
        count(figures.prompt_tokens),
        count(figures.cached_tokens),
        count(figures.completion_tokens)
    );
    let _ = writeln!(
        text,
        "  {:<22} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "", "count", "p50", "p90", "p99", "max"
    );
    spread(text, "TTFT client, cold", figures.ttft_cold.as_ref(), time);
    spread(text, "TTFT client, warm", figures.ttft_warm.as_ref(), time);
    spread(text, "TTFT client, unknown", figures.ttft_unknown.as_ref(), time);
    spread(text, "TTFT engine", figures.ttft_engine.as_ref(), time);
    spread(text, "ITL p99 of a stream", figures.itl_p99.as_ref(), time);
    spread(text, "tokens/s", figures.tokens_per_s.as_ref(), rate);
    spread(text, "duration", figures.duration.as_ref(), time);
    for (code, number) in &figures.errors {
        let _ = writeln!(text, "  error {:<60} {number:>10}", fit(code, 60));
    }
}

fn spread<T: Copy>(text: &mut String, name: &str, figures: Option<&Spread<T>>, show: impl Fn(T) -> String) {
    let Some(s) = figures else { return };
    let [p50, p90, p99, max] = [s.p50, s.p90, s.p99, s.max].map(show);
    let _ = writeln!(
        text,
        "  {name:<22} {:>10} {p50:>10} {p90:>10} {p99:>10} {max:>10}",
        s.count
    );
}

fn group_json(figures: &Group) -> Value {
    let errors = figures
        .errors
        .iter()
        .map(|(code, count)| (code.clone(), json!(count)))
        .collect::<Map<_, _>>();
    object([
        ("requests", json!(figures.requests)),
        ("failed", json!(figures.failed)),
        ("cancelled", json!(figures.cancelled)),
        ("simulated", json!(figures.simulated)),
        ("tool_calls", json!(figures.tool_calls)),
        ("prompt_tokens", json!(figures.prompt_tokens)),
        ("cached_tokens", json!(figures.cached_tokens)),
        ("completion_tokens", json!(figures.completion_tokens)),
        ("errors", Value::Object(errors)),
        ("ttft_client_cold_ms", spread_json(figures.ttft_cold.as_ref(), ms)),
        ("ttft_client_warm_ms", spread_json(figures.ttft_warm.as_ref(), ms)),
        ("ttft_client_unknown_ms", spread_json(figures.ttft_unknown.as_ref(), ms)),
        ("ttft_engine_ms", spread_json(figures.ttft_engine.as_ref(), ms)),
        ("itl_p99_ms", spread_json(figures.itl_p99.as_ref(), ms)),
        (
            "tokens_per_s",
            spread_json(figures.tokens_per_s.as_ref(), |rate| json!(rate)),
        ),
        ("duration_ms", spread_json(figures.duration.as_ref(), ms)),
    ])
}

fn spread_json<T: Copy>(figures: Option<&Spread<T>>, show: impl Fn(T) -> Value) -> Value {
    figures.map_or(
        Value::Null,
        |s| json!({"count": s.count, "p50": show(s.p50), "p90": show(s.p90), "p99": show(s.p99), "max": show(s.max)}),
    )
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn ms(time: Duration) -> Value {
    json!(time.as_micros() as f64 / 1_000.0)
}

fn maybe<T>(value: Option<T>, show: impl Fn(T) -> Value) -> Value {
    value.map_or(Value::Null, show)
}

fn range(range: Range) -> String {
    let end = |at: Option<jiff::Timestamp>, open: &str| {
        at.map_or_else(
            || open.to_owned(),
            |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        )
    };
    format!(
        "from {} to {}",
        end(range.since, "the first record"),
        end(range.until, "now")
    )
}

/// Six columns at most: `950us`, `41ms`, `1.24s`, `24.1s`, `12m05s`, `3h20m`.
fn time(time: Duration) -> String {
    let us = time.as_micros();
    let s = time.as_secs();
    match us {
        0 => "0".to_owned(),
        1..1_000 => format!("{us}us"),
        1_000..10_000 => format!("{:.1}ms", us as f64 / 1e3),
        10_000..999_500 => format!("{:.0}ms", us as f64 / 1e3),
        999_500..9_995_000 => format!("{:.2}s", us as f64 / 1e6),
        9_995_000..99_950_000 => format!("{:.1}s", us as f64 / 1e6),
        99_950_000..6_000_000_000 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3_600, s / 60 % 60),
    }
}

/// Five columns at most.
fn rate(rate: f64) -> String {
    if rate < 999.5 {
        format!("{rate:.1}")
    } else {
        count(rate as u64)
    }
}

/// Five columns at most up to a billion, digits and a unit: `950`, `8192`, `131k`, `1.2M`.
fn count(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..1_000_000 => format!("{}k", count / 1_000),
        1_000_000..100_000_000 => format!("{:.1}M", count as f64 / 1e6),
        _ => format!("{}M", count / 1_000_000),
    }
}

/// Printable characters only, and so many columns at most (a cut text ends in `~`). A wide character counts as one.
fn fit(text: &str, width: usize) -> String {
    let mut shown = text
        .chars()
        .map(|c| if c.is_control() || is_format(c) { '?' } else { c });
    let mut fitted = shown.by_ref().take(width).collect::<String>();
    if shown.next().is_some() {
        fitted.pop();
        fitted.push('~');
    }
    if fitted.is_empty() { "-".to_owned() } else { fitted }
}

/// Characters that turn or hide what stands beside them.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::super::Record;
    use super::super::query::Range;
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_780_000_000 + second).unwrap()
    }

    fn row() -> Row {
        Record {
            id: "req-1".to_owned(),
            started: at(0),
            endpoint: "chat".to_owned(),
            model: "qwen3".to_owned(),
            replica: "sim-a".to_owned(),
            route: "hit".to_owned(),
            attempts: 1,
            stream: true,
            session_hash: Some(0xab),
            prompt_tokens: Some(131_072),
            cached_tokens: Some(130_000),
            completion_tokens: Some(321),
            ttft_client: Some(Duration::from_micros(41_300)),
            tokens_per_s: Some(66.52),
            duration: Duration::from_millis(4_850),
            finish: Some("tool_calls".to_owned()),
            status: 200,
            ..Record::default()
        }
    }

    #[test]
    fn the_table() {
        let failed = Row {
            started: at(61),
            model: "a-model-with-a-long-name".to_owned(),
            replica: String::new(),
            prompt_tokens: None,
            completion_tokens: None,
            ttft_client: None,
            tokens_per_s: None,
            duration: Duration::from_micros(900),
            finish: None,
            status: 503,
            error: Some("capacity".to_owned()),
            ..row()
        };
        let left = Row {
            cancelled: true,
            status: 0,
            duration: Duration::from_secs(3_725),
            ..row()
        };
        insta::assert_snapshot!(table(&[row(), failed, left]), @r"
        started (UTC)  model             replica    st prompt hit% compl   ttft tok/s  total end
        05-28 20:26:40 qwen3             sim-a     200   131k   99   321   41ms  66.5  4.85s tool_calls
        05-28 20:27:41 a-model-with-a-l~ -         503      -    -     -      -     -  900us capacity
        05-28 20:26:40 qwen3             sim-a       0   131k   99   321   41ms  66.5 62m05s cancelled
        ");
    }

    #[test]
    fn the_json_line_has_every_field_and_says_null_for_unknown() {
        let value: Value = serde_json::from_str(&json_line(&row())).unwrap();
        let names = value
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect::<Vec<_>>();
        let columns = super::super::schema::COLUMNS.map(|column| match column {
            "started_us" => "started".to_owned(),
            _ => column
                .strip_suffix("_us")
                .map_or(column.to_owned(), |time| format!("{time}_ms")),
        });
        assert_eq!(names, columns);
        assert_eq!(value["ttft_client_ms"], json!(41.3));
        assert_eq!(value["ttft_engine_ms"], Value::Null);
        assert_eq!(value["session_hash"], json!("00000000000000ab"));
        assert_eq!(value["started"], json!("2026-05-28T20:26:40Z"));
        assert_eq!(
            json_line(&Row {
                id: "a\nb".to_owned(),
                ..row()
            })
            .lines()
            .count(),
            1
        );
    }

    #[test]
    fn the_figures() {
        let ms = Duration::from_millis;
        let ttft = Spread {
            count: 900,
            p50: ms(41),
            p90: ms(66),
            p99: ms(1_240),
            max: ms(24_100),
        };
        let total = Group {
            requests: 1_234,
            cancelled: 3,
            failed: 12,
            simulated: 1_234,
            errors: vec![("upstream_ended".to_owned(), 10), ("status 429".to_owned(), 2)],
            tool_calls: 456,
            prompt_tokens: 12_345_678,
            cached_tokens: 9_876_543,
            completion_tokens: 98_765,
            ttft_cold: Some(Spread { p50: ms(1_737), ..ttft }),
            ttft_warm: Some(ttft),
            ttft_engine: Some(ttft),
            tokens_per_s: Some(Spread {
                count: 900,
                p50: 66.5,
                p90: 70.1,
                p99: 74.99,
                max: 12_345.0,
            }),
            duration: Some(Spread {
                count: 1_234,
                p50: ms(4_850),
                p90: ms(61_000),
                p99: ms(600_000),
                max: ms(9_000_000),
            }),
            ..Group::default()
        };
        let range = Range {
            since: Some(at(0)),
            until: None,
        };
        let one = Stats {
            range,
            models: vec![("qwen3".to_owned(), total.clone())],
            total: total.clone(),
        };
        insta::assert_snapshot!(stats(&one), @r"
        from 2026-05-28 20:26:40 UTC to now

        all models
          requests 1234, failed 12, cancelled 3, simulated 1234, tool calls 456
          tokens: prompt 12.3M, cached 9.9M (80.0 %), completion 98765
                                      count        p50        p90        p99        max
          TTFT client, cold             900      1.74s       66ms      1.24s      24.1s
          TTFT client, warm             900       41ms       66ms      1.24s      24.1s
          TTFT engine                   900       41ms       66ms      1.24s      24.1s
          tokens/s                      900       66.5       70.1       75.0      12345
          duration                     1234      4.85s      61.0s     10m00s      2h30m
          error upstream_ended                                                       10
          error status 429                                                            2
        ");
        let refused = Group {
            requests: 2,
            failed: 2,
            errors: vec![("no_key".to_owned(), 2)],
            ..Group::default()
        };
        let two = Stats {
            models: vec![("qwen3".to_owned(), total), (String::new(), refused)],
            ..one
        };
        assert!(stats(&two).contains("\nqwen3\n  requests 1234") && stats(&two).contains("\n(no model)\n  requests 2"));
        let value: Value = serde_json::from_str(&stats_json(&two)).unwrap();
        assert_eq!(value["total"]["ttft_client_cold_ms"]["p50"], json!(1737.0));
        assert_eq!(value["models"][""]["errors"], json!({"no_key": 2}));
        assert_eq!(value["total"]["ttft_client_unknown_ms"], Value::Null);
    }

    #[test]
    fn nothing_is_wider_than_a_hundred_columns_or_writes_to_the_terminal() {
        let hostile = "\u{1b}]0;owned\u{7}\r\n\u{202e}x".repeat(40);
        let wild = Row {
            model: hostile.clone(),
            replica: hostile.clone(),
            error: Some(hostile.clone()),
            prompt_tokens: Some(999_999_999),
            cached_tokens: Some(999_999_999),
            completion_tokens: Some(99_999_999),
            ttft_client: Some(Duration::from_secs(359_999)),
            duration: Duration::from_secs(359_999),
            tokens_per_s: Some(99_999.0),
            status: 599,
            ..row()
        };
        let spread = Spread {
            count: u64::MAX >> 30,
            p50: 0.0,
            p90: 1e6,
            p99: 1e7,
            max: 1e7,
        };
        let group = Group {
            errors: vec![(hostile.clone(), 1)],
            tokens_per_s: Some(spread),
            requests: 1,
            ..Group::default()
        };
        let models = vec![(hostile.clone(), group.clone()), ("m".to_owned(), group.clone())];
        let figures = Stats {
            range: Range::default(),
            total: group,
            models,
        };
        for text in [table(&[wild]), stats(&figures)] {
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
                assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
            }
        }
    }

    #[test]
    fn times_and_counts_are_short() {
        let shown = [
            0,
            7,
            999,
            1_000,
            9_999,
            41_300,
            999_499,
            999_500,
            9_994_999,
            24_100_000,
            725_000_000,
            12_000_000_000,
        ];
        let times = shown.map(|us| time(Duration::from_micros(us)));
        let wanted = [
            "0", "7us", "999us", "1.0ms", "10.0ms", "41ms", "999ms", "1.00s", "9.99s", "24.1s", "12m05s", "3h20m",
        ];
        assert_eq!(times, wanted);
        let counts = [0, 99_999, 131_072, 1_234_567, 99_999_999, 123_456_789].map(count);
        assert_eq!(counts, ["0", "99999", "131k", "1.2M", "100.0M", "123M"]);
    }
}
