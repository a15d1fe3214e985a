//! Fifty streams at once through one gateway: more than the engine runs at a time, so some of them queue. Each client gets
//! its own answer, whole, and nobody else's.

use std::thread;

use serde_json::json;

use crate::engine::SetUp;
use crate::gateway::Gateway;
use crate::message::Message;
use crate::script::{Script, tools};

const STREAMS: usize = 50;

#[test]
fn fifty_streams_are_all_right_and_all_different() {
    let gateway = Gateway::before(SetUp::Raw);
    let gateway = &gateway;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..STREAMS)
            .map(|number| (number, scope.spawn(move || answer(gateway, number))))
            .collect();
        for (number, client) in clients {
            assert_eq!(client.join().expect("a client"), expected(number), "stream {number}");
        }
    });
    let rows = gateway.records_of("parallel-", STREAMS);
    assert!(
        rows.iter().all(|row| row["status"] == 200 && row["error"].is_null()),
        "each stream has a good record"
    );
}

/// What client `number` wants: every second one a tool call, all of them with text of their own.
fn expected(number: usize) -> Message {
    let reasoning = format!("Client {number} is thinking.");
    if number.is_multiple_of(2) {
        Message::expect(
            Some(&reasoning),
            Some(&format!("The answer for client {number}.")),
            &[],
            "stop",
        )
    } else {
        let arguments = format!("{{\"city\": \"City {number}\"}}");
        Message::expect(Some(&reasoning), None, &[("get_weather", &arguments)], "tool_calls")
    }
}

fn answer(gateway: &Gateway, number: usize) -> Message {
    let want = expected(number);
    let mut text = format!(
        "<think>\n{}\n</think>\n\n{}",
        want.reasoning.unwrap(),
        want.content.unwrap_or_default()
    );
    for (name, arguments) in want.calls {
        text += &format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>");
    }
    let body = Script::say(&text).chat(json!({"stream": true, "tools": tools()}));
    let events = gateway
        .stream(&format!("parallel-{number}"), &body)
        .events()
        .expect("the stream ends well");
    Message::of_events(&events).trimmed()
}
