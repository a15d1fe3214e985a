//! The session key ladder (B32): headers and what the body says in, one `SessionKey` out.
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

/// Walks the ladder. `headers` are all that came, names in lower case; a value that isn't text counts as missing.
pub fn key<'h>(headers: impl IntoIterator<Item = (&'h str, &'h [u8])>, body: &BodySession) -> SessionKey {
    // One pass over what came: looking eight names up would hash each of them.
    let mut best: Option<(usize, &str)> = None;
    for (name, bytes) in headers {
        if let Some(rung) = HEADERS.iter().position(|(header, _)| *header == name)
            && best.is_none_or(|(before, _)| rung < before)
            && let Some(value) = std::str::from_utf8(bytes).ok().and_then(value)
        {
            best = Some((rung, value));
        }
    }
    if let Some((rung, value)) = best
        && let Some((_, source)) = HEADERS.get(rung)
    {
        return SessionKey {
            hash: hash(*source, value.as_bytes()),
            source: *source,
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn body(key: Option<(SessionSource, &str)>, user: Option<&str>, conversation_hash: u64) -> BodySession {
        BodySession {
            key: key.map(|(source, text)| (source, text.to_owned())),
            user: user.map(str::to_owned),
            conversation_hash,
        }
    }

    fn of(headers: &[(&str, &'static str)], body: &BodySession) -> SessionKey {
        key(headers.iter().map(|(name, value)| (*name, value.as_bytes())), body)
    }

    #[test]
    fn b32_each_rung_beats_those_below_it() {
        let below = body(Some((SessionSource::SessionId, "body")), Some("user"), 7);
        for (rung, (name, source)) in HEADERS.iter().enumerate() {
            let headers: Vec<_> = HEADERS[rung..].iter().map(|(name, _)| (*name, "header")).collect();
            let found = of(&headers, &below);
            assert_eq!(found.source, *source, "{name}");
            assert_eq!(
                found,
                of(&[(*name, "header")], &body(None, None, 0)),
                "nothing below {name} counts"
            );
        }
        assert_eq!(of(&[], &below).source, SessionSource::SessionId);
        assert_eq!(
            of(&[], &body(None, Some("user"), 7)).source,
            SessionSource::ConversationHash
        );
    }

    #[test]
    fn b32_the_order_is_that_of_the_rule() {
        let names: Vec<_> = HEADERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "x-session-id",
                "x-session-affinity",
                "x-claude-code-session-id",
                "session-id",
                "session_id",
                "x-opencode-session",
                "x-amp-thread-id",
                "x-litellm-session-id"
            ]
        );
        use SessionSource::*;
        let body = [
            SessionId,
            PromptCacheKey,
            Conversation,
            PreviousResponseId,
            MetadataSessionId,
            ConversationHash,
        ];
        assert!(body.is_sorted(), "the body reader keeps the smallest");
    }

    #[test]
    fn b32_request_and_trace_ids_are_not_looked_at() {
        let none = body(None, None, 1);
        for id in [
            "x-request-id",
            "traceparent",
            "x-trace-id",
            "x-correlation-id",
            "x-litellm-call-id",
        ] {
            assert_eq!(of(&[(id, "abc")], &none), of(&[], &none), "{id}");
        }
    }

    #[test]
    fn headers_come_in_any_order_and_the_first_of_a_name_that_is_text_counts() {
        let none = body(None, None, 1);
        let plain = of(&[("x-session-id", "abc")], &none);
        let mixed = [
            ("accept", "x"),
            ("session_id", "other"),
            ("x-session-id", ""),
            ("x-session-id", "abc"),
            ("x-session-id", "later"),
            ("session-id", "other"),
        ];
        assert_eq!(of(&mixed, &none), plain);
        let not_text: [(&str, &[u8]); 2] = [("x-session-id", &[0xff]), ("session-id", b"abc")];
        assert_eq!(key(not_text, &none), of(&[("session-id", "abc")], &none));
    }

    #[test]
    fn values_are_trimmed_and_bounded() {
        let none = body(None, None, 1);
        let plain = of(&[("x-session-id", "abc")], &none);
        assert_eq!(of(&[("x-session-id", "  abc\t")], &none), plain);
        assert_eq!(
            of(&[("x-session-id", "  "), ("session-id", "x")], &none).source,
            SessionSource::DashedHeader
        );
        let long: &'static str = "x".repeat(1000).leak();
        assert_eq!(
            of(&[("x-session-id", long)], &none),
            of(&[("x-session-id", &long[..SESSION_VALUE_LIMIT_BYTES])], &none)
        );
        assert_ne!(
            of(&[("x-session-id", long)], &none),
            of(&[("x-session-id", &long[..255])], &none)
        );
        // An empty value in the body is no session either.
        assert_eq!(
            of(&[], &body(Some((SessionSource::SessionId, " ")), None, 1)).source,
            SessionSource::ConversationHash
        );
    }

    #[test]
    fn user_only_breaks_ties() {
        let hash = |user, conversation| of(&[], &body(None, user, conversation)).hash;
        assert_ne!(hash(Some("a"), 1), hash(Some("b"), 1));
        assert_ne!(hash(Some("a"), 1), hash(None, 1));
        assert_ne!(
            hash(Some("a"), 1),
            hash(Some("a"), 2),
            "one user has many conversations"
        );
        let session = |user| of(&[], &body(Some((SessionSource::SessionId, "s")), user, 1));
        assert_eq!(session(Some("a")), session(Some("b")), "a named session has no ties");
    }

    #[test]
    fn equal_words_on_two_rungs_do_not_meet() {
        let none = body(None, None, 1);
        let mut hashes: Vec<u64> = HEADERS
            .iter()
            .map(|(name, _)| of(&[(*name, "same")], &none).hash)
            .collect();
        for source in [
            SessionSource::SessionId,
            SessionSource::Conversation,
            SessionSource::PreviousResponseId,
        ] {
            hashes.push(of(&[], &body(Some((source, "same")), None, 1)).hash);
        }
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), HEADERS.len() + 3);
    }

    /// A literal on purpose: if it changes, every session moves once at the upgrade; say so in the change log.
    #[test]
    fn hashes_are_the_same_in_every_process() {
        let found = of(&[("x-session-id", "agent-1")], &body(None, None, 0));
        assert_eq!(format!("{:016x}", found.hash), "b2bba91a574a6068");
        let found = of(&[], &body(None, Some("u"), 42));
        assert_eq!(format!("{:016x}", found.hash), "efc09cecd2b3953d");
    }
}
