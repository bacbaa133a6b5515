//! What a host asks of a chat template, as one JSON document.
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `messages` | a list of `{"role", "content", ...}` | must be there |
//! | `tools` | the tools' descriptions, a list | none |
//! | `documents` | texts for a template that retrieves, a list | none |
//! | `add_generation_prompt` | whether the beginning of an assistant turn follows | false |
//! | `continue_final_message` | whether the last message stays open, to be continued | false |
//! | `chat_template` | the name of one of the folder's templates | `tool_use` where tools are given and it exists, else `default` |
//! | `history` | what of earlier turns' thoughts stays: `keep`, `strip_thinking` or `tool_cycle` | the model's, else `keep` |
//! | `chat_template_kwargs` | the template's own variables, such as `enable_thinking` | none |
//!
//! The words are those of transformers' `apply_chat_template`, but for `history`. A variable's name at the top level is taken
//! too if the template reads it, which is how requests were written before `chat_template_kwargs`; any
//! other key is refused, so that a misspelt one is heard of.
#![forbid(unsafe_code)]

use super::history::History;
use super::json::Json;
use super::template::{ChatTemplate, RenderOptions};
use crate::error::{Error, Fault, Result};

const KEYS: &str = "messages, tools, documents, add_generation_prompt, continue_final_message, chat_template, \
                    history, chat_template_kwargs";
/// The most variables that a request may give.
const MAX_VARIABLES: usize = 1000;
/// Names that the renderer gives values itself.
const OWN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// A request taken apart: messages, and everything else.
pub struct ChatRequest {
    /// A list; `Null` where the document has none.
    pub messages: Json,
    /// What the template is asked for.
    pub options: RenderOptions,
}

impl ChatRequest {
    /// Reads a document. `template` is the one that will render it, if there is one.
    ///
    /// Errors: `BadJson`, `UnknownKey`, and `BadValue` for a value of the wrong kind.
    pub fn parse(text: &str, template: Option<&ChatTemplate>) -> Result<ChatRequest> {
        let document = Json::parse(text)?;
        let kind = document.kind();
        let Json::Object(entries) = document else {
            return Err(Error::new(Fault::BadValue, format!("wanted an object with messages, found {kind}")));
        };
        let mut request = ChatRequest { messages: Json::Null, options: RenderOptions::default() };
        for (key, value) in entries {
            if key == "messages" {
                request.messages = value;
            } else if !take(&mut request.options, &key, &value)? {
                if !template.is_some_and(|template| template.reads(&key)) {
                    let why = format!(
                        "unknown key {key:.60}; known are {KEYS}. A variable of the template belongs into \
                         chat_template_kwargs"
                    );
                    return Err(Error::new(Fault::UnknownKey, why));
                }
                request.options.variables.retain(|(known, _)| *known != key);
                request.options.variables.push((key, value));
            }
        }
        Ok(request)
    }
}

