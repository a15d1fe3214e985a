//! Content of which nobody knows yet whether it stood inside the think block (B16, B22).
//!
//! vLLM 0.32's reasoning parser ends the reasoning at `</think>`, which it swallows, and at a `<tool_call>` token inside the
//! block, which becomes the first text of the content. What follows then tells the two apart: a `</think>` comes (streams leak
//! it, so the block was still open, and a call in it was thought), or the answer ends without one (vLLM's split stands).
//! A model that closes its block writes white space before a call, so that content which begins with the tag is rare. Such
//! content is held, up to [`HOLD`]; behind it vLLM's split stands. Whole answers lack the `</think>`: there it always stands.

use crate::reasoning::{OPENER_HOLD, Part, Splitter};

/// Longest text that is held until its place is known.
const HOLD: usize = OPENER_HOLD;

/// Torn-off content, read as the inside of the block while it is held.
#[derive(Debug)]
pub(super) struct Torn {
    splitter: Splitter,
    parts: Vec<Part>,
    text: String,
}

impl Torn {
    /// Content of a choice, begun by `text`, may be torn off: the tag is one token, so it is never cut.
    pub(super) fn begins(text: &str) -> bool {
        text.starts_with("<tool_call>")
    }

    /// `splitter` is in the block.
    pub(super) fn new(splitter: Splitter) -> Self {
        Self {
            splitter,
            parts: Vec::new(),
            text: String::new(),
        }
    }

    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.splitter.push(text, &mut self.parts);
    }

    /// No `</think>` has closed the block so far.
    pub(super) fn in_block(&self) -> bool {
        self.splitter.in_block()
    }

    pub(super) fn is_full(&self) -> bool {
        self.text.len() > HOLD
    }

    /// The block was open, and has been closed: the splitter that read on, and what it read.
    pub(super) fn block_closed(self) -> (Splitter, Vec<Part>) {
        (self.splitter, self.parts)
    }

    /// The text as it came.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}
