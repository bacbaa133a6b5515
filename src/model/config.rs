//! The configuration of a Qwen3 or Qwen3-MoE model: what config.json says, checked, and the tensors
//! that follow from it.
//!
//! Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`,
//! `num_experts`) and 5 (`rope_parameters`, `dtype`, `num_local_experts`). What squire does not
//! compute is refused by name rather than ignored. The rotary embedding's part is `config_rope`.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::config_fields::{Fields, MAX_EXTENT, contradiction, shortened, whole};
use super::config_rope::{Rope, read_rope};
use crate::error::{Error, Fault, Result, brief};
use crate::format::StoredTensor;
use crate::tensor::{Dtype, Shape};

/// A model's extents and constants. Letters as in the op files: C hidden, F intermediate, H heads,
/// G key/value heads, D head size, V vocabulary, L layers, E experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// V.
    pub vocab_size: usize,
    /// C.
    pub hidden_size: usize,
    /// F of the dense layers.
    pub intermediate_size: usize,
    /// L.
    pub n_layers: usize,
    /// H.
    pub n_heads: usize,
    /// G; divides H.
    pub n_kv_heads: usize,
    /// D; even.
    pub head_dim: usize,
    /// Added to the mean square in every RMSNorm.
    pub rms_norm_eps: f32,
    /// The rotary embedding.
    pub rope: Rope,
    /// Positions the model serves: `max_position_embeddings`, or what YaRN makes of the positions before it if that is
    /// more (model cards raise the factor and leave `max_position_embeddings` where it was).
    pub max_position: usize,
    /// Whether query and key heads are normed before they are turned (Qwen3; not Llama).
    pub head_norms: bool,
    /// Whether the projections to queries, keys and values have biases (Qwen2; others where attention_bias says so).
    pub qkv_bias: bool,
    /// Whether attention's output projection has one (where attention_bias says so; not Qwen2).
    pub o_bias: bool,
    /// Whether the output projection is the embedding.
    pub tied: bool,
    /// The experts, of a mixture-of-experts model.
    pub moe: Option<Moe>,
    /// The dtype that config.json names. The tensors' own dtype decides; this is only what was said.
    pub stored_dtype: Option<Dtype>,
}

/// The experts of a mixture-of-experts model.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// E.
    pub n_experts: usize,
    /// How many experts see one token.
    pub n_experts_per_token: usize,
    /// F of one expert.
    pub expert_intermediate_size: usize,
    /// Whether the chosen experts' weights are scaled to sum to 1.
    pub norm_topk_prob: bool,
    /// Every how many layers one has experts.
    pub decoder_sparse_step: usize,
    /// Layers that are dense all the same.
    pub mlp_only_layers: Vec<usize>,
}

/// The input embedding's name.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output projection's name.
pub(super) const HEAD: &str = "lm_head.weight";
/// The most tensors a model may have; the largest Qwen3 has 36,000.
const MAX_TENSORS: usize = 1 << 18;

impl ModelConfig {
    /// Reads config.json.
    ///
    /// Errors: `ConfigForm` for a missing or ill-typed field; an `Unsupported…` fault for what squire
    /// does not compute; `ConfigContradiction` where the values cannot be true together.
    pub fn from_json(document: &Value) -> Result<ModelConfig> {
        ModelConfig::read(document, &mut Vec::new())
    }

