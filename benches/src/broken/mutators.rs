//! Ways to break a call, one at a time.
//!
//! A mutant is a whole answer in which one block is broken. Texts that are strict JSON after all are no mutants: what they
//! say can't be told from what was meant (but for the last two kinds, whose mending is the schema's).

use super::{Sample, tagged};
use crate::seed::Seed;
use serde_json::Value;

/// The kinds, in the order of the table.
pub const KINDS: &[&str] = &[
    "drop",
    "double",
    "swap",
    "replace",
    "single quotes",
    "single quotes, naive",
    "Python literals",
    "trailing comma",
    "fence",
    "closers cut",
    "raw newline",
    "bad escape",
    "inner quotes, all",
    "inner quotes, one pair",
    "scalar type",
    "key renamed",
];

/// Kinds that the schema's repair mends, or hands on.
pub const OF_SCHEMA: &[&str] = &["scalar type", "key renamed"];

/// Kinds that are one edit of one structural character.
pub const OF_ONE_EDIT: &[&str] = &["drop", "double", "swap", "replace"];

/// A broken answer.
#[derive(Debug, Clone)]
pub struct Mutant {
    /// One of [`KINDS`].
    pub kind: &'static str,
    /// All of its text.
    pub text: String,
    /// The inside of the block that is broken.
    pub broken: String,
    /// What is meant, where a line break was put in: the block and its text.
    pub meant: Option<(usize, String)>,
}

/// Up to `each` broken texts of each kind that can break this sample; the same for the same seed.
pub fn mutants(sample: &Sample, seed: &mut Seed, each: usize) -> Vec<Mutant> {
    let mut found: Vec<Mutant> = Vec::new();
    for kind in KINDS {
        let from = found.len();
        for _ in 0..each * 2 {
            let at = below(seed, sample.blocks.len());
            let Some(block) = sample.blocks.get(at) else { continue };
            let Some(text) = broken(kind, block, seed) else {
                continue;
            };
            if !OF_SCHEMA.contains(kind) && serde_json::from_str::<Value>(&text).is_ok() {
                continue;
            }
            // a line break in place of a blank, where the sample has none
            let lines = *kind == "raw newline" && !block.contains("\\n");
            let mutant = Mutant {
                kind,
                text: answer(sample, at, &text, kind, seed),
                meant: lines.then(|| (at, text.replace('\n', "\\n"))),
                broken: text,
            };
            let known = found.iter().skip(from).any(|other| other.text == mutant.text);
            if !known && found.len() - from < each {
                found.push(mutant);
            }
        }
    }
    found
}

fn answer(sample: &Sample, at: usize, text: &str, kind: &str, seed: &mut Seed) -> String {
    let last = at + 1 == sample.blocks.len();
    let mut parts: Vec<String> = sample.blocks.iter().map(|block| tagged(block)).collect();
    if let Some(part) = parts.get_mut(at) {
        *part = tagged(text);
        // a cut may have lost the closing tag as well; a number that ends the answer may have gone on
        let number = text.ends_with(|c: char| c.is_ascii_digit());
        if kind == "closers cut" && last && !number && below(seed, 2) == 0 {
            *part = format!("<tool_call>\n{text}");
        }
    }
    parts.join("\n")
}

fn below(seed: &mut Seed, limit: usize) -> usize {
    usize::try_from(seed.next_u64() % limit.max(1) as u64).unwrap_or_default()
}

/// What the structure of a strict JSON text consists of.
struct Parts {
    /// Brackets, commas, colons and the quotes of strings.
    structure: Vec<usize>,
    /// The inside of each string, and whether it is a key.
    strings: Vec<(std::ops::Range<usize>, bool)>,
    /// Numbers and literals.
    scalars: Vec<std::ops::Range<usize>>,
}

