//! The grammar, tolerant: at each place the strict continuation, and what else may have been meant.
//!
//! [`Search::step`] follows what fits. What doesn't fit gets its edits here; what fitted, but may be the cause of a failure
//! behind it, gets them from [`Search::otherwise`].

use super::cost::{AT_END, AT_END_MORE, BARE_WORD, EDIT, HABIT, IDLE, LESS_LIKELY};
use super::search::{Edit, Expect, Id, Level, Op, Search};
use super::text::{Quote, ends_open, ends_strangely, is_short};
use crate::tool_call::json::DEPTH_LIMIT;
use crate::tool_call::verdict::Kind;

/// Longest key that is looked for where quotes are missing.
pub(super) const KEY_LIMIT: usize = 64;

impl Search<'_> {
    /// The one continuation that fits, or none, once the others wait in the queue.
    pub(super) fn step(&mut self, id: Id) -> Option<Id> {
        let node = self.node(id);
        let at = self.skip_space(node.at);
        self.spend(at - node.at);
        let Some(byte) = self.byte(at) else {
            self.at_end(id);
            return None;
        };
        if matches!(byte, b'/' | b'#')
            && let Some(end) = self.comment(at)
        {
            let edit = Edit::habit(Kind::Comment, IDLE);
            self.later(id, end, node.expect, node.frame, Op::Drop, edit);
            return None;
        }
        match node.expect {
            Expect::Value | Expect::FirstValue => self.value(id, at, byte),
            Expect::Key | Expect::FirstKey => self.key_at(id, at, byte),
            Expect::Colon => self.colon(id, at, byte),
            Expect::Next => self.next_at(id, at, byte),
            Expect::Done => self.done(id, at, byte),
        }
    }

    /// Where the comment that begins here ends.
    pub(super) fn comment(&self, at: usize) -> Option<usize> {
        let rest = self.rest(at);
        if rest.starts_with("//") || rest.starts_with('#') {
            // without a line break it would swallow the closers
            return rest.find('\n').map(|len| at + len);
        }
        rest.strip_prefix("/*")?.find("*/").map(|end| at + end + 4)
    }

    pub(super) fn fail(&mut self, id: Id) -> Option<Id> {
        self.suspect(id);
        None
    }

    /// What may follow a value in this frame.
    pub(super) fn behind(&self, frame: Id) -> Expect {
        if frame == 0 { Expect::Done } else { Expect::Next }
    }

    fn value(&mut self, id: Id, at: usize, byte: u8) -> Option<Id> {
        let node = self.node(id);
        let in_array = node.frame != 0 && !self.frame(node.frame).object;
        match byte {
            b'{' | b'[' => {
                let object = byte == b'{';
                let frame = self.open(id, node.frame, object, at)?;
                let expect = first(object);
                return self.make(id, at + 1, expect, frame, Op::Read, Edit::NONE);
            }
            b']' if node.expect == Expect::FirstValue => return self.close(id, at, Op::Read, Edit::NONE),
            b']' if in_array => {
                let edit = Edit::habit(Kind::TrailingComma, IDLE);
                self.later(id, at, Expect::Next, node.frame, Op::Uncomma, edit);
                self.replaced_start(id, at);
                return self.fail(id);
            }
            b',' | b':' if node.frame != 0 => {
                let edit = Edit::of(Kind::Dropped, EDIT);
                self.later(id, at + 1, node.expect, node.frame, Op::Drop, edit);
                self.replaced_start(id, at);
                self.replaced_opener(id, at);
                return self.fail(id);
            }
            b'}' | b']' => {
                self.replaced_start(id, at);
                self.replaced_opener(id, at);
                return self.fail(id);
            }
            _ => {}
        }
        if node.frame == 0 {
            // the call's own brace is missing
            self.put_opener(id, at, true);
            return None;
        }
        if let Some((quote, _)) = Quote::opens(self.rest(at)) {
            return self.string(id, at, quote);
        }
        self.scalar(id, at)
    }

    /// A number, a literal, a word, or a string whose first quote is missing.
    fn scalar(&mut self, id: Id, at: usize) -> Option<Id> {
        let node = self.node(id);
        let rest = self.rest(at);
        let len = rest
            .bytes()
            .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'+' | b'/' | b'@')))
            .unwrap_or(rest.len());
        self.spend(len);
        let word = rest.get(..len).unwrap_or_default();
        let end = at + len;
        let behind = self.skip_space(end);
        let ends = matches!(self.byte(behind), None | Some(b',' | b'}' | b']'));
        let expect = self.behind(node.frame);
        let literal = match word {
            "true" | "false" | "null" => Some((Op::Read, Edit::NONE)),
            "True" | "TRUE" => Some((Op::Word("true"), Edit::habit(Kind::Literal, HABIT))),
            "False" | "FALSE" => Some((Op::Word("false"), Edit::habit(Kind::Literal, HABIT))),
            "None" => Some((Op::Word("null"), Edit::habit(Kind::Literal, HABIT))),
            _ if is_number(word) => Some((Op::Read, Edit::NONE)),
            _ => None,
        };
        if let Some((op, edit)) = literal {
            // a number at the very end of a text that was cut may go on
            if self.is_open() && behind >= self.bytes.len() && is_number(word) {
                return None;
            }
            let child = self.make(id, end, expect, node.frame, op, edit);
            if ends && edit.cost == 0 {
                return child;
            }
            if let Some(child) = child {
                self.wait(child);
            }
            if ends {
                return None;
            }
        }
        self.unopened(id, at);
        let says_text = self
            .place_of_value(node.frame)
            .is_some_and(super::shape::Place::takes_text);
        if literal.is_none() && says_text && ends && is_word(word) {
            let op = Op::Text {
                quote: Quote::Double,
                from: at,
                to: end,
            };
            let edit = Edit::of(Kind::Quote, BARE_WORD);
            self.later(id, end, expect, node.frame, op, edit);
        }
        self.fail(id)
    }

    fn colon(&mut self, id: Id, at: usize, byte: u8) -> Option<Id> {
        let node = self.node(id);
        match byte {
            b':' => return self.make(id, at + 1, Expect::Value, node.frame, Op::Read, Edit::NONE),
            b',' | b'=' => {
                let edit = Edit::of(Kind::Replaced, EDIT);
                self.later(id, at + 1, Expect::Value, node.frame, Op::Put(b':'), edit);
            }
            b'}' | b']' => self.as_colon(id, at),
            _ => {
                if matches!(byte, b'{' | b'[') {
                    self.as_colon(id, at);
                }
                if byte == b'"' && at == node.at && self.byte(self.skip_space(at + 1)) == Some(b':') {
                    let edit = Edit::of(Kind::Dropped, EDIT);
                    self.later(id, at + 1, Expect::Colon, node.frame, Op::Drop, edit);
                }
                if byte == b'"' && at == node.at {
                    let edit = Edit::of(Kind::Replaced, EDIT);
                    self.later(id, at + 1, Expect::Value, node.frame, Op::Put(b':'), edit);
                }
                let edit = Edit::of(Kind::Colon, EDIT);
                self.later(id, node.at, Expect::Value, node.frame, Op::Put(b':'), edit);
            }
        }
        self.fail(id)
    }

    /// A bracket stands for the colon, if it stands where the colon does and a value follows.
    fn as_colon(&mut self, id: Id, at: usize) {
        let node = self.node(id);
        if at == node.at
            && !matches!(
                self.byte(self.skip_space(at + 1)),
                None | Some(b'}' | b']' | b',' | b':')
            )
        {
            let edit = Edit::of(Kind::Replaced, EDIT);
            self.later(id, at + 1, Expect::Value, node.frame, Op::Put(b':'), edit);
        }
    }

    fn next_at(&mut self, id: Id, at: usize, byte: u8) -> Option<Id> {
        let node = self.node(id);
        let frame = self.frame(node.frame);
        let member = if frame.object { Expect::Key } else { Expect::Value };
        match byte {
            b',' => return self.make(id, at + 1, member, node.frame, Op::Read, Edit::NONE),
            b'}' | b']' if (byte == b'}') == frame.object => return self.close(id, at, Op::Read, Edit::NONE),
            b'}' | b']' => {
                let right = if frame.object { b'}' } else { b']' };
                self.put_closer(id, EDIT);
                if let Some(child) = self.close(id, at, Op::Put(right), Edit::of(Kind::Replaced, EDIT)) {
                    self.wait(child);
                }
                let edit = Edit::of(Kind::Dropped, EDIT);
                self.later(id, at + 1, Expect::Next, node.frame, Op::Drop, edit);
            }
            b':' | b';' => {
                self.as_comma(id, at, member);
                self.as_closer(id, at);
            }
            b'`' => self.fence(id, at),
            _ => {
                if matches!(byte, b'{' | b'[' | b'"') && at == node.at {
                    self.as_comma(id, at, member);
                    self.as_closer(id, at);
                }
                let doubled =
                    Quote::opens(self.rest(at)).filter(|_| at == node.at && matches!(node.op, Op::Text { .. }));
                if let Some((_, len)) = doubled
                    && self.ends_value(node.frame, at + len)
                {
                    let edit = Edit::of(Kind::Dropped, EDIT);
                    self.later(id, at + len, Expect::Next, node.frame, Op::Drop, edit);
                }
                self.put_comma(id, member);
            }
        }
        self.fail(id)
    }

    fn put_comma(&mut self, id: Id, member: Expect) {
        let node = self.node(id);
        let edit = Edit::of(Kind::Comma, EDIT);
        self.later(id, node.at, member, node.frame, Op::Put(b','), edit);
    }

    /// The character here stands for a comma.
    fn as_comma(&mut self, id: Id, at: usize, member: Expect) {
        let node = self.node(id);
        let edit = Edit::of(Kind::Replaced, EDIT);
        self.later(id, at + 1, member, node.frame, Op::Put(b','), edit);
    }

    /// The character here stands for the closer of the innermost bracket.
    fn as_closer(&mut self, id: Id, at: usize) {
        let frame = self.frame(self.node(id).frame);
        let closer = if frame.object { b'}' } else { b']' };
        if let Some(child) = self.close(id, at, Op::Put(closer), Edit::of(Kind::Replaced, EDIT)) {
            self.wait(child);
        }
    }

    fn done(&mut self, id: Id, at: usize, byte: u8) -> Option<Id> {
        let node = self.node(id);
        match byte {
            b'{' | b'[' => return self.make(id, at, Expect::Value, 0, Op::Read, Edit::NONE),
            b',' if matches!(self.byte(self.skip_space(at + 1)), Some(b'{' | b'[')) => {
                return self.make(id, at + 1, Expect::Value, 0, Op::Read, Edit::NONE);
            }
            b'}' | b']' | b',' | b';' | b'"' | b'\'' => {
                let more = node.op == Op::Drop;
                let cost = if more { AT_END_MORE } else { AT_END };
                // a brace between two calls is an edit as any other
                let cost = if self.only_closers(at) { cost } else { EDIT };
                let edit = Edit::of(Kind::Dropped, cost);
                self.later(id, at + 1, Expect::Done, 0, Op::Drop, edit);
            }
            b'`' => self.fence(id, at),
            b'A'..=b'Z' if self.rest(node.at).starts_with('\n') => {
                // a sentence behind the call
                let rest = self.rest(at);
                if !rest.contains(['{', '}', '[', ']', '"']) {
                    let edit = Edit::of(Kind::Surplus, EDIT);
                    self.later(id, self.bytes.len(), Expect::Done, 0, Op::Drop, edit);
                }
            }
            _ => {}
        }
        self.fail(id)
    }

    fn fence(&mut self, id: Id, at: usize) {
        let node = self.node(id);
        let rest = self.rest(at);
        let behind = rest.trim_start_matches('`');
        if rest.len() - behind.len() >= 3 && behind.trim_start().is_empty() {
            let edit = Edit::of(Kind::Fence, IDLE);
            self.later(id, self.bytes.len(), node.expect, node.frame, Op::Drop, edit);
        }
    }

    fn at_end(&mut self, id: Id) {
        let node = self.node(id);
        let cut =
            matches!(node.op, Op::Text { from, to, .. } if ends_open(self.text.get(from..to).unwrap_or_default()));
        if node.expect == Expect::Next && !cut {
            let more = matches!(node.kind, Some(Kind::Closer));
            self.put_closer(id, if more { AT_END_MORE } else { AT_END });
        }
        // a value that is missing altogether is not repaired, but a bracket before it may be the fault
        self.suspect(id);
    }

    /// Closes the innermost bracket, which the text at `at` does or doesn't.
    pub(super) fn close(&mut self, id: Id, at: usize, op: Op, edit: Edit) -> Option<Id> {
        let node = self.node(id);
        let outer = self.frame(node.frame).parent;
        let expect = self.behind(outer);
        self.make(id, at + 1, expect, outer, op, edit)
    }

    fn put_closer(&mut self, id: Id, cost: u16) {
        let node = self.node(id);
        let frame = self.frame(node.frame);
        let closer = if frame.object { b'}' } else { b']' };
        let expect = self.behind(frame.parent);
        let mut edit = Edit::of(Kind::Closer, cost);
        if self
            .last_text(id)
            .is_some_and(|text| ends_strangely(text) && is_short(text))
        {
            edit = edit.and(LESS_LIKELY);
        }
        self.later(id, node.at, expect, frame.parent, Op::Put(closer), edit);
    }

    /// The string before this place, if only closers stand between.
    fn last_text(&self, mut id: Id) -> Option<&str> {
        for _ in 0..DEPTH_LIMIT {
            let node = self.node(id);
            match node.op {
                Op::Text { from, to, .. } => return self.text.get(from..to),
                Op::Read if matches!(self.byte(node.at.wrapping_sub(1)), Some(b'}' | b']')) => id = node.parent,
                _ => return None,
            }
        }
        None
    }

    fn put_opener(&mut self, id: Id, at: usize, object: bool) {
        let node = self.node(id);
        if let Some(frame) = self.open(id, node.frame, object, at) {
            let opener = if object { b'{' } else { b'[' };
            if self.byte(at) == Some(b'"') && self.byte(at + 1) == Some(opener) {
                self.swapped_opener(id, at, frame, opener);
                return;
            }
            let edit = Edit::of(Kind::Opener, EDIT);
            self.later(id, at, first(object), frame, Op::Put(opener), edit);
        }
    }

    /// Another structural character stands where an object's brace should be: `]"name": …`.
    fn replaced_opener(&mut self, id: Id, at: usize) {
        let node = self.node(id);
        if self.byte(at + 1) != Some(b'"') {
            return;
        }
        let near = super::super::tag::floor(self.rest(at + 2), KEY_LIMIT);
        let colon = Quote::Double
            .find(near, 0)
            .is_some_and(|end| self.byte(self.skip_space(at + 2 + end + 1)) == Some(b':'));
        if (node.frame == 0 || colon)
            && let Some(frame) = self.open(id, node.frame, true, at)
        {
            let edit = Edit::of(Kind::Replaced, EDIT);
            self.later(id, at + 1, first(true), frame, Op::Put(b'{'), edit);
        }
    }

    /// An opener and the quote behind it changed places: `"[a"` for `["a"`.
    fn swapped_opener(&mut self, id: Id, at: usize, frame: Id, opener: u8) {
        let edit = Edit::of(Kind::Swapped, EDIT);
        let from = at + 2;
        let Some(child) = self.make(id, from, first(opener == b'{'), frame, Op::Put(opener), edit) else {
            return;
        };
        let Some(to) = Quote::Double.find(self.text, from) else {
            return;
        };
        self.spend(to - from);
        let quote = Quote::Double;
        if opener == b'{' {
            self.key_node(child, from, to, to + 1, quote, Edit::NONE);
        } else {
            let op = Op::Text { quote, from, to };
            self.later(child, to + 1, Expect::Next, frame, op, Edit::NONE);
        }
    }

    /// What fitted at `id`, but may be the cause of a failure behind it: its other readings.
    pub(super) fn otherwise(&mut self, id: Id) {
        let node = self.node(id);
        let at = self.skip_space(node.at);
        let Some(byte) = self.byte(at) else { return };
        match (node.expect, byte) {
            (Expect::Value | Expect::FirstValue, _) => {
                if matches!(byte, b'{' | b'[') {
                    let edit = Edit::of(Kind::Dropped, EDIT);
                    self.later(id, at + 1, node.expect, node.frame, Op::Drop, edit);
                    let object = byte == b'[';
                    if let Some(frame) = self.open(id, node.frame, object, at) {
                        let edit = Edit::of(Kind::Replaced, EDIT);
                        let opener = if object { b'{' } else { b'[' };
                        self.later(id, at + 1, first(object), frame, Op::Put(opener), edit);
                    }
                }
                if node.frame == 0 || self.frame(node.frame).level == Level::Calls {
                    return;
                }
                if byte != b'{' {
                    self.put_opener(id, at, true);
                }
                if byte != b'[' {
                    self.put_opener(id, at, false);
                }
                match Quote::opens(self.rest(at)) {
                    Some((quote, _)) => self.other_ends(id, at, quote),
                    None => self.unopened(id, at),
                }
            }
            (Expect::FirstKey, b'}') => self.replaced_key_start(id, at),
            (Expect::Next, b',') => self.put_closer(id, EDIT),
            (Expect::Next, b'}' | b']') => {
                let member = if self.frame(node.frame).object {
                    Expect::Key
                } else {
                    Expect::Value
                };
                self.as_comma(id, at, member);
                let edit = Edit::of(Kind::Dropped, EDIT);
                self.later(id, at + 1, Expect::Next, node.frame, Op::Drop, edit);
            }
            _ => {}
        }
    }
}

pub(super) fn first(object: bool) -> Expect {
    if object { Expect::FirstKey } else { Expect::FirstValue }
}

/// A word that can stand for a string: no number, no literal of any language.
fn is_word(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    let literal = [
        "nan",
        "infinity",
        "inf",
        "undefined",
        "nil",
        "null",
        "none",
        "true",
        "false",
    ]
    .contains(&lower.as_str());
    word.starts_with(|c: char| c.is_ascii_alphabetic()) && !literal && word.len() <= KEY_LIMIT
}

/// A number as JSON has them.
fn is_number(word: &str) -> bool {
    word.starts_with(|c: char| c == '-' || c.is_ascii_digit())
        && serde_json::from_str::<&serde_json::value::RawValue>(word).is_ok()
}
