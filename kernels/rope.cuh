// A query or key head before attention: RMSNorm where the model has one, then rotary position embedding, one rounding
// (ops/rope.rs).
//
// Eight lanes hold a head: lane m of them columns 16 j + 2 m and 16 j + 2 m + 1. So the squares are summed in sixteen
// lanes by column mod 16 and in one tree, as the processor does, column i and its partner i + D/2 lie in one lane, and
// a cached key has the same bits on both.
#pragma once

#include "common.cuh"

template <int D>
struct Head {
  u32 x[D / 16];
  u32 w[D / 16];
  float2 cosine[D / 32];
  float2 sine[D / 32];

  // What does not change while kernels run: `weight` [D] of the norm or null without one, `cosines` and `sines` [D/2] of the head's position.
  __device__ __forceinline__ void load_weights(const bf16* weight, const float* cosines, const float* sines) {
    const u32 m = threadIdx.x % 8;
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      // Two ones in bf16.
      w[j] = weight ? load_constant(reinterpret_cast<const u32*>(weight + 16 * j + 2 * m)) : 0x3f803f80u;
    }
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
      cosine[j] = load_constant(reinterpret_cast<const float2*>(cosines + 16 * j + 2 * m));
      sine[j] = load_constant(reinterpret_cast<const float2*>(sines + 16 * j + 2 * m));
    }
  }

  // The head as projected, [D].
  __device__ __forceinline__ void load(const bf16* from) {
#pragma unroll
    for (int j = 0; j < D / 16; ++j) x[j] = *reinterpret_cast<const u32*>(from + 16 * j + 2 * (threadIdx.x % 8));
  }

  // A head of zeros, which stays zero.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < D / 16; ++j) x[j] = w[j] = 0;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) cosine[j] = sine[j] = make_float2(0.0f, 0.0f);
  }

  // x = round(rope(x / rms(x) * w)), by whole warps; an eps below 0 says that there is no norm.
  __device__ __forceinline__ void norm_and_turn(float eps) {
    float even = 0.0f, odd = 0.0f;
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      even = fmaf(widen_low(x[j]), widen_low(x[j]), even);
      odd = fmaf(widen_high(x[j]), widen_high(x[j]), odd);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
      even += __shfl_xor_sync(0xffffffffu, even, step);
      odd += __shfl_xor_sync(0xffffffffu, odd, step);
    }
    const float r = eps < 0.0f ? 1.0f : 1.0f / sqrtf((even + odd) / float(D) + eps);
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
      const u32 x0 = x[j], x1 = x[j + D / 32], w0 = w[j], w1 = w[j + D / 32];
      const float even0 = widen_low(x0) * r * widen_low(w0), even1 = widen_low(x1) * r * widen_low(w1);
      const float odd0 = widen_high(x0) * r * widen_high(w0), odd1 = widen_high(x1) * r * widen_high(w1);
      x[j] = narrow_pair(fmaf(even0, cosine[j].x, 0.0f - even1 * sine[j].x),
                         fmaf(odd0, cosine[j].y, 0.0f - odd1 * sine[j].y));
      x[j + D / 32] =
          narrow_pair(fmaf(even1, cosine[j].x, even0 * sine[j].x), fmaf(odd1, cosine[j].y, odd0 * sine[j].y));
    }
  }

  // Where pair j stands in a row of D columns, counted in pairs.
  __device__ __forceinline__ u32 pair(int j) const { return 8 * j + threadIdx.x % 8; }
};
