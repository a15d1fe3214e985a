//! What a turn gives out: steps for the relay, facts for the record.

use bytes::Bytes;

use crate::protocol::fault::Fault;
use crate::protocol::usage::Usage;
use crate::reasoning::Opener;
use crate::tool_call::{Call, Verdict};

/// What is to be done next.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Emit(Frame),
    /// The upstream broke: an error event, an end without a finish, an event that can't be read. Nothing follows.
    Fault(Fault),
    /// `[DONE]` has been emitted, all is well. Nothing follows.
    Done,
    /// Ask the model again from the last certain byte. Not produced before re-asking exists.
    AskAgain(AskAgain),
}

/// A call that is to be asked again, with its raw text.
#[derive(Debug)]
pub struct AskAgain {
    /// The choice it belongs to.
    pub choice: u32,
    /// The call as it came.
    pub call: Call,
}

/// One or more complete SSE frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the client gets.
    pub bytes: Bytes,
    /// Whether something of the answer is in it.
    pub shows: Shows,
}

/// What a frame shows of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shows {
    /// Role, finish, usage, end.
    #[default]
    Nothing,
    /// Reasoning, text or a call: `ttft_client` ends with the first of these.
    Token,
}

impl Shows {
    pub(super) fn or(self, other: Self) -> Self {
        if self == Self::Nothing { other } else { self }
    }
}

/// Why a choice ended, as the client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model was done.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// It wants tools called.
    ToolCalls,
    /// A word of the upstream that isn't one of these.
    Other(String),
}

impl Finish {
    /// The value of `finish_reason`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Other(word) => word,
        }
    }

    pub(super) fn read(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "length" => Self::Length,
            "tool_calls" => Self::ToolCalls,
            word => Self::Other(word.to_owned()),
        }
    }
}

/// A call that was judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The function; empty if none could be read.
    pub tool: String,
    /// What became of the call.
    pub verdict: Verdict,
}

/// What is known of the answer so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Tokens: vLLM's count, or an estimate from chunks while (or if) there is none.
    pub usage: Usage,
    /// Events that carried a token.
    pub upstream_chunks: u64,
    /// Of these, how many came in the last push.
    pub tokens_in_last_push: u32,
    /// The first event that carried a token came in the last push: `ttft_engine` ends here.
    pub first_token_in_last_push: bool,
    /// How each choice that has ended did so, in the order of ending.
    pub finish: Vec<Finish>,
    /// Calls shown, over all choices.
    pub tool_calls: u32,
    /// Calls judged, good and bad, in the order of judging; bounded.
    pub verdicts: Vec<Judged>,
    /// Who opens think blocks, if the answer showed it: for the plan of the model's next answer.
    pub opener: Option<Opener>,
    /// A call was held back at the end of the last push: time that passes so is `tool_hold`, not a slow engine.
    pub holds_call: bool,
    /// A role was received.
    pub saw_role: bool,
    /// Some data line has been emitted: the request can't be sent anew any more.
    pub shown: bool,
}
