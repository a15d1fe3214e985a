//! What can go wrong on purpose, and with which request: knobs of one request, or a draw by seed.
//!
//! A knob comes as header `x-sim-KEY: VALUE`, as `"sluice_sim": {"KEY": VALUE}` in the body, or as `[[sim KEY=VALUE …]]`
//! in a message: in the system message for good, elsewhere only after the last assistant message, so that a fault hits
//! one turn and not the whole conversation. Later sources win in this order: draw, header, marker, body.
//!
//! | key | value | effect |
//! | --- | --- | --- |
//! | `text` | base64 (either alphabet) | exactly this text is the answer, tags and all |
//! | `tokens` | 1 to 1,000,000 | the answer has so many tokens, the end-of-turn token included |
//! | `ttft-ms` | milliseconds | the first token comes then, whatever the prefill (wall clock, not scaled by `speed`) |
//! | `itl-ms` | milliseconds | each further token comes then (wall clock, not scaled) |
//! | `call` | a [`CallKind`] | whether and how the tool call is malformed; `none`: no call |
//! | `reasoning-share` | 0 to 1 | part of the answer's tokens that is thinking |
//! | `fault` | see [`Fault`] | what breaks |
use std::time::Duration;

use super::call::CallKind;
use super::config::FaultRates;
use super::tokens::mix;

/// Longest delay a knob may ask for.
const MAX_DELAY: Duration = Duration::from_secs(3_600);
/// Most tokens a knob may ask for.
const MAX_TOKENS: u32 = 1_000_000;

/// How a request breaks. `N` counts tokens that were sent as events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `refuse`: the connection is reset before the body is read (a header says it), as if nobody listened.
    Refuse,
    /// `reset_before`: the connection is reset once the request is read.
    ResetBefore,
    /// `reset_mid:N`: the connection is reset after N tokens. A request without a stream is reset at once.
    ResetMid(u32),
    /// `close_mid:N`: end of file after N tokens, without a last chunk, as when vLLM is killed.
    CloseMid(u32),
    /// `error_event:N`: after N tokens an error event, then `[DONE]` and a proper end. Without a stream: 500.
    ErrorEvent(u32),
    /// `stall:N`: silence after N tokens, for ever; the sequence keeps its place.
    Stall(u32),
    /// `hang`: not a byte, for ever; the sequence keeps its place.
    Hang,
    /// `slow_start:MS`: the head comes that late.
    SlowStart(Duration),
    /// `status:CODE`: this status (400 to 599) with an error body.
    Status(u16),
}

/// A knob that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("simulator knob `{key}`: {wanted}")]
pub struct KnobError {
    key: String,
    wanted: &'static str,
}

/// The knobs of one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Knobs {
    /// The exact answer.
    pub(super) text: Option<String>,
    /// Tokens of the answer.
    pub(super) tokens: Option<u32>,
    /// Time to the first token.
    pub(super) ttft: Option<Duration>,
    /// Time between tokens.
    pub(super) itl: Option<Duration>,
    /// Kind of call.
    pub(super) call: Option<CallKind>,
    /// Part of the answer that is thinking.
    pub(super) reasoning_share: Option<f64>,
    /// What breaks.
    pub(super) fault: Option<Fault>,
}

