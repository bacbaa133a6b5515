//! What an engine counts of its work, as numbers, as JSON and as Prometheus reads it.

#[path = "support/tiny_model.rs"]
mod tiny_model;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use squire::backend::page::PAGE;
use squire::serve::{Engine, EngineOptions, GenerationOptions, Metrics, ServedModel, Session};
use squire::tensor::Dtype;
use squire::text::source::Source;
use tiny_model::{dense, tiny};

fn model_on(engine: &Engine) -> ServedModel {
    tiny(engine, &dense(), Dtype::Bf16, 3)
}

fn engine(caller_driven: bool) -> Engine {
    Engine::new(EngineOptions { caller_driven, n_threads: 1, ..EngineOptions::default() }).unwrap()
}

fn session_of(model: &ServedModel, seed: i32) -> Session {
    let session = Session::new(model).unwrap();
    session.append(&(0..40).map(|i| (i * 7 + seed) % 301).collect::<Vec<_>>(), Source::Host).unwrap();
    session
}

fn drawing(max_tokens: usize) -> GenerationOptions {
    GenerationOptions { max_tokens, ignore_model_stops: true, ..GenerationOptions::default() }
}

/// First tokens, further tokens, and all.
fn counts(metrics: &Metrics) -> (u64, u64, u64) {
    (metrics.time_to_first_token_seconds.count(), metrics.inter_token_seconds.count(), metrics.sampled)
}

#[test]
fn every_token_is_timed_once_however_the_engine_is_driven() {
    for caller_driven in [false, true] {
        let begun = Instant::now();
        let engine = engine(caller_driven);
        let model = model_on(&engine);
        assert_eq!(session_of(&model, 1).generate(drawing(1)).unwrap().collect().unwrap().0.ids.len(), 1);
        let one = engine.metrics();
        assert_eq!(counts(&one), (1, 0, 1), "a generation of one token has no second one");
        assert_eq!((one.inter_token_seconds.sum(), one.inter_token_seconds.percentile(0.5)), (Duration::ZERO, None));
        session_of(&model, 2).generate(drawing(9)).unwrap().collect().unwrap();
        let all = engine.metrics();
        assert_eq!(counts(&all), (2, 8, 10));
        let [first, further] = [&all.time_to_first_token_seconds, &all.inter_token_seconds];
        assert!(first.sum() > Duration::ZERO && further.sum() > Duration::ZERO);
        assert!(first.sum() + further.sum() <= begun.elapsed(), "one generation after the other");
        let per_second = all.tokens_per_second;
        assert!(per_second >= 10.0 / begun.elapsed().as_secs_f64() && per_second.is_finite(), "{per_second}");
    }
}

#[test]
fn generations_side_by_side_are_timed_each_by_itself() {
    let engine = engine(false);
    let model = model_on(&engine);
    std::thread::scope(|scope| {
        for i in 0..4 {
            let model = &model;
            scope.spawn(move || {
                for n in 1..=5 {
                    session_of(model, i).generate(drawing(n)).unwrap().collect().unwrap();
                    // Nobody waits for whoever counts.
                    assert!(model.engine().metrics().sampled >= n as u64);
                }
            });
        }
    });
    assert_eq!(counts(&engine.metrics()), (20, 4 * (1 + 2 + 3 + 4), 4 * (1 + 2 + 3 + 4 + 5)));
}

#[test]
fn a_generation_that_says_nothing_is_not_timed() {
    let engine = engine(true);
    let model = model_on(&engine);
    let session = session_of(&model, 1);
    drop(session.generate(drawing(5)).unwrap());
    assert!(!engine.step().unwrap());
    let metrics = engine.metrics();
    assert_eq!((counts(&metrics), metrics.tokens_per_second), ((0, 0, 0), 0.0));
}

#[test]
fn kv_bytes_are_those_of_all_models_and_go_with_them() {
    let engine = engine(false);
    let kv = |metrics: &Metrics| (metrics.kv_in_use_bytes, metrics.kv_idle_bytes, metrics.kv_budget_bytes);
    assert_eq!(kv(&engine.metrics()), (0, 0, 0));
    let models = [model_on(&engine), model_on(&engine)];
    let page = models[0].model().page_shape().bytes() as u64;
    let budget = 2 * (engine.options().kv_budget / page) * page;
    assert_eq!(kv(&engine.metrics()), (0, 0, budget));
    let sessions = models.each_ref().map(|model| session_of(model, 1));
    sessions.iter().for_each(|session| drop(session.generate(drawing(1)).unwrap().collect().unwrap()));
    // 41 tokens, of which the last is not computed.
    assert_eq!(40_usize.div_ceil(PAGE), 2);
    assert_eq!(kv(&engine.metrics()), (4 * page, 0, budget));
    drop(sessions);
    // The full one of each may be asked for again.
    assert_eq!(kv(&engine.metrics()), (0, 2 * page, budget));
    drop(models);
    assert_eq!(kv(&engine.metrics()), (0, 0, 0));
}

