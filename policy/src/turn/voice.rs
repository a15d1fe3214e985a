//! The stages of one choice: what vLLM sent for it goes in, what the client gets of it comes out as [`Said`].
//!
//! If vLLM has split the reasoning off already (B16), its split is undone and made anew: text of its reasoning field enters the
//! splitter as the inside of a block, and its content behind a `</think>` that is put back. So one splitter judges white
//! space, second blocks and tags that leaked into either field, whichever way the text came. vLLM 0.32 also ends the reasoning
//! at a `<tool_call>` inside the block, and its content doesn't say so: see `torn`. Broken calls are `again`'s.

mod again;
mod certain;
mod release;

use std::sync::Arc;

use self::again::Again;
use super::engine_calls::{EngineCalls, Numbering};
use super::said::{Said, call_id};
use super::torn::Torn;
use super::transcript::Transcript;
use super::written_back::WrittenBack;
use super::{AnswerPlan, Finish, Judged, OnInvalid, ReasoningNames, ReasoningPlan, Release, ToolPlan};
use crate::protocol::chat::{self, Malformed, unquote};
use crate::reasoning::{Channel, Opener, Part, Splitter, Thinking};
use crate::tool_call::{Bare, Call, Piece, Reason, Scanner, ToolSet, Verdict};

/// One choice of an answer.
#[derive(Debug)]
pub(super) struct Voice {
    pub(super) index: u32,
    /// The client got the role.
    pub(super) introduced: bool,
    /// The client got content.
    pub(super) content_shown: bool,
    pub(super) finish: Option<Finish>,
    /// What became of the calls of this choice.
    pub(super) verdicts: Vec<Judged>,
    calls_shown: u32,
    calls_counted: u32,
    call_limit: u32,
    id_seed: u64,
    named_function: bool,
    /// The scanner found a call that was shown.
    found_calls: bool,
    /// The text is a whole message, not a delta.
    whole: bool,
    /// How the splitter starts; `None` leaves think tags alone.
    thinking: Option<(Thinking, Opener)>,
    tools: Option<Arc<ToolSet>>,
    splitter: Option<Splitter>,
    source: Source,
    scanner: Option<Scanner>,
    /// Calls that vLLM parsed: judged where there are tools, else taken over.
    written_back: WrittenBack,
    engine: EngineCalls,
    /// Reasoning is put back into the content, with its tags.
    inline: bool,
    /// With `inline`: a `<think>` was written that isn't closed.
    inline_open: bool,
    /// Content whose place isn't known yet: `source` is still `Reasoning`.
    torn: Option<Box<Torn>>,
    /// Events that brought a token of it.
    pub(super) tokens: u64,
    /// Its tokens by an engine's count, where it went on behind a seam.
    pub(super) counted: Option<u64>,
    /// What the model wrote; only where a call may be asked again, or the answer may have to go on elsewhere.
    transcript: Option<Transcript>,
    again: Again,
    reasks_left: u8,
    /// Questions so far.
    asked: u32,
    /// Where in the transcript the calls begin that were asked again.
    asked_at: Vec<usize>,
    /// How many of these came back valid.
    answered: usize,
    /// Nothing more is asked: what was set aside is to be given out.
    gives_up: bool,
    on_invalid: OnInvalid,
    /// A call wasn't valid, and the answer is to fail for it.
    pub(super) denied: bool,
    bare: Bare,
    release: Release,
    /// What of the open call is certain, and its index if something of it was shown.
    open: Option<Box<release::Open>>,
    /// The open call isn't held any longer.
    hurries: bool,
    /// The text that comes now is the last: a call that isn't whole by its end is none, and is not to be begun.
    pub(super) ends: bool,
    /// The first text came in vLLM's reasoning field.
    split_upstream: bool,
    parts: Vec<Part>,
    pieces: Vec<Piece>,
}

/// Where the text of a choice comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// No text yet.
    Fresh,
    /// One field holds all text, tags included.
    OneField,
    /// vLLM's reasoning field; `closed` if a `</think>` leaked into it.
    Reasoning { closed: bool },
    /// vLLM's content field, behind its reasoning.
    Content,
}

/// Judged calls of one choice that are kept for the record.
const VERDICTS_LIMIT: usize = 256;

