// The product of up to 64 rows with weights: y^T in tiles of ROWS weight rows by 8 NT tokens. Order over k: order.cuh.
//
// A block is eight warps; warp i takes slice i of k. Each lane copies the 16 bytes that it will multiply itself into a
// ring of its own in shared memory, so nobody waits for anybody: a step's place is filled again as soon as the step is
// used, by a later one of this tile or of the block's next, and about 32 KB of weights a block are under way at all
// times. (A ring of registers would need a scoreboard a place; there are six, and ptxas gives all of them one.)
//
// Few tokens from global memory travel in the ring too, so that they cost one trip through L2 and not one a step. Tokens
// that the block has normalised stand in shared memory; more than eight are read a step ahead, most of them out of L1.
//
// The slices' sums meet in shared memory, where warp i adds up fragment i while the others go on with the next tile. The
// bits of an output depend on K, its weights and its token alone: not on ROWS, NT, the grid or the neighbours.
//
// What a product is for is its Op:
//   u32 pieces()                      pieces of 16 weight rows (8 where ROWS is 8)
//   const bf16* weights(piece, half)  row lane / 4 of the piece's upper or lower eight rows
//   const bf16* token(piece, i)       token i; any valid one beyond the last
//   Held hold(piece, token)           what `store` will want from memory, asked for early
//   store(piece, token, d, held)      d = {(g, token), (g, token + 1), (g + 8, token), (g + 8, token + 1)}, g = lane / 4
#pragma once

#include "norm.cuh"
#include "order.cuh"

constexpr u32 kSlices = 8;
constexpr u32 kRowsThreads = 32 * kSlices;
static_assert(kRowsThreads == kNormThreads, "a block normalises the tokens of its product");

struct Nothing {};

template <int ROWS, int NT, bool RINGED>
struct RowsShape {
  static constexpr int kPieces = ROWS < 16 ? 1 : ROWS / 16;
  static constexpr int kQuads = ROWS / 8;
  static constexpr int kSteps = 8 / kQuads;  // places of the ring
  // Few products a step do not hide the way out of shared memory, so the next step is read before they are taken.
  static constexpr bool kAhead = NT <= 2;
  static constexpr int kFragments = kPieces * NT;
  static constexpr int kEach = (kFragments + int(kSlices) - 1) / int(kSlices);
  // With two sets of sums a tile needs one barrier; large sets would cost too much shared memory.
  static constexpr int kSets = kFragments <= 4 ? 2 : 1;

  struct Shared {
    // A step's weights, then, where they travel along, its tokens.
    Quad ring[kSlices][kSteps][kQuads + (RINGED ? NT : 0)][32];
    float4 sums[kSets][kSlices][kFragments][32];
  };
};

template <int ROWS, int NT, bool RINGED, class Op>
struct RowsProduct : RowsShape<ROWS, NT, RINGED> {
  using Shape = RowsShape<ROWS, NT, RINGED>;
  using Shape::kAhead, Shape::kEach, Shape::kFragments, Shape::kPieces, Shape::kQuads, Shape::kSets, Shape::kSteps;

  struct Operands {
    Quad w[kQuads];
    Quad x[NT];
  };

  Op& op;
  typename Shape::Shared* shared;
  const u32 warp, lane, first, last, n_pieces, n_tiles;
  // The step that is copied next, and where its parts stand. `x` goes with the step that is read where not RINGED.
  u32 copied_tile = blockIdx.x, copied_step;
  const bf16* w[kQuads];
  const bf16* x[NT];

  // Sends the first weights on their way; before after_predecessor(). Where not RINGED, as kSteps groups of copies.
  __device__ __forceinline__ RowsProduct(Op& op, u32 k, typename Shape::Shared* shared)
      : op(op), shared(shared), warp(__shfl_sync(0xffffffffu, threadIdx.x / 32, 0)), lane(threadIdx.x % 32),
        first(slice_begin(warp, k / 32)), last(slice_begin(warp + 1, k / 32)), n_pieces(op.pieces()),
        n_tiles((n_pieces + kPieces - 1) / kPieces), copied_step(first) {
    if (first == last) copied_tile = n_tiles;
    aim_weights(blockIdx.x);
#pragma unroll
    for (u32 place = 0; place < kSteps; ++place) {
      if (!RINGED) {
        copy_next(place);
      } else if (first + place < last) {
        copy_weights(place);
      }
    }
  }

