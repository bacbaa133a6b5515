use std::sync::Arc;

use super::super::claims::*;
use super::*;
use crate::backend::batch::BatchSegment;
use crate::backend::ops::inverse_frequencies;
use crate::backend::page::{Page, PageShape};

const EPS: f32 = 1e-6;
/// Rows beyond those that are launched.
const PADDING: usize = 2;
/// A GPU rounds where the CPU does, and the exponentials to bf16 besides. Relative to the largest output.
const TOLERANCE: f64 = 1e-2;
const LAYER: usize = 1;
/// A bf16 that is no number: what nobody wrote.
const NOTHING: u16 = 0xffff;

fn heads(group: usize, n_kv_heads: usize, head_dim: usize) -> Heads {
    Heads { n_heads: group * n_kv_heads, n_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() }
}

/// Timelines with something in their pages, and the rows that come next.
struct Case {
    heads: Heads,
    shape: PageShape,
    /// per timeline: positions before the new rows, new rows
    spans: Vec<(usize, usize)>,
    /// per timeline: which of `pages`
    tables: Vec<Vec<usize>>,
    /// as they are before, in the CPU's layout
    pages: Vec<Vec<u16>>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    /// whether heads are normed
    normed: bool,
    table: RopeTable,
}

fn bits(t: &Tensor) -> Vec<u16> {
    t.bytes().chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect()
}

/// A page in the other layout: values [PAGE, D] on the CPU, [D, PAGE] on a GPU.
fn relaid(shape: PageShape, page: &[u16], to_gpu: bool) -> Vec<u16> {
    let mut out = page.to_vec();
    for (layer, g) in (0..shape.n_layers).flat_map(|l| (0..shape.n_kv_heads).map(move |g| (l, g))) {
        let at = shape.key_offset(layer, g, 0) + shape.value_offset();
        for (slot, d) in (0..PAGE).flat_map(|s| (0..shape.head_dim).map(move |d| (s, d))) {
            let (cpu, gpu) = (at + slot * shape.head_dim + d, at + d * PAGE + slot);
            let (to, from) = if to_gpu { (gpu, cpu) } else { (cpu, gpu) };
            out[to] = page[from];
        }
    }
    out
}

impl Case {
    /// Timelines of some positions that get some rows; the first `shared` pages are the first timeline's.
    fn new(heads: Heads, spans: &[(usize, usize)], shared: usize) -> Case {
        let Heads { n_heads, n_kv_heads, head_dim, .. } = heads;
        let shape = PageShape { n_layers: 2, n_kv_heads, head_dim, dtype: Dtype::Bf16 };
        let (mut pages, mut tables) = (Vec::new(), Vec::<Vec<usize>>::new());
        for (start, count) in spans {
            let n_pages = (start + count).div_ceil(PAGE);
            let mut table: Vec<usize> = tables.first().map_or(Vec::new(), |t| t[..shared.min(n_pages)].to_vec());
            for number in table.len()..n_pages {
                let mut page = bits(&stored(&random(100 + pages.len() as u64, &[shape.bytes() / 2]), Dtype::Bf16));
                for slot in start.saturating_sub(number * PAGE).min(PAGE)..PAGE {
                    for (layer, g) in (0..2).flat_map(|l| (0..n_kv_heads).map(move |g| (l, g))) {
                        let key = shape.key_offset(layer, g, slot);
                        page[key..key + head_dim].fill(NOTHING);
                        page[key + shape.value_offset()..][..head_dim].fill(NOTHING);
                    }
                }
                table.push(pages.len());
                pages.push(page);
            }
            tables.push(table);
        }
        let n = spans.iter().map(|s| s.1).sum();
        let rounded = |seed, width| {
            let x = stored(&random(seed, &[n, width]), Dtype::Bf16).to_f32();
            Tensor::from_f32(&[n, width], &x).unwrap()
        };
        let norm = |seed| {
            let w: Vec<f32> = random(seed, &[head_dim]).f32().iter().map(|w| 1.5 + w).collect();
            stored(&Tensor::from_f32(&[head_dim], &w).unwrap(), Dtype::Bf16)
        };
        let longest = spans.iter().map(|(start, count)| start + count).max().unwrap();
        Case {
            heads,
            shape,
            spans: spans.to_vec(),
            tables,
            pages,
            q: rounded(1, n_heads * head_dim),
            k: rounded(2, n_kv_heads * head_dim),
            v: rounded(3, n_kv_heads * head_dim),
            q_norm: norm(4),
            k_norm: norm(5),
            normed: true,
            table: RopeTable::new(&inverse_frequencies(head_dim, 1e4), longest, 1.0).unwrap(),
        }
    }

