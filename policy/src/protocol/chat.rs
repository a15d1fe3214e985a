//! Chat completion chunks and messages, read by places and rewritten in place.
//!
//! `Chunk::read` walks one JSON text (a data line of a stream or a whole answer) and keeps the places of the few members
//! that are judged: identity, usage, error, and of each choice its delta, finish and texts. What isn't judged is never
//! parsed into values, so that logprobs, token ids, fingerprints and fields of the future leave as they came. Changes are
//! `Edits` (a place and its new text) and `rebuild` (an object with some members replaced, dropped or added), `with_member` (with one).
//! Legacy completions have the same frame with `text` for a delta: see `completions`.

mod calls;
mod walk;

use std::borrow::Cow;

pub use calls::{CallDelta, call_deltas};
pub use walk::{Malformed, Span};
use walk::{Walk, Walked};

/// Choices that one chunk may carry; vLLM sends one, a whole answer `n`.
pub const CHOICES_LIMIT: usize = 1024;
/// Longest tail that is remembered; vLLM's has 55 bytes.
const TAIL_LIMIT_BYTES: usize = 1024;
/// Longest start of a chunk that is remembered; vLLM's has 160 bytes.
const LEAD_LIMIT_BYTES: usize = 4096;

/// The places of one chunk's judged members. Reuse it from chunk to chunk: it keeps its memory.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The text began with the head that was given to [`read`](Self::read), so that identity need not be compared.
    pub known_head: bool,
    /// `id`, with quotes.
    pub id: Option<Span>,
    /// `model`, with quotes.
    pub model: Option<Span>,
    /// `created`.
    pub created: Option<Span>,
    /// `usage`, unless null.
    pub usage: Option<Span>,
    /// `error`, unless null.
    pub error: Option<Span>,
    /// Where the value of `choices` starts; `None` if there is no such member.
    pub choices_at: Option<usize>,
    /// The choices in the order of the text.
    pub choices: Vec<Choice>,
    /// Some other top-level member isn't null: the chunk mustn't be dropped.
    pub carries: bool,
    /// What followed the delta of the last chunk in which nothing of note followed it. A text that goes on like that needs
    /// no reading any further.
    idle_tail: String,
    mould: Mould,
}

/// The last chunk that was known head, one text and idle tail: a chunk that differs from it in the text alone needs no walk.
#[derive(Debug, Default)]
struct Mould {
    /// Up to the text; empty before there was such a chunk.
    lead: String,
    choice: Choice,
}

/// The places of one choice's judged members. A member that is null or absent is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// `index`, 0 if absent.
    pub index: u32,
    /// The object `delta` (stream) or `message` (whole answer).
    pub body: Option<Span>,
    /// `role` of the body.
    pub role: Option<Span>,
    /// `content` of the body if it is a string.
    pub content: Option<Span>,
    /// `reasoning` of the body if it is a string.
    pub reasoning: Option<Span>,
    /// `reasoning_content` of the body if it is a string.
    pub reasoning_content: Option<Span>,
    /// `tool_calls` of the body if it is an array.
    pub tool_calls: Option<Span>,
    /// `text` (legacy completions).
    pub text: Option<Span>,
    /// The value of `finish_reason`.
    pub finish: Option<Span>,
    /// Logprobs, token ids or something unknown isn't null: the chunk mustn't be dropped.
    pub carries: bool,
}

