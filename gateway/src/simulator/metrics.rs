//! What `/metrics` says: vLLM's names, help texts, labels and buckets, fed by the engine model.
//!
//! Enters: events of the engine ([`Tally`]) and a snapshot of its state ([`Now`]). Leaves: Prometheus text as vLLM 0.32
//! writes it. Families that the model has no number for (flops, multi-modal cache, external KV) are there and zero, so
//! that a reader of vLLM's metrics finds every name. Process and HTTP families are left out, but for the start time.
use std::fmt::Write as _;
use std::time::Duration;

use super::config::SimConfig;
use super::engine::Job;
use super::tokens::BLOCK_TOKENS;

/// Buckets of whole-request times, seconds.
const REQUEST_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// Buckets of the time to the first token, seconds.
const FIRST_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Buckets of times per token, seconds.
const TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Buckets of tokens in one step.
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0,
];
/// Buckets of tokens in one request; those up to the model's length are used.
const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0, 50000.0, 100000.0,
    200000.0, 500000.0, 1000000.0, 2000000.0, 5000000.0, 10000000.0,
];
/// Buckets of `n`.
const N: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Buckets of preemptions of one request.
const PREEMPTIONS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];

/// A histogram with vLLM's bucket bounds.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    fn add(&mut self, value: f64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts[place] += 1;
        self.sum += value;
    }
}

/// What one finished sequence adds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    /// Ended by `max_tokens`.
    pub(super) is_length: bool,
    /// Prompt tokens.
    pub(super) prompt: u32,
    /// Prompt tokens that were not cached.
    pub(super) computed: u32,
    /// Tokens produced.
    pub(super) generated: u32,
    /// Arrival to last token.
    pub(super) total: Duration,
    /// First schedule to first token.
    pub(super) prefill: Duration,
    /// First to last token.
    pub(super) decode: Duration,
    /// How often it was preempted.
    pub(super) preemptions: u32,
}

/// Counters and histograms of one engine.
#[derive(Debug)]
pub(super) struct Tally {
    prompt_tokens: u64,
    cached_tokens: u64,
    queries: u64,
    generation_tokens: u64,
    preemptions: u64,
    stop: u64,
    length: u64,
    abort: u64,
    error: u64,
    prompt: Histogram,
    generation: Histogram,
    step: Histogram,
    max_generation: Histogram,
    n: Histogram,
    max_tokens: Histogram,
    first: Histogram,
    between: Histogram,
    per_token: Histogram,
    total: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    request_preemptions: Histogram,
    computed: Histogram,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            prompt_tokens: 0,
            cached_tokens: 0,
            queries: 0,
            generation_tokens: 0,
            preemptions: 0,
            stop: 0,
            length: 0,
            abort: 0,
            error: 0,
            prompt: Histogram::new(REQUEST_TOKENS),
            generation: Histogram::new(REQUEST_TOKENS),
            step: Histogram::new(STEP_TOKENS),
            max_generation: Histogram::new(REQUEST_TOKENS),
            n: Histogram::new(N),
            max_tokens: Histogram::new(REQUEST_TOKENS),
            first: Histogram::new(FIRST_S),
            between: Histogram::new(TOKEN_S),
            per_token: Histogram::new(TOKEN_S),
            total: Histogram::new(REQUEST_S),
            queue: Histogram::new(REQUEST_S),
            inference: Histogram::new(REQUEST_S),
            prefill: Histogram::new(REQUEST_S),
            decode: Histogram::new(REQUEST_S),
            request_preemptions: Histogram::new(PREEMPTIONS),
            computed: Histogram::new(REQUEST_TOKENS),
        }
    }
}

impl Tally {
    /// A request came, one job for each choice.
    pub(super) fn request(&mut self, jobs: &[Job]) {
        self.n.add(jobs.len() as f64);
        if let Some(job) = jobs.first() {
            self.max_tokens.add(f64::from(job.max_tokens));
        }
    }

    /// A sequence got its place.
    pub(super) fn scheduled(&mut self, prompt: u32, cached: u32, waited: Duration) {
        self.queries += u64::from(prompt);
        self.prompt_tokens += u64::from(prompt);
        self.cached_tokens += u64::from(cached);
        self.queue.add(waited.as_secs_f64());
    }

