//! `examples/`: what is shown to people works as it stands. (The Python ones run before the real vLLM.)

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::harness::{Gateway, KEY, Request, Settings, within};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// Standard output of a script of `examples/curl` before that gateway.
async fn curl(gateway: &Gateway, script: &str, args: &[&str]) -> String {
    let models = gateway.ask(Request::new("GET", "/v1/models")).await.json();
    let mut command = Command::new(examples().join("curl").join(script));
    command
        .args(args)
        .env("SLUICE_BASE_URL", format!("http://{}/v1", gateway.listen))
        .env("VLLM_MEDIUM_API_KEY", KEY)
        .env("SLUICE_MODEL", models["data"][0]["id"].as_str().unwrap());
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = within(script, run).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}\n{text}\n{errors}", output.status);
    text
}

#[tokio::test]
async fn curl_streams_a_chat() {
    let gateway = Settings::simulated(1).start().await;
    let text = curl(&gateway, "chat_stream.sh", &["say \"hi\" \\ there\nnow"]).await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    for part in ["\"reasoning_content\":", "\"finish_reason\":\"stop\"", "\"usage\":{"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[tokio::test]
async fn curl_gets_a_tool_call() {
    let gateway = Settings::simulated(1).start().await;
    let text = curl(&gateway, "tools.sh", &[]).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{text}");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "get_weather");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert!(arguments["city"].is_string(), "{text}");
}

#[tokio::test]
async fn curl_counts_tokens_and_reads_them_back() {
    let gateway = Settings::simulated(1).start().await;
    let text = curl(&gateway, "tokenize.sh", &[]).await;
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let [tokens, prompt] = &lines[..] else {
        panic!("two lines: {text}")
    };
    let count = tokens["tokens"].as_array().unwrap().len();
    assert!(count > 0 && tokens["count"] == count, "{text}");
    assert!(
        prompt["prompt"].as_str().unwrap().contains("What is a sluice?"),
        "{text}"
    );
}

#[tokio::test]
async fn curl_cancels_a_running_stream() {
    let gateway = Settings::simulated(1).start().await;
    let text = curl(&gateway, "cancel.sh", &[]).await;
    assert!(text.contains("\"cancelled\":true"), "{text}");
    assert!(
        text.contains("\"code\":\"cancelled\"") && !text.contains("[DONE]"),
        "{text}"
    );
}

#[test]
fn the_configuration_of_the_compose_file_is_valid() {
    let file = examples().join("compose/sluice.toml");
    let config = sluice_gateway::config::Config::load(&file).unwrap_or_else(|error| panic!("{error}"));
    // The service's name in compose.yaml, and a port that the file publishes.
    let compose = std::fs::read_to_string(examples().join("compose/compose.yaml")).unwrap();
    assert_eq!(config.backend[0].replica.len(), 1);
    assert!(
        compose.contains("\n  vllm:\n") && compose.contains(&format!("127.0.0.1:5002:{}", config.server.listen.port()))
    );
    // vLLM is started as the champion profile says.
    let profile = config.profile("chunked_only_safe").unwrap();
    let args = sluice_policy::profile::argv(
        &profile,
        &sluice_policy::profile::Serving {
            host: "0.0.0.0",
            port: 8000,
            served_names: &[],
        },
    );
    for flag in args.iter().skip(6).filter(|argument| argument.starts_with("--")) {
        assert!(compose.contains(flag.as_str()), "compose.yaml lacks {flag}");
    }
}