impl Chunk {
    /// Reads `text`, replacing what was read before. `head` is what earlier chunks of the stream began with up to the
    /// value of `choices` (empty at first): a text that begins with it is read from there on.
    ///
    /// # Errors
    /// [`Malformed`] if `text` isn't one JSON object of the expected shape.
    pub fn read(&mut self, text: &str, head: &str) -> Result<(), Malformed> {
        let mut choices = std::mem::take(&mut self.choices);
        choices.clear();
        *self = Self {
            choices,
            idle_tail: std::mem::take(&mut self.idle_tail),
            mould: std::mem::take(&mut self.mould),
            ..Self::default()
        };
        if !head.is_empty() && self.read_moulded(text, head) {
            return Ok(());
        }
        let mut walk = Walk::new(text);
        let mut first = true;
        if !head.is_empty() && text.starts_with(head) {
            self.known_head = true;
            walk.at = head.len();
            first = false;
            if self.read_choices(&mut walk)? == Rest::Idle {
                self.learn_mould(text);
                return Ok(());
            }
        } else {
            walk.expect(b'{')?;
        }
        while let Some(key) = walk.member(&mut first)? {
            match key {
                "id" => self.id = walk.unless_null()?,
                "model" => self.model = walk.unless_null()?,
                "created" => self.created = walk.unless_null()?,
                "usage" => self.usage = walk.unless_null()?,
                "error" => self.error = walk.unless_null()?,
                "choices" => {
                    if self.read_choices(&mut walk)? == Rest::Idle {
                        return Ok(());
                    }
                }
                "object" | "system_fingerprint" | "service_tier" => drop(walk.value()?),
                _ => self.carries |= walk.unless_null()?.is_some(),
            }
        }
        walk.end()?;
        self.learn_tail(text);
        Ok(())
    }

    /// Reads a chunk like the last plain one; false if it isn't.
    fn read_moulded(&mut self, text: &str, head: &str) -> bool {
        let lead = self.mould.lead.as_str();
        let token = text
            .strip_prefix(lead)
            .and_then(|rest| rest.strip_suffix(self.idle_tail.as_str()));
        let token = token.and_then(|rest| rest.strip_suffix('}')).unwrap_or_default();
        let is_moulded = !lead.is_empty() && lead.starts_with(head) && walk::is_string(token);
        if is_moulded {
            let end = lead.len() + token.len();
            let place = Span { start: lead.len(), end };
            let mut choice = self.mould.choice;
            for text in choice.texts_mut().into_iter().flatten() {
                *text = place;
            }
            choice.body = choice.body.map(|body| Span { end: end + 1, ..body });
            self.choices.push(choice);
            (self.known_head, self.choices_at) = (true, Some(head.len()));
        }
        is_moulded
    }

    /// Remembers what stands around the text of the delta, if it said nothing else.
    fn learn_mould(&mut self, text: &str) {
        let [choice] = &mut self.choices[..] else { return };
        let mut plain = Choice {
            index: choice.index,
            body: choice.body,
            ..Choice::default()
        };
        (plain.content, plain.reasoning, plain.reasoning_content) =
            (choice.content, choice.reasoning, choice.reasoning_content);
        let ([Some(place), None, None] | [None, Some(place), None] | [None, None, Some(place)]) = plain.texts_mut()
        else {
            return;
        };
        let place = *place;
        let lead = text.get(..place.start).unwrap_or_default();
        if *choice == plain
            && plain.body.is_some_and(|body| body.end == place.end + 1)
            && lead.len() <= LEAD_LIMIT_BYTES
        {
            self.mould.lead.clear();
            self.mould.lead.push_str(lead);
            self.mould.choice = plain;
        }
    }

    /// Remembers what follows the delta, if it said nothing.
    fn learn_tail(&mut self, text: &str) {
        let [choice] = &self.choices[..] else { return };
        let places = [self.id, self.model, self.created, self.usage, self.error, choice.finish];
        let noted = places.iter().any(Option::is_some) || self.carries || choice.carries;
        let tail = choice.body.and_then(|body| text.get(body.end..)).unwrap_or_default();
        if self.known_head && !noted && tail.len() <= TAIL_LIMIT_BYTES && !tail.contains("\"index\"") {
            self.idle_tail.clear();
            self.idle_tail.push_str(tail);
            self.mould.lead.clear();
        }
    }

