//! Adapters as PEFT writes and reads them: a folder with adapter_config.json and adapter_model.safetensors.
//!
//! B is stored [O, R] there and kept transposed here. A folder that squire wrote also holds squire_adapter.json with the
//! fingerprint of its base, which PEFT does not look at.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::adapter::{Adapter, Lora, Side, name_of};
use super::{ModelConfig, Weights};
use crate::backend::{Projection, Tensor};
use crate::error::{Error, Fault, Result, brief};
use crate::format::{Layout, StoredTensor, check_regular, durable, read_text, safetensors};
use crate::tensor::{Dtype, Shape};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const BASE: &str = "squire_adapter.json";
const LAYOUT: Layout =
    Layout { kind: "an adapter", required: &[CONFIG, TENSORS], optional: &[BASE, "README.md"], folder: None };
/// The longest document, in bytes; one has a few thousand.
const MAX_DOCUMENT: u64 = 1 << 20;

/// Reads an adapter of a model, in memory of its own. Numbers keep their dtype; where dtypes are mixed they become f32.
///
/// Errors: `MissingFile`, `AdapterForm` for a configuration that is broken or says what cannot be, `UnsupportedAdapter` for
/// a kind that squire does not compute, `AdapterMismatch` for another base, `TensorMissing`, `TensorExtra`, `TensorShape`
/// and `NotFinite` for what the tensors are, each naming the first; and those of [`safetensors::read`].
pub fn read_adapter(path: &Path, config: &ModelConfig, base: &Weights) -> Result<Adapter> {
    let within = |e: Error| e.within(path.display());
    let document = read_document(&path.join(CONFIG))?.ok_or_else(|| {
        let why =
            format!("{}: there is no {CONFIG}; give the folder that PEFT's save_pretrained wrote", path.display());
        Error::new(Fault::MissingFile, why)
    })?;
    let lora = read_lora(&document).and_then(|lora| lora.of(config)).map_err(|e| within(e.within(CONFIG)))?;
    if let Some(document) = read_document(&path.join(BASE))? {
        let broken =
            || within(Error::new(Fault::AdapterForm, format!("{BASE}: base: wanted a fingerprint, found none")));
        let theirs = document.get("base").and_then(Value::as_str).ok_or_else(broken)?;
        let ours = base.fingerprint(config);
        if theirs != ours {
            let why = format!(
                "the adapter was made for another base: wanted weights of fingerprint {}, found {ours}; load the model that \
                 it was trained on",
                brief(theirs)
            );
            return Err(within(Error::new(Fault::AdapterMismatch, why)));
        }
    }
    let file = path.join(TENSORS);
    if file.symlink_metadata().is_err() {
        let why = format!("there is no {TENSORS}; give the folder that PEFT's save_pretrained wrote");
        return Err(within(Error::new(Fault::MissingFile, why)));
    }
    check_regular(&file)?;
    let stored = by_plain_name(safetensors::read(&file)?).map_err(within)?;
    from_stored(config, &lora, stored).map_err(|e| within(e.within(TENSORS)))
}

fn read_document(path: &Path) -> Result<Option<Map<String, Value>>> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    check_regular(path)?;
    let form = |why: String| Error::new(Fault::AdapterForm, format!("{}: {why}", path.display()));
    let text = read_text(path, MAX_DOCUMENT)?;
    match serde_json::from_str(&text) {
        Ok(Value::Object(map)) => Ok(Some(map)),
        Ok(_) => Err(form("wanted a JSON object".into())),
        Err(e) => Err(form(e.to_string())),
    }
}

