// Linear: y = round(W x), or y += round(W x) rounded again (the residual stream), for up to 64 rows.
//
// W [O, K], any O, x [N, K], y [N, O], all bf16. The grid is min(tiles, what the device holds at once); tiles of 8 rows are for
// matrices of which 16-row tiles would leave multiprocessors idle, tiles of 32 halve the traffic of tokens through L2.
#include "rows.cuh"

namespace {

struct LinearArgs {
  bf16* y;
  const bf16* x = nullptr;
  const bf16* w;
  u32 n;
  u32 o;
  u32 k;
  u32 adds;  // 1: y is added to
};

template <int ROWS>
struct Linear {
  static constexpr u32 kHeight = ROWS < 16 ? 8 : 16;

  // As loaded: what is done to it waits for it.
  struct Held {
    bf16 y[4];
  };

  const LinearArgs& a;
  const bf16* x = nullptr;
  u32 x_stride = 0;

  __device__ u32 pieces() const { return (a.o + kHeight - 1) / kHeight; }
  __device__ const bf16* weights(u32 piece, u32 half) const {
    return a.w + size_t(min(piece * kHeight + 8 * half + threadIdx.x % 32 / 4, a.o - 1)) * a.k;
  }
  __device__ const bf16* token(u32, u32 i) const { return x + size_t(min(i, a.n - 1)) * x_stride; }

  // Calls f(i, element of y) for those of the lane's four that exist.
  template <class F>
  __device__ __forceinline__ void each(u32 piece, u32 token, F f) const {
#pragma unroll
    for (u32 i = 0; i < kHeight / 4; ++i) {
      const u32 row = piece * kHeight + threadIdx.x % 32 / 4 + i / 2 * 8;
      if (row < a.o && token + i % 2 < a.n) f(i, a.y + size_t(token + i % 2) * a.o + row);
    }
  }
  __device__ Held hold(u32 piece, u32 token) const {
    Held held = {};
    if (a.adds) each(piece, token, [&](u32 i, const bf16* y) { held.y[i] = *y; });
    return held;
  }
  __device__ void store(u32 piece, u32 token, const float (&d)[4], const Held& held) const {
    each(piece, token, [&](u32 i, bf16* y) { *y = a.adds ? narrow(widen(held.y[i]) + rounded(d[i])) : narrow(d[i]); });
  }
};

template <int ROWS, int NT>
__device__ __forceinline__ void linear(const LinearArgs& a) {
  Linear<ROWS> op{a};
  plain_product<ROWS, NT>(op, a.x, a.k);
}

}  // namespace

SQUIRE_KERNEL(squire_linear_rows8_by8, kRowsThreads, 4, LinearArgs) { linear<8, 1>(a); }
SQUIRE_KERNEL(squire_linear_rows8_by16, kRowsThreads, 4, LinearArgs) { linear<16, 1>(a); }
SQUIRE_KERNEL(squire_linear_rows16_by16, kRowsThreads, 2, LinearArgs) { linear<16, 2>(a); }
SQUIRE_KERNEL(squire_linear_rows16_by32, kRowsThreads, 2, LinearArgs) { linear<32, 2>(a); }
SQUIRE_KERNEL(squire_linear_rows32_by16, kRowsThreads, 2, LinearArgs) { linear<16, 4>(a); }
SQUIRE_KERNEL(squire_linear_rows32_by32, kRowsThreads, 2, LinearArgs) { linear<32, 4>(a); }
SQUIRE_KERNEL(squire_linear_rows64_by16, kRowsThreads, 2, LinearArgs) { linear<16, 8>(a); }
SQUIRE_KERNEL(squire_linear_rows64_by32, kRowsThreads, 1, LinearArgs) { linear<32, 8>(a); }
