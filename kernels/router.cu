// The router of a layer of experts: norm, logits, and which experts a row goes to.
//
// squire_router_normed8 does all of it for at most 8 rows, and leaves the normed rows for the experts: the block that
// comes last deals the rows. For more rows squire_route deals what other kernels have multiplied.
#include "route.cuh"
#include "rows.cuh"

namespace {

struct RouterArgs {
  RouteArgs route;
  bf16* logits;      // [N, E], those of `route`
  bf16* normed;      // [N, C]
  const bf16* x;     // [N, C] the stream
  const bf16* norm;  // [C]
  const bf16* w;     // [E, C]
  u32* arrived;      // [1]: 0, and 0 again afterwards
  u32 c;
  float eps;
};

// Eight rows a tile: there are few experts, and the rest of the SMs waits.
struct Router {
  using Held = Nothing;

  const RouterArgs& a;
  const bf16* x = nullptr;
  u32 x_stride = 0;

  __device__ u32 pieces() const { return (a.route.e + 7) / 8; }
  __device__ const bf16* weights(u32 piece, u32) const {
    return a.w + size_t(min(8 * piece + threadIdx.x % 32 / 4, a.route.e - 1)) * a.c;
  }
  __device__ const bf16* token(u32, u32 i) const { return x + size_t(min(i, a.route.n - 1)) * x_stride; }
  __device__ Held hold(u32, u32) const { return {}; }
  __device__ void store(u32 piece, u32 token, const float (&d)[4], Held) const {
    const u32 expert = 8 * piece + threadIdx.x % 32 / 4;
    if (expert >= a.route.e) return;
    bf16* logits = a.logits + size_t(token) * a.route.e + expert;
    if (token < a.route.n) logits[0] = narrow(d[0]);
    if (token + 1 < a.route.n) logits[a.route.e] = narrow(d[1]);
  }
};

struct RouterShared {
  u32 last;
  RouteShared route;
};

}  // namespace

SQUIRE_KERNEL(squire_router_normed8, kRowsThreads, 3, RouterArgs) {
  Router op{a};
  const bf16* normed = normed_product<8>(op, a.x, nullptr, a.route.n, a.norm, a.c, a.eps);
  if (blockIdx.x == 0) store_normed(a.normed, normed, a.route.n, a.c);
  // What the product had in shared memory is done with, but for the warps that add up its last tile.
  __syncthreads();
  auto* space = shared<RouterShared>();
  if (last_to_arrive(a.arrived, gridDim.x, &space->last)) route_rows(&space->route, a.route, 0);
}

SQUIRE_KERNEL(squire_route, kRouteThreads, 4, RouteArgs) {
  let_successor_begin();
  after_predecessor();
  route_rows(shared<RouteShared>(), a, blockIdx.x * kRouteRows);
}
