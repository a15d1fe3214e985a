//! Bodies: large ones arrive byte for byte but for our edits, however they are sent.

use serde_json::{Value, json};

use super::harness::{Gateway, MODEL, Replica, Request, Settings, completion};

async fn gateway() -> (Gateway, Replica) {
    let replica = Replica::start().await;
    (Settings::before(&[&replica]).start().await, replica)
}

/// A conversation of about so many bytes, in a form that no JSON writer would give again.
fn large(bytes: usize) -> String {
    let mut body = format!("{{ \"model\" : \"{MODEL}\",\n\t\"messages\":[");
    let mut n = 0;
    while body.len() < bytes {
        let comma = if n == 0 { "" } else { " ,\r\n" };
        let role = if n % 2 == 0 { "user" } else { "assistant" };
        body.push_str(&format!(
            "{comma}{{\"role\":\"{role}\" , \"content\":\"turn {n} \\u00e9 é 😀 \\/ {}\", \"n\":1.0e+2}}",
            "lorem ipsum ".repeat(800)
        ));
        n += 1;
    }
    body + "], \"temperature\":0.70, \"big\":123456789012345678901234567890 }\n"
}

async fn arrives(gateway: &Gateway, replica: &mut Replica, request: Request, body: &str) {
    let mut client = gateway.connect().await;
    let bytes = request.bytes();
    let (_, asked) = tokio::join!(client.write(&bytes), replica.next());
    assert!(
        asked.body == body.as_bytes(),
        "the body is not what was sent ({} and {} bytes)",
        asked.body.len(),
        body.len()
    );
    assert_eq!(asked.header("content-length"), Some(body.len().to_string().as_str()));
    asked.answer("200 OK", &completion("read", "stop", 10)).await;
    assert_eq!(
        client.message().await.json()["choices"][0]["message"]["content"],
        "read"
    );
}

#[tokio::test]
async fn a_body_of_2_mb_arrives_byte_for_byte() {
    let (gateway, mut replica) = gateway().await;
    let body = large(2_000_000);
    arrives(
        &gateway,
        &mut replica,
        Request::raw("/v1/chat/completions", body.clone()),
        &body,
    )
    .await;
    arrives(
        &gateway,
        &mut replica,
        Request::raw("/v1/chat/completions", body.clone()).chunked(),
        &body,
    )
    .await;
}

#[tokio::test]
async fn a_body_of_20_mb_arrives_byte_for_byte() {
    let (gateway, mut replica) = gateway().await;
    let body = large(20_000_000);
    arrives(
        &gateway,
        &mut replica,
        Request::raw("/v1/chat/completions", body.clone()),
        &body,
    )
    .await;
    arrives(
        &gateway,
        &mut replica,
        Request::raw("/v1/chat/completions", body.clone()).chunked(),
        &body,
    )
    .await;
}

#[tokio::test]
async fn an_edited_body_is_the_sent_one_but_for_the_edits() {
    let (gateway, mut replica) = gateway().await;
    let body = large(2_000_000);
    let with = |model: &str, more: &str| {
        body.replace(MODEL, model)
            .replacen("\"temperature\"", &format!("{more}\"temperature\""), 1)
    };
    let sent = with(MODEL, "\"stream\": true, \"priority\": 5, ");
    let mut client = gateway.open(Request::raw("/v1/chat/completions", sent.clone())).await;
    let asked = replica.next().await;
    let got = String::from_utf8(asked.body.clone()).unwrap();
    let messages = &sent[sent.find('[').unwrap()..sent.rfind(']').unwrap()];
    assert!(got.contains(messages), "the messages were written anew");
    let mut wanted: Value = serde_json::from_str(&sent).unwrap();
    wanted.as_object_mut().unwrap().remove("priority");
    wanted["stream_options"] = json!({"include_usage": true});
    assert!(asked.json() == wanted);
    assert!(got.contains("\"big\":123456789012345678901234567890"));
    asked.tell_text("read").await;
    client.message().await.chunks();
}

#[tokio::test]
async fn the_retry_of_a_large_body_sends_the_same_bytes() {
    let (a, b) = (Replica::start().await, Replica::start().await);
    let gateway = Settings::before(&[&a, &b]).start().await;
    let body = large(2_000_000);
    let mut client = gateway.open(Request::raw("/v1/chat/completions", body.clone())).await;
    let (mut a, mut b) = (a, b);
    let (asked, other) = tokio::select! {
        asked = a.next() => (asked, &mut b),
        asked = b.next() => (asked, &mut a),
    };
    asked
        .answer(
            "503 Service Unavailable",
            &json!({"error": {"message": "no", "code": 503}}),
        )
        .await;
    let again = other.next().await;
    assert!(again.body == body.as_bytes());
    again.tell_as_asked("read").await;
    assert_eq!(client.message().await.status(), 200);
}

#[tokio::test]
async fn requests_that_are_pipelined_are_answered_in_order() {
    let (gateway, mut replica) = gateway().await;
    let mut client = gateway.connect().await;
    let requests = [
        Request::chat(false).id("1"),
        Request::chat(true).id("2"),
        Request::get("/v1/models").id("3"),
        Request::chat(false).id("4"),
    ];
    let bytes: Vec<u8> = requests.iter().flat_map(Request::bytes).collect();
    client.write(&bytes).await;
    for id in ["1", "2", "3", "4"] {
        if id != "3" {
            replica.next().await.tell_as_asked(id).await;
        }
        let answer = client.message().await;
        assert_eq!((answer.status(), answer.header("x-request-id")), (200, Some(id)));
        assert!(
            id == "3" || answer.text().contains(&format!("\"content\":\"{id}\"")),
            "{}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_go_on_and_a_refused_one_is_not() {
    let (gateway, mut replica) = gateway().await;
    let request = Request::chat(false).header("expect", "100-continue");
    let mut client = gateway.connect().await;
    client.write(request.head().as_bytes()).await;
    assert_eq!(client.head().await.status, 100);
    client.write(&request.bytes()[request.head().len()..]).await;
    replica.next().await.tell_as_asked("hi").await;
    assert_eq!(client.message().await.status(), 200);
    let mut client = gateway.connect().await;
    client.write(request.without_key().head().as_bytes()).await;
    assert_eq!(client.message().await.status(), 401);
}

#[tokio::test]
async fn a_request_that_could_be_read_in_two_ways_is_refused() {
    let (gateway, replica) = gateway().await;
    let key = super::harness::KEY;
    for lines in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: gzip\r\n",
        "content-length: +5\r\n",
        "content-length : 5\r\n",
        "transfer-encoding: chunked\r\n folded\r\n",
    ] {
        let mut client = gateway.connect().await;
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{lines}\r\n");
        client
            .write(format!("{head}0\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes())
            .await;
        if let Some(answer) = client.try_message().await {
            assert_eq!(answer.status(), 400, "{lines:?}: {}", answer.text());
        }
        assert!(client.try_head().await.is_none(), "{lines:?}: a second answer");
    }
    assert!(replica.is_unasked());
}
