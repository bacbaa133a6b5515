use std::sync::Arc;

use super::super::claims::*;
use super::*;
use crate::backend::ops::{Span, attention_forward, inverse_frequencies, kv_append, qk_norm_rope_forward};
use crate::backend::page::{PAGE, Page, PageShape};
use crate::backend::{Compute, Device};
use crate::tensor::Dtype;

const EPS: f32 = 1e-6;
/// Rows beyond those in use.
const PADDING: usize = 2;
/// GPU and CPU round the same values at the same points but one: a GPU rounds the exponentials to bf16. Relative to the
/// largest output.
const TOLERANCE: f64 = 1e-2;
const LAYER: usize = 1;

fn heads(group: usize, n_kv_heads: usize, head_dim: usize) -> Heads {
    Heads { n_heads: group * n_kv_heads, n_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
}

/// Timelines with something in their pages, and the rows that come next.
struct Case {
    heads: Heads,
    shape: PageShape,
    /// per timeline: positions before the new rows
    starts: Vec<usize>,
    /// per timeline: new rows
    counts: Vec<usize>,
    /// per timeline: which of `pages`
    tables: Vec<Vec<usize>>,
    /// the CPU's, before the new rows
    pages: Vec<Page>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    table: RopeTable,
}

/// The same pages in a GPU's layout: values [G, D, PAGE]. Slots that nobody wrote hold what the GPU's memory holds.
fn to_gpu_layout(shape: PageShape, page: &[u16]) -> Vec<u16> {
    let mut out = page.to_vec();
    for (layer, head) in (0..shape.n_layers).flat_map(|l| (0..shape.n_kv_heads).map(move |g| (l, g))) {
        let at = shape.key_offset(layer, head, 0) + shape.value_offset();
        for (slot, d) in (0..PAGE).flat_map(|s| (0..shape.head_dim).map(move |d| (s, d))) {
            out[at + d * PAGE + slot] = page[at + slot * shape.head_dim + d];
        }
    }
    out
}

fn from_gpu_layout(shape: PageShape, page: &[u16]) -> Vec<u16> {
    let mut out = page.to_vec();
    for (layer, head) in (0..shape.n_layers).flat_map(|l| (0..shape.n_kv_heads).map(move |g| (l, g))) {
        let at = shape.key_offset(layer, head, 0) + shape.value_offset();
        for (slot, d) in (0..PAGE).flat_map(|s| (0..shape.head_dim).map(move |d| (s, d))) {
            out[at + slot * shape.head_dim + d] = page[at + d * PAGE + slot];
        }
    }
    out
}

fn bits(page: &Page) -> Vec<u16> {
    page.elements().bytes().chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect()
}

impl Case {
    /// Timelines of `starts` positions that get `counts` rows; the first `shared` pages are the first timeline's.
    fn new(heads: Heads, starts: &[usize], counts: &[usize], shared: usize) -> Case {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = heads;
        let shape = PageShape { n_layers: 2, n_kv_heads, head_dim, dtype: Dtype::Bf16 };
        let (mut pages, mut tables) = (Vec::new(), Vec::<Vec<usize>>::new());
        for (start, count) in starts.iter().zip(counts) {
            let own = (start + count).div_ceil(PAGE);
            let mut table: Vec<usize> = tables.first().map_or(Vec::new(), |t| t[..shared.min(own)].to_vec());
            for number in table.len()..own {
                let mut page = Page::new(shape).unwrap();
                let random = stored(&random(100 + pages.len() as u64, &[shape.bytes() / 2]), Dtype::Bf16);
                page.elements_mut().bytes_mut().copy_from_slice(random.bytes());
                // NaN, where nobody wrote.
                for slot in (*start).saturating_sub(number * PAGE).min(PAGE)..PAGE {
                    for (layer, g) in (0..2).flat_map(|l| (0..n_kv_heads).map(move |g| (l, g))) {
                        let at = shape.key_offset(layer, g, slot);
                        for at in [at, at + shape.value_offset()] {
                            page.elements_mut().u16_mut()[at..at + head_dim].fill(0xffff);
                        }
                    }
                }
                table.push(pages.len());
                pages.push(page);
            }
            tables.push(table);
        }
        let n = counts.iter().sum::<usize>() + PADDING;
        let rounded = |seed, width| {
            let x = stored(&random(seed, &[n, width]), Dtype::Bf16).to_f32();
            Tensor::from_f32(&[n, width], &x).unwrap()
        };
        let norm = |seed| {
            let w: Vec<f32> = random(seed, &[head_dim]).f32().iter().map(|w| 1.5 + w).collect();
            stored(&Tensor::from_f32(&[head_dim], &w).unwrap(), Dtype::Bf16)
        };
        let longest = starts.iter().zip(counts).map(|(s, c)| s + c).max().unwrap();
        Case {
            heads,
            shape,
            starts: starts.to_vec(),
            counts: counts.to_vec(),
            tables,
            pages,
            q: rounded(1, n_heads * head_dim),
            k: rounded(2, n_kv_heads * head_dim),
            v: rounded(3, n_kv_heads * head_dim),
            q_norm: norm(4),
            k_norm: norm(5),
            table: RopeTable::new(&inverse_frequencies(head_dim, 1e4), longest, 1.0).unwrap(),
        }
    }

    /// Decode rows whose newest positions are the last of `lengths`.
    fn decode(heads: Heads, lengths: &[usize], shared: usize) -> Case {
        let starts: Vec<usize> = lengths.iter().map(|l| l - 1).collect();
        Case::new(heads, &starts, &vec![1; lengths.len()], shared)
    }

    fn n_rows(&self) -> usize {
        self.counts.iter().sum()
    }

    /// Per row its timeline and position.
    fn rows(&self) -> Vec<(usize, usize)> {
        let of = |i: usize| (self.starts[i]..self.starts[i] + self.counts[i]).map(move |p| (i, p));
        (0..self.starts.len()).flat_map(of).collect()
    }

    /// The CPU's outputs, and the bits of its pages afterwards.
    fn judge(&self) -> (Vec<f32>, Vec<Vec<u16>>) {
        let device = device();
        let Heads { n_heads, n_kv_heads, head_dim, .. } = self.heads;
        let n = self.n_rows();
        let positions: Vec<u32> = self.rows().iter().map(|&(_, p)| p as u32).collect();
        let roped = |x: &Tensor, w: &Tensor, heads: usize| {
            let mut y = Tensor::zeros(Dtype::F32, &[n, heads * head_dim]).unwrap();
            qk_norm_rope_forward(&device, &mut y, x, w, &self.table, &positions, n, heads, EPS, Compute::Bf16);
            y
        };
        let (q, k) = (roped(&self.q, &self.q_norm, n_heads), roped(&self.k, &self.k_norm, n_kv_heads));
        let mut pages: Vec<Arc<Page>> = Vec::new();
        for page in &self.pages {
            let mut copy = Page::new(self.shape).unwrap();
            copy.copy_from(page);
            pages.push(Arc::new(copy));
        }
        for (row, &(i, p)) in self.rows().iter().enumerate() {
            let page = Arc::get_mut(&mut pages[self.tables[i][p / PAGE]]).unwrap();
            kv_append(&device, page, self.shape, LAYER, p % PAGE, (&k, &self.v), row..row + 1);
        }
        let tables: Vec<Vec<Arc<Page>>> =
            self.tables.iter().map(|t| t.iter().map(|&p| pages[p].clone()).collect()).collect();
        let mut first = 0;
        let mut spans = Vec::new();
        for (i, pages) in tables.iter().enumerate() {
            spans.push(Span { rows: first..first + self.counts[i], start: self.starts[i], pages });
            first += self.counts[i];
        }
        let mut out = Tensor::zeros(Dtype::F32, &[n, n_heads * head_dim]).unwrap();
        attention_forward(&device, &mut out, &q, &spans, self.shape, LAYER, self.heads, Compute::Bf16);
        (out.f32().to_vec(), pages.iter().map(|p| bits(p)).collect())
    }
}

/// The case on a GPU.
struct OnGpu<'a> {
    case: &'a Case,
    gpu: Device,
    pages: Vec<Buffer>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    table: RopeTable,
    /// what the step's addresses name
    step: Vec<Buffer>,
}