    /// A token was produced: the time to it if it is the first, else since the last.
    pub(super) fn token(&mut self, to_first: Option<Duration>, since_last: Option<Duration>) {
        self.generation_tokens += 1;
        if let Some(time) = to_first {
            self.first.add(time.as_secs_f64());
        }
        if let Some(time) = since_last {
            self.between.add(time.as_secs_f64());
        }
    }

    /// A step of so many tokens ended.
    pub(super) fn step(&mut self, tokens: u64) {
        self.step.add(tokens as f64);
    }

    /// A sequence lost its blocks.
    pub(super) fn preempted(&mut self) {
        self.preemptions += 1;
    }

    /// Sequences were aborted.
    pub(super) fn aborted(&mut self, sequences: u64) {
        self.abort += sequences;
    }

    /// Sequences ended in an error of the engine.
    pub(super) fn failed(&mut self, sequences: u64) {
        self.error += sequences;
    }

    /// A sequence is complete.
    pub(super) fn finished(&mut self, of: &Finished) {
        if of.is_length {
            self.length += 1;
        } else {
            self.stop += 1;
        }
        self.prompt.add(f64::from(of.prompt));
        self.computed.add(f64::from(of.computed));
        self.generation.add(f64::from(of.generated));
        self.max_generation.add(f64::from(of.generated));
        self.total.add(of.total.as_secs_f64());
        self.prefill.add(of.prefill.as_secs_f64());
        self.decode.add(of.decode.as_secs_f64());
        self.inference.add((of.prefill + of.decode).as_secs_f64());
        self.request_preemptions.add(f64::from(of.preemptions));
        if of.generated > 1 {
            self.per_token
                .add(of.decode.as_secs_f64() / f64::from(of.generated - 1));
        }
    }

    /// Engine steps so far (`vllm:iteration_tokens_total_count`).
    pub(super) fn steps(&self) -> u64 {
        self.step.counts.iter().sum()
    }

    /// Preemptions so far.
    pub(super) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Prompt tokens asked for and found in the cache so far.
    pub(super) fn prefix(&self) -> (u64, u64) {
        (self.queries, self.cached_tokens)
    }
}

/// The engine at the moment of a scrape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// Sequences in the batch.
    pub(super) running: u32,
    /// Sequences that wait.
    pub(super) waiting: u32,
    /// Part of the KV blocks in use.
    pub(super) kv_usage: f64,
    /// Start of the simulator, seconds since the epoch.
    pub(super) started_s: f64,
}

/// Writes one exposition.
struct Page<'a> {
    out: String,
    model: &'a str,
    started_s: f64,
    longest: f64,
}

/// The exposition for one scrape.
pub(super) fn render(config: &SimConfig, model: &str, tally: &Tally, now: &Now) -> String {
    let longest = f64::from(config.max_model_len);
    let mut page = Page {
        out: String::with_capacity(48 << 10),
        model,
        started_s: now.started_s,
        longest,
    };
    let start = "Start time of the process since unix epoch in seconds.";
    page.head("process_start_time_seconds", start, "gauge");
    let _ = writeln!(page.out, "process_start_time_seconds {}", go_float(now.started_s));
    counters(&mut page, tally, now);
    histograms(&mut page, tally);
    cache_config(&mut page, config);
    page.out
}

