//! Every lie that a model folder's files can tell is refused by its own fault, one test a lie; those of weights, tokenizer and
//! template by themselves stand in `hostile_safetensors` and `hostile_text`.

#[path = "support/tiny_tokenizer.rs"]
mod tiny_tokenizer;
#[path = "support/weight_file.rs"]
mod weight_file;

use std::path::Path;

use serde_json::{Value, json};
use squire::error::Fault;
use squire::format::{Bytes, ModelDir, safetensors};
use squire::model::ModelConfig;
use squire::text::{ChatTemplate, RenderOptions, Tokenizer};
use tiny_tokenizer::tiny_tokenizer;
use weight_file::file;

// the folder

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn refused(files: &[(&str, &[u8])]) -> squire::error::Error {
    ModelDir::open(folder(files).path()).expect_err("the folder was opened")
}

/// A weight file of one tensor.
fn weights(name: &str) -> Vec<u8> {
    file(&format!(r#"{{"{name}": {{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}}}"#), 4)
}

#[test]
fn folder_without_config_or_weights() {
    let e = refused(&[("model.safetensors", &weights("t"))]);
    assert_eq!(e.fault(), Fault::MissingFile);
    assert!(e.message().contains("config.json"), "{e}");
    let e = refused(&[("config.json", b"{}")]);
    assert_eq!(e.fault(), Fault::MissingFile);
    assert!(e.message().contains("model.safetensors"), "{e}");
    assert_eq!(ModelDir::open(Path::new("/nowhere/at/all")).unwrap_err().fault(), Fault::MissingFile);
}

#[test]
fn folder_with_documents_that_are_not_objects() {
    let t = weights("t");
    let with = |name: &'static str, bytes: &'static [u8]| {
        refused(&[("config.json", b"{}"), ("model.safetensors", &t), (name, bytes)]).fault()
    };
    for broken in [&b"[]"[..], b"{", b"\xff\xfe", b"{} {}", b"NaN", b"{\"a\": nan}"] {
        assert_eq!(with("config.json", broken), Fault::ConfigForm);
        assert_eq!(with("tokenizer_config.json", broken), Fault::TokenizerConfigForm);
        assert_eq!(with("generation_config.json", broken), Fault::GenerationConfigForm);
    }
    assert_eq!(with("chat_template.jinja", b"\xff"), Fault::TemplateForm);
    assert_eq!(with("tokenizer_config.json", br#"{"chat_template": [{"name": 1}]}"#), Fault::TokenizerConfigForm);
    let deep = "[".repeat(100_000).leak().as_bytes();
    assert_eq!(with("config.json", deep), Fault::ConfigForm);
}

/// What broken downloads leave in place of a file: its first bytes, and what the refusal must say.
const IN_PLACE: [(&[u8], &[&str]); 11] = [
    (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4665d0\nsize 1503300328\n",
        &["Git LFS pointer", "git lfs pull"],
    ),
    (b"\xef\xbb\xbfversion https://git-lfs.github.com/spec/v1\r\noid sha256:4665d0\r\n", &["git lfs pull"]),
    (b"<!DOCTYPE html>\n<html class=\"\"><head><title>Log in</title>", &["HTML page", "download it again"]),
    (b"\n <html><body>429 Too Many Requests</body></html>", &["HTML page"]),
    (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", &["XML answer", "download"]),
    (b"{\"error\":\"Repository not found\"}", &["server's refusal", "signed in"]),
    (b"Entry not found", &["server's refusal", "download"]),
    (b"Invalid username or password.", &["server's refusal"]),
    (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xed\xbd", &["gzip", "gunzip"]),
    (b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl", &["pickle", "safe_serialization=True"]),
    (b"GGUF\x03\x00\x00\x00\x23\x01\x00\x00\x00\x00\x00\x00", &["GGUF"]),
];

#[test]
fn folder_with_something_else_in_place_of_a_file() {
    let t = weights("t");
    let index = br#"{"weight_map": {"t": "s.safetensors"}}"#;
    let documents = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    let more = ["chat_template.jinja", "model.safetensors"];
    let check = |dir: &Path, name: &str, words: &[&str]| {
        let e = ModelDir::open(dir).unwrap_err();
        assert_eq!(e.fault(), Fault::NotTheContent, "{name}: {e}");
        let at = dir.join(name).display().to_string();
        assert_eq!(e.message().matches(&at).count(), 1, "{e}");
        assert!(words.iter().all(|word| e.message().contains(word)), "{name}: {e}");
    };
    for (bytes, words) in IN_PLACE {
        for name in documents.into_iter().chain(more) {
            let dir = folder(&[("config.json", b"{}"), ("model.safetensors", &t), (name, bytes)]);
            check(dir.path(), name, words);
        }
        let sharded = [("config.json", &b"{}"[..]), ("s.safetensors", &t), ("model.safetensors.index.json", index)];
        for name in ["s.safetensors", "model.safetensors.index.json"] {
            let dir = folder(&sharded);
            std::fs::write(dir.path().join(name), bytes).unwrap();
            check(dir.path(), name, words);
        }
    }
    for name in documents.into_iter().chain(["model.safetensors"]) {
        let dir = folder(&[("config.json", b"{}"), ("model.safetensors", &t), (name, b"")]);
        check(dir.path(), name, &["is empty", "download it again"]);
    }
}

#[test]
fn paths_that_are_no_folder_of_a_model() {
    let t = weights("t");
    let said = |path: &Path, fault: Fault, words: &[&str]| {
        let e = ModelDir::open(path).unwrap_err();
        assert_eq!(e.fault(), fault, "{e}");
        assert!(words.iter().all(|word| e.message().contains(word)), "{words:?}: {e}");
    };
    for name in ["Qwen/Qwen3-0.6B", "https://huggingface.co/Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B"] {
        let wanted = ["no folder here", "download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B"];
        said(Path::new(name), Fault::MissingFile, &wanted);
    }
    said(Path::new("models/of/mine"), Fault::MissingFile, &["no folder here", "give the path"]);

    let dir = folder(&[("config.json", b"{}"), ("model.safetensors", &t), ("q4.gguf", b"GGUF"), ("w.bin", b"PK")]);
    let shown = dir.path().display().to_string();
    for name in ["config.json", "model.safetensors"] {
        said(&dir.path().join(name), Fault::NotAModel, &["is a file", "give the folder", &shown]);
    }
    said(&dir.path().join("q4.gguf"), Fault::NotAModel, &["GGUF", "safetensors"]);
    said(&dir.path().join("w.bin"), Fault::NotAModel, &["pickle", "safe_serialization=True"]);

    let within = |files: &[(&str, &[u8])], fault: Fault, words: &[&str]| said(folder(files).path(), fault, words);
    within(&[], Fault::MissingFile, &["empty"]);
    within(&[("q4.gguf", b"GGUF")], Fault::NotAModel, &["q4.gguf", "GGUF", "safetensors"]);
    let config = ("config.json", &b"{}"[..]);
    within(
        &[config, ("pytorch_model.bin", b"PK")],
        Fault::NotAModel,
        &["pytorch_model.bin", "safe_serialization=True"],
    );
    within(&[config, ("model.onnx", b"")], Fault::NotAModel, &["model.onnx", "ONNX"]);
    within(&[config, ("weights.npz", b"")], Fault::NotAModel, &["weights.npz", "MLX"]);
    within(&[config, ("tf_model.h5", b"")], Fault::NotAModel, &["tf_model.h5", "save_pretrained"]);
    let shard = ("model-00001-of-00002.safetensors", &t[..]);
    within(&[config, shard], Fault::MissingFile, &[shard.0, "model.safetensors.index.json", "download"]);
    within(&[config, ("a.safetensors.incomplete", b"")], Fault::MissingFile, &["broken off", "download"]);
    within(&[("notes.txt", b"")], Fault::MissingFile, &["config.json", "notes.txt", "download"]);
    let adapter = [("adapter_config.json", &b"{}"[..]), ("adapter_model.safetensors", &t)];
    within(&adapter, Fault::UnmergedAdapter, &["adapter_config.json", "merge_and_unload"]);

    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("models--Qwen--Qwen3-0.6B");
    let snapshot = model.join("snapshots/abc123");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(model.join("snapshots/older")).unwrap();
    std::fs::create_dir_all(model.join("refs")).unwrap();
    let shown = snapshot.display().to_string();
    for id in ["abc123", "abc123\n"] {
        std::fs::write(model.join("refs/main"), id).unwrap();
        said(&model, Fault::NotAModel, &["hub cache", &shown]);
        said(cache.path(), Fault::NotAModel, &["hub cache", &shown]);
    }
    std::fs::write(model.join("refs/main"), "../../../etc").unwrap();
    said(&model, Fault::NotAModel, &["hub cache", "snapshots"]);

    let outer = tempfile::tempdir().unwrap();
    std::fs::create_dir(outer.path().join("final")).unwrap();
    std::fs::write(outer.path().join("final/config.json"), "{}").unwrap();
    said(outer.path(), Fault::NotAModel, &["one folder down", &outer.path().join("final").display().to_string()]);
}

#[test]
fn folder_with_a_document_too_long_to_be_one() {
    let t = weights("t");
    for (name, fault, most) in [
        ("config.json", Fault::ConfigForm, 1),
        ("generation_config.json", Fault::GenerationConfigForm, 1),
        ("tokenizer_config.json", Fault::TokenizerConfigForm, 16),
        ("tokenizer.json", Fault::TokenizerForm, 64),
        ("chat_template.jinja", Fault::TemplateForm, 1),
        ("model.safetensors.index.json", Fault::IndexForm, 32),
    ] {
        let mut files = vec![("config.json", &b"{}"[..])];
        files.extend((!name.ends_with("index.json")).then_some(("model.safetensors", &t[..])));
        // A sparse file: it takes no room on the disk, and nothing of it is read.
        for length in [(most << 20) + 1, 1 << 40] {
            let dir = folder(&files);
            std::fs::File::create(dir.path().join(name)).unwrap().set_len(length).unwrap();
            let e = ModelDir::open(dir.path()).unwrap_err();
            assert_eq!(e.fault(), fault, "{e}");
            assert!(e.message().contains(name) && e.message().contains(&(most << 20).to_string()), "{e}");
        }
    }
}

/// A megabyte of config.json can be half a million values, each of which takes a hundred bytes.
#[test]
fn folder_with_a_document_of_too_many_values() {
    let t = weights("t");
    let values = |n: usize| format!("{{\"x\": [{}0]}}", "0,".repeat(n));
    for (name, n, fault) in [
        ("config.json", 100_000, Fault::ConfigForm),
        ("generation_config.json", 100_000, Fault::GenerationConfigForm),
        ("tokenizer_config.json", 600_000, Fault::TokenizerConfigForm),
    ] {
        let e = refused(&[("config.json", b"{}"), ("model.safetensors", &t), (name, values(n).as_bytes())]);
        assert_eq!(e.fault(), fault, "{e}");
        assert!(e.message().contains("values"), "{e}");
    }
    let mut tokenizer = tiny_tokenizer();
    tokenizer["more"] = vec![0; 9 << 20].into();
    let e = Tokenizer::from_json(tokenizer.to_string().as_bytes()).unwrap_err();
    assert_eq!(e.fault(), Fault::TokenizerForm);
    assert!(e.message().contains("values"), "{e}");
}

#[cfg(unix)]
#[test]
fn folder_with_no_regular_file_for_a_file_does_not_hang() {
    let t = weights("t");
    let names = ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"];
    for name in names.into_iter().chain(["chat_template.jinja", "model.safetensors", "model.safetensors.index.json"]) {
        let with = |make: &dyn Fn(&Path) -> bool| {
            let dir = folder(&[("config.json", b"{}")]);
            if !name.starts_with("model.") {
                std::fs::write(dir.path().join("model.safetensors"), &t).unwrap();
            }
            let path = dir.path().join(name);
            let _ = std::fs::remove_file(&path);
            if make(&path) {
                let e = ModelDir::open(dir.path()).unwrap_err();
                assert_eq!(e.fault(), Fault::CannotOpen, "{e}");
                assert!(e.message().contains(name) && e.message().contains("regular file"), "{e}");
            }
        };
        with(&|path| std::process::Command::new("mkfifo").arg(path).status().is_ok_and(|status| status.success()));
        with(&|path| std::os::unix::net::UnixListener::bind(path).is_ok());
        with(&|path| std::os::unix::fs::symlink("/dev/zero", path).is_ok());
        with(&|path| std::fs::create_dir(path).is_ok());
    }
}

/// Every document with a long text in the place of each value, and of each key.
#[test]
fn no_message_is_long_whatever_a_document_says() {
    let long = "long ".repeat(40_000);
    let mut config = config();
    let more = json!({"torch_dtype": "float32", "dtype": "float32", "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "rope_parameters": {"rope_type": "default"}, "layer_types": ["full_attention"], "mlp_only_layers": [],
        "quantization_config": null, "hidden_act": "silu", "eos_token_id": [1, 2], "max_window_layers": 1,
        "sliding_window": null, "attention_bias": false});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let generation = json!({"eos_token_id": [1], "temperature": 1.0, "top_p": 0.5, "top_k": 2, "do_sample": true,
        "min_p": 0.0, "repetition_penalty": 1.0});
    let added = json!({"content": "<a>", "special": true});
    let tokenizer_config = json!({"eos_token": added, "bos_token": "<b>", "chat_template": [{"name": "default",
        "template": "{{ messages }}"}], "extra_special_tokens": {"image_token": "<c>"}});
    let index = json!({"metadata": {"total_size": 4}, "weight_map": {"t": "s.safetensors"}});
    let documents = [
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
        ("tokenizer.json", tiny_tokenizer()),
        ("model.safetensors.index.json", index),
    ];
    let mut cases = 0;
    for (name, document) in documents.iter() {
        for changed in with_long_texts(document, &long) {
            let texts: Vec<(&str, String)> = documents
                .iter()
                .map(|(other, document)| (*other, if other == name { &changed } else { document }.to_string()))
                .collect();
            let shard = weights("t");
            let mut files: Vec<(&str, &[u8])> = texts.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
            files.push(("s.safetensors", &shard));
            let dir = folder(&files);
            let mut warnings = Vec::new();
            for e in everything_of(dir.path(), &mut warnings) {
                assert!(e.message().len() < 800, "{name}: {} bytes: {:.300}", e.message().len(), e.message());
            }
            assert!(warnings.iter().all(|warning| warning.len() < 800), "{name}");
            cases += 1;
        }
    }
    for header in [
        format!(r#"{{"{long}": 1}}"#),
        format!(r#"{{"{long}": {{"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}}}"#),
        format!(r#"{{"t": {{"dtype": "{long}", "shape": [1], "data_offsets": [0, 4]}}}}"#),
        format!(r#"{{"t": {{"dtype": "F32", "shape": ["{long}"], "data_offsets": [0, 4]}}}}"#),
        format!(r#"{{"__metadata__": {{"x": ["{long}"]}}}}"#),
    ] {
        let e = safetensors::parse(&Bytes::from(file(&header, 4))).unwrap_err();
        assert!(e.message().len() < 800, "{} bytes", e.message().len());
    }
    for source in [
        format!("{{% {} %}}", long.replace(' ', "")),
        format!("{{{{ messages|{} }}}}", long.replace(' ', "")),
        format!("{{{{ raise_exception('{long}') }}}}"),
        format!("{{{{ messages['{long}'].x }}}}"),
        format!("{{{{ '{long}' - 1 }}}}"),
        format!("{{{{ {{}}|attr('{long}')|first.x }}}}"),
    ] {
        let e =
            ChatTemplate::compile(&source).and_then(|t| t.render(json!([]), &RenderOptions::default())).unwrap_err();
        assert!(e.message().len() < 800, "{} bytes", e.message().len());
    }
    assert!(cases > 150, "{cases}");
}

/// The document with the text in the place of each value and each key, of long lists and objects the first few.
fn with_long_texts(document: &Value, long: &str) -> Vec<Value> {
    let mut all = vec![json!(long), json!([long]), json!({ long: long })];
    match document {
        Value::Array(items) => {
            for n in 0..items.len().min(3) {
                let put = |changed: Value| {
                    let mut items = items.clone();
                    items[n] = changed;
                    Value::Array(items)
                };
                all.extend(with_long_texts(&items[n], long).into_iter().map(put));
            }
        }
        Value::Object(entries) => {
            for key in entries.keys().take(24) {
                let put = |changed: Value| {
                    let mut entries = entries.clone();
                    entries[key] = changed;
                    Value::Object(entries)
                };
                all.extend(with_long_texts(&entries[key], long).into_iter().map(put));
                let mut renamed = entries.clone();
                let value = renamed.remove(key).unwrap();
                renamed.insert(long.into(), value);
                all.push(Value::Object(renamed));
            }
        }
        _ => {}
    }
    all
}

/// Reads a folder part by part; the refusals.
fn everything_of(path: &Path, warnings: &mut Vec<String>) -> Vec<squire::error::Error> {
    let mut refusals = Vec::new();
    match ModelDir::open(path) {
        Err(e) => refusals.push(e),
        Ok(mut dir) => {
            refusals.extend(ModelConfig::read(&dir.config, warnings).err());
            refusals.extend(squire::serve::Documents::read(&mut dir, 300).err());
            refusals.extend(squire::serve::Documents::read(&mut dir, 2).err());
            dir.generation_defaults();
            warnings.append(&mut dir.warnings);
        }
    }
    refusals
}

// the shard index

fn index_lie(map: Value) -> Fault {
    let (shard, index) = (weights("t"), json!({ "weight_map": map }).to_string());
    let files =
        [("config.json", &b"{}"[..]), ("s.safetensors", &shard), ("model.safetensors.index.json", index.as_bytes())];
    refused(&files).fault()
}

#[test]
fn index_that_is_not_of_the_form() {
    assert_eq!(index_lie(json!([])), Fault::IndexForm);
    assert_eq!(index_lie(json!({"t": 1})), Fault::IndexForm);
    let e = refused(&[("config.json", b"{}"), ("model.safetensors.index.json", b"{\"weight_map\": {}")]);
    assert_eq!(e.fault(), Fault::IndexForm);
}

#[test]
fn index_that_names_a_file_outside_the_folder() {
    for shard in
        ["/etc/passwd", "../s.safetensors", "sub/s.safetensors", "..", ".", "", "./s.safetensors", "a\\b", "s\0"]
    {
        assert_eq!(index_lie(json!({ "t": shard })), Fault::IndexPath, "{shard:?}");
    }
}

// A link out of the folder is followed (format/weight_files.rs): the index comes with a download and may name plain
// files only, the link is the user's own. What it leads to is read as every file is.
#[cfg(unix)]
#[test]
fn index_that_names_a_link_to_nothing_or_to_no_weights() {
    let outside = folder(&[("passwd", b"root:x:0:0\n"), ("weights", &weights("t"))]);
    let dir = folder(&[
        ("config.json", b"{}"),
        ("model.safetensors.index.json", br#"{"weight_map": {"t": "s.safetensors"}}"#),
    ]);
    let link = dir.path().join("s.safetensors");
    for (target, fault) in [
        ("nothing", Some(Fault::MissingFile)),
        ("passwd", Some(Fault::SafetensorsHeaderLength)),
        (".", Some(Fault::CannotOpen)),
        ("weights", None),
    ] {
        let target = outside.path().join(target);
        std::os::unix::fs::symlink(&target, &link).unwrap();
        match (ModelDir::open(dir.path()), fault) {
            (Ok(dir), None) => assert_eq!(dir.tensors.len(), 1),
            (Err(e), Some(fault)) => {
                assert_eq!(e.fault(), fault, "{e}");
                assert!(e.message().contains("s.safetensors"), "{e}");
                assert!(fault != Fault::MissingFile || e.message().contains("nothing"), "the target is named: {e}");
            }
            (opened, wanted) => panic!("{opened:?} and not {wanted:?}"),
        }
        std::fs::remove_file(&link).unwrap();
    }
}

#[cfg(unix)]
#[test]
fn folder_with_links_to_nothing() {
    let t = weights("t");
    let files = [("config.json", &b"{}"[..]), ("model.safetensors", &t)];
    for name in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "chat_template.jinja"]
    {
        let dir = folder(&files);
        let _ = std::fs::remove_file(dir.path().join(name));
        std::os::unix::fs::symlink("../../blobs/none", dir.path().join(name)).unwrap();
        let e = ModelDir::open(dir.path()).unwrap_err();
        assert_eq!(e.fault(), Fault::MissingFile, "{e}");
        assert!(e.message().contains(name) && e.message().contains("../../blobs/none"), "{e}");
    }
    let dir = folder(&files);
    std::os::unix::fs::symlink("config.json", dir.path().join("tokenizer.json")).unwrap();
    std::fs::remove_file(dir.path().join("config.json")).unwrap();
    std::os::unix::fs::symlink("tokenizer.json", dir.path().join("config.json")).unwrap();
    assert_eq!(ModelDir::open(dir.path()).unwrap_err().fault(), Fault::CannotOpen, "links in a circle");
    let link = dir.path().join("model");
    std::os::unix::fs::symlink("/nowhere/at/all", &link).unwrap();
    let e = ModelDir::open(&link).unwrap_err();
    assert!(e.fault() == Fault::MissingFile && e.message().contains("/nowhere/at/all"), "{e}");
}

#[test]
fn index_that_names_a_shard_that_is_not_there() {
    assert_eq!(index_lie(json!({"t": "s.safetensors", "u": "none.safetensors"})), Fault::MissingFile);
}

#[test]
fn index_that_names_a_tensor_its_shard_lacks() {
    assert_eq!(index_lie(json!({"t": "s.safetensors", "u": "s.safetensors"})), Fault::IndexTensor);
}

#[test]
fn index_that_keeps_silent_about_a_tensor() {
    assert_eq!(index_lie(json!({"u": "s.safetensors"})), Fault::TensorExtra);
}

#[test]
fn index_whose_tensor_lies_in_two_shards() {
    let (shard, other) = (weights("t"), weights("t"));
    let index = json!({"weight_map": {"t": "a.safetensors", "u": "b.safetensors"}}).to_string();
    let e = refused(&[
        ("config.json", b"{}"),
        ("a.safetensors", &shard),
        ("b.safetensors", &other),
        ("model.safetensors.index.json", index.as_bytes()),
    ]);
    assert_eq!(e.fault(), Fault::SafetensorsDuplicate);
}

// config.json

fn config() -> Value {
    json!({
        "model_type": "qwen3_moe", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 4096,
        "tie_word_embeddings": true, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32
    })
}

/// The fault of each configuration with one key changed.
fn config_lies(fault: Fault, changes: &[(&str, Value)]) {
    assert!(ModelConfig::from_json(&config()).is_ok());
    for (key, value) in changes {
        let mut document = config();
        document[*key] = value.clone();
        let e = ModelConfig::from_json(&document).expect_err(&format!("{key}: {value} was believed"));
        assert_eq!(e.fault(), fault, "{key}: {value}: {e}");
    }
}

#[test]
fn config_that_lacks_a_field_or_has_the_wrong_type() {
    let required = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
    let moe = ["max_position_embeddings", "num_experts", "num_experts_per_tok", "moe_intermediate_size"];
    for key in required.into_iter().chain(moe) {
        let null = json!(null);
        config_lies(Fault::ConfigForm, &[(key, null), (key, json!("4")), (key, json!(-1)), (key, json!(1.5))]);
    }
    config_lies(
        Fault::ConfigForm,
        &[
            ("rope_theta", json!("big")),
            ("tie_word_embeddings", json!(1)),
            ("rope_scaling", json!("yarn")),
            ("mlp_only_layers", json!([-1])),
            ("layer_types", json!("full_attention")),
        ],
    );
    assert_eq!(ModelConfig::from_json(&json!([])).unwrap_err().fault(), Fault::ConfigForm);
}

#[test]
fn config_of_another_architecture() {
    config_lies(
        Fault::UnsupportedArchitecture,
        &[
            ("model_type", json!("gpt2")),
            ("model_type", json!(null)),
            ("layer_types", json!(["full_attention", "linear_attention"])),
        ],
    );
    let mut document = config();
    document["model_type"] = "mamba".into();
    assert!(ModelConfig::from_json(&document).unwrap_err().message().contains("mamba"));
}

#[test]
fn config_that_asks_for_what_is_not_computed() {
    let rope = |value: Value| [("rope_scaling", value.clone()), ("rope_parameters", value)];
    config_lies(Fault::UnsupportedRope, &rope(json!({"rope_type": "longrope"})));
    config_lies(Fault::UnsupportedRope, &rope(json!({"type": "dynamic", "factor": 2})));
    config_lies(Fault::UnsupportedRope, &rope(json!({"rope_type": "default", "partial_rotary_factor": 0.5})));
    config_lies(Fault::UnsupportedRope, &rope(json!({"full_attention": {"rope_type": "default"}})));
    let sliding = json!(["full_attention", "sliding_attention"]);
    let changes = [("use_sliding_window", json!(true)), ("layer_types", sliding)]; // all layers of a sparse model slide
    config_lies(Fault::UnsupportedSlidingWindow, &changes);
    config_lies(Fault::UnsupportedBias, &[("mlp_bias", json!(true))]);
    config_lies(Fault::UnsupportedActivation, &[("hidden_act", json!("gelu"))]);
    let (hub, mlx) = (json!({"quant_method": "fp8"}), json!({"group_size": 64, "bits": 4}));
    config_lies(Fault::UnsupportedQuantisation, &[("quantization_config", hub), ("quantization", mlx)]);
    config_lies(Fault::UnsupportedDtype, &[("torch_dtype", json!("float64")), ("dtype", json!("int8"))]);
}

#[test]
fn config_with_an_extent_of_zero_or_beyond_all_bounds() {
    let extents = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
    let more = ["num_key_value_heads", "head_dim", "max_position_embeddings", "num_experts", "num_experts_per_tok"];
    for key in extents.into_iter().chain(more).chain(["moe_intermediate_size", "decoder_sparse_step"]) {
        config_lies(Fault::ConfigContradiction, &[(key, json!(0)), (key, json!(1u64 << 40)), (key, json!(u64::MAX))]);
    }
}

#[test]
fn config_that_contradicts_itself() {
    let yarn = |more: Value| {
        let mut yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024});
        yarn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("rope_scaling", yarn)
    };
    config_lies(
        Fault::ConfigContradiction,
        &[
            ("num_key_value_heads", json!(3)),
            ("num_key_value_heads", json!(8)),
            ("head_dim", json!(15)),
            ("num_experts_per_tok", json!(9)),
            ("num_local_experts", json!(16)),
            ("mlp_only_layers", json!([2])),
            ("layer_types", json!(["full_attention"])),
            ("rms_norm_eps", json!(0)),
            ("rms_norm_eps", json!(-1e-6)),
            ("rms_norm_eps", json!(1e-300)),
            ("rope_theta", json!(0)),
            ("rope_parameters", json!({"rope_theta": 5})),
            yarn(json!({"factor": 0.5})),
            yarn(json!({"factor": 1e300})),
            yarn(json!({"original_max_position_embeddings": 0})),
            yarn(json!({"beta_fast": 1, "beta_slow": 2})),
            yarn(json!({"attention_factor": -1})),
        ],
    );
}

#[test]
fn config_whose_weights_no_memory_could_hold() {
    let most = json!(i32::MAX);
    config_lies(Fault::ConfigContradiction, &[("num_hidden_layers", most.clone()), ("num_experts", most.clone())]);
    let mut document = config();
    for key in ["vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads"] {
        document[key] = most.clone();
    }
    document["num_key_value_heads"] = 1.into();
    assert_eq!(ModelConfig::from_json(&document).unwrap_err().fault(), Fault::ConfigContradiction);
}
