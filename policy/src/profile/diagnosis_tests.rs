//! Excerpts of real logs: vLLM 0.32.0 where `(APIServer pid=…)` stands alone, older ones from public reports; paths shortened.

use super::*;

const UNKNOWN_FLAG: &str = "\
usage: vllm [-h] [-v]
            {chat,complete,serve,launch,bench,collect-env,download-kernels,preload,run-batch,snapshot}
            ...
vllm: error: unrecognized arguments: --enable-turbo
";

const API_KEY_WITHOUT_VALUE: &str = "\
usage: vllm serve [model_tag] [options]
vllm serve: error: argument --api-key: expected at least one argument
";

const PARSER_UNKNOWN: &str = "\
  File \"/venv/vllm/entrypoints/launchers/launcher.py\", line 389, in setup_server
    validate_api_server_args(args)
  File \"/venv/vllm/entrypoints/launchers/launcher.py\", line 362, in validate_api_server_args
    raise KeyError(
KeyError: 'invalid tool call parser: nosuch (chose from { apertus,cohere_command3,hermes,qwen3_xml })'
";

const LENGTH_NOT_TAKEN: &str = "\
(APIServer pid=21926) WARNING 11-24 05:08:05 [system_utils.py:255] Found ulimit of 20000 and failed to automatically increase with error current limit exceeds maximum limit. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n
    s.__pydantic_validator__.validate_python(ArgsKwargs(args, kwargs), self_instance=s)
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (40000000) is greater than the derived max_model_len (max_position_embeddings=40960.0 or model_max_length=None in model's config.json). To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
";

const PORT_TAKEN: &str = "\
(APIServer pid=21625) INFO 11-24 05:07:51 [api_utils.py:347]   █▄█▀ █     █     █     █  model   Qwen/Qwen3-32B-AWQ
  File \"/venv/vllm/entrypoints/launchers/launcher.py\", line 398, in setup_server
    sock = create_server_socket(sock_addr, reuse_port=reuse_port)
  File \"/venv/vllm/entrypoints/launchers/launcher.py\", line 348, in create_server_socket
    sock.bind(addr)
OSError: [Errno 98] Address already in use
";

const MODEL_OFFLINE: &str = "\
  File \"/venv/huggingface_hub/_snapshot_download.py\", line 382, in snapshot_download
    raise LocalEntryNotFoundError(
huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the specified revision on the local disk and outgoing traffic has been disabled. To enable repo look-ups and downloads online, pass 'local_files_only=False' as input.
";

const MODEL_FOLDER: &str = "\
  File \"/venv/huggingface_hub/utils/_validators.py\", line 133, in validate_repo_id
    raise HFValidationError(
huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/nonexistent/model'. Use `repo_type` argument if needed.
";

const MODEL_ON_THE_HUB: &str = "\
huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-66867938;15ff67d1)

Repository Not Found for url: https://huggingface.co/Qwen/Qwen3-32B-AQW/resolve/main/config.json.
Please make sure you specified the correct `repo_id` and `repo_type`.
OSError: Qwen/Qwen3-32B-AQW is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'
";

const MODEL_GATED: &str = "\
OSError: You are trying to access a gated repo.
Make sure to have access to it at https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2.
401 Client Error. (Request ID: Root=1-66867938-63a777574abdc5a517fda5e0;15ff67d1)

Cannot access gated repo for url https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2/resolve/main/config.json.
Access to model mistralai/Mistral-7B-Instruct-v0.2 is restricted. You must be authenticated to access it.
OSError: mistralai/Mistral-7B-Instruct-v0.2 does not appear to have a file named config.json.
";

const COMPOSE_WITHOUT_KEY: &str = "error while interpolating services.vllm.command.[]: required variable VLLM_MEDIUM_API_KEY is missing a value: set it\n";

const CUDA_MEMORY: &str = "\
(EngineCore_0 pid=104) ERROR 05-05 12:36:58 [core.py:700] EngineCore failed to start.
(EngineCore_0 pid=104) ERROR 05-05 12:36:58 [core.py:700] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 50.00 MiB. GPU 0 has a total capacity of 23.56 GiB of which 56.88 MiB is free. Including non-PyTorch memory, this process has 23.49 GiB memory in use.
(EngineCore_0 pid=104) torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 50.00 MiB. GPU 0 has a total capacity of 23.56 GiB of which 56.88 MiB is free. Including non-PyTorch memory, this process has 23.49 GiB memory in use.
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_0': 1}
";

const KV_TOO_SMALL: &str = "\
(EngineCore_0 pid=311) ERROR 11-21 08:10:41 [core.py:700] ValueError: To serve at least one request with the model's max seq len (131072), (16.0 GiB KV cache is needed, which is larger than the available KV cache memory (14.2 GiB). Based on the available memory, the estimated maximum model length is 116320. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.
";

const MEMORY_HELD_BY_OTHERS: &str = "\
ValueError: Free memory on device cuda:0 (3.21/23.64 GiB) on startup is less than desired GPU memory utilization (0.85, 20.09 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.
";

const FP8_ON_HOPPER: &str = "\
(EngineCore_0 pid=4242) ERROR 11-20 17:02:11 [core.py:700] RuntimeError: For FP8 input, output must have dtype BF16
(APIServer pid=4100) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
";

const DRIVER_OLD: &str = "\
RuntimeError: The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx
";

const NO_GPU: &str = "\
RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.
";

const SETSID: &str = "setsid: failed to execute vlm: No such file or directory\n";

fn check(log: &str, expect: Diagnosis, proof: &str) {
    let finding = diagnose(log);
    assert_eq!(finding.diagnosis, expect, "{log}");
    assert!(
        finding.evidence.iter().any(|line| line.contains(proof)),
        "{:?} lacks {proof}",
        finding.evidence
    );
}

#[test]
fn real_logs_are_told_apart_and_proven() {
    check(
        UNKNOWN_FLAG,
        Diagnosis::UnknownFlag,
        "unrecognized arguments: --enable-turbo",
    );
    check(
        PARSER_UNKNOWN,
        Diagnosis::UnknownFlag,
        "invalid tool call parser: nosuch",
    );
    check(LENGTH_NOT_TAKEN, Diagnosis::UnknownFlag, "max_model_len (40000000)");
    check(API_KEY_WITHOUT_VALUE, Diagnosis::MissingApiKey, "argument --api-key");
    check(MODEL_GATED, Diagnosis::MissingApiKey, "Cannot access gated repo");
    check(
        COMPOSE_WITHOUT_KEY,
        Diagnosis::MissingApiKey,
        "VLLM_MEDIUM_API_KEY is missing a value",
    );
    check(PORT_TAKEN, Diagnosis::PortTaken, "[Errno 98] Address already in use");
    check(
        MODEL_OFFLINE,
        Diagnosis::ModelNotFound,
        "outgoing traffic has been disabled",
    );
    check(MODEL_FOLDER, Diagnosis::ModelNotFound, "'/nonexistent/model'");
    check(MODEL_ON_THE_HUB, Diagnosis::ModelNotFound, "Qwen/Qwen3-32B-AQW");
    check(CUDA_MEMORY, Diagnosis::OutOfMemory, "Tried to allocate 50.00 MiB");
    check(
        KV_TOO_SMALL,
        Diagnosis::OutOfMemory,
        "estimated maximum model length is 116320",
    );
    check(MEMORY_HELD_BY_OTHERS, Diagnosis::OutOfMemory, "3.21/23.64 GiB");
    check(FP8_ON_HOPPER, Diagnosis::Fp8NeedsBf16, "must have dtype BF16");
    check(DRIVER_OLD, Diagnosis::Driver, "found version 12080");
    check(NO_GPU, Diagnosis::Driver, "Failed to infer device type");
    check(SETSID, Diagnosis::CommandNotFound, "vlm");
}

#[test]
fn a_healthy_log_proves_nothing() {
    let log = "\
(APIServer pid=1) WARNING 11-24 05:07:24 [system_utils.py:255] This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.
(APIServer pid=1) INFO 11-24 05:08:00 [launcher.py:44] Route: /health, Methods: GET
(APIServer pid=1) INFO:     Application startup complete.
(APIServer pid=1) INFO:     127.0.0.1:55412 - \"GET /health HTTP/1.1\" 200 OK
";
    let finding = diagnose(log);
    assert_eq!(finding.diagnosis, Diagnosis::Unknown);
    assert_eq!(finding.evidence.len(), 4);
    assert!(finding.evidence[3].ends_with("200 OK"));
    assert_eq!(
        diagnose(""),
        Finding {
            diagnosis: Diagnosis::Unknown,
            evidence: Vec::new()
        }
    );
}

#[test]
fn the_same_line_of_two_processes_is_shown_once() {
    let finding = diagnose(CUDA_MEMORY);
    assert_eq!(finding.evidence.len(), 1, "{:?}", finding.evidence);
}

#[test]
fn a_prompt_that_speaks_of_memory_is_no_proof() {
    let log = "INFO 11-24 05:08:00 [logger.py:40] Received request chatcmpl-1: prompt: 'why CUDA out of memory?', params: …\n\
               INFO 11-24 05:08:01 [logger.py:60] Generated response chatcmpl-1: 'CUDA out of memory means'\n";
    assert_eq!(
        diagnose(log),
        Finding {
            diagnosis: Diagnosis::Unknown,
            evidence: Vec::new()
        }
    );
}

#[test]
fn only_the_end_of_a_long_log_is_read_and_proof_is_short() {
    let noise = "é INFO a line of some length that says nothing at all\n".repeat(4_000);
    assert!(noise.len() > 2 * LOG_TAIL_BYTES);
    assert_eq!(diagnose(&format!("{CUDA_MEMORY}{noise}")).diagnosis, Diagnosis::Unknown);
    let long = format!("{noise}CUDA out of memory. {}\n", "é".repeat(5_000));
    let finding = diagnose(&long);
    assert_eq!(finding.diagnosis, Diagnosis::OutOfMemory);
    assert_eq!(finding.evidence[0].chars().count(), EVIDENCE_LINE_CHARS + 1);
    for cut in 0..4 {
        diagnose(&noise[cut * 2..]); // whichever byte the tail begins at
    }
}

#[test]
fn names_are_distinct_and_advice_is_given() {
    use Diagnosis::*;
    let all = [
        OutOfMemory,
        MissingApiKey,
        PortTaken,
        ModelNotFound,
        UnknownFlag,
        Driver,
        Fp8NeedsBf16,
        CommandNotFound,
        Timeout,
        Unknown,
    ];
    let names: std::collections::HashSet<_> = all.iter().map(|diagnosis| diagnosis.name()).collect();
    assert_eq!(names.len(), all.len());
    assert!(
        all.iter()
            .all(|diagnosis| !diagnosis.advice().is_empty() && !diagnosis.to_string().is_empty())
    );
}
