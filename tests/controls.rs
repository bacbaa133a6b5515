//! Controls of sampling, stop strings, log-probs beside tokens and continuations, through the public interface.

#[path = "support/parrot.rs"]
mod parrot;
#[path = "support/tiny_model.rs"]
mod tiny_model;
#[path = "support/tiny_tokenizer.rs"]
#[allow(dead_code)] // other tests use the rest
mod tiny_tokenizer;

use std::time::{Duration, Instant};

use parrot::parrot;
use squire::backend::ops::{RowList, Sampling};
use squire::error::{Error, Fault};
use squire::model::forward::{Segment, forward, head};
use squire::model::{Activations, KvCache, KvPool};
use squire::random::{Stream, below};
use squire::serve::{
    Cancel, Chunk, Controls, Engine, EngineOptions, Finish, GenerationOptions, Next, ServedModel, Session,
};
use squire::tensor::Dtype;
use squire::text::StopFound;
use squire::text::source::Source;
use tiny_model::{dense, tiny};

const V: usize = 301;

fn engine(change: impl FnOnce(&mut EngineOptions)) -> Engine {
    let mut options = EngineOptions::default();
    change(&mut options);
    Engine::new(options).unwrap()
}

fn model_on(engine: &Engine) -> ServedModel {
    tiny(engine, &dense(), Dtype::Bf16, 3)
}

/// Ids with repetitions among them.
fn prompt(seed: u64, n: usize) -> Vec<i32> {
    (0..n as u64).map(|i| below(Stream::World, &[seed, i], 40) as i32).collect()
}

fn session_of(model: &ServedModel, ids: &[i32]) -> Session {
    let session = Session::new(model).unwrap();
    session.append(ids, Source::Host).unwrap();
    session
}

fn ids_of(session: &Session) -> Vec<i32> {
    session.tokens().unwrap().iter().map(|t| t.id).collect()
}

fn refusal<T>(result: Result<T, Error>) -> (Fault, String) {
    let e = result.err().expect("a refusal was expected");
    (e.fault(), e.message().to_string())
}

fn collect(session: &Session, options: &GenerationOptions) -> (Chunk, Finish) {
    session.generate(options.clone()).unwrap().collect().unwrap()
}

/// Ids, log-probs, log-probs of the draw, likeliest ids and their log-probs.
type Bits = (Vec<i32>, Vec<u32>, Vec<u32>, Vec<i32>, Vec<u32>);

/// A chunk's numbers as bits.
fn bits(chunk: &Chunk) -> Bits {
    let of = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let Chunk { ids, logprobs, sampled_logprobs, top_ids, top_logprobs, .. } = chunk;
    (ids.clone(), of(logprobs), of(sampled_logprobs), top_ids.clone(), of(top_logprobs))
}

fn neutral() -> Controls {
    Controls::default()
}

/// Each control alone, and all of them.
fn settings() -> Vec<(Sampling, Controls)> {
    let raw = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let biases = vec![(3, 4.0), (17, -100.0), (299, 2.5)];
    let all = Controls {
        min_p: 0.02,
        typical_p: 0.95,
        repetition_penalty: 1.2,
        presence_penalty: 0.4,
        frequency_penalty: 0.3,
        no_repeat_ngram_size: 2,
        logit_bias: biases.clone(),
    };
    vec![
        (raw, Controls { min_p: 0.05, ..neutral() }),
        (raw, Controls { typical_p: 0.6, ..neutral() }),
        (raw, Controls { repetition_penalty: 1.6, ..neutral() }),
        (raw, Controls { repetition_penalty: 0.7, ..neutral() }),
        (raw, Controls { presence_penalty: 1.5, ..neutral() }),
        (raw, Controls { frequency_penalty: 1.5, ..neutral() }),
        (raw, Controls { frequency_penalty: -1.0, ..neutral() }),
        (raw, Controls { no_repeat_ngram_size: 1, ..neutral() }),
        (Sampling { temperature: 0.3, ..raw }, Controls { no_repeat_ngram_size: 2, ..neutral() }),
        (raw, Controls { logit_bias: biases, ..neutral() }),
        (Sampling { temperature: 0.8, top_k: 20, top_p: 0.95 }, all.clone()),
        (Sampling { temperature: 1.3, top_k: 0, top_p: 1.0 }, all.clone()),
        (Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 }, all),
    ]
}

