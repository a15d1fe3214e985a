//! How many tokens of KV cache a profile will have, before it has been started.
//!
//! An estimate for choosing and for warning; what a running replica really has is read back from it
//! (`num_gpu_blocks` × `block_size` of `vllm:cache_config_info`).

use super::Profile;

/// What a GPU spends besides weights and KV cache: CUDA context, NCCL buffers, CUDA graphs, the activations of one step.
/// Calibrated on 2× RTX 4090 with the champion profile, where about 140,000 tokens of fp8 cache were left.
const OVERHEAD_BYTES_PER_GPU: u64 = 2_900 << 20;

/// vLLM's own default for `--gpu-memory-utilization` (0.92 in 0.32; 0.9 before).
const ENGINE_DEFAULT_SHARE: f64 = 0.92;

/// The few numbers of a model that decide its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Transformer layers that keep keys and values.
    pub layers: u32,
    /// Key/value heads of a layer, over all GPUs.
    pub kv_heads: u32,
    /// Elements of one head's key (and of its value).
    pub head_dim: u32,
    /// Bytes of all weights as loaded, over all GPUs.
    pub weight_bytes: u64,
}

impl ModelShape {
    /// Qwen3-32B with 4-bit AWQ weights.
    pub const QWEN3_32B_AWQ: ModelShape = ModelShape {
        layers: 64,
        kv_heads: 8,
        head_dim: 128,
        weight_bytes: 19_300_000_000,
    };

    /// The shape of a model that the built-in profiles name.
    pub fn of(model: &str) -> Option<ModelShape> {
        (model == "Qwen/Qwen3-32B-AWQ").then_some(ModelShape::QWEN3_32B_AWQ)
    }

    /// Bytes that one token keeps: a key and a value in each layer.
    pub fn kv_bytes_per_token(&self, element_bytes: u64) -> u64 {
        2 * u64::from(self.layers) * u64::from(self.kv_heads) * u64::from(self.head_dim) * element_bytes
    }
}

/// Tokens of KV cache that `profile` leaves on GPUs of `gpu_bytes` each; 0 if the weights alone don't fit.
pub fn expected_kv_tokens(profile: &Profile, shape: &ModelShape, gpu_bytes: u64) -> u64 {
    let gpus = u64::from(profile.tensor_parallel_size.set().copied().unwrap_or(1).max(1));
    let share = profile
        .gpu_memory_utilization
        .set()
        .copied()
        .unwrap_or(ENGINE_DEFAULT_SHARE)
        .clamp(0.0, 1.0);
    let usable = (gpu_bytes as f64 * share) as u64; // a float holds any memory size to the byte up to 8 PiB
    let left = usable
        .saturating_sub(OVERHEAD_BYTES_PER_GPU)
        .saturating_mul(gpus)
        .saturating_sub(shape.weight_bytes);
    left / shape.kv_bytes_per_token(kv_element_bytes(profile)).max(1)
}

fn kv_element_bytes(profile: &Profile) -> u64 {
    match profile.kv_cache_dtype.set().map(String::as_str) {
        Some(kind) if kind.starts_with("fp8") => 1,
        Some("float32") => 4,
        Some(_) => 2,
        None if profile.dtype.set().is_some_and(|dtype| dtype == "float32") => 4, // "auto": that of the model
        None => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Setting, builtin};

    const RTX_4090_BYTES: u64 = 24_564 << 20;
    const QWEN: ModelShape = ModelShape::QWEN3_32B_AWQ;

    #[test]
    fn one_token_of_the_champion_is_128_kib() {
        assert_eq!(QWEN.kv_bytes_per_token(1), 128 << 10);
    }

    #[test]
    fn the_champion_holds_one_or_two_long_conversations() {
        let champion = builtin("chunked_only_safe").unwrap();
        let tokens = expected_kv_tokens(champion, &ModelShape::of(&champion.model).unwrap(), RTX_4090_BYTES);
        assert!(
            (133_000..147_000).contains(&tokens),
            "about 140,000 were found on the machine: {tokens}"
        );
    }

    #[test]
    fn more_memory_more_tokens_and_wider_elements_fewer() {
        let champion = builtin("chunked_only_safe").unwrap();
        let tokens = expected_kv_tokens(champion, &QWEN, RTX_4090_BYTES);
        let aggressive = expected_kv_tokens(builtin("aggressive_cache").unwrap(), &QWEN, RTX_4090_BYTES);
        assert!(aggressive > tokens);
        let wide = Profile {
            kv_cache_dtype: Setting::EngineDefault,
            ..champion.clone()
        };
        assert_eq!(expected_kv_tokens(&wide, &QWEN, RTX_4090_BYTES), tokens / 2);
    }

    #[test]
    fn weights_that_do_not_fit_leave_nothing() {
        let one = Profile {
            tensor_parallel_size: Setting::EngineDefault,
            ..builtin("chunked_only_safe").unwrap().clone()
        };
        assert_eq!(expected_kv_tokens(&one, &QWEN, 16 << 30), 0);
    }
}
