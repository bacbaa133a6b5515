//! Sessions and generation through the public interface: what is kept, shared, refused, cancelled and repeated.

#[path = "support/parrot.rs"]
mod parrot;
#[path = "support/tiny_model.rs"]
mod tiny_model;
#[path = "support/tiny_tokenizer.rs"]
#[allow(dead_code)] // other tests use the rest
mod tiny_tokenizer;

use std::time::{Duration, Instant};

use parrot::parrot;
use serde_json::{Value, json};
use squire::backend::Tensor;
use squire::backend::ops::Sampling;
use squire::backend::page::PAGE;
use squire::error::{Error, Fault};
use squire::random::{Stream, below};
use squire::serve::{
    Cancel, Engine, EngineOptions, Finish, Generation, GenerationOptions, Next, ServedModel, Session, Token,
};
use squire::tensor::Dtype;
use squire::text::chat::RenderOptions;
use squire::text::source::Source;
use tiny_model::{dense, moe, tiny};

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::default();
    change(&mut options);
    Engine::new(options).unwrap()
}

/// An engine that moves only when it is stepped or waited for.
fn driven() -> Engine {
    engine(|o| o.caller_driven = true)
}

fn model_on(engine: &Engine) -> ServedModel {
    tiny(engine, &dense(), Dtype::Bf16, 3)
}

/// The tiny dense model with a context of 2,200 tokens.
fn long_model(engine: &Engine) -> ServedModel {
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
    GenerationOptions { max_tokens, seed, ..GenerationOptions::default() }
}

fn with_sampling(temperature: f32, top_k: u32, top_p: f32, options: GenerationOptions) -> GenerationOptions {
    GenerationOptions { sampling: Sampling { temperature, top_k, top_p }, ..options }
}

fn run(session: &Session, options: GenerationOptions) -> (Vec<i32>, Vec<u32>, Finish) {
    let (chunk, finish) = session.generate(options).unwrap().collect().unwrap();
    (chunk.ids, chunk.logprobs.iter().map(|x| x.to_bits()).collect(), finish)
}

fn ids_of(session: &Session) -> Vec<i32> {
    session.tokens().unwrap().iter().map(|t| t.id).collect()
}

fn fault<T>(result: Result<T, Error>) -> Fault {
    match result {
        Ok(_) => panic!("a refusal was expected"),
        Err(e) => e.fault(),
    }
}

#[test]
fn truncating_and_generating_again_repeats_tokens_and_log_probs() {
    for document in [dense(), moe()] {
        let model = tiny(&engine(|_| {}), &document, Dtype::Bf16, 3);
        let session = session_of(&model, &ids(1, 50));
        let first = run(&session, drawing(7, 60));
        let tokens = session.tokens().unwrap();
        for keep in [50, 51, 64, 77, 109] {
            session.truncate(keep).unwrap();
            assert_eq!(session.len().unwrap(), keep);
            let again = run(&session, drawing(7, 110 - keep));
            assert_eq!((&again.0[..], &again.1[..]), (&first.0[keep - 50..], &first.1[keep - 50..]));
        }
        let same = |(a, b): (&Token, &Token)| (a.id, a.source, a.revision) == (b.id, b.source, b.revision);
        assert!(tokens.iter().zip(&session.tokens().unwrap()).all(same));
        assert_eq!(fault(session.truncate(111)), Fault::BadLength);
        assert_eq!(session.len().unwrap(), 110);
    }
}

