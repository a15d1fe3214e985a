//! A bounded, copy-free walk over JSON text: bytes in, spans of keys and values out.
//!
//! A [`Cursor`] goes over a document once, front to back. The caller enters the objects and arrays that it wants to read with
//! [`Cursor::members`] and [`Cursor::items`]; everything else is skipped, and what is skipped is checked all the same: brackets,
//! commas, colons, literals, number shapes, escapes, control characters, UTF-8. A walk that ends well ([`Cursor::end`]) has seen
//! valid JSON. Nothing recurses by the data's depth, nothing is allocated, and depth is bounded while it is counted.
//!
//! Cost: UTF-8 and control characters are looked for once, vectorised, over the whole document; strings are then skipped by words
//! and by `memchr2`, so that a 5 MB image is a matter of a fraction of a millisecond. Keys are compared *decoded*: `"mod\u0065l"`
//! is `model` to every JSON reader, so it must be here.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

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
        let text = std::str::from_utf8(document).map_err(|error| SkimError::NotUtf8 {
            at: error.valid_up_to(),
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
        let mut at = start;
        let mut escaped = false;
        loop {
            at = self.quote_or_backslash(at)?;
            if self.byte(at) == Some(b'"') {
                break;
            }
            escaped = true;
            at = self.escape(at)?;
        }
        let raw = self.text.get(start..at).unwrap_or_default();
        if self.controls
            && has_control(raw.as_bytes())
            && let Some(found) = raw.bytes().position(|byte| byte < 0x20)
        {
            return Err(SkimError::Control { at: start + found });
        }
        self.at = at + 1;
        Ok(Text { raw, escaped, start })
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
                Kind::String => drop(self.string()?),
                Kind::Number => self.number()?,
                Kind::Bool if self.peek() == Some(b't') => self.literal("true")?,
                Kind::Bool => self.literal("false")?,
                Kind::Null => self.literal("null")?,
            }
            // After a value: up through the levels that end here, then to the next value.
            loop {
                if self.depth == outer {
                    return Ok(start..self.at);
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

    /// Where the first quote or backslash from `at` on stands.
    #[inline]
    fn quote_or_backslash(&self, mut at: usize) -> Result<usize, SkimError> {
        let mut rest = self.text.as_bytes().get(at..).unwrap_or_default();
        for _ in 0..SHORT_STRING_WORDS {
            let Some((word, tail)) = rest.split_first_chunk::<8>() else {
                break;
            };
            let word = u64::from_le_bytes(*word);
            let hits = bytes_equal(word, b'"') | bytes_equal(word, b'\\');
            if hits != 0 {
                return Ok(at + hits.trailing_zeros() as usize / 8);
            }
            rest = tail;
            at += 8;
        }
        match memchr2(b'"', b'\\', rest) {
            Some(found) => Ok(at + found),
            None => Err(SkimError::Syntax {
                at: self.text.len(),
                expected: "the end of a string",
            }),
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

/// A string as it stands in the document, between its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a> {
    raw: &'a str,
    escaped: bool,
    start: usize,
}

impl<'a> Text<'a> {
    /// The text between the quotes, escapes as they are.
    pub fn raw(&self) -> &'a str {
        self.raw
    }

    /// Its place in the document, quotes included.
    pub fn span(&self) -> Range<usize> {
        self.start - 1..self.start + self.raw.len() + 1
    }

    /// Whether it says `word` once decoded.
    pub fn is(&self, word: &str) -> bool {
        match self.escaped {
            false => self.raw == word,
            true => self.chars().eq(word.chars()),
        }
    }

    /// Its characters, decoded as they are asked for. Half a surrogate pair, which no UTF-8 can hold, is U+FFFD.
    pub fn chars(&self) -> impl Iterator<Item = char> + use<'a> {
        Chars { rest: self.raw }
    }

    /// Decoded, if it is at most `limit` bytes then.
    pub fn decoded(&self, limit: usize) -> Option<Cow<'a, str>> {
        if !self.escaped {
            return (self.raw.len() <= limit).then_some(Cow::Borrowed(self.raw));
        }
        let mut text = String::new();
        for next in self.chars() {
            text.push(next);
            if text.len() > limit {
                return None;
            }
        }
        Some(Cow::Owned(text))
    }
}

/// Decodes the escapes of a checked string.
struct Chars<'a> {
    rest: &'a str,
}

