//! `[reasoning]`: what becomes of `<think>…</think>` (B14).

use serde::{Deserialize, Serialize};

/// How reasoning is found and under which name a client gets it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReasoningConfig {
    /// How the served models mark reasoning: `qwen3` (default) or `off` (all text is content).
    pub form: ReasoningForm,
    /// Who writes the first `<think>`: `auto` (default: learned from each answer), `model` (hybrid Qwen3) or `prompt` (the
    /// template ends with it: 2507 and VL thinking models). `model` and `prompt` hold nothing back of an answer without tags.
    pub opener: ThinkOpener,
    /// The field that carries it: `both` (default: `reasoning` and `reasoning_content`), `reasoning`, `reasoning_content`,
    /// or `inline` (left in the content, tags included). A key may say otherwise for its own requests.
    pub names: ReasoningNames,
}

/// How a model marks its reasoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum ReasoningForm {
    /// `<think>…</think>`.
    #[default]
    Qwen3,
    /// The models don't reason, or nobody wants it apart.
    Off,
}

/// Who writes the opening tag.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum ThinkOpener {
    /// Found out from each answer; one without tags is held back meanwhile.
    #[default]
    Auto,
    /// The model, if it thinks at all (hybrid Qwen3).
    Model,
    /// The chat template: each answer begins inside the block (2507 and VL thinking models).
    Prompt,
}

/// The names under which a client gets reasoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum ReasoningNames {
    /// `reasoning` and `reasoning_content`.
    #[default]
    Both,
    /// `reasoning`, vLLM's name of today.
    Reasoning,
    /// `reasoning_content`, vLLM's name of old, which many agents read.
    ReasoningContent,
    /// In `content`, with its tags.
    Inline,
}
