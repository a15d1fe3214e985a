//! Chunks as vLLM 0.32 sends them, and one answer of them through the whole pipeline.

use bytes::Bytes;
use sluice_policy::protocol::sse::{Decoder, EVENT_LIMIT_BYTES, Event};
use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::{Bare, ToolSet};
use sluice_policy::turn::{
    AnswerPlan, OnInvalid, ReasoningNames, ReasoningPlan, Release, SeamPlan, Step, Surface, ToolPlan, Turn,
};
use std::sync::Arc;

use crate::Case;
use crate::requests::TOOLS;
use crate::seed::{Seed, code, prose};

/// Chunks in one run: a multiple of 64, so that each way of cutting comes out even.
const CHUNKS: usize = 192;
/// Chunks that warm the stages: identity, head and tail of a chunk are learned from the first ones.
const WARM_CHUNKS: usize = 8;

/// One text chunk as an SSE event; 4 to 10 bytes of text make 230 to 240 bytes.
pub fn event(text: &str) -> String {
    let text = serde_json::Value::from(text);
    format!(
        "data: {{\"id\":\"chatcmpl-a99069c738ee1f1a\",\"object\":\"chat.completion.chunk\",\"created\":1795489634,\"model\":\"Qwen/Qwen3-32B-AWQ\",\
         \"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text}}},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}}]}}\n\n"
    )
}

/// The first event: the role.
pub fn role() -> String {
    event("").replace("{\"content\":\"\"}", "{\"role\":\"assistant\",\"content\":\"\"}")
}

/// Text of a call of about `bytes` bytes of arguments, cut into tokens of four bytes.
pub fn call_tokens(seed: &mut Seed, bytes: usize) -> Vec<String> {
    let arguments = serde_json::json!({"path": "src/main.rs", "content": code(seed, bytes)});
    let text = format!("<tool_call>\n{{\"name\": \"write_file\", \"arguments\": {arguments}}}\n</tool_call>");
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(4).map(|piece| piece.iter().collect()).collect()
}

/// Default plan of the gateway with tools declared, as for a replica that is known to serve a hybrid Qwen3.
pub fn plan() -> AnswerPlan {
    AnswerPlan {
        surface: Surface::Chat,
        reasoning: ReasoningPlan::Qwen3 {
            thinking: Thinking::Unknown,
            opener: Opener::Model,
        },
        tools: ToolPlan::Scan {
            tools: tool_set(),
            bare: Bare::Calls,
        },
        parallel_tool_calls: true,
        named_function: false,
        include_usage: true,
        show_verdicts: false,
        names: ReasoningNames::Both,
        simulated: false,
        id_seed: 7,
        reasks: 0,
        on_invalid: OnInvalid::Text,
        release: Release::Hold,
        seam: SeamPlan::off(),
    }
}

/// The tools of [`TOOLS`].
///
/// # Panics
/// They are a constant that parses.
#[expect(
    clippy::expect_used,
    reason = "a constant; a harness that can't make its input must stop"
)]
pub fn tool_set() -> Arc<ToolSet> {
    Arc::new(ToolSet::parse(TOOLS.as_bytes()).expect("TOOLS parses"))
}

/// What an answer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Plain content, which leaves as it came.
    Content,
    /// The inside of a think block, which is renamed.
    Reasoning,
    /// A call of 1 KB, over and over: held, checked, shown whole.
    Call,
    /// Content of which every third chunk begins with a `<` that may become a tag: held, then released.
    PartialTag,
}

/// One warmed turn and the pieces that are to be pushed.
pub struct Pushes {
    turn: Turn,
    pieces: Vec<Bytes>,
    chunks: u64,
    steps: Vec<Step>,
    made: Vec<Step>,
}

/// A turn that has seen its first chunks, and `CHUNKS` chunks (one call, for [`Said::Call`]) of `said`, `together` to a push.
pub fn pushes(said: Said, together: usize) -> Pushes {
    let mut seed = Seed::new(11);
    let mut turn = Turn::new(plan());
    let mut steps = Vec::with_capacity(16);
    let opening = match said {
        Said::Reasoning => "<think>",
        Said::Content | Said::Call | Said::PartialTag => "Well",
    };
    let texts = |seed: &mut Seed, count: usize| -> Vec<String> {
        match said {
            Said::Content | Said::Reasoning => (0..count).map(|_| prose(seed).to_owned()).collect(),
            Said::Call => call_tokens(seed, 1024),
            Said::PartialTag => (0..count)
                .map(|at| {
                    if at % 3 == 0 {
                        " <t".to_owned()
                    } else {
                        format!("ab{}", prose(seed))
                    }
                })
                .collect(),
        }
    };
    turn.push(Bytes::from(role()), &mut steps);
    turn.push(Bytes::from(event(opening)), &mut steps);
    for text in texts(&mut seed, WARM_CHUNKS) {
        turn.push(Bytes::from(event(&text)), &mut steps);
    }
    steps.clear();
    let events: Vec<String> = texts(&mut seed, CHUNKS).iter().map(|text| event(text)).collect();
    let pieces = pieces(&events, together);
    Pushes {
        turn,
        pieces,
        chunks: events.len() as u64,
        steps,
        made: Vec::with_capacity(2 * CHUNKS),
    }
}

