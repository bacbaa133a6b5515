//! The one weight type: a matrix as it is stored, and what ops take of it: the matrix with, for each row of a batch, the
//! adapter that applies to it.
//!
//! An adapter is low-rank (LoRA, arXiv 2106.09685): to the product x W^T of a row it adds s (x A^T) B^T with A [R, K] and
//! B [O, R]. Its formula stands in `ops/lora.rs`. Letters: O outputs, K inputs, R rank.

use std::ops::Range;

use super::tensor::Tensor;
use crate::tensor::Shape;

/// A matrix [O, K] of a model, with the bias of its layer where the model has one.
#[derive(Debug)]
pub struct Matrix {
    stored: Stored,
    /// `[O]`
    pub bias: Option<Tensor>,
}

/// How a matrix is stored.
#[derive(Debug)]
enum Stored {
    /// Row-major, one dtype.
    Dense(Tensor),
}

impl From<Tensor> for Matrix {
    fn from(dense: Tensor) -> Matrix {
        Matrix { stored: Stored::Dense(dense), bias: None }
    }
}

impl Matrix {
    /// [O, K]
    pub fn shape(&self) -> Shape {
        self.dense().shape()
    }

    /// O or K.
    pub fn extent(&self, axis: usize) -> usize {
        self.dense().extent(axis)
    }

    /// The elements.
    pub fn dense(&self) -> &Tensor {
        let Stored::Dense(tensor) = &self.stored;
        tensor
    }

    /// The elements, to be changed.
    pub fn dense_mut(&mut self) -> &mut Tensor {
        let Stored::Dense(tensor) = &mut self.stored;
        tensor
    }

    /// Its tensors in order: the elements, then the bias.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let Stored::Dense(tensor) = &mut self.stored;
        std::iter::once(tensor).chain(&mut self.bias)
    }
}

/// The seven projections of a layer that an adapter may change, in the order of `Projection::ALL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// queries
    Q,
    /// keys
    K,
    /// values
    V,
    /// attention's output
    O,
    /// the feed-forward gate
    Gate,
    /// the feed-forward input
    Up,
    /// the feed-forward output
    Down,
}

impl Projection {
    /// All of them.
    pub const ALL: [Projection; 7] = [
        Projection::Q,
        Projection::K,
        Projection::V,
        Projection::O,
        Projection::Gate,
        Projection::Up,
        Projection::Down,
    ];

    /// Its name in Hugging Face's models.
    pub fn name(self) -> &'static str {
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"][self as usize]
    }

    /// The module of a layer that it belongs to.
    pub fn module(self) -> &'static str {
        if self <= Projection::O { "self_attn" } else { "mlp" }
    }
}

/// What an adapter adds to one matrix: s (x A^T) B^T.
#[derive(Debug)]
pub struct LoraPair {
    /// A [R, K]
    pub a: Tensor,
    /// B transposed, [R, O]: what is added to a row is read in the order in which it is added
    pub b: Tensor,
    /// s
    pub scale: f32,
}

/// The pairs of one layer, by projection; None where the matrix is not adapted.
pub type LayerPairs = [Option<LoraPair>; 7];

/// Rows of a batch to which one adapter applies.
#[derive(Clone, Debug)]
pub struct AdaptedRows<'a> {
    /// The rows.
    pub rows: Range<usize>,
    /// The adapter's pairs of the layer at hand.
    pub pairs: &'a LayerPairs,
}

/// A matrix as ops take it.
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// What is stored.
    pub matrix: &'a Matrix,
    /// Which of a layer's pairs are this matrix's, and the rows that have an adapter, in order; all others have none.
    adapted: Option<(Projection, &'a [AdaptedRows<'a>])>,
}

impl<'a> From<&'a Matrix> for Weight<'a> {
    fn from(matrix: &'a Matrix) -> Weight<'a> {
        Weight { matrix, adapted: None }
    }
}

impl<'a> Weight<'a> {
    /// A layer's matrix under the adapters of a batch's rows.
    pub fn adapted(matrix: &'a Matrix, projection: Projection, rows: &'a [AdaptedRows<'a>]) -> Weight<'a> {
        Weight { matrix, adapted: (!rows.is_empty()).then_some((projection, rows)) }
    }

    /// [O, K]
    pub fn shape(&self) -> Shape {
        self.matrix.shape()
    }

    /// O or K.
    pub fn extent(&self, axis: usize) -> usize {
        self.matrix.extent(axis)
    }

    /// The pairs that apply to rows, in order; rows that are not named have none.
    pub fn pairs(&self) -> impl Iterator<Item = (Range<usize>, &'a LoraPair)> + use<'a> {
        let (projection, rows) = self.adapted.unwrap_or((Projection::Q, &[]));
        rows.iter().filter_map(move |r| r.pairs[projection as usize].as_ref().map(|pair| (r.rows.clone(), pair)))
    }

    /// The elements, for a device whose kernels take nothing else. Adapters and biases are refused there when a model or
    /// an adapter is loaded.
    pub(super) fn plain(&self) -> &'a Tensor {
        assert!(self.matrix.bias.is_none() && self.pairs().next().is_none(), "this device takes bare matrices");
        self.matrix.dense()
    }
}
