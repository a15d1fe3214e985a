//! From a reading to calls: what it writes must be strict JSON, name a declared tool, and fit.

use super::cost::{MARGIN, MENDABLE, MOST};
use super::search::{Id, Op, Search, Turn};
use super::text;
use super::{Ending, Fit, Mended, Task, Unrepaired};
use crate::tool_call::call::{self, ARGUMENT_KEYS, Found, IDLE_KEYS, Parsed};
use crate::tool_call::json::{self, Json, Progress, space};
use crate::tool_call::verdict::Kind;
use serde_json::Value;
use std::collections::HashMap;
use std::ops::Range;

/// The calls of the cheapest reading that holds, if no other one of nearly its cost says something else.
pub(super) fn best(task: &Task<'_>) -> Result<Vec<Mended>, Unrepaired> {
    let mut search = Search::new(task);
    let mut judged: HashMap<Id, Vec<Mended>> = HashMap::new();
    let mut best: Option<(Vec<Mended>, u16)> = None;
    loop {
        let most = best.as_ref().map_or(MOST, |(_, cost)| cost + MARGIN);
        match search.next(most) {
            Turn::Dry => return best.map(|(calls, _)| calls).ok_or(Unrepaired::NoReading),
            // what else there may have been isn't known
            Turn::Spent => return Err(Unrepaired::Spent),
            Turn::Read(id) => {
                if let Some((calls, fit)) = judge(&search, id) {
                    judged.insert(id, calls);
                    search.judged(id, if fit == Fit::Mended { MENDABLE } else { 0 });
                } else {
                    search.suspect(id);
                }
            }
            Turn::Judged(id, cost) => {
                let Some(calls) = judged.remove(&id) else { continue };
                match &best {
                    None => best = Some((calls, cost)),
                    Some((first, _)) if same(first, &calls) => {}
                    Some(_) => return Err(Unrepaired::Ambiguous),
                }
            }
        }
    }
}

fn same(one: &[Mended], other: &[Mended]) -> bool {
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| {
            let (one, other) = (&one.parsed, &other.parsed);
            one.name == other.name
                && (one.arguments == other.arguments || value(&one.arguments) == value(&other.arguments))
        })
}

fn judge(search: &Search<'_>, id: Id) -> Option<(Vec<Mended>, Fit)> {
    let written = Written::of(search, id)?;
    if !written.is_believable(search.task.ending) {
        return None;
    }
    let mut found = Vec::new();
    let named = search.task.named.map(|tool| tool.name.as_str());
    for span in values(&written.text)? {
        let value = written.text.get(span.clone())?;
        if named.is_none() && !calls_only(value) {
            return None;
        }
        call::read_value(value, span.start, named, search.task.tools, &mut found);
    }
    let mut worst = Fit::Fits;
    let mut calls = Vec::new();
    let mut begin = 0;
    for Found { end, read } in found {
        let parsed = read.ok()?;
        worst = worst.max(Fit::of(&parsed));
        let mut kinds = parsed.kinds;
        let own = written.kinds.iter().filter(|(at, _)| (begin..=end).contains(at));
        kinds.extend(own.map(|(_, kind)| *kind));
        calls.push(Mended {
            end: written.source(end),
            parsed: Parsed { kinds, ..parsed },
        });
        begin = end + 1;
    }
    let rest = written
        .kinds
        .iter()
        .filter(|(at, _)| *at >= begin)
        .map(|(_, kind)| *kind);
    calls.last_mut()?.parsed.kinds.extend(rest);
    Some((calls, worst))
}

/// What a reading writes.
struct Written {
    text: String,
    /// Places of the text and of the source that belong together, in order.
    places: Vec<(usize, usize)>,
    kinds: Vec<(usize, Kind)>,
}

