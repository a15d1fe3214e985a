//! What the simulator answers.
use std::time::Duration;

use serde_json::{Value, json};
use sluice_gateway::simulator::{CallKind, SimConfig};

use crate::client::{Answer, CHAT, MODEL, chat, exchange, get, instant, post, post_with, request, start};

#[tokio::test]
async fn a_chat_stream_says_that_it_is_simulated() {
    let (simulator, address) = start(instant()).await;
    let answer = post(address, CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.is_complete, "{answer:?}");
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    let content = answer.content(0);
    let (thinking, text) = content.split_once("</think>").unwrap();
    assert!(
        thinking.starts_with("<think>\n[simulated]") && text.starts_with("\n\n[simulated]"),
        "{content}"
    );
    assert!(answer.events().iter().all(|event| event["model"] == MODEL));
    assert_eq!(
        (
            simulator.stats().requests,
            simulator.stats().present,
            simulator.stats().aborted
        ),
        (1, 0, 0)
    );
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "send_mail", "description": "Send a mail to somebody", "parameters": {
            "type": "object", "properties": {"to": {"type": "string", "format": "email"}}, "required": ["to"]}}},
        {"type": "function", "function": {"name": "get_weather", "description": "Current weather of a city", "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
            "required": ["city", "unit"]}}},
    ])
}

