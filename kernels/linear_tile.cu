// Linear layer for many rows: y = round(x w^T), or y = round(y + round(x w^T)) on the residual stream.
//
// x [N, K], w [M, K], y [N, M] bf16; K a multiple of 32, M of 8. A block is a tile of 128 outputs x 128 or 64 tokens.
// Blocks of one weight tile are neighbours, so weights come from memory once and x stays in L2.
#include "tile.cuh"

namespace {

struct LinearTileArgs {
  bf16* y;        // [N, M], rows y_stride apart
  const bf16* x;  // [N, K]
  const bf16* w;  // [M, K]
  u32 n;
  u32 m;
  u32 k;
  u32 y_stride;
};

template <int TOKENS, bool RESIDUAL>
__device__ __forceinline__ void linear_tile(const LinearTileArgs& a) {
  let_successor_begin();
  const u32 first_token = blockIdx.x * TOKENS, first_row = blockIdx.y * kTileRows;
  auto weight_row = [&](u32 r) {
    const bool here = first_row + r < a.m;
    return TileRow{a.w + (here ? size_t(first_row + r) * a.k : 0), here};
  };
  auto token_row = [&](u32 r) {
    const bool here = first_token + r < a.n;
    return TileRow{a.x + (here ? size_t(first_token + r) * a.k : 0), here};
  };
  auto* s = shared<TileShared<TOKENS>>();
  TileSums<TOKENS> sums;
  tile_product(sums, s, a.k, weight_row, token_row);
  stage_products(sums, s);
  emit_staged<kTileRows>(s, [&](u32 token, u32 column, const Quad& v) {
    if (first_token + token >= a.n || first_row + column >= a.m) return;
    bf16* y = a.y + size_t(first_token + token) * a.y_stride + first_row + column;
    *reinterpret_cast<Quad*>(y) = RESIDUAL ? add(load_quad(y), v) : v;
  });
}

}  // namespace

SQUIRE_KERNEL(squire_linear_tile128, kTileThreads, 1, LinearTileArgs) { linear_tile<128, false>(a); }
SQUIRE_KERNEL(squire_linear_tile64, kTileThreads, 2, LinearTileArgs) { linear_tile<64, false>(a); }
SQUIRE_KERNEL(squire_linear_residual_tile128, kTileThreads, 1, LinearTileArgs) { linear_tile<128, true>(a); }
SQUIRE_KERNEL(squire_linear_residual_tile64, kTileThreads, 2, LinearTileArgs) { linear_tile<64, true>(a); }
