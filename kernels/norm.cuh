// RMSNorm of up to eight rows into shared memory by one block: y[c] = round(x[c] r w[c]), r = 1 / sqrt(mean x^2 + eps).
//
// The fused products and the kernel of its own (rmsnorm.cu) all come here, so a row has the same bits in all of them: a
// thread sums its eights of columns in order, lanes go by warp_sum, warps in order. Each thread reads and overwrites
// columns of its own; only the sums cross threads.
#pragma once

#include "common.cuh"

constexpr u32 kNormThreads = 256;
constexpr u32 kNormRows = 8;

// Elements between two rows in shared memory: an odd number of 64 bytes, so that the reads of mma32 (eight rows by
// 64 bytes) fall into different banks.
__device__ __forceinline__ u32 norm_stride(u32 c) { return (c / 32 | 1) * 32; }

// Behind it in shared memory: w [C], rows [N][norm_stride(C)].
struct alignas(16) NormShared {
  float squares[kNormRows][kNormThreads / 32];

  __device__ __forceinline__ bf16* weight() { return reinterpret_cast<bf16*>(this + 1); }
  __device__ __forceinline__ bf16* rows(u32 c) { return weight() + c; }
};

// Sends the weights on their way, as one group of copies; before after_predecessor().
__device__ __forceinline__ void norm_begin(NormShared* shared, const bf16* w, u32 c) {
#pragma unroll 1
  for (u32 i = threadIdx.x * 8; i < c; i += kNormThreads * 8) copy_async(shared->weight() + i, w + i);
  close_copies();
}

template <int ROWS, int LATER>
__device__ __forceinline__ void norm_up_to(NormShared* shared, const bf16* x, const u32* rows, u32 n, u32 c,
                                           float eps) {
  // Four rows are asked for at a time: more registers would keep blocks of the next kernel off the SM.
  constexpr u32 kAtOnce = ROWS < 4 ? ROWS : 4;
  const u32 stride = norm_stride(c);
  float sums[ROWS] = {};
#pragma unroll 1
  for (u32 i = threadIdx.x * 8; i < c; i += kNormThreads * 8) {
    Quad v[kAtOnce] = {};
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
      if (r % kAtOnce == 0) {
#pragma unroll
        for (u32 j = 0; j < kAtOnce; ++j) {
          if (r + j < n) v[j] = load_quad(x + size_t(rows ? rows[r + j] : r + j) * c + i);
        }
      }
      if (r >= n) continue;
      const Quad& q = v[r % kAtOnce];
      *reinterpret_cast<Quad*>(shared->rows(c) + r * stride + i) = q;
      auto add_pair = [&](u32 pair) {
        sums[r] = fmaf(widen_low(pair), widen_low(pair), sums[r]);
        sums[r] = fmaf(widen_high(pair), widen_high(pair), sums[r]);
      };
      add_pair(q.x), add_pair(q.y), add_pair(q.z), add_pair(q.w);
    }
  }
  // All rows at once, so that their shuffles hide each other's latency.
#pragma unroll
  for (u32 r = 0; r < ROWS; ++r) sums[r] = warp_sum(sums[r]);
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) shared->squares[r][threadIdx.x / 32] = sums[r];
  }
  await_copies<LATER>();
  __syncthreads();
#pragma unroll 1
  for (u32 r = 0; r < n; ++r) {
    float sum = 0.0f;
    for (u32 w = 0; w < kNormThreads / 32; ++w) sum += shared->squares[r][w];
    const float inverse = 1.0f / sqrtf(sum / float(c) + eps);
    auto scaled = [&](u32 x, u32 w) {
      return narrow_pair(widen_low(x) * inverse * widen_low(w), widen_high(x) * inverse * widen_high(w));
    };
#pragma unroll 1
    for (u32 i = threadIdx.x * 8; i < c; i += kNormThreads * 8) {
      bf16* at = shared->rows(c) + r * stride + i;
      const Quad v = load_quad(at), w = load_quad(shared->weight() + i);
      *reinterpret_cast<Quad*>(at) = {scaled(v.x, w.x), scaled(v.y, w.y), scaled(v.z, w.z), scaled(v.w, w.w)};
    }
  }
}

// Normalises rows `rows` of x [., C] (the first n where there is no list), to be read after a barrier. LATER: groups of
// copies closed since norm_begin, which need not have arrived. One row alone is the case that waits for nothing.
template <int LATER>
__device__ __forceinline__ void norm_rows(NormShared* shared, const bf16* x, const u32* rows, u32 n, u32 c, float eps) {
  if (n == 1) {
    norm_up_to<1, LATER>(shared, x, rows, n, c, eps);
  } else {
    norm_up_to<kNormRows, LATER>(shared, x, rows, n, c, eps);
  }
}

// Copies n normed rows to y [N, C].
__device__ __forceinline__ void store_normed(bf16* y, const bf16* rows, u32 n, u32 c) {
  for (u32 r = 0; r < n; ++r) {
    for (u32 i = threadIdx.x * 8; i < c; i += kNormThreads * 8) {
      *reinterpret_cast<Quad*>(y + size_t(r) * c + i) = load_quad(rows + r * norm_stride(c) + i);
    }
  }
}
