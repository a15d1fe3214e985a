//! Strings: where their quotes are, and their text as a JSON string says it.

use super::cost::SHORT;
use memchr::memchr2;

/// How a string is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quote {
    Double,
    Single,
    /// “ ”
    Smart,
}

impl Quote {
    /// The quote that opens a string here, and its length.
    pub(super) fn opens(text: &str) -> Option<(Quote, usize)> {
        match text.chars().next()? {
            '"' => Some((Quote::Double, 1)),
            '\'' => Some((Quote::Single, 1)),
            '“' | '”' => Some((Quote::Smart, 3)),
            _ => None,
        }
    }

    pub(super) fn len(self) -> usize {
        if self == Quote::Smart { 3 } else { 1 }
    }

    /// The next unescaped closing quote from `at` on.
    pub(super) fn find(self, text: &str, mut at: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        let first = match self {
            Quote::Double => b'"',
            Quote::Single => b'\'',
            Quote::Smart => 0xe2,
        };
        loop {
            let rest = bytes.get(at..)?;
            let offset = memchr2(first, b'\\', rest)?;
            at += offset;
            match bytes.get(at)? {
                b'\\' => at += 2,
                _ if self != Quote::Smart => return Some(at),
                _ if text.get(at..).is_some_and(|rest| rest.starts_with(['“', '”'])) => return Some(at),
                _ => at += 1,
            }
        }
    }
}

/// What was done to a string's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) control: bool,
    pub(super) escape: bool,
    pub(super) inner: bool,
}

/// How the backslashes of a text are meant.
enum Slashes {
    /// As JSON has them; what JSON doesn't know is text.
    Json,
    /// The same, and that of `\'` is the code's own.
    Code,
    /// All of them are text: `C:\tmp`.
    Text,
}

/// Appends `text`, which stood between quotes, as the inside of a JSON string; a text that is one already is copied byte for
/// byte. `None`: what is meant can't be told.
pub(super) fn append(text: &str, quote: Quote, out: &mut String) -> Option<Done> {
    let faults = Faults::of(text, quote);
    if !faults.any() {
        out.push_str(text);
        return Some(Done::default());
    }
    let slashes = faults.slashes(text, quote)?;
    let mut done = Done::default();
    let mut rest = text;
    while let Some(at) = rest
        .bytes()
        .position(|byte| byte < 0x20 || matches!(byte, b'"' | b'\\'))
    {
        let (plain, special) = rest.split_at(at);
        out.push_str(plain);
        let byte = special.bytes().next()?;
        let mut taken = 1;
        match byte {
            b'"' => {
                done.inner |= quote != Quote::Single;
                out.push_str("\\\"");
            }
            b'\\' => {
                let escape = escape(special, quote);
                match (escape, &slashes) {
                    (Escape::Quote, _) => {
                        out.push_str("\\\"");
                        taken = 2;
                    }
                    (Escape::Apostrophe, Slashes::Json | Slashes::Text) => {
                        done.escape = true;
                        out.push('\'');
                        taken = 2;
                    }
                    (Escape::Json(len), Slashes::Json | Slashes::Code) => {
                        out.push_str(special.get(..len)?);
                        taken = len;
                    }
                    (Escape::Hex, Slashes::Json) => {
                        done.escape = true;
                        out.push_str("\\u00");
                        out.push_str(special.get(2..4)?);
                        taken = 4;
                    }
                    (Escape::Line, _) => return None,
                    _ => {
                        done.escape = true;
                        out.push_str("\\\\");
                    }
                }
            }
            control => {
                done.control = true;
                match control {
                    b'\n' => out.push_str("\\n"),
                    b'\r' => out.push_str("\\r"),
                    b'\t' => out.push_str("\\t"),
                    other => out.push_str(&format!("\\u{other:04x}")),
                }
            }
        }
        rest = special.get(taken..)?;
    }
    out.push_str(rest);
    Some(done)
}

/// What a backslash begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    /// `\"`
    Quote,
    /// `\'`, which JSON doesn't have.
    Apostrophe,
    /// One of JSON's, with its length.
    Json(usize),
    /// Python's `\x41`, in Python's quotes.
    Hex,
    /// A line that goes on.
    Line,
    Bad,
}

