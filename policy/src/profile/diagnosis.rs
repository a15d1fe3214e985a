//! Why a replica ended: the end of its log in, a cause with the lines that prove it out.
//!
//! Problem: vLLM's last line is mostly "Engine core initialization failed. See root cause above", a hundred lines of traceback
//! below the cause. Rule: each cause has marks that stand in one line of its root error; the causes are tried in an order in
//! which the specific comes before the general (a gated model is also "not found"). Lines that may hold a prompt are never
//! looked at. The marks were taken from vLLM 0.12 to 0.32, PyTorch and huggingface_hub as they really print.

use std::fmt;

/// How much of a log's end is looked at.
pub const LOG_TAIL_BYTES: usize = 64 << 10;
/// At most so many lines are shown as proof.
pub const EVIDENCE_LINES_MAX: usize = 5;
/// Longer lines of proof are cut there.
pub const EVIDENCE_LINE_CHARS: usize = 400;

/// What ended a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Diagnosis {
    /// GPU or host memory: weights, KV cache or activations don't fit.
    OutOfMemory,
    /// A key that the start needs is missing: the gateway's own for vLLM, or the hub's for a gated model.
    MissingApiKey,
    /// Another process holds the port.
    PortTaken,
    /// The model is neither on the hub nor on the disk.
    ModelNotFound,
    /// vLLM doesn't know a flag, or doesn't take its value.
    UnknownFlag,
    /// The GPU's driver, or no GPU at all.
    Driver,
    /// FlashAttention 3 with an fp8 cache needs `dtype = "bfloat16"`.
    Fp8NeedsBf16,
    /// The program to start isn't there.
    CommandNotFound,
    /// Alive, but not ready within the start timeout.
    Timeout,
    /// None of these; the proof is the log's last lines.
    Unknown,
}

impl Diagnosis {
    /// The name in metrics, events and `/health`.
    pub fn name(self) -> &'static str {
        match self {
            Diagnosis::OutOfMemory => "out_of_memory",
            Diagnosis::MissingApiKey => "missing_api_key",
            Diagnosis::PortTaken => "port_taken",
            Diagnosis::ModelNotFound => "model_not_found",
            Diagnosis::UnknownFlag => "unknown_flag",
            Diagnosis::Driver => "driver",
            Diagnosis::Fp8NeedsBf16 => "fp8_needs_bf16",
            Diagnosis::CommandNotFound => "command_not_found",
            Diagnosis::Timeout => "timeout",
            Diagnosis::Unknown => "unknown",
        }
    }

    /// What a person does about it.
    pub fn advice(self) -> &'static str {
        match self {
            Diagnosis::OutOfMemory => {
                "lower gpu_memory_utilization, max_model_len or max_num_seqs, or end what else uses the GPU's memory"
            }
            Diagnosis::MissingApiKey => "set the environment variable that key_env names (for a gated model: HF_TOKEN)",
            Diagnosis::PortTaken => "end the process that holds the port, or choose another port",
            Diagnosis::ModelNotFound => {
                "check the profile's model: an id of the hub (and the network), or an existing folder"
            }
            Diagnosis::UnknownFlag => {
                "this vLLM doesn't take that flag or value: change the profile or the vLLM version"
            }
            Diagnosis::Driver => "check nvidia-smi: the driver must be as new as this vLLM's CUDA, and the GPU visible",
            Diagnosis::Fp8NeedsBf16 => "set dtype = \"bfloat16\" in the profile",
            Diagnosis::CommandNotFound => "install vLLM, or give the full path in the replica's command",
            Diagnosis::Timeout => {
                "raise start_timeout_s if the log shows progress (a first start downloads and compiles)"
            }
            Diagnosis::Unknown => "read the log",
        }
    }

    /// Whether the same start can succeed later with nothing changed in the configuration. Memory, ports, drivers and downloads
    /// come and go; a flag that vLLM doesn't know stays unknown.
    pub fn may_pass(self) -> bool {
        match self {
            Diagnosis::OutOfMemory
            | Diagnosis::PortTaken
            | Diagnosis::ModelNotFound
            | Diagnosis::Driver
            | Diagnosis::Timeout
            | Diagnosis::Unknown => true,
            Diagnosis::MissingApiKey
            | Diagnosis::UnknownFlag
            | Diagnosis::Fp8NeedsBf16
            | Diagnosis::CommandNotFound => false,
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Diagnosis::OutOfMemory => "out of memory",
            Diagnosis::MissingApiKey => "missing API key",
            Diagnosis::PortTaken => "port taken",
            Diagnosis::ModelNotFound => "model not found",
            Diagnosis::UnknownFlag => "flag or value unknown",
            Diagnosis::Driver => "GPU driver",
            Diagnosis::Fp8NeedsBf16 => "fp8 KV cache needs bfloat16",
            Diagnosis::CommandNotFound => "command not found",
            Diagnosis::Timeout => "not ready in time",
            Diagnosis::Unknown => "unknown cause",
        })
    }
}

