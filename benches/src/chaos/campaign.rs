//! The campaign: agents on one side, a schedule for each replica on the other, the gateway between them.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::agent::{self, Outcome, Shared};
use super::fleet::{self, Gateway, Replica, Usage};
use super::judge::Wrong;
use super::report::{Records, Report};
use super::schedule::{self, Faults, Pace};
use crate::seed::Seed;

/// What makes a hang, in the gateway's settings below.
const HANG: Duration = Duration::from_secs(2);
/// Between two looks at what the gateway holds.
const LOOK: Duration = Duration::from_millis(500);
/// Nothing is left of the requests, and the fleet is well again, within this time.
const SETTLED: Duration = Duration::from_secs(20);
/// Rows of the gateway that are read.
const RECORDS_MAX: u64 = 1_000_000;

/// Short limits, so that what hangs is seen in seconds; else as shipped.
const CONFIG: &str = "[upstream]\nconnect = \"1s\"\nstall = \"3s\"\nanswer = \"12s\"\n\
    [health]\nprobe = \"500ms\"\nhung_after = \"2s\"\nlongest_rest = \"2s\"\nramp = \"3s\"\n\
    [hold]\ntime = \"20s\"\n[admission]\nsequences = 24\n";

/// Requests that a healthy replica spoils by itself.
const SPOILED: [(&str, f64); 8] = [
    ("refuse", 0.01),
    ("reset_before", 0.01),
    ("reset_mid", 0.02),
    ("error_event", 0.01),
    ("stall", 0.003),
    ("hang", 0.002),
    ("status_500", 0.005),
    ("status_503", 0.01),
];

/// What to do. The same seed draws the same requests and the same schedules; which meets which is the machine's.
#[derive(Debug, Clone)]
pub struct Campaign {
    /// The built program, gateway and simulator both.
    pub sluice: PathBuf,
    /// An empty folder for state, log and evidence.
    pub folder: PathBuf,
    /// Requests of all agents together.
    pub requests: u64,
    /// No new request after this time.
    pub time: Duration,
    /// Agents at once.
    pub agents: usize,
    /// Replicas.
    pub replicas: usize,
    /// Of everything that is drawn.
    pub seed: u64,
    /// Mean time between two faults of one replica.
    pub gap: Duration,
    /// Factor of the replicas' speed over an H100's.
    pub speed: f64,
    /// How long the gateway is left alone before what it holds is looked at.
    pub rest: Duration,
}

