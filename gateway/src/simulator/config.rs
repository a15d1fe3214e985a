//! What a simulator is told at its start: whom it imitates, how fast, how large, and how often it misbehaves.
//!
//! Every field has a default, so `SimConfig::default()` is a healthy vLLM 0.32 with Qwen3-32B-AWQ on an H100, in real
//! time. The same table stands in a replica's configuration (`launcher = "simulated"`) and in the file of `sluice simulate`.
//! The numbers of a preset and where they come from stand at [`Gpu`]. Per-request knobs are in `fault`.
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::config::{duration, size};

/// What a simulated model id ends in, so that nobody takes its answers for real ones.
pub const SIMULATED_SUFFIX: &str = "-simulated";

/// Settings of one simulated replica. Whom it stands for (`model`, `aliases`, `api_key_env`) is said by who starts it: its
/// backend, or the command line. The rest is a table of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SimConfig {
    /// Model id that is served. `-simulated` is appended if it doesn't end in it. Default `Qwen/Qwen3-32B-AWQ`.
    #[serde(skip)]
    pub model: String,
    /// Further ids under which the model may be asked for (vLLM's additional `--served-model-name`). Default none.
    #[serde(skip)]
    pub aliases: Vec<String>,
    /// Hardware that is imitated: step times, KV blocks, batch size. Default `h100`.
    pub gpu: Gpu,
    /// Time factor: 1.0 is real time, 10.0 ten times faster, 0 no waiting at all. Delays that a knob names
    /// (`ttft-ms`, `itl-ms`, `slow_start`) are wall-clock time and never scaled. Default 1.0.
    pub speed: f64,
    /// vLLM with or without its own parsers. Default `raw`.
    pub setup: Setup,
    /// What the chat template takes. Default `qwen3`.
    pub template: ChatTemplate,
    /// Seed of everything that is drawn: the same seed and the same request give the same answer. Default 0.
    pub seed: u64,
    /// Name of the environment variable with the key that `/v1` asks for; empty: no key. Default empty.
    #[serde(skip)]
    pub api_key_env: String,
    /// Longest prompt plus answer, in tokens (`--max-model-len`). Default 131,072.
    pub max_model_len: u32,
    /// Sequences in one batch (`--max-num-seqs`); the rest waits. `n` counts n. Default 32.
    pub max_num_seqs: u32,
    /// Tokens in one engine step (`--max-num-batched-tokens`): a long prefill is cut into chunks of this size and
    /// slows the decode of the others meanwhile. 0: the preset's. Default 0.
    pub max_num_batched_tokens: u32,
    /// KV blocks of 16 tokens (`num_gpu_blocks`). 0: the preset's. Default 0.
    pub num_gpu_blocks: u32,
    /// Whether prompts find their cached prefix (`--enable-prefix-caching`, on by default in vLLM). Default true.
    pub prefix_caching: bool,
    /// Sequences that may wait for a place; a request beyond gets 503. vLLM has no such limit. Default 65,536.
    pub max_waiting_seqs: u32,
    /// Connections open at once; more are accepted and closed. Default 16,384.
    pub max_connections: u32,
    /// Largest request body; a larger one gets 413. Default 64 MiB.
    #[serde(with = "size")]
    pub max_body_bytes: u64,
    /// Idle keep-alive connections are closed after this time. Default 5 s, uvicorn's.
    #[serde(with = "duration")]
    pub keep_alive: Duration,
    /// Fewest tokens of an answer that nothing else determines, thinking included. Default 96.
    pub answer_tokens_min: u32,
    /// Most tokens of such an answer. Default 320.
    pub answer_tokens_max: u32,
    /// Part of an answer's tokens that is thinking, 0 to 1. Default 0.5.
    pub reasoning_share: f64,
    /// Misbehaviour at random. Default none.
    pub faults: FaultRates,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            model: "Qwen/Qwen3-32B-AWQ".to_owned(),
            aliases: Vec::new(),
            gpu: Gpu::H100,
            speed: 1.0,
            setup: Setup::Raw,
            template: ChatTemplate::Qwen3,
            seed: 0,
            api_key_env: String::new(),
            max_model_len: 131_072,
            max_num_seqs: 32,
            max_num_batched_tokens: 0,
            num_gpu_blocks: 0,
            prefix_caching: true,
            max_waiting_seqs: 65_536,
            max_connections: 16_384,
            max_body_bytes: 64 << 20,
            keep_alive: Duration::from_secs(5),
            answer_tokens_min: 96,
            answer_tokens_max: 320,
            reasoning_share: 0.5,
            faults: FaultRates::default(),
        }
    }
}

