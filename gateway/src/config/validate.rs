//! What serde can't see: settings that contradict each other, or that can't work on this machine. All are found at once.

use std::{collections::HashMap, time::Duration};

use super::{
    BackendConfig, Config, LauncherKind, Overrides, ReplicaConfig, TlsConfig, duration, reading::nearest, size,
};

/// The longest name of a backend or replica: it stands in headers, metric labels and log lines.
const NAME_CHARS_MAX: usize = 64;
/// hyper's smallest read buffer.
const HEADER_BYTES_MIN: u64 = 8 << 10;
/// vLLM's HTTP server closes an idle connection after this time.
const VLLM_IDLE: Duration = Duration::from_secs(5);
/// An empty database has a few pages already, and retention works in slices of rows.
const RECORDS_BYTES_MIN: u64 = 1 << 20;
/// More threads than this is a slip.
const THREADS_MAX: usize = 1_024;
/// More attempts than this only delay the error.
const ATTEMPTS_MAX: u32 = 10;
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
    upstream(config, &mut findings);
    backends(config, &mut findings);
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
    let (a, s) = (admin.listen, server.listen);
    if a.port() == s.port() && (a.ip() == s.ip() || a.ip().is_unspecified() || s.ip().is_unspecified()) {
        findings
            .add("admin.listen", format!("the clients' listener has {s} already"))
            .help("give it a port of its own, as 127.0.0.1:5003");
    }
}

