//! Around and beside JSON: what stands before and behind it in a block, and calls that are marked up.

use super::{Ending, Mended, Task};
use crate::tool_call::call::Parsed;
use crate::tool_call::json::{self, space};
use crate::tool_call::tag::Tag;
use crate::tool_call::verdict::Kind;
use std::ops::Range;

/// Most tags and tokens that are taken off each end.
const ROUNDS: usize = 8;
/// Longest chat token, and longest first line of a fence.
const TOKEN_LIMIT: usize = 32;

/// The inside of a block.
pub(super) struct Body {
    pub(super) span: Range<usize>,
    pub(super) kinds: Vec<Kind>,
    pub(super) ending: Ending,
}

/// Without tags, white space, chat tokens and a fence's first line.
pub(super) fn body(raw: &str) -> Body {
    let mut kinds = Vec::new();
    let mut text = raw;
    for _ in 0..ROUNDS {
        let rest = text.trim_start_matches(space);
        text = if let Tag::CallOpen { len, .. } = tag(rest) {
            rest.get(len..).unwrap_or_default()
        } else if let Some(behind) = chat_token(rest) {
            kinds.push(Kind::Surplus);
            behind
        } else if let Some(behind) = fence(rest) {
            kinds.push(Kind::Fence);
            behind
        } else {
            text = rest;
            break;
        };
    }
    let start = raw.len() - text.len();
    let mut end = raw.trim_end_matches(space).len();
    let mut ending = Ending::Open;
    for _ in 0..ROUNDS {
        let inside = raw.get(start..end).unwrap_or_default();
        match inside.rfind('<') {
            Some(at) if matches!(tag(inside.get(at..).unwrap_or_default()), Tag::CallClose { len } if at + len == inside.len()) =>
            {
                ending = Ending::Closed;
                end = start + inside.get(..at).unwrap_or_default().trim_end_matches(space).len();
            }
            _ => break,
        }
    }
    Body {
        span: start..end.max(start),
        kinds,
        ending,
    }
}

fn tag(text: &str) -> Tag {
    if text.starts_with('<') {
        Tag::read(text)
    } else {
        Tag::None
    }
}

/// `<|im_start|>assistant`.
fn chat_token(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("<|")?;
    let end = inner.find("|>").filter(|end| *end <= TOKEN_LIMIT)?;
    let behind = inner.get(end + 2..)?;
    let role = ["assistant", "user", "tool", "system"]
        .into_iter()
        .find_map(|role| behind.strip_prefix(role));
    Some(role.unwrap_or(behind))
}

/// A fence's first line.
fn fence(text: &str) -> Option<&str> {
    let inner = text.strip_prefix("```")?.trim_start_matches('`');
    let len = inner.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(inner.len());
    let behind = inner.get(len..)?;
    (len <= TOKEN_LIMIT && behind.starts_with(|c| space(c) || matches!(c, '{' | '['))).then_some(behind)
}

/// `<name>search</name> <arguments>{…}</arguments>`, one or several.
pub(super) fn marked_up(task: &Task<'_>) -> Option<Vec<Mended>> {
    let mut found = Vec::new();
    let mut rest = task.text;
    while !rest.is_empty() {
        let (name, behind) = element(rest, "name")?;
        let tool = task.tools.find(name.trim_matches(space))?;
        let (arguments, behind) = ["arguments", "parameters", "args"]
            .into_iter()
            .find_map(|key| element(behind, key))?;
        let arguments = arguments.trim_matches(space);
        if !arguments.starts_with('{') || !json::is_container(arguments) {
            return None;
        }
        rest = behind.trim_start_matches(space);
        let mut parsed = Parsed::of(tool, name.trim_matches(space), arguments.to_owned()).ok()?;
        parsed.kinds.insert(0, Kind::Markup);
        let end = task.text.len() - rest.len();
        found.push(Mended { end, parsed });
    }
    (!found.is_empty()).then_some(found)
}

/// `<KEY>inside</KEY>` at the start of `text`, and what is behind. The last closing tag before the next element counts.
fn element<'a>(text: &'a str, key: &str) -> Option<(&'a str, &'a str)> {
    let inner = text
        .trim_start_matches(space)
        .strip_prefix('<')?
        .strip_prefix(key)?
        .strip_prefix('>')?;
    let close = format!("</{key}>");
    let mut at = 0;
    loop {
        let end = at + inner.get(at..)?.find(&close)?;
        let behind = inner.get(end + close.len()..)?;
        let next = behind.trim_start_matches(space);
        if next.is_empty() || next.starts_with('<') {
            return Some((inner.get(..end)?, behind));
        }
        at = end + close.len();
    }
}
