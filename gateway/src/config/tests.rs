//! The file as a whole: its defaults, its errors. The sections' own tests stand in their files.

use std::{collections::BTreeMap, path::PathBuf};

use toml::de::{DeTable, DeValue};

use super::*;
use crate::simulator::{FaultRates, Setup, SimConfig};
use crate::supervisor::{ExternalConfig, LauncherConfig, OnExit, ProcessConfig};

/// The design folder: `SLUICE_SHARED`, else `shared` beside the workspace.
fn shared(file: &str) -> String {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let folder =
        std::env::var_os("SLUICE_SHARED").map_or_else(|| PathBuf::from(workspace).join("../shared"), PathBuf::from);
    let path = folder.join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!(
            "{}: {error} (set SLUICE_SHARED to the folder with the design)",
            path.display()
        )
    })
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("config.toml", text, &Overrides::default())
}

/// What the tests of errors break. Not the shipped file: its lines move whenever a setting is added.
const SMALL: &str = r#"[server]
listen = "127.0.0.1:5002"
threads = 0
write_stall = "60s"
drain = "120s"

[limits]
body_bytes = "64 MiB"

[auth]
allow_no_key = false

[records]
queue_rows = 10000

[reasoning]
names = "both"

[tools]
parsing = "gateway"

[upstream]
attempts = 3

[[backend]]
name = "qwen3"
profile = "chunked_only_safe"

[[backend.replica]]
name = "sim-a"
launcher = "simulated"
gpu = "h100"
"#;

#[test]
fn the_shipped_file_is_the_default_and_two_simulated_replicas() {
    let shipped = parse(SHIPPED).unwrap_or_else(|error| panic!("{error}"));
    let replicas = vec![ReplicaConfig::simulated("sim-a"), ReplicaConfig::simulated("sim-b")];
    let backend = BackendConfig {
        model: "Qwen/Qwen3-32B-AWQ".to_owned(),
        ..BackendConfig::new("qwen3", replicas)
    };
    assert_eq!(
        shipped,
        Config {
            backend: vec![backend],
            ..Config::default()
        }
    );
}

/// Every key of the structs stands in the file, with a comment above it; the file has no other (serde refuses those).
#[test]
fn the_shipped_file_states_and_explains_every_setting() {
    let shipped = parse(SHIPPED).unwrap();
    let written = toml::to_string(&shipped).unwrap();
    let wanted = keys(&written);
    let stated = keys(SHIPPED);
    for key in wanted.keys().filter(|key| !key.starts_with("backend.replica.")) {
        assert!(stated.contains_key(key), "config.toml doesn't state {key}");
    }
    let mut explained = std::collections::HashSet::new();
    let lines: Vec<&str> = SHIPPED.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let commented = lines[number - 1].starts_with('#');
        // The second replica needs no second explanation.
        assert!(
            commented || explained.contains(key),
            "config.toml:{}: `{key}` has no comment",
            number + 1
        );
        explained.insert(key);
    }
}