#[test]
fn a_fork_of_2000_tokens_takes_less_than_two_pages_and_leaves_its_parent_untouched() {
    let model = long_model(&engine(|_| {}));
    let parent = session_of(&model, &ids(1, 2000));
    parent.prefill(&Cancel::default()).unwrap();
    let (pages, tokens) = (model.kv_pages(), ids_of(&parent));
    assert_eq!(pages, 2000usize.div_ceil(PAGE));
    let start = Instant::now();
    let child = parent.fork().unwrap();
    println!("a fork of 2,000 tokens took {:?}", start.elapsed());
    assert_eq!(model.kv_pages(), pages, "the fork alone takes none");
    let of_child = run(&child, drawing(1, 10));
    assert!(model.kv_pages() <= pages + 1, "{} pages more", model.kv_pages() - pages);
    assert_eq!(child.n_computed().unwrap(), 10, "a fork computes only its own rows");
    assert_eq!(ids_of(&parent), tokens);
    // The parent goes on as if there had been no child, and so does a child made from it later.
    assert_eq!(run(&parent.fork().unwrap(), drawing(1, 10)), of_child);
    assert_eq!(run(&parent, drawing(1, 10)), of_child);
    assert_eq!(run(&session_of(&model, &tokens), drawing(1, 10)), of_child);
    drop((parent, child));
    assert_eq!(model.kv_pages(), 0);
}

#[test]
fn sync_keeps_the_common_prefix_and_says_what_needs_no_computing() {
    let model = model_on(&engine(|_| {}));
    let session = session_of(&model, &ids(1, 100));
    assert_eq!(session.sync(&ids(1, 100)).unwrap(), 0, "nothing was computed yet");
    session.prefill(&Cancel::default()).unwrap();
    assert_eq!(session.sync(&ids(1, 100)).unwrap(), 100);
    let longer = [&ids(1, 100)[..], &[5, 6, 7]].concat();
    assert_eq!(session.sync(&longer).unwrap(), 100);
    let other = [&longer[..40], &[9; 30]].concat();
    let other = if longer[40] == 9 { panic!("choose another id") } else { other };
    assert_eq!(session.sync(&other).unwrap(), 40);
    assert_eq!(ids_of(&session), other);
    let before = session.n_computed().unwrap();
    let continued = run(&session, drawing(4, 8));
    assert_eq!(session.n_computed().unwrap() - before, 30 + 7, "only what changed is computed");
    assert_eq!(continued, run(&session_of(&model, &other), drawing(4, 8)));
    // Tokens that were sampled stay sampled, if the host repeats them.
    session.sync(&ids_of(&session)).unwrap();
    assert_eq!(session.tokens().unwrap()[70].source, Source::Student);
}

#[test]
fn tokens_read_back_with_who_wrote_them_and_how_likely_they_were() {
    let model = model_on(&engine(|_| {}));
    let session = Session::new(&model).unwrap();
    assert!(session.is_empty().unwrap());
    for source in Source::ALL {
        session.append(&ids(source as u64, 3), source).unwrap();
    }
    let options = GenerationOptions { source: Source::Teacher, ..with_sampling(0.7, 20, 0.9, drawing(3, 4)) };
    let (chunk, _) = session.generate(options).unwrap().collect().unwrap();
    assert_eq!((chunk.position, chunk.revision), (15, 1));
    let tokens = session.tokens().unwrap();
    let wrote: Vec<Source> = tokens.iter().map(|t| t.source).collect();
    let wanted: Vec<Source> = Source::ALL.into_iter().flat_map(|s| [s; 3]).chain([Source::Teacher; 4]).collect();
    assert_eq!(wrote, wanted);
    for (i, t) in tokens[15..].iter().enumerate() {
        let wanted = (chunk.ids[i], chunk.logprobs[i], chunk.sampled_logprobs[i], 1);
        assert_eq!((t.id, t.logprob, t.sampled_logprob, t.revision), wanted);
        assert!(t.sampled_logprob >= t.logprob, "cuts and cold make the likely likelier");
    }
    assert!(tokens[..15].iter().all(|t| t.logprob.is_nan() && t.sampled_logprob.is_nan() && t.revision == 0));
    let copy = Session::new(&model).unwrap();
    copy.append_tokens(&tokens).unwrap();
    assert_eq!(format!("{:?}", copy.tokens().unwrap()), format!("{tokens:?}"));
}

