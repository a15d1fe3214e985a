//! What became of one tool call (B29).

/// The verdict of a call that a client sees or would have seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As the model wrote it.
    Passed,
    /// Its tool's schema can't be compiled, so that nothing was checked.
    PassedUnchecked,
    /// Made valid by these edits.
    Repaired(Vec<Kind>),
    /// Asked again this many times.
    Reasked(u8),
    /// No call came of it.
    Refused(Reason),
}

impl Verdict {
    /// Label of records and metrics: a closed set.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Passed => "passed",
            Verdict::PassedUnchecked => "passed_unchecked",
            Verdict::Repaired(_) => "repaired",
            Verdict::Reasked(_) => "reasked",
            Verdict::Refused(_) => "refused",
        }
    }

    /// Its kinds by their labels: what was repaired, or why it was refused.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        let (repaired, refused) = match self {
            Verdict::Repaired(kinds) => (kinds.as_slice(), None),
            Verdict::Refused(reason) => (&[][..], Some(reason.name())),
            Verdict::Passed | Verdict::PassedUnchecked | Verdict::Reasked(_) => (&[][..], None),
        };
        repaired.iter().map(|kind| kind.name()).chain(refused)
    }

    /// The one label `kind` of metrics: `several` where there are more, `none` where there is none.
    pub fn kind(&self) -> &'static str {
        let mut kinds = self.kinds();
        match (kinds.next(), kinds.next()) {
            (None, _) => "none",
            (Some(kind), None) => kind,
            (Some(_), Some(_)) => "several",
        }
    }
}

/// One edit of a repair: a closed set, the label `kind` of records and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Text between the complete call and its closing tag was left out.
    Surplus,
    /// The name was matched by case, `_`/`-` or a known prefix.
    Name,
    // --- shape (B24), by `schema`
    /// A string that holds a number became the number.
    Number,
    /// A string that says true or false became the boolean.
    Boolean,
    /// A number or boolean became a string.
    Text,
    /// A single value became an array of one element.
    Array,
    /// A string that holds an object, an array or null became what it holds.
    Unpacked,
    /// A null was left out where it isn't allowed.
    Null,
    /// A string became the option of an enum that it spells but for case and white space.
    Enum,
    // repair of syntax (B23)
    /// Missing closers were added.
    Closer,
    /// A missing opening brace or bracket was added.
    Opener,
    /// A structural character too many was left out.
    Dropped,
    /// One structural character stood for another.
    Replaced,
    /// A structural character had changed places with its quote.
    Swapped,
    /// A missing comma was added.
    Comma,
    /// A missing colon was added.
    Colon,
    /// A missing quote was added.
    Quote,
    /// Other quotes than JSON's.
    Quotes,
    /// Keys without quotes.
    Key,
    /// Literals of Python.
    Literal,
    /// Comments were left out.
    Comment,
    /// Trailing commas were left out.
    TrailingComma,
    /// Raw line breaks and control characters in strings were escaped.
    Control,
    /// Escapes that JSON doesn't know.
    Escape,
    /// Quotes inside a string were escaped.
    InnerQuotes,
    /// A markdown fence was left out.
    Fence,
    /// A call written as code.
    Code,
    /// A call written as marked-up text.
    Markup,
}

impl Kind {
    /// An edit of shape, not of syntax.
    pub(crate) fn is_shape(self) -> bool {
        use Kind::{Array, Boolean, Enum, Null, Number, Text, Unpacked};
        matches!(self, Number | Boolean | Text | Array | Unpacked | Null | Enum)
    }

    /// Label of records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Surplus => "surplus",
            Kind::Name => "name",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
            Kind::Text => "text",
            Kind::Array => "array",
            Kind::Unpacked => "unpacked",
            Kind::Null => "null",
            Kind::Enum => "enum",
            Kind::Closer => "closer",
            Kind::Opener => "opener",
            Kind::Dropped => "dropped",
            Kind::Replaced => "replaced",
            Kind::Swapped => "swapped",
            Kind::Comma => "comma",
            Kind::Colon => "colon",
            Kind::Quote => "quote",
            Kind::Quotes => "quotes",
            Kind::Key => "key",
            Kind::Literal => "literal",
            Kind::Comment => "comment",
            Kind::TrailingComma => "trailing_comma",
            Kind::Control => "control",
            Kind::Escape => "escape",
            Kind::InnerQuotes => "inner_quotes",
            Kind::Fence => "fence",
            Kind::Code => "code",
            Kind::Markup => "markup",
        }
    }
}

/// Why a call is none. Offsets count bytes of the piece's raw text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Neither JSON nor the XML dialect.
    #[error("not valid JSON at byte {at}")]
    BadJson {
        /// Where it stops being valid.
        at: usize,
    },
    /// Not JSON, and two ways to repair it give different values.
    #[error("not valid JSON at byte {at}, and what was meant can't be told")]
    Ambiguous {
        /// Where it stops being valid.
        at: usize,
    },
    /// Not JSON, and too long or too broken for the work that a repair may cost.
    #[error("not valid JSON at byte {at}, and beyond the limit of a repair")]
    TooCostly {
        /// Where it stops being valid.
        at: usize,
    },
    /// The answer ended inside the call.
    #[error("cut off before its end")]
    Cut,
    /// No function name.
    #[error("no function name")]
    NoName,
    /// Not one of the request's tools.
    #[error("unknown tool")]
    UnknownTool {
        /// The name as the model wrote it.
        name: String,
    },
    /// The arguments are neither an object nor a string that holds one.
    #[error("arguments are not an object")]
    NotAnObject,
    /// The arguments don't fit the tool's schema.
    #[error("arguments do not fit the schema")]
    Unfit {
        /// JSON pointer of the first value that doesn't. Its keys may be the model's: never logged.
        at: String,
    },
    /// More calls, keys or parameters than are told apart (1,024).
    #[error("more parts than the limit of a call")]
    TooMany,
    /// Longer than the limit of a held call.
    #[error("longer than the limit of a held call")]
    TooLong,
}

impl Reason {
    /// Label of records and metrics: a closed set.
    pub fn name(&self) -> &'static str {
        match self {
            Reason::BadJson { .. } => "bad_json",
            Reason::Ambiguous { .. } => "ambiguous",
            Reason::TooCostly { .. } => "too_costly",
            Reason::Cut => "cut",
            Reason::NoName => "no_name",
            Reason::UnknownTool { .. } => "unknown_tool",
            Reason::NotAnObject => "not_an_object",
            Reason::Unfit { .. } => "unfit",
            Reason::TooMany => "too_many",
            Reason::TooLong => "too_long",
        }
    }
}