impl Iterator for Chars<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        match self.take()? {
            '\\' => Some(match self.take()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => self.unicode(),
                plain => plain,
            }),
            plain => Some(plain),
        }
    }
}

impl Chars<'_> {
    fn take(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let next = chars.next()?;
        self.rest = chars.as_str();
        Some(next)
    }

    /// After `\u`: one code unit, or two if they are a pair.
    fn unicode(&mut self) -> char {
        let high = self.unit();
        if (0xD800..0xDC00).contains(&high)
            && let Some(rest) = self.rest.strip_prefix("\\u")
        {
            let mut ahead = Chars { rest };
            let low = ahead.unit();
            if (0xDC00..0xE000).contains(&low) {
                self.rest = ahead.rest;
                return char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)).unwrap_or('\u{FFFD}');
            }
        }
        char::from_u32(high).unwrap_or('\u{FFFD}')
    }

    fn unit(&mut self) -> u32 {
        let unit = self.rest.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        self.rest = self.rest.get(4..).unwrap_or_default();
        unit.unwrap_or(0xFFFD)
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
fn bytes_equal(word: u64, byte: u8) -> u64 {
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
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    use super::*;

    fn check(document: &[u8]) -> Result<(), SkimError> {
        let mut cursor = Cursor::new(document, 128)?;
        cursor.skip()?;
        cursor.end()
    }

    fn syntax(at: usize, expected: &'static str) -> Result<(), SkimError> {
        Err(SkimError::Syntax { at, expected })
    }

    #[test]
    fn errors_name_the_place() {
        let member = "`,` or `}`";
        let item = "`,` or `]`";
        let end = "the end of the document";
        for (document, wanted) in [
            ("", syntax(0, "a value")),
            ("  ", syntax(2, "a value")),
            ("{", syntax(1, "a key")),
            (r#"{"a""#, syntax(4, "`:`")),
            (r#"{"a":"#, syntax(5, "a value")),
            (r#"{"a":1"#, syntax(6, member)),
            (r#"{"a":1,"#, syntax(7, "a key")),
            (r#"{"a":1,}"#, syntax(7, "a key")),
            (r#"{,"a":1}"#, syntax(1, "a key")),
            (r#"{"a":1 "b":2}"#, syntax(7, member)),
            (r#"{"a":1]"#, syntax(6, member)),
            (r#"{a:1}"#, syntax(1, "a key")),
            (r#"{'a':1}"#, syntax(1, "a key")),
            ("[1 2]", syntax(3, item)),
            ("[1,]", syntax(3, "a value")),
            ("[1}", syntax(2, item)),
            ("[[1]", syntax(4, item)),
            ("]", syntax(0, "a value")),
            (r#""abc"#, syntax(4, "the end of a string")),
            (r#""abc\"#, syntax(4, "a valid escape")),
            (r#""abc\""#, syntax(6, "the end of a string")),
            (r#""a\x""#, syntax(2, "a valid escape")),
            (r#""a\u12g4""#, syntax(2, "a valid escape")),
            (r#""a\u12"#, syntax(2, "a valid escape")),
            ("\"a\nb\"", Err(SkimError::Control { at: 2 })),
            ("\"a\u{0}b\"", Err(SkimError::Control { at: 2 })),
            ("{\n\"a\tb\":1}", Err(SkimError::Control { at: 4 })),
            ("tru", syntax(0, "a value")),
            ("truee", syntax(4, end)),
            ("True", syntax(0, "a value")),
            ("nul", syntax(0, "a value")),
            ("NaN", syntax(0, "a value")),
            ("-Infinity", syntax(1, "a digit")),
            ("01", syntax(1, end)),
            ("-", syntax(1, "a digit")),
            ("1.", syntax(2, "a digit")),
            (".5", syntax(0, "a value")),
            ("1e", syntax(2, "a digit")),
            ("1e+", syntax(3, "a digit")),
            ("+1", syntax(0, "a value")),
            ("1 2", syntax(2, end)),
            ("{} x", syntax(3, end)),
            ("{}\u{0}", syntax(2, end)),
            ("\u{feff}{}", syntax(0, "a value")),
        ] {
            assert_eq!(check(document.as_bytes()), wanted, "{document:?}");
        }
        assert_eq!(check(b"\"ab\xff\""), Err(SkimError::NotUtf8 { at: 3 }));
        assert_eq!(
            check(
                "{}".encode_utf16()
                    .flat_map(u16::to_le_bytes)
                    .collect::<Vec<_>>()
                    .as_slice()
            ),
            syntax(1, "a key")
        );
        let long = "1".repeat(NUMBER_LIMIT_BYTES + 1);
        assert_eq!(check(long.as_bytes()), Err(SkimError::Number { at: 0 }));
        assert_eq!(check(&long.as_bytes()[1..]), Ok(()));
    }

    #[test]
    fn depth_is_counted_wherever_it_grows() {
        let nested = |levels: usize| "[{\"a\":".repeat(levels / 2) + "1" + &"}]".repeat(levels / 2);
        assert_eq!(check(nested(128).as_bytes()), Ok(()));
        assert_eq!(
            check(nested(130).as_bytes()),
            Err(SkimError::Depth { at: 64 * 6, limit: 128 })
        );
        // An endless bracket costs no more than the limit.
        assert_eq!(
            check("[".repeat(1_000_000).as_bytes()),
            Err(SkimError::Depth { at: 128, limit: 128 })
        );
        // The caller's own levels and skipped ones add up.
        let mut cursor = Cursor::new(br#"{"a":[[1]]}"#, 2).unwrap();
        let deep = cursor.members(|cursor, _| cursor.items(|_, _| Ok::<(), SkimError>(())).map(drop));
        assert_eq!(deep, Err(SkimError::Depth { at: 6, limit: 2 }));
        // No limit lifts the walk's own.
        let mut cursor = Cursor::new(b"[", u32::MAX).unwrap();
        assert_eq!(cursor.depth_limit, DEPTH_LIMIT_MAX);
        assert!(cursor.skip().is_err());
        let deepest = "[".repeat(DEPTH_LIMIT_MAX as usize) + &"]".repeat(DEPTH_LIMIT_MAX as usize);
        assert!(Cursor::new(deepest.as_bytes(), u32::MAX).unwrap().skip().is_ok());
    }

    #[test]
    fn keys_compare_decoded() {
        for (raw, word, same) in [
            (r#""model""#, "model", true),
            (r#""mod\u0065l""#, "model", true),
            (r#""\u006d\u006F\u0064\u0065\u006c""#, "model", true),
            (r#""model ""#, "model", false),
            (r#""Model""#, "model", false),
            (r#""mod\u0065""#, "model", false),
            (r#""mod\u0065lx""#, "model", false),
            (r#""a\/b\n\t\"\\""#, "a/b\n\t\"\\", true),
            (r#""\ud83d\ude00""#, "😀", true),
            (r#""\ud83dx""#, "\u{FFFD}x", true),
            (r#""\ude00\ud83d""#, "\u{FFFD}\u{FFFD}", true),
            (r#""\ud83d\u0041""#, "\u{FFFD}A", true),
        ] {
            let text = Cursor::new(raw.as_bytes(), 1).unwrap().string().unwrap();
            assert_eq!(text.is(word), same, "{raw}");
            assert_eq!(text.decoded(64).unwrap() == word, same, "{raw}");
        }
    }

    #[test]
    fn decoding_is_bounded() {
        let text = Cursor::new(br#""abc\n""#, 1).unwrap().string().unwrap();
        assert_eq!(text.decoded(4).as_deref(), Some("abc\n"));
        assert_eq!(text.decoded(3), None);
        let text = Cursor::new(br#""abcd""#, 1).unwrap().string().unwrap();
        assert_eq!(text.decoded(4).as_deref(), Some("abcd"));
        assert_eq!(text.decoded(3), None);
    }

    #[test]
    fn a_value_may_be_read_or_left() {
        let document = r#" { "a" : [1, {"b": 2}] , "c":"x" , "d" : {} } "#;
        let mut cursor = Cursor::new(document.as_bytes(), 8).unwrap();
        let mut seen = Vec::new();
        let span = cursor.members(|cursor, key| {
            if key.is("c") {
                seen.push(cursor.string()?.raw().to_owned());
            } else if key.is("a") {
                let start = cursor.offset();
                cursor.items(|cursor, index| {
                    seen.push(format!("{index} {:?}", cursor.kind()?));
                    Ok::<(), SkimError>(())
                })?;
                seen.push(cursor.raw(start..cursor.offset()).to_owned());
            }
            Ok::<(), SkimError>(())
        });
        assert_eq!(seen, ["0 Number", "1 Object", r#"[1, {"b": 2}]"#, "x"]);
        assert_eq!(span, Ok(1..document.len() - 1));
        assert_eq!(cursor.end(), Ok(()));
    }

    #[test]
    fn every_length_of_string_is_skipped_right() {
        // Across the borders of words and of the SIMD search.
        for length in 0..200 {
            for tail in ["\"", "\\\"\"", "\\u00e9\"", "é\""] {
                let document = format!("\"{}{tail}", "x".repeat(length));
                let mut cursor = Cursor::new(document.as_bytes(), 1).unwrap();
                assert_eq!(cursor.skip(), Ok(0..document.len()), "{length} {tail}");
                let cut = &document[..document.len() - 1];
                assert!(check(cut.as_bytes()).is_err(), "{cut}");
            }
        }
    }

    /// Random JSON text, white space and escapes included.
    pub(crate) fn json() -> impl Strategy<Value = String> {
        let white = "[ \n\r\t]{0,2}";
        let string = r#""([ -!#-\[\]-~éüß漢😀]|\\[bfnrt/"\\]|\\u[0-9a-fA-F]{4}){0,12}""#;
        let leaf = prop_oneof![
            "null|true|false",
            "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
            string
        ];
        leaf.prop_recursive(4, 40, 6, move |inner| {
            let spaced = (white, inner, white).prop_map(|(left, value, right)| format!("{left}{value}{right}"));
            let member =
                (white, string, white, spaced.clone()).prop_map(|(a, key, b, value)| format!("{a}{key}{b}:{value}"));
            prop_oneof![
                (prop::collection::vec(spaced, 0..6)).prop_map(|items| format!("[{}]", items.join(","))),
                (prop::collection::vec(member, 0..6)).prop_map(|members| format!("{{{}}}", members.join(","))),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_json_is_accepted(document in json()) {
            prop_assert_eq!(check(document.as_bytes()), Ok(()));
        }

        #[test]
        fn agrees_with_serde_on_damaged_json(document in json(), at in any::<prop::sample::Index>(), with in "[\\[\\]{}:,\"\\\\0-9tfn.eE+\\-\u{0}-\u{20}a]{0,2}", cut in 0usize..3) {
            let at = document.floor_char_boundary(at.index(document.len() + 1));
            let to = document.ceil_char_boundary((at + cut).min(document.len()));
            let damaged = format!("{}{with}{}", &document[..at], &document[to..]);
            let serde = serde_json::from_str::<IgnoredAny>(&damaged).is_ok();
            prop_assert_eq!(check(damaged.as_bytes()).is_ok(), serde, "{:?}", damaged);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let serde = std::str::from_utf8(&bytes).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
            prop_assert_eq!(check(&bytes).is_ok(), serde);
        }

        #[test]
        fn strings_decode_as_serde_decodes_them(text in "\\PC{0,40}", escape in any::<bool>()) {
            let raw = match escape {
                true => format!("\"{}\"", text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect::<String>()),
                false => serde_json::to_string(&text).unwrap(),
            };
            let read = Cursor::new(raw.as_bytes(), 1).unwrap().string().unwrap();
            prop_assert!(read.is(&text));
            let decoded = read.decoded(usize::MAX);
            prop_assert_eq!(decoded.as_deref(), Some(text.as_str()));
        }
    }
}
