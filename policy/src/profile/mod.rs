//! Launch profiles: what a vLLM replica is started with, and what is made of its end.
//!
//! Enters: a profile (built in, or a table of the config), a port, served names; later the log of a process that ended.
//! Leaves: the argument vector, an estimate of the KV cache in tokens, a [`Diagnosis`] with the lines that prove it, and the
//! next step of a replica's life (start, wait, stop, kill, give up). Nothing here starts, reads or waits for anything: that is
//! `gateway::supervisor`. Read on: [`Profile`], `builtin` for the five that ship, [`diagnosis`], [`life`].

mod argv;
mod builtin;
// Why a replica ended, read from its log.
pub mod diagnosis;
// The life of a launched replica: one transition function with backoff.
pub mod life;
mod memory;
mod setting;

pub use argv::{ArgvError, Serving, argv, check};
pub use builtin::{builtin, builtins};
pub use diagnosis::{Diagnosis, Finding, diagnose};
pub use memory::{ModelShape, expected_kv_tokens};
pub use setting::{ENGINE_DEFAULT, Setting};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Everything that decides how one vLLM behaves, stated.
///
/// Each setting that matters must be given; `"engine-default"` is a value like another, so that "not given" is a decision that
/// can be read, and never an oversight. The only fields that may be left out are `about` and `extra_args`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The name by which the config and records refer to it.
    pub name: String,
    /// One or two sentences for a person who chooses.
    #[serde(default)]
    pub about: String,
    /// What vLLM loads: a Hugging Face id or a folder.
    pub model: String,
    /// `--quantization`, for instance `awq_marlin`.
    pub quantization: Setting<String>,
    /// `--dtype` of weights and activations.
    pub dtype: Setting<String>,
    /// `--tensor-parallel-size`: GPUs that share one replica.
    pub tensor_parallel_size: Setting<u32>,
    /// `--gpu-memory-utilization`: share of each GPU's memory that vLLM may use, 0 to 1. Near 1 the start itself may run out.
    pub gpu_memory_utilization: Setting<f64>,
    /// `--max-model-len`: prompt and answer together, in tokens.
    pub max_model_len: Setting<u64>,
    /// `--max-num-seqs`: sequences that run at once; the rest queues.
    pub max_num_seqs: Setting<u32>,
    /// `--max-num-batched-tokens`: token budget of one engine step, and so the size of a prefill chunk.
    pub max_num_batched_tokens: Setting<u64>,
    /// `--kv-cache-dtype`: `fp8` halves the cache's bytes. On Hopper (FlashAttention 3) it needs `dtype = "bfloat16"`.
    pub kv_cache_dtype: Setting<String>,
    /// `--[no-]enable-chunked-prefill`. Today's vLLM has it on by default and warns when it is switched off.
    pub chunked_prefill: Setting<bool>,
    /// `--[no-]enable-prefix-caching`. Today's vLLM has it on by default: `false` loses every warm start.
    pub prefix_caching: Setting<bool>,
    /// `--tool-call-parser` together with `--enable-auto-tool-choice`. The engine's default is none.
    pub tool_call_parser: Setting<String>,
    /// `--reasoning-parser`. The engine's default is none.
    pub reasoning_parser: Setting<String>,
    /// `enable_in_reasoning` of `--structured-outputs-config`: a grammar holds from the first token on, not only after
    /// `</think>`. Without it a guided answer of a thinking model isn't guided.
    pub grammar_in_reasoning: Setting<bool>,
    /// `--enable-prompt-tokens-details`: makes vLLM report `cached_tokens`, which routing learns from.
    pub prompt_tokens_details: Setting<bool>,
    /// `--hf-overrides`: keys of the model's own configuration, such as YaRN's.
    pub hf_overrides: Setting<Map<String, Value>>,
    /// Further arguments, as they are, after all others. At most 64; none that the gateway sets itself, and never a key.
    #[serde(default)]
    pub extra_args: Vec<String>,
}

