//! The stage: content text in, text and calls out, the same at every split.
//!
//! What is held, and for how long:
//! * a partial tag, at most [`TAG_LIMIT`](super::TAG_LIMIT) bytes;
//! * a call from its tag to its end, at most [`CALL_LIMIT`](super::CALL_LIMIT); above that it is text;
//! * white space at the very start (4 KiB), since it is markup if a call follows;
//! * an answer that begins as a bare JSON call or a fence around one, until it can't be that any more (B22).
//!
//! White space behind a call is markup. A call inside a code fence, a code span or a quoted string is text: an example, not an
//! order. The one exception is a fence that *begins* the answer and holds nothing before the tag (some models wrap their calls).

use super::block::{Block, End};
use super::call::{self, Call, Found};
use super::json::{Json, Progress, space};
use super::repair::{self, Mended, Unrepaired};
use super::tag::{Tag, floor};
use super::tools::ToolSet;
use super::verdict::Reason;
use super::watch::{Sight, Watch};
use std::ops::Range;
use std::sync::Arc;

/// Longest white space that is held at the start of an answer.
const LEAD_LIMIT: usize = 4096;
/// Longest first line of a fence that may hold a call.
const INFO_LIMIT: usize = 32;
/// What begins and ends a fence.
const FENCE: &str = "```";
/// Bytes within which a bare JSON answer must look like a call.
const LOOK_LIMIT: usize = 512;

/// What leaves the scanner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Content.
    Text(String),
    /// A call that is whole and names a declared tool.
    Call(Call),
    /// Meant as a call, but none. `on_invalid` says what the client gets; by default `raw` as content. For [`Reason::Cut`] in
    /// an answer that ended by `length` nothing is shown, the finish says it.
    Invalid {
        /// What the model wrote, tags included.
        raw: String,
        /// What is wrong.
        reason: Reason,
    },
}

/// Whether an answer that is nothing but JSON (or a fence with JSON) may be a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bare {
    /// If it names a declared tool.
    Calls,
    /// Never: the client asked for JSON (`response_format`).
    Text,
}

/// Finds the calls in the content of one choice.
#[derive(Debug, Clone)]
pub struct Scanner {
    tools: Arc<ToolSet>,
    bare: Bare,
    watch: Watch,
    state: State,
    held: String,
    /// How much of `held` has been looked at.
    looked: usize,
    /// Markup was just taken out: white space behind it is markup too.
    behind_markup: bool,
    /// Nothing but white space since the last call.
    behind_call: bool,
    /// A fence around the calls is still open.
    fenced: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// White space only so far.
    Lead,
    /// The answer begins with a fence, behind this much white space.
    Fence { from: usize },
    /// The answer is JSON so far.
    Json {
        json: Json,
        from: usize,
        fenced: bool,
        looks: bool,
    },
    /// The answer is one JSON value so far.
    JsonDone { from: usize, end: usize, fenced: bool },
    /// Text, or a call if the watch says so.
    Text,
}

impl Scanner {
    /// A scanner for one choice of an answer.
    pub fn new(tools: Arc<ToolSet>, bare: Bare) -> Self {
        Scanner {
            watch: Watch::new(Some(Arc::clone(&tools)), false),
            tools,
            bare,
            state: State::Lead,
            held: String::new(),
            looked: 0,
            behind_markup: false,
            behind_call: false,
            fenced: false,
        }
    }

    /// May `text` pass as it is? If so it counts as pushed, and the caller shows it unchanged. If not, push it. Costs a SIMD
    /// search or two and no allocation.
    pub fn pass(&mut self, text: &str) -> bool {
        let running = matches!(self.state, State::Text) && self.held.is_empty() && !self.behind_markup;
        let passes = running && self.watch.pass(text);
        self.behind_call &= !passes || text.is_empty();
        passes
    }

    /// Bytes that are held back now.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The text of the call that is open, from its tag on; none inside what may be a bare one.
    pub(crate) fn open_call(&self) -> Option<&str> {
        self.watch.in_call().then_some(&*self.held)
    }

    /// Inside a call, or what may be a bare one (for the time that calls are held, `tool_hold`).
    pub fn in_call(&self) -> bool {
        self.watch.in_call() || matches!(self.state, State::Json { .. } | State::JsonDone { .. })
    }

