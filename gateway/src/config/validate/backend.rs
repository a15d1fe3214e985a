//! `[[backend]]`: names and ids that must be unique, URLs that can be asked, keys that fit the launcher.

use std::collections::{HashMap, hash_map::Entry};
use std::time::Duration;

use crate::supervisor::{ExternalConfig, LauncherConfig, ProcessConfig, SettingError, is_replica_name};
use crate::upstream::{Address, Tls, UrlFault};

use super::{
    super::{BackendConfig, Config, ReplicaConfig, UpstreamTlsConfig},
    Findings, duration, env_name, which,
};

/// More lookups, or looks at a replica, than one in this time are a load of their own.
const DISCOVERY_LEAST: Duration = Duration::from_millis(100);
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
    fallbacks(config, findings);
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

/// Fallbacks are there, and lead nowhere back.
fn fallbacks(config: &Config, findings: &mut Findings<'_>) {
    let names: Vec<&str> = config.backend.iter().map(|backend| backend.name.as_str()).collect();
    for (b, backend) in config.backend.iter().enumerate() {
        for (f, name) in backend.fallback.iter().enumerate() {
            let key = format!("backend[{b}].fallback[{f}]");
            if !names.contains(&name.as_str()) {
                findings
                    .add(key, format!("there is no backend \"{name}\""))
                    .help(which(name, &names));
            } else if leads_to(config, name, &backend.name) {
                findings.add(
                    key,
                    format!(
                        "\"{name}\" leads back to \"{}\": fallbacks may not go round in a circle",
                        backend.name
                    ),
                );
            }
        }
    }
}

/// Whether the fallbacks of `from`, or it itself, are `to` in the end.
fn leads_to(config: &Config, from: &str, to: &str) -> bool {
    let mut left = vec![from];
    let mut seen = Vec::new();
    while let Some(name) = left.pop() {
        if name == to {
            return true;
        }
        if !seen.contains(&name) {
            seen.push(name);
            let of = config.backend.iter().find(|backend| backend.name == name);
            left.extend(of.iter().flat_map(|backend| &backend.fallback).map(String::as_str));
        }
    }
    false
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
    tls(backend, at, findings);
    discovery(backend, at, findings);
    if backend.replica.is_empty() && !backend.discovery.is_enabled() {
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

fn tls(backend: &BackendConfig, at: &str, findings: &mut Findings<'_>) {
    if backend.tls == UpstreamTlsConfig::default() {
        return;
    }
    if let Err(error) = Tls::read(&backend.tls) {
        findings.add(format!("{at}.tls.{}", error.key()), error.to_string());
    }
}

fn discovery(backend: &BackendConfig, at: &str, findings: &mut Findings<'_>) {
    let discovery = &backend.discovery;
    if !discovery.dns.is_empty() {
        let key = format!("{at}.discovery.dns");
        let (scheme, name) = match discovery.dns.split_once("://") {
            Some((scheme, name)) => (scheme, name),
            None => ("http", discovery.dns.as_str()),
        };
        let has_port = name
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let read = Address::from_url(&format!("{scheme}://{name}"));
        if scheme == "http" && discovery.dns.contains("://") || !has_port || name.ends_with('/') || read.is_err() {
            findings
                .add(key, "a DNS name is given as host and port")
                .help("the form is \"vllm.internal:8000\", or \"https://vllm.internal:8000\" for TLS");
        }
        if !discovery.file.as_os_str().is_empty() {
            findings.add(
                format!("{at}.discovery.file"),
                "replicas are found by `dns` or by `file`: not by both",
            );
        }
    }
    if discovery.is_enabled() {
        for (key, time) in [("interval", discovery.interval), ("probe", discovery.probe)] {
            if time < DISCOVERY_LEAST {
                findings.add(
                    format!("{at}.discovery.{key}"),
                    format!(
                        "{} is below {}",
                        duration::format(time),
                        duration::format(DISCOVERY_LEAST)
                    ),
                );
            }
        }
    }
}

fn external(config: &Config, external: &ExternalConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    let key = format!("{at}.url");
    let shown = external.url.trim_end_matches('/');
    match Address::from_url(&external.url) {
        Err(fault) => {
            let finding = findings.add(key, fault.to_string());
            finding.help(form(&external.url, &fault));
            if external.url.contains('@') {
                finding.hide_value();
            }
        }
        Ok(address) => {
            if let Some(first) = seen.before("url", &address.url(), &key) {
                findings.add(&key, format!("{shown} is the address of {first} already"));
            }
            // A replica that is the gateway itself would be a loop.
            if address.leads_to(config.server.listen) {
                findings
                    .add(&key, format!("{shown} is where Sluice itself listens"))
                    .help("move vLLM to another port, as 8000");
            }
        }
    }
}

/// What would mend a URL.
fn form(url: &str, fault: &UrlFault) -> String {
    match fault {
        UrlFault::Credentials => "put the key into the environment and name the variable in key_env".to_owned(),
        UrlFault::Path(path) => {
            let bare = url.strip_suffix(path.as_str()).unwrap_or("http://127.0.0.1:8000");
            format!("leave \"{path}\" out: \"{bare}\"")
        }
        _ => "the form is \"http://127.0.0.1:8000\"".to_owned(),
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
    } else if kind == "replica" && !is_replica_name(name) {
        findings.add(
            key,
            "a replica's name doesn't begin with `.`: it is the name of its files",
        );
    } else if let Some(first) = seen.before(kind, name, key) {
        findings
            .add(key, format!("the name \"{name}\" is taken by {first}"))
            .help(format!("each {kind} needs a name of its own"));
    }
}
