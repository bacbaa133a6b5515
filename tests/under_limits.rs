//! Calls in a process whose address space is limited, at many limits from where the process just starts: each ends with
//! success or a fault, none with the process. Every case runs on its process's first thread: on another, glibc makes an
//! arena of 64 MiB of address space, and where it cannot, each small allocation takes a page, which nobody can foresee.

#[path = "support/child.rs"]
mod child;
#[path = "support/tiny_tokenizer.rs"]
mod tiny_tokenizer;

use std::path::Path;

use child::Limits;
use serde_json::{Value, json};
use squire::distill::{Config, Distiller, EpisodeSpec, Replay};
use squire::error::{Error, Fault, Result, Status};
use squire::format::{Companions, ModelDir, save_model};
use squire::memory;
use squire::model::ModelConfig;
use squire::serve::{Cancel, Documents, Engine, EngineOptions, LoadOptions, Session};
use squire::tensor::Dtype;
use squire::text::{ChatTemplate, Control, Json, RenderOptions, Room, Tokenizer, Watch};

/// A tokenizer of 18,000 tokens: every two and three letters are one.
fn tokenizer() -> Value {
    let mut document = tiny_tokenizer::tiny_tokenizer();
    let letters = 'a'..='z';
    let pairs = || letters.clone().flat_map(|a| letters.clone().map(move |b| (a.to_string(), b.to_string())));
    let triples = pairs().flat_map(|(a, b)| letters.clone().map(move |c| (format!("{a}{b}"), c.to_string())));
    let mut next = 1_000;
    for (left, right) in pairs().chain(triples) {
        let vocabulary = document["model"]["vocab"].as_object_mut().unwrap();
        if !vocabulary.contains_key(&format!("{left}{right}")) {
            vocabulary.insert(format!("{left}{right}"), next.into());
            next += 1;
            document["model"]["merges"].as_array_mut().unwrap().push(json!([left, right]));
        }
    }
    document
}

fn configuration() -> Value {
    json!({
        "model_type": "qwen3", "vocab_size": 20_000, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "rope_theta": 1e4, "max_position_embeddings": 4096, "tie_word_embeddings": true, "eos_token_id": 266
    })
}

/// Writes a model with that tokenizer.
fn write_model(dir: &Path) {
    let config = configuration();
    let shapes = ModelConfig::from_json(&config).unwrap().tensor_shapes();
    let zeros = vec![0; 20_000 * 16 * 2];
    let tensors =
        shapes.iter().map(|(name, shape)| (name.as_str(), Dtype::Bf16, *shape, &zeros[..shape.elements() * 2]));
    let templates = squire::format::ChatTemplates::of(include_str!("golden/qwen3_chat_template.jinja"));
    let tokenizer = tokenizer().to_string();
    let companions =
        Companions { tokenizer: Some(tokenizer.as_bytes()), chat_templates: Some(&templates), ..Companions::default() };
    save_model(dir, &config, tensors, companions).unwrap();
}

/// The whole of a load, and a chat.
fn load(path: &Path) -> Result<()> {
    let engine = Engine::new(EngineOptions { n_threads: 1, caller_driven: true, ..EngineOptions::default() })?;
    let model = engine.load(path, LoadOptions::default())?;
    let session = Session::new(&model)?;
    let messages = json!([{"role": "user", "content": "hello there ".repeat(100)}]);
    session.append_chat(messages, &RenderOptions::default())?;
    Ok(())
}

/// A folder's documents alone.
fn documents(path: &Path) -> Result<()> {
    let mut dir = ModelDir::open(path)?;
    Documents::read(&mut dir, 20_000).map(|_| ())
}

/// A text of eight million bytes, one piece of it half.
fn tokenize(path: &Path) -> Result<()> {
    memory::room_for(24 << 20, "the test's own texts")?;
    let json = std::fs::read(path.join("tokenizer.json"));
    let tokenizer = Tokenizer::from_json(&json.map_err(|e| Error::new(Fault::OutOfHostMemory, e.to_string()))?)?;
    let text = "hello wörld 1234567890 ".repeat(180_000) + &"abcdefgh".repeat(500_000);
    let mut ids = Vec::new();
    tokenizer.encode_within(&text, Control::None, Room { ids: usize::MAX, watch: &Watch::default() }, &mut ids)
}

