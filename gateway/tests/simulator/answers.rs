//! What the simulator answers.
use serde_json::json;

use crate::client::{CHAT, MODEL, chat, instant, post, start};

#[tokio::test]
async fn a_chat_stream_says_that_it_is_simulated() {
    let (simulator, address) = start(instant()).await;
    let answer = post(address, CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.is_complete, "{answer:?}");
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
    let content = answer.content(0);
    let (thinking, text) = content.split_once("</think>").unwrap();
    assert!(thinking.starts_with("<think>\n[simulated]") && text.starts_with("\n\n[simulated]"), "{content}");
    assert!(answer.events().iter().all(|event| event["model"] == MODEL));
    assert_eq!((simulator.stats().requests, simulator.stats().present, simulator.stats().aborted), (1, 0, 0));
}
