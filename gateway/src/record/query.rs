//! Questions to the rows: which requests there were ([`list`], [`each`]) and how they did ([`stats`]).
//!
//! They open the file for reading only and work on that of a running gateway. Each question is one read transaction, so
//! its parts agree. Percentiles are exact: SQLite gives the values in order (its sorter spills to disk), and only the
//! wanted ranks are picked out, so that memory doesn't grow with the rows.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

use super::{Record, RecordError, Warmth, schema};

/// A record as it is read back.
pub type Row = Record<String>;

/// Rows that [`list`] returns at most; more are to be had with [`each`].
pub const LIST_LIMIT: usize = 100_000;

/// Models that [`stats`] tells apart, the busiest ones; the rest is one group, [`OTHER_MODELS`].
pub const MODEL_LIMIT: usize = 100;

/// Name of the group of all models beyond [`MODEL_LIMIT`].
pub const OTHER_MODELS: &str = "(other models)";

/// Error codes that a group tells apart, the most frequent ones.
pub const CODE_LIMIT: usize = 50;

/// Names that the counting keeps at once, before the busiest are picked: what clients send must not fill the memory.
const NAME_LIMIT: usize = 10_000;

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

/// From an instant (included) to another (excluded); either end may be open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// Started at this instant or later.
    pub since: Option<Timestamp>,
    /// Started before this instant.
    pub until: Option<Timestamp>,
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

/// How the requests of a time range did, all together and model by model.
///
/// # Errors
/// As [`list`].
pub fn stats(path: &Path, range: Range) -> Result<Stats, RecordError> {
    let mut db = schema::open_read(path)?;
    gather(&mut db, range).map_err(|cause| RecordError::Database {
        path: path.to_owned(),
        cause,
    })
}

/// What [`stats`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// What was asked for.
    pub range: Range,
    /// All requests.
    pub total: Group,
    /// By model, the busiest first; an empty name stands for requests that never came to a model.
    pub models: Vec<(String, Group)>,
}

/// The figures of some requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// How many there were.
    pub requests: u64,
    /// How many of them the client cancelled or left.
    pub cancelled: u64,
    /// How many of them failed (see [`Filter::errors_only`]).
    pub failed: u64,
    /// How many of them a simulated replica answered.
    pub simulated: u64,
    /// Failed ones by code (by status where there is no code), the most frequent first, [`CODE_LIMIT`] at most.
    pub errors: Vec<(String, u64)>,
    /// Tool calls that clients were shown.
    pub tool_calls: u64,
    /// Sum of the prompt tokens.
    pub prompt_tokens: u64,
    /// Sum of the prompt tokens that were in the prefix cache.
    pub cached_tokens: u64,
    /// Sum of the completion tokens.
    pub completion_tokens: u64,
    /// `ttft_client` of prompts that were mostly not cached.
    pub ttft_cold: Option<Spread<Duration>>,
    /// `ttft_client` of prompts that were mostly cached.
    pub ttft_warm: Option<Spread<Duration>>,
    /// `ttft_client` where the engine didn't say what was cached.
    pub ttft_unknown: Option<Spread<Duration>>,
    /// Dispatched → first upstream token.
    pub ttft_engine: Option<Spread<Duration>>,
    /// Tokens a second of each stream.
    pub tokens_per_s: Option<Spread<f64>>,
    /// Each stream's 99th percentile of the gaps between its tokens.
    pub itl_p99: Option<Spread<Duration>>,
    /// Accepted → last byte.
    pub duration: Option<Spread<Duration>>,
}

/// How values are spread. A percentile is the smallest value that at least so many percent of the values don't exceed
/// (nearest rank): always one that was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread<T> {
    /// How many values there are; never 0.
    pub count: u64,
    /// Median.
    pub p50: T,
    /// 90 % are not above this.
    pub p90: T,
    /// 99 % are not above this.
    pub p99: T,
    /// Largest value.
    pub max: T,
}

/// One `WHERE` clause and what its question marks stand for.
struct Where {
    terms: Vec<String>,
    values: Vec<Value>,
}

impl Where {
    fn range(since: Option<Timestamp>, until: Option<Timestamp>) -> Self {
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

    fn sql(&self) -> String {
        if self.terms.is_empty() {
            "true".to_owned()
        } else {
            self.terms.join(" AND ")
        }
    }
}

/// A cancelled request may have a fault's code beside it (a deadline, a drain): the client's leaving is what counts.
const FAILED: &str = "(cancelled = 0 AND (error IS NOT NULL OR status >= 400))";

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

/// What percentiles are made of.
#[derive(Clone, Copy)]
enum Measure {
    TtftClient,
    TtftEngine,
    TokensPerS,
    ItlP99,
    Duration,
}

impl Measure {
    const ALL: [Self; 5] = [
        Self::TtftClient,
        Self::TtftEngine,
        Self::TokensPerS,
        Self::ItlP99,
        Self::Duration,
    ];