/// A diagnosis and its proof.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The cause.
    pub diagnosis: Diagnosis,
    /// The lines of the log that prove it, in their order, shortened; never empty unless the log was.
    pub evidence: Vec<String>,
}

impl Finding {
    /// A finding that doesn't come from the log.
    pub fn new(diagnosis: Diagnosis, evidence: impl Into<String>) -> Finding {
        Finding {
            diagnosis,
            evidence: vec![shortened(&evidence.into())],
        }
    }
}

/// One cause's marks: a line is proof if it contains all parts of one of them.
struct Rule {
    diagnosis: Diagnosis,
    marks: &'static [&'static [&'static str]],
}

const RULES: [Rule; 8] = [
    Rule {
        diagnosis: Diagnosis::Fp8NeedsBf16,
        marks: &[&["For FP8 input, output must have dtype BF16"]],
    },
    Rule {
        diagnosis: Diagnosis::OutOfMemory,
        marks: &[
            &["CUDA out of memory"],
            &["torch.OutOfMemoryError"],
            &["torch.cuda.OutOfMemoryError"],
            &["HIP out of memory"],
            &["CUDA error: out of memory"],
            &["NCCL", "out of memory"],
            &["No available memory for the cache blocks"],
            &["Free memory on device", "is less than desired GPU memory utilization"],
            &["cache is needed, which is larger than the available KV cache"],
            &[
                "max seq len",
                "is larger than the maximum number of tokens that can be stored in KV cache",
            ],
            &["CUDA out of memory occurred when warming up"],
            &["Cannot allocate memory"],
            &["MemoryError"],
        ],
    },
    Rule {
        diagnosis: Diagnosis::PortTaken,
        marks: &[
            &["Address already in use"],
            &["address already in use"],
            &["EADDRINUSE"],
        ],
    },
    Rule {
        diagnosis: Diagnosis::Driver,
        marks: &[
            &["NVIDIA driver on your system is too old"],
            &["Found no NVIDIA driver"],
            &["No CUDA GPUs are available"],
            &["CUDA driver version is insufficient"],
            &["CUDA error: no kernel image is available"],
            &["CUDA error: system not yet initialized"],
            &["CUDA unknown error"],
            &["Failed to infer device type"],
            &["NVMLError"],
            &["Driver/library version mismatch"],
            &["nvidia-container-cli"],
        ],
    },
    Rule {
        diagnosis: Diagnosis::MissingApiKey,
        marks: &[
            &["argument --api-key: expected"],
            &["GatedRepoError"],
            &["access a gated repo"],
            &["Cannot access gated repo"],
            &["API_KEY", "is missing a value"],
            &["API_KEY", "must be set"],
        ],
    },
    Rule {
        diagnosis: Diagnosis::CommandNotFound,
        marks: &[
            &["setsid: failed to execute"],
            &["No module named 'vllm'"],
            &["No module named vllm"],
            &["can't open file"],
        ],
    },
    Rule {
        diagnosis: Diagnosis::UnknownFlag,
        marks: &[
            &["error: unrecognized arguments:"],
            &["error: argument -"],
            &["error: ambiguous option:"],
            &["error: the following arguments are required"],
            &["KeyError: 'invalid tool call parser:"],
            &["KeyError: 'invalid reasoning parser:"],
            &["validation error for ", "Config"],
            &["validation errors for ", "Config"],
            &["validation error for EngineArgs"],
            &[
                "User-specified max_model_len",
                "is greater than the derived max_model_len",
            ],
            &["is smaller than max_model_len"],
            &["Unknown quantization method"],
            &["Quantization method specified in the model config", "does not match"],
        ],
    },
    Rule {
        diagnosis: Diagnosis::ModelNotFound,
        marks: &[
            &["RepositoryNotFoundError"],
            &["Repository Not Found for url"],
            &["LocalEntryNotFoundError"],
            &["HFValidationError"],
            &["is not a local folder and is not a valid model identifier"],
            &["is not the path to a directory containing"],
            &["does not appear to have a file named config.json"],
            &["Cannot find an appropriate cached snapshot folder"],
            &["Invalid repository ID or local directory specified"],
            &["couldn't connect to", "to load the files"],
            &["Cannot find any model weights"],
        ],
    },
];

/// Finds the cause in the end of a log.
///
/// `log` may be longer than [`LOG_TAIL_BYTES`]: only its end is read.
pub fn diagnose(log: &str) -> Finding {
    let lines: Vec<&str> = tail(log)
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.trim().is_empty() && !may_hold_a_prompt(line))
        .collect();
    for rule in &RULES {
        let proof: Vec<&str> = lines.iter().copied().filter(|line| rule.proven_by(line)).collect();
        if !proof.is_empty() {
            return Finding {
                diagnosis: rule.diagnosis,
                evidence: last_different(&proof),
            };
        }
    }
    Finding {
        diagnosis: Diagnosis::Unknown,
        evidence: last_different(&lines),
    }
}