/// The commented-out lines of the shipped file with their mark taken off, one text for each run of them.
fn commented_out() -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in SHIPPED.lines() {
        match (line.strip_prefix("#   "), blocks.last_mut()) {
            (Some(line), Some(block)) => *block += &format!("{line}\n"),
            (None, Some(block)) if !block.is_empty() => blocks.push(String::new()),
            _ => {}
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// What stands commented out is valid, states every key that a launcher takes, and gives its default.
#[test]
fn what_is_commented_out_is_every_launchers_default() {
    let [profile, external, process, simulated] = &commented_out()[..] else {
        panic!("config.toml has other examples than these four: {:?}", commented_out())
    };
    let simulated =
        format!("[[backend.replica]]\nname = \"vllm-a\"\nlauncher = \"simulated\"\ngpu = \"h100\"\n{simulated}");
    for (text, launcher) in [
        (
            external,
            LauncherConfig::External(ExternalConfig::at("http://127.0.0.1:8000")),
        ),
        (process, LauncherConfig::Process(ProcessConfig::on_port(8000))),
        (&simulated, LauncherConfig::Simulated(Box::default())),
    ] {
        let text = format!("{profile}\n[[backend]]\nname = \"b\"\nprofile = \"short\"\n{text}");
        let read = parse(&text).unwrap_or_else(|error| panic!("{error}"));
        let expect = ReplicaConfig::new("vllm-a", launcher);
        assert_eq!(read.backend[0].replica, std::slice::from_ref(&expect));
        let written = toml::to_string(&Config {
            backend: vec![BackendConfig::new("b", vec![expect])],
            ..Config::default()
        })
        .unwrap();
        let stated = keys(&text);
        for key in keys(&written).keys().filter(|key| key.starts_with("backend.replica.")) {
            assert!(stated.contains_key(key), "config.toml doesn't state {key}");
        }
    }
}

/// What `check-config --effective` prints is a configuration, whatever the launchers.
#[test]
fn every_launcher_reads_back_as_it_was_written() {
    let mut process = ProcessConfig::on_port(8_001);
    process.env.insert("CUDA_VISIBLE_DEVICES".to_owned(), "0".to_owned());
    process.on_exit = OnExit::Leave;
    process.stop_grace = std::time::Duration::from_millis(1_500);
    let simulated = SimConfig {
        setup: Setup::Parsers,
        faults: FaultRates {
            stall: 0.25,
            ..FaultRates::default()
        },
        ..SimConfig::default()
    };
    let replicas = vec![
        ReplicaConfig::external("a", "http://127.0.0.1:8000"),
        ReplicaConfig::new("b", LauncherConfig::Process(process)),
        ReplicaConfig::new("c", LauncherConfig::Simulated(Box::new(simulated))),
    ];
    let changes = serde_json::json!({"max_num_seqs": 4, "hf_overrides": {"a": {"b": 1.5}}});
    let mine = ProfileTable {
        base: "chunked_only_safe".to_owned(),
        changes: changes.as_object().unwrap().clone(),
    };
    let config = Config {
        profile: BTreeMap::from([("mine".to_owned(), mine)]),
        backend: vec![BackendConfig::new("qwen3", replicas)],
        ..Config::default()
    };
    let text = toml::to_string(&config).unwrap();
    assert_eq!(parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}")), config);
}

/// Key paths without indices, each with its value as written.
fn keys(text: &str) -> BTreeMap<String, String> {
    fn walk(table: &DeTable<'_>, above: &str, text: &str, into: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let path = if above.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{above}.{}", key.get_ref())
            };
            match value.get_ref() {
                DeValue::Table(table) => walk(table, &path, text, into),
                DeValue::Array(items) if items.iter().any(|item| item.get_ref().is_table()) => {
                    items
                        .iter()
                        .filter_map(|item| item.get_ref().as_table())
                        .for_each(|t| walk(t, &path, text, into));
                }
                _ => {
                    into.insert(path, text[value.span()].to_owned());
                }
            }
        }
    }
    let mut into = BTreeMap::new();
    walk(DeTable::parse(text).unwrap().get_ref(), "", text, &mut into);
    into
}

/// One limit of behaviour.md's table and what this build has for it.
enum Row {
    /// The settings, in the order of the row.
    Set(&'static [&'static str]),
    /// Comes with a later issue, or is no setting.
    Later,
}

/// The rows of "Defaults" in behaviour.md. A row that appears there and not here fails the test, and so does the reverse.
const ROWS: [(&str, Row); 18] = [
    (
        "header bytes / count",
        Row::Set(&["limits.header_bytes", "limits.header_count"]),
    ),
    (
        "body bytes / time / JSON depth",
        Row::Set(&["limits.body_bytes", "limits.body_time", "limits.json_depth"]),
    ),
    ("buffered bytes, process", Row::Set(&["limits.buffered_bytes"])),
    ("keep-alive comment", Row::Set(&["server.keep_alive"])),
    ("head_after / queue_wait", Row::Set(&["server.head_after", "later"])),
    ("queue", Row::Later),
    ("write stall", Row::Set(&["server.write_stall"])),
    ("upstream idle connection", Row::Set(&["upstream.idle"])),
    (
        "one SSE event / one held call",
        Row::Set(&["limits.sse_event_bytes", "limits.held_call_bytes"]),
    ),
    ("connect", Row::Set(&["upstream.connect"])),
    ("attempts before the first data line", Row::Set(&["upstream.attempts"])),
    ("inter-token stall", Row::Set(&["upstream.stall"])),
    ("first token", Row::Later),
    ("hung", Row::Later),
    ("hold", Row::Set(&["hold.time", "hold.count"])),
    ("drain", Row::Set(&["server.drain"])),
    ("re-ask", Row::Later),
    ("session idle / index size", Row::Later),
];

