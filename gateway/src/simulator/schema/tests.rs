//! Generated arguments, judged by a small validator of its own.
use super::*;

/// A small validator of its own, so that the maker isn't judged by itself.
fn accepts(schema: &Value, value: &Value, root: &Value) -> Result<(), String> {
    let Some(object) = schema.as_object() else {
        return Ok(());
    };
    let fail = |why: &str| Err(format!("{why}: {value} against {schema}"));
    if let Some(target) = object.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(target.trim_start_matches('#')).ok_or("dangling $ref")?;
        accepts(target, value, root)?;
    }
    for part in object.get("allOf").and_then(Value::as_array).into_iter().flatten() {
        accepts(part, value, root)?;
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = object.get(key).and_then(Value::as_array)
            && !options.iter().any(|option| accepts(option, value, root).is_ok())
        {
            return fail(key);
        }
    }
    if object.get("const").is_some_and(|wanted| wanted != value) {
        return fail("const");
    }
    if object
        .get("enum")
        .and_then(Value::as_array)
        .is_some_and(|all| !all.contains(value))
    {
        return fail("enum");
    }
    if !has_type(object, value) {
        return fail("type");
    }
    for name in object
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if value.is_object() && value.get(name).is_none() {
            return fail("required");
        }
    }
    for (name, property) in object
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        if let Some(value) = value.get(name) {
            accepts(property, value, root)?;
        }
    }
    if let (Some(Value::Bool(false)), Some(given)) = (object.get("additionalProperties"), value.as_object()) {
        let known = object.get("properties").and_then(Value::as_object);
        if given
            .keys()
            .any(|key| !known.is_some_and(|known| known.contains_key(key)))
        {
            return fail("additionalProperties");
        }
    }
    if let (Some(items), Some(values)) = (object.get("items"), value.as_array()) {
        let skip = object.get("prefixItems").and_then(Value::as_array).map_or(0, Vec::len);
        values
            .iter()
            .skip(skip)
            .try_for_each(|value| accepts(items, value, root))?;
    }
    let limit = |key: &str| object.get(key).and_then(Value::as_f64);
    let size = match value {
        Value::String(text) => Some((text.chars().count(), "minLength", "maxLength")),
        Value::Array(items) => Some((items.len(), "minItems", "maxItems")),
        Value::Object(map) => Some((map.len(), "minProperties", "maxProperties")),
        _ => None,
    };
    if let Some((size, low, high)) = size {
        let size = size as f64;
        if limit(low).is_some_and(|low| size < low) || limit(high).is_some_and(|high| size > high) {
            return fail("size");
        }
    }
    if let Some(number) = value.as_f64() {
        let low = limit("minimum").is_some_and(|low| number < low)
            || limit("exclusiveMinimum").is_some_and(|low| number <= low);
        let high = limit("maximum").is_some_and(|high| number > high)
            || limit("exclusiveMaximum").is_some_and(|high| number >= high);
        if low || high || limit("multipleOf").is_some_and(|step| (number / step).fract() != 0.0) {
            return fail("bounds");
        }
    }
    Ok(())
}

#[test]
fn hand_made_schemas_are_met_for_many_draws() {
    let schemas = [
        json!({"type": "object", "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}}, "required": ["unit"]}),
        json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 5}, "m": {"type": "integer", "maximum": -4}, "x": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.2}, "s": {"type": "integer", "multipleOf": 7, "minimum": 10}}, "required": ["n", "m", "x", "s"]}),
        json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 3, "uniqueItems": true}}, "required": ["a"]}),
        json!({"type": "object", "properties": {"p": {"$ref": "#/$defs/point"}}, "required": ["p"], "$defs": {"point": {"type": "object", "properties": {"x": {"type": "number"}, "next": {"$ref": "#/$defs/point"}}, "required": ["x"], "additionalProperties": false}}}),
        json!({"type": ["null", "object"], "properties": {"v": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 20}]}}, "required": ["v"]}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}, {"properties": {"b": {"const": 4}}, "required": ["b"]}]}),
        json!({"type": "object", "required": ["free"], "minProperties": 3}),
        json!({"type": "object", "properties": {"s": {"type": "string", "maxLength": 4}}, "required": ["s"], "additionalProperties": false}),
    ];
    for schema in &schemas {
        for dice in 0..200 {
            for optional in [Optional::Some, Optional::All] {
                let value = instance(schema, optional, mix(dice, 9));
                accepts(schema, &value, schema).unwrap();
            }
        }
    }
}

#[test]
fn the_schemas_of_bfcl_are_met() {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(
        || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared"),
        std::path::PathBuf::from,
    );
    let path = shared.join("vllm/vectors/bfcl.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{} is needed: {error}", path.display()));
    /// A property whose enum has no member of its type: nothing meets that.
    fn is_contradictory(schema: &Value) -> bool {
        let own = schema.as_object().is_some_and(|object| {
            let members = object.get("enum").and_then(Value::as_array);
            members.is_some_and(|members| !members.iter().any(|member| has_type(object, member)))
        });
        own || match schema {
            Value::Object(object) => object.values().any(is_contradictory),
            Value::Array(items) => items.iter().any(is_contradictory),
            _ => false,
        }
    }
    let (mut checked, mut contradictory) = (0, 0);
    for line in lines.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        for tool in case["tools"].as_array().unwrap() {
            let schema = &tool["function"]["parameters"];
            if is_contradictory(schema) {
                contradictory += 1;
                continue;
            }
            for dice in 0..4 {
                for optional in [Optional::Some, Optional::All] {
                    let value = Value::Object(arguments(Some(schema), optional, mix(dice, 11)));
                    accepts(schema, &value, schema).unwrap_or_else(|why| panic!("{}: {why}", case["id"]));
                    checked += 1;
                }
            }
        }
    }
    assert!(
        checked > 2_000 && contradictory < 20,
        "{checked} checked, {contradictory} contradictory"
    );
}

#[test]
fn plain_patterns_are_met_and_others_declined() {
    assert_eq!(matching("^ab\\.c$", 1).as_deref(), Some("ab.c"));
    let date = matching("^\\d{4}-\\d{2}-\\d{2}$", 3).unwrap();
    assert!(
        date.len() == 10
            && date.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 {
                b == b'-'
            } else {
                b.is_ascii_digit()
            })
    );
    let name = matching("^[A-Z][a-z_-]{2,5}$", 3).unwrap();
    assert!(name.len() == 3 && name.starts_with(|c: char| c.is_ascii_uppercase()));
    for other in ["^(a|b)$", "a+?", "[^a]", "\\bword"] {
        assert_eq!(matching(other, 1), None, "{other}");
    }
}

#[test]
fn a_required_recursion_ends() {
    let schema = json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]});
    assert!(instance(&schema, Optional::All, 1).is_object());
    let ring = json!({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}});
    instance(&ring, Optional::All, 1);
    let all = json!({"allOf": vec![json!({"$ref": "#"}); 10]});
    instance(&all, Optional::All, 1);
    let fan: Map<String, Value> = (0..10).map(|n| (format!("p{n}"), json!({"$ref": "#"}))).collect();
    let names: Vec<&String> = fan.keys().collect();
    instance(
        &json!({"type": "object", "properties": fan, "required": names}),
        Optional::All,
        1,
    );
}