impl Rule {
    fn proven_by(&self, line: &str) -> bool {
        self.marks
            .iter()
            .any(|mark| mark.iter().all(|part| line.contains(part)))
    }
}

fn tail(log: &str) -> &str {
    let mut from = log.len().saturating_sub(LOG_TAIL_BYTES);
    while !log.is_char_boundary(from) {
        from += 1;
    }
    log.get(from..).unwrap_or_default()
}

/// With `--enable-log-requests` vLLM logs prompts and answers. They are nobody's proof, and must not travel into our log.
fn may_hold_a_prompt(line: &str) -> bool {
    ["Received request", "Generated response", "prompt:", "prompt_token_ids"]
        .iter()
        .any(|mark| line.contains(mark))
}

/// The last few lines that say different things: an error is often printed by each process, with its own time stamp before it.
fn last_different(lines: &[&str]) -> Vec<String> {
    let mut kept: Vec<(&str, &str)> = Vec::with_capacity(EVIDENCE_LINES_MAX);
    for line in lines.iter().rev() {
        let said = without_prefix(line);
        if kept.len() < EVIDENCE_LINES_MAX && !kept.iter().any(|(known, _)| *known == said) {
            kept.push((said, line));
        }
    }
    kept.iter().rev().map(|(_, line)| shortened(line)).collect()
}

/// The text after vLLM's `(EngineCore pid=104) ERROR 05-05 12:36:59 [core.py:1140] `.
fn without_prefix(line: &str) -> &str {
    let said = match line.split_once(") ") {
        Some((process, rest)) if process.starts_with('(') && process.contains("pid=") => rest,
        _ => line,
    };
    match said.split_once("] ") {
        Some((level, rest))
            if ["ERROR ", "INFO ", "WARNING "]
                .iter()
                .any(|word| level.starts_with(word)) =>
        {
            rest.trim_start()
        }
        _ => said.trim_start(),
    }
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(EVIDENCE_LINE_CHARS) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or(line)),
        None => line.to_owned(),
    }
}

#[cfg(test)]
#[path = "diagnosis_tests.rs"]
mod tests;
