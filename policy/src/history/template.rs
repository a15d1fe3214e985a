//! What some chat templates refuse: a system message in the middle, turns that say nothing (B30).
//!
//! Qwen3's takes both. Whether the served one does is learned from its 400 ([`refused`]); then the request is made once more with
//! the change, and later ones have it from the start. A system message keeps its place and its words, and speaks as the user; a
//! turn without content is left out with its comma.

use super::note::{Past, Role};
use super::{Change, Kind, Rules};

/// Adds what a template may ask for.
pub(super) fn changes(past: &Past, changes: &mut Vec<Change>) {
    let mut left_out = 0;
    for turn in &past.turns {
        let said = &turn.said;
        if !said.speaks && said.role != Role::Tool {
            // With the comma before it, or at the front of the list with the one behind it.
            let at = if turn.index > left_out {
                turn.before..turn.span.end
            } else {
                turn.span.start..turn.next
            };
            left_out += 1;
            changes.push(Change {
                at,
                new: String::new(),
                kind: Kind::EmptyTurn,
            });
        }
        if said.role == Role::System && turn.index > 0 {
            changes.push(Change {
                at: said.role_at.clone(),
                new: "\"user\"".to_owned(),
                kind: Kind::SystemAsUser,
            });
        }
    }
}

/// What a 400 in these words says that the template doesn't take, as templates of today word it:
///
/// - "System message must be at the beginning." (Qwen3.5, Llama), "After the optional system message, conversation roles must
///   alternate" (Mistral),
/// - "Assistant message must have either content or tool_calls" (Mistral), "… content must not be empty", "non-empty content".
pub fn refused(message: &str) -> Option<Rules> {
    let message = message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let mut rules = Rules::NONE;
    if says(&["system"]) && says(&["beginning", "first", "start", "optional system message"]) {
        rules = rules.and(Rules::SYSTEM_FIRST);
    }
    if says(&["content", "message", "turn"]) && says(&["empty", "either content or tool_calls"]) {
        rules = rules.and(Rules::NO_EMPTY_TURNS);
    }
    (rules != Rules::NONE).then_some(rules)
}
