//! Whether a broken text can be told from one that was meant as it stands.
//!
//! A text that isn't well any more enters, and the calls that came of it; `true` leaves if they are what has to come of it, though
//! another call was meant: every block is strict JSON that its tool's schema accepts as it is (a key of a map renamed, a number as
//! string where any value goes), so that nothing is there to be mended; or the schema refuses what stands there and the call is
//! the one that B24 orders (white space in the option of an enum). `jsonschema` judges here, not the code under test.

use super::{Mutant, Sample};
use serde_json::Value;
use sluice_policy::tool_call::ToolSet;

impl Sample {
    /// The calls are the ones that this text has to give, though others were meant.
    pub(super) fn has_to_give(&self, mutant: &Mutant, calls: &[Value]) -> bool {
        let valid = |call: &Value| accepts(&self.tools, call);
        if let Some(written) = strict(&mutant.text) {
            return written == calls && written.iter().all(valid);
        }
        let intact: Vec<Value> = self
            .blocks
            .iter()
            .filter_map(|block| serde_json::from_str(block).ok())
            .collect();
        mutant.meant.is_some() && intact == calls && intact.iter().all(valid) && !self.meant(mutant).iter().all(valid)
    }
}

/// The calls of a text whose blocks are all strict JSON.
fn strict(text: &str) -> Option<Vec<Value>> {
    let blocks = text.split("<tool_call>\n").skip(1);
    blocks
        .map(|block| serde_json::from_str(block.split_once("\n</tool_call>")?.0).ok())
        .collect()
}

pub(super) fn accepts(tools: &ToolSet, call: &Value) -> bool {
    let tool = call["name"].as_str().and_then(|name| tools.exact(name));
    let Some(schema) = tool.and_then(|tool| tool.parameters.as_deref()) else {
        return tool.is_some();
    };
    let schema = serde_json::from_str::<Value>(schema.get()).unwrap_or_default();
    let options = jsonschema::options().should_validate_formats(false).offline();
    options
        .build(&schema)
        .is_ok_and(|schema| schema.is_valid(&call["arguments"]))
}
