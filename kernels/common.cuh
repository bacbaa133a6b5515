// What every kernel stands on: bf16, 16-byte loads, the one mma form, asynchronous copies, warp and block sums,
// programmatic dependent launch. Each PTX instruction has one wrapper here, and the wrapper a host body in
// shim/shim.hpp, so that the same kernel sources run on the processor in tests.
//
// Rules for kernels: one struct of arguments by value; dynamic shared memory only, through shared<T>(); whole warps
// take part in warp operations; nothing that a predecessor wrote is read before after_predecessor().
#pragma once

#include <cstdint>

#ifdef SQUIRE_SHIM
#include "shim/shim.hpp"
#else
#include <cuda_bf16.h>

// A kernel, exported under its name. `threads` is its block size, `blocks` how many of them an SM should hold.
#define SQUIRE_KERNEL(name, threads, blocks, args) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ args a)
#endif

typedef uint32_t u32;
typedef unsigned long long u64;

// bf16 as stored.
struct bf16 {
  unsigned short bits;
};

// 16 bytes: eight bf16, the unit of every large load.
struct alignas(16) Quad {
  u32 x, y, z, w;
};

// The scores' "nothing": far below every score, and finite, so that differences of two stay numbers.
constexpr float kLowest = -3.0e38f;

// ---- bf16

__device__ __forceinline__ float widen(bf16 v) { return __uint_as_float(u32(v.bits) << 16); }
__device__ __forceinline__ float widen_low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float widen_high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// To the nearest bf16, ties to even.
__device__ __forceinline__ bf16 narrow(float v) {
#ifdef SQUIRE_SHIM
  return bf16{shim::narrow(v)};
#else
  return bf16{__bfloat16_as_ushort(__float2bfloat16_rn(v))};
#endif
}

__device__ __forceinline__ float rounded(float v) { return widen(narrow(v)); }

// Two values side by side, the first in the low half.
__device__ __forceinline__ u32 narrow_pair(float low, float high) {
#ifdef SQUIRE_SHIM
  return u32(shim::narrow(low)) | u32(shim::narrow(high)) << 16;
#else
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

// ---- loads and prefetch

// Weights: read once, by nobody else on this SM, never written while a kernel runs.
__device__ __forceinline__ Quad load_weights(const void* p) {
#ifdef SQUIRE_SHIM
  return shim::load<Quad>(p);
#else
  Quad v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#endif
}

// Small things that no kernel writes: norms, tables, what a step is told of its rows.
template <class T>
__device__ __forceinline__ T load_constant(const T* p) {
#ifdef SQUIRE_SHIM
  return shim::load<T>(p);
#else
  return __ldg(p);
#endif
}

// Activations and KV: written by earlier kernels or by this one.
__device__ __forceinline__ Quad load_quad(const void* p) {
#ifdef SQUIRE_SHIM
  return shim::load<Quad>(p);
#else
  return *static_cast<const Quad*>(p);
#endif
}

__device__ __forceinline__ void prefetch_l2(const void* p) {
#ifdef SQUIRE_SHIM
  shim::touch(p);
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// ---- the mma form

// d += a b for a [16, 16], b [16, 8], bf16 with f32 sums. With lane = 4 g + t: a = {(g, 2t..), (g+8, 2t..),
// (g, 2t+8..), (g+8, 2t+8..)}, b = {(2t.., g), (2t+8.., g)}, d = {(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)}.
__device__ __forceinline__ void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#ifdef SQUIRE_SHIM
  shim::mma(d, a0, a1, a2, a3, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

// Two mma steps over 32 columns of k. A dot product does not care about the order of k, so lane (g, t) holds the 16
// contiguous bytes of columns 8t.. of its rows: `top` of row g, `bottom` of row g + 8, `x` of token g. The same
// permutation on both sides; no shuffling, no repacking, and every quad of lanes reads 64 contiguous bytes a row.
__device__ __forceinline__ void mma32(float (&d)[4], const Quad& top, const Quad& bottom, const Quad& x) {
  mma(d, top.x, bottom.x, top.y, bottom.y, x.x, x.y);
  mma(d, top.z, bottom.z, top.w, bottom.w, x.z, x.w);
}

// ---- asynchronous copies to shared memory, 16 bytes each

__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#ifdef SQUIRE_SHIM
  shim::copy_async(shared, global);
#else
  u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#endif
}

// The same by way of L1: for what other copies of this SM want too.
__device__ __forceinline__ void copy_async_cached(void* shared, const void* global) {
#ifdef SQUIRE_SHIM
  shim::copy_async(shared, global);
#else
  u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#endif
}

// Where `wanted` is false, 16 bytes of zeros (the address must still be a valid one).
__device__ __forceinline__ void copy_async_or_zero(void* shared, const void* global, bool wanted) {
#ifdef SQUIRE_SHIM
  shim::copy_async(shared, wanted ? global : nullptr);
#else
  u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
  int bytes = wanted ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ void close_copies() {
#ifdef SQUIRE_SHIM
  shim::close_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most N of this thread's closed groups are under way. A barrier must follow before others read.
template <int N>
__device__ __forceinline__ void await_copies() {
#ifdef SQUIRE_SHIM
  shim::await_copies(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---- programmatic dependent launch

// Lets the successor begin. It still waits for the end of this kernel before it reads what this one wrote.
__device__ __forceinline__ void let_successor_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// From here on all that earlier kernels wrote is visible. Every thread of every kernel passes here before its first
// read or write of anything that another kernel writes or reads; weights and other constants may be loaded before.
__device__ __forceinline__ void after_predecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// ---- shared memory

// The block's dynamic shared memory as a T.
template <class T>
__device__ __forceinline__ T* shared() {
#ifdef SQUIRE_SHIM
  return static_cast<T*>(shim::shared(sizeof(T), alignof(T)));
#else
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
#endif
}

// ---- sums over warps and blocks, in a fixed order

__device__ __forceinline__ float warp_sum(float v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
  for (int step = 16; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
  return v;
}

// The sum over the block, told to every thread; `scratch` holds one float a warp and is free again after the call.
template <int THREADS>
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  float sum = 0.0f;
  for (int w = 0; w < THREADS / 32; ++w) sum += scratch[w];
  __syncthreads();
  return sum;
}

// Whether this block is the last of `n` to come here; what the others wrote before is then visible to all its threads.
// The counter is 0 before and 0 again after the last. `flag` is a word of shared memory.
__device__ __forceinline__ bool last_to_arrive(u32* counter, u32 n, u32* flag) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    bool last = atomicAdd(counter, 1u) == n - 1;
    if (last) *counter = 0;
    *flag = last;
  }
  __syncthreads();
  bool last = *flag != 0;
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// ---- functions

__device__ __forceinline__ float silu(float v) { return v / (1.0f + expf(-v)); }
