//! How a stream of a scripted replica is lost in the middle.

use serde_json::json;

use super::Asked;

/// How a stream ends too early.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Breaks {
    Reset,
    EndOfFile,
    CleanEnd,
    Done,
    ErrorThenDone,
    Oversized,
    Garbage,
    HalfAnEvent,
}

impl Breaks {
    pub(crate) async fn play(self, mut asked: Asked) {
        match self {
            Breaks::Reset => asked.reset(),
            Breaks::EndOfFile => asked.close(),
            Breaks::CleanEnd => asked.write(b"0\r\n\r\n").await,
            Breaks::Done => asked.done().await,
            Breaks::ErrorThenDone => {
                let error = json!({"error": {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500}});
                asked.event(&error).await;
                asked.done().await;
            }
            Breaks::Oversized => {
                let piece = vec![b'x'; 1 << 20];
                asked
                    .piece(b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"")
                    .await;
                for _ in 0..64 {
                    let framed = [format!("{:x}\r\n", piece.len()).as_bytes(), &piece, b"\r\n"].concat();
                    if !asked.try_write(&framed).await {
                        return;
                    }
                }
                panic!("64 MiB of one event were read");
            }
            Breaks::Garbage => {
                asked.piece(b"data: <html>502</html>\n\n").await;
                asked.gone().await;
            }
            Breaks::HalfAnEvent => {
                asked
                    .piece(b"data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"neve")
                    .await;
                asked.close();
            }
        }
    }
}
