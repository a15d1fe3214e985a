//! Where a block ends whose text isn't valid: which closing tag is a tag, and which is text of a string.
//!
//! Text enters byte by byte from the first byte that doesn't fit. Quotes are followed loosely: one opens a string behind a
//! bracket, comma or colon, and closes it before one; other quotes are text. A closing tag outside strings ends the block.
//! One inside a string is text if the string closes later, and the block's end if it never does: then it was the quote that
//! was missing. A raw line break and a closer right before the tag say so at once, since in a string both would be escaped.
//! Where the quotes are broken, "outside" may be an error: what touches the tag counts for more. Behind a tag that ends a block
//! or opens one neither a quote nor a backslash stands, and a call that is opened goes on with a bracket.

use super::json::space;

/// White space looked through behind an opening tag to learn whether a call follows.
const LOOK_AHEAD: usize = 64;

/// What has been read of a block that isn't valid.
#[derive(Debug, Clone)]
pub(crate) struct Loose {
    state: State,
    /// The last byte that isn't white space.
    last: u8,
    /// A raw line break came behind it.
    broke: bool,
    /// The last quote was escaped: what stands around it is text.
    escaped: bool,
    /// The string that is open holds a closing tag that ends here.
    shut: Option<usize>,
    /// Only white space since the last closing tag, which ended here.
    just_shut: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    /// Behind a backslash outside strings.
    OutsideEscape,
    /// Inside a string of this quote.
    Inside(u8),
    Escape(u8),
    /// Behind a quote that closes its string if a structural byte follows.
    Maybe(u8),
}

/// Bytes behind which a quote opens a string; the last two are those of a call written as code.
const OPENERS: [u8; 6] = [b'{', b'[', b',', b':', b'(', b'='];

/// What a closing tag is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    /// The block's end.
    End,
    /// Text of a string, so far.
    Text,
    /// What stands behind it says which; nothing does yet.
    Partial,
}

/// Whether an opening tag opens a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    /// It does, and the block ended here.
    Call(usize),
    /// Text of a string, so far.
    Text,
    /// What stands behind it says which; nothing does yet.
    Partial,
}

impl Loose {
    /// From outside a string on.
    pub(crate) fn outside() -> Self {
        Loose::new(false, None, 0)
    }

    /// From `here` on, in a string of double quotes or not; `shut` is the end of a closing tag that the string holds.
    pub(crate) fn new(in_string: bool, shut: Option<usize>, here: usize) -> Self {
        Loose {
            state: if in_string { State::Inside(b'"') } else { State::Outside },
            last: if in_string { b'"' } else { b',' },
            broke: false,
            escaped: false,
            shut,
            just_shut: shut.filter(|shut| *shut == here),
        }
    }

    /// Where the block ended, if the string that is open never does.
    pub(crate) fn shut(&self) -> Option<usize> {
        self.shut.filter(|_| self.inside())
    }

    /// Within a string.
    pub(crate) fn inside(&self) -> bool {
        matches!(self.state, State::Inside(_) | State::Escape(_))
    }

    /// Takes bytes that hold no tag.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.byte(*byte);
        }
    }

    fn byte(&mut self, byte: u8) {
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            self.broke |= byte == b'\n';
            if let State::Escape(quote) = self.state {
                self.state = State::Inside(quote);
            }
            return;
        }
        self.just_shut = None;
        if matches!(byte, b'"' | b'\'') {
            self.escaped = matches!(self.state, State::Escape(_) | State::OutsideEscape);
        }
        self.state = match (self.state, byte) {
            (State::Outside, b'\\') => State::OutsideEscape,
            (State::Outside, b'"' | b'\'') if OPENERS.contains(&self.last) => State::Inside(byte),
            (State::OutsideEscape, _) => State::Outside,
            (State::Inside(quote), b'\\') => State::Escape(quote),
            (State::Inside(quote), byte) if byte == quote => State::Maybe(quote),
            (State::Escape(quote), _) => State::Inside(quote),
            (State::Maybe(_), b',' | b':' | b'}' | b']') => {
                self.shut = None;
                State::Outside
            }
            (State::Maybe(quote), byte) if byte == quote => State::Maybe(quote),
            (State::Maybe(quote), b'\\') => State::Escape(quote),
            (State::Maybe(quote), _) => State::Inside(quote),
            (state, _) => state,
        };
        (self.last, self.broke) = (byte, false);
    }

    /// A closing tag, which these bytes are, which ends the block at `end` and has `behind` behind it: text of a string, or the
    /// block's end.
    pub(crate) fn close(&mut self, tag: &[u8], end: usize, behind: &str) -> Close {
        let closer = matches!(self.last, b'}' | b']');
        let inside = self.inside();
        // in a string both would be escaped
        if inside && closer && self.broke && !self.escaped {
            return Close::End;
        }
        if !inside {
            match behind.bytes().next() {
                _ if closer => return Close::End,
                None => return Close::Partial,
                Some(b'"' | b'\'' | b'\\') => {}
                Some(_) => return Close::End,
            }
        }
        self.push(tag);
        if inside {
            self.shut.get_or_insert(end);
            self.just_shut = Some(end);
        }
        Close::Text
    }

    /// An opening tag at `here` with `behind` behind it: text of a string, or the next call.
    pub(crate) fn reopens(&self, here: usize, behind: &str) -> Open {
        let inside = self.holds();
        if inside && self.just_shut.is_none() {
            return Open::Text;
        }
        match (opens(behind), inside) {
            (Some(Opens::Bracket), true) => self.just_shut.map_or(Open::Text, Open::Call),
            (Some(Opens::Bracket | Opens::Other), false) => Open::Call(here),
            (Some(_), _) => Open::Text,
            (None, _) => Open::Partial,
        }
    }
    /// The same behind a whole call, whose quotes are sound: what stands behind the tag isn't looked at.
    pub(crate) fn reopens_behind_a_call(&self, here: usize) -> Open {
        match self.just_shut {
            Some(back) if self.holds() => Open::Call(back),
            None if self.holds() => Open::Text,
            _ => Open::Call(here),
        }
    }

    /// A tag here stands within a string; right behind a quote it more likely does than not.
    fn holds(&self) -> bool {
        self.inside() || (matches!(self.state, State::Maybe(_)) && !self.broke)
    }
}

/// What stands behind an opening tag.
enum Opens {
    /// A call's bracket, or the tag of its function.
    Bracket,
    /// A quote, a backslash, or a bracket with one behind it.
    Quoted,
    /// Something else: prose, or a call in another notation.
    Other,
}

/// `None`: more text is needed.
fn opens(behind: &str) -> Option<Opens> {
    if behind.starts_with(['"', '\'', '\\']) {
        return Some(Opens::Quoted);
    }
    let body = behind.trim_start_matches(space);
    if behind.len() - body.len() > LOOK_AHEAD {
        return Some(Opens::Other);
    }
    if let Some(inside) = body.strip_prefix(['{', '[']) {
        let inside = super::tag::floor(inside, LOOK_AHEAD).trim_start_matches(space);
        return match inside.bytes().next() {
            None if body.len() > LOOK_AHEAD => Some(Opens::Other),
            None => None,
            Some(b'\\') => Some(Opens::Quoted),
            Some(_) => Some(Opens::Bracket),
        };
    }
    match body {
        "" => None,
        _ if FUNCTION.starts_with(body) => None,
        _ if body.starts_with(FUNCTION) => Some(Opens::Bracket),
        _ => Some(Opens::Other),
    }
}

/// The tag of a call in the XML dialect, as far as it is the same in all calls.
const FUNCTION: &str = "<function";