    /// The same; what is odd and does not matter is told in `warnings`.
    pub fn read(document: &Value, warnings: &mut Vec<String>) -> Result<ModelConfig> {
        let top = Fields::of(document)?;
        let attention_bias = top.flag("attention_bias")? == Some(true);
        let (sparse, head_norms, (qkv_bias, o_bias)) = match top.text("model_type")?.unwrap_or("nothing") {
            "qwen3" => (false, true, (attention_bias, attention_bias)),
            "qwen3_moe" => (true, true, (attention_bias, attention_bias)),
            "llama" => (false, false, (attention_bias, attention_bias)),
            // Its biases are no question of its configuration.
            "qwen2" => (false, false, (true, false)),
            other => {
                let other = brief(other);
                let why = format!(
                    "config.json: model_type: wanted qwen3, qwen3_moe, qwen2 or llama, found {other}; give a model of one of \
                     these kinds"
                );
                return Err(Error::new(Fault::UnsupportedArchitecture, why));
            }
        };
        let n_layers = top.extent("num_hidden_layers")?;
        refuse_unsupported(&top, n_layers, sparse)?;
        let hidden_size = top.extent("hidden_size")?;
        let n_heads = top.extent("num_attention_heads")?;
        let head_dim = match top.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if n_heads > 0 && hidden_size % n_heads == 0 => hidden_size / n_heads,
            None => {
                let why = format!(
                    "hidden_size: wanted a multiple of {n_heads} heads without a head_dim, found {hidden_size}"
                );
                return Err(contradiction(why));
            }
        };
        let positions = top.extent("max_position_embeddings")?;
        let rope = read_rope(&top, positions)?;
        let extended = rope.extended_to(positions);
        let config = ModelConfig {
            vocab_size: top.extent("vocab_size")?,
            hidden_size,
            intermediate_size: top.extent("intermediate_size")?,
            n_layers,
            n_heads,
            n_kv_heads: top.count("num_key_value_heads")?.unwrap_or(n_heads),
            head_dim,
            rms_norm_eps: top.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope,
            max_position: positions.max(extended.min(MAX_EXTENT)),
            head_norms,
            qkv_bias,
            o_bias,
            tied: top.flag("tie_word_embeddings")?.unwrap_or(false),
            moe: if sparse { Some(read_moe(&top)?) } else { None },
            stored_dtype: read_dtype(&top, warnings)?,
        };
        config.check()?;
        Ok(config)
    }

    /// What must hold between the numbers for the rest of the crate to take them on trust; a
    /// configuration made by hand is checked where a model is made of it.
    ///
    /// Errors: `ConfigContradiction`, naming the field.
    pub fn check(&self) -> Result<()> {
        let mut extents = vec![
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.n_layers),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position),
        ];
        if let Some(moe) = &self.moe {
            extents.push(("num_experts", moe.n_experts));
            extents.push(("num_experts_per_tok", moe.n_experts_per_token));
            extents.push(("moe_intermediate_size", moe.expert_intermediate_size));
            extents.push(("decoder_sparse_step", moe.decoder_sparse_step));
        }
        for (name, extent) in extents {
            if extent == 0 || extent > MAX_EXTENT {
                return Err(contradiction(format!("{name}: wanted 1 to {MAX_EXTENT}, found {extent}")));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let (heads, kv) = (self.n_heads, self.n_kv_heads);
            return Err(contradiction(format!(
                "num_attention_heads: wanted a multiple of {kv} key/value heads, found {heads}"
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(contradiction(format!("head_dim: wanted an even number, found {}", self.head_dim)));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps.is_finite()) {
            return Err(contradiction(format!("rms_norm_eps: wanted a positive number, found {}", self.rms_norm_eps)));
        }
        if let Some(moe) = &self.moe {
            let (k, n) = (moe.n_experts_per_token, moe.n_experts);
            if k > n {
                return Err(contradiction(format!("num_experts_per_tok: wanted at most {n} (num_experts), found {k}")));
            }
            if let Some(layer) = moe.mlp_only_layers.iter().find(|&&layer| layer >= self.n_layers) {
                return Err(contradiction(format!(
                    "mlp_only_layers: wanted layers below {}, found {layer}",
                    self.n_layers
                )));
            }
        }
        let per_layer = 15 + self.moe.as_ref().map_or(0, |moe| 3 * moe.n_experts);
        if self.n_layers.saturating_mul(per_layer) > MAX_TENSORS {
            return Err(contradiction(format!("{} layers make more than {MAX_TENSORS} tensors", self.n_layers)));
        }
        match self.bytes_as_f32() {
            Some(_) => Ok(()),
            None => Err(contradiction("the extents multiply to more weights than memory can address".into())),
        }
    }

    /// Bytes of all weights in f32, or None where they overflow.
    fn bytes_as_f32(&self) -> Option<usize> {
        let product = |factors: &[usize]| factors.iter().try_fold(1usize, |n, &f| n.checked_mul(f));
        let (c, d) = (self.hidden_size, self.head_dim);
        let mut layer = product(&[2, self.n_heads, d, c])?.checked_add(product(&[2, self.n_kv_heads, d, c])?)?;
        layer = layer.checked_add(product(&[2, c])?)?.checked_add(product(&[2, d])?)?;
        layer = layer.checked_add(product(&[self.n_heads + 2 * self.n_kv_heads, d])?.checked_add(c)?)?;
        let mut mlp = product(&[3, c, self.intermediate_size])?;
        if let Some(moe) = &self.moe {
            let experts = product(&[3, c, moe.expert_intermediate_size, moe.n_experts])?;
            mlp = mlp.max(experts.checked_add(product(&[c, moe.n_experts])?)?);
        }
        layer = layer.checked_add(mlp)?;
        let embeddings = product(&[2, self.vocab_size, c])?.checked_add(c)?;
        let bytes = product(&[layer, self.n_layers])?.checked_add(embeddings)?.checked_mul(4)?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }

    /// Whether layer `layer` routes to experts.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| {
            (layer + 1).is_multiple_of(moe.decoder_sparse_step) && !moe.mlp_only_layers.contains(&layer)
        })
    }

    /// Every tensor of the model by its Hugging Face name, in the order of the forward pass. A
    /// projection is [outputs, inputs].
    pub fn tensor_shapes(&self) -> Vec<(String, Shape)> {
        let (c, d) = (self.hidden_size, self.head_dim);
        let (q, kv) = (self.n_heads * d, self.n_kv_heads * d);
        let mut all = Vec::new();
        let mut add = |name: String, extents: &[usize]| {
            // `check` bounded the bytes of the whole model, so no element count overflows.
            all.push((name, Shape::new(extents).expect("the extents were checked")));
        };
        add("model.embed_tokens.weight".into(), &[self.vocab_size, c]);
        for layer in 0..self.n_layers {
            if self.qkv_bias {
                for (name, outputs) in [("q_proj", q), ("k_proj", kv), ("v_proj", kv)] {
                    add(format!("model.layers.{layer}.self_attn.{name}.bias"), &[outputs]);
                }
            }
            if self.o_bias {
                add(format!("model.layers.{layer}.self_attn.o_proj.bias"), &[c]);
            }
            let mut add = |name: &str, extents: &[usize]| add(format!("model.layers.{layer}.{name}.weight"), extents);
            add("input_layernorm", &[c]);
            add("self_attn.q_proj", &[q, c]);
            add("self_attn.k_proj", &[kv, c]);
            add("self_attn.v_proj", &[kv, c]);
            if self.head_norms {
                add("self_attn.q_norm", &[d]);
                add("self_attn.k_norm", &[d]);
            }
            add("self_attn.o_proj", &[c, q]);
            add("post_attention_layernorm", &[c]);
            let mut gated = |prefix: &str, f: usize| {
                add(&format!("{prefix}.gate_proj"), &[f, c]);
                add(&format!("{prefix}.up_proj"), &[f, c]);
                add(&format!("{prefix}.down_proj"), &[c, f]);
            };
            match &self.moe {
                Some(moe) if self.is_moe_layer(layer) => {
                    for expert in 0..moe.n_experts {
                        gated(&format!("mlp.experts.{expert}"), moe.expert_intermediate_size);
                    }
                    add("mlp.gate", &[moe.n_experts, c]);
                }
                _ => gated("mlp", self.intermediate_size),
            }
        }
        add("model.norm.weight".into(), &[c]);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocab_size, c]);
        }
        all
    }

    /// Checks that the tensors are those of this configuration; each may have its own dtype.
    ///
    /// Errors: `TensorMissing`, `TensorShape`, `TensorExtra`, naming the first tensor.
    pub fn check_tensors(&self, tensors: &BTreeMap<String, StoredTensor>) -> Result<()> {
        let shapes = self.tensor_shapes();
        for (name, wanted) in &shapes {
            let Some(StoredTensor { shape, .. }) = tensors.get(name) else {
                let (n, first) = (tensors.len(), tensors.keys().take(2).cloned().collect::<Vec<_>>().join(", "));
                let why = format!(
                    "tensor {name}: missing, wanted {wanted}, found {n} other tensors ({first}, ...); config.json is of \
                     another model, or the download is not whole"
                );
                return Err(Error::new(Fault::TensorMissing, why));
            };
            if shape != wanted {
                let rows =
                    [EMBEDDING, HEAD].contains(&name.as_str()) && shape.extents().get(1) == wanted.extents().get(1);
                let remedy = match rows {
                    true => "set vocab_size in config.json to the rows of model.embed_tokens.weight and lm_head.weight",
                    false => "config.json and the weights are not of one model; download both together",
                };
                let why = format!("tensor {name}: wanted {wanted}, found {shape}; {remedy}");
                return Err(Error::new(Fault::TensorShape, why));
            }
        }
        let wanted: std::collections::HashSet<&str> = shapes.iter().map(|(name, _)| name.as_str()).collect();
        match tensors.keys().find(|name| !wanted.contains(name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let why = format!(
                    "tensor {name}: wanted no such tensor by config.json, found one; squire serves causal language models \
                     alone: save the model without it, or with the config.json that it belongs to"
                );
                Err(Error::new(Fault::TensorExtra, why))
            }
        }
    }

    /// A config.json that transformers 4 and 5 load: the older spelling, which both read.
    pub fn to_json(&self) -> Value {
        let (kind, class) = match (&self.moe, self.head_norms) {
            (Some(_), _) => ("qwen3_moe", "Qwen3MoeForCausalLM"),
            (None, true) => ("qwen3", "Qwen3ForCausalLM"),
            (None, false) if self.qkv_bias && !self.o_bias => ("qwen2", "Qwen2ForCausalLM"),
            (None, false) => ("llama", "LlamaForCausalLM"),
        };
        let mut document = json!({
            "architectures": [class],
            "model_type": kind,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": self.qkv_bias && self.o_bias,
            "use_sliding_window": false,
            "rms_norm_eps": decimal(self.rms_norm_eps),
            "rope_theta": self.rope.theta,
            "rope_scaling": null,
            "max_position_embeddings": self.max_position,
            "tie_word_embeddings": self.tied,
        });
        if let Some(scaling) = &self.rope.scaling {
            document["rope_scaling"] = scaling.to_json();
        }
        if let Some(moe) = &self.moe {
            document["num_experts"] = moe.n_experts.into();
            document["num_experts_per_tok"] = moe.n_experts_per_token.into();
            document["moe_intermediate_size"] = moe.expert_intermediate_size.into();
            document["norm_topk_prob"] = moe.norm_topk_prob.into();
            document["decoder_sparse_step"] = moe.decoder_sparse_step.into();
            document["mlp_only_layers"] = json!(moe.mlp_only_layers);
        }
        if let Some(dtype) = self.stored_dtype {
            document["torch_dtype"] = dtype.config_name().into();
        }
        document
    }
}

