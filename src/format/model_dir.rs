//! A model folder as Hugging Face lays it out: config.json, the weights in one safetensors file or in
//! shards with an index, the tokenizer, the chat template and the generation defaults.
//!
//! Opening maps the weights and reads the documents; nothing is interpreted here beyond finding the
//! pieces (the configuration is read by `model::config`, the tokenizer and template by `text`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chat_templates::{self, ChatTemplates};
use super::document::{self, empty, read_object};
use super::layout::Layout;
use super::safetensors::{self, StoredTensor, TensorToWrite};
use super::{durable, json, leftovers, not_a_model, weight_files};
use crate::error::{Error, Fault, Result, brief};

const CONFIG: &str = "config.json";
const ADAPTER: &str = "adapter_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";

/// What [`save_model`] writes, and so what it replaces.
const SAVED: Layout = Layout {
    kind: "a model folder",
    required: &[CONFIG, weight_files::WEIGHTS],
    optional: &[TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, chat_templates::CHAT_TEMPLATE],
    folder: Some((chat_templates::ADDITIONAL, "jinja")),
};

/// The most ids that end a turn; real folders have up to ten.
const MAX_STOP_IDS: usize = 256;

/// An opened model folder.
#[derive(Clone, Debug)]
pub struct ModelDir {
    /// The folder.
    pub path: PathBuf,
    /// config.json, an object.
    pub config: Value,
    /// Every tensor of the weights, by the name that the model asks for (prefixes of wrappers are taken off).
    pub tensors: BTreeMap<String, StoredTensor>,
    /// tokenizer.json, unread.
    pub tokenizer: Option<Vec<u8>>,
    /// tokenizer_config.json, an object.
    pub tokenizer_config: Option<Value>,
    /// The chat templates, of files or of tokenizer_config.json.
    pub chat_templates: ChatTemplates,
    /// generation_config.json, an object.
    pub generation_config: Option<Value>,
    /// What is not as it should be and was understood all the same, a sentence each, for whoever loads the model.
    pub warnings: Vec<String>,
}

/// The documents that go with the weights from one folder to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Companions<'a> {
    /// tokenizer.json.
    pub tokenizer: Option<&'a [u8]>,
    /// tokenizer_config.json.
    pub tokenizer_config: Option<&'a Value>,
    /// The chat templates; those in files are written.
    pub chat_templates: Option<&'a ChatTemplates>,
    /// generation_config.json.
    pub generation_config: Option<&'a Value>,
}

impl ModelDir {
    /// A folder that lies nowhere: a configuration, no tensors, no documents.
    pub fn of_config(config: Value) -> ModelDir {
        ModelDir {
            path: PathBuf::new(),
            config,
            tensors: BTreeMap::new(),
            tokenizer: None,
            tokenizer_config: None,
            chat_templates: ChatTemplates::default(),
            generation_config: None,
            warnings: Vec::new(),
        }
    }

    /// Opens a folder. Every message names its file by the whole path. A folder that was being replaced by a save that
    /// was killed is put back first.
    ///
    /// Errors: `MissingFile` for config.json or weights, and for a link to nothing; `NotAModel`, `UnmergedAdapter`,
    /// `NotTheContent` for what is often found in their place; `ConfigForm`, `TokenizerConfigForm`,
    /// `GenerationConfigForm`, `IndexForm` where a document is not a JSON object or too long; `IndexPath`, `IndexTensor`,
    /// `TensorExtra` and `SafetensorsDuplicate` where index and shards disagree; `TensorNames`; `TemplateForm`; what
    /// [`safetensors::read`] returns.
    pub fn open(path: &Path) -> Result<ModelDir> {
        leftovers::put_back(path, &SAVED);
        not_a_model::check_folder(path)?;
        let config = read_object(&path.join(CONFIG), document::CONFIG)?;
        let config = config.ok_or_else(|| not_a_model::folder_without(path, CONFIG))?;
        let tokenizer_config = read_object(&path.join(TOKENIZER_CONFIG), document::TOKENIZER_CONFIG)?;
        let chat_templates = ChatTemplates::read(path, tokenizer_config.as_ref())?;
        let mut warnings = Vec::new();
        let tied = config.get("tie_word_embeddings") == Some(&Value::Bool(true));
        let tensors = weight_files::read(path, tied, &mut warnings)?;
        if path.join(ADAPTER).exists() {
            let why =
                "the adapter beside the model is not applied; to use it, merge it (peft's merge_and_unload) and save";
            warnings.push(format!("{ADAPTER}: {why}"));
        }
        let tokenizer = document::read(&path.join(TOKENIZER), document::TOKENIZER)?;
        if tokenizer.as_ref().is_some_and(Vec::is_empty) {
            return Err(empty(&path.join(TOKENIZER)));
        }
        Ok(ModelDir {
            path: path.to_path_buf(),
            config,
            tensors,
            tokenizer: tokenizer.map(|mut bytes| {
                let mark = bytes.len() - json::without_mark(&bytes).len();
                bytes.drain(..mark);
                bytes
            }),
            tokenizer_config,
            chat_templates,
            generation_config: read_object(&path.join(GENERATION_CONFIG), document::GENERATION_CONFIG)?,
            warnings,
        })
    }

