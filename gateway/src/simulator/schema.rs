//! Arguments made from a tool's JSON schema, valid by construction.
//!
//! Enters: a schema and a draw. Leaves: a value that keeps types, `enum`, `const`, `required`, bounds, lengths, formats,
//! `$ref` inside the schema, `anyOf`, `oneOf` and `allOf`. What it can't promise: `pattern` beyond plain classes and
//! counts, `not`, `if`. Depth is limited; recursion that is required for ever ends in null.
use std::cell::Cell;

use serde_json::{Map, Value, json};

use super::tokens::{mix, mix_text};

/// Deepest nesting that is generated.
const MAX_DEPTH: u32 = 12;
/// Most values in one generated instance; a schema that branches for ever ends in nulls.
const MAX_VALUES: u32 = 20_000;
/// Most elements of a generated array and most optional properties of a generated object.
const MAX_ITEMS: u64 = 64;
/// Longest string that `minLength` or a pattern can ask for.
const MAX_STRING: u64 = 4_096;

/// Which optional properties are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Optional {
    /// Each by a draw.
    Some,
    /// All.
    All,
}

/// A value that `schema` accepts.
pub(super) fn instance(schema: &Value, optional: Optional, dice: u64) -> Value {
    Maker {
        root: schema,
        optional,
        left: Cell::new(MAX_VALUES),
    }
    .value(schema, "value", dice, 0)
}

/// An object for a tool's `parameters`; the empty object if the schema wants none.
pub(super) fn arguments(parameters: Option<&Value>, optional: Optional, dice: u64) -> Map<String, Value> {
    match parameters.map(|schema| instance(schema, optional, dice)) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    }
}

struct Maker<'a> {
    root: &'a Value,
    optional: Optional,
    /// Values that may still be made.
    left: Cell<u32>,
}

