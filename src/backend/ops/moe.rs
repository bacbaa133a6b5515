//! Mixture of experts: which experts a row goes to, and the weighted sum of what they return.
//!
//! route: p = softmax(logits [N, E]) in f32; the k largest (ties: lower id), in falling order, are the row's experts;
//! their weights are p, divided by their sum where `norm_topk_prob`. combine: y[n, c] = round(sum over rank j of
//! weights[n, j] * slots[n k + j, c]), by FMA from zero in the order of rank, so grouping rows by expert cannot
//! change a bit.

use super::split::items_per_task;
use crate::backend::cpu::{Kernel, Lanes, Shared, math, piece};
use crate::backend::{Compute, Device, Tensor, host};
use crate::error::Result;

/// How rows are dealt to experts.
#[derive(Clone, Copy, Debug)]
pub struct Dealing {
    /// Experts of a row, k.
    pub n_experts_per_token: usize,
    /// Whether their weights are divided by their sum.
    pub norm_topk_prob: bool,
}

/// Where each row goes. A slot is one (row, rank) pair: slot = row * k + rank.
pub struct Routing {
    /// [N, k], most likely first.
    pub experts: Vec<u32>,
    /// [N, k], in the same order.
    pub weights: Vec<f32>,
    /// [N, E], the softmax; for the backward.
    pub probs: Vec<f32>,
    /// [N, k] slots by expert, in order within each.
    slots: Vec<usize>,
    /// [N, k] the rows of those slots.
    rows: Vec<usize>,
    /// [E + 1] where each expert's slots begin.
    starts: Vec<usize>,
    n_experts: usize,
    dealing: Dealing,
}

impl Routing {
    /// No rows, of E experts.
    pub fn new(n_experts: usize, dealing: Dealing) -> Result<Routing> {
        let (experts, weights, probs) = (Vec::new(), Vec::new(), Vec::new());
        let starts = host::filled(n_experts + 1, 0)?;
        let (slots, rows) = (Vec::new(), Vec::new());
        Ok(Routing { experts, weights, probs, slots, rows, starts, n_experts, dealing })
    }

    /// Makes room for `n` rows.
    pub fn reserve(&mut self, n: usize) -> Result<()> {
        let n_slots = n * self.dealing.n_experts_per_token;
        grow(&mut self.experts, n_slots)?;
        grow(&mut self.weights, n_slots)?;
        grow(&mut self.probs, n * self.n_experts)?;
        grow(&mut self.slots, n_slots)?;
        grow(&mut self.rows, n_slots)
    }

    /// Bytes of the host's memory that `n` rows take.
    pub fn bytes(n: usize, n_experts: usize, n_experts_per_token: usize) -> u64 {
        let slot = size_of::<u32>() + size_of::<f32>() + 2 * size_of::<usize>();
        (n * (n_experts_per_token * slot + n_experts * size_of::<f32>()) + (n_experts + 1) * size_of::<usize>()) as u64
    }

    /// Bytes that it has of the host's memory.
    pub fn taken(&self) -> u64 {
        let words = self.slots.capacity() + self.rows.capacity() + self.starts.capacity();
        let halves = self.experts.capacity() + self.weights.capacity() + self.probs.capacity();
        (words * size_of::<usize>() + halves * size_of::<f32>()) as u64
    }

    /// The slots that an expert computes, in order.
    pub fn slots_of(&self, expert: usize) -> &[usize] {
        &self.slots[self.starts[expert]..self.starts[expert + 1]]
    }

    /// The rows of those slots.
    pub fn rows_of(&self, expert: usize) -> &[usize] {
        &self.rows[self.starts[expert]..self.starts[expert + 1]]
    }

    /// Lists the slots by expert.
    fn list(&mut self) {
        let k = self.dealing.n_experts_per_token;
        self.starts.fill(0);
        self.experts.iter().for_each(|&e| self.starts[e as usize + 1] += 1);
        for e in 0..self.n_experts {
            self.starts[e + 1] += self.starts[e];
        }
        self.slots.resize(self.experts.len(), 0);
        self.rows.resize(self.experts.len(), 0);
        // Each start moves to the next as its slots are put down; then they move back by one.
        for (slot, &e) in self.experts.iter().enumerate() {
            let at = &mut self.starts[e as usize];
            (self.slots[*at], self.rows[*at]) = (slot, slot / k);
            *at += 1;
        }
        self.starts.copy_within(0..self.n_experts, 1);
        self.starts[0] = 0;
    }
}

