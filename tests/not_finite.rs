//! A row of logits without a distribution (NaN, +inf, or nothing above -inf) ends its generation or its score with
//! `NotFinite` and gives no token; whoever shares the round goes on, and an episode can be ended or its turn played again.

use serde_json::json;
use squire::backend::Compute;
use squire::backend::ops::Sampling;
use squire::distill::{Actor, Config, Distiller, Episode, EpisodeSpec};
use squire::error::{Error, Fault};
use squire::model::{ModelConfig, Weights};
use squire::serve::{Cancel, Engine, EngineOptions, Finish, GenerationOptions, Next, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;

/// What is wrong with the row that follows id 4.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Nan,
    Infinite,
    AllMasked,
}

const KINDS: [Kind; 3] = [Kind::Nan, Kind::Infinite, Kind::AllMasked];
const HIDDEN: usize = 16;
const VOCABULARY: usize = 32;

fn engine(compute: Compute) -> Engine {
    let options = EngineOptions { n_threads: 1, compute, caller_driven: true, ..Default::default() };
    Engine::new(options).unwrap()
}

/// A model that says 1 2 3 4 1 2 3 4 ..., and 10 after 10; where it is broken, no row that follows a 4 can be sampled from.
fn parrot(engine: &Engine, broken: Option<Kind>) -> ServedModel {
    let config = ModelConfig::from_json(&json!({
        "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16,
        "max_position_embeddings": 256, "tie_word_embeddings": false,
    }))
    .unwrap();
    let mut weights = Weights::zeros(&config).unwrap();
    weights.norm.f32_mut().fill(1.0);
    for (at, (id, next)) in [(1, 2), (2, 3), (3, 4), (4, 1), (10, 10)].into_iter().enumerate() {
        weights.embedding.dense_mut().f32_mut()[id * HIDDEN + at] = 1.0;
        weights.head_mut().dense_mut().f32_mut()[next * HIDDEN + at] = 10.0;
    }
    let of_four = 3;
    match broken {
        None => {}
        Some(Kind::Nan) => weights.embedding.dense_mut().f32_mut()[4 * HIDDEN] = f32::NAN,
        Some(Kind::Infinite) => weights.head_mut().dense_mut().f32_mut()[7 * HIDDEN + of_four] = 3e38,
        Some(Kind::AllMasked) => {
            weights.head_mut().dense_mut().f32_mut().chunks_mut(HIDDEN).for_each(|row| row[of_four] = -3e38);
        }
    }
    let model = engine.random_model(config, Dtype::F32, 0, 0).unwrap();
    model.restore(weights, 1);
    model
}

fn session_of(model: &ServedModel, ids: &[i32]) -> Session {
    let session = Session::new(model).unwrap();
    session.append(ids, Source::Host).unwrap();
    session
}

/// The likeliest token, by argmax and by a draw among one.
fn samplings() -> [Sampling; 2] {
    [Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 }, Sampling { temperature: 1.0, top_k: 1, top_p: 1.0 }]
}

fn options(max_tokens: usize) -> GenerationOptions {
    GenerationOptions { max_tokens, sampling: samplings()[0], ..Default::default() }
}

fn ids_of(session: &Session) -> Vec<i32> {
    session.tokens().unwrap().iter().map(|t| t.id).collect()
}

fn fault<T>(result: Result<T, Error>) -> Fault {
    result.err().expect("a refusal").fault()
}

