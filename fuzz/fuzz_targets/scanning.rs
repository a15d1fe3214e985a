//! The scanner as the targets use it: tools, an answer in parts, its pieces.

use std::sync::{Arc, LazyLock};

use sluice_policy::tool_call::{Bare, Piece, Scanner, ToolSet};

/// What the answers may call.
pub static TOOLS: LazyLock<Arc<ToolSet>> = LazyLock::new(|| {
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

/// The pieces of an answer that comes in these parts.
pub fn scan<'a>(tools: &Arc<ToolSet>, bare: Bare, parts: impl Iterator<Item = &'a [u8]>) -> Vec<Piece> {
    let (mut scanner, mut pieces) = (Scanner::new(Arc::clone(tools), bare), Vec::new());
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
pub fn merged(pieces: &[Piece]) -> Vec<Piece> {
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
