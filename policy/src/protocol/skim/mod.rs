//! A bounded, copy-free walk over JSON text: bytes in, spans of keys and values out.
//!
//! A `Cursor` goes over a document once, front to back. The caller enters the objects and arrays that it wants to read with
//! `Cursor::members` and `Cursor::items`; everything else is skipped, and what is skipped is checked all the same: brackets,
//! commas, colons, literals, number shapes, escapes, control characters, UTF-8. A walk that ends well (`Cursor::end`) has seen
//! valid JSON. Nothing recurses by the data's depth, nothing is allocated, and depth is bounded while it is counted.
//!
//! Cost: UTF-8 and control characters are looked for once, vectorised, over the whole document; strings are then skipped by words
//! and by `memchr2`, so that a 5 MB image is a matter of a fraction of a millisecond. Keys are compared *decoded*: `"mod\u0065l"`
//! is `model` to every JSON reader, so it must be here.

mod text;

use std::ops::Range;

use memchr::memchr2;

pub use self::text::Text;

/// Deepest nesting that any limit can allow: levels of a skipped value are one bit each in an array on the stack.
pub const DEPTH_LIMIT_MAX: u32 = 512;

/// Longest number, in bytes: Python refuses integers of more than 4,300 digits, and not with a 400.
const NUMBER_LIMIT_BYTES: usize = 1024;

/// Bytes of a string that are looked at word by word before `memchr2`, whose start costs more than a short string.
const SHORT_STRING_WORDS: usize = 4;

/// Why a document isn't read on. `at` is the byte offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SkimError {
    /// Not UTF-8.
    #[error("not UTF-8 at byte {at}")]
    NotUtf8 {
        /// First byte that isn't.
        at: usize,
    },
    /// Something else was expected, or the text ends here.
    #[error("expected {expected} at byte {at}")]
    Syntax {
        /// Where it was expected.
        at: usize,
        /// In words.
        expected: &'static str,
    },
    /// An unescaped control character inside a string.
    #[error("unescaped control character in a string at byte {at}")]
    Control {
        /// The character.
        at: usize,
    },
    /// Deeper than the limit.
    #[error("nested deeper than {limit} levels at byte {at}")]
    Depth {
        /// The bracket that is one too many.
        at: usize,
        /// The limit.
        limit: u32,
    },
    /// A number too long for any reader.
    #[error("number longer than {NUMBER_LIMIT_BYTES} bytes at byte {at}")]
    Number {
        /// Its first byte.
        at: usize,
    },
}

/// What the next value is, told by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A digit or `-`.
    Number,
    /// `t`, `f`
    Bool,
    /// `n`
    Null,
}

impl Kind {
    /// For messages: "an array".
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Object => "an object",
            Kind::Array => "an array",
            Kind::String => "a string",
            Kind::Number => "a number",
            Kind::Bool => "a boolean",
            Kind::Null => "null",
        }
    }
}

/// A place in a JSON document, between two tokens.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    depth_limit: u32,
    /// Whether the document has any byte below 0x20 at all; if not, no string is searched for one.
    controls: bool,
}

impl<'a> Cursor<'a> {
    /// A cursor before the document's value. `depth_limit` above [`DEPTH_LIMIT_MAX`] counts as that.
    ///
    /// # Errors
    /// [`SkimError::NotUtf8`].
    pub fn new(document: &'a [u8], depth_limit: u32) -> Result<Self, SkimError> {
        let text = simdutf8::basic::from_utf8(document).map_err(|_| SkimError::NotUtf8 {
            at: std::str::from_utf8(document)
                .err()
                .map_or(0, |error| error.valid_up_to()),
        })?;
        let controls = has_control(document);
        Ok(Cursor {
            text,
            at: 0,
            depth: 0,
            depth_limit: depth_limit.min(DEPTH_LIMIT_MAX),
            controls,
        })
    }

