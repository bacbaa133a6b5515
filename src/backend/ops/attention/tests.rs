use super::super::attention_backward::{AttentionGradients, attention_backward};
use super::super::claims::*;
use super::*;

struct Case {
    heads: Heads,
    /// lengths of the packed sequences
    lengths: Vec<usize>,
}

fn cases() -> Vec<Case> {
    let heads =
        |h: usize, g: usize, d: usize| Heads { n_heads: h, n_kv_heads: g, head_dim: d, scale: 1.0 / (d as f32).sqrt() };
    vec![
        Case { heads: heads(1, 1, 2), lengths: vec![1] },
        Case { heads: heads(4, 2, 16), lengths: vec![3, 131, 1, 50] },
        Case { heads: heads(3, 1, 6), lengths: vec![33, 5] },
        Case { heads: heads(2, 2, 144), lengths: vec![41] },
        Case { heads: heads(2, 1, 80), lengths: vec![18] },
        Case { heads: heads(4, 2, 6), lengths: vec![301, 49] },
    ]
}

/// The formula in f64 for packed sequences, as a function of q, k and v.
fn naive(case: &Case, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let Heads { n_heads, n_kv_heads, head_dim: d, .. } = case.heads;
    let mut out = vec![0.0; q.len()];
    let mut first = 0;
    for &len in &case.lengths {
        for i in first..first + len {
            for h in 0..n_heads {
                let g = h / (n_heads / n_kv_heads);
                let score = |s: usize| -> f64 {
                    let dot: f64 = (0..d).map(|j| q[(i * n_heads + h) * d + j] * k[(s * n_kv_heads + g) * d + j]).sum();
                    (dot / (d as f64).sqrt()).exp()
                };
                let total: f64 = (first..=i).map(score).sum();
                for s in first..=i {
                    let p = score(s) / total;
                    for j in 0..d {
                        out[(i * n_heads + h) * d + j] += p * v[(s * n_kv_heads + g) * d + j];
                    }
                }
            }
        }
        first += len;
    }
    out
}

/// Runs the forward in chunks of `chunk` rows a sequence, all sequences side by side.
fn forward(device: &Device, case: &Case, q: &Tensor, k: &Tensor, v: &Tensor, chunk: usize, dtype: Dtype) -> Tensor {
    let Heads { n_kv_heads, head_dim, .. } = case.heads;
    let shape = PageShape { n_layers: 2, n_kv_heads, head_dim, dtype };
    let at = PageLayer { shape, layer: 1 };
    let compute = if dtype == Dtype::F32 { Compute::F32 } else { Compute::Bf16 };
    let mut pages: Vec<Vec<Arc<Page>>> = case
        .lengths
        .iter()
        .map(|l| (0..l.div_ceil(PAGE)).map(|_| Arc::new(Page::new(device, shape).unwrap())).collect())
        .collect();
    let mut out = Tensor::zeros(Dtype::F32, q.shape().extents()).unwrap();
    let longest = *case.lengths.iter().max().unwrap();
    for start in (0..longest).step_by(chunk) {
        let mut spans = Vec::new();
        let mut first = 0;
        for (len, pages) in case.lengths.iter().zip(&mut pages) {
            let end = (start + chunk).min(*len);
            for p in start..end {
                let page = Arc::get_mut(&mut pages[p / PAGE]).unwrap();
                kv_append(device, page, at, p % PAGE, KeysValues { k, v }, first + p..first + p + 1);
            }
            if start < end {
                spans.push(Span { rows: first + start..first + end, start, pages });
            }
            first += len;
        }
        attention_forward(device, &mut out, q, &spans, at, case.heads, compute).unwrap();
    }
    out
}

fn operands(case: &Case) -> [Tensor; 4] {
    let n: usize = case.lengths.iter().sum();
    let (wide, narrow) = (case.heads.n_heads * case.heads.head_dim, case.heads.n_kv_heads * case.heads.head_dim);
    [random(1, &[n, wide]), random(2, &[n, narrow]), random(3, &[n, narrow]), random(4, &[n, wide])]
}

#[test]
fn attention_forward_equals_the_formula() {
    for case in cases() {
        let [q, k, v, _] = operands(&case);
        let out = forward(&device(), &case, &q, &k, &v, 7, Dtype::F32);
        assert_close("out", out.f32(), &naive(&case, &wide(&q), &wide(&k), &wide(&v)), 1e-5);
        let round = |t: &Tensor| wide(&stored(t, Dtype::Bf16));
        let out = forward(&device(), &case, &q, &k, &v, 7, Dtype::Bf16);
        assert_close("out", out.f32(), &naive(&case, &round(&q), &round(&k), &round(&v)), 8e-3);
    }
}

#[test]
fn attention_forward_has_one_set_of_bits_for_all_sets_threads_and_chunkings() {
    for case in cases() {
        let [q, k, v, _] = operands(&case);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let judge = forward(&device(), &case, &q, &k, &v, 1000, dtype);
            for device in devices() {
                for chunk in [1, 5, 32, 33] {
                    let out = forward(&device, &case, &q, &k, &v, chunk, dtype);
                    assert_same_bits("out", out.f32(), judge.f32());
                }
            }
        }
    }
}

