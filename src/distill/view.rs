//! What the teacher reads where that is not what the student reads: the same timeline with parts of it replaced.
//!
//! Only what lies between actions is replaced. So every action stands in both timelines with the same ids and in one piece, and
//! where it stands in the teacher's follows from the lengths of what was replaced before it.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::Result;
use crate::memory;

/// What the teacher reads in place of a part of the student's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instead {
    /// The part; where it is empty the teacher reads something more.
    pub range: Range<usize>,
    /// What it reads there.
    pub ids: Arc<Vec<i32>>,
}

/// A timeline as the teacher reads it, told by what is other in it. Empty where it reads what the student reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// in order and apart; between two actions there may be several
    parts: Vec<Instead>,
}

impl View {
    /// Whether the teacher reads what the student reads.
    pub fn is_the_students(&self) -> bool {
        self.parts.is_empty()
    }

    /// What is other.
    pub fn parts(&self) -> &[Instead] {
        &self.parts
    }

    /// Notes what the teacher reads in place of the last part of the student's timeline. The same ids are no other view.
    pub(super) fn replace(&mut self, range: Range<usize>, students: &[i32], ids: Vec<i32>) {
        if students != ids {
            self.parts.push(Instead { range, ids: Arc::new(ids) });
        }
    }

    /// Where a token of an action stands in the teacher's timeline, or where that ends where the student's does.
    pub fn position(&self, position: usize) -> usize {
        let before = self.parts.iter().take_while(|part| part.range.end <= position);
        let (replaced, read) = before.fold((0, 0), |(n, m), part| (n + part.range.len(), m + part.ids.len()));
        position - replaced + read
    }

    /// The teacher's timeline, from the student's; `given` makes a token of what is other.
    pub(crate) fn woven<T: Copy>(&self, students: &[T], given: impl Fn(i32) -> T) -> Result<Vec<T>> {
        let mut woven = memory::reserved(self.position(students.len()), "the teacher's view")?;
        let mut from = 0;
        for part in &self.parts {
            woven.extend_from_slice(&students[from..part.range.start]);
            woven.extend(part.ids.iter().map(|&id| given(id)));
            from = part.range.end;
        }
        woven.extend_from_slice(&students[from..]);
        Ok(woven)
    }

    /// The view of a record that ends with the turn that starts at `start`.
    pub(super) fn before(&self, start: usize) -> View {
        View { parts: self.parts.iter().take_while(|part| part.range.end <= start).cloned().collect() }
    }

    /// For a trace: where a turn stands in the teacher's timeline, null where all before it is the student's too.
    pub(super) fn turn_json(&self, start: usize) -> Value {
        match self.parts.first() {
            Some(first) if first.range.end <= start => json!({"start": self.position(start)}),
            _ => Value::Null,
        }
    }

    /// For a trace: the teacher read `ids` in place of the record's ids from `start` to `end`.
    pub(super) fn to_json(&self) -> Value {
        let part = |Instead { range, ids }: &Instead| json!({"start": range.start, "end": range.end, "ids": **ids});
        self.parts.iter().map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The student's 0 to 9, of which 3, 4 and 7 are actions: the teacher reads a prefix, less before the first action, and
    /// something more after it.
    fn view() -> (View, Vec<i32>) {
        let (students, mut view) = ((0..10).collect::<Vec<i32>>(), View::default());
        view.replace(0..0, &[], vec![20, 21, 22]);
        view.replace(1..3, &students[1..3], vec![23]);
        view.replace(5..5, &[], vec![24, 25]);
        view.replace(5..7, &students[5..7], vec![5, 6]);
        view.replace(8..10, &students[8..10], vec![]);
        (view, students)
    }

    #[test]
    fn an_action_stands_in_both_timelines_in_one_piece() {
        let (view, students) = view();
        let woven = view.woven(&students, |id| id).unwrap();
        assert_eq!(woven, [20, 21, 22, 0, 23, 3, 4, 24, 25, 5, 6, 7]);
        assert_eq!([3, 4, 7].map(|at| view.position(at)), [5, 6, 11]);
        assert!([3, 4, 7].into_iter().all(|at| woven[view.position(at)] == students[at]));
        assert_eq!(view.position(10), woven.len(), "the end");
    }

    #[test]
    fn the_same_ids_are_no_other_view() {
        let mut view = View::default();
        view.replace(0..2, &[1, 2], vec![1, 2]);
        view.replace(2..2, &[], vec![]);
        assert!(view.is_the_students() && view.position(7) == 7);
        assert_eq!(view.woven(&[1, 2, 3], |id| id).unwrap(), [1, 2, 3]);
        assert_eq!((view.to_json(), view.turn_json(5)), (json!([]), Value::Null));
    }

    #[test]
    fn a_record_that_ends_earlier_has_the_view_of_what_it_holds() {
        let (view, students) = view();
        let first = view.before(3);
        assert_eq!(first.woven(&students[..5], |id| id).unwrap(), [20, 21, 22, 0, 23, 3, 4]);
        assert_eq!(first.parts(), &view.parts()[..2], "what follows the turn is not its own");
        assert_eq!(view.before(7), view.before(8), "the last turn starts at 7 and is one token");
    }

    #[test]
    fn the_trace_says_where_and_what() {
        let (view, _) = view();
        assert_eq!(view.turn_json(3), json!({"start": 5}));
        assert_eq!(view.to_json()[1], json!({"start": 1, "end": 3, "ids": [23]}));
        let mut late = View::default();
        late.replace(5..5, &[], vec![9]);
        assert_eq!((late.turn_json(3), late.turn_json(7)), (Value::Null, json!({"start": 8})));
    }
}
