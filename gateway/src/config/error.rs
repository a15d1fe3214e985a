//! What is wrong with a configuration, said so that it can be mended: file, line, column, key, and the nearest valid key.
//!
//! Every problem that can be known is reported at once. An excerpt shows the line it is about, but never the value of a key
//! that Sluice doesn't know or that names a secret: somebody may have pasted a key there, and errors go to the log.

use std::{fmt, io, path::PathBuf};

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("error: cannot read the configuration {}: {source}", file.display())]
    Unreadable {
        /// As it was named.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file, or what the command line adds to it, is not a valid configuration.
    #[error("{}", render(file, problems))]
    Invalid {
        /// As it was named.
        file: String,
        /// At least one, in the order of the file.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    /// All problems; none if the file couldn't be read.
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Unreadable { .. } => &[],
            Self::Invalid { problems, .. } => problems,
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key's path, as `backend[0].replica[1].url`, or the command line's flag; empty for broken TOML.
    pub key: String,
    /// What is wrong and what was expected, in one line.
    pub message: String,
    /// What would mend it, in one line.
    pub suggestion: Option<String>,
    /// Where in the file; `None` for what doesn't stand there.
    pub place: Option<Place>,
}

/// A place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// Characters to underline, at least 1.
    pub width: usize,
    /// The line, its value left out where it may be a secret.
    pub excerpt: String,
}

fn render(file: &str, problems: &[Problem]) -> String {
    let blocks: Vec<String> = problems
        .iter()
        .map(|problem| Block { file, problem }.to_string())
        .collect();
    blocks.join("\n")
}

/// One problem as rustc would show it.
struct Block<'a> {
    file: &'a str,
    problem: &'a Problem,
}

impl fmt::Display for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem {
            key,
            message,
            suggestion,
            place,
        } = self.problem;
        writeln!(f, "error: {message}")?;
        let gutter = match place {
            Some(Place {
                line,
                column,
                width,
                excerpt,
            }) => {
                let gutter = line.to_string().len();
                writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", self.file)?;
                writeln!(f, "{:gutter$} |", "")?;
                writeln!(f, "{line} | {excerpt}")?;
                writeln!(f, "{:gutter$} | {:indent$}{:^<width$}", "", "", "", indent = column - 1)?;
                gutter
            }
            None => {
                writeln!(f, " --> {}", self.file)?;
                1
            }
        };
        if !key.is_empty() {
            writeln!(f, "{:gutter$} = key: {key}", "")?;
        }
        if let Some(suggestion) = suggestion {
            writeln!(f, "{:gutter$} = help: {suggestion}", "")?;
        }
        Ok(())
    }
}