    /// The folder's documents, to be written beside other weights.
    pub fn companions(&self) -> Companions<'_> {
        Companions {
            tokenizer: self.tokenizer.as_deref(),
            tokenizer_config: self.tokenizer_config.as_ref(),
            chat_templates: Some(&self.chat_templates),
            generation_config: self.generation_config.as_ref(),
        }
    }

    /// The ids that end a turn: `eos_token_id` (one or a list) of generation_config.json, else of
    /// config.json, with the file's name; None where neither has one.
    ///
    /// Errors: `GenerationConfigForm` or `ConfigForm` where it is not an id or a list of ids.
    pub fn stop_ids(&mut self) -> Result<Option<(Vec<i32>, &'static str)>> {
        let places = [
            (self.generation_config.as_ref(), GENERATION_CONFIG, Fault::GenerationConfigForm),
            (Some(&self.config), CONFIG, Fault::ConfigForm),
        ];
        for (document, name, fault) in places {
            let Some(value) = document.and_then(|d| d.get("eos_token_id")).filter(|v| !v.is_null()) else { continue };
            let shown = brief(value);
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            // What other tools write for "none".
            let (none, values): (Vec<&Value>, Vec<&Value>) =
                values.iter().partition(|v| v.is_null() || v.as_i64() == Some(-1));
            if !none.is_empty() {
                let why =
                    format!("{name}: eos_token_id: {shown}: null and -1 are no ids and end nothing; leave them out");
                self.warnings.push(why);
            }
            let id = |v: &Value| v.as_u64().and_then(|v| i32::try_from(v).ok());
            if values.len() > MAX_STOP_IDS {
                let n = values.len();
                let why = format!("{name}: eos_token_id: wanted at most {MAX_STOP_IDS} ids, found {n}; leave some out");
                return Err(Error::new(fault, why));
            }
            let ids = values.into_iter().map(id).collect::<Option<_>>().ok_or_else(|| {
                Error::new(fault, format!("{name}: eos_token_id: wanted an id or a list of ids, found {shown}"))
            })?;
            return Ok(Some((ids, name)));
        }
        Ok(None)
    }
}

/// Writes a model folder that transformers and [`ModelDir::open`] read: config.json, the weights in
/// one file, and the companions. The folder appears whole or not at all; one that is there already is
/// replaced if it is empty or such a folder: its configuration, its weights, and nothing that is no file of one.
///
/// Errors: `CannotWrite`, and what [`safetensors::write`] returns; an old folder is then untouched.
pub fn save_model<'a>(
    dir: &Path,
    config: &Value,
    tensors: impl IntoIterator<Item = TensorToWrite<'a>>,
    companions: Companions,
) -> Result<()> {
    durable::replace_folder(dir, &SAVED, |dir| {
        let text = |name: &str, bytes: &[u8]| durable::write_file(&dir.join(name), |file| file.write_all(bytes));
        let document = |name: &str, value: &Value| text(name, json::write(value).as_bytes());
        document(CONFIG, config)?;
        companions.tokenizer.map_or(Ok(()), |bytes| text(TOKENIZER, bytes))?;
        companions.tokenizer_config.map_or(Ok(()), |value| document(TOKENIZER_CONFIG, value))?;
        companions.chat_templates.map_or(Ok(()), |templates| templates.write(dir))?;
        companions.generation_config.map_or(Ok(()), |value| document(GENERATION_CONFIG, value))?;
        safetensors::write(&dir.join(weight_files::WEIGHTS), tensors)
    })
}