#[test]
fn every_default_of_the_design_is_the_default() {
    let stated = keys(SHIPPED);
    let mut table = design_defaults();
    for (row, here) in &ROWS {
        let Some(wanted) = table.remove(*row) else {
            panic!("behaviour.md has no row {row:?} any more")
        };
        let Row::Set(settings) = here else { continue };
        let wanted = wanted.replace(", ", " / ");
        let parts: Vec<&str> = wanted.split(" / ").collect();
        assert_eq!(parts.len(), settings.len(), "{row}: {wanted}");
        for (part, setting) in parts.iter().zip(*settings).filter(|(_, setting)| **setting != "later") {
            let value = stated
                .get(*setting)
                .unwrap_or_else(|| panic!("config.toml has no {setting}"));
            assert_eq!(
                amount(value),
                amount(part),
                "{row}: behaviour.md says {part}, config.toml {setting} = {value}"
            );
        }
    }
    assert!(
        table.is_empty(),
        "behaviour.md has rows that nothing here accounts for: {table:?}"
    );
}

/// Limit → default, from the last table of behaviour.md.
fn design_defaults() -> BTreeMap<String, String> {
    let text = shared("design/behaviour.md");
    let (_, section) = text
        .split_once("## Defaults")
        .expect("behaviour.md has a section Defaults");
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    let mut table = BTreeMap::new();
    for line in rows {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [left, left_value, _, right, right_value] = cells[..] else {
            panic!("not a row of five: {line}")
        };
        table.insert(left.to_owned(), left_value.to_owned());
        table.insert(right.to_owned(), right_value.to_owned());
    }
    table
}

#[derive(Debug, PartialEq)]
enum Amount {
    Time(std::time::Duration),
    Bytes(u64),
    Count(u64),
    QuarterOfMemory,
}

/// A default as the design or the file writes it: "60 s", "\"64 MiB\"", "5 s (0 = off)", "128".
fn amount(text: &str) -> Amount {
    let text = text.trim_matches('"').split(" (").next().unwrap();
    let text = text.trim_end_matches(" requests");
    let number = text.replace(',', "");
    if text == "1 GiB or a quarter of memory" || text == "0" {
        // 0 is resolved at start; `limits` tests to what.
        Amount::QuarterOfMemory
    } else if let Ok(count) = number.parse() {
        Amount::Count(count)
    } else if let Ok(bytes) = size::parse(text) {
        Amount::Bytes(bytes)
    } else {
        Amount::Time(duration::parse(text).unwrap_or_else(|_| panic!("{text:?} is no amount")))
    }
}

