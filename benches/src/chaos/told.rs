//! What a model is told to say: words that carry the request's tag and their number, so that a lost, a doubled and a foreign piece are
//! told apart from the answer alone.
//!
//! The text travels in a marker of the request (`[[sim text=…]]`), so that every simulated replica says the same and one that goes on
//! says the rest. Thinking, text and the call's argument have letters of their own: `r`, `w`, `a`.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use serde_json::{Value, json};

/// The tool that agents declare and models call.
pub(super) const TOOL: &str = "write_file";

/// How a request declares it.
pub(super) fn tools() -> Value {
    let text = json!({"type": "string"});
    json!([{"type": "function", "function": {"name": TOOL, "description": "Writes a file.",
        "parameters": {"type": "object", "properties": {"path": text, "content": text}, "required": ["path", "content"]}}}])
}

/// An answer, before anybody has said it.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// Of the request; letters and digits.
    pub(super) tag: String,
    /// Words of thinking; none: no tags either.
    pub(super) thinking: usize,
    /// Words of text.
    pub(super) words: usize,
    /// Words of the call's argument; none: no call.
    pub(super) call: usize,
}

/// How the answer ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// By itself.
    Itself,
    /// Before the text's word of this number, which is the request's `stop`.
    Before(usize),
    /// After so many tokens at most, fewer than it has.
    Tokens(u64),
}

/// What must arrive, for each choice.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// All of it.
    pub(super) reasoning: String,
    /// All of it.
    pub(super) content: String,
    /// The argument text of the only call.
    pub(super) call: Option<String>,
    /// `finish_reason`.
    pub(super) finish: &'static str,
    /// Only a beginning of it comes, of so many tokens.
    pub(super) tokens: Option<u64>,
    /// How many choices.
    pub(super) choices: usize,
    /// A figure of usage must come.
    pub(super) usage: bool,
}

impl Told {
    /// The text as the model writes it.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        if self.thinking > 0 {
            text.push_str("<think>\n");
            text.push_str(&self.run('r', self.thinking));
            text.push_str("\n</think>\n\n");
        }
        text.push_str(&self.run('w', self.words));
        if let Some(arguments) = self.arguments() {
            text.push_str(&format!(
                "\n<tool_call>\n{{\"name\": \"{TOOL}\", \"arguments\": {arguments}}}\n</tool_call>"
            ));
        }
        text
    }

    /// The marker that makes a simulated replica say it.
    pub(super) fn marker(&self) -> String {
        format!("[[sim text={}]]", BASE64_STANDARD_NO_PAD.encode(self.text()))
    }

    /// The text's word of this number, counted from 1.
    pub(super) fn word(&self, number: usize) -> String {
        format!("w{}.{number:05}", self.tag)
    }

    /// What of it arrives where the answer ends so. `parted`: thinking is split off, as it is for a chat.
    pub(super) fn wanted(&self, end: &End, choices: usize, usage: bool) -> Wanted {
        let reasoning = match self.thinking {
            0 => String::new(),
            words => self.run('r', words) + "\n",
        };
        let mut content = self.run('w', self.words);
        let mut call = self.arguments();
        let mut finish = "stop";
        match end {
            End::Itself => {}
            End::Before(number) => {
                let cut = content.find(&self.word(*number)).unwrap_or(content.len());
                content.truncate(cut);
                call = None;
            }
            End::Tokens(_) => finish = "length",
        }
        if call.is_some() {
            content.push('\n');
            if finish == "stop" {
                finish = "tool_calls";
            }
        }
        let tokens = match end {
            End::Tokens(tokens) => Some(*tokens),
            End::Itself | End::Before(_) => None,
        };
        Wanted {
            reasoning,
            content,
            call,
            finish,
            tokens,
            choices,
            usage,
        }
    }

    fn arguments(&self) -> Option<String> {
        (self.call > 0).then(|| {
            let words = self.run('a', self.call);
            format!("{{\"path\": \"{}\", \"content\": \"{words}\"}}", self.tag)
        })
    }

    fn run(&self, letter: char, words: usize) -> String {
        let words: Vec<String> = (1..=words)
            .map(|number| format!("{letter}{}.{number:05}", self.tag))
            .collect();
        words.join(" ")
    }
}
