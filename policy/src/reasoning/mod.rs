//! `<think>` text apart from the answer (B14, B15).
//!
//! Text enters in any split; [`Part`]s leave, the same at every split. The splitter never judges calls, but it knows where
//! they are: a think tag in a call's string, in a code fence, a code span or a quoted string is text. Who opens the block
//! decides what text without an opening tag is, and that is not in the text:
//!
//! | [`Opener`] | text without `<think>` at its start | held back |
//! | --- | --- | --- |
//! | `Model` (hybrid Qwen3) | content | a partial tag |
//! | `Prompt` (2507, VL thinking) | reasoning up to `</think>`, all of it if that never comes | a partial tag |
//! | `Unknown { hold }` | reasoning if `</think>` comes, else content | all of it, up to `hold` bytes; then it is content |
//!
//! With thinking off it is content at once. A `<think>` in the middle of a line that a space or a punctuation mark follows is
//! spoken of, and text. A stray first `</think>` is dropped, a later one is text. White space behind a tag
//! is markup; before the first tag too. A call inside a block is held until it is followed by text (it was thought: reasoning)
//! or the answer ends, with or without a closing tag (it was meant: it leaves as content, for the scanner). Next: `tool_call`.

pub(crate) mod marks;

use crate::tool_call::json::space;
use crate::tool_call::tag::{THINK_CLOSE, THINK_OPEN, Tag};
use crate::tool_call::watch::{Sight, Watch};
use crate::tool_call::{End, ToolSet};
use marks::Marks;
use std::sync::Arc;

/// What the request says of thinking (`chat_template_kwargs.enable_thinking`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thinking {
    /// Nothing: the model's default.
    #[default]
    Unknown,
    /// Asked for.
    On,
    /// Asked not to; some models think all the same.
    Off,
}

/// Who writes the opening tag: a fact of the served template, the same for every answer of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opener {
    /// The model, if it thinks at all.
    Model,
    /// The generation prompt ends with it.
    Prompt,
    /// Not known yet.
    Unknown {
        /// Bytes of an answer without an opening tag that are held back to learn it; 0 holds nothing, as `Model`.
        hold: usize,
    },
}

/// Default of [`Opener::Unknown`]: some 16,000 tokens, more than most reasoning.
pub const OPENER_HOLD: usize = 64 << 10;
/// Longest white space that is held at the start of an answer.
const LEAD_LIMIT: usize = 4096;

impl Default for Opener {
    fn default() -> Self {
        Opener::Unknown { hold: OPENER_HOLD }
    }
}

impl Opener {
    /// Reads it off the end of a rendered generation prompt (any template, thinking on).
    pub fn of_prompt(prompt: &str) -> Opener {
        if prompt.trim_end().ends_with(THINK_OPEN) {
            Opener::Prompt
        } else {
            Opener::Model
        }
    }
}

/// A piece of one choice's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// From a think block.
    Reasoning(String),
    /// From the answer.
    Content(String),
}

/// Where text goes that passes unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// To the reasoning.
    Reasoning,
    /// To the content.
    Content,
}

/// Splits the text of one choice.
#[derive(Debug, Clone)]
pub struct Splitter {
    opener: Opener,
    watch: Watch,
    state: State,
    held: String,
    /// How much of `held` has been looked at.
    looked: usize,
    /// Where in `held` the calls begin that end what was read of a block.
    calls: Option<usize>,
    /// Where in `held` the last call began.
    call: usize,
    /// A tag was just taken out: white space behind it is markup too.
    behind_tag: bool,
    /// Some reasoning was shown.
    reasoned: bool,
    /// A `</think>` was taken.
    closed: bool,
    /// Whoever opened the first block, as far as this answer shows.
    seen: Option<Opener>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// White space only so far.
    Lead,
    /// No opening tag at the start, and the opener isn't known.
    Undecided {
        hold: usize,
    },
    /// Inside a block.
    Block,
    /// Behind a block that ended with calls, with nothing but white space since.
    Closed {
        calls: String,
    },
    Content,
}

impl Splitter {
    /// A splitter for one choice. `tools` are those that its content is scanned for; `None` if it isn't.
    pub fn new(thinking: Thinking, opener: Opener, tools: Option<Arc<ToolSet>>) -> Self {
        let opener = if thinking == Thinking::Off {
            Opener::Model
        } else {
            opener
        };
        Splitter {
            opener,
            watch: Watch::new(tools, true),
            state: State::Lead,
            held: String::new(),
            looked: 0,
            calls: None,
            call: 0,
            behind_tag: false,
            reasoned: false,
            closed: false,
            seen: None,
        }
    }

    /// May `text` pass as it is, and whereto? If so it counts as pushed, and the caller shows it unchanged. If not, push it.
    /// Costs a SIMD search or two and no allocation.
    pub fn pass(&mut self, text: &str) -> Option<Channel> {
        if !self.held.is_empty() || self.behind_tag || self.calls.is_some() {
            return None;
        }
        let channel = match self.state {
            State::Content => Channel::Content,
            State::Block => Channel::Reasoning,
            _ => return None,
        };
        if !self.watch.pass(text) {
            return None;
        }
        self.reasoned |= channel == Channel::Reasoning && !text.is_empty();
        Some(channel)
    }

