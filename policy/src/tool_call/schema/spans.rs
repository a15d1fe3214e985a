//! Where the values of a JSON text stand.
//!
//! Text that is known to be JSON enters; each value's span, its key and its parent leave, so that a mend can put another text
//! in its place and leave every other byte alone. The walk is one pass, without recursion.

use crate::tool_call::json;
use std::ops::Range;

/// One value of a text.
#[derive(Debug)]
pub(super) struct Place {
    /// The value, without white space around.
    pub(super) span: Range<usize>,
    /// Where its member begins: at its key's quote, or at the value in an array.
    pub(super) start: usize,
    /// The key, decoded.
    pub(super) key: Option<String>,
    pub(super) parent: Option<usize>,
    /// In order.
    pub(super) children: Vec<usize>,
}

/// The values of a text, the outermost first.
#[derive(Debug)]
pub(super) struct Spans<'a> {
    pub(super) text: &'a str,
    places: Vec<Place>,
}

impl<'a> Spans<'a> {
    /// Of JSON text.
    pub(super) fn of(text: &'a str) -> Self {
        let mut spans = Spans {
            text,
            places: Vec::new(),
        };
        let bytes = text.as_bytes();
        let mut open: Option<usize> = None;
        let mut key: Option<Range<usize>> = None;
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => at += 1,
                b'{' | b'[' => {
                    open = Some(spans.add(at..at, key.take(), open));
                    at += 1;
                }
                b'}' | b']' => {
                    at += 1;
                    let place = open.and_then(|open| spans.places.get_mut(open));
                    open = place.and_then(|place| {
                        place.span.end = at;
                        place.parent
                    });
                }
                b'"' => {
                    let end = string_end(bytes, at);
                    let in_object = open
                        .and_then(|open| spans.get(open))
                        .is_some_and(|place| bytes.get(place.span.start) == Some(&b'{'));
                    if in_object && key.is_none() {
                        key = Some(at..end);
                    } else {
                        spans.add(at..end, key.take(), open);
                    }
                    at = end;
                }
                _ => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
                    let len = rest.iter().position(ends).unwrap_or(rest.len());
                    spans.add(at..at + len, key.take(), open);
                    at += len;
                }
            }
        }
        spans
    }

    fn add(&mut self, span: Range<usize>, key: Option<Range<usize>>, parent: Option<usize>) -> usize {
        let at = self.places.len();
        self.places.push(Place {
            start: key.as_ref().map_or(span.start, |key| key.start),
            key: key.and_then(|key| json::unquote(self.text.get(key)?)),
            span,
            parent,
            children: Vec::new(),
        });
        if let Some(parent) = parent.and_then(|parent| self.places.get_mut(parent)) {
            parent.children.push(at);
        }
        at
    }

    pub(super) fn get(&self, at: usize) -> Option<&Place> {
        self.places.get(at)
    }

    /// The text of a value.
    pub(super) fn raw(&self, at: usize) -> &'a str {
        let span = self.get(at).map(|place| place.span.clone());
        span.and_then(|span| self.text.get(span)).unwrap_or_default()
    }

    /// The value at a JSON pointer; of equal keys the last, which is the one that counts.
    pub(super) fn find(&self, pointer: &str) -> Option<usize> {
        let mut at = 0;
        for segment in pointer.split('/').skip(1) {
            let children = &self.get(at)?.children;
            at = if self.raw(at).starts_with('[') {
                *children.get(segment.parse::<usize>().ok()?)?
            } else {
                let name = segment.replace("~1", "/").replace("~0", "~");
                let named = |child: &&usize| self.key(**child) == Some(name.as_str());
                *children.iter().rev().find(named)?
            };
        }
        Some(at)
    }

    fn key(&self, at: usize) -> Option<&str> {
        self.get(at)?.key.as_deref()
    }

    /// The members of the same object that have the key of this one, itself included; none for an element of an array.
    pub(super) fn twins(&self, at: usize) -> Vec<usize> {
        let (Some(key), Some(parent)) = (self.key(at), self.get(at).and_then(|place| place.parent)) else {
            return Vec::new();
        };
        let siblings = self.get(parent).map(|place| place.children.as_slice());
        let twin = |sibling: &usize| self.key(*sibling) == Some(key);
        siblings.unwrap_or_default().iter().copied().filter(twin).collect()
    }
}

/// Behind the closing quote of the string that opens at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while let Some(byte) = bytes.get(end) {
        match byte {
            b'\\' => end += 2,
            b'"' => return end + 1,
            _ => end += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_pointer() {
        let text = r#" { "a" : [1, {"b/c": "x\"y"} , [] ], "~": null, "a\u0062": true , "a": -1.5e3} "#;
        let spans = Spans::of(text);
        for (pointer, raw) in [
            ("", text.trim()),
            ("/~0", "null"),
            ("/ab", "true"),
            ("/a", "-1.5e3"), // the last of equal keys
        ] {
            assert_eq!(spans.find(pointer).map(|at| spans.raw(at)), Some(raw), "{pointer}");
        }
        let text = r#"{"a":[1,{"b/c":"x\"y"},[]]}"#;
        let spans = Spans::of(text);
        for (pointer, raw) in [
            ("/a/0", Some("1")),
            ("/a/1/b~1c", Some(r#""x\"y""#)),
            ("/a/2", Some("[]")),
            ("/a/3", None),
            ("/b", None),
            ("/a/x", None),
        ] {
            assert_eq!(spans.find(pointer).map(|at| spans.raw(at)), raw, "{pointer}");
        }
    }

    #[test]
    fn members_of_one_key_are_twins() {
        let spans = Spans::of(r#"{"a":1,"b":2,"\u0061":[3]}"#);
        let a = spans.find("/a").unwrap();
        assert_eq!(spans.twins(a).len(), 2);
        assert_eq!(spans.twins(spans.find("/a/0").unwrap()).len(), 0);
        assert_eq!(spans.twins(0).len(), 0);
    }
}