#[test]
fn a_round_reads_the_weights_once_whoever_is_in_it() {
    let read = |n_sessions: i32| {
        let options = EngineOptions { caller_driven: true, prefill_slice: None, ..EngineOptions::default() };
        let engine = Engine::new(options).unwrap();
        let model = model_on(&engine);
        let sessions: Vec<Session> = (0..n_sessions).map(|i| session_of(&model, i)).collect();
        let generations: Vec<_> = sessions.iter().map(|session| session.generate(drawing(4)).unwrap()).collect();
        while engine.step().unwrap() {}
        let metrics = engine.metrics();
        assert_eq!((metrics.rounds, metrics.sampled), (4, 4 * n_sessions as u64));
        assert_eq!(metrics.round_weight_bytes, metrics.weight_bytes, "nothing learns here");
        assert_eq!(metrics.weight_bytes_per_round, metrics.round_weight_bytes / 4);
        drop(generations);
        (metrics.weight_bytes_per_round, model.current().weights.bytes_per_pass())
    };
    let (one, all) = read(1);
    // Norms are read by no product.
    assert!(one <= all && one > all * 99 / 100, "{one} of {all}");
    assert_eq!(read(3).0, one);
}

/// A value of Prometheus' text: its labels as they stand, and the number.
type Sample = (String, f64);

/// Reads the text format 0.0.4 strictly, and gives the type of each family with its samples by their names.
fn families(text: &str) -> BTreeMap<String, (String, Vec<(String, Sample)>)> {
    let is_name = |name: &str| {
        let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':');
        begins && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let mut families: BTreeMap<String, (String, Vec<(String, Sample)>)> = BTreeMap::new();
    let (mut helped, mut under_way) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(!help.replace("\\\\", "").replace("\\n", "").contains('\\'), "an escape that is none: {line}");
            helped = name.into();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "the type follows the help");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.into(), (kind.into(), Vec::new())).is_none(), "{name} comes twice");
            under_way = name.into();
        } else {
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
                None => (series, ""),
            };
            let value = if value == "+Inf" { f64::INFINITY } else { value.parse::<f64>().unwrap() };
            let (kind, samples) = families.get_mut(&under_way).unwrap();
            let suffix = name.strip_prefix(under_way.as_str()).unwrap_or_else(|| panic!("{line} in {under_way}"));
            let wanted: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(wanted.contains(&suffix) && is_name(name), "{line}");
            assert!(!samples.iter().any(|(n, (l, _))| n == name && l == labels), "{series} comes twice");
            samples.push((name.into(), (labels.into(), value)));
        }
    }
    for (name, (kind, samples)) in &families {
        assert!(!samples.is_empty(), "{name} has no value");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        if kind == "histogram" {
            let [buckets @ .., (sum, _), (counted, (_, count))] = &samples[..] else { panic!("{name}: {samples:?}") };
            assert_eq!((sum, counted), (&format!("{name}_sum"), &format!("{name}_count")));
            let end_of = |labels: &str| {
                let le = labels.strip_prefix("le=\"").and_then(|l| l.strip_suffix('"')).unwrap();
                if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() }
            };
            let buckets: Vec<(f64, f64)> = buckets.iter().map(|(_, (labels, n))| (end_of(labels), *n)).collect();
            assert!(buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1), "{name}: {buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{name}");
        }
    }
    families
}

#[test]
fn prometheus_and_json_tell_the_same_numbers() {
    let engine = engine(false);
    for spoken in [false, true] {
        let model = model_on(&engine);
        if spoken {
            session_of(&model, 1).generate(drawing(30)).unwrap().collect().unwrap();
        }
        let metrics = engine.metrics();
        let (json, text) = (json!(metrics), metrics.prometheus());
        let families = families(&text);
        let keys = json.as_object().unwrap();
        assert_eq!(families.len(), keys.len(), "{text}");
        let documented = include_str!("../docs/metrics.md");
        let missing: Vec<_> = keys.keys().filter(|key| !documented.contains(&format!("`{key}`"))).collect();
        assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
        for (key, value) in keys {
            let named = |name: &str| families.get(name).map(|(kind, samples)| (kind.as_str(), samples));
            let found = named(&format!("squire_{key}_total")).or(named(&format!("squire_{key}")));
            let (kind, samples) = found.unwrap_or_else(|| panic!("{key} is missing"));
            let wanted = match value {
                Value::Object(times) => {
                    assert_eq!((kind, samples.len()), ("histogram", 21 + 3));
                    assert_eq!(samples.last().unwrap().1.1, times["count"].as_f64().unwrap(), "{key}");
                    times["sum"].as_f64().unwrap()
                }
                number => number.as_f64().unwrap(),
            };
            let at = if kind == "histogram" { samples.len() - 2 } else { 0 };
            assert_eq!(samples[at].1.1, wanted, "{key}");
        }
        assert_eq!((keys["sampled"].as_u64(), keys["sessions"].as_u64()), (Some(if spoken { 30 } else { 0 }), Some(0)));
    }
}

#[test]
fn percentiles_of_the_engine_lie_in_their_order_and_in_seconds() {
    let engine = engine(false);
    let model = model_on(&engine);
    let begun = Instant::now();
    session_of(&model, 1).generate(drawing(60)).unwrap().collect().unwrap();
    let elapsed = begun.elapsed().as_secs_f64();
    let json = json!(engine.metrics());
    for key in ["time_to_first_token_seconds", "inter_token_seconds"] {
        let [p50, p90, p99, sum] = ["p50", "p90", "p99", "sum"].map(|name| json[key][name].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= 1.0625 * elapsed, "{key}: {}", json[key]);
        assert!(sum <= elapsed, "{key}: {}", json[key]);
    }
}
