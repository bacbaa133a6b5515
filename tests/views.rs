//! What a teacher is shown in place of what the student is: by messages, by ids, before everything else; and what is refused.

#[path = "support/folders.rs"]
mod folders;

use serde_json::{Value, json};
use squire::distill::{Actor, Config, Distiller, Episode, EpisodeSpec, ForkOptions, Replay};
use squire::error::{Error, Fault};
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, LoadOptions, ServedModel};
use squire::text::tokenizer::Control;

struct Rig {
    _root: tempfile::TempDir,
    model: ServedModel,
}

/// A chat model that teaches itself.
fn rig() -> Rig {
    let root = tempfile::tempdir().unwrap();
    folders::write_chat_model(&root.path().join("model"), 1);
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    Rig { model: engine.load(&root.path().join("model"), LoadOptions::default()).unwrap(), _root: root }
}

impl Rig {
    fn distiller(&self) -> Distiller {
        let config = Config::from_json(&json!({"preset": "opd"}).to_string()).unwrap();
        Distiller::new(&self.model, Some(&self.model), config).unwrap()
    }

    fn begin(&self, distiller: &Distiller, spec: Value) -> Episode {
        distiller.begin(EpisodeSpec::from_json(&spec.to_string(), self.model.template().ok()).unwrap()).unwrap()
    }

    fn ids(&self, text: &str) -> Vec<i32> {
        self.model.tokenizer().unwrap().encode(text, Control::All)
    }

