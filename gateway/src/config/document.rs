//! The file as text: which key stands where. serde says what is wrong with a value, this says at which line and key.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::error::Place;

/// The longest excerpt, in characters.
const EXCERPT_CHARS: usize = 120;

/// A parsed file with the place of each key.
pub(super) struct Document<'a> {
    text: &'a str,
    entries: Vec<Entry>,
}

struct Entry {
    /// As `backend[0].replica[1].url`.
    path: String,
    key: Range<usize>,
    value: Range<usize>,
}

/// What an excerpt may show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    /// The whole line.
    Line,
    /// The key or section only: the value may be a secret.
    Key,
}

impl<'a> Document<'a> {
    /// Indexes `table`, which was read from `text`.
    pub(super) fn new(text: &'a str, table: &DeTable<'_>) -> Self {
        let mut entries = Vec::new();
        walk_table(table, "", &mut entries);
        Self { text, entries }
    }

    /// A file of which nothing but the text is known.
    pub(super) fn unparsed(text: &'a str) -> Self {
        Self {
            text,
            entries: Vec::new(),
        }
    }

    /// The path of the innermost key whose name or value holds the byte at `offset`; empty above all keys.
    pub(super) fn path_at(&self, offset: usize) -> &str {
        let holds = |range: &Range<usize>| range.contains(&offset);
        let innermost = |entry: &&Entry| entry.path.split(['.', '[']).count();
        self.entries
            .iter()
            .filter(|e| holds(&e.key) || holds(&e.value))
            .max_by_key(innermost)
            .map_or("", |e| &e.path)
    }

    /// Where `path` stands, or the nearest key above it that stands somewhere.
    pub(super) fn find(&self, path: &str) -> Option<Range<usize>> {
        let mut path = path;
        loop {
            if let Some(entry) = self.entries.iter().find(|entry| entry.path == path) {
                return Some(entry.key.clone());
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// Line, column and excerpt of a span.
    pub(super) fn place(&self, span: Range<usize>, show: Show) -> Place {
        let start = floor_boundary(self.text, span.start);
        let end = floor_boundary(self.text, span.end.max(start));
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let line = self.text[line_start..line_end].trim_end_matches('\r');
        let column = self.text[line_start..start].chars().count() + 1;
        let width = self.text[start..end.min(line_end)].chars().count().max(1);
        let shown = match show {
            Show::Line => line.to_owned(),
            Show::Key => match line.find('=') {
                Some(equals) => format!("{}= …", &line[..equals]),
                None if line.trim_start().starts_with('[') => line.to_owned(),
                None => "…".to_owned(),
            },
        };
        // Tabs are one column wide in `column`; so they must be in the excerpt for the underline to fit.
        let excerpt = shown
            .replace('\t', " ")
            .chars()
            .take(EXCERPT_CHARS.max(column + width))
            .collect();
        Place {
            line: self.text[..line_start].matches('\n').count() + 1,
            column,
            width,
            excerpt,
        }
    }
}

fn walk_table(table: &DeTable<'_>, above: &str, entries: &mut Vec<Entry>) {
    for (key, value) in table {
        let path = if above.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{above}.{}", key.get_ref())
        };
        walk_value(value.get_ref(), &path, key.span(), value.span(), entries);
    }
}

/// The document's nesting is bounded by the TOML parser's own recursion limit.
fn walk_value(value: &DeValue<'_>, path: &str, key: Range<usize>, span: Range<usize>, entries: &mut Vec<Entry>) {
    entries.push(Entry {
        path: path.to_owned(),
        key: key.clone(),
        value: span,
    });
    match value {
        DeValue::Table(table) => walk_table(table, path, entries),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let element = format!("{path}[{index}]");
                walk_value(item.get_ref(), &element, item.span(), item.span(), entries);
            }
        }
        _ => {}
    }
}

fn floor_boundary(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}
