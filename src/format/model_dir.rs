//! A model folder as Hugging Face lays it out: config.json, the weights in one safetensors file or in
//! shards with an index, the tokenizer, the chat template and the generation defaults.
//!
//! Opening maps the weights and reads the documents; nothing is interpreted here beyond finding the
//! pieces (the configuration is read by `model::config`, the tokenizer and template by `text`).
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::chat_templates::{self, ChatTemplates};
use super::durable;
use super::mmap::{fault_at, open_regular};
use super::safetensors::{self, StoredTensor, TensorToWrite};
use crate::error::{Error, Fault, Result};

/// The longest document read into memory, in bytes; tokenizer.json of Qwen3 has 11 MB.
const MAX_DOCUMENT: u64 = 64 << 20;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// An opened model folder.
#[derive(Clone, Debug)]
pub struct ModelDir {
    /// The folder.
    pub path: PathBuf,
    /// config.json, an object.
    pub config: Value,
    /// Every tensor of the weights, by name.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// tokenizer.json, unread.
    pub tokenizer: Option<Vec<u8>>,
    /// tokenizer_config.json, an object.
    pub tokenizer_config: Option<Value>,
    /// The chat templates, of files or of tokenizer_config.json.
    pub chat_templates: ChatTemplates,
    /// generation_config.json, an object.
    pub generation_config: Option<Value>,
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

/// How the model's makers advise to sample; None where they say nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Softmax temperature; 0 where `do_sample` is false.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: Option<u32>,
    /// The probability mass of the likeliest tokens that is kept, in (0, 1].
    pub top_p: Option<f32>,
}

impl ModelDir {
    /// Opens a folder.
    ///
    /// Errors: `MissingFile` for config.json or weights; `ConfigForm`, `TokenizerConfigForm`,
    /// `GenerationConfigForm`, `IndexForm` where a document is not a JSON object or too long; `TemplateForm`;
    /// `IndexPath`, `IndexTensor`, `TensorExtra` and `SafetensorsDuplicate` where index and shards
    /// disagree; what [`safetensors::read`] returns.
    pub fn open(path: &Path) -> Result<ModelDir> {
        let config = required(read_object(&path.join(CONFIG), Fault::ConfigForm)?, path, CONFIG)?;
        let tokenizer_config = read_object(&path.join(TOKENIZER_CONFIG), Fault::TokenizerConfigForm)?;
        let chat_templates = ChatTemplates::read(path, tokenizer_config.as_ref())?;
        Ok(ModelDir {
            path: path.to_path_buf(),
            config,
            tensors: read_weights(path)?,
            tokenizer: read_document(&path.join(TOKENIZER), Fault::TokenizerForm)?,
            tokenizer_config,
            chat_templates,
            generation_config: read_object(&path.join(GENERATION_CONFIG), Fault::GenerationConfigForm)?,
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
    /// config.json; empty where neither has one.
    ///
    /// Errors: `GenerationConfigForm` or `ConfigForm` where it is not an id or a list of ids.
    pub fn stop_ids(&self) -> Result<Vec<i32>> {
        let places = [
            (self.generation_config.as_ref(), GENERATION_CONFIG, Fault::GenerationConfigForm),
            (Some(&self.config), CONFIG, Fault::ConfigForm),
        ];
        for (document, name, fault) in places {
            let Some(value) = document.and_then(|d| d.get("eos_token_id")).filter(|v| !v.is_null()) else { continue };
            let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            let id = |v: &Value| v.as_u64().and_then(|v| i32::try_from(v).ok());
            return values.iter().map(id).collect::<Option<_>>().ok_or_else(|| {
                Error::new(fault, format!("{name}: eos_token_id: wanted an id or a list of ids, found {value}"))
            });
        }
        Ok(Vec::new())
    }

    /// The sampling defaults of generation_config.json.
    ///
    /// Errors: `GenerationConfigForm` where a value is not a number in its range.
    pub fn generation_defaults(&self) -> Result<GenerationDefaults> {
        let empty = Value::Null;
        let document = self.generation_config.as_ref().unwrap_or(&empty);
        let number = |key: &str, wanted: &str, allowed: fn(f64) -> bool| match document.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().filter(|&x| allowed(x)).map(Some).ok_or_else(|| {
                let why = format!("{GENERATION_CONFIG}: {key}: wanted {wanted}, found {value}");
                Error::new(Fault::GenerationConfigForm, why)
            }),
        };
        let temperature = number("temperature", "a number from 0 to 1000", |x| (0.0..=1000.0).contains(&x))?;
        let top_p = number("top_p", "a number above 0, at most 1", |x| x > 0.0 && x <= 1.0)?;
        let whole = |x: f64| x.fract() == 0.0 && (0.0..=i32::MAX as f64).contains(&x);
        let top_k = number("top_k", "a whole number from 0", whole)?;
        let greedy = document.get("do_sample") == Some(&Value::Bool(false));
        Ok(GenerationDefaults {
            temperature: if greedy { Some(0.0) } else { temperature.map(|x| x as f32) },
            top_k: top_k.map(|x| x as u32),
            top_p: top_p.map(|x| x as f32),
        })
    }
}

/// Writes a model folder that transformers and [`ModelDir::open`] read: config.json, the weights in
/// one file, and the companions. The folder appears whole or not at all; one that is there already is
/// replaced if it holds nothing but the files of such a folder.
///
/// Errors: `CannotWrite`, and what [`safetensors::write`] returns; an old folder is then untouched.
pub fn save_model<'a>(
    dir: &Path,
    config: &Value,
    tensors: impl IntoIterator<Item = TensorToWrite<'a>>,
    companions: Companions,
) -> Result<()> {
    let ours = [CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG];
    durable::replace_folder(
        dir,
        |name| ours.contains(&name) || chat_templates::is_ours(dir, name),
        |dir| {
            let text = |name: &str, bytes: &[u8]| durable::write_file(&dir.join(name), |file| file.write_all(bytes));
            let document = |name: &str, value: &Value| text(name, format!("{value:#}\n").as_bytes());
            document(CONFIG, config)?;
            companions.tokenizer.map_or(Ok(()), |bytes| text(TOKENIZER, bytes))?;
            companions.tokenizer_config.map_or(Ok(()), |value| document(TOKENIZER_CONFIG, value))?;
            companions.chat_templates.map_or(Ok(()), |templates| templates.write(dir))?;
            companions.generation_config.map_or(Ok(()), |value| document(GENERATION_CONFIG, value))?;
            safetensors::write(&dir.join(WEIGHTS), tensors)
        },
    )
}

/// Reads a whole document, or None where there is none; one that is too long is `fault`.
pub(super) fn read_document(path: &Path, fault: Fault) -> Result<Option<Vec<u8>>> {
    let file = match open_regular(path) {
        Err(e) if e.fault() == Fault::MissingFile => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).map_err(|e| fault_at(Fault::CannotRead, path, e))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(Error::new(fault, format!("{}: longer than {MAX_DOCUMENT} bytes", path.display())));
    }
    Ok(Some(bytes))
}