    /// Takes the next piece of the choice's content.
    pub fn push(&mut self, text: &str, out: &mut Vec<Piece>) {
        if self.pass(text) {
            show(text, out);
        } else if self.held.is_empty() {
            let kept = self.run(text, 0, out);
            self.held.push_str(text.get(kept..).unwrap_or_default());
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.push_str(text);
            let kept = self.run(&held, self.looked, out);
            held.drain(..kept);
            self.held = held;
        }
    }

    /// The answer ended: what was held leaves.
    pub fn finish(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        let mut kept = 0;
        match &self.state {
            State::Lead if held.trim_matches(space).is_empty() => return,
            State::Text => {}
            State::JsonDone { from, end, .. } => {
                if let Some(calls) = self.bare_calls(&held, *from, *end) {
                    out.extend(calls.into_iter().map(Piece::Call));
                    return;
                }
                kept = self.as_text(&held, out);
            }
            State::Lead | State::Fence { .. } | State::Json { .. } => kept = self.as_text(&held, out),
        }
        let rest = held.get(kept..).unwrap_or_default();
        if self.fenced && self.behind_markup && rest == FENCE {
            return;
        }
        match self.watch.finish() {
            Some((block, End::Bad { at, back: Some(back) })) => {
                // the block ended before: what stands behind it is read once more
                let (call, behind) = rest.split_at_checked(back).unwrap_or((rest, ""));
                self.end_call(call, &block, End::Bad { at, back: Some(back) }, out);
                let kept = self.run(behind, 0, out);
                self.held.push_str(behind.get(kept..).unwrap_or_default());
                return self.finish(out);
            }
            Some((block, end)) => self.end_call(rest, &block, end, out),
            None => show(rest, out),
        }
        self.looked = 0;
    }

    /// Reads `text` on from `at`; gives from where on it is kept.
    fn run(&mut self, text: &str, mut at: usize, out: &mut Vec<Piece>) -> usize {
        let mut from = 0;
        loop {
            let next = match self.state {
                State::Lead => self.lead(text, &mut at, &mut from),
                State::Fence { from: start } => self.fence(text, start, &mut at, &mut from),
                State::Json { .. } => self.json(text, &mut at),
                State::JsonDone { end, fenced, .. } => self.json_done(text, end, fenced, &mut at),
                State::Text => {
                    from = self.text(text, from, &mut at, out);
                    Next::Wait
                }
            };
            match next {
                Next::Wait => {
                    self.looked = at - from;
                    return from;
                }
                Next::Go(state) => self.state = state,
                // not a bare call: all that was held is ordinary text, read once more
                Next::AsText => {
                    self.state = State::Text;
                    at = from;
                }
            }
        }
    }

    fn as_text(&mut self, held: &str, out: &mut Vec<Piece>) -> usize {
        self.state = State::Text;
        self.run(held, 0, out)
    }

    fn lead(&self, text: &str, at: &mut usize, from: &mut usize) -> Next {
        let rest = text.get(*at..).unwrap_or_default();
        let body = rest.trim_start_matches(space);
        let start = text.len() - body.len();
        if start - *from > LEAD_LIMIT {
            return Next::AsText;
        }
        *at = start;
        match body.as_bytes().first() {
            None => Next::Wait,
            Some(b'{' | b'[') if self.bare == Bare::Calls => Next::Go(json_at(start, false)),
            Some(b'`') => Next::Go(State::Fence { from: start }),
            Some(b'<') => match self.watch.opens_call(body) {
                None => Next::Wait,
                Some(true) => {
                    *from = start;
                    Next::Go(State::Text)
                }
                Some(false) => Next::AsText,
            },
            Some(_) => Next::AsText,
        }
    }

