// Gate, up and SwiGLU for up to 64 rows: y = round(silu(round(Wg x)) round(Wu x)).
//
// Wg, Wu [F, C], y [N, F]; all bf16. A piece is eight gate rows and the same eight up rows, so one lane holds the gate
// and the up of an output. squire_swiglu_normed8 normalises by itself.
#include "rows.cuh"

namespace {

struct SwigluRowsArgs {
  bf16* y;           // [N, F]
  const bf16* x;     // [N, C]: the stream where the kernel normalises, else normed rows
  const bf16* norm;  // [C]
  const bf16* gate;
  const bf16* up;
  u32 n;
  u32 f;
  u32 c;
  float eps;
};

struct Swiglu {
  using Held = Nothing;

  const SwigluRowsArgs& a;
  const bf16* x = nullptr;
  u32 x_stride = 0;

  __device__ u32 pieces() const { return a.f / 8; }
  __device__ const bf16* weights(u32 piece, u32 half) const {
    return (half ? a.up : a.gate) + size_t(8 * piece + threadIdx.x % 32 / 4) * a.c;
  }
  __device__ const bf16* token(u32, u32 i) const { return x + size_t(min(i, a.n - 1)) * x_stride; }
  __device__ Held hold(u32, u32) const { return {}; }
  __device__ void store(u32 piece, u32 token, const float (&d)[4], Held) const {
    bf16* y = a.y + size_t(token) * a.f + 8 * piece + threadIdx.x % 32 / 4;
    if (token < a.n) y[0] = narrow(silu(rounded(d[0])) * rounded(d[2]));
    if (token + 1 < a.n) y[a.f] = narrow(silu(rounded(d[1])) * rounded(d[3]));
  }
};

template <int ROWS, int NT>
__device__ __forceinline__ void swiglu_rows(const SwigluRowsArgs& a) {
  Swiglu op{a};
  plain_product<ROWS, NT>(op, a.x, a.c);
}

}  // namespace

SQUIRE_KERNEL(squire_swiglu_normed8, kRowsThreads, 4, SwigluRowsArgs) {
  Swiglu op{a};
  normed_product<16>(op, a.x, nullptr, a.n, a.norm, a.c, a.eps);
}
SQUIRE_KERNEL(squire_swiglu_rows8, kRowsThreads, 3, SwigluRowsArgs) { swiglu_rows<16, 1>(a); }
SQUIRE_KERNEL(squire_swiglu_rows16_by16, kRowsThreads, 2, SwigluRowsArgs) { swiglu_rows<16, 2>(a); }
SQUIRE_KERNEL(squire_swiglu_rows16_by32, kRowsThreads, 2, SwigluRowsArgs) { swiglu_rows<32, 2>(a); }
SQUIRE_KERNEL(squire_swiglu_rows32_by16, kRowsThreads, 2, SwigluRowsArgs) { swiglu_rows<16, 4>(a); }
SQUIRE_KERNEL(squire_swiglu_rows32_by32, kRowsThreads, 2, SwigluRowsArgs) { swiglu_rows<32, 4>(a); }
SQUIRE_KERNEL(squire_swiglu_rows64_by16, kRowsThreads, 2, SwigluRowsArgs) { swiglu_rows<16, 8>(a); }
SQUIRE_KERNEL(squire_swiglu_rows64_by32, kRowsThreads, 1, SwigluRowsArgs) { swiglu_rows<32, 8>(a); }
