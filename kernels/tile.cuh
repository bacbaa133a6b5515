// Products of many rows, y = x w^T by tiles of 128 weight rows x TOKENS tokens, 8 warps a block.
//
// As in the kernels for few rows, weights are the 16-row operand, tokens the 8-column one, columns go in mma32's order
// and the sum over k in that of order.cuh: a row's result has the same bits in a prefill as in a decode step. That is
// why each thread keeps two sets of sums, the slice's and the total.
//
// A stage of shared memory holds panels of 32 columns, a row of which is 64 bytes. Eight rows of a panel are 512
// contiguous bytes, and lane 4 g + t reads the 16 bytes 8t.. of row g, which are bytes 16 lane..: every 16-byte load
// of a warp reads 512 bytes in a row, so no two lanes of a phase meet in a bank, without any swizzling. Copies into a
// panel are as contiguous.
#pragma once

#include "elementwise.cuh"
#include "order.cuh"

constexpr u32 kTileThreads = 256;
constexpr u32 kTileRows = 128;
// 64 columns a stage and two stages under way: about 1,000 clocks of work cover the latency of a load.
constexpr u32 kTilePanels = 2;
constexpr u32 kTileStages = 3;

template <int TOKENS>
struct TileStage {
  Quad w[kTilePanels][kTileRows * 4];
  Quad x[kTilePanels][TOKENS * 4];
};

// 8 more elements a row, so that lanes that write 8 weight rows of 4 tokens meet in no bank.
template <int TOKENS>
union TileShared {
  TileStage<TOKENS> stages[kTileStages];
  bf16 y[TOKENS][kTileRows + 8];
};

// A row of an operand: where it begins, and whether it is there. One that is not counts as zeros, and its address is
// any valid one.
struct TileRow {
  const bf16* at;
  bool here;
};

// A warp's part of a tile: blocks of 16 weight rows x 4 blocks of 8 tokens. [block][token block][d of mma]
template <int TOKENS>
struct TileSums {
  static constexpr u32 kAcross = TOKENS / 32;  // warps side by side over the tokens
  static constexpr u32 kBlocks = kTileRows / 16 * kAcross / 8;
  float d[kBlocks][4][4];

  __device__ __forceinline__ static u32 first_row() { return threadIdx.x / 32 / kAcross * kBlocks * 16; }
  __device__ __forceinline__ static u32 first_token() { return threadIdx.x / 32 % kAcross * 32; }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (u32 i = 0; i < kBlocks * 16; ++i) d[i / 16][i / 4 % 4][i % 4] = 0.0f;
  }

  __device__ __forceinline__ void add(const TileSums& other) {
#pragma unroll
    for (u32 i = 0; i < kBlocks * 16; ++i) d[i / 16][i / 4 % 4][i % 4] += other.d[i / 16][i / 4 % 4][i % 4];
  }
};

// One panel: 32 columns of k, as mma32 takes them. The halves of a block of weight rows are put together once and serve
// all tokens, since an mma wants its four registers side by side and a 16-byte load has them apart.
template <int TOKENS>
__device__ __forceinline__ void tile_step(TileSums<TOKENS>& sums, const Quad* w, const Quad* x) {
  Quad token[4];
#pragma unroll
  for (u32 j = 0; j < 4; ++j) token[j] = x[j * 32];
#pragma unroll
  for (u32 i = 0; i < sums.kBlocks; ++i) {
    const Quad top = w[i * 64], bottom = w[i * 64 + 32];
#pragma unroll
    for (u32 j = 0; j < 4; ++j) mma(sums.d[i][j], top.x, bottom.x, top.y, bottom.y, token[j].x, token[j].y);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) mma(sums.d[i][j], top.z, bottom.z, top.w, bottom.w, token[j].z, token[j].w);
  }
}

