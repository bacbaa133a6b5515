// Kernels that are wrong on purpose, each in one way that the shim must find (src/backend/cuda/emulation.rs has the tests).
// They exist in the shim alone.
#include "../common.cuh"

namespace {

struct FaultArgs {
  u32* out;  // [64]
  u32 fault;
  u32 n;
};

constexpr u32 kThreads = 64;

struct FaultShared {
  u32 word[kThreads];
  Quad copied[kThreads];
};

}  // namespace

// fault 0: right. Each thread writes a word, another reads it behind the barrier.
SQUIRE_KERNEL(squire_fault, kThreads, 1, FaultArgs) {
  auto& s = *shared<FaultShared>();
  const u32 i = threadIdx.x;
  s.word[i] = i + 1;
  if (a.fault != 1) __syncthreads();  // 1: nobody waits for the writer
  u32 v = s.word[kThreads - 1 - i];
  if (a.fault == 2 && i < 8) __syncthreads();  // 2: only some come to the barrier
  if (a.fault == 3 && i == 0) return;          // 3: one ends before the others' barrier
  __syncthreads();
  if (a.fault == 4 && i % 2 == 0) {  // 4: half a warp shuffles here, half there
    v = __shfl_xor_sync(0xffffffffu, v, 2);
  } else if (a.fault == 4) {
    v = __shfl_xor_sync(0xffffffffu, v, 4);
  }
  if (a.fault == 5 && i % 32 == 0) v += __shfl_sync(0xffffffffu, v, 0);  // 5: one lane waits for its warp
  if (a.fault >= 6 && a.fault <= 8) {
    copy_async(&s.copied[i], a.out + 4 * (i % 16));
    close_copies();
    if (a.fault == 6) await_copies<1>();  // 6: reads what is still under way
    if (a.fault == 7) await_copies<0>();  // 7: right
    if (a.fault != 8) v += s.copied[i].x;  // 8: ends without waiting
  }
  if (a.fault == 9) s.word[a.n] = 1;  // 9: behind the shared memory it was given, where n says so
  if (a.fault == 10) a.out[a.n] = 1;  // 10: outside the buffer, where n says so
  if (a.fault == 11) v += load_quad(reinterpret_cast<const char*>(a.out) + 4).x;  // 11: misaligned
  if (a.fault <= 7) __syncthreads();
  a.out[i] = v;
}
