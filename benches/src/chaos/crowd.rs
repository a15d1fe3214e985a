//! Many streams at once, and one of the replicas is killed in their middle: all must come whole, and nothing of them may be left in the
//! gateway afterwards.

use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::agent::Outcome;
use super::campaign::{peak_while, settles};
use super::fleet::{self, Gateway, MODEL, Replica};
use super::heard::Heard;
use super::http::{Answer, Connection};
use super::judge::{self, Close, Verdict, Wrong};
use super::report::{Records, Report};
use super::told::{self, End, Told};

/// A client's thread needs little.
const STACK_BYTES: usize = 256 * 1024;
/// Words of an answer; of four tokens each.
const WORDS: usize = 12;
/// The streams are begun over this time.
const RAMP: Duration = Duration::from_secs(8);
/// Between two looks whether all have begun.
const LOOK: Duration = Duration::from_millis(20);

/// What to do.
#[derive(Debug, Clone)]
pub struct Crowd {
    /// The built program.
    pub sluice: PathBuf,
    /// An empty folder.
    pub folder: PathBuf,
    /// At once.
    pub streams: usize,
    /// How often. The allocator keeps what a crowd took: what one leaves behind for good shows only in the next ones.
    pub rounds: usize,
    /// Replicas; one is killed.
    pub replicas: usize,
    /// Time between two tokens of a stream.
    pub itl: Duration,
    /// How long the gateway is left alone before what it holds is looked at.
    pub rest: Duration,
}

impl Crowd {
    /// Runs it.
    ///
    /// # Errors
    /// A process didn't start.
    pub fn run(&self) -> io::Result<Report> {
        let arguments = ["--set", "max_num_seqs=8192", "--speed", "0"]
            .map(str::to_owned)
            .to_vec();
        let config = "[admission]\nenabled = false\n[upstream]\nconnect = \"10s\"\n";
        let (gateway, mut replicas) =
            fleet::start(&self.sluice, &self.folder, &vec![arguments; self.replicas], config)?;
        let mut report = Report::default();
        for round in 1..=self.rounds {
            let before = gateway.usage()?;
            let begun = AtomicUsize::new(0);
            let (outcomes, peak) = peak_while(&gateway, || self.round(round, &gateway, &mut replicas, &begun))?;
            let outcomes = outcomes?;
            thread::sleep(self.rest);
            let records = Records::read(&gateway.records(self.streams as u64)?, &gateway.log()?);
            report.count(&outcomes, &records);
            report.figure(
                "streams that had begun when a replica was killed",
                begun.load(Ordering::Relaxed),
            );
            report.usage(before, peak, gateway.usage()?);
            if let Some(replica) = replicas.first_mut() {
                replica.start()?;
            }
            gateway.is_before(replicas.len())?;
        }
        settles(&gateway, &replicas, &mut report);
        Ok(report)
    }

    fn round(
        &self,
        round: usize,
        gateway: &Gateway,
        replicas: &mut [Replica],
        begun: &AtomicUsize,
    ) -> io::Result<Vec<Outcome>> {
        thread::scope(|scope| {
            let clients: io::Result<Vec<_>> = (0..self.streams)
                .map(|number| {
                    let key = gateway.keys.first().cloned().unwrap_or_default();
                    let builder = thread::Builder::new().stack_size(STACK_BYTES);
                    let id = format!("crowd-{round}-{number}");
                    builder.spawn_scoped(scope, move || self.client(id, number, gateway.address, &key, begun))
                })
                .collect();
            let until = Instant::now() + RAMP * 4;
            while begun.load(Ordering::Relaxed) < self.streams && Instant::now() < until {
                thread::sleep(LOOK);
            }
            if let Some(replica) = replicas.first_mut() {
                replica.kill();
            }
            Ok(clients?.into_iter().flat_map(|client| client.join()).collect())
        })
    }

    fn client(
        &self,
        id: String,
        number: usize,
        gateway: std::net::SocketAddr,
        key: &str,
        begun: &AtomicUsize,
    ) -> Outcome {
        thread::sleep(RAMP.mul_f64(number as f64 / self.streams as f64));
        let started = Instant::now();
        let verdict = self.stream(&id, number, gateway, key, begun);
        Outcome {
            id,
            stream: true,
            verdict,
            took: started.elapsed(),
            evidence: String::new(),
        }
    }

    fn stream(
        &self,
        id: &str,
        number: usize,
        gateway: std::net::SocketAddr,
        key: &str,
        begun: &AtomicUsize,
    ) -> Result<Verdict, Wrong> {
        let told = Told {
            tag: format!("c{number}"),
            thinking: WORDS / 2,
            words: WORDS / 2,
            call: if number.is_multiple_of(4) { WORDS / 2 } else { 0 },
        };
        let marker = told.marker();
        let pace = format!("[[sim itl-ms={}]]", self.itl.as_millis());
        let body = json!({"model": MODEL, "stream": true, "stream_options": {"include_usage": true}, "tools": told::tools(),
            "messages": [{"role": "user", "content": format!("Question {number}. {marker} {pace}")}]});
        let failed = |error: io::Error| Wrong::Lost(error.to_string());
        let mut connection = Connection::open(gateway, key, false).map_err(failed)?;
        let body = body.to_string();
        connection
            .send("/v1/chat/completions", id, None, &body)
            .map_err(failed)?;
        let answer = connection.answer().map_err(failed)?;
        if answer.status != 200 {
            let status = answer.status;
            return judge::refusal(status, &answer.rest().map_err(failed)?);
        }
        let (heard, close) = listen(answer, begun);
        judge::stream(&told.wanted(&End::Itself, 1, true), &heard, close)
    }
}

fn listen(mut answer: Answer<'_>, begun: &AtomicUsize) -> (Heard, Close) {
    let mut heard = Heard::default();
    let mut counted = false;
    loop {
        match answer.next() {
            Ok(Some(piece)) => heard.push(&piece),
            Ok(None) => {
                heard.end();
                return (heard, Close::Proper);
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return (heard, Close::Never),
            Err(_) => return (heard, Close::Broken),
        }
        // The role and a piece of the answer.
        if heard.events > 1 && !std::mem::replace(&mut counted, true) {
            begun.fetch_add(1, Ordering::Relaxed);
        }
    }
}
