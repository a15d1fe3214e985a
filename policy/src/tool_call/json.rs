//! Strict JSON (RFC 8259), recognised as it comes.
//!
//! [`Json`] remembers its state between pushes and looks at each byte once: the scanner knows where a value ends without
//! reading the buffer again. [`members`] and [`elements`] walk a value that was recognised, by span, so that what the model
//! wrote is copied and never re-serialised.

use memchr::memchr3;
use std::ops::Range;

/// Deepest nesting of a call, as for requests (B4).
pub(crate) const DEPTH_LIMIT: usize = 128;
/// Most members, elements, parameters or calls that are told apart in one place; a walk stops one behind it.
pub(crate) const PARTS_LIMIT: usize = 1024;

/// A recogniser of one object or array.
#[derive(Debug, Clone)]
pub(crate) struct Json {
    /// What each open bracket is: true for an object.
    open: Vec<bool>,
    state: State,
    /// Strings begun so far.
    strings: usize,
    /// The last byte of a string's text that isn't white space, or its quote.
    tail: u8,
    /// The last byte was a closing quote.
    behind_quote: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value must follow.
    Value,
    /// Behind `[`: a value or `]`.
    FirstValue,
    /// Behind `{`: a key or `}`.
    FirstKey,
    /// Behind `,` in an object.
    Key,
    Colon,
    /// Behind a value: `,` or the closing bracket.
    Next,
    Str {
        key: bool,
        at: InString,
    },
    Word {
        rest: &'static [u8],
    },
    Number(Number),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InString {
    Text,
    Escape,
    /// Hex digits still to come.
    Hex(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Int,
    Point,
    Fraction,
    E,
    Sign,
    Exponent,
}

/// How far a push came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All bytes fit so far.
    More,
    /// The value ends before this offset.
    Done(usize),
    /// A `<` inside a string stands at this offset: look at it, then push from there with `from_tag`.
    TagInString(usize),
    /// The byte at this offset is not JSON.
    Bad(usize),
}

impl Json {
    /// A recogniser whose first byte must be `{` or `[`.
    pub(crate) fn new() -> Self {
        Json {
            open: Vec::new(),
            state: State::Value,
            strings: 0,
            tail: 0,
            behind_quote: false,
        }
    }

    /// A string just ended, but not really: `bad` stands right behind its quote, and its text doesn't look like structure.
    pub(crate) fn goes_on(&self, bad: Option<u8>) -> bool {
        let structure = |byte| matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':');
        let text = bad.is_some_and(|bad| !structure(bad) && bad != b'"' && !space(char::from(bad)));
        self.behind_quote && text && !structure(self.tail)
    }

    /// The number of the string that is being read, if one is.
    pub(crate) fn in_string(&self) -> Option<usize> {
        matches!(self.state, State::Str { .. }).then_some(self.strings)
    }

    /// A `<` that comes next is text of a string (behind a backslash it is a bad escape).
    pub(crate) fn takes_tag(&self) -> bool {
        matches!(self.state, State::Str { at: InString::Text, .. })
    }

    /// Reads on; `from_tag` says that `bytes` begins with a `<` of a string that has been looked at.
    pub(crate) fn push(&mut self, bytes: &[u8], from_tag: bool) -> Progress {
        let mut at = usize::from(from_tag);
        if from_tag {
            self.tail = b'<';
        }
        while let Some(&byte) = bytes.get(at) {
            if let State::Str {
                key,
                at: InString::Text,
            } = self.state
            {
                match self.string(bytes, at, key) {
                    Ok(next) => at = next,
                    Err(progress) => return progress,
                }
                continue;
            }
            match self.step(byte) {
                Step::Take => at += 1,
                Step::Again => {}
                Step::Bad => return Progress::Bad(at),
                Step::End => return Progress::Done(at + 1),
            }
        }
        Progress::More
    }