fn options(sampling: Sampling, controls: Controls, seed: u64, max_tokens: usize) -> GenerationOptions {
    GenerationOptions { sampling, controls, seed, max_tokens, top_logprobs: 5, ..GenerationOptions::default() }
}

/// The logits [n, V] of all ids of a timeline, by a forward of its own.
fn raw_logits(model: &ServedModel, ids: &[i32]) -> Vec<Vec<f64>> {
    let (m, revision) = (model.model(), model.current());
    let pool = KvPool::new(&m.device, m.page_shape(), u64::MAX);
    let mut kv = KvCache::new(&pool);
    let mut activations = Activations::for_serving(m).unwrap();
    let weights = &revision.weights;
    forward(m, weights, &mut [Segment { ids, kv: &mut kv, adapter: None }], &mut activations).unwrap();
    let head = head(m, weights, &mut activations, &RowList::first(ids.len()).unwrap()).unwrap();
    let rows = head.logits.f32().chunks_exact(V).take(ids.len());
    rows.map(|row| row.iter().map(|&x| x as f64).collect()).collect()
}

fn log_softmax(x: &[f64]) -> Vec<f64> {
    let m = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = m + x.iter().map(|x| (x - m).exp()).sum::<f64>().ln();
    x.iter().map(|x| x - lse).collect()
}

/// What is drawn from after `before`, of which the last `n_turn` were sampled in the turn under way: ln p of each id, as
/// transformers' processors and vLLM's penalties have it, one after the other.
fn reference(logits: &[f64], before: &[i32], n_turn: usize, s: Sampling, c: &Controls) -> Vec<f64> {
    let mut x = logits.to_vec();
    for &(id, bias) in &c.logit_bias {
        x[id as usize] += bias as f64;
    }
    for (id, x) in x.iter_mut().enumerate() {
        if before.contains(&(id as i32)) {
            *x = if *x < 0.0 { *x * c.repetition_penalty as f64 } else { *x / c.repetition_penalty as f64 };
        }
        let times = before[before.len() - n_turn..].iter().filter(|&&b| b == id as i32).count();
        *x -= times as f64 * c.frequency_penalty as f64 + if times > 0 { c.presence_penalty as f64 } else { 0.0 };
        let n = c.no_repeat_ngram_size as usize;
        let next = [before, &[id as i32]].concat();
        if n > 0 && before.len() >= n && before.windows(n).any(|gram| gram == &next[next.len() - n..]) {
            *x = f64::NEG_INFINITY;
        }
    }
    if s.temperature == 0.0 {
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let first = x.iter().position(|&x| x == most).unwrap();
        return (0..x.len()).map(|i| if i == first { 0.0 } else { f64::NEG_INFINITY }).collect();
    }
    x.iter_mut().for_each(|x| *x /= s.temperature as f64);
    // Each cut looks at the softmax of what the one before has left.
    let ranked = |p: &[f64]| {
        let mut ids: Vec<usize> = (0..p.len()).collect();
        ids.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
        ids
    };
    let mut cut = |keep: &dyn Fn(&[f64]) -> Vec<usize>| {
        let p: Vec<f64> = log_softmax(&x).iter().map(|l| l.exp()).collect();
        let kept = keep(&p);
        x.iter_mut().enumerate().filter(|(i, _)| !kept.contains(i)).for_each(|(_, x)| *x = f64::NEG_INFINITY);
    };
    let until = |ids: Vec<usize>, p: &[f64], mass: f64| {
        let mut sum = 0.0;
        let enough = ids.iter().position(|&i| {
            sum += p[i];
            sum >= mass
        });
        ids[..enough.map_or(ids.len(), |i| i + 1)].to_vec()
    };
    if s.top_k > 0 {
        cut(&|p| ranked(p)[..s.top_k as usize].to_vec());
    }
    if s.top_p < 1.0 {
        cut(&|p| until(ranked(p), p, s.top_p as f64));
    }
    cut(&|p| {
        let most = p.iter().copied().fold(0.0, f64::max);
        (0..p.len()).filter(|&i| p[i] >= c.min_p as f64 * most).collect()
    });
    if c.typical_p < 1.0 {
        cut(&|p| {
            let entropy: f64 = p.iter().filter(|&&p| p > 0.0).map(|p| -p * p.ln()).sum();
            let mut ids: Vec<usize> = (0..p.len()).filter(|&i| p[i] > 0.0).collect();
            ids.sort_by(|&a, &b| (-p[a].ln() - entropy).abs().total_cmp(&(-p[b].ln() - entropy).abs()));
            until(ids, p, c.typical_p as f64)
        });
    }
    log_softmax(&x)
}