/// Content of a whole chat answer.
fn content(answer: &Answer) -> String {
    answer.json()["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn tools_are_called_and_their_results_counted() {
    let (_simulator, address) = start(instant()).await;
    let body = chat(json!({"tools": tools(), "tool_choice": "none"}));
    let said = content(&post(address, CHAT, &body).await);
    let (thinking, call) = said.split_once("</think>\n\n").unwrap();
    assert!(thinking.starts_with("<think>\n[simulated]"));
    let call = call
        .strip_prefix("<tool_call>\n")
        .unwrap()
        .strip_suffix("\n</tool_call>")
        .unwrap();
    let call: Value = serde_json::from_str(call).unwrap();
    assert_eq!(call["name"], "get_weather", "the tool that the question speaks of");
    assert!(["celsius", "fahrenheit"].contains(&call["arguments"]["unit"].as_str().unwrap()));
    let call = json!({"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}});
    let messages = json!([
        {"role": "user", "content": "Weather in Paris and Oslo?"},
        {"role": "assistant", "content": null, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "c1", "content": "18"},
        {"role": "tool", "tool_call_id": "c2", "content": "3"},
    ]);
    let body = chat(json!({"tools": tools(), "tool_choice": "none", "messages": messages}));
    let said = content(&post(address, CHAT, &body).await);
    assert!(said.contains("</think>\n\n[simulated] I saw 2 tool results."), "{said}");
    assert!(!said.contains("<tool_call>"));
}

#[tokio::test]
async fn without_thinking_there_is_none_and_without_tools_no_call() {
    let (_simulator, address) = start(instant()).await;
    let body = chat(json!({"chat_template_kwargs": {"enable_thinking": false}}));
    let said = content(&post(address, CHAT, &body).await);
    assert!(said.starts_with("[simulated]") && !said.contains('<'), "{said}");
}

#[tokio::test]
async fn every_kind_of_call_is_on_demand() {
    let (_simulator, address) = start(instant()).await;
    for (_, name, _) in CallKind::ALL {
        let body = chat(json!({"tools": tools(), "tool_choice": "none", "sluice_sim": {"call": name}}));
        let answer = post(address, CHAT, &body).await;
        assert_eq!(answer.status(), 200, "{name}");
        assert!(content(&answer).starts_with("<think>\n[simulated]"), "{name}");
    }
    let body = chat(json!({"tools": tools(), "tool_choice": "none", "sluice_sim": {"call": "in_think"}}));
    let said = content(&post(address, CHAT, &body).await);
    let (thinking, text) = said.split_once("</think>").unwrap();
    assert!(
        thinking.contains("<tool_call>") && text.starts_with("\n\n[simulated]"),
        "{said}"
    );
}

#[tokio::test]
async fn the_same_request_and_seed_give_the_same_answer() {
    let body = chat(json!({"n": 2}));
    let choices = |answer: Answer| answer.json()["choices"].clone();
    let (_one, first) = start(instant()).await;
    let (_two, second) = start(instant()).await;
    let (_other, third) = start(SimConfig { seed: 9, ..instant() }).await;
    let answer = choices(post(first, CHAT, &body).await);
    assert_eq!(answer, choices(post(first, CHAT, &body).await));
    assert_eq!(answer, choices(post(second, CHAT, &body).await), "two replicas agree");
    assert_ne!(answer, choices(post(third, CHAT, &body).await));
    assert_ne!(answer[0]["message"], answer[1]["message"], "choices differ");
}

#[tokio::test]
async fn an_answer_has_one_id_which_a_request_id_names() {
    let (_simulator, address) = start(instant()).await;
    let named = post_with(
        address,
        CHAT,
        "x-request-id: my-id-123\r\n",
        &chat(json!({"stream": true})),
    )
    .await;
    assert!(named.events().iter().all(|event| event["id"] == "chatcmpl-my-id-123"));
    let own = post(address, CHAT, &chat(json!({"stream": true}))).await.events();
    let other = post(address, CHAT, &chat(json!({}))).await.json();
    assert!(
        own.iter()
            .all(|event| event["id"] == own[0]["id"] && event["created"] == own[0]["created"])
    );
    assert_ne!(own[0]["id"], other["id"]);
}

#[tokio::test]
async fn stream_and_whole_say_the_same() {
    let (_simulator, address) = start(instant()).await;
    for more in [
        json!({}),
        json!({"n": 3}),
        json!({"stop": ["model"]}),
        json!({"max_tokens": 20}),
        json!({"tools": tools(), "tool_choice": "none"}),
    ] {
        let whole = post(address, CHAT, &chat(more.clone())).await.json();
        let mut streamed = more.clone();
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let stream = post(address, CHAT, &chat(streamed)).await;
        for choice in whole["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap();
            assert_eq!(choice["message"]["content"], stream.content(index), "{more}");
            let finish = stream
                .events()
                .into_iter()
                .flat_map(|event| event["choices"].as_array().cloned().unwrap());
            let finish: Vec<Value> = finish
                .filter(|c| c["index"] == index && !c["finish_reason"].is_null())
                .collect();
            assert_eq!(
                (finish.len(), &finish[0]["finish_reason"]),
                (1, &choice["finish_reason"]),
                "{more}"
            );
        }
        let usage = stream.events().pop().unwrap()["usage"].clone();
        for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage[field], whole["usage"][field], "{more}");
        }
    }
}

#[tokio::test]
async fn max_tokens_stop_and_exact_lengths_are_kept() {
    let (_simulator, address) = start(instant()).await;
    let cut = post(address, CHAT, &chat(json!({"max_tokens": 5}))).await.json();
    assert_eq!(
        (&cut["usage"]["completion_tokens"], &cut["choices"][0]["finish_reason"]),
        (&json!(5), &json!("length"))
    );
    let stopped = post(address, CHAT, &chat(json!({"stop": "</think>"}))).await.json();
    let choice = &stopped["choices"][0];
    assert_eq!(
        (&choice["finish_reason"], &choice["stop_reason"]),
        (&json!("stop"), &json!("</think>"))
    );
    assert!(!choice["message"]["content"].as_str().unwrap().contains("</think>"));
    for tokens in [1, 2, 7, 50, 3_000] {
        let exact = post(address, CHAT, &chat(json!({"sluice_sim": {"tokens": tokens}})))
            .await
            .json();
        assert_eq!(exact["usage"]["completion_tokens"], tokens);
        assert_eq!(exact["choices"][0]["finish_reason"], "stop");
    }
    let forced = post(address, CHAT, &chat(json!({"ignore_eos": true, "max_tokens": 400})))
        .await
        .json();
    assert_eq!(
        (
            &forced["usage"]["completion_tokens"],
            &forced["choices"][0]["finish_reason"]
        ),
        (&json!(400), &json!("length"))
    );
    let share = chat(json!({"sluice_sim": {"tokens": 1_000, "reasoning-share": 0.7}}));
    let said = content(&post(address, CHAT, &share).await);
    let (thinking, text) = said.split_once("</think>").unwrap();
    let part = thinking.len() as f64 / (thinking.len() + text.len()) as f64;
    assert!((0.6..0.8).contains(&part), "{part}");
}

#[tokio::test]
async fn usage_knows_the_cached_prefix_and_a_cache_salt_hides_it() {
    let (simulator, address) = start(instant()).await;
    let long = json!([{"role": "user", "content": "word ".repeat(500)}]);
    let cached = async |more: Value| {
        let mut body = chat(json!({"messages": long}));
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let usage = post(address, CHAT, &body).await.json()["usage"].clone();
        (
            usage["prompt_tokens"].as_u64().unwrap(),
            usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap(),
        )
    };
    let (prompt, cold) = cached(json!({})).await;
    let (_, warm) = cached(json!({})).await;
    assert_eq!((cold, warm), (0, (prompt - 1) / 16 * 16));
    assert_eq!(cached(json!({"cache_salt": "other"})).await.1, 0);
    simulator.forget_prefixes();
    assert_eq!(cached(json!({})).await.1, 0);
    let page = get(address, "/metrics").await.text();
    let value = |name: &str| {
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("vllm:{name}{{")))
            .unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    assert_eq!(value("prefix_cache_queries_total"), 4.0 * prompt as f64);
    assert_eq!(value("prefix_cache_hits_total"), warm as f64);
    assert!(value("iteration_tokens_total_count") > 0.0);
    assert!(page.contains("block_size=\"16\"") && page.contains("num_gpu_blocks=\"23000\""));
}

