//! What can be read of a call that isn't valid.

use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

use crate::tool_call::ToolSet;

/// The declared function that the broken call `raw` means, if that is certain: its name comes first, is complete, and
/// is one of the tools (by the silent rules of B24).
pub(super) fn certain_name<'a>(raw: &str, tools: &'a ToolSet) -> Option<&'a str> {
    let name = xml_name(raw).map_or_else(|| json_name(raw), |name| Some(Cow::Borrowed(name)))?;
    tools.find(&name).map(|tool| tool.name.as_str())
}

/// `<function=NAME>`, or the `name` of an opening tag.
fn xml_name(raw: &str) -> Option<&str> {
    let before = raw.find('{').unwrap_or(raw.len());
    let head = raw.get(..before)?;
    for (opens, closes) in [("<function=", '>'), ("name=\"", '"')] {
        if let Some((_, rest)) = head.split_once(opens) {
            return rest.split_once(closes).map(|(name, _)| name);
        }
    }
    None
}

/// The value of `"name"`, first in its object.
fn json_name(raw: &str) -> Option<Cow<'_, str>> {
    let (_, inside) = raw.split_once('{')?;
    let inside = inside.trim_start();
    let rest = inside
        .strip_prefix("\"name\"")
        .or_else(|| inside.strip_prefix("\"function\""))?;
    let value = rest.trim_start().strip_prefix(':')?.trim_start();
    let mut values = serde_json::Deserializer::from_str(value).into_iter::<Cow<'_, str>>();
    values.next()?.ok()
}

/// A call as the model wrote it, whatever the schema says of it: JSON with a name and arguments.
pub(super) fn as_written(raw: &str) -> Option<(String, String)> {
    #[derive(Deserialize)]
    struct Written<'a> {
        name: String,
        #[serde(borrow)]
        arguments: &'a RawValue,
    }
    let object = raw.get(raw.find('{')?..)?;
    let mut values = serde_json::Deserializer::from_str(object).into_iter::<Written<'_>>();
    let Written { name, arguments } = values.next()?.ok()?;
    let arguments = match serde_json::from_str::<String>(arguments.get()) {
        Ok(inner) => inner,
        Err(_) => arguments.get().to_owned(),
    };
    Some((name, arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_certain_only_if_complete_declared_and_first() {
        let tools = br#"[{"type":"function","function":{"name":"get_weather"}},{"type":"function","function":{"name":"a\"b"}}]"#;
        let tools = ToolSet::parse(tools).unwrap();
        for (raw, want) in [
            (
                r#"<tool_call>{"name": "get_weather", "arguments": {"city"#,
                Some("get_weather"),
            ),
            (r#"<tool_call>{"function": "Get-Weather", "argum"#, Some("get_weather")),
            (r#"<tool_call>{"name":"a\"b","#, Some("a\"b")),
            (r#"<tool_call>{"name": "get_weather"#, None),
            (r#"<tool_call>{"name": "get_wether", "arguments": {}}"#, None),
            (r#"<tool_call>{"arguments": {"name": "get_weather"}"#, None),
            (r#"<tool_call name="get_weather">{"city": "#, Some("get_weather")),
            ("<function=get_weather><parameter=city>", Some("get_weather")),
            ("<function=get_wea", None),
            ("<tool_call>", None),
        ] {
            assert_eq!(certain_name(raw, &tools), want, "{raw}");
        }
    }

    #[test]
    fn a_written_call_is_read_without_its_schema() {
        let call = |name: &str, arguments: &str| Some((name.to_owned(), arguments.to_owned()));
        for (raw, want) in [
            (
                r#"<tool_call>{"name": "x", "arguments": {"a": 1}}</tool_call>"#,
                call("x", r#"{"a": 1}"#),
            ),
            (
                r#"<tool_call>{"name": "x", "arguments": "{}", "id": 1}"#,
                call("x", "{}"),
            ),
            (r#"<tool_call>{"name": "x", "arguments": 1}"#, call("x", "1")),
            (r#"<tool_call>{"name": "x", "arguments": {"a": }}"#, None),
            (r#"<tool_call>{"name": "x"}"#, None),
            ("<tool_call>", None),
        ] {
            assert_eq!(as_written(raw), want, "{raw}");
        }
    }
}
