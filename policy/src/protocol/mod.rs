//! Wire types and codecs. What we don't judge stays as received and is forwarded byte for byte.

// The request reader: one pass over a body, spans of what we judge, edits spliced in.
pub mod ask;
// Chat completion chunks and messages as vLLM writes them and as the client gets them.
pub mod chat;
// Legacy completions.
pub mod completions;
// Every error that a client can see.
pub mod fault;
// A bounded, copy-free walk over JSON text.
pub mod skim;
// Server-sent events.
pub mod sse;
// Token usage.
pub mod usage;
