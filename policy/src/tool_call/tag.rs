//! One tag, read at a `<`.
//!
//! `<tool_call>` in any case, spaced, plural or with a `name` attribute (B22), the XML dialect's `<function=…>`, and
//! `<think>` exactly as written. A tag is at most [`TAG_LIMIT`] bytes long, so that no more than that is ever held for one.

/// Longest tag, in bytes: `<tool_call name="…">` with OpenAI's 64 bytes of name and room to spare.
pub const TAG_LIMIT: usize = 256;

/// What stands at a `<`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tag {
    /// Could become a tag with more bytes.
    Partial,
    /// No tag.
    None,
    /// `<think>`; the tag's length is fixed.
    ThinkOpen,
    /// `</think>`.
    ThinkClose,
    /// `<tool_call>`, with the name of its attribute.
    CallOpen {
        /// Bytes of the tag.
        len: usize,
        /// `<tool_call name="…">`.
        name: Option<String>,
    },
    /// `</tool_call>`.
    CallClose {
        /// Bytes of the tag.
        len: usize,
    },
    /// `<function=NAME>`.
    Function {
        /// Bytes of the tag.
        len: usize,
        /// The function's name.
        name: String,
    },
    /// `<parameter=NAME>`.
    Parameter {
        /// Bytes of the tag.
        len: usize,
        /// The parameter's name.
        name: String,
    },
    /// `</function>`.
    FunctionClose {
        /// Bytes of the tag.
        len: usize,
    },
    /// `</parameter>`.
    ParameterClose {
        /// Bytes of the tag.
        len: usize,
    },
}

/// `<think>`.
pub(crate) const THINK_OPEN: &str = "<think>";
/// `</think>`.
pub(crate) const THINK_CLOSE: &str = "</think>";

impl Tag {
    /// Reads the tag at the start of `text`, which begins with `<`.
    pub(crate) fn read(text: &str) -> Tag {
        match Tag::think(text) {
            Tag::None => {}
            tag => return tag,
        }
        let window = floor(text, TAG_LIMIT);
        let mut reader = Reader { text: window, at: 1 };
        match reader.tag() {
            Err(Short) if text.len() >= TAG_LIMIT => Tag::None,
            Err(Short) => Tag::Partial,
            Ok(tag) => tag,
        }
    }

    /// Reads a think tag, and no other, at the start of `text`.
    pub(crate) fn think(text: &str) -> Tag {
        for (literal, tag) in [(THINK_OPEN, Tag::ThinkOpen), (THINK_CLOSE, Tag::ThinkClose)] {
            if text.starts_with(literal) {
                return tag;
            }
            if literal.starts_with(text) {
                return Tag::Partial;
            }
        }
        Tag::None
    }
}

