// Log-probabilities and the likeliest ids of rows of logits [R, V] f32, one block a row, and the statistics of strips of
// 16 ids that both read (logits.cuh), for logits that came without.
#include "select.cuh"

namespace {

struct LogitStatsArgs {
  float2* stats;        // [R, ceil(V/16)]
  const float* logits;  // [R, V]
  u32 v;
  u32 unused;
};

struct LogprobsArgs {
  float* logprobs;      // [R]
  const float* logits;  // [R, V]
  const float2* stats;  // [R, ceil(V/16)]
  const int* ids;       // [R]
  u32 v;
  u32 unused;
};

struct TopKArgs {
  int* ids;             // [R, K]
  float* logprobs;      // [R, K]
  u32* counts;          // [R] how many of the K there are: ids without a logit above -inf are none
  const float* logits;  // [R, V]
  const float2* stats;  // [R, ceil(V/16)]
  u32 v;
  u32 k;                // 1..=1024
};

constexpr u32 kStatsThreads = 256;

// Sorts one number a thread, rising. `sorted` is free before; afterwards it holds them, after a barrier.
__device__ __forceinline__ void sort_block(u64 mine, u64* sorted) {
  const u32 i = threadIdx.x;
  sorted[i] = mine;
  for (u32 size = 2; size <= kRowThreads; size *= 2) {
    for (u32 step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      u32 other = i ^ step;
      if (other > i) {
        u64 low = sorted[i], high = sorted[other];
        if ((low > high) == ((i & size) == 0)) {
          sorted[i] = high;
          sorted[other] = low;
        }
      }
    }
  }
  __syncthreads();
}

}  // namespace

// A quad of lanes a strip; grid [ceil(strips / 64), R].
SQUIRE_KERNEL(squire_logit_stats, kStatsThreads, 4, LogitStatsArgs) {
  let_successor_begin();
  after_predecessor();
  const Row row = {a.logits + size_t(blockIdx.y) * a.v, nullptr, a.v, (a.v + kStrip - 1) / kStrip, 0.0f, 0.0f, 0.0f};
  const u32 strip = (blockIdx.x * kStatsThreads + threadIdx.x) / 4;
  const float4 x = row.quarter(strip, threadIdx.x % 4);
  float largest = fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w));
  largest = fmaxf(largest, -INFINITY);  // four NaN
  for (int step = 1; step < 4; step *= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  float sum = strip_term(x.x, largest) + strip_term(x.y, largest) + strip_term(x.z, largest) + strip_term(x.w, largest);
  for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 4 == 0 && strip < row.n_strips) {
    a.stats[size_t(blockIdx.y) * row.n_strips + strip] = make_float2(largest, sum);
  }
}

SQUIRE_KERNEL(squire_logprobs, kRowThreads, 1, LogprobsArgs) {
  let_successor_begin();
  RowScratch* s = shared<RowScratch>();
  after_predecessor();
  const Row row = open_row(a.logits, a.stats, a.v, blockIdx.x, s);
  if (threadIdx.x == 0) a.logprobs[blockIdx.x] = row.logprob(row.x[a.ids[blockIdx.x]]);
}

SQUIRE_KERNEL(squire_top_k, kRowThreads, 1, TopKArgs) {
  let_successor_begin();
  SelectScratch* s = shared<SelectScratch>();
  after_predecessor();
  const Row row = open_row(a.logits, a.stats, a.v, blockIdx.x, &s->row);
  if (row.largest == -INFINITY) {
    if (threadIdx.x == 0) a.counts[blockIdx.x] = 0;
    return;
  }
  const u32 most = key_of(row.largest), k = min(a.k, a.v);
  const u32 least = reached_by(row, k, s);
  const Listed strips = list_strips(row, least, s);
  const Selected last = select(strips, Ones{}, least, most, k - 1, s);
  const u32 count = u32(last.above + last.rest) + 1;
  // Of those that equal the last the lower ids are in.
  const Equals equals = {value_of(last.key)};
  const u32 last_id = find(row, equals, weigh(row, equals, &s->row), last.rest, &s->row);
  // The bins are done with: they hold what is kept, as numbers that rise with falling logit, then with rising id.
  u64* kept = reinterpret_cast<u64*>(s->low);
  u32* n_kept = &s->row.thread;
  __syncthreads();
  if (threadIdx.x == 0) *n_kept = 0;
  __syncthreads();
  for (u32 i = threadIdx.x / 4; i < strips.n; i += kQuads) {
    const u32 strip = strips.list[i], first = strip * kStrip + threadIdx.x % 4 * 4;
    const float4 x = row.quarter(strip, threadIdx.x % 4);
    auto keep = [&](float x, u32 id) {
      u32 key = key_of(x);
      if (key > most || key < last.key || (key == last.key && id > last_id)) return;
      kept[atomicAdd(n_kept, 1u)] = u64(~key) << 32 | id;
    };
    keep(x.x, first);
    keep(x.y, first + 1);
    keep(x.z, first + 2);
    keep(x.w, first + 3);
  }
  __syncthreads();
  const u64 mine = threadIdx.x < count ? kept[threadIdx.x] : ~u64(0);
  __syncthreads();
  sort_block(mine, kept);
  if (threadIdx.x < count) {
    const u64 best = kept[threadIdx.x];
    const size_t at = size_t(blockIdx.x) * a.k + threadIdx.x;
    const u32 id = u32(best);
    a.ids[at] = int(id);
    a.logprobs[at] = row.logprob(row.x[id]);
  }
  if (threadIdx.x == 0) a.counts[blockIdx.x] = count;
}
