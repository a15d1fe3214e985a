//! Writes what was said of a choice over the delta or message it came in.

use super::said::Said;
use super::voice::Voice;
use super::{AnswerPlan, ReasoningNames};
use crate::protocol::chat::{Choice, Edits, Field, Malformed, Span, quote, rebuild, unquote};
use crate::tool_call::Verdict;

/// New JSON of one body. Reused: it keeps its memory.
#[derive(Debug, Default)]
pub(super) struct BodyWriter {
    content: Vec<u8>,
    reasoning: Vec<u8>,
    calls: Vec<u8>,
    verdicts: Vec<u8>,
}

/// What becomes of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Keep,
    Drop,
    Null,
    New,
}

impl Fate {
    fn field(self, new: &[u8]) -> Field<'_> {
        match self {
            Self::Keep => Field::Keep,
            Self::Drop => Field::Drop,
            Self::Null => Field::Set(b"null"),
            Self::New => Field::Set(new),
        }
    }
}

impl BodyWriter {
    /// Adds an edit for the body of `choice`, if it changes. False if nothing is left to send of it.
    pub(super) fn write(
        &mut self,
        text: &str,
        choice: &Choice,
        voice: &Voice,
        said: &Said,
        plan: &AnswerPlan,
        edits: &mut Edits,
    ) -> Result<bool, Malformed> {
        let whole = voice.whole();
        let content = self.content(text, choice, voice, said)?;
        let (reasoning, reasoning_content) = self.reasoning(text, choice, plan.names, said, whole)?;
        let calls = self.calls(text, choice, said);
        let verdicts = self.verdicts(voice, plan);
        let role = match (choice.role, voice.introduced) {
            _ if whole => Fate::Keep,
            (Some(_), true) => Fate::Drop,
            (None, false) => Fate::New,
            (Some(_), false) | (None, true) => Fate::Keep,
        };
        if [content, reasoning, reasoning_content, calls, verdicts, role]
            .iter()
            .all(|fate| *fate == Fate::Keep)
        {
            return Ok(true);
        }
        let kept = !said.is_empty() || !voice.introduced || verdicts != Fate::Keep;
        let Some(body) = choice.body else {
            // A choice without a body has nowhere to put what was held for it.
            return if kept && !said.is_empty() {
                Err(Malformed { at: 0 })
            } else {
                Ok(true)
            };
        };
        let fields = [
            ("role", role.field(b"\"assistant\"")),
            ("content", content.field(&self.content)),
            ("reasoning", reasoning.field(&self.reasoning)),
            ("reasoning_content", reasoning_content.field(&self.reasoning)),
            ("tool_calls", calls.field(&self.calls)),
            ("x_sluice", verdicts.field(&self.verdicts)),
        ];
        edits.replace(body, |out| rebuild(body.of(text), &fields, out))?;
        Ok(kept)
    }

    fn content(&mut self, text: &str, choice: &Choice, voice: &Voice, said: &Said) -> Result<Fate, Malformed> {
        match choice.content {
            None if said.content.is_empty() => Ok(Fate::Keep),
            // An empty string would make the client's message say "" where there is no content.
            Some(_) if said.content.is_empty() && (voice.whole() || !voice.introduced) => Ok(Fate::Null),
            Some(place) if said.content.is_empty() => Ok(if place.of(text) == "\"\"" && voice.content_shown {
                Fate::Keep
            } else {
                Fate::Drop
            }),
            Some(place) if says(text, place, &said.content)? => Ok(Fate::Keep),
            _ => {
                self.content.clear();
                quote(&said.content, &mut self.content);
                Ok(Fate::New)
            }
        }
    }

    fn reasoning(
        &mut self,
        text: &str,
        choice: &Choice,
        names: ReasoningNames,
        said: &Said,
        whole: bool,
    ) -> Result<(Fate, Fate), Malformed> {
        let gone = if whole { Fate::Null } else { Fate::Drop };
        if said.reasoning.is_empty() {
            let fate = |place: Option<Span>| if place.is_some() { gone } else { Fate::Keep };
            return Ok((fate(choice.reasoning), fate(choice.reasoning_content)));
        }
        let mut token = None;
        for place in [choice.reasoning, choice.reasoning_content, choice.content]
            .into_iter()
            .flatten()
        {
            if token.is_none() && says(text, place, &said.reasoning)? {
                token = Some(place.of(text));
            }
        }
        self.reasoning.clear();
        match token {
            Some(token) => self.reasoning.extend_from_slice(token.as_bytes()),
            None => quote(&said.reasoning, &mut self.reasoning),
        }
        let new = &self.reasoning;
        let fate = |place: Option<Span>, wanted: bool| match place {
            Some(place) if wanted && place.of(text).as_bytes() == new => Fate::Keep,
            _ if wanted => Fate::New,
            Some(_) => Fate::Drop,
            None => Fate::Keep,
        };
        let reasoning = fate(choice.reasoning, names != ReasoningNames::ReasoningContent);
        let reasoning_content = fate(choice.reasoning_content, names != ReasoningNames::Reasoning);
        Ok((reasoning, reasoning_content))
    }

    fn calls(&mut self, text: &str, choice: &Choice, said: &Said) -> Fate {
        if said.calls.is_empty() {
            return if choice.tool_calls.is_some() {
                Fate::Drop
            } else {
                Fate::Keep
            };
        }
        self.calls.clear();
        self.calls.push(b'[');
        self.calls.extend_from_slice(&said.calls);
        self.calls.push(b']');
        match choice.tool_calls {
            Some(place) if place.of(text).as_bytes() == self.calls => Fate::Keep,
            _ => Fate::New,
        }
    }

    /// `x_sluice` in the last delta of the choice, or in its message.
    fn verdicts(&mut self, voice: &Voice, plan: &AnswerPlan) -> Fate {
        if !plan.show_verdicts || voice.finish.is_none() || voice.verdicts.is_empty() {
            return Fate::Keep;
        }
        self.verdicts.clear();
        let mut open: &[u8] = b"{\"verdicts\":[";
        for judged in &voice.verdicts {
            self.verdicts.extend_from_slice(std::mem::replace(&mut open, b","));
            self.verdicts.extend_from_slice(b"{\"tool\":");
            quote(&judged.tool, &mut self.verdicts);
            self.verdicts.extend_from_slice(b",\"verdict\":");
            quote(&word(&judged.verdict), &mut self.verdicts);
            self.verdicts.push(b'}');
        }
        self.verdicts.extend_from_slice(b"]}");
        Fate::New
    }
}

/// The string token at `place` says `wanted`.
fn says(text: &str, place: Span, wanted: &str) -> Result<bool, Malformed> {
    Ok(unquote(place.of(text))? == wanted)
}

/// A verdict as the client reads it (B29).
fn word(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Passed => "passed".to_owned(),
        Verdict::PassedUnchecked => "passed(unchecked)".to_owned(),
        Verdict::Repaired(_) => format!("repaired({})", verdict.kinds().collect::<Vec<_>>().join(",")),
        Verdict::Reasked(times) => format!("reasked({times})"),
        Verdict::Refused(reason) => format!("refused({reason})"),
    }
}
