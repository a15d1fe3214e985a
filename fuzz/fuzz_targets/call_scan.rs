//! The scanner of tool calls: any text, cut anywhere.
//!
//! Holds: no panic; the same text and calls however the text is cut; each piece is a piece of the text, in order; what is left
//! out between them is white space, a fence or a tag; a call's arguments are a JSON object and its name is declared.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use sluice_policy::tool_call::{Bare, Piece, Scanner, ToolSet};

#[path = "cuts.rs"]
mod cuts;

static TOOLS: LazyLock<Arc<ToolSet>> = LazyLock::new(|| {
    let tools = br#"[
        {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}, "days": {"type": "integer"}}}}},
        {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {
            "query": {"type": "string"}, "limit": {"type": "integer"}, "filters": {"type": "object"}}}}},
        {"type": "function", "function": {"name": "write_file", "parameters": {"type": "object", "properties": {
            "path": {"type": "string"}, "content": {"type": "string"}}}}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]"#;
    Arc::new(ToolSet::parse(tools).expect("four tools"))
});

fuzz_target!(|input: &[u8]| {
    let [bare, seed, text @ ..] = input else { return };
    let bare = if bare & 1 == 0 { Bare::Calls } else { Bare::Text };
    let text = String::from_utf8_lossy(text);
    let whole = scan(bare, std::iter::once(text.as_bytes()));
    let parts = scan(bare, cuts::cut(text.as_bytes(), *seed));
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

fn scan<'a>(bare: Bare, parts: impl Iterator<Item = &'a [u8]>) -> Vec<Piece> {
    let (mut scanner, mut pieces) = (Scanner::new(Arc::clone(&TOOLS), bare), Vec::new());
    // Text comes in whole characters: the end of a cut one waits for the next piece.
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        let valid = std::str::from_utf8(&bytes).map_or_else(|error| error.valid_up_to(), str::len);
        let ready: Vec<u8> = bytes.drain(..valid).collect();
        scanner.push(std::str::from_utf8(&ready).expect("whole characters"), &mut pieces);
    }
    scanner.finish(&mut pieces);
    pieces
}

/// Text that stands together as one piece.
fn merged(pieces: &[Piece]) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (out.last_mut(), piece) {
            (Some(Piece::Text(whole)), Piece::Text(text)) => whole.push_str(text),
            _ => out.push(piece.clone()),
        }
    }
    out.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
    out
}

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