#[test]
fn every_control_draws_from_the_distribution_of_a_plain_reference_and_leaves_the_raw_log_probs() {
    let engine = engine(|_| {});
    let model = model_on(&engine);
    let given = prompt(1, 30);
    for (case, (sampling, controls)) in settings().into_iter().enumerate() {
        let session = session_of(&model, &given);
        let (chunk, finish) = collect(&session, &options(sampling, controls.clone(), case as u64, 40));
        assert_eq!((chunk.ids.len(), finish), (40, Finish::Length));
        let all = ids_of(&session);
        let logits = raw_logits(&model, &all);
        let mut n_changed = 0;
        for i in 0..40 {
            let (row, before) = (&logits[29 + i], &all[..30 + i]);
            let raw = log_softmax(row);
            let wanted = reference(row, before, i, sampling, &controls);
            let id = chunk.ids[i] as usize;
            assert!((chunk.logprobs[i] as f64 - raw[id]).abs() < 1e-4, "{controls:?}: token {i}");
            let (got, wanted) = (chunk.sampled_logprobs[i] as f64, wanted[id]);
            assert!((got - wanted).abs() < 1e-4, "{controls:?}: token {i}, id {id}: {got}, not {wanted}");
            n_changed += usize::from((wanted - raw[id]).abs() > 1e-3);
            // The likeliest beside it are of the raw distribution too.
            let mut likeliest: Vec<usize> = (0..V).collect();
            likeliest.sort_by(|&a, &b| raw[b].total_cmp(&raw[a]));
            for k in 0..5 {
                let (top, logprob) = (chunk.top_ids[5 * i + k] as usize, chunk.top_logprobs[5 * i + k] as f64);
                assert!((raw[top] - raw[likeliest[k]]).abs() < 1e-5 && (logprob - raw[top]).abs() < 1e-4);
            }
        }
        assert!(n_changed > 0, "{controls:?} changed nothing");
    }
}

#[test]
fn under_all_controls_sessions_together_say_what_each_says_alone() {
    let engine = engine(|_| {});
    let model = model_on(&engine);
    let all: Vec<(Vec<i32>, GenerationOptions)> = settings()
        .into_iter()
        .enumerate()
        .map(|(i, (s, c))| (prompt(i as u64, 5 + 7 * i), options(s, c, 100 + i as u64, 30)))
        .collect();
    let alone: Vec<_> = all.iter().map(|(ids, o)| bits(&collect(&session_of(&model, ids), o).0)).collect();
    let sessions: Vec<Session> = all.iter().map(|(ids, _)| session_of(&model, ids)).collect();
    let started: Vec<_> = sessions.iter().zip(&all).map(|(s, (_, o))| s.generate(o.clone()).unwrap()).collect();
    for (generation, wanted) in started.iter().zip(&alone) {
        assert_eq!(bits(&generation.collect().unwrap().0), *wanted);
    }
}

