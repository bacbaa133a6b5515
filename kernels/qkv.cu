// QKV: the three projections of attention as one product, for up to 64 rows; squire_qkv_normed8 normalises by itself.
//
// q [N, H D], k and v [N, G D], raw; weights [H D, C], [G D, C], [G D, C]; all bf16. The pieces of the three matrices
// stand one behind another.
#include "rows.cuh"

namespace {

struct QkvArgs {
  bf16* q;
  bf16* k;
  bf16* v;
  const bf16* x;      // [N, C]: the stream where the kernel normalises, else normed rows
  const bf16* norm;   // [C]
  const bf16* wq;
  const bf16* wk;
  const bf16* wv;
  u32 n;
  u32 c;
  u32 q_out;   // H D
  u32 kv_out;  // G D
  float eps;
  u32 unused;
};

struct Qkv {
  using Held = Nothing;

  const QkvArgs& a;
  const bf16* x = nullptr;
  u32 x_stride = 0;

  __device__ u32 pieces() const { return (a.q_out + 2 * a.kv_out) / 16; }

  // Which of the three a row belongs to, the row counted within it.
  struct Matrix {
    const bf16* w;
    bf16* y;
    u32 out;
    u32 row;
  };
  __device__ __forceinline__ Matrix find(u32 row) const {
    if (row < a.q_out) return {a.wq, a.q, a.q_out, row};
    row -= a.q_out;
    if (row < a.kv_out) return {a.wk, a.k, a.kv_out, row};
    return {a.wv, a.v, a.kv_out, row - a.kv_out};
  }
  __device__ const bf16* weights(u32 piece, u32 half) const {
    const Matrix m = find(16 * piece);
    return m.w + size_t(m.row + 8 * half + threadIdx.x % 32 / 4) * a.c;
  }
  __device__ const bf16* token(u32, u32 i) const { return x + size_t(min(i, a.n - 1)) * x_stride; }
  __device__ Held hold(u32, u32) const { return {}; }
  __device__ void store(u32 piece, u32 token, const float (&d)[4], Held) const {
    const Matrix m = find(16 * piece);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      const u32 row = m.row + threadIdx.x % 32 / 4 + i / 2 * 8;
      if (token + i % 2 < a.n) m.y[size_t(token + i % 2) * m.out + row] = narrow(d[i]);
    }
  }
};

template <int ROWS, int NT>
__device__ __forceinline__ void qkv(const QkvArgs& a) {
  Qkv op{a};
  plain_product<ROWS, NT>(op, a.x, a.c);
}

}  // namespace

SQUIRE_KERNEL(squire_qkv_normed8, kRowsThreads, 4, QkvArgs) {
  Qkv op{a};
  normed_product<16>(op, a.x, nullptr, a.n, a.norm, a.c, a.eps);
}
SQUIRE_KERNEL(squire_qkv_rows8, kRowsThreads, 3, QkvArgs) { qkv<16, 1>(a); }
SQUIRE_KERNEL(squire_qkv_rows16_by16, kRowsThreads, 2, QkvArgs) { qkv<16, 2>(a); }
SQUIRE_KERNEL(squire_qkv_rows16_by32, kRowsThreads, 2, QkvArgs) { qkv<32, 2>(a); }
SQUIRE_KERNEL(squire_qkv_rows32_by16, kRowsThreads, 2, QkvArgs) { qkv<16, 4>(a); }
SQUIRE_KERNEL(squire_qkv_rows32_by32, kRowsThreads, 2, QkvArgs) { qkv<32, 4>(a); }
SQUIRE_KERNEL(squire_qkv_rows64_by16, kRowsThreads, 2, QkvArgs) { qkv<16, 8>(a); }
SQUIRE_KERNEL(squire_qkv_rows64_by32, kRowsThreads, 1, QkvArgs) { qkv<32, 8>(a); }