/// What a person sees for the small file with `line` put in place of another.
fn refusal(line: &str, instead: &str) -> String {
    assert!(parse(SMALL).is_ok() && SMALL.contains(line), "{line}");
    parse(&SMALL.replacen(line, instead, 1))
        .expect_err("this configuration should be refused")
        .to_string()
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest_valid_one() {
    insta::assert_snapshot!("unknown_key", refusal("write_stall = \"60s\"", "write_stal = \"60s\""));
    insta::assert_snapshot!(
        "key_of_another_section",
        refusal("write_stall = \"60s\"", "attempts = 3")
    );
    insta::assert_snapshot!("unknown_section", refusal("[reasoning]", "[reasonings]"));
    insta::assert_snapshot!(
        "no_key_is_near",
        refusal("allow_no_key = false", "password = \"hunter2\"")
    );
}

/// The launcher's settings stand flat beside the name; errors name the very key all the same.
#[test]
fn a_wrong_setting_of_a_replica_is_shown_where_it_stands() {
    let launcher = "launcher = \"simulated\"\ngpu = \"h100\"";
    let replica = |instead: &str| refusal(launcher, instead);
    insta::assert_snapshot!("unknown_key_of_a_replica", refusal("gpu = \"h100\"", "gpus = \"h100\""));
    insta::assert_snapshot!(
        "misspelt_name_of_a_replica",
        refusal("name = \"sim-a\"", "nmae = \"sim-a\"")
    );
    insta::assert_snapshot!(
        "unknown_launcher",
        refusal("launcher = \"simulated\"", "launcher = \"simulator\"")
    );
    insta::assert_snapshot!("no_launcher", replica("port = 8000"));
    insta::assert_snapshot!(
        "key_of_another_launcher",
        replica("launcher = \"process\"\nport = 8000\nurl = \"http://127.0.0.1:8000\"")
    );
    insta::assert_snapshot!(
        "duration_of_a_launcher",
        replica("launcher = \"process\"\nport = 8000\nstop_grace = 30")
    );
    insta::assert_snapshot!("no_port", replica("launcher = \"process\""));
    insta::assert_snapshot!("no_url", replica("launcher = \"external\"\nprobe = \"1s\""));
    insta::assert_snapshot!(
        "fault_of_the_simulator",
        replica("launcher = \"simulated\"\nfaults.stal = 0.1")
    );
    insta::assert_snapshot!(
        "range_of_the_simulator",
        replica("launcher = \"simulated\"\nspeed = -1")
    );
    insta::assert_snapshot!(
        "key_in_env",
        replica("launcher = \"process\"\nport = 8000\nenv = { VLLM_API_KEY = \"sk-secret\" }")
    );
}

/// With two things wrong the one that is read first comes, at its own place.
#[test]
fn a_wrong_replica_hides_no_other_error() {
    let text = SMALL
        .replace("allow_no_key = false", "allow_no_kye = false")
        .replace("gpu = \"h100\"", "gpus = 1");
    let error = parse(&text).expect_err("refused");
    let keys: Vec<&str> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["auth.allow_no_kye"]);
    assert!(error.problems()[0].place.is_some());
}

#[test]
fn a_profile_of_ones_own_is_a_built_in_one_and_what_differs() {
    let text = SMALL.replace("profile = \"chunked_only_safe\"", "profile = \"mine\"")
        + "[profile.mine]\nbase = \"chunked_only_safe\"\nmax_num_seqs = 4\nprefix_caching = true\ndtype = \"engine-default\"\n";
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let mine = config.profile("mine").unwrap();
    let base = config.profile("chunked_only_safe").unwrap();
    assert_eq!(mine.max_num_seqs.set(), Some(&4));
    assert_eq!(mine.prefix_caching.set(), Some(&true));
    assert_eq!((&mine.name[..], &mine.model), ("mine", &base.model));
    assert_eq!(config.profile("nobody's"), None);
}

#[test]
fn a_wrong_profile_is_shown_where_it_stands() {
    let text = SMALL.replace("profile = \"chunked_only_safe\"", "profile = \"mime\"")
        + r#"
[profile.mine]
base = "chunked_only_safe"
max_num_seq = 4
prefix_caching = "yes"
gpu_memory_utilization = 1.5
extra_args = ["--api-key", "sk-secret"]
[profile.other]
base = "chunked_only"
[profile.safe_conservative]
base = "safe_conservative"
"#;
    let error = parse(&text).expect_err("refused");
    insta::assert_snapshot!("own_profiles", error.to_string());
    assert!(!error.to_string().contains("sk-secret"), "{error}");
    let text = format!("{SMALL}[profile.mine]\nmax_num_seqs = 4\n");
    insta::assert_snapshot!("profile_without_base", parse(&text).expect_err("refused").to_string());
}

/// The comment above the example names every setting of a profile.
#[test]
fn the_shipped_file_names_every_setting_of_a_profile() {
    let profile = serde_json::to_value(&sluice_policy::profile::builtins()[0]).unwrap();
    let (_, after) = SHIPPED.split_once("#   [profile.").unwrap();
    let comment = after.split("\n\n").next().unwrap();
    for key in profile.as_object().unwrap().keys().filter(|key| *key != "name") {
        assert!(comment.contains(key.as_str()), "config.toml doesn't name {key}");
    }
    for builtin in sluice_policy::profile::builtins() {
        assert!(
            SHIPPED.contains(&builtin.name),
            "config.toml doesn't name {}",
            builtin.name
        );
    }
}