#[test]
fn text_comes_in_whole_characters_whatever_the_tokens_split() {
    // h, é in two tokens, € in three, 😀 in four, and a special token that is no text.
    let cycle: Vec<i32> = "hé€😀".bytes().map(i32::from).chain([266]).collect();
    let engine = driven();
    let model = parrot(&engine, &cycle, 280);
    let session = session_of(&model, &[266]);
    let endless = |n| GenerationOptions { ignore_model_stops: true, ..drawing(0, n) };
    let greedy = |n| with_sampling(0.0, 0, 1.0, endless(n));
    let generation = session.generate(greedy(22)).unwrap();
    let mut pieces = Vec::new();
    loop {
        match generation.next(None).unwrap() {
            Next::Chunk(chunk) => {
                assert_eq!(chunk.ids, [cycle[pieces.len() % 11]], "one token a round");
                pieces.push(chunk.text);
            }
            Next::End(finish) => break assert_eq!(finish, Finish::Length),
            Next::Timeout => unreachable!("no timeout was given"),
        }
    }
    assert_eq!(pieces[..11], ["h", "", "é", "", "", "€", "", "", "", "😀", ""]);
    assert_eq!(pieces.concat(), "hé€😀hé€😀");
    // A generation that ends inside a character says so with one U+FFFD; the ids are exact.
    let (chunk, _) = session.generate(greedy(5)).unwrap().collect().unwrap();
    assert_eq!((chunk.ids, chunk.text.as_str()), (cycle[..5].to_vec(), "hé\u{fffd}"));
    // The next generation begins with a fresh character.
    let (chunk, _) = session.generate(greedy(5)).unwrap().collect().unwrap();
    assert_eq!(chunk.text, "\u{fffd}😀");
}

#[test]
fn a_cancelled_generation_stops_at_a_whole_token_and_can_be_continued() {
    let engine = driven();
    let model = model_on(&engine);
    let whole = run(&session_of(&model, &ids(1, 9)), drawing(2, 30));
    let session = session_of(&model, &ids(1, 9));
    let generation = session.generate(drawing(2, 30)).unwrap();
    let mut begun = Vec::new();
    while begun.len() < 12 {
        match generation.next(None).unwrap() {
            Next::Chunk(chunk) => begun.extend(chunk.ids),
            other => panic!("{other:?}"),
        }
    }
    generation.cancel();
    assert!(matches!(generation.next(None).unwrap(), Next::End(Finish::Cancelled)));
    assert!(matches!(generation.next(None).unwrap(), Next::End(Finish::Cancelled)), "the end stays the end");
    assert_eq!((session.len().unwrap(), &begun[..]), (21, &whole.0[..12]));
    begun.extend(run(&session, drawing(2, 18)).0);
    assert_eq!(begun, whole.0);
}

#[test]
fn cancelling_from_another_thread_ends_what_blocks() {
    let engine = engine(|o| o.max_batch_tokens = 1);
    let model = long_model(&engine);
    let session = session_of(&model, &ids(1, 3));
    let generation = session.generate(drawing(2, 0)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            generation.cancel();
        });
        let (chunk, finish) = generation.collect().unwrap();
        assert_eq!(finish, Finish::Cancelled);
        assert_eq!(session.len().unwrap(), 3 + chunk.ids.len());
    });
    let (scored, cancel) = (session_of(&model, &ids(1, 3)), Cancel::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(20));
            cancel.set();
        });
        assert_eq!(fault(scored.score(&ids(2, 2190), 0, &cancel)), Fault::Cancelled);
    });
    assert_eq!(ids_of(&scored), ids(1, 3), "a score that was cancelled leaves no trace");
    assert_eq!(fault(scored.prefill(&cancel)), Fault::Cancelled, "a cancel stays set");
    assert_eq!(run(&scored, drawing(1, 5)), run(&session_of(&model, &ids(1, 3)), drawing(1, 5)));
}

#[test]
fn a_dropped_generation_leaves_its_session_idle_and_frees_everything() {
    for caller_driven in [false, true] {
        let engine = engine(|o| o.caller_driven = caller_driven);
        let model = model_on(&engine);
        let session = session_of(&model, &ids(1, 40));
        for _ in 0..20 {
            drop(session.generate(drawing(1, 0)).unwrap());
            session.len().unwrap();
        }
        let generation = session.generate(drawing(1, 0)).unwrap();
        drop(session);
        drop(generation);
        assert_eq!(engine.metrics().sessions, 0);
        // Nobody waited for the round under way, after which the pages go.
        let late = Instant::now() + Duration::from_secs(60);
        while model.kv_pages() > 0 && Instant::now() < late {
            std::thread::yield_now();
        }
        assert_eq!(model.kv_pages(), 0);
    }
}

