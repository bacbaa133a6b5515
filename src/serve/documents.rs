//! What a folder's documents say of text: the tokenizer, the templates, and the ids that end a turn. Loading and
//! looking (`squire inspect`) read them by this one way, so that they accept the same folders.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::timeline::check_ids;
use crate::error::{Error, Fault, Result, brief};
use crate::format::ModelDir;
use crate::text::tokenizer::Tokenizer;
use crate::text::{ChatTemplate, History, RenderOptions, end_of_turn};

/// A folder's tokenizer, templates and stop ids.
pub struct Documents {
    /// Text to ids, if the folder has a tokenizer.json.
    pub tokenizer: Option<Tokenizer>,
    /// The chat templates, if it has any.
    pub template: Option<ChatTemplate>,
    /// The id with which the template closes an assistant's turn, if it does so by a token; where there are several
    /// templates, the one that is rendered by without tools.
    pub end_of_turn: Option<i32>,
    /// The ids that end a generation, each with the places that name it.
    pub stop_ids: Vec<StopId>,
}

/// An id that ends a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopId {
    /// The id.
    pub id: i32,
    /// What names it, such as `generation_config.json eos_token_id`.
    pub from: Vec<String>,
}

impl Documents {
    /// Reads the documents of a folder whose model has `vocab_size` ids; what is odd is added to the folder's warnings.
    ///
    /// Errors: those of the tokenizer and the templates; `VocabularySize` where the tokenizer has more ids than the
    /// model; `IdOutOfRange` for an eos_token_id that the model does not have.
    pub fn read(dir: &mut ModelDir, vocab_size: usize) -> Result<Documents> {
        let tokenizer = dir.tokenizer.as_deref().map(Tokenizer::from_json).transpose()?;
        if let Some(t) = &tokenizer
            && t.n_ids() > vocab_size
        {
            let ids = t.n_ids();
            let why = format!(
                "tokenizer.json: wanted at most {vocab_size} ids, the rows of the model's vocabulary, found {ids}; take \
                 the model's own tokenizer, or resize the model (resize_token_embeddings) and save it"
            );
            return Err(Error::new(Fault::VocabularySize, why));
        }
        if let Some(absent) = tokenizer.as_ref().map(Tokenizer::absent_bytes).filter(|absent| !absent.is_empty()) {
            dir.warnings.push(format!(
                "tokenizer.json: {} of the 256 bytes have no token ({:02x?}); a text loses those that it has, as it does in \
                 transformers",
                absent.len(),
                absent
            ));
        }
        let templates = &dir.chat_templates.by_name;
        let mut template = (!templates.is_empty()).then(|| ChatTemplate::compile_all(templates)).transpose()?;
        if let Some(named) = &dir.tokenizer_config {
            template = template.map(|t| t.with_special_tokens(named));
        }
        let mut ends = Vec::new();
        let mut own = None;
        if let (Some(tokenizer), Some(template)) = (&tokenizer, &template) {
            own = end_of_turn(tokenizer, template, &RenderOptions::default())?;
            ends.extend(own.map(|id| (id, "the chat template's end of turn".to_string())));
            for name in template.sources().keys() {
                let asked = RenderOptions { template: Some(name.clone()), ..RenderOptions::default() };
                let end = end_of_turn(tokenizer, template, &asked)?.filter(|&id| own != Some(id));
                let from = format!("the end of turn of the chat template {}", brief(name));
                ends.extend(end.map(|id| (id, from)));
            }
        }
        let stop_ids = stop_ids(dir, vocab_size, tokenizer.as_ref(), ends)?;
        Ok(Documents { tokenizer, template, end_of_turn: own, stop_ids })
    }
}

/// The key of tokenizer_config.json, where a template stands too, that names the model's mode of history.
const HISTORY: &str = "squire_history";

/// What a folder says of history. Error: `TokenizerConfigForm` for what names no mode.
pub(super) fn history_of(dir: &ModelDir) -> Result<History> {
    let wrong = |why: &str| Error::new(Fault::TokenizerConfigForm, format!("tokenizer_config.json: {HISTORY}: {why}"));
    match dir.tokenizer_config.as_ref().and_then(|config| config.get(HISTORY)) {
        None => Ok(History::default()),
        Some(Value::String(name)) => History::named(name).map_err(|e| wrong(e.message())),
        Some(_) => Err(wrong("wanted the name of a mode of history")),
    }
}

