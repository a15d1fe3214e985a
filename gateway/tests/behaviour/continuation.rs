//! B31, second half: a replica that is lost in the middle of an answer is followed by another one that goes on with it, and the
//! client sees one answer. What can't go on is asked anew or ends honestly (B10).

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine};
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::fmt::Write;

use super::harness::{
    self, Asked, Breaks, MODEL, Replica, Request, Settings, is_asked_first, record, two, two_with, until,
};

const PROMPT_TOKENS: u64 = 100;
const TEXT: &str = "<think>\nIs it so?\n</think>\n\nIt is <b>so</b>.";
const CALL: &str = "<think>\nI ask.\n</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}\n</tool_call>";

/// The request, the replica that was asked first, and the other one.
async fn first(a: Replica, b: Replica) -> (Asked, Replica, Replica) {
    let (mut lost, other) = if is_asked_first(&a, &b).await { (a, b) } else { (b, a) };
    (lost.next().await, lost, other)
}

fn body() -> Value {
    json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "How is it?"}],
        "stream_options": {"include_usage": true}, "temperature": 0.7, "seed": 5, "stop": ["END"], "cache_salt": "pepper",
        "max_tokens": 400, "min_tokens": 50})
}

fn with_tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    let mut body = body();
    body["tools"] = json!([{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]);
    body
}

fn chat(body: &Value) -> Request {
    Request::post("/v1/chat/completions", body).id("r")
}

/// How a stream is lost.
const ENDS: [Breaks; 7] = [
    Breaks::Reset,
    Breaks::EndOfFile,
    Breaks::CleanEnd,
    Breaks::Done,
    Breaks::ErrorThenDone,
    Breaks::Garbage,
    Breaks::HalfAnEvent,
];

fn chunk(index: u64, delta: Value, finish: Value) -> Value {
    harness::chunk(json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": finish}]))
}

async fn begins(asked: &mut Asked, choices: u64) {
    asked.stream().await;
    for index in 0..choices {
        asked
            .event(&chunk(index, json!({"role": "assistant", "content": ""}), Value::Null))
            .await;
    }
}

/// `text` of the choice, in pieces of three bytes.
async fn says(asked: &mut Asked, index: u64, text: &str) {
    for piece in text.as_bytes().chunks(3) {
        let piece = std::str::from_utf8(piece).unwrap();
        asked.event(&chunk(index, json!({"content": piece}), Value::Null)).await;
    }
}

/// The stand-in's tokens: each byte is one.
fn ids(text: &str) -> Vec<u64> {
    text.bytes().map(|byte| 1000 + u64::from(byte)).collect()
}

/// Answers what is asked of a replica until it is to go on; the text that it is to go on from, and the request.
async fn asked_to_go_on(replica: &mut Replica) -> (String, Asked) {
    loop {
        let asked = replica.next().await;
        let body = asked.json();
        if asked.line == "POST /v1/completions HTTP/1.1" {
            let prompt: Vec<u64> = serde_json::from_value(body["prompt"].clone()).unwrap();
            let (prompt, said) = prompt.split_at(PROMPT_TOKENS as usize);
            assert_eq!(prompt, (1..=PROMPT_TOKENS).collect::<Vec<_>>());
            let bytes: Vec<u8> = said.iter().map(|id| (id - 1000) as u8).collect();
            return (String::from_utf8(bytes).unwrap(), asked);
        }
        assert_eq!(asked.line, "POST /tokenize HTTP/1.1");
        let is_prompt = body["messages"].is_array() || body["prompt"] == "Once";
        let tokens = if is_prompt {
            (1..=PROMPT_TOKENS).collect()
        } else {
            assert_eq!(body["add_special_tokens"], false);
            ids(body["prompt"].as_str().unwrap())
        };
        let answer = json!({"count": tokens.len(), "max_model_len": 1000, "tokens": tokens, "token_strs": null});
        asked.answer("200 OK", &answer).await;
    }
}

/// Goes on with `rest`, to its end.
async fn tells(mut asked: Asked, so_far: &str, rest: &str) {
    let chunk = |choices: Value| json!({"id": "cmpl-9", "object": "text_completion", "created": 9, "model": MODEL, "choices": choices});
    let choice = |text: &str, finish: Value| {
        chunk(json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish, "stop_reason": null}]))
    };
    asked.stream().await;
    for piece in rest.as_bytes().chunks(4) {
        let piece = std::str::from_utf8(piece).unwrap();
        asked.event(&choice(piece, Value::Null)).await;
    }
    asked.event(&choice("", json!("stop"))).await;
    let mut last = chunk(json!([]));
    let prompt = PROMPT_TOKENS + so_far.len() as u64;
    last["usage"] =
        json!({"prompt_tokens": prompt, "total_tokens": prompt + rest.len() as u64, "completion_tokens": rest.len()});
    asked.event(&last).await;
    asked.done().await;
}

