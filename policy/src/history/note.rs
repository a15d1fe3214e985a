//! What the request reader keeps of past turns: places in the body, no copies.
//!
//! A [`Draft`] follows the reader through one message; [`Past`] keeps the messages that may need a change: calls, tool results,
//! system messages that aren't the first, turns without content. Most requests keep few and plain ones none.

use std::ops::Range;

use crate::protocol::skim::{Cursor, Kind, SkimError, Text};

/// Messages of one body that may be changed.
#[derive(Clone, Default)]
pub struct Past {
    pub(super) turns: Vec<Turn>,
    /// Where the message before the next one ends.
    end: usize,
}

/// One message.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    /// Its place among the messages.
    pub(super) index: usize,
    pub(super) span: Range<usize>,
    /// Where the message before it ends.
    pub(super) before: usize,
    /// Where the next one begins; its own end if there is none.
    pub(super) next: usize,
    pub(super) said: Draft,
}

/// What a message says of itself, as far as it matters here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    pub(super) role: Role,
    /// The value of `role`.
    pub(super) role_at: Range<usize>,
    /// It has content, or something else that a template shows.
    pub(super) speaks: bool,
    pub(super) calls: Vec<PastCall>,
    pub(super) call_id: CallId,
    /// The function that a tool result names.
    pub(super) name: Option<Range<usize>>,
}

/// Who says a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
    Tool,
    #[default]
    Other,
}

/// A call of a past turn. What isn't a call of a named function is vLLM's to refuse, and has no name here.
#[derive(Clone, Debug, Default)]
pub(super) struct PastCall {
    pub(super) span: Range<usize>,
    pub(super) id: CallId,
    pub(super) has_type: bool,
    /// `function`.
    pub(super) function: Range<usize>,
    pub(super) name: Option<Range<usize>>,
    pub(super) arguments: Arguments,
}

/// The value of `arguments`.
#[derive(Clone, Debug, Default)]
pub(super) enum Arguments {
    #[default]
    Missing,
    /// A string, quotes included.
    Text(Range<usize>),
    /// An object.
    Object(Range<usize>),
    /// null, an array, a number, true or false.
    Other(Range<usize>),
}

/// `tool_call_id` of a tool result, `id` of a call.
#[derive(Clone, Debug, Default)]
pub(super) enum CallId {
    #[default]
    Missing,
    /// null or an empty string.
    Empty(Range<usize>),
    /// A string, quotes included.
    Given(Range<usize>),
    /// vLLM's to refuse.
    Other,
}

impl Past {
    /// Nothing in it can need a change.
    pub(super) fn is_plain(&self) -> bool {
        self.turns.is_empty()
    }

    /// The list of messages begins behind this bracket.
    pub(crate) fn open(&mut self, at: usize) {
        *self = Past {
            turns: Vec::new(),
            end: at,
        };
    }

    /// One more message.
    pub(crate) fn message(&mut self, index: usize, span: Range<usize>, said: Draft) {
        if let Some(last) = self.turns.last_mut().filter(|last| last.index + 1 == index) {
            last.next = span.start;
        }
        let before = std::mem::replace(&mut self.end, span.end);
        if said.matters(index) {
            self.turns.push(Turn {
                index,
                before,
                next: span.end,
                span,
                said,
            });
        }
    }
}

impl Draft {
    fn matters(&self, index: usize) -> bool {
        match self.role {
            Role::Tool => true,
            Role::System if index > 0 => true,
            Role::System | Role::User => !self.speaks,
            Role::Assistant => !self.speaks || !self.calls.is_empty(),
            Role::Other => false,
        }
    }

    /// The message's role.
    pub(crate) fn role(&mut self, role: Role, at: Range<usize>) {
        self.role = role;
        self.role_at = at;
    }

    /// The message's content, as raw JSON.
    pub(crate) fn content(&mut self, raw: &str) {
        let inside = raw.trim_matches(['[', ']', '"', ' ', '\n', '\r', '\t']);
        self.speaks |= !matches!(inside, "" | "null");
    }

    /// Another member of the message. What it leaves unread is skipped by the caller.
    pub(crate) fn member(&mut self, cursor: &mut Cursor<'_>, key: &Text<'_>) -> Result<(), SkimError> {
        if key.is("tool_calls") {
            if cursor.kind()? == Kind::Array {
                let mut calls = Vec::new();
                cursor.items(|cursor, _| -> Result<(), SkimError> {
                    if cursor.kind()? == Kind::Object {
                        calls.push(PastCall::read(cursor)?);
                    }
                    Ok(())
                })?;
                self.speaks |= !calls.is_empty();
                self.calls = calls;
            }
        } else if key.is("tool_call_id") {
            self.call_id = CallId::read(cursor)?;
        } else if key.is("name") {
            self.name = string(cursor)?;
        } else if ["reasoning", "reasoning_content", "refusal", "audio", "function_call"]
            .iter()
            .any(|other| key.is(other))
        {
            let value = cursor.skip()?;
            self.speaks |= !matches!(cursor.raw(value), "null" | "\"\"");
        }
        Ok(())
    }
}

impl PastCall {
    fn read(cursor: &mut Cursor<'_>) -> Result<PastCall, SkimError> {
        let mut call = PastCall::default();
        call.span = cursor.members(|cursor, key| -> Result<(), SkimError> {
            if key.is("id") {
                call.id = CallId::read(cursor)?;
            } else if key.is("type") {
                call.has_type = true;
            } else if key.is("function") && cursor.kind()? == Kind::Object {
                (call.name, call.arguments) = Default::default();
                call.function = cursor.members(|cursor, key| -> Result<(), SkimError> {
                    if key.is("name") {
                        call.name = string(cursor)?;
                    } else if key.is("arguments") {
                        call.arguments = Arguments::read(cursor)?;
                    }
                    Ok(())
                })?;
            }
            Ok(())
        })?;
        Ok(call)
    }
}

impl Arguments {
    fn read(cursor: &mut Cursor<'_>) -> Result<Arguments, SkimError> {
        let kind = cursor.kind()?;
        let span = cursor.skip()?;
        Ok(match kind {
            Kind::String => Arguments::Text(span),
            Kind::Object => Arguments::Object(span),
            Kind::Array | Kind::Number | Kind::Bool | Kind::Null => Arguments::Other(span),
        })
    }
}

impl CallId {
    fn read(cursor: &mut Cursor<'_>) -> Result<CallId, SkimError> {
        let kind = cursor.kind()?;
        let span = cursor.skip()?;
        Ok(match kind {
            Kind::Null => CallId::Empty(span),
            Kind::String if span.len() == 2 => CallId::Empty(span),
            Kind::String => CallId::Given(span),
            _ => CallId::Other,
        })
    }
}

/// A string with something in it; other values are skipped.
fn string(cursor: &mut Cursor<'_>) -> Result<Option<Range<usize>>, SkimError> {
    let kind = cursor.kind()?;
    let span = cursor.skip()?;
    Ok((kind == Kind::String && span.len() > 2).then_some(span))
}
