//! The XML dialect with a tag missing or written another way (B23).
//!
//! ```text
//! call      = opener (object | {parameter}) ["</function>"]
//! opener    = "<function" ("=" NAME | " name=" NAME) [">"]         a missing ">" at a line's end only
//! parameter = "<parameter" ("=" KEY | " name=" KEY) [">"] value ["</parameter>"]
//! ```
//!
//! A parameter's tag counts only with a key that the tool declares and that has not been said: any other one is text. A value ends
//! at its closing tag if a tag of the call follows, else at the next parameter's tag or the function's end on a line of its own.
//! Where neither stands the value may have been cut: no repair. At most [`EDITS`] tags are mended.

use super::{Ending, Mended, Task};
use crate::tool_call::call::Parsed;
use crate::tool_call::json::{self, space};
use crate::tool_call::tools::{Tool, typed_value};
use crate::tool_call::verdict::Kind;

/// Most tags that are missing or written another way.
const EDITS: usize = 2;
/// Longest name or key.
const NAME_LIMIT: usize = 128;

/// The only call of the text. `None`: it is something else, or not to be repaired.
pub(super) fn call(task: &Task<'_>) -> Option<Mended> {
    let mut edits = 0;
    let opener = opener(task.text, "function")?;
    let tool = task.tools.find(opener.name)?;
    edits += usize::from(!opener.usual);
    let mut rest = task.text.get(opener.len..)?;
    let mut members: Vec<(String, String)> = Vec::new();
    let inside = rest.trim_start_matches(space);
    let arguments = if inside.starts_with('{') {
        let (object, behind) = inside.rsplit_once("</function>").unwrap_or((inside, ""));
        let object = object.trim_matches(space);
        if !behind.trim_matches(space).is_empty() || !json::is_container(object) {
            return None;
        }
        edits += 1;
        object.to_owned()
    } else {
        while let Some((key, value, len, mended)) = parameter(rest, tool, &members, task.ending)? {
            edits += mended;
            members.push((key, value));
            rest = rest.get(len..)?;
        }
        let end = rest.trim_matches(space);
        match end {
            "</function>" => {}
            // The call's closing tag says as much.
            "" if task.ending == Ending::Closed => edits += 1,
            _ => return None,
        }
        let members: Vec<String> = members
            .iter()
            .map(|(key, value)| format!("{}: {value}", serde_json::Value::from(key.as_str())))
            .collect();
        format!("{{{}}}", members.join(", "))
    };
    if edits > EDITS {
        return None;
    }
    let mut parsed = Parsed::of(tool, opener.name, arguments).ok()?;
    parsed.kinds.insert(0, Kind::Markup);
    Some(Mended {
        end: task.text.len(),
        parsed,
    })
}

/// An opening tag.
struct Opener<'a> {
    name: &'a str,
    len: usize,
    /// As the dialect has it.
    usual: bool,
}

fn opener<'a>(text: &'a str, word: &str) -> Option<Opener<'a>> {
    let inner = text
        .trim_start_matches(space)
        .strip_prefix('<')?
        .trim_start_matches(blank);
    let (said, inner) = inner.split_at_checked(word.len())?;
    if !said.eq_ignore_ascii_case(word) {
        return None;
    }
    let attribute = inner.trim_start_matches(blank).strip_prefix("name");
    let inner = attribute.unwrap_or(inner).trim_start_matches(blank).strip_prefix('=')?;
    let inner = inner.trim_start_matches(|c| blank(c) || matches!(c, '"' | '\''));
    let len = inner.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.')))?;
    let (name, behind) = inner.split_at_checked(len)?;
    if name.is_empty() || len > NAME_LIMIT {
        return None;
    }
    let behind = behind.trim_start_matches(|c| blank(c) || matches!(c, '"' | '\''));
    let rest = match behind.strip_prefix('>') {
        Some(rest) => rest,
        // Only a line's end says as much.
        None => behind.starts_with('\n').then_some(behind)?,
    };
    let len = text.len() - rest.len();
    let written = text.get(..len)?.trim_start_matches(space);
    Some(Opener {
        name,
        len,
        usual: written == format!("<{word}={name}>"),
    })
}

/// Key, value, length and edits of the parameter that `text` begins with; `Some(None)` if it begins with none.
#[allow(clippy::type_complexity)]
fn parameter(
    text: &str,
    tool: &Tool,
    said: &[(String, String)],
    ending: Ending,
) -> Option<Option<(String, String, usize, usize)>> {
    let Some(opener) = opener(text, "parameter").filter(|opener| is_open(opener.name, tool, said)) else {
        return Some(None);
    };
    let behind = text.get(opener.len..)?;
    let mut edits = usize::from(!opener.usual);
    let goes_on = |rest: &str, key: &str| {
        let rest = rest.trim_start_matches(space);
        let next = || self::opener(rest, "parameter");
        rest.starts_with("</function>") || next().is_some_and(|next| next.name != key && is_open(next.name, tool, said))
    };
    let mut at = 0;
    let (end, len) = loop {
        let Some(tag) = behind.get(at..)?.find('<').map(|found| at + found) else {
            // Nothing follows. The call's own closing tag ends it, if there is one and the function's is all that lacks.
            return None;
        };
        let rest = behind.get(tag..)?;
        let close = ["</parameter>", "</param>"]
            .into_iter()
            .find(|close| rest.starts_with(close));
        if let Some(close) = close {
            let after = rest.get(close.len()..)?;
            let last = after.trim_matches(space).is_empty() && ending == Ending::Closed;
            if last || goes_on(after, opener.name) {
                edits += usize::from(close != "</parameter>");
                break (tag, tag + close.len());
            }
        } else if behind.get(..tag)?.ends_with('\n') && goes_on(rest, opener.name) {
            edits += 1;
            break (tag, tag);
        }
        at = tag + 1;
    };
    let value = behind.get(..end)?;
    let value = value.strip_prefix('\n').unwrap_or(value);
    let value = value.strip_suffix('\n').unwrap_or(value);
    let value = typed_value(tool, opener.name, value);
    Some(Some((opener.name.to_owned(), value, opener.len + len, edits)))
}

fn is_open(key: &str, tool: &Tool, said: &[(String, String)]) -> bool {
    tool.declared_type(key).is_some() && said.iter().all(|(other, _)| other != key)
}

fn blank(c: char) -> bool {
    matches!(c, ' ' | '\t')
}
