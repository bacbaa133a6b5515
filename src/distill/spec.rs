//! What the host says of an episode when it begins: one JSON document, unknown keys refused.
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `task` | the host's name of the task, for traces | empty |
//! | `episode` | identity, the key of its draws | the distiller counts |
//! | `evaluation` | the student alone acts, nothing is learnt | false |
//! | `max_turns` | turn cap | the settings' |
//! | `demonstration` | texts of actions to be replayed, one a turn | the host brings them |
#![forbid(unsafe_code)]

use serde_json::Value;

use crate::error::{Error, Fault, Result};

/// An episode's specification.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EpisodeSpec {
    /// The host's name of the task.
    pub task: String,
    /// Identity; None: the next number.
    pub episode: Option<u64>,
    /// Whether it is an evaluation.
    pub evaluation: bool,
    /// Turn cap; None: the settings'.
    pub max_turns: Option<u32>,
    /// Actions to be replayed; None: the host brings them.
    pub demonstration: Option<Vec<String>>,
}

impl EpisodeSpec {
    /// Reads a document. [`Fault::BadJson`], [`Fault::UnknownKey`], [`Fault::BadValue`].
    pub fn from_json(text: &str) -> Result<EpisodeSpec> {
        let document: Value = serde_json::from_str(text)
            .map_err(|e| Error::new(Fault::BadJson, format!("the episode's specification is not JSON: {e}")))?;
        let bad = |key: &str, wanted: &str, found: &Value| {
            Err(Error::new(Fault::BadValue, format!("{key}: wanted {wanted}, found {found:.60}")))
        };
        let Value::Object(fields) = &document else {
            return bad("the episode's specification", "an object", &document);
        };
        let mut spec = EpisodeSpec::default();
        for (key, value) in fields {
            match key.as_str() {
                "task" => match value.as_str() {
                    Some(task) => spec.task = task.to_string(),
                    None => return bad(key, "a text", value),
                },
                "episode" => match value.as_u64() {
                    Some(episode) => spec.episode = Some(episode),
                    None => return bad(key, "a whole number of at least 0", value),
                },
                "evaluation" => match value.as_bool() {
                    Some(evaluation) => spec.evaluation = evaluation,
                    None => return bad(key, "true or false", value),
                },
                "max_turns" => match value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0) {
                    Some(n) => spec.max_turns = Some(n),
                    None => return bad(key, "a whole number of at least 1", value),
                },
                "demonstration" => {
                    let texts =
                        value.as_array().map(|list| list.iter().map(|t| t.as_str().map(str::to_string)).collect());
                    match texts {
                        Some(Some(texts)) => spec.demonstration = Some(texts),
                        _ => return bad(key, "a list of texts", value),
                    }
                }
                _ => {
                    let known = "task, episode, evaluation, max_turns, demonstration";
                    return Err(Error::new(Fault::UnknownKey, format!("unknown key {key:.60}; known are {known}")));
                }
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = r#"{"task": "t", "episode": 7, "evaluation": true, "max_turns": 3, "demonstration": ["a", "b"]}"#;
        let spec = EpisodeSpec::from_json(text).unwrap();
        let demonstration = Some(vec!["a".to_string(), "b".to_string()]);
        let wanted =
            EpisodeSpec { task: "t".into(), episode: Some(7), evaluation: true, max_turns: Some(3), demonstration };
        assert_eq!(spec, wanted);
        assert_eq!(EpisodeSpec::from_json("{}").unwrap(), EpisodeSpec::default());
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (text, fault) in [
            ("{", Fault::BadJson),
            ("[]", Fault::BadValue),
            (r#"{"taks": 1}"#, Fault::UnknownKey),
            (r#"{"task": 1}"#, Fault::BadValue),
            (r#"{"episode": -1}"#, Fault::BadValue),
            (r#"{"evaluation": 1}"#, Fault::BadValue),
            (r#"{"max_turns": 0}"#, Fault::BadValue),
            (r#"{"demonstration": ["a", 1]}"#, Fault::BadValue),
        ] {
            assert_eq!(EpisodeSpec::from_json(text).unwrap_err().fault(), fault, "{text}");
        }
    }
}
