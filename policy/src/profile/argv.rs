//! A profile as the arguments of `vllm`.

use serde_json::{Map, Value, json};

use super::{Profile, Setting};

/// Upper bound of [`Profile::extra_args`].
pub(super) const EXTRA_ARGS_MAX: usize = 64;

/// Where and under which names a replica serves: what isn't the profile's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Serving<'a> {
    /// Address to listen on. Launched replicas listen on loopback: the gateway is the only way in.
    pub host: &'a str,
    /// Port to listen on.
    pub port: u16,
    /// Ids that vLLM answers to; the first is the one in its answers. Empty: the profile's model.
    pub served_names: &'a [String],
}

/// Why a profile can't become arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgvError {
    /// `argv` is world-readable: keys travel by environment.
    #[error(
        "extra_args must not contain {0}: a key in the arguments can be read by every user of the machine; it travels in the environment"
    )]
    Key(String),
    /// The gateway gives this argument itself, or a field of the profile does.
    #[error("extra_args must not contain {argument}: {instead}")]
    Owned {
        /// The argument.
        argument: String,
        /// What to use.
        instead: &'static str,
    },
    /// More than `EXTRA_ARGS_MAX`.
    #[error("{0} extra_args, at most {EXTRA_ARGS_MAX} are allowed")]
    TooMany(usize),
    /// A share outside of (0, 1], as it was written.
    #[error("gpu_memory_utilization is {0}, it must be above 0 and at most 1")]
    Share(String),
    /// A count that must be at least 1.
    #[error("{0} is 0, it must be at least 1")]
    Zero(&'static str),
}

/// The arguments after the command: `["serve", MODEL, "--host", …]`. Never contains a key.
pub fn argv(profile: &Profile, serving: &Serving<'_>) -> Vec<String> {
    let mut args = vec!["serve".to_owned(), profile.model.clone()];
    pair(&mut args, "--host", serving.host);
    pair(&mut args, "--port", serving.port);
    if !serving.served_names.is_empty() {
        args.push("--served-model-name".to_owned());
        args.extend(serving.served_names.iter().cloned());
    }
    value(&mut args, "--quantization", &profile.quantization);
    value(&mut args, "--dtype", &profile.dtype);
    value(&mut args, "--tensor-parallel-size", &profile.tensor_parallel_size);
    value(&mut args, "--gpu-memory-utilization", &profile.gpu_memory_utilization);
    value(&mut args, "--max-model-len", &profile.max_model_len);
    value(&mut args, "--max-num-seqs", &profile.max_num_seqs);
    value(&mut args, "--max-num-batched-tokens", &profile.max_num_batched_tokens);
    value(&mut args, "--kv-cache-dtype", &profile.kv_cache_dtype);
    switch(&mut args, "enable-chunked-prefill", profile.chunked_prefill);
    switch(&mut args, "enable-prefix-caching", profile.prefix_caching);
    if let Setting::Set(parser) = &profile.tool_call_parser {
        args.push("--enable-auto-tool-choice".to_owned());
        pair(&mut args, "--tool-call-parser", parser);
    }
    value(&mut args, "--reasoning-parser", &profile.reasoning_parser);
    if let Setting::Set(on) = profile.grammar_in_reasoning {
        pair(
            &mut args,
            "--structured-outputs-config",
            json!({ "enable_in_reasoning": on }),
        );
    }
    switch(&mut args, "enable-prompt-tokens-details", profile.prompt_tokens_details);
    object(&mut args, "--hf-overrides", &profile.hf_overrides);
    args.extend(profile.extra_args.iter().cloned());
    args
}

