//! Calls of coding agents: write a file, edit one, run a command, with 2 to 50 KB of code in six languages.
//!
//! The code is made of templates full of what is hard for a parser of calls: quotes, backslashes, JSON, tags of calls and of
//! thinking as text.

use super::Sample;
use crate::seed::Seed;
use serde_json::{Value, json};
use sluice_policy::tool_call::{ToolSet, ToolSetError};
use std::sync::Arc;

const TOOLS: &str = r#"[
    {"type": "function", "function": {"name": "write_file", "description": "Writes a file.", "parameters": {"type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}, "executable": {"type": "boolean"}},
        "required": ["path", "content"], "additionalProperties": false}}},
    {"type": "function", "function": {"name": "edit_file", "description": "Replaces text in a file.", "parameters": {"type": "object",
        "properties": {"path": {"type": "string"}, "old_string": {"type": "string"}, "new_string": {"type": "string"},
        "replace_all": {"type": "boolean"}}, "required": ["path", "old_string", "new_string"]}}},
    {"type": "function", "function": {"name": "run_shell", "description": "Runs a command.", "parameters": {"type": "object",
        "properties": {"command": {"type": "string"}, "timeout_s": {"type": "integer"}, "env": {"type": "object",
        "additionalProperties": {"type": "string"}}, "args": {"type": "array", "items": {"type": "string"}}},
        "required": ["command"]}}}
]"#;

/// Lines of code; `@` is a word, `#` a number.
const PYTHON: &[&str] = &[
    "import json, re",
    "def @(self, @: str = \"@\") -> dict[str, int]:",
    "    \"\"\"Return the @ of \"@\", or None.\"\"\"",
    "    return {\"@\": #, '@': \"it's @\", \"@\": [\"a\", \"b\"]}",
    "    if re.match(r\"^\\s*(\\d+)\\.\\w+$\", @):",
    "        print(f\"@: {@!r}\\t{len(@)}\\n\")",
    "        raise ValueError(\"bad \\\"@\\\": \" + str(@))",
    "    path = \"C:\\\\Users\\\\@\\\\new.txt\"",
    "    text = '<tool_call>\\n{\"name\": \"@\", \"arguments\": {}}\\n</tool_call>'",
    "    assert @[\"@\"] == {\"@\": {\"@\": True}}, '</think>'",
    "    data = json.loads('{\"@\": [1, 2, {\"@\": null}]}')",
];
const RUST: &[&str] = &[
    "use std::collections::HashMap;",
    "pub fn @(@: &str) -> Result<String, Error> {",
    "    let @ = format!(\"{@}: \\\"{}\\\"\\n\", @.len());",
    "    match @.get(\"@\") { Some(x) => x, None => return Err(\"no @\".into()) }",
    "    let json = r#\"{\"@\": \"@\", \"list\": [#, #]}\"#;",
    "    assert_eq!(@('\\'', '\\\\'), \"</tool_call>\");",
    "    println!(\"<think>{}</think>\", @);",
    "}",
    "// a comment with \"quotes\", {braces} and [brackets], isn't it",
];
const TYPESCRIPT: &[&str] = &[
    "import { @ } from './@.js';",
    "export const @ = async (@: string): Promise<void> => {",
    "  const @ = `${@}: \"${@.@}\" \\`x\\``;",
    "  console.log(\"@\", { @: \"@\", \"@\": [1, 2, 3] });",
    "  if (!/^[\\w.-]+\\/(\\d+)$/.test(@)) throw new Error('can\\'t @: \"' + @ + '\"');",
    "  return JSON.parse(\"{\\\"@\\\": #}\");",
    "  const tag = '</tool_call>';",
    "};",
];
const GO: &[&str] = &[
    "package @",
    "import \"fmt\"",
    "func (s *@) @(ctx context.Context, @ string) (map[string]string, error) {",
    "\tif err != nil { return nil, fmt.Errorf(\"@ %q: %w\", @, err) }",
    "\tm := map[string]string{\"@\": \"@\", \"@\": \"\\t#\\n\"}",
    "\ttype T struct { @ string `json:\"@,omitempty\"` }",
    "\treturn m, nil",
    "}",
];
const SHELL: &[&str] = &[
    "#!/usr/bin/env bash",
    "set -euo pipefail",
    "@=\"${@:-\"@\"}\"",
    "for f in \"$@\"/*.txt; do echo \"file: '$f'\" | sed -e 's/\\(@\\)/\\1\\\\n/' -e \"s|a|b|\"; done",
    "curl -s -H 'Content-Type: application/json' -d '{\"@\": \"@\", \"n\": #}' http://localhost:#/@",
    "awk -F'\\t' '{ print $1 \": \" $2 }' @.tsv | grep -E \"^[a-z]+\\\\.(@|@)$\"",
    "[ -f \"$@\" ] || { echo \"no @\" >&2; exit 1; }",
    "cat <<'EOF' > @.md",
    "EOF",
];
const MARKDOWN: &[&str] = &[
    "# The \"@\" of @",
    "",
    "Call it like this:",
    "```json",
    "{\"name\": \"@\", \"arguments\": {\"@\": \"@\", \"@\": [#, #]}}",
    "```",
    "<tool_call>",
    "</tool_call>",
    "- **@**: it's `@(\"@\")`, don't write \\@ or C:\\@",
    "<think>is \"@\" right?</think>",
    "| @ | \"@\" | {@} |",
];
const LANGUAGES: &[(&str, &[&str])] = &[
    ("py", PYTHON),
    ("rs", RUST),
    ("ts", TYPESCRIPT),
    ("go", GO),
    ("sh", SHELL),
    ("md", MARKDOWN),
];
const WORDS: &[&str] = &[
    "parse", "user", "items", "config", "value", "name", "path", "total", "buffer", "naïve", "result", "index", "node",
    "key", "text", "handler", "日本", "count",
];

