//! `[limits]`: what a request and an answer may take, judged before anything is parsed (B4).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{duration, size};

/// The most that `buffered_bytes = 0` resolves to.
const BUFFERED_BYTES_CEILING: u64 = 1 << 30;

/// Bounds of one request, of one answer, and of all requests together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// All header lines of a request together. Default 64 KiB, at least 8 KiB; above: 431.
    #[serde(with = "size")]
    pub header_bytes: u64,
    /// Header lines of a request. Default 128; above: 431.
    pub header_count: usize,
    /// Time for a request's head to arrive, from its first byte. Default 10 s; after it: 408 or a closed connection.
    #[serde(with = "duration")]
    pub header_time: Duration,
    /// Request body. Default 64 MiB; above: 413.
    #[serde(with = "size")]
    pub body_bytes: u64,
    /// Time for a request's body to arrive. Default 60 s; after it: 408.
    #[serde(with = "duration")]
    pub body_time: Duration,
    /// Nesting of objects and arrays in a body. Default 128; above: 400.
    pub json_depth: u32,
    /// Request bodies held in memory, all requests together. 0 (default) = 1 GiB or a quarter of the memory, whichever is
    /// less; above: 503. See [`LimitsConfig::buffered`].
    #[serde(with = "size")]
    pub buffered_bytes: u64,
    /// Requests at once, from their head to the end of their answer. Default 10,000; above: 503.
    pub requests: usize,
    /// Client connections at once. Default 20,000; above, a new one is closed.
    pub connections: usize,
    /// One event of an upstream's stream. Default 16 MiB; above, the answer fails with an error event.
    #[serde(with = "size")]
    pub sse_event_bytes: u64,
    /// One tool call that is held until it is whole. Default 4 MiB; above, the call is given as text.
    #[serde(with = "size")]
    pub held_call_bytes: u64,
    /// Answers that one request may ask for (`n`). Default 16; above: 400.
    pub n: u32,
    /// Tokens that one request may ask for (`max_tokens`, `max_completion_tokens`). Default 1,000,000, above any model's
    /// context, so that only nonsense is caught; above: 400.
    pub max_tokens: u64,
    /// A grammar or schema that guides the answer (`response_format`, `structured_outputs`). Default 256 KiB; above: 400.
    /// Danger: vLLM compiles it on the engine's CPU, a large one delays everybody.
    #[serde(with = "size")]
    pub grammar_bytes: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            header_bytes: 64 << 10,
            header_count: 128,
            header_time: Duration::from_secs(10),
            body_bytes: 64 << 20,
            body_time: Duration::from_secs(60),
            json_depth: 128,
            buffered_bytes: 0,
            requests: 10_000,
            connections: 20_000,
            sse_event_bytes: 16 << 20,
            held_call_bytes: 4 << 20,
            n: 16,
            max_tokens: 1_000_000,
            grammar_bytes: 256 << 10,
        }
    }
}

impl LimitsConfig {
    /// [`LimitsConfig::buffered_bytes`] with 0 resolved for this machine.
    pub fn buffered(&self) -> u64 {
        match self.buffered_bytes {
            0 => resolve(memory()),
            bytes => bytes,
        }
    }
}

/// 1 GiB or a quarter of `memory`, whichever is less; 1 GiB where the memory isn't known.
fn resolve(memory: Option<u64>) -> u64 {
    memory.map_or(BUFFERED_BYTES_CEILING, |bytes| {
        (bytes / 4).clamp(1, BUFFERED_BYTES_CEILING)
    })
}

/// The memory that this process may use: the machine's, or its control group's limit if that is less.
#[cfg(target_os = "linux")]
fn memory() -> Option<u64> {
    let info = rustix::system::sysinfo();
    // `totalram` is a `c_ulong`, which is 32 bits wide on 32-bit machines.
    #[allow(clippy::useless_conversion)]
    let machine = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit.max(1)));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    Some(group.map_or(machine, |limit: u64| limit.min(machine)))
}

#[cfg(not(target_os = "linux"))]
fn memory() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffered_bytes_are_a_gibibyte_or_a_quarter_of_memory() {
        assert_eq!(resolve(Some(16 << 30)), 1 << 30);
        assert_eq!(resolve(Some(2 << 30)), 512 << 20);
        assert_eq!(resolve(Some(0)), 1);
        assert_eq!(resolve(None), 1 << 30);
        let set = LimitsConfig {
            buffered_bytes: 7,
            ..LimitsConfig::default()
        };
        assert_eq!(set.buffered(), 7);
        let unset = LimitsConfig::default().buffered();
        assert!((1..=1 << 30).contains(&unset), "{unset}");
    }
}