impl Parts {
    fn of(text: &str) -> Self {
        let bytes = text.as_bytes();
        let byte = |at: usize| bytes.get(at).copied();
        let mut parts = Parts {
            structure: Vec::new(),
            strings: Vec::new(),
            scalars: Vec::new(),
        };
        let mut at = 0;
        while let Some(now) = byte(at) {
            match now {
                b'"' => {
                    let from = at + 1;
                    let mut to = from;
                    while byte(to).is_some_and(|byte| byte != b'"') {
                        to += if byte(to) == Some(b'\\') { 2 } else { 1 };
                    }
                    parts.structure.extend([at, to]);
                    parts.strings.push((from..to, byte(to + 1) == Some(b':')));
                    at = to;
                }
                b'{' | b'}' | b'[' | b']' | b',' | b':' => parts.structure.push(at),
                b' ' | b'\n' => {}
                _ => {
                    let from = at;
                    while byte(at + 1).is_some_and(|byte| !b",]} \n".contains(&byte)) {
                        at += 1;
                    }
                    parts.scalars.push(from..at + 1);
                }
            }
            at += 1;
        }
        parts
    }

    fn values(&self) -> Vec<std::ops::Range<usize>> {
        // the first value is the call's name
        let values = self
            .strings
            .iter()
            .filter(|(_, key)| !key)
            .map(|(span, _)| span.clone());
        values.skip(1).collect()
    }
}

fn one<T: Clone>(items: &[T], seed: &mut Seed) -> Option<T> {
    items.get(below(seed, items.len())).cloned()
}

fn with(text: &str, span: std::ops::Range<usize>, new: &str) -> Option<String> {
    Some(format!("{}{new}{}", text.get(..span.start)?, text.get(span.end..)?))
}

fn broken(kind: &str, text: &str, seed: &mut Seed) -> Option<String> {
    let parts = Parts::of(text);
    match kind {
        "drop" => one(&parts.structure, seed).and_then(|at| with(text, at..at + 1, "")),
        "double" => {
            let at = one(&parts.structure, seed)?;
            with(text, at..at, text.get(at..at + 1)?)
        }
        "swap" => {
            let at = one(&parts.structure, seed)?;
            let next = text.get(at + 1..at + 2)?;
            let structural = parts.structure.contains(&(at + 1)) && text.get(at..at + 1)? != next;
            let swapped = format!("{next}{}", text.get(at..at + 1)?);
            structural.then(|| with(text, at..at + 2, &swapped)).flatten()
        }
        "replace" => {
            let at = one(&parts.structure, seed)?;
            let other = seed.pick(&["{", "}", "[", "]", ",", ":", "\""]);
            (text.get(at..at + 1)? != other)
                .then(|| with(text, at..at + 1, other))
                .flatten()
        }
        "single quotes" => Some(requoted(text, &parts, true)),
        "single quotes, naive" => Some(requoted(text, &parts, false)),
        "Python literals" => pythonic(text, &parts),
        "trailing comma" => {
            let closers: Vec<usize> = parts
                .structure
                .iter()
                .copied()
                .filter(|at| {
                    matches!(text.as_bytes().get(*at), Some(b'}' | b']'))
                        && !text.get(..*at).is_some_and(|text| text.ends_with(['{', '[']))
                })
                .collect();
            one(&closers, seed).and_then(|at| with(text, at..at, seed.pick(&[",", ", ", ",\n"])))
        }
        "fence" => Some(match below(seed, 4) {
            0 => format!("```json\n{text}\n```"),
            1 => format!("```\n{text}\n```"),
            2 => format!("```json\n{text}"),
            _ => format!("{text}\n```"),
        }),
        "closers cut" => {
            let body = text.trim_end_matches(['}', ']']);
            let closers = text.len() - body.len();
            // an empty object or array at the end isn't cut open
            let most = if body.ends_with(['{', '[']) {
                closers.saturating_sub(1)
            } else {
                closers
            };
            (most > 0)
                .then(|| text.get(..text.len() - 1 - below(seed, most)))
                .flatten()
                .map(str::to_owned)
        }
        "raw newline" => {
            let lines: Vec<_> = parts
                .values()
                .into_iter()
                .filter(|span| text.get(span.clone()).is_some_and(|text| text.contains("\\n")))
                .collect();
            if let Some(span) = one(&lines, seed) {
                let raw = raw_lines(text.get(span.clone())?);
                return with(text, span, &raw);
            }
            // short strings have none: one at the end of a word
            let spaces: Vec<usize> = parts
                .values()
                .into_iter()
                .flat_map(|span| span.filter(|at| text.as_bytes().get(*at) == Some(&b' ')))
                .collect();
            one(&spaces, seed).and_then(|at| with(text, at..at + 1, "\n"))
        }
        "bad escape" => {
            let span = one(&parts.values(), seed)?;
            let inside = text.get(span.clone())?;
            let at = inside.find("\\\\")?;
            let next = inside.as_bytes().get(at + 2)?;
            (!b"\"\\/bfnrtu".contains(next))
                .then(|| with(text, span.start + at..span.start + at + 2, "\\"))
                .flatten()
        }
        "inner quotes, all" => {
            let span = one(&parts.values(), seed)?;
            let inside = text.get(span.clone())?;
            inside
                .contains("\\\"")
                .then(|| with(text, span, &unescaped(inside, usize::MAX, 0)))
                .flatten()
        }
        "inner quotes, one pair" => {
            let span = one(&parts.values(), seed)?;
            let inside = text.get(span.clone())?;
            let pairs = escaped_quotes(inside).len() / 2;
            (pairs > 0)
                .then(|| with(text, span, &unescaped(inside, 2, 2 * below(seed, pairs))))
                .flatten()
        }
        "scalar type" => {
            let span = one(&parts.scalars, seed)?;
            let quoted = format!("\"{}\"", text.get(span.clone())?);
            with(text, span, &quoted)
        }
        "key renamed" => {
            let keys: Vec<_> = parts
                .strings
                .iter()
                .filter(|(span, key)| {
                    *key && !["name", "arguments"].contains(&text.get(span.clone()).unwrap_or_default())
                })
                .collect();
            let (span, _) = one(&keys, seed)?;
            let key = text.get(span.clone())?;
            (key.len() > 2 && key.is_ascii())
                .then(|| with(text, span.clone(), key.get(1..)?))
                .flatten()
        }
        _ => None,
    }
}