/// tokenizer_config.json with a model's mode of history, where that is another than the document's.
pub(super) fn with_history(dir: &ModelDir, history: History) -> Option<Value> {
    if history_of(dir).is_ok_and(|own| own == history) {
        return None;
    }
    let mut config = dir.tokenizer_config.clone().unwrap_or_else(|| json!({}));
    config[HISTORY] = history.name().into();
    Some(config)
}

/// The stop ids with their text and the places that name them.
pub fn stop_ids_json(stops: &[StopId], tokenizer: Option<&Tokenizer>) -> Value {
    let token = |id| tokenizer.map(|t| t.decode(&[id], false));
    stops.iter().map(|stop| json!({"id": stop.id, "token": token(stop.id), "from": stop.from})).collect()
}

/// The stop ids: those of the configurations in their order, then the tokenizer's end of text, then the templates' ends
/// of turn. A chat model of a base model's folder often has only the base's in its configurations, and would never stop.
fn stop_ids(
    dir: &mut ModelDir,
    vocab_size: usize,
    tokenizer: Option<&Tokenizer>,
    ends: Vec<(i32, String)>,
) -> Result<Vec<StopId>> {
    let mut all: Vec<StopId> = Vec::new();
    let mut add = |id: i32, from: String| match all.iter_mut().find(|stop| stop.id == id) {
        Some(stop) if stop.from.contains(&from) => {}
        Some(stop) => stop.from.push(from),
        None => all.push(StopId { id, from: vec![from] }),
    };
    if let Some((ids, file)) = dir.stop_ids()? {
        check_ids(&ids, vocab_size).map_err(|e| e.within(format!("{file}: eos_token_id, to be mended there")))?;
        ids.into_iter().for_each(|id| add(id, format!("{file} eos_token_id")));
    }
    let token = dir.tokenizer_config.as_ref().and_then(|config| config.get("eos_token"));
    let text = token.and_then(|token| token.as_str().or_else(|| token.get("content").and_then(Value::as_str)));
    if let (Some(text), Some(tokenizer)) = (text, tokenizer) {
        match tokenizer.id_of(text) {
            Some(id) => add(id, "tokenizer_config.json eos_token".into()),
            None => dir.warnings.push(format!(
                "tokenizer_config.json: eos_token: the tokenizer has no token {}, so it ends nothing; name one that it \
                 has",
                brief(format_args!("{text:?}"))
            )),
        }
    }
    ends.into_iter().for_each(|(id, from)| add(id, from));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::ChatTemplates;
    use crate::text::tiny_tokenizer;

    const QWEN3: &str = include_str!("../../tests/golden/qwen3_chat_template.jinja");

    fn dir(config: Value, generation: Option<Value>, tokenizer_config: Value, template: Option<&str>) -> ModelDir {
        let mut dir = ModelDir::of_config(config);
        dir.tokenizer = Some(tiny_tokenizer::tiny_tokenizer_json());
        dir.generation_config = generation;
        dir.tokenizer_config = Some(tokenizer_config);
        dir.chat_templates = template.map(ChatTemplates::of).unwrap_or_default();
        dir
    }

    fn ids(documents: &Documents) -> Vec<(i32, usize)> {
        documents.stop_ids.iter().map(|stop| (stop.id, stop.from.len())).collect()
    }

    #[test]
    fn the_end_of_turn_and_the_tokenizers_eos_stop_too_and_say_where_they_come_from() {
        let eos = json!({"eos_token_id": 264});
        let mut base = dir(eos.clone(), Some(eos.clone()), json!({"eos_token": "<|im_end|>"}), Some(QWEN3));
        let documents = Documents::read(&mut base, 300).unwrap();
        assert_eq!(ids(&documents), [(264, 1), (266, 2)]);
        assert_eq!(documents.stop_ids[0].from, ["generation_config.json eos_token_id"]);
        assert_eq!(documents.stop_ids[1].from, ["tokenizer_config.json eos_token", "the chat template's end of turn"]);
        assert_eq!((documents.end_of_turn, base.warnings.len()), (Some(266), 0));

        let object = json!({"eos_token": {"content": "<|endoftext|>"}});
        let documents = Documents::read(&mut dir(eos, None, object, None), 300).unwrap();
        assert_eq!(documents.stop_ids[0].from, ["config.json eos_token_id", "tokenizer_config.json eos_token"]);
        assert_eq!((ids(&documents), documents.end_of_turn), (vec![(264, 2)], None));
        let nothing = Documents::read(&mut dir(json!({}), None, json!({}), None), 300).unwrap();
        assert_eq!(ids(&nothing), []);
    }

    #[test]
    fn every_named_template_ends_turns_by_an_id_that_stops() {
        let mut dir = dir(json!({}), None, json!({}), None);
        let each = |end: &str| format!("{{% for m in messages %}}{{{{ m.content }}}}{end}{{% endfor %}}");
        dir.chat_templates.by_name =
            [("default".into(), each("<|im_end|>")), ("tool_use".into(), each("<|endoftext|>"))].into();
        let documents = Documents::read(&mut dir, 300).unwrap();
        assert_eq!((ids(&documents), documents.end_of_turn), (vec![(266, 1), (264, 1)], Some(266)));
        assert_eq!(documents.stop_ids[1].from, ["the end of turn of the chat template tool_use"]);
    }

    #[test]
    fn what_begins_the_next_message_is_no_end() {
        let opens = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}";
        let documents =
            Documents::read(&mut dir(json!({"eos_token_id": 264}), None, json!({}), Some(opens)), 300).unwrap();
        assert_eq!((ids(&documents), documents.end_of_turn), (vec![(264, 1)], None));
    }

    #[test]
    fn an_eos_token_that_the_tokenizer_lacks_is_a_warning() {
        let mut dir = dir(json!({}), None, json!({"eos_token": "</s>"}), None);
        assert_eq!(ids(&Documents::read(&mut dir, 300).unwrap()), []);
        assert!(dir.warnings.len() == 1 && dir.warnings[0].contains("</s>"), "{:?}", dir.warnings);
    }

    #[test]
    fn ids_that_the_model_does_not_have_are_refused() {
        let outside = json!({"eos_token_id": [264, 300]});
        let e = Documents::read(&mut dir(outside, None, json!({}), None), 300).err().unwrap();
        assert_eq!(e.fault(), Fault::IdOutOfRange);
        assert!(e.message().contains("config.json: eos_token_id"), "{e}");
        let e = Documents::read(&mut dir(json!({}), None, json!({}), None), 200).err().unwrap();
        assert_eq!(e.fault(), Fault::VocabularySize);
    }

    #[test]
    fn every_message_about_a_stop_id_names_its_document_and_key() {
        let many = json!(vec![1; 300]);
        for wrong in
            [json!(300), json!([1, 300]), json!(-2), json!([1, -7]), json!("2"), json!(1.5), json!([[1]]), many]
        {
            let eos = json!({ "eos_token_id": wrong });
            for (config, generation, name) in
                [(eos.clone(), None, "config.json"), (json!({}), Some(eos.clone()), "generation_config.json")]
            {
                let e = Documents::read(&mut dir(config, generation, json!({}), None), 300).err().unwrap();
                assert!(e.message().starts_with(&format!("{name}: eos_token_id")), "{e}");
            }
        }
        for odd in [json!([null, 1]), json!(-1)] {
            let mut dir = dir(json!({ "eos_token_id": odd }), None, json!({"eos_token": "</s>"}), None);
            Documents::read(&mut dir, 300).unwrap();
            let named = ["config.json: eos_token_id", "tokenizer_config.json: eos_token"];
            assert!(named.iter().zip(&dir.warnings).all(|(name, said)| said.starts_with(name)), "{:?}", dir.warnings);
            assert_eq!(dir.warnings.len(), 2);
        }
    }
}
