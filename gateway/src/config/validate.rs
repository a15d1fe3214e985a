//! What serde can't see: settings that contradict each other, or that can't work on this machine. All are found at once.

use std::time::Duration;

use super::{Config, Overrides, TlsConfig, duration, reading::nearest, size};
use crate::affinity::{self, UrlFault};
use crate::record::RecordError;

mod backend;
mod profile;

/// hyper's smallest read buffer.
const HEADER_BYTES_MIN: u64 = 8 << 10;
/// vLLM's HTTP server closes an idle connection after this time.
const VLLM_IDLE: Duration = Duration::from_secs(5);
/// More threads than this is a slip.
const THREADS_MAX: usize = 1_024;
/// More attempts than this only delay the error.
const ATTEMPTS_MAX: u32 = 10;
/// How often an engine is looked at: each look costs its front end milliseconds, and a hang must be seen.
const HEALTH_PROBE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(5);
/// More calls of one answer than this aren't worth the engine's time.
const REASK_MAX: u8 = 8;
/// A longer queue would be sorted for longer than it is worth.
const QUEUE_MAX: usize = 4_096;
/// It is part of every key on the server.
const PREFIX_CHARS_MAX: usize = 64;
/// Agents think longer than a second.
const AFFINITY_EXPIRY_MIN: Duration = Duration::from_secs(1);
/// A local server answers within a millisecond; nobody should wait seconds for a hint.
const AFFINITY_TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(5);
/// Deeper bodies are an attack.
const JSON_DEPTH_MAX: u32 = 1_024;

/// One finding, by the path of its key.
#[derive(Debug)]
pub(super) struct Finding {
    /// As `backend[0].replica[1].url`, or a flag of the command line.
    pub(super) key: String,
    pub(super) message: String,
    pub(super) suggestion: Option<String>,
    /// The value may be a secret and is not to be shown.
    pub(super) secret: bool,
}

/// Everything that is wrong, in the order of the sections.
pub(super) fn check(config: &Config, overrides: &Overrides) -> Vec<Finding> {
    let mut findings = Findings {
        list: Vec::new(),
        overrides,
    };
    server(config, &mut findings);
    limits(config, &mut findings);
    auth(config, &mut findings);
    admin(config, &mut findings);
    records(config, &mut findings);
    log(config, &mut findings);
    tools(config, &mut findings);
    upstream(config, &mut findings);
    continuation(config, &mut findings);
    health(config, &mut findings);
    routing(config, &mut findings);
    admission(config, &mut findings);
    affinity(config, &mut findings);
    profile::check(config, &mut findings);
    backend::check(config, &mut findings);
    findings.list
}

struct Findings<'a> {
    list: Vec<Finding>,
    overrides: &'a Overrides,
}

impl Findings<'_> {
    fn add(&mut self, key: impl Into<String>, message: impl Into<String>) -> &mut Finding {
        let key = self.flag_or_key(key.into());
        self.list.push(Finding {
            key,
            message: message.into(),
            suggestion: None,
            secret: false,
        });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// A setting that the command line gave is named by its flag: it doesn't stand in the file.
    fn flag_or_key(&self, key: String) -> String {
        match &self.overrides {
            Overrides { listen: Some(_), .. } if key == "server.listen" => "--listen".to_owned(),
            Overrides { backend: Some(_), .. } if key.starts_with("backend") && key.ends_with(".key_env") => {
                "--backend-key-env".to_owned()
            }
            Overrides { backend: Some(_), .. } if key.starts_with("backend") => "--backend".to_owned(),
            _ => key,
        }
    }
}

impl Finding {
    fn help(&mut self, suggestion: impl Into<String>) -> &mut Self {
        self.suggestion = Some(suggestion.into());
        self
    }

    fn hide_value(&mut self) {
        self.secret = true;
    }
}

