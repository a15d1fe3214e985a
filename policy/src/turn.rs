//! One answer: upstream bytes in, steps out.
//!
//! An event goes through `sse`, is read by `chat`, its texts pass the reasoning splitter and the tool-call scanner of their
//! choice, and what the client gets is written over the chunk it came in: **one chunk in, at most one chunk out**, so that
//! logprobs, token ids, usage and fields of the future stay where vLLM put them. A chunk that needs no change leaves as the
//! very bytes it came in. A chunk of which everything is held (part of a tag, inside of a call) isn't sent, unless it carries
//! something else: then it leaves at once with an empty delta. `Turn::whole` sends a non-stream answer through the same
//! stages as one chunk (B9). A call that isn't valid is asked again (`again`), and an answer whose upstream is lost goes on from
//! another one (`seam`). Nothing here does I/O or reads a clock.
//!
//! White space directly behind a tag (`<think>`, `</think>`, `<tool_call>`, `</tool_call>`) is markup and dropped; before a tag
//! it was already shown and stays, so that nothing but a partial tag is held. White space at the very start of an answer is
//! held (bounded) until it is known whether a tag follows, and shown verbatim if text does.

mod again;
mod body;
mod broken;
mod continuable;
mod engine_calls;
mod outlet;
mod plan;
mod said;
mod seam;
mod step;
mod stops;
mod torn;
mod transcript;
mod voice;
mod whole;
mod written_back;

use bytes::Bytes;

use self::again::{Continuation, Stage};
use self::body::BodyWriter;
pub use self::continuable::{Continuable, Obstacle};
use self::outlet::Outlet;
pub use self::plan::{AnswerPlan, OnInvalid, ReasoningNames, ReasoningPlan, Release, SeamPlan, Surface, ToolPlan};
use self::said::Said;
pub use self::seam::Loss;
pub use self::step::{AskAgain, Budget, Facts, Finish, Frame, Guide, Judged, Room, Shows, Step};
pub use self::stops::Stops;
use self::voice::Voice;
pub use self::whole::{Retold, Whole};
use crate::protocol::chat::{self, CHOICES_LIMIT, Chunk, Edits, Malformed, Span, quote, unquote};
use crate::protocol::completions;
use crate::protocol::fault::{Fault, FaultKind};
use crate::protocol::sse::{DONE, Decoder, EVENT_LIMIT_BYTES, Event};
use crate::protocol::usage::{self, Usage};

/// One answer on its way to the client.
#[derive(Debug)]
pub struct Turn {
    plan: AnswerPlan,
    whole: bool,
    event_limit_bytes: usize,
    decoder: Decoder,
    phase: Phase,
    /// The upstream is no longer the first one.
    continuation: Option<Box<Continuation>>,
    /// Whose text a continuation is: a place in `voices`.
    speaker: usize,
    /// How often the upstream was lost and the answer went on.
    seams: u32,
    /// Tokens of the prompt, as far as a continuation had to count them.
    prompt_tokens: Option<u64>,
    /// The client has got something that a second answer might contradict: more than the role.
    told: bool,
    /// What in the stream itself keeps the answer from going on: an event that is too long; a chunk that broke off half judged, so
    /// that what was heard of it isn't known.
    obstacle: Option<Obstacle>,
    /// What a whole answer says after all.
    retold: Option<Box<whole::Told>>,
    identity: Option<Identity>,
    voices: Vec<Voice>,
    facts: Facts,
    shares: Shares,
    /// vLLM has said how many tokens there were.
    counted: bool,
    outlet: Outlet,
    // Memory that is kept from event to event.
    events: Vec<Event>,
    chunk: Chunk,
    edits: Edits,
    said: Said,
    body: BodyWriter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// A question was handed out; what still comes of the old upstream is ignored.
    Asking(Stage),
    Done,
    Broken,
}

/// What stays the same over all chunks (B7), as JSON text, from the first chunk.
#[derive(Debug, Default)]
struct Identity {
    id: Option<String>,
    model: Option<String>,
    created: Option<String>,
    /// The first chunk up to the value of `choices`, if the three stand there.
    head: String,
}

/// Longest head that is remembered; vLLM's has 123 bytes.
const HEAD_LIMIT_BYTES: usize = 4096;

