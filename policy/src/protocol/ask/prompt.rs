//! Messages and their content: counted, the conversation's beginning hashed, media found and judged by `media`.
//!
//! One reader for all dialects: OpenAI's messages, Anthropic's, the items of responses, the documents of rerankers. They differ in
//! names only, and reading all names everywhere leaves no dialect through which an unjudged one slips.

use std::hash::Hasher;
use std::ops::Range;

use super::media::{Media, MediaKey};
use super::tools::judged;
use super::{Ask, Grants, Seen};
use crate::history::{Draft, Past, Role};
use crate::protocol::fault::{Fault, clip};
use crate::protocol::skim::{Cursor, Kind, Text};
use crate::route::session::conversation_hasher;

/// Content in content in content: Anthropic's tool results hold parts, nothing holds more. Deeper is refused, not trusted.
const CONTENT_DEPTH_LIMIT: u32 = 8;

/// How much of a prompt that isn't a conversation counts as its beginning, in bytes.
const PROMPT_HEAD_BYTES: usize = 2048;

/// How much of a message's head, and of its tail, is hashed.
const HASHED_BYTES: usize = 4096;

/// Collects what the prompt says while the walk passes over it.
pub(super) struct Prompt {
    media: Media,
    bytes: u64,
    messages: u32,
    start: Start,
    past: Past,
}

/// The beginning of the conversation: system messages, then the first of the user.
#[derive(Default)]
struct Start {
    system: Option<u64>,
    user: Option<u64>,
    /// The first message of any other role, for conversations without a user.
    other: Option<u64>,
}

/// What a message says of itself.
#[derive(Default)]
struct Message {
    span: Range<usize>,
    role: Role,
    content: Option<Range<usize>>,
    said: Draft,
}

impl Prompt {
    pub(super) fn new(grants: &Grants) -> Prompt {
        Prompt {
            media: Media::new(grants),
            bytes: 0,
            messages: 0,
            start: Start::default(),
            past: Past::default(),
        }
    }

    /// `messages`, or the `input` of responses and embeddings: an array of messages, or something else that is the prompt itself.
    pub(super) fn messages(&mut self, cursor: &mut Cursor<'_>, field: &str) -> Result<(), Fault> {
        if cursor.kind()? != Kind::Array {
            return self.text(cursor);
        }
        self.past.open(cursor.offset() + 1);
        let span = cursor.items(|cursor, index| -> Result<(), Fault> {
            self.messages = self.messages.saturating_add(1);
            match cursor.kind()? {
                Kind::Object => {
                    let message = self.object(cursor, Place { field, index }, 0)?;
                    self.start.message(cursor, &message);
                    self.past.message(index, message.span, message.said);
                }
                _ => {
                    let item = cursor.skip()?;
                    self.past.message(index, item.clone(), Draft::default());
                    self.start
                        .other
                        .get_or_insert_with(|| hash(clip(cursor.raw(item), PROMPT_HEAD_BYTES)));
                }
            }
            Ok(())
        })?;
        self.bytes += span.len() as u64;
        Ok(())
    }

    /// Anthropic's `system`, the `instructions` of responses: before all messages, wherever they stand in the body.
    pub(super) fn system(&mut self, cursor: &mut Cursor<'_>, field: &str) -> Result<(), Fault> {
        let span = self.content(cursor, Place { field, index: 0 }, 0)?;
        self.bytes += span.len() as u64;
        let hash = hash(cursor.raw(span));
        self.start.system = Some(self.start.system.map_or(hash, |system| both(hash, system)));
        Ok(())
    }

    /// A prompt without messages in it.
    pub(super) fn text(&mut self, cursor: &mut Cursor<'_>) -> Result<(), Fault> {
        let span = cursor.skip()?;
        self.bytes += span.len() as u64;
        self.start
            .other
            .get_or_insert_with(|| hash(clip(cursor.raw(span), PROMPT_HEAD_BYTES)));
        Ok(())
    }

    /// Queries and documents of rerankers and scorers: texts, or content with parts.
    pub(super) fn documents(&mut self, cursor: &mut Cursor<'_>, field: &str) -> Result<(), Fault> {
        let span = self.content(cursor, Place { field, index: 0 }, 0)?;
        self.bytes += span.len() as u64;
        self.start
            .other
            .get_or_insert_with(|| hash(clip(cursor.raw(span), PROMPT_HEAD_BYTES)));
        Ok(())
    }

    /// Hands over what was collected.
    pub(super) fn finish(self, ask: &mut Ask) {
        ask.messages = self.messages;
        ask.images = self.media.seen;
        ask.prompt_bytes += self.bytes.saturating_sub(self.media.bytes);
        ask.session.conversation_hash = self.start.hash();
        ask.past = self.past;
    }

