//! Qwen3-Coder's form of a call: `<function=name><parameter=p>value</parameter></function>`.
//!
//! The rules are those of the parser that Qwen publishes beside the model (see `tools`): a value ends at `</parameter>`,
//! or where a further parameter or the function's end comes without it; one line end at both of its ends is not part of
//! it; a function may lack its end; several functions may stand in one call. What stands between these and is no white space
//! is passed over there; here it makes the call one that cannot be read, so that nothing said is lost.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::super::json::Json;
use super::tools::Tools;

const FUNCTION: &str = "<function=";
const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";

/// Whether a call's text, white space apart, has this form.
pub(super) fn is_coders(text: &str) -> bool {
    text.starts_with(FUNCTION)
}

/// The functions of a call with their arguments; or why it cannot be read.
pub(super) fn functions(mut text: &str, tools: &Tools) -> Result<Vec<(String, String)>, String> {
    let mut all = Vec::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return Ok(all);
        }
        let rest = text.strip_prefix(FUNCTION).ok_or_else(|| beside("a function", text))?;
        let (inside, after) = rest.split_once(FUNCTION_END).unwrap_or((rest, ""));
        let (name, parameters) = inside.split_once('>').ok_or("the name of a function has no end")?;
        if name.is_empty() {
            return Err("a function has no name".into());
        }
        all.push((name.to_string(), arguments(name, parameters, tools)?));
        text = after;
    }
}

/// The arguments of a function as the text of a JSON object; of a parameter given twice the last value counts.
fn arguments(function: &str, mut text: &str, tools: &Tools) -> Result<String, String> {
    let mut entries: Vec<(String, Json)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    loop {
        text = text.trim_start();
        if text.is_empty() {
            return Ok(Json::Object(entries).to_text());
        }
        let rest = text.strip_prefix(PARAMETER).ok_or_else(|| beside("a parameter", text))?;
        let (name, rest) = rest.split_once('>').ok_or("the name of a parameter has no end")?;
        if name.is_empty() {
            return Err("a parameter has no name".into());
        }
        let ended = rest.find(PARAMETER_END);
        let next = rest.find(PARAMETER).filter(|&next| ended.is_none_or(|end| next < end));
        let end = next.or(ended).unwrap_or(rest.len());
        let value = &rest[..end];
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = tools.value(function, name, value.strip_suffix('\n').unwrap_or(value));
        match places.get(name) {
            Some(&place) => entries[place].1 = value,
            None => {
                places.insert(name, entries.len());
                entries.push((name.to_string(), value));
            }
        }
        text = rest[end..].strip_prefix(PARAMETER_END).unwrap_or(&rest[end..]);
    }
}

fn beside(what: &str, text: &str) -> String {
    let found: String = text.chars().take(20).collect();
    format!("wanted {what}, found {found:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        functions(text, &Tools::default())
    }

    fn one(text: &str) -> (String, String) {
        let mut all = read(text).unwrap();
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn parameters_become_a_json_object() {
        let call = "<function=write>\n<parameter=path>\na \"b\".txt\n</parameter>\n<parameter=text>\n\nline\n  <b> \\ é\n\n</parameter>\n</function>";
        let (name, arguments) = one(call);
        assert_eq!(name, "write");
        assert_eq!(arguments, r#"{"path":"a \"b\".txt","text":"\nline\n  <b> \\ é\n"}"#);
        assert_eq!(one("<function=now></function>"), ("now".into(), "{}".into()));
        assert_eq!(
            one("<function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>").1,
            r#"{"a":"2"}"#
        );
    }

    #[test]
    fn ends_that_are_missing_are_where_the_next_thing_begins() {
        let wanted = ("f".to_string(), r#"{"a":"1","b":"2"}"#.to_string());
        for call in [
            "<function=f><parameter=a>1<parameter=b>2</function>",
            "<function=f><parameter=a>\n1\n</parameter><parameter=b>2",
            "<function=f>\n<parameter=a>1</parameter>\n<parameter=b>2</parameter>\n",
        ] {
            assert_eq!(one(call), wanted, "{call}");
        }
    }

    #[test]
    fn several_functions_are_several_calls() {
        let all = read("<function=f></function>\n<function=g><parameter=a>x</parameter></function>").unwrap();
        assert_eq!(all, [("f".into(), "{}".into()), ("g".into(), r#"{"a":"x"}"#.into())]);
    }

    #[test]
    fn what_stands_between_is_not_lost() {
        for (call, why) in [
            (
                "<function=f>hello<parameter=a>1</parameter></function>",
                "wanted a parameter, found \"hello<parameter=a>1<\"",
            ),
            ("<function=f></function> and", "wanted a function, found \"and\""),
            ("<function=f", "the name of a function has no end"),
            ("<function=></function>", "a function has no name"),
            ("<function=f><parameter=a", "the name of a parameter has no end"),
            ("<function=f><parameter=>1</parameter></function>", "a parameter has no name"),
        ] {
            assert_eq!(read(call).unwrap_err(), why, "{call}");
        }
    }
}