/// How much of the answer was reasoning, for an estimate: in chunks of a stream, in bytes of a whole answer.
#[derive(Clone, Copy, Debug, Default)]
struct Shares {
    reasoning: u64,
    all: u64,
}

/// What one choice contributes to the fate of its chunk.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    /// There is something to send.
    keeps: bool,
    /// A token came.
    token: bool,
    /// A second answer might contradict it.
    tells: bool,
    shows: Shows,
}

impl Turn {
    /// The answer that `plan` wants, before its first byte.
    pub fn new(plan: AnswerPlan) -> Self {
        Self::with_event_limit(plan, EVENT_LIMIT_BYTES)
    }

    /// The same with another limit of one upstream event than [`EVENT_LIMIT_BYTES`].
    pub fn with_event_limit(plan: AnswerPlan, event_limit_bytes: usize) -> Self {
        Self {
            plan,
            whole: false,
            event_limit_bytes,
            decoder: Decoder::new(event_limit_bytes),
            phase: Phase::Open,
            continuation: None,
            speaker: 0,
            seams: 0,
            prompt_tokens: None,
            told: false,
            obstacle: None,
            retold: None,
            identity: None,
            voices: Vec::new(),
            facts: Facts::default(),
            shares: Shares::default(),
            counted: false,
            outlet: Outlet::default(),
            events: Vec::new(),
            chunk: Chunk::default(),
            edits: Edits::default(),
            said: Said::default(),
            body: BodyWriter::default(),
        }
    }

    /// The next bytes of the upstream's body, in any split. After [`Step::Done`] or [`Step::Fault`] they are ignored.
    pub fn push(&mut self, upstream: Bytes, out: &mut Vec<Step>) {
        self.facts.tokens_in_last_push = 0;
        self.facts.first_token_in_last_push = false;
        if self.phase != Phase::Open {
            return;
        }
        self.outlet.open(upstream.clone());
        let mut events = std::mem::take(&mut self.events);
        let decoded = self.decoder.push(upstream, &mut events);
        self.take(&mut events, out);
        self.events = events;
        self.facts.holds_call = matches!(self.phase, Phase::Asking(_)) || self.voices.iter().any(Voice::holds_call);
        if let Err(error) = decoded {
            self.obstacle = Some(Obstacle::Oversized);
            self.fail(
                Fault::new(
                    FaultKind::UpstreamGarbled,
                    format!("The model server's stream broke: {error}."),
                ),
                out,
            );
        }
        self.outlet.close(out);
    }

    /// The upstream's body is at its end. Without a finish of every choice that is a fault (B10); a missing `[DONE]` alone is
    /// mended.
    pub fn end(&mut self, out: &mut Vec<Step>) {
        if self.phase == Phase::Open {
            let mut events = std::mem::take(&mut self.events);
            // What is too long has been refused by push.
            let _ = self.decoder.finish(&mut events);
            self.take(&mut events, out);
            self.events = events;
        }
        if self.phase == Phase::Open {
            self.ended(None, out);
        }
        self.outlet.close(out);
    }

    /// The call that is held has been held for long: with [`Release::Auto`] it is shown as it becomes certain, from its next text on.
    pub fn hurry(&mut self) {
        self.voices.iter_mut().for_each(Voice::hurry);
    }

