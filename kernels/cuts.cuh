// Drawing from what cuts leave of a row: top-k, top-p, min-p, typical-p, each of what the one before has left.
//
// What the first three leave are all ids above a key and the first few of those at it. Of these typical-p takes the nearest
// to the entropy: -ln p is ln(all mass) + (largest - x) / temperature, and the entropy the mean of that, so how near an id
// lies is told by how far its logit lies from `largest` less the mean of largest - x. Two selections find where the
// nearest end, one by that distance and one, among the ids that are as far, by the logit; the draw is a third.
#pragma once

#include "select.cuh"
#include "step.cuh"

// What a logit weighs in a selection: one where ids are counted, else its mass.
struct CountOrMass {
  bool counts;
  Mass mass;
  __device__ __forceinline__ u64 operator()(float x) const { return counts ? 1 : mass(x); }
};

// The nth of the ids that have this logit, and the mass that it was drawn among.
struct Choice {
  float value;
  u32 nth;
  u64 kept;
};

// A draw stands for the middle of its interval of 2^-24: a draw of 0 must not give the first id whatever its mass.
__device__ __forceinline__ u64 target_of(float u, u64 mass) {
  return u64((double(u) + 0.5 / 16777216.0) * double(mass));
}

// Where the mass first reaches a share of all.
__device__ __forceinline__ u64 target_of_share(float share, u64 mass) {
  u64 wanted = u64(ceil(double(share) * double(mass)));
  return wanted > 0 ? wanted - 1 : 0;
}

enum Stage { kTopK, kTopP, kMinP, kNear, kAsNear, kDraw };

// A selection among the ids that are left.
struct Among {
  const Listed& strips;
  const Kept& kept;
  float largest;
  Stage stage;

  // Keys of distances from the mean; a nearer id has a greater one.
  __device__ __forceinline__ u32 nearness(float x) const { return key_of(-fabsf(largest - x - kept.mean)); }

  template <class F>
  __device__ __forceinline__ void visit(u32 least, const F& f) const {
    auto give = [&](u32 key, float x, u32 n) {
      // Before anything is known of distances all are nearer than 0, the least of keys.
      const u32 near = stage < kNear ? ~0u : nearness(x);
      if (stage == kNear) {
        f(near, x, n);
      } else if (stage == kAsNear ? near == kept.near : near > kept.near || (near == kept.near && key > kept.near_above)) {
        f(key, x, n);
      }
    };
    strips.visit(stage == kNear ? kept.above : least, [&](u32 key, float x, u32 n) {
      if (key > kept.above && key != kept.near_above) give(key, x, n);
    });
    // Those at a border are not all left.
    if (threadIdx.x > 0) return;
    if (kept.n_at > 0 && kept.above != kept.near_above) give(kept.above, value_of(kept.above), kept.n_at);
    if (kept.n_near > 0) f(kept.near_above, value_of(kept.near_above), kept.n_near);
  }
};

// The key of the least logit whose mass is `min_p` of the largest's.
__device__ __forceinline__ u32 key_of_share(float largest, float temperature, float min_p) {
  const float gap = -temperature * logf(min_p);
  const u32 key = key_of(largest - gap);
  // Where logits lie wide apart for so low a temperature, the difference above may have been rounded down.
  return largest - value_of(key) > gap ? key + 1 : key;
}