#[test]
fn a_full_context_ends_a_generation_and_refuses_more() {
    let model = model_on(&engine(|_| {}));
    let session = session_of(&model, &ids(1, 505));
    let (generated, _, finish) = run(&session, drawing(1, 0));
    assert_eq!((generated.len(), finish), (7, Finish::ContextFull));
    assert_eq!(fault(session.generate(drawing(1, 1))), Fault::ContextFull);
    assert_eq!(fault(session.append(&[1], Source::Host)), Fault::ContextFull);
    assert_eq!(fault(session.score(&[1], 0, &Cancel::default())), Fault::ContextFull);
    assert_eq!(fault(session.sync(&ids(2, 513))), Fault::ContextFull);
    assert_eq!(session.len().unwrap(), 512);
    session.truncate(511).unwrap();
    assert_eq!(run(&session, drawing(1, 0)).0, generated[6..]);
}

#[test]
fn a_busy_session_refuses_everything_at_once() {
    let engine = driven();
    let model = model_on(&engine);
    let session = session_of(&model, &ids(1, 5));
    let generation = session.generate(drawing(1, 3)).unwrap();
    for round in 0..2 {
        let refusals = [
            fault(session.append(&[1], Source::Host)),
            fault(session.sync(&[1])),
            fault(session.truncate(1)),
            fault(session.fork()),
            fault(session.rebase()),
            fault(session.len()),
            fault(session.tokens()),
            fault(session.generate(drawing(1, 1))),
            fault(session.score(&[1], 0, &Cancel::default())),
            fault(session.prefill(&Cancel::default())),
            fault(session.append_chat(json!([]), &RenderOptions::default())),
        ];
        let n = refusals.iter().filter(|&&f| f == Fault::SessionBusy).count();
        // The model has no template, which is found before anything else.
        assert_eq!((n, refusals[10]), (10, Fault::MissingFile), "round {round}: {refusals:?}");
        engine.step().unwrap();
    }
    assert_eq!(engine.metrics().rounds, 2, "the refused calls did not step");
    assert_eq!(generation.collect().unwrap().0.ids.len(), 3);
    assert_eq!(session.len().unwrap(), 8);
}

#[test]
fn an_empty_session_has_nothing_to_continue_or_to_score_after() {
    let model = model_on(&engine(|_| {}));
    let session = Session::new(&model).unwrap();
    assert_eq!(fault(session.generate(drawing(1, 1))), Fault::EmptySession);
    assert_eq!(fault(session.score(&[1, 2], 0, &Cancel::default())), Fault::EmptySession);
    session.prefill(&Cancel::default()).unwrap();
    assert_eq!(session.len().unwrap(), 0);
    assert_eq!(session_of(&model, &[1]).score(&[], 0, &Cancel::default()).unwrap(), []);
}

#[test]
fn ids_outside_the_vocabulary_change_nothing() {
    let model = model_on(&engine(|_| {}));
    let session = session_of(&model, &ids(1, 5));
    for bad in [-1, 301, i32::MIN, i32::MAX] {
        let list = [1, 2, bad];
        assert_eq!(fault(session.append(&list, Source::Host)), Fault::IdOutOfRange);
        assert_eq!(fault(session.sync(&list)), Fault::IdOutOfRange);
        assert_eq!(fault(session.score(&list, 0, &Cancel::default())), Fault::IdOutOfRange);
        assert_eq!(fault(session.append_tokens(&[Token::given(bad, Source::Host)])), Fault::IdOutOfRange);
        let options = GenerationOptions { stop_ids: list.to_vec(), ..drawing(1, 1) };
        assert_eq!(fault(session.generate(options)), Fault::IdOutOfRange);
    }
    assert_eq!(ids_of(&session), ids(1, 5));
    assert_eq!(run(&session, drawing(1, 5)), run(&session_of(&model, &ids(1, 5)), drawing(1, 5)));
}

