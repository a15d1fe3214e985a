//! The process itself, from `/proc/self`: read when somebody scrapes, never in between.
//!
//! The names are those of Prometheus' own client libraries, so that existing dashboards find them.

use std::fs;

use opentelemetry::metrics::Meter;

/// Kernel clock ticks a second in `/proc`: Linux shows 100 to user space on every platform that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// Registers the instruments. What `/proc` doesn't tell is left out.
pub(super) fn register(meter: &Meter) {
    let gauge = |name, help, read: fn() -> Option<u64>| {
        let callback = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            if let Some(value) = read() {
                to.observe(value, &[]);
            }
        };
        meter
            .u64_observable_gauge(name)
            .with_description(help)
            .with_callback(callback)
            .build();
    };
    gauge(
        "process_resident_memory_bytes",
        "Resident memory size in bytes",
        resident_bytes,
    );
    gauge("process_open_fds", "Number of open file descriptors", open_fds);
    gauge("process_max_fds", "Maximum number of open file descriptors", max_fds);
    gauge("process_threads", "Number of OS threads in the process", threads);
    let started = meter.f64_observable_gauge("process_start_time_seconds");
    let started = started.with_description("Start time of the process since the Unix epoch in seconds");
    started.with_callback(|to| observe(to, start_seconds())).build();
    let cpu = meter.f64_observable_counter("process_cpu_seconds");
    let cpu = cpu.with_description("Total user and system CPU time spent in seconds");
    cpu.with_callback(|to| observe(to, cpu_seconds())).build();
}

fn observe(to: &dyn opentelemetry::metrics::AsyncInstrument<f64>, value: Option<f64>) {
    if let Some(value) = value {
        to.observe(value, &[]);
    }
}

fn resident_bytes() -> Option<u64> {
    Some(status_field("VmRSS:")? * 1_024)
}

fn threads() -> Option<u64> {
    status_field("Threads:")
}

fn open_fds() -> Option<u64> {
    // One of them is the listing's own.
    Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1))
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn cpu_seconds() -> Option<f64> {
    let user: f64 = stat_field(14)?;
    let system: f64 = stat_field(15)?;
    Some((user + system) / TICKS_PER_SECOND)
}

fn start_seconds() -> Option<f64> {
    let after_boot: f64 = stat_field(22)?;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()?;
    Some(boot + after_boot / TICKS_PER_SECOND)
}

/// First number of a line of `/proc/self/status`.
fn status_field(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// A field of `/proc/self/stat`, counted from 1 as in proc(5). The second one is a name that may hold anything, so the
/// counting starts behind its last parenthesis.
fn stat_field(number: usize) -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, behind_name) = stat.rsplit_once(')')?;
    behind_name.split_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_tells_about_this_process() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(threads().unwrap() >= 1);
        let before = open_fds().unwrap();
        let files = (0..50)
            .map(|_| fs::File::open("/proc/self/stat").unwrap())
            .collect::<Vec<_>>();
        // Other tests of the process open and close files too.
        assert!(open_fds().unwrap() >= before + 25);
        drop(files);
        assert!(max_fds().unwrap() >= before);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let age = now - start_seconds().unwrap();
        assert!((-2.0..86_400.0).contains(&age), "{age}");
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let used = cpu_seconds().unwrap();
        while cpu_seconds().unwrap() <= used {
            assert!(std::time::Instant::now() < until, "CPU time stands still");
        }
    }
}