    /// Behind "```", a first line, white space: a call's tag drops the fence, JSON may be a bare call.
    fn fence(&mut self, text: &str, start: usize, at: &mut usize, from: &mut usize) -> Next {
        let rest = text.get(start..).unwrap_or_default();
        let info = match rest.strip_prefix(FENCE) {
            Some(info) => info,
            None if FENCE.starts_with(rest) => return Next::Wait,
            None => return Next::AsText,
        };
        let Some(line) = info.find('\n') else {
            return if info.len() > INFO_LIMIT {
                Next::AsText
            } else {
                Next::Wait
            };
        };
        let behind = info.get(line..).unwrap_or_default();
        let body = behind.trim_start_matches(space);
        let body_at = text.len() - body.len();
        if line > INFO_LIMIT || !info.get(..line).is_some_and(is_language) || body_at - start > LEAD_LIMIT {
            return Next::AsText;
        }
        match body.as_bytes().first() {
            None => Next::Wait,
            Some(b'{' | b'[') if self.bare == Bare::Calls => {
                *at = body_at;
                Next::Go(json_at(body_at, true))
            }
            Some(b'<') => match self.watch.opens_call(body) {
                None => Next::Wait,
                Some(true) => {
                    self.fenced = true;
                    (*at, *from) = (body_at, body_at);
                    Next::Go(State::Text)
                }
                Some(false) => Next::AsText,
            },
            Some(_) => Next::AsText,
        }
    }

    fn json(&mut self, text: &str, at: &mut usize) -> Next {
        let tools = Arc::clone(&self.tools);
        let State::Json {
            json,
            from,
            fenced,
            looks,
        } = &mut self.state
        else {
            return Next::AsText;
        };
        if !*looks {
            let seen = text.get(*from..).unwrap_or_default();
            match looks_like_call(floor(seen, LOOK_LIMIT), &tools) {
                Some(true) => *looks = true,
                None if seen.len() <= LOOK_LIMIT => {}
                _ => return Next::AsText,
            }
        }
        let mut tag = text.as_bytes().get(*at) == Some(&b'<') && json.takes_tag();
        loop {
            let rest = text.as_bytes().get(*at..).unwrap_or_default();
            match json.push(rest, tag) {
                Progress::More => {
                    *at = text.len();
                    let over = text.len() - *from > tools.call_limit();
                    return if over { Next::AsText } else { Next::Wait };
                }
                Progress::TagInString(offset) => {
                    *at += offset;
                    tag = true;
                }
                Progress::Done(offset) => {
                    *at += offset;
                    let over = *at - *from > tools.call_limit();
                    let done = State::JsonDone {
                        from: *from,
                        end: *at,
                        fenced: *fenced,
                    };
                    return if over || !*looks { Next::AsText } else { Next::Go(done) };
                }
                Progress::Bad(_) => return Next::AsText,
            }
        }
    }

    /// Behind a bare value only white space, the end of its fence or a lone closing tag may come.
    fn json_done(&self, text: &str, end: usize, fenced: bool, at: &mut usize) -> Next {
        let mut rest = text.get(end..).unwrap_or_default().trim_start_matches(space);
        if text.len() - end > LEAD_LIMIT {
            return Next::AsText;
        }
        *at = text.len();
        if fenced && !rest.is_empty() {
            rest = match rest.strip_prefix(FENCE) {
                Some(rest) => rest.trim_start_matches(space),
                None if FENCE.starts_with(rest) => "",
                None => return Next::AsText,
            };
        }
        if rest.starts_with('<') {
            rest = match Tag::read(rest) {
                Tag::Partial => "",
                Tag::CallClose { len } => rest.get(len..).unwrap_or_default().trim_start_matches(space),
                _ => rest,
            };
        }
        if rest.is_empty() { Next::Wait } else { Next::AsText }
    }

    /// The calls of an answer that is nothing but JSON: all of it, with exact names, or none.
    fn bare_calls(&self, held: &str, from: usize, end: usize) -> Option<Vec<Call>> {
        let mut found = Vec::new();
        let value = held.get(from..end)?;
        if call::declares(value) {
            return None;
        }
        call::read_value(value, from, None, &self.tools, &mut found);
        let last = found.len().checked_sub(1)?;
        let mut start = 0;
        let mut calls = Vec::new();
        for (at, Found { end, read }) in found.into_iter().enumerate() {
            let parsed = read.ok().filter(|parsed| parsed.kinds.is_empty())?;
            let end = if at == last { held.len() } else { end };
            calls.push(parsed.into_call(held.get(start..end)?.to_owned(), false));
            start = end;
        }
        Some(calls)
    }

