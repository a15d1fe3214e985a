//! How one answer is made: decided before it begins, from request, configuration and replica.

use std::sync::Arc;

use super::continuable::{Continuable, Obstacle};
use super::stops::Stops;
use crate::reasoning::{Opener, Thinking};
use crate::tool_call::{Bare, ToolSet};

/// How one answer is made, decided before it begins.
#[derive(Clone, Debug)]
pub struct AnswerPlan {
    /// Chat or legacy completions.
    pub surface: Surface,
    /// Whether think blocks are split off.
    pub reasoning: ReasoningPlan,
    /// Who finds tool calls.
    pub tools: ToolPlan,
    /// False: only the first call of a choice is shown.
    pub parallel_tool_calls: bool,
    /// `tool_choice` names a function: its call finishes with `stop`, as OpenAI's does (B28).
    pub named_function: bool,
    /// The client asked for usage in its stream. It is always asked for upstream.
    pub include_usage: bool,
    /// The client asked for `x_sluice.verdicts` (B29).
    pub show_verdicts: bool,
    /// How reasoning is named to the client.
    pub names: ReasoningNames,
    /// The answer is the simulator's. It says so itself (B6) and goes through the stages like any other.
    pub simulated: bool,
    /// Call ids are made of it: another for each answer.
    pub id_seed: u64,
    /// How many times a call of this answer that isn't valid is asked again (B26). For an answer of one choice only.
    pub reasks: u8,
    /// What the client gets of a call that still isn't valid (B27).
    pub on_invalid: OnInvalid,
    /// When a call is shown (B20). A whole answer is always held.
    pub release: Release,
    /// How it goes on when its replica is lost (B31). For a stream only.
    pub seam: SeamPlan,
}

/// What is known beforehand of an answer that may have to go on elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeamPlan {
    /// Whether it can.
    pub continuable: Continuable,
    /// How many choices the client asked for.
    pub choices: u32,
    /// Matched across the seam.
    pub stops: Stops,
}

impl SeamPlan {
    /// The answer doesn't go on elsewhere.
    pub fn off() -> Self {
        Self {
            continuable: Continuable::Not(Obstacle::Off),
            choices: 1,
            stops: Stops::default(),
        }
    }

    pub(super) fn goes_on(&self) -> bool {
        self.continuable == Continuable::ByText
    }
}

impl AnswerPlan {
    /// The same, of which nothing is asked again.
    pub(super) fn without_reasks(self) -> Self {
        Self { reasks: 0, ..self }
    }
}

/// When a call is shown (B20). The arguments are the same bytes either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Release {
    /// When it is whole and valid.
    #[default]
    Hold,
    /// As its bytes become certain: no repair can change them any more.
    Certain,
    /// Held up to so many bytes of its text, or until [`Turn::hurry`](super::Turn::hurry); then as `Certain`.
    Auto {
        /// Bytes, tags included.
        held_bytes: usize,
    },
}

/// What becomes of a call that isn't valid and was never shown (B27).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnInvalid {
    /// Its raw text is content.
    #[default]
    Text,
    /// A call as the model wrote it, if it is JSON with a name and arguments; else text.
    Pass,
    /// The answer fails.
    Error,
}

/// The shape of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surface {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`: text as it comes, only usage and the end are judged.
    Completions,
}

/// Whether and how think blocks are split off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningPlan {
    /// Tags are text. Reasoning that vLLM has split off is still named as the client wants it.
    Off,
    /// Qwen3's `<think>`.
    Qwen3 {
        /// What the request says of thinking.
        thinking: Thinking,
        /// Who writes the opening tag.
        opener: Opener,
    },
}

/// Who finds tool calls.
#[derive(Clone, Debug)]
pub enum ToolPlan {
    /// Nobody: no tools, or the client's own `tool_choice: "none"`.
    Off,
    /// The scanner, in the text. Calls that vLLM parsed are judged by the same rules, so that this serves a replica with parsers
    /// too: what they miss is found here, and what they get wrong is mended.
    Scan {
        /// The request's tools.
        tools: Arc<ToolSet>,
        /// Whether an answer that is nothing but JSON may be a call.
        bare: Bare,
    },
}

/// The names under which a client gets reasoning (B14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningNames {
    /// `reasoning` and `reasoning_content`.
    Both,
    /// Only `reasoning_content`.
    ReasoningContent,
    /// Only `reasoning`.
    Reasoning,
    /// It stays in the content, tags included.
    Inline,
}