/// Gauges and counters, in vLLM's order.
fn counters(page: &mut Page<'_>, tally: &Tally, now: &Now) {
    let computed = (tally.prompt_tokens - tally.cached_tokens) as f64;
    page.counter(
        "vllm:estimated_flops_per_gpu_total",
        "Estimated number of floating point operations per GPU (for Model Flops Utilization calculations).",
        &[("", 0.0)],
    );
    page.counter(
        "vllm:estimated_read_bytes_per_gpu_total",
        "Estimated number of bytes read from memory per GPU (for Model Flops Utilization calculations).",
        &[("", 0.0)],
    );
    page.counter(
        "vllm:estimated_write_bytes_per_gpu_total",
        "Estimated number of bytes written to memory per GPU (for Model Flops Utilization calculations).",
        &[("", 0.0)],
    );
    page.gauge(
        "vllm:num_requests_running",
        "Number of requests in model execution batches.",
        &[("", f64::from(now.running))],
    );
    page.gauge(
        "vllm:num_requests_waiting",
        "Number of requests waiting to be processed.",
        &[("", f64::from(now.waiting))],
    );
    page.gauge("vllm:num_requests_waiting_by_reason", "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.", &[("reason=\"capacity\"", f64::from(now.waiting)), ("reason=\"deferred\"", 0.0)]);
    page.gauge("vllm:engine_sleep_state", "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.", &[("sleep_state=\"awake\"", 1.0), ("sleep_state=\"weights_offloaded\"", 0.0), ("sleep_state=\"discard_all\"", 0.0)]);
    page.gauge(
        "vllm:kv_cache_usage_perc",
        "KV-cache usage. 1 means 100 percent usage.",
        &[("", now.kv_usage)],
    );
    page.counter(
        "vllm:prefix_cache_queries_total",
        "Prefix cache queries, in terms of number of queried tokens.",
        &[("", tally.queries as f64)],
    );
    page.counter(
        "vllm:prefix_cache_hits_total",
        "Prefix cache hits, in terms of number of cached tokens.",
        &[("", tally.cached_tokens as f64)],
    );
    page.counter("vllm:external_prefix_cache_queries_total", "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of queried tokens.", &[("", 0.0)]);
    page.counter("vllm:external_prefix_cache_hits_total", "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of cached tokens.", &[("", 0.0)]);
    page.counter(
        "vllm:mm_cache_queries_total",
        "Multi-modal cache queries, in terms of number of queried items.",
        &[("", 0.0)],
    );
    page.counter(
        "vllm:mm_cache_hits_total",
        "Multi-modal cache hits, in terms of number of cached items.",
        &[("", 0.0)],
    );
    page.counter(
        "vllm:num_preemptions_total",
        "Cumulative number of preemption from the engine.",
        &[("", tally.preemptions as f64)],
    );
    page.counter(
        "vllm:prompt_tokens_total",
        "Number of prefill tokens processed.",
        &[("", tally.prompt_tokens as f64)],
    );
    page.counter(
        "vllm:prompt_tokens_by_source_total",
        "Number of prompt tokens by source.",
        &[
            ("source=\"local_compute\"", computed),
            ("source=\"local_cache_hit\"", tally.cached_tokens as f64),
            ("source=\"external_kv_transfer\"", 0.0),
        ],
    );
    page.counter(
        "vllm:prompt_tokens_cached_total",
        "Number of cached prompt tokens (local + external).",
        &[("", tally.cached_tokens as f64)],
    );
    page.counter("vllm:prompt_tokens_cached_by_source_total", "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.", &[("source=\"device\"", tally.cached_tokens as f64), ("source=\"host\"", 0.0), ("source=\"p2p\"", 0.0), ("source=\"disk\"", 0.0), ("source=\"external_unspecified\"", 0.0)]);
    page.counter(
        "vllm:generation_tokens_total",
        "Number of generation tokens processed.",
        &[("", tally.generation_tokens as f64)],
    );
    page.counter(
        "vllm:request_success_total",
        "Count of successfully processed requests.",
        &[
            ("finished_reason=\"stop\"", tally.stop as f64),
            ("finished_reason=\"length\"", tally.length as f64),
            ("finished_reason=\"abort\"", tally.abort as f64),
            ("finished_reason=\"error\"", tally.error as f64),
            ("finished_reason=\"repetition\"", 0.0),
        ],
    );
    page.counter(
        "vllm:admission_rejections_total",
        "Number of admission attempts rejected by a queue limit, by reason.",
        &[
            ("reason=\"max_num_queued_reqs\"", 0.0),
            ("reason=\"max_num_queued_tokens\"", 0.0),
        ],
    );
}