    /// Inside a string: jumps to the byte that matters.
    fn string(&mut self, bytes: &[u8], at: usize, key: bool) -> Result<usize, Progress> {
        let rest = bytes.get(at..).unwrap_or_default();
        let end = memchr3(b'"', b'\\', b'<', rest).unwrap_or(rest.len());
        let text = rest.get(..end).unwrap_or_default();
        if let Some(control) = text.iter().position(|byte| *byte < 0x20) {
            return Err(Progress::Bad(at + control));
        }
        if let Some(last) = text.iter().rfind(|byte| **byte != b' ') {
            self.tail = *last;
        }
        match rest.get(end) {
            Some(b'"') => {
                self.state = if key { State::Colon } else { State::Next };
                self.behind_quote = true;
                Ok(at + end + 1)
            }
            Some(b'\\') => {
                self.tail = b'\\';
                self.state = State::Str {
                    key,
                    at: InString::Escape,
                };
                Ok(at + end + 1)
            }
            Some(_) => Err(Progress::TagInString(at + end)),
            None => Ok(at + end),
        }
    }

    fn step(&mut self, byte: u8) -> Step {
        let space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.state {
            State::Value | State::FirstValue | State::FirstKey | State::Key | State::Colon | State::Next if space => {
                self.behind_quote = false;
                Step::Take
            }
            State::FirstValue if byte == b']' => self.close(false),
            State::FirstKey if byte == b'}' => self.close(true),
            State::Value | State::FirstValue => self.value(byte),
            State::FirstKey | State::Key if byte == b'"' => self.begin_string(true),
            State::Colon if byte == b':' => self.go(State::Value),
            State::Next => match (byte, self.open.last()) {
                (b',', Some(true)) => self.go(State::Key),
                (b',', Some(false)) => self.go(State::Value),
                (b'}', Some(true)) => self.close(true),
                (b']', Some(false)) => self.close(false),
                _ => Step::Bad,
            },
            State::Str { key, at } => self.escape(byte, key, at),
            State::Word { rest } => match rest.split_first() {
                Some((first, rest)) if *first == byte => self.go(if rest.is_empty() {
                    State::Next
                } else {
                    State::Word { rest }
                }),
                _ => Step::Bad,
            },
            State::Number(number) => self.number(byte, number),
            State::FirstKey | State::Key | State::Colon => Step::Bad,
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.behind_quote = false;
        self.state = state;
        Step::Take
    }

    fn begin_string(&mut self, key: bool) -> Step {
        self.strings += 1;
        self.tail = b'"';
        self.go(State::Str {
            key,
            at: InString::Text,
        })
    }

    fn value(&mut self, byte: u8) -> Step {
        if self.open.is_empty() && !matches!(byte, b'{' | b'[') {
            return Step::Bad;
        }
        match byte {
            b'{' | b'[' if self.open.len() >= DEPTH_LIMIT => Step::Bad,
            b'{' => {
                self.open.push(true);
                self.go(State::FirstKey)
            }
            b'[' => {
                self.open.push(false);
                self.go(State::FirstValue)
            }
            b'"' => self.begin_string(false),
            b't' => self.go(State::Word { rest: b"rue" }),
            b'f' => self.go(State::Word { rest: b"alse" }),
            b'n' => self.go(State::Word { rest: b"ull" }),
            b'-' => self.go(State::Number(Number::Minus)),
            b'0' => self.go(State::Number(Number::Zero)),
            b'1'..=b'9' => self.go(State::Number(Number::Int)),
            _ => Step::Bad,
        }
    }

    fn close(&mut self, object: bool) -> Step {
        if self.open.pop() != Some(object) {
            return Step::Bad;
        }
        self.state = State::Next;
        if self.open.is_empty() { Step::End } else { Step::Take }
    }

    fn escape(&mut self, byte: u8, key: bool, at: InString) -> Step {
        let next = match (at, byte) {
            (InString::Escape, b'u') => InString::Hex(4),
            (InString::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => InString::Text,
            (InString::Hex(1), byte) if byte.is_ascii_hexdigit() => InString::Text,
            (InString::Hex(left), byte) if byte.is_ascii_hexdigit() => InString::Hex(left - 1),
            _ => return Step::Bad,
        };
        self.go(State::Str { key, at: next })
    }

    fn number(&mut self, byte: u8, number: Number) -> Step {
        use Number::{E, Exponent, Fraction, Int, Minus, Point, Sign, Zero};
        let next = match (number, byte) {
            (Minus, b'0') => Zero,
            (Minus | Int, b'0'..=b'9') => Int,
            (Zero | Int, b'.') => Point,
            (Point | Fraction, b'0'..=b'9') => Fraction,
            (Zero | Int | Fraction, b'e' | b'E') => E,
            (E, b'+' | b'-') => Sign,
            (E | Sign | Exponent, b'0'..=b'9') => Exponent,
            (Zero | Int | Fraction | Exponent, _) => {
                self.state = State::Next;
                return Step::Again;
            }
            _ => return Step::Bad,
        };
        self.go(State::Number(next))
    }
}

enum Step {
    Take,
    Again,
    Bad,
    End,
}

/// `text` is one strict JSON object or array, white space around it allowed.
pub(crate) fn is_container(text: &str) -> bool {
    let text = text.trim_matches(space);
    let mut json = Json::new();
    let (mut at, mut tag) = (0, false);
    loop {
        match json.push(text.as_bytes().get(at..).unwrap_or_default(), tag) {
            Progress::Done(end) => return at + end == text.len(),
            Progress::TagInString(offset) => (at, tag) = (at + offset, true),
            Progress::More | Progress::Bad(_) => return false,
        }
    }
}

/// White space of JSON, which is also what the stages call white space between tags.
pub(crate) fn space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// One member of an object: the span of its key with quotes, of its value, and of both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// With its quotes.
    pub(crate) key: Range<usize>,
    /// Without white space around.
    pub(crate) value: Range<usize>,
}

/// Members of an object that [`Json`] has recognised, in order; nothing for another text.
pub(crate) fn members(object: &str) -> Vec<Member> {
    let mut walk = Walk {
        bytes: object.as_bytes(),
        at: 0,
    };
    let mut found = Vec::new();
    walk.spaces();
    if !walk.eat(b'{') {
        return found;
    }
    loop {
        walk.spaces();
        let key = walk.value();
        walk.spaces();
        if key.is_empty() || !walk.eat(b':') {
            return found;
        }
        walk.spaces();
        let value = walk.value();
        found.push(Member { key, value });
        walk.spaces();
        if found.len() > PARTS_LIMIT || !walk.eat(b',') {
            return found;
        }
    }
}

/// Elements of an array that [`Json`] has recognised.
pub(crate) fn elements(array: &str) -> Vec<Range<usize>> {
    let mut walk = Walk {
        bytes: array.as_bytes(),
        at: 0,
    };
    let mut found = Vec::new();
    walk.spaces();
    if !walk.eat(b'[') {
        return found;
    }
    loop {
        walk.spaces();
        let value = walk.value();
        if value.is_empty() {
            return found;
        }
        found.push(value);
        walk.spaces();
        if found.len() > PARTS_LIMIT || !walk.eat(b',') {
            return found;
        }
    }
}

/// The text that a JSON string (with its quotes) stands for.
pub(crate) fn unquote(string: &str) -> Option<String> {
    serde_json::from_str(string).ok()
}

/// A walk over JSON that is known to be well formed.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn spaces(&mut self) {
        while self.peek().is_some_and(|byte| space(char::from(byte))) {
            self.at += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// The span of the value here; empty at a closing bracket.
    fn value(&mut self) -> Range<usize> {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth == 0 => break,
                b'}' | b']' => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' if depth == 0 => break,
                _ if depth == 0 && space(char::from(byte)) => break,
                _ => {
                    self.at += 1;
                    continue;
                }
            }
            if depth == 0 {
                break;
            }
        }
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.peek() {
            self.at += if byte == b'\\' { 2 } else { 1 };
            if byte == b'"' {
                break;
            }
        }
        self.at = self.at.min(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    /// The end of the container at the start of `text`, read in one piece and by byte.
    fn recognise(text: &str) -> Result<usize, Option<usize>> {
        let run = |pieces: &[&[u8]]| {
            let mut json = Json::new();
            let mut before = 0;
            for piece in pieces {
                let (mut at, mut tag) = (0, false);
                loop {
                    match json.push(piece.get(at..).unwrap_or_default(), tag) {
                        Progress::More => break,
                        Progress::Done(end) => return Ok(before + at + end),
                        Progress::Bad(bad) => return Err(Some(before + at + bad)),
                        Progress::TagInString(offset) => (at, tag) = (at + offset, true),
                    }
                }
                before += piece.len();
            }
            Err(None)
        };
        let whole = run(&[text.as_bytes()]);
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(run(&bytes), whole, "split matters in {text:?}");
        whole
    }

    #[test]
    fn stops_where_json_does() {
        for (text, end) in [
            ("{}", Ok(2)),
            ("{} x", Ok(2)),
            ("[1, -0.5e+3, 0, true, null, \"a\"]", Ok(32)),
            ("{\"a\": {\"b\": []}}}", Ok(16)),
            ("{\"a\": \"<b> \\u00e9\"}", Ok(19)),
            ("{\"a\"", Err(None)),
            ("\"a\"", Err(Some(0))),
            ("{\"a\": 01}", Err(Some(7))),
            ("{\"a\": 1,}", Err(Some(8))),
            ("[1 2]", Err(Some(3))),
            ("{\"a\": \"\n\"}", Err(Some(7))),
            ("{\"a\": \"\\x\"}", Err(Some(8))),
            ("{\"a\": nul}", Err(Some(9))),
            ("[}", Err(Some(1))),
        ] {
            assert_eq!(recognise(text), end, "{text}");
        }
        let deep = format!("{}{}", "[".repeat(DEPTH_LIMIT), "]".repeat(DEPTH_LIMIT));
        assert_eq!(recognise(&deep), Ok(2 * DEPTH_LIMIT));
        assert_eq!(recognise(&format!("[{deep}]")), Err(Some(DEPTH_LIMIT)));
    }

    #[test]
    fn members_are_spans() {
        let text = r#" { "a" : {"x": [1, "}"]} , "b\"":"\\", "c":-1.5e3 }"#;
        let found: Vec<(&str, &str)> = members(text)
            .into_iter()
            .map(|member| (&text[member.key], &text[member.value]))
            .collect();
        assert_eq!(
            found,
            [
                ("\"a\"", r#"{"x": [1, "}"]}"#),
                (r#""b\"""#, r#""\\""#),
                ("\"c\"", "-1.5e3")
            ]
        );
        assert_eq!(elements(r#"[1, {"a": "]"} , "x"]"#).len(), 3);
        assert!(members("[1]").is_empty() && elements("[ ]").is_empty() && members("").is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        /// As strict as serde_json, and of the same mind where the value ends.
        #[test]
        fn agrees_with_serde_json(parts in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ",", ":", "\"", "\"a\"", "\"a\":", "1", "-", "0", ".", "e", "+", "true", "null", "fals", " ", "\n", "\\",
            "\\n", "\\u00e9", "é", "<", "{}", "[1,2]", "{\"a\":1}",
        ]), 0..12)) {
            let text = parts.concat();
            let mut stream = serde_json::Deserializer::from_str(&text).into_iter::<IgnoredAny>();
            let theirs = stream.next().is_some_and(|value| value.is_ok()).then(|| stream.byte_offset());
            let begins = text.trim_start().starts_with(['{', '[']);
            prop_assert_eq!(recognise(&text).ok(), theirs.filter(|_| begins), "{}", text);
        }
    }
}
