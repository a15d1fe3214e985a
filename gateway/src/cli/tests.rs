//! The help as a person reads it, and that clap is content with the arguments.

use clap::CommandFactory as _;

use super::*;

#[test]
fn the_arguments_are_consistent() {
    Cli::command().debug_assert();
}

/// Wrapped at 100 columns, as on a terminal.
fn help(path: &[&str]) -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let command = path.iter().fold(&mut command, |command, name| {
        command
            .find_subcommand_mut(name)
            .unwrap_or_else(|| panic!("no command {name}"))
    });
    command.clone().term_width(100).render_long_help().to_string()
}

#[test]
fn the_help_says_what_each_command_does() {
    for (name, path) in [
        ("help", &[][..]),
        ("help_serve", &["serve"]),
        ("help_simulate", &["simulate"]),
        ("help_requests", &["requests"]),
        ("help_stats", &["stats"]),
        ("help_check_config", &["check-config"]),
        ("help_key", &["key"]),
        ("help_key_new", &["key", "new"]),
        ("help_key_list", &["key", "list"]),
        ("help_key_revoke", &["key", "revoke"]),
        ("help_parse", &["parse"]),
        ("help_upgrade", &["upgrade"]),
    ] {
        insta::assert_snapshot!(name, help(path));
    }
}

#[test]
fn wrong_arguments_are_refused_with_the_reason() {
    let refusal = |args: &[&str]| {
        let args = std::iter::once(&"sluice").chain(args);
        Cli::try_parse_from(args)
            .expect_err("these arguments should be refused")
            .to_string()
    };
    for (args, expect) in [
        (&["serve", "--backend-key-env", "KEY"][..], "--backend <URL>"),
        (&["serve", "--listen", "localhost"], "invalid socket address"),
        (&["requests", "--since", "soon"], "neither a time ago"),
        (&["requests", "--status", "7"], "100..=599"),
        (&["requests", "--file", "a", "--config", "b"], "cannot be used with"),
        (&["key", "new"], "--name <NAME>"),
        (
            &["key", "new", "--name", "a", "--expires", "30"],
            "a duration needs a unit",
        ),
        (&["key", "new", "--name", "a", "--grant", "all"], "remote_media"),
        (
            &["parse", "--reasoning", "qwen"],
            "tip: a similar value exists: 'qwen3'",
        ),
        (&["parse", "--chunks=0"], "--chunks"),
        (&["simulate", "--fault", "stall"], "the form is key=value"),
        (&["serv"], "tip: a similar subcommand exists: 'serve'"),
    ] {
        let text = refusal(args);
        assert!(text.contains(expect), "{args:?}\n{text}");
    }
}
