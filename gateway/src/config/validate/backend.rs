//! `[[backend]]`: names and ids that must be unique, URLs that can be asked, keys that fit the launcher.

use std::collections::{HashMap, hash_map::Entry};

use sluice_policy::profile;

use crate::simulator::Gpu;

use super::{
    super::{BackendConfig, Config, LauncherKind, ReplicaConfig},
    Findings, env_name, nearest,
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
        backend_alone(backend, &at, &mut seen, findings);
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

fn backend_alone(backend: &BackendConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
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
    if profile::builtin(&backend.profile).is_none() {
        let names: Vec<&str> = profile::builtins()
            .iter()
            .map(|profile| profile.name.as_str())
            .collect();
        let help = nearest(&backend.profile, &names).map_or_else(
            || format!("the profiles are {}", names.join(", ")),
            |name| format!("did you mean \"{name}\"?"),
        );
        findings
            .add(
                format!("{at}.profile"),
                format!("there is no profile \"{}\"", backend.profile),
            )
            .help(help);
    }
    if backend.replica.is_empty() {
        findings.add(at, format!("backend \"{}\" has no [[backend.replica]]", backend.name));
    }
}

fn replica_alone(config: &Config, replica: &ReplicaConfig, at: &str, seen: &mut Seen, findings: &mut Findings<'_>) {
    name(findings, "replica", &replica.name, &format!("{at}.name"), seen);
    let key = |name: &str| format!("{at}.{name}");
    let given = [
        ("url", !replica.url.is_empty(), LauncherKind::External),
        ("port", replica.port != 0, LauncherKind::Process),
        ("command", replica.command != ["vllm"], LauncherKind::Process),
        ("gpu", replica.gpu != Gpu::default(), LauncherKind::Simulated),
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
