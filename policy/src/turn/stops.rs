//! The client's stop words across a seam (B31).
//!
//! vLLM looks for them in what one request generates: a word that begins before the seam and ends behind it is seen by nobody
//! but us. Enters: the end of the text before the seam, then the text behind it. Leaves: that text, until a word is whole whose
//! start was before the seam. What may still become one is held, which is less than the longest word. Words that begin behind
//! the seam are vLLM's.
//!
//! What of the word stood before the seam has been shown. It stays: the answer ends behind it.

/// The client's `stop`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// None is empty.
    pub words: Vec<String>,
    /// `include_stop_str_in_output`.
    pub included: bool,
}

/// Looks for words across one seam.
#[derive(Debug)]
pub(super) struct SeamStops {
    stops: Stops,
    /// The end of the text before the seam, shorter than the longest word, and what is held of that behind it.
    window: String,
    /// Where in it the seam is.
    seam: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A word may reach across.
    Looking,
    /// None can any more.
    Past,
    /// One did: nothing more is said.
    Stopped,
}

impl SeamStops {
    /// Behind `before`. None if no word can reach across.
    pub(super) fn new(stops: &Stops, before: &str) -> Option<Self> {
        let longest = stops.words.iter().map(String::len).max().unwrap_or_default();
        let tail = before.get(before.floor_char_boundary((before.len() + 1).saturating_sub(longest))..)?;
        (longest > 1 && !tail.is_empty()).then(|| Self {
            stops: stops.clone(),
            window: tail.to_owned(),
            seam: tail.len(),
            state: State::Looking,
        })
    }

    /// More text from behind the seam. Returns what may be said of it.
    pub(super) fn push(&mut self, text: &str) -> String {
        match self.state {
            State::Past => return text.to_owned(),
            State::Stopped => return String::new(),
            State::Looking => self.window.push_str(text),
        }
        let ends = self.stops.words.iter().filter_map(|word| self.across(word));
        if let Some(end) = ends.min() {
            self.state = State::Stopped;
            let said = if self.stops.included { end } else { self.seam };
            return self.window.get(self.seam..said).unwrap_or_default().to_owned();
        }
        if self.may_come() {
            return String::new();
        }
        self.state = State::Past;
        self.window.split_off(self.seam)
    }

    /// The text behind the seam has ended: what was held of it.
    pub(super) fn finish(&mut self) -> String {
        match std::mem::replace(&mut self.state, State::Past) {
            State::Looking => self.window.split_off(self.seam),
            State::Past | State::Stopped => String::new(),
        }
    }

    /// A word was found.
    pub(super) fn is_stopped(&self) -> bool {
        self.state == State::Stopped
    }

    /// Where `word` ends, if it begins before the seam and ends behind it.
    fn across(&self, word: &str) -> Option<usize> {
        let starts = self.starts(word.len());
        let start = starts.into_iter().find(|&at| self.rest(at).starts_with(word))?;
        Some(start + word.len())
    }

    /// Some word has begun before the seam and isn't whole.
    fn may_come(&self) -> bool {
        let begun = |word: &String| {
            let mut starts = self.starts(word.len()).into_iter();
            starts.any(|at| word.starts_with(self.rest(at)))
        };
        self.stops.words.iter().any(begun)
    }

    /// Where a word of this length can begin that reaches across.
    fn starts(&self, len: usize) -> Vec<usize> {
        let first = (self.seam + 1).saturating_sub(len);
        (first..self.seam)
            .filter(|&at| self.window.is_char_boundary(at))
            .collect()
    }

    fn rest(&self, at: usize) -> &str {
        self.window.get(at..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of `behind`, in pieces of any size, and whether a word ended it.
    fn check(words: &[&str], included: bool, before: &str, behind: &str, want: (&str, bool)) {
        let stops = Stops {
            words: words.iter().map(|&word| word.to_owned()).collect(),
            included,
        };
        for size in 1..=behind.len().max(1) {
            let mut said = String::new();
            let mut stopped = false;
            match SeamStops::new(&stops, before) {
                None => said.push_str(behind),
                Some(mut seam) => {
                    for piece in behind.as_bytes().chunks(size) {
                        said += &seam.push(std::str::from_utf8(piece).unwrap());
                    }
                    stopped = seam.is_stopped();
                    said += &seam.finish();
                }
            }
            assert_eq!((said.as_str(), stopped), want, "{words:?} {before}|{behind} by {size}");
        }
    }

    #[test]
    fn a_word_across_the_seam_ends_the_answer() {
        for (words, included, before, behind, want) in [
            (&["END"][..], false, "say E", "ND and on", ("", true)),
            (&["END"], true, "say E", "ND and on", ("ND", true)),
            (&["END"], false, "say EN", "Down", ("", true)),
            (&["END"], false, "say EN", "TER", ("TER", false)),
            (&["END"], false, "say ", "END", ("END", false)),
            (&["END"], false, "END", " on", (" on", false)),
            (&["END"], false, "EN", "", ("", false)),
            (&["END"], false, "E", "N", ("N", false)),
            (&["x"], false, "x", "x", ("x", false)),
            (&[], false, "a", "b", ("b", false)),
            (&["aab"], false, "xa", "aab", ("aab", false)),
            (&["aab"], false, "xaa", "ab", ("", true)),
            (&["END", "ND and"], false, "E", "ND and", ("", true)),
            (&["abcd", "bc"], false, "ab", "cd", ("", true)),
            (&["é!"], false, "caf\u{e9}", "! no", ("", true)),
        ] {
            check(words, included, before, behind, want);
        }
    }
}