/// Why a table of the config isn't a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// A missing, unknown or ill-typed field; the text is serde's and names it.
    #[error("profile `{name}`: {source}")]
    Shape {
        /// The profile's name.
        name: String,
        /// What serde found.
        source: serde_json::Error,
    },
    /// The arguments would collide with the gateway's own.
    #[error("profile `{name}`: {source}")]
    Argv {
        /// The profile's name.
        name: String,
        /// Which argument, and why.
        source: ArgvError,
    },
}

impl Profile {
    /// A profile that differs from `base` in the fields of `changes`: how a config writes `base = "chunked_only_safe"` and one
    /// line more.
    ///
    /// # Errors
    /// If a field is unknown or of the wrong type, or if the result fails [`check`].
    pub fn derived(name: &str, base: &Profile, changes: Map<String, Value>) -> Result<Profile, ProfileError> {
        let shape = |source| ProfileError::Shape {
            name: name.to_owned(),
            source,
        };
        let mut table = match serde_json::to_value(base).map_err(shape)? {
            Value::Object(table) => table,
            _ => Map::new(), // a struct serialises to an object; an empty one fails below with the field that it lacks
        };
        table.extend(changes);
        table.insert("name".to_owned(), Value::from(name));
        Profile::from_table(name, table)
    }

    /// A profile written out in full.
    ///
    /// # Errors
    /// If a field is missing, unknown or of the wrong type, or if the result fails [`check`].
    pub fn from_table(name: &str, mut table: Map<String, Value>) -> Result<Profile, ProfileError> {
        table.insert("name".to_owned(), Value::from(name));
        let profile: Profile = serde_json::from_value(Value::Object(table)).map_err(|source| ProfileError::Shape {
            name: name.to_owned(),
            source,
        })?;
        check(&profile).map_err(|source| ProfileError::Argv {
            name: name.to_owned(),
            source,
        })?;
        Ok(profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(json: &str) -> Map<String, Value> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn every_builtin_survives_being_written_and_read() {
        for profile in builtins() {
            let text = serde_json::to_string(profile).unwrap();
            assert_eq!(&serde_json::from_str::<Profile>(&text).unwrap(), profile, "{text}");
        }
    }

    #[test]
    fn a_setting_that_matters_must_be_stated() {
        let base = builtin("chunked_only_safe").unwrap();
        let Value::Object(table) = serde_json::to_value(base).unwrap() else {
            panic!("not an object")
        };
        for field in table.keys() {
            let mut less = table.clone();
            less.remove(field);
            let read = Profile::from_table("p", less);
            let optional = matches!(field.as_str(), "name" | "about" | "extra_args"); // name comes from the argument
            assert_eq!(read.is_ok(), optional, "{field}: {read:?}");
            if let Err(error) = read {
                assert!(error.to_string().contains(field.as_str()), "{error}");
            }
        }
    }

    #[test]
    fn a_derived_profile_differs_only_where_it_says() {
        let base = builtin("chunked_only_safe").unwrap();
        let mine = Profile::derived(
            "mine",
            base,
            changes(r#"{"dtype": "bfloat16", "max_num_seqs": "engine-default"}"#),
        );
        let mine = mine.unwrap();
        assert_eq!(mine.dtype, Setting::Set("bfloat16".to_owned()));
        assert_eq!(mine.max_num_seqs, Setting::EngineDefault);
        let back = Profile {
            name: base.name.clone(),
            dtype: base.dtype.clone(),
            max_num_seqs: base.max_num_seqs,
            ..mine
        };
        assert_eq!(&back, base);
    }

    #[test]
    fn a_wrong_field_is_named() {
        let base = builtin("chunked_only_safe").unwrap();
        for (json, part) in [
            (r#"{"max_num_seq": 4}"#, "unknown field `max_num_seq`"),
            (r#"{"max_num_seqs": "four"}"#, "engine-default"),
            (r#"{"prefix_caching": 1}"#, "boolean"),
            (r#"{"extra_args": ["--api-key", "k"]}"#, "--api-key"),
        ] {
            let error = Profile::derived("mine", base, changes(json)).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("`mine`"), "{json}: {error}");
        }
    }
}