fn records(config: &Config, findings: &mut Findings<'_>) {
    let records = &config.records;
    if records.queue_rows == 0 {
        findings
            .add("records.queue_rows", "0 would shed every row")
            .help("`enabled = false` switches records off");
    }
    if records.max_age.is_zero() {
        findings
            .add("records.max_age", "0 would keep nothing")
            .help("`enabled = false` switches records off");
    }
    if records.max_bytes < RECORDS_BYTES_MIN {
        findings.add(
            "records.max_bytes",
            format!("{} is less than 1 MiB", size::format(records.max_bytes)),
        );
    }
    if records.path.as_os_str().is_empty() {
        findings
            .add("records.path", "the database has no name")
            .help("the default is \"requests.db\", in the state folder");
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
        ("upstream.stall", upstream.stall),
        ("upstream.probe", upstream.probe),
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

fn backends(config: &Config, findings: &mut Findings<'_>) {
    if config.backend.is_empty() {
        findings
            .add("backend", "no model is served: there is no [[backend]]")
            .help(
                "add one as in the shipped config.toml, or start with `sluice serve --backend http://127.0.0.1:8000`",
            );
    }
    let mut seen = Seen::default();
    for (b, backend) in config.backend.iter().enumerate() {
        let at = format!("backend[{b}]");
        self::backend(backend, &at, &mut seen, findings);
        for (r, replica) in backend.replica.iter().enumerate() {
            self::replica(config, replica, &format!("{at}.replica[{r}]"), &mut seen, findings);
        }
    }
    let unnamed = config.backend.iter().position(|backend| backend.model.is_empty());
    if let (Some(index), true) = (unnamed, config.backend.len() > 1) {
        findings
            .add(
                format!("backend[{index}].name"),
                "with several backends each needs a `model`: requests are told apart by it",
            )
            .help("set it to the id that `/v1/models` of the replica lists");
    }
}

/// What must be unique over the whole file, each value with the key that had it first.
#[derive(Default)]
struct Seen(HashMap<(&'static str, String), String>);

impl Seen {
    /// Says where `value` stood before, if it did.
    fn before(&mut self, kind: &'static str, value: &str, key: &str) -> Option<String> {
        match self.0.entry((kind, value.to_owned())) {
            std::collections::hash_map::Entry::Occupied(first) => Some(first.get().clone()),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(key.to_owned());
                None
            }
        }
    }
}

fn backend(backend: &BackendConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    name(findings, "backend", &backend.name, &format!("{at}.name"), seen);
    let aliases = backend
        .aliases
        .iter()
        .enumerate()
        .map(|(i, alias)| (alias, format!("{at}.aliases[{i}]")));
    let model = std::iter::once((&backend.model, format!("{at}.model"))).filter(|(model, _)| !model.is_empty());
    for (id, key) in model.chain(aliases) {
        if id.is_empty() || id.chars().any(|c| c.is_control() || c == '"') {
            findings.add(
                key,
                "a model id may not be empty and has no quotes or control characters",
            );
        } else if let Some(first) = seen.before("model", id, &key) {
            findings.add(
                key,
                format!("the model id \"{id}\" is taken by {first}: which of the two should a request get?"),
            );
        }
    }
    env_name(findings, &format!("{at}.key_env"), &backend.key_env);
    if backend.profile.is_empty() {
        findings
            .add(format!("{at}.profile"), "the profile has no name")
            .help("the default is \"chunked_only_safe\"");
    }
    if backend.replica.is_empty() {
        findings.add(at, format!("backend \"{}\" has no [[backend.replica]]", backend.name));
    }
}

fn replica(config: &Config, replica: &ReplicaConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    name(findings, "replica", &replica.name, &format!("{at}.name"), seen);
    let key = |name: &str| format!("{at}.{name}");
    let given = [
        ("url", !replica.url.is_empty(), LauncherKind::External),
        ("port", replica.port != 0, LauncherKind::Process),
        ("command", replica.command != ["vllm"], LauncherKind::Process),
        (
            "gpu",
            replica.gpu != crate::simulator::Gpu::default(),
            LauncherKind::Simulated,
        ),
    ];
    for (name, given, owner) in given {
        if given && owner != replica.launcher {
            findings
                .add(
                    key(name),
                    format!("`{name}` has no effect with launcher = \"{}\"", word(replica.launcher)),
                )
                .help(format!("it belongs to launcher = \"{}\"", word(owner)));
        }
    }
    match replica.launcher {
        LauncherKind::External => external(config, replica, at, seen, findings),
        LauncherKind::Process => process(config, replica, at, seen, findings),
        LauncherKind::Simulated => {}
    }
}

fn external(config: &Config, replica: &ReplicaConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    let key = if replica.url.is_empty() {
        at.to_owned()
    } else {
        format!("{at}.url")
    };
    match url_fault(&replica.url) {
        Some((message, help, secret)) => {
            let finding = findings.add(key, message);
            finding.help(help);
            if secret {
                finding.hide_value();
            }
        }
        None => {
            let address = replica.url.trim_end_matches('/');
            if let Some(first) = seen.before("url", address, &key) {
                findings.add(&key, format!("{address} is the address of {first} already"));
            }
            if address.parse::<http::Uri>().is_ok_and(|uri| is_own(config, &uri)) {
                findings
                    .add(&key, format!("{address} is where Sluice itself listens"))
                    .help("move vLLM to another port, as 8000");
            }
        }
    }
}

fn process(config: &Config, replica: &ReplicaConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    let key = format!("{at}.port");
    if replica.port == 0 {
        findings
            .add(key, "launcher = \"process\" needs the port that vLLM is to listen on")
            .help("port = 8000");
    } else if replica.port == config.server.listen.port()
        || (config.admin.enabled && replica.port == config.admin.listen.port())
    {
        findings
            .add(key, format!("port {} is Sluice's own", replica.port))
            .help("port = 8000");
    } else if let Some(first) = seen.before("port", &replica.port.to_string(), &key) {
        findings.add(key, format!("port {} is taken by {first}", replica.port));
    }
    if replica.command.first().is_none_or(|program| program.is_empty()) {
        findings
            .add(format!("{at}.command"), "the command is empty")
            .help("command = [\"vllm\"]");
    }
}

fn name(findings: &mut Findings<'_>, kind: &'static str, name: &str, key: &str, seen: &mut Seen) {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(plain) {
        findings.add(
            key,
            format!("a {kind}'s name has 1 to {NAME_CHARS_MAX} letters, digits, `-`, `_` or `.`"),
        );
    } else if let Some(first) = seen.before(kind, name, key) {
        findings
            .add(key, format!("the name \"{name}\" is taken by {first}"))
            .help(format!("each {kind} needs a name of its own"));
    }
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

fn word(launcher: LauncherKind) -> &'static str {
    match launcher {
        LauncherKind::External => "external",
        LauncherKind::Process => "process",
        LauncherKind::Simulated => "simulated",
    }
}

/// Why a URL can't be a replica's, what would mend it, and whether it holds a secret.
fn url_fault(url: &str) -> Option<(String, String, bool)> {
    const FORM: &str = "the form is \"http://127.0.0.1:8000\"";
    if url.is_empty() {
        return Some((
            "launcher = \"external\" needs the replica's `url`".to_owned(),
            FORM.to_owned(),
            false,
        ));
    }
    let fault = |message: &str| Some((message.to_owned(), FORM.to_owned(), url.contains('@')));
    let Ok(uri) = url.parse::<http::Uri>() else {
        return fault("this is no URL");
    };
    let Some(authority) = uri.authority() else {
        return fault("the URL has no host");
    };
    if authority.as_str().contains('@') {
        let help = "put the key into the environment and name the variable in key_env".to_owned();
        return Some(("a URL holds no user and no password".to_owned(), help, true));
    }
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return fault("replicas are asked over http:// only, TLS to them isn't spoken"),
        _ => return fault("the URL must begin with http://"),
    }
    if authority.host().is_empty() {
        return fault("the URL has no host");
    }
    let has_port = authority.as_str().len() > authority.host().len();
    if has_port && authority.port_u16().is_none_or(|port| port == 0) {
        return fault("the URL's port is not between 1 and 65535");
    }
    if uri.query().is_some() {
        return fault("a replica's URL has no query");
    }
    match uri.path() {
        "" | "/" => None,
        path => {
            let help = format!("leave \"{path}\" out: \"http://{authority}\"");
            Some(("a replica's URL has no path".to_owned(), help, false))
        }
    }
}

/// A replica that is the gateway itself would be a loop.
fn is_own(config: &Config, uri: &http::Uri) -> bool {
    let listen = config.server.listen;
    let local = match uri.host() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| {
            ip == listen.ip() || (ip.is_loopback() && (listen.ip().is_loopback() || listen.ip().is_unspecified()))
        }),
        None => false,
    };
    local && uri.port_u16().unwrap_or(80) == listen.port()
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