#[test]
fn options_outside_their_range_are_refused() {
    let model = model_on(&engine(|_| {}));
    let session = session_of(&model, &ids(1, 5));
    for (temperature, top_p) in
        [(-0.1, 1.0), (f32::NAN, 1.0), (f32::INFINITY, 1.0), (1.0, 0.0), (1.0, 1.1), (1.0, f32::NAN)]
    {
        let refused = session.generate(with_sampling(temperature, 0, top_p, drawing(1, 1)));
        assert_eq!(fault(refused), Fault::BadOption, "{temperature} {top_p}");
    }
    assert_eq!(fault(session.score(&[1], 302, &Cancel::default())), Fault::BadOption);
    assert_eq!(session.score(&[1], 301, &Cancel::default()).unwrap()[0].top.len(), 301);
}

#[test]
fn a_score_with_too_many_entries_is_refused_before_anything_else() {
    let model = model_on(&engine(|_| {}));
    let session = session_of(&model, &ids(1, 5));
    let most = (1 << 24) / 301;
    let refused = session.score(&vec![1; most + 1], 301, &Cancel::default()).unwrap_err();
    assert_eq!(refused.fault(), Fault::BadOption);
    let (wanted, allowed) = (((most + 1) * 301).to_string(), (1 << 24).to_string());
    assert!(refused.message().contains(&wanted) && refused.message().contains(&allowed), "{}", refused.message());
    // As many as allowed are looked at further, and found too long for the context.
    assert_eq!(fault(session.score(&vec![1; most], 301, &Cancel::default())), Fault::ContextFull);
    assert_eq!(ids_of(&session), ids(1, 5));
}

#[test]
fn eight_sessions_decoding_read_the_weights_once_a_round() {
    let engine = driven();
    let model = model_on(&engine);
    let sessions: Vec<Session> = (0..8).map(|i| session_of(&model, &ids(i, 1))).collect();
    let running: Vec<Generation> =
        sessions.iter().enumerate().map(|(i, s)| s.generate(drawing(i as u64, 20)).unwrap()).collect();
    while engine.step().unwrap() {}
    let metrics = engine.metrics();
    assert_eq!((metrics.rounds, metrics.rows, metrics.sampled, metrics.sessions), (20, 160, 160, 8));
    // Counted where products read: every matrix once a round, the tied table as the head.
    let matrices = |t: &Tensor| if t.shape().extents().len() == 2 { t.bytes().len() as u64 } else { 0 };
    let pass: u64 = model.current().weights.tensors().into_iter().map(|(_, t)| matrices(t)).sum();
    assert_eq!(metrics.weight_bytes, 20 * pass);
    for (generation, session) in running.iter().zip(&sessions) {
        assert_eq!(generation.collect().unwrap().0.ids, ids_of(session)[1..]);
    }
}

#[test]
fn a_host_that_steps_gets_what_the_engines_thread_gives() {
    let results = [false, true].map(|caller_driven| {
        let engine = engine(|o| (o.caller_driven, o.max_batch_tokens) = (caller_driven, 11));
        let model = model_on(&engine);
        assert_eq!(engine.step().is_err_and(|e| e.fault() == Fault::OutOfOrder), !caller_driven);
        let sessions: Vec<Session> = (0..5).map(|i| session_of(&model, &ids(i, 30))).collect();
        let running: Vec<Generation> = sessions.iter().map(|s| s.generate(drawing(6, 25)).unwrap()).collect();
        let all: Vec<_> = running.iter().map(|g| g.collect().unwrap()).collect();
        all.into_iter().map(|(chunk, finish)| (chunk.ids, chunk.logprobs, finish)).collect::<Vec<_>>()
    });
    assert_eq!(results[0], results[1]);
    assert_ne!(results[0][0].0, results[0][1].0, "the prompts differ, so should the answers");
}