#[tokio::test]
async fn tokenize_counts_what_chat_counts_and_detokenize_inverts_it() {
    let (_simulator, address) = start(instant()).await;
    let mut body = chat(json!({"tools": tools(), "tool_choice": "none", "max_tokens": 1}));
    let counted = post(address, CHAT, &body).await.json()["usage"]["prompt_tokens"].clone();
    body.as_object_mut().unwrap().remove("tool_choice");
    let tokens = post(address, "/tokenize", &body).await.json();
    assert_eq!(tokens["count"], counted);
    let text = post(
        address,
        "/detokenize",
        &json!({"model": MODEL, "tokens": tokens["tokens"]}),
    )
    .await
    .json();
    assert!(text["prompt"].as_str().unwrap().ends_with("<|im_start|>assistant\n"));
    let again = post(address, "/tokenize", &json!({"model": MODEL, "prompt": text["prompt"]}))
        .await
        .json();
    assert_eq!(again["tokens"], tokens["tokens"]);
    let by_ids = json!({"model": MODEL, "prompt": tokens["tokens"], "max_tokens": 1});
    assert_eq!(
        post(address, "/v1/completions", &by_ids).await.json()["usage"]["prompt_tokens"],
        counted
    );
}

#[tokio::test]
async fn completions_answer_and_go_on_without_a_second_mark() {
    let (_simulator, address) = start(instant()).await;
    let said = async |prompt: &str| {
        let body = json!({"model": MODEL, "prompt": prompt, "max_tokens": 30});
        post(address, "/v1/completions", &body).await.json()["choices"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(said("Once upon").await.starts_with("[simulated]"));
    let begun = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n[simulated] The user";
    assert!(said(begun).await.starts_with("\n</think>\n\n[simulated]"));
    assert!(
        !said(&format!("{begun}\n</think>\n\n[simulated] This"))
            .await
            .contains("[simulated]")
    );
}

#[tokio::test]
async fn structured_outputs_fit_their_schema() {
    let (_simulator, address) = start(instant()).await;
    let schema = json!({"type": "object", "properties": {"answer": {"enum": ["yes", "no"]}}, "required": ["answer"]});
    let forms = [
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}),
        json!({"structured_outputs": {"json": schema}}),
        json!({"structured_outputs": {"json": schema.to_string()}}),
    ];
    for form in forms {
        let said: Value = serde_json::from_str(&content(&post(address, CHAT, &chat(form)).await)).unwrap();
        assert!(said["answer"] == "yes" || said["answer"] == "no");
    }
    let choice = post(
        address,
        CHAT,
        &chat(json!({"structured_outputs": {"choice": ["alpha", "beta"]}})),
    )
    .await;
    assert_eq!(content(&choice), "alpha");
    assert_eq!(
        post(address, CHAT, &chat(json!({"structured_outputs": {"regex": "a+"}})))
            .await
            .status(),
        400
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_paced_streams_end_without_an_error() {
    const STREAMS: usize = 2_000;
    const TOKENS: u32 = 16;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let (simulator, address) = start(SimConfig {
        max_num_seqs: 2_000,
        ..SimConfig::default()
    })
    .await;
    // The first token waits until the slowest machine has connected all of them.
    let sim = json!({"tokens": TOKENS, "ttft-ms": 10_000, "itl-ms": 100});
    let body = chat(json!({"stream": true, "sluice_sim": sim})).to_string();
    let raw = request(
        "POST",
        CHAT,
        "content-type: application/json\r\nconnection: close\r\n",
        &body,
    );
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..STREAMS {
        let raw = raw.clone();
        clients.spawn(async move { exchange(address, &raw, Duration::from_secs(90)).await });
    }
    let mut most_running = 0;
    while let Some(answer) = clients.join_next().await {
        let answer = answer.unwrap();
        most_running = most_running.max(simulator.stats().running);
        assert!(answer.is_complete && answer.status() == 200, "{answer:?}");
        assert_eq!(answer.chunks.len(), 1 + TOKENS as usize + 1, "role, tokens, [DONE]");
    }
    let stats = simulator.stats();
    assert_eq!((stats.requests, stats.present, stats.aborted), (2_000, 0, 0));
    assert!(most_running > 1_000, "they ran at once: {most_running}");
}
