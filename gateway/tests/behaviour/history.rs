//! B30: past turns are made safe before they are sent.

use serde_json::{Value, json};

use super::harness::{Asked, Gateway, MODEL, Replica, Request, Settings, completion, record};

const SYSTEM: &str = "System message must be at the beginning.";

fn request(messages: &str) -> Request {
    let tools = r#"[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]"#;
    let body = format!(r#"{{"model":{:?},"messages":{messages},"tools":{tools}}}"#, MODEL);
    Request::raw("/v1/chat/completions", body)
}

/// A call and its result, both with what vLLM doesn't take.
fn turns(arguments: &str, result_id: &str) -> String {
    format!(
        r#"[{{"role":"user","content":"hi"}},  {{"role":"assistant","tool_calls":[{{"id":"c1","type":"function","function":{{"name":"weather","arguments":{arguments}}}}}]}},{{"role":"tool","content":"rain"{result_id}}}]"#
    )
}

/// The messages as they are sent, to the byte.
fn messages(asked: &Asked) -> String {
    let body = String::from_utf8(asked.body.clone()).unwrap();
    let from = body.find("\"messages\":").unwrap() + "\"messages\":".len();
    let to = body.find(",\"tools\":").unwrap();
    body[from..to].to_owned()
}

async fn before(settings: impl FnOnce(Settings) -> Settings) -> (Gateway, Replica) {
    let replica = Replica::start().await;
    let gateway = settings(Settings::before(&[&replica])).start().await;
    (gateway, replica)
}

fn refusal(message: &str) -> Value {
    json!({"error": {"message": message, "type": "BadRequestError", "param": null, "code": 400}})
}

#[tokio::test]
async fn b30_past_arguments_and_ids_are_made_safe_in_place() {
    let (gateway, mut replica) = before(|settings| settings).await;
    let broken = turns(r#""{'city': 'Paris'}""#, "");
    let (answer, ()) = tokio::join!(gateway.ask(request(&broken).id("r")), async {
        let asked = replica.next().await;
        let wanted = turns(r#""{\"city\": \"Paris\"}""#, r#","tool_call_id":"c1""#);
        assert_eq!(messages(&asked), wanted);
        asked.answer("200 OK", &completion("It rains.", "stop", 10)).await;
    });
    assert_eq!(answer.status(), 200);
    assert_eq!(record(&gateway, "r").await["history_changes"], 2);
    let metrics = gateway.metrics().await;
    for kind in ["arguments_repaired", "result_matched"] {
        let counted = metrics.lines().any(|line| {
            line.starts_with("sluice_history_changes_total{")
                && line.contains(&format!("kind=\"{kind}\""))
                && line.ends_with(" 1")
        });
        assert!(counted, "{kind} in {metrics}");
    }
}

#[tokio::test]
async fn b30_what_is_fine_or_not_to_be_changed_is_sent_as_it_came() {
    let fine = turns(r#""{\"city\":\"Paris\"}""#, r#","tool_call_id":"c1""#);
    let broken = turns("null", "");
    for (mode, history) in [("on-refusal", fine), ("off", broken)] {
        let (gateway, mut replica) =
            before(|settings| settings.set("history", &format!("normalise = \"{mode}\""))).await;
        let (_, ()) = tokio::join!(gateway.ask(request(&history).id("r")), async {
            let asked = replica.next().await;
            assert_eq!(messages(&asked), history, "{mode}");
            asked.answer("200 OK", &completion("x", "stop", 10)).await;
        });
        assert_eq!(record(&gateway, "r").await["history_changes"], 0, "{mode}");
    }
}

#[tokio::test]
async fn b30_what_a_template_refuses_is_changed_once_it_did() {
    let (gateway, mut replica) = before(|settings| settings).await;
    let came = r#"[{"role":"user","content":"a"},{"role":"system","content":"b"},{"role":"user","content":"c"}]"#;
    let changed = came.replace("system", "user");
    let (answer, ()) = tokio::join!(gateway.ask(request(came).id("r")), async {
        let asked = replica.next().await;
        assert_eq!(messages(&asked), came, "nobody has refused it yet");
        asked.answer("400 Bad Request", &refusal(SYSTEM)).await;
        let asked = replica.next().await;
        assert_eq!(messages(&asked), changed);
        asked.answer("200 OK", &completion("x", "stop", 10)).await;
    });
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let row = record(&gateway, "r").await;
    assert_eq!((&row["history_changes"], &row["attempts"]), (&json!(1), &json!(1)));
    // Learned: the next request has it from the start.
    let (answer, ()) = tokio::join!(gateway.ask(request(came).id("s")), async {
        let asked = replica.next().await;
        assert_eq!(messages(&asked), changed);
        asked.answer("200 OK", &completion("x", "stop", 10)).await;
    });
    assert_eq!(answer.status(), 200);
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn b30_where_the_change_does_not_help_the_client_is_told_the_first_refusal() {
    let (gateway, mut replica) = before(|settings| settings).await;
    let came = r#"[{"role":"user","content":"a"},{"role":"system","content":"b"}]"#;
    let (answer, ()) = tokio::join!(gateway.ask(request(came).id("r")), async {
        for said in [SYSTEM, "Conversation roles must alternate."] {
            replica.next().await.answer("400 Bad Request", &refusal(said)).await;
        }
    });
    assert_eq!((answer.status(), answer.error()), (400, SYSTEM.to_owned()));
    // Nothing was learned from it; and what can't be changed isn't asked again.
    let plain = r#"[{"role":"system","content":"a"},{"role":"user","content":"b"}]"#;
    for (id, history, times) in [("again", came, 2), ("plain", plain, 1)] {
        let (answer, ()) = tokio::join!(gateway.ask(request(history).id(id)), async {
            for _ in 0..times {
                replica.next().await.answer("400 Bad Request", &refusal(SYSTEM)).await;
            }
        });
        assert_eq!(answer.status(), 400);
        assert!(replica.is_unasked());
    }
}

#[tokio::test]
async fn b30_a_call_that_is_asked_again_has_the_same_past() {
    let (gateway, mut replica) = before(|settings| settings).await;
    let broken = turns("null", "");
    let call = "<tool_call>\n{\"name\": \"whether\", \"arguments\": {}}\n</tool_call>";
    let (answer, ()) = tokio::join!(gateway.ask(request(&broken).id("r")), async {
        let asked = replica.next().await;
        let sent = messages(&asked);
        assert_eq!(sent, turns(r#""{}""#, r#","tool_call_id":"c1""#));
        asked.answer("200 OK", &completion(call, "stop", 10)).await;
        let asked = replica.next().await;
        assert!(asked.line.contains("/tokenize"), "{}", asked.line);
        assert_eq!(messages(&asked), sent);
        // It gives up: the client gets the text.
        asked.answer("400 Bad Request", &refusal("no")).await;
    });
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.json()["choices"][0]["message"]["content"], call);
}

/// The whole way with a replica that refuses as such a template does.
#[tokio::test]
async fn b30_a_strict_template_is_spoken_to_in_its_way() {
    let gateway = Settings::simulated(1)
        .each_replica("template = \"strict\"")
        .start()
        .await;
    let history = r#"[{"role":"user","content":"a"},{"role":"system","content":"b"},{"role":"assistant","content":""},{"role":"user","content":"c"}]"#;
    for id in ["first", "second"] {
        let answer = gateway.ask(request(history).id(id)).await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert_eq!(record(&gateway, id).await["history_changes"], 2);
    }
}