#[test]
fn a_wrong_value_is_shown_with_what_was_expected() {
    insta::assert_snapshot!("no_unit", refusal("drain = \"120s\"", "drain = 120"));
    insta::assert_snapshot!(
        "wrong_unit",
        refusal("body_bytes = \"64 MiB\"", "body_bytes = \"64 MB\"")
    );
    insta::assert_snapshot!("wrong_type", refusal("threads = 0", "threads = \"all\""));
    insta::assert_snapshot!(
        "wrong_address",
        refusal("listen = \"127.0.0.1:5002\"", "listen = \"localhost:5002\"")
    );
    insta::assert_snapshot!("unknown_value", refusal("names = \"both\"", "names = \"all\""));
    insta::assert_snapshot!("near_value", refusal("parsing = \"gateway\"", "parsing = \"gatway\""));
    insta::assert_snapshot!("missing_key", refusal("name = \"sim-a\"\n", ""));
    insta::assert_snapshot!("negative", refusal("attempts = 3", "attempts = -1"));
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    insta::assert_snapshot!("not_toml", refusal("threads = 0", "threads = = 0"));
    insta::assert_snapshot!("twice", refusal("threads = 0", "threads = 0\nthreads = 1"));
}

/// The supervisor would refuse it: it is the name of its files.
#[test]
fn a_replica_is_not_called_like_a_hidden_file() {
    let text = |name: &str| {
        format!(
            "[[backend]]\nname = \".b\"\n[[backend.replica]]\nname = \"{name}\"\nlauncher = \"external\"\nurl = \"http://127.0.0.1:8000\"\n"
        )
    };
    assert!(parse(&text("x")).is_ok());
    let error = parse(&text(".x")).expect_err("refused").to_string();
    assert!(error.contains("doesn't begin with `.`"), "{error}");
}

#[test]
fn contradictions_are_all_reported_at_once() {
    let text = r#"
[server]
listen = "0.0.0.0:5002"
cors_origins = ["https://app.example.com", "app.example.com"]
[server.tls]
enabled = true
cert = "/nonexistent/cert.pem"
[limits]
header_bytes = "4 KiB"
buffered_bytes = "1 MiB"
[auth]
allow_no_key = true
[admin]
listen = "127.0.0.1:5002"
[log]
level = "wran"
[upstream]
idle = "5s"
attempts = 0
load_bound = 0.5
[[backend]]
name = "one"
aliases = ["small"]
key_env = "sk-abcdef0123456789"
[[backend.replica]]
name = "a"
launcher = "external"
url = "http://127.0.0.1:8000/v1"
[[backend.replica]]
name = "a"
launcher = "process"
command = []
[[backend]]
name = "two words"
model = "small"
[[backend.replica]]
name = "b"
launcher = "external"
url = "http://ada:sk-secret@127.0.0.1:8000"
"#;
    let error = parse(text).expect_err("refused");
    let keys: Vec<&str> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    insta::assert_snapshot!("contradictions", error.to_string());
    assert!(
        error.problems().iter().all(|problem| problem.place.is_some()),
        "{keys:?}"
    );
    for secret in ["sk-abcdef", "sk-secret"] {
        assert!(!error.to_string().contains(secret), "an error shows a secret:\n{error}");
    }
}

/// Errors go to the log; a key pasted under an unknown name must not.
#[test]
fn an_error_never_shows_the_value_of_an_unknown_key() {
    for text in [
        "[auth]\nkey = \"sk-secret\"\n",
        "[auth]\nkey = sk-secret\n",
        "sk = 'sk-secret'\n",
        "auth = { key = 'sk-secret' }\n",
        "[auth]\nallow_no_key = \"sk-secret\"\n",
        "[auth]\nkey_env = [\"sk-secret\"]\n",
        "[auth]\nsk-secret\n",
        "[auth]\nkey_env = \"\"\"\nsk-secret\n",
    ] {
        let error = parse(text).expect_err("refused").to_string();
        assert!(!error.contains("sk-secret"), "{error}");
    }
}

