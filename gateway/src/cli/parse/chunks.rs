//! The pieces in which a text is fed.

use std::num::NonZeroUsize;

use serde::Deserialize;

use super::ParseError;

/// Pieces of one text: each becomes an event, and a delta or two are kept of it.
const PIECES_MAX: usize = 1_000_000;

/// `chunks` of a line: one way of cutting, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Chunks {
    /// `["pieces", "of", "it"]`
    One(Vec<String>),
    /// `{"rand1": ["…"], "rand2": ["…"]}`
    Named(serde_json::Map<String, serde_json::Value>),
}

/// A way of cutting by name, if it has one, and its pieces.
pub(super) type Way = (Option<String>, Vec<String>);

/// The ways in which a line's text is fed: as its `chunks` say, else as the command line says.
pub(super) fn ways(
    text: Option<String>,
    chunks: Option<Chunks>,
    size: Option<NonZeroUsize>,
    from: &str,
) -> Result<Vec<Way>, ParseError> {
    let bad = |what: &str| ParseError::Stages {
        from: from.to_owned(),
        what: what.to_owned(),
    };
    let ways = match chunks {
        None => {
            let text = text.ok_or_else(|| bad("there is neither `text` nor `chunks`"))?;
            return Ok(vec![(None, cut(text, size, from)?)]);
        }
        Some(Chunks::One(pieces)) => vec![(None, pieces)],
        Some(Chunks::Named(ways)) => {
            let read = |(name, pieces)| match serde_json::from_value(pieces) {
                Ok(pieces) => Ok((Some(name), pieces)),
                Err(_) => Err(bad("`chunks` is no list of texts, nor several by name")),
            };
            ways.into_iter().map(read).collect::<Result<Vec<Way>, ParseError>>()?
        }
    };
    for (_, pieces) in &ways {
        if pieces.len() > PIECES_MAX {
            return Err(ParseError::TooMany {
                from: from.to_owned(),
                limit: PIECES_MAX,
            });
        }
        if text.as_ref().is_some_and(|text| *text != pieces.concat()) {
            return Err(bad("`chunks` are not the pieces of `text`"));
        }
    }
    Ok(ways)
}

/// `text` in pieces of `size` characters, or whole.
pub(super) fn cut(text: String, size: Option<NonZeroUsize>, from: &str) -> Result<Vec<String>, ParseError> {
    let Some(size) = size else { return Ok(vec![text]) };
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        if pieces.len() == PIECES_MAX {
            return Err(ParseError::TooMany {
                from: from.to_owned(),
                limit: PIECES_MAX,
            });
        }
        let at = rest.char_indices().nth(size.get()).map_or(rest.len(), |(at, _)| at);
        let (piece, after) = rest.split_at(at);
        pieces.push(piece.to_owned());
        rest = after;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        let cut = |size: usize| cut("aäöb".to_owned(), NonZeroUsize::new(size), "here").unwrap();
        assert_eq!(cut(1), ["a", "ä", "ö", "b"]);
        assert_eq!(cut(3), ["aäö", "b"]);
        assert_eq!(cut(9), ["aäöb"]);
        assert_eq!(cut(0), ["aäöb"], "no size: whole");
    }

    #[test]
    fn chunks_of_a_line_are_pieces_of_its_text() {
        let ways = |text: Option<&str>, chunks: &str| {
            let chunks = serde_json::from_str(chunks).unwrap();
            ways(text.map(str::to_owned), chunks, None, "line 1").map_err(|error| error.to_string())
        };
        let pieces = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(ways(Some("ab"), "null"), Ok(vec![(None, vec!["ab".to_owned()])]));
        assert_eq!(ways(Some("ab"), r#"["a","b"]"#), Ok(vec![(None, pieces.clone())]));
        assert_eq!(ways(None, r#"["a","b"]"#), Ok(vec![(None, pieces.clone())]));
        assert_eq!(
            ways(Some("ab"), r#"{"x":["a","b"]}"#),
            Ok(vec![(Some("x".to_owned()), pieces)])
        );
        assert!(ways(Some("ab"), r#"["a"]"#).unwrap_err().contains("not the pieces"));
        assert!(
            ways(Some("ab"), r#"{"x":[1]}"#)
                .unwrap_err()
                .contains("no list of texts")
        );
        assert!(ways(None, "null").unwrap_err().contains("neither"));
    }
}
