//! Student and teacher of one tokenizer whose tables differ in rows of padding: what is sampled, lost and learnt is that
//! of tables of equal length, to the bit, and padding neither learns nor teaches.

#[path = "support/folders.rs"]
mod folders;
#[path = "support/scripted.rs"]
mod scripted;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use scripted::*;
use serde_json::{Value, json};
use squire::backend::Compute;
use squire::distill::trajectory::Trajectory;
use squire::distill::{Distiller, EpisodeSpec, Replay, Update};
use squire::error::Fault;
use squire::format::safetensors;
use squire::random::{Stream, below};
use squire::serve::{Engine, LoadOptions, ServedModel};
use squire::tensor::{Dtype, Shape};

/// Rows of the tables that `write_chat_model` makes; its tokenizer has fewer ids.
const ROWS: usize = 288;
const EMBEDDING: &str = "model.embed_tokens.weight";

/// A chat model without a template, with `more` rows of padding that its head likes better than any token.
fn write(folder: &Path, seed: u64, more: usize) {
    folders::write_chat_model(folder, seed);
    std::fs::remove_file(folder.join("chat_template.jinja")).unwrap();
    let at = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&at).unwrap()).unwrap();
    config["vocab_size"] = (ROWS + more).into();
    std::fs::write(&at, config.to_string()).unwrap();
    let file = folder.join("model.safetensors");
    let mut tensors: BTreeMap<String, (Dtype, Shape, Vec<u8>)> = safetensors::read(&file)
        .unwrap()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype, t.shape, t.bytes.as_slice().to_vec())))
        .collect();
    let (_, shape, bytes) = tensors.get_mut(EMBEDDING).unwrap();
    let c = shape.extents()[1];
    for i in 0..more * c {
        let x = 2.0 * (below(Stream::World, &[seed, i as u64], 2001) as f32 / 1000.0 - 1.0);
        bytes.extend(x.to_le_bytes());
    }
    *shape = Shape::new(&[ROWS + more, c]).unwrap();
    let list = tensors.iter().map(|(name, (dtype, shape, bytes))| (name.as_str(), *dtype, *shape, &bytes[..]));
    safetensors::write(&file, list).unwrap();
}

struct World {
    root: tempfile::TempDir,
    engine: Engine,
}

impl World {
    fn new(compute: Compute) -> World {
        World { root: tempfile::tempdir().unwrap(), engine: engine(compute) }
    }

    fn path(&self, seed: u64, more: usize) -> PathBuf {
        let path = self.root.path().join(format!("{seed}-{more}"));
        if !path.exists() {
            write(&path, seed, more);
        }
        path
    }

    fn model(&self, seed: u64, more: usize) -> ServedModel {
        let options = LoadOptions { max_context: CONTEXT, ..LoadOptions::default() };
        self.engine.load(&self.path(seed, more), options).unwrap()
    }

    /// A student and a teacher with so many rows of padding.
    fn distiller(&self, student: usize, teacher: usize, document: Value) -> Distiller {
        Distiller::new(&self.model(1, student), Some(&self.model(2, teacher)), settings(document)).unwrap()
    }
}

fn played(d: &Distiller) -> (Vec<Trajectory>, Update) {
    let records = play_together(d, 4, 4);
    (records, build(d))
}

/// The bytes of every gradient, the embedding's without its padding, whose gradient must be zero.
fn gradients(update: &Update) -> Vec<(String, Vec<u8>)> {
    let mut all = bytes(update.gradients());
    for (name, bytes) in all.iter_mut().filter(|(name, _)| name == EMBEDDING) {
        let row = update.gradients().tensors()[0].1.extent(1) * 4;
        let padding = bytes.split_off(ROWS * row);
        assert!(padding.iter().all(|&b| b == 0), "{name}: padding has a gradient");
    }
    all
}

#[test]
fn rows_of_padding_on_either_side_change_no_bit_of_rollout_loss_or_gradient() {
    for compute in [Compute::F32, Compute::Bf16] {
        let world = World::new(compute);
        for document in [json!({"preset": "opd"}), half_guided(), json!({"preset": "sft"})] {
            let (wanted_records, wanted) = played(&world.distiller(0, 0, document.clone()));
            assert!(wanted.report().gradient_norm > 0.0);
            for (student, teacher) in [(0, 12), (12, 0), (5, 9), (9, 5)] {
                let d = world.distiller(student, teacher, document.clone());
                let (records_found, found) = played(&d);
                if student == 0 || teacher == 0 {
                    let what = format!("{document}, {student} and {teacher} rows of padding, {}", compute.name());
                    assert_eq!(records(&records_found), records(&wanted_records), "{what}");
                    assert_eq!(found.report().loss.to_bits(), wanted.report().loss.to_bits(), "{what}");
                    assert!(gradients(&found) == gradients(&wanted), "{what}");
                }
                let least = (ROWS + student.min(teacher)) as i32;
                assert!(records_found.iter().all(|t| t.ids().iter().all(|&id| id < least)));
            }
        }
    }
}