/// Reads one key into the options; false for a key that is none of them. Episodes read theirs by it too.
///
/// Errors: `BadValue`, naming the key, what was wanted and what was found.
pub fn take(options: &mut RenderOptions, key: &str, value: &Json) -> Result<bool> {
    let wrong =
        |wanted: &str| Err(Error::new(Fault::BadValue, format!("{key}: wanted {wanted}, found {}", value.kind())));
    let list = |to: &mut Option<Json>, of: &str| match value {
        Json::Null => {
            *to = None;
            Ok(())
        }
        Json::List(items) if items.iter().all(|item| matches!(item, Json::Object(_))) => {
            *to = Some(value.clone());
            Ok(())
        }
        _ => wrong(&format!("a list of objects, {of}")),
    };
    let flag = |to: &mut bool| match value {
        Json::Bool(given) => {
            *to = *given;
            Ok(())
        }
        _ => wrong("true or false"),
    };
    match key {
        "tools" => list(&mut options.tools, "one a tool")?,
        "documents" => list(&mut options.documents, "one a document")?,
        "add_generation_prompt" => flag(&mut options.add_generation_prompt)?,
        "continue_final_message" => flag(&mut options.continue_final_message)?,
        "chat_template" => match value {
            Json::Null => {}
            Json::String(name) => options.template = Some(name.clone()),
            _ => wrong("the name of one of the folder's templates")?,
        },
        "history" => match value {
            Json::Null => {}
            Json::String(name) => options.history = Some(History::named(name)?),
            _ => wrong("the name of a mode of history")?,
        },
        "chat_template_kwargs" => match value {
            Json::Null => {}
            Json::Object(entries) => {
                if entries.len() > MAX_VARIABLES {
                    let n = entries.len();
                    let why = format!("chat_template_kwargs: {n} variables, more than the {MAX_VARIABLES} allowed");
                    return Err(Error::new(Fault::BadValue, why));
                }
                for (name, value) in entries {
                    if OWN.contains(&name.as_str()) {
                        let why = format!("chat_template_kwargs.{name}: {name} has a key of its own in the request");
                        return Err(Error::new(Fault::BadValue, why));
                    }
                    options.variables.retain(|(known, _)| known != name);
                    options.variables.push((name.clone(), value.clone()));
                }
            }
            _ => wrong("an object of the template's variables")?,
        },
        _ => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(text: &str) -> Result<ChatRequest> {
        let template = ChatTemplate::compile("{{ enable_thinking }}{% set x = y %}{{ x }}").unwrap();
        ChatRequest::parse(text, Some(&template))
    }

    #[test]
    fn every_key_is_read() {
        let request = parse(
            r#"{"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}], "documents": [{"title": "t"}],
                "add_generation_prompt": true, "continue_final_message": true, "chat_template": "rag", "history": "tool_cycle",
                "chat_template_kwargs": {"a": 1000000000000000000000, "b": null}, "enable_thinking": false}"#,
        )
        .unwrap();
        assert_eq!(request.messages, Json::from(json!([{"role": "user", "content": "x"}])));
        let options = request.options;
        assert_eq!(options.tools, Some(json!([{"name": "f"}]).into()));
        assert_eq!(options.documents, Some(json!([{"title": "t"}]).into()));
        assert!(options.add_generation_prompt && options.continue_final_message);
        assert_eq!(options.template.as_deref(), Some("rag"));
        assert_eq!(options.history, Some(History::ToolCycle));
        let names: Vec<&str> = options.variables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "enable_thinking"]);
        assert!(matches!(&options.variables[0].1, Json::Int(n) if n.to_string() == "1000000000000000000000"));
        let nothing = parse(r#"{"tools": null, "documents": null, "chat_template_kwargs": null}"#).unwrap();
        assert!(nothing.options.tools.is_none() && nothing.options.documents.is_none());
    }

    #[test]
    fn a_misspelt_key_is_refused_and_the_refusal_says_where_variables_go() {
        for key in ["add_generation_promt", "message", "toolz", "enable_thinkng", "x"] {
            let e = parse(&format!(r#"{{"messages": [], "{key}": true}}"#)).err().unwrap();
            assert_eq!(e.fault(), Fault::UnknownKey, "{key}");
            assert!(e.message().contains(key) && e.message().contains("chat_template_kwargs"), "{e}");
        }
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused_by_name() {
        for (text, key) in [
            (r#"{"tools": {}}"#, "tools"),
            (r#"{"tools": ["look"]}"#, "tools"),
            (r#"{"documents": "x"}"#, "documents"),
            (r#"{"add_generation_prompt": 1}"#, "add_generation_prompt"),
            (r#"{"continue_final_message": null}"#, "continue_final_message"),
            (r#"{"chat_template": 1}"#, "chat_template"),
            (r#"{"history": 1}"#, "history: wanted the name"),
            (r#"{"history": "template"}"#, "keep, strip_thinking, tool_cycle"),
            (r#"{"chat_template_kwargs": []}"#, "chat_template_kwargs"),
            (r#"{"chat_template_kwargs": {"tools": []}}"#, "chat_template_kwargs.tools"),
            (r#"[]"#, "a list"),
        ] {
            let e = parse(text).err().unwrap();
            assert_eq!(e.fault(), Fault::BadValue, "{text}");
            assert!(e.message().contains(key), "{e}");
        }
    }
}