/// A request of four million bytes, and a template that makes as much as it may.
fn chat(_: &Path) -> Result<()> {
    memory::room_for(16 << 20, "the test's own text")?;
    let request = format!(r#"{{"messages": [{{"role": "user", "content": "{}"}}]}}"#, "word ".repeat(800_000));
    let template = ChatTemplate::compile(
        "{{ messages }}{% for i in range(9) %}{{ messages[0].content|upper|length }}{% endfor %}",
    )?;
    let Json::Object(mut document) = Json::parse(&request)? else { panic!("an object") };
    template.render(document.remove(0).1, &RenderOptions::default()).map(|_| ())
}

/// Updates of an adapter and of all weights, on episodes of 1,500 tokens. Refused, they say what was needed, and the episodes
/// wait on.
fn update(_: &Path) -> Result<()> {
    let engine = Engine::new(EngineOptions { n_threads: 1, caller_driven: true, ..EngineOptions::default() })?;
    // Without a tokenizer, which would take most.
    let model = engine.random_model(ModelConfig::from_json(&configuration())?, Dtype::Bf16, 1, 0)?;
    for lora in [json!({"rank": 4}), json!(null)] {
        let settings = json!({"preset": "sft", "lora": lora, "recompute": "layer"});
        let d = Distiller::new(&model, None, Config::from_value(&settings)?)?;
        let ids: Vec<i32> = (0..1500).map(|i| i * 31 % 18_000).collect();
        for _ in 0..2 {
            let episode = d.begin(EpisodeSpec::default())?;
            episode.observe_ids(&ids[..4])?;
            episode.decide()?;
            episode.replay(Replay::Ids(&ids[4..]))?;
            episode.outcome(None, true)?;
            episode.end(1.0, Some(true))?;
        }
        let built = d.build(0, &Cancel::default(), &mut |_, _| true).inspect_err(|e| {
            assert!(e.bytes().is_some(), "what was needed and free: {e}");
            assert_eq!(d.n_waiting(), 2, "{e}");
        });
        let mut built = built?;
        d.apply(&mut built).inspect_err(|e| {
            assert!(e.bytes().is_some(), "what was needed and free: {e}");
            assert_eq!(d.step(), 0, "{e}");
        })?;
    }
    Ok(())
}

type Call = fn(&Path) -> Result<()>;
const CALLS: [(&str, Call); 6] = [
    ("start", |_| Ok(())),
    ("documents", documents),
    ("load", load),
    ("tokenize", tokenize),
    ("chat", chat),
    ("update", update),
];

fn main() {
    const TEST: &str = "no_limit_of_memory_ends_the_process";
    if std::env::args().any(|argument| argument == "--list") {
        return println!("{TEST}: test");
    }
    if let Some(case) = child::case() {
        let (call, path) = case.split_once(' ').unwrap();
        let (_, call) = CALLS.iter().find(|(name, _)| *name == call).unwrap();
        match call(Path::new(path)) {
            Ok(()) => child::say("success"),
            Err(e) => child::say(format_args!("{:?} {e:.120}", e.fault())),
        }
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("model");
    write_model(&dir);
    let run = |call: &str, memory: u64| {
        child::run(TEST, &format!("{call} {}", dir.display()), Limits { seconds: 120, memory })
    };
    let least = (8..1 << 12).find(|&memory| run("start", memory).died.is_none()).unwrap();
    let mut wrong = Vec::new();
    for (name, _) in &CALLS[1..] {
        let (mut ends, mut memory) = (Vec::new(), least + 1);
        // Until it has succeeded five times, in steps that grow with the limit.
        while ends.iter().filter(|(_, end)| end == "success").count() < 5 && memory < least + 4096 {
            let ran = run(name, memory);
            match (&ran.died, ran.said.first()) {
                (None, Some(end)) => ends.push((memory, end.clone())),
                _ => wrong.push(format!("{name} under {memory} MiB: {ran:?}")),
            }
            memory += 1 + (memory - least) / 8;
        }
        let refused = ends.iter().filter(|(_, end)| end != "success").count();
        println!("{name}: {refused} of {} limits from {} MiB on refused: {:?}", ends.len(), least + 1, ends);
        let honest = |end: &str| end == "success" || end.starts_with("OutOfHostMemory") || end.starts_with("Cannot");
        wrong.extend(ends.iter().filter(|(_, end)| !honest(end)).map(|end| format!("{name}: {end:?}")));
    }
    println!("test {TEST} ... {}", if wrong.is_empty() { "ok" } else { "FAILED" });
    assert!(wrong.is_empty(), "{} runs:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(Error::new(Fault::OutOfHostMemory, "").status(), Status::HostMemory);
}
