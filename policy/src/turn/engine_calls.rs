//! Calls that vLLM tells where the request's tools can't be read or aren't wanted: taken over as they are, in OpenAI's form (B21).
//! Where there are tools, `written_back` has them judged.
//!
//! The first delta of a call gets what it lacks (`id`, `type`, `arguments: ""`), later ones lose what only the first may have
//! (0.12 sends `name: null`), indexes are counted anew, and calls beyond the first are left out where the client wanted one.

use super::said::{Said, call_id};
use crate::protocol::chat::{CallDelta, Field, Malformed, call_deltas, rebuild};

/// Calls that one choice may have.
const CALLS_LIMIT: usize = 1024;

/// The calls of one choice that vLLM has begun.
#[derive(Debug, Default)]
pub(super) struct EngineCalls {
    begun: Vec<Begun>,
}

#[derive(Debug)]
struct Begun {
    /// Upstream index.
    index: u32,
    /// The index that the client gets, unless the call is left out.
    ours: Option<u32>,
}

/// How calls are numbered and written.
pub(super) struct Numbering<'a> {
    /// Calls of the choice that were shown so far.
    pub(super) shown: &'a mut u32,
    /// At most this many are shown.
    pub(super) limit: u32,
    pub(super) id_seed: u64,
    pub(super) choice: u32,
    /// A whole message: elements are complete and have no index.
    pub(super) whole: bool,
}

impl EngineCalls {
    /// Adds the elements of `array` to `said`.
    pub(super) fn take_over(
        &mut self,
        array: &str,
        numbering: &mut Numbering<'_>,
        said: &mut Said,
    ) -> Result<(), Malformed> {
        let mut place = 0;
        call_deltas(array, |call| {
            let index = call.index.unwrap_or(place);
            place += 1;
            let known = self
                .begun
                .iter_mut()
                .find(|begun| begun.index == index && !numbering.whole);
            if let Some(begun) = known {
                return begun.ours.map_or(Ok(()), |ours| more(array, call, ours, said));
            }
            // Without a name it can't become a call: 0.12 loses it when the choices of `n` call at once.
            if call.name.is_none() || self.begun.len() >= CALLS_LIMIT {
                return Err(Malformed { at: call.place.start });
            }
            let ours = (*numbering.shown < numbering.limit).then_some(*numbering.shown);
            self.begun.push(Begun { index, ours });
            let Some(ours) = ours else { return Ok(()) };
            *numbering.shown += 1;
            first(array, call, ours, numbering, said)
        })
    }
}

/// The first delta of a call.
fn first(array: &str, call: CallDelta, ours: u32, numbering: &Numbering<'_>, said: &mut Said) -> Result<(), Malformed> {
    let whole = numbering.whole;
    let indexed = whole || call.index == Some(ours);
    if indexed && call.id.is_some() && call.arguments.is_some() {
        said.next_call().extend_from_slice(call.place.of(array).as_bytes());
        return Ok(());
    }
    let arguments = if call.arguments.is_some() {
        Field::Keep
    } else {
        Field::Set(b"\"\"")
    };
    let mut function = Vec::new();
    rebuild(
        call.function.map_or("{}", |place| place.of(array)),
        &[("arguments", arguments)],
        &mut function,
    )?;
    let index = ours.to_string();
    let id = format!("\"{}\"", call_id(numbering.id_seed, numbering.choice, ours));
    let fields = [
        (
            "index",
            if whole {
                Field::Keep
            } else {
                Field::Set(index.as_bytes())
            },
        ),
        (
            "id",
            if call.id.is_some() {
                Field::Keep
            } else {
                Field::Set(id.as_bytes())
            },
        ),
        ("type", Field::Set(b"\"function\"")),
        ("function", Field::Set(&function)),
    ];
    rebuild(call.place.of(array), &fields, said.next_call())
}

/// A later delta of a call: nothing but arguments.
fn more(array: &str, call: CallDelta, ours: u32, said: &mut Said) -> Result<(), Malformed> {
    if call.arguments.is_none() {
        return Ok(());
    }
    if !call.heads && call.index == Some(ours) {
        said.next_call().extend_from_slice(call.place.of(array).as_bytes());
        return Ok(());
    }
    let mut function = Vec::new();
    rebuild(
        call.function.map_or("{}", |place| place.of(array)),
        &[("name", Field::Drop)],
        &mut function,
    )?;
    let index = ours.to_string();
    let fields = [
        ("index", Field::Set(index.as_bytes())),
        ("id", Field::Drop),
        ("type", Field::Drop),
        ("function", Field::Set(&function)),
    ];
    rebuild(call.place.of(array), &fields, said.next_call())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(limit: u32, deltas: &[&str], want: &[&str]) {
        let mut calls = EngineCalls::default();
        let mut shown = 0;
        let got: Vec<_> = deltas
            .iter()
            .map(|delta| {
                let mut said = Said::default();
                let mut numbering = Numbering {
                    shown: &mut shown,
                    limit,
                    id_seed: 1,
                    choice: 0,
                    whole: false,
                };
                calls.take_over(delta, &mut numbering, &mut said).unwrap();
                String::from_utf8(said.calls).unwrap()
            })
            .collect();
        assert_eq!(got, want);
    }

    #[test]
    fn the_first_delta_is_completed_and_later_ones_pass() {
        check(
            9,
            &[
                r#"[{"id":"a","type":"function","index":0,"function":{"name":"now"}}]"#,
                r#"[{"index":0,"function":{"arguments":"{}"}}]"#,
            ],
            &[
                r#"{"id":"a","type":"function","index":0,"function":{"name":"now","arguments":""}}"#,
                r#"{"index":0,"function":{"arguments":"{}"}}"#,
            ],
        );
    }

    #[test]
    fn null_names_are_dropped_and_ids_made() {
        check(
            9,
            &[
                r#"[{"index":0,"function":{"name":"now","arguments":""}}]"#,
                r#"[{"index":0,"function":{"name":null,"arguments":"{"}}]"#,
                r#"[{"index":0,"id":null,"type":null,"function":{"name":null}}]"#,
            ],
            &[
                &format!(
                    r#"{{"index":0,"function":{{"name":"now","arguments":""}},"id":"{}","type":"function"}}"#,
                    call_id(1, 0, 0)
                ),
                r#"{"index":0,"function":{"arguments":"{"}}"#,
                "",
            ],
        );
    }

    #[test]
    fn a_call_without_a_name_is_refused() {
        let mut shown = 0;
        let mut numbering = Numbering {
            shown: &mut shown,
            limit: 9,
            id_seed: 1,
            choice: 0,
            whole: false,
        };
        let array = r#"[{"index":0,"id":"a","type":"function","function":{"arguments":"{"}}]"#;
        assert!(
            EngineCalls::default()
                .take_over(array, &mut numbering, &mut Said::default())
                .is_err()
        );
        assert_eq!(shown, 0);
    }

    #[test]
    fn calls_beyond_the_limit_are_left_out() {
        check(
            1,
            &[
                r#"[{"id":"a","type":"function","index":0,"function":{"name":"x","arguments":"{}"}},{"id":"b","type":"function","index":1,"function":{"name":"y","arguments":"{"}}]"#,
                r#"[{"index":1,"function":{"arguments":"}"}}]"#,
            ],
            &[
                r#"{"id":"a","type":"function","index":0,"function":{"name":"x","arguments":"{}"}}"#,
                "",
            ],
        );
    }
}
