//! Adapters whose files lie: each lie is an error of its own that names the offender, and nothing has changed.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use squire::backend::Compute;
use squire::error::{Error, Fault};
use squire::format::safetensors;
use squire::model::{ModelConfig, Weights};
use squire::serve::{Cancel, Engine, EngineOptions, ServedModel, Session};
use squire::tensor::{Dtype, Shape};
use squire::text::source::Source;
use tiny_model::{adapter, dense, moe, tiny};

const Q0: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B0: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

type Tensors = Vec<(String, Dtype, Shape, Vec<u8>)>;

/// A model, and a whole adapter of it in a folder.
struct Fixture {
    model: ServedModel,
    _root: tempfile::TempDir,
    folder: PathBuf,
    before: Vec<u32>,
}

/// The bits of what a session on `name` says of some ids.
fn bits(model: &ServedModel, name: &str) -> Vec<u32> {
    let session = Session::with_adapter(model, name).unwrap();
    session.append(&[1], Source::Host).unwrap();
    let rows = session.score(&(2..30).collect::<Vec<i32>>(), 0, &Cancel::default()).unwrap();
    rows.iter().map(|row| row.logprob.to_bits()).collect()
}

impl Fixture {
    fn new(document: Value) -> Fixture {
        let engine = Engine::new(EngineOptions { compute: Compute::F32, ..Default::default() }).unwrap();
        let model = tiny(&engine, &document, Dtype::F32, 5);
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("adapter");
        model.add_adapter("a", adapter(&model, 4, Dtype::F32, 1)).unwrap();
        model.save_adapter(Some("a"), &folder).unwrap();
        let before = bits(&model, "a");
        Fixture { model, _root: root, folder, before }
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.folder.join("adapter_config.json");
        let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut document);
        std::fs::write(path, document.to_string()).unwrap();
    }

    fn tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let path = self.folder.join("adapter_model.safetensors");
        let stored = safetensors::read(&path).unwrap();
        let mut all: Tensors =
            stored.into_iter().map(|(name, t)| (name, t.dtype, t.shape, t.bytes.as_ref().to_vec())).collect();
        change(&mut all);
        let temporary = self.folder.join("t");
        let list = all.iter().map(|(name, dtype, shape, bytes)| (name.as_str(), *dtype, *shape, bytes.as_slice()));
        safetensors::write(&temporary, list).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }

    /// The refusal, which has changed nothing: the name stands for what it stood for, to the bit.
    fn refused(&self) -> Error {
        let (names, revision) = (self.model.adapters(), self.model.current().number);
        let e = self.model.load_adapter("a", &self.folder).expect_err("a lie");
        assert_eq!((self.model.adapters(), self.model.current().number), (names, revision), "{e}");
        assert!(bits(&self.model, "a") == self.before, "{e}");
        e
    }
}

/// What is said of a configuration that lies.
fn config_lies(fault: Fault, key: &str, values: Value) {
    for value in values.as_array().unwrap() {
        let f = Fixture::new(dense());
        f.config(|document| document[key] = value.clone());
        let e = f.refused();
        assert_eq!(e.fault(), fault, "{key} {value}: {e}");
        let names = match key {
            "r" => vec!["r: "],
            "lora_alpha" => vec!["alpha: "],
            _ => vec![key, "target"],
        };
        assert!(names.iter().any(|name| e.message().contains(name)), "{key} {value}: {e}");
        assert!(e.message().contains("adapter_config.json"), "{e}");
    }
}

fn one(tensors: &mut Tensors, name: &str) -> usize {
    tensors.iter().position(|t| t.0 == name).unwrap()
}

#[test]
fn a_whole_adapter_is_the_one_that_was_saved() {
    for document in [dense(), moe()] {
        let f = Fixture::new(document);
        f.model.load_adapter("b", &f.folder).unwrap();
        assert!(bits(&f.model, "b") == f.before);
        // As the state of a model in training names them, in mixed dtypes, in a folder with a card.
        f.tensors(|all| {
            for t in all.iter_mut() {
                t.0 = t.0.replace("lora_A.weight", "lora_A.default.weight").replace("base_model.model.", "module.");
            }
        });
        std::fs::write(f.folder.join("README.md"), "a card").unwrap();
        f.config(|document| {
            document["lora_dropout"] = json!(0.05);
            document["rank_pattern"] = json!({});
            document["modules_to_save"] = json!(null);
        });
        f.model.load_adapter("b", &f.folder).unwrap();
        assert!(bits(&f.model, "b") == f.before, "dropout has no meaning in serving");
    }
}

