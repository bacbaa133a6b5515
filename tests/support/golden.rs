//! Reads the recorded values of `tests/golden`.
#![allow(dead_code)] // each test file uses its part

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;

/// A path below `tests/golden`.
pub fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect()
}

/// A document.
pub fn document(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

/// All tensors of a file of f32 tensors.
pub fn tensors(name: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let elements = |view: safetensors::tensor::TensorView| {
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    file.iter().map(|(name, view)| (name.to_string(), elements(view))).collect()
}

/// A list of numbers.
pub fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// A list of whole numbers.
pub fn ints<T: TryFrom<i64, Error: std::fmt::Debug>>(value: &Value) -> Vec<T> {
    value.as_array().unwrap().iter().map(|x| x.as_i64().unwrap().try_into().unwrap()).collect()
}

/// The batch that every model was run on.
pub struct Batch {
    pub ids: Vec<Vec<i32>>,
    pub loss_positions: Vec<Vec<usize>>,
    pub logit_positions: Vec<Vec<usize>>,
}

pub fn batch() -> Batch {
    let d = document("batch.json");
    let lists = |key: &str| d[key].as_array().unwrap().clone();
    Batch {
        ids: lists("ids").iter().map(ints).collect(),
        loss_positions: lists("loss_positions").iter().map(ints).collect(),
        logit_positions: lists("logit_positions").iter().map(ints).collect(),
    }
}

impl Batch {
    /// The sequences' rows when they are packed one behind the other.
    pub fn spans(&self) -> Vec<std::ops::Range<usize>> {
        let mut end = 0;
        let mut span = |n: usize| {
            end += n;
            end - n..end
        };
        self.ids.iter().map(|ids| span(ids.len())).collect()
    }

    /// Rows of the packed batch for positions given by sequence.
    pub fn rows(&self, positions: &[Vec<usize>]) -> Vec<usize> {
        let spans = self.spans();
        positions.iter().zip(&spans).flat_map(|(list, span)| list.iter().map(|p| span.start + p)).collect()
    }
}

/// The largest magnitude.
pub fn largest(x: &[f32]) -> f64 {
    x.iter().fold(0.0, |m, x| f64::max(m, x.abs() as f64))
}

/// The largest difference.
pub fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| {
        let d = (*a as f64 - *b as f64).abs();
        if d.is_nan() { f64::INFINITY } else { f64::max(m, d) }
    })
}