/// What adapter_config.json says of an adapter.
fn read_lora(document: &Map<String, Value>) -> Result<Lora> {
    let value = |key: &str| document.get(key).filter(|v| !v.is_null());
    let form = |why: String| Error::new(Fault::AdapterForm, why);
    let unsupported = |why: String| Error::new(Fault::UnsupportedAdapter, why);
    match value("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        found => {
            let found = brief(found.unwrap_or("nothing"));
            return Err(unsupported(format!("peft_type: wanted LORA, found {found}; train a LoRA adapter")));
        }
    }
    // What changes the arithmetic, each off as PEFT writes it.
    let off = |v: &Value| match v {
        Value::Bool(on) => !on,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    const UNBUILT: [&str; 13] = [
        "use_dora",
        "fan_in_fan_out",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "layer_replication",
        "modules_to_save",
        "target_parameters",
        "trainable_token_indices",
        "exclude_modules",
        "use_qalora",
        "alora_invocation_tokens",
    ];
    for key in UNBUILT {
        if let Some(found) = value(key).filter(|v| !off(v)) {
            let found = brief(found);
            return Err(unsupported(format!(
                "{key}: found {found}, which squire does not compute; train the adapter without it, or merge it by peft"
            )));
        }
    }
    if let Some(bias) = value("bias").filter(|v| v.as_str() != Some("none")) {
        let why = format!("bias: wanted none, found {}; squire trains and serves no biases of adapters", brief(bias));
        return Err(unsupported(why));
    }
    // These begin by changing the base, so that what was saved belongs to other weights than the folder's.
    if let Some(how) = value("init_lora_weights").and_then(Value::as_str) {
        let changes_base = ["pissa", "olora", "corda", "loftq"].iter().any(|kind| how.starts_with(kind));
        if changes_base {
            let why = format!("init_lora_weights: {} changes the base; save it converted to a plain LoRA", brief(how));
            return Err(unsupported(why));
        }
    }
    let number = |key: &str| match value(key) {
        Some(v) => v.as_f64().ok_or_else(|| form(format!("{key}: wanted a number, found {}", brief(v)))),
        None => Err(form(format!("{key}: wanted a number, found nothing"))),
    };
    let rank = number("r")?;
    if rank < 1.0 || rank.fract() != 0.0 || rank > 1e6 {
        return Err(form(format!("r: wanted a whole number from 1, found {rank}")));
    }
    let rslora = match value("use_rslora") {
        None => false,
        Some(v) => v.as_bool().ok_or_else(|| form(format!("use_rslora: wanted true or false, found {}", brief(v))))?,
    };
    Ok(Lora { rank: rank as usize, alpha: number("lora_alpha")?, rslora, targets: read_targets(document)? })
}

/// The targets by the last part of their names. A pattern is refused: what it matches is for PEFT to say.
fn read_targets(document: &Map<String, Value>) -> Result<Vec<Projection>> {
    let names = match document.get("target_modules") {
        Some(Value::Array(list)) => list,
        Some(Value::String(pattern)) => {
            let why = format!(
                "target_modules: wanted a list of names, found the pattern {}; list the projections that it stands for",
                brief(pattern)
            );
            return Err(Error::new(Fault::UnsupportedAdapter, why));
        }
        _ => {
            return Err(Error::new(Fault::AdapterForm, "target_modules: wanted a list of names, found none"));
        }
    };
    let names = names.iter().map(|v| {
        v.as_str().ok_or_else(|| Error::new(Fault::AdapterForm, format!("target_modules: {} is no name", brief(v))))
    });
    let mut targets = Vec::new();
    for name in names {
        targets.push(target(name?)?);
    }
    if targets.is_empty() {
        return Err(Error::new(Fault::AdapterForm, "target_modules: wanted at least one name, found none"));
    }
    targets.sort();
    targets.dedup();
    Ok(targets)
}

/// A projection by its Hugging Face name, alone or behind the modules that hold it.
///
/// Errors: `UnsupportedAdapter` for what has no adapters here, `AdapterForm` for what no layer has.
pub fn target(name: &str) -> Result<Projection> {
    let last = name.rsplit('.').next().unwrap_or(name);
    if let Some(target) = Projection::ALL.into_iter().find(|target| target.name() == last && !name.contains("experts"))
    {
        return Ok(target);
    }
    let known = Projection::ALL.map(Projection::name).join(", ");
    if name.contains("experts") || ["gate", "router", "lm_head", "embed_tokens", "norm"].contains(&last) {
        let what = match last {
            "gate" | "router" => "the router has no adapter",
            "lm_head" | "embed_tokens" => "embedding and output projection have no adapters",
            _ if name.contains("experts") => "experts have no adapters",
            _ => "norms have no adapters",
        };
        let why = format!("target {}: {what}; wanted some of {known}", brief(name));
        return Err(Error::new(Fault::UnsupportedAdapter, why));
    }
    let why = format!("target {}: matches nothing; wanted some of {known}", brief(name));
    Err(Error::new(Fault::AdapterForm, why))
}

/// Tensors by the names that PEFT writes, whatever wrappers put before `layers.` or between.
fn by_plain_name(tensors: Vec<(String, StoredTensor)>) -> Result<BTreeMap<String, StoredTensor>> {
    let mut all = BTreeMap::new();
    for (name, tensor) in tensors {
        let plain = match name.find("layers.") {
            Some(at) => format!("base_model.model.model.{}", &name[at..]).replace(".default.weight", ".weight"),
            None => name,
        };
        if all.contains_key(&plain) {
            let why = format!("{TENSORS}: {} is there twice under names that mean one", brief(plain));
            return Err(Error::new(Fault::TensorNames, why));
        }
        all.insert(plain, tensor);
    }
    Ok(all)
}

