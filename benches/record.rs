//! What it costs to write a run down, and to read an episode of it through the C interface.
//!
//! `cargo bench --bench record` plays the same episodes with and without a record, in turn so that both meet the same machine, on a
//! small student (the smaller, the larger the record's share); an update is built of each, with the log-probs and 32 likeliest ids
//! of a teacher of the host's in the record. Then an episode of 10,000 tokens is read through the bulk accessors.

use std::ffi::c_char;
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

use serde_json::json;
use squire::distill::{
    Config, Distiller, Episode, EpisodeSpec, QueueOptions, RecordOptions, Reply, Teacher, TeacherQueue,
};
use squire::ffi::distiller::{squire_distiller_create, squire_distiller_release};
use squire::ffi::engine::*;
use squire::ffi::episode::*;
use squire::ffi::model::*;
use squire::ffi::record::*;
use squire::ffi::status::SQUIRE_OK;
use squire::ffi::version::SQUIRE_ABI;
use squire::model::ModelConfig;
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, ServedModel};
use squire::tensor::Dtype;

const TOP: usize = 32;
const TURN: usize = 64;
const TURNS: usize = 4;
const EPISODES: usize = 4;

fn model(engine: &Engine) -> ServedModel {
    let config = ModelConfig::from_json(&json!({
        "model_type": "qwen3", "vocab_size": 16_384, "hidden_size": 512, "intermediate_size": 1536,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
        "max_position_embeddings": 16_384, "tie_word_embeddings": true,
    }));
    let config = config.expect("the bench's own configuration");
    engine.random_model(config, Dtype::Bf16, 1, 0).expect("a model that fits memory")
}

fn distiller(model: &ServedModel, preset: &str, teacher: Option<Teacher>) -> Distiller {
    let settings = json!({"preset": preset, "batch_episodes": EPISODES, "steps": 1000, "update_kl_tokens": 0});
    let config = Config::from_value(&settings).expect("the bench's own settings");
    Distiller::taught(model, teacher, config).expect("a distiller")
}

fn show(episode: &Episode, turn: usize) {
    let shown: Vec<i32> = (0..32).map(|i| ((i * 37 + turn * 11) % 16_000) as i32).collect();
    episode.observe_ids(&shown).expect("an observation");
    episode.decide().expect("a decision");
}

/// Seconds of decode, of the ends of the episodes, and of gathering what the teacher said for an update.
fn play(d: &Distiller, queue: &TeacherQueue) -> [f64; 3] {
    let options = GenerationOptions { max_tokens: TURN, ignore_model_stops: true, ..GenerationOptions::default() };
    let (begun, mut ending) = (Instant::now(), 0.0);
    for _ in 0..EPISODES {
        let episode = d.begin(EpisodeSpec::default()).expect("an episode");
        for turn in 0..TURNS {
            show(&episode, turn);
            drop(episode.act(&options).expect("a turn").collect().expect("tokens"));
            episode.outcome(Some(0.5), true).expect("an outcome");
        }
        let ends = Instant::now();
        episode.end(1.0, Some(true)).expect("an end");
        ending += ends.elapsed().as_secs_f64();
    }
    let played = begun.elapsed().as_secs_f64() - ending;
    for request in queue.next(EPISODES, Duration::ZERO) {
        let n = request.ids.len() - request.from;
        // Every id as likely as every other.
        let logprob = -(16_384f32).ln();
        let top_ids: Vec<i32> = (0..n).flat_map(|_| 0..TOP as i32).collect();
        let (logprobs, top_logprobs) = (vec![logprob; n], vec![logprob; n * TOP]);
        let ids = &request.ids[request.from..];
        let reply = Reply { ids, logprobs: &logprobs, top_ids: &top_ids, top_logprobs: &top_logprobs };
        queue.reply(request.number, reply).expect("an answer that fits");
    }
    // Stopped before the first layer: what is left is the gathering, and the record of what was gathered.
    let begun = Instant::now();
    let stopped = d.build(0, &Cancel::default(), &mut |_, _| false);
    let gathered = begun.elapsed().as_secs_f64();
    assert!(stopped.is_err(), "stopped");
    d.discard();
    [played, ending, gathered]
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let student = model(&engine);
    let options = json!({"vocabulary": "the-students", "top_k": TOP}).to_string();
    let queue = TeacherQueue::new(QueueOptions::from_json(&options).expect("the bench's own options"));
    let d = distiller(&student, "opd", Some(Teacher::Queue(queue.clone())));
    let folder = std::env::temp_dir().join(format!("squire-bench-record-{}", std::process::id()));
    let (mut with, mut without) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
    let keep = |lists: &mut [Vec<f64>; 3], times: [f64; 3]| lists.iter_mut().zip(times).for_each(|(l, t)| l.push(t));
    play(&d, &queue);
    for _ in 0..7 {
        d.stop_recording();
        keep(&mut without, play(&d, &queue));
        d.record(&folder, RecordOptions::default()).expect("a folder");
        keep(&mut with, play(&d, &queue));
    }
    let tokens = (EPISODES * TURNS * TURN) as f64;
    let bytes = std::fs::metadata(folder.join("record.jsonl")).map_or(0, |at| at.len()) as f64 / (7.0 * tokens);
    let micros = |list: &mut Vec<f64>| 1e6 * median(list) / tokens;
    let ([decode, end, gather], [decode_with, end_with, gather_with]) =
        (without.each_mut().map(micros), with.each_mut().map(micros));
    println!("us a token said, without and with a record:");
    println!("decode {decode:.1} {decode_with:.1}; end {end:.2} {end_with:.2}; gathering {gather:.2} {gather_with:.2}");
    println!(
        "what is written: {:.2} % of decode for the episode, {:.2} % for log-probs and top {TOP} of the teacher; {bytes:.0} bytes a token",
        100.0 * (end_with - end) / decode,
        100.0 * (gather_with - gather) / decode
    );
    let _ = std::fs::remove_dir_all(&folder);
    read_back(&student);
}

