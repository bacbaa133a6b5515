// Final norm, output projection and statistics: logits [R, V] f32 of R wanted rows, up to 64.
//
// W [V, C] bf16, any V; rows beyond it are masked. For every 16 ids and every row also their maximum m and the sum of
// e^(x - m), so that a sampler need not read the logits to normalise them. squire_head_normed8 normalises by itself.
#include "logits.cuh"
#include "rows.cuh"

namespace {

struct HeadArgs {
  float* logits;     // [R, V]
  float2* stats;     // [R, ceil(V / 16)] maximum, sum
  const bf16* x;     // [., C]: the stream where the kernel normalises, else normed rows
  const u32* rows;   // [R] rows of x, or null: the first R
  const bf16* norm;  // [C]
  const bf16* w;     // [V, C]
  u32 n;             // R
  u32 v;
  u32 c;
  float eps;
};

struct Head {
  using Held = Nothing;

  const HeadArgs& a;
  const u32* rows;  // of x that are wanted; null where x holds no others
  const bf16* x = nullptr;
  u32 x_stride = 0;

  __device__ u32 pieces() const { return (a.v + 15) / 16; }
  __device__ const bf16* weights(u32 piece, u32 half) const {
    return a.w + size_t(min(16 * piece + 8 * half + threadIdx.x % 32 / 4, a.v - 1)) * a.c;
  }
  __device__ const bf16* token(u32, u32 i) const {
    const u32 row = min(i, a.n - 1);
    return x + size_t(rows ? rows[row] : row) * x_stride;
  }
  __device__ Held hold(u32, u32) const { return {}; }
  __device__ void store(u32 piece, u32 token, const float (&d)[4], Held) const {
    const u32 id = 16 * piece + threadIdx.x % 32 / 4;
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
      const bool upper = id < a.v, lower = id + 8 < a.v;
      const float high = upper ? d[i] : -INFINITY, low = lower ? d[i + 2] : -INFINITY;
      float most = fmaxf(fmaxf(high, low), -INFINITY);  // two NaN
      // Lanes 4 g + t hold one token's ids.
      for (u32 step = 4; step < 32; step *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
      float sum = strip_term(high, most) + strip_term(low, most);
      for (u32 step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (token + i >= a.n) continue;
      float* logits = a.logits + size_t(token + i) * a.v;
      if (upper) logits[id] = d[i];
      if (lower) logits[id + 8] = d[i + 2];
      if (threadIdx.x % 32 < 4) a.stats[size_t(token + i) * pieces() + piece] = make_float2(most, sum);
    }
  }
};

template <int ROWS, int NT>
__device__ __forceinline__ void head(const HeadArgs& a) {
  Head op{a, a.rows};
  plain_product<ROWS, NT>(op, a.x, a.c);
}

}  // namespace

SQUIRE_KERNEL(squire_head_normed8, kRowsThreads, 3, HeadArgs) {
  Head op{a, nullptr};
  normed_product<16>(op, a.x, a.rows, a.n, a.norm, a.c, a.eps);
}
SQUIRE_KERNEL(squire_head_rows8, kRowsThreads, 3, HeadArgs) { head<16, 1>(a); }
SQUIRE_KERNEL(squire_head_rows16, kRowsThreads, 2, HeadArgs) { head<32, 2>(a); }
SQUIRE_KERNEL(squire_head_rows32, kRowsThreads, 2, HeadArgs) { head<32, 4>(a); }
SQUIRE_KERNEL(squire_head_rows64, kRowsThreads, 1, HeadArgs) { head<32, 8>(a); }
