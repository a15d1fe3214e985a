//! What a command prints. A reader that has left (`sluice … | head`) is no failure, and nothing here panics.

use std::io::{self, BufWriter, ErrorKind, IsTerminal as _, Write};

use super::CliError;

/// Writes to standard output. `write` stops at its first error; if that says that nobody reads any more, all is well.
pub(super) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), CliError> {
    let mut out = BufWriter::new(io::stdout().lock());
    settle(write(&mut out).and_then(|()| out.flush()))
}

fn settle(written: io::Result<()>) -> Result<(), CliError> {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(CliError::Output(error)),
        _ => Ok(()),
    }
}

/// Writes a note to standard error, beside the output that a program may read. If that is closed there is nobody to tell.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes an error to standard error.
pub(super) fn complain(error: &str) {
    let text = if error.starts_with("error:") {
        error.to_owned()
    } else {
        format!("error: {error}")
    };
    let stderr = io::stderr();
    let colour = is_colourful(stderr.is_terminal(), |name| std::env::var_os(name));
    let text = if colour { paint(&text) } else { text };
    let _ = writeln!(stderr.lock(), "{}", text.trim_end());
}

/// Colour goes to a terminal that can show it, unless `NO_COLOR` is set (no-color.org).
pub(super) fn is_colourful(terminal: bool, env: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let set = |name| env(name).is_some_and(|value| !value.is_empty());
    terminal && !set("NO_COLOR") && env("TERM").is_none_or(|term| term != "dumb")
}

/// Makes the word "error" at the beginning of lines bold and red.
fn paint(text: &str) -> String {
    let painted = text.split('\n').map(|line| match line.strip_prefix("error:") {
        Some(rest) => format!("\x1b[1;31merror\x1b[0m:{rest}"),
        None => line.to_owned(),
    });
    painted.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_left_is_no_failure_but_a_full_disk_is() {
        assert!(settle(Err(ErrorKind::BrokenPipe.into())).is_ok());
        assert!(settle(Ok(())).is_ok());
        assert!(matches!(
            settle(Err(ErrorKind::StorageFull.into())),
            Err(CliError::Output(_))
        ));
    }

    #[test]
    fn colour_is_for_terminals_without_no_color() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).into())
        };
        assert!(is_colourful(true, env(&[("TERM", "xterm")])));
        assert!(is_colourful(true, env(&[("NO_COLOR", "")])));
        assert!(!is_colourful(false, env(&[("TERM", "xterm")])));
        assert!(!is_colourful(true, env(&[("NO_COLOR", "1")])));
        assert!(!is_colourful(true, env(&[("TERM", "dumb")])));
        assert_eq!(paint("error: a\n  error: b"), "\x1b[1;31merror\x1b[0m: a\n  error: b");
    }
}
