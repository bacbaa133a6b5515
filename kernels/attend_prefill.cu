// Prefill attention: the new keys and values into the pages, then causal attention of tiles of rows, FA2 style.
//
// q, out [N, H*D], k, v [N, G*D] bf16 as projected. A tile is rows of one timeline; with the heads that share keys it is
// up to 64 queries, query m being head m % group of row m / group, sixteen a warp. Queries are the sixteen-row operand
// and stay in registers; pages of keys and values pass through shared memory, the next one on its way while one is
// used. Rows of a tile see what their own position allows, so only a tile's last pages are masked.
#include "rope.cuh"
#include "step.cuh"

namespace {

struct AppendArgs {
  Step step;
  const bf16* k;        // [N, G*D]
  const bf16* v;        // [N, G*D]
  const bf16* k_norm;   // [D]
  const float* cosine;  // [positions, D/2]
  const float* sine;    // [positions, D/2]
  u32 layer;
  float eps;
};

struct PrefillArgs {
  Step step;
  bf16* out;            // [N, H*D]
  const bf16* q;        // [N, H*D]
  const bf16* q_norm;   // [D]
  const float* cosine;  // [positions, D/2]
  const float* sine;    // [positions, D/2]
  u32 layer;
  u32 group;            // H / G
  float scale;
  float eps;
};

constexpr u32 kThreads = 128;
constexpr u32 kQueries = 64;
constexpr float kLog2E = 1.4426950408889634f;

// ---- append

// Values of a tile as projected. Lanes write rows and read columns; two more elements keep both off the same banks.
template <int D>
struct AppendShared {
  bf16 v[kQueries][D + 2];
};

// A block takes a tile and a kv head. Keys go to their rows by eight lanes each; values are turned by way of shared
// memory, so that sixteen bytes of a row of d leave at once.
template <int D>
__device__ __forceinline__ void append(const AppendArgs& a) {
  auto& sm = *shared<AppendShared<D>>();
  const u32 g = blockIdx.y, n_kv_heads = gridDim.y;
  let_successor_begin();
  const Tile tile = load_tile(a.step.tiles + blockIdx.x);
  const u64* pages = a.step.pages + tile.pages;
  after_predecessor();
  for (u32 first = 4 * (threadIdx.x / 32); first < tile.count; first += kThreads / 8) {
    const u32 row = first + threadIdx.x % 32 / 8, position = tile.position + row;
    Head<D> head;
    if (row < tile.count) {
      head.load_weights(a.k_norm, a.cosine + size_t(position) * (D / 2), a.sine + size_t(position) * (D / 2));
      head.load(a.k + (size_t(tile.row + row) * n_kv_heads + g) * D);
    } else {
      head.clear();
    }
    head.norm_and_turn(a.eps);
    if (row < tile.count) {
      bf16* key = page_keys(pages[position / kPage], a.layer, g, n_kv_heads, D) + position % kPage * D;
#pragma unroll
      for (int j = 0; j < D / 16; ++j) reinterpret_cast<u32*>(key)[head.pair(j)] = head.x[j];
    }
  }
  for (u32 i = threadIdx.x; i < tile.count * (D / 2); i += kThreads) {
    const u32 row = i / (D / 2), pair = i % (D / 2);
    const bf16* from = a.v + (size_t(tile.row + row) * n_kv_heads + g) * D;
    *reinterpret_cast<u32*>(&sm.v[row][2 * pair]) = reinterpret_cast<const u32*>(from)[pair];
  }
  __syncthreads();
  // Eight slots from `start` on; the first and the last eight may be somebody else's in part.
  const u32 end = tile.position + tile.count;
  const u32 n_chunks = (end + 7) / 8 - tile.position / 8;
  for (u32 i = threadIdx.x; i < n_chunks * D; i += kThreads) {
    const u32 d = i % D, start = (tile.position / 8 + i / D) * 8;
    bf16* to = page_values(pages[start / kPage], a.layer, g, n_kv_heads, D) + d * kPage + start % kPage;
    if (start >= tile.position && start + 8 <= end) {
      const u32 row = start - tile.position;
      auto two = [&](u32 at) { return u32(sm.v[row + at][d].bits) | u32(sm.v[row + at + 1][d].bits) << 16; };
      *reinterpret_cast<Quad*>(to) = Quad{two(0), two(2), two(4), two(6)};
    } else {
      for (u32 position = max(start, tile.position); position < min(start + 8, end); ++position) {
        to[position - start] = sm.v[position - tile.position][d];
      }
    }
  }
}

// ---- attention

// Two pages: keys, rows of D in the order of `key_chunk`; values, rows of 32 slots as they lie.
template <int D>
struct PrefillShared {
  struct {
    Quad keys[kPage * D / 8];
    Quad values[D * kPage / 8];
  } page[2];
};

// Column c of tile j of eight: with it lane t has of tiles 0 to 3 the columns 8 t to 8 t + 7 in order. For scores that is
// what mma32 wants of the exponentials as its sixteen-row operand, for outputs sixteen bytes that are stored at once.
__device__ __forceinline__ u32 spread(u32 j, u32 c) { return c / 2 * 8 + 2 * j + c % 2; }

// Where sixteen bytes of a key stand. Eight lanes read 64 bytes of two rows that follow each other, 2 D bytes apart; for
// D of 64 and more that is the same banks, so every other row has its halves of 128 bytes swapped. (Rows of 64 bytes
// are different banks as they are: so are values, and keys where D is 32.)
template <int D>
__device__ __forceinline__ u32 key_chunk(u32 row, u32 chunk) {
  return row * (D / 8) + (D == 32 ? chunk : chunk ^ row % 2 * 4);
}

// The slots of two that are below `end` (counted from the first of the two), nothing behind.
__device__ __forceinline__ u32 below(u32 pair, int end) {
  return end >= 2 ? pair : end == 1 ? pair & 0xffffu : 0u;
}

template <int D>
__device__ __forceinline__ void prefill(const PrefillArgs& a) {
  constexpr u32 kSteps = D / 32;
  auto& sm = *shared<PrefillShared<D>>();
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const u32 g = blockIdx.y, n_kv_heads = gridDim.y, n_heads = a.group * n_kv_heads;
  let_successor_begin();
  // Long tiles first: the last to run should be short.
  const Tile tile = load_tile(a.step.tiles + (gridDim.x - 1 - blockIdx.x));
  const u64* pages = a.step.pages + tile.pages;
  const u32 n_queries = tile.count * a.group, last = tile.position + tile.count - 1, n_pages = last / kPage + 1;
  after_predecessor();

  auto fetch = [&](u32 page) {
    if (page < n_pages) {
      auto& to = sm.page[page % 2];
      const bf16* keys = page_keys(pages[page], a.layer, g, n_kv_heads, D) + threadIdx.x * 8;
      const bf16* values = page_values(pages[page], a.layer, g, n_kv_heads, D) + threadIdx.x * 8;
#pragma unroll
      for (u32 j = 0; j < kSteps; ++j) {
        const u32 i = threadIdx.x + j * kThreads;
        copy_async(&to.keys[key_chunk<D>(i / (D / 8), i % (D / 8))], keys + j * kThreads * 8);
        copy_async(&to.values[i], values + j * kThreads * 8);
      }
    }
    close_copies();
  };
  fetch(0);

  // A warp's sixteen queries, eight lanes each, by way of the second page's room: [warp][step][eight rows][lane].
  static_assert(sizeof(sm.page[1]) == kQueries * D * sizeof(bf16), "the queries fill a page's room");
  Quad* const staged = &sm.page[1].keys[0] + warp * kSteps * 64;
#pragma unroll 1
  for (u32 pass = 0; pass < 4; ++pass) {
    const u32 i = 4 * pass + lane / 8, query = 16 * warp + i;
    Head<D> head;
    if (query < n_queries) {
      const u32 row = query / a.group;
      const size_t position = tile.position + row;
      head.load_weights(a.q_norm, a.cosine + position * (D / 2), a.sine + position * (D / 2));
      head.load(a.q + (size_t(tile.row + row) * n_heads + g * a.group + query % a.group) * D);
    } else {
      head.clear();
    }
    head.norm_and_turn(a.eps);
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      const u32 pair = head.pair(j), step = pair / 16, chunk = pair % 16 / 4;
      reinterpret_cast<u32*>(staged)[((step * 2 + i / 8) * 32 + i % 8 * 4 + chunk) * 4 + pair % 4] = head.x[j];
    }
  }
  __syncwarp();
  Quad top[kSteps], bottom[kSteps];
#pragma unroll
  for (u32 step = 0; step < kSteps; ++step) {
    top[step] = staged[step * 64 + lane];
    bottom[step] = staged[step * 64 + 32 + lane];
  }