    /// What is known of the answer so far.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    fn take(&mut self, events: &mut Vec<Event>, out: &mut Vec<Step>) {
        for event in events.drain(..) {
            if self.phase == Phase::Open && !event.data.is_empty() {
                self.event(&event, out);
            }
        }
    }

    fn event(&mut self, event: &Event, out: &mut Vec<Step>) {
        if event.data == "[DONE]" {
            return self.ended(Some(event), out);
        }
        let Ok(text) = simdutf8::basic::from_utf8(&event.data) else {
            return self.fail(garbled("isn't UTF-8"), out);
        };
        if self.continuation.is_some() {
            return self.continued(text, out);
        }
        self.say(text, Some(&event.raw), out);
    }

    /// One chunk for the client. `raw` is the frame it came in, if it may leave as it came.
    fn say(&mut self, text: &str, raw: Option<&Bytes>, out: &mut Vec<Step>) {
        let mut chunk = std::mem::take(&mut self.chunk);
        let head = self.identity.as_ref().map_or("", |identity| &identity.head);
        let read = chunk.read(text, head).and_then(|()| {
            let judged = self.chunk(text, &chunk);
            if judged.is_err() {
                self.obstacle = Some(Obstacle::TextUnknown);
            }
            judged
        });
        match read {
            _ if chunk.error.is_some() => self.fail(Fault::from_upstream_event(text.as_bytes()), out),
            Err(malformed) => self.fail(garbled(&malformed.to_string()), out),
            Ok(None) => {}
            // What an answer that fails for a broken call says last, isn't said: a finish would look like a clean end.
            Ok(Some(_)) if self.voices.iter().any(|voice| voice.denied) => {}
            Ok(Some(weight)) => {
                let shows = weight.shows;
                self.facts.shown = true;
                self.told |= weight.tells || shows == Shows::Token;
                match raw.filter(|raw| self.edits.is_empty() && raw.starts_with(b"data:")) {
                    Some(raw) => self.outlet.forward(raw, shows, out),
                    None => self.outlet.write(text, &mut self.edits, shows, out),
                }
            }
        }
        self.chunk = chunk;
        if self.phase == Phase::Open {
            self.ask_or_deny(out);
        }
    }

    /// Judges a chunk and collects its edits. `None` if it isn't sent.
    fn chunk(&mut self, text: &str, chunk: &Chunk) -> Result<Option<Weight>, Malformed> {
        self.edits.clear();
        if chunk.error.is_some() {
            return Ok(None);
        }
        self.pin_identity(text, chunk);
        let mut weight = Weight {
            keeps: chunk.carries,
            tells: chunk.carries,
            ..Weight::default()
        };
        for choice in &chunk.choices {
            let more = self.choice(text, choice)?;
            weight.keeps |= more.keeps;
            weight.token |= more.token;
            weight.tells |= more.tells;
            weight.shows = weight.shows.or(more.shows);
        }
        if weight.token {
            self.count_token();
        }
        match chunk.usage {
            Some(place) => {
                self.usage(text, place)?;
                weight.keeps |= self.plan.include_usage;
            }
            None if chunk.choices.is_empty() => weight.keeps = true,
            None => {}
        }
        Ok(weight.keeps.then_some(weight))
    }

    fn pin_identity(&mut self, text: &str, chunk: &Chunk) {
        if chunk.known_head {
            return;
        }
        let members = [chunk.id, chunk.model, chunk.created];
        let Some(identity) = &self.identity else {
            let [id, model, created] = members.map(|place| place.map(|place| place.of(text).to_owned()));
            let at = chunk.choices_at.unwrap_or_default();
            let before =
                at <= HEAD_LIMIT_BYTES && members.iter().all(|place| place.is_some_and(|place| place.end <= at));
            let head = if before {
                text.get(..at).unwrap_or_default().to_owned()
            } else {
                String::new()
            };
            self.identity = Some(Identity {
                id,
                model,
                created,
                head,
            });
            return;
        };
        for (place, pinned) in members
            .into_iter()
            .zip([&identity.id, &identity.model, &identity.created])
        {
            if let (Some(place), Some(pinned)) = (place, pinned)
                && place.of(text) != pinned
            {
                self.edits.set(place, pinned.as_bytes());
            }
        }
    }

    fn choice(&mut self, text: &str, choice: &chat::Choice) -> Result<Weight, Malformed> {
        let at = match self.voices.iter().position(|voice| voice.index == choice.index) {
            Some(at) => at,
            None if self.voices.len() >= CHOICES_LIMIT => return Err(Malformed { at: 0 }),
            None => {
                if self.voices.is_empty() {
                    // One choice is the rule, and a voice has a kilobyte: no room for four.
                    self.voices.reserve_exact(1);
                }
                self.voices.push(Voice::new(choice.index, &self.plan, self.whole));
                self.voices.len() - 1
            }
        };
        let Some(voice) = self.voices.get_mut(at) else {
            return Ok(Weight::default());
        };
        if voice.finish.is_some() {
            // Nothing is said behind a finish; what the chunk carries otherwise still goes through.
            for (place, nothing) in [(choice.body, "{}"), (choice.text, "\"\""), (choice.finish, "null")] {
                if let Some(place) = place.filter(|place| place.of(text) != nothing) {
                    self.edits.set(place, nothing.as_bytes());
                }
            }
            return Ok(Weight {
                keeps: choice.carries,
                tells: choice.carries,
                ..Weight::default()
            });
        }
        let upstream = match choice.finish {
            Some(place) => Some(Finish::read(&unquote(place.of(text))?)),
            None => None,
        };
        match self.plan.surface {
            Surface::Completions => completion(text, choice, upstream, voice, &mut self.facts),
            Surface::Chat => self.chat_choice(text, choice, upstream, at),
        }
    }

    fn chat_choice(
        &mut self,
        text: &str,
        choice: &chat::Choice,
        upstream: Option<Finish>,
        at: usize,
    ) -> Result<Weight, Malformed> {
        let Some(voice) = self.voices.get_mut(at) else {
            return Ok(Weight::default());
        };
        voice.ends = upstream.is_some();
        let said = &mut self.said;
        said.clear();
        match &self.retold {
            Some(told) => voice.hear_all(&told.text, &told.asked_at, said),
            None => voice.hear(text, choice, said)?,
        }
        let mut ended = false;
        if let (Some(sent), Some(place)) = (upstream, choice.finish) {
            let upstream = self
                .retold
                .as_ref()
                .map_or_else(|| sent.clone(), |told| told.finish.clone());
            let finish = voice.finish(upstream.clone(), said);
            if self.retold.is_none() {
                self.facts.opener = self.facts.opener.or(voice.learn_opener(&upstream));
            }
            ended = finish.is_some();
            let Some(finish) = finish else {
                // It goes on: a call is asked again.
                self.edits.set(place, b"null");
                return self.chat_body(text, choice, at, false);
            };
            if finish != sent {
                self.edits.replace(place, |token| {
                    quote(finish.as_str(), token);
                    Ok::<_, Malformed>(())
                })?;
            }
            self.facts.finish.push(finish);
            self.facts.verdicts.extend(
                voice
                    .verdicts
                    .iter()
                    .take(VERDICTS_LIMIT - self.facts.verdicts.len())
                    .cloned(),
            );
        }
        self.chat_body(text, choice, at, ended)
    }

    fn chat_body(&mut self, text: &str, choice: &chat::Choice, at: usize, ended: bool) -> Result<Weight, Malformed> {
        let Some(voice) = self.voices.get_mut(at) else {
            return Ok(Weight::default());
        };
        let said = &mut self.said;
        let token = has_text(text, choice);
        self.shares.add(text, choice, said, self.whole, token);
        let kept = self
            .body
            .write(text, choice, voice, said, &self.plan, &mut self.edits)?;
        voice.introduced = true;
        voice.tokens += u64::from(token);
        voice.content_shown |= !said.content.is_empty();
        self.facts.saw_role |= choice.role.is_some();
        self.facts.tool_calls += voice.calls_begun();
        let shows = if said.is_empty() { Shows::Nothing } else { Shows::Token };
        Ok(Weight {
            keeps: kept || choice.carries || ended,
            token,
            tells: choice.carries || ended,
            shows,
        })
    }

    /// Reads `usage` at `place` for the record, and completes or removes it for the client.
    fn usage(&mut self, text: &str, place: Span) -> Result<(), Malformed> {
        let told = self.retold.as_ref().and_then(|told| told.usage(place.of(text)));
        let said = told.as_deref().unwrap_or(place.of(text));
        let mut usage = Usage::read(said);
        let sends = self.whole || self.plan.include_usage;
        if !sends {
            self.edits.set(place, b"null");
        }
        if usage.reasoning_tokens.is_none() && self.plan.surface == Surface::Chat {
            let reasoning_tokens = self
                .shares
                .estimate(usage.completion_tokens.unwrap_or_default(), self.whole);
            usage.reasoning_tokens = Some(reasoning_tokens);
            usage.estimated = true;
            if sends {
                self.edits
                    .replace(place, |out| usage::with_reasoning(said, reasoning_tokens, out))?;
            }
        } else if let Some(told) = &told {
            self.edits.set(place, told.as_bytes());
        }
        self.counted = true;
        self.facts.usage = usage;
        Ok(())
    }

    fn count_token(&mut self) {
        let facts = &mut self.facts;
        facts.first_token_in_last_push |= facts.upstream_chunks == 0;
        facts.upstream_chunks += 1;
        facts.tokens_in_last_push += 1;
        if !self.counted {
            facts.usage.completion_tokens = Some(facts.upstream_chunks);
            facts.usage.reasoning_tokens = (self.plan.surface == Surface::Chat).then_some(self.shares.reasoning);
            facts.usage.estimated = true;
        }
    }

    /// The end of the stream, said by `event` or by the upstream's end of file.
    fn done(&mut self, event: Option<&Event>, out: &mut Vec<Step>) {
        // With `[DONE]` the upstream says itself that there is no other choice.
        let all = event.is_some() || self.is_finished();
        if !all || self.voices.is_empty() || self.voices.iter().any(|voice| voice.finish.is_none()) {
            return self.fail(
                broke("The model server's stream ended before the answer was finished."),
                out,
            );
        }
        match event {
            Some(event) if event.raw == DONE => self.outlet.forward(&event.raw, Shows::Nothing, out),
            _ => {
                self.outlet.flush(out);
                out.push(Step::Emit(Frame {
                    bytes: Bytes::from_static(DONE),
                    shows: Shows::Nothing,
                }));
            }
        }
        self.outlet.flush(out);
        self.facts.shown = true;
        self.phase = Phase::Done;
        out.push(Step::Done);
    }

    fn fail(&mut self, fault: Fault, out: &mut Vec<Step>) {
        if self.can_give_up() {
            return self.give_up(out);
        }
        if self.phase == Phase::Open {
            self.outlet.flush(out);
            self.phase = Phase::Broken;
            out.push(Step::Fault(fault));
        }
    }
}