/// The f64 whose shortest decimal is that of the f32, so that 1e-6 is written as such.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(x as f64)
}

/// Refuses what the forward pass does not compute.
fn refuse_unsupported(top: &Fields, n_layers: usize, sparse: bool) -> Result<()> {
    let refuse = |fault, why: String| Err(Error::new(fault, format!("config.json: {why}")));
    let serves = "squire attends to all positions, so the model would answer otherwise";
    let kinds = top.list("layer_types")?;
    for kind in kinds.unwrap_or(&[]) {
        match kind.as_str() {
            Some("full_attention") => {}
            Some("sliding_attention") => {
                let why = format!("layer_types: wanted full_attention, found sliding_attention; {serves}");
                return refuse(Fault::UnsupportedSlidingWindow, why);
            }
            _ => {
                let why = format!("layer_types: wanted full_attention, found {kind}; give a model of full attention");
                return refuse(Fault::UnsupportedArchitecture, why);
            }
        }
    }
    if let Some(n) = kinds.map(<[Value]>::len).filter(|&n| n != n_layers) {
        let why = format!("layer_types: wanted {n_layers} layers as num_hidden_layers says, found {n}");
        return Err(contradiction(why));
    }
    // As transformers: a window of null is none, a dense model's layers slide from max_window_layers on unless
    // layer_types says which do, a sparse one's all slide.
    let window = top.has("sliding_window").is_none_or(|null| !null);
    if top.flag("use_sliding_window")? == Some(true) && window {
        let first = match sparse {
            true => 0,
            false if kinds.is_some() => n_layers,
            false => top.count("max_window_layers")?.unwrap_or(28),
        };
        if first < n_layers {
            let why = format!("use_sliding_window is true, so layers slide from {first} on, of {n_layers}; {serves}");
            return refuse(Fault::UnsupportedSlidingWindow, why);
        }
    }
    if top.flag("mlp_bias")? == Some(true) {
        let why = "mlp_bias: wanted false, found true; squire's feed-forward has none: give a model without".into();
        return refuse(Fault::UnsupportedBias, why);
    }
    if top.number("pretraining_tp")?.is_some_and(|parts| parts > 1.0) {
        let why =
            "pretraining_tp: wanted 1, found more; transformers sums its products in parts then: set it to 1".into();
        return refuse(Fault::UnsupportedArchitecture, why);
    }
    match top.text("hidden_act")? {
        None | Some("silu") => {}
        Some(other) => {
            let why = format!("hidden_act: wanted silu, found {}; give a model of that activation", brief(other));
            return refuse(Fault::UnsupportedActivation, why);
        }
    }
    match ["quantization_config", "quantization"].iter().find(|key| top.value(key).is_some()) {
        None => Ok(()),
        Some(key) => {
            let why = format!("{key}: wanted none, found one; give the folder of the model that is not quantised");
            refuse(Fault::UnsupportedQuantisation, why)
        }
    }
}