#[test]
fn attention_backward_matches_finite_difference() {
    for mut case in cases() {
        case.lengths.iter_mut().for_each(|l| *l = (*l).min(9));
        let [q, k, v, dout] = operands(&case);
        let zeros = |t: &Tensor| Tensor::from_f32(t.shape().extents(), &vec![9.0; t.f32().len()]).unwrap();
        let (mut dq, mut dk, mut dv) = (zeros(&q), zeros(&k), zeros(&v));
        let mut first = 0;
        let mut spans = Vec::new();
        for l in &case.lengths {
            spans.push(first..first + l);
            first += l;
        }
        let to = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
        let kv = KeysValues { k: &k, v: &v };
        attention_backward(&device(), to, &dout, &q, kv, &spans, case.heads).unwrap();
        let (q, k, v) = (wide(&q), wide(&k), wide(&v));
        let loss = |q: &[f64], k: &[f64], v: &[f64]| -> f64 {
            naive(&case, q, k, v).iter().zip(wide(&dout)).map(|(o, d)| o * d).sum()
        };
        if case.heads.head_dim < 100 {
            assert_close("dq", dq.f32(), &finite_difference(&q, |q| loss(q, &k, &v)), 1e-4);
            assert_close("dk", dk.f32(), &finite_difference(&k, |k| loss(&q, k, &v)), 1e-4);
        }
        assert_close("dv", dv.f32(), &finite_difference(&v, |v| loss(&q, &k, v)), 1e-4);
    }
}
/// The backward by its definition: f32 and in the order that it promises, one query after the other.
fn plain_backward(case: &Case, [q, k, v, dout]: &[Tensor; 4]) -> [Vec<f32>; 3] {
    let Heads { n_heads, n_kv_heads, head_dim: d, scale } = case.heads;
    let (mut dq, mut dk) = (vec![0.0f32; q.f32().len()], vec![0.0f32; k.f32().len()]);
    let mut dv = dk.clone();
    // Sixteen sums, by the position in the vector, and their tree.
    let tree = |mut lanes: [f32; 16]| {
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|i| lanes[i] += lanes[i + half]);
        }
        lanes[0] + 0.0
    };
    let dot = |a: &[f32], b: &[f32]| {
        let mut lanes = [0.0f32; 16];
        a.iter().zip(b).enumerate().for_each(|(j, (a, b))| lanes[j % 16] = a.mul_add(*b, lanes[j % 16]));
        tree(lanes)
    };
    let mut first = 0;
    for &len in &case.lengths {
        for (i, h) in (0..len).flat_map(|i| (0..n_heads).map(move |h| (i, h))) {
            let (at, g) = (((first + i) * n_heads + h) * d, h / (n_heads / n_kv_heads));
            let row = |s: usize| ((first + s) * n_kv_heads + g) * d;
            let (qi, di) = (&q.f32()[at..][..d], &dout.f32()[at..][..d]);
            let scores: Vec<f32> = (0..=i).map(|s| dot(qi, &k.f32()[row(s)..][..d]) * scale).collect();
            let max = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
            let mut p: Vec<f32> = scores.iter().map(|s| scalar_exp(s - max)).collect();
            let mut lanes = [0.0f32; 16];
            p.iter().enumerate().for_each(|(s, p)| lanes[s % 16] += p);
            let sum = tree(lanes);
            let dp: Vec<f32> = (0..=i).map(|s| dot(di, &v.f32()[row(s)..][..d])).collect();
            p.iter_mut().for_each(|p| *p /= sum);
            let mean = dot(&p, &dp);
            for s in 0..=i {
                let ds = p[s] * (dp[s] - mean) * scale;
                for j in 0..d {
                    dq[at + j] = ds.mul_add(k.f32()[row(s) + j], dq[at + j]);
                    dk[row(s) + j] = ds.mul_add(qi[j], dk[row(s) + j]);
                    dv[row(s) + j] = p[s].mul_add(di[j], dv[row(s) + j]);
                }
            }
        }
        first += len;
    }
    [dq, dk, dv]
}

fn scalar_exp(x: f32) -> f32 {
    use crate::backend::cpu::Scalar;
    let mut out = [0.0; 16];
    // SAFETY: plain code, and room for sixteen.
    unsafe { exp(Scalar::splat(x)).store(out.as_mut_ptr()) };
    out[0]
}

#[test]
fn attention_backward_adds_in_the_order_of_the_queries_for_all_sets_and_threads() {
    for case in cases() {
        let operands = operands(&case);
        let _floats = crate::backend::cpu::FloatEnv::set();
        let wanted = plain_backward(&case, &operands);
        let [q, k, v, dout] = &operands;
        let mut first = 0;
        let spans: Vec<Range<usize>> = case.lengths.iter().map(|l| (first, first += l).0..first).collect();
        for device in devices() {
            let zeros = |t: &Tensor| Tensor::zeros(Dtype::F32, t.shape().extents()).unwrap();
            let (mut dq, mut dk, mut dv) = (zeros(q), zeros(k), zeros(v));
            let to = AttentionGradients { dq: &mut dq, dk: &mut dk, dv: &mut dv };
            attention_backward(&device, to, dout, q, KeysValues { k, v }, &spans, case.heads).unwrap();
            for ((name, found), wanted) in [("dq", dq), ("dk", dk), ("dv", dv)].iter().zip(&wanted) {
                assert_same_bits(name, found.f32(), wanted);
            }
        }
    }
}
