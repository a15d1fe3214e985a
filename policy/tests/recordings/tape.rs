//! Reads recordings. A missing one fails the test that wants it.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use sluice_policy::reasoning::{Opener, Thinking};
use sluice_policy::tool_call::{Bare, ToolSet};
use sluice_policy::turn::{AnswerPlan, OnInvalid, ReasoningNames, ReasoningPlan, Release, SeamPlan, Surface, ToolPlan};

pub(crate) const SETS: [&str; 3] = ["raw", "parsers", "parsers-v0.12"];

pub(crate) fn shared(path: &str) -> PathBuf {
    let root = std::env::var_os("SLUICE_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        PathBuf::from,
    );
    let path = root.join("vllm/recordings").join(path);
    assert!(
        path.exists(),
        "{} is missing: set SLUICE_SHARED to the folder with vllm/recordings",
        path.display()
    );
    path
}

/// One recorded exchange.
pub(crate) struct Tape {
    pub(crate) request: Value,
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Tape {
    pub(crate) fn load(set: &str, case: &str) -> Self {
        let request: Value =
            serde_json::from_slice(&std::fs::read(shared(&format!("{set}/{case}.request.json"))).unwrap()).unwrap();
        let response = std::fs::read(shared(&format!("{set}/{case}.response.http"))).unwrap();
        let head_end = find(&response, b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&response[..head_end]).to_lowercase();
        let body = &response[head_end + 4..];
        let body = if head.contains("transfer-encoding: chunked") {
            dechunk(body)
        } else {
            body.to_vec()
        };
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { request, status, body }
    }

    pub(crate) fn path(&self) -> &str {
        self.request["path"].as_str().unwrap()
    }

    /// The plan that the gateway would make for this request.
    pub(crate) fn plan(&self, set: &str, case: &str) -> AnswerPlan {
        let body = &self.request["body"];
        let thinking = match body["chat_template_kwargs"]["enable_thinking"].as_bool() {
            None => Thinking::Unknown,
            Some(true) => Thinking::On,
            Some(false) => Thinking::Off,
        };
        // The one case that plays a template whose prompt opens the block; a reasoning parser has judged it already.
        let opener = if set == "raw" && case.starts_with("think_no_open") {
            Opener::Prompt
        } else {
            Opener::Model
        };
        let has_tools = body["tools"].as_array().is_some_and(|tools| !tools.is_empty());
        // In `raw` the recorder wrote "none" where the gateway does; in this case it was the client's own wish.
        let wants_none = case.starts_with("tool_choice_none") || (set != "raw" && body["tool_choice"] == "none");
        let tools = match set {
            _ if !has_tools || wants_none => ToolPlan::Off,
            _ => ToolPlan::Scan {
                tools: Arc::new(ToolSet::parse(body["tools"].to_string().as_bytes()).unwrap()),
                bare: if body["response_format"].is_null() {
                    Bare::Calls
                } else {
                    Bare::Text
                },
            },
        };
        let completions = self.path() == "/v1/completions";
        AnswerPlan {
            surface: if completions {
                Surface::Completions
            } else {
                Surface::Chat
            },
            reasoning: if completions {
                ReasoningPlan::Off
            } else {
                ReasoningPlan::Qwen3 { thinking, opener }
            },
            tools,
            named_function: set != "raw" && body["tool_choice"].is_object(),
            parallel_tool_calls: body["parallel_tool_calls"] != false,
            include_usage: body["stream_options"]["include_usage"] == true,
            show_verdicts: false,
            names: ReasoningNames::Both,
            simulated: false,
            id_seed: 42,
            reasks: 0,
            on_invalid: OnInvalid::Text,
            release: Release::Hold,
            seam: SeamPlan::off(),
        }
    }
}

/// Names of the cases of `set` that are chat or completions and were answered with 200, streamed or not.
pub(crate) fn cases(set: &str, stream: bool) -> Vec<String> {
    let mut cases: Vec<_> = std::fs::read_dir(shared(set))
        .unwrap()
        .filter_map(|entry| {
            entry
                .unwrap()
                .file_name()
                .into_string()
                .unwrap()
                .strip_suffix(".response.http")
                .map(str::to_owned)
        })
        .filter(|case| case.ends_with(".stream") == stream)
        .filter(|case| {
            let tape = Tape::load(set, case);
            tape.status == 200 && matches!(tape.path(), "/v1/chat/completions" | "/v1/completions")
        })
        .collect();
    cases.sort();
    assert!(cases.len() > 60, "{set}: only {} cases", cases.len());
    cases
}

/// A chunked body that may be cut off.
pub(crate) fn dechunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = find(body, b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end]).unwrap(), 16).unwrap();
        body = &body[end + 2..];
        out.extend_from_slice(&body[..size.min(body.len())]);
        body = body.get(size + 2..).unwrap_or_default();
    }
    out
}

pub(crate) fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}
