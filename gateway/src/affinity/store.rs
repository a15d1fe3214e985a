//! The server: one connection, held by one task that writes, and asked by requests.
//!
//! Enters: keys to look up, homes to tell. Leaves: what is stored, and never later than the caller will wait. `policy`'s breaker stands
//! over it: what breaks, or is late several times in a row, closes the connection, and nobody asks before the task has one on which a
//! write and a read were answered in time. Each change of that is one line in the log. Homes wait in a bounded queue; what finds it full,
//! or no server, is shed and counted.

use arc_swap::ArcSwapOption;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult};
use sluice_policy::health::breaker::{Breaker, Event, Rules, State};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::{Names, Telling};
use crate::telemetry::Metrics;

/// Homes that may wait to be written.
const QUEUE: usize = 4096;
/// Of these, written at once.
const BATCH: usize = 64;
/// Time for a connection, its TLS and its login.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// Time for a batch.
const WRITE_TIME: Duration = Duration::from_secs(1);
/// A home that was written to try the server.
const TRIAL_EXPIRY: Duration = Duration::from_secs(1);

/// One late answer may be chance; three in a row aren't. A server that came back and goes again is asked less and less often.
const RULES: Rules = Rules {
    rest: Duration::from_millis(500),
    longest_rest: Duration::from_secs(30),
    refusals: 3,
    trials: 1,
    ramp: Duration::from_secs(30),
};

/// How the server is asked.
pub(super) struct StoreSettings {
    /// Where, and as whom.
    pub(super) client: Client,
    /// What things are called there.
    pub(super) names: Names,
    /// A home lasts so long.
    pub(super) expiry: Duration,
    /// An answer that comes later is none.
    pub(super) timeout: Duration,
}

/// See the module. Dropping it closes the connection.
pub(super) struct Store {
    line: Arc<Line>,
    tellings: mpsc::Sender<Telling>,
    timeout: Duration,
    metrics: Metrics,
    task: JoinHandle<()>,
}

/// What came of a look.
pub(super) enum Found {
    /// This is stored.
    Text(String),
    /// Nothing is.
    Nothing,
    /// The server failed, or was late.
    Failed,
    /// It is away, and wasn't asked.
    Unasked,
}

/// Why there was no answer.
enum Failure {
    /// The server, or the way to it.
    Server(RedisError),
    /// It was late.
    Late(Duration),
}

impl Failure {
    fn event(&self) -> Event {
        match self {
            Failure::Server(_) => Event::Broke,
            Failure::Late(_) => Event::Refused,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Server(error) => error.fmt(f),
            Failure::Late(limit) => write!(f, "no answer within {limit:?}"),
        }
    }
}

impl Store {
    /// Connects soon. To be called on a runtime.
    pub(super) fn open(settings: StoreSettings, metrics: Metrics) -> Store {
        let (tell, tellings) = mpsc::channel(QUEUE);
        let line = Arc::new(Line {
            connection: ArcSwapOption::empty(),
            broken: Notify::new(),
            standing: Mutex::new(Standing {
                breaker: Breaker::new(RULES),
                logged: None,
            }),
            born: Instant::now(),
        });
        let timeout = settings.timeout;
        let keeper = Keeper {
            line: line.clone(),
            settings,
            tellings,
            metrics: metrics.clone(),
        };
        Store {
            line,
            tellings: tell,
            timeout,
            metrics,
            task: tokio::spawn(keeper.run()),
        }
    }

    /// What is stored under this key. Waits for at most the timeout.
    pub(super) async fn get(&self, key: &str) -> Found {
        let Some(connection) = self.line.connection.load_full() else {
            return Found::Unasked;
        };
        let mut connection = (*connection).clone();
        let mut question = redis::cmd("GET");
        let asked = question.arg(key).query_async::<Option<String>>(&mut connection);
        match in_time(self.timeout, asked).await {
            Ok(text) => {
                self.line.good();
                text.map_or(Found::Nothing, Found::Text)
            }
            Err(failure) => {
                self.line.failed(&failure);
                Found::Failed
            }
        }
    }

