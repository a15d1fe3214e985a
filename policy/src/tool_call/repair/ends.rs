//! Where a string or a key begins and ends when its quotes can't be trusted.
//!
//! A quote ends a string if what follows it is what may follow a value *here*: a comma and a key that the object declares, an
//! element, closers to the very end. Other quotes are text, unless nothing else fits.

use super::cost::{EDIT, ENDS, HABIT, INNER, LESS_LIKELY, LOOKS_LIKE_END, ODD, SUSPECTS};
use super::reader::KEY_LIMIT;
use super::search::{Edit, Expect, Id, Op, Search};
use super::shape::Declared;
use super::text::{Quote, is_short, may_be_swapped};
use crate::tool_call::json::space;
use crate::tool_call::verdict::Kind;

/// A tag that isn't text: it stands behind a closer, or on a line of its own.
const TAGS: [&str; 4] = ["}</tool_call", "]</tool_call", "\n</tool_call", "\n<tool_call"];

impl Search<'_> {
    /// A string value whose quote stands at `at`.
    pub(super) fn string(&mut self, id: Id, at: usize, quote: Quote) -> Option<Id> {
        let node = self.node(id);
        let from = at + quote.len();
        let end = quote.find(self.text, from);
        self.spend(end.unwrap_or(self.bytes.len()).saturating_sub(from));
        match end {
            Some(to) if self.ends_value(node.frame, to + quote.len()) => {
                let child = self.text_node(id, from, to, quote, Edit::NONE);
                if quote == Quote::Double {
                    return child;
                }
                if let Some(child) = child {
                    self.wait(child);
                }
                None
            }
            end => {
                if let Some(to) = end {
                    if let Some(child) = self.text_node(id, from, to, quote, Edit::NONE) {
                        self.dearer(child, self.tail_cost(from, to));
                    }
                    self.swapped_end(id, from, to, quote);
                }
                // a quote too many before the string, or in the wrong place before a bracket
                let doubled = end == Some(from) || matches!(self.byte(from), Some(b'{' | b'['));
                if doubled {
                    let edit = Edit::of(Kind::Dropped, EDIT);
                    self.later(id, from, node.expect, node.frame, Op::Drop, edit);
                }
                self.later_ends(id, from, quote, 0);
                self.unclosed(id, from, quote);
                self.suspect(id);
                None
            }
        }
    }

    /// What it costs to believe in a text that ends in structure, as if its last quote had opened the next one.
    fn tail_cost(&self, from: usize, to: usize) -> u16 {
        let text = self.text.get(from..to).unwrap_or_default();
        let bare = text.trim_end_matches(|c: char| c.is_ascii_whitespace());
        match bare.as_bytes().last() {
            // with something else wrong behind it as well, it isn't to be believed
            Some(b',' | b':' | b'{' | b'[') if bare.len() < text.len() => LOOKS_LIKE_END + LESS_LIKELY,
            Some(b',' | b':') if is_short(text) => LESS_LIKELY,
            _ => 0,
        }
    }

    fn text_node(&mut self, id: Id, from: usize, to: usize, quote: Quote, edit: Edit) -> Option<Id> {
        let node = self.node(id);
        let edit = match edit.kind {
            None if quote != Quote::Double => Edit::habit(Kind::Quotes, HABIT),
            _ => edit,
        };
        let expect = self.behind(node.frame);
        let op = Op::Text { quote, from, to };
        self.make(id, to + quote.len(), expect, node.frame, op, edit)
    }

    /// The string goes on past quotes that don't end it, up to one that does; `skipped` ends were taken for text already.
    fn later_ends(&mut self, id: Id, from: usize, quote: Quote, mut skipped: u16) {
        let frame = self.node(id).frame;
        // where keys are declared, one of them stands behind the string
        let open = self.frame(frame);
        let any = frame != 0 && (!open.object || self.knows(&open, "") == Declared::Open);
        let mut found = 0;
        let mut at = from;
        let (mut inner, mut escaped, mut joint) = (0usize, 0usize, false);
        while let Some(to) = quote.find(self.text, at) {
            escaped += self.text.get(at..to).map_or(0, |text| text.matches("\\\"").count());
            self.spend(to - at + quote.len());
            let behind = to + quote.len();
            if inner > 0 && self.ends_value(frame, behind) {
                let odd = quote == Quote::Double && (inner + escaped) % 2 == 1;
                let doubt = if odd { ODD } else { 0 } + if joint { LESS_LIKELY } else { 0 };
                let edit = match quote {
                    // who doesn't escape them in one string of single quotes doesn't in the next
                    Quote::Single => Edit::habit(Kind::InnerQuotes, INNER),
                    _ => Edit::of(Kind::InnerQuotes, INNER),
                };
                if let Some(child) = self.text_node(id, from, to, quote, edit) {
                    self.dearer(child, doubt + skipped * LOOKS_LIKE_END);
                }
                skipped += 1;
                found += 1;
                if found >= ENDS {
                    return;
                }
            }
            // a key in quotes, and a colon or what stands for one: more likely the structure than the text
            let word = self.text.get(at..to).unwrap_or_default();
            joint |= inner == 1 && any && quote == Quote::Double && self.is_joint(at, to);
            if inner > 0 && word.len() <= KEY_LIMIT && self.looks_like_key(frame, word, at, behind) {
                skipped += 1;
            }
            inner += 1;
            at = behind;
        }
    }

    /// What stands between these quotes is what stands between two strings, whose words touch the quotes: `one" "two`.
    fn is_joint(&self, from: usize, to: usize) -> bool {
        let between = self.text.get(from..to).unwrap_or_default();
        let structure = |c: char| c == ' ' || matches!(c, ',' | ':' | '{' | '}' | '[' | ']');
        let before = self.text.get(..from - 1).and_then(|text| text.chars().next_back());
        let behind = self.text.get(to + 1..).and_then(|text| text.chars().next());
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || !c.is_ascii());
        !between.is_empty() && between.chars().all(structure) && word(before) && word(behind)
    }

    /// `word` stands between quotes, with a colon behind it or what was put in its place, and is a key that the innermost open
    /// object declares and hasn't yet; where an object takes any key, a comma and a blank stand before it as well.
    fn looks_like_key(&self, frame: Id, word: &str, at: usize, behind: usize) -> bool {
        let colon = self.byte(self.skip_space(behind)) == Some(b':');
        let bracket = matches!(self.byte(behind), Some(b'{' | b'}' | b'[' | b']'));
        // the colon is missing before another string
        let bracket = bracket || self.text.get(behind..).is_some_and(|rest| rest.starts_with(" \""));
        if !colon && !bracket {
            return false;
        }
        let mut open = self.frame(frame);
        let direct = open.object;
        while !open.object && open.parent != 0 {
            open = self.frame(open.parent);
        }
        match self.knows(&open, word) {
            Declared::Yes => true,
            Declared::Open => direct && bracket && self.text.get(..at).is_some_and(|text| text.ends_with("\", \"")),
            Declared::No => false,
        }
    }

    /// Other ends of a string whose first quote looked like its end.
    pub(super) fn other_ends(&mut self, id: Id, at: usize, quote: Quote) {
        let node = self.node(id);
        let from = at + quote.len();
        let Some(to) = quote.find(self.text, from) else { return };
        self.spend(to - from);
        // if it didn't, its other ends wait already
        if self.ends_value(node.frame, to + quote.len()) {
            self.later_ends(id, from, quote, 1);
            self.swapped_end(id, from, to, quote);
        }
    }

    /// The last character and the quote behind it changed places.
    fn swapped_end(&mut self, id: Id, from: usize, to: usize, quote: Quote) {
        let node = self.node(id);
        let text = self.text.get(from..to).unwrap_or_default();
        if !may_be_swapped(text) || quote != Quote::Double {
            return;
        }
        let Some(last) = text.bytes().last() else { return };
        let op = Op::Text {
            quote,
            from,
            to: to - 1,
        };
        let edit = Edit::of(Kind::Swapped, EDIT);
        let Some(child) = self.make(id, to + 1, self.behind(node.frame), node.frame, op, edit) else {
            return;
        };
        let frame = self.frame(node.frame);
        match last {
            b',' => {
                let member = if frame.object { Expect::Key } else { Expect::Value };
                self.later(child, to + 1, member, node.frame, Op::Put(b','), Edit::NONE);
            }
            b'}' | b']' if (last == b'}') == frame.object => {
                if let Some(closed) = self.close(child, to, Op::Put(last), Edit::NONE) {
                    self.wait(closed);
                }
            }
            _ => {}
        }
    }

    /// The closing quote is missing: it stood before the comma and closers that lead to the next quote, or before the closers
    /// that end the text, if they are exactly those that are open.
    fn unclosed(&mut self, id: Id, from: usize, quote: Quote) {
        let node = self.node(id);
        let next = quote.find(self.text, from);
        let region = self
            .text
            .get(from..next.unwrap_or(self.bytes.len()))
            .unwrap_or_default();
        self.replaced_end(id, from, region, next, quote);
        let tail = |text: &str, set: &[char]| {
            text.trim_end_matches(|c: char| c.is_ascii_whitespace() || set.contains(&c))
                .len()
        };
        let len = match next {
            Some(_) => {
                let before = tail(region, &['{', '[']);
                let head = region.get(..before).unwrap_or_default();
                let Some(head) = head.strip_suffix(',') else { return };
                let len = tail(head, &['}', ']']);
                let (text, closers) = head.split_at(len);
                let own = own_closers(text, closers);
                let next = closers.get(own..).unwrap_or_default().trim_start().bytes().next();
                // One that can't close what is open here is the text's, or the quote itself, exchanged: two readings, and no repair.
                if next.is_some_and(|closer| self.frame(node.frame).object != (closer == b'}')) {
                    self.unclosed_at(id, from, head, quote);
                    let to = from + len + own;
                    return self.text_ends(id, from, to, to + 1, quote, Kind::Replaced);
                }
                len + own
            }
            None => {
                let len = tail(region, &['}', ']', '`']);
                let closers = region
                    .get(len..)
                    .unwrap_or_default()
                    .bytes()
                    .filter(|byte| matches!(byte, b'}' | b']'));
                if closers.count() != self.depth(node.frame) {
                    return;
                }
                len
            }
        };
        self.unclosed_at(id, from, region.get(..len).unwrap_or_default(), quote);
    }

    /// The closing quote stood behind this text.
    fn unclosed_at(&mut self, id: Id, from: usize, text: &str, quote: Quote) {
        let node = self.node(id);
        let len = text.len();
        let doubtful = text.ends_with(['{', '[', ':', ',', '\'', '\\']) || may_hold_a_tag(text);
        if doubtful || !self.ends_value(node.frame, from + len) {
            return;
        }
        self.text_ends(id, from, from + len, from + len, quote, Kind::Quote);
    }

    /// A text of this frame ends at `to` by one edit, and what follows is read from `at` on.
    fn text_ends(&mut self, id: Id, from: usize, to: usize, at: usize, quote: Quote, kind: Kind) {
        let frame = self.node(id).frame;
        let op = Op::Text { quote, from, to };
        self.later(id, at, self.behind(frame), frame, op, Edit::of(kind, EDIT));
    }

    /// Another structural character stands where the closing quote of a short text should be, before a comma or the last closers.
    fn replaced_end(&mut self, id: Id, from: usize, region: &str, next: Option<usize>, quote: Quote) {
        let node = self.node(id);
        if quote != Quote::Double {
            return;
        }
        let before = if next.is_some() {
            let before = region.trim_end_matches(|c: char| c.is_ascii_whitespace() || matches!(c, '{' | '['));
            before.strip_suffix(',')
        } else {
            let mut before = Some(region.trim_end());
            for _ in 0..self.depth(node.frame) {
                before = before.and_then(|text| text.strip_suffix(['}', ']'])).map(str::trim_end);
            }
            before
        };
        let Some(text) = before.and_then(|text| text.strip_suffix(['{', '}', '[', ']', ':', ','])) else {
            return;
        };
        // what closes a bracket of the text is text
        let own = before.is_some_and(|before| before.ends_with(['}', ']']) && !may_be_swapped(before));
        let to = from + text.len();
        let whole = text.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '.' | '!' | '?' | ')' | '%'));
        if is_short(text) && whole && !own && self.ends_value(node.frame, to + 1) {
            self.text_ends(id, from, to, to + 1, quote, Kind::Replaced);
        }
    }

    /// Another structural character stands where the opening quote of a short text should be: `]Oslo"`.
    pub(super) fn replaced_start(&mut self, id: Id, at: usize) {
        let node = self.node(id);
        let from = at + 1;
        if node.frame == 0 || !self.rest(from).starts_with(|c: char| c.is_alphanumeric()) {
            return;
        }
        let Some(to) = Quote::Double.find(self.text, from) else {
            return;
        };
        self.spend(to - from);
        if is_short(self.text.get(from..to).unwrap_or_default()) && self.ends_value(node.frame, to + 1) {
            let edit = Edit::of(Kind::Replaced, EDIT);
            if let Some(child) = self.text_node(id, from, to, Quote::Double, edit) {
                self.wait(child);
            }
        }
    }

    /// The same before a key.
    pub(super) fn replaced_key_start(&mut self, id: Id, at: usize) {
        let node = self.node(id);
        let from = at + 1;
        let near = super::super::tag::floor(self.rest(from), KEY_LIMIT);
        let Some(len) = near.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-' | '.'))) else {
            return;
        };
        let behind = from + len + 1;
        let quoted = near.as_bytes().get(len) == Some(&b'"');
        if len > 0 && quoted && node.frame != 0 && self.byte(self.skip_space(behind)) == Some(b':') {
            let edit = Edit::of(Kind::Replaced, EDIT);
            self.key_node(id, from, from + len, behind, Quote::Double, edit);
        }
    }

    /// The opening quote is missing.
    pub(super) fn unopened(&mut self, id: Id, at: usize) {
        let node = self.node(id);
        let quote = Quote::Double;
        let Some(to) = quote.find(self.text, at) else { return };
        self.spend(to - at);
        let text = self.text.get(at..to).unwrap_or_default();
        // outside strings no backslash stands
        let certain = text.contains('\\');
        let doubtful = match self.byte(at) {
            Some(b'\\') => !text.starts_with("\\\""),
            Some(b'{' | b'[' | b'}' | b']' | b',' | b':' | b'"' | b'\'' | b'<') => true,
            _ => false,
        };
        // more white space than the one blank of the notation may be the string's own
        let from = match at - node.at {
            0 | 1 => at,
            _ if certain && node.op == Op::Read && self.is_spaced(id) => node.at + 1,
            _ => return,
        };
        let ends = self.ends_value(node.frame, to + 1) && !may_hold_a_tag(text);
        let sound = certain || !(text.ends_with([',', ':', '{', '[']) || text.contains(": "));
        if ends && sound && !doubtful {
            self.text_ends(id, from, to, to + 1, quote, Kind::Quote);
        }
    }

    /// In this call one blank stands behind each colon, as far as is looked back.
    fn is_spaced(&self, mut id: Id) -> bool {
        let mut seen = 0;
        for _ in 0..SUSPECTS {
            let parent = self.node(id).parent;
            let behind = self.node(parent).at;
            if id == parent || self.node(id).op == Op::Start {
                break;
            }
            // the value behind a colon has been read
            let colon = self.node(parent).expect == Expect::Value && self.byte(behind.wrapping_sub(1)) == Some(b':');
            if colon {
                if self.skip_space(behind) != behind + 1 || self.byte(behind) != Some(b' ') {
                    return false;
                }
                seen += 1;
            }
            id = parent;
        }
        seen > 0
    }

    /// A key, or what stands in its place.
    pub(super) fn key_at(&mut self, id: Id, at: usize, byte: u8) -> Option<Id> {
        let node = self.node(id);
        match byte {
            b'}' if node.expect == Expect::FirstKey => return self.close(id, at, Op::Read, Edit::NONE),
            b'}' => {
                let edit = Edit::habit(Kind::TrailingComma, super::cost::IDLE);
                self.later(id, at, Expect::Next, node.frame, Op::Uncomma, edit);
                self.replaced_key_start(id, at);
                return self.fail(id);
            }
            b',' | b':' | b'{' | b'[' => {
                let edit = Edit::of(Kind::Dropped, EDIT);
                self.later(id, at + 1, node.expect, node.frame, Op::Drop, edit);
                self.replaced_key_start(id, at);
                return self.fail(id);
            }
            b']' => {
                self.replaced_key_start(id, at);
                return self.fail(id);
            }
            _ => {}
        }
        if let Some((quote, _)) = Quote::opens(self.rest(at)) {
            return self.quoted_key(id, at, quote);
        }
        let rest = self.rest(at);
        let len = rest
            .bytes()
            .position(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'$')))
            .unwrap_or(rest.len());
        self.spend(len);
        if len > 0 && self.byte(self.skip_space(at + len)) == Some(b':') {
            self.key_node(id, at, at + len, at + len, Quote::Double, Edit::habit(Kind::Key, HABIT));
        }
        // the first quote is missing
        let near = super::super::tag::floor(rest, KEY_LIMIT);
        if let Some(end) = near.find(['"', '{', '}', '[', ']', ',', ':'])
            && near.as_bytes().get(end) == Some(&b'"')
            && self.byte(self.skip_space(at + end + 1)) == Some(b':')
            && at - node.at <= 1
        {
            self.key_node(
                id,
                at,
                at + end,
                at + end + 1,
                Quote::Double,
                Edit::of(Kind::Quote, EDIT),
            );
        }
        self.fail(id)
    }

    fn quoted_key(&mut self, id: Id, at: usize, quote: Quote) -> Option<Id> {
        let node = self.node(id);
        let frame = self.frame(node.frame);
        let from = at + quote.len();
        let end = quote.find(self.text, from);
        self.spend(end.unwrap_or(self.bytes.len()).saturating_sub(from).min(KEY_LIMIT));
        let habit = match quote {
            Quote::Double => Edit::NONE,
            _ => Edit::habit(Kind::Quotes, HABIT),
        };
        if let Some(to) = end {
            let behind = to + quote.len();
            let key = self.text.get(from..to).unwrap_or_default();
            let colon = self.byte(self.skip_space(behind)) == Some(b':');
            if colon && quote == Quote::Double && self.strangeness(&frame, key) == 0 {
                let inner = self.with_key(node.frame, from..to);
                let op = Op::Text { quote, from, to };
                return self.make(id, behind, Expect::Colon, inner, op, habit);
            }
            if key.len() <= KEY_LIMIT || colon {
                // with a colon at its end it is most likely a key whose second quote is missing
                let strange = if !colon && key.trim_end_matches(space).ends_with(':') {
                    LOOKS_LIKE_END
                } else {
                    0
                };
                self.key_node(id, from, to, behind, quote, habit.and(strange));
            }
            if to == from {
                let edit = Edit::of(Kind::Dropped, EDIT);
                self.later(id, from, node.expect, node.frame, Op::Drop, edit);
            }
            // the colon and the quote before it changed places
            if key.ends_with(':') {
                let inner = self.with_key(node.frame, from..to - 1);
                let op = Op::Text {
                    quote,
                    from,
                    to: to - 1,
                };
                let strange = self.strangeness(&frame, key.trim_end_matches(':'));
                let edit = Edit::of(Kind::Swapped, EDIT + strange);
                if let Some(child) = self.make(id, behind, Expect::Colon, inner, op, edit) {
                    self.later(child, behind, Expect::Value, inner, Op::Put(b':'), Edit::NONE);
                }
            }
        }
        // the second quote is missing
        let region = self.text.get(from..end.unwrap_or(self.bytes.len())).unwrap_or_default();
        let near = super::super::tag::floor(region, KEY_LIMIT);
        if let Some(colon) = near.find(':') {
            let key = near.get(..colon).unwrap_or_default().trim_end();
            let known = self.knows(&frame, key);
            // it or what stands in its place: `"key{: 1`, `"key:: 1`
            let doubled = near.as_bytes().get(colon + 1) == Some(&b':');
            let bare = key.trim_end_matches(['{', '}', '[', ']', ',']);
            if bare.len() + usize::from(!doubled) == key.len() && self.knows(&frame, bare) != Declared::No {
                let end = from + bare.len();
                self.key_node(id, from, end, end + 1, quote, Edit::of(Kind::Replaced, EDIT));
            }
            if !key.is_empty()
                && !key.contains(['{', '}', '[', ']', ','])
                && (known == Declared::Yes || !key.contains(' '))
            {
                self.key_node(
                    id,
                    from,
                    from + key.len(),
                    from + key.len(),
                    quote,
                    Edit::of(Kind::Quote, EDIT),
                );
            }
        }
        self.fail(id)
    }

    /// A key whose text is `from..to`, read up to `behind`.
    pub(super) fn key_node(&mut self, id: Id, from: usize, to: usize, behind: usize, quote: Quote, edit: Edit) {
        let node = self.node(id);
        let key = self.text.get(from..to).unwrap_or_default();
        let strange = self.strangeness(&self.frame(node.frame), key);
        let inner = self.with_key(node.frame, from..to);
        let op = Op::Text { quote, from, to };
        // what is strange costs each time, a habit only once
        let Some(child) = self.make(id, behind, Expect::Colon, inner, op, edit) else {
            return;
        };
        if strange == 0 {
            self.wait(child);
        } else {
            self.dearer(child, strange);
        }
    }

    fn depth(&self, frame: Id) -> usize {
        let mut count = 0;
        let mut at = frame;
        while at != 0 {
            count += 1;
            at = self.frame(at).parent;
        }
        count
    }

    /// Nothing but closers from here to the end.
    pub(super) fn only_closers(&self, at: usize) -> bool {
        self.rest(at).bytes().all(|byte| {
            matches!(
                byte,
                b'}' | b']' | b',' | b';' | b' ' | b'\t' | b'\n' | b'\r' | b'"' | b'\'' | b'`'
            )
        })
    }

    /// What stands at `at` is what may follow a value of this frame.
    pub(super) fn ends_value(&self, frame: Id, at: usize) -> bool {
        let mut at = self.skip_space(at);
        let mut frame = frame;
        loop {
            match self.byte(at) {
                None => return true,
                Some(b'}' | b']') if frame == 0 => {}
                Some(byte @ (b'}' | b']')) => {
                    let open = self.frame(frame);
                    if open.object == (byte == b'}') || self.only_closers(at) {
                        frame = open.parent;
                    }
                }
                Some(b',') => return self.begins_member(frame, self.skip_space(at + 1)),
                Some(b'{') => return frame == 0,
                Some(b'`') => return self.rest(at).trim_matches('`').trim().is_empty(),
                Some(b'/') => return self.comment(at).is_some(),
                _ => return false,
            }
            at = self.skip_space(at + 1);
        }
    }

    /// What stands at `at` is a member of this frame, or nothing (a trailing comma).
    fn begins_member(&self, frame: Id, at: usize) -> bool {
        let open = self.frame(frame);
        match self.byte(at) {
            None => return false,
            Some(b'}' | b']') => return frame != 0 && self.ends_value(frame, at),
            Some(b'/') => return self.comment(at).is_some(),
            Some(b'{' | b'[') if frame == 0 => return true,
            _ => {}
        }
        if frame != 0 && !open.object {
            return matches!(
                self.byte(at),
                Some(b'"' | b'\'' | b'{' | b'[' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'T' | b'F' | b'N')
            );
        }
        let (key, quoted) = match Quote::opens(self.rest(at)) {
            Some((quote, len)) => {
                let from = at + len;
                let near = super::super::tag::floor(self.rest(from), KEY_LIMIT * 2);
                let Some(to) = quote.find(near, 0) else { return false };
                let behind = self.skip_space(from + to + quote.len());
                let key = near.get(..to).unwrap_or_default();
                let colon = self.byte(behind) == Some(b':') || key.ends_with(':');
                match near.find(':') {
                    _ if colon => (key.trim_end_matches(':'), true),
                    // a key with a quote missing
                    Some(colon) if colon < to => (near.get(..colon).unwrap_or_default(), false),
                    _ => (key, false),
                }
            }
            None => {
                let rest = super::super::tag::floor(self.rest(at), KEY_LIMIT);
                let Some(end) = rest.find([':', '"']) else { return false };
                (rest.get(..end).unwrap_or_default().trim_end(), false)
            }
        };
        match self.knows(&open, key) {
            Declared::Yes => true,
            Declared::No => false,
            Declared::Open => quoted,
        }
    }
}

/// A string that goes on to here may have swallowed the end of its call.
fn may_hold_a_tag(text: &str) -> bool {
    TAGS.iter().any(|tag| text.contains(tag))
}

/// How many bytes of `closers` close what was opened in `text`: they are the text's own (`x[0]`).
fn own_closers(text: &str, closers: &str) -> usize {
    let count = |wanted: u8| text.bytes().filter(|byte| *byte == wanted).count();
    let mut braces = count(b'{').saturating_sub(count(b'}'));
    let mut brackets = count(b'[').saturating_sub(count(b']'));
    closers
        .bytes()
        .take_while(|closer| {
            let open = match closer {
                b'}' => &mut braces,
                b']' => &mut brackets,
                _ => return false,
            };
            let is_own = *open > 0;
            *open = open.saturating_sub(1);
            is_own
        })
        .count()
}
