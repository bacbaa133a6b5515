// Gate, up and SwiGLU for many rows: y = round(silu(round(x gate^T)) round(x up^T)).
//
// x [N, K], gate and up [F, K], y [N, F] bf16; K a multiple of 32, F of 8. A block is a tile of 64 outputs x 128 or 64
// tokens: 128 weight rows, eight gates and their eight ups in turn, so one thread holds both products of an output.
#include "tile.cuh"

namespace {

struct SwigluTileArgs {
  bf16* y;           // [N, F]
  const bf16* x;     // [N, K]
  const bf16* gate;  // [F, K]
  const bf16* up;    // [F, K]
  u32 n;
  u32 f;
  u32 k;
  u32 unused;
};

constexpr u32 kOutputs = kTileRows / 2;

template <int TOKENS>
__device__ __forceinline__ void swiglu_tile(const SwigluTileArgs& a) {
  let_successor_begin();
  const u32 first_token = blockIdx.x * TOKENS, first_output = blockIdx.y * kOutputs;
  auto weight_row = [&](u32 r) { return gate_up_row(a.gate, a.up, first_output, r, a.f, a.k); };
  auto token_row = [&](u32 r) {
    const bool here = first_token + r < a.n;
    return TileRow{a.x + (here ? size_t(first_token + r) * a.k : 0), here};
  };
  auto* s = shared<TileShared<TOKENS>>();
  TileSums<TOKENS> sums;
  tile_product(sums, s, a.k, weight_row, token_row);
  stage_swiglu(sums, s);
  emit_staged<kOutputs>(s, [&](u32 token, u32 column, const Quad& v) {
    if (first_token + token >= a.n || first_output + column >= a.f) return;
    *reinterpret_cast<Quad*>(a.y + size_t(first_token + token) * a.f + first_output + column) = v;
  });
}

}  // namespace

SQUIRE_KERNEL(squire_swiglu_tile128, kTileThreads, 1, SwigluTileArgs) { swiglu_tile<128>(a); }
SQUIRE_KERNEL(squire_swiglu_tile64, kTileThreads, 2, SwigluTileArgs) { swiglu_tile<64>(a); }
