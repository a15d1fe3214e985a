//! B1: HTTP/1.1 and HTTP/2 over TLS, and a certificate that is renewed while connections run.

use serde_json::json;

use super::harness::tls::{Certificate, connect, shown};
use super::harness::{Client, Replica, Request, delta, finish, until};

#[tokio::test]
async fn http1_with_and_without_alpn() {
    let replica = Replica::start().await;
    let certificate = Certificate::made();
    let (gateway, _files) = certificate.gateway(&replica).await;
    replica.always("over tls");
    for protocols in [&[][..], &[b"http/1.1".as_slice()][..]] {
        for streamed in [true, false] {
            let mut client = Client::over(connect(&gateway, &[&certificate], protocols).await);
            client.send(&Request::chat(streamed)).await;
            let answer = client.message().await;
            assert!(
                answer.is_complete && answer.text().contains("over tls"),
                "{}",
                answer.text()
            );
        }
    }
    // Plain text on the TLS port gets no answer.
    let mut plain = gateway.connect().await;
    plain.send(&Request::get("/health")).await;
    assert!(plain.try_head().await.is_none());
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_and_leaves_running_streams_alone() {
    let replica = Replica::start().await;
    let (old, new, unused) = (Certificate::made(), Certificate::made(), Certificate::made());
    let (gateway, files) = old.gateway(&replica).await;
    let mut replica = replica;
    let shown_now = async || shown(&connect(&gateway, &[&old, &new], &[]).await);
    assert_eq!(&shown_now().await, old.der());
    let mut running = Client::over(connect(&gateway, &[&old], &[]).await);
    running.send(&Request::chat(true)).await;
    let mut asked = replica.next().await;
    asked.begin("before").await;
    running.head().await;
    running.read_to("before").await;
    // The files change; nobody tells the gateway.
    new.write(files.path());
    until("the new certificate is shown", async || {
        (&shown_now().await == new.der()).then_some(())
    })
    .await;
    // A key of another certificate, or no certificate at all, changes nothing.
    for (name, text) in [("key.pem", unused.key()), ("cert.pem", "no certificate".to_owned())] {
        let before = gateway.log().len();
        std::fs::write(files.path().join(name), text).unwrap();
        gateway.hang_up();
        until("the log says so", async || {
            let log = gateway.log().split_off(before);
            log.contains("the certificate stays as it was").then_some(())
        })
        .await;
        assert_eq!(&shown_now().await, new.der());
    }
    asked.event(&delta(json!({"content": "after"}))).await;
    assert!(running.event().await.contains("after"));
    asked.event(&finish("stop")).await;
    asked.done().await;
    assert!(running.read_to("[DONE]").await.contains("stop"));
}
