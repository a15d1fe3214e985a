//! B35: while the only replica is away, requests are held rather than refused; bounded in number and time, and left by a client at once.

use serde_json::json;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

use super::harness::{Gateway, Replica, Request, Settings, record, records, until, within};

/// A gateway whose only replica was there and is gone, and where it will be again.
async fn without_its_replica(more: impl FnOnce(Settings) -> Settings) -> (Gateway, SocketAddr) {
    let mut replica = Replica::start().await;
    let address = replica.url().strip_prefix("http://").unwrap().parse().unwrap();
    let settings = Settings::before(&[&replica]).each_replica("probe = \"100ms\"");
    let gateway = more(settings).start().await;
    replica.stop().await;
    (gateway, address)
}

async fn is_down(gateway: &Gateway) {
    until("it is down", async || {
        let health = gateway.ask(Request::get("/health").without_key()).await.json();
        (health["replicas"][0]["state"] == "down").then_some(())
    })
    .await;
}

async fn are_held(gateway: &Gateway, count: usize) {
    until("they are held", async || {
        (gateway.log().matches("held until a replica is back").count() == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn b35_requests_are_held_over_a_restart_of_the_only_replica() {
    // Before the supervisor has noticed, and after.
    for is_noticed in [false, true] {
        let (gateway, address) = without_its_replica(|settings| settings).await;
        if is_noticed {
            is_down(&gateway).await;
        }
        let mut clients = Vec::new();
        for (id, stream) in [("stream", true), ("whole", false)] {
            clients.push(gateway.open(Request::chat(stream).id(id)).await);
        }
        are_held(&gateway, 2).await;
        is_down(&gateway).await;
        Replica::at(address).await.always("at last");
        for client in &mut clients {
            let answer = client.message().await;
            assert_eq!(answer.status(), 200, "{}", answer.text());
            assert!(answer.text().contains("at last"), "{}", answer.text());
        }
        for id in ["stream", "whole"] {
            let row = record(&gateway, id).await;
            assert_eq!((&row["status"], &row["error"]), (&json!(200), &json!(null)), "{row}");
        }
    }
}

#[tokio::test]
async fn b35_b11_so_many_are_held_and_one_that_leaves_gives_its_place_back() {
    let (gateway, address) = without_its_replica(|settings| {
        settings
            .set("hold", "count = 1")
            .set("server", "head_after = \"1s\"")
            .set("server", "keep_alive = \"100ms\"")
    })
    .await;
    let mut held = gateway.open(Request::chat(true).id("leaves")).await;
    // Its head is out, and it is kept alive.
    assert_eq!(
        held.head().await.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(held.piece().await.unwrap().unwrap().first(), Some(&b':'));
    for stream in [true, false] {
        let refused = gateway.ask(Request::chat(stream)).await;
        // At once: the head isn't out yet.
        assert_eq!((refused.status(), refused.code().as_str()), (503, "no_replica"));
        assert!(refused.header("retry-after").is_some_and(|after| after != "0"));
        assert_eq!(refused.header("x-should-retry"), Some("true"));
    }
    drop(held);
    let row = record(&gateway, "leaves").await;
    assert_eq!(row["cancelled"], true, "{row}");
    let mut next = gateway.open(Request::chat(false).id("next")).await;
    are_held(&gateway, 2).await;
    Replica::at(address).await.always("at last");
    assert_eq!(next.message().await.status(), 200);
}

#[tokio::test]
async fn b35_who_was_held_for_too_long_is_told_with_a_status_or_in_an_event() {
    let (gateway, _) = without_its_replica(|settings| {
        settings
            .set("hold", "time = \"500ms\"")
            .set("server", "head_after = \"100ms\"")
    })
    .await;
    let whole = gateway.ask(Request::chat(false).id("whole")).await;
    assert_eq!((whole.status(), whole.code().as_str()), (503, "no_replica"));
    assert!(whole.header("retry-after").is_some());
    let stream = gateway.ask(Request::chat(true).id("stream")).await;
    assert_eq!(stream.status(), 200);
    assert!(
        stream.text().contains("no_replica") && !stream.text().contains("[DONE]"),
        "{}",
        stream.text()
    );
    for id in ["whole", "stream"] {
        assert!(record(&gateway, id).await["error"].is_string());
    }
}

#[tokio::test]
async fn b35_a_replica_that_never_was_there_is_not_waited_for() {
    let replica = Replica::start().await.dead().await;
    let gateway = Settings::before(&[&replica]).start_unready().await;
    let refused = gateway.ask(Request::chat(true).id("r")).await;
    assert_eq!(refused.status(), 503, "{}", refused.text());
    record(&gateway, "r").await;
    assert_eq!(records(&gateway).len(), 1);
    assert!(!gateway.log().contains("held until"));
}

/// A gateway whose first look at its replica has connected, and isn't answered yet.
async fn at_the_first_look() -> (Gateway, TcpListener, TcpStream) {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!(
        "launcher = \"external\"\nurl = \"http://{}\"",
        port.local_addr().unwrap()
    );
    let gateway = Settings::of(&[("a", &url)]).start_unready().await;
    let (look, _) = within("it is looked at", port.accept()).await.unwrap();
    (gateway, port, look)
}

#[tokio::test]
async fn requests_wait_for_the_first_look_at_a_replica_and_may_leave() {
    let (gateway, port, look) = at_the_first_look().await;
    let mut client = gateway.open(Request::chat(false).id("waits")).await;
    let leaves = gateway.open(Request::chat(true).id("leaves")).await;
    until("both wait", async || {
        (gateway.log().matches("waits for the first look").count() == 2).then_some(())
    })
    .await;
    drop(leaves);
    assert_eq!(record(&gateway, "leaves").await["cancelled"], true);
    // It is there: the next connections are answered.
    let replica = Replica::on(port).await;
    Replica::greets(look).await;
    replica.always("at last");
    let answer = client.message().await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(answer.text().contains("at last"));
}

#[tokio::test]
async fn requests_wait_for_the_first_look_and_are_refused_by_what_it_finds() {
    let (gateway, _port, look) = at_the_first_look().await;
    let mut client = gateway.open(Request::chat(false)).await;
    until("it waits", async || {
        gateway.log().contains("waits for the first look").then_some(())
    })
    .await;
    drop(look);
    let answer = client.message().await;
    assert_eq!((answer.status(), answer.code().as_str()), (503, "no_replica"));
    let next = gateway.ask(Request::chat(false)).await;
    assert_eq!(next.status(), 503);
    assert_eq!(gateway.log().matches("waits for the first look").count(), 1);
}

#[tokio::test]
async fn b35_b31_a_server_that_outlives_its_engine_is_one_death_however_often_it_says_so() {
    for stream in [true, false] {
        let mut replica = Replica::start().await;
        let address = replica.url().strip_prefix("http://").unwrap().parse().unwrap();
        let settings = Settings::before(&[&replica]).each_replica("probe = \"100ms\"");
        let settings = settings.set("health", "rest = \"50ms\"\nlongest_rest = \"50ms\"");
        let gateway = settings.start().await;
        let mut client = gateway.open(Request::chat(stream).id("r")).await;
        let dead = json!({"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "code": 500}});
        // More often than there are attempts.
        for _ in 0..5 {
            replica.next().await.answer("500 Internal Server Error", &dead).await;
        }
        replica.stop().await;
        is_down(&gateway).await;
        Replica::at(address).await.always("at last");
        let answer = client.message().await;
        assert_eq!(answer.status(), 200, "{}", answer.text());
        assert!(answer.text().contains("at last"), "{}", answer.text());
        assert_eq!(record(&gateway, "r").await["error"], json!(null));
    }
}