impl<'a> OnGpu<'a> {
    fn new(case: &'a Case, gpu: &Device) -> OnGpu<'a> {
        let Device::Cuda(cuda) = gpu else { unreachable!() };
        let pages = case.pages.iter().map(|page| {
            let bytes: Vec<u8> = to_gpu_layout(case.shape, &bits(page)).iter().flat_map(|b| b.to_ne_bytes()).collect();
            let buffer = cuda.allocate(bytes.len()).unwrap();
            buffer.write(&bytes).unwrap();
            buffer
        });
        OnGpu {
            case,
            gpu: gpu.clone(),
            pages: pages.collect(),
            q: bf16_on(gpu, &case.q),
            k: bf16_on(gpu, &case.k),
            v: bf16_on(gpu, &case.v),
            q_norm: case.q_norm.to_device(gpu).unwrap(),
            k_norm: case.k_norm.to_device(gpu).unwrap(),
            table: case.table.to_device(gpu).unwrap(),
            step: Vec::new(),
        }
    }

    fn cuda(&self) -> Cuda {
        let Device::Cuda(cuda) = &self.gpu else { unreachable!() };
        cuda.clone()
    }

    fn put(&mut self, words: &[u32]) -> Address {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let buffer = self.cuda().allocate(bytes.len()).unwrap();
        if !bytes.is_empty() {
            buffer.view(0, bytes.len()).write(&bytes).unwrap();
        }
        self.step.push(buffer);
        self.step.last().unwrap().address()
    }

    fn step(&mut self, items: &[[u32; 4]], item_rows: &[u32], tiles: &[[u32; 4]]) -> StepAddresses {
        let case = self.case;
        let mut first_page = Vec::new();
        let mut pages = Vec::new();
        for table in &case.tables {
            first_page.push(pages.len() as u32 / 2);
            for &page in table {
                let at = self.pages[page].address();
                pages.extend([at as u32, (at >> 32) as u32]);
            }
        }
        let rows = case.rows();
        StepAddresses {
            counts: self.put(&[rows.len() as u32, items.len() as u32, tiles.len() as u32, 0]),
            positions: self.put(&rows.iter().map(|&(_, p)| p as u32).collect::<Vec<_>>()),
            row_pages: self.put(&rows.iter().map(|&(i, _)| first_page[i]).collect::<Vec<_>>()),
            pages: self.put(&pages),
            items: self.put(items.as_flattened()),
            item_rows: self.put(item_rows),
            tiles: self.put(tiles.as_flattened()),
            ..StepAddresses::default()
        }
    }

    fn attend(&self) -> Attend<'_> {
        let OnGpu { q, k, v, q_norm, k_norm, table, .. } = self;
        Attend { q, k, v, q_norm, k_norm, table, eps: EPS, layer: LAYER, heads: self.case.heads }
    }

