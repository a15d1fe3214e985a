//! A non-stream answer: one body through the same stages as a stream (B9), and told anew where a call is asked again (B26).
//!
//! Nothing has been shown, so a broken call needs no care for what was: the text that the model wrote is cut where the call
//! began, the continuations are put behind it, and the stages read all of it once more, over the body of the first attempt.

use bytes::Bytes;

use super::again::denied;
use super::voice::Voice;
use super::{AnswerPlan, AskAgain, Budget, Facts, Finish, Guide, Turn, broke, garbled};
use crate::protocol::chat::{Chunk, Field, rebuild, unquote};
use crate::protocol::fault::Fault;
use crate::protocol::usage::Usage;

/// What became of a whole answer.
#[derive(Debug)]
pub enum Whole {
    /// The message for the client.
    Answer(Bytes, Facts),
    /// A call is to be asked again first: give the answer to [`Retold`].
    AskAgain(AskAgain, Box<Retold>),
}

/// An answer of which a call is asked again.
#[derive(Debug)]
pub struct Retold {
    plan: AnswerPlan,
    body: Bytes,
    question: AskAgain,
    /// What is told if no answer comes.
    before: Option<Box<Told>>,
    /// Where calls begin that were asked again, the one in question too.
    asked_at: Vec<usize>,
    engine_tokens: u64,
}

/// What the model said after all.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) text: String,
    pub(super) asked_at: Vec<usize>,
    pub(super) finish: Finish,
    written: Option<Written>,
    engine_tokens: u64,
}

/// Tokens as the client is told of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub(super) prompt_tokens: u64,
    pub(super) total_tokens: u64,
}

/// One answer of `/v1/completions`.
struct Continued {
    text: String,
    finish: Finish,
    usage: Usage,
}

impl Turn {
    /// A non-stream answer through the same stages, of which nothing is asked again.
    ///
    /// # Errors
    /// As [`whole_or_ask`](Self::whole_or_ask).
    pub fn whole(plan: AnswerPlan, body: &[u8]) -> Result<(Bytes, Facts), Fault> {
        match Self::tell(plan.without_reasks(), &Bytes::copy_from_slice(body), None)? {
            Whole::Answer(answer, facts) => Ok((answer, facts)),
            // Without a re-ask there is no question.
            Whole::AskAgain(..) => Err(broke("The answer asks for what it may not.")),
        }
    }

    /// A non-stream answer through the same stages.
    ///
    /// # Errors
    /// A [`Fault`] of the upstream: an error object, a choice without a finish, a body that can't be read.
    pub fn whole_or_ask(plan: AnswerPlan, body: &Bytes) -> Result<Whole, Fault> {
        Self::tell(plan, body, None)
    }

    fn tell(plan: AnswerPlan, body: &Bytes, told: Option<Box<Told>>) -> Result<Whole, Fault> {
        let mut turn = Self {
            whole: true,
            retold: told,
            ..Self::new(plan)
        };
        let text = simdutf8::basic::from_utf8(body).map_err(|_| garbled("isn't UTF-8"))?;
        let mut chunk = Chunk::default();
        chunk
            .read(text, "")
            .map_err(|malformed| garbled(&malformed.to_string()))?;
        if chunk.error.is_some() {
            return Err(Fault::from_upstream_event(body));
        }
        if chunk.choices.is_empty() || chunk.choices.iter().any(|choice| choice.finish.is_none()) {
            return Err(broke("The model server's answer ended before it was finished."));
        }
        for choice in &chunk.choices {
            turn.choice(text, choice)
                .map_err(|malformed| garbled(&malformed.to_string()))?;
        }
        if turn.voices.iter().any(|voice| voice.denied) {
            return Err(denied());
        }
        if let Some(place) = chunk.usage {
            turn.usage(text, place)
                .map_err(|malformed| garbled(&malformed.to_string()))?;
        }
        if let Some(question) = turn.voices.first().and_then(Voice::question) {
            return Ok(turn.retell(body, question));
        }
        turn.facts.engine_tokens = turn.retold.as_ref().map(|told| told.engine_tokens);
        turn.facts.shown = true;
        let mut answer = Vec::with_capacity(body.len() + turn.edits.len());
        turn.edits.apply(text, &mut answer);
        Ok(Whole::Answer(Bytes::from(answer), turn.facts))
    }

    fn retell(self, body: &Bytes, question: AskAgain) -> Whole {
        let asked_at = self.voices.first().map(Voice::asked_places).unwrap_or_default();
        let engine_tokens = match &self.retold {
            Some(told) => told.engine_tokens,
            None => self.facts.usage.completion_tokens.unwrap_or_default(),
        };
        let retold = Retold {
            plan: self.plan,
            body: body.clone(),
            question: question.clone(),
            before: self.retold,
            asked_at,
            engine_tokens,
        };
        Whole::AskAgain(question, Box::new(retold))
    }
}

