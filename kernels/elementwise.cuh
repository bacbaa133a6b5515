// Functions of single elements, as the ends of products and elementwise kernels use them.
#pragma once

#include "common.cuh"

__device__ __forceinline__ u32 add_pair(u32 a, u32 b) {
  return narrow_pair(widen_low(a) + widen_low(b), widen_high(a) + widen_high(b));
}

// Eight sums, each rounded once.
__device__ __forceinline__ Quad add(const Quad& a, const Quad& b) {
  return Quad{add_pair(a.x, b.x), add_pair(a.y, b.y), add_pair(a.z, b.z), add_pair(a.w, b.w)};
}

// gate and up are products that were rounded; the result is not yet.
__device__ __forceinline__ float swiglu(float gate, float up) { return silu(gate) * up; }
