//! Embedding: y[n, :] = table[ids[n], :].
//!
//! table [V, C] as stored (f32, bf16, f16), y [N, C] f32, rounded to bf16 in bf16 compute. N is the number of ids.

use super::Draws;
use super::split::items_per_task;
use crate::backend::cpu::dot::Widen;
use crate::backend::cpu::{Cpu, Kernel, Lanes, Shared, piece};
use crate::backend::cuda::{Address, KernelArgs, Launch};
use crate::backend::{Batch, Compute, Device, Elements, Tensor};
use crate::tensor::Dtype;

/// Columns of the table's gradient that one task owns.
const GRADIENT_COLUMNS: usize = 64;

/// Looks up one row an id of the batch. Overwrites the batch's rows of `y`. On the CPU the ids were checked against
/// the vocabulary when they entered a session, and one outside it panics; on a GPU an id may be `drawn` there just before
/// (-1 - j names draw j).
pub fn embedding_forward(
    device: &Device,
    y: &mut Tensor,
    batch: &Batch,
    table: &Tensor,
    drawn: &Draws,
    compute: Compute,
) {
    let (v, c, n) = (table.extent(0), table.extent(1), batch.plan().rows);
    assert!(y.extent(0) >= n && y.extent(1) == c, "y is {}, table {}", y.shape(), table.shape());
    match device {
        Device::Cpu(cpu) => look_up_ids(cpu, y, batch.ids(), table, compute),
        Device::Cuda(cuda) => {
            assert!(table.dtype() == Dtype::Bf16 && c.is_multiple_of(8), "the table is {table:?}");
            let args = EmbeddingArgs {
                stream: y.address(),
                table: table.address(),
                ids: batch.addresses().ids,
                drawn: drawn.address(),
                c: c as u32,
                v: v as u32,
            };
            cuda.launch(Launch::new("squire_embedding", [n as u32, 1, 1], 128, 0), &args);
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct EmbeddingArgs {
    stream: Address,
    table: Address,
    ids: Address,
    drawn: Address,
    c: u32,
    v: u32,
}

// SAFETY: the struct of kernels/embedding.cu, without padding.
unsafe impl KernelArgs for EmbeddingArgs {}

fn look_up_ids(cpu: &Cpu, y: &mut Tensor, ids: &[i32], table: &Tensor, compute: Compute) {
    let c = table.extent(1);
    assert_ids(ids, table);
    let y = Shared::new(&mut y.f32_mut()[..ids.len() * c]);
    let round = compute.rounds();
    match table.elements() {
        Elements::F32(table) => look_up(cpu, y, ids, table, c, round),
        Elements::Bf16(table) => look_up(cpu, y, ids, table, c, round),
        Elements::F16(table) => look_up(cpu, y, ids, table, c, round),
    }
}

/// `dtable[ids[n], :] += dy[n, :]`, rows in order. Adds to `dtable` [V, C], which is f32 whatever the table is stored as.
pub fn embedding_backward(device: &Device, dtable: &mut Tensor, ids: &[i32], dy: &Tensor) {
    let c = dtable.extent(1);
    assert!(dy.extent(0) >= ids.len() && dy.extent(1) == c, "dy is {}, dtable {}", dy.shape(), dtable.shape());
    assert_ids(ids, dtable);
    let cpu = device.cpu();
    let dy = &dy.f32()[..ids.len() * c];
    let dtable = Shared::new(dtable.f32_mut());
    cpu.launch(c.div_ceil(GRADIENT_COLUMNS), &EmbeddingBackward { dtable, ids, dy, c });
}

fn assert_ids(ids: &[i32], table: &Tensor) {
    let v = table.extent(0);
    assert!(ids.iter().all(|&id| id >= 0 && (id as usize) < v), "an id lies outside the vocabulary of {v}");
}

fn look_up<W: Widen>(cpu: &Cpu, y: Shared<f32>, ids: &[i32], table: &[W], c: usize, round: bool) {
    let rows = items_per_task(cpu, ids.len(), c);
    cpu.launch(ids.len().div_ceil(rows), &EmbeddingForward { y, ids, table, c, rows, round });
}

struct EmbeddingForward<'a, W> {
    y: Shared<f32>,
    ids: &'a [i32],
    table: &'a [W],
    c: usize,
    rows: usize,
    round: bool,
}

impl<W: Widen> Kernel for EmbeddingForward<'_, W> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        for row in piece(index, self.rows, self.ids.len()) {
            let start = self.ids[row] as usize * self.c;
            let mut i = 0;
            while i < self.c {
                let n = (self.c - i).min(16);
                // SAFETY: ids lie inside the table, and tasks own disjoint rows of y.
                unsafe {
                    let v: V = W::load(self.table.as_ptr().add(start + i), n);
                    v.store_rounded(self.y.at(row * self.c + i), n, self.round);
                }
                i += 16;
            }
        }
    }
}

