//! What the host says of an episode when it begins, and of a turn when it shows messages: JSON documents, unknown keys
//! refused.
//!
//! | key | meaning | default |
//! |---|---|---|
//! | `task` | the host's name of the task, for traces and groups | empty |
//! | `group` | the host's name of the episodes with which its rewards are compared | those of its task |
//! | `panel` | the host's name of the fixed set of tasks that the task is of, such as a hash of it, for the record | empty |
//! | `task_seed` | the host's seed of the environment, for the record | none |
//! | `episode` | identity, the key of its draws | the distiller counts |
//! | `evaluation` | the student alone acts, nothing is learnt | false |
//! | `max_turns` | turn cap | the settings' |
//! | `demonstration` | texts of actions to be replayed, one a turn | the host brings them |
//! | `teacher_prefix` | messages that the teacher alone is shown, before everything else | none |
//! | `tools`, `documents`, `chat_template`, `chat_template_kwargs` | what every prompt is rendered with, as in a chat request | none |
//!
//! A turn's messages may come with `teacher_messages`, which the teacher is shown in their place: an empty list shows it nothing.
//! It makes no difference where nobody teaches.
//!
//! The last row may be given for a turn as well, with its messages; there it adds to, and wins over, the episode's, for
//! the turn's further messages and its generation prompt too. So a student is trained under the prompts that it is served
//! with.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::advantage::Baseline;
use super::batch::takes_rewards;
use super::config::Config;
use super::knobs::ActorPolicy;
use super::trajectory::MOST_EPISODES;
use crate::error::{Error, Fault, Result};
use crate::text::request::take;
use crate::text::{ChatTemplate, History, Json, RenderOptions};

/// An episode's specification.
#[derive(Clone, Debug, Default)]
pub struct EpisodeSpec {
    /// The host's name of the task.
    pub task: String,
    /// The host's name of its group; empty: its task's.
    pub group: String,
    /// The host's name of the fixed set of tasks that the task is of.
    pub panel: String,
    /// The host's seed of the environment.
    pub task_seed: Option<u64>,
    /// Identity; None: the next number.
    pub episode: Option<u64>,
    /// Whether it is an evaluation.
    pub evaluation: bool,
    /// Turn cap; None: the settings'.
    pub max_turns: Option<u32>,
    /// Actions to be replayed; None: the host brings them.
    pub demonstration: Option<Vec<String>>,
    /// Messages that the teacher alone is shown, before everything else; None: it is shown what the student is.
    pub teacher_prefix: Option<Vec<Json>>,
    /// What every prompt is rendered with.
    pub prompt: RenderOptions,
}

const KNOWN: &str = "task, group, panel, task_seed, episode, evaluation, max_turns, demonstration, teacher_prefix, tools, \
                     documents, chat_template, history, chat_template_kwargs";
/// Keys of a chat request that an episode answers itself.
const OWN: [&str; 2] = ["add_generation_prompt", "continue_final_message"];

impl EpisodeSpec {
    /// Reads a document; `template` is the student's, if it has one. [`Fault::BadJson`], [`Fault::UnknownKey`],
    /// [`Fault::BadValue`].
    pub fn from_json(text: &str, template: Option<&ChatTemplate>) -> Result<EpisodeSpec> {
        let what = "the episode's specification";
        let document = Json::parse(text).map_err(|e| e.within(what))?;
        let bad = |key: &str, wanted: &str, found: &Json| {
            Err(Error::new(Fault::BadValue, format!("{key}: wanted {wanted}, found {}", shown(found))))
        };
        let Json::Object(fields) = &document else { return bad(what, "an object", &document) };
        let number = |value: &Json| match value {
            Json::Int(n) => u64::try_from(n).ok(),
            _ => None,
        };
        let mut spec = EpisodeSpec::default();
        for (key, value) in fields {
            match key.as_str() {
                "task" => match value.as_str() {
                    Some(task) => spec.task = task.to_string(),
                    None => return bad(key, "a text", value),
                },
                "group" => match value.as_str() {
                    Some(group) => spec.group = group.to_string(),
                    None => return bad(key, "a text", value),
                },
                "panel" => match value.as_str() {
                    Some(panel) => spec.panel = panel.to_string(),
                    None => return bad(key, "a text", value),
                },
                "task_seed" => match number(value) {
                    Some(seed) => spec.task_seed = Some(seed),
                    None => return bad(key, "a whole number from 0, below 2^64", value),
                },
                "episode" => match number(value).filter(|&n| n <= MOST_EPISODES) {
                    Some(episode) => spec.episode = Some(episode),
                    None => return bad(key, "a whole number from 0, below 2^63", value),
                },
                "evaluation" => match value {
                    Json::Bool(evaluation) => spec.evaluation = *evaluation,
                    _ => return bad(key, "true or false", value),
                },
                "max_turns" => match number(value).and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0) {
                    Some(n) => spec.max_turns = Some(n),
                    None => return bad(key, "a whole number of at least 1", value),
                },
                "demonstration" => {
                    let texts =
                        value.as_list().map(|list| list.iter().map(|t| t.as_str().map(str::to_string)).collect());
                    match texts {
                        Some(Some(texts)) => spec.demonstration = Some(texts),
                        _ => return bad(key, "a list of texts", value),
                    }
                }
                "teacher_prefix" => match value.as_list() {
                    Some(messages) => spec.teacher_prefix = Some(messages.to_vec()),
                    None => return bad(key, "a list of {role, content}", value),
                },
                _ => take_prompt(&mut spec.prompt, key, value, template)?,
            }
        }
        Ok(spec)
    }
}

