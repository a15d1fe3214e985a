//! What a turn gives out: steps for the relay, facts for the record.

use bytes::Bytes;

use crate::protocol::fault::Fault;
use crate::protocol::usage::Usage;
use crate::reasoning::Opener;
use crate::tool_call::Verdict;

/// What is to be done next.
#[derive(Debug)]
pub enum Step {
    /// Send this.
    Emit(Frame),
    /// The upstream broke: an error event, an end without a finish, an event that can't be read. Nothing follows.
    Fault(Fault),
    /// `[DONE]` has been emitted, all is well. Nothing follows.
    Done,
    /// Drop the upstream and ask the same replica to go on (B26): then [`Turn::again`](super::Turn::again), or
    /// [`Turn::give_up`](super::Turn::give_up). Nothing follows before that.
    AskAgain(AskAgain),
    /// One choice has gone on to its end after the upstream was lost (B31): ask for the rest of the next, as after
    /// [`Loss::GoesOn`](super::Loss::GoesOn). Nothing follows before that.
    GoOn(AskAgain),
}

/// What the model is to go on from.
#[derive(Clone, PartialEq, Eq)]
pub struct AskAgain {
    /// The answer so far as the model wrote it, tags included, up to the last certain byte. The prompt comes before it.
    pub so_far: String,
    /// What may follow.
    pub guide: Guide,
    /// Counts the questions of one answer, from 1 on.
    pub number: u32,
    /// The choice that is to go on.
    pub choice: u32,
}

/// What may follow the text so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guide {
    /// One call up to its closing tag, whose opening tag and line end `so_far` ends with: of this function, or of any.
    Call {
        /// A declared name, if it is certain.
        tool: Option<String>,
    },
    /// Anything.
    Free,
}

/// Without the text: answers never reach a log by a stray `{:?}`.
impl std::fmt::Debug for AskAgain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AskAgain")
            .field("so_far_bytes", &self.so_far.len())
            .field("guide", &self.guide)
            .field("number", &self.number)
            .finish()
    }
}

/// What is known when an answer is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The client's `max_tokens`.
    pub wanted_tokens: Option<u64>,
    /// Tokens that fit behind prompt and text so far.
    pub context_tokens: u64,
    /// Tokens of the text so far.
    pub said_tokens: u64,
    /// Most tokens of a guided call.
    pub call_tokens: u64,
}

/// How far a continuation may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Its `max_tokens`, at least 1.
    pub tokens: u64,
    /// Where they end the client's own limit or the context ends: an answer cut there ends as `length`.
    pub ends_answer: bool,
}

impl AskAgain {
    /// The tokens of the continuation; `None` if nothing is left.
    pub fn budget(&self, room: &Room) -> Option<Budget> {
        let wanted = room
            .wanted_tokens
            .map_or(u64::MAX, |tokens| tokens.saturating_sub(room.said_tokens));
        let left = wanted.min(room.context_tokens);
        let limit = match self.guide {
            Guide::Call { .. } => room.call_tokens.max(1),
            Guide::Free => u64::MAX,
        };
        (left > 0).then_some(Budget {
            tokens: left.min(limit),
            ends_answer: left <= limit,
        })
    }
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
    /// Completion tokens of all attempts together, where a call was asked again: what the engine worked, not what the client got.
    pub engine_tokens: Option<u64>,
    /// A call was held back at the end of the last push: time that passes so is `tool_hold`, not a slow engine.
    pub holds_call: bool,
    /// A role was received.
    pub saw_role: bool,
    /// Some data line has been emitted: the request can't be sent anew any more.
    pub shown: bool,
}
