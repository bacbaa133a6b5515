//! What the descriptions of tools say of their parameters' types, as far as Qwen3-Coder's calls need it: that form writes
//! every value as bare text.
//!
//! The rules are those of the parser that Qwen publishes beside Qwen3-Coder (`qwen3coder_tool_parser.py`, which vLLM and
//! SGLang carry too), but for two that would lose what was said: a boolean that is neither `true` nor `false` stays a
//! string (there it is false), and Python's literals that are no JSON stay strings (there they are evaluated).
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::super::json::Json;
use crate::error::Result;
use crate::memory;

/// What a tool, a parameter and its entry in a table take, in bytes, besides their names.
const ENTRY: usize = 128;

/// The parameters of tools by the tools' names.
#[derive(Clone, Debug, Default)]
pub struct Tools(HashMap<String, HashMap<String, Types>>);

/// The types that a parameter may have, null apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Types {
    string: bool,
    integer: bool,
    number: bool,
    boolean: bool,
    /// Objects, lists, and what no rule names.
    other: bool,
}

impl Types {
    /// Of a parameter's schema; in the forms that allow several types, of all of them.
    fn of(schema: &Json) -> Types {
        let mut types = Types::default();
        match schema.get("type") {
            Some(Json::String(name)) => types.add(name),
            Some(Json::List(names)) => names.iter().filter_map(Json::as_str).for_each(|name| types.add(name)),
            _ => {}
        }
        let choices = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema.get(key)?.as_list()).flatten();
        choices.map(Types::of).for_each(|more| {
            types = Types {
                string: types.string | more.string,
                integer: types.integer | more.integer,
                number: types.number | more.number,
                boolean: types.boolean | more.boolean,
                other: types.other | more.other,
            }
        });
        types
    }

    fn add(&mut self, name: &str) {
        let name = name.trim().to_lowercase();
        let begins = |with: &[&str]| with.iter().any(|with| name.starts_with(with));
        match name.as_str() {
            "null" => {}
            "string" | "str" | "text" | "varchar" | "char" | "enum" => self.string = true,
            "boolean" | "bool" | "binary" => self.boolean = true,
            _ if begins(&["int", "uint", "long", "short", "unsigned"]) => self.integer = true,
            _ if begins(&["num", "float"]) => self.number = true,
            _ => self.other = true,
        }
    }

    /// The value that a text stands for; the text itself where no type of these reads it.
    fn value(self, text: &str) -> Json {
        let read = || Json::parse(text).ok();
        let fits = |value: &Json| match value {
            Json::Int(_) => self.integer || self.number || self.other,
            Json::Float(_) => self.number || self.other,
            _ => self.other,
        };
        if text.eq_ignore_ascii_case("null") {
            return Json::Null;
        }
        if self.string || self == Types::default() {
            return text.into();
        }
        match text.trim().to_ascii_lowercase().as_str() {
            "true" if self.boolean => return true.into(),
            "false" if self.boolean => return false.into(),
            _ => {}
        }
        read().filter(fits).unwrap_or_else(|| text.into())
    }
}

impl Tools {
    /// Reads the `tools` of a chat request: `{"type": "function", "function": {"name", "parameters"}}`, or the inner object
    /// alone. What has another form is passed over: templates take tools of any.
    ///
    /// Error: `OutOfHostMemory`.
    pub fn of(tools: &Json) -> Result<Tools> {
        let mut bytes = 0;
        tools.texts(&mut |text| bytes += text.len());
        memory::room_for(bytes + tools.count() as usize * ENTRY, "the types of the tools' parameters")?;
        let function = |tool: &Json| {
            let function = tool.get("function").unwrap_or(tool);
            let name = function.get("name")?.as_str()?;
            let parameters = function.get("parameters");
            let properties = parameters.and_then(|parameters| parameters.get("properties"));
            let types = match properties.or(parameters) {
                Some(Json::Object(entries)) => {
                    entries.iter().map(|(name, schema)| (name.clone(), Types::of(schema))).collect()
                }
                _ => HashMap::new(),
            };
            Some((name.to_string(), types))
        };
        Ok(Tools(tools.as_list().unwrap_or_default().iter().filter_map(function).collect()))
    }

    /// The value that the text of a parameter stands for: null for `null` in any case of letters, a string where the
    /// tool's description does not say otherwise.
    pub(super) fn value(&self, tool: &str, parameter: &str, text: &str) -> Json {
        self.0.get(tool).and_then(|types| types.get(parameter)).copied().unwrap_or_default().value(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_has_the_type_that_the_tool_says_and_stays_text_where_it_does_not_fit() {
        let tools = json!([
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
                "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"}, "b": {"type": "boolean"},
                "o": {"type": "object"}, "l": {"type": "array"}, "x": {"description": "no type"},
                "many": {"type": ["integer", "null"]}, "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                "one": {"oneOf": [{"type": "array"}, {"type": "null"}]}, "odd": {"type": "decimal"}}}}},
            {"name": "bare", "parameters": {"i": {"type": "int32"}}},
            {"name": 5}, "no tool",
        ]);
        let tools = Tools::of(&tools.into()).unwrap();
        for (parameter, text, value) in [
            ("s", "5", json!("5")),
            ("s", "null", json!(null)),
            ("i", " 5 ", json!(5)),
            ("i", "5.5", json!("5.5")),
            ("i", "five", json!("five")),
            ("i", "NULL", json!(null)),
            ("n", "5", json!(5)),
            ("n", "5.5", json!(5.5)),
            ("n", "true", json!("true")),
            ("b", "True", json!(true)),
            ("b", "false", json!(false)),
            ("b", "yes", json!("yes")),
            ("o", r#"{"a": [1]}"#, json!({"a": [1]})),
            ("o", "{'a': 1}", json!("{'a': 1}")),
            ("l", "[1, 2]", json!([1, 2])),
            ("x", "5", json!("5")),
            ("many", "5", json!(5)),
            ("either", "5", json!("5")),
            ("one", "[5]", json!([5])),
            ("odd", "5.5", json!(5.5)),
            ("absent", "5", json!("5")),
        ] {
            assert_eq!(tools.value("f", parameter, text), value.into(), "{parameter} {text}");
        }
        assert_eq!(tools.value("bare", "i", "7"), json!(7).into());
        assert_eq!(tools.value("none", "i", "7"), json!("7").into());
        let big = "123456789012345678901234567890";
        assert_eq!(tools.value("f", "i", big).to_text(), big, "every digit stays");
    }
}