impl Voice {
    pub(super) fn new(index: u32, plan: &AnswerPlan, whole: bool) -> Self {
        let (scanner, tools, bare) = match &plan.tools {
            ToolPlan::Scan { tools, bare } => {
                let scanner = Scanner::new(Arc::clone(tools), *bare);
                (Some(scanner), Some(Arc::clone(tools)), *bare)
            }
            ToolPlan::Off => (None, None, Bare::Text),
        };
        let reasks_left = if scanner.is_some() { plan.reasks } else { 0 };
        Self {
            index,
            introduced: false,
            content_shown: false,
            finish: None,
            verdicts: Vec::new(),
            calls_shown: 0,
            calls_counted: 0,
            call_limit: if plan.parallel_tool_calls { u32::MAX } else { 1 },
            id_seed: plan.id_seed,
            named_function: plan.named_function,
            found_calls: false,
            whole,
            thinking: thinking(plan),
            tools,
            splitter: None,
            source: Source::Fresh,
            scanner,
            written_back: WrittenBack::default(),
            engine: EngineCalls::default(),
            inline: plan.names == ReasoningNames::Inline,
            inline_open: false,
            torn: None,
            tokens: 0,
            counted: None,
            transcript: (reasks_left > 0 || (!whole && plan.seam.goes_on())).then(Transcript::default),
            again: Again::Idle,
            reasks_left,
            asked: 0,
            asked_at: Vec::new(),
            answered: 0,
            gives_up: false,
            on_invalid: plan.on_invalid,
            denied: false,
            bare,
            release: if whole { Release::Hold } else { plan.release },
            open: None,
            hurries: false,
            ends: false,
            split_upstream: false,
            parts: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Calls that were begun since this was last asked.
    pub(super) fn calls_begun(&mut self) -> u32 {
        self.calls_shown - std::mem::replace(&mut self.calls_counted, self.calls_shown)
    }

    /// Who opens think blocks, if this choice, ended as `upstream` says, showed it.
    pub(super) fn learn_opener(&self, upstream: &Finish) -> Option<Opener> {
        // Once vLLM's split was undone, its text says nothing of who opened the block.
        let told = self.source == Source::OneField && !self.split_upstream;
        let splitter = self.splitter.as_ref().filter(|_| told);
        splitter.and_then(|splitter| splitter.learn(*upstream == Finish::Stop))
    }

    /// A call is held back now.
    pub(super) fn holds_call(&self) -> bool {
        let holds = self.torn.is_some()
            || self.awaits_call()
            || self.written_back.is_open()
            || self.scanner.as_ref().is_some_and(Scanner::in_call);
        holds && !self.shows_open()
    }

    /// It is a message, not a row of deltas.
    pub(super) fn whole(&self) -> bool {
        self.whole
    }

    /// Takes what `choice` (of the chunk `text`) says; the finish comes afterwards by [`finish`](Self::finish).
    pub(super) fn hear(&mut self, text: &str, choice: &chat::Choice, said: &mut Said) -> Result<(), Malformed> {
        if let Some(token) = choice.reasoning.or(choice.reasoning_content) {
            let reasoning = unquote(token.of(text))?;
            if !reasoning.is_empty() {
                self.hear_reasoning(&reasoning, said);
            }
        }
        if let Some(token) = choice.content {
            let content = unquote(token.of(text))?;
            if !content.is_empty() {
                self.close_written_back(said);
                self.hear_content(&content, said);
            }
        }
        if let Some(array) = choice.tool_calls.filter(|array| array.of(text) != "[]") {
            // What vLLM took out of the text isn't known.
            self.spoil_transcript();
            if let Some(tools) = self.tools.clone() {
                return self.hear_parsed(array.of(text), &tools, said);
            }
            let mut numbering = Numbering {
                shown: &mut self.calls_shown,
                limit: self.call_limit,
                id_seed: self.id_seed,
                choice: self.index,
                whole: self.whole,
            };
            self.engine.take_over(array.of(text), &mut numbering, said)?;
            if !said.calls.is_empty() {
                self.close_inline(said);
            }
        }
        Ok(())
    }

    /// Calls that vLLM parsed are judged like ours.
    fn hear_parsed(&mut self, array: &str, tools: &Arc<ToolSet>, said: &mut Said) -> Result<(), Malformed> {
        if self.shows_open() && !self.written_back.is_open() {
            // A call that leaked into the content is open, and something of it was shown.
            self.break_open(Reason::Cut);
        }
        self.written_back.read(array, self.whole, tools, &mut self.pieces)?;
        self.sort_pieces(false, said);
        self.release_certain(said);
        Ok(())
    }

    /// What vLLM tells of a call ends with the next content.
    fn close_written_back(&mut self, said: &mut Said) {
        if let Some(tools) = self.tools.as_ref().filter(|_| self.written_back.is_open()) {
            self.written_back.close(tools, &mut self.pieces);
            self.sort_pieces(false, said);
        }
    }

    /// Takes the whole text that the model wrote, tags included.
    pub(super) fn hear_all(&mut self, text: &str, asked_at: &[usize], said: &mut Said) {
        if !asked_at.is_empty() {
            self.transcript.get_or_insert_default();
        }
        self.asked = asked_at.len() as u32;
        self.asked_at.extend_from_slice(asked_at);
        self.reasks_left = self.reasks_left.saturating_sub(asked_at.len().min(255) as u8);
        self.hear_content(text, said);
    }

    /// The upstream says that the choice is at its end: what is held leaves, and the finish that the client gets is known.
    /// `None` if a call is to be asked again first: then it isn't the end.
    pub(super) fn finish(&mut self, upstream: Finish, said: &mut Said) -> Option<Finish> {
        let cut = upstream == Finish::Length;
        if cut {
            self.written_back.cut(&mut self.pieces);
            self.sort_pieces(cut, said);
        }
        self.close_written_back(said);
        if self.aside().is_some() && !self.gives_up {
            return None;
        }
        if !self.put_back(cut, said) {
            self.mend_as_split(said);
            if let Some(splitter) = &mut self.splitter {
                splitter.finish(&mut self.parts);
            }
            self.sort_parts(said);
            if self.aside().is_some() {
                return None;
            }
            if let Some(scanner) = &mut self.scanner {
                scanner.finish(&mut self.pieces);
            }
            self.sort_pieces(cut, said);
            if let Some(aside) = self.aside() {
                aside.ended = true;
                return None;
            }
        }
        let finish = match upstream {
            Finish::Stop if self.found_calls && !self.named_function => Finish::ToolCalls,
            // None of vLLM's calls is one.
            Finish::ToolCalls if self.tools.is_some() && self.calls_shown == 0 => Finish::Stop,
            upstream => upstream,
        };
        self.finish = Some(finish.clone());
        Some(finish)
    }

    fn spoil_transcript(&mut self) {
        if let Some(transcript) = &mut self.transcript {
            transcript.spoil();
        }
    }

    pub(super) fn wrote(&mut self, text: &str) {
        if let Some(transcript) = &mut self.transcript {
            transcript.heard(text);
        }
    }

    fn left(&mut self, text: &str) -> Option<usize> {
        self.transcript.as_mut()?.judged(text)
    }

    fn hear_reasoning(&mut self, text: &str, said: &mut Said) {
        let Some((_, opener)) = self.thinking else {
            self.spoil_transcript();
            return self.reason(text, said);
        };
        self.mend_as_split(said);
        match self.source {
            Source::Fresh => {
                self.splitter = Some(Splitter::new(Thinking::On, Opener::Prompt, self.tools.clone()));
                self.split_upstream = true;
                if opener != Opener::Prompt {
                    self.wrote("<think>");
                }
            }
            Source::OneField | Source::Content => self.split("<think>", said),
            Source::Reasoning { .. } => {}
        }
        self.split(text, said);
        let in_block = self.splitter.as_ref().is_some_and(Splitter::in_block);
        let was_closed = self.source == Source::Reasoning { closed: true };
        // White space alone doesn't enter the block yet.
        self.source = Source::Reasoning {
            closed: was_closed || !(in_block || text.trim().is_empty()),
        };
    }

    fn hear_content(&mut self, text: &str, said: &mut Said) {
        let Some((thinking, opener)) = self.thinking else {
            self.wrote(text);
            return self.say(text, said);
        };
        if self.torn.is_some() {
            return self.hear_torn(text, said);
        }
        match self.source {
            Source::Fresh => {
                self.splitter = Some(Splitter::new(thinking, opener, self.tools.clone()));
                self.source = Source::OneField;
            }
            Source::Reasoning { closed: false } if Torn::begins(text) => {
                if let Some(splitter) = &self.splitter {
                    self.torn = Some(Box::new(Torn::new(splitter.clone())));
                }
                return self.hear_torn(text, said);
            }
            Source::Reasoning { closed } => {
                if !closed {
                    self.split("</think>", said);
                }
                self.source = Source::Content;
            }
            Source::OneField | Source::Content => {}
        }
        self.split(text, said);
    }

    /// Content behind a reasoning that may have been torn off.
    fn hear_torn(&mut self, text: &str, said: &mut Said) {
        let Some(torn) = &mut self.torn else { return };
        torn.push(text);
        if torn.in_block() {
            if torn.is_full() {
                self.mend_as_split(said);
            }
            return;
        }
        if let Some(torn) = self.torn.take() {
            self.wrote(torn.text());
            let (splitter, parts) = torn.block_closed();
            self.splitter = Some(splitter);
            self.parts.extend(parts);
            self.source = Source::Content;
            self.sort_parts(said);
        }
    }

    /// No `</think>` came: vLLM's split stands, if it was in doubt.
    fn mend_as_split(&mut self, said: &mut Said) {
        let Some(torn) = self.torn.take() else { return };
        self.split("</think>", said);
        if let Some(splitter) = &mut self.splitter {
            splitter.expect_stray();
        }
        self.source = Source::Content;
        self.split(torn.text(), said);
    }

    fn split(&mut self, text: &str, said: &mut Said) {
        self.wrote(text);
        let Some(splitter) = &mut self.splitter else { return };
        match splitter.pass(text) {
            Some(Channel::Reasoning) => self.reason(text, said),
            Some(Channel::Content) => self.say(text, said),
            None => {
                splitter.push(text, &mut self.parts);
                self.sort_parts(said);
            }
        }
    }

    fn sort_parts(&mut self, said: &mut Said) {
        let mut parts = std::mem::take(&mut self.parts);
        for part in parts.drain(..) {
            match (part, self.aside()) {
                (part, Some(aside)) => aside.parts.push(part),
                (Part::Reasoning(text), None) => self.reason(&text, said),
                (Part::Content(text), None) => self.say(&text, said),
            }
        }
        self.parts = parts;
    }

    /// Content on its way through the scanner.
    fn say(&mut self, text: &str, said: &mut Said) {
        let passes = self.scanner.as_mut().is_none_or(|scanner| scanner.pass(text));
        if passes {
            self.left(text);
            return self.tell(text, said);
        }
        if let Some(scanner) = &mut self.scanner {
            scanner.push(text, &mut self.pieces);
        }
        self.sort_pieces(false, said);
        self.release_certain(said);
    }

    /// Reasoning on its way to the client.
    fn reason(&mut self, text: &str, said: &mut Said) {
        self.left(text);
        said.reasoned_bytes += text.len();
        if !self.inline {
            return said.reasoning.push_str(text);
        }
        if !std::mem::replace(&mut self.inline_open, true) {
            said.content.push_str("<think>\n");
        }
        said.content.push_str(text);
    }

    /// Content on its way to the client.
    fn tell(&mut self, text: &str, said: &mut Said) {
        self.close_inline(said);
        said.content.push_str(text);
    }

    fn close_inline(&mut self, said: &mut Said) {
        if std::mem::take(&mut self.inline_open) {
            said.content.push_str("</think>\n\n");
        }
    }

    fn sort_pieces(&mut self, cut: bool, said: &mut Said) {
        let mut pieces = std::mem::take(&mut self.pieces);
        for piece in pieces.drain(..) {
            if let Some(aside) = self.aside() {
                aside.pieces.push(piece);
                continue;
            }
            if !self.admits(&piece) {
                continue;
            }
            match piece {
                Piece::Text(text) => {
                    self.open = None;
                    self.left(&text);
                    self.tell(&text, said);
                }
                Piece::Call(mut call) => {
                    let at = self.left(&call.raw);
                    if at.is_some_and(|at| self.asked_at.contains(&at)) {
                        self.answered += 1;
                        call.verdict = Verdict::Reasked(1);
                    }
                    self.show_call(call, said);
                }
                Piece::Invalid { raw, reason } => {
                    let at = self.left(&raw);
                    if self.shows_open() {
                        self.break_open(reason);
                        continue;
                    }
                    self.open = None;
                    if !self.wants_again(&raw, &reason, at, cut) {
                        self.refuse(&raw, reason, cut, said);
                    }
                }
            }
        }
        self.pieces = pieces;
    }

    fn show_call(&mut self, call: Call, said: &mut Said) {
        if self.shows_open() {
            return self.complete_open(call, said);
        }
        self.open = None;
        if self.calls_shown >= self.call_limit {
            return;
        }
        self.close_inline(said);
        let id = call_id(self.id_seed, self.index, self.calls_shown);
        said.add_call(
            (!self.whole).then_some(self.calls_shown),
            &id,
            &call.name,
            &call.arguments,
        );
        self.calls_shown += 1;
        self.found_calls = true;
        self.judge(call.name, call.verdict);
    }

    fn judge(&mut self, tool: String, verdict: Verdict) {
        if self.verdicts.len() < VERDICTS_LIMIT {
            self.verdicts.push(Judged { tool, verdict });
        }
    }
}

/// How think tags are looked for. Inline reasoning stays where it is, but a call inside a block isn't one, so that with a
/// scanner it is split all the same and put back afterwards.
fn thinking(plan: &AnswerPlan) -> Option<(Thinking, Opener)> {
    let stays = plan.names == ReasoningNames::Inline && !matches!(plan.tools, ToolPlan::Scan { .. });
    match plan.reasoning {
        ReasoningPlan::Qwen3 { thinking, opener } if !stays => Some((thinking, opener)),
        _ => None,
    }
}