impl EpisodeSpec {
    /// Refuses an episode that lacks what the settings build on. [`Fault::BadValue`].
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        let lacking = |why: &str| Err(Error::new(Fault::BadValue, why));
        if self.evaluation {
            return Ok(());
        }
        if let (ActorPolicy::Prefix { .. }, None) = (config.actor, &self.demonstration) {
            return lacking(
                "demonstration: wanted a list of texts, found none: actor prefix replays the first of its turns",
            );
        }
        let compares = takes_rewards(config) && config.reward.baseline != Baseline::None;
        if compares && self.task.is_empty() && self.group.is_empty() {
            return lacking(
                "group: wanted a group or a task, found none: reward.baseline compares the episodes of one",
            );
        }
        Ok(())
    }
}

/// What a host shows before a turn.
#[derive(Debug)]
pub struct Observation {
    /// The student's messages, and the teacher's unless it has its own.
    pub messages: Json,
    /// What the teacher is shown in their place.
    pub teacher_messages: Option<Json>,
    /// What the turn's prompt is rendered with.
    pub prompt: Arc<RenderOptions>,
}

/// Reads what a host shows before a turn: a list of messages, or an object of them with the teacher's own and what this turn's
/// prompt is rendered with over the episode's (`prompt`).
///
/// Errors: [`Fault::BadJson`], [`Fault::UnknownKey`], [`Fault::BadValue`].
pub fn observation(text: &str, prompt: &Arc<RenderOptions>, template: Option<&ChatTemplate>) -> Result<Observation> {
    match Json::parse(text)? {
        Json::Object(fields) => {
            let (mut messages, mut teacher_messages, mut options) = (None, None, RenderOptions::clone(prompt));
            for (key, value) in fields {
                match key.as_str() {
                    "messages" => messages = Some(value),
                    "teacher_messages" if value.as_list().is_some() => teacher_messages = Some(value),
                    "teacher_messages" => {
                        let why = format!("{key}: wanted a list of {{role, content}}, found {}", shown(&value));
                        return Err(Error::new(Fault::BadValue, why));
                    }
                    _ => take_prompt(&mut options, &key, &value, template)?,
                }
            }
            let none = || Error::new(Fault::BadValue, "messages: wanted a list of {role, content}, found none");
            Ok(Observation { messages: messages.ok_or_else(none)?, teacher_messages, prompt: Arc::new(options) })
        }
        messages => Ok(Observation { messages, teacher_messages: None, prompt: prompt.clone() }),
    }
}

/// Reads a key that prompts are rendered with.
fn take_prompt(options: &mut RenderOptions, key: &str, value: &Json, template: Option<&ChatTemplate>) -> Result<()> {
    if OWN.contains(&key) {
        let why =
            format!("{key}: an episode begins the actor's turn itself, when it acts or is replayed; leave the key out");
        return Err(Error::new(Fault::BadValue, why));
    }
    // The record is of the very tokens that were seen and said, so that nothing of them may be taken out.
    if key == "history" && value.as_str() != Some(History::Keep.name()) {
        let found = value.as_str().unwrap_or(value.kind());
        let why = format!(
            "history: wanted keep, found {found:.60}; an episode's record is token-exact, and other modes rewrite what was \
             said"
        );
        return Err(Error::new(Fault::BadValue, why));
    }
    if take(options, key, value)? {
        return Ok(());
    }
    if !template.is_some_and(|template| template.reads(key)) {
        let why = format!(
            "unknown key {key:.60}; known are {KNOWN}. A variable of the template belongs into chat_template_kwargs"
        );
        return Err(Error::new(Fault::UnknownKey, why));
    }
    options.variables.retain(|(name, _)| name != key);
    options.variables.push((key.to_string(), value.clone()));
    Ok(())
}

