//! A page of KV cache: the keys and values of `PAGE` consecutive positions, for all layers of one model.
//!
//! Layout [L, 2, G, PAGE, D] (the second extent: 0 keys, 1 values), so that the keys of one head lie
//! together and a score is a dot product of contiguous rows. Keys are stored after norm and RoPE. On a GPU a head's
//! values stand transposed, [D, PAGE]: there both products of attention take 16 contiguous bytes along their sum.
#![forbid(unsafe_code)]

use super::{Device, Tensor};
use crate::error::Result;
use crate::tensor::Dtype;

/// Positions in a page.
pub const PAGE: usize = 32;

/// Extents of a model's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShape {
    /// L
    pub n_layers: usize,
    /// G
    pub n_kv_heads: usize,
    /// D
    pub head_dim: usize,
    /// KV dtype: bf16 in bf16 compute, else f32.
    pub dtype: Dtype,
}

impl PageShape {
    /// Bytes of a page.
    pub fn bytes(&self) -> usize {
        self.n_layers * 2 * self.n_kv_heads * PAGE * self.head_dim * self.dtype.size()
    }

    /// Element offset of key row (layer, head, slot); the value row lies `value_offset` further.
    #[inline]
    pub fn key_offset(&self, layer: usize, head: usize, slot: usize) -> usize {
        ((layer * 2 * self.n_kv_heads + head) * PAGE + slot) * self.head_dim
    }

    /// Distance in elements from a key row to its value row.
    #[inline]
    pub fn value_offset(&self) -> usize {
        self.n_kv_heads * PAGE * self.head_dim
    }
}

/// One page. Shared between timelines by `Arc`; written only while a single timeline holds it.
#[derive(Debug)]
pub struct Page {
    elements: Tensor,
}

impl Page {
    /// A page where the device computes: zeros on the CPU, undefined on a GPU.
    pub fn new(device: &Device, shape: PageShape) -> Result<Page> {
        Ok(Page { elements: Tensor::on(device, shape.dtype, &[shape.bytes() / shape.dtype.size()])? })
    }

    /// The elements, [L, 2, G, PAGE, D].
    pub fn elements(&self) -> &Tensor {
        &self.elements
    }

    /// The elements, to be written.
    pub fn elements_mut(&mut self) -> &mut Tensor {
        &mut self.elements
    }

    /// Copies everything from another page of the same shape.
    pub fn copy_from(&mut self, other: &Page) {
        self.elements.copy_from(&other.elements);
    }
}