    /// One new row each, so that timelines have these lengths then.
    fn decode(heads: Heads, lengths: &[usize], shared: usize) -> Case {
        Case::new(heads, &lengths.iter().map(|l| (l - 1, 1)).collect::<Vec<_>>(), shared)
    }

    fn width(&self) -> usize {
        self.heads.n_heads * self.heads.head_dim
    }

    /// The rows of the batch, timeline by timeline, `chunk` rows of each at a time: outputs, and pages afterwards.
    fn run(&self, device: &Device, chunk: usize) -> (Vec<f32>, Vec<Vec<u16>>) {
        let on_gpu = matches!(device, Device::Cuda(_));
        let pages = self.pages.iter().map(|page| {
            let page = if on_gpu { relaid(self.shape, page, true) } else { page.clone() };
            let bytes: Vec<u8> = page.iter().flat_map(|b| b.to_ne_bytes()).collect();
            let mut page = Page::new(device, self.shape).unwrap();
            match on_gpu {
                true => page.elements().buffer().write(&bytes).unwrap(),
                false => page.elements_mut().bytes_mut().copy_from_slice(&bytes),
            }
            Arc::new(page)
        });
        let pages: Vec<Arc<Page>> = pages.collect();
        let mut tables: Vec<Vec<Arc<Page>>> =
            self.tables.iter().map(|table| table.iter().map(|&p| pages[p].clone()).collect()).collect();
        drop(pages);
        let table = self.table.to_device(device).unwrap();
        let norms = [&self.q_norm, &self.k_norm].map(|w| w.to_device(device).unwrap());
        let (mut batch, mut scratch) = (Batch::default(), AttendScratch::default());
        let mut out = vec![0.0; self.q.f32().len()];
        for done in (0..self.spans.iter().map(|s| s.1).max().unwrap()).step_by(chunk) {
            // Rows of the case, and of each timeline how many of them, from which position.
            let (mut rows, mut parts, mut first) = (Vec::new(), Vec::new(), 0);
            for (i, (start, count)) in self.spans.iter().enumerate() {
                let n = count.saturating_sub(done).min(chunk);
                if n > 0 {
                    parts.push((i, start + done, rows.len()..rows.len() + n));
                    rows.extend(first + done..first + done + n);
                }
                first += count;
            }
            let ids = vec![0; rows.len()];
            let segment = |(i, start, rows): &(usize, usize, std::ops::Range<usize>)| {
                let n_pages = (start + rows.len()).div_ceil(PAGE);
                BatchSegment { ids: &ids[rows.clone()], start: *start, pages: &tables[*i][..n_pages] }
            };
            let segments: Vec<BatchSegment> = parts.iter().map(segment).collect();
            batch.set(device, &segments, &[], self.heads).unwrap();
            scratch.reserve(device, self.heads, batch.plan()).unwrap();
            let (width, kv_width) = (self.width(), self.heads.n_kv_heads * self.heads.head_dim);
            let launched = batch.plan().rows + PADDING;
            let gather = |t: &Tensor| {
                let w = t.extent(1);
                let mut x = Tensor::zeros(Dtype::F32, &[launched, w]).unwrap();
                for (to, from) in rows.iter().enumerate() {
                    x.f32_mut()[to * w..][..w].copy_from_slice(&t.f32()[from * w..][..w]);
                }
                if on_gpu { bf16_on(device, &x) } else { x }
            };
            let blank = |w: usize| {
                let mut x = Tensor::zeros(device.activation_dtype(), &[launched, w]).unwrap();
                x.bytes_mut().fill(0xff);
                x.to_device(device).unwrap()
            };
            let (q_raw, k_raw, v) = (gather(&self.q), gather(&self.k), gather(&self.v));
            let (mut q, mut k, mut y) = (blank(width), blank(kv_width), blank(width));
            // Twice, as layers do, which finds counters that are not as they were.
            for _ in 0..2 {
                let attend = Attend {
                    q_raw: &q_raw,
                    k_raw: &k_raw,
                    v: &v,
                    q: &mut q,
                    k: &mut k,
                    out: &mut y,
                    scratch: &mut scratch,
                };
                let mut spans = Vec::new();
                for (i, table) in tables.iter_mut().enumerate() {
                    if let Some((_, start, rows)) = parts.iter().find(|p| p.0 == i) {
                        spans.push(Span { rows: rows.clone(), start: *start, pages: table });
                    }
                }
                let [q_norm, k_norm] = norms.each_ref().map(|weight| self.normed.then_some(Norm { weight, eps: EPS }));
                let at = PageLayer { shape: self.shape, layer: LAYER };
                let next = [&q_raw, &v];
                let layer = AttendLayer { q_norm, k_norm, table: &table, heads: self.heads, at, next };
                attend_forward(device, attend, &layer, &batch, &mut spans, Compute::Bf16).unwrap();
            }
            let y = if on_gpu { read(&y) } else { y.f32().to_vec() };
            for (from, to) in rows.iter().enumerate() {
                out[to * width..][..width].copy_from_slice(&y[from * width..][..width]);
            }
            assert!(y[rows.len() * width..].iter().all(|x| x.is_nan()), "a row that is not in use was written");
        }
        let page = |p: usize| {
            let (i, j) = (0..self.tables.len())
                .find_map(|i| Some((i, self.tables[i].iter().position(|&q| q == p)?)))
                .expect("every page has a timeline");
            let elements = tables[i][j].elements();
            if on_gpu { relaid(self.shape, &bits(&elements.to_host().unwrap()), false) } else { bits(elements) }
        };
        (out, (0..self.pages.len()).map(page).collect())
    }
}