    /// To be written soon. Never waits.
    pub(super) fn put(&self, telling: Telling) {
        let is_up = self.line.is_up();
        if !is_up || self.tellings.try_send(telling).is_err() {
            self.metrics.affinity_told("shed", 1);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The connection, while there is a good one.
struct Line {
    connection: ArcSwapOption<MultiplexedConnection>,
    /// It was given up.
    broken: Notify,
    standing: Mutex<Standing>,
    born: Instant,
}

/// The breaker, and whether the log has it that the server is there.
struct Standing {
    breaker: Breaker,
    logged: Option<bool>,
}

impl Line {
    fn is_up(&self) -> bool {
        self.connection.load().is_some()
    }

    fn good(&self) {
        self.with(|standing, now| standing.breaker.step(Event::Good, now));
    }

    /// This connection is good.
    fn begins(&self, connection: MultiplexedConnection) {
        self.good();
        self.connection.store(Some(Arc::new(connection)));
        if self.with(|standing, _| standing.logged.replace(true)) != Some(true) {
            tracing::info!("conversations' homes are shared with other gateways");
        }
    }

    fn failed(&self, failure: &Failure) {
        let is_away = self.with(|standing, now| {
            standing.breaker.step(failure.event(), now);
            matches!(standing.breaker.state(now), State::Open { .. })
        });
        if !is_away {
            return;
        }
        self.connection.store(None);
        self.broken.notify_one();
        if self.with(|standing, _| standing.logged.replace(false)) != Some(false) {
            tracing::warn!(error = %failure, "conversations' homes aren't shared: their server is away");
        }
    }

    /// How long nobody is to ask.
    fn rest(&self) -> Option<Duration> {
        self.with(|standing, now| match standing.breaker.state(now) {
            State::Open { until, .. } => Some(until.saturating_sub(now)),
            State::Closed { .. } | State::Hung | State::Probing { .. } | State::Returning { .. } => None,
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Standing, Duration) -> T) -> T {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut standing, self.born.elapsed())
    }
}

/// Holds the connection and writes.
struct Keeper {
    line: Arc<Line>,
    settings: StoreSettings,
    tellings: mpsc::Receiver<Telling>,
    metrics: Metrics,
}

impl Keeper {
    /// Until it is aborted.
    async fn run(mut self) {
        loop {
            match self.connect().await {
                Ok(connection) => {
                    self.line.begins(connection.clone());
                    self.write(connection).await;
                }
                Err(failure) => self.line.failed(&failure),
            }
            self.shed();
            if let Some(rest) = self.line.rest() {
                tokio::time::sleep(rest).await;
            }
        }
    }

    /// A connection on which a write and a read were answered in time.
    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIME))
            // Looks and writes have bounds of their own.
            .set_response_timeout(None);
        let connecting = self
            .settings
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let mut connection = in_time(CONNECT_TIME, connecting).await?;
        let trial = self.settings.names.trial();
        let mut asked = redis::pipe();
        set(&mut asked, &trial, "", TRIAL_EXPIRY);
        asked.cmd("GET").arg(&trial).ignore();
        in_time(self.settings.timeout, asked.query_async::<()>(&mut connection)).await?;
        Ok(connection)
    }

    /// Writes what comes, until the connection is given up.
    async fn write(&mut self, mut connection: MultiplexedConnection) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.line.is_up() {
            tokio::select! {
                () = self.line.broken.notified() => continue,
                count = self.tellings.recv_many(&mut batch, BATCH) => if count == 0 { return },
            }
            let mut homes = redis::pipe();
            for telling in batch.drain(..) {
                let (key, note) = telling.entry(&self.settings.names);
                set(&mut homes, &key, &note, self.settings.expiry);
            }
            let count = homes.len() as u64;
            let written = in_time(WRITE_TIME, homes.query_async::<()>(&mut connection)).await;
            match written {
                Ok(()) => self.metrics.affinity_told("written", count),
                Err(failure) => {
                    self.metrics.affinity_told("failed", count);
                    self.line.failed(&failure);
                }
            }
        }
    }

    /// What nobody will write any more.
    fn shed(&mut self) {
        let mut count = 0;
        while self.tellings.try_recv().is_ok() {
            count += 1;
        }
        self.metrics.affinity_told("shed", count);
    }
}

async fn in_time<T>(limit: Duration, asked: impl Future<Output = RedisResult<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(Failure::Server),
        Err(_) => Err(Failure::Late(limit)),
    }
}

fn set(pipe: &mut redis::Pipeline, key: &str, value: &str, expiry: Duration) {
    let expiry_ms = u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX);
    pipe.cmd("SET").arg(key).arg(value).arg("PX").arg(expiry_ms).ignore();
}