    /// Bytes that are held back now.
    pub fn held(&self) -> usize {
        let closed = if let State::Closed { calls } = &self.state {
            calls.len()
        } else {
            0
        };
        self.held.len() + closed
    }

    /// Inside a think block now, as far as is known.
    pub fn in_block(&self) -> bool {
        matches!(self.state, State::Block)
    }

    /// The last `</think>` was put in by the caller, and the model's own may come even now: it is dropped.
    pub(crate) fn expect_stray(&mut self) {
        self.closed = false;
    }

    /// Who opened the block, as far as this answer shows.
    pub fn seen(&self) -> Option<Opener> {
        self.seen
    }

    /// Who opens the block, as this answer shows: worth remembering for the model's next one. Call it at the end; an answer
    /// without any tag that `stopped` by itself (not by length) comes from a prompt that opens nothing.
    pub fn learn(&self, stopped: bool) -> Option<Opener> {
        let untagged = stopped && !self.closed && !self.reasoned;
        self.seen.or(untagged.then_some(Opener::Model))
    }

    /// Takes the next text of the choice.
    pub fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        if let Some(channel) = self.pass(text) {
            self.show(channel, Some(text), out);
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
    pub fn finish(&mut self, out: &mut Vec<Part>) {
        let held = std::mem::take(&mut self.held);
        self.looked = 0;
        match std::mem::replace(&mut self.state, State::Content) {
            State::Lead if self.opener == Opener::Prompt => self.show(Channel::Reasoning, Some(held.trim()), out),
            State::Closed { calls } => {
                self.show(Channel::Content, Some(&calls), out);
                self.show(Channel::Content, Some(&held), out);
            }
            State::Block => {
                let prose = matches!(self.watch.finish(), Some((_, End::NotACall)));
                let calls = self.calls.take().filter(|_| !prose).unwrap_or(held.len());
                self.show(Channel::Reasoning, held.get(..calls), out);
                self.show(Channel::Content, held.get(calls..), out);
            }
            State::Lead | State::Undecided { .. } | State::Content => self.show(Channel::Content, Some(&held), out),
        }
    }

    /// Reads `text` on from `at`; gives from where on it is kept.
    fn run(&mut self, text: &str, mut at: usize, out: &mut Vec<Part>) -> usize {
        let mut from = 0;
        loop {
            if self.behind_tag {
                at = skip_space(text, at);
                from = at;
                if at == text.len() {
                    break;
                }
                self.behind_tag = false;
            }
            if let State::Closed { calls } = &mut self.state {
                let calls = std::mem::take(calls);
                self.show(Channel::Reasoning, Some(&calls), out);
                self.state = State::Content;
            }
            if self.state == State::Lead {
                if !self.lead(text, &mut at, &mut from) {
                    break;
                }
                continue;
            }
            if self.calls.is_some() && !self.watch.in_call() && !self.behind_calls(text, &mut at) {
                break;
            }
            let sight = self.watch.next(text, &mut at);
            if !self.act(text, sight, &mut at, &mut from, out) {
                break;
            }
        }
        self.calls = self.calls.map(|calls| calls - from);
        self.call = self.call.saturating_sub(from);
        self.looked = at - from;
        from
    }

    /// Acts on what was seen; false: more text is needed.
    fn act(&mut self, text: &str, sight: Sight, at: &mut usize, from: &mut usize, out: &mut Vec<Part>) -> bool {
        let upto = if let Sight::CallOpens(start) = sight {
            start
        } else {
            *at
        };
        if let State::Undecided { hold } = self.state
            && upto - *from > hold
        {
            self.show(Channel::Content, text.get(*from..upto), out);
            (*from, self.calls, self.state) = (upto, None, State::Content);
        }
        match sight {
            Sight::Wait => {
                self.show_decided(text, self.calls.unwrap_or(*at), from, out);
                return false;
            }
            Sight::CallOpens(start) if self.state != State::Content => {
                self.call = start;
                self.calls.get_or_insert(start);
            }
            Sight::CallEnds(_, End::NotACall | End::TooLong) => self.calls = None,
            Sight::CallEnds(_, End::Bad { back: Some(back), .. }) if self.state != State::Content => {
                *at = self.call + back;
            }
            Sight::CallOpens(_) | Sight::CallEnds(..) => {}
            Sight::ThinkOpen if self.state == State::Block => self.watch.skip(at),
            Sight::ThinkOpen => match self.opens(text, *at) {
                Some(true) => {
                    self.show(Channel::Content, text.get(*from..*at), out);
                    self.open(at, from);
                }
                Some(false) => self.watch.skip(at),
                None => {
                    self.show_decided(text, *at, from, out);
                    return false;
                }
            },
            Sight::ThinkClose if self.state == State::Content && self.closed => self.watch.skip(at),
            Sight::ThinkClose => self.close(text, at, from, out),
            Sight::CallClose(_) => self.watch.skip(at),
        }
        true
    }

    /// Shows what stands before `upto`, if its place is decided.
    fn show_decided(&mut self, text: &str, upto: usize, from: &mut usize, out: &mut Vec<Part>) {
        let channel = match self.state {
            State::Block => Channel::Reasoning,
            State::Content => Channel::Content,
            State::Lead | State::Undecided { .. } | State::Closed { .. } => return,
        };
        self.show(channel, text.get(*from..upto), out);
        *from = upto;
    }

    /// Whether the `<think>` here opens a block: in the middle of a line, one that a space or a punctuation mark follows is spoken of.
    fn opens(&self, text: &str, at: usize) -> Option<bool> {
        if self.watch.marks.at_line_start() {
            return Some(true);
        }
        let behind = text.get(at + THINK_OPEN.len()..).unwrap_or_default();
        let next = behind.chars().next()?;
        Some(!matches!(
            next,
            ' ' | ',' | '.' | ';' | ':' | '!' | '?' | ')' | ']' | '}' | '"' | '\''
        ))
    }

    /// White space at the start, then a tag or text; false: more text is needed.
    fn lead(&mut self, text: &str, at: &mut usize, from: &mut usize) -> bool {
        *at = skip_space(text, *at);
        let rest = text.get(*at..).unwrap_or_default();
        let tag = match rest.as_bytes().first() {
            None if *at <= LEAD_LIMIT => return false,
            Some(b'<') if *at <= LEAD_LIMIT => Tag::think(rest),
            _ => Tag::None,
        };
        match tag {
            Tag::Partial => return false,
            Tag::ThinkOpen => {
                self.open(at, from);
            }
            Tag::ThinkClose => {
                *at += THINK_CLOSE.len();
                *from = *at;
                self.seen = Some(Opener::Prompt);
                (self.closed, self.behind_tag, self.state) = (true, true, State::Content);
            }
            _ => match self.opener {
                Opener::Prompt => {
                    *from = *at;
                    self.watch.thought = true;
                    self.state = State::Block;
                }
                Opener::Model | Opener::Unknown { hold: 0 } => self.start(State::Content, at, *from),
                Opener::Unknown { hold } => self.start(State::Undecided { hold }, at, *from),
            },
        }
        true
    }

    /// Goes on from the white space, which is text now.
    fn start(&mut self, state: State, at: &mut usize, from: usize) {
        self.state = state;
        *at = from;
    }

    fn open(&mut self, at: &mut usize, from: &mut usize) {
        *at += THINK_OPEN.len();
        *from = *at;
        if self.opener != Opener::Prompt {
            self.seen.get_or_insert(Opener::Model);
        }
        // a tag counts only in plain text, so that no place is lost by starting anew here and behind the block
        self.watch.marks = Marks::default();
        // behind a later opening tag white space is kept: it parts the two texts
        self.behind_tag = !self.reasoned;
        self.calls = None;
        self.watch.thought = true;
        self.state = State::Block;
    }

    fn close(&mut self, text: &str, at: &mut usize, from: &mut usize, out: &mut Vec<Part>) {
        let calls = self.calls.take();
        let end = calls.unwrap_or(*at);
        let was = std::mem::replace(&mut self.state, State::Content);
        let channel = if was == State::Content {
            Channel::Content
        } else {
            Channel::Reasoning
        };
        self.show(channel, text.get(*from..end), out);
        if was != State::Block {
            self.seen = Some(Opener::Prompt);
        }
        if let Some(calls) = calls.and_then(|calls| text.get(calls..*at)) {
            self.state = State::Closed {
                calls: calls.to_owned(),
            };
        }
        self.watch.marks = Marks::default();
        self.watch.thought = false;
        *at += THINK_CLOSE.len();
        *from = *at;
        (self.closed, self.behind_tag) = (true, true);
    }

    /// Behind the calls of a block: do more calls or the end of the block follow, or text? False: more text is needed.
    fn behind_calls(&mut self, text: &str, at: &mut usize) -> bool {
        loop {
            *at = skip_space(text, *at);
            let rest = text.get(*at..).unwrap_or_default();
            if rest.is_empty() {
                return false;
            }
            let tag = if rest.starts_with('<') {
                Tag::read(rest)
            } else {
                Tag::None
            };
            match tag {
                Tag::Partial => return false,
                Tag::CallClose { len } => *at += len,
                Tag::ThinkClose => return true,
                _ if self.watch.opens_call(rest) == Some(true) => return true,
                _ => {
                    self.calls = None;
                    return true;
                }
            }
        }
    }

    fn show(&mut self, channel: Channel, text: Option<&str>, out: &mut Vec<Part>) {
        let Some(text) = text.filter(|text| !text.is_empty()) else {
            return;
        };
        self.reasoned |= channel == Channel::Reasoning;
        match (channel, out.last_mut()) {
            (Channel::Reasoning, Some(Part::Reasoning(shown))) | (Channel::Content, Some(Part::Content(shown))) => {
                shown.push_str(text);
            }
            (Channel::Reasoning, _) => out.push(Part::Reasoning(text.to_owned())),
            (Channel::Content, _) => out.push(Part::Content(text.to_owned())),
        }
    }
}

fn skip_space(text: &str, at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    text.len() - rest.trim_start_matches(space).len()
}
