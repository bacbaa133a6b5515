//! Model folders as people have them: heads that config.json is wrong about, wrapped names, mixed dtypes, fused experts.
//! Each is read as the plain folder with the same numbers is, to the bit, and a folder saved from it loads the same
//! without a word.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::{Config, Distiller, EpisodeSpec, Replay};
use squire::error::Fault;
use squire::format::safetensors;
use squire::model::Parameters;
use squire::serve::{Cancel, Engine, EngineOptions, Level, LoadOptions, Log, ServedModel, Session};
use squire::tensor::{Dtype, Shape};
use squire::text::source::Source;
use tiny_model::{dense, moe, tiny};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const NORM: &str = "model.norm.weight";

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::default();
    change(&mut options);
    Engine::new(options).unwrap()
}

/// A tensor of a folder under test.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Shape,
    bytes: Vec<u8>,
}

impl Stored {
    /// The same numbers in f32, which holds all of bf16 and f16.
    fn as_f32(&self) -> Stored {
        let numbers = self.bytes.chunks_exact(2).map(|b| match self.dtype {
            Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
            _ => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        });
        Stored { dtype: Dtype::F32, shape: self.shape, bytes: numbers.flat_map(f32::to_le_bytes).collect() }
    }

    /// Other numbers of the same shape: the rows in reverse order.
    fn other(&self) -> Stored {
        let row = self.bytes.len() / self.shape.extents()[0];
        Stored { bytes: self.bytes.chunks_exact(row).rev().flatten().copied().collect(), ..self.clone() }
    }
}

type Tensors = BTreeMap<String, Stored>;

struct Folder {
    _root: tempfile::TempDir,
    path: PathBuf,
}

impl Folder {
    /// A saved tiny model.
    fn new(document: &Value, dtype: Dtype) -> Folder {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("model");
        tiny(&engine(|_| {}), document, dtype, 7).save(&path).unwrap();
        Folder { _root: root, path }
    }

    fn tensors(&self) -> Tensors {
        let of = |t: safetensors::StoredTensor| Stored {
            dtype: t.dtype,
            shape: t.shape,
            bytes: t.bytes.as_slice().to_vec(),
        };
        let file = self.path.join("model.safetensors");
        safetensors::read(&file).unwrap().into_iter().map(|(name, t)| (name, of(t))).collect()
    }

    fn with_tensors(self, change: impl FnOnce(&mut Tensors)) -> Folder {
        let mut tensors = self.tensors();
        change(&mut tensors);
        let list = tensors.iter().map(|(name, t)| (name.as_str(), t.dtype, t.shape, &t.bytes[..]));
        safetensors::write(&self.path.join("model.safetensors"), list).unwrap();
        self
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.path.join("config.json")).unwrap()).unwrap()
    }

    fn with_config(self, change: impl FnOnce(&mut Value)) -> Folder {
        let mut config = self.config();
        change(&mut config);
        self.with_file("config.json", &config.to_string())
    }

    fn with_file(self, name: &str, text: &str) -> Folder {
        std::fs::write(self.path.join(name), text).unwrap();
        self
    }

    fn load(&self, engine: &Engine) -> ServedModel {
        engine.load(&self.path, LoadOptions::default()).unwrap()
    }

    fn plan(&self) -> Value {
        engine(|_| {}).plan(&self.path, LoadOptions::default()).unwrap()
    }
}

/// Bits of all log-probs of all ids at some positions.
fn distributions(model: &ServedModel) -> Vec<Vec<(i32, u32)>> {
    let session = Session::new(model).unwrap();
    session.append(&[1], Source::Host).unwrap();
    let ids: Vec<i32> = (0..24).map(|i| (i * 37 + 5) % 301).collect();
    let rows = session.score(&ids, 301, &Cancel::default()).unwrap();
    rows.into_iter().map(|r| r.top.into_iter().map(|(id, p)| (id, p.to_bits())).collect()).collect()
}