impl Written {
    fn of(search: &Search<'_>, id: Id) -> Option<Self> {
        let mut path = vec![id];
        while let Some(last) = path.last().copied()
            && search.node(last).op != Op::Start
        {
            path.push(search.node(last).parent);
        }
        let mut written = Written {
            text: String::with_capacity(search.text.len() + 64),
            places: Vec::new(),
            kinds: Vec::new(),
        };
        let mut before = 0;
        for id in path.into_iter().rev() {
            let node = search.node(id);
            let source = search.text.get(before..node.at).unwrap_or_default();
            let blank = source.len() - source.trim_start_matches(space).len();
            let at = written.text.len();
            match node.op {
                Op::Start => {}
                Op::Read => written.text.push_str(source),
                Op::Text { quote, from, to } => {
                    // white space may be the string's own
                    let blank = blank.min(from.saturating_sub(before));
                    written.text.push_str(source.get(..blank).unwrap_or_default());
                    written.text.push('"');
                    let done = text::append(search.text.get(from..to)?, quote, &mut written.text)?;
                    written.text.push('"');
                    let kinds = [
                        (done.control, Kind::Control),
                        (done.escape, Kind::Escape),
                        (done.inner, Kind::InnerQuotes),
                    ];
                    let done = kinds.into_iter().filter(|(done, _)| *done).map(|(_, kind)| (at, kind));
                    written.kinds.extend(done);
                }
                Op::Word(word) => {
                    written.text.push_str(source.get(..blank).unwrap_or_default());
                    written.text.push_str(word);
                }
                Op::Put(byte) => {
                    written.text.push_str(source.get(..blank).unwrap_or_default());
                    written.text.push(char::from(byte));
                }
                Op::Drop => written.text.push_str(source.get(..blank).unwrap_or_default()),
                Op::Uncomma => {
                    let kept = written.text.trim_end_matches(space).strip_suffix(',')?.len();
                    written.text.truncate(kept);
                }
            }
            written.kinds.extend(node.kind.map(|kind| (at, kind)));
            before = node.at;
            written.places.push((written.text.len(), before));
        }
        Some(written)
    }

    /// Where in the source a place of the text is.
    fn source(&self, at: usize) -> usize {
        let behind = self.places.partition_point(|(text, _)| *text < at);
        self.places.get(behind).map_or(0, |(_, source)| *source)
    }

    fn has(&self, kind: Kind) -> usize {
        self.kinds.iter().filter(|(_, found)| *found == kind).count()
    }

    /// Edits that don't go together: a string whose quote was missing is whole only if nothing else is missing; what was cut
    /// by the end of the answer is whole only if closers alone make it so.
    fn is_believable(&self, ending: Ending) -> bool {
        let quotes = self.has(Kind::Quote);
        let closers = self.has(Kind::Closer);
        let others = closers + self.has(Kind::InnerQuotes) + self.has(Kind::Escape);
        if quotes > 1 || (quotes == 1 && others > 0) {
            return false;
        }
        if closers > 0 && self.has(Kind::InnerQuotes) > 0 {
            return false;
        }
        ending == Ending::Closed || closers == 0 || closers == self.kinds.len()
    }
}

/// The spans of the values that `text` consists of, all of them strict.
fn values(text: &str) -> Option<Vec<Range<usize>>> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        let body = rest.trim_start_matches(|c| c == ',' || space(c));
        let from = text.len() - body.len();
        if body.is_empty() {
            return Some(found);
        }
        let mut json = Json::new();
        let (mut next, mut tag) = (from, false);
        at = loop {
            match json.push(text.as_bytes().get(next..)?, tag) {
                Progress::Done(end) => break next + end,
                Progress::TagInString(offset) => (next, tag) = (next + offset, true),
                Progress::More | Progress::Bad(_) => return None,
            }
        };
        found.push(from..at);
    }
}

/// Nothing beside a call's name and arguments: a member that is left over belongs somewhere else.
pub(crate) fn calls_only(value: &str) -> bool {
    if value.starts_with('[') {
        return json::elements(value)
            .into_iter()
            .all(|span| value.get(span).is_some_and(calls_only));
    }
    let members = json::members(value);
    let keys: Vec<&str> = members
        .iter()
        .filter_map(|member| value.get(member.key.start + 1..member.key.end.checked_sub(1)?))
        .collect();
    let inner = members
        .iter()
        .zip(&keys)
        .find(|(member, key)| **key == "function" && value.as_bytes().get(member.value.start) == Some(&b'{'));
    if let Some((member, _)) = inner {
        return keys.iter().all(|key| *key == "function" || IDLE_KEYS.contains(key))
            && value.get(member.value.clone()).is_some_and(calls_only);
    }
    let arguments = keys.iter().filter(|key| ARGUMENT_KEYS.contains(key)).count();
    let usual =
        |key: &&str| *key == "name" || *key == "function" || ARGUMENT_KEYS.contains(key) || IDLE_KEYS.contains(key);
    arguments == 0 || (arguments == 1 && keys.iter().all(usual))
}
