//! An answer whose upstream was lost in the middle goes on from another one (B31).
//!
//! What the model wrote is known, and so is what of it is still held: the stages stay as they are, a text completion behind
//! prompt and text so far enters them, and nothing is lost or shown twice. Choices that haven't ended go on one after the
//! other, each from its own text. What was heard of a chunk that didn't arrive whole was never heard.
//!
//! | the upstream is lost | then |
//! | --- | --- |
//! | every choice has ended | `Whole`: the answer ends properly |
//! | no token has come | `Anew`: the request is sent again, as it was |
//! | the answer can go on | `GoesOn`: a question for the first choice that hasn't ended |
//! | it can't, and nothing but a role was told | `Anew` |
//! | it can't | `Ends`, and why |

use super::again::Stage;
use super::whole::Written;
use super::{AnswerPlan, AskAgain, Continuable, Guide, Obstacle, Phase, Step, Turn, Voice, broke};
use crate::protocol::usage::Usage;

/// What becomes of an answer whose upstream was lost.
#[derive(Debug, PartialEq, Eq)]
pub enum Loss {
    /// Send the request again, then [`Turn::anew`].
    Anew,
    /// Nothing is missing but the end: [`Turn::end_whole`].
    Whole,
    /// Ask another replica, then [`Turn::again`]; or [`Turn::cut_short`], if no token is left.
    GoesOn(AskAgain),
    /// The client must be told.
    Ends(Obstacle),
}

impl Turn {
    /// The upstream was lost: it closed, fell silent, said an error, or what it said can't be read. Only before
    /// [`Step::Done`], and not where [`can_give_up`](Self::can_give_up).
    pub fn lost(&mut self) -> Loss {
        if self.is_finished() {
            return Loss::Whole;
        }
        let obstacle = self.obstacle();
        if !self.told && (obstacle.is_some() || self.facts.upstream_chunks == 0) {
            return Loss::Anew;
        }
        match obstacle {
            Some(obstacle) => Loss::Ends(obstacle),
            None => self
                .next_question()
                .map_or(Loss::Ends(Obstacle::TextUnknown), Loss::GoesOn),
        }
    }

    /// Why it can't go on.
    fn obstacle(&self) -> Option<Obstacle> {
        if let Continuable::Not(obstacle) = self.plan.seam.continuable {
            return Some(obstacle);
        }
        let mut unfinished = self.voices.iter().filter(|voice| voice.finish.is_none());
        let unknown = unfinished.any(|voice| voice.text_so_far().is_none());
        self.obstacle.or(unknown.then_some(Obstacle::TextUnknown))
    }

    /// The request was sent again, and is answered by a replica that `plan` is made for: what is pushed from now on is another
    /// first answer. The client has the role and the identity already.
    pub fn anew(&mut self, plan: AnswerPlan) {
        let mut turn = Self::with_event_limit(plan, self.event_limit_bytes);
        turn.identity = self.identity.take();
        turn.facts.shown = self.facts.shown;
        for voice in self.voices.iter().filter(|voice| voice.introduced) {
            let mut again = Voice::new(voice.index, &turn.plan, false);
            again.introduced = true;
            turn.voices.push(again);
        }
        *self = turn;
    }

    /// Every choice had ended when the upstream was lost: only the end is missing.
    pub fn end_whole(&mut self, out: &mut Vec<Step>) {
        if self.phase != Phase::Done && self.is_finished() {
            self.phase = Phase::Open;
            if self.seams > 0 {
                return self.close_seam(out);
            }
            self.done(None, out);
        }
    }

    /// Every choice that was asked for has ended.
    pub(super) fn is_finished(&self) -> bool {
        let all = self.voices.len() >= self.plan.seam.choices as usize;
        all && !self.voices.is_empty() && self.voices.iter().all(|voice| voice.finish.is_some())
    }

    /// The continuation of the speaker has ended: the next choice goes on, or the answer ends.
    pub(super) fn close_seam(&mut self, out: &mut Vec<Step>) {
        if self.phase != Phase::Open {
            return;
        }
        let ended = self
            .voices
            .get(self.speaker)
            .is_some_and(|voice| voice.finish.is_some());
        if !ended {
            return self.fail(
                broke("The model server's stream ended before the answer was finished."),
                out,
            );
        }
        if !self.is_finished() {
            self.outlet.flush(out);
            match self.next_question() {
                Some(question) => out.push(Step::GoOn(question)),
                None => self.fail(broke("A choice of the answer can't go on."), out),
            }
            return;
        }
        self.tell_usage(out);
        if self.phase == Phase::Open {
            self.done(None, out);
        }
    }

    /// Asks for the rest of the first choice that hasn't ended.
    fn next_question(&mut self) -> Option<AskAgain> {
        for index in 0..self.plan.seam.choices {
            if !self.voices.iter().any(|voice| voice.index == index) {
                // The upstream was lost before it said a word of this one.
                self.voices.push(Voice::new(index, &self.plan, false));
            }
        }
        let speaker = self.voices.iter().position(|voice| voice.finish.is_none())?;
        let voice = self.voices.get(speaker)?;
        let question = AskAgain {
            so_far: voice.text_so_far()?.to_owned(),
            guide: Guide::Free,
            number: self.seams + 1,
            choice: voice.index,
        };
        self.seams += 1;
        self.speaker = speaker;
        self.phase = Phase::Asking(Stage::Seam);
        Some(question)
    }

    /// What the speaker has written by the engine's count: the prompt of its continuation holds what was said before.
    pub(super) fn count_speaker(&mut self, usage: Usage) {
        let total = usage.prompt_tokens.zip(usage.completion_tokens);
        if let (Some((prompt, completion)), Some(first)) = (total, self.prompt_tokens)
            && let Some(voice) = self.voices.get_mut(self.speaker)
        {
            voice.counted = Some((prompt + completion).saturating_sub(first));
        }
    }

    /// The usage of all choices, if the prompt's is known: counted where the engine said it, else by events.
    fn tell_usage(&mut self, out: &mut Vec<Step>) {
        let Some(prompt_tokens) = self.prompt_tokens else {
            return;
        };
        let estimated = self.voices.iter().any(|voice| voice.counted.is_none());
        let tokens = |voice: &Voice| voice.counted.unwrap_or(voice.tokens);
        let completion_tokens = self.voices.iter().map(tokens).sum::<u64>();
        let written = Written {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        };
        if let Some(chunk) = self.chunk_of_usage(written) {
            self.say(&chunk, None, out);
            self.facts.usage.estimated |= estimated;
        }
    }
}

#[cfg(test)]
mod tests;
