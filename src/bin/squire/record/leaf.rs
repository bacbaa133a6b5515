//! A column of a Parquet file as it is filled: values, and the levels that say which of them are null and where lists begin.
//!
//! The levels are Dremel's, as the format has them. A definition level counts how many of the optional and repeated parts of a
//! column's path are there, a repetition level says which of the repeated ones a value goes on with; 0 begins a row.
#![forbid(unsafe_code)]

use parquet::data_type::{BoolType, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::Result;
use parquet::file::writer::SerializedColumnWriter;

/// What a value is.
pub trait Kind {
    /// As it is stored.
    type Stored: DataType;
    /// As a schema has it: the stored type, and what it means.
    const TYPE: (&str, &str);
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident: $stored:ident $type:literal $means:literal,)+) => {$(
        $(#[$doc])*
        pub struct $name;
        impl Kind for $name {
            type Stored = $stored;
            const TYPE: (&str, &str) = ($type, $means);
        }
    )+};
}

kinds! {
    /// UTF-8.
    Text: ByteArrayType "binary" "(STRING)",
    /// i32.
    Whole: Int32Type "int32" "",
    /// u64, whose bits are stored as an i64's.
    Number: Int64Type "int64" "(INTEGER(64,false))",
    /// f32.
    Float: FloatType "float" "",
    /// f64.
    Double: DoubleType "double" "",
    /// bool.
    Truth: BoolType "boolean" "",
}

/// What a row has in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A value.
    One,
    /// A value or null.
    Maybe,
    /// A list of values.
    List,
    /// A list of values and nulls.
    ListOfMaybe,
    /// A list of values, or null.
    MaybeList,
    /// A list of lists and nulls.
    ListOfMaybeLists,
}

/// A value of a kind.
pub type Value<K> = <<K as Kind>::Stored as DataType>::T;

/// A column.
pub struct Leaf<K: Kind> {
    name: &'static str,
    shape: Shape,
    values: Vec<Value<K>>,
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
}

impl<K: Kind> Leaf<K> {
    pub fn new(name: &'static str, shape: Shape) -> Leaf<K> {
        Leaf { name, shape, values: Vec::new(), definitions: Vec::new(), repetitions: Vec::new() }
    }

    fn level(&mut self, definition: i16, repetition: i16) {
        self.definitions.push(definition);
        self.repetitions.push(repetition);
    }

    /// A row of [`Shape::One`].
    pub fn one(&mut self, value: Value<K>) {
        debug_assert_eq!(self.shape, Shape::One);
        self.values.push(value);
    }

    /// A row of [`Shape::Maybe`].
    pub fn maybe(&mut self, value: Option<Value<K>>) {
        debug_assert_eq!(self.shape, Shape::Maybe);
        self.definitions.push(value.is_some().into());
        self.values.extend(value);
    }

    /// A row of [`Shape::List`].
    pub fn list(&mut self, values: impl IntoIterator<Item = Value<K>>) {
        debug_assert_eq!(self.shape, Shape::List);
        self.elements(values, 0, 0, 1);
    }

    /// A row of [`Shape::ListOfMaybe`].
    pub fn list_of_maybe(&mut self, values: impl IntoIterator<Item = Option<Value<K>>>) {
        debug_assert_eq!(self.shape, Shape::ListOfMaybe);
        let mut repetition = 0;
        for value in values {
            self.level(if value.is_some() { 2 } else { 1 }, repetition);
            self.values.extend(value);
            repetition = 1;
        }
        if repetition == 0 {
            self.level(0, 0);
        }
    }

    /// A row of [`Shape::MaybeList`].
    pub fn maybe_list(&mut self, values: Option<&[Value<K>]>) {
        debug_assert_eq!(self.shape, Shape::MaybeList);
        match values {
            None => self.level(0, 0),
            Some(values) => self.elements(values.iter().cloned(), 1, 0, 1),
        }
    }

    /// A row of [`Shape::ListOfMaybeLists`].
    pub fn list_of_maybe_lists<'a>(&mut self, lists: impl IntoIterator<Item = Option<&'a [Value<K>]>>)
    where
        Value<K>: 'a,
    {
        debug_assert_eq!(self.shape, Shape::ListOfMaybeLists);
        let mut repetition = 0;
        for list in lists {
            match list {
                None => self.level(1, repetition),
                Some(list) => self.elements(list.iter().cloned(), 2, repetition, 2),
            }
            repetition = 1;
        }
        if repetition == 0 {
            self.level(0, 0);
        }
    }

    /// A list that is there, whose elements are: `empty` is its definition level where it has none, `first` and `next` the
    /// repetition levels.
    fn elements(&mut self, values: impl IntoIterator<Item = Value<K>>, empty: i16, first: i16, next: i16) {
        let mut repetition = first;
        for value in values {
            self.level(empty + 1, repetition);
            self.values.push(value);
            repetition = next;
        }
        if repetition == first {
            self.level(empty, first);
        }
    }
}

/// A column of any kind.
pub trait Column {
    /// Its line of the schema.
    fn declared(&self) -> String;
    /// Values and nulls that it holds.
    fn len(&self) -> usize;
    /// Writes what it holds, and holds nothing then.
    fn write(&mut self, to: &mut SerializedColumnWriter<'_>) -> Result<()>;
}

impl<K: Kind> Column for Leaf<K> {
    fn declared(&self) -> String {
        let (name, (stored, means)) = (self.name, K::TYPE);
        let leaf = |presence: &str, name: &str| format!("{presence} {stored} {name} {means};");
        let list = |presence: &str, name: &str, element: String| {
            format!("{presence} group {name} (LIST) {{ repeated group list {{ {element} }} }}")
        };
        match self.shape {
            Shape::One => leaf("required", name),
            Shape::Maybe => leaf("optional", name),
            Shape::List => list("required", name, leaf("required", "element")),
            Shape::ListOfMaybe => list("required", name, leaf("optional", "element")),
            Shape::MaybeList => list("optional", name, leaf("required", "element")),
            Shape::ListOfMaybeLists => list("required", name, list("optional", "element", leaf("required", "element"))),
        }
    }

    fn len(&self) -> usize {
        self.values.len().max(self.definitions.len())
    }

    fn write(&mut self, to: &mut SerializedColumnWriter<'_>) -> Result<()> {
        let (defined, repeats) = (self.shape != Shape::One, !matches!(self.shape, Shape::One | Shape::Maybe));
        let definitions = defined.then_some(self.definitions.as_slice());
        let repetitions = repeats.then_some(self.repetitions.as_slice());
        to.typed::<K::Stored>().write_batch(&self.values, definitions, repetitions)?;
        self.values.clear();
        self.definitions.clear();
        self.repetitions.clear();
        Ok(())
    }
}

/// What the rows of a file are made of.
pub trait Form {
    /// What a row is.
    const ROW: &str;
    /// The columns, in order.
    fn columns(&mut self) -> Vec<&mut dyn Column>;
    /// Adds the rows of an episode, and says how many.
    fn add(&mut self, episode: &super::per_token::Tokens<'_>) -> usize;
}

/// A struct of columns, each named as its field.
macro_rules! columns {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ident $shape:ident,)+ }) => {
        $(#[$doc])*
        pub struct $name { $($field: Leaf<$kind>,)+ }

        impl Default for $name {
            fn default() -> $name {
                $name { $($field: Leaf::new(stringify!($field), Shape::$shape),)+ }
            }
        }

        impl $name {
            fn all(&mut self) -> Vec<&mut dyn Column> {
                vec![$(&mut self.$field),+]
            }
        }
    };
}
pub(super) use columns;
