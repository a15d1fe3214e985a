//! Where a block ends whose text isn't valid: which closing tag is a tag, and which is text of a string.
//!
//! Text enters byte by byte from the first byte that doesn't fit. Quotes are followed loosely: one opens a string behind a
//! bracket, comma or colon, and closes it before one; other quotes are text. A closing tag outside strings ends the block.
//! One inside a string is text if the string closes later, and the block's end if it never does: then it was the quote that
//! was missing. A raw line break and a closer right before the tag say so at once, since in a string both would be escaped.

/// What has been read of a block that isn't valid.
#[derive(Debug, Clone)]
pub(crate) struct Loose {
    state: State,
    /// The last byte that isn't white space.
    last: u8,
    /// A raw line break came behind it.
    broke: bool,
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
            shut,
            just_shut: shut.filter(|shut| *shut == here),
        }
    }

    /// Where the block ended, if the string that is open never does.
    pub(crate) fn shut(&self) -> Option<usize> {
        self.shut.filter(|_| self.inside())
    }

    fn inside(&self) -> bool {
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

    /// A closing tag, which these bytes are and which ends the block at `end`: text of a string, or the block's end.
    pub(crate) fn close(&mut self, tag: &[u8], end: usize) -> Close {
        // in a string both would be escaped
        let structural = self.broke && matches!(self.last, b'}' | b']');
        if structural || !self.inside() {
            return Close::End;
        }
        self.push(tag);
        self.shut.get_or_insert(end);
        self.just_shut = Some(end);
        Close::Text
    }

    /// An opening tag: where the block ended before it, or `None` if the tag is text of a string.
    pub(crate) fn reopens(&self, here: usize) -> Option<usize> {
        // right behind a quote it is more likely text of the string than the next call
        let text = self.inside() || (matches!(self.state, State::Maybe(_)) && !self.broke);
        if text { self.just_shut } else { Some(here) }
    }
}
