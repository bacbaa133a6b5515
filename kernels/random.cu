// Random weights: element i is spread * ((16 bits of draw i / 4) - 1/2), as src/backend/ops/random.rs has it, bit for bit.
//
// out [n] bf16. Eight elements a thread: two draws of 64 bits and one store.
#include "common.cuh"

namespace {

struct FillRandomArgs {
  bf16* out;   // [n]
  u64 key;     // the mixed words of the draws' key, up to the index
  u64 n;
  float spread;
  u32 unused;
};

constexpr u32 kThreads = 256;
constexpr u32 kEach = 8;

// src/random.rs
__device__ __forceinline__ u64 mix(u64 z) {
  z += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

__device__ __forceinline__ float element(u64 bits, u32 i, float spread) {
  float centred = (float(u32(bits >> (16 * i)) & 0xffffu) - 32767.5f) * (1.0f / 65536.0f);
  return spread * centred;
}

}  // namespace

SQUIRE_KERNEL(squire_fill_random, kThreads, 6, FillRandomArgs) {
  let_successor_begin();
  after_predecessor();
  const u64 first = (u64(blockIdx.x) * kThreads + threadIdx.x) * kEach;
  if (first >= a.n) return;
  const u64 low = mix(a.key ^ mix(first / 4)), high = mix(a.key ^ mix(first / 4 + 1));
  if (first + kEach <= a.n) {
    Quad v;
    v.x = narrow_pair(element(low, 0, a.spread), element(low, 1, a.spread));
    v.y = narrow_pair(element(low, 2, a.spread), element(low, 3, a.spread));
    v.z = narrow_pair(element(high, 0, a.spread), element(high, 1, a.spread));
    v.w = narrow_pair(element(high, 2, a.spread), element(high, 3, a.spread));
    *reinterpret_cast<Quad*>(a.out + first) = v;
    return;
  }
  for (u32 i = 0; first + i < a.n; ++i) a.out[first + i] = narrow(element(i < 4 ? low : high, i % 4, a.spread));
}
