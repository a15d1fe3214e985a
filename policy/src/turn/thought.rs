//! A call inside a think block: thought, or meant? (B22)
//!
//! Reasoning text enters; it leaves at once but for a call in it. A call is held until it is known what it was: if the block
//! (or the answer) ends behind it and no answer follows, it was meant; if anything but white space follows, in the block or
//! behind it, it was thought and all held text is reasoning. The scanner only says where a call begins and ends; held text is
//! kept here as it came, so that what was thought leaves unchanged.

use std::borrow::Cow;
use std::sync::Arc;

use crate::tool_call::{Bare, Call, Piece, Scanner, ToolSet};

/// The think block of one choice.
#[derive(Debug)]
pub(super) struct Thought {
    tools: Arc<ToolSet>,
    scanner: Scanner,
    pieces: Vec<Piece>,
    /// Text that hasn't left; begins with a call as soon as one is found.
    held: String,
    /// End of the last call in `held`.
    settled: usize,
    /// The calls in `held` that are good.
    calls: Vec<Call>,
}

impl Thought {
    pub(super) fn new(tools: Arc<ToolSet>) -> Self {
        let scanner = Scanner::new(Arc::clone(&tools), Bare::Text);
        Self { tools, scanner, pieces: Vec::new(), held: String::new(), settled: 0, calls: Vec::new() }
    }

    /// The next reasoning text; what is certainly reasoning is appended to `out`.
    pub(super) fn push(&mut self, text: &str, out: &mut String) {
        if self.held.is_empty() && self.scanner.pass(text) {
            out.push_str(text);
            return;
        }
        self.scan(text, out);
    }

    /// The block was closed, or the answer ended: a call at its end is whole or none.
    pub(super) fn close(&mut self, out: &mut String) {
        while !self.held.is_empty() {
            let mut pieces = std::mem::take(&mut self.pieces);
            self.scanner.finish(&mut pieces);
            let thought = self.sort(&mut pieces, out);
            self.pieces = pieces;
            match thought {
                Some(rest) => self.scan(&rest, out),
                None if self.calls.is_empty() => return self.release(out),
                None => {
                    self.scanner = Scanner::new(Arc::clone(&self.tools), Bare::Text);
                    return;
                }
            }
        }
    }

    /// An answer followed: it was all thought.
    pub(super) fn release(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            out.push_str(&self.held);
            self.reset();
        }
    }

    /// Nothing followed: the calls were meant.
    pub(super) fn meant(&mut self) -> Vec<Call> {
        let calls = std::mem::take(&mut self.calls);
        self.reset();
        calls
    }

    fn reset(&mut self) {
        self.held.clear();
        self.calls.clear();
        self.settled = 0;
        self.scanner = Scanner::new(Arc::clone(&self.tools), Bare::Text);
    }

    /// Scans `text`, and again what stands behind calls that turned out to be thought: it may hold the next one.
    fn scan(&mut self, text: &str, out: &mut String) {
        let mut next = Some(Cow::Borrowed(text));
        while let Some(text) = next {
            self.held.push_str(&text);
            let mut pieces = std::mem::take(&mut self.pieces);
            self.scanner.push(&text, &mut pieces);
            next = self.sort(&mut pieces, out).map(Cow::Owned);
            self.pieces = pieces;
        }
    }

    /// Lets text leave and counts calls. If the calls were thought they leave too, and what stands behind them is returned.
    fn sort(&mut self, pieces: &mut Vec<Piece>, out: &mut String) -> Option<String> {
        for piece in pieces.drain(..) {
            match piece {
                Piece::Text(text) if self.settled == 0 && self.held.starts_with(&text) => {
                    out.push_str(&text);
                    self.held.drain(..text.len());
                }
                Piece::Text(text) if text.trim().is_empty() => {}
                Piece::Text(_) => {
                    let rest = self.held.split_off(self.settled);
                    self.release(out);
                    return Some(rest);
                }
                Piece::Call(call) => {
                    self.settle(&call.raw);
                    self.calls.push(call);
                }
                Piece::Invalid { raw, .. } => self.settle(&raw),
            }
        }
        None
    }

    /// Moves `settled` behind a call. Calls of one block share its text: only the first of them moves it.
    fn settle(&mut self, raw: &str) {
        let rest = self.held.get(self.settled..).unwrap_or_default();
        let space = rest.len() - rest.trim_start().len();
        if rest.get(space..).is_some_and(|rest| rest.starts_with(raw)) {
            self.settled += space + raw.len();
        }
    }
}
