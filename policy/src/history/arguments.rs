//! Arguments of past calls (B30): a JSON object in a string, or made one.
//!
//! vLLM parses them for its template. It answers 400 to what isn't a string or can't be rendered (half of a surrogate pair), and
//! again at every later turn; so does 0.12 to what isn't JSON, where 0.32 takes `{}`, so that the model forgets what it did. Here they are mended as a fresh call would be, without holding them against the
//! schema if that doesn't help: what happened, happened. What can't be mended becomes `{}`, and what can't be judged stays.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use super::note::{Arguments, Past, PastCall};
use super::{Change, Kind};
use crate::protocol::skim::{self, Cursor, DEPTH_LIMIT_MAX, SkimError};
use crate::tool_call::{ToolSet, mend_arguments};

/// Calls of one history that are mended; further ones are stubbed. Each costs as much as a broken fresh call.
const MENDS_LIMIT: usize = 16;

/// Longest function name that is looked at.
const NAME_LIMIT_BYTES: usize = 1024;

/// A tool of any arguments, for calls whose own tool isn't declared or doesn't help.
static ANY: LazyLock<ToolSet> =
    LazyLock::new(|| ToolSet::parse(br#"[{"type":"function","function":{"name":"any"}}]"#).unwrap_or_default());

/// Adds what past calls need.
pub(super) fn changes(past: &Past, body: &[u8], tools: Option<&ToolSet>, changes: &mut Vec<Change>) {
    let mut mends = 0;
    let calls = past.turns.iter().flat_map(|turn| &turn.said.calls);
    for call in calls.filter(|call| call.name.is_some()) {
        match &call.arguments {
            Arguments::Missing => changes.push(Change {
                // The function has a name, so a comma is due.
                at: call.function.end - 1..call.function.end - 1,
                new: ",\"arguments\":\"{}\"".to_owned(),
                kind: Kind::ArgumentsStubbed,
            }),
            Arguments::Other(at) => changes.push(change(at, "{}", Kind::ArgumentsStubbed)),
            Arguments::Object(at) => {
                let Some(raw) = text(body, at) else { continue };
                changes.push(change(at, raw, Kind::ArgumentsQuoted));
            }
            Arguments::Text(at) => {
                let Some(said) = text(body, at).and_then(decoded) else {
                    continue;
                };
                if said.is_empty() || (!has_half_pairs(text(body, at)) && is_taken(&said)) {
                    continue;
                }
                mends += 1;
                let mended = (mends <= MENDS_LIMIT).then(|| mend(&said, call, body, tools)).flatten();
                changes.push(match mended {
                    Some(mended) => change(at, &mended, Kind::ArgumentsRepaired),
                    None => change(at, "{}", Kind::ArgumentsStubbed),
                });
            }
        }
    }
}

fn text<'b>(body: &'b [u8], at: &Range<usize>) -> Option<&'b str> {
    std::str::from_utf8(body.get(at.clone())?).ok()
}

fn change(at: &Range<usize>, arguments: &str, kind: Kind) -> Change {
    Change {
        at: at.clone(),
        new: serde_json::Value::from(arguments).to_string(),
        kind,
    }
}

/// A JSON string's text; half of a surrogate pair, which no template can render, is U+FFFD.
fn decoded(raw: &str) -> Option<String> {
    serde_json::from_str(raw).ok().or_else(|| {
        let text = Cursor::new(raw.as_bytes(), 0).and_then(|mut cursor| cursor.string());
        text.ok().map(|text| text.chars().collect())
    })
}

/// The string says half of a surrogate pair itself: it was decoded to something else.
fn has_half_pairs(raw: Option<&str>) -> bool {
    raw.is_some_and(|raw| serde_json::from_str::<Cow<'_, str>>(raw).is_err())
}

/// A JSON object as vLLM takes it: Python knows `NaN` and `Infinity` too. So is one that exceeds a bound of ours.
fn is_taken(said: &str) -> bool {
    let read = |text: &str| -> Result<bool, SkimError> {
        let mut cursor = Cursor::new(text.as_bytes(), DEPTH_LIMIT_MAX)?;
        let object = cursor.kind()? == skim::Kind::Object;
        cursor.skip()?;
        cursor.end()?;
        Ok(object)
    };
    let taken = match read(said) {
        Err(SkimError::Syntax { .. }) if said.contains("NaN") || said.contains("Infinity") => read(&finite(said)),
        taken => taken,
    };
    match taken {
        // What is half of a pair in there can't be rendered.
        Ok(object) => object && (!names_half_pairs(said) || serde_json::from_str::<serde_json::Value>(said).is_ok()),
        Err(SkimError::Depth { .. } | SkimError::Number { .. }) => true,
        Err(SkimError::NotUtf8 { .. } | SkimError::Syntax { .. } | SkimError::Control { .. }) => false,
    }
}

/// The text may name half of a surrogate pair.
fn names_half_pairs(said: &str) -> bool {
    said.contains("\\ud") || said.contains("\\uD")
}

/// With 0 for Python's numbers that JSON doesn't know, outside strings.
fn finite(said: &str) -> String {
    let mut out = String::with_capacity(said.len());
    let mut rest = said;
    while let Some(next) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"]
            .into_iter()
            .find(|word| rest.starts_with(word));
        let (taken, put) = match (next, word) {
            ('"', _) => {
                let end = string_end(rest);
                (end, rest.get(..end).unwrap_or_default())
            }
            (_, Some(word)) => (word.len(), "0"),
            _ => (next.len_utf8(), rest.get(..next.len_utf8()).unwrap_or_default()),
        };
        out.push_str(put);
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

/// Behind the string that `text` begins with.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return at + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Escapes of half a surrogate pair become that of U+FFFD.
fn whole_pairs(said: &str) -> String {
    let mut out = String::with_capacity(said.len());
    let mut rest = said;
    let unit = |text: &str| {
        let hex = text.strip_prefix("\\u")?.get(..4)?;
        u32::from_str_radix(hex, 16).ok()
    };
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let low = escape
            .get(6..)
            .and_then(unit)
            .filter(|low| (0xDC00..0xE000).contains(low));
        let (len, put) = match unit(escape) {
            Some(0xD800..0xDC00) if low.is_some() => (12, escape.get(..12)),
            Some(0xD800..0xE000) => (6, Some("\\ufffd")),
            Some(_) => (6, escape.get(..6)),
            // The backslash and the character behind it, which may be another backslash.
            None => {
                let len = 1 + escape.chars().nth(1).map_or(0, char::len_utf8);
                (len, escape.get(..len))
            }
        };
        out.push_str(put.unwrap_or_default());
        rest = escape.get(len..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn mend(said: &str, call: &PastCall, body: &[u8], tools: Option<&ToolSet>) -> Option<String> {
    let whole = whole_pairs(said);
    if is_taken(&whole) {
        return Some(whole);
    }
    // A string in the string, with the object in it.
    if let Ok(inner) = serde_json::from_str::<String>(&whole)
        && is_taken(&inner)
    {
        return Some(inner);
    }
    let name = call.name.as_ref().and_then(|at| text(body, at));
    let name = name.and_then(|raw| serde_json::from_str::<String>(raw).ok());
    let name = name.filter(|name| name.len() <= NAME_LIMIT_BYTES);
    let of_tool = name
        .zip(tools)
        .and_then(|(name, tools)| mend_arguments(&whole, &name, tools));
    of_tool
        .or_else(|| mend_arguments(&whole, "any", &ANY))
        .filter(|mended| is_taken(mended))
}
