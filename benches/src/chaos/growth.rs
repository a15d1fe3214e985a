//! Many short requests one after the other on a few connections: what the gateway holds must not grow with their number.

use serde_json::json;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::agent::Outcome;
use super::fleet::{self, Gateway, MODEL, Usage};
use super::http::Connection;
use super::judge::{self, Verdict, Wrong};
use super::report::{Records, Report};
use super::told::{End, Told};

/// Between two looks at the counter.
const LOOK: Duration = Duration::from_millis(5);
/// Sessions that the requests belong to; what is kept for each is bounded by their number, not by that of requests.
const SESSIONS: u64 = 1_000;

/// What to do.
#[derive(Debug, Clone)]
pub struct Growth {
    /// The built program.
    pub sluice: PathBuf,
    /// An empty folder.
    pub folder: PathBuf,
    /// Altogether.
    pub requests: u64,
    /// Connections at once.
    pub connections: usize,
    /// A look at what the gateway holds after each so many.
    pub each: u64,
    /// How long the gateway is left alone before the last look.
    pub rest: Duration,
}

impl Growth {
    /// Runs it.
    ///
    /// # Errors
    /// A process didn't start.
    pub fn run(&self) -> io::Result<Report> {
        let arguments = vec![vec!["--speed".to_owned(), "0".to_owned()]; 2];
        let (gateway, _replicas) = fleet::start(&self.sluice, &self.folder, &arguments, "")?;
        let begun = Instant::now();
        let sent = AtomicU64::new(0);
        let before = gateway.usage()?;
        let mut curve = vec![(0, before)];
        let defects: Vec<Outcome> = thread::scope(|scope| {
            let clients: Vec<_> = (0..self.connections)
                .map(|number| {
                    let (gateway, sent) = (&gateway, &sent);
                    scope.spawn(move || self.client(gateway, number, sent))
                })
                .collect();
            while !clients.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(LOOK);
                let now = sent.load(Ordering::Relaxed);
                if now >= curve.last().map_or(0, |(last, _)| last + self.each) {
                    curve.push((now / self.each * self.each, gateway.usage().unwrap_or_default()));
                }
            }
            clients
                .into_iter()
                .flat_map(|client| client.join().unwrap_or_default())
                .collect()
        });
        let took = begun.elapsed();
        thread::sleep(self.rest);
        let after = gateway.usage()?;
        let peak = curve.iter().fold(before, |peak, (_, usage)| peak.max(*usage));
        let mut report = Report::default();
        report.count(&defects, &Records::default());
        report.figure(
            "answers that were whole",
            sent.load(Ordering::Relaxed).min(self.requests) - defects.len() as u64,
        );
        report.figure("time, s", format!("{:.0}", took.as_secs_f64()));
        for (
            sent,
            Usage {
                descriptors,
                resident_kib,
            },
        ) in curve
        {
            report.figure(
                &format!("after {sent}"),
                format!("{resident_kib} KiB, {descriptors} descriptors"),
            );
        }
        report.usage(before, peak, after);
        Ok(report)
    }

    /// Only what wasn't whole comes back: two hundred thousand good outcomes are of no use.
    fn client(&self, gateway: &Gateway, number: usize, sent: &AtomicU64) -> Vec<Outcome> {
        let key = gateway
            .keys
            .get(number % gateway.keys.len().max(1))
            .cloned()
            .unwrap_or_default();
        let mut kept = None;
        let mut outcomes = Vec::new();
        loop {
            let request = sent.fetch_add(1, Ordering::Relaxed);
            if request >= self.requests {
                return outcomes;
            }
            let (id, started) = (format!("growth-{request}"), Instant::now());
            let verdict = ask(gateway, &key, &mut kept, request, &id);
            if verdict != Ok(Verdict::Whole) {
                outcomes.push(Outcome {
                    id,
                    stream: false,
                    verdict,
                    took: started.elapsed(),
                    evidence: String::new(),
                });
            }
        }
    }
}

fn ask(gateway: &Gateway, key: &str, kept: &mut Option<Connection>, request: u64, id: &str) -> Result<Verdict, Wrong> {
    let told = Told {
        tag: format!("g{request}"),
        thinking: 0,
        words: 1,
        call: 0,
    };
    let content = format!("Question {request}. {}", told.marker());
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": content}]}).to_string();
    let failed = |error: io::Error| Wrong::Lost(error.to_string());
    let mut connection = match kept.take() {
        Some(connection) => connection,
        None => Connection::open(gateway.address, key, false).map_err(failed)?,
    };
    let session = format!("s{}", request % SESSIONS);
    connection
        .send("/v1/chat/completions", id, Some(&session), &body)
        .map_err(failed)?;
    let answer = connection.answer().map_err(failed)?;
    let status = answer.status;
    let body = answer.rest().map_err(failed)?;
    *kept = Some(connection);
    match status {
        200 => judge::whole(&told.wanted(&End::Itself, 1, true), &body),
        status => judge::refusal(status, &body),
    }
}