    /// What student and teacher read, as text.
    fn texts(&self, episode: &Episode) -> [String; 2] {
        let record = episode.trajectory().unwrap();
        [record.ids().to_vec(), record.teacher_ids().unwrap()]
            .map(|ids| self.model.tokenizer().unwrap().decode(&ids, false))
    }
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn shown(students: &str, theirs: Value) -> String {
    json!({"messages": user(students), "teacher_messages": theirs}).to_string()
}

fn say(episode: &Episode, text: &str) {
    episode.override_actor(Actor::Replay).unwrap();
    episode.replay(Replay::Text(text)).unwrap();
    episode.outcome(None, true).unwrap();
}

fn refused<T>(result: Result<T, Error>, fault: Fault, said: &str) {
    let e = result.err().expect("a refusal");
    assert!(e.fault() == fault && e.message().contains(said), "{said}: {e}");
}

fn of_user(text: &str) -> String {
    format!("<|im_start|>user\n{text}<|im_end|>\n")
}

const PROMPT: &str = "<|im_start|>assistant\n";

#[test]
fn each_reads_its_own_messages_and_the_same_actions() {
    let rig = rig();
    let distiller = rig.distiller();
    let episode = rig.begin(&distiller, json!({}));
    episode.observe_json(&shown("go", user("go, and mind the step"))).unwrap();
    say(&episode, "x");
    episode.observe_json(&shown("more", json!([]))).unwrap();
    episode.observe(user("and")).unwrap();
    say(&episode, "y");
    episode.observe_json(&shown("last", json!([]))).unwrap();
    say(&episode, "z");
    let [students, theirs] = rig.texts(&episode);
    let end = "<|im_end|>\n";
    let wanted = [of_user("go"), PROMPT.into(), format!("x{end}"), of_user("more"), of_user("and"), PROMPT.into()];
    assert_eq!(
        students,
        [wanted.concat(), format!("y{end}"), of_user("last"), PROMPT.into(), "z<|im_end|>".into()].concat()
    );
    let wanted = [of_user("go, and mind the step"), PROMPT.into(), format!("x{end}"), of_user("and"), PROMPT.into()];
    assert_eq!(theirs, [wanted.concat(), format!("y{end}"), PROMPT.into(), "z<|im_end|>".into()].concat());
    // Every action stands in both, with the same ids behind the same prompt.
    let record = episode.trajectory().unwrap();
    let (ids, prompt) = (record.teacher_ids().unwrap(), rig.ids(PROMPT));
    for turn in record.turns() {
        let start = record.view().position(turn.range.start);
        assert_eq!(ids[start..start + turn.range.len()], record.ids()[turn.range.clone()]);
        assert!(ids[..start].ends_with(&prompt) && record.ids()[..turn.range.start].ends_with(&prompt));
    }
    let trace = episode.trace().unwrap();
    assert_eq!(trace["turns"][1]["view"], json!({"start": record.view().position(record.turns()[1].range.start)}));
}

#[test]
fn the_same_messages_are_no_view() {
    let rig = rig();
    let distiller = rig.distiller();
    let episode = rig.begin(&distiller, json!({"teacher_prefix": []}));
    for turn in 0..2 {
        episode.observe_json(&shown("go", user("go"))).unwrap();
        say(&episode, "x");
        let trace = episode.trace().unwrap();
        assert_eq!((&trace["views"], &trace["turns"][turn]["view"]), (&json!([]), &Value::Null));
    }
    let [students, theirs] = rig.texts(&episode);
    assert_eq!(students, theirs);
}

#[test]
fn a_prefix_begins_the_teachers_conversation() {
    let rig = rig();
    let distiller = rig.distiller();
    let skill = json!([{"role": "system", "content": "A skill."}]);
    let system = "<|im_start|>system\nA skill.<|im_end|>\n";
    for (observation, theirs) in [
        (user("go").to_string(), of_user("go")),
        (shown("go", user("well")), of_user("well")),
        (shown("go", json!([])), String::new()),
    ] {
        let episode = rig.begin(&distiller, json!({"teacher_prefix": skill}));
        // Forked before anything was shown, the fork has the prefix as well.
        let fork = episode.fork(ForkOptions::default()).unwrap();
        for episode in [episode, fork] {
            episode.observe_json(&observation).unwrap();
            say(&episode, "x");
            episode.observe(user("on")).unwrap();
            say(&episode, "y");
            let on = ["x<|im_end|>\n", &of_user("on"), PROMPT, "y<|im_end|>"].concat();
            let wanted = [[&of_user("go"), PROMPT, &on].concat(), [system, &theirs, PROMPT, &on].concat()];
            assert_eq!(rig.texts(&episode), wanted);
        }
    }
}

#[test]
fn what_a_turn_is_rendered_with_is_so_for_both() {
    let rig = rig();
    let distiller = rig.distiller();
    let episode = rig.begin(&distiller, json!({}));
    let off = json!({"messages": user("a"), "teacher_messages": user("b"), "enable_thinking": false});
    episode.observe_json(&off.to_string()).unwrap();
    say(&episode, "x");
    let empty = "<think>\n\n</think>\n\nx<|im_end|>";
    assert_eq!(rig.texts(&episode), [of_user("a"), of_user("b")].map(|of| [&of, PROMPT, empty].concat()));
}

#[test]
fn where_nobody_teaches_nobody_reads_a_view() {
    let rig = rig();
    let alone = Distiller::new(&rig.model, None, Config::from_json(r#"{"preset": "sft"}"#).unwrap()).unwrap();
    let prefix = json!([{"role": "system", "content": "A skill."}]);
    for (distiller, evaluation) in [(&rig.distiller(), true), (&alone, false)] {
        let episode = rig.begin(distiller, json!({"teacher_prefix": prefix, "evaluation": evaluation}));
        episode.observe_ids_as(&rig.ids(&of_user("go")), &[1 << 20]).unwrap();
        episode.observe_json(&shown("go", user("other"))).unwrap();
        let actor = if evaluation { Actor::Student } else { Actor::Replay };
        episode.override_actor(actor).unwrap();
        assert_eq!(episode.trace().unwrap()["views"], json!([]));
    }
}

#[test]
fn what_the_teacher_cannot_be_shown_is_refused_and_changes_nothing() {
    let rig = rig();
    let distiller = rig.distiller();
    let episode = rig.begin(&distiller, json!({}));
    let cannot = |theirs: Value, fault, said: &str| {
        let before = episode.trace().unwrap();
        refused(episode.observe_json(&shown("go", theirs)), fault, said);
        assert_eq!(episode.trace().unwrap(), before);
    };
    cannot(json!({}), Fault::BadValue, "teacher_messages: wanted a list of {role, content}, found an object");
    cannot(json!([{"role": 1}]), Fault::BadValue, "teacher_messages: ");
    cannot(user(&"far too long ".repeat(400)), Fault::ContextFull, "teacher_messages: ");
    say_after(&episode, "go");
    // The student's message was taken once, by the call that was not refused.
    cannot(
        json!([{"role": "system", "content": "late"}]),
        Fault::BadValue,
        "teacher_messages: messages: message 0: a system message",
    );
    say_after(&episode, "on");
    let [students, theirs] = rig.texts(&episode);
    assert_eq!(students, theirs);
    let text =
        [of_user("go"), PROMPT.into(), "x<|im_end|>\n".into(), of_user("on"), PROMPT.into(), "x<|im_end|>".into()];
    assert_eq!(students, text.concat());
}

#[test]
fn a_prefix_or_a_generation_prompt_that_the_teacher_has_no_room_for_is_refused() {
    let rig = rig();
    let distiller = rig.distiller();
    let episode = rig.begin(&distiller, json!({"teacher_prefix": user(&"far too long ".repeat(400))}));
    refused(episode.observe(user("go")), Fault::ContextFull, "what the teacher is shown: ");
    assert_eq!(episode.trace().unwrap()["phase"], json!("observe, or end"));
    // The prompt is longer than the two tokens that are left of 2048.
    let episode = rig.begin(&distiller, json!({}));
    episode.observe_ids_as(&rig.ids(&of_user("go")), &[97; 2046]).unwrap();
    episode.override_actor(Actor::Student).unwrap();
    for _ in 0..2 {
        refused(episode.act(&GenerationOptions::default()), Fault::ContextFull, "the teacher's generation prompt: ");
    }
    episode.end(0.0, None).unwrap();
}

fn say_after(episode: &Episode, text: &str) {
    episode.observe(user(text)).unwrap();
    say(episode, "x");
}

#[test]
fn ids_before_a_prefix_are_refused() {
    let rig = rig();
    let distiller = rig.distiller();
    let episode = rig.begin(&distiller, json!({"teacher_prefix": user("a skill")}));
    let ids = rig.ids(&of_user("go"));
    refused(episode.observe_ids(&ids), Fault::BadValue, "teacher_prefix: it stands before messages");
    refused(episode.observe_ids_as(&ids, &ids), Fault::BadValue, "teacher_prefix: it stands before messages");
    episode.observe(user("go")).unwrap();
    episode.observe_ids(&ids).unwrap();
    say(&episode, "x");
    assert!(rig.texts(&episode)[1].starts_with("<|im_start|>user\na skill<|im_end|>\n<|im_start|>user\ngo"));
}

#[test]
fn ids_that_begin_the_turn_for_one_alone_or_otherwise_are_refused_until_both_begin_it() {
    let rig = rig();
    let distiller = rig.distiller();
    let of = |text: &str, prompt: &str| rig.ids(&[&of_user(text), prompt].concat());
    let thought = [PROMPT, "<think>\n\n</think>\n\n"].concat();
    for (students, theirs, said, more) in [
        (PROMPT, "", "the student's ids begin the actor's turn and the teacher's do not", ["", PROMPT]),
        ("", PROMPT, "the teacher's ids begin the actor's turn and the student's do not", [PROMPT, ""]),
        (
            thought.as_str(),
            PROMPT,
            "begin the actor's turn otherwise than the student's do",
            ["", "<think>\n\n</think>\n\n"],
        ),
    ] {
        let episode = rig.begin(&distiller, json!({}));
        episode.observe_ids_as(&of("a", students), &of("b", theirs)).unwrap();
        let before = episode.trace().unwrap();
        refused(episode.decide(), Fault::BadValue, said);
        refused(episode.override_actor(Actor::Replay), Fault::BadValue, said);
        assert_eq!(episode.trace().unwrap(), before);
        episode.observe_ids_as(&rig.ids(more[0]), &rig.ids(more[1])).unwrap();
        say(&episode, "x");
        let prompt = if students.is_empty() { PROMPT } else { students };
        assert_eq!(rig.texts(&episode), ["a", "b"].map(|of| [&of_user(of), prompt, "x<|im_end|>"].concat()));
    }
    // Neither begins it: both get the generation prompt.
    let episode = rig.begin(&distiller, json!({}));
    episode.observe_ids_as(&of("a", ""), &of("b", "")).unwrap();
    say(&episode, "x");
    assert_eq!(rig.texts(&episode), ["a", "b"].map(|of| [&of_user(of), PROMPT, "x<|im_end|>"].concat()));
}

#[test]
fn ids_that_the_teacher_has_no_row_for_are_refused() {
    let rig = rig();
    let distiller = rig.distiller();
    let episode = rig.begin(&distiller, json!({}));
    for bad in [-1, 288] {
        let said = format!("teacher_ids: id {bad} at 1: wanted one of the 288 that student and teacher share");
        refused(episode.observe_ids_as(&[5], &[5, bad]), Fault::IdOutOfRange, &said);
    }
    refused(episode.observe_ids_as(&[288], &[5]), Fault::IdOutOfRange, "288");
    assert_eq!(episode.observe_ids_as(&[5], &[6]).unwrap(), 1);
}

/// A model without a template, whose context holds 64 tokens.
fn bare() -> (ServedModel, Distiller) {
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    let document = json!({
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    let config = squire::model::ModelConfig::from_json(&document).unwrap();
    let model = engine.random_model(config, squire::tensor::Dtype::F32, 1, 64).unwrap();
    let d = Distiller::new(&model, Some(&model), Config::from_json(r#"{"preset": "opd"}"#).unwrap()).unwrap();
    (model, d)
}

#[test]
fn an_action_that_nothing_stands_before_in_the_view_is_refused() {
    let (_model, d) = bare();
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids_as(&[1, 2], &[]).unwrap();
    refused(episode.decide(), Fault::BadLength, "the teacher was shown nothing");
    episode.observe_ids_as(&[], &[3]).unwrap();
    episode.decide().unwrap();
}

#[test]
fn nor_is_one_begun_where_a_template_opens_turns_with_nothing() {
    let root = tempfile::tempdir().unwrap();
    folders::write_chat_model(&root.path().join("model"), 1);
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    std::fs::write(root.path().join("model/chat_template.jinja"), template).unwrap();
    let engine = Engine::new(EngineOptions { n_threads: 1, ..EngineOptions::default() }).unwrap();
    let rig = Rig { model: engine.load(&root.path().join("model"), LoadOptions::default()).unwrap(), _root: root };
    let episode = rig.begin(&rig.distiller(), json!({}));
    episode.observe_json(&shown("look", json!([]))).unwrap();
    episode.decide().unwrap();
    let options = GenerationOptions { max_tokens: 2, ..GenerationOptions::default() };
    refused(episode.act(&options), Fault::BadLength, "the teacher was shown nothing");
    refused(episode.act(&options), Fault::BadLength, "the teacher was shown nothing");
    episode.end(0.0, None).unwrap();
    // Something shown is enough.
    let episode = rig.begin(&rig.distiller(), json!({}));
    episode.observe_json(&shown("look", user("a skill"))).unwrap();
    episode.decide().unwrap();
    episode.act(&options).unwrap().collect().unwrap();
    assert_eq!(rig.texts(&episode).map(|text| text.starts_with("a skill")), [false, true]);
}

#[test]
fn a_prefix_without_a_template_is_refused() {
    let (_model, d) = bare();
    let spec = EpisodeSpec::from_json(r#"{"teacher_prefix": [{"role": "user", "content": "a"}]}"#, None).unwrap();
    refused(d.begin(spec), Fault::NoTemplate, "teacher_prefix: ");
    assert_eq!(d.begin(EpisodeSpec::default()).unwrap().heading().episode, 0, "a refused one takes no number");
}

#[test]
fn a_full_view_is_refused_and_the_episode_goes_on_or_ends() {
    let (_model, d) = bare();
    let long = vec![7; 60];
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    refused(
        episode.observe_ids_as(&[1], &[7; 65]),
        Fault::ContextFull,
        "the teacher reads 0 tokens and is to get 65 more",
    );
    episode.observe_ids_as(&[1], &long).unwrap();
    let replay = episode.fork(ForkOptions::default()).unwrap();
    replay.override_actor(Actor::Replay).unwrap();
    refused(
        replay.replay(Replay::Ids(&[1; 5])),
        Fault::ContextFull,
        "the teacher reads 60 tokens and is to get 5 more",
    );
    replay.replay(Replay::Ids(&[1; 4])).unwrap();
    // What the student says is cut off where the teacher could read no more of it.
    let free = GenerationOptions { ignore_model_stops: true, ..GenerationOptions::default() };
    episode.decide().unwrap();
    assert_eq!(episode.act(&free).unwrap().collect().unwrap().0.ids.len(), 4);
    episode.outcome(None, true).unwrap();
    assert!(episode.trajectory().unwrap().turns()[0].truncated);
    refused(episode.observe_ids(&[1]), Fault::ContextFull, "the teacher reads 64 tokens and is to get 1 more");
    episode.observe_ids_as(&[1], &[]).unwrap();
    episode.decide().unwrap();
    refused(episode.act(&free), Fault::ContextFull, "the teacher reads 64 tokens and its context holds no more");
    episode.end(1.0, None).unwrap();
    let update = d.build(0, &Cancel::default(), &mut |_, _| true).unwrap();
    assert_eq!(update.report().trained_tokens, 4);
}

#[test]
fn a_teachers_turn_fits_into_the_students_context_whatever_it_reads() {
    let (_model, d) = bare();
    let episode = d.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids_as(&[1; 60], &[7]).unwrap();
    episode.override_actor(Actor::Teacher).unwrap();
    let free = GenerationOptions { ignore_model_stops: true, ..GenerationOptions::default() };
    assert_eq!(episode.act(&free).unwrap().collect().unwrap().0.ids.len(), 4);
    episode.outcome(None, true).unwrap();
    assert_eq!(episode.trajectory().unwrap().ids().len(), 64);
}