/// Makes sure that a list has room for `n` elements in all, and for no more.
fn grow<T>(list: &mut Vec<T>, n: usize) -> Result<()> {
    match n > list.capacity() {
        true => {
            *list = Vec::new();
            *list = host::with_room(n)?;
            Ok(())
        }
        false => Ok(()),
    }
}

/// Routes the first `n` rows of logits [N, E]. Overwrites `routing`, whose k experts a row gets.
pub fn route(device: &Device, routing: &mut Routing, logits: &Tensor, n: usize) -> Result<()> {
    let (e, Dealing { n_experts_per_token: k, norm_topk_prob }) = (logits.extent(1), routing.dealing);
    assert!(logits.extent(0) >= n && k >= 1 && k <= e, "logits are {} for {n} rows and {k} experts", logits.shape());
    assert_eq!(e, routing.n_experts, "logits are {}", logits.shape());
    let cpu = device.cpu();
    routing.reserve(n)?;
    routing.experts.resize(n * k, 0);
    routing.weights.resize(n * k, 0.0);
    routing.probs.resize(n * e, 0.0);
    let rows = items_per_task(cpu, n, e * (k + 4));
    let kernel = Route {
        experts: Shared::new(&mut routing.experts),
        weights: Shared::new(&mut routing.weights),
        probs: Shared::new(&mut routing.probs),
        logits: &logits.f32()[..n * e],
        n,
        e,
        k,
        norm_topk_prob,
        rows,
    };
    cpu.launch(n.div_ceil(rows), &kernel);
    routing.list();
    Ok(())
}

/// Overwrites the first `n` rows of `dlogits` [N, E] by the gradient, given that by the weights, [N, k].
pub fn route_backward(device: &Device, dlogits: &mut Tensor, dweights: &[f32], routing: &Routing, n: usize) {
    let (e, k) = (routing.n_experts, routing.dealing.n_experts_per_token);
    assert!(dlogits.extent(0) >= n && dlogits.extent(1) == e, "dlogits are {} for {e} experts", dlogits.shape());
    assert!(dweights.len() == n * k && routing.weights.len() == n * k, "{} gradients of weights", dweights.len());
    let cpu = device.cpu();
    let dlogits = Shared::new(&mut dlogits.f32_mut()[..n * e]);
    let rows = items_per_task(cpu, n, 4 * e);
    cpu.launch(n.div_ceil(rows), &RouteBackward { dlogits, dweights, routing, n, rows });
}

/// Overwrites the first `n` rows of y [N, C] by the weighted sums of slots [N k, C]; weights [N, k].
pub fn combine_forward(
    device: &Device,
    y: &mut Tensor,
    slots: &Tensor,
    weights: &[f32],
    n: usize,
    k: usize,
    compute: Compute,
) {
    let c = y.extent(1);
    assert!(y.extent(0) >= n, "y is {} for {n} rows", y.shape());
    assert!(slots.extent(0) >= n * k && slots.extent(1) == c, "slots are {}, y {}", slots.shape(), y.shape());
    assert!(weights.len() == n * k, "{} weights for {n} rows of {k}", weights.len());
    let cpu = device.cpu();
    let slots = &slots.f32()[..n * k * c];
    let y = Shared::new(&mut y.f32_mut()[..n * c]);
    let rows = items_per_task(cpu, n, k * c);
    cpu.launch(n.div_ceil(rows), &CombineForward { y, slots, weights, n, k, c, rows, round: compute.rounds() });
}

/// Gradients that `combine_backward` overwrites.
pub struct CombineGradients<'a> {
    /// [N k, C] by the slots
    pub dslots: &'a mut Tensor,
    /// [N, k] by the weights
    pub dweights: &'a mut [f32],
}

/// dslots = weight * dy and dweights = dy . slot, for N rows of k slots: dy [N, C], slots [N k, C], weights [N, k].
/// Overwrites the first N k rows of `to.dslots` and all of `to.dweights`.
pub fn combine_backward(device: &Device, to: CombineGradients, dy: &Tensor, slots: &Tensor, weights: &[f32], k: usize) {
    let CombineGradients { dslots, dweights } = to;
    let (c, n_slots) = (dy.extent(1), weights.len());
    assert!(dy.extent(0) >= n_slots / k, "dy is {} for {n_slots} slots", dy.shape());
    for (name, t) in [("dslots", &*dslots), ("slots", slots)] {
        assert!(t.extent(0) >= n_slots && t.extent(1) == c, "{name} are {}, dy {}", t.shape(), dy.shape());
    }
    assert!(n_slots.is_multiple_of(k) && dweights.len() == n_slots, "{n_slots} weights of {k} a row");
    let cpu = device.cpu();
    let (dy, slots) = (&dy.f32()[..n_slots / k * c], &slots.f32()[..n_slots * c]);
    let dslots = Shared::new(&mut dslots.f32_mut()[..n_slots * c]);
    let rows = items_per_task(cpu, n_slots, c);
    let kernel = CombineBackward { dslots, dweights: Shared::new(dweights), dy, slots, weights, k, c, rows };
    cpu.launch(n_slots.div_ceil(rows), &kernel);
}