/// Verdicts of an answer that are kept for the record.
const VERDICTS_LIMIT: usize = 256;

impl Shares {
    fn add(&mut self, text: &str, choice: &chat::Choice, said: &Said, whole: bool, token: bool) {
        if whole {
            let places = [
                choice.content,
                choice.reasoning.or(choice.reasoning_content),
                choice.tool_calls,
            ];
            self.all += places
                .into_iter()
                .flatten()
                .map(|place| place.of(text).len() as u64)
                .sum::<u64>();
            self.reasoning += said.reasoned_bytes as u64;
        } else if token {
            self.all += 1;
            self.reasoning += u64::from(said.reasoned_bytes > 0);
        }
    }

    /// The reasoning part of `completion_tokens`. A chunk is a token unless there are far fewer chunks than tokens; a few
    /// tokens less have no chunk of their own (vLLM's parsers swallow tags).
    fn estimate(&self, completion_tokens: u64, whole: bool) -> u64 {
        if !whole && completion_tokens < self.all.saturating_mul(2) {
            return self.reasoning.min(completion_tokens);
        }
        let rounded = completion_tokens
            .saturating_mul(self.reasoning)
            .saturating_add(self.all / 2);
        rounded.checked_div(self.all).unwrap_or_default().min(completion_tokens)
    }
}