// The sums of a whole tile over k columns. `weight_row(r)` and `token_row(r)` tell the TileRows; tokens are asked for
// after the predecessor's end, weights before. Shared memory is free again afterwards.
template <int TOKENS, class WeightRow, class TokenRow>
__device__ __forceinline__ void tile_product(TileSums<TOKENS>& total, TileShared<TOKENS>* s, u32 k,
                                             WeightRow weight_row, TokenRow token_row) {
  constexpr u32 kWeightCopies = kTileRows * 4 / kTileThreads, kTokenCopies = TOKENS * 4 / kTileThreads;
  constexpr u32 kRowsAtOnce = kTileThreads / 4;
  const u32 steps = k / 32, row = threadIdx.x / 4, column = threadIdx.x % 4 * 8;
  TileRow w[kWeightCopies], x[kTokenCopies];

  // Thread i copies the 16 bytes i, i + 256.. of every panel, and goes on by 32 columns.
  auto copy = [&](TileRow& from, Quad* panel, u32 part, bool wanted) {
    if (wanted) copy_async_or_zero(panel + threadIdx.x + part * kTileThreads, from.at, from.here);
    from.at += 32;
  };
  auto copy_weights = [&](u32 stage, u32 slot) {
#pragma unroll
    for (u32 i = 0; i < kTilePanels * kWeightCopies; ++i) {
      const u32 panel = i / kWeightCopies, part = i % kWeightCopies;
      copy(w[part], s->stages[slot].w[panel], part, stage * kTilePanels + panel < steps);
    }
  };
  auto copy_tokens = [&](u32 stage, u32 slot) {
#pragma unroll
    for (u32 i = 0; i < kTilePanels * kTokenCopies; ++i) {
      const u32 panel = i / kTokenCopies, part = i % kTokenCopies;
      copy(x[part], s->stages[slot].x[panel], part, stage * kTilePanels + panel < steps);
    }
  };

#pragma unroll
  for (u32 i = 0; i < kWeightCopies; ++i) {
    w[i] = weight_row(row + i * kRowsAtOnce);
    w[i].at += column;
  }
#pragma unroll
  for (u32 stage = 0; stage < kTileStages - 1; ++stage) copy_weights(stage, stage);
  after_predecessor();
#pragma unroll
  for (u32 i = 0; i < kTokenCopies; ++i) {
    x[i] = token_row(row + i * kRowsAtOnce);
    x[i].at += column;
  }
#pragma unroll
  for (u32 stage = 0; stage < kTileStages - 1; ++stage) {
    copy_tokens(stage, stage);
    close_copies();
  }

  TileSums<TOKENS> slice;
  total.clear();
  slice.clear();
  u32 next = 1;  // the slice that begins next
  u32 slot = 0, free = kTileStages - 1;
  const u32 first_w = total.first_row() * 4 + threadIdx.x % 32, first_x = total.first_token() * 4 + threadIdx.x % 32;
  for (u32 stage = 0; stage * kTilePanels < steps; ++stage) {
    await_copies<kTileStages - 2>();
    // Behind it all see the stage, and none reads the one before any more.
    __syncthreads();
    copy_weights(stage + kTileStages - 1, free);
    copy_tokens(stage + kTileStages - 1, free);
    close_copies();
#pragma unroll
    for (u32 panel = 0; panel < kTilePanels; ++panel) {
      const u32 step = stage * kTilePanels + panel;
      if (step == steps) break;
      while (step == slice_begin(next, steps)) {
        total.add(slice);
        slice.clear();
        ++next;
      }
      tile_step(slice, s->stages[slot].w[panel] + first_w, s->stages[slot].x[panel] + first_x);
    }
    free = slot;
    slot = slot + 1 == kTileStages ? 0 : slot + 1;
  }
  total.add(slice);
  await_copies<0>();
  __syncthreads();
}

// Rounds the sums into shared memory, as [token][weight row].
template <int TOKENS>
__device__ __forceinline__ void stage_products(const TileSums<TOKENS>& sums, TileShared<TOKENS>* s) {
  const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (u32 i = 0; i < sums.kBlocks; ++i) {
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const u32 token = sums.first_token() + 8 * j + 2 * t, row = sums.first_row() + 16 * i + g;
      s->y[token][row] = narrow(sums.d[i][j][0]);
      s->y[token + 1][row] = narrow(sums.d[i][j][1]);
      s->y[token][row + 8] = narrow(sums.d[i][j][2]);
      s->y[token + 1][row + 8] = narrow(sums.d[i][j][3]);
    }
  }
  __syncthreads();
}

// The same where of every 16 weight rows 8 are gates and 8 their ups: rounds silu(gate) up, as [token][output].
template <int TOKENS>
__device__ __forceinline__ void stage_swiglu(const TileSums<TOKENS>& sums, TileShared<TOKENS>* s) {
  const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
  for (u32 i = 0; i < sums.kBlocks; ++i) {
#pragma unroll
    for (u32 j = 0; j < 4; ++j) {
      const u32 token = sums.first_token() + 8 * j + 2 * t, output = sums.first_row() / 2 + 8 * i + g;
      const float(&d)[4] = sums.d[i][j];
      s->y[token][output] = narrow(swiglu(rounded(d[0]), rounded(d[2])));
      s->y[token + 1][output] = narrow(swiglu(rounded(d[1]), rounded(d[3])));
    }
  }
  __syncthreads();
}

// Calls `emit(token, column, v)` for each eight columns v of what was staged, neighbours by neighbouring threads.
template <int COLUMNS, int TOKENS, class Emit>
__device__ __forceinline__ void emit_staged(const TileShared<TOKENS>* s, Emit emit) {
  for (u32 i = threadIdx.x; i < TOKENS * COLUMNS / 8; i += kTileThreads) {
    const u32 token = i / (COLUMNS / 8), column = i % (COLUMNS / 8) * 8;
    emit(token, column, *reinterpret_cast<const Quad*>(&s->y[token][column]));
  }
}

// The weight row of tile row r where gate and up are interleaved by eights: outputs first.., a gate's block of 8 rows,
// then their ups.
__device__ __forceinline__ TileRow gate_up_row(const bf16* gate, const bf16* up, u32 first, u32 r, u32 f, u32 k) {
  const u32 output = first + r / 16 * 8 + r % 8;
  const bool here = output < f;
  return TileRow{(r % 16 < 8 ? gate : up) + (here ? size_t(output) * k : 0), here};
}
