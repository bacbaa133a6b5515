//! Pages that are found by their ids: what one session computed from the same ids under the same weights, no other computes
//! again; nothing of it changes a bit, and it gives way to whoever works.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use squire::backend::page::PAGE;
use squire::model::Weights;
use squire::random::{Stream, below};
use squire::serve::{Cancel, Engine, EngineOptions, GenerationOptions, Metrics, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{adapter, dense, tiny};

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::default();
    change(&mut options);
    Engine::new(options).unwrap()
}

/// The tiny dense model with a context of 2,200 tokens.
fn model_on(engine: &Engine) -> ServedModel {
    let mut document = dense();
    document["max_position_embeddings"] = 2200.into();
    tiny(engine, &document, Dtype::Bf16, 3)
}

fn ids(seed: u64, n: usize) -> Vec<i32> {
    (0..n as u64).map(|i| below(Stream::World, &[seed, i], 301) as i32).collect()
}

fn session_of(model: &ServedModel, ids: &[i32]) -> Session {
    let session = Session::new(model).unwrap();
    session.append(ids, Source::Host).unwrap();
    session
}

fn drawing(seed: u64, max_tokens: usize) -> GenerationOptions {
    GenerationOptions { max_tokens, seed, ignore_model_stops: true, ..GenerationOptions::default() }
}

fn bytes_of_a_page(model: &ServedModel) -> u64 {
    model.model().page_shape().bytes() as u64
}

type Said = (Vec<i32>, Vec<u32>);

fn run(session: &Session, seed: u64, n: usize) -> Said {
    let (chunk, _) = session.generate(drawing(seed, n)).unwrap().collect().unwrap();
    (chunk.ids, chunk.logprobs.iter().map(|x| x.to_bits()).collect())
}

/// What `f` counted.
fn counted(model: &ServedModel, f: impl FnOnce()) -> (u64, u64, u64) {
    let before = model.engine().metrics();
    f();
    let Metrics { rows, prefix_hits, prefix_rows, .. } = model.engine().metrics();
    (rows - before.rows, prefix_hits - before.prefix_hits, prefix_rows - before.prefix_rows)
}

/// The same said by an engine on which nobody else is.
fn alone(prompt: &[i32], seed: u64, n: usize) -> Said {
    run(&session_of(&model_on(&engine(|_| {})), prompt), seed, n)
}

#[test]
fn a_session_restored_by_its_ids_computes_what_is_new() {
    let model = model_on(&engine(|_| {}));
    let prompt = ids(1, 10 * PAGE + 7);
    let first = session_of(&model, &prompt);
    let said = run(&first, 5, 3);
    drop(first);
    assert_eq!((model.kv_pages(), model.idle_kv_pages()), (0, 10));
    let (rows, hits, found) = counted(&model, || assert_eq!(run(&session_of(&model, &prompt), 5, 3), said));
    assert_eq!((rows, hits, found), (7 + 2, 1, 10 * PAGE as u64), "the rest of the prompt, and two tokens of three");
    // Of a prompt that ends with a page the last row is computed, since a token is drawn by it.
    let (rows, _, found) = counted(&model, || drop(run(&session_of(&model, &prompt[..10 * PAGE]), 1, 1)));
    assert_eq!((rows, found), (PAGE as u64, 9 * PAGE as u64));
    // One id that differs, and everything behind it is another's.
    let mut other = prompt.clone();
    other[4 * PAGE] += 1;
    let (_, hits, found) = counted(&model, || assert_eq!(run(&session_of(&model, &other), 9, 4), alone(&other, 9, 4)));
    assert_eq!((hits, found), (1, 4 * PAGE as u64));
}

#[test]
fn a_chat_of_twenty_turns_computes_each_token_once() {
    let model = model_on(&engine(|_| {}));
    let mut so_far: Vec<i32> = Vec::new();
    for turn in 0..20 {
        so_far.extend(ids(turn, 40));
        // Each turn is another session, as a host has it that sends all ids anew.
        let session = session_of(&model, &so_far);
        let (rows, _, found) = counted(&model, || so_far.extend(run(&session, turn, 20).0));
        let new = so_far.len() as u64 - 1 - found;
        assert_eq!(rows, new);
        assert!(new < 60 + PAGE as u64, "turn {turn}: {new} rows for 60 new tokens");
    }
}

#[test]
fn rollouts_of_one_task_that_begin_together_compute_its_prompt_once() {
    let model = model_on(&engine(|_| {}));
    let prompt = ids(2, 20 * PAGE + 5);
    let sessions: Vec<Session> = (0..8).map(|_| session_of(&model, &prompt)).collect();
    let (rows, _, found) = counted(&model, || {
        let running: Vec<_> =
            sessions.iter().zip(0..).map(|(s, seed)| s.generate(drawing(seed, 10)).unwrap()).collect();
        for (generation, seed) in running.iter().zip(0..) {
            let (chunk, _) = generation.collect().unwrap();
            let bits: Vec<u32> = chunk.logprobs.iter().map(|x| x.to_bits()).collect();
            assert_eq!((chunk.ids, bits), alone(&prompt, seed, 10));
        }
    });
    assert_eq!(rows, (20 * PAGE + 8 * (5 + 9)) as u64);
    assert_eq!(found, 7 * 20 * PAGE as u64);
    assert!(model.kv_pages() <= 20 + 8, "and holds it once: {}", model.kv_pages());
}

