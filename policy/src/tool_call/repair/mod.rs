//! Repair of a call's syntax (B23): the cheapest edit that parses and fits the schema, or none.
//!
//! The text of a block that isn't strict JSON enters, calls leave with the kinds of their edits, or nothing: then the call is
//! asked again. No key and no value is invented; behind the last whole value only closers are added; a string, number or key
//! that is cut is never completed; what needs no edit is copied byte for byte. Two readings of nearly the same cost that give
//! different values are no repair.
//!
//! # Grammar
//! ```text
//! text    = junk (object | array) {[","] (object | array)} rest      forms beside it: `forms`, `code`, `xml`
//! object  = "{" [key ":" value {"," key ":" value}] "}"              array = "[" [value {"," value}] "]"
//! value   = object | array | string | number | literal               white space and comments anywhere between
//! junk    = chat tokens, a fence's first line                        rest = closers, a fence, a sentence
//! ```
//!
//! # Cost (tenths of an edit; `cost` has the numbers)
//!
//! | cost | edit |
//! | --- | --- |
//! | 3, once a call | quotes of another kind, Python's literals, keys without quotes, comments, trailing commas |
//! | 3 | a fence |
//! | 6, then 1 each | closers that are missing or too many at the very end |
//! | 10 | one structural character missing, too many, another, or in the wrong order |
//! | 10 | unescaped quotes in a string; + 15 if they don't come in pairs; + 20 for each that looks like the end |
//! | 15 | a word without quotes where the schema says string |
//! | + 10 | what may as well be a character that changed places with its quote |
//! | + 5 | a key that an object further out declares |
//! | + 20 | a key that its object doesn't declare |
//! | + 30 | a key that its object has already, or that stands beside name and arguments |
//! | + 6 | the schema's own repair has to mend the rest |
//!
//! A reading costs at most 45. Another one within 5 of the cheapest with other values: ambiguous, no repair. Raw control
//! characters and bad escapes inside strings cost nothing, since they change no reading (`text`).
//!
//! `search` (queue, suspects) → `reader` (the grammar), `ends` (where strings end) → `finish` (strict check, schema).

mod code;
mod cost;
mod ends;
mod finish;
mod forms;
mod reader;
mod search;
mod shape;
#[cfg(test)]
mod tests;
mod text;
mod xml;

pub(crate) use finish::calls_only;

use super::call::Parsed;
use super::tools::{Tool, ToolSet};
use memchr::memmem;
use serde_json::Value;
use shape::Place;
use std::cell::OnceCell;

/// How well the arguments of a reading fit their tool's schema; what doesn't fit at all is no reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// As they are.
    Fits,
    /// Nothing can be said.
    Unknown,
    /// Once shape repair has been over them (B24).
    Mended,
}

impl Fit {
    fn of(parsed: &Parsed) -> Self {
        if parsed.kinds.iter().any(|kind| kind.is_shape()) {
            Fit::Mended
        } else if parsed.checked {
            Fit::Fits
        } else {
            Fit::Unknown
        }
    }
}

/// How the text of a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By its closing tag: the model meant to be done.
    Closed,
    /// With the answer, or by another tag: it may have been cut anywhere.
    Open,
}

/// A call that repair found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Where its text ends in the block.
    pub(crate) end: usize,
    /// With the kinds of its edits.
    pub(crate) parsed: Parsed,
}

/// Why a text is no call after all that repair may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unrepaired {
    /// Nothing that it can be read as is cheap enough.
    NoReading,
    /// Two readings of nearly the same cost give different values.
    Ambiguous,
    /// The work that one text may cost was used up, or it is too long to begin with ([`cost`]).
    Spent,
}