/// Ten thousand tokens through the C interface.
fn read_back(student: &ServedModel) {
    let folder = std::env::temp_dir().join(format!("squire-bench-model-{}", std::process::id()));
    student.save(&folder).expect("a folder");
    let path = folder.to_str().expect("a path in UTF-8");
    let (mut engine, mut model, mut distiller, mut episode) = (null_mut(), null_mut(), null_mut(), null_mut());
    let text = |text: &'static str| (text.as_ptr().cast::<c_char>(), text.len());
    let (no_error, done) = (null_mut(), SQUIRE_OK);
    // SAFETY: handles of the library's own calls, arrays with their lengths, structs set up by their _init.
    unsafe {
        let mut options: squire_engine_options = std::mem::zeroed();
        squire_engine_options_init(&mut options, size_of::<squire_engine_options>(), SQUIRE_ABI);
        assert!(squire_engine_create(&options, &mut engine, no_error) == done);
        let mut options: squire_model_options = std::mem::zeroed();
        squire_model_options_init(&mut options, size_of::<squire_model_options>());
        (options.path, options.path_len) = (path.as_ptr().cast(), path.len());
        assert!(squire_model_load(engine, &options, null(), &mut model, no_error) == done);
        let (settings, len) = text("{\"preset\": \"sft\"}");
        assert!(squire_distiller_create(model, null_mut(), settings, len, &mut distiller, no_error) == done);
        let (spec, len) = text("{}");
        assert!(squire_episode_begin(distiller, spec, len, &mut episode, no_error) == done);
        let mut decision: squire_decision = std::mem::zeroed();
        squire_decision_init(&mut decision, size_of::<squire_decision>());
        let (shown, said) = ([3; 32], [7; 968]);
        for _ in 0..10 {
            assert!(squire_episode_observe_ids(episode, shown.as_ptr(), shown.len(), no_error) == done);
            assert!(squire_episode_decide(episode, &mut decision, no_error) == done);
            assert!(squire_episode_replay_ids(episode, said.as_ptr(), said.len(), no_error) == done);
            assert!(squire_episode_outcome(episode, 0.0, 0, no_error) == done);
        }
        let mut times = Vec::new();
        for _ in 0..101 {
            let begun = Instant::now();
            let (mut trajectory, mut n) = (null_mut(), 0);
            assert!(squire_episode_trajectory(episode, &mut trajectory, no_error) == done);
            let ids = std::slice::from_raw_parts(squire_trajectory_ids(trajectory, &mut n), n);
            let sources = std::slice::from_raw_parts(squire_trajectory_sources(trajectory, &mut n), n);
            let logprobs = std::slice::from_raw_parts(squire_trajectory_logprobs(trajectory, &mut n), n);
            let drawn = std::slice::from_raw_parts(squire_trajectory_sampled_logprobs(trajectory, &mut n), n);
            let sum: i64 = ids.iter().map(|&id| i64::from(id)).sum();
            let replayed = sources.iter().filter(|&&source| source == SQUIRE_SOURCE_REPLAY).count();
            let unknown = logprobs.iter().chain(drawn).filter(|x| x.is_nan()).count();
            squire_trajectory_release(trajectory);
            times.push(begun.elapsed().as_secs_f64());
            assert_eq!((n, sum, replayed, unknown), (10_000, 10 * (32 * 3 + 968 * 7), 9_680, 20_000));
        }
        println!("10,000 tokens copied and read by id, source and both log-probs: {:.3} ms", 1e3 * median(&mut times));
        squire_episode_release(episode);
        squire_distiller_release(distiller);
        squire_model_release(model);
        squire_engine_release(engine);
    }
    let _ = std::fs::remove_dir_all(&folder);
}
