//! How a model's makers advise to sample: what generation_config.json says, as far as squire's sampler takes it.
//!
//! The file is advice. A value that no sampler takes does not stop a model from being served: it is left out, and a
//! warning says so.
#![forbid(unsafe_code)]

use std::collections::HashSet;

use serde_json::Value;

use super::model_dir::{GENERATION_CONFIG, ModelDir};
use crate::error::brief;

/// The advice; None where there is none, or none that can be taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Softmax temperature; 0 where `do_sample` is false.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: Option<u32>,
    /// The probability mass of the likeliest tokens that is kept, in (0, 1].
    pub top_p: Option<f32>,
    /// The share of the likeliest token's probability that is kept, in [0, 1].
    pub min_p: Option<f32>,
    /// The mass that is kept of tokens whose surprise lies near the entropy, in (0, 1].
    pub typical_p: Option<f32>,
    /// What logits of ids that came are divided by, from 0.01 to 100.
    pub repetition_penalty: Option<f32>,
    /// What is taken from logits of ids that were sampled, from -2 to 2.
    pub presence_penalty: Option<f32>,
    /// The same for each time, from -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// How many ids side by side do not come again, up to 64; 0 lets them.
    pub no_repeat_ngram_size: Option<u32>,
    /// What is added to logits, of `sequence_bias` what is of one id alone.
    pub logit_bias: Vec<(i32, f32)>,
    /// Texts that end a generation.
    pub stop_strings: Vec<String>,
}

/// Knobs of other samplers, with the values that leave a distribution as it is.
const OTHERS: [(&str, &[f64]); 6] = [
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("top_h", &[]),
    ("encoder_repetition_penalty", &[1.0]),
    ("num_beams", &[1.0]),
    ("guidance_scale", &[1.0]),
];

impl ModelDir {
    /// The sampling defaults of generation_config.json. What cannot be taken becomes a warning.
    pub fn generation_defaults(&mut self) -> GenerationDefaults {
        let Some(document) = &self.generation_config else { return GenerationDefaults::default() };
        let mut left_out = Vec::new();
        let mut number = |key: &str, wanted: &str, allowed: fn(f64) -> bool| {
            let value = document.get(key).filter(|v| !v.is_null())?;
            let taken = value.as_f64().filter(|&x| allowed(x));
            if taken.is_none() {
                left_out.push(format!("{key}: wanted {wanted}, found {}; it is left out", brief(value)));
            }
            taken
        };
        let temperature = number("temperature", "a number from 0 to 1000", |x| (0.0..=1000.0).contains(&x));
        let top_p = number("top_p", "a number above 0, at most 1", |x| x as f32 > 0.0 && x <= 1.0);
        let whole = |x: f64| x.fract() == 0.0 && (0.0..=i32::MAX as f64).contains(&x);
        let top_k = number("top_k", "a whole number from 0 (0 keeps all)", whole);
        let min_p = number("min_p", "a number from 0 to 1", |x| (0.0..=1.0).contains(&x));
        let typical_p = number("typical_p", "a number above 0, at most 1", |x| x as f32 > 0.0 && x <= 1.0);
        let repetition_penalty =
            number("repetition_penalty", "a number from 0.01 to 100", |x| (0.01..=100.0).contains(&x));
        let penalty = |x: f64| (-2.0..=2.0).contains(&x);
        let presence_penalty = number("presence_penalty", "a number from -2 to 2", penalty);
        let frequency_penalty = number("frequency_penalty", "a number from -2 to 2", penalty);
        let few = |x: f64| x.fract() == 0.0 && (0.0..=64.0).contains(&x);
        let no_repeat_ngram_size = number("no_repeat_ngram_size", "a whole number from 0 to 64", few);
        let greedy = match document.get("do_sample") {
            None | Some(Value::Null | Value::Bool(true)) => false,
            Some(Value::Bool(false)) => true,
            Some(other) => {
                left_out.push(format!("do_sample: wanted true or false, found {}; it is left out", brief(other)));
                false
            }
        };
        let logit_bias = biases(document.get("sequence_bias"), &mut left_out);
        let stop_strings = stop_strings(document.get("stop_strings"), &mut left_out);
        for (key, neutral) in OTHERS {
            let Some(value) = document.get(key).filter(|v| !v.is_null()) else { continue };
            if !value.as_f64().is_some_and(|x| neutral.contains(&x)) {
                left_out.push(format!("{key} is {}; squire has no such knob, it is left out", brief(value)));
            }
        }
        let left_out: Vec<String> = left_out.into_iter().map(|why| format!("{GENERATION_CONFIG}: {why}")).collect();
        for warning in left_out {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
        GenerationDefaults {
            temperature: if greedy { Some(0.0) } else { temperature.map(|x| x as f32) },
            top_k: top_k.map(|x| x as u32),
            top_p: top_p.map(|x| x as f32),
            min_p: min_p.map(|x| x as f32),
            typical_p: typical_p.map(|x| x as f32),
            repetition_penalty: repetition_penalty.map(|x| x as f32),
            presence_penalty: presence_penalty.map(|x| x as f32),
            frequency_penalty: frequency_penalty.map(|x| x as f32),
            no_repeat_ngram_size: no_repeat_ngram_size.map(|x| x as u32),
            logit_bias,
            stop_strings,
        }
    }
}

/// `sequence_bias`, pairs of ids and a number, as far as each is of one id.
fn biases(value: Option<&Value>, left_out: &mut Vec<String>) -> Vec<(i32, f32)> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Vec::new() };
    let one = |pair: &Value| {
        let (ids, bias) = (pair.get(0)?.as_array()?, pair.get(1)?.as_f64()?);
        let id = i32::try_from(ids.first()?.as_i64()?).ok()?;
        let taken = ids.len() == 1 && id >= 0 && (-100.0..=100.0).contains(&bias);
        taken.then_some((id, bias as f32))
    };
    let all: Option<Vec<(i32, f32)>> = value.as_array().and_then(|pairs| pairs.iter().map(one).collect());
    let is_once = |all: &Vec<(i32, f32)>| {
        let ids: HashSet<i32> = all.iter().map(|one| one.0).collect();
        ids.len() == all.len()
    };
    all.filter(is_once).unwrap_or_else(|| {
        let wanted = "pairs of one id each, once, and a number from -100 to 100";
        left_out.push(format!("sequence_bias: wanted {wanted}, found {}; it is left out", brief(value)));
        Vec::new()
    })
}