#[test]
fn penalties_count_the_same_after_truncation_fork_and_rewind_and_when_pages_were_lost() {
    let (_, controls) = settings().pop().unwrap();
    let sampling = Sampling { temperature: 0.9, top_k: 40, top_p: 1.0 };
    let options = |n| options(sampling, controls.clone(), 5, n);
    let engine_of = |pages: u64| engine(|o| o.kv_budget = pages);
    let model = model_on(&engine_of(u64::MAX));
    let given = prompt(2, 40);
    let session = session_of(&model, &given);
    let whole = bits(&collect(&session, &options(60)).0);
    let rest = |from: usize, got: Bits| {
        assert_eq!((&got.0[..], &got.1[..], &got.2[..]), (&whole.0[from..], &whole.1[from..], &whole.2[from..]));
    };
    for keep in [40, 41, 63, 90] {
        session.truncate(keep).unwrap();
        let fork = session.fork().unwrap();
        rest(keep - 40, bits(&collect(&session, &options(100 - keep)).0));
        rest(keep - 40, bits(&collect(&fork, &options(100 - keep)).0));
    }
    // Two that cannot both keep their pages.
    let page = model.model().page_shape().bytes() as u64;
    let prompts = [given, prompt(3, 40)];
    let alone = prompts.each_ref().map(|ids| bits(&collect(&session_of(&model, ids), &options(60)).0));
    let model = model_on(&engine_of(5 * page));
    let sessions = prompts.each_ref().map(|ids| session_of(&model, ids));
    let started = sessions.each_ref().map(|s| s.generate(options(60)).unwrap());
    for (generation, alone) in started.iter().zip(&alone) {
        assert_eq!(&bits(&generation.collect().unwrap().0), alone);
    }
    assert!(model.engine().metrics().preempted > 0, "nobody lost pages");
}

#[test]
fn a_generation_of_which_no_id_is_left_ends_with_its_reason_and_the_session_goes_on() {
    let engine = engine(|_| {});
    let model = parrot(&engine, &[1, 2, 3], 280);
    let session = session_of(&model, &(0..260).map(|i| i % 250).collect::<Vec<_>>()[..240]);
    let model_of_few = Controls { no_repeat_ngram_size: 1, ..neutral() };
    let raw = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let few = GenerationOptions { ignore_model_stops: true, ..options(raw, model_of_few, 1, 0) };
    // 256 positions are fewer than 280 ids: the context ends first.
    assert_eq!(collect(&session, &few).1, Finish::ContextFull);
    let small = tiny(
        &engine,
        &{
            let mut document = dense();
            document["vocab_size"] = 20.into();
            document
        },
        Dtype::F32,
        1,
    );
    let session = session_of(&small, &[0, 1, 2]);
    let generation = session.generate(GenerationOptions { top_logprobs: 20, ..few.clone() }).unwrap();
    let mut said = Vec::new();
    let e = loop {
        match generation.next(None) {
            Ok(Next::Chunk(chunk)) => said.extend(chunk.ids),
            Ok(other) => panic!("{other:?}"),
            Err(e) => break e,
        }
    };
    assert_eq!(said.len(), 17, "each of the other ids once");
    assert_eq!(e.fault(), Fault::BadOption);
    let why =
        "no_repeat_ngram_size: 1 rules out every id that could stand at position 20; wanted a larger number, or 0";
    assert_eq!(e.message(), why);
    assert_eq!(session.len().unwrap(), 20);
    assert_eq!(collect(&session, &options(raw, neutral(), 1, 3)).0.ids.len(), 3);
}

/// A parrot that says a text for ever, greedily.
fn saying(engine: &Engine, text: &str) -> (ServedModel, Session, GenerationOptions) {
    let cycle: Vec<i32> = text.bytes().map(i32::from).collect();
    let model = parrot(engine, &cycle, 280);
    let session = session_of(&model, &[*cycle.last().unwrap()]);
    let greedy = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0 };
    let options = GenerationOptions { ignore_model_stops: true, top_logprobs: 0, ..options(greedy, neutral(), 0, 40) };
    (model, session, options)
}

fn until(strings: &[&str], options: &GenerationOptions) -> GenerationOptions {
    GenerationOptions { stop_strings: strings.iter().map(|s| s.to_string()).collect(), ..options.clone() }
}