/// `text` cut at or before `limit` bytes, on a character boundary.
pub(crate) fn floor(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The text ended before the tag did.
struct Short;

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn tag(&mut self) -> Result<Tag, Short> {
        self.spaces();
        let close = self.eat(b'/')?;
        if close {
            self.spaces();
        }
        let word = self.word()?;
        if word.eq_ignore_ascii_case("tool_call") || word.eq_ignore_ascii_case("tool_calls") {
            let name = if close { None } else { self.attribute()? };
            self.spaces();
            let ended = self.eat(b'>')?;
            let len = self.at;
            return Ok(match (ended, close) {
                (false, _) => Tag::None,
                (true, true) => Tag::CallClose { len },
                (true, false) => Tag::CallOpen { len, name },
            });
        }
        let function = word == "function";
        if !function && word != "parameter" {
            return Ok(Tag::None);
        }
        if close {
            self.spaces();
            let ended = self.eat(b'>')?;
            let len = self.at;
            return Ok(match (ended, function) {
                (false, _) => Tag::None,
                (true, true) => Tag::FunctionClose { len },
                (true, false) => Tag::ParameterClose { len },
            });
        }
        if !self.eat(b'=')? {
            return Ok(Tag::None);
        }
        let Some(name) = self.until_end()? else {
            return Ok(Tag::None);
        };
        let len = self.at;
        Ok(if function {
            Tag::Function { len, name }
        } else {
            Tag::Parameter { len, name }
        })
    }

    fn peek(&self) -> Result<u8, Short> {
        self.text.as_bytes().get(self.at).copied().ok_or(Short)
    }

    fn eat(&mut self, byte: u8) -> Result<bool, Short> {
        let found = self.peek()? == byte;
        self.at += usize::from(found);
        Ok(found)
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Ok(b' ' | b'\t')) {
            self.at += 1;
        }
    }

    /// A word that may still become one of ours: what can't is no reason to wait for more bytes.
    fn word(&mut self) -> Result<&str, Short> {
        let start = self.at;
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            if !(byte.is_ascii_alphabetic() || *byte == b'_') {
                return Ok(self.text.get(start..self.at).unwrap_or_default());
            }
            self.at += 1;
        }
        let word = self.text.get(start..).unwrap_or_default();
        let begins = |whole: &str| {
            whole
                .get(..word.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(word))
        };
        if begins("tool_calls") || begins("function") || begins("parameter") {
            Err(Short)
        } else {
            Ok("")
        }
    }

    /// ` name="search"`, with either quote.
    fn attribute(&mut self) -> Result<Option<String>, Short> {
        self.spaces();
        let start = self.at;
        for expected in *b"name" {
            if !self.peek()?.eq_ignore_ascii_case(&expected) {
                self.at = start;
                return Ok(None);
            }
            self.at += 1;
        }
        self.spaces();
        if !self.eat(b'=')? {
            self.at = start;
            return Ok(None);
        }
        self.spaces();
        let quote = self.peek()?;
        if quote != b'"' && quote != b'\'' {
            self.at = start;
            return Ok(None);
        }
        self.at += 1;
        let from = self.at;
        loop {
            match self.peek()? {
                byte if byte == quote => break,
                b'\n' | b'<' | b'>' => {
                    self.at = start;
                    return Ok(None);
                }
                _ => self.at += 1,
            }
        }
        let name = self.text.get(from..self.at).map(str::to_owned);
        self.at += 1;
        Ok(name)
    }

    /// A name up to `>`; none if the line or another tag comes first.
    fn until_end(&mut self) -> Result<Option<String>, Short> {
        let start = self.at;
        loop {
            match self.peek()? {
                b'>' => break,
                b'\n' | b'<' => return Ok(None),
                _ => self.at += 1,
            }
        }
        let name = self
            .text
            .get(start..self.at)
            .unwrap_or_default()
            .trim()
            .trim_matches('"');
        self.at += 1;
        Ok((!name.is_empty()).then(|| name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(len: usize, name: Option<&str>) -> Tag {
        Tag::CallOpen {
            len,
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn reads_every_spelling() {
        for (text, tag) in [
            ("<think>x", Tag::ThinkOpen),
            ("</think>", Tag::ThinkClose),
            ("<thi", Tag::Partial),
            ("<thinking>", Tag::None),
            ("<THINK>", Tag::None),
            ("<tool_call>x", open(11, None)),
            ("<TOOL_CALL>", open(11, None)),
            ("< tool_call >", open(13, None)),
            ("<tool_calls>", open(12, None)),
            ("<tool_call name=\"search\">", open(25, Some("search"))),
            ("<tool_call name='a b' >", open(23, Some("a b"))),
            ("<tool_call nam", Tag::Partial),
            ("<tool_call id=\"x\">", Tag::None),
            ("</ tool_call >", Tag::CallClose { len: 14 }),
            ("</tool_call", Tag::Partial),
            ("<tool_ca ll>", Tag::None),
            ("<tool>", Tag::None),
            ("< b", Tag::None),
            ("<", Tag::Partial),
            (
                "<function=search>",
                Tag::Function {
                    len: 17,
                    name: "search".into(),
                },
            ),
            ("<function=>", Tag::None),
            ("<function>", Tag::None),
            (
                "<parameter=q>",
                Tag::Parameter {
                    len: 13,
                    name: "q".into(),
                },
            ),
            ("</parameter>", Tag::ParameterClose { len: 12 }),
            ("</function>", Tag::FunctionClose { len: 11 }),
        ] {
            assert_eq!(Tag::read(text), tag, "{text:?}");
        }
    }

    #[test]
    fn a_tag_that_never_ends_is_given_up() {
        let long = format!("<tool_call name=\"{}", "é".repeat(TAG_LIMIT));
        assert_eq!(Tag::read(&long), Tag::None);
        assert_eq!(Tag::read(&format!("<{}", " ".repeat(TAG_LIMIT))), Tag::None);
    }
}