fn read_moe(top: &Fields) -> Result<Moe> {
    let n_experts = match (top.count("num_experts")?, top.count("num_local_experts")?) {
        (Some(a), Some(b)) if a != b => {
            return Err(contradiction(format!("num_experts is {a}, num_local_experts {b}")));
        }
        (None, None) => top.extent("num_experts")?,
        (a, b) => a.or(b).unwrap_or(0),
    };
    let layers = top.list("mlp_only_layers")?.unwrap_or(&[]);
    let mut mlp_only_layers: Vec<usize> = layers.iter().map(whole).collect::<Option<_>>().ok_or_else(|| {
        let why = format!("mlp_only_layers: wanted a list of layer numbers, found {}", shortened(layers.iter()));
        Error::new(Fault::ConfigForm, format!("config.json: {why}; mend it"))
    })?;
    mlp_only_layers.sort_unstable();
    mlp_only_layers.dedup(); // so that a long list of repetitions costs nothing later
    Ok(Moe {
        n_experts,
        n_experts_per_token: top.extent("num_experts_per_tok")?,
        expert_intermediate_size: top.extent("moe_intermediate_size")?,
        norm_topk_prob: top.flag("norm_topk_prob")?.unwrap_or(false),
        decoder_sparse_step: top.count("decoder_sparse_step")?.unwrap_or(1),
        mlp_only_layers,
    })
}

