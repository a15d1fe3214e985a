//! `[profile.NAME]`: a name of its own, a base that is built in, and changes that a profile can take.

use sluice_policy::profile::{ProfileError, builtin, builtins};

use super::{super::Config, super::reading::explain, Findings, which};

pub(super) fn check(config: &Config, findings: &mut Findings<'_>) {
    let builtins: Vec<&str> = builtins().iter().map(|profile| profile.name.as_str()).collect();
    for (name, table) in &config.profile {
        let at = format!("profile.{name}");
        if builtin(name).is_some() {
            findings
                .add(&at, format!("\"{name}\" is a built-in profile"))
                .help("give yours another name, and name it in the backend's `profile`");
        }
        if builtin(&table.base).is_none() {
            findings
                .add(
                    format!("{at}.base"),
                    format!("there is no built-in profile \"{}\"", table.base),
                )
                .help(which(&table.base, &builtins));
            continue;
        }
        let refusals = table.refusals(name);
        let alone_all_is_well = refusals.is_empty();
        for (key, error) in refusals {
            refused(&format!("{at}.{key}"), &error, findings);
        }
        if let (true, Some(Err(error))) = (alone_all_is_well, table.resolve(name)) {
            refused(&at, &error, findings);
        }
    }
}

fn refused(key: &str, error: &ProfileError, findings: &mut Findings<'_>) {
    let (message, help) = match error {
        ProfileError::Shape { source, .. } => explain(&source.to_string()),
        ProfileError::Argv { source, .. } => (source.to_string(), None),
    };
    let finding = findings.add(key, message);
    if let Some(help) = help {
        finding.help(help);
    }
    // Its next element may be a key.
    if key.ends_with(".extra_args") {
        finding.hide_value();
    }
}