impl SimConfig {
    /// The id under which the model is served, suffix included.
    pub fn served_model(&self) -> String {
        if self.model.ends_with(SIMULATED_SUFFIX) {
            self.model.clone()
        } else {
            format!("{}{SIMULATED_SUFFIX}", self.model)
        }
    }

    /// KV blocks in effect.
    pub fn blocks(&self) -> u32 {
        if self.num_gpu_blocks == 0 {
            self.gpu.rates().num_gpu_blocks
        } else {
            self.num_gpu_blocks
        }
    }

    /// Tokens of one step in effect.
    pub fn batched_tokens(&self) -> u32 {
        if self.max_num_batched_tokens == 0 {
            self.gpu.rates().max_num_batched_tokens
        } else {
            self.max_num_batched_tokens
        }
    }

    /// Checks what types can't say.
    ///
    /// # Errors
    /// Names the first setting that is out of its range.
    pub fn check(&self) -> Result<(), SimConfigError> {
        let out_of_range = |key, range| Err(SimConfigError { key, range });
        if self.model.is_empty() {
            return out_of_range("model", "not empty");
        }
        if !(0.0..=1_000_000.0).contains(&self.speed) {
            return out_of_range("speed", "0 (no waiting) to 1000000");
        }
        if !(64..=16_777_216).contains(&self.max_model_len) {
            return out_of_range("max_model_len", "64 to 16777216 tokens");
        }
        if !(1..=65_536).contains(&self.max_num_seqs) {
            return out_of_range("max_num_seqs", "1 to 65536");
        }
        if !(1..=4_194_304).contains(&self.blocks()) {
            return out_of_range("num_gpu_blocks", "1 to 4194304, or 0 for the preset's");
        }
        if !(1..=1_048_576).contains(&self.batched_tokens()) {
            return out_of_range("max_num_batched_tokens", "1 to 1048576, or 0 for the preset's");
        }
        if self.max_connections == 0 {
            return out_of_range("max_connections", "at least 1");
        }
        if self.keep_alive.is_zero() {
            return out_of_range("keep_alive", "above 0");
        }
        if self.answer_tokens_min == 0 || self.answer_tokens_max < self.answer_tokens_min {
            return out_of_range("answer_tokens_max", "at least answer_tokens_min, which is at least 1");
        }
        if !(0.0..=1.0).contains(&self.reasoning_share) {
            return out_of_range("reasoning_share", "0 to 1");
        }
        self.faults.check()
    }
}

/// A setting that is out of its range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("simulator setting `{key}` must be {range}")]
pub struct SimConfigError {
    /// Name of the setting.
    pub key: &'static str,
    /// What it may be.
    pub range: &'static str,
}

/// How much of an answer vLLM parses itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setup {
    /// Without `--tool-call-parser` and `--reasoning-parser`: tags stay in the content, `tool_choice` other than `none`
    /// is refused.
    Raw,
    /// With `--enable-auto-tool-choice --tool-call-parser hermes --reasoning-parser qwen3`.
    Parsers,
}

/// What the chat template takes of a conversation. The prompt is Qwen3's either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatTemplate {
    /// Any message anywhere.
    Qwen3,
    /// No system message but the first one (in Qwen3.5's words), no turn without content (in Mistral's).
    Strict,
}