fn from_stored(config: &ModelConfig, lora: &Lora, mut stored: BTreeMap<String, StoredTensor>) -> Result<Adapter> {
    let mut dtypes = stored.values().map(|t| t.dtype);
    let dtype = dtypes.next().filter(|&first| dtypes.all(|dtype| dtype == first)).unwrap_or(Dtype::F32);
    let adapter = Adapter::build(config, lora, |l, projection, side, [rank, width]| {
        let name = name_of(l, projection, side);
        let found = stored.remove(&name).ok_or_else(|| {
            let why = format!("tensor {name}: missing; the configuration names {} as a target", projection.name());
            Error::new(Fault::TensorMissing, why)
        })?;
        let wanted = match side {
            Side::A => [rank, width],
            Side::B => [width, rank],
        };
        if found.shape.extents() != wanted {
            let why = format!("tensor {name}: wanted {wanted:?} by r = {rank} and the model, found {}", found.shape);
            return Err(Error::new(Fault::TensorShape, why));
        }
        let bytes = std::sync::Arc::new(found.bytes);
        let lent = Tensor::from_shared(found.dtype, found.shape, bytes).map_err(|e| e.within(&name))?;
        let tensor = match side {
            Side::A => kept(&lent, dtype)?,
            Side::B => kept(&transposed(&lent)?, dtype)?,
        };
        if !tensor.is_finite() {
            let why = format!("tensor {name}: holds NaN or infinity; take an adapter of a run that did not diverge");
            return Err(Error::new(Fault::NotFinite, why));
        }
        Ok(tensor)
    })?;
    match stored.into_keys().next() {
        None => Ok(adapter),
        Some(name) => {
            let why = format!("tensor {}: the configuration knows no such tensor", brief(name));
            Err(Error::new(Fault::TensorExtra, why))
        }
    }
}

/// A copy in `dtype`, which is the tensor's own or f32.
fn kept(tensor: &Tensor, dtype: Dtype) -> Result<Tensor> {
    if tensor.dtype() == dtype {
        return tensor.to_host();
    }
    let mut wide = Tensor::zeros(Dtype::F32, tensor.shape().extents())?;
    tensor.widen_into(wide.f32_mut());
    Ok(wide)
}

/// [M, N] to [N, M], in the same dtype.
fn transposed(tensor: &Tensor) -> Result<Tensor> {
    let (m, n, size) = (tensor.extent(0), tensor.extent(1), tensor.dtype().size());
    let mut out = Tensor::zeros(tensor.dtype(), &[n, m])?;
    let from = tensor.bytes();
    for (i, to) in out.bytes_mut().chunks_exact_mut(size).enumerate() {
        let at = (i % m * n + i / m) * size;
        to.copy_from_slice(&from[at..at + size]);
    }
    Ok(out)
}

/// Writes an adapter as PEFT does. The folder appears whole or not at all; one that is there already is replaced if it is
/// empty or such a folder.
pub fn write_adapter(path: &Path, adapter: &Adapter, config: &ModelConfig, base: &Weights) -> Result<()> {
    let Lora { rank, alpha, rslora, .. } = adapter.lora;
    let document = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": null,
        "inference_mode": true,
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "target_modules": adapter.lora.target_names(),
    });
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (l, projection, side, tensor) in adapter.sides() {
        let stored = match side {
            Side::A => tensor.to_host()?,
            Side::B => transposed(tensor)?,
        };
        tensors.push((name_of(l, projection, side), stored));
    }
    let base = json!({ "base": base.fingerprint(config) });
    durable::replace_folder(path, &LAYOUT, |dir| {
        let put = |name: &str, document: &Value| {
            let text = format!("{document:#}\n");
            durable::write_file(&dir.join(name), |file| file.write_all(text.as_bytes()))
        };
        put(CONFIG, &document)?;
        put(BASE, &base)?;
        let list = tensors.iter().map(|(name, t): &(String, Tensor)| -> (&str, Dtype, Shape, &[u8]) {
            (name.as_str(), t.dtype(), t.shape(), t.bytes())
        });
        safetensors::write(&dir.join(TENSORS), list)
    })
}

/// Whether [`write_adapter`] would take this place. Errors: `CannotWrite`.
pub fn check_adapter_place(path: &Path) -> Result<()> {
    durable::check_place(path, &LAYOUT)
}