#[test]
fn padding_would_be_drawn_if_it_were_not_left_out() {
    // The test above can fail: in an evaluation the student draws from its whole table, as it is served.
    let world = World::new(Compute::F32);
    let d = world.distiller(12, 0, json!({"preset": "opd"}));
    let evaluation = || EpisodeSpec { evaluation: true, ..Default::default() };
    let records: Vec<Trajectory> = (0..4).map(|_| Seat::new(&d, evaluation()).play(2)).collect();
    assert!(records.iter().any(|t| t.ids().iter().any(|&id| id >= ROWS as i32)));
}

#[test]
fn a_student_with_padding_is_updated_published_and_saved_with_its_padding_as_it_was() {
    let world = World::new(Compute::F32);
    let d = world.distiller(12, 0, json!({"preset": "opd", "optimizer": {"weight_decay": 0.0}}));
    let rows = |model: &ServedModel| model.current().weights.embedding.dense().f32().to_vec();
    let before = rows(d.student());
    for _ in 0..2 {
        play(&d, 2, 3);
        update(&d);
    }
    let after = rows(d.student());
    let border = ROWS * d.student().config().hidden_size;
    assert!(before[..border] != after[..border] && before[border..] == after[border..]);
    let path = world.root.path().join("saved");
    d.student().save(&path).unwrap();
    let again = world.engine.load(&path, LoadOptions { max_context: CONTEXT, copy: false }).unwrap();
    assert!(rows(&again) == after);
    assert!(again.warnings().is_empty());
}

#[test]
fn ids_of_padding_that_a_host_brings_are_refused_by_name() {
    let world = World::new(Compute::F32);
    let d = world.distiller(12, 0, json!({"preset": "sft"}));
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    let first = ROWS as i32;
    let refused = episode.observe_ids(&[1, first, 2]).unwrap_err();
    assert_eq!(refused.fault(), Fault::IdOutOfRange);
    assert!(refused.message().contains("288") && refused.message().contains("padding"), "{refused}");
    episode.observe_ids(&[1, first - 1, 2]).unwrap();
    episode.decide().unwrap();
    assert_eq!(fault(episode.replay(Replay::Ids(&[3, first + 11]))), Fault::IdOutOfRange);
    assert_eq!(fault(episode.replay(Replay::Ids(&[3, first + 12]))), Fault::IdOutOfRange, "beyond the table");
    episode.replay(Replay::Ids(&[3, 4])).unwrap();
    episode.outcome(None, true).unwrap();
    episode.end(1.0, Some(true)).unwrap();
    update(&d);
    // Nobody shares anything with a student alone.
    let alone = Distiller::new(&world.model(1, 12), None, settings(json!({"preset": "sft"}))).unwrap();
    alone.begin(EpisodeSpec::default()).unwrap().observe_ids(&[1, first, 2]).unwrap();
}

#[test]
fn tables_of_other_lengths_without_one_known_tokenizer_are_refused_with_the_remedy() {
    let world = World::new(Compute::F32);
    let refusal = |student: &ServedModel, teacher: &ServedModel| {
        let e = Distiller::new(student, Some(teacher), settings(json!({"preset": "opd"}))).err().unwrap();
        assert_eq!(e.fault(), Fault::TeacherVocabulary);
        e.message().to_string()
    };
    let bare = |seed, more| {
        std::fs::remove_file(world.path(seed, more).join("tokenizer.json")).unwrap();
        world.model(seed, more)
    };
    let (student, teacher) = (bare(3, 0), bare(4, 12));
    let message = refusal(&student, &teacher);
    let wanted = ["288 rows", "300", "not known", "tokenizer.json", "resize_token_embeddings"];
    assert!(wanted.iter().all(|word| message.contains(word)), "{message}");
    refusal(&student, &world.model(5, 12));
    // Another tokenizer.
    let at = world.path(6, 12).join("tokenizer.json");
    let changed = std::fs::read_to_string(&at).unwrap().replace("<tool_call>", "<tool_kall>");
    std::fs::write(&at, changed).unwrap();
    let message = refusal(&world.model(1, 0), &world.model(6, 12));
    let wanted = ["288 rows", "300", "different meanings", "teacher of the student's tokenizer"];
    assert!(wanted.iter().all(|word| message.contains(word)), "{message}");
}