fn read_dtype(top: &Fields, warnings: &mut Vec<String>) -> Result<Option<Dtype>> {
    let parse = |key: &str| -> Result<Option<Dtype>> {
        match top.text(key)? {
            None => Ok(None),
            Some("float32") => Ok(Some(Dtype::F32)),
            Some("float16") => Ok(Some(Dtype::F16)),
            Some("bfloat16") => Ok(Some(Dtype::Bf16)),
            Some(other) => {
                let other = brief(other);
                let why = format!(
                    "config.json: {key}: wanted float32, float16 or bfloat16, found {other}; name the tensors' own"
                );
                Err(Error::new(Fault::UnsupportedDtype, why))
            }
        }
    };
    let (a, b) = (parse("torch_dtype")?, parse("dtype")?);
    if let (Some(a), Some(b)) = (a, b)
        && a != b
    {
        warnings.push(format!("config.json: torch_dtype is {a}, dtype {b}; the tensors decide"));
    }
    Ok(a.or(b))
}

#[cfg(test)]
mod tests {
    use super::super::config_rope::{RopeScaling, Yarn};
    use super::*;

    fn yarn_of(config: &ModelConfig) -> Yarn {
        match &config.rope.scaling {
            Some(RopeScaling::Yarn(yarn)) => yarn.clone(),
            other => panic!("found {other:?}"),
        }
    }
    use crate::format::Bytes;

