//! Text in, a checked [`Config`] or all that is wrong with it out.

use std::{ops::Range, sync::LazyLock};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, Deserializer};

use super::{
    Config, Overrides, Problem, SHIPPED,
    backend::{self, Refusal},
    document::{Document, Show},
    validate,
};

/// Broken TOML is reported up to this many times: what follows the first break is often its consequence.
const SYNTAX_PROBLEMS_MAX: usize = 5;

/// Reads, completes by `overrides` and checks.
pub(super) fn read(text: &str, overrides: &Overrides) -> Result<Config, Vec<Problem>> {
    let (mut config, document) = table::<Config>(text, &KNOWN, backend::refusal)?;
    overrides.apply(&mut config);
    let findings = validate::check(&config, overrides);
    if findings.is_empty() {
        Ok(config)
    } else {
        let mut problems: Vec<Problem> = findings.into_iter().map(|finding| locate(&document, finding)).collect();
        problems.sort_by_key(|problem| problem.place.as_ref().map_or(usize::MAX, |place| place.line));
        Err(problems)
    }
}

/// Reads a `T`; `known` are (section, key) of all settings, for a key that stands in the wrong section; `sharper` finds what
/// serde refuses where serde itself has lost the place.
pub(super) fn table<'t, T: DeserializeOwned>(
    text: &'t str,
    known: &[(String, String)],
    sharper: impl Fn(&DeTable<'_>) -> Option<Refusal>,
) -> Result<(T, Document<'t>), Vec<Problem>> {
    let (table, broken) = DeTable::parse_recoverable(text);
    if !broken.is_empty() {
        let document = Document::unparsed(text);
        return Err(broken
            .iter()
            .take(SYNTAX_PROBLEMS_MAX)
            .map(|error| syntax(&document, error))
            .collect());
    }
    let document = Document::new(text, table.get_ref());
    match T::deserialize(Deserializer::from(table.clone())) {
        Ok(value) => Ok((value, document)),
        Err(error) => {
            let blunt = Refusal {
                message: error.message().to_owned(),
                span: error.span().unwrap_or(0..0),
                also: &[],
            };
            let inside = |refusal: &Refusal| {
                document
                    .path_at(refusal.span.start)
                    .starts_with(document.path_at(blunt.span.start))
            };
            let refusal = sharper(table.get_ref()).filter(inside).unwrap_or(blunt);
            Err(vec![shape(&document, &refusal, known)])
        }
    }
}

fn syntax(document: &Document<'_>, error: &toml::de::Error) -> Problem {
    Problem {
        key: String::new(),
        message: format!("this is not TOML: {}", error.message()),
        suggestion: None,
        place: error.span().map(|span| document.place(span, Show::Key)),
    }
}

/// What serde refused: an unknown key, a value of the wrong type, a missing key.
fn shape(document: &Document<'_>, refusal: &Refusal, known: &[(String, String)]) -> Problem {
    let span = refusal.span.clone();
    let key = document.path_at(span.start).to_owned();
    let refused = Refused::read(&refusal.message);
    let (message, suggestion, show) = match refused {
        Refused::UnknownKey { name, mut valid } => {
            valid.extend(refusal.also);
            // A replica's key is another launcher's, not another section's.
            let known = if refusal.also.is_empty() { known } else { &[] };
            let section = key.rfind('.').map_or("", |dot| &key[..dot]);
            let place = if section.is_empty() {
                "at the top of the file".to_owned()
            } else {
                format!("in [{section}]")
            };
            (
                format!("unknown key `{name}` {place}"),
                Some(suggest_key(name, section, &valid, known)),
                Show::Key,
            )
        }
        Refused::UnknownValue { name, valid } => {
            let near = nearest(name, &valid).map(|word| format!("did you mean \"{word}\"?"));
            (
                format!("\"{name}\" is not one of the values of `{key}`: {}", quoted(&valid)),
                near,
                Show::Line,
            )
        }
        Refused::Missing { name } => (format!("`{name}` is missing"), None, Show::Line),
        Refused::Other("invalid socket address syntax") => {
            let help = "an IP address and a port, as \"127.0.0.1:5002\"".to_owned();
            ("this is no address to listen on".to_owned(), Some(help), Show::Line)
        }
        // The value itself may be a key that stands in the wrong place.
        Refused::Other(message) if may_be_secret(&key) => {
            let message = in_words(message);
            (
                message.split(", found ").next().unwrap_or_default().to_owned(),
                None,
                Show::Key,
            )
        }
        Refused::Other(message) => (in_words(message), None, Show::Line),
    };
    Problem {
        key,
        message,
        suggestion,
        place: Some(document.place(span, show)),
    }
}