#[test]
fn whoever_leads_may_be_cancelled_and_the_others_go_on() {
    let model = model_on(&engine(|o| o.caller_driven = true));
    let prompt = ids(3, 1500);
    let (first, second) = (session_of(&model, &prompt), session_of(&model, &prompt));
    let leads = first.generate(drawing(1, 4)).unwrap();
    let follows = second.generate(drawing(2, 4)).unwrap();
    (0..3).for_each(|_| assert!(model.engine().step().unwrap()));
    leads.cancel();
    let (chunk, _) = follows.collect().unwrap();
    assert_eq!(chunk.ids, alone(&prompt, 2, 4).0);
}

#[test]
fn idle_pages_give_way_to_work_and_are_no_more_than_may_be() {
    let page = {
        let model = model_on(&engine(|_| {}));
        bytes_of_a_page(&model)
    };
    // Room for 40 pages, of which 12 may be idle.
    let model = model_on(&engine(|o| (o.kv_budget, o.prefix_budget) = (40 * page, 12 * page)));
    for seed in 0..4 {
        drop(run(&session_of(&model, &ids(seed, 10 * PAGE + 1)), seed, 1));
    }
    assert_eq!((model.kv_pages(), model.idle_kv_pages()), (0, 12));
    // The latest are there, and of the one before only what came first in it: its end went before its beginning.
    let (_, _, found) = counted(&model, || drop(run(&session_of(&model, &ids(3, 10 * PAGE + 1)), 3, 1)));
    assert_eq!(found, 10 * PAGE as u64);
    let (_, _, found) = counted(&model, || drop(run(&session_of(&model, &ids(2, 10 * PAGE + 1)), 2, 1)));
    assert_eq!(found, 2 * PAGE as u64);
    // Who needs all of the budget has it, and nobody fails or is evicted for idle pages.
    let large = session_of(&model, &ids(9, 39 * PAGE + 5));
    assert_eq!(run(&large, 9, 2), alone(&ids(9, 39 * PAGE + 5), 9, 2));
    assert_eq!((model.kv_pages(), model.idle_kv_pages()), (40, 0));
    assert_eq!(model.engine().metrics().evicted, 0);
    // With none allowed, sessions that exist share all the same.
    let model = model_on(&engine(|o| o.prefix_budget = 0));
    let prompt = ids(1, 3 * PAGE + 1);
    let first = session_of(&model, &prompt);
    run(&first, 1, 1);
    let (_, _, found) = counted(&model, || drop(run(&session_of(&model, &prompt), 1, 1)));
    assert_eq!(found, 3 * PAGE as u64);
    drop(first);
    assert_eq!((model.kv_pages(), model.idle_kv_pages()), (0, 0));
}

#[test]
fn a_session_that_fills_the_budget_goes_on_within_its_own_pages() {
    // Nobody else holds the page that it writes into again, so it needs none beside it.
    for caller_driven in [false, true] {
        let page = bytes_of_a_page(&model_on(&engine(|_| {})));
        let model = model_on(&engine(|o| (o.kv_budget, o.caller_driven) = (4 * page, caller_driven)));
        let prompt = ids(1, 4 * PAGE);
        let session = session_of(&model, &prompt);
        session.prefill(&Cancel::default()).unwrap();
        session.truncate(4 * PAGE - 5).unwrap();
        session.append(&ids(2, 3), Source::Host).unwrap();
        let so_far = [&prompt[..4 * PAGE - 5], &ids(2, 3)[..]].concat();
        assert_eq!(run(&session, 1, 2), alone(&so_far, 1, 2));
    }
}

#[test]
fn a_prompt_that_is_found_is_told_as_done() {
    let model = model_on(&engine(|_| {}));
    let prompt = ids(1, 3 * PAGE);
    let told = || {
        let (session, mut all) = (session_of(&model, &prompt), Vec::new());
        let mut hear = |done, of| {
            all.push((done, of));
            true
        };
        session.prefill_watched(&Cancel::default(), &mut hear).unwrap();
        (all, session)
    };
    let n = 3 * PAGE as u64;
    assert_eq!(told().0.last(), Some(&(n, n)));
    assert_eq!(told().0, [(0, n), (n, n)], "nothing was computed");
}

