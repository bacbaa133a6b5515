//! The knob that says what is trained: all weights, or an adapter (LoRA).
#![forbid(unsafe_code)]

use super::document::{bad, fields, integer, join, number};
use crate::backend::Projection;
use crate::error::{Error, Fault, Result};
use crate::model::adapter::MAX_RANK;
use crate::model::{Lora, adapter_target};
use serde_json::{Value, json};

/// The adapter written at `path` of a document; null for none.
pub(super) fn from_json(value: &Value, path: &str) -> Result<Option<Lora>> {
    if value.is_null() {
        return Ok(None);
    }
    let mut lora = Lora { rank: 16, alpha: 32.0, rslora: false, targets: Vec::new() };
    for (key, value) in fields(value, path, &["rank", "alpha", "rslora", "targets", "dropout"])? {
        let knob = join(path, key);
        match key.as_str() {
            "rank" => lora.rank = integer(value, &knob, 1, MAX_RANK as u64)? as usize,
            "alpha" => lora.alpha = number(value, &knob, "a number above 0, at most 1e6", |x| x > 0.0 && x <= 1e6)?,
            "rslora" => lora.rslora = value.as_bool().ok_or_else(|| bad(value, &knob, "true or false"))?,
            "targets" => lora.targets = targets(value, &knob)?,
            _ => {
                let why = "squire trains by the forward pass that serves, whose log-probs a dropout would change";
                number(value, &knob, &format!("0, since {why}"), |x| x == 0.0).map(drop)?;
            }
        }
    }
    Ok(Some(lora))
}

fn targets(value: &Value, path: &str) -> Result<Vec<Projection>> {
    let wanted = "a list of projections by their names, or left out for all";
    let list = value.as_array().filter(|list| !list.is_empty()).ok_or_else(|| bad(value, path, wanted))?;
    let one = |v: &Value| {
        let name = v.as_str().ok_or_else(|| bad(v, path, wanted))?;
        adapter_target(name).map_err(|e| Error::new(Fault::BadValue, format!("{path}: {}", e.message())))
    };
    let mut targets = list.iter().map(one).collect::<Result<Vec<_>>>()?;
    targets.sort();
    targets.dedup();
    Ok(targets)
}

/// The form that is read.
pub(super) fn to_json(lora: Option<&Lora>) -> Value {
    lora.map_or(Value::Null, |lora| {
        let mut document = json!({"rank": lora.rank, "alpha": lora.alpha, "rslora": lora.rslora});
        if !lora.targets.is_empty() {
            document["targets"] = json!(lora.target_names());
        }
        document
    })
}