#[test]
fn a_pull_waits_no_longer_than_it_is_told() {
    let model = long_model(&engine(|_| {}));
    let session = session_of(&model, &ids(1, 2000));
    let generation = session.generate(drawing(1, 1)).unwrap();
    let mut timeouts = 0;
    while let Next::Timeout = generation.next(Some(Duration::ZERO)).unwrap() {
        timeouts += 1;
    }
    assert!(timeouts > 0, "a prefill of 2,000 tokens takes longer than nothing");
    assert!(matches!(generation.next(Some(Duration::MAX)).unwrap(), Next::End(Finish::Length)));
}

#[test]
fn cuts_of_the_distribution_are_obeyed() {
    let model = model_on(&engine(|_| {}));
    let prompt = ids(1, 10);
    let checked = |temperature: f32, top_k: usize, top_p: f32| {
        let session = session_of(&model, &prompt);
        let options = with_sampling(temperature, top_k as u32, top_p, drawing(5, 80));
        let (chunk, _) = session.generate(options).unwrap().collect().unwrap();
        let rows = session_of(&model, &prompt).score(&chunk.ids, 301, &Cancel::default()).unwrap();
        let mut unlikely = 0;
        for ((id, sampled), row) in chunk.ids.iter().zip(&chunk.sampled_logprobs).zip(&rows) {
            let mass = |p: &f32| ((*p as f64) / temperature as f64).exp();
            let all: f64 = row.top.iter().map(|(_, p)| mass(p)).sum();
            let rank = row.top.iter().position(|(i, _)| i == id).unwrap();
            let above = |n: usize, of: f64| row.top[..n].iter().map(|(_, p)| mass(p)).sum::<f64>() / of;
            // Of the top_k, the fewest whose mass reaches top_p.
            let in_k = above(top_k, 1.0);
            let kept = (1..=top_k).find(|&n| above(n, in_k) >= top_p as f64 - 1e-6).unwrap_or(top_k);
            assert!(rank < kept, "rank {rank} of {kept} kept");
            let wanted = (mass(&row.top[rank].1) / above(kept, 1.0)).ln();
            assert!((wanted - *sampled as f64).abs() < 1e-3, "{wanted} {sampled}");
            assert!(all >= in_k);
            unlikely += usize::from(rank > 0);
        }
        assert!(unlikely > 10, "only {unlikely} of 80 draws say anything");
    };
    checked(1.0, 301, 1.0);
    checked(1.0, 5, 1.0);
    checked(1.0, 301, 0.5);
    checked(0.7, 12, 0.8);
    checked(1.5, 301, 0.9);
}

#[test]
fn temperature_zero_one_candidate_and_a_tiny_nucleus_are_all_greedy() {
    let model = model_on(&engine(|_| {}));
    let of = |temperature, top_k, top_p, seed| {
        run(&session_of(&model, &ids(1, 10)), with_sampling(temperature, top_k, top_p, drawing(seed, 40)))
    };
    let greedy = of(0.0, 0, 1.0, 1);
    assert_eq!(of(0.0, 0, 1.0, 2), greedy, "greedy has no seed");
    assert_eq!(of(1.0, 1, 1.0, 3), greedy);
    assert_eq!(of(1.0, 0, 1e-6, 4), greedy);
    assert_ne!(of(1.0, 0, 1.0, 5), greedy);
    let rows = session_of(&model, &ids(1, 10)).score(&greedy.0, 1, &Cancel::default()).unwrap();
    assert!(rows.iter().zip(&greedy.0).all(|(row, id)| row.top[0].0 == *id));
}

#[test]
fn a_stop_id_ends_a_generation_and_is_part_of_it() {
    let cycle = [10, 20, 30, 40, 50];
    let model = parrot(&engine(|_| {}), &cycle, 280);
    let greedy = with_sampling(0.0, 0, 1.0, drawing(0, 100));
    let session = session_of(&model, &[50]);
    let stopping = GenerationOptions { stop_ids: vec![99, 40], ..greedy };
    let (generated, _, finish) = run(&session, stopping.clone());
    assert_eq!((generated, finish), (vec![10, 20, 30, 40], Finish::Stop));
    assert_eq!(ids_of(&session), [50, 10, 20, 30, 40]);
    // Where the last token allowed is a stop id, that is why it ended; the stop id in a prompt is none.
    let (generated, _, finish) = run(&session, GenerationOptions { max_tokens: 5, ..stopping });
    assert_eq!((generated, finish), (vec![50, 10, 20, 30, 40], Finish::Stop));
}

