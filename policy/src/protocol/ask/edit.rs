//! Edits of a body that is never written anew: what stays is a slice of what was received, byte for byte.
//!
//! Removing a member takes its comma along: the one before it, or, at the front of the object, the one after it. A missing member
//! is appended. A repeated key (only keys that nobody judged can be repeated) is edited wherever it stands.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::protocol::fault::Fault;
use crate::protocol::skim::{Cursor, DEPTH_LIMIT_MAX, SkimError, Text};

/// One change of the top-level object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit<'a> {
    /// Replaces the member's value by this raw JSON, or appends the member.
    Set(&'static str, Cow<'a, [u8]>),
    /// The same for a member of the member, as `stream_options.include_usage`. A missing or null outer member becomes an object; one
    /// that is something else is left as it is, so that vLLM can refuse it.
    SetIn(&'static str, &'static str, Cow<'a, [u8]>),
    /// Takes the member away.
    Remove(&'static str),
}

impl Edit<'_> {
    pub(super) fn key(&self) -> &'static str {
        match self {
            Edit::Set(key, _) | Edit::SetIn(key, _, _) | Edit::Remove(key) => key,
        }
    }
}

/// The members of one object: where edits go.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields {
    members: Vec<Member>,
    /// Both brackets.
    span: Range<usize>,
}

#[derive(Debug, Clone)]
struct Member {
    /// With its quotes.
    key: Range<usize>,
    value: Range<usize>,
}

/// What becomes of one member.
enum Fate<'e, 'a> {
    Stays,
    Goes,
    Becomes(&'e [u8]),
    Within(Vec<&'e Edit<'a>>),
}

impl Fields {
    /// Remembers a member.
    pub(super) fn push(&mut self, key: &Text<'_>, value: Range<usize>, limit: usize) -> Result<(), Fault> {
        if self.members.len() >= limit {
            let message = format!("The request body has more than {limit} members (limit fields).");
            return Err(Fault::new(crate::protocol::fault::FaultKind::BadRequest, message));
        }
        self.members.push(Member { key: key.span(), value });
        Ok(())
    }

    /// The object is whole.
    pub(super) fn close(&mut self, span: Range<usize>) {
        self.span = span;
    }

    /// Raw JSON of a member; of the last one if the key is repeated, as readers of JSON have it.
    pub(super) fn value(&self, body: &Bytes, key: &str) -> Option<Bytes> {
        self.members
            .iter()
            .rev()
            .find(|member| member.is(body, key))
            .map(|member| body.slice(member.value.clone()))
    }