    fn read_choices(&mut self, walk: &mut Walk<'_>) -> Walked<Rest> {
        self.choices_at = Some(walk.at);
        self.choices.clear();
        let mut first = true;
        walk.expect(b'[')?;
        while walk.goes_on(b']', &mut first)? {
            if self.choices.len() == CHOICES_LIMIT {
                return walk.malformed();
            }
            let mut choice = Choice::default();
            let tail = if self.choices.is_empty() { &*self.idle_tail } else { "" };
            let rest = choice.read(walk, tail)?;
            if self.choices.is_empty() {
                // Mostly the only one: no room for four.
                self.choices.reserve_exact(1);
            }
            self.choices.push(choice);
            if rest == Rest::Idle {
                return Ok(rest);
            }
        }
        Ok(Rest::Unread)
    }
}

/// What comes behind a place in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Unread,
    /// What is known to say nothing, up to the end.
    Idle,
}

impl Choice {
    /// Reads one element of `choices`; stops behind its body if `idle_tail` follows there.
    fn read(&mut self, walk: &mut Walk<'_>, idle_tail: &str) -> Walked<Rest> {
        let mut first = true;
        walk.expect(b'{')?;
        while let Some(key) = walk.member(&mut first)? {
            match key {
                "index" => self.index = number(walk)?,
                "delta" | "message" => {
                    self.read_body(walk)?;
                    if !idle_tail.is_empty() && walk.rest() == idle_tail {
                        return Ok(Rest::Idle);
                    }
                }
                "text" => self.text = string(walk)?,
                "finish_reason" => self.finish = walk.unless_null()?,
                "stop_reason" => drop(walk.value()?),
                _ => self.carries |= walk.unless_null()?.is_some(),
            }
        }
        Ok(Rest::Unread)
    }

    /// The places of the body's strings.
    fn texts_mut(&mut self) -> [Option<&mut Span>; 3] {
        [&mut self.content, &mut self.reasoning, &mut self.reasoning_content].map(Option::as_mut)
    }

    fn read_body(&mut self, walk: &mut Walk<'_>) -> Walked<()> {
        walk.expect(b'{')?;
        let start = walk.at - 1;
        let mut first = true;
        while let Some(key) = walk.member(&mut first)? {
            match key {
                "role" => self.role = walk.unless_null()?,
                "content" => self.content = string(walk)?,
                "reasoning" => self.reasoning = string(walk)?,
                "reasoning_content" => self.reasoning_content = string(walk)?,
                "tool_calls" => {
                    let value = walk.unless_null()?;
                    self.tool_calls = value.filter(|span| span.of(walk.text).starts_with('['));
                }
                _ => self.carries |= walk.unless_null()?.is_some(),
            }
        }
        self.body = Some(Span { start, end: walk.at });
        Ok(())
    }
}

fn string(walk: &mut Walk<'_>) -> Walked<Option<Span>> {
    let value = walk.unless_null()?;
    Ok(value.filter(|span| span.of(walk.text).starts_with('"')))
}

fn number(walk: &mut Walk<'_>) -> Walked<u32> {
    let span = walk.value()?;
    span.of(walk.text).parse().map_err(|_| Malformed { at: span.start })
}

/// The text of a JSON string `token` (with quotes). Borrowed unless it has escapes.
///
/// # Errors
/// [`Malformed`] for what isn't text: half of a surrogate pair.
pub fn unquote(token: &str) -> Result<Cow<'_, str>, Malformed> {
    match token.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) if memchr::memchr(b'\\', inner.as_bytes()).is_none() => Ok(Cow::Borrowed(inner)),
        _ => serde_json::from_str(token)
            .map(Cow::Owned)
            .map_err(|error| Malformed { at: error.column() }),
    }
}

/// Appends `text` as a JSON string.
pub fn quote(text: &str, out: &mut Vec<u8>) {
    // Writing a str to memory can't fail.
    let _ = serde_json::to_writer(out, text);
}

/// The value of member `name` of `object`, unless it is null or absent.
///
/// # Errors
/// [`Malformed`] if `object` isn't a JSON object.
pub fn member<'a>(object: &'a str, name: &str) -> Result<Option<&'a str>, Malformed> {
    let mut walk = Walk::new(object);
    let mut first = true;
    let mut found = None;
    walk.expect(b'{')?;
    while let Some(key) = walk.member(&mut first)? {
        let value = walk.unless_null()?;
        if key == name {
            found = value;
        }
    }
    Ok(found.map(|span| span.of(object)))
}

