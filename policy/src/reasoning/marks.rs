//! Where a position stands in running text: in a code fence, in a code span, in a quoted string, or in none of them.
//!
//! A tag there is text (B15, B22). The rule is line based, so that one stray quote or backtick can't silence the rest of an
//! answer: a new line ends a code span and a quoted string (a JSON string has no raw new line), only a fence goes on. In
//! plain text the cost of a chunk is one SIMD search for the three bytes that matter.

use memchr::{memchr, memchr2, memchr3};

/// Markdown and JSON position, fed with every byte of one text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Marks {
    place: Place,
    line: Line,
    /// A run of backticks or tildes that the next byte may prolong.
    run: Option<Run>,
    /// The byte before was a backslash inside a quoted string.
    escaped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Plain,
    Quoted,
    Span(usize),
    Fence(u8, usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Line {
    /// Nothing but spaces so far.
    #[default]
    Start,
    Middle,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    mark: u8,
    count: usize,
    at_start: bool,
}

impl Marks {
    /// Takes note of the next bytes of the text.
    pub(crate) fn advance(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while let Some(&byte) = rest.first() {
            if self.line == Line::Middle && self.run.is_none() && !self.escaped {
                let next = match self.place {
                    Place::Plain => memchr3(b'`', b'"', b'\n', rest),
                    Place::Quoted => memchr3(b'"', b'\\', b'\n', rest),
                    Place::Span(_) => memchr2(b'`', b'\n', rest),
                    Place::Fence(..) => memchr(b'\n', rest),
                };
                match next {
                    None => return,
                    Some(0) => {}
                    Some(at) => {
                        rest = rest.get(at..).unwrap_or_default();
                        continue;
                    }
                }
            }
            self.step(byte);
            rest = rest.get(1..).unwrap_or_default();
        }
    }

    /// A tag that begins here is text.
    pub(crate) fn literal(&self) -> bool {
        let place = match self.run {
            Some(run) => self.after_run(run, b'<'),
            None => self.place,
        };
        place != Place::Plain
    }

    /// Nothing but spaces stands before this position in its line.
    pub(crate) fn at_line_start(&self) -> bool {
        self.line == Line::Start && self.run.is_none()
    }

    /// Markup was taken out of the text here: a new line begins.
    pub(crate) fn after_markup(&mut self) {
        self.step(b'\n');
    }

    fn step(&mut self, byte: u8) {
        if let Some(run) = &mut self.run {
            if byte == run.mark {
                run.count += 1;
                return;
            }
            let run = *run;
            self.place = self.after_run(run, byte);
            self.run = None;
            self.line = Line::Middle;
        }
        let escaped = std::mem::take(&mut self.escaped);
        match byte {
            b'\n' => {
                self.line = Line::Start;
                if !matches!(self.place, Place::Fence(..)) {
                    self.place = Place::Plain;
                }
                return;
            }
            b' ' if self.line == Line::Start => return,
            b'`' | b'~' if self.place != Place::Quoted && (byte == b'`' || self.line == Line::Start) => {
                self.run = Some(Run {
                    mark: byte,
                    count: 1,
                    at_start: self.line == Line::Start,
                });
                return;
            }
            b'"' if self.place == Place::Plain => self.place = Place::Quoted,
            b'"' if self.place == Place::Quoted && !escaped => self.place = Place::Plain,
            b'\\' if self.place == Place::Quoted => self.escaped = !escaped,
            _ => {}
        }
        self.line = Line::Middle;
    }

    /// The place after a run of marks that `next` ends.
    fn after_run(&self, run: Run, next: u8) -> Place {
        match self.place {
            Place::Fence(mark, count) => {
                let closes = run.at_start && run.mark == mark && run.count >= count && next.is_ascii_whitespace();
                if closes { Place::Plain } else { self.place }
            }
            Place::Plain if run.at_start && run.count >= 3 => Place::Fence(run.mark, run.count),
            Place::Plain if run.mark == b'`' => Place::Span(run.count),
            Place::Span(count) if run.mark == b'`' && run.count == count => Place::Plain,
            place => place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal_after(text: &str) -> bool {
        let mut whole = Marks::default();
        whole.advance(text);
        let mut by_char = Marks::default();
        for c in text.chars() {
            by_char.advance(c.encode_utf8(&mut [0; 4]));
        }
        assert_eq!(whole.literal(), by_char.literal(), "split matters in {text:?}");
        whole.literal()
    }

    #[test]
    fn tells_text_from_code_and_strings() {
        for (text, literal) in [
            ("", false),
            ("plain ", false),
            ("`", true),
            ("`a` ", false),
            ("``a` ", true),
            ("``a`` ", false),
            ("`never closed\n", false),
            ("```\n", true),
            ("```xml\nfoo `x` \"y\n", true),
            ("```xml\nfoo\n```\n", false),
            ("```xml\nfoo\n```", true), // a tag directly behind the closing run is still the fence's line
            ("````\n```\n", true),
            ("~~~\na\n", true),
            ("~~~\na\n~~~\n", false),
            ("a ~~~ b ", false),
            ("{\"a\": \"", true),
            ("{\"a\": \"b\\\"", true),
            ("{\"a\": \"b\\\\\"", false),
            ("{\"a\": \"b`\", ", false),
            ("5\" pipe\n", false),
        ] {
            assert_eq!(literal_after(text), literal, "{text:?}");
        }
    }
}