struct Route<'a> {
    experts: Shared<u32>,
    weights: Shared<f32>,
    probs: Shared<f32>,
    logits: &'a [f32],
    n: usize,
    e: usize,
    k: usize,
    norm_topk_prob: bool,
    rows: usize,
}

impl Kernel for Route<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let (e, k) = (self.e, self.k);
        for row in piece(index, self.rows, self.n) {
            let x = &self.logits[row * e..(row + 1) * e];
            let largest = x.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m });
            // SAFETY: tasks own disjoint rows of all results.
            let (probs, experts, weights) = unsafe {
                (self.probs.slice(row * e, e), self.experts.slice(row * k, k), self.weights.slice(row * k, k))
            };
            // SAFETY: reads and writes stay inside the row.
            unsafe {
                let mut acc = V::zero();
                let mut i = 0;
                while i < e {
                    let n = (e - i).min(16);
                    let p = math::exp(V::load_up_to(x.as_ptr().add(i), n).sub(V::splat(largest)));
                    p.store_rounded(probs.as_mut_ptr().add(i), n, false);
                    // Read again, so that lanes beyond the row are zero.
                    acc = acc.add(V::load_up_to(probs.as_ptr().add(i), n));
                    i += 16;
                }
                let sum = acc.reduce_add();
                probs.iter_mut().for_each(|p| *p /= sum);
            }
            for j in 0..k {
                let free = (0..e).filter(|&i| !experts[..j].contains(&(i as u32)));
                // k <= e, so one is always free; a NaN neither wins nor loses, so any logits give distinct ids.
                let best = free.reduce(|best, i| if probs[i] > probs[best] { i } else { best }).unwrap_or(0);
                experts[j] = best as u32;
                weights[j] = probs[best];
            }
            if self.norm_topk_prob {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= sum);
            }
        }
    }
}

struct RouteBackward<'a> {
    dlogits: Shared<f32>,
    dweights: &'a [f32],
    routing: &'a Routing,
    n: usize,
    rows: usize,
}

impl Kernel for RouteBackward<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let Routing { n_experts: e, dealing, .. } = *self.routing;
        let Dealing { n_experts_per_token: k, norm_topk_prob } = dealing;
        for row in piece(index, self.rows, self.n) {
            let probs = &self.routing.probs[row * e..(row + 1) * e];
            let of = row * k..(row + 1) * k;
            let (experts, weights) = (&self.routing.experts[of.clone()], &self.routing.weights[of.clone()]);
            let dweights = &self.dweights[of];
            // SAFETY: tasks own disjoint rows.
            let d = unsafe { self.dlogits.slice(row * e, e) };
            // First the gradient by the probabilities, zero for those not chosen.
            d.fill(0.0);
            let mean: f32 = dweights.iter().zip(weights).map(|(d, w)| d * w).sum();
            let sum: f32 = experts.iter().map(|&i| probs[i as usize]).sum();
            for (&i, &dw) in experts.iter().zip(dweights) {
                d[i as usize] = if norm_topk_prob { (dw - mean) / sum } else { dw };
            }
            let along: f32 = experts.iter().map(|&i| probs[i as usize] * d[i as usize]).sum();
            d.iter_mut().zip(probs).for_each(|(d, p)| *d = p * (*d - along));
        }
    }
}

struct CombineForward<'a> {
    y: Shared<f32>,
    slots: &'a [f32],
    weights: &'a [f32],
    n: usize,
    k: usize,
    c: usize,
    rows: usize,
    round: bool,
}

impl Kernel for CombineForward<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let (k, c) = (self.k, self.c);
        for row in piece(index, self.rows, self.n) {
            let weights = &self.weights[row * k..(row + 1) * k];
            let mut i = 0;
            while i < c {
                let n = (c - i).min(16);
                // SAFETY: rows lie inside the operands, and tasks own disjoint rows of y.
                unsafe {
                    let mut acc = V::zero();
                    for (j, &w) in weights.iter().enumerate() {
                        let slot = V::load_up_to(self.slots.as_ptr().add((row * k + j) * c + i), n);
                        acc = V::splat(w).fma(slot, acc);
                    }
                    acc.store_rounded(self.y.at(row * c + i), n, self.round);
                }
                i += 16;
            }
        }
    }
}