fn locate(document: &Document<'_>, finding: validate::Finding) -> Problem {
    let validate::Finding {
        key,
        message,
        suggestion,
        secret,
    } = finding;
    let show = if secret { Show::Key } else { Show::Line };
    let span: Option<Range<usize>> = if key.starts_with('-') {
        None
    } else {
        document.find(&key)
    };
    Problem {
        key,
        message,
        suggestion,
        place: span.map(|span| document.place(span, show)),
    }
}

/// Whether the value of `key` may be a secret, or a place where somebody took it for one.
fn may_be_secret(key: &str) -> bool {
    key.starts_with("auth.") || key.ends_with("_env") || key.ends_with(".env") || key.contains(".env.")
}

/// serde's own words, read back: they are the only way in which it says which keys would have been valid.
enum Refused<'e> {
    UnknownKey { name: &'e str, valid: Vec<&'e str> },
    UnknownValue { name: &'e str, valid: Vec<&'e str> },
    Missing { name: &'e str },
    Other(&'e str),
}

impl<'e> Refused<'e> {
    fn read(message: &'e str) -> Self {
        let mut words = message.split('`').skip(1).step_by(2);
        let kind = message.split('`').next().unwrap_or_default();
        match (kind, words.next()) {
            ("unknown field ", Some(name)) => Self::UnknownKey {
                name,
                valid: words.collect(),
            },
            ("unknown variant ", Some(name)) => Self::UnknownValue {
                name,
                valid: words.collect(),
            },
            ("missing field ", Some(name)) => Self::Missing { name },
            _ => Self::Other(message),
        }
    }
}

/// serde's message about a table that isn't this file's own, for people: what is wrong, and what was probably meant.
pub(super) fn explain(message: &str) -> (String, Option<String>) {
    match Refused::read(message) {
        Refused::UnknownKey { name, valid } => {
            let help = suggest_key(name, "", &valid, &[]);
            (format!("there is no setting `{name}`"), Some(help))
        }
        Refused::UnknownValue { .. } | Refused::Missing { .. } | Refused::Other(_) => (in_words(message), None),
    }
}

/// serde's message without Rust's names of types.
fn in_words(message: &str) -> String {
    let Some((found, expected)) = message.rsplit_once(", expected ") else {
        return message.to_owned();
    };
    let expected = match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list in brackets",
        "path string" | "a string" => "a text in quotes",
        other => other,
    };
    let found = found
        .trim_start_matches("invalid type: ")
        .trim_start_matches("invalid value: ");
    format!("expected {expected}, found {found}")
}

/// The nearest valid key of this section; else the section where a key of this name belongs; else all keys.
fn suggest_key(name: &str, section: &str, valid: &[&str], known: &[(String, String)]) -> String {
    if let Some(word) = nearest(name, valid) {
        return format!("did you mean `{word}`?");
    }
    let elsewhere = known.iter().find(|(other, key)| other != section && key == name);
    match elsewhere {
        Some((other, _)) if other.is_empty() => format!("`{name}` belongs at the top of the file, as [{name}]"),
        Some((other, _)) => format!("`{name}` belongs in [{other}]"),
        None => format!(
            "the keys here are {}",
            valid.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The word that was probably meant: at most a third of its letters differ, and at most three; or one is the other's
/// beginning.
pub(super) fn nearest<'w>(name: &str, valid: &[&'w str]) -> Option<&'w str> {
    let name = name.to_lowercase().replace('-', "_");
    let near = |word: &&'w str| {
        let letters = word.chars().count().max(name.chars().count());
        let distance = strsim::damerau_levenshtein(&name, word);
        let begins = name.len() >= 3 && (word.starts_with(&name) || name.starts_with(word));
        (begins || distance <= 3.min(letters.div_ceil(3))).then_some((distance, *word))
    };
    valid
        .iter()
        .filter_map(near)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

fn quoted(words: &[&str]) -> String {
    words
        .iter()
        .map(|word| format!("\"{word}\""))
        .collect::<Vec<_>>()
        .join(", ")
}

/// (section, key) of every setting: the shipped file has them all.
static KNOWN: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let mut known = Vec::new();
    if let Ok(table) = DeTable::parse(SHIPPED) {
        collect(table.get_ref(), "", &mut known);
    }
    known
});

fn collect(table: &DeTable<'_>, section: &str, known: &mut Vec<(String, String)>) {
    for (key, value) in table {
        let key = key.get_ref().to_string();
        let inner = if section.is_empty() {
            key.clone()
        } else {
            format!("{section}.{key}")
        };
        match value.get_ref() {
            DeValue::Table(table) => collect(table, &inner, known),
            DeValue::Array(items) => {
                items
                    .iter()
                    .filter_map(|item| item.get_ref().as_table())
                    .for_each(|item| collect(item, &inner, known));
            }
            _ => {}
        }
        known.push((section.to_owned(), key));
    }
}
