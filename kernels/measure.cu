// What the benches hold the other kernels against: how fast this card reads, and what a launch costs.
#include "common.cuh"

namespace {

struct ReadArgs {
  const Quad* from;  // [n]
  u32* to;           // [blocks], so that the reads are not in vain
  u64 n;
};

struct NothingArgs {
  u32* counter;
};

constexpr u32 kReadThreads = 512;
// Loads under way in a thread: 64 KB in a block.
constexpr u32 kReads = 8;

}  // namespace

// Each block reads its own contiguous part, 16 bytes a lane, kReads of them at once.
SQUIRE_KERNEL(squire_measure_read, kReadThreads, 2, ReadArgs) {
  after_predecessor();
  u64 part = (a.n + gridDim.x - 1) / gridDim.x;
  u64 begin = part * blockIdx.x, end = min(begin + part, a.n);
  u32 sum = 0;
  u64 i = begin + threadIdx.x;
  for (; i + (kReads - 1) * kReadThreads < end; i += kReads * kReadThreads) {
    Quad v[kReads];
#pragma unroll
    for (u32 j = 0; j < kReads; ++j) v[j] = load_weights(a.from + i + j * kReadThreads);
#pragma unroll
    for (u32 j = 0; j < kReads; ++j) sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < end; i += kReadThreads) {
    Quad v = load_weights(a.from + i);
    sum ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  // Never true of random numbers often enough to matter, and the compiler cannot know.
  if (sum == 0x5ca1ab1eu) a.to[blockIdx.x] = sum;
}

// A kernel whose cost is its launch.
SQUIRE_KERNEL(squire_measure_nothing, 32, 1, NothingArgs) {
  let_successor_begin();
  after_predecessor();
  if (threadIdx.x == 0 && blockIdx.x == 0) *a.counter += 1;
}
