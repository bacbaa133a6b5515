// What follows a product by a library, which cannot end in squire's rounding points itself: the residual add
// y = round(y + x), and SwiGLU y = round(silu(gate) up). All bf16; `n` elements, a multiple of 8.
#include "elementwise.cuh"

namespace {

struct ResidualArgs {
  bf16* y;        // [n], in place
  const bf16* x;  // [n]
  u64 n;
};

struct SwigluArgs {
  bf16* y;           // [n]
  const bf16* gate;  // [n]
  const bf16* up;    // [n]
  u64 n;
};

constexpr u32 kThreads = 256;

__device__ __forceinline__ u32 swiglu_pair(u32 gate, u32 up) {
  return narrow_pair(swiglu(widen_low(gate), widen_low(up)), swiglu(widen_high(gate), widen_high(up)));
}

}  // namespace

SQUIRE_KERNEL(squire_residual, kThreads, 4, ResidualArgs) {
  let_successor_begin();
  after_predecessor();
  const u64 i = (u64(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (i >= a.n) return;
  *reinterpret_cast<Quad*>(a.y + i) = add(load_quad(a.y + i), load_quad(a.x + i));
}

SQUIRE_KERNEL(squire_swiglu, kThreads, 4, SwigluArgs) {
  let_successor_begin();
  after_predecessor();
  const u64 i = (u64(blockIdx.x) * kThreads + threadIdx.x) * 8;
  if (i >= a.n) return;
  const Quad gate = load_quad(a.gate + i), up = load_quad(a.up + i);
  *reinterpret_cast<Quad*>(a.y + i) = Quad{swiglu_pair(gate.x, up.x), swiglu_pair(gate.y, up.y),
                                           swiglu_pair(gate.z, up.z), swiglu_pair(gate.w, up.w)};
}