/// A choice of `/v1/completions` passes; its end is noted.
fn completion(
    text: &str,
    choice: &chat::Choice,
    upstream: Option<Finish>,
    voice: &mut Voice,
    facts: &mut Facts,
) -> Result<Weight, Malformed> {
    let token = completions::has_text(text, choice);
    if let Some(place) = choice.text.filter(|_| token && voice.text_so_far().is_some()) {
        voice.wrote(&unquote(place.of(text))?);
    }
    voice.tokens += u64::from(token);
    let ended = upstream.is_some();
    facts.finish.extend(upstream.clone());
    voice.finish = upstream;
    Ok(Weight {
        keeps: true,
        token,
        tells: choice.carries || ended,
        shows: if token { Shows::Token } else { Shows::Nothing },
    })
}

fn has_text(text: &str, choice: &chat::Choice) -> bool {
    let texts = [
        choice.content,
        choice.reasoning,
        choice.reasoning_content,
        choice.tool_calls,
    ];
    texts
        .into_iter()
        .flatten()
        .any(|place| !matches!(place.of(text), "\"\"" | "[]"))
}

fn garbled(why: &str) -> Fault {
    Fault::new(
        FaultKind::UpstreamGarbled,
        format!("The model server sent something that can't be read: {why}."),
    )
}

fn broke(what: &str) -> Fault {
    Fault::new(FaultKind::UpstreamBroke, what)
}

#[cfg(test)]
mod tests;