/// All strings in single quotes: as Python writes them, or with the quotes alone exchanged.
fn requoted(text: &str, parts: &Parts, python: bool) -> String {
    let mut out = String::new();
    let mut at = 0;
    for (span, _) in &parts.strings {
        out.push_str(text.get(at..span.start - 1).unwrap_or_default());
        let inside = text.get(span.clone()).unwrap_or_default();
        if python && inside.contains('\'') && !inside.contains("\\\"") {
            out.push('"');
            out.push_str(inside);
            out.push('"');
        } else if python {
            out.push('\'');
            out.push_str(&unescaped(inside, usize::MAX, 0).replace('\'', "\\'"));
            out.push('\'');
        } else {
            out.push('\'');
            out.push_str(inside);
            out.push('\'');
        }
        at = span.end + 1;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

fn pythonic(text: &str, parts: &Parts) -> Option<String> {
    let mut out = text.to_owned();
    for span in parts.scalars.iter().rev() {
        let word = match text.get(span.clone())? {
            "true" => "True",
            "false" => "False",
            "null" => "None",
            _ => continue,
        };
        out.replace_range(span.clone(), word);
    }
    (out != text).then_some(out)
}

/// Where the escaped quotes of a string are.
fn escaped_quotes(inside: &str) -> Vec<usize> {
    let bytes = inside.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'\\' {
            if bytes.get(at + 1) == Some(&b'"') {
                found.push(at);
            }
            at += 1;
        }
        at += 1;
    }
    found
}

/// Without the backslash of `count` quotes from the `skip`th on.
fn unescaped(inside: &str, count: usize, skip: usize) -> String {
    let mut out = inside.to_owned();
    let found: Vec<usize> = escaped_quotes(inside).into_iter().skip(skip).take(count).collect();
    for at in found.into_iter().rev() {
        out.remove(at);
    }
    out
}

/// With real line breaks.
fn raw_lines(inside: &str) -> String {
    let bytes = inside.as_bytes();
    let mut out = String::new();
    let mut at = 0;
    let mut from = 0;
    while let Some(byte) = bytes.get(at) {
        if *byte == b'\\' {
            if bytes.get(at + 1) == Some(&b'n') {
                out.push_str(inside.get(from..at).unwrap_or_default());
                out.push('\n');
                from = at + 2;
            }
            at += 1;
        }
        at += 1;
    }
    out.push_str(inside.get(from..).unwrap_or_default());
    out
}
