//! A stream that goes on from another upstream answer: a call that wasn't valid is asked again (B26).
//!
//! The turn hands out a question ([`Step::AskAgain`]), whoever does the I/O drops the old upstream and asks the same replica,
//! [`Turn::again`] says that it answers. What comes then is a stream of `/v1/completions`; each of its events becomes a chunk
//! of the first answer's kind and identity and goes through the same stages. Two questions follow each other: the guided call,
//! and what the model says behind it, unguided. The client sees one stream. An answer whose upstream was lost goes on in the
//! same way (`seam`).
//!
//! | stage | event | next |
//! | --- | --- | --- |
//! | `Call` | its text holds the valid call, and ends | `Rest` is asked |
//! | `Call` | anything else | given up: what was set aside is given out (B27), the answer ends |
//! | `Rest` | text, finish, usage, `[DONE]` | as those of a first answer |
//! | `Rest` | another broken call, a try left | `Call` is asked |
//! | `Seam` | as `Rest`; a stop word that began before the seam | the choice ends |
//! | `Seam` | its choice is finished, another isn't | that one's `Seam` is asked |

use std::borrow::Cow;

use super::stops::SeamStops;
use super::whole::{Written, completed_usage};
use super::{Budget, Finish, Phase, Step, Surface, Turn, VERDICTS_LIMIT, Voice, broke, garbled};
use crate::protocol::chat::{Chunk, quote, unquote};
use crate::protocol::fault::{Fault, FaultKind};
use crate::protocol::sse::{Decoder, Event};
use crate::protocol::usage::Usage;

/// The answer that the upstream gives now.
#[derive(Debug)]
pub(super) struct Continuation {
    stage: Stage,
    budget: Budget,
    finish: Option<Finish>,
    /// Only behind a seam.
    stops: Option<SeamStops>,
    /// The last usage that was sent.
    usage: Option<Usage>,
    /// Chunks with a token before it began.
    chunks_before: u64,
    chunk: Chunk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The guided call.
    Call,
    /// What follows it.
    Rest,
    /// The rest of one choice, whose upstream was lost.
    Seam,
}

impl Turn {
    /// The question is being answered: what is pushed from now on is the stream of `/v1/completions`. `prompt_tokens` are
    /// those of the first attempt.
    pub fn again(&mut self, budget: Budget, prompt_tokens: u64) {
        let Phase::Asking(stage) = self.phase else { return };
        self.count_aborted();
        let mut stops = None;
        if let Some(voice) = self.voices.get_mut(self.speaker) {
            match stage {
                Stage::Call => voice.go_on(),
                Stage::Rest => {}
                Stage::Seam => {
                    voice.cross_seam();
                    let before = voice.text_so_far().unwrap_or_default();
                    stops = SeamStops::new(&self.plan.seam.stops, before);
                }
            }
        }
        self.prompt_tokens = Some(prompt_tokens);
        self.decoder = Decoder::new(self.event_limit_bytes);
        self.phase = Phase::Open;
        self.continuation = Some(Box::new(Continuation {
            stage,
            budget,
            finish: None,
            stops,
            usage: None,
            chunks_before: self.facts.upstream_chunks,
            chunk: Chunk::default(),
        }));
    }

    /// What the upstream that is left has said counts for the engine: by its chunks, if it never came to its usage.
    fn count_aborted(&mut self) {
        let chunks = self.facts.upstream_chunks;
        let engine = self.facts.engine_tokens;
        self.facts.engine_tokens = Some(match self.continuation.take() {
            None => engine.unwrap_or(chunks),
            Some(left) if left.usage.is_some() => engine.unwrap_or_default(),
            Some(left) => engine.unwrap_or_default() + chunks.saturating_sub(left.chunks_before),
        });
    }

