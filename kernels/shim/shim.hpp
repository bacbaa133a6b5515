// The host shim: CUDA's words for g++, one fiber a CUDA thread, and the bodies of the wrappers in common.cuh.
//
// It is a checker, not a simulator of speed: threads and blocks run in an order shuffled by a seed, shared memory is
// poisoned before every block, asynchronous copies happen at their wait and poison their target until then, warps and
// barriers that part ways are reported. What it cannot show: memory-model races, timing, the exact order of sums
// inside a tensor core.
#pragma once

#include <math.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict

struct uint3 {
  uint32_t x, y, z;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace shim {

// A kernel of this build; made by SQUIRE_KERNEL.
struct Kernel {
  const char* name;
  uint32_t threads;
  size_t args_bytes;
  void (*run)(const void* args);
  Kernel* next;
  Kernel(const char* name, uint32_t threads, size_t args_bytes, void (*run)(const void*));
};

// Where the running fiber is.
struct Place {
  uint3 thread, block, block_extent, grid_extent;
};
extern thread_local Place place;

// Waits until all threads of the block are at this line.
void sync_block(const char* file, int line);

// What a warp does together: each lane deposits `bytes` (at most 64), and when all 32 have, each gets all deposits.
// `what` and the line must agree. The result stays valid until the lane's next collective.
const unsigned char* gather_warp(const char* what, const void* deposit, size_t bytes, int line);

void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1);
void copy_async(void* to, const void* from);
void close_copies();
void await_copies(int n);
void* shared(size_t bytes, size_t alignment);
// A chance for others to run, where a device would have one.
void maybe_yield();
// Reads a byte of what is prefetched, so that a wrong address shows.
void touch(const void* p);
[[noreturn]] void fail(const char* why);

template <class T>
inline T load(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T)) fail("a load is misaligned");
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline uint16_t narrow(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

template <class T>
inline T shuffle(T v, int source, int line) {
  const unsigned char* all = gather_warp("shuffle", &v, sizeof v, line);
  T got;
  std::memcpy(&got, all + size_t(source) * sizeof v, sizeof v);
  return got;
}

inline uint32_t ballot(bool v, int line) {
  uint8_t mine = v;
  const unsigned char* all = gather_warp("vote", &mine, 1, line);
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i) votes |= uint32_t(all[i] != 0) << i;
  return votes;
}

inline void check_mask(uint32_t mask) {
  if (mask != 0xffffffffu) fail("a warp operation names fewer than 32 lanes");
}

inline int lane() { return int(place.thread.x % 32); }

}  // namespace shim

#define threadIdx (::shim::place.thread)
#define blockIdx (::shim::place.block)
#define blockDim (::shim::place.block_extent)
#define gridDim (::shim::place.grid_extent)

#define __syncthreads() ::shim::sync_block(__FILE__, __LINE__)
#define __syncwarp() ((void)::shim::ballot(true, __LINE__))
#define __shfl_sync(mask, v, source) (::shim::check_mask(mask), ::shim::shuffle((v), (source) & 31, __LINE__))
#define __shfl_xor_sync(mask, v, bits) (::shim::check_mask(mask), ::shim::shuffle((v), ::shim::lane() ^ (bits), __LINE__))
#define __shfl_down_sync(mask, v, by) \
  (::shim::check_mask(mask),          \
   ::shim::shuffle((v), ::shim::lane() + int(by) > 31 ? ::shim::lane() : ::shim::lane() + int(by), __LINE__))
#define __shfl_up_sync(mask, v, by) \
  (::shim::check_mask(mask),        \
   ::shim::shuffle((v), ::shim::lane() < int(by) ? ::shim::lane() : ::shim::lane() - int(by), __LINE__))
#define __ballot_sync(mask, v) (::shim::check_mask(mask), ::shim::ballot((v), __LINE__))
#define __any_sync(mask, v) (__ballot_sync(mask, v) != 0)
#define __all_sync(mask, v) (__ballot_sync(mask, v) == 0xffffffffu)

#define SQUIRE_KERNEL(name, threads, blocks, args)                                                        \
  static void name##_body(const args& a);                                                                 \
  static ::shim::Kernel name##_kernel(#name, threads, sizeof(args),                                       \
                                      [](const void* p) { name##_body(*static_cast<const args*>(p)); }); \
  static void name##_body(const args& a)

static inline void __threadfence() { shim::maybe_yield(); }
static inline void __threadfence_block() {}

template <class T>
static inline T atomicAdd(T* p, T v) {
  shim::maybe_yield();
  T old = *p;
  *p = old + v;
  return old;
}
template <class T>
static inline T atomicMax(T* p, T v) {
  shim::maybe_yield();
  T old = *p;
  if (v > old) *p = v;
  return old;
}
template <class T>
static inline T atomicMin(T* p, T v) {
  shim::maybe_yield();
  T old = *p;
  if (v < old) *p = v;
  return old;
}
template <class T>
static inline T atomicExch(T* p, T v) {
  shim::maybe_yield();
  T old = *p;
  *p = v;
  return old;
}

static inline float __uint_as_float(uint32_t v) {
  float f;
  std::memcpy(&f, &v, 4);
  return f;
}
static inline uint32_t __float_as_uint(float f) {
  uint32_t v;
  std::memcpy(&v, &f, 4);
  return v;
}
static inline int __popc(uint32_t v) { return __builtin_popcount(v); }
static inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(uint32_t(v)); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
template <class T>
static inline constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
static inline constexpr T max(T a, T b) {
  return a < b ? b : a;
}