/// Goes on with what is missing of `text`.
async fn goes_on(replica: &mut Replica, text: &str) -> Value {
    let (so_far, asked) = asked_to_go_on(replica).await;
    let body = asked.json();
    let rest = text
        .strip_prefix(&*so_far)
        .unwrap_or_else(|| panic!("{so_far:?} isn't the start of {text:?}"));
    tells(asked, &so_far, rest).await;
    body
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Said {
    roles: u32,
    reasoning: String,
    content: String,
    calls: String,
    finish: String,
}

/// What the choices said, and the usage; one id, one role, nothing behind a finish.
fn read(chunks: &[Value], choices: usize) -> (Vec<Said>, Value) {
    let (mut said, mut usage) = (vec![Said::default(); choices], Value::Null);
    for chunk in chunks {
        assert_eq!((&chunk["id"], &chunk["model"]), (&chunks[0]["id"], &json!(MODEL)));
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        for choice in chunk["choices"].as_array().unwrap() {
            let said = &mut said[choice["index"].as_u64().unwrap() as usize];
            let delta = &choice["delta"];
            assert!(said.finish.is_empty(), "nothing follows the finish");
            said.roles += u32::from(delta["role"].is_string());
            said.reasoning += delta["reasoning"].as_str().unwrap_or_default();
            said.content += delta["content"].as_str().unwrap_or_default();
            said.content += choice["text"].as_str().unwrap_or_default();
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                let function = &call["function"];
                if let Some(name) = function["name"].as_str() {
                    write!(said.calls, "{name} ").unwrap();
                }
                said.calls += function["arguments"].as_str().unwrap();
            }
            said.finish += choice["finish_reason"].as_str().unwrap_or_default();
        }
    }
    (said, usage)
}

fn of_text() -> Said {
    Said {
        roles: 1,
        reasoning: "Is it so?\n".to_owned(),
        content: "It is <b>so</b>.".to_owned(),
        calls: String::new(),
        finish: "stop".to_owned(),
    }
}

fn of_call() -> Said {
    Said {
        reasoning: "I ask.\n".to_owned(),
        content: String::new(),
        calls: "get_weather {\"city\": \"Ulm\", \"days\": 3}".to_owned(),
        finish: "tool_calls".to_owned(),
        ..of_text()
    }
}

#[tokio::test]
async fn b31_every_end_in_the_middle_is_followed_by_another_replica_that_goes_on() {
    // In reasoning, in text, inside a call that is held, inside one that is shown.
    let places = [
        (TEXT, 12, "auto"),
        (TEXT, TEXT.len() - 6, "auto"),
        (CALL, 60, "hold"),
        (CALL, CALL.len() - 30, "certain"),
    ];
    let cases = ENDS.iter().enumerate().map(async |(number, &end)| {
        let (text, cut, release) = places[number % places.len()];
        for (text, cut, release) in [(text, cut, release), places[(number + 2) % places.len()]] {
            let how = format!("{end:?} behind {cut} bytes");
            let (gateway, a, b) = two().await;
            let sent = if text == CALL { with_tools() } else { body() };
            let mut client = gateway.open(chat(&sent).header("x-sluice-tools", release)).await;
            let (mut asked, _lost, mut other) = first(a, b).await;
            begins(&mut asked, 1).await;
            says(&mut asked, 0, &text[..cut]).await;
            let head = client.head().await;
            assert_eq!(head.header("x-sluice-attempts"), Some("1"));
            client.read_to("reasoning").await;
            let (_, resumed, rest) = tokio::join!(end.play(asked), goes_on(&mut other, text), client.rest(head));
            for (field, value) in [
                ("temperature", json!(0.7)),
                ("seed", json!(5)),
                ("stop", json!(["END"])),
                ("cache_salt", json!("pepper")),
                ("stream", json!(true)),
                ("stream_options", json!({"include_usage": true})),
                ("max_tokens", json!(400 - cut)),
                ("min_tokens", json!(50_usize.saturating_sub(cut))),
            ] {
                let got = &resumed[field];
                assert!(
                    *got == value || (got.is_null() && value == 0),
                    "{how}: {field} is {got}"
                );
            }
            // What was read before the loss is gone from `rest`: its last part must be all that follows.
            let text_of_rest = rest.text();
            assert!(text_of_rest.ends_with("data: [DONE]\n\n"), "{how}: {text_of_rest}");
            assert!(!text_of_rest.contains("\"error\""), "{how}: {text_of_rest}");
            let row = record(&gateway, "r").await;
            assert_eq!(
                (
                    &row["attempts"],
                    &row["continuations"],
                    &row["seam"],
                    &row["error"],
                    &row["status"]
                ),
                (&json!(2), &json!(1), &json!("text"), &json!(null), &json!(200)),
                "{how}: {row}"
            );
            assert_eq!(
                (&row["prompt_tokens"], &row["completion_tokens"]),
                (&json!(PROMPT_TOKENS), &json!(text.len())),
                "{how}: {row}"
            );
        }
    });
    join_all(cases).await;
}

