//! The conversation chain: what the chat template renders, hashed piece by piece; two requests share a prompt's KV cache as far
//! as their chains agree.
//!
//! Enters: an [`Ask`], whose body has been walked and is valid. Leaves: a [`Chain`] of [`Link`]s. Order is Qwen3's: system,
//! tools, then messages: role, reasoning of the turn that still runs, text and media, calls. Ids, `cache_control` and the reasoning
//! of past turns aren't rendered, so they aren't hashed. Long text is cut every 4 KiB, so that a changed end loses only itself.
//!
//! Text is hashed as it stands in the body: a client writes its whole history with one serialiser, and if another one escapes
//! differently, that is a miss and no error. Only calls are hashed without white space between their tokens.

use std::hash::Hasher;
use std::ops::Range;

use super::session::conversation_hasher;
use crate::protocol::ask::Ask;
use crate::protocol::skim::{Cursor, DEPTH_LIMIT_MAX, Kind, SkimError, Text};

/// Text is cut after so many bytes: about 1,000 tokens.
const PIECE_BYTES: usize = 4096;

/// Links of one chain: 16 MiB of text. What follows isn't looked for, and counts as not cached.
pub const CHAIN_LINKS_LIMIT: usize = 4096;

/// Messages of one chain; what follows counts as not cached.
const MESSAGES_LIMIT: usize = 4096;

/// Parts in parts: `ask` refuses what is deeper.
const PART_DEPTH_LIMIT: u32 = 10;

/// What an image or a sound counts, in bytes of text: about 1,000 tokens. Its base64 says nothing of its tokens.
const MEDIUM_BYTES: u64 = 4096;

/// One place in a conversation: everything up to it, as a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Of all that is rendered up to here.
    pub hash: u64,
    /// Bytes of text up to here.
    pub bytes: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    links: Vec<Link>,
    bytes: u64,
}

impl Chain {
    /// Of a request.
    pub fn of(ask: &Ask) -> Chain {
        let mut writer = Writer::default();
        if let Some(salt) = ask.raw("cache_salt") {
            // vLLM shares no block between salts.
            writer.mix(Tag::Salt, &salt);
        }
        let messages = ["messages", "input"].iter().find_map(|name| ask.raw(name));
        let body = messages.as_deref().unwrap_or_default();
        let messages = messages_of(body).unwrap_or_default();
        let first_is_system = messages.first().is_some_and(|message| message.role == Tag::System);
        for name in ["system", "instructions"] {
            if let Some(text) = ask.raw(name) {
                writer.begin(Tag::System);
                writer.content(&text, false, 0);
            }
        }
        let (system, rest) = messages.split_at(usize::from(first_is_system));
        for message in system {
            writer.message(body, message, false);
        }
        if let Some(tools) = &ask.tools {
            writer.begin(Tag::Tools);
            writer.text(tools);
            writer.close();
        }
        let last_query = rest.iter().rposition(|message| message.role == Tag::User);
        for (place, message) in rest.iter().enumerate() {
            writer.message(body, message, last_query.is_none_or(|last| place > last));
        }
        let alone = ask.raw("prompt").or_else(|| {
            // An `input` that is a text.
            ask.raw("input").filter(|_| messages.is_empty())
        });
        if let Some(prompt) = alone {
            writer.begin(Tag::Prompt);
            writer.text(&prompt);
            writer.close();
        }
        Chain {
            links: writer.links,
            bytes: writer.bytes,
        }
    }

    /// From links that are known; for simulations and tests.
    pub fn from_links(links: Vec<Link>) -> Chain {
        let bytes = links.last().map_or(0, |link| link.bytes);
        Chain { links, bytes }
    }

    /// In order; `bytes` grow.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// Bytes of the whole prompt, what is past the last link too.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What comes next in the rendered prompt.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Tag {
    Salt,
    System,
    Tools,
    User,
    Assistant,
    Tool,
    #[default]
    Other,
    Prompt,
    Text,
    Reasoning,
    Medium,
    Call,
}

/// Where the parts of a message stand in the array's text.
#[derive(Debug, Default)]
struct Message {
    role: Tag,
    content: Option<Range<usize>>,
    reasoning: Option<Range<usize>>,
    calls: Option<Range<usize>>,
}

