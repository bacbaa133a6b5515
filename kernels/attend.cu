// Decode attention: QK-norm, RoPE, KV append, split attention and the sum over splits in one launch.
//
// q, out [N, H*D], k, v [N, G*D] bf16 as projected; every row is the newest position of its timeline. A block takes a
// split of 256 positions (Item) and kv head g, for up to 8 NT query columns: column c is head c % group of the item's
// row c / group. Scores stand transposed, S^T = K q^T and O^T = V^T P: keys and values are the sixteen-row operand and
// come as they lie in the pages, eight queries cost what one costs. A column depends on nothing but itself, so a row has
// the same bits alone and in any company. Rows share an item where their pages in the split are the same; a page that is
// written has one owner, so an item that holds a row's newest position holds that row alone.
//
// The newest key and value are patched into what was loaded instead of being read back: the pages are written for later
// steps, and nobody waits for them in this one.
#include "rope.cuh"
#include "step.cuh"

namespace {

struct Range {
  const unsigned char* at;
  u64 bytes;
};

struct AttendArgs {
  Step step;
  bf16* out;            // [N, H*D]
  const bf16* q;        // [N, H*D]
  const bf16* k;        // [N, G*D]
  const bf16* v;        // [N, G*D]
  const bf16* q_norm;   // [D]
  const bf16* k_norm;   // [D]
  const float* cosine;  // [positions, D/2]
  const float* sine;    // [positions, D/2]
  float* partial;       // [N, H, splits, D], not divided by the sums
  float2* weight;       // [N, H, splits] (largest score, sum of exponentials), in powers of two
  u32* arrived;         // [N, G] zeros
  Range ahead[2];       // weights that the next kernels read
  u32 ahead_lines;      // of 128 bytes that a thread of an idle block may ask for
  u32 layer;
  u32 group;            // H / G
  u32 splits;           // that the scratch has room for
  float scale;
  float eps;
};

constexpr u32 kThreads = 128;
constexpr u32 kPages = kSplit / kPage;
constexpr float kLog2E = 1.4426950408889634f;

template <int D, int NT>
struct AttendShared {
  Quad v[kPages * D * 4];      // [page][d][32 slots], rows of d in the order of `value_row`
  Quad q[NT * (D / 32) * 32];  // as lanes hold it: [8 columns][32 of D][lane]
  Quad p[NT * kPages * 32];    // as lanes hold it: [8 columns][page][lane]
  u32 key[D / 2];              // the newest
  float most[4][8 * NT];       // per warp
  float sum[4][8 * NT];
  u32 row[8 * NT];             // of the item
  u32 n_splits[8 * NT];        // of each row; in the end 0 where others are yet to come
};

// Lanes of eight read rows d and d + 2 of 64 bytes each, which would be the same banks; with every other pair of rows
// swapped they are 128 bytes of different banks.
__device__ __forceinline__ u32 value_row(u32 d) { return d ^ (d >> 1 & 1); }

// Blocks without an item bring the next kernels' weights into L2 while others stream KV.
__device__ __forceinline__ void look_ahead(const AttendArgs& a, u32 n_items) {
  const u64 n_idle = u64(gridDim.x - n_items) * gridDim.y;
  const u64 idle = u64(blockIdx.x - n_items) * gridDim.y + blockIdx.y;
  u64 i = (idle * kThreads + threadIdx.x) * 128;
  for (u32 line = 0; line < a.ahead_lines && i < a.ahead[0].bytes + a.ahead[1].bytes; ++line) {
    prefetch_l2(i < a.ahead[0].bytes ? a.ahead[0].at + i : a.ahead[1].at + (i - a.ahead[0].bytes));
    i += n_idle * kThreads * 128;
  }
}

// Two slots of a page: those before slot `newest` (counted from the first of the two) as they were, that one `value`,
// nothing behind, where the page may hold anything.
__device__ __forceinline__ u32 with_newest(u32 pair, int newest, bf16 value) {
  const u32 low = newest > 0 ? pair & 0xffffu : newest == 0 ? value.bits : 0u;
  const u32 high = newest > 1 ? pair & 0xffff0000u : newest == 1 ? u32(value.bits) << 16 : 0u;
  return low | high;
}

// out of one row and the group's heads: its splits in order, each weighed by the largest score so far. Eight splits are
// asked for at once, weights and values together, so that most rows wait for memory once.
template <int D>
__device__ __forceinline__ void combine(const AttendArgs& a, u32 row, u32 n_splits) {
  constexpr u32 kAtOnce = 8;
  const u32 n_heads = a.group * gridDim.y;
  for (u32 i = threadIdx.x; i < a.group * (D / 4); i += kThreads) {
    const size_t head = size_t(row) * n_heads + blockIdx.y * a.group + i / (D / 4);
    const u32 d = i % (D / 4) * 4;
    const float2* weight = a.weight + head * a.splits;
    const float* partial = a.partial + head * a.splits * D + d;
    float most = kLowest, sum = 0.0f, x = 0.0f, y = 0.0f, z = 0.0f, w = 0.0f;
#pragma unroll 1
    for (u32 first = 0; first < n_splits; first += kAtOnce) {
      float2 of[kAtOnce];
      float4 o[kAtOnce];
#pragma unroll
      for (u32 s = 0; s < kAtOnce; ++s) {
        const bool there = first + s < n_splits;
        of[s] = there ? weight[first + s] : make_float2(kLowest, 0.0f);
        o[s] = there ? *reinterpret_cast<const float4*>(partial + size_t(first + s) * D)
                     : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
      float high = most;
#pragma unroll
      for (u32 s = 0; s < kAtOnce; ++s) high = fmaxf(high, of[s].x);
      const float before = exp2f(most - high);
      sum *= before, x *= before, y *= before, z *= before, w *= before;
#pragma unroll
      for (u32 s = 0; s < kAtOnce; ++s) {
        const float by = exp2f(of[s].x - high);
        sum = fmaf(by, of[s].y, sum);
        x = fmaf(by, o[s].x, x);
        y = fmaf(by, o[s].y, y);
        z = fmaf(by, o[s].z, z);
        w = fmaf(by, o[s].w, w);
      }
      most = high;
    }
    const float by = 1.0f / sum;
    u32* out = reinterpret_cast<u32*>(a.out + head * D + d);
    out[0] = narrow_pair(x * by, y * by);
    out[1] = narrow_pair(z * by, w * by);
  }
}

template <int D, int NT>
__device__ __forceinline__ void attend(const AttendArgs& a) {
  constexpr u32 kColumns = 8 * NT;
  constexpr u32 kSteps = D / 32;
  constexpr u32 kTiles = D < 64 ? 1 : D / 64;  // of sixteen rows of O^T, a warp; D = 32 has work for two warps
  auto& sm = *shared<AttendShared<D, NT>>();
  const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, r = lane / 4, t = lane % 4;
  const u32 g = blockIdx.y, n_kv_heads = gridDim.y, n_heads = a.group * n_kv_heads;

  // The step was uploaded before its first kernel began, so its indices may be followed while the predecessor runs.
  let_successor_begin();
  const u32 n_items = load_constant(&a.step.counts->items);
  if (blockIdx.x >= n_items) {
    look_ahead(a, n_items);
    after_predecessor();
    return;
  }
  const Item item = load_item(a.step.items + blockIdx.x);
  const u32* rows = a.step.item_rows + item.first;
  const u32 n_columns = item.count * a.group;
  const u32 row0 = load_constant(rows), newest = load_constant(a.step.positions + row0);
  const u32 n_keys = min(newest - item.split * kSplit + 1, kSplit);
  const bool appends = newest - item.split * kSplit < kSplit;
  // What the end wants of the item's rows, so that it waits for no memory to know them.
  if (threadIdx.x < item.count) {
    const u32 row = load_constant(rows + threadIdx.x);
    sm.row[threadIdx.x] = row;
    sm.n_splits[threadIdx.x] = load_constant(a.step.positions + row) / kSplit + 1;
  }
  const u32 page_of_newest = appends ? (n_keys - 1) / kPage : kPages, slot_of_newest = newest % kPage;
  const u64* pages = a.step.pages + load_constant(a.step.row_pages + row0) + item.split * kPages;
  u64 page_at[kPages], own_page_at[2];
#pragma unroll
  for (u32 page = 0; page < kPages; ++page) page_at[page] = load_constant(pages + (page * kPage < n_keys ? page : 0));
#pragma unroll
  for (u32 i = 0; i < 2; ++i) {
    own_page_at[i] = (2 * warp + i) * kPage < n_keys ? load_constant(pages + 2 * warp + i) : 0;
  }
  const u64 newest_page_at = appends ? load_constant(pages + page_of_newest) : 0;
  auto keys = [&](u64 page) { return page_keys(page, a.layer, g, n_kv_heads, D); };
  auto values = [&](u64 page) { return page_values(page, a.layer, g, n_kv_heads, D); };
  // Bringing a page to L2 reads nothing yet, so it need not wait: 64 D bytes of keys and of values.
#pragma unroll
  for (u32 page = 0; page < kPages; ++page) {
    if (page * kPage >= n_keys || threadIdx.x >= D) continue;
    const u32 line = threadIdx.x % (D / 2) * 64;
    prefetch_l2((threadIdx.x < D / 2 ? keys(page_at[page]) : values(page_at[page])) + line);
  }

  // Eight lanes a head, four heads a warp: the queries' columns, then the new key as column `kColumns`.
  Head<D> head;
  auto prepare = [&](u32 column) -> const bf16* {
    const bool is_key = column == kColumns && appends;
    if (column >= n_columns && !is_key) {
      head.clear();
      return nullptr;
    }
    const u32 row = is_key ? row0 : load_constant(rows + column / a.group);
    const u32 position = load_constant(a.step.positions + row);
    head.load_weights(is_key ? a.k_norm : a.q_norm, a.cosine + size_t(position) * (D / 2),
                      a.sine + size_t(position) * (D / 2));
    return is_key ? a.k + (size_t(row) * n_kv_heads + g) * D
                  : a.q + (size_t(row) * n_heads + g * a.group + column % a.group) * D;
  };
  u32 column = 4 * warp + lane / 8;
  const bf16* projected = prepare(column);
  after_predecessor();
  if (projected) head.load(projected);
  // The compiler moves no load over this: the queries are asked for first, to be worked on while keys and values come.
  __syncwarp();

  // All of the split is asked for at once: keys to registers, row r of a tile of sixteen being keys 2 r and 2 r + 1 ...
  Quad top[4][kSteps], bottom[4][kSteps];
#pragma unroll
  for (u32 tile = 0; tile < 4; ++tile) {
    const bf16* from = keys(own_page_at[tile / 2]) + (tile % 2 * 16 + 2 * r) * D + 8 * t;
#pragma unroll
    for (u32 step = 0; step < kSteps; ++step) {
      const bool there = own_page_at[tile / 2] != 0;
      top[tile][step] = there ? load_quad(from + 32 * step) : Quad{0, 0, 0, 0};
      bottom[tile][step] = there ? load_quad(from + D + 32 * step) : Quad{0, 0, 0, 0};
    }
  }
  __syncwarp();
  // ... values to shared memory, where other warps want them than those that load ...
  const u32 d = threadIdx.x / 4;  // and 32, 64, 96 further, which `value_row` keeps
  Quad* const to_values = &sm.v[value_row(d) * 4 + t];
#pragma unroll
  for (u32 page = 0; page < kPages; ++page) {
    const bf16* from = values(page_at[page]) + threadIdx.x * 8;
    const bool wanted = page * kPage < n_keys && page != page_of_newest;
#pragma unroll
    for (u32 j = 0; j < kSteps; ++j) {
      copy_async_or_zero(to_values + page * D * 4 + j * kThreads, from + j * kThreads * 8, wanted);
    }
  }
  close_copies();
  // ... but those of the newest page by way of registers, to take their place when the copies are there.
  Quad newest_values[kSteps];
  bf16 value[kSteps];
  if (appends) {
#pragma unroll
    for (u32 j = 0; j < kSteps; ++j) {
      newest_values[j] = load_quad(values(newest_page_at) + (threadIdx.x + j * kThreads) * 8);
      value[j] = a.v[(size_t(row0) * n_kv_heads + g) * D + d + 32 * j];
    }
  }

  while (true) {
    head.norm_and_turn(a.eps);
    if (column < kColumns) {
      u32* to = reinterpret_cast<u32*>(sm.q);
#pragma unroll
      for (int j = 0; j < D / 16; ++j) {
        const u32 pair = head.pair(j), step = pair / 16, chunk = pair % 16 / 4;
        to[((column / 8 * kSteps + step) * 32 + column % 8 * 4 + chunk) * 4 + pair % 4] = head.x[j];
      }
    } else if (column == kColumns && appends) {
      u32* to = reinterpret_cast<u32*>(keys(newest_page_at) + slot_of_newest * D);
#pragma unroll
      for (int j = 0; j < D / 16; ++j) to[head.pair(j)] = sm.key[head.pair(j)] = head.x[j];
    }
    column += 16;
    if (column - lane / 8 > kColumns) break;
    projected = prepare(column);
    if (projected) head.load(projected);
  }
  __syncthreads();

  if (page_of_newest / 2 == warp) {
    const Quad* key = reinterpret_cast<const Quad*>(sm.key) + t;
#pragma unroll
    for (u32 tile = 0; tile < 4; ++tile) {
      const u32 slots = (page_of_newest % 2 * 32 + slot_of_newest) - 16 * tile;
#pragma unroll
      for (u32 step = 0; step < kSteps; ++step) {
        if (slots == 2 * r) top[tile][step] = key[4 * step];
        if (slots == 2 * r + 1) bottom[tile][step] = key[4 * step];
      }
    }
  }

  // Scores of the warp's 64 keys; s[.][tile] holds keys 16 tile + 2 r and + 1 of columns 2 t and 2 t + 1.
  float s[NT][4][4] = {};
#pragma unroll
  for (u32 step = 0; step < kSteps; ++step) {
#pragma unroll
    for (u32 nt = 0; nt < NT; ++nt) {
      const Quad q = sm.q[(nt * kSteps + step) * 32 + lane];
#pragma unroll
      for (u32 tile = 0; tile < 4; ++tile) mma32(s[nt][tile], top[tile][step], bottom[tile][step], q);
    }
  }
#pragma unroll
  for (u32 nt = 0; nt < NT; ++nt) {
    float even = kLowest, odd = kLowest;
#pragma unroll
    for (u32 tile = 0; tile < 4; ++tile) {
      const u32 key = 64 * warp + 16 * tile + 2 * r;
      float(&d)[4] = s[nt][tile];
      // A slot that nobody wrote may give NaN; it is replaced, not added to.
      if (key >= n_keys) d[0] = d[1] = kLowest;
      if (key + 1 >= n_keys) d[2] = d[3] = kLowest;
      even = fmaxf(even, fmaxf(d[0], d[2]));
      odd = fmaxf(odd, fmaxf(d[1], d[3]));
    }
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      even = fmaxf(even, __shfl_xor_sync(0xffffffffu, even, step));
      odd = fmaxf(odd, __shfl_xor_sync(0xffffffffu, odd, step));
    }
    if (r == 0) {
      sm.most[warp][8 * nt + 2 * t] = even;
      sm.most[warp][8 * nt + 2 * t + 1] = odd;
    }
  }
  __syncthreads();

  const float scale = a.scale * kLog2E;
  auto most = [&](u32 column) {
    const float all = fmaxf(fmaxf(sm.most[0][column], sm.most[1][column]),
                            fmaxf(sm.most[2][column], sm.most[3][column]));
    return all * scale;
  };
#pragma unroll
  for (u32 nt = 0; nt < NT; ++nt) {
#pragma unroll
    for (u32 odd = 0; odd < 2; ++odd) {
      const u32 column = 8 * nt + 2 * t + odd;
      const float high = most(column);
      u32* to = reinterpret_cast<u32*>(sm.p);
      float sum = 0.0f;
#pragma unroll
      for (u32 tile = 0; tile < 4; ++tile) {
        const u32 pair = narrow_pair(exp2f(fmaf(s[nt][tile][odd], scale, -high)),
                                     exp2f(fmaf(s[nt][tile][odd + 2], scale, -high)));
        // What is multiplied is what is summed.
        sum += widen_low(pair) + widen_high(pair);
        const u32 page = 2 * warp + tile / 2, chunk = tile % 2 * 2 + r / 4;
        to[((nt * kPages + page) * 32 + column % 8 * 4 + chunk) * 4 + r % 4] = pair;
      }
#pragma unroll
      for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (r == 0) sm.sum[warp][column] = sum;
    }
  }
  await_copies<0>();
  if (appends) {
    const int in_chunk = int(slot_of_newest) - int(8 * t);
#pragma unroll
    for (u32 j = 0; j < kSteps; ++j) {
      const Quad v = newest_values[j];
      to_values[page_of_newest * D * 4 + j * kThreads] =
          Quad{with_newest(v.x, in_chunk, value[j]), with_newest(v.y, in_chunk - 2, value[j]),
               with_newest(v.z, in_chunk - 4, value[j]), with_newest(v.w, in_chunk - 6, value[j])};
      bf16* to = values(newest_page_at) + (d + 32 * j) * kPage + slot_of_newest;
      if (in_chunk >= 0 && in_chunk < 8) *to = value[j];
    }
  }
  __syncthreads();

  auto sum = [&](u32 column) {
    return sm.sum[0][column] + sm.sum[1][column] + sm.sum[2][column] + sm.sum[3][column];
  };
  const bool alone = appends && item.split == 0;
  if (kTiles * 4 * 16 == D || warp < D / 16) {
    // Rows of O^T: lane row r of a tile is rows 2 r and 2 r + 1 of d. Even and odd pages are two chains of products.
    float o[kTiles][NT][2][4] = {};
#pragma unroll
    for (u32 page = 0; page < kPages; ++page) {
      if (page * kPage >= n_keys) break;
#pragma unroll
      for (u32 tile = 0; tile < kTiles; ++tile) {
        const u32 d = (warp * kTiles + tile) * 16 + 2 * r;
        const Quad top = sm.v[(page * D + value_row(d)) * 4 + t];
        const Quad bottom = sm.v[(page * D + value_row(d + 1)) * 4 + t];
#pragma unroll
        for (u32 nt = 0; nt < NT; ++nt) {
          mma32(o[tile][nt][page % 2], top, bottom, sm.p[(nt * kPages + page) * 32 + lane]);
        }
      }
    }
#pragma unroll
    for (u32 nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (u32 odd = 0; odd < 2; ++odd) {
        const u32 column = 8 * nt + 2 * t + odd;
        if (column >= n_columns) continue;
        const size_t head = size_t(sm.row[column / a.group]) * n_heads + g * a.group + column % a.group;
        const float by = 1.0f / sum(column);
#pragma unroll
        for (u32 tile = 0; tile < kTiles; ++tile) {
          const u32 d = (warp * kTiles + tile) * 16 + 2 * r;
          const float x = o[tile][nt][0][odd] + o[tile][nt][1][odd];
          const float y = o[tile][nt][0][odd + 2] + o[tile][nt][1][odd + 2];
          if (alone) {
            *reinterpret_cast<u32*>(a.out + head * D + d) = narrow_pair(x * by, y * by);
          } else {
            *reinterpret_cast<float2*>(a.partial + (head * a.splits + item.split) * D + d) = make_float2(x, y);
          }
        }
      }
    }
  }
  if (alone) return;

  if (threadIdx.x < n_columns) {
    const u32 column = threadIdx.x;
    const size_t head = size_t(sm.row[column / a.group]) * n_heads + g * a.group + column % a.group;
    a.weight[head * a.splits + item.split] = make_float2(most(column), sum(column));
  }
  // As last_to_arrive, for all rows of the item at once.
  __threadfence();
  __syncthreads();
  if (threadIdx.x < item.count) {
    u32* counter = a.arrived + size_t(sm.row[threadIdx.x]) * n_kv_heads + g;
    const bool last = atomicAdd(counter, 1u) == sm.n_splits[threadIdx.x] - 1;
    if (last) {
      *counter = 0;
    } else {
      sm.n_splits[threadIdx.x] = 0;
    }
  }
  __syncthreads();
  __threadfence();
  for (u32 i = 0; i < item.count; ++i) {
    if (sm.n_splits[i] > 0) combine<D>(a, sm.row[i], sm.n_splits[i]);
  }
}

}  // namespace

// The name says D and how many queries an item may have.
SQUIRE_KERNEL(squire_attend_d32_n8, kThreads, 2, AttendArgs) { attend<32, 1>(a); }
SQUIRE_KERNEL(squire_attend_d32_n16, kThreads, 2, AttendArgs) { attend<32, 2>(a); }
SQUIRE_KERNEL(squire_attend_d32_n32, kThreads, 2, AttendArgs) { attend<32, 4>(a); }
SQUIRE_KERNEL(squire_attend_d64_n8, kThreads, 2, AttendArgs) { attend<64, 1>(a); }
SQUIRE_KERNEL(squire_attend_d64_n16, kThreads, 2, AttendArgs) { attend<64, 2>(a); }
SQUIRE_KERNEL(squire_attend_d64_n32, kThreads, 2, AttendArgs) { attend<64, 4>(a); }
SQUIRE_KERNEL(squire_attend_d128_n8, kThreads, 2, AttendArgs) { attend<128, 1>(a); }
SQUIRE_KERNEL(squire_attend_d128_n16, kThreads, 2, AttendArgs) { attend<128, 2>(a); }
SQUIRE_KERNEL(squire_attend_d128_n32, kThreads, 2, AttendArgs) { attend<128, 4>(a); }