/// What types can't hold: numbers in range, and extra arguments that take nothing from the gateway's hands.
///
/// # Errors
/// The first thing that is wrong, by name.
pub fn check(profile: &Profile) -> Result<(), ArgvError> {
    if let Setting::Set(share) = profile.gpu_memory_utilization
        && !(share > 0.0 && share <= 1.0)
    {
        return Err(ArgvError::Share(share.to_string()));
    }
    let counts = [
        (
            "tensor_parallel_size",
            profile.tensor_parallel_size.set().copied().map(u64::from),
        ),
        ("max_model_len", profile.max_model_len.set().copied()),
        ("max_num_seqs", profile.max_num_seqs.set().copied().map(u64::from)),
        ("max_num_batched_tokens", profile.max_num_batched_tokens.set().copied()),
    ];
    if let Some((name, _)) = counts.into_iter().find(|(_, count)| *count == Some(0)) {
        return Err(ArgvError::Zero(name));
    }
    if profile.extra_args.len() > EXTRA_ARGS_MAX {
        return Err(ArgvError::TooMany(profile.extra_args.len()));
    }
    profile.extra_args.iter().try_for_each(|argument| check_extra(argument))
}

/// vLLM's parser takes `--flag value`, `--flag=value`, underscores for dashes, and any unambiguous abbreviation.
fn check_extra(argument: &str) -> Result<(), ArgvError> {
    const FIELDS: &str = "the profile has a field for it";
    const GATEWAY: &str = "the launcher sets it";
    const OWNED: [(&str, &str); 22] = [
        ("--host", GATEWAY),
        ("--port", GATEWAY),
        ("--uds", GATEWAY),
        ("--served-model-name", GATEWAY),
        ("--config", "its file could contain anything, a key too"),
        ("--model", FIELDS),
        ("--quantization", FIELDS),
        ("--dtype", FIELDS),
        ("--tensor-parallel-size", FIELDS),
        ("--gpu-memory-utilization", FIELDS),
        ("--max-model-len", FIELDS),
        ("--max-num-seqs", FIELDS),
        ("--max-num-batched-tokens", FIELDS),
        ("--kv-cache-dtype", FIELDS),
        ("--enable-chunked-prefill", FIELDS),
        ("--enable-prefix-caching", FIELDS),
        ("--tool-call-parser", FIELDS),
        ("--enable-auto-tool-choice", FIELDS),
        ("--reasoning-parser", FIELDS),
        ("--structured-outputs-config", FIELDS),
        ("--enable-prompt-tokens-details", FIELDS),
        ("--hf-overrides", FIELDS),
    ];
    let flag = argument.split('=').next().unwrap_or_default().replace('_', "-");
    let positive = flag
        .strip_prefix("--no-")
        .map_or_else(|| flag.clone(), |rest| format!("--{rest}"));
    if positive.starts_with("--api") || positive == "--hf-token" {
        return Err(ArgvError::Key(flag));
    }
    match OWNED.iter().find(|(owned, _)| *owned == positive) {
        Some((_, instead)) => Err(ArgvError::Owned {
            argument: flag,
            instead,
        }),
        None => Ok(()),
    }
}

fn pair(args: &mut Vec<String>, flag: &str, value: impl ToString) {
    args.push(flag.to_owned());
    args.push(value.to_string());
}

fn value(args: &mut Vec<String>, flag: &str, setting: &Setting<impl ToString>) {
    if let Setting::Set(value) = setting {
        pair(args, flag, value.to_string());
    }
}

fn switch(args: &mut Vec<String>, flag: &str, setting: Setting<bool>) {
    match setting {
        Setting::EngineDefault => {}
        Setting::Set(true) => args.push(format!("--{flag}")),
        Setting::Set(false) => args.push(format!("--no-{flag}")),
    }
}

