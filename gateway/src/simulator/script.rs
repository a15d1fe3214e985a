//! The answer of one choice, decided before its first token: text, token ends, ids and why it ends.
//!
//! `max_tokens` and `stop` are applied here, once, so that the engine only counts and the wire only cuts.
use super::tokens::{self, END_OF_TURN};

/// Why an answer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finish {
    /// The end-of-turn token.
    Stop,
    /// One of the request's `stop` strings.
    StopString(String),
    /// `max_tokens`.
    Length,
}

/// What ends an answer early.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits {
    /// Most tokens, the end-of-turn token included.
    pub(super) max_tokens: u32,
    /// The request's stop strings.
    pub(super) stop: Vec<String>,
    /// Whether the stop string itself is shown.
    pub(super) include_stop: bool,
}

/// One choice's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    /// What the client sees, from first to last token.
    pub(super) text: String,
    /// Byte in the generated text at which each token ends; ends beyond `text` belong to a stop string.
    ends: Vec<u32>,
    /// Each token's id.
    pub(super) ids: Vec<u32>,
    /// Why it ends.
    pub(super) finish: Finish,
    /// Bytes held back while it runs, because a stop string could begin there.
    hold: u32,
}

impl Script {
    /// Cuts `text` into tokens and ends it where `limits` say.
    pub(super) fn new(mut text: String, limits: &Limits) -> Self {
        let stop = limits
            .stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .filter_map(|stop| text.find(stop.as_str()).map(|at| (at, stop)))
            .min_by_key(|(at, stop)| at + stop.len());
        let generated = stop.map_or(text.len(), |(at, stop)| at + stop.len());
        let shown = stop.map_or(
            text.len(),
            |(at, stop)| if limits.include_stop { at + stop.len() } else { at },
        );
        let mut finish = stop.map_or(Finish::Stop, |(_, stop)| Finish::StopString(stop.clone()));
        let (mut ends, mut ids) = (Vec::new(), Vec::new());
        let mut end = 0;
        for piece in tokens::pieces(&text) {
            if end >= generated {
                break;
            }
            end += piece.len();
            ends.push(end as u32);
            ids.push(tokens::id(piece));
        }
        if finish == Finish::Stop {
            ends.push(end as u32);
            ids.push(END_OF_TURN);
        }
        let mut seen = shown;
        let most = limits.max_tokens.max(1) as usize;
        if ids.len() > most {
            ends.truncate(most);
            ids.truncate(most);
            finish = Finish::Length;
            seen = ends.last().map_or(0, |end| *end as usize);
        }
        text.truncate(seen);
        let longest = limits.stop.iter().map(String::len).max().unwrap_or(0);
        let hold = if limits.include_stop {
            0
        } else {
            longest.saturating_sub(1) as u32
        };
        Self {
            text,
            ends,
            ids,
            finish,
            hold,
        }
    }

    /// Tokens of the answer, the end-of-turn token included.
    pub(super) fn tokens(&self) -> u32 {
        self.ids.len() as u32
    }

    /// Bytes of the text that may be shown once `produced` tokens are there.
    pub(super) fn visible(&self, produced: u32) -> usize {
        if produced >= self.tokens() {
            return self.text.len();
        }
        let Some(end) = produced.checked_sub(1).and_then(|last| self.ends.get(last as usize)) else {
            return 0;
        };
        let mut end = (end.saturating_sub(self.hold) as usize).min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        end
    }

    /// The shown text of one token, nothing held back; empty for the end-of-turn token and within a stop string.
    pub(super) fn shown(&self, token: u32) -> &str {
        let end = |token: u32| {
            self.ends
                .get(token as usize)
                .map_or(0, |end| (*end as usize).min(self.text.len()))
        };
        let start = token.checked_sub(1).map_or(0, end);
        self.text.get(start..end(token)).unwrap_or_default()
    }

    /// The generated text of one token (the stop string included); empty for the end-of-turn token.
    pub(super) fn token_text(&self, index: u32) -> String {
        let mut text = String::new();
        if let Some(id) = self.ids.get(index as usize).filter(|id| **id != END_OF_TURN) {
            tokens::decode(*id, &mut text);
        }
        text
    }

    /// Whether `max_tokens` ended it.
    pub(super) fn is_length(&self) -> bool {
        self.finish == Finish::Length
    }

    /// `finish_reason` on the wire.
    pub(super) fn finish_reason(&self) -> &'static str {
        if self.is_length() { "length" } else { "stop" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_tokens: u32, stop: &[&str]) -> Limits {
        Limits {
            max_tokens,
            stop: stop.iter().map(|s| (*s).to_owned()).collect(),
            include_stop: false,
        }
    }

    #[test]
    fn an_undisturbed_answer_ends_with_the_end_of_turn_token() {
        let script = Script::new("Hello there".into(), &limits(100, &[]));
        assert_eq!((script.tokens(), script.finish_reason()), (4, "stop"));
        assert_eq!(script.ids.last(), Some(&END_OF_TURN));
        assert_eq!(
            (0..=4).map(|n| script.visible(n)).collect::<Vec<_>>(),
            [0, 5, 10, 11, 11]
        );
    }

    #[test]
    fn max_tokens_cuts_at_a_token() {
        let script = Script::new("Hello there".into(), &limits(2, &[]));
        assert_eq!(
            (script.text.as_str(), script.finish_reason(), script.tokens()),
            ("Hello ther", "length", 2)
        );
        let exact = Script::new("Hello there".into(), &limits(4, &[]));
        assert_eq!(exact.finish, Finish::Stop);
    }

    #[test]
    fn a_stop_string_is_held_back_and_never_shown() {
        let text = "<think>\nGreet back.\n</think>\n\nHello! How can I help you today?";
        let script = Script::new(text.into(), &limits(256, &["help you"]));
        assert_eq!(script.finish, Finish::StopString("help you".into()));
        assert!(script.text.ends_with("How can I "));
        assert_eq!(
            (script.visible(1), script.visible(2)),
            (0, 1),
            "seven bytes are held back, as vLLM does"
        );
        let shown: Vec<usize> = (0..=script.tokens()).map(|n| script.visible(n)).collect();
        assert!(shown.is_sorted() && shown.last() == Some(&script.text.len()));
    }

    #[test]
    fn length_beats_a_stop_string_that_comes_later() {
        let script = Script::new("one two three four".into(), &limits(2, &["four"]));
        assert_eq!((script.text.as_str(), script.finish_reason()), ("one two", "length"));
    }

    #[test]
    fn what_is_held_back_never_splits_a_character() {
        let script = Script::new("äöü€𝄞 end".into(), &limits(100, &["zz"]));
        for produced in 0..=script.tokens() {
            assert!(script.text.is_char_boundary(script.visible(produced)));
        }
    }
}