#[test]
fn who_cannot_have_enough_costs_those_behind_nothing() {
    let page = bytes_of_a_page(&model_on(&engine(|_| {})));
    let model = model_on(&engine(|o| (o.kv_budget, o.caller_driven, o.max_batch_tokens) = (40 * page, true, 64)));
    let shared = ids(7, 20 * PAGE);
    // The first holds 30 pages of which 20 are the shared ones, five behind hold the same and one more each.
    let first = session_of(&model, &[&shared[..], &ids(8, 9 * PAGE)].concat());
    let many: Vec<Session> = (0..5).map(|i| session_of(&model, &[&shared[..], &ids(20 + i, 3)].concat())).collect();
    let mut running = vec![first.generate(drawing(1, 30)).unwrap()];
    while model.kv_pages() < 30 {
        assert!(model.engine().step().unwrap());
    }
    // One that needs 20 pages more than there are while the first runs.
    let large = session_of(&model, &ids(9, 20 * PAGE));
    running.push(large.generate(drawing(2, 2)).unwrap());
    running.extend(many.iter().map(|session| session.generate(drawing(3, 2)).unwrap()));
    let ids: Vec<Vec<i32>> = running.iter().map(|generation| generation.collect().unwrap().0.ids).collect();
    assert!(ids.iter().all(|ids| !ids.is_empty()));
    // Not anew in each of the thirty rounds of the first.
    let preempted = model.engine().metrics().preempted;
    assert!(preempted < 5, "what others share is not to be had from them: {preempted}");
}

#[test]
fn pages_of_one_revision_are_no_others_and_go_with_it() {
    let model = model_on(&engine(|_| {}));
    let prompt = ids(1, 6 * PAGE + 1);
    let old = session_of(&model, &prompt);
    let said = run(&old, 1, 4);
    let mut changed = Weights::copied(model.config(), &model.current().weights).unwrap();
    changed.norm.bytes_mut().reverse();
    model.publish(changed, 4).unwrap();
    let (_, hits, _) = counted(&model, || assert_ne!(run(&session_of(&model, &prompt), 1, 4), said));
    assert_eq!(hits, 0);
    assert_eq!((model.idle_kv_pages(), model.kv_pages()), (6, 7), "of the new one, and the old session's own");
    // The old one's pages serve its own sessions only, and are gone with the last of them.
    let fork = old.fork().unwrap();
    fork.truncate(prompt.len()).unwrap();
    drop(old);
    assert_eq!(run(&fork, 1, 4), said);
    drop(fork);
    assert_eq!((model.idle_kv_pages(), model.kv_pages()), (6, 0));
    // An adapter is a revision of its own too.
    model.add_adapter("a", adapter(&model, 4, Dtype::F32, 1)).unwrap();
    let on_adapter = Session::with_adapter(&model, "a").unwrap();
    on_adapter.append(&prompt, Source::Host).unwrap();
    let (_, hits, _) = counted(&model, || drop(run(&on_adapter, 1, 2)));
    assert_eq!(hits, 0);
}

#[test]
fn scores_and_their_top_ids_are_the_same_where_pages_are_found() {
    let model = model_on(&engine(|_| {}));
    let (prompt, scored) = (ids(1, 5 * PAGE + 3), ids(2, 70));
    let score = |model: &ServedModel| session_of(model, &prompt).score(&scored, 3, &Cancel::default()).unwrap();
    let first = score(&model);
    let mut again = Vec::new();
    let (rows, _, found) = counted(&model, || again = score(&model));
    assert_eq!(again, first);
    assert_eq!((rows, found), (3 + 70, 5 * PAGE as u64), "each row that scores is computed");
    // The rows of the last page before the scored ids may be another's: whole pages alone are taken.
    let whole = &prompt[..5 * PAGE];
    let mut scores = Vec::new();
    let (rows, ..) =
        counted(&model, || scores = session_of(&model, whole).score(&scored, 0, &Cancel::default()).unwrap());
    assert_eq!(rows, PAGE as u64 + 70, "the row before the first scored id says its log-prob");
    let fresh = session_of(&model_on(&engine(|_| {})), whole).score(&scored, 0, &Cancel::default()).unwrap();
    assert_eq!(scores, fresh);
}

#[test]
fn random_sessions_under_a_tight_budget_say_what_they_say_alone() {
    let page = bytes_of_a_page(&model_on(&engine(|_| {})));
    let model = model_on(&engine(|o| (o.kv_budget, o.prefix_budget) = (24 * page, 8 * page)));
    let prefix = ids(7, 6 * PAGE);
    let draw = |case: u64, what: u64, n: u64| below(Stream::World, &[99, case, what], n);
    let jobs: Vec<(Vec<i32>, u64)> = (0..40)
        .map(|case| {
            let mut prompt = prefix[..(draw(case, 0, 7) as usize) * PAGE].to_vec();
            prompt.extend(ids(draw(case, 1, 3), 1 + draw(case, 2, 90) as usize));
            (prompt, case)
        })
        .collect();
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (model, jobs) = (&model, &jobs);
            scope.spawn(move || {
                for (prompt, seed) in jobs.iter().skip(worker).step_by(4) {
                    let session = session_of(model, prompt);
                    if draw(*seed, 3, 5) == 0 {
                        let generation = session.generate(drawing(*seed, 30)).unwrap();
                        generation.next(None).unwrap();
                        drop(generation);
                        session.truncate(prompt.len()).unwrap();
                    }
                    assert_eq!(run(&session, *seed, 12), alone(prompt, *seed, 12), "case {seed}");
                }
            });
        }
    });
    assert!(model.engine().metrics().prefix_hits > 5);
    assert_eq!(model.kv_pages(), 0);
    assert!(model.idle_kv_pages() <= 8);
}