    fn column(self) -> &'static str {
        match self {
            Self::TtftClient => "ttft_client_us",
            Self::TtftEngine => "ttft_engine_us",
            Self::TokensPerS => "tokens_per_s",
            Self::ItlP99 => "itl_p99_us",
            Self::Duration => "duration_us",
        }
    }
}

fn gather(db: &mut Connection, range: Range) -> rusqlite::Result<Stats> {
    // One read transaction: the counts and the ranks are of the same rows, whatever the gateway writes meanwhile.
    let db = db.transaction()?;
    let clause = Where::range(range.since, range.until);
    let mut tally = count(&db, &clause)?;
    for measure in Measure::ALL {
        rank(&db, &clause, measure, &mut tally)?;
    }
    let mut models = tally
        .models
        .into_iter()
        .zip(tally.groups)
        .map(|(name, group)| (name, group.close()))
        .collect::<Vec<_>>();
    models.retain(|(_, group)| group.requests > 0);
    Ok(Stats {
        range,
        total: tally.total.close(),
        models,
    })
}

/// The groups while they are counted.
struct Tally {
    total: Counting,
    /// Names of the groups, the busiest first; the last one is [`OTHER_MODELS`].
    models: Vec<String>,
    /// As many as names.
    groups: Vec<Counting>,
    index: HashMap<String, usize>,
}

impl Tally {
    fn group(&mut self, model: &str) -> Option<&mut Counting> {
        let other = self.groups.len().saturating_sub(1);
        let index = self.index.get(model).copied().unwrap_or(other);
        self.groups.get_mut(index)
    }
}

#[derive(Default)]
struct Counting {
    group: Group,
    errors: HashMap<String, u64>,
    ranks: [Ranks; Slot::COUNT],
}

/// Which spread of a group a value belongs to.
#[derive(Clone, Copy)]
enum Slot {
    Cold,
    Warm,
    Unknown,
    Engine,
    TokensPerS,
    ItlP99,
    Duration,
}

impl Slot {
    const COUNT: usize = 7;

    fn of(measure: Measure, warmth: Warmth) -> Self {
        match (measure, warmth) {
            (Measure::TtftClient, Warmth::Cold) => Self::Cold,
            (Measure::TtftClient, Warmth::Warm) => Self::Warm,
            (Measure::TtftClient, Warmth::Unknown) => Self::Unknown,
            (Measure::TtftEngine, _) => Self::Engine,
            (Measure::TokensPerS, _) => Self::TokensPerS,
            (Measure::ItlP99, _) => Self::ItlP99,
            (Measure::Duration, _) => Self::Duration,
        }
    }
}

impl Counting {
    fn ranks(&mut self, slot: Slot) -> Option<&mut Ranks> {
        self.ranks.get_mut(slot as usize)
    }

    fn close(mut self) -> Group {
        let mut errors = self.errors.drain().collect::<Vec<_>>();
        errors.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        errors.truncate(CODE_LIMIT);
        let [cold, warm, unknown, engine, tokens_per_s, itl_p99, duration] = self.ranks;
        let micros = |us: f64| Duration::from_micros(us as u64);
        Group {
            errors,
            ttft_cold: cold.spread(micros),
            ttft_warm: warm.spread(micros),
            ttft_unknown: unknown.spread(micros),
            ttft_engine: engine.spread(micros),
            tokens_per_s: tokens_per_s.spread(|rate| rate),
            itl_p99: itl_p99.spread(micros),
            duration: duration.spread(micros),
            ..self.group
        }
    }
}

/// Picks the wanted ranks out of values that come in order; how many will come is counted before.
#[derive(Default)]
struct Ranks {
    count: u64,
    seen: u64,
    picked: [f64; 4],
}

impl Ranks {
    /// Parts in hundred of p50, p90, p99 and the largest value.
    const PERCENT: [u64; 4] = [50, 90, 99, 100];

    fn take(&mut self, value: f64) {
        self.seen += 1;
        for (percent, picked) in Self::PERCENT.iter().zip(&mut self.picked) {
            if self.seen == nearest_rank(*percent, self.count) {
                *picked = value;
            }
        }
    }

    fn spread<T>(&self, unit: impl Fn(f64) -> T) -> Option<Spread<T>> {
        let [p50, p90, p99, max] = self.picked.map(unit);
        (self.count > 0).then_some(Spread {
            count: self.count,
            p50,
            p90,
            p99,
            max,
        })
    }
}

/// Counted from 1: the first position at which `percent` of `count` values are reached.
fn nearest_rank(percent: u64, count: u64) -> u64 {
    (percent.saturating_mul(count)).div_ceil(100).max(1)
}

