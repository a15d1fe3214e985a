//! Tool calls found in the text of an answer (B19, B21, B22).
//!
//! Content text enters in any split, text and calls leave: [`Scanner`] holds back a partial tag, a call until it is whole,
//! and a bare JSON answer as long as it could be a call; all else passes at once. A call is a value with its raw text and a
//! [`Verdict`]; what is not well formed or doesn't fit its tool's schema leaves as [`Piece::Invalid`] with the reason, never with
//! made-up arguments. Repair and re-ask build on these values. The parts, in reading order: `scan` (the stage), `watch` (where
//! tags count), `tag`, `block` (where a call ends), `json` (strict, incremental), `call` (name and arguments), `schema` (do they
//! fit), `tools`.

mod block;
mod call;
pub(crate) mod json;
mod loose;
mod repair;
mod scan;
mod schema;
pub(crate) mod tag;
mod tools;
mod verdict;
pub(crate) mod watch;

pub use block::CALL_LIMIT;
pub(crate) use block::End;
pub use call::Call;
pub(crate) use repair::mend_arguments;
pub use scan::{Bare, Piece, Scanner};
pub use schema::BadSchema;
pub use tag::TAG_LIMIT;
pub use tools::{DeclaredType, SCHEMAS_BYTES_LIMIT, TOOL_LIMIT, TOOLS_BYTES_LIMIT, Tool, ToolSet, ToolSetError};
pub use verdict::{Kind, Reason, Verdict};
