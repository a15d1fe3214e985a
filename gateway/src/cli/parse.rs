//! `sluice parse`: raw model text in, the message that a client would get out, one JSON line each.
//!
//! The text is wrapped into the events in which vLLM would stream it, and goes through the very [`Turn`] of the gateway; what
//! comes out is put together as a client does it. Read on in `policy::turn`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use serde_json::value::RawValue;
use sluice_policy::{
    reasoning::{Opener, Thinking},
    tool_call::{Bare, ToolSet, ToolSetError},
    turn::{AnswerPlan, OnInvalid, ReasoningNames, ReasoningPlan, Release, SeamPlan, Surface, ToolPlan},
};

use super::{CliError, output};
use crate::config::{ReasoningForm, ThinkOpener};

use self::{answer::Answer, chunks::Chunks};

mod answer;
mod chunks;

/// The longest text, in bytes.
const TEXT_BYTES_MAX: u64 = 8 << 20;
/// The longest line of JSON, in bytes: a text, escaped, and the same text in pieces.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// The largest file of tools, in bytes.
const TOOLS_BYTES_MAX: u64 = 8 << 20;

/// Show what Sluice makes of raw model text
///
/// Prints {"id","reasoning","content","tool_calls","verdicts","deltas"} for each text: the message, what became of each tool
/// call, and the deltas of the stream.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sluice parse --tools tools.json answer.txt
  sluice parse --tools tools.json --chunks < answer.txt
  sluice parse --jsonl --tools tools.json < texts.jsonl

A line for --jsonl is {\"id\": \"a\", \"text\": \"…\"}, and if wanted
  \"tools\": […]                        in the place of --tools
  \"thinking\": true or false           what the request says in enable_thinking
  \"chunks\": [\"pieces\", \"of it\"]     in the place of --chunks
  \"chunks\": {\"a\": […], \"b\": […]}    several ways of cutting: a line of output for each")]
pub(super) struct ParseArgs {
    /// Text, or lines of JSON [default: standard input]
    #[arg(value_name = "PATH")]
    input: Option<PathBuf>,

    /// JSON file with the request's `tools`; without tools nothing is taken for a call
    #[arg(long, value_name = "PATH")]
    tools: Option<PathBuf>,

    /// How the model marks its reasoning
    #[arg(long, value_enum, value_name = "FORM", default_value = "qwen3")]
    reasoning: ReasoningForm,

    /// Who writes the first <think>
    #[arg(long, value_enum, value_name = "WHO", default_value = "auto")]
    opener: ThinkOpener,

    /// Feed the text in pieces of so many characters [default: whole; without a number: 1]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    chunks: Option<std::num::NonZeroUsize>,

    /// The input is lines of JSON
    #[arg(long)]
    jsonl: bool,
}

/// Why a text wasn't parsed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParseError {
    #[error("cannot read {from}: {source}")]
    Read { from: String, source: io::Error },
    #[error("{from} is longer than {limit} bytes")]
    TooLong { from: String, limit: u64 },
    #[error("{from} are no tools: {source}")]
    Tools { from: String, source: ToolSetError },
    #[error("{from}: {source}")]
    Line { from: String, source: serde_json::Error },
    #[error("{from}: {what}")]
    Stages { from: String, what: String },
    #[error("{from}: more than {limit} pieces")]
    TooMany { from: String, limit: usize },
}

/// One line of `--jsonl`. Further keys are ignored: test vectors have many.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    text: Option<String>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    thinking: Option<bool>,
    #[serde(default)]
    chunks: Option<Chunks>,
}