const LENGTHS: [usize; 8] = [1, 31, 32, 33, 255, 256, 257, 700];

fn wide_slice(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

#[test]
fn decode_is_the_cpu_s_and_appends_its_bits() {
    for head_dim in [32, 64, 128] {
        for group in [1, 2, 3, 4, 8] {
            // Of groups of three, heads without norms, as SmolLM2's.
            let normed = group != 3;
            let case = Case { normed, ..Case::decode(heads(group, 2, head_dim), &LENGTHS, 0) };
            let (out, pages) = case.run(&device(), 1);
            for gpu in gpus() {
                let got = case.run(&gpu, 1);
                assert_close("out", &got.0, &wide_slice(&out), TOLERANCE);
                assert!(got.1 == pages, "the pages differ: D {head_dim}, group {group}");
            }
        }
    }
}

/// Attention in f64 over the pages as they are afterwards.
fn formula(case: &Case, pages: &[Vec<u16>]) -> Vec<f64> {
    let Heads { n_heads, n_kv_heads, head_dim: d, .. } = case.heads;
    let (w, frequencies) = (wide(&case.q_norm), inverse_frequencies(d, 1e4));
    let mut wanted = Vec::new();
    let mut row = 0;
    for (i, (start, count)) in case.spans.iter().enumerate() {
        for (position, h) in (*start..start + count).flat_map(|p| (0..n_heads).map(move |h| (p, h))) {
            let x = wide_slice(&case.q.f32()[(row + position - start) * case.width() + h * d..][..d]);
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + EPS as f64).sqrt();
            let u: Vec<f64> = x.iter().zip(&w).map(|(x, w)| x * r * w).collect();
            let turned = |j: usize| {
                let (sin, cos) = (position as f64 * frequencies[j % (d / 2)] as f64).sin_cos();
                u[j] * cos + sin * if j < d / 2 { -u[j + d / 2] } else { u[j - d / 2] }
            };
            let q: Vec<f64> = (0..d).map(turned).collect();
            let cached = |s: usize, offset: usize| {
                let at = case.shape.key_offset(LAYER, h / (n_heads / n_kv_heads), s % PAGE) + offset;
                let page = &pages[case.tables[i][s / PAGE]];
                page[at..at + d].iter().map(|&b| f32::from_bits((b as u32) << 16) as f64).collect::<Vec<_>>()
            };
            let score = |s| q.iter().zip(cached(s, 0)).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt();
            let p: Vec<f64> = (0..=position).map(|s| score(s).exp()).collect();
            let sum: f64 = p.iter().sum();
            let mut out = vec![0.0; d];
            for (s, p) in p.iter().enumerate() {
                out.iter_mut().zip(cached(s, case.shape.value_offset())).for_each(|(o, v)| *o += p / sum * v);
            }
            wanted.extend(out);
        }
        row += count;
    }
    wanted
}