#[test]
fn a_row_without_a_distribution_ends_its_generation_and_no_other() {
    for (kind, compute) in KINDS.into_iter().flat_map(|k| [(k, Compute::F32), (k, Compute::Bf16)]) {
        for sampling in samplings() {
            let model = parrot(&engine(compute), Some(kind));
            let (session, other) = (session_of(&model, &[1]), session_of(&model, &[10, 10]));
            let broken = session.generate(GenerationOptions { sampling, ..options(9) }).unwrap();
            let whole = other.generate(options(9)).unwrap();
            let (chunk, finish) = whole.collect().unwrap();
            assert_eq!((chunk.ids, finish), (vec![10; 9], Finish::Length), "{kind:?}");

            let Next::Chunk(said) = broken.next(None).unwrap() else { panic!("tokens come before the failure") };
            assert_eq!(said.ids, [2, 3, 4], "{kind:?}");
            assert!(said.logprobs.iter().all(|p| p.is_finite()));
            let error = broken.next(None).unwrap_err();
            assert_eq!(error.fault(), Fault::NotFinite);
            assert!(error.message().contains("position 4") && error.message().contains("checkpoint"), "{error}");
            assert!(matches!(broken.next(None).unwrap(), Next::End(Finish::Failed)), "the end stays the end");

            // The session is idle, holds nothing of that row, and goes on as if nothing had been.
            assert_eq!(ids_of(&session), [1, 2, 3, 4]);
            assert_eq!(fault(session.generate(options(1)).unwrap().collect()), Fault::NotFinite);
            session.truncate(1).unwrap();
            assert_eq!(session.generate(options(2)).unwrap().collect().unwrap().0.ids, [2, 3]);
            session.sync(&[10]).unwrap();
            assert_eq!(session.generate(options(2)).unwrap().collect().unwrap().0.ids, [10, 10]);
        }
    }
}

#[test]
fn a_prompt_that_ends_in_such_a_row_gives_no_token_at_all() {
    for kind in KINDS {
        let engine = engine(Compute::F32);
        let session = session_of(&parrot(&engine, Some(kind)), &[10, 4]);
        let generation = session.generate(options(9)).unwrap();
        assert_eq!(fault(generation.next(None)), Fault::NotFinite, "{kind:?}");
        assert_eq!((ids_of(&session), engine.metrics().sampled), (vec![10, 4], 0));
    }
}

#[test]
fn a_score_over_such_a_row_is_refused_and_leaves_the_timeline() {
    for kind in KINDS {
        for top_k in [0, 2] {
            let session = session_of(&parrot(&engine(Compute::F32), Some(kind)), &[1]);
            let score = |ids: &[i32]| session.score(ids, top_k, &Cancel::default());
            let error = score(&[2, 3, 4, 1, 2]).unwrap_err();
            assert_eq!(error.fault(), Fault::NotFinite, "{kind:?}");
            assert!(error.message().contains("position 4"), "{error}");
            assert_eq!(ids_of(&session), [1]);
            assert_eq!(score(&[2, 3, 4]).unwrap().len(), 3);
            assert_eq!(ids_of(&session), [1, 2, 3, 4]);
        }
    }
    // A masked id is impossible, which is no failure: the row has a distribution.
    let model = parrot(&engine(Compute::F32), Some(Kind::Infinite));
    let mut weights = Weights::like(model.config(), &model.current().weights).unwrap();
    weights.norm.f32_mut().fill(1.0);
    weights.embedding.dense_mut().f32_mut()[HIDDEN] = 1.0;
    weights.head_mut().dense_mut().f32_mut()[9 * HIDDEN] = -3e38;
    model.restore(weights, 2);
    let rows = session_of(&model, &[1]).score(&[9], 0, &Cancel::default()).unwrap();
    assert!(rows[0].logprob < -1e38);
}

/// An episode before whose first turn `prompt` was seen and `actor` was decided.
fn decided(broken: Actor, actor: Actor, prompt: &[i32]) -> (Distiller, Episode) {
    let engine = engine(Compute::F32);
    let of = |who| parrot(&engine, (who == broken).then_some(Kind::Nan));
    let settings = json!({"preset": "guided-opd", "sampling": {"temperature": 1.0, "top_k": 1}});
    let settings = Config::from_value(&settings).unwrap();
    let distiller = Distiller::new(&of(Actor::Student), Some(&of(Actor::Teacher)), settings).unwrap();
    let episode = distiller.begin(EpisodeSpec::default()).unwrap();
    episode.observe_ids(prompt).unwrap();
    episode.override_actor(actor).unwrap();
    (distiller, episode)
}

/// The same after the actor's generation said 2 3 4 and failed.
fn broken(actor: Actor) -> (Distiller, Episode) {
    let (distiller, episode) = decided(actor, actor, &[1]);
    let generation = episode.act(&options(6)).unwrap();
    assert_eq!(fault(generation.collect()), Fault::NotFinite);
    (distiller, episode)
}

fn other(actor: Actor) -> Actor {
    if actor == Actor::Student { Actor::Teacher } else { Actor::Student }
}