pub(super) fn run(args: &ParseArgs) -> Result<(), CliError> {
    let tools = match &args.tools {
        Some(path) => Some(read_tools(path)?),
        None => None,
    };
    let mut failed = None;
    // Reading and writing take turns, so that it can stand in a pipe; a reader that leaves ends both.
    output::print(|out| {
        let result = if args.jsonl {
            lines(args, tools, out)
        } else {
            text(args, tools, out)
        };
        match result {
            Ok(()) => Ok(()),
            Err(CliError::Output(error)) => Err(error),
            Err(error) => {
                failed = Some(error);
                Ok(())
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}

fn text(args: &ParseArgs, tools: Option<Arc<ToolSet>>, out: &mut dyn Write) -> Result<(), CliError> {
    let (mut input, from) = open(args)?;
    let mut bytes = Vec::new();
    input
        .by_ref()
        .take(TEXT_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(read_failed(&from))?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(ParseError::TooLong {
            from,
            limit: TEXT_BYTES_MAX,
        }
        .into());
    }
    let text = String::from_utf8(bytes).map_err(|error| read_failed(&from)(io::Error::other(error.utf8_error())))?;
    let pieces = chunks::cut(text, args.chunks, &from)?;
    let answer = Answer::of(&plan(args, tools, Thinking::Unknown), &pieces, &from)?;
    answer.write(None, None, out).map_err(CliError::Output)
}

fn lines(args: &ParseArgs, tools: Option<Arc<ToolSet>>, out: &mut dyn Write) -> Result<(), CliError> {
    let (mut input, source) = open(args)?;
    let mut bytes = Vec::new();
    for number in 1u64.. {
        bytes.clear();
        let from = format!("{source}, line {number}");
        input
            .by_ref()
            .take(LINE_BYTES_MAX + 1)
            .read_until(b'\n', &mut bytes)
            .map_err(read_failed(&from))?;
        if bytes.is_empty() {
            break;
        }
        if bytes.len() as u64 > LINE_BYTES_MAX {
            return Err(ParseError::TooLong {
                from,
                limit: LINE_BYTES_MAX,
            }
            .into());
        }
        if !bytes.trim_ascii().is_empty() {
            line(args, tools.clone(), &bytes, &from, out)?;
            out.flush().map_err(CliError::Output)?;
        }
    }
    Ok(())
}

fn line(
    args: &ParseArgs,
    tools: Option<Arc<ToolSet>>,
    bytes: &[u8],
    from: &str,
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let line: Line<'_> = serde_json::from_slice(bytes).map_err(|source| ParseError::Line {
        from: from.to_owned(),
        source,
    })?;
    let tools = match line.tools {
        Some(raw) => Some(parse_tools(raw.get().as_bytes(), &format!("{from}: the tools"))?),
        None => tools,
    };
    let thinking = match line.thinking {
        Some(true) => Thinking::On,
        Some(false) => Thinking::Off,
        None => Thinking::Unknown,
    };
    let plan = plan(args, tools, thinking);
    for (cut, pieces) in chunks::ways(line.text, line.chunks, args.chunks, from)? {
        let answer = Answer::of(&plan, &pieces, from)?;
        answer.write(line.id, cut.as_deref(), out).map_err(CliError::Output)?;
    }
    Ok(())
}

/// As a request with these tools to a default gateway is planned; reasoning under one name is enough here.
fn plan(args: &ParseArgs, tools: Option<Arc<ToolSet>>, thinking: Thinking) -> AnswerPlan {
    let opener = match args.opener {
        ThinkOpener::Auto => Opener::default(),
        ThinkOpener::Model => Opener::Model,
        ThinkOpener::Prompt => Opener::Prompt,
    };
    AnswerPlan {
        surface: Surface::Chat,
        reasoning: match args.reasoning {
            ReasoningForm::Qwen3 => ReasoningPlan::Qwen3 { thinking, opener },
            ReasoningForm::Off => ReasoningPlan::Off,
        },
        tools: tools.map_or(ToolPlan::Off, |tools| ToolPlan::Scan {
            tools,
            bare: Bare::Calls,
        }),
        parallel_tool_calls: true,
        named_function: false,
        include_usage: false,
        show_verdicts: true,
        names: ReasoningNames::Reasoning,
        simulated: false,
        id_seed: 0,
        reasks: 0,
        on_invalid: OnInvalid::Text,
        release: Release::Hold,
        seam: SeamPlan::off(),
    }
}

fn open(args: &ParseArgs) -> Result<(Box<dyn BufRead>, String), CliError> {
    match &args.input {
        None => Ok((Box::new(io::stdin().lock()), "standard input".to_owned())),
        Some(path) => {
            let from = path.display().to_string();
            let file = File::open(path).map_err(read_failed(&from))?;
            Ok((Box::new(BufReader::new(file)), from))
        }
    }
}

fn read_tools(path: &Path) -> Result<Arc<ToolSet>, CliError> {
    let from = path.display().to_string();
    let mut raw = Vec::new();
    let file = File::open(path).map_err(read_failed(&from))?;
    file.take(TOOLS_BYTES_MAX + 1)
        .read_to_end(&mut raw)
        .map_err(read_failed(&from))?;
    parse_tools(&raw, &from)
}

fn parse_tools(raw: &[u8], from: &str) -> Result<Arc<ToolSet>, CliError> {
    let tools = ToolSet::parse(raw).map_err(|source| ParseError::Tools {
        from: from.to_owned(),
        source,
    })?;
    Ok(Arc::new(tools))
}

fn read_failed(from: &str) -> impl Fn(io::Error) -> CliError {
    move |source| {
        ParseError::Read {
            from: from.to_owned(),
            source,
        }
        .into()
    }
}