/// Histograms, in vLLM's order.
fn histograms(page: &mut Page<'_>, tally: &Tally) {
    page.histogram(
        "vllm:request_prompt_tokens",
        "Number of prefill tokens processed.",
        &tally.prompt,
    );
    page.histogram(
        "vllm:request_generation_tokens",
        "Number of generation tokens processed.",
        &tally.generation,
    );
    page.histogram(
        "vllm:iteration_tokens_total",
        "Histogram of number of tokens per engine_step.",
        &tally.step,
    );
    page.histogram(
        "vllm:request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
        &tally.max_generation,
    );
    page.histogram(
        "vllm:request_params_n",
        "Histogram of the n request parameter.",
        &tally.n,
    );
    page.histogram(
        "vllm:request_params_max_tokens",
        "Histogram of the max_tokens request parameter.",
        &tally.max_tokens,
    );
    page.histogram(
        "vllm:time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        &tally.first,
    );
    page.histogram(
        "vllm:inter_token_latency_seconds",
        "Histogram of inter-token latency in seconds.",
        &tally.between,
    );
    page.histogram(
        "vllm:request_time_per_output_token_seconds",
        "Histogram of time_per_output_token_seconds per request.",
        &tally.per_token,
    );
    page.histogram(
        "vllm:e2e_request_latency_seconds",
        "Histogram of e2e request latency in seconds.",
        &tally.total,
    );
    page.histogram(
        "vllm:request_queue_time_seconds",
        "Histogram of time spent in WAITING phase for request.",
        &tally.queue,
    );
    page.histogram(
        "vllm:request_inference_time_seconds",
        "Histogram of time spent in RUNNING phase for request.",
        &tally.inference,
    );
    page.histogram(
        "vllm:request_prefill_time_seconds",
        "Histogram of time spent in PREFILL phase for request.",
        &tally.prefill,
    );
    page.histogram(
        "vllm:request_decode_time_seconds",
        "Histogram of time spent in DECODE phase for request.",
        &tally.decode,
    );
    page.histogram(
        "vllm:request_num_preemptions",
        "Histogram of the number of times a request was preempted.",
        &tally.request_preemptions,
    );
    page.histogram(
        "vllm:request_prefill_kv_computed_tokens",
        "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
        &tally.computed,
    );
}

/// `vllm:cache_config_info`: what is in effect, as labels.
fn cache_config(page: &mut Page<'_>, config: &SimConfig) {
    let blocks = config.blocks();
    let tokens = u64::from(blocks) * u64::from(BLOCK_TOKENS);
    let concurrency = tokens as f64 / f64::from(config.max_model_len);
    let labels: [(&str, String); 37] = [
        ("_block_size_resolved", "True".to_owned()),
        ("block_size", BLOCK_TOKENS.to_string()),
        ("cache_dtype", "fp8".to_owned()),
        ("cache_hit_alignment_tokens", "None".to_owned()),
        ("effective_attention_block_size", BLOCK_TOKENS.to_string()),
        ("enable_mamba_shared_prefix_checkpoint", "False".to_owned()),
        (
            "enable_prefix_caching",
            (if config.prefix_caching { "True" } else { "False" }).to_owned(),
        ),
        ("engine", "0".to_owned()),
        (
            "gpu_memory_utilization",
            config.gpu.rates().gpu_memory_utilization.to_owned(),
        ),
        ("hash_block_size", "None".to_owned()),
        ("is_attention_free", "False".to_owned()),
        ("kv_cache_dtype_skip_layers", "[]".to_owned()),
        ("kv_cache_layout", "None".to_owned()),
        ("kv_cache_max_concurrency", format!("{concurrency}")),
        ("kv_cache_memory_bytes", "None".to_owned()),
        ("kv_cache_size_tokens", tokens.to_string()),
        ("kv_offloading_backend", "native".to_owned()),
        ("kv_offloading_size", "None".to_owned()),
        ("kv_sharing_fast_prefill", "False".to_owned()),
        ("mamba_block_size", "None".to_owned()),
        ("mamba_cache_dtype", "auto".to_owned()),
        ("mamba_cache_mode", "none".to_owned()),
        ("mamba_page_size_padded", "None".to_owned()),
        ("mamba_ssm_cache_dtype", "auto".to_owned()),
        ("num_cpu_blocks", "None".to_owned()),
        ("num_gpu_blocks", blocks.to_string()),
        ("num_gpu_blocks_override", "None".to_owned()),
        ("prefix_cache_retention_interval", "0".to_owned()),
        ("prefix_caching_hash_algo", "sha256".to_owned()),
        ("prefix_match_unit", "None".to_owned()),
        ("replayssm_buffer_len", "16".to_owned()),
        ("skip_page_size_padded", "None".to_owned()),
        ("sliding_window", "None".to_owned()),
        ("swa_bounded_replay", "True".to_owned()),
        ("use_kda_recoverssm", "False".to_owned()),
        ("use_replayssm", "False".to_owned()),
        ("user_specified_block_size", "False".to_owned()),
    ];
    page.head(
        "vllm:cache_config_info",
        "Information of the LLMEngine CacheConfig",
        "gauge",
    );
    let labels: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{value}\""))
        .collect();
    let _ = writeln!(page.out, "vllm:cache_config_info{{{}}} 1.0", labels.join(","));
}

