//! From the errors of a check to the edits that may mend them.
//!
//! Errors of one value are looked at together: one that can be mended is enough, since the result is checked again as a whole;
//! a value with an error that nothing mends ends the plan. Where only `anyOf` or `oneOf` failed, each branch is a plan of its
//! own. A null that isn't allowed is left out with its key; whether it may be absent the next check says.

use super::convert::convert;
use super::spans::Spans;
use crate::tool_call::verdict::Kind;
use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

/// Most plans that the errors of one check make.
const PLANS_LIMIT: usize = 16;

/// One change of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    /// Another text for the value.
    Put {
        /// Its place in [`Spans`].
        at: usize,
        text: String,
        kind: Kind,
    },
    /// The member goes, with its key.
    Remove {
        /// The place of its value.
        at: usize,
    },
}

impl Edit {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Edit::Put { kind, .. } => *kind,
            Edit::Remove { .. } => Kind::Null,
        }
    }

    fn at(&self) -> usize {
        match self {
            Edit::Put { at, .. } | Edit::Remove { at } => *at,
        }
    }
}

/// The plans for these errors, each a set of edits that don't overlap; none if something can't be mended.
pub(super) fn plans(errors: &[ValidationError<'_>], spans: &Spans<'_>) -> Vec<Vec<Edit>> {
    let mut by_value: BTreeMap<&str, Vec<&ValidationErrorKind>> = BTreeMap::new();
    for error in errors {
        by_value
            .entry(error.instance_path().as_str())
            .or_default()
            .push(error.kind());
    }
    let mut edits = Vec::new();
    let mut choices = Vec::new();
    for (pointer, wrong) in by_value {
        let Some(at) = spans.find(pointer) else {
            return Vec::new();
        };
        if let Some(edit) = edit(at, &wrong, spans) {
            edits.push(edit);
        } else if let Some(branches) = wrong.iter().find_map(|wrong| branches(wrong))
            && wrong.iter().all(|wrong| self::branches(wrong).is_some())
        {
            choices.push(branches);
        } else {
            return Vec::new();
        }
    }
    // choices that remain are made when the rest fits
    if !edits.is_empty() {
        return vec![outermost(edits, spans)];
    }
    let branches = choices.first().copied().unwrap_or_default();
    let mut found: Vec<Vec<Edit>> = branches
        .iter()
        .filter(|errors| !errors.is_empty())
        .flat_map(|errors| plans(errors, spans))
        .take(PLANS_LIMIT)
        .collect();
    found.dedup();
    found
}

fn branches(wrong: &ValidationErrorKind) -> Option<&[Vec<ValidationError<'static>>]> {
    match wrong {
        ValidationErrorKind::AnyOf { context } | ValidationErrorKind::OneOfNotValid { context } => Some(context),
        _ => None,
    }
}

/// Another value may be what is meant.
fn convertible(wrong: &ValidationErrorKind) -> bool {
    matches!(
        wrong,
        ValidationErrorKind::Type { .. } | ValidationErrorKind::Enum { .. } | ValidationErrorKind::Constant { .. }
    )
}

/// The edit of one value.
fn edit(at: usize, wrong: &[&ValidationErrorKind], spans: &Spans<'_>) -> Option<Edit> {
    let raw = spans.raw(at);
    let place = spans.get(at)?;
    // the whole is an object, whatever the schema says
    place.parent?;
    if raw == "null" && place.key.is_some() {
        let refused = |wrong: &&ValidationErrorKind| convertible(wrong) || branches(wrong).is_some();
        return wrong.iter().any(refused).then_some(Edit::Remove { at });
    }
    // what an enum says is more than what a type says
    let (types, options): (Vec<_>, Vec<_>) = wrong
        .iter()
        .copied()
        .partition(|wrong| matches!(wrong, ValidationErrorKind::Type { .. }));
    let (text, kind) = options.iter().chain(&types).find_map(|wrong| convert(raw, wrong))?;
    Some(Edit::Put { at, text, kind })
}

/// Without the edits inside of a value that is edited itself.
fn outermost(edits: Vec<Edit>, spans: &Spans<'_>) -> Vec<Edit> {
    let edited: HashSet<usize> = edits.iter().map(Edit::at).collect();
    let parent = |at: &usize| spans.get(*at).and_then(|place| place.parent);
    let inner = |edit: &Edit| std::iter::successors(parent(&edit.at()), parent).any(|at| edited.contains(&at));
    edits.into_iter().filter(|edit| !inner(edit)).collect()
}

/// The text with these edits made.
pub(super) fn apply(edits: &[Edit], spans: &Spans<'_>) -> String {
    let removed: HashSet<usize> = edits
        .iter()
        .filter(|edit| matches!(edit, Edit::Remove { .. }))
        .flat_map(|edit| spans.twins(edit.at()))
        .collect();
    let mut cuts: Vec<(Range<usize>, &str)> = removed
        .iter()
        .filter_map(|at| Some((member(*at, &removed, spans)?, "")))
        .collect();
    for edit in edits {
        if let Edit::Put { at, text, .. } = edit
            && let Some(place) = spans.get(*at)
        {
            cuts.push((place.span.clone(), text));
        }
    }
    cuts.sort_unstable_by_key(|(span, _)| (span.start, span.end));
    let mut text = String::with_capacity(spans.text.len() + 16);
    let mut from = 0;
    for (span, new) in cuts {
        text += spans.text.get(from..span.start).unwrap_or_default();
        text += new;
        from = span.end;
    }
    text += spans.text.get(from..).unwrap_or_default();
    text
}

/// What goes with a member that goes: the comma before it, or behind it if no member before it stays.
fn member(at: usize, removed: &HashSet<usize>, spans: &Spans<'_>) -> Option<Range<usize>> {
    let place = spans.get(at)?;
    let siblings = &spans.get(place.parent?)?.children;
    let index = siblings.iter().position(|sibling| *sibling == at)?;
    let (before, behind) = siblings.split_at(index);
    let first_stays = before.iter().any(|sibling| !removed.contains(sibling));
    let start = match before.last() {
        Some(last) if first_stays => spans.get(*last)?.span.end,
        _ => place.start,
    };
    let end = match behind.get(1) {
        Some(next) if !first_stays => spans.get(*next)?.start,
        _ => place.span.end,
    };
    Some(start..end)
}