fn messages_of(body: &[u8]) -> Result<Vec<Message>, SkimError> {
    let mut cursor = Cursor::new(body, DEPTH_LIMIT_MAX)?;
    let mut messages = Vec::new();
    if body.is_empty() || cursor.kind()? != Kind::Array {
        return Ok(messages);
    }
    cursor.items(|cursor, _| -> Result<(), SkimError> {
        if messages.len() == MESSAGES_LIMIT {
            return Ok(());
        }
        messages.push(match cursor.kind()? {
            Kind::Object => message(cursor)?,
            _ => Message {
                content: Some(cursor.skip()?),
                ..Message::default()
            },
        });
        Ok(())
    })?;
    Ok(messages)
}

fn message(cursor: &mut Cursor<'_>) -> Result<Message, SkimError> {
    let mut message = Message::default();
    cursor.members(|cursor, key| -> Result<(), SkimError> {
        if key.is("role") && cursor.kind()? == Kind::String {
            message.role = role(&cursor.string()?);
        } else if key.is("content") || key.is("output") {
            message.content = Some(cursor.skip()?);
        } else if key.is("reasoning_content") || key.is("reasoning") {
            message.reasoning = Some(cursor.skip()?);
        } else if key.is("tool_calls") {
            message.calls = Some(cursor.skip()?);
        }
        Ok(())
    })?;
    Ok(message)
}

fn role(text: &Text<'_>) -> Tag {
    match () {
        () if text.is("user") => Tag::User,
        () if text.is("assistant") => Tag::Assistant,
        () if text.is("system") || text.is("developer") => Tag::System,
        () if text.is("tool") => Tag::Tool,
        () => Tag::Other,
    }
}

#[derive(Default)]
struct Writer {
    state: u64,
    bytes: u64,
    links: Vec<Link>,
}

impl Writer {
    fn message(&mut self, body: &[u8], message: &Message, runs: bool) {
        self.begin(message.role);
        if let Some(reasoning) = message.reasoning.clone().filter(|_| runs)
            && let Some(text) = body.get(reasoning).filter(|text| *text != b"null")
        {
            self.begin(Tag::Reasoning);
            self.text(text);
        }
        let content = message.content.clone().and_then(|span| body.get(span));
        let past = message.role == Tag::Assistant && !runs;
        self.content(content.unwrap_or_default(), past, 0);
        if let Some(calls) = message.calls.clone().and_then(|span| body.get(span)) {
            let _ = self.calls(calls);
        }
        self.close();
    }

    /// A string, or parts. `past`: an answer of a turn that is over, whose thoughts aren't rendered.
    fn content(&mut self, raw: &[u8], past: bool, depth: u32) {
        match raw.first() {
            Some(b'"') => self.text(if past { without_thoughts(raw) } else { raw }),
            Some(b'[' | b'{') if depth < PART_DEPTH_LIMIT => {
                let _ = self.parts(raw, past, depth);
            }
            _ => {}
        }
    }

    fn parts(&mut self, raw: &[u8], past: bool, depth: u32) -> Result<(), SkimError> {
        let mut cursor = Cursor::new(raw, DEPTH_LIMIT_MAX)?;
        if cursor.kind()? == Kind::Object {
            return self.part(&mut cursor, raw, past, depth);
        }
        cursor.items(|cursor, _| match cursor.kind()? {
            Kind::Object => self.part(cursor, raw, past, depth),
            _ => {
                let span = cursor.skip()?;
                self.content(raw.get(span).unwrap_or_default(), past, depth + 1);
                Ok(())
            }
        })?;
        Ok(())
    }

    fn part(&mut self, cursor: &mut Cursor<'_>, raw: &[u8], past: bool, depth: u32) -> Result<(), SkimError> {
        cursor.members(|cursor, key| -> Result<(), SkimError> {
            let place = Place::of(&key);
            if place == Place::Nowhere || (place == Place::Thought && past) {
                return Ok(());
            }
            let span = cursor.skip()?;
            let value = raw.get(span).unwrap_or_default();
            match place {
                Place::Text | Place::Thought => self.content(value, past, depth + 1),
                Place::Medium => self.medium(value),
                Place::Call => self.compact(value),
                Place::Nowhere => {}
            }
            Ok(())
        })?;
        Ok(())
    }

    fn medium(&mut self, value: &[u8]) {
        self.mix(Tag::Medium, value);
        self.bytes += MEDIUM_BYTES;
        self.close();
    }

