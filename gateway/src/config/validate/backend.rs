//! `[[backend]]`: names and ids that must be unique, URLs that can be asked, keys that fit the launcher.

use std::collections::{HashMap, hash_map::Entry};

use crate::supervisor::{ExternalConfig, LauncherConfig, ProcessConfig, SettingError};

use super::{
    super::{BackendConfig, Config, ReplicaConfig},
    Findings, env_name, which,
};

/// The longest name of a backend or replica: it stands in headers, metric labels and log lines.
const NAME_CHARS_MAX: usize = 64;

pub(super) fn check(config: &Config, findings: &mut Findings<'_>) {
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
        backend_alone(config, backend, &at, &mut seen, findings);
        for (r, replica) in backend.replica.iter().enumerate() {
            replica_alone(config, replica, &format!("{at}.replica[{r}]"), &mut seen, findings);
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
            Entry::Occupied(first) => Some(first.get().clone()),
            Entry::Vacant(free) => {
                free.insert(key.to_owned());
                None
            }
        }
    }
}

fn backend_alone(config: &Config, backend: &BackendConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
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
    let profiles = config.profile_names();
    if !profiles.contains(&backend.profile.as_str()) {
        findings
            .add(
                format!("{at}.profile"),
                format!("there is no profile \"{}\"", backend.profile),
            )
            .help(which(&backend.profile, &profiles));
    }
    if backend.replica.is_empty() {
        findings.add(at, format!("backend \"{}\" has no [[backend.replica]]", backend.name));
    }
}

fn replica_alone(config: &Config, replica: &ReplicaConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    name(findings, "replica", &replica.name, &format!("{at}.name"), seen);
    if let Err(SettingError { key, problem }) = replica.launcher.check() {
        let finding = findings.add(format!("{at}.{key}"), format!("`{key}` {problem}"));
        if key == "env" {
            finding.hide_value();
        }
        return;
    }
    match &replica.launcher {
        LauncherConfig::External(external) => self::external(config, external, at, seen, findings),
        LauncherConfig::Process(process) => self::process(config, process, at, seen, findings),
        LauncherConfig::Simulated(_) => {}
    }
}

fn external(config: &Config, external: &ExternalConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    let key = format!("{at}.url");
    match url_fault(&external.url) {
        Some((message, help, secret)) => {
            let finding = findings.add(key, message);
            finding.help(help);
            if secret {
                finding.hide_value();
            }
        }
        None => {
            let address = external.url.trim_end_matches('/');
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

fn process(config: &Config, process: &ProcessConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    let (key, port) = (format!("{at}.port"), process.port);
    if port == config.server.listen.port() || (config.admin.enabled && port == config.admin.listen.port()) {
        findings
            .add(key, format!("port {port} is Sluice's own"))
            .help("port = 8000");
    } else if let Some(first) = seen.before("port", &port.to_string(), &key) {
        findings.add(key, format!("port {port} is taken by {first}"));
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
/// Why a URL can't be a replica's, what would mend it, and whether it holds a secret.
fn url_fault(url: &str) -> Option<(String, String, bool)> {
    const FORM: &str = "the form is \"http://127.0.0.1:8000\"";
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