/// Appends `object` with what `write` appends as the value of member `name`, at the end if it isn't there (then it gets `None`,
/// else the value that was). All else stays as received, white space too.
///
/// # Errors
/// [`Malformed`] if `object` isn't a JSON object, and what `write` returns.
pub fn with_member(
    object: &str,
    name: &str,
    out: &mut Vec<u8>,
    write: impl FnOnce(Option<&str>, &mut Vec<u8>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut walk = Walk::new(object);
    let mut first = true;
    let mut found = None;
    walk.expect(b'{')?;
    while let Some(key) = walk.member(&mut first)? {
        let value = walk.value()?;
        if key == name {
            found = Some(value);
        }
    }
    let close = walk.at - 1;
    let (before, after) = match found {
        Some(place) => (place.start, place.end),
        None => (close, close),
    };
    out.extend_from_slice(object.get(..before).unwrap_or_default().as_bytes());
    if found.is_none() {
        for part in [if first { "\"" } else { ",\"" }, name, "\":"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    write(found.map(|place| place.of(object)), out)?;
    out.extend_from_slice(object.get(after..).unwrap_or_default().as_bytes());
    Ok(())
}

/// What becomes of one member of a rebuilt object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// As received, if it was.
    Keep,
    /// Left out.
    Drop,
    /// This JSON in its place, at the end if it wasn't there.
    Set(&'a [u8]),
}

/// Appends `object` (a delta or message) to `out` with `fields` applied; members that aren't named stay as they are, where
/// they are.
///
/// # Errors
/// [`Malformed`] if `object` isn't a JSON object.
pub fn rebuild(object: &str, fields: &[(&str, Field<'_>)], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut walk = Walk::new(object);
    let mut seen = 0u32;
    let mut first = true;
    let mut comma = "";
    let mut put = |parts: &[&[u8]], out: &mut Vec<u8>| {
        out.extend_from_slice(std::mem::replace(&mut comma, ",").as_bytes());
        for part in parts {
            out.extend_from_slice(part);
        }
    };
    let set = fields.iter().map(|(key, field)| match field {
        Field::Set(new) => key.len() + new.len() + 4,
        Field::Keep | Field::Drop => 0,
    });
    out.reserve(object.len() + set.sum::<usize>());
    out.push(b'{');
    walk.expect(b'{')?;
    // Members that stay and stand side by side are copied as one.
    let mut run = Span::default();
    while let Some(key) = walk.member(&mut first)? {
        let colon = walk.at;
        let value = walk.value()?;
        let field = fields.iter().position(|(name, _)| *name == key);
        seen |= field.map_or(0, |at| 1 << at);
        let fate = field
            .and_then(|at| fields.get(at))
            .map_or(Field::Keep, |(_, field)| *field);
        // The key, its quotes and the colon, if nothing stands between them.
        let start = colon.saturating_sub(key.len() + 3);
        let is_tight = value.start == colon && object.as_bytes().get(start) == Some(&b'"');
        if fate == Field::Keep && is_tight {
            if run.start < run.end && run.end + 1 == start {
                run.end = value.end;
                continue;
            }
            if run.start < run.end {
                put(&[run.of(object).as_bytes()], out);
            }
            run = Span { start, end: value.end };
            continue;
        }
        if run.start < run.end {
            put(&[std::mem::take(&mut run).of(object).as_bytes()], out);
        }
        match fate {
            Field::Keep => put(&[b"\"", key.as_bytes(), b"\":", value.of(object).as_bytes()], out),
            Field::Drop => {}
            Field::Set(new) => put(&[b"\"", key.as_bytes(), b"\":", new], out),
        }
    }
    if run.start < run.end {
        put(&[run.of(object).as_bytes()], out);
    }
    for (at, (key, field)) in fields.iter().enumerate() {
        if let Field::Set(new) = field
            && seen & (1 << at) == 0
        {
            put(&[b"\"", key.as_bytes(), b"\":", new], out);
        }
    }
    out.push(b'}');
    Ok(())
}

/// Replacements in one text, kept as places and new bytes. Reuse it: it keeps its memory.
#[derive(Debug, Default)]
pub struct Edits {
    places: Vec<(Span, Span)>,
    bytes: Vec<u8>,
}

impl Edits {
    /// Forgets all replacements.
    pub fn clear(&mut self) {
        self.places.clear();
        self.bytes.clear();
    }

    /// True if the text stays as it is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes by which the replacements can lengthen the text at most.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What stands at `place` becomes what `write` appends. Places mustn't overlap.
    pub fn replace<E>(&mut self, place: Span, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let start = self.bytes.len();
        write(&mut self.bytes)?;
        self.places.push((
            place,
            Span {
                start,
                end: self.bytes.len(),
            },
        ));
        Ok(())
    }

    /// What stands at `place` becomes `new`.
    pub fn set(&mut self, place: Span, new: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(new);
        self.places.push((
            place,
            Span {
                start,
                end: self.bytes.len(),
            },
        ));
    }

    /// Appends `text` with the replacements made.
    pub fn apply(&mut self, text: &str, out: &mut Vec<u8>) {
        self.places.sort_unstable_by_key(|(place, _)| place.start);
        let mut from = 0;
        for (place, new) in &self.places {
            out.extend_from_slice(text.get(from..place.start).unwrap_or_default().as_bytes());
            out.extend_from_slice(self.bytes.get(new.start..new.end).unwrap_or_default());
            from = place.end;
        }
        out.extend_from_slice(text.get(from..).unwrap_or_default().as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":17,"model":"m","choices":[{"index":0,"delta":{"content":" Paris"},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#;

    #[test]
    fn reads_the_places_of_a_chunk() {
        let mut chunk = Chunk::default();
        chunk.read(TEXT, "").unwrap();
        assert_eq!(chunk.id.map(|span| span.of(TEXT)), Some("\"chatcmpl-1\""));
        assert_eq!(chunk.created.map(|span| span.of(TEXT)), Some("17"));
        assert_eq!((chunk.usage, chunk.error, chunk.carries), (None, None, false));
        let [choice] = chunk.choices[..] else {
            panic!("{chunk:?}")
        };
        assert_eq!(choice.body.map(|span| span.of(TEXT)), Some(r#"{"content":" Paris"}"#));
        assert_eq!(choice.content.map(|span| span.of(TEXT)), Some("\" Paris\""));
        assert_eq!((choice.finish, choice.carries), (None, false));
    }

    #[test]
    fn a_known_head_gives_the_same_choices() {
        let mut chunk = Chunk::default();
        chunk.read(TEXT, "").unwrap();
        let head = &TEXT[..chunk.choices_at.unwrap()];
        let slow = format!("{:?}", chunk.choices);
        chunk.read(TEXT, head).unwrap();
        assert!(chunk.known_head);
        assert_eq!(format!("{:?}", chunk.choices), slow);
        let other = TEXT.replace("chatcmpl-1", "chatcmpl-2");
        chunk.read(&other, head).unwrap();
        assert!(!chunk.known_head);
    }

    #[test]
    fn an_idle_tail_is_read_once_and_says_nothing() {
        let head = &TEXT[..TEXT.find("[{").unwrap()];
        let mut learned = Chunk::default();
        learned.read(TEXT, head).unwrap();
        assert!(learned.idle_tail.starts_with(",\"logprobs\":null"), "{learned:?}");
        let noted = TEXT.replace("\"finish_reason\":null", "\"finish_reason\":\"stop\"");
        let texts = [
            TEXT.to_owned(),
            TEXT.replace("\"index\":0,", "")
                .replace("null}]}", "null,\"index\":3}]}"),
            TEXT.replace("null}]}", "null}],\"created\":18}"),
            TEXT.replace(" Paris", "x"),
            TEXT.replace("\"index\":0", "\"index\":1,\"token_ids\":[1]"),
            noted.clone(),
            TEXT.replace("chatcmpl-1", "chatcmpl-2"),
            TEXT.replace("}]}", "}],\"usage\":{}}"),
            TEXT.replace("}]}", "},{\"index\":1,\"delta\":{}}]}"),
            format!("{TEXT}x"),
            TEXT.trim_end_matches('}').to_owned(),
            TEXT.replace("\" Paris\"", "\"a\",\"role\":\"b\""),
            TEXT.replace(" Paris", "\\\"\\u00e9\\\\"),
            TEXT.replace(" Paris", "\\"),
            TEXT.replace(" Paris", "\n"),
            TEXT.replace("\" Paris\"", "\"\""),
            TEXT.replace("\" Paris\"", "\" "),
            TEXT.replace("\" Paris\"", "null"),
            TEXT.replace("\" Paris\"", "\"a\" "),
            TEXT.replace("\"content\"", "\"reasoning\""),
            TEXT.replace("\"content\"", "\"reasoning\"").replace("Paris", "x"),
            TEXT.replace("{\"content", "{\"role\":\"assistant\",\"content"),
            TEXT.replace("\"content\":", "\"content\":\"\",\"content\":"),
        ];
        let places = |chunk: &Chunk| {
            format!(
                "{:?} {:?} {:?} {:?} {}",
                chunk.known_head, chunk.usage, chunk.error, chunk.choices, chunk.carries
            )
        };
        // each behind each, so that it is read with whatever the one before has taught
        for text in texts
            .iter()
            .chain([&noted])
            .chain(&texts)
            .flat_map(|text| texts.iter().flat_map(move |before| [before, before, text]))
        {
            let mut fresh = Chunk::default();
            let result = fresh.read(text, head);
            assert_eq!(learned.read(text, head), result, "{text}");
            if result.is_ok() {
                assert_eq!(places(&learned), places(&fresh), "{text}");
            }
        }
        let mut text = TEXT.to_owned();
        for word in ["a", "b"] {
            text = TEXT.replace(" Paris", word);
            learned.read(&text, head).unwrap();
        }
        assert!(learned.read_moulded(&text, head), "{learned:?}");
    }

    #[test]
    fn what_must_not_be_dropped_is_seen() {
        for (text, chunk_carries, choice_carries) in [
            (r#"{"choices":[{"logprobs":{"content":[]},"delta":{}}]}"#, false, true),
            (r#"{"choices":[{"token_ids":[1],"delta":{}}]}"#, false, true),
            (r#"{"choices":[{"token_ids":null,"delta":{"audio":{}}}]}"#, false, true),
            (
                r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"prompt_token_ids":[1]}"#,
                true,
                false,
            ),
            (
                r#"{"choices":[{"index":0,"delta":{"content":"a"}}],"prompt_token_ids":null}"#,
                false,
                false,
            ),
        ] {
            let mut chunk = Chunk::default();
            chunk.read(text, "").unwrap();
            assert_eq!(
                (chunk.carries, chunk.choices[0].carries),
                (chunk_carries, choice_carries),
                "{text}"
            );
        }
    }

    #[test]
    fn every_cut_of_a_chunk_is_malformed() {
        let mut chunk = Chunk::default();
        for end in 0..TEXT.len() {
            assert!(chunk.read(&TEXT[..end], "").is_err(), "{}", &TEXT[..end]);
        }
        assert!(chunk.read(&format!("{TEXT}x"), "").is_err());
        assert!(chunk.read("[]", "").is_err());
        assert!(chunk.read(r#"{"choices":[{"index":-1}]}"#, "").is_err());
    }

    #[test]
    fn rebuild_does_member_by_member_what_it_says() {
        let fates = [Field::Keep, Field::Drop, Field::Set(b"[7]")];
        for object in [
            r#"{}"#,
            r#"{"a":1}"#,
            r#"{"a":1,"b":"x,\"","c":null}"#,
            r#"{"z":0,"a":1,"y":{"a":2},"b":[],"x":3,"c":4,"w":5}"#,
            r#"{"a" :1,"b": 2 , "c":3,"z":4}"#,
            "{\n \"z\":0,\"a\":1,\n \"c\":2,\"y\":3 }",
        ] {
            let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(object).unwrap();
            for (a, b, c) in (0..27).map(|at| (fates[at % 3], fates[at / 3 % 3], fates[at / 9])) {
                let fields = [("a", a), ("b", b), ("c", c)];
                let mut out = Vec::new();
                rebuild(object, &fields, &mut out).unwrap();
                let mut want = read.clone();
                for (key, field) in fields {
                    match field {
                        Field::Keep => {}
                        Field::Drop => drop(want.shift_remove(key)),
                        Field::Set(_) => drop(want.insert(key.to_owned(), serde_json::json!([7]))),
                    }
                }
                let got: serde_json::Map<_, _> = serde_json::from_slice(&out).unwrap();
                assert_eq!(
                    got.keys().collect::<Vec<_>>(),
                    want.keys().collect::<Vec<_>>(),
                    "{object}"
                );
                assert_eq!(got, want, "{object}");
            }
        }
        for broken in ["", "[]", "{\"a\"}", "{\"a\":1", "{\"a\":1,}"] {
            assert!(
                rebuild(broken, &[("a", Field::Drop)], &mut Vec::new()).is_err(),
                "{broken}"
            );
            assert!(
                with_member(broken, "a", &mut Vec::new(), |_, _| Ok(())).is_err(),
                "{broken}"
            );
        }
    }

    #[test]
    fn a_member_is_set_and_all_else_stays() {
        for (object, was, want) in [
            (r#"{}"#, None, r#"{"m":1}"#),
            ("{ }", None, r#"{ "m":1}"#),
            (r#"{"a": 2 }"#, None, r#"{"a": 2 ,"m":1}"#),
            (r#"{"m" : null, "a":2}"#, Some("null"), r#"{"m" : 1, "a":2}"#),
            (
                r#"{"a":{"m":5},"m":{"x":[]}}"#,
                Some(r#"{"x":[]}"#),
                r#"{"a":{"m":5},"m":1}"#,
            ),
            // Of two, readers take the last.
            (r#"{"m":3,"m":4}"#, Some("4"), r#"{"m":3,"m":1}"#),
        ] {
            let mut out = Vec::new();
            with_member(object, "m", &mut out, |value, out| {
                assert_eq!(value, was);
                out.push(b'1');
                Ok(())
            })
            .unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), want);
        }
    }

    #[test]
    fn rebuild_keeps_what_it_does_not_know() {
        let object = r#"{ "role" : "assistant", "content":null,"x":{"a":[1, 2]},"reasoning":"r" }"#;
        let mut out = Vec::new();
        let fields = [
            ("role", Field::Keep),
            ("content", Field::Set(b"\"c\"")),
            ("reasoning", Field::Drop),
            ("tool_calls", Field::Set(b"[]")),
        ];
        rebuild(object, &fields, &mut out).unwrap();
        let want = r#"{"role":"assistant","content":"c","x":{"a":[1, 2]},"tool_calls":[]}"#;
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }

    #[test]
    fn edits_apply_in_the_order_of_places() {
        let mut edits = Edits::default();
        edits.set(Span { start: 4, end: 5 }, b"EE");
        edits.set(Span { start: 0, end: 1 }, b"");
        let mut out = Vec::new();
        edits.apply("abcdef", &mut out);
        assert_eq!(out, b"bcdEEf");
    }

    #[test]
    fn strings_round_trip() {
        for text in ["", "plain", "é\n\"q\"\\", "\u{1}\u{2028}👩‍👩‍👧"] {
            let mut token = Vec::new();
            quote(text, &mut token);
            assert_eq!(unquote(std::str::from_utf8(&token).unwrap()).unwrap(), text);
        }
        assert_eq!(unquote(r#""\u00e9\/""#).unwrap(), "é/");
        assert!(unquote(r#""\ud83d""#).is_err());
    }
}
