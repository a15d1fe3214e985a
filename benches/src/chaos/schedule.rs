//! What befalls a replica: one fault after the other, drawn by seed, until the campaign ends; then it is put right.
//!
//! Each replica has a schedule of its own, so that faults overlap as they like: two at once, or all.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::fleet::Replica;
use crate::seed::Seed;

/// How often the end of the campaign is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Faults that there were.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// `kill -9` and a start.
    pub(super) kills: AtomicU64,
    /// SIGTERM and a start.
    pub(super) ends: AtomicU64,
    /// SIGSTOP for less time than makes a hang.
    pub(super) pauses: AtomicU64,
    /// SIGSTOP for longer.
    pub(super) hangs: AtomicU64,
    /// Stopped and continued in turns.
    pub(super) slow: AtomicU64,
}

/// How a schedule is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Mean time from a fault's end to the next one.
    pub(super) gap: Duration,
    /// Longest time that a killed replica is away.
    pub(super) away: Duration,
    /// What makes a hang.
    pub(super) hang: Duration,
}

/// Lets it happen until `over`.
pub(super) fn run(
    replica: &mut Replica,
    mut seed: Seed,
    pace: Pace,
    faults: &Faults,
    over: &AtomicBool,
) -> io::Result<()> {
    let mut draw = |longest: Duration| longest.mul_f64((seed.next_u64() % 1000) as f64 / 1000.0);
    while sleep(pace.gap / 2 + draw(pace.gap), over) {
        let which = draw(Duration::from_millis(100)).as_millis();
        let away = Duration::from_millis(100) + draw(pace.away);
        match which {
            0..40 => {
                faults.kills.fetch_add(1, Ordering::Relaxed);
                replica.kill();
                sleep(away, over);
                replica.start()?;
            }
            40..50 => {
                faults.ends.fetch_add(1, Ordering::Relaxed);
                replica.end();
                sleep(away, over);
                replica.start()?;
            }
            50..70 => {
                faults.pauses.fetch_add(1, Ordering::Relaxed);
                stopped(replica, pace.hang / 2, over);
            }
            70..85 => {
                faults.hangs.fetch_add(1, Ordering::Relaxed);
                stopped(replica, pace.hang * 2, over);
            }
            _ => {
                faults.slow.fetch_add(1, Ordering::Relaxed);
                let until = Instant::now() + away;
                while Instant::now() < until && !over.load(Ordering::Relaxed) {
                    stopped(replica, LOOK * 2, over);
                    sleep(LOOK, over);
                }
            }
        }
    }
    replica.start()
}

fn stopped(replica: &Replica, time: Duration, over: &AtomicBool) {
    replica.signal(Signal::STOP);
    sleep(time, over);
    replica.signal(Signal::CONT);
}

/// False if the campaign is over.
fn sleep(time: Duration, over: &AtomicBool) -> bool {
    let until = Instant::now() + time;
    while Instant::now() < until && !over.load(Ordering::Relaxed) {
        std::thread::sleep(LOOK.min(time));
    }
    !over.load(Ordering::Relaxed)
}