#[test]
fn a_rank_of_nothing_below_nothing_or_beyond_the_matrix() {
    config_lies(Fault::AdapterForm, "r", json!([0, -4, 1.5, "4", null, 1e9]));
    // 48 is the narrower side of no matrix but k_proj's [32, 48].
    let f = Fixture::new(dense());
    f.config(|document| document["r"] = json!(33));
    let e = f.refused();
    assert!(e.fault() == Fault::AdapterMismatch && e.message().contains("k_proj [32, 48]"), "{e}");
    // One that lies within the matrix is found out by the tensors.
    let f = Fixture::new(dense());
    f.config(|document| document["r"] = json!(8));
    let e = f.refused();
    assert!(e.fault() == Fault::TensorShape && e.message().contains("r = 8") && e.message().contains(Q0), "{e}");
}

#[test]
fn an_alpha_that_is_no_positive_number() {
    config_lies(Fault::AdapterForm, "lora_alpha", json!([0, -1, "16", null, 1e300, 1e-300]));
}

#[test]
fn targets_that_match_nothing_or_have_no_adapters() {
    config_lies(Fault::AdapterForm, "target_modules", json!([[], ["kv_proj"], [3], null]));
    config_lies(
        Fault::UnsupportedAdapter,
        "target_modules",
        json!([["q_proj", "lm_head"], ["embed_tokens"], ["gate"], ["mlp.experts.0.up_proj"], ["norm"], ".*_proj",]),
    );
    // In layers of experts the feed-forward's names are those of the experts' matrices.
    let f = Fixture::new(moe());
    f.config(|document| document["target_modules"] = json!(["q_proj", "up_proj"]));
    let e = f.refused();
    assert!(e.fault() == Fault::AdapterMismatch && e.message().contains("up_proj"), "{e}");
}

#[test]
fn kinds_of_adapters_that_are_not_computed() {
    config_lies(Fault::UnsupportedAdapter, "peft_type", json!(["IA3", null, 3]));
    config_lies(Fault::UnsupportedAdapter, "use_dora", json!([true]));
    config_lies(Fault::UnsupportedAdapter, "fan_in_fan_out", json!([true]));
    config_lies(Fault::UnsupportedAdapter, "bias", json!(["all", "lora_only", true]));
    config_lies(Fault::UnsupportedAdapter, "lora_bias", json!([true]));
    config_lies(Fault::UnsupportedAdapter, "rank_pattern", json!([{"q_proj": 8}]));
    config_lies(Fault::UnsupportedAdapter, "alpha_pattern", json!([{"q_proj": 8}]));
    config_lies(Fault::UnsupportedAdapter, "layers_to_transform", json!([[0], 1]));
    config_lies(Fault::UnsupportedAdapter, "modules_to_save", json!([["lm_head"]]));
    config_lies(Fault::UnsupportedAdapter, "init_lora_weights", json!(["pissa", "pissa_niter_4", "olora"]));
    config_lies(Fault::AdapterForm, "use_rslora", json!([1, "yes"]));
}

#[test]
fn a_missing_tensor() {
    let f = Fixture::new(dense());
    f.tensors(|all| {
        let at = one(all, B0);
        all.remove(at);
    });
    let e = f.refused();
    assert!(e.fault() == Fault::TensorMissing && e.message().contains(B0), "{e}");
}

#[test]
fn an_extra_tensor() {
    for name in
        ["base_model.model.lm_head.lora_A.weight", "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"]
    {
        let f = Fixture::new(dense());
        f.tensors(|all| {
            let at = one(all, Q0);
            let mut extra = all[at].clone();
            extra.0 = name.into();
            all.push(extra);
        });
        let e = f.refused();
        assert!(e.fault() == Fault::TensorExtra && e.message().contains(name), "{e}");
    }
    // Targets that the configuration leaves out are extra too.
    let f = Fixture::new(dense());
    f.config(|document| document["target_modules"] = json!(["q_proj"]));
    assert_eq!(f.refused().fault(), Fault::TensorExtra);
}

#[test]
fn a_tensor_of_another_shape() {
    for (name, shape) in [(Q0, [2, 96]), (B0, [4, 64]), (Q0, [48, 4])] {
        let f = Fixture::new(dense());
        f.tensors(|all| {
            let at = one(all, name);
            all[at].2 = Shape::new(&shape).unwrap();
        });
        let e = f.refused();
        assert!(e.fault() == Fault::TensorShape && e.message().contains(name), "{e}");
    }
}

