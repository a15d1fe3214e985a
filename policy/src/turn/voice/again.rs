//! A broken call of one choice, asked again (B26, B27).
//!
//! When a call can't be read, what the stages give from there on is set aside, and a second pair of stages is brought to where
//! the call began by reading the same text once more. The continuation enters those. If it gives the call, what was set
//! aside is forgotten; if it doesn't, the first pair goes on with it as if nothing had been asked. So nothing is shown
//! twice, and nothing is lost.
//!
//! | state | event | next |
//! | --- | --- | --- |
//! | `Idle` | a broken call, a try left, its place certain | `Wanted` |
//! | `Wanted` | the continuation begins | `Asked` |
//! | `Asked` | its call is valid | `Idle` |
//! | `Asked` | anything else comes first | `Failed` |
//! | any but `Idle` | the choice is finished | `Idle`, what was set aside is given out |

use std::sync::Arc;

use super::super::broken::{as_written, certain_name};
use super::super::said::Said;
use super::super::transcript::Transcript;
use super::super::{AskAgain, Guide, OnInvalid};
use super::Voice;
use crate::reasoning::{Opener, Part, Splitter, Thinking};
use crate::tool_call::{Call, Piece, Reason, Scanner, Verdict};

/// What the guided text begins behind.
const HEAD: &str = "<tool_call>\n";
/// Put before it in a block that is still open: the call was meant, so the thinking had ended.
const BLOCK_END: &str = "</think>\n\n";

/// See the module.
#[derive(Debug, Default)]
pub(super) enum Again {
    #[default]
    Idle,
    Wanted(Box<Aside>),
    Asked(Box<Aside>),
    Failed(Box<Aside>),
}

/// What is set aside while a call is asked again.
#[derive(Debug)]
pub(super) struct Aside {
    raw: String,
    reason: Reason,
    tool: Option<String>,
    so_far: String,
    /// The pair of stages that isn't in use.
    stages: (Option<Splitter>, Option<Scanner>),
    /// What came behind the call.
    pub(super) pieces: Vec<Piece>,
    pub(super) parts: Vec<Part>,
    /// The stages have been finished.
    pub(super) ended: bool,
}

impl Voice {
    /// Sets the broken call `raw` aside, if it can be asked again.
    pub(super) fn wants_again(&mut self, raw: &str, reason: &Reason, at: Option<usize>, cut: bool) -> bool {
        let asks = matches!(self.again, Again::Idle) && self.reasks_left > 0 && self.calls_shown < self.call_limit;
        if !asks || matches!(reason, Reason::TooLong | Reason::TooMany) || (cut && *reason == Reason::Cut) {
            return false;
        }
        let Some(aside) = at.and_then(|at| self.set_aside(raw, reason, at)) else {
            return false;
        };
        self.reasks_left -= 1;
        self.asked += 1;
        self.again = Again::Wanted(Box::new(aside));
        true
    }

    fn set_aside(&self, raw: &str, reason: &Reason, at: usize) -> Option<Aside> {
        let before = self.transcript.as_ref()?.text()?.get(..at)?;
        let tools = Arc::clone(self.tools.as_ref()?);
        let mut splitter = self.thinking.map(|(thinking, opener)| {
            let (thinking, opener) = if self.split_upstream {
                (Thinking::On, Opener::Prompt)
            } else {
                (thinking, opener)
            };
            Splitter::new(thinking, opener, Some(Arc::clone(&tools)))
        });
        let mut scanner = Scanner::new(Arc::clone(&tools), self.bare);
        let mut so_far = before.to_owned();
        let mut parts = Vec::new();
        if let Some(splitter) = &mut splitter {
            splitter.push(before, &mut parts);
            let rest = if splitter.in_block() {
                [BLOCK_END, HEAD].concat()
            } else {
                HEAD.to_owned()
            };
            splitter.push(&rest, &mut parts);
            so_far.push_str(&rest);
        } else {
            so_far.push_str(HEAD);
            parts.push(Part::Content(so_far.clone()));
        }
        // What they give has been shown already.
        let mut shown = Vec::new();
        for part in parts {
            if let Part::Content(text) = part {
                scanner.push(&text, &mut shown);
            }
        }
        // Where the tag would be text, nothing can be asked from.
        scanner.in_call().then(|| Aside {
            raw: raw.to_owned(),
            reason: reason.clone(),
            tool: certain_name(raw, &tools).map(str::to_owned),
            so_far,
            stages: (splitter, Some(scanner)),
            pieces: Vec::new(),
            parts: Vec::new(),
            ended: false,
        })
    }

    /// What is set aside and not asked yet.
    pub(super) fn aside(&mut self) -> Option<&mut Aside> {
        match &mut self.again {
            Again::Wanted(aside) => Some(aside),
            _ => None,
        }
    }

    /// The question, while it is to be asked.
    pub(in super::super) fn question(&self) -> Option<AskAgain> {
        let Again::Wanted(aside) = &self.again else { return None };
        Some(AskAgain {
            so_far: aside.so_far.clone(),
            guide: Guide::Call {
                tool: aside.tool.clone(),
            },
            number: self.asked,
            choice: self.index,
        })
    }