/// The model is the other one to the bit, in both ways of computing; what is saved from it is so too, and says so.
fn assert_same(folder: &Folder, wanted: &Folder) {
    for compute in [Compute::Bf16, Compute::F32] {
        let engine = engine(|o| o.compute = compute);
        let (model, wanted) = (folder.load(&engine), distributions(&wanted.load(&engine)));
        assert!(distributions(&model) == wanted, "{}", compute.name());
        let again = folder._root.path().join("again");
        model.save(&again).unwrap();
        let loaded = engine.load(&again, LoadOptions::default()).unwrap();
        assert!(distributions(&loaded) == wanted, "saved, {}", compute.name());
        assert_eq!(loaded.warnings(), [""; 0]);
        assert_eq!(loaded.info()["weight_dtype"], model.info()["weight_dtype"]);
    }
    assert_eq!(folder.plan()["weight_bytes"], folder.load(&engine(|_| {})).info()["weight_bytes"]);
    assert_eq!(folder.plan()["parameters"], folder.load(&engine(|_| {})).info()["parameters"]);
}

fn warnings(folder: &Folder) -> Vec<String> {
    let model = folder.load(&engine(|_| {}));
    assert_eq!(json!(model.warnings()), folder.plan()["warnings"], "the plan warns of the same");
    assert_eq!(json!(model.warnings()), model.info()["warnings"]);
    model.warnings().to_vec()
}

fn refusal(path: &Path) -> (Fault, String) {
    let engine = engine(|_| {});
    let e = engine.load(path, LoadOptions::default()).map(|_| ()).unwrap_err();
    let plan = engine.plan(path, LoadOptions::default()).unwrap_err();
    assert_eq!(e.message(), plan.message(), "the plan refuses alike");
    let shown = path.display().to_string();
    assert_eq!(e.message().matches(&shown).count(), 1, "the path stands once: {e}");
    (e.fault(), e.message().to_string())
}

fn untied() -> Value {
    let mut document = dense();
    document["tie_word_embeddings"] = false.into();
    document
}

// heads

#[test]
fn a_head_that_differs_from_the_embedding_is_used_whatever_the_flag_says() {
    for as_f32 in [false, true] {
        let head = |t: &mut Tensors| {
            let other = t[EMBEDDING].other();
            t.insert(HEAD.into(), if as_f32 { other.as_f32() } else { other });
        };
        let wanted = Folder::new(&untied(), Dtype::Bf16).with_tensors(|t| head(t));
        let folder = Folder::new(&untied(), Dtype::Bf16)
            .with_tensors(|t| head(t))
            .with_config(|c| c["tie_word_embeddings"] = true.into());
        assert_same(&folder, &wanted);
        let told = warnings(&folder);
        assert!(told.len() == 1 && told[0].contains("lm_head.weight is used"), "{told:?}");
        assert_eq!(warnings(&wanted), [""; 0]);
        let model = folder.load(&engine(|_| {}));
        assert!(!model.config().tied);
        let saved = folder._root.path().join("again");
        let config: Value = serde_json::from_slice(&std::fs::read(saved.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], false);
    }
}

#[test]
fn a_head_equal_to_the_embedding_is_neither_used_nor_counted_nor_spoken_of() {
    let plain = Folder::new(&dense(), Dtype::Bf16);
    let bytes = plain.plan()["weight_bytes"].as_u64().unwrap();
    for as_f32 in [false, true] {
        let folder = Folder::new(&dense(), Dtype::Bf16).with_tensors(|t| {
            let same = if as_f32 { t[EMBEDDING].as_f32() } else { t[EMBEDDING].clone() };
            t.insert(HEAD.into(), same);
        });
        assert_same(&folder, &plain);
        assert_eq!(warnings(&folder), [""; 0]);
        assert_eq!(folder.plan(), plain.plan());
        let fits = engine(|o| o.host_budget = bytes);
        assert_eq!(folder.load(&fits).current().weights.bytes(), bytes);
    }
}

