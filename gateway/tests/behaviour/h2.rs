//! B1: HTTP/2 by prior knowledge and by ALPN; many streams on one connection, and its end.

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::harness::tls::{Certificate, connect};
use super::harness::{KEY, Replica, Settings, ask, delta, finish, record, until, within};

type Sender = SendRequest<Full<Bytes>>;

async fn h2(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Sender {
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: &str, path: &str, id: &str, body: String) -> http::Request<Full<Bytes>> {
    http::Request::builder()
        .method(method)
        .uri(format!("http://gateway{path}"))
        .header("authorization", format!("Bearer {KEY}"))
        .header("x-request-id", id)
        .body(Full::new(Bytes::from(body)))
        .unwrap()
}

fn chat(id: &str, stream: bool) -> http::Request<Full<Bytes>> {
    request("POST", "/v1/chat/completions", id, ask(stream).to_string())
}

async fn text(sender: &mut Sender, request: http::Request<Full<Bytes>>) -> (u16, String) {
    within("an answer over HTTP/2", async {
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (
            status,
            String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap(),
        )
    })
    .await
}

#[tokio::test]
async fn by_prior_knowledge_with_many_streams_on_one_connection() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    replica.always("over h2");
    let sender = h2(TcpStream::connect(gateway.listen).await.unwrap()).await;
    let answers = join_all((0..200).map(|n| {
        let mut sender = sender.clone();
        async move { text(&mut sender, chat(&format!("r{n}"), n % 2 == 0)).await }
    }))
    .await;
    for (n, (status, body)) in answers.iter().enumerate() {
        assert_eq!(
            (*status, body.contains("over h2"), body.ends_with("data: [DONE]\n\n")),
            (200, true, n % 2 == 0),
            "{body}"
        );
    }
    let mut sender = sender;
    let (status, body) = text(&mut sender, request("GET", "/nowhere", "x", String::new())).await;
    assert!(status == 404 && body.contains("unknown_url"));
}

#[tokio::test]
async fn events_arrive_one_by_one_and_a_reset_stream_ends_its_request_alone() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica]).start().await;
    let mut replica = replica;
    let mut sender = h2(TcpStream::connect(gateway.listen).await.unwrap()).await;
    let mut other = sender.clone();
    let (answer, mut asked) = tokio::join!(sender.send_request(chat("r", true)), async {
        let mut asked = replica.next().await;
        asked.stream().await;
        asked
    });
    let mut answer = answer.unwrap();
    for n in 0..5 {
        asked
            .event(&delta(json!({"role": "assistant", "content": format!("word{n}")})))
            .await;
        let mut got = String::new();
        while !got.contains(&format!("word{n}")) {
            let frame = within("the event", answer.body_mut().frame()).await.unwrap().unwrap();
            got += std::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
    }
    let (second, ()) = tokio::join!(other.send_request(chat("s", true)), async {
        let mut second = replica.next().await;
        // The first stream is reset, the second goes on.
        drop(answer);
        asked.gone().await;
        second.begin("alive").await;
        second.event(&finish("stop")).await;
        second.done().await;
    });
    let body = within("the second answer", second.unwrap().into_body().collect())
        .await
        .unwrap()
        .to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(record(&gateway, "r").await["cancelled"], true);
    assert_eq!(record(&gateway, "s").await["cancelled"], false);
}

#[tokio::test]
async fn b37_a_drain_finishes_the_running_stream_and_takes_no_new_one() {
    let replica = Replica::start().await;
    let settings = Settings::before(&[&replica]).set("server", "drain = \"60s\"");
    let mut gateway = settings.start().await;
    let mut replica = replica;
    let stream = TcpStream::connect(gateway.listen).await.unwrap();
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let (answer, mut asked) = tokio::join!(sender.send_request(chat("r", true)), async {
        let mut asked = replica.next().await;
        asked.begin("before").await;
        asked
    });
    let answer = answer.unwrap();
    gateway.terminate();
    // GOAWAY: the client opens no stream on this connection any more, and a new connection is refused.
    until("the connection takes no new stream", async || {
        let ping = sender.send_request(request("GET", "/ping", "p", String::new()));
        ping.await.is_err().then_some(())
    })
    .await;
    let listen = gateway.listen;
    until("new connections are refused", async || {
        TcpStream::connect(listen).await.is_err().then_some(())
    })
    .await;
    asked.event(&delta(json!({"content": "after"}))).await;
    asked.event(&finish("stop")).await;
    asked.done().await;
    let body = within("the rest of the answer", answer.into_body().collect())
        .await
        .unwrap();
    let body = String::from_utf8(body.to_bytes().to_vec()).unwrap();
    assert!(
        body.contains("before") && body.contains("after") && body.ends_with("data: [DONE]\n\n"),
        "{body}"
    );
    within("the connection ends", connection).await.unwrap().unwrap();
    assert_eq!(gateway.ended().await.code(), Some(0));
    let row = record(&gateway, "r").await;
    assert_eq!(
        (&row["finish"], &row["error"], &row["cancelled"]),
        (&json!("stop"), &json!(null), &json!(false))
    );
    assert!(replica.is_unasked());
}

#[tokio::test]
async fn by_alpn_over_tls() {
    let replica = Replica::start().await;
    let certificate = Certificate::made();
    let (gateway, _files) = certificate.gateway(&replica).await;
    replica.always("over tls");
    let stream = connect(&gateway, &[&certificate], &[b"h2", b"http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let mut sender = h2(stream).await;
    for streamed in [true, false] {
        let (status, body) = text(&mut sender, chat("r", streamed)).await;
        assert!(status == 200 && body.contains("over tls"), "{body}");
    }
}

#[tokio::test]
async fn without_http2_the_preface_gets_no_answer() {
    let replica = Replica::start().await;
    let gateway = Settings::before(&[&replica])
        .set("server", "http2 = false")
        .start()
        .await;
    let mut client = gateway.connect().await;
    client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let answer = client.try_message().await;
    assert!(answer.is_none_or(|answer| answer.status() >= 400));
}

#[tokio::test]
async fn b37_streams_of_a_connection_end_in_the_old_process_and_its_next_go_to_the_new_one() {
    let mut replica = Replica::start().await;
    let mut gateway = Settings::before(&[&replica]).start().await;
    let mut old = h2(TcpStream::connect(gateway.listen).await.unwrap()).await;
    let (running, mut asked) = tokio::join!(old.send_request(chat("old", true)), async {
        let mut asked = replica.next().await;
        asked.begin("before").await;
        asked
    });
    gateway.upgrade(&[]).await.unwrap();
    // A client that has heard the GOAWAY connects again.
    until("the connection takes no new stream", async || {
        let ping = old.send_request(request("GET", "/ping", "p", String::new()));
        ping.await.is_err().then_some(())
    })
    .await;
    let mut new = h2(TcpStream::connect(gateway.listen).await.unwrap()).await;
    let next = tokio::spawn(async move { text(&mut new, chat("new", false)).await });
    replica.next().await.tell_as_asked("there").await;
    let (status, answer) = next.await.unwrap();
    assert!(status == 200 && answer.contains("there"), "{answer}");
    asked.event(&delta(json!({"content": "after"}))).await;
    asked.event(&finish("stop")).await;
    asked.done().await;
    let body = within("the rest of the answer", running.unwrap().into_body().collect()).await;
    let body = String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap();
    assert!(
        body.contains("before") && body.contains("after") && body.ends_with("data: [DONE]\n\n"),
        "{body}"
    );
    assert!(gateway.ended().await.success());
}