#[test]
fn a_stop_string_across_tokens_ends_text_before_it_and_ids_behind_it() {
    let engine = engine(|o| o.caller_driven = true);
    // Each byte is a token: é and € come in pieces.
    let (_, session, options) = saying(&engine, "abé€xy");
    let generation = session.generate(until(&["zz", "é€x", "é€xy"], &options)).unwrap();
    let (mut text, mut ids, mut seen) = (String::new(), Vec::new(), None);
    let finish = loop {
        match generation.next(None).unwrap() {
            Next::Chunk(chunk) => {
                text += &chunk.text;
                ids.extend(chunk.ids);
                assert!(!text.contains('é'), "{text}");
                seen = chunk.stop.or(seen);
            }
            Next::End(finish) => break finish,
            Next::Timeout => unreachable!("no timeout was given"),
        }
    };
    assert_eq!((text.as_str(), ids.len(), finish), ("ab", 8, Finish::Stop));
    let found = StopFound { index: 1, byte: 2, token: 2 };
    assert_eq!((seen, generation.stopped_by()), (Some(found), Some(found)));
    assert_eq!(session.len().unwrap(), 9, "the timeline ends with the token that completed it");
    // The next one begins a text of its own, and what looks like a beginning is handed out when it is none.
    let (chunk, finish) =
        collect(&session, &until(&["yab€", "yabé€xyabéy"], &GenerationOptions { max_tokens: 6, ..options }));
    assert_eq!((chunk.text.as_str(), chunk.ids.len(), finish, chunk.stop), ("yabé\u{fffd}", 6, Finish::Length, None));
}

#[test]
fn a_timeline_goes_not_on_behind_a_stop_string_though_nobody_pulls() {
    let engine = engine(|_| {});
    let (_, session, options) = saying(&engine, "helo!");
    let generation = session.generate(until(&["lo!h"], &options)).unwrap();
    let late = Instant::now() + Duration::from_secs(60);
    let n = loop {
        match session.len() {
            Ok(n) => break n,
            Err(e) => assert_eq!(e.fault(), Fault::SessionBusy),
        }
        assert!(Instant::now() < late, "it went on");
        std::thread::yield_now();
    };
    assert_eq!(n, 1 + 6);
    let (chunk, finish) = generation.collect().unwrap();
    assert_eq!((chunk.text.as_str(), finish), ("he", Finish::Stop));
    assert_eq!(chunk.stop, Some(StopFound { index: 0, byte: 2, token: 2 }));
}

#[test]
fn a_character_that_was_broken_off_can_complete_a_stop_string_at_the_end() {
    let engine = engine(|_| {});
    let (_, session, options) = saying(&engine, "ab€");
    let cut = GenerationOptions { max_tokens: 4, ..until(&["b\u{fffd}"], &options) };
    let generation = session.generate(cut).unwrap();
    let (chunk, finish) = generation.collect().unwrap();
    assert_eq!((chunk.text.as_str(), chunk.ids.len(), finish), ("a", 4, Finish::Stop));
    assert_eq!(generation.stopped_by(), Some(StopFound { index: 0, byte: 1, token: 1 }));
    // A cancelled one hands out what it held back.
    let generation = session.generate(until(&["€ab€ab€aba"], &options)).unwrap();
    generation.cancel();
    let (chunk, finish) = generation.collect().unwrap();
    let whole = String::from_utf8_lossy(&chunk.ids.iter().map(|&id| id as u8).collect::<Vec<_>>()).into_owned();
    assert_eq!(chunk.text, whole);
    assert!(matches!(finish, Finish::Cancelled | Finish::Stop));
}

