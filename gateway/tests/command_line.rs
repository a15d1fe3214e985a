//! The program as a shell sees it: exit codes, standard output and error, closed pipes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use sluice_gateway::record::{self, Record, RecordConfig};

/// `sluice` in a folder of its own, with nothing of the caller's environment that it looks at.
fn sluice(home: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command
        .args(args)
        .current_dir(home)
        .env("HOME", home)
        .stdin(Stdio::null());
    for name in [
        "STATE_DIRECTORY",
        "XDG_STATE_HOME",
        "XDG_CONFIG_HOME",
        "VLLM_MEDIUM_API_KEY",
        "NO_COLOR",
    ] {
        command.env_remove(name);
    }
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    sluice(home, args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The folder with the vectors: `SLUICE_SHARED`, else `shared` beside the workspace.
fn vectors() -> PathBuf {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared"));
    let folder = std::env::var_os("SLUICE_SHARED")
        .map_or_else(beside, PathBuf::from)
        .join("vllm/vectors");
    assert!(
        folder.is_dir(),
        "{} is missing (set SLUICE_SHARED to the folder with the vectors)",
        folder.display()
    );
    folder
}

#[test]
fn exit_codes_tell_the_cause() {
    let home = home();
    let bad = home.path().join("bad.toml");
    fs::write(&bad, "[server]\nlisen = \"127.0.0.1:5002\"\n").unwrap();
    let bad = bad.to_str().unwrap();
    for (args, code, says) in [
        (&["--help"][..], 0, ""),
        (&["--version"], 0, ""),
        (&["check-config"], 0, ""),
        (&["requests", "--file", "nowhere.db"], 1, "error: no records at"),
        (&["key", "revoke", "nobody"], 1, "error: there is no key \"nobody\""),
        (&["parse", "/nonexistent"], 1, "error: cannot read /nonexistent"),
        (&[], 2, "Usage:"),
        (&["serv"], 2, "similar subcommand"),
        (&["check-config", "--config", bad], 3, "did you mean `listen`?"),
        (
            &["check-config", "--config", "/nonexistent.toml"],
            3,
            "error: cannot read the configuration /nonexistent.toml",
        ),
        (&["key", "list", "--config", bad], 3, "did you mean `listen`?"),
        (&["stats", "--config", bad], 3, "bad.toml:2:1"),
        (&["serve", "--config", bad], 3, "bad.toml:2:1"),
        (&["serve", "--backend", "ftp://127.0.0.1:8000"], 3, "= key: --backend"),
        (
            &["serve", "--listen", "127.0.0.1:5003"],
            3,
            "the clients' listener has 127.0.0.1:5003 already",
        ),
        (&["simulate", "--fault", "stal=0.1"], 3, "did you mean `stall`?"),
        (&["simulate", "--speed", "-1"], 2, "unexpected argument"),
        (&["simulate", "--set", "speed=-1"], 1, "speed"),
    ] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(code), "{args:?}\n{}", stderr(&output));
        assert!(stderr(&output).contains(says), "{args:?}\n{}", stderr(&output));
        assert!(
            !stderr(&output).contains('\x1b'),
            "colour without a terminal: {}",
            stderr(&output)
        );
        assert_eq!(stdout(&output).is_empty(), code != 0, "{args:?}\n{}", stdout(&output));
    }
}

#[test]
fn check_config_says_what_the_file_comes_to() {
    let home = home();
    let built_in = stdout(&run(home.path(), &["check-config"]));
    assert!(
        built_in.ends_with("valid; 1 model, 2 replicas (2 simulated), clients on http://127.0.0.1:5002\n"),
        "{built_in}"
    );
    // What it prints as effective is a configuration with the same effect.
    let effective = stdout(&run(home.path(), &["check-config", "--effective"]));
    fs::write(home.path().join("config.toml"), &effective).unwrap();
    assert_eq!(stdout(&run(home.path(), &["check-config", "--effective"])), effective);
    let found = stdout(&run(home.path(), &["check-config"]));
    assert!(found.starts_with("config.toml: valid;"), "{found}");
}