fn server(config: &Config, findings: &mut Findings<'_>) {
    let server = &config.server;
    if server.listen.port() == 0 {
        findings
            .add(
                "server.listen",
                "port 0 is any free port: nobody would know where to connect",
            )
            .help("the default is 127.0.0.1:5002");
    }
    if server.threads > THREADS_MAX {
        findings
            .add(
                "server.threads",
                format!("{} threads are more than {THREADS_MAX}", server.threads),
            )
            .help("0 = one for each core");
    }
    for (index, origin) in server.cors_origins.iter().enumerate() {
        if origin != "*" && !is_origin(origin) {
            findings
                .add(format!("server.cors_origins[{index}]"), format!("\"{origin}\" is no origin"))
                .help("an origin is scheme and host, with the port if it isn't the scheme's own, as \"https://app.example.com\"; \"*\" allows all");
        }
    }
    above_zero(findings, "server.write_stall", server.write_stall);
    above_zero(findings, "server.drain", server.drain);
    above_zero(findings, "server.head_after", server.head_after);
    if server.tls.enabled {
        tls(&server.tls, findings);
    }
}

fn tls(tls: &TlsConfig, findings: &mut Findings<'_>) {
    for (key, path, what) in [
        ("server.tls.cert", &tls.cert, "certificate"),
        ("server.tls.key", &tls.key, "private key"),
    ] {
        if path.as_os_str().is_empty() {
            findings.add(key, format!("TLS is enabled and no {what} is named"));
        } else if let Err(error) = std::fs::File::open(path) {
            findings.add(key, format!("cannot read the {what} {}: {error}", path.display()));
        }
    }
}

fn limits(config: &Config, findings: &mut Findings<'_>) {
    let limits = &config.limits;
    if limits.header_bytes < HEADER_BYTES_MIN || limits.header_bytes > 16 << 20 {
        findings.add(
            "limits.header_bytes",
            format!("{} is not between 8 KiB and 16 MiB", size::format(limits.header_bytes)),
        );
    }
    if limits.json_depth > JSON_DEPTH_MAX {
        findings.add(
            "limits.json_depth",
            format!("{} is above {JSON_DEPTH_MAX}", limits.json_depth),
        );
    }
    let counts = [
        ("limits.header_count", limits.header_count as u64),
        ("limits.body_bytes", limits.body_bytes),
        ("limits.json_depth", u64::from(limits.json_depth)),
        ("limits.requests", limits.requests as u64),
        ("limits.connections", limits.connections as u64),
        ("limits.sse_event_bytes", limits.sse_event_bytes),
        ("limits.held_call_bytes", limits.held_call_bytes),
        ("limits.n", u64::from(limits.n)),
        ("limits.max_tokens", limits.max_tokens),
        ("limits.grammar_bytes", limits.grammar_bytes),
    ];
    for (key, _) in counts.iter().filter(|(_, value)| *value == 0) {
        findings.add(*key, "0 would refuse every request");
    }
    above_zero(findings, "limits.header_time", limits.header_time);
    above_zero(findings, "limits.body_time", limits.body_time);
    if limits.buffered_bytes != 0 && limits.buffered_bytes < limits.body_bytes {
        findings
            .add(
                "limits.buffered_bytes",
                format!(
                    "{} for all requests together is less than body_bytes, {} for one",
                    size::format(limits.buffered_bytes),
                    size::format(limits.body_bytes)
                ),
            )
            .help("raise buffered_bytes or lower body_bytes");
    }
}

fn continuation(config: &Config, findings: &mut Findings<'_>) {
    if config.continuation.count == 0 {
        findings
            .add("continuation.count", "0 would let no answer go on")
            .help("enabled = false does that");
    }
    above_zero(findings, "hold.time", config.hold.time);
}

fn tools(config: &Config, findings: &mut Findings<'_>) {
    let tools = &config.tools;
    if tools.reask > REASK_MAX {
        findings.add("tools.reask", format!("{} is above {REASK_MAX}", tools.reask));
    }
    if tools.reask_tokens == 0 {
        findings
            .add("tools.reask_tokens", "0 would leave no token for a call")
            .help("reask = 0 asks no call again");
    }
    above_zero(findings, "tools.reask_time", tools.reask_time);
    above_zero(findings, "tools.release_after", tools.release_after);
}

