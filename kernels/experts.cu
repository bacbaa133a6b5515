// The experts of few rows, output by output: a tile of one expert's rows for the one token that goes there. Every slot
// (row, rank) reads its expert by itself; what rows have in common comes out of L2.
//
// x [N, C] normed; experts and weights [N, k] of the router; expert e's gate, up [F, C] and down [C, F] lie e `stride`
// elements behind those of expert 0. Bits are those of the tiles for many rows (experts_tile.cu).
#include "rows.cuh"

namespace {

struct GateUpArgs {
  bf16* y;             // [N k, F]
  const bf16* x;       // [N, C]
  const u32* experts;  // [N, k]
  const bf16* gate;
  const bf16* up;
  u64 stride;
  u32 n_slots;  // N k
  u32 k;
  u32 f;
  u32 c;
};

struct DownArgs {
  bf16* stream;          // [N, C], added to
  const bf16* x;         // [N k, F]
  const u32* experts;    // [N, k]
  const float* weights;  // [N, k]
  const bf16* down;
  u64 stride;
  u32 k;
  u32 f;
  u32 c;
  u32 unused;
};

// Pieces of eight gate rows and their up rows, slot by slot.
struct GateUp {
  using Held = Nothing;

  const GateUpArgs& a;

  __device__ u32 pieces_of_slot() const { return a.f / 8; }
  __device__ u32 pieces() const { return a.n_slots * pieces_of_slot(); }
  __device__ const bf16* weights(u32 piece, u32 half) const {
    const u32 slot = piece / pieces_of_slot(), row = piece % pieces_of_slot() * 8 + threadIdx.x % 32 / 4;
    return (half ? a.up : a.gate) + a.experts[slot] * a.stride + size_t(row) * a.c;
  }
  __device__ const bf16* token(u32 piece, u32) const {
    return a.x + size_t(piece / pieces_of_slot() / a.k) * a.c;
  }
  __device__ Held hold(u32, u32) const { return {}; }
  __device__ void store(u32 piece, u32 token, const float (&d)[4], Held) const {
    const u32 slot = piece / pieces_of_slot(), row = piece % pieces_of_slot() * 8 + threadIdx.x % 32 / 4;
    if (token == 0) a.y[size_t(slot) * a.f + row] = narrow(silu(rounded(d[0])) * rounded(d[2]));
  }
};

// A block has eight outputs of one row. Its tiles are the row's experts by rank: piece / gridDim.x is the rank, the rest
// names row and outputs.
struct Down {
  struct Held {
    float weight;
    bf16 y;
  };

  const DownArgs& a;
  float sum = 0.0f;

  __device__ u32 pieces() const { return gridDim.x * a.k; }
  __device__ u32 slot(u32 piece) const { return blockIdx.x / (a.c / 8) * a.k + piece / gridDim.x; }
  __device__ u32 output() const { return blockIdx.x % (a.c / 8) * 8 + threadIdx.x % 32 / 4; }
  __device__ bf16* y() const { return a.stream + size_t(blockIdx.x / (a.c / 8)) * a.c + output(); }

  __device__ const bf16* weights(u32 piece, u32) const {
    return a.down + a.experts[slot(piece)] * a.stride + size_t(output()) * a.f;
  }
  __device__ const bf16* token(u32 piece, u32) const { return a.x + size_t(slot(piece)) * a.f; }
  __device__ Held hold(u32 piece, u32) const { return {a.weights[slot(piece)], *y()}; }
  __device__ void store(u32 piece, u32 token, const float (&d)[4], const Held& held) {
    sum = fmaf(held.weight, rounded(d[0]), sum);
    if (token == 0 && piece / gridDim.x == a.k - 1) *y() = narrow(widen(held.y) + rounded(sum));
  }
};

}  // namespace

SQUIRE_KERNEL(squire_experts_gate_up_rows8, kRowsThreads, 3, GateUpArgs) {
  GateUp op{a};
  chosen_product<16>(op, a.c);
}
SQUIRE_KERNEL(squire_experts_down_rows8, kRowsThreads, 3, DownArgs) {
  Down op{a};
  chosen_product<8>(op, a.f);
}
