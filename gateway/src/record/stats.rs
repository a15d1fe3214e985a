//! How the requests of a time range did: sums, and exact percentiles.
//!
//! Problem: percentiles need all values in order, and there may be millions. Rule: SQLite hands the values over in order
//! (its sorter spills to disk); what is wanted is picked out at ranks that one counting pass has told before, for all
//! models at once. Memory depends on the number of models and codes, which is bounded, never on the rows. Nearest rank:
//! a percentile is always a value that was measured.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, params_from_iter};

use super::query::{FAILED, Where};
use super::{RecordError, Warmth, schema};

/// Models that [`stats`] tells apart, the busiest ones; the rest is one group, [`OTHER_MODELS`].
pub const MODEL_LIMIT: usize = 100;

/// Name of the group of all models beyond [`MODEL_LIMIT`].
pub const OTHER_MODELS: &str = "(other models)";

/// Error codes that a group tells apart, the most frequent ones.
pub const CODE_LIMIT: usize = 50;

/// Names that the counting keeps at once, before the busiest are picked: what clients send must not fill the memory.
const NAME_LIMIT: usize = 10_000;

/// From an instant (included) to another (excluded); either end may be open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// Started at this instant or later.
    pub since: Option<Timestamp>,
    /// Started before this instant.
    pub until: Option<Timestamp>,
}

/// How the requests of a time range did, all together and model by model.
///
/// # Errors
/// No file, not ours, or SQLite refused.
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

impl Stats {
    /// No request at all.
    pub fn nothing(range: Range) -> Self {
        Self {
            range,
            total: Group::default(),
            models: Vec::new(),
        }
    }
}

/// The figures of some requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Group {
    /// How many there were.
    pub requests: u64,
    /// How many of them the client cancelled or left.
    pub cancelled: u64,
    /// How many of them failed (see `Filter::errors_only`).
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

#[cfg(test)]
mod tests {
    use super::super::Record;
    use super::super::tests::{at, full, store};
    use super::*;