    /// Kind of the next value.
    ///
    /// # Errors
    /// [`SkimError::Syntax`] if no value begins here.
    pub fn kind(&mut self) -> Result<Kind, SkimError> {
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            _ => Err(self.expected("a value")),
        }
    }

    /// Enters an object and calls `each` with the cursor before each member's value. A value that `each` doesn't read is skipped; if
    /// it reads, it reads that value whole. Returns the object's span, brackets included.
    ///
    /// # Errors
    /// What `each` returns, and any [`SkimError`], [`SkimError::Syntax`] too if this isn't an object.
    pub fn members<E: From<SkimError>>(
        &mut self,
        mut each: impl FnMut(&mut Self, Text<'a>) -> Result<(), E>,
    ) -> Result<Range<usize>, E> {
        let start = self.open(b'{', "an object")?;
        let mut more = !self.closes(b'}');
        while more {
            let key = self.key()?;
            self.value(|cursor| each(cursor, key))?;
            more = self.comma_or(b'}', "`,` or `}`")?;
        }
        Ok(start..self.at)
    }

    /// Enters an array and calls `each` with the cursor before each item, and its index; otherwise like [`Cursor::members`].
    ///
    /// # Errors
    /// As [`Cursor::members`].
    pub fn items<E: From<SkimError>>(
        &mut self,
        mut each: impl FnMut(&mut Self, usize) -> Result<(), E>,
    ) -> Result<Range<usize>, E> {
        let start = self.open(b'[', "an array")?;
        let mut more = !self.closes(b']');
        let mut index = 0;
        while more {
            self.value(|cursor| each(cursor, index))?;
            index += 1;
            more = self.comma_or(b']', "`,` or `]`")?;
        }
        Ok(start..self.at)
    }

    /// Reads a string.
    ///
    /// # Errors
    /// Any [`SkimError`], [`SkimError::Syntax`] too if this isn't a string.
    pub fn string(&mut self) -> Result<Text<'a>, SkimError> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("a string"));
        }
        let start = self.at + 1;
        let (at, escaped) = self.closing_quote(start)?;
        let raw = self.text.get(start..at).unwrap_or_default();
        if self.controls
            && has_control(raw.as_bytes())
            && let Some(found) = raw.bytes().position(|byte| byte < 0x20)
        {
            return Err(SkimError::Control { at: start + found });
        }
        self.at = at + 1;
        Ok(Text::new(raw, escaped, start))
    }

    /// Reads `true` or `false`; none, and nothing read, if the next value is something else.
    ///
    /// # Errors
    /// Any [`SkimError`].
    pub fn boolean(&mut self) -> Result<Option<bool>, SkimError> {
        if self.kind()? != Kind::Bool {
            return Ok(None);
        }
        let value = self.peek() == Some(b't');
        self.skip()?;
        Ok(Some(value))
    }

    /// Skips a value of any kind, checking it, and returns its span.
    ///
    /// # Errors
    /// Any [`SkimError`].
    pub fn skip(&mut self) -> Result<Range<usize>, SkimError> {
        self.white();
        let start = self.at;
        match self.kind()? {
            Kind::Object | Kind::Array => self.skip_nested()?,
            scalar => self.skip_scalar(scalar)?,
        }
        Ok(start..self.at)
    }

    fn skip_scalar(&mut self, kind: Kind) -> Result<(), SkimError> {
        match kind {
            Kind::String => self.string().map(drop),
            Kind::Number => self.number(),
            Kind::Bool if self.peek() == Some(b't') => self.literal("true"),
            Kind::Bool => self.literal("false"),
            Kind::Null => self.literal("null"),
            Kind::Object | Kind::Array => self.skip_nested(),
        }
    }

    /// Skips an object or array with all that is in it, without recursion.
    fn skip_nested(&mut self) -> Result<(), SkimError> {
        let mut levels = Levels::default();
        let outer = self.depth;
        loop {
            match self.kind()? {
                Kind::Object => {
                    self.open(b'{', "an object")?;
                    if !self.closes(b'}') {
                        levels.push(self.depth - outer, true);
                        self.key()?;
                        continue;
                    }
                }
                Kind::Array => {
                    self.open(b'[', "an array")?;
                    if !self.closes(b']') {
                        levels.push(self.depth - outer, false);
                        continue;
                    }
                }
                scalar => self.skip_scalar(scalar)?,
            }
            // After a value: up through the levels that end here, then to the next value.
            loop {
                if self.depth == outer {
                    return Ok(());
                }
                let in_object = levels.is_object(self.depth - outer);
                let more = match in_object {
                    true => self.comma_or(b'}', "`,` or `}`")?,
                    false => self.comma_or(b']', "`,` or `]`")?,
                };
                if more {
                    if in_object {
                        self.key()?;
                    }
                    break;
                }
            }
        }
    }

    /// Checks that nothing but white space follows.
    ///
    /// # Errors
    /// [`SkimError::Syntax`].
    pub fn end(&mut self) -> Result<(), SkimError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.expected("the end of the document")),
        }
    }

    /// How far the walk has come, in bytes.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// The text of a span of this document.
    pub fn raw(&self, span: Range<usize>) -> &'a str {
        self.text.get(span).unwrap_or_default()
    }

    /// Calls `each` and skips the value if it was left unread.
    fn value<E: From<SkimError>>(&mut self, each: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        self.white();
        let before = self.at;
        each(self)?;
        if self.at == before {
            self.skip()?;
        }
        Ok(())
    }

    /// A member's key and its colon.
    fn key(&mut self) -> Result<Text<'a>, SkimError> {
        if self.peek() != Some(b'"') {
            return Err(self.expected("a key"));
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return Err(self.expected("`:`"));
        }
        self.at += 1;
        Ok(key)
    }

    fn open(&mut self, bracket: u8, expected: &'static str) -> Result<usize, SkimError> {
        if self.peek() != Some(bracket) {
            return Err(self.expected(expected));
        }
        if self.depth >= self.depth_limit {
            return Err(SkimError::Depth {
                at: self.at,
                limit: self.depth_limit,
            });
        }
        self.depth += 1;
        self.at += 1;
        Ok(self.at - 1)
    }

    /// Steps out of the object or array if it ends here.
    fn closes(&mut self, bracket: u8) -> bool {
        let closes = self.peek() == Some(bracket);
        if closes {
            self.at += 1;
            self.depth -= 1;
        }
        closes
    }

    /// After a value: true past a comma, false past the end of the object or array.
    fn comma_or(&mut self, bracket: u8, expected: &'static str) -> Result<bool, SkimError> {
        if self.closes(bracket) {
            return Ok(false);
        }
        if self.peek() != Some(b',') {
            return Err(self.expected(expected));
        }
        self.at += 1;
        Ok(true)
    }

    /// Where the string that begins at `at` ends: its closing quote, and whether it has escapes. Prose full of `\n` and `\"` has
    /// a special byte every few bytes, so words and escapes are one loop.
    #[inline]
    fn closing_quote(&self, mut at: usize) -> Result<(usize, bool), SkimError> {
        let bytes = self.text.as_bytes();
        let mut escaped = false;
        let mut plain_words = 0;
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            match rest.first_chunk::<8>() {
                Some(word) if plain_words < SHORT_STRING_WORDS => {
                    let word = u64::from_le_bytes(*word);
                    let hits = bytes_equal(word, b'"') | bytes_equal(word, b'\\');
                    if hits == 0 {
                        at += 8;
                        plain_words += 1;
                        continue;
                    }
                    at += hits.trailing_zeros() as usize / 8;
                }
                _ => at += memchr2(b'"', b'\\', rest).unwrap_or(rest.len()),
            }
            match bytes.get(at) {
                Some(b'"') => return Ok((at, escaped)),
                Some(_) => {
                    at = self.escape(at)?;
                    escaped = true;
                    plain_words = 0;
                }
                None => {
                    return Err(SkimError::Syntax {
                        at,
                        expected: "the end of a string",
                    });
                }
            }
        }
    }

    /// Checks the escape whose backslash is at `at` and returns where it ends.
    #[inline]
    fn escape(&self, at: usize) -> Result<usize, SkimError> {
        match self.byte(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u')
                if self
                    .text
                    .as_bytes()
                    .get(at + 2..at + 6)
                    .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
            {
                Ok(at + 6)
            }
            _ => Err(SkimError::Syntax {
                at,
                expected: "a valid escape",
            }),
        }
    }

    fn literal(&mut self, word: &'static str) -> Result<(), SkimError> {
        if !self
            .text
            .as_bytes()
            .get(self.at..)
            .is_some_and(|rest| rest.starts_with(word.as_bytes()))
        {
            return Err(self.expected("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), SkimError> {
        let start = self.at;
        let mut at = start + usize::from(self.byte(start) == Some(b'-'));
        at = match self.byte(at) {
            Some(b'0') => at + 1,
            _ => self.digits(at)?,
        };
        if self.byte(at) == Some(b'.') {
            at = self.digits(at + 1)?;
        }
        if matches!(self.byte(at), Some(b'e' | b'E')) {
            at += 1 + usize::from(matches!(self.byte(at + 1), Some(b'+' | b'-')));
            at = self.digits(at)?;
        }
        if at - start > NUMBER_LIMIT_BYTES {
            return Err(SkimError::Number { at: start });
        }
        self.at = at;
        Ok(())
    }

    /// One digit or more; where they end.
    fn digits(&self, start: usize) -> Result<usize, SkimError> {
        let rest = self.text.as_bytes().get(start..).unwrap_or_default();
        match rest.iter().take_while(|byte| byte.is_ascii_digit()).count() {
            0 => Err(SkimError::Syntax {
                at: start,
                expected: "a digit",
            }),
            count => Ok(start + count),
        }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// The next byte that isn't white space.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        match self.byte(self.at) {
            Some(byte) if byte > b' ' => Some(byte),
            _ => {
                self.white();
                self.byte(self.at)
            }
        }
    }

    fn white(&mut self) {
        while matches!(self.byte(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn expected(&self, expected: &'static str) -> SkimError {
        SkimError::Syntax { at: self.at, expected }
    }
}

/// For each level of a skipped value, whether it is an object.
#[derive(Default)]
struct Levels {
    bits: [u64; DEPTH_LIMIT_MAX as usize / 64 + 1],
}

impl Levels {
    fn push(&mut self, level: u32, object: bool) {
        if let Some(word) = self.bits.get_mut(level as usize / 64) {
            let bit = 1 << (level % 64);
            *word = if object { *word | bit } else { *word & !bit };
        }
    }

    fn is_object(&self, level: u32) -> bool {
        self.bits
            .get(level as usize / 64)
            .is_some_and(|word| word >> (level % 64) & 1 == 1)
    }
}

/// The top bit of each byte of `word` that equals `byte`; bytes above the lowest hit may be wrong, the lowest is right.
#[inline]
pub(crate) fn bytes_equal(word: u64, byte: u8) -> u64 {
    const LOW: u64 = 0x0101_0101_0101_0101;
    let zeros = word ^ (LOW * u64::from(byte));
    zeros.wrapping_sub(LOW) & !zeros & (LOW << 7)
}

/// Whether any byte is below 0x20; written so that the compiler vectorises it.
fn has_control(bytes: &[u8]) -> bool {
    let (blocks, rest) = bytes.as_chunks::<256>();
    let block_has = |block: &[u8]| block.iter().fold(0u8, |any, &byte| any | u8::from(byte < 0x20)) != 0;
    blocks.iter().any(|block| block_has(block)) || block_has(rest)
}

#[cfg(test)]
pub(crate) mod tests;
