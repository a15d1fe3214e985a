//! A strict walk over one JSON text that remembers places instead of building values.
//!
//! It accepts what serde_json accepts (a test holds the two together) and hands out [`Span`]s, so that a chunk is read in
//! one pass without an allocation and everything in it can be forwarded as it stands.

use std::fmt;

use crate::protocol::skim::bytes_equal;

/// Deepest nesting that is followed; vLLM's own answers reach 7.
const DEPTH_LIMIT: usize = 128;

/// A place in the text, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// Behind the last byte.
    pub end: usize,
}

impl Span {
    /// What stands there; empty if `text` isn't the text that was walked.
    pub fn of(self, text: &str) -> &str {
        text.get(self.start..self.end).unwrap_or_default()
    }
}

/// The text isn't what was expected at this byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in bytes.
    pub at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unexpected JSON at byte {}", self.at)
    }
}

impl std::error::Error for Malformed {}

pub(super) type Walked<T> = Result<T, Malformed>;

/// `token` is one JSON string, quotes included, and nothing else.
pub(super) fn is_string(token: &str) -> bool {
    let mut walk = Walk::new(token);
    walk.string().is_ok() && walk.at == token.len()
}

pub(super) struct Walk<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    pub(super) fn malformed<T>(&self) -> Walked<T> {
        Err(Malformed { at: self.at })
    }

    /// What hasn't been walked.
    pub(super) fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    pub(super) fn expect(&mut self, byte: u8) -> Walked<()> {
        self.skip_space();
        if self.peek() == Some(byte) {
            self.at += 1;
            return Ok(());
        }
        self.malformed()
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Walked<()> {
        self.skip_space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            self.malformed()
        }
    }

    /// Within an object, before a member or its end: the next key (raw, without quotes). The value comes next. `first` is
    /// true before the first member and is kept up by this function.
    pub(super) fn member(&mut self, first: &mut bool) -> Walked<Option<&'a str>> {
        if !self.goes_on(b'}', first)? {
            return Ok(None);
        }
        self.skip_space();
        let key = self.string()?;
        self.expect(b':')?;
        let inner = Span {
            start: key.start + 1,
            end: key.end - 1,
        };
        Ok(Some(inner.of(self.text)))
    }

    /// Within an array or object: whether another element comes before `close`.
    pub(super) fn goes_on(&mut self, close: u8, first: &mut bool) -> Walked<bool> {
        self.skip_space();
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(false);
        }
        if !std::mem::take(first) {
            self.expect(b',')?;
        }
        Ok(true)
    }

    /// Steps over a value of any kind.
    pub(super) fn value(&mut self) -> Walked<Span> {
        self.nested_value(0)
    }

    /// Steps over a value; `None` if it is null.
    pub(super) fn unless_null(&mut self) -> Walked<Option<Span>> {
        let span = self.value()?;
        Ok((span.of(self.text) != "null").then_some(span))
    }

    fn nested_value(&mut self, depth: usize) -> Walked<Span> {
        self.skip_space();
        let start = self.at;
        match self.peek() {
            Some(b'"') => return self.string(),
            Some(b'n') => self.literal("null")?,
            Some(b't') => self.literal("true")?,
            Some(b'f') => self.literal("false")?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'{') if depth < DEPTH_LIMIT => {
                self.at += 1;
                let mut first = true;
                while self.member(&mut first)?.is_some() {
                    self.nested_value(depth + 1)?;
                }
            }
            Some(b'[') if depth < DEPTH_LIMIT => {
                self.at += 1;
                let mut first = true;
                while self.goes_on(b']', &mut first)? {
                    self.nested_value(depth + 1)?;
                }
            }
            _ => return self.malformed(),
        }
        Ok(Span { start, end: self.at })
    }

    fn literal(&mut self, word: &str) -> Walked<()> {
        match self.text.get(self.at..) {
            Some(rest) if rest.starts_with(word) => self.at += word.len(),
            _ => return self.malformed(),
        }
        Ok(())
    }

    /// A string with its quotes. The walk stands at the opening one.
    fn string(&mut self) -> Walked<Span> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return self.malformed();
        }
        self.at += 1;
        loop {
            let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
            self.at += plain_bytes(rest);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Span { start, end: self.at });
                }
                Some(b'\\') => self.escape()?,
                _ => return self.malformed(),
            }
        }
    }

    fn escape(&mut self) -> Walked<()> {
        let rest = self.text.as_bytes().get(self.at + 1..).unwrap_or_default();
        match rest {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => self.at += 2,
            [b'u', a, b, c, d, ..] if [a, b, c, d].into_iter().all(u8::is_ascii_hexdigit) => self.at += 6,
            _ => return self.malformed(),
        }
        Ok(())
    }

    fn number(&mut self) -> Walked<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Walked<()> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { self.malformed() }
    }
}