/// Shares of requests that misbehave, drawn by seed and request number. Each is 0 to 1, together at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FaultRates {
    /// Connections that are reset when they are accepted, before a request is read. Counts apart from the others.
    pub refuse: f64,
    /// Requests whose connection is reset once they are read.
    pub reset_before: f64,
    /// Streams whose connection is reset after some tokens.
    pub reset_mid: f64,
    /// Streams that end in an error event and `[DONE]`; other requests get a 500.
    pub error_event: f64,
    /// Streams that fall silent after some tokens.
    pub stall: f64,
    /// Requests that never get a byte.
    pub hang: f64,
    /// Requests whose head comes late, by `slow_start_time`.
    pub slow_start: f64,
    /// Delay of `slow_start`. Default 0.
    #[serde(with = "duration")]
    pub slow_start_time: Duration,
    /// Requests that get a 500.
    pub status_500: f64,
    /// Requests that get a 503.
    pub status_503: f64,
    /// Tool calls that are malformed, of a kind drawn from all kinds. Counts apart from the others.
    pub malformed_call: f64,
}

impl FaultRates {
    fn check(&self) -> Result<(), SimConfigError> {
        let one_of = self.reset_before
            + self.reset_mid
            + self.error_event
            + self.stall
            + self.hang
            + self.slow_start
            + self.status_500
            + self.status_503;
        let each = [
            ("faults.refuse", self.refuse),
            ("faults.reset_before", self.reset_before),
            ("faults.reset_mid", self.reset_mid),
            ("faults.error_event", self.error_event),
            ("faults.stall", self.stall),
            ("faults.hang", self.hang),
            ("faults.slow_start", self.slow_start),
            ("faults.status_500", self.status_500),
            ("faults.status_503", self.status_503),
            ("faults.malformed_call", self.malformed_call),
        ];
        if let Some((key, _)) = each.into_iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(SimConfigError { key, range: "0 to 1" });
        }
        if one_of > 1.0 {
            return Err(SimConfigError {
                key: "faults",
                range: "shares that add up to at most 1",
            });
        }
        Ok(())
    }
}

/// Hardware presets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gpu {
    /// One H100 with 80 GB. Measured with vLLM 0.24 on a Qwen3-32B-AWQ shape at TP 1, fp8 KV: cold TTFT 98.8 ms at
    /// 1,024 prompt tokens, 371.9 at 4,096, 1,737 at 16,384, 11,794 at 65,536; warm 26.9, 41.0, 65.2 and 169.7 ms;
    /// 64–75 tokens/s for one stream. The constants are a fit to these ten numbers; a test holds it.
    #[default]
    H100,
    /// Two RTX 4090 with TP 2. Reported for `chunked_only_safe`: 2,928 ms cold, 908 ms warm, 27 tokens/s at the low
    /// end. The prompt's length was not reported: 8,192 tokens are assumed, the warm time that a step can't explain is
    /// laid on the prompt's tokens, and the curvature is the H100's. About 140,000 tokens of fp8 KV fit.
    Rtx4090x2,
}

/// What a step costs and what fits, for one preset.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rates {
    /// Shortest step: the weights are read once, seconds.
    pub(super) weights_s: f64,
    /// Compute of one token, seconds.
    pub(super) token_s: f64,
    /// Attention of one prefill token over one token before it, seconds.
    pub(super) attention_s: f64,
    /// KV of one earlier token read for one decoded token, seconds.
    pub(super) kv_read_s: f64,
    /// Front end (HTTP, template, tokenizer), seconds.
    pub(super) front_s: f64,
    /// The same per prompt token, seconds.
    pub(super) front_token_s: f64,
    /// KV blocks of 16 tokens.
    pub(super) num_gpu_blocks: u32,
    /// vLLM's default `--max-num-batched-tokens` there.
    pub(super) max_num_batched_tokens: u32,
    /// What `vllm:cache_config_info` says of memory.
    pub(super) gpu_memory_utilization: &'static str,
}