impl Maker<'_> {
    fn value(&self, schema: &Value, name: &str, dice: u64, depth: u32) -> Value {
        if depth > MAX_DEPTH || self.left.get() == 0 {
            return Value::Null;
        }
        let Some(object) = self.resolved(schema, depth) else {
            return json!("simulated");
        };
        if let Some(value) = object.get("const") {
            return value.clone();
        }
        if let Some(values) = object
            .get("enum")
            .and_then(Value::as_array)
            .filter(|values| !values.is_empty())
        {
            // An enum that contradicts its own type can't be met; its members are the likelier intention.
            let typed: Vec<&Value> = values.iter().filter(|value| has_type(&object, value)).collect();
            let count = if typed.is_empty() { values.len() } else { typed.len() };
            let place = (dice % count as u64) as usize;
            return typed
                .get(place)
                .map_or_else(|| values[place].clone(), |value| (*value).clone());
        }
        if let Some(option) = ["anyOf", "oneOf"]
            .iter()
            .find_map(|key| object.get(*key)?.as_array())
            .and_then(|all| choose(all))
        {
            let mut merged = object.clone();
            merged.remove("anyOf");
            merged.remove("oneOf");
            merge(&mut merged, option);
            return self.value(&Value::Object(merged), name, dice, depth + 1);
        }
        match kind(&object) {
            Kind::Object => Value::Object(self.object(&object, dice, depth)),
            Kind::Array => self.array(&object, name, dice, depth),
            Kind::Integer => integer(&object, dice),
            Kind::Number => number(&object, dice),
            Kind::Boolean => json!(dice.is_multiple_of(2)),
            Kind::Null => Value::Null,
            Kind::String => Value::String(string(&object, name, dice)),
        }
    }

    /// The schema with its local `$ref` followed and `allOf` merged; None for `true`.
    fn resolved(&self, schema: &Value, depth: u32) -> Option<Map<String, Value>> {
        self.left.set(self.left.get().checked_sub(1)?);
        let mut object = schema.as_object()?.clone();
        let mut hops = 0;
        while let Some(target) = object.remove("$ref").and_then(|at| self.target(&at)) {
            merge(&mut object, target);
            hops += 1;
            if hops > MAX_DEPTH + depth {
                break;
            }
        }
        if let Some(Value::Array(parts)) = object.remove("allOf") {
            for part in parts {
                let part = if depth < MAX_DEPTH {
                    self.resolved(&part, depth + 1)
                } else {
                    None
                };
                if let Some(part) = part {
                    merge(&mut object, &Value::Object(part));
                }
            }
        }
        Some(object)
    }

    fn target(&self, reference: &Value) -> Option<&Value> {
        self.root.pointer(reference.as_str()?.strip_prefix('#')?)
    }

    fn object(&self, schema: &Map<String, Value>, dice: u64, depth: u32) -> Map<String, Value> {
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let fewest = bound(schema, "minProperties").unwrap_or(0);
        let most = bound(schema, "maxProperties")
            .unwrap_or(MAX_ITEMS)
            .max(required.len() as u64);
        let mut made = Map::new();
        let mut extras = most - required.len() as u64;
        for (name, property) in properties {
            let draw = mix_text(dice, name);
            let is_required = required.contains(&name.as_str());
            let is_drawn = self.optional == Optional::All || draw.is_multiple_of(2) || (made.len() as u64) < fewest;
            if is_required || (is_drawn && depth < MAX_DEPTH / 2 && extras > 0) {
                extras -= u64::from(!is_required);
                made.insert(name.clone(), self.value(property, name, draw, depth + 1));
            }
        }
        let open = schema
            .get("additionalProperties")
            .filter(|extra| extra.is_object())
            .cloned()
            .unwrap_or(json!(true));
        for name in required
            .into_iter()
            .map(str::to_owned)
            .chain((0..fewest).map(|n| format!("key_{n}")))
        {
            let wanted = !properties.contains_key(&name) && (!name.starts_with("key_") || (made.len() as u64) < fewest);
            if wanted {
                let draw = mix_text(dice, &name);
                let value = self.value(&open, &name, draw, depth + 1);
                made.insert(name, value);
            }
        }
        made
    }

    fn array(&self, schema: &Map<String, Value>, name: &str, dice: u64, depth: u32) -> Value {
        let fewest = bound(schema, "minItems").unwrap_or(0).min(MAX_ITEMS);
        let most = bound(schema, "maxItems").unwrap_or(MAX_ITEMS);
        let first = schema
            .get("prefixItems")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let count = (1 + dice % 2).max(fewest).max(first.len() as u64).min(most);
        let rest = schema
            .get("items")
            .filter(|items| !items.is_boolean())
            .cloned()
            .unwrap_or(json!({"type": "string"}));
        let is_unique = schema.get("uniqueItems") == Some(&Value::Bool(true));
        let mut made: Vec<Value> = Vec::new();
        for place in 0..count {
            let items = first.get(place as usize).unwrap_or(&rest);
            let mut value = self.value(items, name, mix(dice, place), depth + 1);
            for retry in 0..MAX_ITEMS {
                if !is_unique || !made.contains(&value) {
                    break;
                }
                value = match value {
                    Value::String(text) if items.get("enum").is_none() => Value::String(format!("{text}{place}")),
                    _ => self.value(items, name, mix(dice, place + (retry + 1) * MAX_ITEMS), depth + 1),
                };
            }
            if is_unique && made.contains(&value) {
                break;
            }
            made.push(value);
        }
        Value::Array(made)
    }
}

enum Kind {
    Object,
    Array,
    Integer,
    Number,
    Boolean,
    Null,
    String,
}

