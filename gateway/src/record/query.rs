//! To come.
use super::Record;
/// A row.
pub type Row = Record<String>;