/// Whether [`save_model`] would take this place. Errors: `CannotWrite`.
pub fn check_model_place(dir: &Path) -> Result<()> {
    durable::check_place(dir, &SAVED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};
    use serde_json::json;

    fn tensor<'a>(name: &'a str, bytes: &'a [u8]) -> TensorToWrite<'a> {
        (name, Dtype::F32, Shape::new(&[bytes.len() / 4]).unwrap(), bytes)
    }

    #[test]
    fn a_saved_folder_opens_with_all_its_parts() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("model");
        let (tokenizer_config, generation) = (json!({"chat_template": "old"}), json!({"eos_token_id": [3, 4]}));
        let companions = Companions {
            tokenizer: Some(b"{}"),
            tokenizer_config: Some(&tokenizer_config),
            chat_templates: Some(&ChatTemplates::of("new")),
            generation_config: Some(&generation),
        };
        let config = json!({"model_type": "qwen3", "eos_token_id": 9});
        save_model(&dir, &config, [tensor("t", &[1, 2, 3, 4])], companions).unwrap();
        let mut opened = ModelDir::open(&dir).unwrap();
        assert_eq!(opened.config, config);
        assert_eq!(opened.tensors["t"].bytes.as_slice(), [1, 2, 3, 4]);
        assert_eq!(opened.tokenizer.as_deref(), Some(&b"{}"[..]));
        assert_eq!(opened.chat_templates, ChatTemplates::of("new"));
        assert_eq!(opened.stop_ids().unwrap(), Some((vec![3, 4], GENERATION_CONFIG)));
        // A second generation takes the companions of the first, and the open maps stay valid.
        save_model(&dir, &config, [tensor("t", &[5, 6, 7, 8])], opened.companions()).unwrap();
        assert_eq!(opened.tensors["t"].bytes.as_slice(), [1, 2, 3, 4]);
        let second = ModelDir::open(&dir).unwrap();
        assert_eq!(second.tensors["t"].bytes.as_slice(), [5, 6, 7, 8]);
        assert_eq!(second.tokenizer_config, Some(tokenizer_config));
    }

    #[test]
    fn shards_are_gathered_by_their_index() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(CONFIG), r#"{"eos_token_id": 7}"#).unwrap();
        safetensors::write(&dir.path().join("a.safetensors"), [tensor("x", &[1; 4])]).unwrap();
        safetensors::write(&dir.path().join("b.safetensors"), [tensor("y", &[2; 8])]).unwrap();
        let index = json!({"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}});
        std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
        let mut opened = ModelDir::open(dir.path()).unwrap();
        assert_eq!(opened.tensors.keys().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(opened.stop_ids().unwrap(), Some((vec![7], CONFIG)));
        assert!(opened.tokenizer.is_none() && opened.chat_templates.by_name.is_empty());
    }

    #[test]
    fn stop_ids_are_an_id_or_a_list_of_ids() {
        for wrong in [json!({"eos_token_id": -2}), json!({"eos_token_id": [1, "2"]}), json!({"eos_token_id": 1.5})] {
            let mut dir = ModelDir::of_config(json!({}));
            dir.generation_config = Some(wrong);
            assert_eq!(dir.stop_ids().unwrap_err().fault(), Fault::GenerationConfigForm);
        }
        for (odd, ids) in [(json!(-1), vec![]), (json!([5, null, -1, 6]), vec![5, 6])] {
            let mut dir = ModelDir::of_config(json!({ "eos_token_id": odd }));
            assert_eq!(dir.stop_ids().unwrap(), Some((ids, CONFIG)));
            assert!(dir.warnings.len() == 1 && dir.warnings[0].contains("eos_token_id"), "{:?}", dir.warnings);
        }
    }
}