  // Rows r and r + 8 of the warp: their positions, largest score and sum so far (the sum of this lane's keys).
  u32 position[2];
  float most[2] = {kLowest, kLowest}, sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    position[half] = tile.position + min((16 * warp + 8 * half + r) / a.group, tile.count - 1);
  }
  float o[kSteps][4][4] = {};
  const float scale = a.scale * kLog2E;

  for (u32 page = 0; page < n_pages; ++page) {
    auto& here = sm.page[page % 2];
    await_copies<0>();
    if (page == n_pages - 1) {
      // Behind the tile a slot may hold anything, and zero times it would still be that. This thread's copies were all
      // of slots 8 t to 8 t + 7.
      const int end = int(last % kPage) + 1 - int(8 * t);
      if (end < 8) {
#pragma unroll
        for (u32 j = 0; j < kSteps; ++j) {
          Quad& v = here.values[threadIdx.x + j * kThreads];
          v = Quad{below(v.x, end), below(v.y, end - 2), below(v.z, end - 4), below(v.w, end - 6)};
        }
      }
    }
    // The page is there for all, and nobody needs the room of the last one any more.
    __syncthreads();
    fetch(page + 1);

    float s[4][4] = {};
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        mma32(s[j], top[step], bottom[step], here.keys[key_chunk<D>(spread(j, r), 4 * step + t)]);
      }
    }
    if (page * kPage + kPage - 1 > tile.position) {
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
          // Replaced, not added to: what nobody wrote may give NaN.
          if (page * kPage + 8 * t + 2 * j + i % 2 > position[i / 2]) s[j][i] = kLowest;
        }
      }
    }
    float by[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      float high = kLowest;
#pragma unroll
      for (u32 j = 0; j < 4; ++j) high = fmaxf(high, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 1));
      high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, 2));
      high = fmaxf(most[half], high * scale);
      by[half] = exp2f(most[half] - high);
      most[half] = high;
    }
    Quad p[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      auto two = [&](u32 j) {
        const u32 pair = narrow_pair(exp2f(fmaf(s[j][2 * half], scale, -most[half])),
                                     exp2f(fmaf(s[j][2 * half + 1], scale, -most[half])));
        // What is multiplied is what is summed.
        sum[half] += widen_low(pair) + widen_high(pair);
        return pair;
      };
      sum[half] *= by[half];
      p[half].x = two(0);
      p[half].y = two(1);
      p[half].z = two(2);
      p[half].w = two(3);
    }
    // Mostly no row of the warp has found a larger score, and times one is nothing.
    if (__any_sync(0xffffffffu, by[0] != 1.0f || by[1] != 1.0f)) {
#pragma unroll
      for (u32 i = 0; i < kSteps * 16; ++i) o[i / 16][i / 4 % 4][i % 4] *= by[i % 4 / 2];
    }
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
#pragma unroll
      for (u32 j = 0; j < 4; ++j) mma32(o[step][j], p[0], p[1], here.values[(32 * step + spread(j, r)) * 4 + t]);
    }
  }

