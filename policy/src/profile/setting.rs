//! One setting of a profile: a value, or the engine's own default as a value.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, IntoDeserializer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How [`Setting::EngineDefault`] is written.
pub const ENGINE_DEFAULT: &str = "engine-default";

/// A value that is passed to vLLM, or the statement that vLLM's own default is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Setting<T> {
    /// Written `"engine-default"`: no argument is given, what is in effect is read back from the running engine.
    #[default]
    EngineDefault,
    /// The argument is given with this value.
    Set(T),
}

impl<T> Setting<T> {
    /// The value, if one is given.
    pub fn set(&self) -> Option<&T> {
        match self {
            Setting::EngineDefault => None,
            Setting::Set(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Setting::EngineDefault => serializer.serialize_str(ENGINE_DEFAULT),
            Setting::Set(value) => value.serialize(serializer),
        }
    }
}

// Not `#[serde(untagged)]`: that would answer a wrong value with "did not match any variant" instead of what was expected.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SettingVisitor(PhantomData))
    }
}

struct SettingVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> SettingVisitor<T> {
    fn value<E: de::Error>(from: impl Deserializer<'de, Error = E>) -> Result<Setting<T>, E> {
        T::deserialize(from).map(Setting::Set)
    }
}

impl<'de, T: Deserialize<'de>> de::Visitor<'de> for SettingVisitor<T> {
    type Value = Setting<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value or {ENGINE_DEFAULT:?}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if text == ENGINE_DEFAULT {
            return Ok(Setting::EngineDefault);
        }
        let text = text.to_owned();
        Self::value(IntoDeserializer::<E>::into_deserializer(text))
            .map_err(|error| E::custom(format_args!("{error}, or {ENGINE_DEFAULT:?}")))
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Self::Value, E> {
        Self::value(value.into_deserializer())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Self::value(value.into_deserializer())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        Self::value(value.into_deserializer())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        Self::value(value.into_deserializer())
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        Self::value(SeqAccessDeserializer::new(seq))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Self::value(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(json: &str, expect: Option<T>)
    where
        T: for<'de> Deserialize<'de> + Serialize + PartialEq + fmt::Debug,
    {
        let read: Setting<T> = serde_json::from_str(json).unwrap();
        assert_eq!(read, expect.map_or(Setting::EngineDefault, Setting::Set), "{json}");
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }

    #[test]
    fn reads_and_writes_each_kind_of_value() {
        check::<u32>("\"engine-default\"", None);
        check::<String>("\"engine-default\"", None);
        check::<bool>("\"engine-default\"", None);
        check("\"fp8\"", Some("fp8".to_owned()));
        check("32", Some(32u32));
        check("0.85", Some(0.85f64));
        check("false", Some(false));
        check("[1,2]", Some(vec![1u8, 2]));
        check(
            r#"{"b":1,"a":{"x":[null]}}"#,
            serde_json::from_str::<serde_json::Map<_, _>>(r#"{"b":1,"a":{"x":[null]}}"#).ok(),
        );
    }

    #[test]
    fn a_whole_number_is_a_share_too() {
        assert_eq!(serde_json::from_str::<Setting<f64>>("1").unwrap(), Setting::Set(1.0));
    }

    #[test]
    fn a_wrong_value_says_what_was_expected() {
        for (json, parts) in [
            ("-1", ["-1", "u32"]),
            ("\"32\"", ["32", "engine-default"]),
            ("null", ["null", "engine-default"]),
        ] {
            let error = serde_json::from_str::<Setting<u32>>(json).unwrap_err().to_string();
            assert!(parts.iter().all(|part| error.contains(part)), "{json}: {error}");
        }
    }
}