    /// An output whose every element says that nobody wrote it.
    fn blank(&self) -> Tensor {
        let Heads { n_heads, head_dim, .. } = self.case.heads;
        let mut out = Tensor::zeros(Dtype::Bf16, &[self.case.n_rows() + PADDING, n_heads * head_dim]).unwrap();
        out.u16_mut().fill(0xffff);
        out.to_device(&self.gpu).unwrap()
    }

    /// What was written, after a look at the padding.
    fn written(&self, out: &Tensor) -> Vec<f32> {
        let mut all = read(out);
        let padding = all.split_off(self.case.n_rows() * self.case.heads.n_heads * self.case.heads.head_dim);
        assert!(padding.iter().all(|x| x.to_bits() == 0xffff_0000), "a padded row was written");
        all
    }

    fn page_bits(&self) -> Vec<Vec<u16>> {
        let words = |b: Vec<u8>| b.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect::<Vec<_>>();
        self.pages.iter().map(|p| from_gpu_layout(self.case.shape, &words(p.read().unwrap()))).collect()
    }
}

/// The items of a decode step: for each split, rows with the same pages there, `most` at a time.
fn items(case: &Case, most: usize) -> (Vec<[u32; 4]>, Vec<u32>) {
    let rows = case.rows();
    let (mut items, mut item_rows) = (Vec::new(), Vec::<u32>::new());
    let longest = rows.iter().map(|&(_, p)| p).max().unwrap();
    for split in 0..=longest / SPLIT {
        let mut left: Vec<usize> = (0..rows.len()).filter(|&row| rows[row].1 >= split * SPLIT).collect();
        let pages = |row: usize| {
            let table = &case.tables[rows[row].0];
            &table[split * SPLIT / PAGE..((split + 1) * SPLIT / PAGE).min(table.len())]
        };
        while let Some(&row) = left.first() {
            let same: Vec<usize> = left.iter().copied().filter(|&r| pages(r) == pages(row)).take(most).collect();
            left.retain(|row| !same.contains(row));
            items.push([split as u32, item_rows.len() as u32, same.len() as u32, 0]);
            item_rows.extend(same.iter().map(|&row| row as u32));
        }
    }
    (items, item_rows)
}

/// A decode step of the case; rows share items of up to `queries` queries, or none if not `shared`.
fn decode(case: &Case, gpu: &Device, queries: usize, shared: bool) -> (Vec<f32>, Vec<Vec<u16>>) {
    let mut on = OnGpu::new(case, gpu);
    let group = case.heads.n_heads / case.heads.n_kv_heads;
    let (items, item_rows) = items(case, if shared { queries / group } else { 1 });
    let step = on.step(&items, &item_rows, &[]);
    let n_splits = case.rows().iter().map(|&(_, p)| p / SPLIT + 1).max().unwrap();
    let splits = Splits::new(&on.cuda(), case.heads, case.n_rows(), n_splits).unwrap();
    let weights = on.q.buffer();
    let ahead = [0, 1].map(|_| Ahead { at: weights.address(), bytes: weights.len() as u64 });
    let extent = DecodeExtent { items: items.len() + 1, queries, surplus: 1, ahead, ahead_lines: 2 };
    let mut out = on.blank();
    // Twice, to see that the counters are as they were.
    for _ in 0..2 {
        attend_decode(&on.cuda(), &mut out, &on.attend(), step, &splits, &extent);
    }
    (on.written(&out), on.page_bits())
}