#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
    const float by = 1.0f / sum[half];
    const u32 query = 16 * warp + 8 * half + r;
    if (query >= n_queries) continue;
    const size_t row = tile.row + query / a.group;
    bf16* out = a.out + (row * n_heads + g * a.group + query % a.group) * D + 8 * t;
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
      auto two = [&](u32 j) { return narrow_pair(o[step][j][2 * half] * by, o[step][j][2 * half + 1] * by); };
      *reinterpret_cast<Quad*>(out + 32 * step) = Quad{two(0), two(1), two(2), two(3)};
    }
  }
}

}  // namespace

SQUIRE_KERNEL(squire_append_d32, kThreads, 4, AppendArgs) { append<32>(a); }
SQUIRE_KERNEL(squire_append_d64, kThreads, 4, AppendArgs) { append<64>(a); }
SQUIRE_KERNEL(squire_append_d128, kThreads, 4, AppendArgs) { append<128>(a); }
SQUIRE_KERNEL(squire_attend_prefill_d32, kThreads, 4, PrefillArgs) { prefill<32>(a); }
SQUIRE_KERNEL(squire_attend_prefill_d64, kThreads, 4, PrefillArgs) { prefill<64>(a); }
SQUIRE_KERNEL(squire_attend_prefill_d128, kThreads, 2, PrefillArgs) { prefill<128>(a); }