#[test]
fn hidden_states_are_kept_for_the_rows_that_predict_actions() {
    let model = model_on(&engine(|o| o.max_batch_tokens = 13));
    let session = session_of(&model, &ids(1, 40));
    session.keep_hidden().unwrap();
    run(&session, drawing(1, 9));
    session.append(&ids(2, 20), Source::Host).unwrap();
    run(&session, drawing(2, 30));
    session.truncate(80).unwrap();
    run(&session, drawing(2, 5));
    let hidden = session.take_hidden().unwrap();
    let positions: Vec<usize> = (40..49).chain(69..85).collect();
    assert_eq!(hidden.positions, positions);
    // The head of those rows gives the log-probs that were sampled with.
    let (m, tokens) = (model.model(), session.tokens().unwrap());
    let rows = squire::backend::Tensor::from_f32(&[positions.len(), 48], &hidden.rows).unwrap();
    let mut logits = squire::backend::Tensor::zeros(Dtype::F32, &[positions.len(), 301]).unwrap();
    squire::model::forward::head_forward(m, &model.current().weights, &mut logits, &rows, positions.len()).unwrap();
    let next: Vec<i32> = positions.iter().map(|&p| tokens[p].id).collect();
    let found = squire::backend::ops::logprobs_of(&m.device, &logits, &next, positions.len()).unwrap();
    assert_eq!(found, positions.iter().map(|&p| tokens[p].logprob).collect::<Vec<_>>());
    assert!(session.take_hidden().unwrap().positions.is_empty());
}

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn messages_append_behind_turns_begun_sampled_or_taken_back() {
    let model = parrot(&engine(|_| {}), &[1, 2], 280);
    let text = |session: &Session| model.tokenizer().unwrap().decode(&ids_of(session), false);
    let prompting = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let session = Session::new(&model).unwrap();
    let first = session.append_chat(user("hello"), &prompting).unwrap();
    assert_eq!(text(&session), "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
    let glue: Vec<i32> = first.iter().filter(|t| t.source == Source::Glue).map(|t| t.id).collect();
    assert_eq!(glue, [265, 266, 265]);
    // An answer that a limit cut off is closed by the template.
    session.append(&[104, 105], Source::Student).unwrap();
    let answered = session.len().unwrap();
    session.append_chat(user("on"), &prompting).unwrap();
    let one =
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\non<|im_end|>\n";
    assert_eq!(text(&session), format!("{one}<|im_start|>assistant\n"));
    // Taken back to before the turn was begun, nothing is there to be closed.
    let begun = "<|im_start|>assistant\n";
    let prompt = model.tokenizer().unwrap().encode(begun, squire::text::tokenizer::Control::All).len();
    session.truncate(session.len().unwrap() - prompt).unwrap();
    assert_eq!(text(&session), one);
    session.append_chat(user("and"), &prompting).unwrap();
    assert_eq!(text(&session), format!("{one}<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"));
    // An answer that ended itself is not closed twice.
    session.truncate(answered).unwrap();
    session.append(&[266], Source::Student).unwrap();
    session.append_chat(user("on"), &RenderOptions::default()).unwrap();
    assert_eq!(text(&session), one);
    // Nor is one that the host wrote by ids of its own, whatever it wrote behind it.
    let raw = |text: &str| model.tokenizer().unwrap().encode(text, squire::text::tokenizer::Control::All);
    session.truncate(answered - 2).unwrap();
    session.append(&raw("hi<|im_end|>\n<|im_start|>user\non<|im_end|>\n"), Source::Host).unwrap();
    assert_eq!(text(&session), one);
    session.append_chat(user("and"), &RenderOptions::default()).unwrap();
    assert_eq!(text(&session), format!("{one}<|im_start|>user\nand<|im_end|>\n"));
}