fn auth(config: &Config, findings: &mut Findings<'_>) {
    let auth = &config.auth;
    if auth.allow_no_key && !config.server.listen.ip().is_loopback() {
        findings
            .add(
                "auth.allow_no_key",
                format!(
                    "without a key everybody who reaches {} could use the models",
                    config.server.listen
                ),
            )
            .help("listen on 127.0.0.1, or make a key with `sluice key new --name NAME` and remove allow_no_key");
    }
    env_name(findings, "auth.key_env", &auth.key_env);
}

fn admin(config: &Config, findings: &mut Findings<'_>) {
    let (admin, server) = (&config.admin, &config.server);
    if !admin.enabled {
        return;
    }
    if admin.listen.port() == 0 {
        findings
            .add(
                "admin.listen",
                "port 0 is any free port: nobody would know where to connect",
            )
            .help("the default is 127.0.0.1:5003");
    }
    if admin.check().is_err() {
        findings
            .add("admin.listen", "it needs no key, and this address is not loopback")
            .help("use 127.0.0.1, or say allow_remote = true");
    }
    let (a, s) = (admin.listen, server.listen);
    if a.port() == s.port() && (a.ip() == s.ip() || a.ip().is_unspecified() || s.ip().is_unspecified()) {
        findings
            .add("admin.listen", format!("the clients' listener has {s} already"))
            .help("give it a port of its own, as 127.0.0.1:5003");
    }
}

fn records(config: &Config, findings: &mut Findings<'_>) {
    if let Err(RecordError::Setting { name, why }) = config.records.check() {
        findings.add(format!("records.{name}"), format!("{name} {why}"));
    }
}

fn log(config: &Config, findings: &mut Findings<'_>) {
    let parsed = tracing_subscriber::EnvFilter::builder().parse(&config.log.level);
    // A bare word is taken for a module's name, and would silence everything else.
    let word = config.log.level.trim();
    let levels = ["error", "warn", "info", "debug", "trace"];
    let bare = !word.contains([',', '=', ':', '[']);
    if parsed.is_err() || (bare && !levels.contains(&word.to_lowercase().as_str())) {
        let finding = findings.add(
            "log.level",
            format!("\"{word}\" is no level: error, warn, info, debug or trace"),
        );
        match nearest(word, &levels) {
            Some(level) => finding.help(format!("did you mean \"{level}\"?")),
            None => finding.help("for one module: \"info,sluice_gateway::flow=debug\""),
        };
    }
}

fn upstream(config: &Config, findings: &mut Findings<'_>) {
    let upstream = &config.upstream;
    for (key, value) in [
        ("upstream.connect", upstream.connect),
        ("upstream.idle", upstream.idle),
        ("upstream.answer", upstream.answer),
        ("upstream.stall", upstream.stall),
    ] {
        above_zero(findings, key, value);
    }
    if upstream.idle >= VLLM_IDLE {
        findings
            .add(
                "upstream.idle",
                format!(
                    "{} is not below the 5s after which vLLM closes an idle connection",
                    duration::format(upstream.idle)
                ),
            )
            .help("the default is \"4s\"");
    }
    if !(1..=ATTEMPTS_MAX).contains(&upstream.attempts) {
        findings
            .add(
                "upstream.attempts",
                format!("{} is not between 1 and {ATTEMPTS_MAX}", upstream.attempts),
            )
            .help("1 = no second try");
    }
    if !(1.0..=100.0).contains(&upstream.load_bound) {
        findings.add(
            "upstream.load_bound",
            format!("{} is not between 1 and 100", upstream.load_bound),
        );
    }
}

fn health(config: &Config, findings: &mut Findings<'_>) {
    let health = &config.health;
    if !HEALTH_PROBE.contains(&health.probe) {
        let given = duration::format(health.probe);
        findings.add("health.probe", format!("{given} is not between 100ms and 5s"));
    }
    if health.hung_after < health.probe.saturating_mul(2) {
        findings
            .add("health.hung_after", "this is less than two looks at the engine")
            .help("raise it, or lower health.probe");
    }
    above_zero(findings, "health.rest", health.rest);
    if health.longest_rest < health.rest {
        findings.add("health.longest_rest", "this is less than health.rest");
    }
    if health.refusals == 0 {
        findings.add("health.refusals", "0 would leave every replica alone");
    }
    if health.trials == 0 {
        findings.add("health.trials", "0 would let no replica come back");
    }
}

