//! The judge lets a whole answer pass and sees each kind of damage.

use serde_json::{Value, json};

use super::*;
use crate::chaos::told::{End, Told};

const ID: &str = "chatcmpl-1";

fn told() -> Told {
    Told {
        tag: "t7".into(),
        thinking: 3,
        words: 4,
        call: 2,
    }
}

fn chunk(id: &str, index: u64, delta: Value, finish: Option<&str>) -> Value {
    json!({"id": id, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]})
}

/// The data lines of an undisturbed stream: role, thinking and text word by word, the call in two, finish, usage, `[DONE]`.
fn lines() -> Vec<String> {
    let wanted = told().wanted(&End::Itself, 1, true);
    let mut events = vec![chunk(ID, 0, json!({"role": "assistant", "content": null}), None)];
    for word in wanted.reasoning.split_inclusive(' ') {
        events.push(chunk(
            ID,
            0,
            json!({"reasoning": word, "reasoning_content": word}),
            None,
        ));
    }
    for word in wanted.content.split_inclusive(' ') {
        events.push(chunk(ID, 0, json!({"content": word}), None));
    }
    let arguments = wanted.call.unwrap();
    let (head, rest) = arguments.split_at(30);
    let call = json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": TOOL, "arguments": head}});
    events.push(chunk(ID, 0, json!({"tool_calls": [call]}), None));
    events.push(chunk(
        ID,
        0,
        json!({"tool_calls": [{"index": 0, "function": {"arguments": rest}}]}),
        None,
    ));
    events.push(chunk(ID, 0, json!({"content": ""}), Some("tool_calls")));
    events.push(
        json!({"id": ID, "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 60, "total_tokens": 69}}),
    );
    let mut lines: Vec<String> = events.iter().map(Value::to_string).collect();
    lines.push("[DONE]".into());
    lines
}

fn judged(lines: &[String], close: Close) -> Result<Verdict, Wrong> {
    let mut heard = Heard::default();
    for line in lines {
        // In two pieces: a line may come in any.
        let line = format!("data: {line}\n\n: keep-alive\n\n");
        let (head, rest) = line.as_bytes().split_at(line.len() / 2);
        heard.push(head);
        heard.push(rest);
    }
    heard.end();
    stream(&told().wanted(&End::Itself, 1, true), &heard, close)
}

fn damaged(damage: impl FnOnce(&mut Vec<String>)) -> Result<Verdict, Wrong> {
    let mut lines = lines();
    damage(&mut lines);
    judged(&lines, Close::Proper)
}

fn at(lines: &[String], what: &str) -> usize {
    lines.iter().position(|line| line.contains(what)).unwrap()
}

#[test]
fn an_undisturbed_stream_is_whole() {
    assert_eq!(judged(&lines(), Close::Proper), Ok(Verdict::Whole));
}

#[test]
fn each_line_but_the_role_is_missed_where_it_is_left_out() {
    let lines = lines();
    for left_out in 1..lines.len() {
        let mut some = lines.clone();
        some.remove(left_out);
        assert!(judged(&some, Close::Proper).is_err(), "without {}", lines[left_out]);
    }
}

#[test]
fn each_line_is_one_too_many_where_it_is_doubled() {
    let lines = lines();
    for doubled in 0..lines.len() {
        let mut more = lines.clone();
        more.insert(doubled, lines[doubled].clone());
        assert!(judged(&more, Close::Proper).is_err(), "twice {}", lines[doubled]);
    }
}

#[test]
fn a_lost_a_doubled_and_a_foreign_word_are_told_apart() {
    let lost = damaged(|lines| {
        let place = at(lines, "wt7.00002");
        lines.remove(place);
    });
    assert!(matches!(lost, Err(Wrong::Lost(_))), "{lost:?}");
    let doubled = damaged(|lines| {
        let place = at(lines, "wt7.00002");
        lines.insert(place, lines[place].clone());
    });
    assert!(matches!(doubled, Err(Wrong::Doubled(_))), "{doubled:?}");
    let swapped = damaged(|lines| {
        let place = at(lines, "wt7.00002");
        lines.swap(place, place + 1);
    });
    assert!(swapped.is_err(), "{swapped:?}");
    let foreign = damaged(|lines| {
        let place = at(lines, "wt7.00002");
        lines[place] = lines[place].replace("t7", "t8");
    });
    assert!(matches!(foreign, Err(Wrong::Other(_))), "{foreign:?}");
    let in_call = damaged(|lines| {
        let place = at(lines, "at7.00002");
        lines[place] = lines[place].replace("00002", "00001");
    });
    assert!(matches!(in_call, Err(Wrong::Doubled(_))), "{in_call:?}");
}

#[test]
fn a_second_id_role_finish_call_or_figure_is_wrong() {
    let second = |what: &str, with: &str| {
        let seen = damaged(|lines| {
            let place = lines.iter().rposition(|line| line.contains(what)).unwrap();
            lines[place] = lines[place].replace(what, with);
        });
        assert!(matches!(seen, Err(Wrong::Other(_))), "{what}: {seen:?}");
    };
    second("chatcmpl-1", "chatcmpl-2");
    second("\"tool_calls\"}", "\"stop\"}");
    second("\"call_1\"", "null");
    second("\"total_tokens\":69", "\"total_tokens\":70");
    second("\"completion_tokens\":60", "\"completion_tokens\":600");
}

#[test]
fn an_end_is_done_once_and_last_or_one_error_without_it() {
    let error = |code: &str| json!({"error": {"message": "It broke.", "code": code}}).to_string();
    let cut = |lines: &mut Vec<String>| {
        let place = at(lines, "wt7.00003");
        lines.truncate(place);
    };
    let silent = damaged(cut);
    assert!(matches!(silent, Err(Wrong::Lost(_))), "{silent:?}");
    let honest = damaged(|lines| {
        cut(lines);
        lines.push(error("upstream_broke"));
    });
    assert_eq!(honest, Ok(Verdict::ErrorEvent("upstream_broke".into())));
    for code in ["", "internal_error"] {
        let without_a_reason = damaged(|lines| {
            cut(lines);
            lines.push(error(code));
        });
        assert!(without_a_reason.is_err(), "{code:?}");
    }
    let both = damaged(|lines| {
        cut(lines);
        lines.extend([error("upstream_broke"), "[DONE]".into()]);
    });
    assert!(both.is_err(), "{both:?}");
    let mut some = lines();
    cut(&mut some);
    assert_eq!(judged(&some, Close::ByClient), Ok(Verdict::Left));
    for close in [Close::Broken, Close::Never] {
        assert!(judged(&some, close).is_err());
    }
    // Who leaves must have got the right beginning, too.
    some.remove(3);
    assert!(judged(&some, Close::ByClient).is_err());
}

#[test]
fn a_whole_answer_is_judged_alike() {
    let wanted = told().wanted(&End::Itself, 1, true);
    let body = |content: &str| {
        let call = json!({"id": "call_1", "type": "function", "function": {"name": TOOL, "arguments": wanted.call}});
        json!({"id": ID, "choices": [{"index": 0, "finish_reason": "tool_calls", "message": {"role": "assistant",
            "content": content, "reasoning": wanted.reasoning, "reasoning_content": wanted.reasoning, "tool_calls": [call]}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 60, "total_tokens": 69}})
        .to_string()
    };
    assert_eq!(whole(&wanted, body(&wanted.content).as_bytes()), Ok(Verdict::Whole));
    assert!(whole(&wanted, body("wt7.00001 wt7.00003").as_bytes()).is_err());
    assert!(whole(&wanted, &body(&wanted.content).as_bytes()[1..]).is_err());
}

#[test]
fn a_refusal_has_a_reason_and_a_status_that_a_good_request_may_get() {
    let body = json!({"error": {"message": "Nobody.", "code": "no_replica"}}).to_string();
    assert_eq!(
        refusal(503, body.as_bytes()),
        Ok(Verdict::Refused(503, "no_replica".into()))
    );
    assert!(refusal(400, body.as_bytes()).is_err());
    assert!(refusal(503, b"{}").is_err());
}

#[test]
fn a_stop_word_and_a_token_limit_end_it_early() {
    let stopped = told().wanted(&End::Before(3), 1, true);
    assert_eq!(stopped.content, "wt7.00001 wt7.00002 ");
    assert_eq!((stopped.call, stopped.finish), (None, "stop"));
    let limited = told().wanted(&End::Tokens(5), 1, true);
    let heard = |tokens: u64| {
        let message = json!({"role": "assistant", "content": "", "reasoning": "rt7", "reasoning_content": "rt7"});
        json!({"id": ID, "choices": [{"index": 0, "finish_reason": "length", "message": message}],
            "usage": {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": 9 + tokens}})
        .to_string()
    };
    assert_eq!(whole(&limited, heard(5).as_bytes()), Ok(Verdict::Whole));
    assert!(whole(&limited, heard(6).as_bytes()).is_err());
}