// Cuts, then draws from the likeliest down. How many of the ids at a border are left is known by their mass alone, since
// the next target lies below that. `all` is the mass of all ids, needed where neither top_k nor min_p cuts.
__device__ __forceinline__ Choice draw_among_kept(const Row& row, const Mass& mass, const Draw& draw, u64 all,
                                                  float temperature, SelectScratch* s) {
  const u32 top_k = draw.top_k > 0 && draw.top_k < row.v ? draw.top_k : 0;
  const float top_p = max(draw.top_p, 0.0f);
  const u32 most = key_of(row.largest);
  const u32 floor = draw.min_p > 0.0f ? max(key_of_share(row.largest, temperature, draw.min_p), kLowestKey) : 0;
  u32 least = kLowestKey;
  if (top_k > 0) {
    least = reached_by(row, top_k, s);
  } else if (draw.top_p < 1.0f) {
    // Ids below (1 - top_p) / V cannot be needed, since all of them together have less than 1 - top_p. A tenth lower,
    // so that roundings cannot lose one.
    float share = 0.9f * (1.0f - top_p) * float(all) * 0x1p-40f / float(row.v);
    least = max(key_of(row.largest + temperature * logf(share)), kLowestKey);
  } else if (floor > 0) {
    least = floor;
  }
  const Listed strips = list_strips(row, least, s);

  // In shared memory: 64 registers a thread are all there are.
  Kept& kept = s->kept;
  if (threadIdx.x == 0) kept = {least - 1, 0, 0.0f, 0, 0, 0, all};
  __syncthreads();
  Choice choice = {0.0f, 0, 0};
  u64 rest = 0, nearer = 0;
  for (int stage = top_k > 0 ? kTopK : kTopP; stage <= kDraw; ++stage) {
    if (stage == kTopP && !(draw.top_p < 1.0f)) continue;
    if (stage == kMinP && floor <= kept.above) continue;
    if ((stage == kNear || stage == kAsNear) && !(draw.typical_p < 1.0f)) continue;
    if (stage == kMinP) {
      u64 sum = 0;
      strips.visit(floor, [&](u32 key, float x, u32) { if (key >= floor) sum += mass(x); });
      sum = row_total(sum, s->row.sums);
      if (threadIdx.x == 0) kept = {floor - 1, 0, 0.0f, 0, 0, 0, sum};
      __syncthreads();
      continue;
    }
    if (stage == kNear) {
      // In f64, and all strips: those of the list come in no order, and a sum must not depend on it.
      double sum = 0.0;
      const Listed every = {row, nullptr, row.n_strips};
      Among{every, kept, row.largest, kMinP}.visit(kept.above, [&](u32, float x, u32 n) {
        float gap = row.largest - x;
        sum += double(n) * double(expf(-gap * mass.warmth)) * double(gap);
      });
      sum = row_total(sum, s->row.parts);
      if (threadIdx.x == 0) kept.mean = float(sum / (double(kept.mass) * 0x1p-40));
      __syncthreads();
    }
    u64 target = target_of(draw.u, kept.mass);
    if (stage == kTopK) target = top_k - 1;
    if (stage == kTopP) target = target_of_share(top_p, kept.mass);
    if (stage == kNear) target = target_of_share(max(draw.typical_p, 0.0f), kept.mass);
    if (stage == kAsNear) target = rest;
    const Among among = {strips, kept, row.largest, Stage(stage)};
    const u32 bottom = stage == kNear ? kLowestKey : kept.above;
    const u32 top = stage == kNear ? key_of(0.0f) : most;
    const Selected last = select(among, CountOrMass{stage == kTopK, mass}, bottom, top, target, s);
    if (stage == kNear) {
      nearer = last.above;
      rest = last.rest;
      if (threadIdx.x == 0) kept.near = last.key;
      __syncthreads();
      continue;
    }
    choice.value = value_of(last.key);
    const u64 each = mass(choice.value);
    u64 above = last.above;
    choice.nth = u32(last.rest);
    if (stage == kTopK) {
      u64 sum = 0;
      strips.visit(last.key, [&](u32 key, float x, u32) { if (key > last.key && key <= most) sum += mass(x); });
      above = row_total(sum, s->row.sums);
    } else {
      choice.nth = u32(last.rest / each);
    }
    if (stage == kDraw) {
      choice.kept = kept.mass;
      break;
    }
    const u64 left = nearer + above + (u64(choice.nth) + 1) * each;
    if (threadIdx.x == 0) {
      kept.mass = left;
      (stage == kAsNear ? kept.near_above : kept.above) = last.key;
      (stage == kAsNear ? kept.n_near : kept.n_at) = choice.nth + 1;
    }
    __syncthreads();
  }
  return choice;
}