/// `stop_strings`, one text or a list.
fn stop_strings(value: Option<&Value>, left_out: &mut Vec<String>) -> Vec<String> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Vec::new() };
    let alone = std::slice::from_ref(value);
    let texts = value.as_array().map_or(alone, Vec::as_slice).iter();
    let all: Option<Vec<String>> = texts.map(|text| text.as_str().map(str::to_string)).collect();
    all.filter(|all| all.len() <= 128 && all.iter().all(|text| (1..=4096).contains(&text.len()))).unwrap_or_else(|| {
        let wanted = "a text or at most 128 of them, of 1 to 4096 bytes each";
        left_out.push(format!("stop_strings: wanted {wanted}, found {}; it is left out", brief(value)));
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(generation: Value) -> (GenerationDefaults, Vec<String>) {
        let mut dir = ModelDir::of_config(json!({}));
        dir.generation_config = Some(generation);
        let defaults = dir.generation_defaults();
        assert_eq!(dir.generation_defaults(), defaults);
        (defaults, dir.warnings)
    }

    #[test]
    fn advice_that_the_sampler_takes_is_taken_without_a_word() {
        let whole = json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": true, "repetition_penalty": 1.0,
            "min_p": null, "num_beams": 1, "eos_token_id": 3});
        let wanted = GenerationDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            repetition_penalty: Some(1.0),
            ..GenerationDefaults::default()
        };
        assert_eq!(read(whole), (wanted, vec![]));
        let controls = json!({"min_p": 0.05, "typical_p": 0.9, "repetition_penalty": 1.1, "presence_penalty": 1.5,
            "frequency_penalty": -0.5, "no_repeat_ngram_size": 3, "sequence_bias": [[[45], -0.5], [[7], 2]],
            "stop_strings": "###"});
        let wanted = GenerationDefaults {
            min_p: Some(0.05),
            typical_p: Some(0.9),
            repetition_penalty: Some(1.1),
            presence_penalty: Some(1.5),
            frequency_penalty: Some(-0.5),
            no_repeat_ngram_size: Some(3),
            logit_bias: vec![(45, -0.5), (7, 2.0)],
            stop_strings: vec!["###".into()],
            ..GenerationDefaults::default()
        };
        assert_eq!(read(controls), (wanted, vec![]));
        let greedy = json!({"do_sample": false, "temperature": 0.6, "top_k": 0, "top_p": null});
        let wanted = GenerationDefaults { temperature: Some(0.0), top_k: Some(0), ..GenerationDefaults::default() };
        assert_eq!(read(greedy), (wanted, vec![]));
    }

    #[test]
    fn advice_that_no_sampler_takes_is_left_out_with_one_warning_each() {
        for (key, value) in [
            ("temperature", json!(-1)),
            ("temperature", json!("hot")),
            ("top_k", json!(-1)),
            ("top_k", json!(1.5)),
            ("top_k", json!(1e30)),
            ("top_p", json!(0)),
            ("top_p", json!(1.5)),
            ("top_p", json!(1e-300)),
            ("top_p", json!([0.9])),
            ("top_p", json!("NaN, which is no JSON number")),
            ("do_sample", json!("yes")),
            ("min_p", json!(1.5)),
            ("typical_p", json!(0)),
            ("repetition_penalty", json!(0)),
            ("presence_penalty", json!(3)),
            ("frequency_penalty", json!("much")),
            ("no_repeat_ngram_size", json!(65)),
            ("sequence_bias", json!([[[45, 46], -0.5]])),
            ("sequence_bias", json!([[[45], 1], [[45], 2]])),
            ("sequence_bias", json!({"45": 1})),
            ("stop_strings", json!([""])),
            ("stop_strings", json!(["a", 5])),
            ("num_beams", json!(4)),
        ] {
            let (defaults, warnings) = read(json!({ key: value.clone() }));
            assert_eq!(defaults, GenerationDefaults::default(), "{key}: {value}");
            assert!(warnings.len() == 1 && warnings[0].contains(key), "{key}: {value}: {warnings:?}");
        }
    }
}