#[test]
fn a_replica_url_that_cannot_work_is_refused_with_the_reason() {
    let refusal = |url: &str| {
        let overrides = Overrides {
            backend: Some(source::BackendOverride {
                url: url.to_owned(),
                key_env: String::new(),
            }),
            ..Overrides::default()
        };
        Config::parse("built-in", SHIPPED, &overrides)
            .map_or_else(|e| e.problems()[0].message.clone(), |_| "taken".to_owned())
    };
    for (url, expect) in [
        ("http://127.0.0.1:8000", "taken"),
        ("http://127.0.0.1:8000/", "taken"),
        ("http://vllm", "taken"),
        ("http://[::1]:8000", "taken"),
        ("127.0.0.1:8000", "the URL must begin with http:// or https://"),
        ("https://127.0.0.1:8000", "taken"),
        ("http://127.0.0.1:0", "the URL's port is not between 1 and 65535"),
        ("http://127.0.0.1:70000", "the URL's port is not between 1 and 65535"),
        ("http://127.0.0.1:8000/v1", "a replica's URL has no path"),
        ("http://127.0.0.1:8000?x=1", "a replica's URL has no query"),
        ("http://ada:pw@127.0.0.1:8000", "a URL holds no user and no password"),
        ("http://", "this is no URL"),
        ("", "`url` must be given, as \"http://127.0.0.1:8000\""),
        (
            "http://127.0.0.1:5002",
            "http://127.0.0.1:5002 is where Sluice itself listens",
        ),
        (
            "http://localhost:5002",
            "http://localhost:5002 is where Sluice itself listens",
        ),
    ] {
        assert_eq!(refusal(url), expect, "{url:?}");
    }
}

#[test]
fn tls_to_replicas_that_cannot_work_is_refused_where_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let refusal = |key: &str, value: &str| {
        let text = SHIPPED.replacen(&format!("\n{key} = \"\"\n"), &format!("\n{key} = {value:?}\n"), 1);
        // The first `cert` is the listener's.
        let text = match key {
            "cert" | "key" => {
                let (head, tls) = SHIPPED.split_once("[backend.tls]").unwrap();
                let tls = tls.replacen(&format!("\n{key} = \"\"\n"), &format!("\n{key} = {value:?}\n"), 1);
                format!("{head}[backend.tls]{tls}")
            }
            _ => text,
        };
        assert_ne!(text, SHIPPED, "{key}");
        Config::parse("built-in", &text, &Overrides::default()).map_or_else(|e| e.to_string(), |_| "taken".to_owned())
    };
    let nowhere = folder.path().join("nowhere.pem");
    for (key, value, expect) in [
        ("ca", nowhere.to_str().unwrap(), "nowhere.pem"),
        ("ca", empty.to_str().unwrap(), "no certificate of an authority in it"),
        (
            "cert",
            empty.to_str().unwrap(),
            "`cert` and `key` are given together or not at all",
        ),
        ("server_name", "not a name", "is no host name"),
        ("server_name", "gpu-box", "taken"),
    ] {
        let found = refusal(key, value);
        assert!(found.contains(expect), "{key} = {value}: {found}");
    }
}

#[test]
fn a_server_of_affinity_that_cannot_work_is_refused_where_it_stands_and_without_its_password() {
    for (line, instead, expect) in [
        ("url = \"redis://127.0.0.1:6379\"", "url = \"http://h\"", "affinity.url"),
        (
            "url = \"redis://127.0.0.1:6379\"",
            "url = \"redis://:hunter2@h\"",
            "password_env",
        ),
        (
            "password_env = \"\"",
            "password_env = \"hunter2!\"",
            "affinity.password_env",
        ),
        ("prefix = \"sluice\"", "prefix = \"a b\"", "affinity.prefix"),
        ("expiry = \"2h\"", "expiry = \"0s\"", "affinity.expiry"),
        ("timeout = \"20ms\"", "timeout = \"1m\"", "affinity.timeout"),
    ] {
        let text = SHIPPED.replacen(line, instead, 1);
        assert_ne!(text, SHIPPED, "{line}");
        let error = parse(&text).expect_err("refused").to_string();
        assert!(
            error.contains(expect) && !error.contains("hunter2"),
            "{instead}: {error}"
        );
    }
}