impl Campaign {
    /// Runs it.
    ///
    /// # Errors
    /// A process didn't start; the gateway ended.
    pub fn run(&self) -> io::Result<Report> {
        let arguments: Vec<Vec<String>> = (0..self.replicas).map(|number| self.arguments(number)).collect();
        let (mut gateway, mut replicas) = fleet::start(&self.sluice, &self.folder, &arguments, CONFIG)?;
        let pace = Pace {
            gap: self.gap,
            away: Duration::from_secs(if self.replicas == 1 { 2 } else { 4 }),
            hang: HANG,
        };
        let begun = Instant::now();
        let shared = Shared {
            gateway: gateway.address,
            keys: gateway.keys.clone(),
            left: AtomicU64::new(self.requests),
            until: begun + self.time,
        };
        let (faults, over) = (Faults::default(), AtomicBool::new(false));
        let before = gateway.usage()?;
        let (outcomes, peak, failed) = thread::scope(|scope| {
            let schedules: Vec<_> = replicas
                .iter_mut()
                .zip(0..)
                .map(|(replica, number)| {
                    let seed = Seed::new(self.seed ^ (0x5C4E_D01E << 16) ^ number);
                    let (faults, over) = (&faults, &over);
                    scope.spawn(move || schedule::run(replica, seed, pace, faults, over))
                })
                .collect();
            let agents: Vec<_> = (0..self.agents)
                .map(|number| {
                    let (shared, seed) = (&shared, Seed::new(self.seed ^ ((number as u64) << 32)));
                    scope.spawn(move || agent::run(shared, number, seed))
                })
                .collect();
            let mut peak = before;
            while !agents.iter().all(thread::ScopedJoinHandle::is_finished) {
                thread::sleep(LOOK);
                peak = peak.max(gateway.usage().unwrap_or_default());
            }
            over.store(true, Ordering::Relaxed);
            let outcomes: Vec<Outcome> = agents
                .into_iter()
                .flat_map(|agent| agent.join().unwrap_or_default())
                .collect();
            let failed = schedules.into_iter().filter_map(|schedule| match schedule.join() {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(io::Error::other("a schedule panicked")),
            });
            (outcomes, peak, failed.last())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let took = begun.elapsed();
        thread::sleep(self.rest);
        let after = gateway.usage()?;
        let mut report = self.report(&mut gateway, &outcomes, &faults)?;
        settles(&gateway, &replicas, &mut report);
        report.figure("time, s", format!("{:.0}", took.as_secs_f64()));
        report.usage(before, peak, after);
        Ok(report)
    }

    fn arguments(&self, number: usize) -> Vec<String> {
        let mut arguments = vec!["--speed".to_owned(), self.speed.to_string()];
        arguments.extend([
            "--seed".to_owned(),
            (self.seed as u32 % 1000 + number as u32).to_string(),
        ]);
        for (name, share) in SPOILED {
            arguments.extend(["--fault".to_owned(), format!("{name}={share}")]);
        }
        arguments
    }

    fn report(&self, gateway: &mut Gateway, outcomes: &[Outcome], faults: &Faults) -> io::Result<Report> {
        let log = gateway.log()?;
        let mut report = Report::default();
        report.count(outcomes, &Records::read(&gateway.records(RECORDS_MAX)?, &log));
        for outcome in outcomes.iter().filter(|outcome| !outcome.evidence.is_empty()) {
            std::fs::write(self.folder.join(format!("{}.txt", outcome.id)), &outcome.evidence)?;
        }
        if !gateway.runs()? {
            report.defect("the gateway has ended".to_owned(), &Wrong::Other("it ended".to_owned()));
        }
        for line in log.lines().filter(|line| line.contains("panicked")) {
            report.defect(line.to_owned(), &Wrong::Other("a panic".to_owned()));
        }
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        report.figure("requests", outcomes.len());
        report.figure(
            "faults: killed / ended / paused / hung / slowed",
            format!(
                "{} / {} / {} / {} / {}",
                count(&faults.kills),
                count(&faults.ends),
                count(&faults.pauses),
                count(&faults.hangs),
                count(&faults.slow)
            ),
        );
        Ok(report)
    }
}

/// No request is left anywhere, here or at a replica: each has given back its place, however it ended.
pub(super) fn settles(gateway: &Gateway, replicas: &[Replica], report: &mut Report) {
    let until = Instant::now() + SETTLED;
    loop {
        let left: io::Result<Vec<f64>> = std::iter::once(gateway.present())
            .chain(replicas.iter().map(Replica::present))
            .collect();
        match left {
            Ok(left) if left.iter().all(|present| *present == 0.0) => return,
            left if Instant::now() >= until => {
                let what = format!("requests are left in the gateway and its replicas: {left:?}");
                return report.defect(what, &Wrong::Other("left".to_owned()));
            }
            _ => thread::sleep(LOOK),
        }
    }
}

/// What a gateway held at its most while something ran.
pub(super) fn peak_while<T>(gateway: &Gateway, work: impl FnOnce() -> T + Send) -> io::Result<(T, Usage)>
where
    T: Send,
{
    let mut peak = gateway.usage()?;
    thread::scope(|scope| {
        let work = scope.spawn(work);
        while !work.is_finished() {
            thread::sleep(LOOK);
            peak = peak.max(gateway.usage()?);
        }
        work.join()
            .map(|done| (done, peak))
            .map_err(|_| io::Error::other("a client panicked"))
    })
}