#[tokio::test]
async fn b31_the_message_is_the_undisturbed_one_wherever_it_is_cut() {
    let (gateway, a, b) = two().await;
    let mut replicas = (a, b);
    for (text, want) in [(TEXT, of_text()), (CALL, of_call())] {
        for cut in (0..text.len()).step_by(7) {
            let sent = if text == CALL { with_tools() } else { body() };
            let mut client = gateway
                .open(Request::post("/v1/chat/completions", &sent).session(&format!("{cut}")))
                .await;
            let (mut asked, lost, mut other) = first(replicas.0, replicas.1).await;
            begins(&mut asked, 1).await;
            says(&mut asked, 0, &text[..cut]).await;
            // Nobody but the replica knows that it ends here; it answers again at once.
            asked.write(b"0\r\n\r\n").await;
            if cut == 0 {
                // Nothing was heard: the same request, sent again.
                let mut again = other.next().await;
                begins(&mut again, 1).await;
                says(&mut again, 0, text).await;
                again.event(&chunk(0, json!({"content": ""}), json!("stop"))).await;
                again.done().await;
            } else {
                goes_on(&mut other, text).await;
            }
            let (said, usage) = read(&client.message().await.chunks(), 1);
            assert_eq!(said, std::slice::from_ref(&want), "cut at {cut}");
            if cut > 0 {
                assert_eq!(
                    (&usage["prompt_tokens"], &usage["completion_tokens"]),
                    (&json!(PROMPT_TOKENS), &json!(text.len())),
                    "cut at {cut}"
                );
            }
            replicas = (lost, other);
        }
    }
}

#[tokio::test]
async fn b31_each_choice_goes_on_by_itself() {
    let (gateway, a, b) = two().await;
    let mut sent = body();
    sent["n"] = json!(3);
    let mut client = gateway.open(chat(&sent)).await;
    let (mut asked, _lost, mut other) = first(a, b).await;
    begins(&mut asked, 3).await;
    says(&mut asked, 0, "One is said").await;
    says(&mut asked, 1, "Two.").await;
    asked.event(&chunk(1, json!({"content": ""}), json!("stop"))).await;
    says(&mut asked, 2, "Thr").await;
    asked.close();
    goes_on(&mut other, "One is said here.").await;
    goes_on(&mut other, "Three.").await;
    let (said, usage) = read(&client.message().await.chunks(), 3);
    let contents: Vec<_> = said
        .iter()
        .map(|said| (&*said.content, said.roles, &*said.finish))
        .collect();
    assert_eq!(
        contents,
        [
            ("One is said here.", 1, "stop"),
            ("Two.", 1, "stop"),
            ("Three.", 1, "stop")
        ]
    );
    assert_eq!(usage["prompt_tokens"], PROMPT_TOKENS, "the prompt counts once");
    assert_eq!(
        usage["completion_tokens"],
        17 + 2 + 6,
        "chunks where the engine never said it"
    );
    let row = record(&gateway, "r").await;
    assert_eq!(
        (&row["continuations"], &row["tokens_estimated"], &row["error"]),
        (&json!(2), &json!(true), &json!(null)),
        "{row}"
    );
}