impl std::str::FromStr for Gpu {
    type Err = SimConfigError;

    /// As in the configuration file, for a command line.
    fn from_str(name: &str) -> Result<Self, SimConfigError> {
        match name {
            "h100" => Ok(Gpu::H100),
            "rtx4090x2" => Ok(Gpu::Rtx4090x2),
            _ => Err(SimConfigError {
                key: "gpu",
                range: "h100 or rtx4090x2",
            }),
        }
    }
}

impl Gpu {
    /// The preset's numbers.
    pub(super) fn rates(self) -> Rates {
        match self {
            Gpu::H100 => Rates {
                weights_s: 14.3e-3,
                token_s: 79.5e-6,
                attention_s: 2.99e-9,
                kv_read_s: 39e-9,
                front_s: 10e-3,
                front_token_s: 2.2e-6,
                num_gpu_blocks: 23_000,
                max_num_batched_tokens: 8_192,
                gpu_memory_utilization: "0.85",
            },
            Gpu::Rtx4090x2 => Rates {
                weights_s: 37e-3,
                token_s: 234e-6,
                attention_s: 2.99e-9,
                kv_read_s: 65e-9,
                front_s: 60e-3,
                front_token_s: 99e-6,
                num_gpu_blocks: 8_750,
                max_num_batched_tokens: 2_048,
                gpu_memory_utilization: "0.85",
            },
        }
    }
}

impl Rates {
    /// Time of the front end for a prompt of `tokens`.
    pub(super) fn front(&self, tokens: u32) -> Duration {
        Duration::from_secs_f64(self.front_s + self.front_token_s * f64::from(tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_in_range_and_named_as_simulated() {
        let config = SimConfig::default();
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.served_model(), "Qwen/Qwen3-32B-AWQ-simulated");
        assert_eq!(
            SimConfig {
                model: "m-simulated".into(),
                ..config
            }
            .served_model(),
            "m-simulated"
        );
    }

    #[test]
    fn unknown_settings_are_refused_and_known_ones_read() {
        let read = |text| toml::from_str::<SimConfig>(text);
        assert!(read("sped = 1.0").is_err());
        let config = read("gpu = \"rtx4090x2\"\nspeed = 0.0\nsetup = \"parsers\"\n[faults]\nstall = 0.1").unwrap();
        assert_eq!(
            (config.gpu, config.setup, config.faults.stall),
            (Gpu::Rtx4090x2, Setup::Parsers, 0.1)
        );
        assert_eq!(config.blocks(), 8_750);
        for gpu in [Gpu::H100, Gpu::Rtx4090x2] {
            let name = toml::Value::try_from(gpu).unwrap();
            assert_eq!(
                name.as_str().unwrap().parse(),
                Ok(gpu),
                "file and command line name it alike"
            );
        }
        assert!("a100".parse::<Gpu>().unwrap_err().to_string().contains("rtx4090x2"));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let key = |config: SimConfig| config.check().unwrap_err().key;
        let base = SimConfig::default;
        assert_eq!(
            key(SimConfig {
                speed: f64::NAN,
                ..base()
            }),
            "speed"
        );
        assert_eq!(key(SimConfig { speed: -1.0, ..base() }), "speed");
        assert_eq!(
            key(SimConfig {
                max_num_seqs: 0,
                ..base()
            }),
            "max_num_seqs"
        );
        assert_eq!(
            key(SimConfig {
                answer_tokens_min: 9,
                answer_tokens_max: 8,
                ..base()
            }),
            "answer_tokens_max"
        );
        assert_eq!(
            key(SimConfig {
                faults: FaultRates {
                    hang: 1.1,
                    ..FaultRates::default()
                },
                ..base()
            }),
            "faults.hang"
        );
        let faults = FaultRates {
            hang: 0.6,
            stall: 0.6,
            ..FaultRates::default()
        };
        assert_eq!(key(SimConfig { faults, ..base() }), "faults");
    }
}