const LENGTHS: [usize; 8] = [1, 31, 32, 33, 255, 256, 257, 700];

fn wide_slice(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

#[test]
fn decode_is_the_cpu_s_and_appends_its_bits() {
    for head_dim in [32, 64, 128] {
        for (group, queries) in [(1, 8), (2, 16), (3, 8), (4, 32), (8, 8)] {
            let case = Case::decode(heads(group, 2, head_dim), &LENGTHS, 0);
            let (out, pages) = case.judge();
            for gpu in gpus() {
                let got = decode(&case, &gpu, queries, true);
                assert_close("out", &got.0, &wide_slice(&out), TOLERANCE);
                assert!(got.1 == pages, "the pages differ: D {head_dim}, group {group}");
            }
        }
    }
}

#[test]
fn decode_is_the_formula() {
    let case = Case::decode(heads(2, 1, 64), &[300, 40], 0);
    let (_, pages) = case.judge();
    let Heads { n_heads, head_dim: d, .. } = case.heads;
    let w = wide(&case.q_norm);
    let frequencies = inverse_frequencies(d, 1e4);
    let mut wanted = Vec::new();
    for (row, (i, position)) in case.rows().into_iter().enumerate() {
        for h in 0..n_heads {
            let x = wide_slice(&case.q.f32()[(row * n_heads + h) * d..][..d]);
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + EPS as f64).sqrt();
            let u: Vec<f64> = x.iter().zip(&w).map(|(x, w)| x * r * w).collect();
            let q = |j: usize| {
                let (sin, cos) = (position as f64 * frequencies[j % (d / 2)] as f64).sin_cos();
                u[j] * cos + sin * if j < d / 2 { -u[j + d / 2] } else { u[j - d / 2] }
            };
            let q: Vec<f64> = (0..d).map(q).collect();
            let row = |s: usize, value: usize| {
                let at = case.shape.key_offset(LAYER, 0, s % PAGE) + value;
                let page = &pages[case.tables[i][s / PAGE]];
                page[at..at + d].iter().map(|&b| f32::from_bits((b as u32) << 16) as f64).collect::<Vec<_>>()
            };
            let score = |s| q.iter().zip(row(s, 0)).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt();
            let p: Vec<f64> = (0..=position).map(|s| score(s).exp()).collect();
            let sum: f64 = p.iter().sum();
            let mut out = vec![0.0; d];
            for (s, p) in p.iter().enumerate() {
                out.iter_mut().zip(row(s, case.shape.value_offset())).for_each(|(o, v)| *o += p / sum * v);
            }
            wanted.extend(out);
        }
    }
    for gpu in gpus() {
        assert_close("out", &decode(&case, &gpu, 8, true).0, &wanted, TOLERANCE);
    }
}

#[test]
fn a_decode_row_has_the_same_bits_in_any_company() {
    for (group, head_dim) in [(2, 128), (3, 32)] {
        // Two splits shared, the third everybody's own.
        let case = Case::decode(heads(group, 1, head_dim), &[520, 513, 600, 520, 514, 530], 2 * SPLIT / PAGE);
        for gpu in gpus() {
            let judge = decode(&case, &gpu, 8, false);
            for queries in [8, 16, 32] {
                let together = decode(&case, &gpu, queries, true);
                assert_same_bits("out", &together.0, &judge.0);
                assert!(together.1 == judge.1, "the pages differ");
            }
        }
    }
}

#[test]
fn a_decode_row_has_the_same_bits_alone() {
    let all = Case::decode(heads(4, 1, 64), &[300, 20, 257], 0);
    let width = all.heads.n_heads * all.heads.head_dim;
    for gpu in gpus() {
        let together = decode(&all, &gpu, 16, true).0;
        for row in 0..3 {
            let mut alone = Case::decode(heads(4, 1, 64), &[300, 20, 257], 0);
            alone.starts = vec![all.starts[row]];
            alone.counts = vec![1];
            alone.tables = vec![all.tables[row].clone()];
            let only = |t: &Tensor| {
                let w = t.extent(1);
                let rows = &t.f32()[row * w..(row + 1) * w];
                let padded: Vec<f32> = std::iter::repeat_n(rows, 1 + PADDING).flatten().copied().collect();
                Tensor::from_f32(&[1 + PADDING, w], &padded).unwrap()
            };
            (alone.q, alone.k, alone.v) = (only(&all.q), only(&all.k), only(&all.v));
            assert_same_bits("row", &decode(&alone, &gpu, 8, true).0, &together[row * width..(row + 1) * width]);
        }
    }
}