    /// The members of an object that has been checked before; none if this isn't one.
    fn of(object: &Bytes) -> Option<Fields> {
        let mut fields = Fields::default();
        let mut cursor = Cursor::new(object, DEPTH_LIMIT_MAX).ok()?;
        let span = cursor.members(|cursor, key| -> Result<(), SkimError> {
            let value = cursor.skip()?;
            fields.members.push(Member { key: key.span(), value });
            Ok(())
        });
        fields.close(span.ok()?);
        Some(fields)
    }
}

impl Member {
    fn is(&self, body: &[u8], key: &str) -> bool {
        let raw = body.get(self.key.clone()).unwrap_or_default();
        let plain = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
        if !plain.contains(&b'\\') {
            return plain == key.as_bytes();
        }
        Cursor::new(raw, 0)
            .and_then(|mut cursor| cursor.string())
            .is_ok_and(|text| text.is(key))
    }
}

/// The body with its edits, as segments in order.
pub(super) fn splice(body: &Bytes, fields: &Fields, edits: &[&Edit<'_>]) -> Vec<Bytes> {
    if fields.span.is_empty() {
        return vec![body.clone()];
    }
    let mut segments = Segments {
        body,
        done: 0,
        out: Vec::with_capacity(edits.len() * 3 + 1),
    };
    let mut kept = false;
    let mut previous_end = fields.span.start + 1;
    for (index, member) in fields.members.iter().enumerate() {
        match fate(body, member, edits) {
            Fate::Goes if kept => segments.cut(previous_end..member.value.end),
            Fate::Goes => {
                let next = fields
                    .members
                    .get(index + 1)
                    .map_or(member.value.end, |next| next.key.start);
                segments.cut(member.key.start..next);
            }
            fate => {
                kept = true;
                segments.change(&member.value, fate);
            }
        }
        previous_end = member.value.end;
    }
    segments.upto(previous_end);
    for (key, value) in missing(body, fields, edits) {
        segments.insert(member_text(kept, key, &value));
        kept = true;
    }
    segments.upto(body.len());
    segments.out
}

/// What the edits make of a member. The last edit of the whole member counts; without one, all edits within it do.
fn fate<'e, 'a>(body: &[u8], member: &Member, edits: &[&'e Edit<'a>]) -> Fate<'e, 'a> {
    let of_member = || edits.iter().copied().filter(|edit| member.is(body, edit.key()));
    match of_member().rfind(|edit| !matches!(edit, Edit::SetIn(..))) {
        Some(Edit::Set(_, value)) => return Fate::Becomes(value),
        Some(_) => return Fate::Goes,
        None => {}
    }
    let within: Vec<_> = of_member().collect();
    if within.is_empty() {
        Fate::Stays
    } else {
        Fate::Within(within)
    }
}

/// Members to append, in the order of their edits: each key once.
fn missing<'e>(body: &[u8], fields: &Fields, edits: &[&'e Edit<'_>]) -> Vec<(&'static str, Cow<'e, [u8]>)> {
    let mut appended: Vec<(&'static str, Cow<'e, [u8]>)> = Vec::new();
    for edit in edits {
        let key = edit.key();
        let settled = appended.iter().any(|(known, _)| *known == key);
        if settled || fields.members.iter().any(|member| member.is(body, key)) {
            continue;
        }
        let of_key = || edits.iter().copied().filter(|edit| edit.key() == key);
        match of_key().rfind(|edit| !matches!(edit, Edit::SetIn(..))) {
            Some(Edit::Set(_, value)) => appended.push((key, Cow::Borrowed(value.as_ref()))),
            Some(_) => {}
            None => appended.push((key, Cow::Owned(object_of(&of_key().collect::<Vec<_>>())))),
        }
    }
    appended
}

/// A new object with what is to be within it.
fn object_of(within: &[&Edit<'_>]) -> Vec<u8> {
    let empty = Bytes::from_static(b"{}");
    Fields::of(&empty)
        .map(|fields| splice_within(&empty, &fields, within).concat())
        .unwrap_or_default()
}

fn splice_within(object: &Bytes, fields: &Fields, within: &[&Edit<'_>]) -> Vec<Bytes> {
    let sets = within.iter().filter_map(|edit| match edit {
        Edit::SetIn(_, key, value) => Some(Edit::Set(key, Cow::Borrowed(value.as_ref()))),
        Edit::Set(..) | Edit::Remove(_) => None,
    });
    let sets: Vec<Edit<'_>> = sets.collect();
    splice(object, fields, &sets.iter().collect::<Vec<_>>())
}

fn member_text(comma: bool, key: &str, value: &[u8]) -> Bytes {
    let key = serde_json::Value::from(key).to_string();
    let mut text = Vec::with_capacity(key.len() + value.len() + 2);
    text.extend_from_slice(if comma { b"," } else { b"" });
    text.extend_from_slice(key.as_bytes());
    text.extend_from_slice(b":");
    text.extend_from_slice(value);
    Bytes::from(text)
}

/// The new body as it grows: slices of the old one up to `done`, and what was put between.
struct Segments<'b> {
    body: &'b Bytes,
    done: usize,
    out: Vec<Bytes>,
}

impl Segments<'_> {
    /// Takes the received bytes up to here.
    fn upto(&mut self, at: usize) {
        if at > self.done {
            self.out.push(self.body.slice(self.done..at));
            self.done = at;
        }
    }

    /// Leaves received bytes out.
    fn cut(&mut self, span: Range<usize>) {
        self.upto(span.start);
        self.done = self.done.max(span.end);
    }

    fn insert(&mut self, bytes: Bytes) {
        self.out.push(bytes);
    }

    /// Gives a member its new value.
    fn change(&mut self, value: &Range<usize>, fate: Fate<'_, '_>) {
        match fate {
            Fate::Stays | Fate::Goes => {}
            Fate::Becomes(new) => {
                self.cut(value.clone());
                self.insert(Bytes::copy_from_slice(new));
            }
            Fate::Within(within) => {
                let old = self.body.slice(value.clone());
                if let Some(fields) = Fields::of(&old) {
                    self.cut(value.clone());
                    self.out.extend(splice_within(&old, &fields, &within));
                } else if old == b"null".as_slice() {
                    self.cut(value.clone());
                    self.insert(Bytes::from(object_of(&within)));
                }
            }
        }
    }
}