    /// SplitMix64: the same numbers in each run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % end
        }

        fn maybe<T>(&mut self, value: T) -> Option<T> {
            (self.below(10) > 0).then_some(value)
        }
    }

    fn random(random: &mut Random, number: u64) -> Record {
        let mut micros = || Duration::from_micros(random.below(2_000_000) * random.below(3) + random.below(500));
        let times = [(); 4].map(|()| micros());
        let cached = random.below(1_001);
        let rate = random.below(100_000) as f64 / 997.0;
        let cancelled = random.below(20) == 0;
        let failed = random.below(10) == 0;
        Record {
            model: format!("model-{}", random.below(3)),
            prompt_tokens: random.maybe(1_000),
            cached_tokens: random.maybe(cached),
            ttft_client: random.maybe(times[0]),
            ttft_engine: random.maybe(times[1]),
            itl_p99: random.maybe(times[2]),
            duration: times[3],
            tokens_per_s: random.maybe(rate),
            tool_calls: random.below(3) as u32,
            cancelled,
            error: failed.then(|| format!("code_{}", random.below(4))),
            status: if random.below(30) == 0 { 429 } else { 200 },
            simulated: random.below(2) == 0,
            ..full(number)
        }
    }

    /// The definition, word by word, on a sorted vector.
    fn spread_of<T: Copy + PartialOrd>(values: impl Iterator<Item = Option<T>>) -> Option<Spread<T>> {
        let mut sorted = values.flatten().collect::<Vec<_>>();
        sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let count = sorted.len();
        let smallest = |percent: usize| {
            let reached = |value: &T| sorted.partition_point(|other| other <= value) * 100 >= percent * count;
            *sorted.iter().find(|value| reached(value)).unwrap()
        };
        let max = *sorted.last()?;
        Some(Spread {
            count: count as u64,
            p50: smallest(50),
            p90: smallest(90),
            p99: smallest(99),
            max,
        })
    }

    fn group_of(rows: &[&Record]) -> Group {
        let ttft = |warmth| spread_of(rows.iter().map(|r| r.ttft_client.filter(|_| r.warmth() == warmth)));
        let failed = |r: &&&Record| !r.cancelled && (r.error.is_some() || r.status >= 400);
        let mut errors = HashMap::<String, u64>::new();
        for r in rows.iter().filter(failed) {
            *errors
                .entry(r.error.clone().unwrap_or(format!("status {}", r.status)))
                .or_default() += 1;
        }
        let mut errors = errors.into_iter().collect::<Vec<_>>();
        errors.sort_by_key(|(code, count)| (u64::MAX - count, code.clone()));
        let sum = |of: fn(&Record) -> u64| rows.iter().map(|r| of(r)).sum();
        Group {
            requests: rows.len() as u64,
            cancelled: sum(|r| r.cancelled.into()),
            failed: rows.iter().filter(failed).count() as u64,
            simulated: sum(|r| r.simulated.into()),
            errors,
            tool_calls: sum(|r| r.tool_calls.into()),
            prompt_tokens: sum(|r| r.prompt_tokens.unwrap_or(0)),
            cached_tokens: sum(|r| r.cached_tokens.unwrap_or(0)),
            completion_tokens: sum(|r| r.completion_tokens.unwrap_or(0)),
            ttft_cold: ttft(Warmth::Cold),
            ttft_warm: ttft(Warmth::Warm),
            ttft_unknown: ttft(Warmth::Unknown),
            ttft_engine: spread_of(rows.iter().map(|r| r.ttft_engine)),
            tokens_per_s: spread_of(rows.iter().map(|r| r.tokens_per_s)),
            itl_p99: spread_of(rows.iter().map(|r| r.itl_p99)),
            duration: spread_of(rows.iter().map(|r| Some(r.duration))),
        }
    }

    #[test]
    fn figures_are_those_of_a_sorted_vector() {
        let folder = tempfile::tempdir().unwrap();
        for rows in [1, 2, 3, 7, 10, 99, 100, 101, 1_000, 10_000] {
            let path = folder.path().join(format!("{rows}.db"));
            let mut source = Random(rows);
            let records = (0..rows).map(|number| random(&mut source, number)).collect::<Vec<_>>();
            store(&path, records.clone());
            let range = Range {
                since: Some(at(0)),
                until: None,
            };
            let stats = stats(&path, range).unwrap();
            assert_eq!(stats.range, range);
            assert_eq!(
                stats.total,
                group_of(&records.iter().collect::<Vec<_>>()),
                "{rows} rows"
            );
            let mut seen = 0;
            for (name, group) in &stats.models {
                let of_model = records.iter().filter(|r| r.model == *name).collect::<Vec<_>>();
                assert_eq!(*group, group_of(&of_model), "{rows} rows, {name}");
                seen += group.requests;
            }
            assert_eq!(seen, rows);
            assert!(stats.models.is_sorted_by(|a, b| a.1.requests >= b.1.requests));
        }
    }

    #[test]
    fn only_the_range_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        store(&path, (0..10).map(full));
        let count = |since: Option<i64>, until: Option<i64>| {
            stats(
                &path,
                Range {
                    since: since.map(at),
                    until: until.map(at),
                },
            )
            .unwrap()
            .total
            .requests
        };
        assert_eq!(count(None, None), 10);
        assert_eq!(count(Some(3), Some(5)), 2, "the first instant is in, the last is not");
        assert_eq!(count(Some(10), None), 0);
        let nothing = stats(
            &path,
            Range {
                since: Some(at(10)),
                until: None,
            },
        )
        .unwrap();
        assert_eq!((nothing.total, nothing.models), (Group::default(), Vec::new()));
    }

    #[test]
    fn the_busiest_models_have_groups_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.db");
        let model = |number: u64| {
            if number < 500 {
                "busy".to_owned()
            } else {
                format!("model-{number:04}")
            }
        };
        store(
            &path,
            (0..700).map(|number| Record {
                model: model(number),
                ..full(number)
            }),
        );
        let stats = stats(&path, Range::default()).unwrap();
        assert_eq!(stats.models.len(), MODEL_LIMIT + 1);
        assert_eq!((stats.models[0].0.as_str(), stats.models[0].1.requests), ("busy", 500));
        let (name, others) = stats.models.last().unwrap();
        assert_eq!(
            (name.as_str(), others.requests),
            (OTHER_MODELS, 200 - (MODEL_LIMIT as u64 - 1))
        );
        assert_eq!(others.duration.unwrap().count, others.requests);
        let longest = full(699).duration;
        assert_eq!(others.duration.unwrap().max, longest);
    }
}
