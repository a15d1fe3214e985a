//! B25: tools whose calls can't be checked.

use serde_json::{Value, json};

use super::harness::{MODEL, Replica, Request, Settings, completion, record};

/// One tool with a schema that is none.
fn request(strict: bool) -> Request {
    let function = json!({"name": "look_up", "strict": strict, "parameters": {"properties": {"a": {"type": "dict"}}}});
    let body = json!({
        "model": MODEL, "messages": [{"role": "user", "content": "Look it up."}],
        "tools": [{"type": "function", "function": function}],
    });
    Request::post("/v1/chat/completions", &body).id("r")
}

#[tokio::test]
async fn b25_a_schema_that_cannot_be_compiled_is_refused_where_it_must_be() {
    for (strict, bad_schema) in [(true, "pass"), (false, "refuse")] {
        let replica = Replica::start().await;
        let gateway = Settings::before(&[&replica])
            .set("tools", &format!("bad_schema = {bad_schema:?}"))
            .start()
            .await;
        let answer = gateway.ask(request(strict)).await;
        assert_eq!(answer.status(), 400, "{bad_schema}");
        for part in ["look_up", "/properties/a/type"] {
            assert!(answer.error().contains(part), "{part} in {}", answer.error());
        }
        assert_eq!(record(&gateway, "r").await["status"], 400);
        assert!(replica.is_unasked());
    }
}

#[tokio::test]
async fn b25_else_its_calls_pass_and_the_record_says_that_nobody_checked() {
    let mut replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let text = "<tool_call>\n{\"name\": \"look_up\", \"arguments\": {\"a\": {}}}\n</tool_call>";
    let (answer, ()) = tokio::join!(gateway.ask(request(false)), async {
        replica
            .next()
            .await
            .answer("200 OK", &completion(text, "stop", 10))
            .await;
    });
    let message: Value = answer.json();
    let call = &message["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(
        call,
        &json!({"name": "look_up", "arguments": "{\"a\": {}}"}),
        "{message}"
    );
    assert_eq!(
        record(&gateway, "r").await["verdicts"],
        json!([{"tool": "look_up", "verdict": "passed_unchecked", "kinds": []}])
    );
}
