use bytes::Bytes;
use std::borrow::Cow;
/// One change of the top-level object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit<'a> {
    /// The value (raw JSON) of a member; appended if it is missing.
    Set(&'static str, Cow<'a, [u8]>),
    /// The value (raw JSON) of a member's member; missing or null objects are made. If the member is something else, it is left as it is: vLLM says so.
    SetIn(&'static str, &'static str, Cow<'a, [u8]>),
    /// Takes a member away.
    Remove(&'static str),
}
#[derive(Debug, Clone, Default)]
pub(super) struct Fields;
pub(super) fn splice(body: &Bytes, _fields: &Fields, _edits: &[Edit<'_>]) -> Vec<Bytes> {
    vec![body.clone()]
}
