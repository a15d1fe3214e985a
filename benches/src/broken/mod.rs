//! Broken calls: what repair makes of them.
//!
//! A [`Sample`] is a call as a model should have written it, with its tools. `mutators` break its text in one way each, the
//! scanner reads what comes of it, and [`Outcome`] says whether the client got that call, none, or another. `public` are the
//! samples of BFCL, `coding` those of coding agents, `decide` says which texts can't be told from sound ones, `edits` which ones one edit makes more
//! than one call of, `table` counts.

mod coding;
mod decide;
mod edits;
mod mutators;
mod public;
mod table;

pub use coding::coding;
pub use mutators::{KINDS, Mutant, OF_ONE_EDIT, OF_SCHEMA, mutants};
pub use public::public;
pub use table::{Count, Table};

use serde_json::Value;
use sluice_policy::tool_call::{Bare, Piece, Scanner, ToolSet};
use std::sync::Arc;

/// Calls as they are meant.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Where it is from.
    pub id: String,
    /// What the request declares.
    pub tools: Arc<ToolSet>,
    /// The inside of each block: one JSON object each.
    pub blocks: Vec<String>,
}

/// What became of a broken text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The calls that were meant, and nothing else.
    Equal,
    /// The broken call was found and is asked again.
    Reask,
    /// The same, and it can't be repaired but by guessing: see `edits`.
    Ambiguous,
    /// The broken call is shown as text.
    Text,
    /// Another call, which the text has to give: see `decide`.
    Undecidable,
    /// Another call.
    Wrong,
}

impl Sample {
    /// The text of an answer with these blocks.
    pub fn text(&self) -> String {
        let blocks: Vec<String> = self.blocks.iter().map(|block| tagged(block)).collect();
        blocks.join("\n")
    }

    /// The calls that a broken text of this sample should give.
    pub fn meant(&self, mutant: &Mutant) -> Vec<Value> {
        let text = |at: usize, block: &String| match &mutant.meant {
            Some((other, text)) if *other == at => serde_json::from_str(text),
            _ => serde_json::from_str(block),
        };
        let blocks = self.blocks.iter().enumerate();
        blocks.map(|(at, block)| text(at, block).unwrap_or_default()).collect()
    }

    /// Reads a broken text of this sample.
    pub fn judge(&self, mutant: &Mutant) -> Outcome {
        let (calls, invalid, content) = read(&self.tools, &mutant.text);
        let meant = self.meant(mutant);
        if calls == meant && invalid == 0 && content.trim().is_empty() {
            return Outcome::Equal;
        }
        let mut rest = meant.iter();
        if !calls.iter().all(|call| rest.any(|other| other == call)) || calls.len() >= meant.len() {
            return if self.has_to_give(mutant, &calls) {
                Outcome::Undecidable
            } else {
                Outcome::Wrong
            };
        }
        match invalid {
            0 => Outcome::Text,
            _ if OF_ONE_EDIT.contains(&mutant.kind) && edits::is_ambiguous(&self.tools, &mutant.broken) => {
                Outcome::Ambiguous
            }
            _ => Outcome::Reask,
        }
    }
}

/// The calls, how many are invalid, and the text of an answer.
pub fn read(tools: &Arc<ToolSet>, text: &str) -> (Vec<Value>, usize, String) {
    let mut scanner = Scanner::new(Arc::clone(tools), Bare::Calls);
    let mut pieces = Vec::new();
    scanner.push(text, &mut pieces);
    scanner.finish(&mut pieces);
    let (mut calls, mut invalid, mut content) = (Vec::new(), 0, String::new());
    for piece in pieces {
        match piece {
            Piece::Text(text) => content.push_str(&text),
            Piece::Invalid { .. } => invalid += 1,
            Piece::Call(call) => {
                let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_default();
                calls.push(serde_json::json!({"name": call.name, "arguments": arguments}));
            }
        }
    }
    (calls, invalid, content)
}

pub(crate) fn tagged(inside: &str) -> String {
    format!("<tool_call>\n{inside}\n</tool_call>")
}