    /// OpenAI's calls: names and arguments, not ids.
    fn calls(&mut self, raw: &[u8]) -> Result<(), SkimError> {
        let mut cursor = Cursor::new(raw, DEPTH_LIMIT_MAX)?;
        if cursor.kind()? != Kind::Array {
            return Ok(());
        }
        cursor.items(|cursor, _| -> Result<(), SkimError> {
            self.begin(Tag::Call);
            if cursor.kind()? != Kind::Object {
                return Ok(());
            }
            cursor.members(|cursor, key| -> Result<(), SkimError> {
                if key.is("function") && cursor.kind()? == Kind::Object {
                    let (mut name, mut arguments) = (None, None);
                    cursor.members(|cursor, key| -> Result<(), SkimError> {
                        match () {
                            () if key.is("name") => name = Some(cursor.skip()?),
                            () if key.is("arguments") => arguments = Some(cursor.skip()?),
                            () => {}
                        }
                        Ok(())
                    })?;
                    for span in [name, arguments].into_iter().flatten() {
                        self.compact(raw.get(span).unwrap_or_default());
                    }
                }
                Ok(())
            })?;
            Ok(())
        })?;
        Ok(())
    }

    /// JSON, or JSON inside a string (whose quotes are escaped), without the white space between its tokens.
    fn compact(&mut self, raw: &[u8]) {
        let inner = raw
            .strip_prefix(b"\"")
            .and_then(|rest| rest.strip_suffix(b"\""))
            .filter(|inner| inner.first() == Some(&b'{'));
        let escaped = inner.is_some();
        let json = inner.unwrap_or(raw);
        let mut kept = Vec::with_capacity(json.len());
        let (mut inside, mut at) = (false, 0);
        while let Some(&byte) = json.get(at) {
            let next = json.get(at + 1).copied();
            let (quote, length) = match (escaped, byte) {
                (true, b'\\') if next == Some(b'"') => (true, 2),
                // An escape inside the inner text: its backslash stands doubled, what it escapes after it.
                (true, b'\\') if next == Some(b'\\') && inside => {
                    (false, if json.get(at + 2) == Some(&b'\\') { 4 } else { 3 })
                }
                (true, b'\\') if !inside => {
                    // `\n` between tokens is white space.
                    at += 2;
                    continue;
                }
                (true, b'\\') => (false, 2),
                (false, b'\\') => (false, 2),
                (false, b'"') => (true, 1),
                _ => (false, 1),
            };
            inside ^= quote;
            match (quote, byte) {
                (true, _) => kept.push(b'"'),
                (false, b' ' | b'\n' | b'\r' | b'\t') if !inside => {}
                _ => kept.extend_from_slice(json.get(at..at + length).unwrap_or_default()),
            }
            at += length;
        }
        self.text(&kept);
    }

    /// What follows is of this kind.
    fn begin(&mut self, tag: Tag) {
        self.mix(tag, &[]);
    }

    fn mix(&mut self, tag: Tag, bytes: &[u8]) {
        let mut state = conversation_hasher();
        state.write_u64(self.state);
        state.write_u8(tag as u8);
        state.write(bytes);
        self.state = state.finish();
    }

    /// Text in pieces; each full one closes a link.
    fn text(&mut self, raw: &[u8]) {
        let text = raw
            .strip_prefix(b"\"")
            .and_then(|rest| rest.strip_suffix(b"\""))
            .unwrap_or(raw);
        for piece in text.chunks(PIECE_BYTES) {
            self.mix(Tag::Text, piece);
            self.bytes += piece.len() as u64;
            if piece.len() == PIECE_BYTES {
                self.close();
            }
        }
    }

    /// A place at which another conversation may part.
    fn close(&mut self) {
        let before = self.links.last().map_or(0, |link| link.bytes);
        if self.bytes > before && self.links.len() < CHAIN_LINKS_LIMIT {
            self.links.push(Link {
                hash: self.state,
                bytes: self.bytes,
            });
        }
    }
}

/// What a part's key holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Text,
    Thought,
    Medium,
    Call,
    Nowhere,
}

impl Place {
    fn of(key: &Text<'_>) -> Place {
        const MEDIA: [&str; 10] = [
            "image_url",
            "video_url",
            "audio_url",
            "image",
            "video",
            "audio",
            "input_audio",
            "file",
            "source",
            "url",
        ];
        match () {
            () if key.is("text") || key.is("content") || key.is("output") => Place::Text,
            () if key.is("thinking") => Place::Thought,
            () if key.is("name") || key.is("input") => Place::Call,
            () if MEDIA.iter().any(|name| key.is(name)) => Place::Medium,
            () => Place::Nowhere,
        }
    }
}

/// An answer's text after its think block, as the template cuts it.
fn without_thoughts(raw: &[u8]) -> &[u8] {
    const END: &[u8] = b"</think>";
    match memchr::memmem::rfind(raw, END) {
        Some(at) => raw.get(at + END.len()..raw.len().saturating_sub(1)).unwrap_or_default(),
        None => raw,
    }
}

#[cfg(test)]
mod tests;