    /// A call is asked again and hasn't come: [`give_up`](Self::give_up) can still end the answer properly.
    pub fn can_give_up(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Asking(_)) && self.asked_for_call() && self.awaits_call()
    }

    /// No answer to the question is to be had: the client gets what the first attempt said (B27), and the answer ends. Past the
    /// guided call there is nothing to fall back to: that is for the caller to fail.
    pub fn give_up(&mut self, out: &mut Vec<Step>) {
        self.end_here(Finish::Stop, out);
    }

    /// No token is left for the question behind so many tokens of the prompt: the answer ends as `length`.
    pub fn cut_short(&mut self, prompt_tokens: Option<u64>, out: &mut Vec<Step>) {
        self.prompt_tokens = self.prompt_tokens.or(prompt_tokens);
        self.end_here(Finish::Length, out);
    }

    /// A question was handed out, and nothing else can happen before its answer.
    fn asked_for_call(&self) -> bool {
        matches!(self.phase, Phase::Asking(_))
            || self
                .continuation
                .as_ref()
                .is_some_and(|continuation| continuation.stage == Stage::Call)
    }

    fn awaits_call(&self) -> bool {
        self.voices.get(self.speaker).is_some_and(Voice::awaits_call)
    }

    /// Behind each chunk: hands out a question, or ends an answer that may not have a broken call.
    pub(super) fn ask_or_deny(&mut self, out: &mut Vec<Step>) {
        if self.voices.iter().any(|voice| voice.denied) {
            for voice in self.voices.iter().filter(|voice| voice.finish.is_none()) {
                self.facts.verdicts.extend(voice.verdicts.iter().cloned());
            }
            self.facts.verdicts.truncate(VERDICTS_LIMIT);
            return self.fail(denied(), out);
        }
        let question = self.voices.first().and_then(Voice::question);
        if let Some(question) = question {
            self.outlet.flush(out);
            self.phase = Phase::Asking(Stage::Call);
            self.facts.holds_call = true;
            out.push(Step::AskAgain(question));
        }
    }

    /// An event of the continuation.
    pub(super) fn continued(&mut self, text: &str, out: &mut Vec<Step>) {
        let Some(mut continuation) = self.continuation.take() else {
            return;
        };
        let heard = self.hear_continuation(text, &mut continuation);
        let stage = continuation.stage;
        let stopped = continuation.stops.as_ref().is_some_and(SeamStops::is_stopped);
        self.continuation = Some(continuation);
        match heard {
            Err(fault) => self.fail(fault, out),
            Ok(chunks) => {
                for chunk in chunks.into_iter().flatten() {
                    if self.phase == Phase::Open {
                        self.say(&chunk, None, out);
                    }
                }
                let failed = self.voices.first().is_some_and(Voice::got_no_call);
                if stage == Stage::Call && failed {
                    self.give_up(out);
                }
                if stopped && self.phase == Phase::Open {
                    self.close_seam(out);
                }
            }
        }
    }

    /// The event as chunks of the first answer's kind: its text, its usage.
    fn hear_continuation(&mut self, text: &str, continuation: &mut Continuation) -> Result<[Option<String>; 2], Fault> {
        let Continuation {
            chunk, stage, stops, ..
        } = continuation;
        chunk
            .read(text, "")
            .map_err(|malformed| garbled(&malformed.to_string()))?;
        if chunk.error.is_some() {
            return Err(Fault::from_upstream_event(text.as_bytes()));
        }
        let mut said = None;
        if let Some(choice) = chunk.choices.first() {
            let mut token = Cow::Borrowed(choice.text.map_or("\"\"", |place| place.of(text)));
            let mut finish = choice.finish.map(|place| place.of(text));
            if let Some(finish) = finish {
                let word = unquote(finish).map_err(|malformed| garbled(&malformed.to_string()))?;
                continuation.finish = Some(Finish::read(&word));
            }
            if let Some(stops) = stops {
                let heard = unquote(&token).map_err(|malformed| garbled(&malformed.to_string()))?;
                let mut says = stops.push(&heard);
                if finish.is_some() {
                    says.push_str(&stops.finish());
                }
                if stops.is_stopped() {
                    finish = Some("\"stop\"");
                }
                token = Cow::Owned(quoted(&says));
            }
            // The end of the guided call isn't the end of the answer.
            let finish = finish.filter(|_| *stage != Stage::Call).unwrap_or("null");
            said = Some(self.chunk_of(&token, finish));
        }
        let mut counted = None;
        if let Some(place) = chunk.usage {
            let usage = Usage::read(place.of(text));
            // With each chunk or at the end: the last one counts.
            let before = continuation
                .usage
                .and_then(|usage| usage.completion_tokens)
                .unwrap_or_default();
            let engine = self.facts.engine_tokens.get_or_insert_default();
            *engine += usage.completion_tokens.unwrap_or_default().saturating_sub(before);
            continuation.usage = Some(usage);
            match continuation.stage {
                Stage::Rest if continuation.chunk.choices.is_empty() => counted = self.usage_chunk(continuation),
                // Told when all choices have ended.
                Stage::Seam => self.count_speaker(usage),
                Stage::Call | Stage::Rest => {}
            }
        }
        Ok([said, counted])
    }

    /// The upstream has no more to say, by `[DONE]` or by the end of its body.
    pub(super) fn ended(&mut self, event: Option<&Event>, out: &mut Vec<Step>) {
        let continuation = match &self.continuation {
            Some(continuation) if continuation.stage == Stage::Call => continuation,
            Some(continuation) if continuation.stage == Stage::Seam => return self.close_seam(out),
            _ => return self.done(event, out),
        };
        if self.awaits_call() {
            let cut = continuation.finish == Some(Finish::Length) && continuation.budget.ends_answer;
            return self.end_here(if cut { Finish::Length } else { Finish::Stop }, out);
        }
        match self.voices.get(self.speaker).and_then(Voice::question_behind) {
            Some(question) => {
                self.outlet.flush(out);
                self.phase = Phase::Asking(Stage::Rest);
                out.push(Step::AskAgain(question));
            }
            None => self.end_here(Finish::Stop, out),
        }
    }

    /// The answer ends with what is there, without another word of the upstream.
    fn end_here(&mut self, finish: Finish, out: &mut Vec<Step>) {
        let seam = match self.phase {
            Phase::Open => false,
            Phase::Asking(stage) => stage == Stage::Seam,
            Phase::Done | Phase::Broken => return,
        };
        self.phase = Phase::Open;
        let continuation = self.continuation.take();
        let Some(voice) = self.voices.get_mut(self.speaker) else {
            return self.fail(broke("The answer can't be ended."), out);
        };
        voice.give_up();
        let last = self.chunk_of("\"\"", &quoted(finish.as_str()));
        self.say(&last, None, out);
        if seam || self.seams > 0 {
            return self.close_seam(out);
        }
        if let Some(counted) = continuation.and_then(|continuation| self.usage_chunk(&continuation)) {
            self.say(&counted, None, out);
        }
        if self.phase == Phase::Open {
            self.done(None, out);
        }
    }

    /// What the client used: the prompt of the first attempt, and what it got. The last continuation's total is both together.
    fn usage_chunk(&self, continuation: &Continuation) -> Option<String> {
        let usage = continuation.usage?;
        let total = usage.prompt_tokens? + usage.completion_tokens?;
        let written = Written {
            prompt_tokens: self.prompt_tokens?,
            total_tokens: total,
        };
        self.chunk_of_usage(written)
    }

    /// The chunk that tells so many tokens.
    pub(super) fn chunk_of_usage(&self, written: Written) -> Option<String> {
        let mut chunk = self.head();
        chunk.push_str("[],\"usage\":");
        chunk.push_str(&completed_usage("{}", written)?);
        chunk.push('}');
        Some(chunk)
    }

    fn chunk_of(&self, content: &str, finish: &str) -> String {
        let index = self.voices.get(self.speaker).map_or(0, |voice| voice.index);
        let said = match self.plan.surface {
            Surface::Chat => format!("\"delta\":{{\"content\":{content}}}"),
            Surface::Completions => format!("\"text\":{content}"),
        };
        let mut chunk = self.head();
        chunk.push_str(&format!(
            "[{{\"index\":{index},{said},\"logprobs\":null,\"finish_reason\":{finish}}}]}}"
        ));
        chunk
    }

    /// A chunk up to the value of `choices`, with the identity of the first one.
    fn head(&self) -> String {
        let object = match self.plan.surface {
            Surface::Chat => "chat.completion.chunk",
            Surface::Completions => "text_completion",
        };
        let Some(identity) = self.identity.as_ref() else {
            return format!("{{\"object\":\"{object}\",\"choices\":");
        };
        if !identity.head.is_empty() {
            return identity.head.clone();
        }
        let mut head = String::from("{");
        for (key, value) in [
            ("id", &identity.id),
            ("created", &identity.created),
            ("model", &identity.model),
        ] {
            if let Some(value) = value {
                head.push_str(&format!("\"{key}\":{value},"));
            }
        }
        head.push_str(&format!("\"object\":\"{object}\",\"choices\":"));
        head
    }
}

/// `text` as a JSON string.
fn quoted(text: &str) -> String {
    let mut token = Vec::new();
    quote(text, &mut token);
    String::from_utf8(token).unwrap_or_default()
}

/// `on_invalid = "error"` (B27).
pub(super) fn denied() -> Fault {
    Fault::new(
        FaultKind::CallInvalid,
        "The model wrote a tool call that is not valid and can't be repaired.",
    )
}

#[cfg(test)]
mod tests;
