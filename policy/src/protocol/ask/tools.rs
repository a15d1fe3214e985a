//! `tools` and `tool_choice`: how many, whether any is strict, what is chosen. Schemas are the tool room's.

use super::{Ask, AskLimits, Seen, ToolChoice};
use crate::protocol::fault::Fault;
use crate::protocol::skim::{Cursor, Kind, Text};

/// Longest function name that is looked at; OpenAI allows 64 characters.
const NAME_LIMIT_BYTES: usize = 1024;

/// Reads `tools`. What isn't an array is vLLM's to refuse.
pub(super) fn tools(cursor: &mut Cursor<'_>, limits: &AskLimits, ask: &mut Ask) -> Result<(), Fault> {
    if cursor.kind()? != Kind::Array {
        return Ok(());
    }
    let (mut count, mut strict) = (0u32, false);
    let span = cursor.items(|cursor, index| -> Result<(), Fault> {
        count = count.saturating_add(1);
        if count > limits.tools {
            let message = format!("More than {} tools (limit tools).", limits.tools);
            return Err(Fault::bad_request("tools", message));
        }
        strict |= tool(cursor, index)?;
        Ok(())
    })?;
    if span.len() > limits.tools_bytes {
        let message = format!(
            "`tools` is larger than {} bytes (limit tools_bytes).",
            limits.tools_bytes
        );
        return Err(Fault::bad_request("tools", message));
    }
    ask.prompt_bytes += span.len() as u64;
    ask.tools = (count > 0).then(|| ask.body.slice(span));
    ask.tool_count = count;
    ask.strict_tools = strict;
    Ok(())
}

/// One tool, OpenAI's nested form or the flat one; true if it is strict.
fn tool(cursor: &mut Cursor<'_>, index: usize) -> Result<bool, Fault> {
    if cursor.kind()? != Kind::Object {
        return Ok(false);
    }
    let mut strict = false;
    let mut seen = Seen::default();
    cursor.members(|cursor, key| -> Result<(), Fault> {
        let Some(judged) = judged(
            &key,
            &["type", "name", "strict", "parameters", "input_schema", "function"],
        ) else {
            return Ok(());
        };
        seen.once(judged, &key, || format!("tools[{index}]"))?;
        if key.is("strict") {
            strict |= cursor.boolean()? == Some(true);
        } else if key.is("function") && cursor.kind()? == Kind::Object {
            let mut seen = Seen::default();
            cursor.members(|cursor, key| -> Result<(), Fault> {
                if let Some(judged) = self::judged(&key, &["name", "strict", "parameters"]) {
                    seen.once(judged, &key, || format!("tools[{index}].function"))?;
                }
                if key.is("strict") {
                    strict |= cursor.boolean()? == Some(true);
                }
                Ok(())
            })?;
        }
        Ok(())
    })?;
    Ok(strict)
}

/// Reads `tool_choice`.
pub(super) fn tool_choice(cursor: &mut Cursor<'_>) -> Result<ToolChoice, Fault> {
    match cursor.kind()? {
        Kind::Null => Ok(ToolChoice::Absent),
        Kind::String => {
            let word = cursor.string()?;
            Ok(match () {
                () if word.is("auto") => ToolChoice::Auto,
                () if word.is("none") => ToolChoice::None,
                () if word.is("required") => ToolChoice::Required,
                () => ToolChoice::Unknown,
            })
        }
        Kind::Object => named(cursor),
        _ => Ok(ToolChoice::Unknown),
    }
}

/// `{"type":"function","function":{"name":…}}`, or flat as in responses.
fn named(cursor: &mut Cursor<'_>) -> Result<ToolChoice, Fault> {
    let mut function = true;
    let mut name = None;
    let mut seen = Seen::default();
    cursor.members(|cursor, key| -> Result<(), Fault> {
        let Some(judged) = judged(&key, &["type", "name", "function"]) else {
            return Ok(());
        };
        seen.once(judged, &key, || "tool_choice".to_owned())?;
        match cursor.kind()? {
            Kind::String if key.is("type") => function = cursor.string()?.is("function"),
            Kind::String if key.is("name") => name = cursor.string()?.decoded(NAME_LIMIT_BYTES),
            Kind::Object if key.is("function") => {
                let mut seen = Seen::default();
                cursor.members(|cursor, key| -> Result<(), Fault> {
                    if key.is("name") {
                        seen.once(0, &key, || "tool_choice.function".to_owned())?;
                        if cursor.kind()? == Kind::String {
                            name = cursor.string()?.decoded(NAME_LIMIT_BYTES);
                        }
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(match name {
        Some(name) if function => ToolChoice::Named(name.into_owned()),
        _ => ToolChoice::Unknown,
    })
}

/// The place of a key in a short list of judged ones.
pub(super) fn judged(key: &Text<'_>, list: &[&str]) -> Option<u32> {
    list.iter()
        .position(|name| key.is(name))
        .and_then(|place| u32::try_from(place).ok())
}