#[test]
fn bad_stop_strings_biases_and_numbers_of_log_probs_are_refused_each_by_name() {
    let engine = engine(|_| {});
    let (with_text, session, options) = saying(&engine, "ab");
    let bare = session_of(&model_on(&engine), &[1]);
    let refused = |session: &Session, options: GenerationOptions| refusal(session.generate(options));
    let bad = |what: &str| (Fault::BadOption, what.to_string());
    assert_eq!(refused(&session, until(&["a", ""], &options)), bad("stop_strings[1]: wanted 1 to 4096 bytes, found 0"));
    let huge = "x".repeat(1 << 20);
    let why = "stop_strings[0]: wanted 1 to 4096 bytes, found 1048576";
    assert_eq!(refused(&session, until(&[&huge], &options)), bad(why));
    let why = "stop_strings: wanted at most 128, found 129";
    assert_eq!(refused(&session, until(&["a"; 129], &options)), bad(why));
    let (fault, why) = refused(&bare, until(&["a"], &options));
    assert!(fault == Fault::MissingFile && why.starts_with("generation options: stop_strings: "), "{why}");
    let biased = |logit_bias| GenerationOptions { controls: Controls { logit_bias, ..neutral() }, ..options.clone() };
    let why = "logit_bias[0]: wanted an id of the vocabulary of 280, found 280";
    assert_eq!(refused(&session, biased(vec![(280, 1.0)])), (Fault::IdOutOfRange, why.to_string()));
    let many = GenerationOptions { top_logprobs: 129, ..options.clone() };
    assert_eq!(refused(&session, many), bad("top_logprobs: wanted a number from 0 to 128, found 129"));
    let (fault, why) =
        refused(&session, GenerationOptions { controls: Controls { min_p: -0.5, ..neutral() }, ..options });
    assert_eq!((fault, why.as_str()), (Fault::BadOption, "min_p: wanted a number from 0 to 1, found -0.5"));
    drop(with_text);
}

#[test]
fn continuations_share_the_prompt_which_is_computed_once_and_draw_by_seeds_of_their_own() {
    let engine = engine(|_| {});
    let model = model_on(&engine);
    let given = prompt(4, 100);
    let session = session_of(&model, &given);
    let (sampling, controls) = settings().remove(10);
    let options = options(sampling, controls, 9, 12);
    let all = session.continuations(3, &options, &Cancel::default()).unwrap();
    assert_eq!(session.n_computed().unwrap(), 100, "the prompt once");
    let seeds: Vec<u64> = all.iter().map(|one| one.generation.seed()).collect();
    assert!(seeds[0] == 9 && seeds[1] != seeds[2] && !seeds[1..].contains(&9), "{seeds:?}");
    let mut texts = Vec::new();
    for one in &all {
        let (chunk, finish) = one.generation.collect().unwrap();
        assert_eq!(finish, Finish::Length);
        assert_eq!(one.session.n_computed().unwrap(), 12, "of the prompt its last row alone, again");
        let alone = GenerationOptions { seed: one.generation.seed(), ..options.clone() };
        assert_eq!(bits(&collect(&session_of(&model, &given), &alone).0), bits(&chunk));
        texts.push(chunk.ids);
    }
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    // Three whole pages of the prompt are everybody's; the fourth and the next are each one's own.
    assert!(model.kv_pages() <= 4 + 3 * 2, "{} pages", model.kv_pages());
    // Again the same.
    let again = session.continuations(3, &options, &Cancel::default()).unwrap();
    let said: Vec<Vec<i32>> = again.iter().map(|one| one.generation.collect().unwrap().0.ids).collect();
    assert_eq!(said, texts);
    assert_eq!(ids_of(&session), given);
}

#[test]
fn continuations_beyond_the_budget_of_sessions_are_refused_and_leave_nothing() {
    let engine = engine(|o| o.max_sessions = 4);
    let model = model_on(&engine);
    let session = session_of(&model, &prompt(4, 10));
    let options = GenerationOptions { max_tokens: 2, ..GenerationOptions::default() };
    let start = |n| refusal(session.continuations(n, &options, &Cancel::default()));
    assert_eq!(start(0), (Fault::BadOption, "n: wanted at least 1, found 0".to_string()));
    let why = "n: wanted at most 3, found 4: each continuation is a session, 1 exist, and the engine was made for 4";
    assert_eq!(start(4), (Fault::SessionBudget, why.to_string()));
    assert_eq!(start(usize::MAX).0, Fault::SessionBudget);
    assert_eq!(engine.metrics().sessions, 1);
    let cancel = Cancel::default();
    cancel.set();
    assert_eq!(refusal(session.continuations(2, &options, &cancel)).0, Fault::Cancelled);
    let bad = GenerationOptions { controls: Controls { min_p: 2.0, ..neutral() }, ..options.clone() };
    assert_eq!(refusal(session.continuations(2, &bad, &Cancel::default())).0, Fault::BadOption);
    assert_eq!(engine.metrics().sessions, 1);
    assert_eq!(session.continuations(3, &options, &Cancel::default()).unwrap().len(), 3);
}
