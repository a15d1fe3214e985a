//! What one upstream chunk adds to one choice, after all stages.

use crate::protocol::chat::quote;

/// Filled by a [`Voice`](super::voice::Voice) for one chunk, then written out. Reused: it keeps its memory.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) reasoning: String,
    pub(super) content: String,
    /// Elements of `tool_calls`, comma separated.
    pub(super) calls: Vec<u8>,
    /// How much of it was reasoning, wherever it was written.
    pub(super) reasoned_bytes: usize,
}

impl Said {
    pub(super) fn clear(&mut self) {
        self.reasoning.clear();
        self.content.clear();
        self.calls.clear();
        self.reasoned_bytes = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reasoning.is_empty() && self.content.is_empty() && self.calls.is_empty()
    }

    /// Starts another element of `tool_calls`.
    pub(super) fn next_call(&mut self) -> &mut Vec<u8> {
        if !self.calls.is_empty() {
            self.calls.push(b',');
        }
        &mut self.calls
    }

    /// More arguments of a call whose beginning was shown.
    pub(super) fn more_arguments(&mut self, index: u32, arguments: &str) {
        let out = self.next_call();
        out.extend_from_slice(b"{\"index\":");
        out.extend_from_slice(index.to_string().as_bytes());
        out.extend_from_slice(b",\"function\":{\"arguments\":");
        quote(arguments, out);
        out.extend_from_slice(b"}}");
    }

    /// A call as one element, whole or its beginning; `index` only in a stream.
    pub(super) fn add_call(&mut self, index: Option<u32>, id: &str, name: &str, arguments: &str) {
        let out = self.next_call();
        out.push(b'{');
        if let Some(index) = index {
            out.extend_from_slice(b"\"index\":");
            out.extend_from_slice(index.to_string().as_bytes());
            out.push(b',');
        }
        out.extend_from_slice(b"\"id\":");
        quote(id, out);
        out.extend_from_slice(b",\"type\":\"function\",\"function\":{\"name\":");
        quote(name, out);
        out.extend_from_slice(b",\"arguments\":");
        quote(arguments, out);
        out.extend_from_slice(b"}}");
    }
}

/// `call_` and 24 URL-safe characters: the same for the same seed, choice and call, so that a stream and a whole answer agree.
pub(super) fn call_id(seed: u64, choice: u32, call: u32) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut id = String::with_capacity(29);
    id.push_str("call_");
    let mut state = seed ^ mix(u64::from(choice) << 32 | u64::from(call));
    for _ in 0..3 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = mix(state);
        for digit in 0..8 {
            let at = (word >> (digit * 6)) as usize & 63;
            id.push(ALPHABET.get(at).copied().map_or('A', char::from));
        }
    }
    id
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn call_ids_are_distinct_and_url_safe() {
        let mut ids = HashSet::new();
        for seed in 0..20 {
            for choice in 0..20 {
                for call in 0..20 {
                    let id = call_id(seed, choice, call);
                    assert_eq!(id.len(), 29);
                    assert!(
                        id.bytes()
                            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
                    );
                    assert!(ids.insert(id));
                }
            }
        }
        assert_eq!(call_id(7, 1, 2), call_id(7, 1, 2));
    }
}