    /// Running text and the calls in it; gives from where on it is kept.
    fn text(&mut self, text: &str, mut from: usize, at: &mut usize, out: &mut Vec<Piece>) -> usize {
        loop {
            if self.behind_markup && !self.watch.in_call() {
                let body = text.get(*at..).unwrap_or_default().trim_start_matches(space);
                *at = text.len() - body.len();
                from = *at;
                if body.is_empty() || (self.fenced && FENCE.starts_with(body)) {
                    return from;
                }
                // a fence that opens another block of code follows with its language
                if self.fenced && body.strip_prefix(FENCE).is_some_and(|behind| behind.starts_with(space)) {
                    self.fenced = false;
                    *at += FENCE.len();
                    continue;
                }
                self.behind_markup = false;
            }
            match self.watch.next(text, at) {
                Sight::Wait if self.watch.in_call() => return from,
                Sight::Wait => {
                    self.show(text.get(from..*at), out);
                    return *at;
                }
                Sight::CallOpens(start) => {
                    self.show(text.get(from..start), out);
                    from = start;
                }
                Sight::CallEnds(block, end) => {
                    if let End::Bad { back: Some(back), .. } = end {
                        *at = from + back;
                    }
                    let raw = text.get(from..*at).unwrap_or_default();
                    self.end_call(raw, &block, end, out);
                    from = *at;
                }
                Sight::CallClose(len) if self.behind_call && from == *at => {
                    *at += len;
                    from = *at;
                    self.behind_markup = true;
                }
                Sight::CallClose(_) | Sight::ThinkOpen | Sight::ThinkClose => self.watch.skip(at),
            }
        }
    }

    fn show(&mut self, text: Option<&str>, out: &mut Vec<Piece>) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            self.behind_call = false;
            show(text, out);
        }
    }

    /// A block ended with this text: calls, what is none, and prose.
    fn end_call(&mut self, raw: &str, block: &Block, end: End, out: &mut Vec<Piece>) {
        let reason = match end {
            End::NotACall => return self.show(Some(raw), out),
            End::Closed | End::Reopened | End::Finished => is_torn(raw, block).then_some(Reason::BadJson {
                at: block.surplus.unwrap_or_default(),
            }),
            End::Cut => Some(Reason::Cut),
            End::Bad { at, .. } => Some(Reason::BadJson { at }),
            End::TooLong => Some(Reason::TooLong),
        };
        match reason {
            None => self.calls(raw, block, &end, out),
            Some(Reason::TooLong) => out.push(invalid(raw, Reason::TooLong)),
            Some(reason) => match repair::repair(raw, block.named.as_deref(), &self.tools) {
                Ok(mended) => show_mended(raw, mended, out),
                Err(why) => out.push(invalid(raw, beyond_repair(reason, why))),
            },
        }
        // what is shown as text keeps the white space behind it
        let called = matches!(out.last(), Some(Piece::Call(_)));
        (self.behind_call, self.behind_markup) = (called, called);
    }

    fn calls(&mut self, raw: &str, block: &Block, end: &End, out: &mut Vec<Piece>) {
        let found = call::read(raw, block, &self.tools);
        // text behind the last call is inside the block only if the block was closed
        let surplus = block.surplus.filter(|_| matches!(end, End::Closed));
        let behind = block
            .surplus
            .filter(|_| !matches!(end, End::Closed))
            .unwrap_or(raw.len());
        let last = found.len().saturating_sub(1);
        let mut start = 0;
        for (at, Found { end, read }) in found.into_iter().enumerate() {
            let end = if at == last { behind } else { end };
            let raw = raw.get(start..end).unwrap_or_default().to_owned();
            start = end;
            out.push(match read {
                Ok(parsed) => Piece::Call(parsed.into_call(raw, at == last && surplus.is_some())),
                Err(reason) => Piece::Invalid { raw, reason },
            });
        }
        show(raw.get(behind..).unwrap_or_default(), out);
    }
}

fn invalid(raw: &str, reason: Reason) -> Piece {
    Piece::Invalid {
        raw: raw.to_owned(),
        reason,
    }
}

