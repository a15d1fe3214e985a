//! The elements of a `tool_calls` array, by places.

use super::Malformed;
use super::walk::{Span, Walk, Walked};

/// One element of `tool_calls`. What is null or absent is `None`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallDelta {
    /// The whole element.
    pub place: Span,
    /// `index`, if it is there.
    pub index: Option<u32>,
    /// `id`.
    pub id: Option<Span>,
    /// `function`, the object.
    pub function: Option<Span>,
    /// `function.name`.
    pub name: Option<Span>,
    /// `function.arguments`.
    pub arguments: Option<Span>,
    /// Has `id`, `type` or `function.name`, be it null: what only the first delta of a call may have.
    pub heads: bool,
}

/// Reads the elements of `array`, the text of a `tool_calls` member.
///
/// # Errors
/// [`Malformed`] if it isn't an array of objects.
pub fn call_deltas(array: &str, mut each: impl FnMut(CallDelta) -> Result<(), Malformed>) -> Result<(), Malformed> {
    let mut walk = Walk::new(array);
    let mut first = true;
    walk.expect(b'[')?;
    while walk.goes_on(b']', &mut first)? {
        each(element(&mut walk)?)?;
    }
    walk.end()
}

fn element(walk: &mut Walk<'_>) -> Walked<CallDelta> {
    let mut call = CallDelta::default();
    let mut first = true;
    walk.expect(b'{')?;
    call.place.start = walk.at - 1;
    while let Some(key) = walk.member(&mut first)? {
        match key {
            "index" => call.index = walk.unless_null()?.and_then(|span| span.of(walk.text).parse().ok()),
            "id" => {
                call.id = walk.unless_null()?;
                call.heads = true;
            }
            "function" => function(walk, &mut call)?,
            _ => {
                walk.value()?;
                call.heads |= key == "type";
            }
        }
    }
    call.place.end = walk.at;
    Ok(call)
}

fn function(walk: &mut Walk<'_>, call: &mut CallDelta) -> Walked<()> {
    let mut first = true;
    walk.expect(b'{')?;
    let start = walk.at - 1;
    while let Some(key) = walk.member(&mut first)? {
        match key {
            "name" => {
                call.name = walk.unless_null()?;
                call.heads = true;
            }
            "arguments" => call.arguments = walk.unless_null()?,
            _ => drop(walk.value()?),
        }
    }
    call.function = Some(Span { start, end: walk.at });
    Ok(())
}
