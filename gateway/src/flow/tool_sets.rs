//! Tools that were read before: the turns of a conversation send the same ones again and again.
//!
//! The raw `tools` of a request enter, the shared [`ToolSet`] leaves; its schemas are compiled on the first call that needs
//! them and stay compiled as long as the set is remembered. Found by a hash of the raw bytes and compared as a whole, since another
//! client's tools must never be taken for these. Bounded by weight; the least recently used are forgotten.

use bytes::Bytes;
use foldhash::quality::RandomState;
use moka::sync::Cache;
use sluice_policy::protocol::fault::Fault;
use sluice_policy::tool_call::{Tool, ToolSet};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

/// Weight of all that is remembered, in bytes.
const BYTES_LIMIT: u64 = 64 << 20;
/// Bytes in memory for a byte of raw tools, once all schemas are compiled: an estimate, not measured.
const BYTES_FOR_ONE: usize = 32;
/// Forgotten after this long without a request.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// Which schemas must be such that calls can be checked (B25).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MustCheck {
    /// Those of tools with `strict: true`.
    Strict,
    /// All.
    All,
}

/// The sets of tools that are remembered.
pub struct ToolSets {
    sets: Cache<u64, Arc<Remembered>>,
    hasher: RandomState,
}

struct Remembered {
    raw: Box<[u8]>,
    set: Arc<ToolSet>,
}

impl Default for ToolSets {
    fn default() -> Self {
        let weight = |_: &u64, kept: &Arc<Remembered>| {
            let bytes = 1024 + kept.raw.len().saturating_mul(BYTES_FOR_ONE);
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        ToolSets {
            sets: Cache::builder()
                .max_capacity(BYTES_LIMIT)
                .weigher(weight)
                .time_to_idle(IDLE)
                .build(),
            hasher: RandomState::default(),
        }
    }
}

impl ToolSets {
    /// The tools of a request; `None` where vLLM will have to say what is wrong with them.
    pub fn read(&self, raw: &Bytes, call_bytes: usize) -> Option<Arc<ToolSet>> {
        let key = self.hasher.hash_one((raw.as_ref(), call_bytes));
        if let Some(kept) = self.sets.get(&key)
            && *kept.raw == **raw
            && kept.set.call_limit() == call_bytes
        {
            return Some(Arc::clone(&kept.set));
        }
        let set = Arc::new(ToolSet::parse(raw).ok()?.with_call_limit(call_bytes));
        let kept = Remembered {
            raw: raw.as_ref().into(),
            set: Arc::clone(&set),
        };
        self.sets.insert(key, Arc::new(kept));
        Some(set)
    }
}

/// Refuses tools whose calls could not be checked, where they must be.
///
/// # Errors
/// The 400 that names the first such tool and what is wrong with its schema.
pub fn refuse_unchecked(tools: &ToolSet, must: MustCheck) -> Result<(), Fault> {
    let asked = |tool: &&Tool| must == MustCheck::All || tool.strict;
    let wrong = tools
        .tools()
        .iter()
        .filter(asked)
        .find_map(|tool| Some((tool, tool.unchecked()?)));
    match wrong {
        None => Ok(()),
        Some((tool, wrong)) => {
            let message = format!("The parameters of tool {:?} can't be checked: {wrong}.", tool.name);
            Err(Fault::bad_request("tools", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(name: &str) -> Bytes {
        Bytes::from(format!(
            r#"[{{"type":"function","function":{{"name":"{name}","parameters":{{"type":"object"}}}}}}]"#
        ))
    }

    #[test]
    fn the_same_tools_are_read_once() {
        let sets = ToolSets::default();
        let first = sets.read(&raw("a"), 10).unwrap();
        assert!(Arc::ptr_eq(&first, &sets.read(&raw("a"), 10).unwrap()));
        assert!(!Arc::ptr_eq(&first, &sets.read(&raw("b"), 10).unwrap()));
        let other = sets.read(&raw("a"), 20).unwrap();
        assert_eq!((first.call_limit(), other.call_limit()), (10, 20));
        assert!(sets.read(&Bytes::from_static(b"[1]"), 10).is_none());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let sets = ToolSets::default();
        for at in 0..100 {
            let name = format!("{at}{}", "x".repeat(100_000));
            sets.read(&raw(&name), 10).unwrap();
        }
        sets.sets.run_pending_tasks();
        assert!(sets.sets.weighted_size() <= BYTES_LIMIT);
        assert!(sets.sets.entry_count() < 30);
    }

    #[test]
    fn unchecked_tools_are_refused_where_they_must_be_checked() {
        let tools = |strict: bool| {
            let raw = format!(
                r##"[{{"function":{{"name":"good","strict":true,"parameters":{{"type":"object"}}}}}},
                    {{"function":{{"name":"bad","strict":{strict},"parameters":{{"properties":{{"a":{{"type":"dict"}}}}}}}}}}]"##
            );
            ToolSet::parse(raw.as_bytes()).unwrap()
        };
        assert!(refuse_unchecked(&tools(false), MustCheck::Strict).is_ok());
        for (strict, must) in [
            (true, MustCheck::Strict),
            (true, MustCheck::All),
            (false, MustCheck::All),
        ] {
            let fault = refuse_unchecked(&tools(strict), must).unwrap_err();
            let body = fault.body(sluice_policy::protocol::fault::ErrorShape::OpenAi);
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert_eq!(fault.status(), 400);
            for part in ["bad", "/properties/a/type", "\"tools\""] {
                assert!(body.contains(part), "{part} in {body}");
            }
        }
    }
}