/// What is cut stays cut, whatever it could have been.
fn beyond_repair(reason: Reason, why: Unrepaired) -> Reason {
    match (reason, why) {
        (Reason::BadJson { at }, Unrepaired::Ambiguous) => Reason::Ambiguous { at },
        (Reason::BadJson { at }, Unrepaired::Spent) => Reason::TooCostly { at },
        (reason, _) => reason,
    }
}

fn show_mended(raw: &str, mended: Vec<Mended>, out: &mut Vec<Piece>) {
    let mut start = 0;
    for Mended { end, parsed } in mended {
        let own = raw.get(start..end).unwrap_or_default().to_owned();
        start = end;
        out.push(Piece::Call(parsed.into_call(own, false)));
    }
}

/// The calls are strict JSON, but were closed too early: members follow them, or stand beside their arguments while closers
/// are left over.
fn is_torn(raw: &str, block: &Block) -> bool {
    let Some(rest) = block.surplus.and_then(|at| raw.get(at..)) else {
        return false;
    };
    let behind = rest.trim_start_matches(|c| matches!(c, '}' | ']' | ',') || space(c));
    // nothing but brackets is no call: its first quote was another character
    let empty = |span: &Range<usize>| raw.get(span.clone()) == Some("{}");
    if behind.starts_with(':') || starts_with_key(behind) || block.values.last().is_some_and(empty) {
        return true;
    }
    let closers = behind.len() < rest.len();
    closers
        && !block
            .values
            .iter()
            .all(|span| raw.get(span.clone()).is_some_and(repair::calls_only))
}

/// A quoted word and a colon.
fn starts_with_key(text: &str) -> bool {
    let Some(Ok((_, behind))) = leading_string(text) else {
        return false;
    };
    behind.trim_start_matches(space).starts_with(':')
}

enum Next {
    /// More text is needed.
    Wait,
    Go(State),
    AsText,
}

/// The first line of a fence may name a language, and nothing else.
fn is_language(info: &str) -> bool {
    info.trim_matches(space)
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+' | b'.'))
}

fn json_at(from: usize, fenced: bool) -> State {
    State::Json {
        json: Json::new(),
        from,
        fenced,
        looks: false,
    }
}

fn show(text: &str, out: &mut Vec<Piece>) {
    if text.is_empty() {
        return;
    }
    match out.last_mut() {
        Some(Piece::Text(shown)) => shown.push_str(text),
        _ => out.push(Piece::Text(text.to_owned())),
    }
}

/// Whether JSON that begins like this can be a call: by its first key and, if that is the name, by the name. `None`: too short
/// to say.
fn looks_like_call(text: &str, tools: &ToolSet) -> Option<bool> {
    let body = text.trim_start_matches(|c| c == '[' || space(c));
    let Some(inner) = body.strip_prefix('{') else {
        return if body.is_empty() { None } else { Some(false) };
    };
    let (key, behind) = match leading_string(inner)? {
        Ok(read) => read,
        Err(NotAString) => return Some(false),
    };
    let value_is = |fits: &dyn Fn(&str) -> bool| {
        let behind = behind.trim_start_matches(space);
        if behind.is_empty() {
            return None;
        }
        let Some(value) = behind.strip_prefix(':') else {
            return Some(false);
        };
        match leading_string(value)? {
            Ok((string, _)) => Some(fits(&string)),
            Err(NotAString) => Some(key == "function" && value.trim_start_matches(space).starts_with('{')),
        }
    };
    match key.as_str() {
        "arguments" | "parameters" | "args" | "input" => Some(true),
        "name" | "function" => value_is(&|name| tools.exact(name).is_some()),
        "type" => value_is(&|kind| kind == "function"),
        "id" => value_is(&|id| id.starts_with("call")),
        key => Some(tools.exact(key).is_some()),
    }
}

struct NotAString;

/// The string at the start of `text`; `None` while it isn't complete.
fn leading_string(text: &str) -> Option<Result<(String, &str), NotAString>> {
    let text = text.trim_start_matches(space);
    let Some(inner) = text.strip_prefix('"') else {
        return if text.is_empty() { None } else { Some(Err(NotAString)) };
    };
    let mut escaped = false;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                let (string, rest) = text.split_at(at + 2);
                return Some(
                    super::json::unquote(string)
                        .map(|string| (string, rest))
                        .ok_or(NotAString),
                );
            }
            _ => {}
        }
    }
    None
}