#[test]
fn without_a_head_the_embedding_is_used_whatever_the_flag_says() {
    let wanted = Folder::new(&dense(), Dtype::Bf16);
    for flag in [json!(false), Value::Null] {
        let folder = Folder::new(&dense(), Dtype::Bf16).with_config(|c| {
            c["tie_word_embeddings"] = flag.clone();
            if flag.is_null() {
                c.as_object_mut().unwrap().shift_remove("tie_word_embeddings");
            }
        });
        assert_same(&folder, &wanted);
        let told = warnings(&folder);
        assert!(told.len() == 1 && told[0].contains("no lm_head.weight"), "{told:?}");
    }
}

#[test]
fn warnings_are_logged_with_the_folder_when_the_model_is_loaded() {
    let folder = Folder::new(&untied(), Dtype::Bf16)
        .with_tensors(|t| drop(t.remove(HEAD)))
        .with_file("generation_config.json", r#"{"top_k": -1, "top_p": 0, "min_p": 7}"#)
        .with_file("adapter_config.json", "{}");
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = lines.clone();
    let log = Log(Arc::new(move |level, part: &str, line: &str| {
        sink.lock().unwrap().push((level, part.to_string(), line.to_string()))
    }));
    folder.load(&engine(|o| (o.log, o.host_budget) = (Some(log), 1 << 30)));
    let lines = lines.lock().unwrap();
    let warned: Vec<&String> = lines
        .iter()
        .filter(|(level, part, _)| (*level, &part[..]) == (Level::Warning, "model"))
        .map(|l| &l.2)
        .collect();
    assert_eq!(warned.len(), 5, "{lines:?}");
    for (line, word) in warned.iter().zip(["adapter", "lm_head", "top_p", "top_k", "min_p"]) {
        assert!(line.contains(word) && line.starts_with(&folder.path.display().to_string()), "{line}");
    }
}

// names

#[test]
fn wrapped_names_are_read_as_plain_ones() {
    for document in [dense(), moe()] {
        let wanted = Folder::new(&document, Dtype::Bf16);
        for (inner, head) in [
            ("", ""),
            ("module.model.", "module."),
            ("_orig_mod.model.", "_orig_mod."),
            ("base_model.model.model.", "base_model.model."),
            ("model.language_model.", ""),
            ("language_model.model.", "language_model."),
        ] {
            let folder = Folder::new(&document, Dtype::Bf16).with_tensors(|t| {
                *t = std::mem::take(t)
                    .into_iter()
                    .map(|(name, tensor)| match name.strip_prefix("model.") {
                        Some(rest) => (format!("{inner}{rest}"), tensor),
                        None => (format!("{head}{name}"), tensor),
                    })
                    .collect();
                let frequencies = Stored { dtype: Dtype::F32, shape: Shape::new(&[1]).unwrap(), bytes: vec![0; 4] };
                t.insert(format!("{inner}layers.0.self_attn.rotary_emb.inv_freq"), frequencies);
            });
            assert_same(&folder, &wanted);
            assert_eq!(warnings(&folder), [""; 0], "{inner}");
        }
    }
}

#[test]
fn tensors_beside_the_language_model_are_refused_by_name() {
    for (name, fault) in [
        ("model.visual.merger.weight", Fault::TensorExtra),
        ("score.weight", Fault::TensorExtra),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", Fault::UnmergedAdapter),
        ("module.model.norm.weight", Fault::TensorNames),
    ] {
        let folder = Folder::new(&dense(), Dtype::Bf16).with_tensors(|t| drop(t.insert(name.into(), t[NORM].clone())));
        let (found, message) = refusal(&folder.path);
        assert_eq!(found, fault, "{message}");
        assert!(message.contains(name), "{message}");
    }
}

// dtypes

#[test]
fn norms_stored_as_f32_among_bf16_give_the_same_bits() {
    for document in [dense(), moe()] {
        let wanted = Folder::new(&document, Dtype::Bf16);
        let rare = |t: &mut Tensors| {
            // Norms of ones say little.
            let list = t.iter_mut().filter(|(name, _)| name.contains("norm"));
            for (i, (_, t)) in list.enumerate() {
                for (j, number) in t.bytes.chunks_exact_mut(2).enumerate() {
                    let x = half::bf16::from_f32(0.5 + ((i * 7 + j * 3) % 32) as f32 / 32.0);
                    number.copy_from_slice(&x.to_le_bytes());
                }
            }
        };
        let wanted = wanted.with_tensors(rare);
        for chosen in ["norm", NORM] {
            let folder = Folder::new(&document, Dtype::Bf16).with_tensors(rare).with_tensors(|t| {
                t.iter_mut().filter(|(name, _)| name.contains(chosen)).for_each(|(_, t)| *t = t.as_f32());
            });
            assert_ne!(folder.load(&engine(|_| {})).info()["weight_dtype"], "bf16");
            assert_same(&folder, &wanted);
            assert_eq!(warnings(&folder), [""; 0]);
        }
    }
}

#[test]
fn any_mixture_of_dtypes_means_its_numbers() {
    // In f32 compute every product is taken the same way whatever the weights are stored in.
    let exact = engine(|o| o.compute = Compute::F32);
    for (document, stored) in [(dense(), Dtype::Bf16), (moe(), Dtype::Bf16), (moe(), Dtype::F16)] {
        let wanted = Folder::new(&document, stored);
        let folder = Folder::new(&document, stored).with_tensors(|t| {
            t.values_mut().step_by(2).for_each(|t| *t = t.as_f32());
        });
        let model = folder.load(&exact);
        assert!(model.info()["weight_dtype"].as_str().unwrap().contains("f32 x"), "{}", model.info());
        assert!(distributions(&model) == distributions(&wanted.load(&exact)));
        let again = folder._root.path().join("again");
        model.save(&again).unwrap();
        let kept = |path: &Path| -> Vec<(String, Dtype)> {
            let list = safetensors::read(&path.join("model.safetensors")).unwrap();
            let mut list: Vec<_> = list.into_iter().map(|(name, t)| (name, t.dtype)).collect();
            list.sort_by(|a, b| a.0.cmp(&b.0));
            list
        };
        assert_eq!(kept(&again), kept(&folder.path), "each tensor is saved in its own dtype");
    }
}

#[test]
fn routers_stored_as_f32_among_bf16_load_in_bf16_compute() {
    let folder = Folder::new(&moe(), Dtype::Bf16).with_tensors(|t| {
        t.iter_mut().filter(|(name, _)| name.ends_with("mlp.gate.weight")).for_each(|(_, t)| *t = t.as_f32());
    });
    let same = Folder::new(&moe(), Dtype::Bf16).with_tensors(|t| {
        t.iter_mut().filter(|(name, _)| name.ends_with("mlp.gate.weight")).for_each(|(_, t)| *t = t.as_f32());
    });
    assert_same(&folder, &same);
    // Products of f32 weights add up in another order (docs/numerics.md), so the bits differ, and little else.
    let engine = engine(|_| {});
    let plain = distributions(&Folder::new(&moe(), Dtype::Bf16).load(&engine));
    let mixed = distributions(&folder.load(&engine));
    let of = |rows: &[Vec<(i32, u32)>]| -> Vec<BTreeMap<i32, f32>> {
        rows.iter().map(|row| row.iter().map(|&(id, p)| (id, f32::from_bits(p))).collect()).collect()
    };
    let gaps = of(&plain)
        .into_iter()
        .zip(of(&mixed))
        .map(|(a, b)| a.into_iter().map(|(id, p)| (p.exp() - b[&id].exp()).abs()).fold(0.0f32, f32::max));
    assert!(gaps.fold(0.0, f32::max) < 0.05);
}

#[test]
fn a_training_step_of_mixed_dtypes_is_that_of_the_same_numbers() {
    for document in [dense(), moe()] {
        // f32 compute: there a product does not depend on the dtype that a matrix is stored in.
        let engine = engine(|o| o.compute = Compute::F32);
        let plain = Folder::new(&document, Dtype::Bf16);
        let mixed = Folder::new(&document, Dtype::Bf16).with_tensors(|t| {
            t.values_mut().step_by(2).for_each(|t| *t = t.as_f32());
        });
        let settings = Config::from_value(&json!({"preset": "sft", "optimizer": {"learning_rate": 1e-3}})).unwrap();
        let step = |folder: &Folder| {
            let student = folder.load(&engine);
            let d = Distiller::new(&student, None, settings.clone()).unwrap();
            let episode = d.begin(EpisodeSpec::default()).unwrap();
            episode.observe_ids(&[5, 60, 200]).unwrap();
            episode.decide().unwrap();
            episode.replay(Replay::Ids(&[7, 300, 8, 9])).unwrap();
            episode.outcome(None, true).unwrap();
            episode.end(1.0, Some(true)).unwrap();
            let mut update = d.build(0, &Cancel::default(), &mut |_, _| true).unwrap();
            let bits = |w: &Parameters| -> Vec<Vec<u32>> {
                w.tensors().iter().map(|(_, t)| t.to_f32().iter().map(|x| x.to_bits()).collect()).collect()
            };
            let gradients = bits(update.gradients());
            d.apply(&mut update).unwrap();
            d.publish().unwrap();
            let checkpoint = folder._root.path().join("run");
            d.save(&checkpoint).unwrap();
            (gradients, student, checkpoint)
        };
        let ((wanted, plain_student, run), (found, mixed_student, mixed_run)) = (step(&plain), step(&mixed));
        assert!(found == wanted, "gradients");
        let (a, b) = (plain_student.current(), mixed_student.current());
        let mut kept = 0;
        for ((name, a), (_, b)) in a.weights.tensors().into_iter().zip(b.weights.tensors()) {
            let rounded: Vec<f32> = b.to_f32().iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
            assert!(rounded == a.to_f32(), "{name} is the same master, rounded to another dtype");
            kept += usize::from(b.to_f32() != rounded);
        }
        assert!(kept > 3, "what is stored as f32 keeps the step's digits");
        assert!(mixed_student.info()["weight_dtype"].as_str().unwrap().contains("bf16 x"));
        let resumed = Distiller::resume(&mixed.load(&engine), None, settings.clone(), &mixed_run).unwrap();
        for ((name, a), (_, b)) in resumed.student().current().weights.tensors().into_iter().zip(b.weights.tensors()) {
            assert!((a.dtype(), a.bytes()) == (b.dtype(), b.bytes()), "{name} is resumed in its own dtype");
        }
        let other = Distiller::resume(&mixed.load(&engine), None, settings.clone(), &run).err().unwrap();
        assert_eq!(other.fault(), Fault::CheckpointMismatch);
    }
}

// fused experts

/// Experts as transformers 5 saves them: gate over up in one tensor for all experts, down in another.
fn fuse(t: &mut Tensors, layers: &[usize]) {
    for layer in layers {
        let mut take = |parts: &[&str], name: &str, rows: usize, columns: usize| {
            let (mut bytes, mut dtype) = (Vec::new(), Dtype::F32);
            for expert in 0..6 {
                for part in parts {
                    let one = t.remove(&format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight")).unwrap();
                    bytes.extend(one.bytes);
                    dtype = one.dtype;
                }
            }
            let shape = Shape::new(&[6, parts.len() * rows, columns]).unwrap();
            t.insert(format!("model.layers.{layer}.mlp.experts.{name}"), Stored { dtype, shape, bytes });
        };
        take(&["gate_proj", "up_proj"], "gate_up_proj", 24, 48);
        take(&["down_proj"], "down_proj", 48, 24);
    }
}

#[test]
fn fused_experts_are_read_as_one_tensor_an_expert_is() {
    for dtype in [Dtype::Bf16, Dtype::F32] {
        let wanted = Folder::new(&moe(), dtype);
        for layers in [&[0, 2][..], &[2]] {
            let folder = Folder::new(&moe(), dtype).with_tensors(|t| fuse(t, layers));
            assert_same(&folder, &wanted);
            assert_eq!(warnings(&folder), [""; 0]);
        }
    }
}

#[test]
fn fused_experts_of_another_layout_are_refused_naming_both_forms() {
    let at = "model.layers.0.mlp.experts.gate_up_proj";
    for extents in [[6, 48, 48], [6, 24, 48], [5, 48, 48], [6, 96, 24]] {
        let folder = Folder::new(&moe(), Dtype::Bf16).with_tensors(|t| {
            fuse(t, &[0]);
            let shape = Shape::new(&extents).unwrap();
            // 2F is C here, so the gates' layout says nothing and the other tensor's must.
            let name = if extents == [6, 48, 48] { "model.layers.0.mlp.experts.down_proj" } else { at };
            let bytes = vec![0; shape.elements() * 2];
            t.insert(name.into(), Stored { dtype: Dtype::Bf16, shape, bytes });
        });
        let (fault, message) = refusal(&folder.path);
        assert_eq!(fault, Fault::TensorShape);
        assert!(message.contains("(experts, outputs, inputs)") && message.contains(".mlp.experts.0."), "{message}");
    }
    let twice = Folder::new(&moe(), Dtype::Bf16).with_tensors(|t| {
        let one = t["model.layers.0.mlp.experts.0.up_proj.weight"].clone();
        fuse(t, &[0]);
        t.insert("model.layers.0.mlp.experts.0.up_proj.weight".into(), one);
    });
    assert_eq!(refusal(&twice.path).0, Fault::TensorNames);
    let half = Folder::new(&moe(), Dtype::Bf16).with_tensors(|t| {
        fuse(t, &[0]);
        t.remove("model.layers.0.mlp.experts.down_proj");
    });
    assert_eq!(refusal(&half.path).0, Fault::TensorMissing);
}

// positions

#[test]
fn yarn_as_the_model_card_writes_it_serves_the_longer_context() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    let with = |positions: usize| {
        Folder::new(&dense(), Dtype::Bf16).with_config(|c| {
            (c["max_position_embeddings"], c["rope_scaling"]) = (positions.into(), yarn.clone());
        })
    };
    let (card, plain) = (with(40960), with(131_072));
    assert_eq!(card.plan()["max_context"], 131_072);
    let engine = engine(|_| {});
    let asked = LoadOptions { max_context: 131_072, ..LoadOptions::default() };
    assert_eq!(engine.load(&card.path, asked).unwrap().info()["max_context"], 131_072);
    let beyond = engine.load(&card.path, LoadOptions { max_context: 131_073, ..asked }).map(|_| ()).unwrap_err();
    assert_eq!(beyond.fault(), Fault::BadOption);
    assert!(beyond.message().contains("131073") && beyond.message().contains("131072"), "{beyond}");
    assert_same(&card, &plain);
    let saved = card._root.path().join("again");
    assert_eq!(engine.plan(&saved, LoadOptions::default()).unwrap()["max_context"], 131_072);
}

// documents

#[test]
fn documents_that_python_and_editors_wrote_are_read() {
    let wanted = Folder::new(&dense(), Dtype::Bf16);
    let folder = Folder::new(&dense(), Dtype::Bf16).with_config(|c| {
        c["max_position_embeddings"] = json!(512.0);
        c["num_hidden_layers"] = json!(3.0);
    });
    let mut text = folder.config().to_string();
    text.pop();
    let text = format!("\u{feff}{text}, \"router_jitter\": NaN, \"limits\": [-Infinity, Infinity]}}");
    let folder = folder.with_file("config.json", &text).with_file("generation_config.json", "\u{feff}{\"top_k\": 5}");
    assert_same(&folder, &wanted);
    assert_eq!(warnings(&folder), [""; 0]);
    assert_eq!(folder.load(&engine(|_| {})).generation_defaults().top_k, Some(5));
    let saved = std::fs::read_to_string(folder._root.path().join("again/config.json")).unwrap();
    assert!(saved.contains("\"router_jitter\": NaN") && saved.contains("-Infinity"), "{saved}");
    // Where the number is needed, it is refused by name.
    let broken = Folder::new(&dense(), Dtype::Bf16);
    let text = broken.config().to_string().replace("\"rms_norm_eps\":1e-6", "\"rms_norm_eps\":NaN");
    let (fault, message) = refusal(&broken.with_file("config.json", &text).path);
    assert!(fault == Fault::ConfigForm && message.contains("rms_norm_eps") && message.contains("NaN"), "{message}");
}
