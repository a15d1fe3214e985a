//! Arguments judged by the JSON schema of their tool, and brought into its shape (B24, B25).
//!
//! The text of a call's arguments enters, a [`Judgement`] leaves: they fit, they fit after mends, they don't fit, or nobody can
//! say. The crate `jsonschema` decides what fits: drafts 4 to 2020-12, references inside the schema only, no network, no
//! files, a regex engine that is linear in the text, `format` as an annotation. A schema is compiled on first use, once for
//! the life of its [`ToolSet`](super::ToolSet).
//!
//! Schemas come from clients, so they may be hostile. What exceeds a bound of `bounds` isn't compiled, and arguments that would
//! take more work or stack than `cost` allows aren't checked; both are [`Judgement::Unchecked`], never a refusal. In reading
//! order: `bounds` (what is compiled), `cost` (what a check may take), `keys` (slips of the pen), `spans` (where the values of a
//! text stand), `plan` (errors to edits), `convert` (one value brought into shape), `mend` (the search for the cheapest edits).

mod bounds;
mod convert;
mod cost;
mod keys;
mod mend;
mod plan;
mod spans;
#[cfg(test)]
mod tests;

use super::verdict::Kind;
use bounds::Admitted;
use cost::Cost;
use jsonschema::{Draft, PatternOptions, Validator};
use keys::Keys;
use serde_json::Value;

pub use bounds::BadSchema;
pub(crate) use bounds::SCHEMA_BYTES_LIMIT;

/// Longest compiled pattern, in bytes. `\w{1,64}` takes some 10 KiB.
const PATTERN_BYTES_LIMIT: usize = 128 << 10;
/// Cache of one pattern's lazy DFA, in bytes.
const PATTERN_CACHE_LIMIT: usize = 256 << 10;
/// Drafts that are tried, newest first, where the schema doesn't name its own.
const DRAFTS: [Draft; 3] = [Draft::Draft202012, Draft::Draft7, Draft::Draft4];

/// What the schema says of a call's arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// They are valid as they are.
    Fits,
    /// The schema can't be compiled, or checking would take more than the limits allow.
    Unchecked,
    /// They are valid after these mends.
    Mended {
        /// The arguments, of which only the mended values changed.
        arguments: String,
        /// What was mended, each kind once.
        kinds: Vec<Kind>,
    },
    /// No mend makes them valid.
    Unfit {
        /// JSON pointer of the first value that doesn't fit. Its keys may be the model's: never logged.
        at: String,
    },
}

/// A compiled schema.
#[derive(Debug)]
pub(crate) struct Schema {
    validator: Validator,
    cost: Cost,
    keys: Keys,
}

impl Schema {
    /// Compiles a tool's schema.
    ///
    /// # Errors
    /// It is over a bound or isn't a schema.
    pub(crate) fn compile(raw: &str) -> Result<Self, BadSchema> {
        let Admitted {
            schema,
            cost,
            moved_in_draft_4,
        } = bounds::admit(raw)?;
        let drafts = match schema.get("$schema").and_then(Value::as_str) {
            Some(uri) => vec![draft_named(uri).ok_or(BadSchema::Draft)?],
            None => DRAFTS.to_vec(),
        };
        let mut wrong = None;
        for draft in drafts {
            if moved_in_draft_4 && draft == Draft::Draft4 {
                continue;
            }
            match build(&schema, draft) {
                Ok(validator) => {
                    let keys = Keys::of(&schema);
                    return Ok(Schema { validator, cost, keys });
                }
                // the newest draft says what is wrong
                Err(at) => wrong = wrong.or(Some(BadSchema::Invalid { at })),
            }
        }
        Err(wrong.unwrap_or(BadSchema::Reference))
    }

    /// Judges `arguments`, a strict JSON object.
    pub(crate) fn judge(&self, arguments: &str) -> Judgement {
        // numbers and escapes that serde_json can't hold
        let Ok(value) = serde_json::from_str::<Value>(arguments) else {
            return Judgement::Unchecked;
        };
        if !self.cost.allows_check(&value, arguments.len()) {
            return Judgement::Unchecked;
        }
        if self.validator.is_valid(&value) {
            let slip = self.keys.slip(&value);
            return slip.map_or(Judgement::Fits, |at| Judgement::Unfit { at });
        }
        mend::mend(self, arguments, value)
    }
}

/// The validator, or the place in the schema that stands against it.
fn build(schema: &Value, draft: Draft) -> Result<Validator, String> {
    let patterns = PatternOptions::regex()
        .size_limit(PATTERN_BYTES_LIMIT)
        .dfa_size_limit(PATTERN_CACHE_LIMIT);
    let options = jsonschema::options()
        .with_draft(draft)
        .with_pattern_options(patterns)
        .should_validate_formats(false)
        .offline();
    options
        .build(schema)
        .map_err(|error| error.instance_path().as_str().to_owned())
}

/// The draft of a `$schema`; `None` for a meta-schema of somebody's own.
fn draft_named(uri: &str) -> Option<Draft> {
    let uri = uri.trim_end_matches('#');
    let path = uri.strip_prefix("https://").or_else(|| uri.strip_prefix("http://"))?;
    Some(match path {
        "json-schema.org/draft/2020-12/schema" => Draft::Draft202012,
        "json-schema.org/draft/2019-09/schema" => Draft::Draft201909,
        "json-schema.org/draft-07/schema" => Draft::Draft7,
        "json-schema.org/draft-06/schema" => Draft::Draft6,
        "json-schema.org/draft-04/schema" => Draft::Draft4,
        _ => return None,
    })
}
