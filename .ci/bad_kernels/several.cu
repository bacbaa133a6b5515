// Each kernel breaks one demand of .ci/kernels; squire_good breaks none.
#include <cstdint>

extern "C" __global__ void __launch_bounds__(256, 3) squire_good(const uint4* in, float* out) {
  extern __shared__ uint4 tile[];
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  auto to = static_cast<uint32_t>(__cvta_generic_to_shared(tile + threadIdx.x));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(in + threadIdx.x) : "memory");
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
  uint4 a = tile[threadIdx.x ^ 1], b = in[threadIdx.x + 256];
  float c0 = 0, c1 = 0, c2 = 0, c3 = 0;
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
  out[threadIdx.x] = c0 + c1 + c2 + c3 + b.z + b.w;
}

// 32 registers a thread are left; 64 values live at a time.
extern "C" __global__ void __launch_bounds__(1024, 2) squire_spills(const float* in, float* out) {
  float kept[64];
#pragma unroll
  for (int i = 0; i < 64; i++) kept[i] = in[threadIdx.x + 1024 * i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; i++) out[threadIdx.x + 1024 * i] = kept[63 - i] * kept[i];
}

extern "C" __global__ void __launch_bounds__(256) squire_indexes_an_array(const int* in, int* out) {
  int kept[32] = {};
  for (int i = 0; i < 64; i++) kept[in[i] & 31] += i;
  out[threadIdx.x] = kept[in[threadIdx.x] & 31];
}

extern "C" __global__ void __launch_bounds__(256) squire_static_shared(float* out) {
  __shared__ float kept[256];
  kept[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = kept[threadIdx.x ^ 1];
}

extern "C" __global__ void __launch_bounds__(256) squire_over_its_ceiling(float* out) { out[threadIdx.x] *= 2; }
extern "C" __global__ void __launch_bounds__(256) squire_fits_too_few_blocks(float* out) { out[threadIdx.x] *= 2; }
extern "C" __global__ void __launch_bounds__(256) squire_lacks_all_marks(float* out) { out[threadIdx.x] *= 2; }
extern "C" __global__ void __launch_bounds__(128) squire_other_threads(float* out) { out[threadIdx.x] *= 2; }
extern "C" __global__ void squire_unbounded(float* out) { out[threadIdx.x] *= 2; }
extern "C" __global__ void __launch_bounds__(256) squire_unlisted(float* out) { out[threadIdx.x] *= 2; }
extern "C" __global__ void __launch_bounds__(256) squire_twice(float* out) { out[threadIdx.x] *= 2; }
extern "C" __global__ void __launch_bounds__(256) nameless(float* out) { out[threadIdx.x] *= 2; }
#if __CUDA_ARCH__ >= 900
extern "C" __global__ void __launch_bounds__(256) squire_reads_too_early(const float* in, float* out) {
  float read = *static_cast<const volatile float*>(in);
  asm volatile("griddepcontrol.wait;" ::: "memory");
  out[threadIdx.x] = read;
}
#endif
