//! The text of one choice as the model wrote it, tags included, and how much of it has been judged: what a continuation is
//! asked from (B26, B31).
//!
//! Text is added as it comes; what leaves the stages (text, reasoning, calls) is found again in it, in order, so that the place
//! where a call begins is known to the byte. Only markup and white space stand between two findings. A text that isn't found
//! spoils the places: then no call can be asked again. A text that is longer than the limit spoils the transcript, so that the
//! answer can't go on elsewhere either. Nothing else changes.

/// Longest answer that can be asked again, in bytes: some 250,000 tokens.
const LIMIT_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    text: String,
    /// What comes before has left the stages.
    judged: usize,
    lost_place: bool,
    spoilt: bool,
}

impl Transcript {
    /// From a text of which nothing has been judged.
    pub(super) fn of(text: String) -> Self {
        Self {
            text,
            judged: 0,
            lost_place: false,
            spoilt: false,
        }
    }

    /// The model wrote this.
    pub(super) fn heard(&mut self, text: &str) {
        if !self.spoilt && self.text.len() + text.len() > LIMIT_BYTES {
            self.spoil();
        }
        if !self.spoilt {
            self.text.push_str(text);
        }
    }

    /// This left the stages: where it began, if that is certain.
    pub(super) fn judged(&mut self, text: &str) -> Option<usize> {
        let certain = !self.spoilt && !self.lost_place;
        let rest = self.text.get(self.judged..).filter(|_| certain)?;
        // Almost always it is what comes next; a search costs more than the comparison.
        let found = if rest.starts_with(text) {
            Some(0)
        } else {
            rest.find(text)
        };
        let Some(skipped) = found else {
            self.lost_place = true;
            return None;
        };
        let start = self.judged + skipped;
        self.judged = start + text.len();
        Some(start)
    }

    /// What comes before has been judged.
    pub(super) fn skip_to(&mut self, judged: usize) {
        self.judged = judged;
    }

    /// Something came that this can't hold.
    pub(super) fn spoil(&mut self) {
        self.spoilt = true;
        self.text = String::new();
    }

    /// All of it, unless it is spoilt.
    pub(super) fn text(&self) -> Option<&str> {
        (!self.spoilt).then_some(&*self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_in_order() {
        let mut transcript = Transcript::of("<think>\na </think>\n\nb <x>b <x>".to_owned());
        for (text, want) in [("a ", 8), ("b ", 20), ("<x>", 22), ("b ", 25), ("<x>", 27)] {
            assert_eq!(transcript.judged(text), Some(want), "{text}");
        }
        transcript.heard(" c");
        assert_eq!(transcript.judged("c"), Some(31));
        assert_eq!(transcript.judged("a"), None);
        transcript.heard(" d");
        assert_eq!(transcript.judged("d"), None, "what isn't found spoils the places");
        assert!(transcript.text().unwrap().ends_with(" c d"), "but not the text");
    }

    #[test]
    fn a_long_answer_is_forgotten() {
        let mut transcript = Transcript::default();
        transcript.heard(&"x".repeat(LIMIT_BYTES));
        assert!(transcript.text().is_some());
        transcript.heard("x");
        assert_eq!(transcript.text(), None);
        assert_eq!(transcript.judged("x"), None);
    }
}
