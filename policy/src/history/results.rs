//! Past calls without an id or a type, and tool results without a call id, matched to the calls before them (B30).
//!
//! vLLM refuses a call that lacks either. Its id is made of its place, so that it is the same in every later request.
//! A result belongs to the calls of the last turn that made any. It gets the id of the first of them that has no result yet and
//! bears the name that the result says, else of the first that has none. Nothing is guessed where no call is left.

use std::ops::Range;

use super::note::{CallId, Past, PastCall, Role};
use super::{Change, Kind};

/// Adds the ids that results lack.
pub(super) fn changes(past: &Past, body: &[u8], changes: &mut Vec<Change>) {
    let mut open: Vec<Waiting> = Vec::new();
    let raw = |at: &Range<usize>| body.get(at.clone()).map(String::from_utf8_lossy).unwrap_or_default();
    for turn in &past.turns {
        match turn.said.role {
            Role::Assistant if !turn.said.calls.is_empty() => {
                open.clear();
                for (place, call) in turn.said.calls.iter().enumerate() {
                    let Some(name) = &call.name else { continue };
                    let made = || format!("\"call_{}_{place}\"", turn.index);
                    // An empty one is an id to vLLM, but to nobody else.
                    let id = match &call.id {
                        CallId::Other => continue,
                        CallId::Given(at) => raw(at).into_owned(),
                        CallId::Missing | CallId::Empty(_) => made(),
                    };
                    complete(call, &id, changes);
                    open.push(Waiting {
                        id,
                        name: raw(name).into_owned(),
                    });
                }
            }
            Role::Tool => {
                let (at, new) = match &turn.said.call_id {
                    CallId::Other => continue,
                    CallId::Given(at) => {
                        let id = raw(at);
                        open.retain(|call| call.id != id);
                        continue;
                    }
                    CallId::Empty(at) => (at.clone(), ""),
                    // Before the closing brace; the object has a role at least.
                    CallId::Missing => (turn.span.end - 1..turn.span.end - 1, ",\"tool_call_id\":"),
                };
                let name = turn.said.name.as_ref().map(raw);
                let named = open.iter().position(|call| name.as_deref() == Some(&call.name));
                let place = match (named, open.is_empty()) {
                    (Some(place), _) => place,
                    (None, false) => 0,
                    (None, true) => continue,
                };
                let id = open.remove(place).id;
                changes.push(Change {
                    at,
                    new: format!("{new}{id}"),
                    kind: Kind::ResultMatched,
                });
            }
            _ => {}
        }
    }
}

/// What a past call lacks: one change for its members that are missing, another for an id that is null.
fn complete(call: &PastCall, id: &str, changes: &mut Vec<Change>) {
    let mut missing = String::new();
    match &call.id {
        CallId::Missing => missing = format!(",\"id\":{id}"),
        CallId::Empty(at) => changes.push(Change {
            at: at.clone(),
            new: id.to_owned(),
            kind: Kind::CallCompleted,
        }),
        CallId::Given(_) | CallId::Other => {}
    }
    if !call.has_type {
        missing.push_str(",\"type\":\"function\"");
    }
    if !missing.is_empty() {
        changes.push(Change {
            at: call.span.end - 1..call.span.end - 1,
            new: missing,
            kind: Kind::CallCompleted,
        });
    }
}

/// A call without a result. Texts are raw, quotes included.
struct Waiting {
    id: String,
    name: String,
}
