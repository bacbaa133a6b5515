// RMSNorm: y[n] = norm(x[rows[n]]), one block a row. For the products that do not normalise by themselves.
#include "norm.cuh"

namespace {

struct RmsnormArgs {
  bf16* y;           // [N, C]
  const bf16* x;     // [., C]
  const u32* rows;   // [N], or null: the first N
  const bf16* w;     // [C]
  u32 c;
  float eps;
};

}  // namespace

SQUIRE_KERNEL(squire_rmsnorm, kNormThreads, 4, RmsnormArgs) {
  let_successor_begin();
  auto* space = shared<NormShared>();
  norm_begin(space, a.w, a.c);
  after_predecessor();
  const u32 row = a.rows ? a.rows[blockIdx.x] : blockIdx.x;
  norm_rows<0>(space, a.x + size_t(row) * a.c, nullptr, 1, a.c, a.eps);
  __syncthreads();
  store_normed(a.y + size_t(blockIdx.x) * a.c, space->rows(a.c), 1, a.c);
}