#[test]
fn decode_is_the_formula() {
    let case = Case::decode(heads(2, 2, 64), &[300, 40], 0);
    for gpu in gpus() {
        let (out, pages) = case.run(&gpu, 1);
        assert_close("out", &out, &formula(&case, &pages), TOLERANCE);
    }
}

/// Each timeline alone has the bits that it has among the others.
fn assert_same_alone(case: &Case, gpu: &Device) {
    let (together, pages) = case.run(gpu, usize::MAX);
    let mut row = 0;
    for (i, &(start, count)) in case.spans.iter().enumerate() {
        let mut alone = Case::new(case.heads, &[(start, count)], 0);
        alone.pages = case.tables[i].iter().map(|&p| case.pages[p].clone()).collect();
        alone.table = case.table.to_device(&device()).unwrap();
        let rows = row..row + count;
        let only = |t: &Tensor| {
            let w = t.extent(1);
            Tensor::from_f32(&[count, w], &t.f32()[rows.start * w..rows.end * w]).unwrap()
        };
        (alone.q, alone.k, alone.v) = (only(&case.q), only(&case.k), only(&case.v));
        let (out, own_pages) = alone.run(gpu, usize::MAX);
        assert_same_bits("out", &out, &together[rows.start * case.width()..rows.end * case.width()]);
        assert!(case.tables[i].iter().zip(&own_pages).all(|(&p, own)| &pages[p] == own), "the pages differ");
        row += count;
    }
}

#[test]
fn a_decode_row_has_the_same_bits_alone_and_beside_those_that_share_its_prefix() {
    let shared = 2 * SPLIT / PAGE;
    for (group, head_dim, lengths) in [
        (2, 128, &[520, 513, 600, 520, 514, 530][..]),
        (3, 32, &[520, 513, 530][..]),
        (8, 64, &[520, 600, 900][..]),
        (4, 64, &[300, 20, 257][..]),
    ] {
        let case = Case::decode(heads(group, 1, head_dim), lengths, if lengths[1] > 512 { shared } else { 0 });
        gpus().iter().for_each(|gpu| assert_same_alone(&case, gpu));
    }
}

#[test]
fn prefill_is_the_cpu_s_and_appends_its_bits() {
    for head_dim in [32, 64, 128] {
        for group in [1, 2, 3, 4, 8] {
            // Starts inside, at the end and at the beginning of a page; ends as well.
            let spans = [(0, 1), (0, 31), (31, 33), (37, 64), (64, 32), (250, 10)];
            let case = Case { normed: group != 3, ..Case::new(heads(group, 2, head_dim), &spans, 0) };
            let (out, pages) = case.run(&device(), usize::MAX);
            for gpu in gpus() {
                let got = case.run(&gpu, usize::MAX);
                assert_close("out", &got.0, &wide_slice(&out), TOLERANCE);
                assert!(got.1 == pages, "the pages differ: D {head_dim}, group {group}");
            }
        }
    }
}

#[test]
fn prefill_is_the_formula() {
    let case = Case::new(heads(2, 1, 64), &[(0, 257), (700, 3)], 0);
    for gpu in gpus() {
        let (out, pages) = case.run(&gpu, usize::MAX);
        assert_close("out", &out, &formula(&case, &pages), TOLERANCE);
    }
}

#[test]
fn a_prompt_in_chunks_is_the_prompt_in_one_piece() {
    let case = Case::new(heads(2, 1, 128), &[(0, 100), (40, 65)], 0);
    let (out, pages) = case.run(&device(), usize::MAX);
    for gpu in gpus() {
        for chunk in [7, 32, 64] {
            let got = case.run(&gpu, chunk);
            assert_close("out", &got.0, &wide_slice(&out), TOLERANCE);
            assert!(got.1 == pages, "the pages differ in chunks of {chunk}");
        }
    }
    // Every row a decode step of its own.
    let case = Case::new(heads(4, 1, 32), &[(250, 12), (0, 12)], 0);
    let (out, pages) = case.run(&device(), usize::MAX);
    for gpu in gpus() {
        let got = case.run(&gpu, 1);
        assert_close("out", &got.0, &wide_slice(&out), TOLERANCE);
        assert!(got.1 == pages, "the pages differ");
    }
}

#[test]
fn a_prompt_has_the_same_bits_alone_and_among_others() {
    let case = Case::new(heads(2, 1, 64), &[(0, 40), (33, 70), (0, 5)], 0);
    gpus().iter().for_each(|gpu| assert_same_alone(&case, gpu));
}
