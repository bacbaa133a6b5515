//! How a model's makers advise to sample: what generation_config.json says, as far as squire's sampler takes it.
//!
//! The file is advice. A value that no sampler takes does not stop a model from being served: it is left out, and a
//! warning says so.
#![forbid(unsafe_code)]

use serde_json::Value;

use super::model_dir::{GENERATION_CONFIG, ModelDir};
use crate::error::brief;

/// The advice; None where there is none, or none that can be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Softmax temperature; 0 where `do_sample` is false.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens are kept; 0 keeps all.
    pub top_k: Option<u32>,
    /// The probability mass of the likeliest tokens that is kept, in (0, 1].
    pub top_p: Option<f32>,
}

/// Knobs of other samplers, with the values that leave a distribution as it is.
const OTHERS: [(&str, &[f64]); 12] = [
    ("min_p", &[0.0]),
    ("typical_p", &[1.0]),
    ("epsilon_cutoff", &[0.0]),
    ("eta_cutoff", &[0.0]),
    ("top_h", &[]),
    ("repetition_penalty", &[1.0]),
    ("presence_penalty", &[0.0]),
    ("frequency_penalty", &[0.0]),
    ("encoder_repetition_penalty", &[1.0]),
    ("no_repeat_ngram_size", &[0.0]),
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
        let greedy = match document.get("do_sample") {
            None | Some(Value::Null | Value::Bool(true)) => false,
            Some(Value::Bool(false)) => true,
            Some(other) => {
                left_out.push(format!("do_sample: wanted true or false, found {}; it is left out", brief(other)));
                false
            }
        };
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
        }
    }
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
        let wanted = GenerationDefaults { temperature: Some(0.6), top_k: Some(20), top_p: Some(0.95) };
        assert_eq!(read(whole), (wanted, vec![]));
        let greedy = json!({"do_sample": false, "temperature": 0.6, "top_k": 0, "top_p": null});
        let wanted = GenerationDefaults { temperature: Some(0.0), top_k: Some(0), top_p: None };
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
            ("min_p", json!(0.05)),
            ("repetition_penalty", json!(1.1)),
            ("presence_penalty", json!(1.5)),
            ("num_beams", json!(4)),
        ] {
            let (defaults, warnings) = read(json!({ key: value.clone() }));
            assert_eq!(defaults, GenerationDefaults::default(), "{key}: {value}");
            assert!(warnings.len() == 1 && warnings[0].contains(key), "{key}: {value}: {warnings:?}");
        }
    }
}