  __device__ __forceinline__ void aim_weights(u32 tile) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      // The last tile may have fewer pieces; it takes the last one again and drops the result.
      w[q] = op.weights(min(tile * kPieces + q / 2, n_pieces - 1), q % 2) + 32 * first + lane % 4 * 8;
    }
  }
  __device__ __forceinline__ void aim_tokens(u32 tile) {
#pragma unroll
    for (int j = 0; j < NT; ++j) x[j] = op.token(tile * kPieces, 8 * j + lane / 4) + 32 * first + lane % 4 * 8;
  }
  __device__ __forceinline__ void copy_weights(u32 place) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      copy_async(&shared->ring[warp][place][q][lane], w[q]);
      w[q] += 32;
    }
  }
  __device__ __forceinline__ void copy_tokens(u32 place) {
#pragma unroll
    for (int j = 0; j < NT; ++j) {
      copy_async_cached(&shared->ring[warp][place][kQuads + j][lane], x[j]);
      x[j] += 32;
    }
  }
  __device__ __forceinline__ void advance() {
    if (++copied_step < last) return;
    copied_step = first;
    copied_tile += gridDim.x;
    if (copied_tile >= n_tiles) return;
    aim_weights(copied_tile);
    if (RINGED) aim_tokens(copied_tile);
  }
  // One group of copies, empty behind the last tile.
  __device__ __forceinline__ void copy_next(u32 place) {
    if (copied_tile < n_tiles) {
      copy_weights(place);
      if (RINGED) copy_tokens(place);
      advance();
    }
    close_copies();
  }

  // Reads a step, once all but LATER of the groups have arrived.
  template <int LATER>
  __device__ __forceinline__ Operands read(u32 place) {
    Operands o;
    if (!RINGED) {
#pragma unroll
      for (int j = 0; j < NT; ++j) {
        o.x[j] = load_quad(x[j]);
        x[j] += 32;
      }
    }
    await_copies<LATER>();
    const auto& parts = shared->ring[warp][place];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) o.w[q] = parts[q][lane];
    if (RINGED) {
#pragma unroll
      for (int j = 0; j < NT; ++j) o.x[j] = parts[kQuads + j][lane];
    }
    return o;
  }

  // All tiles of this block.
  __device__ __forceinline__ void run() {
    if (RINGED) {
      aim_tokens(blockIdx.x);
#pragma unroll
      for (u32 place = 0; place < kSteps; ++place) {
        if (first + place < last) {
          copy_tokens(place);
          advance();
          close_copies();
        } else {
          copy_next(place);
        }
      }
    }
    u32 place = 0, set = 0;
    for (u32 tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
      if (!RINGED) aim_tokens(tile);
      typename Op::Held held[kEach];
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const u32 f = warp + e * kSlices, piece = tile * kPieces + f / NT;
        if (f < kFragments && piece < n_pieces) held[e] = op.hold(piece, f % NT * 8 + lane % 4 * 2);
      }

      float d[kPieces][NT][4] = {};
      Operands now, next;
      if (kAhead && first < last) next = read<kSteps - 1>(place);
#pragma unroll 1
      for (u32 step = first; step < last; ++step) {
        const u32 used = place;
        place = place + 1 == kSteps ? 0 : place + 1;
        if (!kAhead) {
          now = read<kSteps - 1>(used);
        } else {
          now = next;
          if (step + 1 < last) next = read<kSteps - 2>(place);
        }
#pragma unroll
        for (int p = 0; p < kPieces; ++p) {
#pragma unroll
          for (int j = 0; j < NT; ++j) {
            const Quad bottom = ROWS < 16 ? Quad{0, 0, 0, 0} : now.w[(2 * p + 1) % kQuads];
            mma32(d[p][j], now.w[2 * p], bottom, now.x[j]);
          }
        }
        copy_next(used);
      }

#pragma unroll
      for (int f = 0; f < kFragments; ++f) {
        const float(&v)[4] = d[f / NT][f % NT];
        shared->sums[set][warp][f][lane] = make_float4(v[0], v[1], v[2], v[3]);
      }
      __syncthreads();
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        const u32 f = warp + e * kSlices, piece = tile * kPieces + f / NT;
        if (f < kFragments && piece < n_pieces) {
          float sum[4] = {};
#pragma unroll
          for (u32 slice = 0; slice < kSlices; ++slice) {
            const float4 v = shared->sums[set][slice][f][lane];
            sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
          }
          op.store(piece, f % NT * 8 + lane % 4 * 2, sum, held[e]);
        }
      }
      if (kSets == 1) {
        __syncthreads();
      } else {
        set ^= 1;
      }
    }
    await_copies<0>();
  }
};

// The product of tokens in global memory, x [N, K].
template <int ROWS, int NT, class Op>
__device__ __forceinline__ void plain_product(Op& op, const bf16* x, u32 k) {
  constexpr bool kRinged = NT == 1;
  let_successor_begin();
  op.x = x;
  op.x_stride = k;
  RowsProduct<ROWS, NT, kRinged, Op> product(op, k, shared<typename RowsShape<ROWS, NT, kRinged>::Shared>());
  after_predecessor();
  product.run();
}

// The product of tokens in global memory with weights that the predecessor chose.
template <int ROWS, class Op>
__device__ __forceinline__ void chosen_product(Op& op, u32 k) {
  let_successor_begin();
  after_predecessor();
  RowsProduct<ROWS, 1, true, Op> product(op, k, shared<typename RowsShape<ROWS, 1, true>::Shared>());
  product.run();
}

template <int ROWS>
struct NormedShared {
  typename RowsShape<ROWS, 1, false>::Shared product;
  NormShared norm;
};

// The product of at most eight tokens that every block normalises by itself: rows `rows` of a stream [., C], or the
// first n. Returns the normed rows, which stay readable.
template <int ROWS, class Op>
__device__ __forceinline__ const bf16* normed_product(Op& op, const bf16* stream, const u32* rows, u32 n,
                                                      const bf16* weight, u32 c, float eps) {
  auto* space = shared<NormedShared<ROWS>>();
  let_successor_begin();
  norm_begin(&space->norm, weight, c);
  op.x = space->norm.rows(c);
  op.x_stride = norm_stride(c);
  RowsProduct<ROWS, 1, false, Op> product(op, c, &space->product);
  after_predecessor();
  norm_rows<RowsShape<ROWS, 1, false>::kSteps>(&space->norm, stream, rows, n, c, eps);
  __syncthreads();
  product.run();
  return op.x;
}
