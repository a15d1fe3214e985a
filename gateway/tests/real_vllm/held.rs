//! The only engine dies and Sluice starts it again (B31, B35): the stream that ran on it goes on, the request that came meanwhile is held, and
//! both clients see one answer.
//!
//! The random model's own words, greedy. Times are printed. By hand, since an engine starts twice: `./test real held --include-ignored`.

use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::{Map, Value, json};

use crate::engine::{engine_of, free_port};
use crate::gateway::Gateway;
use crate::launcher::{BASE, RealVllm, START};
use crate::message::{Message, payload};
use crate::script::{MODEL, Script};
use crate::wire::Answer;

/// Some seconds of the engine's time.
const TOKENS: u64 = 400;
/// Events that the client has seen when the engine dies.
const SEEN: usize = 20;

/// A gateway that launches its only vLLM.
fn gateway() -> Gateway {
    let vllm = RealVllm::find();
    let mut profile = vllm.changes(&["--logits-processors", "force_lp:ForceText"]);
    profile.insert("base".to_owned(), json!(BASE));
    let profile = Map::from_iter([("profile".to_owned(), json!({"cpu": profile}))]);
    let launch = vllm.shared.join("launch.py");
    let (python, shared) = (vllm.python.display(), vllm.shared.display());
    let replica = format!(
        "name = \"only\"\nlauncher = \"process\"\nport = {}\ncommand = [\"{python}\", \"{}\"]\nstop_grace = \"5s\"\n\
         env = {{ PYTHONPATH = \"{shared}\", FORCE_TOKENIZER = \"{}\" }}\n",
        free_port(),
        launch.display(),
        vllm.model.join("tokenizer.json").display(),
    );
    let sections = toml::to_string(&profile).unwrap();
    Gateway::launching(&replica, &sections, "cpu", START)
}

#[test]
#[ignore = "an engine starts twice: some minutes"]
fn a_stream_goes_on_and_a_request_is_held_over_a_restart_of_the_only_engine() {
    let gateway = gateway();
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": TOKENS,
        "temperature": 0, "stream": true, "stream_options": {"include_usage": true}});
    let undisturbed = gateway.stream("undisturbed", &body).events().unwrap();
    let mut running = gateway.stream("runs", &body);
    let mut events: Vec<String> = (0..SEEN)
        .map(|_| running.event().unwrap().expect("it goes on"))
        .collect();
    let server = gateway.launched("only");
    let engine = engine_of(server).expect("the engine has a process of its own");
    let killed = Instant::now();
    kill_process(engine, Signal::KILL).unwrap();

    let held = Script::say("<think>\nIt is back.\n</think>\n\nHeld, and answered.").chat(json!({"stream": true}));
    let headers = [("x-request-id", "held")];
    let held = gateway.post("/v1/chat/completions", &headers, &held).send().unwrap();
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    while let Some(event) = running.event().unwrap() {
        // Comments keep it alive meanwhile.
        if payload(&event).is_some() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        events.push(event);
    }
    let mut held = Answer::read(held).unwrap();
    assert_eq!(held.status, 200);
    let held = held.events().unwrap();
    let answered = killed.elapsed();
    assert!(
        held.last().is_some_and(|last| last.contains("[DONE]")),
        "{}",
        gateway.log()
    );
    let held = Message::of_events(&held).trimmed();

    assert_eq!(
        held.content.as_deref(),
        Some("Held, and answered."),
        "{}",
        gateway.log()
    );
    let (got, want) = (Message::of_events(&events), Message::of_events(&undisturbed));
    assert_eq!(got.finish, want.finish);
    assert_eq!(usage(&events), usage(&undisturbed));
    for id in ["runs", "held"] {
        let row = gateway.record(id);
        assert_eq!((&row["status"], &row["error"]), (&json!(200), &Value::Null), "{row}");
    }
    assert_eq!(gateway.record("runs")["continuations"], 1);
    assert_ne!(gateway.launched("only"), server, "another one serves in its place");
    eprintln!(
        "the engine killed: the stream was silent for {:.1} s, the held request's answer after {:.1} s; the text is {} the undisturbed one",
        longest.as_secs_f64(),
        answered.as_secs_f64(),
        if got == want { "equal to" } else { "another than" },
    );
}

fn usage(events: &[String]) -> Value {
    let chunks = events.iter().filter_map(|event| payload(event));
    let chunks = chunks.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let mut usage = chunks.map(|chunk| chunk["usage"].clone());
    let usage = usage.rfind(Value::is_object).expect("a usage");
    json!([usage["prompt_tokens"], usage["completion_tokens"]])
}