/// How many bytes from the start on are neither a quote nor a backslash nor a control character: eight at a time.
#[inline]
fn plain_bytes(rest: &[u8]) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // As `bytes_equal`, of bytes below 0x20.
    let control = |word: u64| word.wrapping_sub(ONES * 0x20) & !word & (ONES << 7);
    let (words, tail) = rest.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let hits = bytes_equal(word, b'"') | bytes_equal(word, b'\\') | control(word);
        if hits != 0 {
            return index * 8 + hits.trailing_zeros() as usize / 8;
        }
    }
    let plain = tail
        .iter()
        .position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20);
    rest.len() - tail.len() + plain.unwrap_or(tail.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_string_stops_at_the_first_byte_that_is_not_plain() {
        let plain = |byte: u8| byte != b'"' && byte != b'\\' && byte >= 0x20;
        for len in 0..20 {
            for at in 0..len {
                for byte in 0..=255 {
                    for after in [b'"', b'\\', 0x1f, b' ', b'!', 0x7f, 0xff] {
                        let mut bytes = vec![b'a'; len];
                        bytes[at] = byte;
                        bytes[at + 1..].fill(after);
                        let wanted = bytes.iter().position(|&byte| !plain(byte)).unwrap_or(len);
                        assert_eq!(plain_bytes(&bytes), wanted, "{bytes:?}");
                    }
                }
            }
        }
    }

    fn walks(text: &str) -> bool {
        let mut walk = Walk::new(text);
        walk.value().and_then(|_| walk.end()).is_ok()
    }

    #[test]
    fn accepts_what_serde_accepts() {
        for text in [
            "{}",
            "[]",
            " [ 1 , {\"a\" : null} ] ",
            "\"\\u00e9\\n\"",
            "-0.5e+3",
            "01",
            "1.",
            "-",
            "+1",
            "nul",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":1,}",
            "{a:1}",
            "\"\\x\"",
            "\"\\u12g4\"",
            "\"a\nb\"",
            "[1 2]",
            "{\"a\":1 \"b\":2}",
            "true false",
            "",
            "\"",
            "[",
            "{",
            "{\"a\":",
            "\u{a0}1",
        ] {
            assert_eq!(
                walks(text),
                serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
                "{text:?}"
            );
        }
        assert!(walks(&("[".repeat(128) + &"]".repeat(128))));
        assert!(!walks(&("[".repeat(129) + &"]".repeat(129))));
    }

    proptest! {
        #[test]
        fn agrees_with_serde_on_damaged_text(cut in 0usize..400, with in "[\\[\\]{}:,\"\\\\ntfu0-9eE. -]{0,3}", skip in 0usize..3) {
            const TEXT: &str = r#"{"id":"x","created":17.5e3,"choices":[{"index":0,"delta":{"content":" \u00e9\n","a":[true,false,null,{}]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":-1}}"#;
            let cut = cut.min(TEXT.len());
            let damaged = format!("{}{with}{}", &TEXT[..cut], &TEXT[(cut + skip).min(TEXT.len())..]);
            prop_assert_eq!(walks(&damaged), serde_json::from_str::<serde::de::IgnoredAny>(&damaged).is_ok(), "{}", damaged);
        }
    }
}