/// Whether a value has one of the schema's types.
fn has_type(schema: &Map<String, Value>, value: &Value) -> bool {
    let is = |name: &str| match name {
        "object" | "dict" => value.is_object(),
        "array" | "list" | "tuple" => value.is_array(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" | "float" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => value.is_string(),
    };
    match schema.get("type") {
        Some(Value::String(name)) => is(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

/// The type to make: the first that isn't null, or what the other keywords speak of.
fn kind(schema: &Map<String, Value>) -> Kind {
    let named = match schema.get("type") {
        Some(Value::String(name)) => Some(name.as_str()),
        Some(Value::Array(names)) => {
            let mut names = names.iter().filter_map(Value::as_str);
            let first = names.next();
            if first == Some("null") {
                names.next().or(first)
            } else {
                first
            }
        }
        _ => None,
    };
    match named {
        Some("object" | "dict") => Kind::Object,
        Some("array" | "list" | "tuple") => Kind::Array,
        Some("integer") => Kind::Integer,
        Some("number" | "float") => Kind::Number,
        Some("boolean") => Kind::Boolean,
        Some("null") => Kind::Null,
        Some(_) => Kind::String,
        None if schema.contains_key("properties") || schema.contains_key("required") => Kind::Object,
        None if schema.contains_key("items") || schema.contains_key("prefixItems") => Kind::Array,
        None if schema.contains_key("minimum") || schema.contains_key("maximum") => Kind::Integer,
        None => Kind::String,
    }
}

/// The first alternative that isn't null.
fn choose(options: &[Value]) -> Option<&Value> {
    options
        .iter()
        .find(|option| option.get("type") != Some(&json!("null")))
        .or_else(|| options.first())
}

/// Adds the keywords of `other`; properties and required names are united, other keywords of `into` win.
fn merge(into: &mut Map<String, Value>, other: &Value) {
    for (key, value) in other.as_object().into_iter().flatten() {
        match (into.get_mut(key), value) {
            (Some(Value::Object(mine)), Value::Object(theirs)) if key == "properties" => {
                theirs.iter().for_each(|(name, schema)| {
                    mine.entry(name).or_insert_with(|| schema.clone());
                });
            }
            (Some(Value::Array(mine)), Value::Array(theirs)) if key == "required" => {
                mine.extend(theirs.iter().cloned())
            }
            (Some(_), _) => {}
            (None, _) => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

fn bound(schema: &Map<String, Value>, key: &str) -> Option<u64> {
    schema.get(key).and_then(Value::as_u64)
}

/// Lower and upper bound of a number, with what `exclusive…` adds as `gap`.
fn range(schema: &Map<String, Value>, gap: f64) -> (Option<f64>, Option<f64>) {
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    let is = |key: &str| schema.get(key) == Some(&Value::Bool(true));
    let low = number("minimum").map(|low| if is("exclusiveMinimum") { low + gap } else { low });
    let high = number("maximum").map(|high| if is("exclusiveMaximum") { high - gap } else { high });
    let low = [low, number("exclusiveMinimum").map(|low| low + gap)]
        .into_iter()
        .flatten()
        .reduce(f64::max);
    let high = [high, number("exclusiveMaximum").map(|high| high - gap)]
        .into_iter()
        .flatten()
        .reduce(f64::min);
    (low, high)
}

fn integer(schema: &Map<String, Value>, dice: u64) -> Value {
    let (low, high) = range(schema, 1.0);
    let step = schema
        .get("multipleOf")
        .and_then(Value::as_f64)
        .map_or(1, |step| (step.abs().ceil() as i64).max(1));
    let low = low.map_or_else(
        || high.map_or(1, |high| (high.floor() as i64).min(1)),
        |low| low.ceil() as i64,
    );
    let high = high.map_or(low.saturating_add(9 * step), |high| high.floor() as i64);
    let first = low.saturating_add((step - low.rem_euclid(step)) % step);
    let choices = (high.saturating_sub(first) / step).clamp(0, 9) as u64 + 1;
    json!(first.saturating_add((dice % choices) as i64 * step))
}

fn number(schema: &Map<String, Value>, dice: u64) -> Value {
    if schema.get("multipleOf").is_some() {
        return integer(schema, dice);
    }
    let (low, high) = range(schema, 1e-6);
    let low = low.unwrap_or_else(|| high.map_or(0.5, |high| high - 9.0));
    let high = high.unwrap_or(low + 9.0);
    let value = low + (high - low) * ((dice % 9) as f64 / 8.0);
    json!((value * 4.0).round() / 4.0)
        .as_f64()
        .filter(|v| (low..=high).contains(v))
        .map_or(json!(value), |v| json!(v))
}

fn string(schema: &Map<String, Value>, name: &str, dice: u64) -> String {
    if let Some(text) = schema
        .get("pattern")
        .and_then(Value::as_str)
        .and_then(|pattern| matching(pattern, dice))
    {
        return text;
    }
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    let mut text = formatted(format).unwrap_or_else(|| named(name, dice)).to_owned();
    let fewest = bound(schema, "minLength").unwrap_or(0).min(MAX_STRING) as usize;
    while text.chars().count() < fewest {
        text.push('x');
    }
    if let Some(most) = bound(schema, "maxLength") {
        text = text.chars().take(most as usize).collect();
    }
    text
}

fn formatted(format: &str) -> Option<&'static str> {
    Some(match format {
        "date" => "2026-01-15",
        "date-time" => "2026-01-15T09:30:00Z",
        "time" => "09:30:00Z",
        "duration" => "PT15M",
        "email" | "idn-email" => "agent@example.org",
        "hostname" | "idn-hostname" => "example.org",
        "ipv4" => "192.0.2.1",
        "ipv6" => "2001:db8::1",
        "uri" | "uri-reference" | "iri" | "url" => "https://example.org/simulated",
        "uuid" => "00000000-0000-4000-8000-000000000000",
        _ => return None,
    })
}

/// A likely word for a property of this name.
fn named(name: &str, dice: u64) -> &'static str {
    let name = name.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let choices: &[&str] = if has(&["city", "location", "place"]) {
        &["Paris", "Lisbon", "Oslo"]
    } else if has(&["query", "search", "question", "topic"]) {
        &["simulated query", "weather today", "train times"]
    } else if has(&["date", "day"]) {
        &["2026-01-15", "2026-02-01"]
    } else if has(&["mail"]) {
        &["agent@example.org"]
    } else if has(&["url", "link", "site"]) {
        &["https://example.org/simulated"]
    } else if has(&["path", "file", "dir"]) {
        &["/tmp/simulated.txt", "src/main.rs"]
    } else {
        &["simulated", "simulated value", "simulated text"]
    };
    choices[(dice % choices.len() as u64) as usize]
}

/// A text for a plain pattern: literals, classes, `\d \w \s .`, and counts. None if there is anything else in it.
fn matching(pattern: &str, dice: u64) -> Option<String> {
    let mut rest = pattern.strip_prefix('^').unwrap_or(pattern).chars().peekable();
    let mut out = String::new();
    while let Some(first) = rest.next() {
        let choices: Vec<char> = match first {
            '$' if rest.peek().is_none() => break,
            '(' | ')' | '|' | '*' | '+' | '?' | '{' | '}' | '^' | '$' => return None,
            '.' => vec!['x'],
            '\\' => escaped(rest.next()?)?,
            '[' => class(&mut rest)?,
            other => vec![other],
        };
        for place in 0..count(&mut rest)? {
            out.push(choices[(mix(dice, out.len() as u64 + place) % choices.len() as u64) as usize]);
        }
    }
    Some(out)
}

fn escaped(letter: char) -> Option<Vec<char>> {
    match letter {
        'd' => Some(('0'..='9').collect()),
        'w' => Some(('a'..='z').collect()),
        's' => Some(vec![' ']),
        _ if letter.is_ascii_alphanumeric() => None,
        _ => Some(vec![letter]),
    }
}

fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Vec<char>> {
    let mut choices = Vec::new();
    loop {
        match rest.next()? {
            ']' if !choices.is_empty() => return Some(choices),
            '^' if choices.is_empty() => return None,
            '\\' => choices.extend(escaped(rest.next()?)?),
            '-' if rest.peek() != Some(&']') => {
                let (from, to) = (choices.pop()?, rest.next()?);
                choices.extend((from..=to).take(128));
            }
            one => choices.push(one),
        }
    }
}

/// How often the atom before stands: the fewest times, at least once where that is allowed.
fn count(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<u64> {
    let taken = match rest.peek() {
        Some('*' | '+' | '?') => {
            rest.next();
            1
        }
        Some('{') => {
            rest.next();
            let mut inside = String::new();
            loop {
                match rest.next()? {
                    '}' => break,
                    digit => inside.push(digit),
                }
            }
            inside.split(',').next()?.parse::<u64>().ok()?
        }
        _ => return Some(1),
    };
    // A lazy or possessive count isn't plain.
    (!matches!(rest.peek(), Some('?' | '+'))).then_some(taken.min(MAX_STRING))
}

#[cfg(test)]
mod tests;