/// `events`, so many to a piece, as hyper hands them over: counted already, so that the first clone allocates nothing.
fn pieces(events: &[String], together: usize) -> Vec<Bytes> {
    let piece = |some: &[String]| Bytes::from(some.concat());
    events
        .chunks(together)
        .map(piece)
        .inspect(|piece| drop(piece.clone()))
        .collect()
}

impl Case for Pushes {
    fn run(&mut self) {
        for piece in &self.pieces {
            self.turn.push(piece.clone(), &mut self.steps);
            self.made.append(&mut self.steps);
        }
    }

    fn units(&self) -> u64 {
        self.chunks
    }

    fn rest(&mut self) {
        self.made.clear();
    }
}

impl Pushes {
    /// How many frames left, and how many of them are slices of what came in.
    pub fn frames(&self) -> (usize, usize) {
        let inside = |bytes: &Bytes| {
            self.pieces
                .iter()
                .any(|piece| piece.as_ptr_range().contains(&bytes.as_ptr()))
        };
        let frames = self.made.iter().filter_map(|step| {
            if let Step::Emit(frame) = step {
                Some(&frame.bytes)
            } else {
                None
            }
        });
        frames.fold((0, 0), |(all, slices), bytes| {
            (all + 1, slices + usize::from(inside(bytes)))
        })
    }
}

/// Events to be decoded.
pub struct Decoding {
    decoder: Decoder,
    pieces: Vec<Bytes>,
    events: Vec<Event>,
}

/// `CHUNKS` events of about 235 bytes, `together` to a push.
pub fn decoding(together: usize) -> Decoding {
    let mut seed = Seed::new(13);
    let events: Vec<String> = (0..CHUNKS).map(|_| event(prose(&mut seed))).collect();
    Decoding {
        decoder: Decoder::new(EVENT_LIMIT_BYTES),
        pieces: pieces(&events, together),
        events: Vec::with_capacity(CHUNKS),
    }
}

impl Case for Decoding {
    fn run(&mut self) {
        for piece in &self.pieces {
            // The limit is above any input here.
            let _ = self.decoder.push(piece.clone(), &mut self.events);
        }
    }

    fn units(&self) -> u64 {
        CHUNKS as u64
    }

    fn rest(&mut self) {
        self.events.clear();
    }
}

impl Decoding {
    /// Events decoded and not put away.
    pub fn decoded(&self) -> usize {
        self.events.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_have_the_size_that_the_tables_say() {
        let mut seed = Seed::new(13);
        let sizes: Vec<usize> = (0..CHUNKS).map(|_| event(prose(&mut seed)).len()).collect();
        let mean = sizes.iter().sum::<usize>() / sizes.len();
        assert!((225..=245).contains(&mean), "{mean}");
    }

    #[test]
    fn each_case_does_what_it_says() {
        for together in [1, 8, 64] {
            let mut case = decoding(together);
            case.run();
            assert_eq!(case.decoded(), CHUNKS);

            let mut case = pushes(Said::Content, together);
            case.run();
            let pushes = CHUNKS / together;
            assert_eq!(
                case.frames(),
                (pushes, pushes),
                "content leaves as it came, one frame a push"
            );

            let mut case = pushes_run(Said::Reasoning, together);
            assert_eq!(case.frames(), (pushes, 0), "reasoning is written anew");
            case.rest();
            assert_eq!(case.frames(), (0, 0));
        }
        let case = pushes_run(Said::Call, 1);
        assert_eq!(case.turn.facts().tool_calls, 2, "one warms, one is measured");
        assert!(case.frames().0 <= 2, "the call is shown whole: {:?}", case.frames());
        let case = pushes_run(Said::PartialTag, 1);
        assert_eq!(case.turn.facts().tool_calls, 0);
        let (frames, slices) = case.frames();
        assert!(slices >= CHUNKS / 3 && frames > slices, "{frames} {slices}");
    }

    fn pushes_run(said: Said, together: usize) -> Pushes {
        let mut case = pushes(said, together);
        case.run();
        case
    }
}
