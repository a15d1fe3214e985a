//! Finds the tags of a text and knows what is inside a call or quoted.
//!
//! Shared by both stages: the splitter looks for think tags *outside* calls, the scanner for the calls themselves. It never
//! holds text; it says up to where the text is decided.

use super::block::{Block, End};
use super::tag::Tag;
use super::tools::ToolSet;
use crate::reasoning::marks::Marks;
use memchr::memchr;
use std::sync::Arc;

/// The next thing of note in a text.
#[derive(Debug)]
pub(crate) enum Sight {
    /// Nothing up to the position, where the text ends or a partial tag begins.
    Wait,
    /// `<think>` at the position.
    ThinkOpen,
    /// `</think>` at the position.
    ThinkClose,
    /// A call's tag began here; the position is behind it.
    CallOpens(usize),
    /// The call ended at the position.
    CallEnds(Box<Block>, End),
    /// A closing tag of this length at the position, without an opening one.
    CallClose(usize),
}

/// A position in one text.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    pub(crate) marks: Marks,
    block: Option<Block>,
    tools: Option<Arc<ToolSet>>,
    think: bool,
    /// Inside a think block.
    pub(crate) thought: bool,
    /// How many blocks may still be looked through past their first closing tag, since each such look may be in vain.
    patience: u8,
}

/// Most blocks of one text that end before where they were looked for.
const PATIENCE: u8 = 8;

impl Watch {
    /// Looks for calls if there are `tools`, and for think tags if `think`.
    pub(crate) fn new(tools: Option<Arc<ToolSet>>, think: bool) -> Self {
        Watch {
            marks: Marks::default(),
            block: None,
            tools: tools.filter(|tools| !tools.is_empty()),
            think,
            thought: false,
            patience: PATIENCE,
        }
    }

    /// Inside a call's block.
    pub(crate) fn in_call(&self) -> bool {
        self.block.is_some()
    }

    /// Ends the block at the end of the answer.
    pub(crate) fn finish(&mut self) -> Option<(Block, End)> {
        let block = self.block.take()?;
        let end = block.finish();
        self.lose_patience(&end);
        Some((block, end))
    }

    fn lose_patience(&mut self, end: &End) {
        if matches!(end, End::Bad { back: Some(_), .. }) {
            self.patience = self.patience.saturating_sub(1);
        }
    }

    /// The tag at `at` is text after all.
    pub(crate) fn skip(&mut self, at: &mut usize) {
        self.marks.advance("<");
        *at += 1;
    }

    /// Takes note of text that holds no `<`; false, and nothing noted, if it does or a call is open.
    pub(crate) fn pass(&mut self, text: &str) -> bool {
        let passes = self.block.is_none() && memchr(b'<', text.as_bytes()).is_none();
        if passes {
            self.marks.advance(text);
        }
        passes
    }

    /// Moves `at` to the next thing of note.
    pub(crate) fn next(&mut self, text: &str, at: &mut usize) -> Sight {
        if let Some(block) = &mut self.block {
            let Some(end) = block.push(text, at) else {
                return Sight::Wait;
            };
            self.marks.after_markup();
            self.lose_patience(&end);
            return match self.block.take() {
                Some(block) => Sight::CallEnds(Box::new(block), end),
                None => Sight::Wait,
            };
        }
        loop {
            let rest = text.get(*at..).unwrap_or_default();
            let plain = memchr(b'<', rest.as_bytes()).unwrap_or(rest.len());
            self.marks.advance(rest.get(..plain).unwrap_or_default());
            *at += plain;
            let rest = rest.get(plain..).unwrap_or_default();
            if rest.is_empty() {
                return Sight::Wait;
            }
            // the end of a block counts anywhere: a stray quote must not make reasoning of the whole answer
            let quoted = self.marks.literal();
            if quoted && !self.thought {
                self.skip(at);
                continue;
            }
            let tag = if self.tools.is_some() && !quoted {
                Tag::read(rest)
            } else {
                Tag::think(rest)
            };
            match (tag, &self.tools) {
                (Tag::Partial, _) => return Sight::Wait,
                (Tag::ThinkOpen, _) if self.think && !quoted => return Sight::ThinkOpen,
                (Tag::ThinkClose, _) if self.think => return Sight::ThinkClose,
                (Tag::CallClose { len }, Some(_)) => return Sight::CallClose(len),
                (Tag::CallOpen { len, name }, Some(tools)) => {
                    let block = Block::tagged(len, name, Arc::clone(tools));
                    return self.open(at, len, block);
                }
                (Tag::Function { len, name }, Some(tools)) if tools.find(&name).is_some() => {
                    let block = Block::bare(len, name, Arc::clone(tools));
                    return self.open(at, len, block);
                }
                _ => self.skip(at),
            }
        }
    }

    /// The text from here on begins a call.
    pub(crate) fn opens_call(&self, text: &str) -> Option<bool> {
        let tag = if text.starts_with('<') {
            Tag::read(text)
        } else {
            Tag::None
        };
        match tag {
            Tag::Partial => None,
            Tag::CallOpen { .. } => Some(true),
            Tag::Function { name, .. } => Some(self.tools.as_ref().is_some_and(|tools| tools.find(&name).is_some())),
            _ => Some(false),
        }
    }

    fn open(&mut self, at: &mut usize, len: usize, block: Block) -> Sight {
        let start = *at;
        let patient = self.patience > 0 && !self.thought;
        self.block = Some(block.thought(self.thought).patient(patient));
        *at += len;
        Sight::CallOpens(start)
    }
}