#[test]
fn keys_are_made_listed_and_revoked() {
    let home = home();
    let made = run(
        home.path(),
        &[
            "key",
            "new",
            "--name",
            "agent",
            "--expires",
            "30d",
            "--model",
            "small",
            "--grant",
            "remote_media",
        ],
    );
    let key = stdout(&made);
    assert!(key.starts_with("sk-sluice-") && key.lines().count() == 1, "{key}");
    assert!(
        stderr(&made).contains("shown this once") && !stderr(&made).contains("sk-sluice-"),
        "{}",
        stderr(&made)
    );
    let second: Value = serde_json::from_str(&stdout(&run(
        home.path(),
        &[
            "key",
            "new",
            "--name",
            "ci",
            "--tokens-per-minute",
            "1000",
            "--concurrency",
            "2",
            "--json",
        ],
    )))
    .unwrap();
    assert_eq!(second["name"], "ci");
    let file = fs::read_to_string(home.path().join(".local/state/sluice/keys.toml")).unwrap();
    assert!(
        !file.contains(key.trim()) && !file.contains(second["key"].as_str().unwrap()),
        "{file}"
    );

    let table = stdout(&run(home.path(), &["key", "list"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("name ") && lines[1].starts_with("agent ") && lines[2].starts_with("ci "),
        "{table}"
    );
    assert!(
        lines[1].contains("  small  ") && lines[1].ends_with("  remote_media") && lines[2].contains("never"),
        "{table}"
    );
    assert!(!table.contains("sha256") && !table.contains("sk-sluice"), "{table}");
    let listed = stdout(&run(home.path(), &["key", "list", "--json"]));
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (&listed[0]["name"], &listed[0]["expired"]),
        (&"agent".into(), &false.into())
    );
    assert_eq!(
        (&listed[0]["tokens_per_minute"], &listed[1]["tokens_per_minute"]),
        (&Value::Null, &1000.into())
    );
    assert!(table.contains("1000 tokens/min, 2 at once"), "{table}");

    assert!(run(home.path(), &["key", "revoke", "agent"]).status.success());
    let again = run(home.path(), &["key", "revoke", "agent"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("there are ci"), "{}", stderr(&again));
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let home = home();
    let lines = "{\"id\":1,\"text\":\"hello\"}\n".repeat(20_000);
    let input = home.path().join("many.jsonl");
    fs::write(&input, lines).unwrap();
    let mut child = sluice(home.path(), ["parse", "--jsonl", input.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // As `| head -1` does: one line, then the pipe is closed while most is still to come.
    let mut first = String::new();
    let mut reader = BufReader::with_capacity(64, child.stdout.take().unwrap());
    reader.read_line(&mut first).unwrap();
    drop(reader);
    let status = child.wait().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""), "after {first}");
}

#[test]
fn help_into_a_closed_pipe_is_no_panic() {
    let home = home();
    for args in [&["--help"][..], &["parse", "--help"], &["check-config", "--effective"]] {
        let mut child = sluice(home.path(), args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), stderr(&output).as_str()),
            (Some(0), ""),
            "{args:?}"
        );
    }
}

