//! One set of bits: the log-probs of a position are the same numbers whatever ran beside it, in whatever
//! pieces, on however many threads, by whichever kernels, sampled, scored or in a training forward.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use squire::backend::ops::{self, Sampling};
use squire::backend::{Compute, KernelSet, Tensor};
use squire::model::forward::{Segment, forward, head_forward};
use squire::model::{Activations, Adapter, KvCache, KvPool, Lora};
use squire::random::{Stream, below};
use squire::serve::{Cancel, Engine, EngineOptions, Generation, GenerationOptions, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{adapter, biased, dense, moe, tiny};

const VOCABULARY: u64 = 301;

/// A kind of arithmetic.
struct Kind {
    name: String,
    document: serde_json::Value,
    dtype: Dtype,
    compute: Compute,
    /// whether what is compared runs under an adapter
    adapted: bool,
}

/// Every kind: dense, biased and experts, each stored dtype in each compute, without an adapter and with one.
fn kinds() -> Vec<Kind> {
    let mut all = Vec::new();
    for (name, document) in [("dense", dense()), ("biased", biased()), ("moe", moe())] {
        for dtype in [Dtype::Bf16, Dtype::F32] {
            for compute in [Compute::Bf16, Compute::F32] {
                for adapted in [false, true] {
                    let with = if adapted { " with an adapter" } else { "" };
                    let name = format!("{name} {dtype} in {}{with}", compute.name());
                    all.push(Kind { name, document: document.clone(), dtype, compute, adapted });
                }
            }
        }
    }
    all
}

/// Names of adapters that strangers use.
const STRANGERS: [&str; 3] = ["a", "b", "c"];

/// A model of the kind, whose current revision has an adapter where the kind is adapted, and which has three named ones.
fn model(engine: &Engine, kind: &Kind, seed: u64) -> ServedModel {
    let model = tiny(engine, &kind.document, kind.dtype, seed);
    if kind.adapted {
        model.publish_adapter(adapter(&model, 5, kind.dtype, seed), 9).unwrap();
    }
    for ((i, name), rank) in (20..).zip(STRANGERS).zip([3, 16, 8]) {
        model.add_adapter(name, adapter(&model, rank, [Dtype::F32, kind.dtype][rank % 2], seed + i)).unwrap();
    }
    model
}

fn ids(seed: u64, n: usize) -> Vec<i32> {
    (0..n as u64).map(|i| below(Stream::World, &[seed, i], VOCABULARY) as i32).collect()
}

/// Bits of the log-probs of `ids[1..]`, and of the three likeliest ids at each position.
fn score(model: &ServedModel, ids: &[i32]) -> Vec<u32> {
    let session = Session::new(model).unwrap();
    session.append(&ids[..1], Source::Host).unwrap();
    let rows = session.score(&ids[1..], 3, &Cancel::default()).unwrap();
    rows.iter().flat_map(|r| [r.logprob, r.top[0].1, r.top[1].1, r.top[2].1]).map(f32::to_bits).collect()
}

/// Every fourth of a score's bits: the given ids' own.
fn own(bits: &[u32]) -> Vec<u32> {
    bits.iter().step_by(4).copied().collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Ids, and the bits of their log-probs, raw and as sampled.
type Rollout = (Vec<i32>, Vec<u32>, Vec<u32>);

fn sampled(model: &ServedModel, prompt: &[i32], options: GenerationOptions) -> Rollout {
    let session = Session::new(model).unwrap();
    session.append(prompt, Source::Host).unwrap();
    let (chunk, _) = session.generate(options).unwrap().collect().unwrap();
    (chunk.ids, bits(&chunk.logprobs), bits(&chunk.sampled_logprobs))
}

/// A generation that draws from a tempered distribution, cut in a way that the seed chooses.
fn rollout(seed: u64, n: usize) -> GenerationOptions {
    let (top_k, top_p) = [(40, 0.95), (0, 0.9), (0, 1.0), (7, 1.0)][seed as usize % 4];
    let sampling = Sampling { temperature: 0.8, top_k, top_p };
    GenerationOptions { max_tokens: n, sampling, seed, ..GenerationOptions::default() }
}

#[test]
fn a_score_has_the_same_bits_in_any_pieces_on_any_threads_by_any_kernels() {
    let ids = ids(1, 150);
    for kind in kinds() {
        let (name, compute) = (kind.name.as_str(), kind.compute);
        let mut wanted: Option<(Vec<u32>, Rollout)> = None;
        let mut n = 0;
        for kernels in KernelSet::ALL.into_iter().filter(|k| k.available()) {
            for (n_threads, max_batch_tokens) in [(1, 512), (2, 64), (3, 7), (2, 1)] {
                let options = EngineOptions {
                    n_threads,
                    kernels: Some(kernels),
                    compute,
                    max_batch_tokens,
                    ..Default::default()
                };
                let model = self::model(&Engine::new(options).unwrap(), &kind, 5);
                let found = (score(&model, &ids), sampled(&model, &ids[..70], rollout(9, 40)));
                let wanted = wanted.get_or_insert_with(|| found.clone());
                assert!(found == *wanted, "{name}: {kernels}, {n_threads} threads, {max_batch_tokens} rows a round");
                n += 1;
            }
        }
        let (scores, (generated, ..)) = wanted.unwrap();
        let different = own(&scores).iter().collect::<std::collections::HashSet<_>>().len();
        assert!(different > 140 && generated.len() == 40, "{name}: the numbers compared say nothing");
        println!("{name}: {n} engines, one set of bits");
    }
}

#[test]
fn different_weights_dtypes_and_computes_have_different_bits() {
    // What the other tests compare can differ: they would notice.
    let ids = ids(1, 60);
    let mut seen = std::collections::HashSet::new();
    for kind in kinds() {
        let (name, compute) = (kind.name.as_str(), kind.compute);
        let engine = Engine::new(EngineOptions { compute, ..Default::default() }).unwrap();
        assert!(seen.insert(own(&score(&self::model(&engine, &kind, 5), &ids))), "{name}");
    }
}

#[test]
fn sampled_log_probs_are_those_of_scoring_and_of_a_second_generation() {
    for kind in kinds() {
        let (name, compute) = (kind.name.as_str(), kind.compute);
        for seed in 0..4 {
            let engine = Engine::new(EngineOptions { compute, max_batch_tokens: 33, ..Default::default() }).unwrap();
            let model = self::model(&engine, &kind, seed);
            let prompt = ids(seed, 1 + below(Stream::World, &[seed, 77], 90) as usize);
            let rolled = sampled(&model, &prompt, rollout(seed, 70));
            let all = [&prompt[..], &rolled.0].concat();
            let scored = own(&score(&model, &all));
            assert!(scored[prompt.len() - 1..] == rolled.1, "{name}, seed {seed}");
            assert_eq!(rolled, sampled(&model, &prompt, rollout(seed, 70)), "{name}, seed {seed}");
            assert_ne!(rolled.0, sampled(&model, &prompt, rollout(seed + 100, 70)).0, "{name}: the seed counts");
            assert_ne!(rolled.1, rolled.2, "{name}: the distribution sampled from is another");
        }
    }
}

#[test]
fn company_in_the_batch_changes_no_bit() {
    for kind in kinds() {
        let (name, compute) = (kind.name.as_str(), kind.compute);
        for seed in 0..6 {
            let draw = |what: u64, n: u64| below(Stream::World, &[seed, 1000 + what], n) as usize;
            let max_batch_tokens = [5, 16, 40, 512][draw(0, 4)];
            let available: Vec<KernelSet> = KernelSet::ALL.into_iter().filter(|k| k.available()).collect();
            let (n_threads, kernels) = (1 + draw(4, 3), Some(available[draw(5, available.len() as u64)]));
            let options = EngineOptions { compute, max_batch_tokens, caller_driven: true, ..Default::default() };
            let judge = self::model(&Engine::new(options.clone()).unwrap(), &kind, 5);
            let model = self::model(&Engine::new(EngineOptions { n_threads, kernels, ..options }).unwrap(), &kind, 5);
            let (mine, prompt) = (ids(seed, 2 + draw(1, 100)), ids(seed + 50, 1 + draw(2, 60)));
            let alone = (score(&judge, &mine), sampled(&judge, &prompt, rollout(seed, 30)));
            // Strangers of random lengths at random stages, some of which share my prompt's pages.
            let others: Vec<(Session, Generation)> = (0..2 + draw(3, 6) as u64)
                .map(|i| {
                    let session = match draw(50 + i, 6) {
                        a @ 0..3 => Session::with_adapter(&model, STRANGERS[a]).unwrap(),
                        _ => Session::new(&model).unwrap(),
                    };
                    let n = draw(10 + i, 120);
                    session.append(&prompt, Source::Host).unwrap();
                    session.append(&ids(900 + i, n), Source::Host).unwrap();
                    let session = if draw(30 + i, 2) == 0 { session } else { session.fork().unwrap() };
                    let generation = session.generate(rollout(i, 1 + draw(20 + i, 150))).unwrap();
                    for _ in 0..draw(40 + i, 4) {
                        session.model().engine().step().unwrap();
                    }
                    (session, generation)
                })
                .collect();
            let before = model.engine().metrics();
            let company = (score(&model, &mine), sampled(&model, &prompt, rollout(seed, 30)));
            let after = model.engine().metrics();
            assert!(company == alone, "{name}: mix {seed} with {} others", others.len());
            let rows = (after.rows - before.rows) as usize;
            assert!(rows > mine.len() + prompt.len() + 29, "{name}: mix {seed}: nobody else ran");
        }
    }
}

#[test]
fn company_on_other_threads_changes_no_bit() {
    for kind in kinds() {
        let (name, compute) = (kind.name.as_str(), kind.compute);
        let engine = Engine::new(EngineOptions { compute, max_batch_tokens: 24, ..Default::default() }).unwrap();
        let model = self::model(&engine, &kind, 5);
        let cases: Vec<(Vec<i32>, GenerationOptions)> =
            (0..8).map(|i| (ids(i, 3 + 11 * i as usize), rollout(i, 20 + i as usize))).collect();
        let alone: Vec<_> = cases.iter().map(|(prompt, options)| sampled(&model, prompt, options.clone())).collect();
        let together: Vec<_> = std::thread::scope(|scope| {
            let model = &model;
            let run = |(prompt, options): &(Vec<i32>, GenerationOptions)| {
                let (prompt, options) = (prompt.clone(), options.clone());
                scope.spawn(move || sampled(model, &prompt, options))
            };
            let threads: Vec<_> = cases.iter().map(run).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(together == alone, "{name}");
    }
}

#[test]
fn the_training_forward_has_the_bits_of_the_rollout() {
    for kind in kinds() {
        let (name, compute) = (kind.name.as_str(), kind.compute);
        let engine = Engine::new(EngineOptions { compute, ..Default::default() }).unwrap();
        let model = self::model(&engine, &kind, 5);
        let rollouts: Vec<(Vec<i32>, Vec<u32>)> = (0..5)
            .map(|i| {
                let prompt = ids(i, 1 + 23 * i as usize);
                let (generated, logprobs, _) = sampled(&model, &prompt, rollout(i, 10 + 17 * i as usize));
                ([prompt, generated].concat(), logprobs)
            })
            .collect();
        let (m, revision) = (model.model(), model.current());
        let pool = KvPool::new(&m.device, m.page_shape(), 1 << 30);
        let mut caches: Vec<KvCache> = rollouts.iter().map(|_| KvCache::new(&pool)).collect();
        let mut segments: Vec<Segment> = rollouts
            .iter()
            .zip(&mut caches)
            .map(|((ids, _), kv)| Segment { ids, kv, adapter: revision.adapter() })
            .collect();
        let mut activations = Activations::for_training(m).unwrap();
        forward(m, &revision.weights, &mut segments, &mut activations).unwrap();
        let mut logits = Tensor::zeros(Dtype::F32, &[activations.batch.len(), m.config.vocab_size]).unwrap();
        head_forward(m, &revision.weights, &mut logits, &activations.hidden, activations.batch.len()).unwrap();
        let packed: Vec<i32> = rollouts.iter().flat_map(|(ids, _)| ids).copied().collect();
        let next: Vec<i32> = packed[1..].iter().copied().chain([0]).collect();
        let trained = bits(&ops::logprobs_of(&m.device, &logits, &next, activations.batch.len()).unwrap());
        let mut end = 0;
        for (ids, logprobs) in &rollouts {
            end += ids.len();
            // Row i predicts token i + 1; the last row of a sequence predicts nothing.
            assert!(trained[end - 1 - logprobs.len()..end - 1] == *logprobs, "{name}, {} tokens", ids.len());
        }
    }
}

#[test]
fn a_fresh_adapter_changes_no_bit() {
    for kind in kinds().into_iter().filter(|kind| !kind.adapted) {
        let engine = Engine::new(EngineOptions { compute: kind.compute, ..Default::default() }).unwrap();
        let model = model(&engine, &kind, 5);
        let ids = ids(3, 90);
        let before = (score(&model, &ids), sampled(&model, &ids[..20], rollout(4, 30)));
        let lora = Lora { rank: 6, alpha: 12.0, rslora: false, targets: Vec::new() };
        let fresh = Adapter::fresh(model.config(), &lora, engine.device(), 7).unwrap();
        model.publish_adapter(fresh, 9).unwrap();
        assert!(model.current().adapter.is_some());
        let after = (score(&model, &ids), sampled(&model, &ids[..20], rollout(4, 30)));
        assert!(after == before, "{}", kind.name);
    }
}