/// `count` calls, the same for the same seed.
///
/// # Errors
/// Never: the tools are a constant.
pub fn coding(seed: &mut Seed, count: usize) -> Result<Vec<Sample>, ToolSetError> {
    let tools = Arc::new(ToolSet::parse(TOOLS.as_bytes())?);
    let sample = |at: usize| Sample {
        id: format!("coding_{at}"),
        tools: Arc::clone(&tools),
        blocks: vec![call(at, seed)],
    };
    Ok((0..count).map(sample).collect())
}

fn call(at: usize, seed: &mut Seed) -> String {
    let (suffix, lines) = LANGUAGES.get(at % LANGUAGES.len()).copied().unwrap_or_default();
    // 2 to 50 KB, more small ones than large ones
    let size = 2048 << (seed.next_u64() % 5);
    let size = size + usize::try_from(seed.next_u64() % (size as u64 / 2)).unwrap_or_default();
    let path = format!("src/{}.{suffix}", word(seed));
    let (name, arguments) = match at % 3 {
        0 => {
            let mut arguments = json!({"path": path, "content": code(lines, size, seed)});
            if seed.next_u64().is_multiple_of(2) {
                arguments["executable"] = json!(seed.next_u64().is_multiple_of(2));
            }
            ("write_file", arguments)
        }
        1 => {
            let old = code(lines, size / 2, seed);
            let new = code(lines, size / 2, seed);
            // an edit often begins and ends within lines
            let trim = |text: String| {
                if size.is_multiple_of(2) {
                    text.trim().to_owned()
                } else {
                    text
                }
            };
            let mut arguments = json!({"path": path, "old_string": trim(old), "new_string": trim(new)});
            if seed.next_u64().is_multiple_of(2) {
                arguments["replace_all"] = json!(true);
            }
            ("edit_file", arguments)
        }
        _ => {
            let heredoc = format!(
                "cat > {path} <<'EOF'\n{}EOF\npython3 -c \"print('ok')\"",
                code(lines, size, seed)
            );
            let mut arguments = json!({"command": heredoc, "timeout_s": seed.next_u64() % 600});
            if seed.next_u64().is_multiple_of(2) {
                arguments["env"] = json!({"MODE": word(seed), "QUOTED": format!("\"{}\"", word(seed))});
                arguments["args"] = json!(["-x", word(seed), format!("{} \"{}\"", word(seed), word(seed))]);
            }
            ("run_shell", arguments)
        }
    };
    python_dumps(&json!({"name": name, "arguments": arguments}))
}

fn word(seed: &mut Seed) -> &'static str {
    let at = usize::try_from(seed.next_u64() % WORDS.len() as u64).unwrap_or_default();
    WORDS.get(at).copied().unwrap_or_default()
}

fn code(lines: &[&str], size: usize, seed: &mut Seed) -> String {
    let mut out = String::new();
    while out.len() < size {
        for c in seed.pick(lines).chars() {
            match c {
                '@' => out.push_str(word(seed)),
                '#' if seed.next_u64().is_multiple_of(2) => out.push_str(&(seed.next_u64() % 1000).to_string()),
                c => out.push(c),
            }
        }
        out.push('\n');
    }
    out
}

/// As Qwen's template and Python write JSON: a blank behind commas and colons.
fn python_dumps(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(key, value)| format!("{}: {}", json!(key), python_dumps(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(elements) => {
            let elements: Vec<String> = elements.iter().map(python_dumps).collect();
            format!("[{}]", elements.join(", "))
        }
        scalar => scalar.to_string(),
    }
}
