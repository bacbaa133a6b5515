// A row of logits as its readers see it: [V] f32, and for each strip of 16 ids what the output projection left beside
// them, so that most questions are answered by an eighth of the bytes.
#pragma once

#include "common.cuh"

constexpr u32 kStrip = 16;
// Every reader of a row is one block of this size: the order of its sums is then the same, and a log-probability one
// number whoever asks.
constexpr u32 kRowThreads = 1024;
constexpr u32 kRowWarps = kRowThreads / 32;

// Statistics of a strip are {largest logit, NaN apart; sum of e^(x - largest)}. A strip of nothing but -inf has
// {-inf, 0}; a NaN or a +inf in it makes the sum NaN. Ids beyond V count as -inf. One logit's part of the sum:
__device__ __forceinline__ float strip_term(float x, float largest) {
  if (largest > -INFINITY) return expf(x - largest);
  return x != x ? x : 0.0f;
}

// Shared memory of what works on one row. The list of strips follows it (select.cuh).
struct RowScratch {
  union {
    u64 sums[kRowWarps];
    double parts[kRowWarps];
    float maxima[kRowWarps];
  };
  u64 before, rest;
  u32 thread, n_listed;
};

// The sum over the block, told to every thread, in a fixed order.
template <class T>
__device__ __forceinline__ T row_total(T v, T* scratch) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  T sum = 0;
#pragma unroll 4
  for (u32 w = 0; w < kRowWarps; ++w) sum += scratch[w];
  __syncthreads();
  return sum;
}

struct Row {
  const float* x;       // [V]
  const float2* stats;  // [ceil(V / 16)]
  u32 v;
  u32 n_strips;
  float largest;  // NaN apart
  float mine;     // the largest of this thread's strips; they are every 1024th
  float ln_sum;   // ln of the sum of e^(x - largest); NaN where there is NaN, +inf, or nothing above -inf

  __device__ __forceinline__ bool has_distribution() const { return fabsf(ln_sum) < INFINITY; }

  __device__ __forceinline__ float logprob(float logit) const { return (logit - largest) - ln_sum; }

  // A quarter of a strip, -inf beyond the row.
  __device__ __forceinline__ float4 quarter(u32 strip, u32 part) const {
    u32 id = strip * kStrip + part * 4;
    // Rows of other vocabularies are not aligned.
    if (v % 4 == 0) {
      return id < v ? *reinterpret_cast<const float4*>(x + id) : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    }
    return make_float4(id < v ? x[id] : -INFINITY, id + 1 < v ? x[id + 1] : -INFINITY,
                       id + 2 < v ? x[id + 2] : -INFINITY, id + 3 < v ? x[id + 3] : -INFINITY);
  }
};

// Reads the statistics of row `index` of logits [R, V]. Called by the whole block.
__device__ __forceinline__ Row open_row(const float* logits, const float2* stats, u32 v, u32 index, RowScratch* s) {
  Row row;
  row.v = v;
  row.n_strips = (v + kStrip - 1) / kStrip;
  row.x = logits + size_t(index) * v;
  row.stats = stats + size_t(index) * row.n_strips;

  row.mine = -INFINITY;
#pragma unroll 4
  for (u32 i = threadIdx.x; i < row.n_strips; i += kRowThreads) row.mine = fmaxf(row.mine, row.stats[i].x);
  float m = warp_max(row.mine);
  if (threadIdx.x % 32 == 0) s->maxima[threadIdx.x / 32] = m;
  __syncthreads();
  row.largest = warp_max(s->maxima[threadIdx.x % 32]);
  __syncthreads();

  // The strips' sums and scales are good to a few 1e-7; only the long sum needs more than f32.
  double sum = 0.0;
#pragma unroll 4
  for (u32 i = threadIdx.x; i < row.n_strips; i += kRowThreads) {
    float2 strip = row.stats[i];
    sum += double(strip.y * expf(strip.x - row.largest));
  }
  // The largest alone adds 1. A row without a distribution has a sum of NaN already.
  row.ln_sum = logf(float(row_total(sum, s->parts)));
  return row;
}