struct CombineBackward<'a> {
    dslots: Shared<f32>,
    dweights: Shared<f32>,
    dy: &'a [f32],
    slots: &'a [f32],
    weights: &'a [f32],
    k: usize,
    c: usize,
    rows: usize,
}

impl Kernel for CombineBackward<'_> {
    #[inline(always)]
    unsafe fn task<V: Lanes>(&self, index: usize) {
        let c = self.c;
        for slot in piece(index, self.rows, self.weights.len()) {
            // SAFETY: the slot and its row lie inside the operands, and tasks own disjoint slots.
            unsafe {
                let dy = self.dy.as_ptr().add(slot / self.k * c);
                let x = self.slots.as_ptr().add(slot * c);
                let w = V::splat(self.weights[slot]);
                let mut acc = V::zero();
                let mut i = 0;
                while i < c {
                    let n = (c - i).min(16);
                    let dy = V::load_up_to(dy.add(i), n);
                    acc = dy.fma(V::load_up_to(x.add(i), n), acc);
                    dy.mul(w).store_rounded(self.dslots.at(slot * c + i), n, false);
                    i += 16;
                }
                *self.dweights.at(slot) = acc.reduce_add();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::*;
    use super::*;
    use crate::tensor::Dtype;

    /// (rows, experts, experts a row)
    const ROUTES: [(usize, usize, usize); 5] = [(1, 1, 1), (3, 7, 2), (5, 17, 17), (4, 128, 8), (70, 33, 3)];

    fn routed(device: &Device, logits: &Tensor, n: usize, k: usize, norm_topk_prob: bool) -> Routing {
        let dealing = Dealing { n_experts_per_token: k, norm_topk_prob };
        let mut routing = Routing::new(logits.extent(1), dealing).unwrap();
        // What stood there before must not matter.
        route(device, &mut routing, &random(77, &[n + 1, logits.extent(1)]), n + 1).unwrap();
        route(device, &mut routing, logits, n).unwrap();
        routing
    }

    fn softmax(x: &[f64]) -> Vec<f64> {
        let m = x.iter().fold(f64::MIN, |m, &x| m.max(x));
        let sum: f64 = x.iter().map(|x| (x - m).exp()).sum();
        x.iter().map(|x| (x - m).exp() / sum).collect()
    }

    /// The weights of given experts.
    fn weights_of(x: &[f64], experts: &[u32], norm: bool) -> Vec<f64> {
        let p = softmax(x);
        let sum: f64 = if norm { experts.iter().map(|&i| p[i as usize]).sum() } else { 1.0 };
        experts.iter().map(|&i| p[i as usize] / sum).collect()
    }

    #[test]
    fn route_equals_the_formula_with_one_set_of_bits_and_ties_go_to_the_lower_id() {
        for (n, e, k) in ROUTES {
            // Coarse logits, so that there are ties.
            let x: Vec<f32> = random(1, &[n, e]).f32().iter().map(|x| (8.0 * x).round() / 2.0).collect();
            let logits = Tensor::from_f32(&[n, e], &x).unwrap();
            for norm in [false, true] {
                let mut judge: Option<Vec<f32>> = None;
                for device in devices() {
                    let got = routed(&device, &logits, n, k, norm);
                    for row in 0..n {
                        let x = &x[row * e..(row + 1) * e];
                        let mut order: Vec<u32> = (0..e as u32).collect();
                        order.sort_by(|&a, &b| x[b as usize].partial_cmp(&x[a as usize]).unwrap().then(a.cmp(&b)));
                        assert_eq!(got.experts[row * k..(row + 1) * k], order[..k]);
                        let x: Vec<f64> = x.iter().map(|&x| x as f64).collect();
                        let wanted = weights_of(&x, &order[..k], norm);
                        assert_close("weights", &got.weights[row * k..(row + 1) * k], &wanted, 1e-6);
                        assert_close("probs", &got.probs[row * e..(row + 1) * e], &softmax(&x), 1e-6);
                    }
                    assert_same_bits("weights", &got.weights, judge.get_or_insert_with(|| got.weights.clone()));
                }
            }
        }
    }

    #[test]
    fn route_backward_matches_finite_difference_for_any_thread_count() {
        for (n, e, k) in ROUTES {
            let (logits, dw) = (random(2, &[n, e]), random(3, &[n * k]));
            for norm in [false, true] {
                let routing = routed(&device(), &logits, n, k, norm);
                let weighted = |row: usize, x: &[f64]| -> f64 {
                    let of = row * k..(row + 1) * k;
                    let w = weights_of(x, &routing.experts[of.clone()], norm);
                    w.iter().zip(&dw.f32()[of]).map(|(w, &d)| w * d as f64).sum()
                };
                let mut judge: Option<Vec<f32>> = None;
                for device in devices() {
                    let mut dlogits = random(4, &[n, e]);
                    route_backward(&device, &mut dlogits, dw.f32(), &routing, n);
                    for row in 0..n {
                        let of = row * e..(row + 1) * e;
                        let wanted = finite_difference(&wide(&logits)[of.clone()], |x| weighted(row, x));
                        for (g, w) in dlogits.f32()[of].iter().zip(wanted) {
                            assert!((*g as f64 - w).abs() < 1e-6, "{g} and not {w}");
                        }
                    }
                    assert_same_bits("dlogits", dlogits.f32(), judge.get_or_insert_with(|| dlogits.f32().to_vec()));
                }
            }
        }
    }

    #[test]
    fn combine_sums_in_router_rank_order_with_one_set_of_bits() {
        for (n, k, c) in [(1, 1, 1), (3, 2, 7), (5, 8, 48), (33, 3, 1031)] {
            let (slots, weights) = (random(5, &[n * k, c]), random(6, &[n * k]));
            let (s, w) = (slots.f32(), weights.f32());
            let at = |i: usize| (0..k).fold(0.0f32, |y, j| w[i / c * k + j].mul_add(s[(i / c * k + j) * c + i % c], y));
            let wanted = Tensor::from_f32(&[n, c], &(0..n * c).map(at).collect::<Vec<_>>()).unwrap();
            for compute in [Compute::F32, Compute::Bf16] {
                let wanted = if compute.rounds() { stored(&wanted, Dtype::Bf16).to_f32() } else { wanted.to_f32() };
                for device in devices() {
                    let mut y = random(7, &[n, c]);
                    combine_forward(&device, &mut y, &slots, w, n, k, compute);
                    assert_same_bits("y", y.f32(), &wanted);
                }
            }
        }
    }

    #[test]
    fn combine_backward_matches_finite_difference_for_any_thread_count() {
        for (n, k, c) in [(1, 1, 1), (3, 2, 7), (5, 4, 35)] {
            let (slots, weights, dy) = (random(5, &[n * k, c]), random(6, &[n * k]), random(7, &[n, c]));
            let weighted = |s: &[f64], w: &[f64]| -> f64 {
                let dy = wide(&dy);
                (0..n * k * c).map(|i| dy[i / c / k * c + i % c] * w[i / c] * s[i]).sum()
            };
            let wanted_s = finite_difference(&wide(&slots), |s| weighted(s, &wide(&weights)));
            let wanted_w = finite_difference(&wide(&weights), |w| weighted(&wide(&slots), w));
            let mut judge: Option<Vec<f32>> = None;
            for device in devices() {
                let (mut ds, mut dw) = (random(8, &[n * k, c]), vec![9.0; n * k]);
                let to = CombineGradients { dslots: &mut ds, dweights: &mut dw };
                combine_backward(&device, to, &dy, &slots, weights.f32(), k);
                assert_close("dslots", ds.f32(), &wanted_s, 1e-5);
                assert_close("dweights", &dw, &wanted_w, 1e-5);
                let all = [ds.f32(), &dw].concat();
                assert_same_bits("gradients", &all, judge.get_or_insert_with(|| all.clone()));
            }
        }
    }

    #[test]
    fn routing_of_nan_logits_still_names_distinct_experts() {
        let logits = Tensor::from_f32(&[2, 4], &[f32::NAN, 1.0, f32::NAN, 0.0, f32::NAN, f32::NAN, f32::NAN, f32::NAN]);
        let routing = routed(&device(), &logits.unwrap(), 2, 3, true);
        for experts in routing.experts.chunks_exact(3) {
            assert!(experts.iter().all(|&e| e < 4));
            assert!(experts[0] != experts[1] && experts[1] != experts[2] && experts[0] != experts[2]);
        }
    }

    #[test]
    fn slots_are_listed_by_expert_in_order_and_each_once() {
        for (n, e, k) in ROUTES {
            let routing = routed(&device(), &random(9, &[n, e]), n, k, true);
            let mut seen = vec![false; n * k];
            for expert in 0..e {
                let (slots, rows) = (routing.slots_of(expert), routing.rows_of(expert));
                assert!(slots.is_sorted());
                assert!(slots.iter().zip(rows).all(|(slot, row)| slot / k == *row));
                for &slot in slots {
                    assert_eq!(routing.experts[slot], expert as u32);
                    assert!(!std::mem::replace(&mut seen[slot], true));
                }
            }
            assert!(seen.into_iter().all(|seen| seen));
        }
    }
}