#[test]
fn fallbacks_that_lead_nowhere_or_in_a_circle_are_refused_where_they_stand() {
    let backend = |name: &str, fallback: &str| {
        format!(
            "[[backend]]\nname = \"{name}\"\nmodel = \"{name}\"\nfallback = [{fallback}]\n[[backend.replica]]\nname = \"{name}-r\"\nlauncher = \"simulated\"\n"
        )
    };
    let refusals = |backends: [(&str, &str); 3]| -> Vec<String> {
        let text: String = backends
            .iter()
            .map(|(name, fallback)| backend(name, fallback))
            .collect();
        let config = Config::parse("file", &text, &Overrides::default());
        let problems = config.map_or_else(|error| error.problems().to_vec(), |_| Vec::new());
        problems
            .into_iter()
            .map(|problem| format!("{}: {}", problem.key, problem.message))
            .collect()
    };
    assert_eq!(
        refusals([("a", "\"b\", \"c\""), ("b", "\"c\""), ("c", "")]),
        [] as [&str; 0]
    );
    assert_eq!(
        refusals([("a", "\"d\""), ("b", "\"b\""), ("c", "")]),
        [
            "backend[0].fallback[0]: there is no backend \"d\"",
            "backend[1].fallback[0]: \"b\" leads back to \"b\": fallbacks may not go round in a circle",
        ]
    );
    let circle = refusals([("a", "\"b\""), ("b", "\"c\""), ("c", "\"a\"")]);
    assert_eq!(circle.len(), 3, "{circle:?}");
}

#[test]
fn the_command_line_takes_the_place_of_the_file() {
    let backend = source::BackendOverride {
        url: "http://127.0.0.1:8000".to_owned(),
        key_env: "VLLM_KEY".to_owned(),
    };
    let overrides = Overrides {
        listen: Some("127.0.0.1:6000".parse().unwrap()),
        backend: Some(backend),
    };
    let config = Config::parse("built-in", SHIPPED, &overrides).unwrap();
    assert_eq!(config.server.listen.port(), 6000);
    assert_eq!(config.backend.len(), 1);
    assert_eq!(config.backend[0].key_env, "VLLM_KEY");
    assert_eq!(
        config.backend[0].replica,
        [ReplicaConfig::external("vllm", "http://127.0.0.1:8000")]
    );
    // What the flags cause is laid at their door, not at a line of the file.
    let backend = source::BackendOverride {
        url: "http://127.0.0.1:8000".to_owned(),
        key_env: "1 2".to_owned(),
    };
    let overrides = Overrides {
        listen: Some("0.0.0.0:0".parse().unwrap()),
        backend: Some(backend),
    };
    let error = Config::parse("built-in", SHIPPED, &overrides).expect_err("refused");
    let keys: Vec<&str> = error.problems().iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["--listen", "--backend-key-env"]);
    assert!(error.problems().iter().all(|problem| problem.place.is_none()));
}

#[test]
fn a_missing_and_an_oversized_file_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let error = Config::load(&file).expect_err("missing").to_string();
    assert!(
        error.contains("config.toml") && error.contains("No such file"),
        "{error}"
    );
    std::fs::write(&file, "#".repeat(FILE_BYTES_MAX as usize + 1)).unwrap();
    let error = Config::load(&file).expect_err("too large").to_string();
    assert!(error.contains("larger than 1 MiB"), "{error}");
}

#[test]
fn a_profile_that_does_not_exist_is_refused_with_the_nearest() {
    insta::assert_snapshot!(
        "profile",
        refusal("profile = \"chunked_only_safe\"", "profile = \"chunked_only\"")
    );
    insta::assert_snapshot!(
        "no_near_profile",
        refusal("profile = \"chunked_only_safe\"", "profile = \"mine\"")
    );
}

#[test]
fn records_are_judged_by_their_own_room() {
    insta::assert_snapshot!("records", refusal("queue_rows = 10000", "queue_rows = 0"));
}

#[test]
fn the_file_is_looked_for_in_the_usual_places() {
    let home = tempfile::tempdir().unwrap();
    let env = |name: &str| (name == "HOME").then(|| home.path().as_os_str().to_owned());
    let named = Source::find(Some("here.toml".into()), Overrides::default(), env);
    assert_eq!(named.origin, Origin::Named("here.toml".into()));
    // The tests run in the package's folder, which has no config.toml.
    assert_eq!(Source::find(None, Overrides::default(), env).origin, Origin::BuiltIn);
    let file = home.path().join(".config/sluice/config.toml");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, SHIPPED).unwrap();
    let found = Source::find(None, Overrides::default(), env);
    assert_eq!(found.origin, Origin::Found(file));
    assert_eq!(found.load().unwrap(), parse(SHIPPED).unwrap());
}