fn object(args: &mut Vec<String>, flag: &str, setting: &Setting<Map<String, Value>>) {
    if let Setting::Set(map) = setting {
        pair(args, flag, Value::Object(map.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{builtin, builtins};

    fn line(profile: &Profile) -> String {
        let names = ["qwen3".to_owned(), "Qwen/Qwen3-32B-AWQ".to_owned()];
        argv(
            profile,
            &Serving {
                host: "127.0.0.1",
                port: 8000,
                served_names: &names,
            },
        )
        .join(" ")
    }

    #[test]
    fn the_champion_is_launched_with_the_flags_it_won_with() {
        assert_eq!(
            line(builtin("chunked_only_safe").unwrap()),
            "serve Qwen/Qwen3-32B-AWQ --host 127.0.0.1 --port 8000 --served-model-name qwen3 Qwen/Qwen3-32B-AWQ \
             --quantization awq_marlin --tensor-parallel-size 2 --gpu-memory-utilization 0.85 --max-model-len 131072 \
             --max-num-seqs 32 --kv-cache-dtype fp8 --enable-chunked-prefill --enable-auto-tool-choice \
             --tool-call-parser hermes --reasoning-parser qwen3 --structured-outputs-config {\"enable_in_reasoning\":true} \
             --enable-prompt-tokens-details --hf-overrides {\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,\
             \"original_max_position_embeddings\":32768,\"rope_theta\":1000000}}"
        );
    }

    #[test]
    fn engine_default_gives_no_argument_and_false_gives_the_negative() {
        let base = builtin("chunked_only_safe").unwrap();
        assert!(!line(base).contains("prefix-caching"), "not given: the engine decides");
        let off = Profile {
            prefix_caching: Setting::Set(false),
            chunked_prefill: Setting::EngineDefault,
            ..base.clone()
        };
        assert!(line(&off).contains("--no-enable-prefix-caching"));
        assert!(!line(&off).contains("chunked-prefill"));
        let bare = Profile {
            tool_call_parser: Setting::EngineDefault,
            reasoning_parser: Setting::EngineDefault,
            hf_overrides: Setting::EngineDefault,
            ..base.clone()
        };
        for absent in [
            "auto-tool-choice",
            "tool-call-parser",
            "reasoning-parser",
            "hf-overrides",
        ] {
            assert!(!line(&bare).contains(absent), "{absent}");
        }
    }

    #[test]
    fn without_served_names_vllm_answers_to_its_model() {
        let args = argv(
            builtin("safe_conservative").unwrap(),
            &Serving {
                host: "::1",
                port: 1,
                served_names: &[],
            },
        );
        assert!(!args.iter().any(|arg| arg == "--served-model-name"), "{args:?}");
    }

    #[test]
    fn extra_arguments_come_last_and_take_nothing_away() {
        let with = |extra: &[&str]| Profile {
            extra_args: extra.iter().map(|&arg| arg.to_owned()).collect(),
            ..builtin("chunked_only_safe").unwrap().clone()
        };
        let good = with(&["--enforce-eager", "--port-range", "--logits-processors", "a:B"]);
        assert_eq!(check(&good), Ok(()));
        assert!(line(&good).ends_with(" --enforce-eager --port-range --logits-processors a:B"));
        for key in ["--api-key", "--api-key=sk-1", "--api_key", "--api-k", "--hf-token"] {
            assert!(matches!(check(&with(&[key])), Err(ArgvError::Key(_))), "{key}");
        }
        for owned in [
            "--port",
            "--port=1",
            "--served_model_name",
            "--no-enable-prefix-caching",
            "--max_model_len=4",
            "--config",
        ] {
            assert!(
                matches!(check(&with(&[owned])), Err(ArgvError::Owned { .. })),
                "{owned}"
            );
        }
        assert_eq!(check(&with(&["-x"; 65])), Err(ArgvError::TooMany(65)));
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        let base = builtin("chunked_only_safe").unwrap();
        for share in [0.0, -0.1, 1.01, f64::NAN] {
            let profile = Profile {
                gpu_memory_utilization: Setting::Set(share),
                ..base.clone()
            };
            assert_eq!(check(&profile), Err(ArgvError::Share(share.to_string())));
        }
        let profile = Profile {
            max_num_seqs: Setting::Set(0),
            ..base.clone()
        };
        assert_eq!(check(&profile), Err(ArgvError::Zero("max_num_seqs")));
    }

    #[test]
    fn every_builtin_passes_its_own_check() {
        for profile in builtins() {
            assert_eq!(check(profile), Ok(()), "{}", profile.name);
        }
    }
}