fn escape(text: &str, quote: Quote) -> Escape {
    let bytes = text.as_bytes();
    let hex = |from: usize, count: usize| {
        bytes
            .get(from..from + count)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    match bytes.get(1) {
        Some(b'"') => Escape::Quote,
        Some(b'\'') => Escape::Apostrophe,
        Some(b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Escape::Json(2),
        Some(b'u') if hex(2, 4) => Escape::Json(6),
        Some(b'x') if quote == Quote::Single && hex(2, 2) => Escape::Hex,
        Some(b'\n' | b'\r') => Escape::Line,
        _ => Escape::Bad,
    }
}

/// What in a string isn't JSON.
#[derive(Debug, Default)]
struct Faults {
    control: bool,
    quotes: bool,
    /// Escapes that JSON doesn't know, but for `\'`.
    bad: bool,
    /// `\'`, `\x41`.
    foreign: bool,
    /// `\n`, `\t`, `\r`.
    white: bool,
    /// `\b`, `\f`.
    rare: bool,
    escaped_slash: bool,
    escaped_quote: bool,
}

impl Faults {
    fn of(text: &str, quote: Quote) -> Self {
        let mut faults = Faults {
            control: text.bytes().any(|byte| byte < 0x20),
            ..Faults::default()
        };
        let bytes = text.as_bytes();
        let mut at = 0;
        while let Some(offset) = memchr2(b'"', b'\\', bytes.get(at..).unwrap_or_default()) {
            at += offset;
            if bytes.get(at) == Some(&b'"') {
                faults.quotes = true;
                at += 1;
                continue;
            }
            match escape(text.get(at..).unwrap_or_default(), quote) {
                Escape::Quote => faults.escaped_quote = true,
                Escape::Apostrophe | Escape::Hex => faults.foreign = true,
                Escape::Line | Escape::Bad => faults.bad = true,
                Escape::Json(_) => match bytes.get(at + 1) {
                    Some(b'n' | b't' | b'r') => faults.white = true,
                    Some(b'b' | b'f') => faults.rare = true,
                    Some(b'\\') => faults.escaped_slash = true,
                    _ => {}
                },
            }
            at += 2;
        }
        faults
    }

    fn any(&self) -> bool {
        self.control || self.quotes || self.bad || self.foreign
    }

    /// Code rather than a sentence: line breaks, or apostrophes that aren't escaped beside one that is.
    fn apostrophes_in_code(&self, text: &str) -> bool {
        let escaped = text.matches("\\'").count();
        self.white || self.control || text.matches('\'').count() > escaped
    }

    fn slashes(&self, text: &str, quote: Quote) -> Option<Slashes> {
        // written raw in every way: whether `\n` is a line break or two characters of code can't be told
        let raw = self.control && self.quotes && !self.escaped_quote && quote != Quote::Single;
        if raw && (self.white || self.rare) {
            return None;
        }
        // `\'` of another language's quotes inside code: whether the backslash is the code's, its lines say or nothing does
        if self.foreign && quote != Quote::Single && self.apostrophes_in_code(text) {
            return (self.white && !self.bad && !self.control && escapes_its_quotes(text)).then_some(Slashes::Code);
        }
        if !self.bad {
            return Some(Slashes::Json);
        }
        let mut start = text.chars();
        let drive = start.next().is_some_and(|c| c.is_ascii_alphabetic()) && start.as_str().starts_with(":\\");
        if drive && !self.escaped_slash {
            return Some(Slashes::Text);
        }
        // a UNC path half escaped, a relative path with `\new` in it, a `\bword`: not told apart
        let doubtful = self.rare || text.starts_with("\\\\") || (self.white && !text.contains(' '));
        if doubtful { None } else { Some(Slashes::Json) }
    }
}

/// Each line of code with a `\'` in it is one whose quotes are sound if the backslash is the code's, and one whose quotes aren't if it
/// isn't: `'\''`, `'can\'t'`.
fn escapes_its_quotes(text: &str) -> bool {
    let (mut own, mut bare) = (Line::default(), Line::default());
    let (mut found, mut here) = (false, false);
    let mut chars = text.chars();
    loop {
        let next = chars.next();
        let (foreign, code) = match next {
            Some('\\') => match chars.next() {
                Some('\'') => (true, '\''),
                Some('n') => (false, '\n'),
                Some(c @ ('"' | '\\')) => (false, c),
                _ => (false, ' '),
            },
            Some(c) => (false, c),
            None => (false, '\n'),
        };
        if code == '\n' {
            if here && (!own.is_sound() || bare.is_sound()) {
                return false;
            }
            (own, bare, here) = (Line::default(), Line::default(), false);
            if next.is_none() {
                return found;
            }
            continue;
        }
        if foreign {
            (found, here) = (true, true);
            own.outside |= own.quote != Some('\'');
            own.put('\\');
        }
        own.put(code);
        bare.put(code);
    }
}

/// The quotes of a line of code.
#[derive(Debug, Default)]
struct Line {
    /// Of the string that is open.
    quote: Option<char>,
    escaped: bool,
    /// A quote was escaped that stands in no string of its kind.
    outside: bool,
}

impl Line {
    fn put(&mut self, c: char) {
        if self.escaped {
            self.escaped = false;
            return;
        }
        match (c, self.quote) {
            ('\\', _) => self.escaped = true,
            ('"' | '\'', None) => self.quote = Some(c),
            (_, Some(quote)) if c == quote => self.quote = None,
            _ => {}
        }
    }

    fn is_sound(&self) -> bool {
        self.quote.is_none() && !self.outside
    }
}

/// A structural character at the end, and nothing in the text opened it: it may have changed places with the quote behind. A text
/// of such characters alone is one that was meant so.
pub(super) fn may_be_swapped(text: &str) -> bool {
    if !text.contains(char::is_alphanumeric) {
        return false;
    }
    match text.bytes().last() {
        Some(b',' | b':') => true,
        Some(b'}') => unbalanced(text, b'{', b'}'),
        Some(b']') => unbalanced(text, b'[', b']'),
        _ => false,
    }
}

/// Most likely it has: a word stands before it.
pub(super) fn ends_strangely(text: &str) -> bool {
    let before = text.bytes().rev().nth(1);
    may_be_swapped(text) && before.is_some_and(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii())
}

fn unbalanced(text: &str, open: u8, close: u8) -> bool {
    let count = |wanted: u8| text.bytes().filter(|byte| *byte == wanted).count();
    count(close) > count(open)
}

/// What stands at the end waits for more: a blank, an open bracket, a comma, an operator. A quote behind it that ends the whole
/// text is more likely one of the text's own, and the rest was cut off by a tag inside it.
pub(super) fn ends_open(text: &str) -> bool {
    let last = text.chars().last();
    last.is_some_and(|c| c == ' ' || matches!(c, '(' | '[' | '{' | ',' | ':' | '=' | '+' | '&' | '|' | '<'))
}

/// Short, and of one line.
pub(super) fn is_short(text: &str) -> bool {
    text.len() <= SHORT && !text.contains("\\n") && !text.contains('\n')
}
