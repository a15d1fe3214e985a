//! The scanner of tool calls: any text, cut anywhere.
//!
//! Holds: no panic; the same text and calls however the text is cut; each piece is a piece of the text, in order; what is left
//! out between them is white space, a fence or a tag; a call's arguments are a JSON object and its name is declared.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use sluice_policy::tool_call::{Bare, Piece};

use scanning::{TOOLS, merged, scan};

#[path = "cuts.rs"]
mod cuts;
#[path = "scanning.rs"]
mod scanning;

fuzz_target!(|input: &[u8]| {
    let [bare, seed, text @ ..] = input else { return };
    let bare = if bare & 1 == 0 { Bare::Calls } else { Bare::Text };
    let text = String::from_utf8_lossy(text);
    let whole = scan(&TOOLS, bare, std::iter::once(text.as_bytes()));
    let parts = scan(&TOOLS, bare, cuts::cut(text.as_bytes(), *seed));
    assert_eq!(merged(&whole), merged(&parts), "the cut shows");

    let mut rest = text.as_ref();
    for piece in &whole {
        let raw = match piece {
            Piece::Text(text) => text,
            Piece::Call(call) => &call.raw,
            Piece::Invalid { raw, .. } => raw,
        };
        rest = behind(rest, raw)
            .unwrap_or_else(|| panic!("a piece is a piece of the text, in order: {raw:?} in {rest:?}"));
        if let Piece::Call(call) = piece {
            assert!(TOOLS.find(&call.name).is_some(), "{} is declared", call.name);
            assert!(call.arguments.trim_start().starts_with('{'), "arguments are an object");
            serde_json::from_str::<IgnoredAny>(&call.arguments).expect("arguments are JSON");
        }
    }
    assert!(is_markup(rest), "text is lost at the end: {rest:?}");
});

/// The rest behind the first place of `raw` that only whole markup lies before: a short piece may also stand inside a tag
/// that was left out ("all>" in `</tool_call>all>`).
fn behind<'a>(rest: &'a str, raw: &str) -> Option<&'a str> {
    let places = (0..rest.len() + 1).filter(|at| rest.get(*at..).is_some_and(|rest| rest.starts_with(raw)));
    let mut whole = places.filter(|at| {
        let between = &rest[..*at];
        between.rfind('<') <= between.rfind('>') && is_markup(between)
    });
    let at = whole.next()?;
    rest.get(at + raw.len()..)
}

/// White space, tags, or the line of a fence: nothing that a reader would miss.
fn is_markup(text: &str) -> bool {
    let mut rest = text;
    let mut outside = String::new();
    while let Some((before, after)) = rest.split_once('<') {
        outside += before;
        rest = after.split_once('>').map_or("", |(_, behind)| behind);
    }
    outside += rest;
    outside.trim().is_empty() || outside.contains("```")
}