impl Retold {
    /// The answer of `/v1/completions` to the last question. `prompt_tokens` are those of the first attempt.
    ///
    /// # Errors
    /// What follows the guided call can't be read, or is an error. A guided call that can't be read is given up instead.
    pub fn heard(mut self, answer: &[u8], budget: Budget, prompt_tokens: u64) -> Result<Whole, Fault> {
        let guided = matches!(self.question.guide, Guide::Call { .. });
        let continued = match Continued::read(answer) {
            Err(_) if guided => return self.give_up(),
            read => read?,
        };
        self.engine_tokens += continued.usage.completion_tokens.unwrap_or_default();
        let total = continued.usage.prompt_tokens.zip(continued.usage.completion_tokens);
        let mut told = Told {
            text: [&*self.question.so_far, &*continued.text].concat(),
            asked_at: self.asked_at.clone(),
            finish: continued.finish,
            written: total.map(|(prompt, completion)| Written {
                prompt_tokens,
                total_tokens: prompt + completion,
            }),
            engine_tokens: self.engine_tokens,
        };
        if !guided {
            return self.tell(told);
        }
        if !self.holds_call(&told) {
            let cut = told.finish == Finish::Length && budget.ends_answer;
            return if cut { self.cut_short() } else { self.give_up() };
        }
        self.question = AskAgain {
            so_far: std::mem::take(&mut told.text),
            guide: Guide::Free,
            number: self.question.number,
            choice: self.question.choice,
        };
        // Should nothing be left for what follows, this is what was said.
        told.text.clone_from(&self.question.so_far);
        self.before = Some(Box::new(told));
        Ok(Whole::AskAgain(self.question.clone(), Box::new(self)))
    }

    /// No answer is to be had: the client gets what was said before the question (B27).
    ///
    /// # Errors
    /// The plan has it that an answer with a broken call fails.
    pub fn give_up(self) -> Result<Whole, Fault> {
        let mut whole = Turn::tell(self.plan.without_reasks(), &self.body, self.before)?;
        if let Whole::Answer(_, facts) = &mut whole {
            facts.engine_tokens = Some(self.engine_tokens);
        }
        Ok(whole)
    }

    /// Whether a failed question can be given up without losing what the model would have said behind a good call.
    pub fn can_give_up(&self) -> bool {
        matches!(self.question.guide, Guide::Call { .. })
    }

    /// No token is left: the answer ends as `length`, without the call that is in question.
    ///
    /// # Errors
    /// As [`give_up`](Self::give_up).
    pub fn cut_short(self) -> Result<Whole, Fault> {
        let told = Told {
            text: self.question.so_far,
            asked_at: self.asked_at,
            finish: Finish::Length,
            written: self.before.as_ref().and_then(|told| told.written),
            engine_tokens: self.engine_tokens,
        };
        Turn::tell(self.plan.without_reasks(), &self.body, Some(Box::new(told)))
    }

    fn tell(self, told: Told) -> Result<Whole, Fault> {
        Turn::tell(self.plan, &self.body, Some(Box::new(told)))
    }

    /// The guided text gives the call that was asked for.
    fn holds_call(&self, told: &Told) -> bool {
        let plan = self.plan.clone().without_reasks();
        let mut voice = Voice::new(0, &plan, true);
        let mut said = super::said::Said::default();
        voice.hear_all(&told.text, &told.asked_at, &mut said);
        voice.is_answered()
    }
}

impl Told {
    /// The first attempt's `usage`, with what the client got.
    pub(super) fn usage(&self, first: &str) -> Option<String> {
        completed_usage(first, self.written?)
    }
}

impl Continued {
    fn read(answer: &[u8]) -> Result<Self, Fault> {
        let text = simdutf8::basic::from_utf8(answer).map_err(|_| garbled("isn't UTF-8"))?;
        let mut chunk = Chunk::default();
        let read = chunk.read(text, "");
        read.map_err(|malformed| garbled(&malformed.to_string()))?;
        if chunk.error.is_some() {
            return Err(Fault::from_upstream_event(answer));
        }
        let choice = chunk.choices.first();
        let (Some(said), Some(finish)) = (
            choice.and_then(|choice| choice.text),
            choice.and_then(|choice| choice.finish),
        ) else {
            return Err(broke("The model server's answer ended before it was finished."));
        };
        let unquoted = |token| unquote(token).map_err(|malformed| garbled(&malformed.to_string()));
        Ok(Continued {
            text: unquoted(said.of(text))?.into_owned(),
            finish: Finish::read(&unquoted(finish.of(text))?),
            usage: chunk.usage.map(|place| Usage::read(place.of(text))).unwrap_or_default(),
        })
    }
}

/// `usage` of the first attempt (its details of the prompt stay), with these counts.
pub(super) fn completed_usage(first: &str, written: Written) -> Option<String> {
    let Written {
        prompt_tokens,
        total_tokens,
    } = written;
    let [prompt, completion, total] =
        [prompt_tokens, total_tokens.saturating_sub(prompt_tokens), total_tokens].map(|count| count.to_string());
    let fields = [
        ("prompt_tokens", Field::Set(prompt.as_bytes())),
        ("total_tokens", Field::Set(total.as_bytes())),
        ("completion_tokens", Field::Set(completion.as_bytes())),
    ];
    let mut out = Vec::new();
    rebuild(first, &fields, &mut out).ok()?;
    String::from_utf8(out).ok()
}
