// Which experts a row goes to: p = softmax(logits), the k largest (ties: the lower id) in falling order, their weights
// divided by their sum where wanted. Up to eight rows a block of 256 threads, a warp a row for the softmax.
//
// An expert's rank is the number of experts before it, counted by a thread for each: no search that goes round k times.
// Probabilities are not negative, so their bits are in their order; a NaN comes first, and ids are distinct whatever the
// logits are.
#pragma once

#include "common.cuh"

constexpr u32 kRouteThreads = 256;
constexpr u32 kRouteRows = kRouteThreads / 32;

struct RouteArgs {
  u32* experts;        // [N, k]
  float* weights;      // [N, k]
  const bf16* logits;  // [N, E]
  u32 n;
  u32 e;
  u32 k;
  u32 norm;  // 1: divide by the sum
};

// Behind it in shared memory: probabilities [8][stride], chosen [8][k], with stride = E rounded up to 4.
struct alignas(16) RouteShared {
  u32 unused[4];

  __device__ __forceinline__ float* probs() { return reinterpret_cast<float*>(this + 1); }
};

// Rows `first` to at most `first` + 7.
__device__ __forceinline__ void route_rows(RouteShared* shared, const RouteArgs& a, u32 first) {
  const u32 n = min(kRouteRows, a.n - first), stride = (a.e + 3) / 4 * 4, warp = threadIdx.x / 32;
  float* chosen = shared->probs() + kRouteRows * stride;
  if (warp < n) {
    float* p = shared->probs() + warp * stride;
    const bf16* logits = a.logits + size_t(first + warp) * a.e;
    float most = kLowest, sum = 0.0f;
    for (u32 i = threadIdx.x % 32; i < stride; i += 32) {
      p[i] = i < a.e ? widen(logits[i]) : kLowest;
      most = fmaxf(most, p[i]);
    }
    most = warp_max(most);
    for (u32 i = threadIdx.x % 32; i < a.e; i += 32) sum += p[i] = expf(p[i] - most);
    sum = warp_sum(sum);
    for (u32 i = threadIdx.x % 32; i < stride; i += 32) p[i] = i < a.e ? p[i] / sum : 0.0f;
  }
  __syncthreads();
  for (u32 item = threadIdx.x; item < n * a.e; item += kRouteThreads) {
    const u32 row = item / a.e, expert = item % a.e;
    const float* p = shared->probs() + row * stride;
    const u32 mine = __float_as_uint(p[expert]);
    u32 rank = 0;
    for (u32 i = 0; i < a.e; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(p + i);
      auto count = [&](float other, u32 id) {
        const u32 bits = __float_as_uint(other);
        rank += id < a.e && (bits > mine || (bits == mine && id < expert));
      };
      count(four.x, i), count(four.y, i + 1), count(four.z, i + 2), count(four.w, i + 3);
    }
    if (rank < a.k) {
      a.experts[size_t(first + row) * a.k + rank] = expert;
      chosen[row * a.k + rank] = p[expert];
    }
  }
  __syncthreads();
  for (u32 item = threadIdx.x; item < n * a.k; item += kRouteThreads) {
    const float* row = chosen + item / a.k * a.k;
    float sum = 0.0f;
    for (u32 j = 0; j < a.k; ++j) sum += row[j];
    a.weights[size_t(first) * a.k + item] = a.norm ? chosen[item] / sum : chosen[item];
  }
}