fn routing(config: &Config, findings: &mut Findings<'_>) {
    let ratio = config.routing.stay_ratio;
    if !(0.1..=1.0).contains(&ratio) {
        findings.add("routing.stay_ratio", format!("{ratio} is not between 0.1 and 1"));
    }
}

fn admission(config: &Config, findings: &mut Findings<'_>) {
    let admission = &config.admission;
    for (key, value) in [
        ("admission.queue", admission.queue),
        ("admission.queue_of_key", admission.queue_of_key),
    ] {
        if !(1..=QUEUE_MAX).contains(&value) {
            findings
                .add(key, format!("{value} is not between 1 and {QUEUE_MAX}"))
                .help("enabled = false lets nobody wait here");
        }
    }
    above_zero(findings, "admission.queue_wait", admission.queue_wait);
}

fn affinity(config: &Config, findings: &mut Findings<'_>) {
    let affinity = &config.affinity;
    if let Err(fault) = affinity::server(&affinity.url) {
        let finding = findings.add("affinity.url", fault.to_string());
        match fault {
            UrlFault::Form => {
                finding.help("the default is \"redis://127.0.0.1:6379\"");
            }
            UrlFault::Password => finding
                .help("put it into the environment, and the variable's name into password_env")
                .hide_value(),
        };
    }
    env_name(findings, "affinity.password_env", &affinity.password_env);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if affinity.prefix.is_empty() || affinity.prefix.len() > PREFIX_CHARS_MAX || !affinity.prefix.chars().all(is_plain)
    {
        findings.add(
            "affinity.prefix",
            format!("a prefix has 1 to {PREFIX_CHARS_MAX} letters, digits, - _ . or :"),
        );
    }
    if affinity.expiry < AFFINITY_EXPIRY_MIN {
        findings
            .add(
                "affinity.expiry",
                "a conversation takes longer than this between two turns",
            )
            .help("the default is \"2h\"");
    }
    if !AFFINITY_TIMEOUT.contains(&affinity.timeout) {
        let given = duration::format(affinity.timeout);
        findings.add("affinity.timeout", format!("{given} is not between 1ms and 5s"));
    }
}

/// The name that was probably meant, or all that there are.
fn which(name: &str, names: &[&str]) -> String {
    nearest(name, names).map_or_else(
        || format!("the profiles are {}", names.join(", ")),
        |name| format!("did you mean \"{name}\"?"),
    )
}

/// A variable's name, and not the secret itself.
fn env_name(findings: &mut Findings<'_>, key: &str, name: &str) {
    let plain =
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit());
    if !plain {
        findings
            .add(key, "this is no name of an environment variable")
            .help("put the key itself into the environment, and the variable's name here")
            .hide_value();
    }
}

fn above_zero(findings: &mut Findings<'_>, key: &str, value: Duration) {
    if value.is_zero() {
        findings.add(key, "0 would end every request at once");
    }
}
fn is_origin(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        uri.scheme().is_some() && uri.authority().is_some() && matches!(uri.path(), "" | "/") && !text.ends_with('/')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readable_file_is_asked_for_by_tls() {
        let missing = std::path::PathBuf::from("/nonexistent/cert.pem");
        let config = TlsConfig {
            enabled: true,
            cert: missing,
            key: "".into(),
        };
        let overrides = Overrides::default();
        let mut findings = Findings {
            list: Vec::new(),
            overrides: &overrides,
        };
        tls(&config, &mut findings);
        let keys: Vec<&str> = findings.list.iter().map(|f| f.key.as_str()).collect();
        assert_eq!(keys, ["server.tls.cert", "server.tls.key"]);
    }
}