/// Reads a JSON object, or None where there is no such file.
fn read_object(path: &Path, fault: Fault) -> Result<Option<Value>> {
    let Some(bytes) = read_document(path, fault)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(_) => Err(Error::new(fault, format!("{}: wanted a JSON object", path.display()))),
        Err(e) => Err(Error::new(fault, format!("{}: {e}", path.display()))),
    }
}

fn required<T>(found: Option<T>, dir: &Path, name: &str) -> Result<T> {
    found.ok_or_else(|| Error::new(Fault::MissingFile, format!("{}: there is no {name}", dir.display())))
}

fn read_weights(dir: &Path) -> Result<BTreeMap<String, StoredTensor>> {
    let single = dir.join(WEIGHTS);
    if single.exists() {
        return Ok(safetensors::read(&single)?.into_iter().collect());
    }
    let index = read_object(&dir.join(INDEX), Fault::IndexForm)?;
    let index = required(index, dir, &format!("{WEIGHTS} or {INDEX}"))?;
    let form = |why: String| Error::new(Fault::IndexForm, format!("{INDEX}: {why}"));
    let map = index.get("weight_map").and_then(Value::as_object);
    let map: &Map<String, Value> = map.ok_or_else(|| form("wanted an object weight_map".into()))?;
    let mut shard_of = BTreeMap::new();
    for (tensor, shard) in map {
        let shard =
            shard.as_str().ok_or_else(|| form(format!("tensor {tensor}: wanted a file name, found {shard}")))?;
        shard_of.insert(tensor.as_str(), shard);
    }
    let shards: BTreeSet<&str> = shard_of.values().copied().collect();
    let mut tensors = BTreeMap::new();
    for shard in shards {
        for (name, tensor) in safetensors::read(&shard_path(dir, shard)?)? {
            match shard_of.get(name.as_str()) {
                None => {
                    let why = format!("{shard}: tensor {name}: {INDEX} does not list it");
                    return Err(Error::new(Fault::TensorExtra, why));
                }
                Some(&listed) if listed != shard => {
                    let why = format!("{shard}: tensor {name}: {INDEX} places it in {listed}");
                    return Err(Error::new(Fault::SafetensorsDuplicate, why));
                }
                Some(_) => match tensors.entry(name) {
                    Entry::Vacant(slot) => slot.insert(tensor),
                    Entry::Occupied(slot) => {
                        let why = format!("{shard}: tensor {}: the name occurs twice", slot.key());
                        return Err(Error::new(Fault::SafetensorsDuplicate, why));
                    }
                },
            };
        }
    }
    match shard_of.iter().find(|(name, _)| !tensors.contains_key(**name)) {
        None => Ok(tensors),
        Some((name, shard)) => {
            Err(Error::new(Fault::IndexTensor, format!("{INDEX}: tensor {name}: {shard} does not hold it")))
        }
    }
}