#[tokio::test]
async fn b31_completions_go_on_too() {
    for prompt in [json!("Once"), json!((1..=PROMPT_TOKENS).collect::<Vec<_>>())] {
        let (gateway, a, b) = two().await;
        let sent = json!({"model": MODEL, "stream": true, "prompt": prompt, "max_tokens": 100});
        let mut client = gateway.open(Request::post("/v1/completions", &sent).id("r")).await;
        let (mut asked, _lost, mut other) = first(a, b).await;
        asked.stream().await;
        let text = "<think> upon a time.";
        for piece in ["<think> ", "upon "] {
            asked
                .event(
                    &json!({"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL,
                    "choices": [{"index": 0, "text": piece, "logprobs": null, "finish_reason": null}]}),
                )
                .await;
        }
        asked.close();
        let resumed = goes_on(&mut other, text).await;
        assert_eq!(resumed["max_tokens"], 100 - "<think> upon ".len());
        let chunks = client.message().await.chunks();
        assert!(
            chunks.iter().all(|chunk| chunk["object"] == "text_completion"),
            "{chunks:?}"
        );
        let (said, _) = read(&chunks, 1);
        assert_eq!((&*said[0].content, &*said[0].finish), (text, "stop"));
        assert_eq!(record(&gateway, "r").await["continuations"], 1);
    }
}

#[tokio::test]
async fn b31_a_stop_word_across_the_seam_ends_the_answer() {
    let (gateway, a, b) = two().await;
    let mut client = gateway.open(chat(&body())).await;
    let (mut asked, _lost, mut other) = first(a, b).await;
    begins(&mut asked, 1).await;
    says(&mut asked, 0, "All said. EN").await;
    asked.close();
    let (so_far, asked) = asked_to_go_on(&mut other).await;
    tells(asked, &so_far, "D of it, and more").await;
    let (said, _) = read(&client.message().await.chunks(), 1);
    assert_eq!((&*said[0].content, &*said[0].finish), ("All said. EN", "stop"));
}

#[tokio::test]
async fn b31_what_can_not_go_on_is_asked_anew_or_ends_honestly() {
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]);
    let cases = [
        ("logprobs", json!(true)),
        ("response_format", json!({"type": "json_object"})),
        ("messages", image),
    ]
    .map(async |(field, value)| {
        let mut sent = body();
        sent[field] = value;
        for shown in [false, true] {
            let (gateway, a, b) = two().await;
            let mut client = gateway.open(chat(&sent)).await;
            let (mut asked, _lost, mut other) = first(a, b).await;
            let first_body = asked.body.clone();
            begins(&mut asked, 1).await;
            // A tag is held.
            says(&mut asked, 0, if shown { "Hi" } else { "<think>" }).await;
            asked.close();
            if !shown {
                let mut again = other.next().await;
                assert_eq!(again.body, first_body, "{field}: another body");
                begins(&mut again, 1).await;
                says(&mut again, 0, TEXT).await;
                again.event(&chunk(0, json!({"content": ""}), json!("stop"))).await;
                again.done().await;
                let (said, _) = read(&client.message().await.chunks(), 1);
                assert_eq!(said, [of_text()], "{field}");
                assert_eq!(record(&gateway, "r").await["attempts"], 2, "{field}");
                continue;
            }
            let text = client.message().await.text();
            assert!(
                text.contains("\"code\":\"not_continuable\"") && !text.contains("[DONE]"),
                "{field}: {text}"
            );
            assert!(other.is_unasked(), "{field}");
            let row = record(&gateway, "r").await;
            assert_eq!(
                (&row["error"], &row["continuations"]),
                (&json!("not_continuable"), &json!(0)),
                "{row}"
            );
            let metrics = gateway.metrics().await;
            let line = metrics
                .lines()
                .find(|line| line.starts_with("sluice_continuations_total"));
            let line = line.unwrap_or_else(|| panic!("not counted:\n{metrics}"));
            assert!(
                line.contains("outcome=\"not_continuable\"") && line.ends_with(" 1"),
                "{line}"
            );
        }
    });
    join_all(cases).await;
}