/// The calls of a block that isn't well formed; `raw` is all of it, tags included.
pub(crate) fn repair(raw: &str, named: Option<&str>, tools: &ToolSet) -> Result<Vec<Mended>, Unrepaired> {
    let body = forms::body(raw);
    let text = raw.get(body.span.clone()).unwrap_or_default();
    if text.is_empty() {
        return Err(Unrepaired::NoReading);
    }
    if text.len() > cost::TEXT_LIMIT {
        return Err(Unrepaired::Spent);
    }
    let named = named
        .map(|name| tools.find(name).ok_or(Unrepaired::NoReading))
        .transpose()?;
    let task = Task::new(text, body.ending, named, tools);
    let mut found = if let Some(found) = forms::marked_up(&task) {
        found
    } else if let Some(found) = xml::call(&task) {
        vec![found]
    } else if let Some(found) = code::calls(&task) {
        found
    } else {
        finish::best(&task)?
    };
    let last = found.len().checked_sub(1).ok_or(Unrepaired::NoReading)?;
    for (at, call) in found.iter_mut().enumerate() {
        call.end = if at == last {
            raw.len()
        } else {
            call.end + body.span.start
        };
        if at == 0 {
            call.parsed.kinds.splice(0..0, body.kinds.iter().copied());
        }
        let mut kinds = std::mem::take(&mut call.parsed.kinds);
        kinds.sort_unstable();
        kinds.dedup();
        call.parsed.kinds = kinds;
    }
    Ok(found)
}

/// The same for what may have been cut, without the kinds.
pub(crate) fn mend_arguments(text: &str, name: &str, tools: &ToolSet) -> Option<String> {
    arguments(text, Ending::Open, name, tools).map(|parsed| parsed.arguments)
}

/// The arguments of one call of `name`, of which nothing else is known. `None`: not to be repaired.
pub(crate) fn arguments(text: &str, ending: Ending, name: &str, tools: &ToolSet) -> Option<Parsed> {
    let mut calls = match ending {
        Ending::Open => repair(text, Some(name), tools),
        Ending::Closed => repair(&[text, "</tool_call>"].concat(), Some(name), tools),
    }
    .ok()?;
    let call = calls.pop().filter(|_| calls.is_empty())?;
    Some(call.parsed)
}

/// One text to be repaired.
struct Task<'a> {
    text: &'a str,
    ending: Ending,
    /// The name stands in the tag.
    named: Option<&'a Tool>,
    tools: &'a ToolSet,
    /// Where the text seems to name tools.
    hints: Vec<(usize, &'a Tool)>,
    /// Of each declared tool, once it is looked at.
    schemas: Vec<OnceCell<Option<Value>>>,
}

/// Most names that are looked for in one text.
const HINTS_LIMIT: usize = 64;
/// Most bytes between `name` and a name.
const HINT_GAP: usize = 8;

impl<'a> Task<'a> {
    fn new(text: &'a str, ending: Ending, named: Option<&'a Tool>, tools: &'a ToolSet) -> Self {
        let mut task = Task {
            text,
            ending,
            named,
            tools,
            hints: Vec::new(),
            schemas: tools.tools().iter().map(|_| OnceCell::new()).collect(),
        };
        for key in ["name", "function"] {
            for at in memmem::find_iter(text.as_bytes(), key).take(HINTS_LIMIT) {
                let rest = text.get(at + key.len()..).unwrap_or_default();
                let name = rest.trim_start_matches(|c: char| !c.is_alphanumeric() && c != '_');
                if rest.len() - name.len() > HINT_GAP {
                    continue;
                }
                let len = name
                    .find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.')))
                    .unwrap_or(name.len());
                if let Some(tool) = tools.find(name.get(..len).unwrap_or_default()) {
                    task.hints.push((at, tool));
                }
            }
        }
        task.hints.sort_by_key(|(at, _)| *at);
        task
    }

    /// The tool of the call that begins at `at`, as far as can be seen.
    fn tool_behind(&self, at: usize) -> Option<&'a Tool> {
        self.named.or_else(|| {
            let hint = self.hints.iter().find(|(hint, _)| *hint >= at);
            hint.map(|(_, tool)| *tool)
        })
    }

    fn schema(&'a self, tool: &Tool) -> Option<Place<'a>> {
        let at = self.tools.tools().iter().position(|other| std::ptr::eq(other, tool))?;
        let read = || serde_json::from_str(tool.parameters.as_ref()?.get()).ok();
        self.schemas.get(at)?.get_or_init(read).as_ref().map(Place::root)
    }
}