/// The path of a shard, if it stays in the folder. A link may lead to the blob store of a download
/// cache (`snapshots/<revision>/` beside `blobs/`), which is how such caches lay their folders out.
fn shard_path(dir: &Path, shard: &str) -> Result<PathBuf> {
    let outside = |why: &str| Error::new(Fault::IndexPath, format!("{INDEX}: shard {shard:?}: {why}"));
    let mut components = Path::new(shard).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    if !plain || shard.contains(['/', '\\', '\0']) {
        return Err(outside("wanted the bare name of a file in the folder"));
    }
    let path = dir.join(shard);
    if path.symlink_metadata().is_err() {
        return Err(Error::new(Fault::MissingFile, format!("{INDEX}: shard {shard:?}: there is no such file")));
    }
    let home = dir.canonicalize().map_err(|e| fault_at(Fault::CannotOpen, dir, e))?;
    let target = path.canonicalize().map_err(|e| fault_at(Fault::CannotOpen, &path, e))?;
    let snapshots = home.parent().filter(|p| p.file_name().is_some_and(|n| n == "snapshots"));
    let blobs = snapshots.and_then(Path::parent).map(|cache| cache.join("blobs"));
    if target.starts_with(&home) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(target);
    }
    Err(outside("a link that leads out of the folder"))
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
        let opened = ModelDir::open(&dir).unwrap();
        assert_eq!(opened.config, config);
        assert_eq!(opened.tensors["t"].bytes.as_slice(), [1, 2, 3, 4]);
        assert_eq!(opened.tokenizer.as_deref(), Some(&b"{}"[..]));
        assert_eq!(opened.chat_templates, ChatTemplates::of("new"));
        assert_eq!(opened.stop_ids().unwrap(), [3, 4]);
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
        std::fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
        let opened = ModelDir::open(dir.path()).unwrap();
        assert_eq!(opened.tensors.keys().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(opened.stop_ids().unwrap(), [7]);
        assert!(opened.tokenizer.is_none() && opened.chat_templates.by_name.is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_download_caches_links_to_its_blobs_are_followed() {
        let cache = tempfile::tempdir().unwrap();
        let (blobs, dir) = (cache.path().join("blobs"), cache.path().join("snapshots/abc"));
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        safetensors::write(&blobs.join("123"), [tensor("x", &[1; 4])]).unwrap();
        std::os::unix::fs::symlink("../../blobs/123", dir.join("a.safetensors")).unwrap();
        std::fs::write(dir.join(CONFIG), "{}").unwrap();
        std::fs::write(dir.join(INDEX), r#"{"weight_map": {"x": "a.safetensors"}}"#).unwrap();
        assert_eq!(ModelDir::open(&dir).unwrap().tensors.len(), 1);
    }

    #[test]
    fn sampling_defaults_are_read_and_their_ranges_checked() {
        let with = |generation: Value| ModelDir {
            path: PathBuf::new(),
            config: json!({}),
            tensors: BTreeMap::new(),
            tokenizer: None,
            tokenizer_config: None,
            chat_templates: ChatTemplates::default(),
            generation_config: Some(generation),
        };
        let defaults = with(json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95})).generation_defaults().unwrap();
        assert_eq!(defaults, GenerationDefaults { temperature: Some(0.6), top_k: Some(20), top_p: Some(0.95) });
        assert_eq!(with(json!({"do_sample": false})).generation_defaults().unwrap().temperature, Some(0.0));
        for wrong in [json!({"temperature": -1}), json!({"top_k": 1.5}), json!({"top_p": 0}), json!({"top_p": "x"})] {
            assert_eq!(with(wrong).generation_defaults().unwrap_err().fault(), Fault::GenerationConfigForm);
        }
        for wrong in [json!({"eos_token_id": -1}), json!({"eos_token_id": [1, "2"]}), json!({"eos_token_id": 1.5})] {
            assert_eq!(with(wrong).stop_ids().unwrap_err().fault(), Fault::GenerationConfigForm);
        }
    }
}
