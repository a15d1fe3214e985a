//! The session key ladder (B32): headers and what the body says in, one [`SessionKey`] out.
//!
//! A session key is a prior: it says which requests belong together, so that the second finds the replica of the first. What
//! is cached where is known elsewhere. The first rung that has a value wins, headers before body; the last rung, the
//! conversation's own beginning, always has one. `user` is never a session (many conversations share it), it only keeps apart
//! what would be one by its text alone. Request and trace ids are not looked at: they are new with each request.
//!
//! The hash is the same in every process of one version of Sluice, whatever the machine, and differs between sources, so that
//! equal words on two rungs don't meet.

use std::hash::{BuildHasher, Hasher};

use foldhash::quality::FixedState;

use crate::protocol::ask::BodySession;
use crate::protocol::fault::clip;

/// Longest part of a session value that counts, in bytes.
pub const SESSION_VALUE_LIMIT_BYTES: usize = 256;

/// Seed of all session hashes. A constant of ours: changing it moves every session once.
const SEED: u64 = 0x736c_7569_6365_0001;

/// Which conversation a request belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// Of source and value.
    pub hash: u64,
    /// The rung that had a value.
    pub source: SessionSource,
}

/// The rungs of the ladder, first match first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionSource {
    /// Header `x-session-id`.
    SessionIdHeader,
    /// Header `x-session-affinity`.
    SessionAffinityHeader,
    /// Header `x-claude-code-session-id`.
    ClaudeCodeHeader,
    /// Header `session-id`.
    DashedHeader,
    /// Header `session_id`.
    UnderscoredHeader,
    /// Header `x-opencode-session`.
    OpencodeHeader,
    /// Header `x-amp-thread-id`.
    AmpHeader,
    /// Header `x-litellm-session-id`.
    LitellmHeader,
    /// Body `session_id`.
    SessionId,
    /// Body `prompt_cache_key`.
    PromptCacheKey,
    /// Body `conversation`, a string or an object with an `id`.
    Conversation,
    /// Body `previous_response_id`.
    PreviousResponseId,
    /// Body `metadata.session_id`.
    MetadataSessionId,
    /// System and first user message, and `user`.
    ConversationHash,
}

/// Headers in the order of the ladder, in lower case.
const HEADERS: [(&str, SessionSource); 8] = [
    ("x-session-id", SessionSource::SessionIdHeader),
    ("x-session-affinity", SessionSource::SessionAffinityHeader),
    ("x-claude-code-session-id", SessionSource::ClaudeCodeHeader),
    ("session-id", SessionSource::DashedHeader),
    ("session_id", SessionSource::UnderscoredHeader),
    ("x-opencode-session", SessionSource::OpencodeHeader),
    ("x-amp-thread-id", SessionSource::AmpHeader),
    ("x-litellm-session-id", SessionSource::LitellmHeader),
];

impl SessionSource {
    /// The name of the header or field; `conversation_hash` for the last rung.
    pub fn as_str(self) -> &'static str {
        match self {
            SessionSource::SessionIdHeader => "x-session-id",
            SessionSource::SessionAffinityHeader => "x-session-affinity",
            SessionSource::ClaudeCodeHeader => "x-claude-code-session-id",
            SessionSource::DashedHeader => "session-id",
            // The header and the body's field have one name; records should tell them apart.
            SessionSource::UnderscoredHeader => "header session_id",
            SessionSource::OpencodeHeader => "x-opencode-session",
            SessionSource::AmpHeader => "x-amp-thread-id",
            SessionSource::LitellmHeader => "x-litellm-session-id",
            SessionSource::SessionId => "session_id",
            SessionSource::PromptCacheKey => "prompt_cache_key",
            SessionSource::Conversation => "conversation",
            SessionSource::PreviousResponseId => "previous_response_id",
            SessionSource::MetadataSessionId => "metadata.session_id",
            SessionSource::ConversationHash => "conversation_hash",
        }
    }
}

/// Walks the ladder. `header` looks a value up by its name in lower case; a value that isn't text counts as missing.
pub fn key<'h>(header: impl Fn(&str) -> Option<&'h str>, body: &BodySession) -> SessionKey {
    for (name, source) in HEADERS {
        if let Some(value) = header(name).and_then(value) {
            return SessionKey {
                hash: hash(source, value.as_bytes()),
                source,
            };
        }
    }
    if let Some((source, text)) = &body.key
        && let Some(value) = value(text)
    {
        return SessionKey {
            hash: hash(*source, value.as_bytes()),
            source: *source,
        };
    }
    let source = SessionSource::ConversationHash;
    let mut state = hasher(source);
    state.write_u64(body.conversation_hash);
    if let Some(user) = body.user.as_deref().and_then(value) {
        state.write(user.as_bytes());
    }
    SessionKey {
        hash: state.finish(),
        source,
    }
}

/// A value that counts: trimmed, bounded, not empty.
pub(crate) fn value(text: &str) -> Option<&str> {
    Some(clip(text.trim(), SESSION_VALUE_LIMIT_BYTES)).filter(|value| !value.is_empty())
}

fn hash(source: SessionSource, value: &[u8]) -> u64 {
    let mut state = hasher(source);
    state.write(value);
    state.finish()
}

fn hasher(source: SessionSource) -> impl Hasher {
    let mut state = conversation_hasher();
    state.write(source.as_str().as_bytes());
    state
}

/// The hash under all session keys: fixed seed, stable over processes of one version.
pub(crate) fn conversation_hasher() -> impl Hasher {
    FixedState::with_seed(SEED).build_hasher()
}