/// Plays the decided turn and gives the record of it.
fn play(episode: &Episode) -> Vec<(Actor, Vec<i32>)> {
    episode.act(&options(6)).unwrap().collect().unwrap();
    episode.outcome(None, true).unwrap();
    turns(episode)
}

fn turns(episode: &Episode) -> Vec<(Actor, Vec<i32>)> {
    let trajectory = episode.trajectory().unwrap();
    trajectory.turns().iter().map(|t| (t.actor, trajectory.ids()[t.range.clone()].to_vec())).collect()
}

#[test]
fn a_turn_that_failed_is_played_again_by_the_other_actor_from_its_beginning() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (_distiller, episode) = broken(actor);
        assert_eq!(turns(&episode), [(actor, vec![2, 3, 4])], "to look is not to touch");
        let phase = episode.trace().unwrap()["phase"].as_str().unwrap().to_owned();
        assert!(phase.starts_with("act again, override, outcome"), "{phase}");
        assert_eq!(episode.decide().unwrap().actor, Some(actor));
        episode.override_actor(other(actor)).unwrap();
        assert!(turns(&episode).is_empty());
        let again = play(&episode);
        assert_eq!(again, [(other(actor), vec![2, 3, 4, 1, 2, 3])]);
        // Neither timeline holds anything of what failed.
        assert_eq!(episode.trajectory().unwrap().ids(), [1, 2, 3, 4, 1, 2, 3]);
        episode.observe_ids(&[10]).unwrap();
        episode.end(0.0, None).unwrap();
    }
}

#[test]
fn a_turn_that_failed_is_tried_again_where_it_stopped() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (_distiller, episode) = broken(actor);
        assert_eq!(fault(episode.act(&options(3)).unwrap().collect()), Fault::NotFinite);
        assert_eq!(turns(&episode), [(actor, vec![2, 3, 4])]);
        episode.end(0.0, None).unwrap();
    }
}

#[test]
fn a_turn_that_failed_is_closed_with_what_was_said_before() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (_distiller, episode) = broken(actor);
        episode.outcome(Some(-1.0), true).unwrap();
        assert_eq!(turns(&episode), [(actor, vec![2, 3, 4])]);
        episode.observe_ids(&[10]).unwrap();
        episode.override_actor(other(actor)).unwrap();
        assert_eq!(play(&episode)[1], (other(actor), vec![10; 6]));
        episode.end(0.0, None).unwrap();
        assert_eq!(fault(episode.outcome(None, true)), Fault::OutOfOrder);
    }
}

#[test]
fn an_episode_whose_turn_failed_ends_without_that_turn_and_is_learnt_from() {
    for actor in [Actor::Student, Actor::Teacher] {
        let (distiller, episode) = decided(actor, actor, &[10]);
        assert_eq!(play(&episode), [(actor, vec![10; 6])]);
        episode.observe_ids(&[1]).unwrap();
        episode.override_actor(actor).unwrap();
        assert_eq!(fault(episode.act(&options(6)).unwrap().collect()), Fault::NotFinite);
        episode.end(1.0, Some(false)).unwrap();
        assert_eq!(turns(&episode), [(actor, vec![10; 6])]);
        let update = distiller.build(0, &Cancel::default(), &mut |_, _| true).unwrap();
        assert_eq!(update.report().trained_tokens, 6);
    }
}

#[test]
fn a_turn_that_failed_before_its_first_token_is_still_to_be_acted() {
    for actor in [Actor::Student, Actor::Teacher] {
        let failed = || {
            let (distiller, episode) = decided(actor, actor, &[1, 4]);
            assert_eq!(fault(episode.act(&options(6)).unwrap().collect()), Fault::NotFinite);
            assert_eq!(fault(episode.outcome(None, true)), Fault::OutOfOrder, "there is nothing to write down");
            (distiller, episode)
        };
        let (_distiller, episode) = failed();
        assert_eq!(fault(episode.act(&options(6)).unwrap().collect()), Fault::NotFinite);
        episode.override_actor(other(actor)).unwrap();
        assert_eq!(play(&episode), [(other(actor), vec![1, 2, 3, 4, 1, 2])]);
        let (_distiller, episode) = failed();
        assert_eq!(episode.decide().unwrap().actor, Some(actor));
        episode.end(0.0, None).unwrap();
    }
}