    /// Content: a text, a part, or an array of them.
    fn content(&mut self, cursor: &mut Cursor<'_>, place: Place<'_>, depth: u32) -> Result<Range<usize>, Fault> {
        match cursor.kind()? {
            Kind::Object => Ok(self.object(cursor, place, depth)?.span),
            Kind::Array => cursor.items(|cursor, _| match cursor.kind()? {
                Kind::Object => self.object(cursor, place, depth).map(drop),
                Kind::Array => {
                    place.check(cursor, depth + 1)?;
                    self.content(cursor, place, depth + 1).map(drop)
                }
                _ => Ok(()),
            }),
            _ => Ok(cursor.skip()?),
        }
    }

    /// A message or a part of one.
    fn object(&mut self, cursor: &mut Cursor<'_>, place: Place<'_>, depth: u32) -> Result<Message, Fault> {
        let mut message = Message::default();
        let mut seen = Seen::default();
        message.span = cursor.members(|cursor, key| -> Result<(), Fault> {
            if let Some(index) = judged(&key, &["role", "content", "type", "output"]) {
                seen.once(index, &key, || place.path())?;
                if key.is("role") && cursor.kind()? == Kind::String {
                    let role = cursor.string()?;
                    message.role = role_of(&role);
                    message.said.role(message.role, role.span());
                } else if key.is("content") || key.is("output") {
                    place.check(cursor, depth + 1)?;
                    let span = self.content(cursor, place, depth + 1)?;
                    if key.is("content") {
                        message.said.content(cursor.raw(span.clone()));
                        message.content = Some(span);
                    }
                }
            } else if let Some(media) = MediaKey::of(&key) {
                if let Some(index) = media.place() {
                    // After the places of the list above.
                    seen.once(4 + index, &key, || place.path())?;
                }
                self.media.read(cursor, media, &key, place)?;
            } else if depth == 0 {
                message.said.member(cursor, &key)?;
            }
            Ok(())
        })?;
        Ok(message)
    }
}

/// Where in the body, for messages to the client.
#[derive(Clone, Copy)]
pub(super) struct Place<'p> {
    field: &'p str,
    index: usize,
}

impl Place<'_> {
    pub(super) fn path(self) -> String {
        format!("{}[{}]", self.field, self.index)
    }

    fn check(self, cursor: &Cursor<'_>, depth: u32) -> Result<(), Fault> {
        if depth <= CONTENT_DEPTH_LIMIT {
            return Ok(());
        }
        let message = format!(
            "Content is nested deeper than {CONTENT_DEPTH_LIMIT} levels at byte {}.",
            cursor.offset()
        );
        Err(Fault::bad_request(self.path(), message))
    }
}

fn role_of(role: &Text<'_>) -> Role {
    match () {
        () if role.is("user") => Role::User,
        () if role.is("system") || role.is("developer") => Role::System,
        () if role.is("assistant") => Role::Assistant,
        () if role.is("tool") => Role::Tool,
        () => Role::Other,
    }
}

impl Start {
    fn message(&mut self, cursor: &Cursor<'_>, message: &Message) {
        let Some(span) = message.content.clone().filter(|_| self.user.is_none()) else {
            return;
        };
        match message.role {
            Role::User => self.user = Some(hash(cursor.raw(span))),
            Role::System => {
                let hash = hash(cursor.raw(span));
                self.system = Some(self.system.map_or(hash, |system| both(system, hash)));
            }
            _ if self.other.is_none() => self.other = Some(hash(cursor.raw(span))),
            Role::Assistant | Role::Tool | Role::Other => {}
        }
    }

    fn hash(&self) -> u64 {
        both(self.system.unwrap_or(0), self.user.or(self.other).unwrap_or(0))
    }
}

/// Of the length, the head and the tail: a first message may hold a 5 MB image, and hashing all of it tells no more.
fn hash(raw: &str) -> u64 {
    let bytes = raw.as_bytes();
    let tail = bytes.len().saturating_sub(HASHED_BYTES).max(HASHED_BYTES);
    let mut state = conversation_hasher();
    state.write_u64(bytes.len() as u64);
    state.write(bytes.get(..HASHED_BYTES).unwrap_or(bytes));
    state.write(bytes.get(tail..).unwrap_or_default());
    state.finish()
}

/// In this order.
fn both(first: u64, second: u64) -> u64 {
    let mut state = conversation_hasher();
    state.write_u64(first);
    state.write_u64(second);
    state.finish()
}