/// Everything that needs no order, in one pass; then the busiest models get groups of their own.
fn count(db: &Connection, clause: &Where) -> rusqlite::Result<Tally> {
    let mut by_model = HashMap::<String, Counting>::new();
    let mut overflow = Counting::default();
    let mut total = Counting::default();
    let sql = format!(
        "SELECT model, cancelled, {FAILED}, simulated, coalesce(error, 'status ' || status), tool_calls,
            prompt_tokens, cached_tokens, completion_tokens, {} FROM requests WHERE {}",
        Measure::ALL
            .map(|measure| format!("{} IS NOT NULL", measure.column()))
            .join(", "),
        clause.sql()
    );
    let mut statement = db.prepare(&sql)?;
    let mut rows = statement.query(params_from_iter(&clause.values))?;
    while let Some(row) = rows.next()? {
        let model = row.get_ref(0)?.as_str()?;
        count_row(&mut total, row)?;
        if let Some(group) = by_model.get_mut(model) {
            count_row(group, row)?;
        } else if by_model.len() < NAME_LIMIT {
            count_row(by_model.entry(model.to_owned()).or_default(), row)?;
        } else {
            count_row(&mut overflow, row)?;
        }
    }
    Ok(busiest(total, by_model, overflow))
}

fn count_row(into: &mut Counting, row: &rusqlite::Row<'_>) -> rusqlite::Result<()> {
    let number =
        |index| Ok::<u64, rusqlite::Error>(u64::try_from(row.get::<_, Option<i64>>(index)?.unwrap_or(0)).unwrap_or(0));
    let group = &mut into.group;
    group.requests += 1;
    group.cancelled += number(1)?;
    group.simulated += number(3)?;
    group.tool_calls += number(5)?;
    group.prompt_tokens += number(6)?;
    group.cached_tokens += number(7)?;
    group.completion_tokens += number(8)?;
    if row.get(2)? {
        group.failed += 1;
        let code = row.get_ref(4)?.as_str()?;
        if let Some(count) = into.errors.get_mut(code) {
            *count += 1;
        } else if into.errors.len() < NAME_LIMIT {
            into.errors.insert(code.to_owned(), 1);
        }
    }
    let warmth = Warmth::of(
        row.get::<_, Option<i64>>(7)?.map(i64::unsigned_abs),
        row.get::<_, Option<i64>>(6)?.map(i64::unsigned_abs),
    );
    for (index, measure) in Measure::ALL.into_iter().enumerate() {
        if row.get(9 + index)?
            && let Some(ranks) = into.ranks(Slot::of(measure, warmth))
        {
            ranks.count += 1;
        }
    }
    Ok(())
}

fn busiest(total: Counting, by_model: HashMap<String, Counting>, mut other: Counting) -> Tally {
    let mut sorted = by_model.into_iter().collect::<Vec<_>>();
    sorted.sort_by(|a, b| b.1.group.requests.cmp(&a.1.group.requests).then_with(|| a.0.cmp(&b.0)));
    let rest = sorted.split_off(sorted.len().min(MODEL_LIMIT));
    rest.into_iter().for_each(|(_, group)| other.merge(group));
    let (mut models, mut groups) = sorted.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
    let index = models
        .iter()
        .cloned()
        .enumerate()
        .map(|(index, name)| (name, index))
        .collect();
    models.push(OTHER_MODELS.to_owned());
    groups.push(other);
    Tally {
        total,
        models,
        groups,
        index,
    }
}

impl Counting {
    fn merge(&mut self, from: Self) {
        let (into, group) = (&mut self.group, from.group);
        into.requests += group.requests;
        into.cancelled += group.cancelled;
        into.failed += group.failed;
        into.simulated += group.simulated;
        into.tool_calls += group.tool_calls;
        into.prompt_tokens += group.prompt_tokens;
        into.cached_tokens += group.cached_tokens;
        into.completion_tokens += group.completion_tokens;
        for (code, count) in from.errors {
            *self.errors.entry(code).or_default() += count;
        }
        for (into, ranks) in self.ranks.iter_mut().zip(from.ranks) {
            into.count += ranks.count;
        }
    }
}

/// One pass over one measure's values in order.
fn rank(db: &Connection, clause: &Where, measure: Measure, tally: &mut Tally) -> rusqlite::Result<()> {
    let column = measure.column();
    let sql = format!(
        "SELECT model, cached_tokens, prompt_tokens, {column} FROM requests
            WHERE {} AND {column} IS NOT NULL ORDER BY {column}",
        clause.sql()
    );
    let mut statement = db.prepare(&sql)?;
    let mut rows = statement.query(params_from_iter(&clause.values))?;
    while let Some(row) = rows.next()? {
        let warmth = Warmth::of(
            row.get::<_, Option<i64>>(1)?.map(i64::unsigned_abs),
            row.get::<_, Option<i64>>(2)?.map(i64::unsigned_abs),
        );
        // Exact up to 2^53 microseconds, 285 years.
        let value = match row.get_ref(3)? {
            rusqlite::types::ValueRef::Integer(us) => us as f64,
            rusqlite::types::ValueRef::Real(value) => value,
            _ => continue,
        };
        let slot = Slot::of(measure, warmth);
        if let Some(ranks) = tally.total.ranks(slot) {
            ranks.take(value);
        }
        let model = row.get_ref(0)?.as_str()?;
        if let Some(ranks) = tally.group(model).and_then(|group| group.ranks(slot)) {
            ranks.take(value);
        }
    }
    Ok(())
}