impl Page<'_> {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Label set with `extra` in its alphabetical place.
    fn labels(&self, extra: &str) -> String {
        let model = self.model;
        match extra {
            "" => format!("engine=\"0\",model_name=\"{model}\""),
            _ if extra.starts_with("reason=\"max_num_queued") => format!("model_name=\"{model}\",{extra}"),
            _ if extra < "model_name" => format!("engine=\"0\",{extra},model_name=\"{model}\""),
            _ => format!("engine=\"0\",model_name=\"{model}\",{extra}"),
        }
    }

    fn samples(&mut self, name: &str, values: &[(&str, f64)]) {
        for (extra, value) in values {
            let labels = self.labels(extra);
            let _ = writeln!(self.out, "{name}{{{labels}}} {}", go_float(*value));
        }
    }

    fn gauge(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.head(name, help, "gauge");
        self.samples(name, values);
    }

    fn counter(&mut self, name: &str, help: &str, values: &[(&str, f64)]) {
        self.head(name, help, "counter");
        self.samples(name, values);
        let starts: Vec<(&str, f64)> = values.iter().map(|(extra, _)| (*extra, self.started_s)).collect();
        self.gauge(&format!("{}_created", name.trim_end_matches("_total")), help, &starts);
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut below = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            below += count;
            let unused = std::ptr::eq(histogram.bounds, REQUEST_TOKENS) && *bound > self.longest;
            if !unused {
                self.bucket(name, &go_float(*bound), below);
            }
        }
        let all = histogram.counts.iter().sum();
        self.bucket(name, "+Inf", all);
        self.samples(&format!("{name}_count"), &[("", all as f64)]);
        self.samples(&format!("{name}_sum"), &[("", histogram.sum)]);
        self.gauge(&format!("{name}_created"), help, &[("", self.started_s)]);
    }

    fn bucket(&mut self, name: &str, bound: &str, count: u64) {
        let labels = self.labels(&format!("le=\"{bound}\""));
        let _ = writeln!(self.out, "{name}_bucket{{{labels}}} {}", go_float(count as f64));
    }
}

/// A number as prometheus_client writes it: a fraction always, an exponent from a million on.
fn go_float(value: f64) -> String {
    let plain = if value.fract() == 0.0 {
        format!("{value:.1}")
    } else {
        format!("{value}")
    };
    match plain.find('.') {
        Some(dot) if value > 0.0 && dot > 6 => {
            let digits = format!("{}.{}{}", &plain[..1], &plain[1..dot], &plain[dot + 1..]);
            format!("{}e+{:02}", digits.trim_end_matches(['0', '.']), dot - 1)
        }
        _ => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_like_pythons() {
        let cases = [
            (0.0, "0.0"),
            (964.0, "964.0"),
            (0.25, "0.25"),
            (1_048_576.0, "1.048576e+06"),
            (2_000_000.0, "2e+06"),
            (1_795_489_729.630_746_1, "1.7954897296307461e+09"),
        ];
        for (value, text) in cases {
            assert_eq!(go_float(value), text);
        }
    }

    #[test]
    fn a_value_on_a_bound_belongs_to_its_bucket() {
        let mut histogram = Histogram::new(N);
        [1.0, 2.0, 2.5, 99.0].into_iter().for_each(|value| histogram.add(value));
        assert_eq!(histogram.counts, [1, 1, 1, 0, 0, 1]);
        assert_eq!(histogram.sum, 104.5);
    }
}