/// Nobody reads standard error: an error must not become a panic (exit code 101).
#[test]
fn an_error_into_a_closed_pipe_is_no_panic() {
    let home = home();
    let mut child = sluice(home.path(), ["parse", "/nonexistent"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn parse_reads_raw_text_from_standard_input() {
    let home = home();
    let tools = vectors().join("tools.json");
    let text = "<think>\nA call.\n</think>\n\nOne moment.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    for cut in [&[][..], &["--chunks"], &["--chunks=7"]] {
        let mut child = sluice(home.path(), ["parse", "--tools", tools.to_str().unwrap()])
            .args(cut)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let message: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(message["id"], Value::Null);
        assert_eq!(message["reasoning"].as_str().unwrap().trim(), "A call.", "{message}");
        assert_eq!(message["content"].as_str().unwrap().trim(), "One moment.", "{message}");
        let call = &message["tool_calls"][0];
        assert_eq!(
            (&call["name"], &call["arguments"]),
            (&"get_weather".into(), &"{\"city\": \"Paris\"}".into())
        );
        assert_eq!(message["verdicts"][0]["verdict"], "passed", "{message}");
        assert!(
            message["deltas"].as_array().is_some_and(|deltas| deltas.len() >= 3),
            "{message}"
        );
    }
}

/// Every public vector, in each of its ways of cutting: the same message as with the whole text.
#[test]
fn parse_makes_the_same_message_of_every_cutting() {
    let home = home();
    let folder = vectors();
    let tools = folder.join("tools.json");
    for file in [
        "hermes_vectors.jsonl",
        "qwen3_reasoning_vectors.jsonl",
        "combined_vectors.jsonl",
    ] {
        let vectors = fs::read_to_string(folder.join(file)).unwrap();
        let parse = |text: &str, more: &[&str]| -> Vec<Value> {
            let input = home.path().join("in.jsonl");
            fs::write(&input, text).unwrap();
            let args = [
                "parse",
                "--jsonl",
                "--tools",
                tools.to_str().unwrap(),
                input.to_str().unwrap(),
            ];
            let output = sluice(home.path(), args).args(more).output().unwrap();
            assert!(output.status.success(), "{file}: {}", stderr(&output));
            stdout(&output)
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        let whole: String = vectors
            .lines()
            .map(|line| {
                let mut vector: Value = serde_json::from_str(line).unwrap();
                vector.as_object_mut().unwrap().remove("chunks");
                format!("{vector}\n")
            })
            .collect();
        let message = |line: &Value| ["reasoning", "content", "tool_calls", "verdicts"].map(|key| line[key].clone());
        let wanted = parse(&whole, &[]);
        assert_eq!(wanted.len(), vectors.lines().count());
        for line in parse(&vectors, &[]).iter().chain(&parse(&whole, &["--chunks=3"])) {
            let same = wanted.iter().find(|whole| whole["id"] == line["id"]).unwrap();
            assert_eq!(
                message(line),
                message(same),
                "{file}: {} cut {}",
                line["id"],
                line["cut"]
            );
        }
    }
}

#[test]
fn parse_names_the_line_that_it_cannot_read() {
    let home = home();
    let input = home.path().join("in.jsonl");
    for (text, says) in [
        ("{\"text\":\"a\"}\n\n{\"text\":1}\n", "in.jsonl, line 3: invalid type"),
        ("nonsense\n", "in.jsonl, line 1: expected"),
        ("{\"id\":1}\n", "line 1: there is neither `text` nor `chunks`"),
        ("{\"text\":\"a\",\"tools\":{}}\n", "line 1: the tools are no tools"),
        (
            "{\"text\":\"a\",\"chunks\":[\"b\"]}\n",
            "`chunks` are not the pieces of `text`",
        ),
    ] {
        fs::write(&input, text).unwrap();
        let output = run(home.path(), &["parse", "--jsonl", input.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(says), "{text}\n{}", stderr(&output));
    }
}

/// The simulator as a process: it answers on its address, and what it answers says that it is simulated.
#[test]
fn simulate_serves_on_its_address() {
    let home = home();
    for _ in 0..5 {
        // The port may be taken between the look and the start; then there is another.
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let args = [
            "simulate",
            "--listen",
            &free.to_string(),
            "--model",
            "small",
            "--speed",
            "0",
        ];
        let mut child = sluice(home.path(), args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let answer = (0..200).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut stream = std::net::TcpStream::connect(free).ok()?;
            stream
                .write_all(b"GET /v1/models HTTP/1.1\r\nHost: sim\r\nConnection: close\r\n\r\n")
                .ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok().map(|_| answer)
        });
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(answer) = answer {
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.contains("small-simulated"),
                "{answer}"
            );
            return;
        }
    }
    panic!("the simulator never answered");
}

#[test]
fn before_the_first_record_there_is_an_empty_list() {
    let home = home();
    let note = format!("no gateway has written records to {}", home.path().display());
    for args in [
        &["requests"][..],
        &["requests", "--json"],
        &["stats"],
        &["stats", "--json"],
    ] {
        let output = sluice(home.path(), args).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with(&note) && said.trim_end().ends_with(" yet"),
            "{args:?}: {said}"
        );
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        let printed = String::from_utf8(output.stdout).unwrap();
        match args {
            ["requests"] => assert_eq!(printed.lines().count(), 1, "the head of the table"),
            ["requests", ..] => assert_eq!(printed, ""),
            ["stats"] => assert!(!printed.is_empty()),
            _ => {
                let stats: serde_json::Value = serde_json::from_str(&printed).unwrap();
                assert_eq!(stats["total"]["requests"], 0);
            }
        }
    }
}

/// Rows as a gateway writes them, read back through the program.
#[test]
fn requests_and_stats_read_the_records_of_the_state_folder() {
    let home = home();
    let state = home.path().join(".local/state/sluice");
    let recorder = record::open(&RecordConfig::default(), &state).unwrap();
    for (id, model, status, age_s) in [
        ("old", "small", 200, 7_200),
        ("bad", "large", 502, 60),
        ("good", "small", 200, 30),
    ] {
        recorder.submit(Record {
            id: id.to_owned(),
            started: jiff::Timestamp::now() - std::time::Duration::from_secs(age_s),
            endpoint: "chat",
            model: model.to_owned(),
            status,
            ..Record::default()
        });
    }
    assert!(recorder.flush(std::time::Duration::from_secs(20)));
    let ids = |args: &[&str]| -> Vec<String> {
        let output = sluice(home.path(), ["requests", "--json"]).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        let id = |line: &str| {
            serde_json::from_str::<Value>(line).unwrap()["id"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        stdout(&output).lines().map(id).collect()
    };
    assert_eq!(ids(&[]), ["old", "bad", "good"]);
    assert_eq!(ids(&["--limit", "1"]), ["good"]);
    assert_eq!(ids(&["--since", "1h"]), ["bad", "good"]);
    assert_eq!(ids(&["--until", "1h"]), ["old"]);
    assert_eq!(ids(&["--model", "small", "--since", "1h"]), ["good"]);
    assert_eq!(ids(&["--status", "502"]), ["bad"]);
    assert_eq!(ids(&["--errors"]), ["bad"]);
    assert_eq!(ids(&["--replica", "none"]), [] as [&str; 0]);
    assert_eq!(
        ids(&["--file", state.join("requests.db").to_str().unwrap(), "--key", "nobody"]),
        [] as [&str; 0]
    );
    let table = stdout(&run(home.path(), &["requests"]));
    assert!(
        table.starts_with("started (UTC)") && table.lines().count() == 4,
        "{table}"
    );
    let stats = |args: &[&str]| -> Value {
        let output = sluice(home.path(), ["stats", "--json"]).args(args).output().unwrap();
        serde_json::from_str(&stdout(&output)).unwrap()
    };
    assert_eq!(stats(&[])["total"]["requests"], 3);
    assert_eq!(stats(&["--since", "1h"])["total"]["requests"], 2);
    assert_eq!(stats(&["--since", "2h30m", "--until", "1h"])["total"]["requests"], 1);
    assert!(stdout(&run(home.path(), &["stats"])).contains("all models"));
}
