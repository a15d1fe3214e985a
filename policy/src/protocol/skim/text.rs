//! A JSON string as it was received, decoded only as far as somebody asks.

use std::borrow::Cow;
use std::ops::Range;

/// A string as it stands in the document, between its quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a> {
    raw: &'a str,
    escaped: bool,
    start: usize,
}

impl<'a> Text<'a> {
    /// `raw` has been checked; `start` is its offset in the document.
    pub(super) fn new(raw: &'a str, escaped: bool, start: usize) -> Self {
        Text { raw, escaped, start }
    }

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