#[tokio::test]
async fn b31_a_request_at_two_engine_deaths_is_poison() {
    for stream in [true, false] {
        let (a, b, c) = (Replica::start().await, Replica::start().await, Replica::start().await);
        let gateway = Settings::before(&[&a, &b, &c]).start().await;
        let mut replicas = [a, b, c];
        let mut sent = body();
        if !stream {
            sent = json!({"model": MODEL, "messages": sent["messages"]});
        }
        let mut client = gateway.open(chat(&sent)).await;
        for death in 0..2 {
            let index = until("one is asked", async || {
                replicas.iter().position(|replica| !replica.is_unasked())
            })
            .await;
            if stream && death == 1 {
                let (_, mut asked) = asked_to_go_on(&mut replicas[index]).await;
                asked.stream().await;
                asked.close();
                continue;
            }
            let mut asked = replicas[index].next().await;
            if stream {
                begins(&mut asked, 1).await;
                says(&mut asked, 0, "Hi").await;
            }
            asked.close();
        }
        let answer = client.message().await;
        let text = answer.text();
        assert!(
            text.contains("\"code\":\"poison\"") && !text.contains("[DONE]"),
            "{text}"
        );
        assert_eq!(answer.status(), if stream { 200 } else { 500 });
        assert_eq!(answer.header("x-should-retry"), (!stream).then_some("false"));
        assert!(replicas.iter().all(Replica::is_unasked), "the third must not be asked");
        assert_eq!(record(&gateway, "r").await["error"], "poison");
        let metrics = gateway.metrics().await;
        assert!(metrics.contains("outcome=\"poison\""), "{metrics}");
    }
}

#[tokio::test]
async fn b31_connections_that_break_while_the_server_runs_on_are_no_deaths() {
    let gateway = Settings::simulated(2).set("health", "probe = \"100ms\"").start().await;
    let mut sent = json!({"model": format!("{MODEL}-simulated"), "messages": [{"role": "user", "content": "[[sim fault=reset_before]] Go."}]});
    for stream in [true, false] {
        sent["stream"] = json!(stream);
        // Until each server has said once when it started.
        until("the broken connections are told as such", async || {
            let answer = gateway.ask(Request::post("/v1/chat/completions", &sent)).await;
            match answer.code().as_str() {
                "upstream_broke" => Some(()),
                code => {
                    assert_eq!(code, "poison", "{}", answer.text());
                    None
                }
            }
        })
        .await;
    }
}

#[tokio::test]
async fn b31_a_replica_lost_while_it_tokenizes_is_no_death_of_the_request() {
    let mut replicas = vec![Replica::start().await, Replica::start().await, Replica::start().await];
    let gateway = Settings::before(&replicas.iter().collect::<Vec<_>>()).start().await;
    let mut client = gateway.open(chat(&body())).await;
    for says_something in [true, false] {
        let position = async || replicas.iter().position(|replica| !replica.is_unasked());
        let mut replica = replicas.remove(until("one is asked", position).await);
        let mut asked = replica.next().await;
        if says_something {
            begins(&mut asked, 1).await;
            says(&mut asked, 0, &TEXT[..20]).await;
        } else {
            assert_eq!(asked.line, "POST /tokenize HTTP/1.1");
            asked
                .write(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"count\":")
                .await;
        }
        asked.close();
    }
    let (_, answer) = tokio::join!(goes_on(&mut replicas[0], TEXT), client.message());
    let (said, _) = read(&answer.chunks(), 1);
    assert_eq!(said, [of_text()]);
}

#[tokio::test]
async fn b31_the_only_replica_goes_on_after_its_restart() {
    let mut replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("server", "keep_alive = \"50ms\"")
        .start()
        .await;
    let mut client = gateway.open(chat(&body())).await;
    let mut asked = replica.next().await;
    begins(&mut asked, 1).await;
    says(&mut asked, 0, &TEXT[..20]).await;
    let address = replica.url().trim_start_matches("http://").parse().unwrap();
    replica.stop().await;
    asked.close();
    let head = client.head().await;
    // It waits, and says that it lives.
    let mut seen = String::new();
    while !seen.contains(": ") {
        seen += &String::from_utf8(client.piece().await.unwrap().unwrap()).unwrap();
    }
    let mut replica = Replica::at(address).await;
    let (_, rest) = tokio::join!(goes_on(&mut replica, TEXT), client.rest(head));
    assert!(rest.text().ends_with("data: [DONE]\n\n"), "{}", rest.text());
    let row = record(&gateway, "r").await;
    assert_eq!(
        (&row["continuations"], &row["error"], &row["completion_tokens"]),
        (&json!(1), &json!(null), &json!(TEXT.len())),
        "{row}"
    );
}

