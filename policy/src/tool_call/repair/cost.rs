//! What each edit costs, in tenths of one plain edit, and what the search may spend.
//!
//! The table stands in the room's head. Costs say how much an edit has to be *believed*: a habit of writing (single quotes,
//! Python's `True`) costs little and only once a call, a structural character too few or too many costs one, and a string
//! that ends elsewhere than its first quote says costs one, more if its quotes don't come in pairs.

/// A solution may cost no more than this.
pub(super) const MOST: u16 = 45;
/// Another solution within this of the cheapest, with other values, makes the call ambiguous.
pub(super) const MARGIN: u16 = 5;

/// A habit of writing, the first time in a call; then nothing.
pub(super) const HABIT: u16 = 3;
/// A comment, a trailing comma, a chat token.
pub(super) const IDLE: u16 = 3;
/// One structural character too few, too many, another, or in the wrong order.
pub(super) const EDIT: u16 = 10;
/// The first closer that is missing or left over at the end of a call.
pub(super) const AT_END: u16 = 6;
/// Each further one.
pub(super) const AT_END_MORE: u16 = 1;
/// A string holds unescaped quotes of its own.
pub(super) const INNER: u16 = 10;
/// They don't come in pairs.
pub(super) const ODD: u16 = 15;
/// A quote that looks like the end of its string is text.
pub(super) const LOOKS_LIKE_END: u16 = 20;
/// A word without quotes where a string belongs.
pub(super) const BARE_WORD: u16 = 15;
/// A key that its object doesn't declare.
pub(super) const UNDECLARED_KEY: u16 = 20;
/// A key that its object has already, or that stands beside name and arguments.
pub(super) const STRANGE_KEY: u16 = 30;
/// What was missing may as well be a character that changed places: beside the plain edit.
pub(super) const LESS_LIKELY: u16 = 10;
/// The schema's shape repair has to mend what this repair leaves.
pub(super) const MENDABLE: u16 = 6;

/// Most nodes of one search.
pub(super) const NODES_LIMIT: usize = 16_384;
/// Bytes that one search may look at: this many times its text, and [`WORK_FLOOR`].
pub(super) const WORK_FACTOR: usize = 24;
/// Bytes that any search may look at.
pub(super) const WORK_FLOOR: usize = 64 << 10;
/// Longest text that is repaired; longer ones are re-asked.
pub(super) const TEXT_LIMIT: usize = 1 << 20;
/// How many tokens before an error are suspected.
pub(super) const SUSPECTS: usize = 6;
/// How many open brackets are suspected at an error.
pub(super) const OPEN_SUSPECTS: usize = 6;
/// Later ends of one string that are tried at once.
pub(super) const ENDS: usize = 3;
/// Longest string whose last character is believed to have changed places with its quote.
pub(super) const SHORT: usize = 48;
