//! The five profiles that ship: the champion of a search over twelve configurations of Qwen3-32B-AWQ on 2× RTX 4090, its
//! sibling for short contexts, and the three other configurations of that search that ran.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::{Profile, Setting};
use Setting::{EngineDefault, Set};

/// All built-in profiles, the default first.
pub fn builtins() -> &'static [Profile] {
    static ALL: LazyLock<Vec<Profile>> = LazyLock::new(|| {
        vec![
            chunked_only_safe(),
            chunked_only_safe_32k(),
            safe_conservative(),
            optimized_balanced(),
            aggressive_cache(),
        ]
    });
    &ALL
}

/// The built-in profile of that name.
pub fn builtin(name: &str) -> Option<&'static Profile> {
    builtins().iter().find(|profile| profile.name == name)
}

/// The published model has 40,960 positions; 131,072 are its 32,768 trained ones times YaRN's factor.
fn yarn_131072() -> Setting<Map<String, Value>> {
    let rope = json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1_000_000
    });
    Set(Map::from_iter([("rope_parameters".to_owned(), rope)]))
}

fn chunked_only_safe() -> Profile {
    let text = |value: &str| Set(value.to_owned());
    Profile {
        name: "chunked_only_safe".to_owned(),
        about: "The champion: cold 2,928 ms, warm 908 ms on 2x RTX 4090. Prefix caching is the engine's default, which is on. \
                128k by static YaRN, which weakens short prompts a little."
            .to_owned(),
        model: "Qwen/Qwen3-32B-AWQ".to_owned(),
        quantization: text("awq_marlin"),
        dtype: EngineDefault,
        tensor_parallel_size: Set(2),
        gpu_memory_utilization: Set(0.85),
        max_model_len: Set(131_072),
        max_num_seqs: Set(32),
        max_num_batched_tokens: EngineDefault,
        kv_cache_dtype: text("fp8"),
        chunked_prefill: Set(true),
        prefix_caching: EngineDefault,
        tool_call_parser: text("hermes"),
        reasoning_parser: text("qwen3"),
        grammar_in_reasoning: Set(true),
        prompt_tokens_details: Set(true),
        hf_overrides: yarn_131072(),
        extra_args: Vec::new(),
    }
}

fn chunked_only_safe_32k() -> Profile {
    Profile {
        name: "chunked_only_safe_32k".to_owned(),
        about: "The champion without YaRN, for contexts up to 32k: short prompts keep their full quality.".to_owned(),
        max_model_len: Set(32_768),
        hf_overrides: EngineDefault,
        ..chunked_only_safe()
    }
}

fn safe_conservative() -> Profile {
    Profile {
        name: "safe_conservative".to_owned(),
        about: "Chunked prefill off: cold 3,150 ms, warm 1,981 ms. A long prefill then stalls every other stream, and today's \
                vLLM warns that it is not supported for this model; for comparison only."
            .to_owned(),
        chunked_prefill: Set(false),
        ..chunked_only_safe()
    }
}

fn optimized_balanced() -> Profile {
    Profile {
        name: "optimized_balanced".to_owned(),
        about: "90 % of memory and prefix caching stated: about 3,100 ms cold, 2,100 ms warm; to be measured again."
            .to_owned(),
        gpu_memory_utilization: Set(0.90),
        prefix_caching: Set(true),
        ..chunked_only_safe()
    }
}

fn aggressive_cache() -> Profile {
    Profile {
        name: "aggressive_cache".to_owned(),
        about: "95 % of memory for the largest KV cache; the start itself can run out of memory.".to_owned(),
        gpu_memory_utilization: Set(0.95),
        prefix_caching: Set(true),
        ..chunked_only_safe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the search: name, share of memory, chunked prefill, prefix caching, length.
    #[test]
    fn the_profiles_are_those_of_the_search() {
        let table = [
            ("chunked_only_safe", 0.85, Set(true), EngineDefault, 131_072),
            ("chunked_only_safe_32k", 0.85, Set(true), EngineDefault, 32_768),
            ("safe_conservative", 0.85, Set(false), EngineDefault, 131_072),
            ("optimized_balanced", 0.90, Set(true), Set(true), 131_072),
            ("aggressive_cache", 0.95, Set(true), Set(true), 131_072),
        ];
        assert_eq!(builtins().len(), table.len());
        for (profile, (name, share, chunked, prefix, len)) in builtins().iter().zip(table) {
            assert_eq!(profile.name, name);
            assert_eq!(profile.gpu_memory_utilization, Set(share), "{name}");
            assert_eq!(profile.chunked_prefill, chunked, "{name}");
            assert_eq!(profile.prefix_caching, prefix, "{name}");
            assert_eq!(profile.max_model_len, Set(len), "{name}");
            // YaRN exactly where more positions are asked for than the model was published with
            assert_eq!(profile.hf_overrides.set().is_some(), len > 40_960, "{name}");
            assert_eq!(profile.max_num_seqs, Set(32), "{name}");
            assert_eq!(profile.prompt_tokens_details, Set(true), "{name}");
            assert_eq!(profile.grammar_in_reasoning, Set(true), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_none() {
        assert!(builtin("chunked-only-safe").is_none());
    }
}