    fn dense() -> Value {
        json!({
            "model_type": "qwen3", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 160,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000, "max_position_embeddings": 40960,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
            "sliding_window": null, "attention_bias": false, "rope_scaling": null
        })
    }

    fn sparse() -> Value {
        let mut document = dense();
        for (key, value) in [
            ("model_type", json!("qwen3_moe")),
            ("num_experts", json!(8)),
            ("num_experts_per_tok", json!(2)),
            ("moe_intermediate_size", json!(32)),
            ("norm_topk_prob", json!(true)),
            ("decoder_sparse_step", json!(1)),
            ("mlp_only_layers", json!([])),
            ("num_hidden_layers", json!(4)),
        ] {
            document[key] = value;
        }
        document
    }

    fn with(mut document: Value, changes: Value) -> Result<ModelConfig> {
        for (key, value) in changes.as_object().unwrap() {
            document[key] = value.clone();
        }
        ModelConfig::from_json(&document)
    }

    #[test]
    fn both_spellings_read_alike() {
        let old = ModelConfig::from_json(&dense()).unwrap();
        let mut document = dense();
        for key in ["rope_theta", "rope_scaling", "torch_dtype"] {
            document.as_object_mut().unwrap().remove(key);
        }
        let rope = json!({"rope_theta": 1000000.0, "rope_type": "default"});
        let new = with(document, json!({"rope_parameters": rope, "dtype": "bfloat16"})).unwrap();
        assert_eq!(old, new);
        assert_eq!((old.rope.theta, old.stored_dtype, old.tied), (1e6, Some(Dtype::Bf16), true));

        let old = ModelConfig::from_json(&sparse()).unwrap();
        let mut document = sparse();
        document.as_object_mut().unwrap().remove("num_experts");
        assert_eq!(with(document, json!({"num_local_experts": 8})).unwrap(), old);
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}});
        let documents = [dense(), sparse()].map(|d| with(d, yarn.clone()).unwrap());
        for config in documents.into_iter().chain([ModelConfig::from_json(&dense()).unwrap()]) {
            assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
        }
        let text = ModelConfig::from_json(&dense()).unwrap().to_json().to_string();
        assert!(text.contains(r#""rms_norm_eps":1e-6,"#), "{text}");
    }

    #[test]
    fn head_dim_defaults_to_the_share_of_a_head() {
        assert_eq!(with(dense(), json!({"head_dim": null})).unwrap().head_dim, 16);
        let e = with(dense(), json!({"head_dim": null, "hidden_size": 66})).unwrap_err();
        assert_eq!(e.fault(), Fault::ConfigContradiction);
    }

    #[test]
    fn yarn_is_resolved_as_transformers_does() {
        let rope = |r: Value| with(dense(), json!({ "rope_scaling": r })).map(|c| yarn_of(&c));
        let plain = rope(json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768})).unwrap();
        assert_eq!(plain.attention_factor, 0.1 * 4f64.ln() + 1.0);
        assert_eq!((plain.beta_fast, plain.beta_slow, plain.truncate), (32.0, 1.0, true));
        let implied = rope(json!({"rope_type": "yarn", "original_max_position_embeddings": 20480})).unwrap();
        assert_eq!(implied.factor, 2.0);
        let given = rope(json!({"type": "yarn", "factor": 2.0, "attention_factor": 1.5, "truncate": false})).unwrap();
        assert_eq!((given.attention_factor, given.original_max_position, given.truncate), (1.5, 40960, false));
        let scaled = rope(json!({"type": "yarn", "factor": 2.0, "mscale": 0.5, "mscale_all_dim": 1.0})).unwrap();
        assert_eq!(scaled.attention_factor, (0.05 * 2f64.ln() + 1.0) / (0.1 * 2f64.ln() + 1.0));
    }

    #[test]
    fn experts_lie_where_the_sparse_step_and_the_dense_list_say() {
        let layers = |changes: Value| {
            let config = with(sparse(), changes).unwrap();
            (0..4).map(|l| config.is_moe_layer(l)).collect::<Vec<_>>()
        };
        assert_eq!(layers(json!({})), [true; 4]);
        assert_eq!(layers(json!({"decoder_sparse_step": 2})), [false, true, false, true]);
        assert_eq!(layers(json!({"mlp_only_layers": [1, 1, 3]})), [true, false, true, false]);
        assert!(!ModelConfig::from_json(&dense()).unwrap().is_moe_layer(0));
    }

    #[test]
    fn tensors_are_named_and_shaped_as_hugging_face_does() {
        let config = with(sparse(), json!({"mlp_only_layers": [1], "tie_word_embeddings": false})).unwrap();
        let shapes: BTreeMap<String, Shape> = config.tensor_shapes().into_iter().collect();
        let shape = |name: &str| shapes[name].extents().to_vec();
        assert_eq!(shape("model.embed_tokens.weight"), [300, 64]);
        assert_eq!(shape("model.layers.0.self_attn.k_proj.weight"), [32, 64]);
        assert_eq!(shape("model.layers.0.self_attn.o_proj.weight"), [64, 64]);
        assert_eq!(shape("model.layers.3.self_attn.q_norm.weight"), [16]);
        assert_eq!(shape("model.layers.0.mlp.gate.weight"), [8, 64]);
        assert_eq!(shape("model.layers.2.mlp.experts.7.down_proj.weight"), [64, 32]);
        assert_eq!(shape("model.layers.1.mlp.up_proj.weight"), [160, 64]);
        assert_eq!(shape("lm_head.weight"), [300, 64]);
        // 8 a layer; three dense projections in one layer, 25 of experts in three; embedding, norm, head.
        assert_eq!(shapes.len(), 4 * 8 + 3 + 3 * 25 + 3);
    }

    fn tensors_of(config: &ModelConfig) -> BTreeMap<String, StoredTensor> {
        let empty = Bytes::from(Vec::new()); // the check reads no bytes
        let tensor = |shape| StoredTensor { dtype: Dtype::Bf16, shape, bytes: empty.clone() };
        config.tensor_shapes().into_iter().map(|(name, shape)| (name, tensor(shape))).collect()
    }

    #[test]
    fn tensors_are_held_against_the_configuration() {
        let config = ModelConfig::from_json(&dense()).unwrap();
        let whole = tensors_of(&config);
        config.check_tensors(&whole).unwrap();
        let fault = |change: &dyn Fn(&mut BTreeMap<String, StoredTensor>)| {
            let mut tensors = whole.clone();
            change(&mut tensors);
            config.check_tensors(&tensors).unwrap_err().fault()
        };
        let norm = "model.norm.weight";
        assert_eq!(fault(&|t| drop(t.remove(norm))), Fault::TensorMissing);
        assert_eq!(fault(&|t| t.get_mut(norm).unwrap().shape = Shape::new(&[63]).unwrap()), Fault::TensorShape);
        assert_eq!(fault(&|t| drop(t.insert("bias".into(), t[norm].clone()))), Fault::TensorExtra);
    }

    #[test]
    fn every_tensor_may_have_its_own_dtype() {
        let config = ModelConfig::from_json(&dense()).unwrap();
        let mut tensors = tensors_of(&config);
        for (tensor, dtype) in tensors.values_mut().zip([Dtype::F32, Dtype::Bf16, Dtype::F16].into_iter().cycle()) {
            tensor.dtype = dtype;
        }
        config.check_tensors(&tensors).unwrap();
    }

    #[test]
    fn yarn_serves_what_its_factor_makes_of_the_original_positions() {
        let rope = |more: Value| with(dense(), more).map(|c| (c.max_position, yarn_of(&c).factor));
        let yarn = |factor: f64, original: usize| json!({"rope_scaling": {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}});
        assert_eq!(rope(yarn(4.0, 32768)).unwrap(), (131_072, 4.0), "as the model card writes it");
        assert_eq!(rope(yarn(1.0, 32768)).unwrap(), (40_960, 1.0), "never less than max_position_embeddings");
        assert_eq!(rope(yarn(2.5, 32768)).unwrap().0, 81_920);
        assert_eq!(rope(json!({"rope_scaling": {"type": "yarn", "factor": 4}})).unwrap().0, 163_840);
        assert_eq!(rope(yarn(1e6, 1 << 20)).unwrap().0, MAX_EXTENT);
        let config = with(dense(), yarn(4.0, 32768)).unwrap();
        assert_eq!(ModelConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn a_sliding_window_in_which_no_layer_slides_is_none() {
        let slides = |base: Value, more: Value| {
            let mut document = base;
            document["use_sliding_window"] = true.into();
            document.as_object_mut().unwrap().shift_remove("sliding_window");
            match with(document, more) {
                Ok(_) => false,
                Err(e) => e.fault() == Fault::UnsupportedSlidingWindow,
            }
        };
        assert!(!slides(dense(), json!({})), "transformers' max_window_layers is 28 where the key is absent");
        assert!(!slides(dense(), json!({"max_window_layers": 2, "sliding_window": 4096})));
        assert!(slides(dense(), json!({"max_window_layers": 1, "sliding_window": 4096})));
        assert!(slides(dense(), json!({"max_window_layers": 0})), "the window is 4096 where the key is absent");
        assert!(!slides(dense(), json!({"max_window_layers": 0, "sliding_window": null})));
        let full = json!({"max_window_layers": 0, "layer_types": ["full_attention", "full_attention"]});
        assert!(!slides(dense(), full), "layer_types says which layers slide");
        assert!(slides(sparse(), json!({"max_window_layers": 99})), "all layers of a sparse model slide");
        assert!(!slides(sparse(), json!({"sliding_window": null})));
    }

    #[test]
    fn dtypes_that_differ_are_a_warning_and_whole_numbers_may_have_a_point() {
        let mut document = dense();
        (document["dtype"], document["max_position_embeddings"]) = ("float32".into(), json!(40960.0));
        let mut warnings = Vec::new();
        let config = ModelConfig::read(&document, &mut warnings).unwrap();
        assert_eq!((config.max_position, warnings.len()), (40960, 1));
        assert!(warnings[0].contains("torch_dtype is bf16, dtype f32"), "{warnings:?}");
    }
}
