//! OpenAI's Python SDK before the gateway, and the example that people start from.
//!
//! The checks themselves are in `examples/python/openai_sdk_check.py`. The interpreter is `SLUICE_PYTHON`; `./test` sets it
//! to one that has the pinned SDK.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::engine::{SetUp, wait};
use crate::gateway::{CLIENT_KEY, Gateway};
use crate::script::Script;

const LIMIT: Duration = Duration::from_secs(300);

#[test]
fn openai_sdk_before_raw() {
    run("openai_sdk_check.py", &Gateway::before(SetUp::Raw), &[]);
}

#[test]
fn openai_sdk_before_parsers() {
    run("openai_sdk_check.py", &Gateway::before(SetUp::Parsers), &[]);
}

/// Two turns: the model calls the tool; the tool's answer holds what makes it answer.
#[test]
fn the_agent_loop_of_the_examples() {
    let answer = Script::say("<think>\nNow I know.\n</think>\n\nIt is sunny.").marker();
    let call = format!(
        "<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {{\"city\": \"Paris {answer}\"}}}}\n</tool_call>"
    );
    let prompt = format!(
        "What is the weather in Paris? {}",
        Script::say(&format!("<think>\nA tool.\n</think>\n\n{call}")).marker()
    );
    for set_up in SetUp::BOTH {
        let printed = run("agent_loop.py", &Gateway::before(set_up), &[&prompt]);
        assert!(printed.contains("get_weather"), "{set_up:?}: the tool was called");
        assert!(
            printed.trim_end().ends_with("It is sunny."),
            "{set_up:?}: and its result answered"
        );
    }
}

/// Runs an example and gives what it printed. What went wrong is in its standard error, which is shown.
fn run(name: &str, gateway: &Gateway, arguments: &[&str]) -> String {
    let python = std::env::var_os("SLUICE_PYTHON")
        .expect("SLUICE_PYTHON is a Python with examples/python/requirements.txt: run ./test real");
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/python")
        .join(name);
    let printed = tempfile::NamedTempFile::new().unwrap();
    let child = Command::new(python)
        .arg(script)
        .args(arguments)
        .env("SLUICE_BASE_URL", gateway.base_url())
        .env("VLLM_MEDIUM_API_KEY", CLIENT_KEY)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .stdout(printed.reopen().unwrap())
        .spawn()
        .expect("python starts");
    assert_eq!(wait(child, LIMIT, name), Ok(true), "{name} fails\n{}", gateway.log());
    std::fs::read_to_string(printed.path()).unwrap()
}
