//! The arguments of a call, and Python's way of binding them to parameters.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::operators::index;
use super::value::Value;
use super::{Failure, fail};

type Res<T> = Result<T, Failure>;

/// Evaluated arguments.
#[derive(Clone, Default)]
pub struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(Arc<str>, Value)>,
}

impl Args {
    /// The values of these parameters, of which the first `required` must be given.
    pub fn bind<const N: usize>(self, of: &str, names: [&str; N], required: usize) -> Res<[Option<Value>; N]> {
        let mut bound = [const { None }; N];
        if self.positional.len() > N {
            let given = self.positional.len();
            return Err(fail(format!("{of}() takes at most {N} arguments ({given} given)")));
        }
        let given = self.positional.len();
        for (place, value) in bound.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|parameter| *parameter == &*name) {
                Some(n) if n < given => {
                    return Err(fail(format!("{of}() got multiple values for argument '{name}'")));
                }
                Some(n) => bound[n] = Some(value),
                None => return Err(fail(format!("{of}() got an unexpected keyword argument '{name}'"))),
            }
        }
        if let Some(n) = (0..required).find(|&n| bound[n].is_none()) {
            return Err(fail(format!("{of}() missing a required argument: '{}'", names[n])));
        }
        Ok(bound)
    }

    /// The same where no name may be given, as with most methods of Python's own types.
    pub fn plain<const N: usize>(self, of: &str, required: usize) -> Res<[Option<Value>; N]> {
        if !self.named.is_empty() {
            return Err(fail(format!("{of}() takes no keyword arguments")));
        }
        let given = self.positional.len();
        if given < required || given > N {
            return Err(fail(format!("{of}() takes {required} to {N} arguments ({given} given)")));
        }
        self.bind(of, [""; N], 0)
    }
}

/// An argument that must be an integer.
pub fn integer(of: &str, value: &Value) -> Res<i64> {
    match (index(value), value) {
        (Some(n), _) => n,
        (None, Value::Undefined(undefined)) => Err(fail(undefined.message())),
        (None, other) => Err(fail(format!("{of}: '{}' object cannot be interpreted as an integer", other.kind()))),
    }
}

/// An integer argument that may be left out.
pub fn integer_or(of: &str, value: &Option<Value>, default: i64) -> Res<i64> {
    value.as_ref().map_or(Ok(default), |value| integer(of, value))
}