#[tokio::test]
async fn b31_b10_if_nobody_comes_within_hold_the_client_is_told_and_may_leave_before() {
    let (gateway, a, b) = two_with(|settings| settings.set("hold", "time = \"400ms\"")).await;
    let mut client = gateway.open(chat(&body())).await;
    let (mut asked, mut lost, mut other) = first(a, b).await;
    begins(&mut asked, 1).await;
    says(&mut asked, 0, "Hi there").await;
    lost.stop().await;
    other.stop().await;
    asked.close();
    let text = client.message().await.text();
    assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
    let row = record(&gateway, "r").await;
    assert!(row["error"].is_string() && row["cancelled"] == false, "{row}");

    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    let mut client = gateway.open(chat(&body())).await;
    let mut asked = replica.next().await;
    begins(&mut asked, 1).await;
    says(&mut asked, 0, "Hi there").await;
    client.head().await;
    client.read_to("Hi").await;
    replica.stop().await;
    asked.close();
    drop(client);
    let row = record(&gateway, "r").await;
    assert_eq!(
        (&row["cancelled"], &row["error"]),
        (&json!(true), &json!(null)),
        "{row}"
    );
}

#[tokio::test]
async fn b31_a_stalled_replica_is_left_and_the_answer_goes_on() {
    let (gateway, a, b) = two_with(|settings| settings.set("upstream", "stall = \"300ms\"")).await;
    let mut client = gateway.open(chat(&body())).await;
    let (mut asked, _lost, mut other) = first(a, b).await;
    begins(&mut asked, 1).await;
    says(&mut asked, 0, &TEXT[..TEXT.len() - 9]).await;
    let (_, _, answer) = tokio::join!(asked.gone(), goes_on(&mut other, TEXT), client.message());
    let (said, _) = read(&answer.chunks(), 1);
    assert_eq!(said, [of_text()]);
}

#[tokio::test]
async fn b31_one_answer_goes_on_so_often_and_no_more() {
    let (gateway, a, b) = two_with(|s| s.set("upstream", "stall = \"200ms\"").set("continuation", "count = 2")).await;
    let mut client = gateway.open(chat(&body())).await;
    let (mut asked, mut lost, mut other) = first(a, b).await;
    begins(&mut asked, 1).await;
    says(&mut asked, 0, "Hi").await;
    asked.gone().await;
    for _ in 0..2 {
        let (so_far, mut asked) = asked_to_go_on(&mut other).await;
        assert_eq!(so_far, "Hi");
        asked.stream().await;
        asked
            .event(&json!({"id": "c", "choices": [{"index": 0, "text": "", "finish_reason": null}]}))
            .await;
        asked.piece(b"data: nonsense\n\n").await;
        asked.gone().await;
        std::mem::swap(&mut lost, &mut other);
    }
    let text = client.message().await.text();
    assert!(
        text.contains("\"code\":\"upstream_garbled\"") && !text.contains("[DONE]"),
        "{text}"
    );
    assert_eq!(record(&gateway, "r").await["continuations"], 2);
}

/// The whole way with simulated replicas: the answer breaks where the marker says, and the other one goes on with its text.
#[tokio::test]
async fn b31_simulated_replicas_lose_and_go_on() {
    let gateway = Settings::simulated(2).start().await;
    let text = format!(
        "<think>\n{}\n</think>\n\n{}",
        "Why? ".repeat(20),
        "So it is. ".repeat(20)
    );
    let script = BASE64_STANDARD_NO_PAD.encode(&text);
    for fault in ["reset_mid:7", "close_mid:40", "error_event:90", "close_mid:1"] {
        let id = fault.replace(':', "-");
        let content = format!("Say it. [[sim text={script} fault={fault}]]");
        let sent = json!({"model": MODEL, "stream": true, "max_tokens": 4000,
            "stream_options": {"include_usage": true}, "messages": [{"role": "user", "content": content}]});
        let mut client = gateway.open(Request::post("/v1/chat/completions", &sent).id(&id)).await;
        let chunks = client.message().await.chunks();
        let of = |field: &str| -> String {
            let deltas = chunks
                .iter()
                .filter_map(|chunk| chunk["choices"][0]["delta"][field].as_str());
            deltas.collect()
        };
        assert_eq!(of("reasoning").trim(), "Why? ".repeat(20).trim(), "{fault}");
        assert_eq!(of("content"), "So it is. ".repeat(20), "{fault}");
        let row = record(&gateway, &id).await;
        assert_eq!(
            (&row["continuations"], &row["attempts"], &row["error"], &row["finish"]),
            (&json!(1), &json!(2), &json!(null), &json!("stop")),
            "{fault}: {row}"
        );
    }
}
