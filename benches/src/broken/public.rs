//! The calls of BFCL's cases (`vllm/vectors/bfcl.jsonl` of the shared fixtures).

use super::Sample;
use serde_json::Value;
use sluice_policy::tool_call::ToolSet;
use std::path::Path;
use std::sync::Arc;

/// All cases that expect a call which their own tools accept. One expects a string where its schema says array of numbers (`schema_valid`
/// false): it is asked again even as it is, so that nothing about repair can be seen in it.
///
/// # Errors
/// The file is missing or of another form.
pub fn public(shared: &Path) -> std::io::Result<Vec<Sample>> {
    let file = std::fs::read_to_string(shared.join("vllm/vectors/bfcl.jsonl"))?;
    let mut samples = Vec::new();
    for line in file.lines() {
        let case: Value = serde_json::from_str(line)?;
        if case["schema_valid"] == false {
            continue;
        }
        let tools = ToolSet::parse(case["tools"].to_string().as_bytes()).map_err(std::io::Error::other)?;
        let text = case["hermes"].as_str().unwrap_or_default();
        let blocks: Vec<String> = text
            .split("<tool_call>\n")
            .filter_map(|block| block.split_once("\n</tool_call>"))
            .map(|(inside, _)| inside.to_owned())
            .collect();
        if !blocks.is_empty() {
            samples.push(Sample {
                id: case["id"].as_str().unwrap_or_default().to_owned(),
                tools: Arc::new(tools),
                blocks,
            });
        }
    }
    Ok(samples)
}