/// A value in few words.
fn shown(value: &Json) -> String {
    match value {
        Json::Int(n) if n.bits() < 128 => n.to_string(),
        Json::Float(x) => x.to_string(),
        Json::Bool(b) => b.to_string(),
        Json::String(text) => format!("{text:.60?}"),
        other => other.kind().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_read() {
        let text = r#"{"task": "t", "group": "g", "episode": 7, "evaluation": true, "max_turns": 3, "demonstration": ["a", "b"]}"#;
        let spec = EpisodeSpec::from_json(text, None).unwrap();
        let demonstration = Some(vec!["a".to_string(), "b".to_string()]);
        assert_eq!((spec.task.as_str(), spec.episode, spec.evaluation, spec.max_turns), ("t", Some(7), true, Some(3)));
        assert_eq!((spec.demonstration, spec.group.as_str()), (demonstration, "g"));
        let none = EpisodeSpec::from_json("{}", None).unwrap();
        assert!(none.prompt.tools.is_none() && none.prompt.variables.is_empty() && none.episode.is_none());
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (text, fault) in [
            ("{", Fault::BadJson),
            ("[]", Fault::BadValue),
            (r#"{"taks": 1}"#, Fault::UnknownKey),
            (r#"{"task": 1}"#, Fault::BadValue),
            (r#"{"group": 1}"#, Fault::BadValue),
            (r#"{"episode": -1}"#, Fault::BadValue),
            (r#"{"episode": 9223372036854775808}"#, Fault::BadValue),
            (r#"{"evaluation": 1}"#, Fault::BadValue),
            (r#"{"max_turns": 0}"#, Fault::BadValue),
            (r#"{"demonstration": ["a", 1]}"#, Fault::BadValue),
            (r#"{"teacher_prefix": "a"}"#, Fault::BadValue),
            (r#"{"teacher_messages": []}"#, Fault::UnknownKey),
        ] {
            assert_eq!(EpisodeSpec::from_json(text, None).unwrap_err().fault(), fault, "{text}");
        }
    }

    #[test]
    fn a_turn_adds_to_what_the_episode_renders_with() {
        let template = ChatTemplate::compile("{{ enable_thinking }}{{ date }}").unwrap();
        let text = r#"{"tools": [{"name": "f"}], "enable_thinking": false, "chat_template_kwargs": {"date": "1 May"}}"#;
        let spec = EpisodeSpec::from_json(text, Some(&template)).unwrap();
        let names = |o: &RenderOptions| o.variables.iter().map(|(n, v)| (n.clone(), v.clone())).collect::<Vec<_>>();
        let thinking = |on: bool| ("enable_thinking".to_string(), Json::Bool(on));
        let date = ("date".to_string(), Json::from("1 May"));
        assert_eq!(names(&spec.prompt), [thinking(false), date.clone()]);
        let prompt = Arc::new(spec.prompt);
        let of = |text: &str| observation(text, &prompt, Some(&template));
        let read = of(r#"[{"role": "user", "content": 1000000000000000000000}]"#).unwrap();
        assert!(matches!(read.messages, Json::List(list) if list.len() == 1) && read.teacher_messages.is_none());
        assert_eq!(names(&read.prompt), [thinking(false), date.clone()]);
        let turn = r#"{"messages": [], "tools": [], "chat_template_kwargs": {"enable_thinking": true}}"#;
        let options = of(turn).unwrap().prompt;
        let shown = of(r#"{"messages": [], "teacher_messages": [{"role": "user", "content": "x"}]}"#).unwrap();
        assert!(shown.teacher_messages.unwrap().as_list().is_some_and(|list| list.len() == 1));
        assert_eq!((names(&options), &options.tools), (vec![date, thinking(true)], &Some(Json::List(Vec::new()))));
        for (text, fault) in [
            ("{", Fault::BadJson),
            ("{}", Fault::BadValue),
            (r#"{"messages": [], "enable_thinkng": true}"#, Fault::UnknownKey),
            (r#"{"messages": [], "tools": 1}"#, Fault::BadValue),
            (r#"{"messages": [], "teacher_messages": {}}"#, Fault::BadValue),
            (r#"{"teacher_messages": []}"#, Fault::BadValue),
            (r#"{"messages": [], "teacher_prefix": []}"#, Fault::UnknownKey),
            (r#"{"messages": [], "add_generation_prompt": true}"#, Fault::BadValue),
            (r#"{"messages": [], "continue_final_message": true}"#, Fault::BadValue),
        ] {
            assert_eq!(of(text).unwrap_err().fault(), fault, "{text}");
        }
    }
}
