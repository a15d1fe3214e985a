//! One call through the scanner: tags, strict parser, schema; or repair, where it is broken.

use crate::Case;
use crate::answers::tool_set;
use crate::seed::{Seed, code};
use sluice_policy::tool_call::{Bare, Piece, Scanner, ToolSet};
use std::sync::Arc;

/// What is done to the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    Valid,
    /// The last closer is missing.
    Closer,
    /// A comma between two members is missing.
    Comma,
    /// The opening quote of a key is missing.
    Quote,
    /// The quotes of one word of the code aren't escaped.
    InnerQuotes,
    /// Single quotes everywhere.
    SingleQuotes,
}

/// All of them.
pub const FAULTS: [(&str, Fault); 6] = [
    ("valid", Fault::Valid),
    ("closer missing", Fault::Closer),
    ("comma missing", Fault::Comma),
    ("quote missing", Fault::Quote),
    ("inner quotes", Fault::InnerQuotes),
    ("single quotes", Fault::SingleQuotes),
];

/// A call to be scanned.
#[derive(Debug)]
pub struct Scan {
    tools: Arc<ToolSet>,
    text: String,
    pieces: Vec<Piece>,
}

/// A call with `bytes` of code in its arguments; its schema is compiled.
pub fn scan(fault: Fault, bytes: usize) -> Scan {
    let code = format!("say(\"word\");\n{}", code(&mut Seed::new(17), bytes));
    let arguments = serde_json::json!({"path": "src/main.rs", "content": code});
    let good = format!("{{\"name\": \"write_file\", \"arguments\": {arguments}}}");
    let inside = match fault {
        Fault::Valid => good,
        Fault::Closer => good.trim_end_matches("}}").to_owned() + "}",
        Fault::Comma => good.replacen(",\"", "\"", 1),
        Fault::Quote => good.replacen("\"content\"", "content\"", 1),
        Fault::InnerQuotes => good.replacen("\\\"word\\\"", "\"word\"", 1),
        Fault::SingleQuotes => {
            let escaped = good.replace("\\\"", "\u{1}").replace('\'', "\\'").replace('"', "'");
            escaped.replace('\u{1}', "\"")
        }
    };
    let mut case = Scan {
        tools: tool_set(),
        text: format!("<tool_call>\n{inside}\n</tool_call>"),
        pieces: Vec::with_capacity(8),
    };
    case.run();
    case.rest();
    case
}

impl Case for Scan {
    fn run(&mut self) {
        let mut scanner = Scanner::new(Arc::clone(&self.tools), Bare::Calls);
        scanner.push(&self.text, &mut self.pieces);
        scanner.finish(&mut self.pieces);
    }

    fn units(&self) -> u64 {
        1
    }

    fn rest(&mut self) {
        self.pieces.clear();
    }
}

impl Scan {
    /// The arguments of the one call that came of it.
    pub fn arguments(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Call(call)] => Some(&call.arguments),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn each_call_is_read_as_it_was_meant() {
        let read = |fault| {
            let mut case = scan(fault, 1024);
            case.run();
            let arguments = case.arguments().unwrap_or_else(|| panic!("{}", case.text));
            serde_json::from_str::<Value>(arguments).unwrap()
        };
        let meant = read(Fault::Valid);
        for (name, fault) in FAULTS {
            assert_eq!(read(fault), meant, "{name}");
        }
    }
}