impl Knobs {
    /// Sets one knob; `_` and `-` in keys are the same.
    ///
    /// # Errors
    /// Says what the value should have been, or that there is no such knob.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), KnobError> {
        let wanted = match key.replace('_', "-").as_str() {
            "text" => {
                self.text = decode_base64(value).and_then(|bytes| String::from_utf8(bytes).ok());
                self.text.is_none().then_some("base64 of UTF-8 text")
            }
            "tokens" => {
                self.tokens = value.parse().ok().filter(|n| (1..=MAX_TOKENS).contains(n));
                self.tokens.is_none().then_some("1 to 1000000 tokens")
            }
            "ttft-ms" => {
                self.ttft = millis(value);
                self.ttft.is_none().then_some("0 to 3600000 milliseconds")
            }
            "itl-ms" => {
                self.itl = millis(value);
                self.itl.is_none().then_some("0 to 3600000 milliseconds")
            }
            "call" => {
                self.call = CallKind::named(value);
                self.call
                    .is_none()
                    .then_some("a kind of call (ARCHITECTURE.md lists them)")
            }
            "reasoning-share" => {
                self.reasoning_share = value.parse().ok().filter(|share| (0.0..=1.0).contains(share));
                self.reasoning_share.is_none().then_some("0 to 1")
            }
            "fault" => {
                self.fault = fault(value);
                self.fault.is_none().then_some(
                    "refuse, reset_before, reset_mid:N, close_mid:N, error_event:N, stall:N, hang, slow_start:MS or \
                     status:CODE",
                )
            }
            _ => Some("unknown; known are text, tokens, ttft-ms, itl-ms, call, reasoning-share, fault"),
        };
        wanted.map_or(Ok(()), |wanted| {
            Err(KnobError {
                key: key.chars().take(64).collect(),
                wanted,
            })
        })
    }

    /// Reads every `[[sim key=value …]]` in a message's text.
    ///
    /// # Errors
    /// As [`Knobs::set`].
    pub(super) fn read_markers(&mut self, text: &str) -> Result<(), KnobError> {
        let mut rest = text;
        while let Some((_, after)) = rest.split_once("[[sim ") {
            let Some((inside, behind)) = after.split_once("]]") else {
                break;
            };
            for pair in inside.split_whitespace() {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                self.set(key, value)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// What the rates and the seed lay on the request with this number.
    pub(super) fn drawn(rates: &FaultRates, seed: u64, request: u64) -> Self {
        let dice = mix(mix(seed, 0x0066_6175_6c74), request);
        let after = (mix(dice, 2) % 24) as u32;
        let shares = [
            (rates.reset_before, Fault::ResetBefore),
            (rates.reset_mid, Fault::ResetMid(after)),
            (rates.error_event, Fault::ErrorEvent(after)),
            (rates.stall, Fault::Stall(after)),
            (rates.hang, Fault::Hang),
            (rates.slow_start, Fault::SlowStart(rates.slow_start_time)),
            (rates.status_500, Fault::Status(500)),
            (rates.status_503, Fault::Status(503)),
        ];
        let mut mark = unit(dice);
        let fault = shares.into_iter().find_map(|(share, fault)| {
            mark -= share;
            (mark < 0.0).then_some(fault)
        });
        let call = (unit(mix(dice, 1)) < rates.malformed_call).then(|| CallKind::malformed(mix(dice, 3)));
        Self {
            fault,
            call,
            ..Self::default()
        }
    }
}

/// A draw between 0 and 1.
pub(super) fn unit(dice: u64) -> f64 {
    (dice >> 11) as f64 / (1_u64 << 53) as f64
}

fn millis(value: &str) -> Option<Duration> {
    let millis: f64 = value.parse().ok().filter(|ms| (0.0..=3_600_000.0).contains(ms))?;
    Some(Duration::from_secs_f64(millis / 1_000.0)).filter(|delay| *delay <= MAX_DELAY)
}

fn fault(value: &str) -> Option<Fault> {
    let (name, number) = value
        .split_once(':')
        .map_or((value, None), |(name, number)| (name, Some(number)));
    let count = || number.map_or(Some(0), |number| number.parse::<u32>().ok());
    match name {
        "refuse" if number.is_none() => Some(Fault::Refuse),
        "reset_before" if number.is_none() => Some(Fault::ResetBefore),
        "hang" if number.is_none() => Some(Fault::Hang),
        "reset_mid" => count().map(Fault::ResetMid),
        "close_mid" => count().map(Fault::CloseMid),
        "error_event" => count().map(Fault::ErrorEvent),
        "stall" => count().map(Fault::Stall),
        "slow_start" => millis(number?).map(Fault::SlowStart),
        "status" => number?
            .parse()
            .ok()
            .filter(|code| (400..600).contains(code))
            .map(Fault::Status),
        _ => None,
    }
}

/// Base64 in either alphabet, padded or not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in text.trim().trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(digit);
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (held < 6).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs(pairs: &[(&str, &str)]) -> Result<Knobs, KnobError> {
        let mut knobs = Knobs::default();
        pairs.iter().try_for_each(|(key, value)| knobs.set(key, value))?;
        Ok(knobs)
    }

    #[test]
    fn each_fault_has_its_spelling() {
        let table = [
            ("refuse", Fault::Refuse),
            ("reset_before", Fault::ResetBefore),
            ("reset_mid:3", Fault::ResetMid(3)),
            ("close_mid:0", Fault::CloseMid(0)),
            ("error_event:7", Fault::ErrorEvent(7)),
            ("stall:1", Fault::Stall(1)),
            ("hang", Fault::Hang),
            ("slow_start:250", Fault::SlowStart(Duration::from_millis(250))),
            ("status:503", Fault::Status(503)),
        ];
        for (text, wanted) in table {
            assert_eq!(knobs(&[("fault", text)]).unwrap().fault, Some(wanted), "{text}");
        }
        for wrong in [
            "",
            "reset",
            "stall:x",
            "status:200",
            "status",
            "hang:1",
            "slow_start:-1",
        ] {
            assert!(knobs(&[("fault", wrong)]).is_err(), "{wrong}");
        }
    }

    /// The tables of ARCHITECTURE.md say what the code takes, and all of it.
    #[test]
    fn the_knobs_are_explained_as_they_are() {
        let text = include_str!("../../../ARCHITECTURE.md");
        let (_, section) = text.split_once("## Simulator: making it misbehave").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let plain = section.split_whitespace().collect::<Vec<_>>().join(" ");
        for (kind, name, doc) in CallKind::ALL {
            let doc = doc
                .split_once(": ")
                .filter(|(rule, _)| rule.starts_with('B'))
                .map_or(*doc, |(_, doc)| doc);
            assert!(plain.contains(&format!("`{name}` {doc}")), "{kind:?}: `{name}` {doc}");
        }
        let rows = |table: &str| -> Vec<String> {
            let (_, rows) = section.split_once(table).unwrap();
            let rows = rows.lines().skip(2).take_while(|line| line.starts_with("| `"));
            let cells = rows.filter_map(|row| row.trim_start_matches("| ").split(" | ").next());
            cells
                .flat_map(|cell| cell.split(", "))
                .map(|name| name.trim_matches('`').to_owned())
                .collect()
        };
        let unknown = Knobs::default().set("", "").unwrap_err();
        let known = unknown.wanted.split_once("known are ").unwrap().1;
        let mut knobs: Vec<&str> = known.split(", ").collect();
        let mut explained = rows("| knob |");
        knobs.sort();
        explained.sort();
        assert_eq!(explained, knobs);
        let mut faults: Vec<u8> = rows("| fault |")
            .iter()
            .map(|name| {
                let given = name.replace(":N", ":3").replace(":MS", ":250").replace(":CODE", ":503");
                match fault(&given).unwrap_or_else(|| panic!("ARCHITECTURE.md explains {name}, which is no fault")) {
                    Fault::Refuse => 0,
                    Fault::ResetBefore => 1,
                    Fault::ResetMid(_) => 2,
                    Fault::CloseMid(_) => 3,
                    Fault::ErrorEvent(_) => 4,
                    Fault::Stall(_) => 5,
                    Fault::Hang => 6,
                    Fault::SlowStart(_) => 7,
                    Fault::Status(_) => 8,
                }
            })
            .collect();
        faults.sort();
        assert_eq!(faults, (0..=8).collect::<Vec<u8>>());
    }

    #[test]
    fn values_out_of_range_and_unknown_keys_are_refused_by_name() {
        let cases = [
            ("tokens", "0"),
            ("tokens", "x"),
            ("itl-ms", "-1"),
            ("reasoning_share", "2"),
            ("text", "§"),
            ("colour", "red"),
        ];
        for (key, value) in cases {
            let error = knobs(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn markers_are_found_anywhere_in_a_text() {
        let mut knobs = Knobs::default();
        knobs
            .read_markers("Hi [[sim tokens=5 fault=stall:2]] and [[sim itl_ms=1.5]] [[sim open")
            .unwrap();
        assert_eq!((knobs.tokens, knobs.fault), (Some(5), Some(Fault::Stall(2))));
        assert_eq!(knobs.itl, Some(Duration::from_micros(1_500)));
        assert!(knobs.read_markers("[[sim nothing]]").is_err());
    }

    #[test]
    fn base64_in_both_alphabets() {
        assert_eq!(
            knobs(&[("text", "PHRoaW5rPg==")]).unwrap().text.as_deref(),
            Some("<think>")
        );
        assert_eq!(
            knobs(&[("text", "w7_Dv8O_")]).unwrap().text,
            knobs(&[("text", "w7/Dv8O/")]).unwrap().text
        );
        assert_eq!(knobs(&[("text", "")]).unwrap().text.as_deref(), Some(""));
        assert!(knobs(&[("text", "A")]).is_err());
    }

    #[test]
    fn draws_follow_rates_and_seed() {
        let rates = FaultRates {
            stall: 0.25,
            status_503: 0.25,
            malformed_call: 0.5,
            ..FaultRates::default()
        };
        let draw = |seed| (0..4_000).map(|n| Knobs::drawn(&rates, seed, n)).collect::<Vec<_>>();
        let drawn = draw(7);
        assert_eq!(drawn, draw(7));
        assert_ne!(drawn, draw(8));
        let count = |is: fn(&Knobs) -> bool| drawn.iter().filter(|knobs| is(knobs)).count();
        assert!((900..1_100).contains(&count(|knobs| matches!(knobs.fault, Some(Fault::Stall(_))))));
        assert!((900..1_100).contains(&count(|knobs| knobs.fault == Some(Fault::Status(503)))));
        assert!((1_850..2_150).contains(&count(|knobs| knobs.call.is_some())));
        assert!((0..500).all(|n| Knobs::drawn(&FaultRates::default(), 7, n) == Knobs::default()));
    }
}