struct EmbeddingBackward<'a> {
    dtable: Shared<f32>,
    ids: &'a [i32],
    dy: &'a [f32],
    c: usize,
}

impl Kernel for EmbeddingBackward<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let columns = piece(index, GRADIENT_COLUMNS, self.c);
        for (row, &id) in self.ids.iter().enumerate() {
            let mut i = columns.start;
            while i < columns.end {
                let n = (columns.end - i).min(16);
                // SAFETY: ids lie inside the table, and tasks own disjoint columns of it.
                unsafe {
                    let d = self.dtable.at(id as usize * self.c + i);
                    let dy = V::load_up_to(self.dy.as_ptr().add(row * self.c + i), n);
                    V::load_up_to(d, n).add(dy).store_rounded(d, n, false);
                }
                i += 16;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;

    const EXTENTS: [(usize, usize); 4] = [(1, 1), (7, 17), (5, 64), (31, 131)];

    fn some_ids(n: usize, v: usize) -> Vec<i32> {
        (0..n).map(|i| ((i * i + 3) % v) as i32).collect()
    }

    #[test]
    fn embedding_copies_rows_for_every_stored_dtype() {
        for (v, c) in EXTENTS {
            let ids = some_ids(2 * v + 1, v);
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16] {
                let table = stored(&random(1, &[v, c]), dtype);
                for compute in [Compute::F32, Compute::Bf16] {
                    for device in devices() {
                        let mut y = Tensor::zeros(Dtype::F32, &[ids.len(), c]).unwrap();
                        look_up_ids(device.cpu(), &mut y, &ids, &table, compute);
                        let wide = Tensor::from_f32(&[v, c], &table.to_f32()).unwrap();
                        let wide = if compute.rounds() { stored(&wide, Dtype::Bf16).to_f32() } else { wide.to_f32() };
                        for (i, &id) in ids.iter().enumerate() {
                            let id = id as usize;
                            assert_same_bits("y", &y.f32()[i * c..(i + 1) * c], &wide[id * c..(id + 1) * c]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn embedding_backward_adds_repeated_ids_in_row_order() {
        for (v, c) in EXTENTS {
            let ids = some_ids(3 * v, v);
            let (start, dy) = (random(2, &[v, c]), random(3, &[ids.len(), c]));
            let mut wanted = start.f32().to_vec();
            for (i, &id) in ids.iter().enumerate() {
                for j in 0..c {
                    wanted[id as usize * c + j] += dy.f32()[i * c + j];
                }
            }
            for device in devices() {
                let mut dtable = stored(&start, Dtype::F32);
                embedding_backward(&device, &mut dtable, &ids, &dy);
                assert_same_bits("dtable", dtable.f32(), &wanted);
            }
        }
    }

    #[test]
    #[should_panic(expected = "outside the vocabulary")]
    fn an_id_outside_the_vocabulary_panics() {
        let table = random(1, &[3, 4]);
        let mut y = Tensor::zeros(Dtype::F32, &[1, 4]).unwrap();
        look_up_ids(device().cpu(), &mut y, &[3], &table, Compute::F32);
    }
}
