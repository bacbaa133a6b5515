//! Which episodes of records a distiller has taken, so that none counts twice, also after it is resumed.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::distill::run_id::RunId;

/// Episodes by run and number.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::distill) struct Known(BTreeSet<(RunId, u64)>);

impl Known {
    pub(in crate::distill) fn has(&self, run: RunId, episode: u64) -> bool {
        self.0.contains(&(run, episode))
    }

    pub(in crate::distill) fn add(&mut self, run: RunId, episode: u64) {
        self.0.insert((run, episode));
    }

    /// Without one that will have to be taken again.
    pub(in crate::distill) fn forget(&mut self, run: RunId, episode: u64) {
        self.0.remove(&(run, episode));
    }

    pub(in crate::distill) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ranges of numbers by run: `{run: [[first, last], ...]}`.
    pub(in crate::distill) fn to_json(&self) -> Value {
        let mut runs = Map::new();
        let all: Vec<&(RunId, u64)> = self.0.iter().collect();
        for range in all.chunk_by(|a, b| a.0 == b.0 && a.1 + 1 == b.1) {
            let (run, first) = *range[0];
            let ranges = runs.entry(run.to_string()).or_insert_with(|| json!([]));
            if let Some(ranges) = ranges.as_array_mut() {
                ranges.push(json!([first, first + (range.len() as u64 - 1)]));
            }
        }
        Value::Object(runs)
    }

    /// Reads the same; None where it is not of this form.
    pub(in crate::distill) fn from_json(value: &Value) -> Option<Known> {
        let mut known = Known::default();
        for (run, ranges) in value.as_object()? {
            let run = RunId::parse(run)?;
            for range in ranges.as_array()? {
                let [first, last] = range.as_array()?.as_slice() else { return None };
                let (first, last) = (first.as_u64()?, last.as_u64()?);
                // A document of a megabyte must not ask for more numbers than there can be episodes of one process.
                (last.checked_sub(first)? < 1 << 32).then_some(())?;
                known.0.extend((first..=last).map(|episode| (run, episode)));
            }
        }
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_come_back() {
        let mut known = Known::default();
        for (run, episode) in [(1, 3), (1, 4), (1, 5), (1, 9), (2, 0)] {
            known.add(RunId(run), episode);
        }
        let json = known.to_json();
        assert_eq!(json[RunId(1).to_string()], json!([[3, 5], [9, 9]]));
        assert_eq!(Known::from_json(&json), Some(known));
        for wrong in
            [json!([]), json!({"x": []}), json!({RunId(1).to_string(): [[5, 3]]}), json!({RunId(1).to_string(): [3]})]
        {
            assert_eq!(Known::from_json(&wrong), None, "{wrong}");
        }
    }
}
