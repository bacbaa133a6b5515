// Experts for many rows: the slots (row, rank) sorted by expert, the experts' products by tiles of sorted slots, the
// weighted sum of a row's slots added to its stream.
//
// x [N, C] normed, ids and weights [N, k] of the router; expert e's gate, up [F, C] and down [C, F] lie `stride`
// elements behind those of expert e - 1. Slot i is rank i % k of row i / k. The host cannot know how many tiles there
// are: it launches as many as there could be, and those beyond the last do nothing.
//
// A slot's result depends on its row and its expert alone, and rows sum their slots in order of rank: the bits are those
// of the kernels for few rows.
#include "tile.cuh"

namespace {

// A tile's slots: order[first .. first + count].
struct ExpertTile {
  u32 expert;
  u32 first;
  u32 count;
  u32 unused;
};

// ---- sorting

struct SortArgs {
  u32* order;         // [N k] the slots by expert, those of one expert in order
  ExpertTile* tiles;  // by expert
  u32* n_tiles;       // [1]
  const u32* ids;     // [N k] each below n_experts
  u32 n_slots;
  u32 n_experts;
  u32 tile_tokens;
  u32 unused;
};

constexpr u32 kSortThreads = 1024;
constexpr u32 kSortWarps = kSortThreads / 32;

struct SortShared {
  u32 counts[kSortThreads];     // slots of each expert
  u32 mine[kSortWarps];         // slots of this block's expert in each warp's span
  u32 before[kSortWarps];       // slots and tiles of the experts before, by warps of experts
  u32 tiles_before[kSortWarps];
};

__device__ __forceinline__ u32 warp_count(u32 v) {
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

}  // namespace

// One block an expert. It counts the slots of all, which tells where its own begin, and then places its own: each warp
// has a span of slots, so order within the expert is order of slots. Counts are whole numbers: atomics change no bit.
SQUIRE_KERNEL(squire_experts_sort, kSortThreads, 1, SortArgs) {
  auto* s = shared<SortShared>();
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, expert = blockIdx.x;
  let_successor_begin();
  s->counts[threadIdx.x] = 0;
  after_predecessor();
  __syncthreads();

  const u32 span = (a.n_slots + kSortThreads - 1) / kSortThreads * 32;
  const u32 begin = warp * span, end = min(begin + span, a.n_slots);
  u32 mine = 0;
  for (u32 at = begin; at < end; at += 32) {
    const u32 id = at + lane < end ? a.ids[at + lane] : a.n_experts;
    if (id < a.n_experts) atomicAdd(&s->counts[id], 1u);
    mine += __popc(__ballot_sync(0xffffffffu, id == expert));
  }
  if (lane == 0) s->mine[warp] = mine;
  __syncthreads();

  const u32 count = threadIdx.x < expert ? s->counts[threadIdx.x] : 0;
  const u32 before = warp_count(count), tiles_before = warp_count((count + a.tile_tokens - 1) / a.tile_tokens);
  if (lane == 0) {
    s->before[warp] = before;
    s->tiles_before[warp] = tiles_before;
  }
  __syncthreads();

  const u32 first = warp_count(s->before[lane]), first_tile = warp_count(s->tiles_before[lane]);
  const u32 n = s->counts[expert], n_tiles = (n + a.tile_tokens - 1) / a.tile_tokens;
  for (u32 i = threadIdx.x; i < n_tiles; i += kSortThreads) {
    const u32 done = i * a.tile_tokens;
    a.tiles[first_tile + i] = ExpertTile{expert, first + done, min(n - done, a.tile_tokens), 0};
  }
  if (expert == a.n_experts - 1 && threadIdx.x == 0) *a.n_tiles = first_tile + n_tiles;

  u32 next = first + warp_count(lane < warp ? s->mine[lane] : 0);
  for (u32 at = begin; at < end; at += 32) {
    const bool here = at + lane < end && a.ids[at + lane] == expert;
    const u32 all = __ballot_sync(0xffffffffu, here);
    if (here) a.order[next + __popc(all & ((1u << lane) - 1))] = at + lane;
    next += __popc(all);
  }
}

namespace {

// ---- products

struct ExpertsArgs {
  bf16* y;          // gate|up: [N k, F] in sorted order; down: [N k, C] by slot
  const bf16* x;    // gate|up: [N, C]; down: [N k, F] in sorted order
  const bf16* w;    // gate or down of expert 0
  const bf16* up;   // up of expert 0
  const u32* order;
  const ExpertTile* tiles;
  const u32* n_tiles;
  u64 stride;  // elements between an expert's matrices and the next one's
  u32 width;   // F or C: columns of y
  u32 columns;  // C or F: columns of x
  u32 top_k;
  u32 unused;
};

constexpr u32 kOutputs = kTileRows / 2;

// product = round(silu(round(gate x)) round(up x)) of the rows that the sorted slots name.
template <int TOKENS>
__device__ __forceinline__ void experts_gate_up(const ExpertsArgs& a) {
  let_successor_begin();
  after_predecessor();
  if (blockIdx.y >= *a.n_tiles) return;
  // Read again where it is wanted: what the long loop need not keep leaves it registers.
  const ExpertTile* tile = a.tiles + blockIdx.y;
  const u32 first_output = blockIdx.x * kOutputs;
  const bf16 *gate = a.w + tile->expert * a.stride, *up = a.up + tile->expert * a.stride;
  auto weight_row = [&](u32 r) { return gate_up_row(gate, up, first_output, r, a.width, a.columns); };
  auto token_row = [&](u32 r) {
    const bool here = r < tile->count;
    return TileRow{a.x + (here ? size_t(a.order[tile->first + r] / a.top_k) * a.columns : 0), here};
  };
  auto* s = shared<TileShared<TOKENS>>();
  TileSums<TOKENS> sums;
  tile_product(sums, s, a.columns, weight_row, token_row);
  stage_swiglu(sums, s);
  emit_staged<kOutputs>(s, [&](u32 token, u32 column, const Quad& v) {
    if (token >= tile->count || first_output + column >= a.width) return;
    *reinterpret_cast<Quad*>(a.y + size_t(tile->first + token) * a.width + first_output + column) = v;
  });
}

// slots[order[i]] = round(down product[i]).
template <int TOKENS>
__device__ __forceinline__ void experts_down(const ExpertsArgs& a) {
  let_successor_begin();
  after_predecessor();
  if (blockIdx.y >= *a.n_tiles) return;
  const ExpertTile* tile = a.tiles + blockIdx.y;
  const u32 first_row = blockIdx.x * kTileRows;
  const bf16* w = a.w + tile->expert * a.stride;
  auto weight_row = [&](u32 r) {
    const bool here = first_row + r < a.width;
    return TileRow{w + (here ? size_t(first_row + r) * a.columns : 0), here};
  };
  auto token_row = [&](u32 r) {
    const bool here = r < tile->count;
    return TileRow{a.x + (here ? size_t(tile->first + r) * a.columns : 0), here};
  };
  auto* s = shared<TileShared<TOKENS>>();
  TileSums<TOKENS> sums;
  tile_product(sums, s, a.columns, weight_row, token_row);
  stage_products(sums, s);
  emit_staged<kTileRows>(s, [&](u32 token, u32 column, const Quad& v) {
    if (token >= tile->count || first_row + column >= a.width) return;
    *reinterpret_cast<Quad*>(a.y + size_t(a.order[tile->first + token]) * a.width + first_row + column) = v;
  });
}

// ---- the weighted sum

struct CombineArgs {
  bf16* stream;          // [N, C]
  const bf16* slots;     // [N k, C]
  const float* weights;  // [N, k]
  u32 c;
  u32 top_k;
};

constexpr u32 kCombineThreads = 256;

}  // namespace

SQUIRE_KERNEL(squire_experts_gate_up_tile128, kTileThreads, 1, ExpertsArgs) { experts_gate_up<128>(a); }
SQUIRE_KERNEL(squire_experts_gate_up_tile64, kTileThreads, 2, ExpertsArgs) { experts_gate_up<64>(a); }
SQUIRE_KERNEL(squire_experts_down_tile128, kTileThreads, 1, ExpertsArgs) { experts_down<128>(a); }
SQUIRE_KERNEL(squire_experts_down_tile64, kTileThreads, 2, ExpertsArgs) { experts_down<64>(a); }

// stream[i] = round(stream[i] + round(sum over rank j of weights[i, j] slots[i k + j])), by FMA from zero. A block a row.
SQUIRE_KERNEL(squire_experts_combine, kCombineThreads, 4, CombineArgs) {
  let_successor_begin();
  after_predecessor();
  const float* weights = a.weights + size_t(blockIdx.x) * a.top_k;
  for (u32 i = threadIdx.x * 8; i < a.c; i += kCombineThreads * 8) {
    const bf16* slot = a.slots + size_t(blockIdx.x) * a.top_k * a.c + i;
    float sum[8] = {};
    for (u32 j = 0; j < a.top_k; ++j, slot += a.c) {
      const float weight = weights[j];
      const Quad v = load_quad(slot);
      const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (u32 p = 0; p < 4; ++p) {
        sum[2 * p] = fmaf(weight, widen_low(pairs[p]), sum[2 * p]);
        sum[2 * p + 1] = fmaf(weight, widen_high(pairs[p]), sum[2 * p + 1]);
      }
    }
    bf16* y = a.stream + size_t(blockIdx.x) * a.c + i;
    *reinterpret_cast<Quad*>(y) = add(load_quad(y), Quad{narrow_pair(sum[0], sum[1]), narrow_pair(sum[2], sum[3]),
                                                         narrow_pair(sum[4], sum[5]), narrow_pair(sum[6], sum[7])});
  }
}
