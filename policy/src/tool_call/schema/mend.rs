//! The search for the cheapest edits that make arguments valid.
//!
//! Problem: an error shows one level only (what a string holds is judged once it is unpacked), and a choice (`anyOf`) has several
//! ways out. Rule: best first by the number of edits, each state checked by the schema as a whole; the first that is valid wins,
//! unless another one of the same cost says something else: then nobody knows what was meant, and nothing is mended.
//! Bounds: [`TRIES_LIMIT`] checks, [`ERRORS_LIMIT`] errors each, [`WAITING_BYTES_LIMIT`], and no more work than `cost` allows for
//! the mends of one call.

use super::cost::Left;
use super::plan::{apply, plans};
use super::spans::Spans;
use super::{Judgement, Schema};
use crate::tool_call::verdict::Kind;
use jsonschema::ValidationError;
use serde_json::Value;

/// Most texts that are checked for one call.
const TRIES_LIMIT: usize = 24;
/// Most errors of one text that are mended.
const ERRORS_LIMIT: usize = 256;
/// Most bytes of the texts that wait to be checked.
const WAITING_BYTES_LIMIT: usize = 16 << 20;

struct State {
    arguments: String,
    value: Value,
    kinds: Vec<Kind>,
    /// Edits made so far.
    edits: usize,
}

/// Mends `arguments`, of which `value` is the value and which don't fit.
pub(super) fn mend(schema: &Schema, arguments: &str, value: Value) -> Judgement {
    let mut unfit = String::new();
    let mut waiting = vec![State {
        arguments: arguments.to_owned(),
        value,
        kinds: Vec::new(),
        edits: 0,
    }];
    let mut best: Option<State> = None;
    let mut left = Left::default();
    for tries in 0..TRIES_LIMIT {
        let Some(state) = cheapest(&mut waiting) else {
            return best.map_or(Judgement::Unfit { at: unfit }, mended);
        };
        if best.as_ref().is_some_and(|best| best.edits < state.edits) {
            return best.map_or(Judgement::Unfit { at: unfit }, mended);
        }
        if !schema.cost.spend(&mut left, &state.value, state.arguments.len()) {
            break;
        }
        let errors: Vec<ValidationError<'_>> = schema
            .validator
            .iter_errors(&state.value)
            .take(ERRORS_LIMIT + 1)
            .collect();
        if tries == 0 {
            unfit = errors
                .first()
                .map(|error| error.instance_path().as_str().to_owned())
                .unwrap_or_default();
        }
        if errors.is_empty() {
            if let Some(at) = schema.keys.slip(&state.value) {
                return Judgement::Unfit { at };
            }
            match &best {
                Some(best) if best.arguments != state.arguments => break,
                Some(_) => {}
                None => best = Some(state),
            }
        } else if errors.len() <= ERRORS_LIMIT {
            expand(&state, &errors, &mut waiting);
        }
        let held: usize = waiting.iter().map(|state| state.arguments.len()).sum();
        if held > WAITING_BYTES_LIMIT {
            break;
        }
    }
    Judgement::Unfit { at: unfit }
}

fn mended(state: State) -> Judgement {
    Judgement::Mended {
        arguments: state.arguments,
        kinds: state.kinds,
    }
}

/// Takes the state with the fewest edits, of several the one that was found first.
fn cheapest(waiting: &mut Vec<State>) -> Option<State> {
    let (at, _) = waiting.iter().enumerate().min_by_key(|(_, state)| state.edits)?;
    Some(waiting.remove(at))
}

fn expand(state: &State, errors: &[ValidationError<'_>], waiting: &mut Vec<State>) {
    let spans = Spans::of(&state.arguments);
    for plan in plans(errors, &spans) {
        let arguments = apply(&plan, &spans);
        let Ok(value) = serde_json::from_str(&arguments) else {
            continue;
        };
        let mut kinds = state.kinds.clone();
        for edit in &plan {
            if !kinds.contains(&edit.kind()) {
                kinds.push(edit.kind());
            }
        }
        waiting.push(State {
            arguments,
            value,
            kinds,
            edits: state.edits + plan.len(),
        });
    }
}