#[test]
fn two_names_of_one_tensor() {
    let f = Fixture::new(dense());
    f.tensors(|all| {
        let at = one(all, Q0);
        let mut twin = all[at].clone();
        twin.0 = Q0.replace(".weight", ".default.weight");
        all.push(twin);
    });
    assert_eq!(f.refused().fault(), Fault::TensorNames);
}

#[test]
fn numbers_that_are_none() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let f = Fixture::new(dense());
        f.tensors(|all| {
            let at = one(all, B0);
            all[at].3[12..16].copy_from_slice(&value.to_le_bytes());
        });
        let e = f.refused();
        assert!(e.fault() == Fault::NotFinite && e.message().contains(B0), "{e}");
    }
}

#[test]
fn files_that_are_missing_or_no_files_or_broken() {
    let change = |change: &dyn Fn(&Path), fault: Fault, named: &str| {
        let f = Fixture::new(dense());
        change(&f.folder);
        let e = f.refused();
        assert!(e.fault() == fault && e.message().contains(named), "{fault:?}: {e}");
    };
    let config = |folder: &Path| folder.join("adapter_config.json");
    let weights = |folder: &Path| folder.join("adapter_model.safetensors");
    change(&|f| std::fs::remove_file(config(f)).unwrap(), Fault::MissingFile, "adapter_config.json");
    change(&|f| std::fs::remove_file(weights(f)).unwrap(), Fault::MissingFile, "adapter_model.safetensors");
    change(&|f| std::fs::write(config(f), "{").unwrap(), Fault::AdapterForm, "adapter_config.json");
    change(&|f| std::fs::write(config(f), "[]").unwrap(), Fault::AdapterForm, "object");
    change(&|f| std::fs::write(weights(f), "short").unwrap(), Fault::SafetensorsHeaderLength, "adapter_model");
    change(&|f| std::fs::remove_dir_all(f).unwrap(), Fault::MissingFile, "adapter_config.json");
    let folder_in_place = |f: &Path| {
        std::fs::remove_file(weights(f)).unwrap();
        std::fs::create_dir(weights(f)).unwrap();
    };
    change(&folder_in_place, Fault::CannotOpen, "adapter_model");
}

#[test]
fn a_base_that_changed_under_an_adapter() {
    let f = Fixture::new(dense());
    let config: &ModelConfig = f.model.config();
    let engine = f.model.engine();
    let other = Weights::random(config, engine.device(), Dtype::F32, 6, 0.2).unwrap();
    f.model.publish(other, 9).unwrap();
    let e = f.model.load_adapter("b", &f.folder).unwrap_err();
    assert!(e.fault() == Fault::AdapterMismatch && e.message().contains("fingerprint"), "{e}");
    // The one that it was made for takes it again; what PEFT wrote has no fingerprint and is taken at its word.
    let same = Weights::random(config, engine.device(), Dtype::F32, 5, 0.2).unwrap();
    f.model.publish(same, 9).unwrap();
    f.model.load_adapter("b", &f.folder).unwrap();
    assert!(bits(&f.model, "b") == f.before);
    std::fs::remove_file(f.folder.join("squire_adapter.json")).unwrap();
    let other = Weights::random(config, engine.device(), Dtype::F32, 6, 0.2).unwrap();
    f.model.publish(other, 9).unwrap();
    f.model.load_adapter("b", &f.folder).unwrap();
}

#[test]
fn names_that_are_none() {
    let f = Fixture::new(dense());
    for name in ["", "a\n\u{1b}[31mb", &"x".repeat(257)] {
        assert_eq!(f.model.load_adapter(name, &f.folder).unwrap_err().fault(), Fault::BadValue);
    }
    let e = Session::with_adapter(&f.model, "b").map(drop).unwrap_err();
    assert!(e.fault() == Fault::UnknownAdapter && e.message().contains("loaded are a"), "{e}");
}

#[test]
fn a_folder_with_the_hosts_own_files_is_not_replaced() {
    let f = Fixture::new(dense());
    std::fs::write(f.folder.join("notes.txt"), "mine").unwrap();
    assert!(f.model.save_adapter(Some("a"), &f.folder).is_err());
    assert!(f.folder.join("notes.txt").exists() && f.folder.join("adapter_config.json").exists());
}