    /// The question about what follows the call that was asked again.
    pub(in super::super) fn question_behind(&self) -> Option<AskAgain> {
        let so_far = self.transcript.as_ref()?.text()?.to_owned();
        Some(AskAgain {
            so_far,
            guide: Guide::Free,
            number: self.asked,
            choice: self.index,
        })
    }

    /// The upstream is lost, and another one goes on behind what was heard (B31). Content whose place isn't known was never shown:
    /// it is forgotten, and said anew. From now on one field holds all text, whatever vLLM had split.
    pub(in super::super) fn cross_seam(&mut self) {
        self.torn = None;
        if self.source != super::Source::Fresh {
            self.source = super::Source::OneField;
        }
    }

    /// What the model has written of this choice, if it is known.
    pub(in super::super) fn text_so_far(&self) -> Option<&str> {
        self.transcript.as_ref()?.text()
    }

    /// The continuation begins: what is heard from now on is its text.
    pub(in super::super) fn go_on(&mut self) {
        match std::mem::take(&mut self.again) {
            Again::Wanted(mut aside) => {
                self.swap_stages(&mut aside);
                let start = aside.so_far.len() - HEAD.len();
                let mut transcript = Transcript::of(aside.so_far.clone());
                transcript.skip_to(start);
                self.transcript = Some(transcript);
                self.asked_at.push(start);
                (self.source, self.torn) = (super::Source::OneField, None);
                self.again = Again::Asked(aside);
            }
            other => self.again = other,
        }
    }

    fn swap_stages(&mut self, aside: &mut Aside) {
        std::mem::swap(&mut self.splitter, &mut aside.stages.0);
        std::mem::swap(&mut self.scanner, &mut aside.stages.1);
    }

    /// The call that was asked again hasn't come yet.
    pub(in super::super) fn awaits_call(&self) -> bool {
        matches!(self.again, Again::Wanted(_) | Again::Asked(_) | Again::Failed(_))
    }

    /// Where in the text calls begin that were asked again, the one in question too.
    pub(in super::super) fn asked_places(&self) -> Vec<usize> {
        let mut places = self.asked_at.clone();
        if let Again::Wanted(aside) = &self.again {
            places.push(aside.so_far.len() - HEAD.len());
        }
        places
    }

    /// All calls that were asked again came back valid.
    pub(in super::super) fn is_answered(&self) -> bool {
        self.answered == self.asked_at.len()
    }

    /// Nothing more is asked: the next [`finish`](Voice::finish) gives out what was set aside.
    pub(in super::super) fn give_up(&mut self) {
        self.gives_up = true;
    }

    /// Something else came instead of it.
    pub(in super::super) fn got_no_call(&self) -> bool {
        matches!(self.again, Again::Failed(_))
    }

    /// A piece of the continuation. True if it is to be shown.
    pub(super) fn admits(&mut self, piece: &Piece) -> bool {
        match std::mem::take(&mut self.again) {
            Again::Asked(aside) => {
                let valid = matches!(piece, Piece::Call(_));
                if !valid {
                    self.again = Again::Failed(aside);
                }
                valid
            }
            Again::Failed(aside) => {
                self.again = Again::Failed(aside);
                false
            }
            other => {
                self.again = other;
                true
            }
        }
    }

    /// The choice ends and the call has not come: what was set aside is given out after all. True if the stages were finished.
    pub(super) fn put_back(&mut self, cut: bool, said: &mut Said) -> bool {
        let mut aside = match std::mem::take(&mut self.again) {
            Again::Idle => return false,
            Again::Wanted(aside) => aside,
            Again::Asked(mut aside) | Again::Failed(mut aside) => {
                self.swap_stages(&mut aside);
                aside
            }
        };
        self.reasks_left = 0;
        self.transcript = None;
        if cut {
            // The answer's length was used up before the call.
            self.judge(aside.tool.take().unwrap_or_default(), Verdict::Refused(aside.reason));
            return true;
        }
        self.refuse(&aside.raw, aside.reason.clone(), cut, said);
        self.pieces = std::mem::take(&mut aside.pieces);
        self.sort_pieces(cut, said);
        self.parts = std::mem::take(&mut aside.parts);
        self.sort_parts(said);
        aside.ended
    }

    /// A call that isn't valid and won't be (B27).
    pub(super) fn refuse(&mut self, raw: &str, reason: Reason, cut: bool, said: &mut Said) {
        // Cut off by length: half a call helps nobody, the finish says what happened (B28).
        let gone = cut && reason == Reason::Cut;
        let written = (self.on_invalid == OnInvalid::Pass).then(|| as_written(raw)).flatten();
        match (self.on_invalid, written) {
            _ if gone => {}
            (_, Some((name, arguments))) => {
                let call = Call {
                    name,
                    arguments,
                    raw: raw.to_owned(),
                    verdict: Verdict::Refused(reason),
                };
                return self.show_call(call, said);
            }
            (OnInvalid::Error, _) => self.denied = true,
            _ => self.tell(raw, said),
        }
        let tool = self.tools.as_ref().and_then(|tools| certain_name(raw, tools));
        let tool = tool.unwrap_or_default().to_owned();
        self.judge(tool, Verdict::Refused(reason));
    }
}
