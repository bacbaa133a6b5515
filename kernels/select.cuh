// Finding a place in a row of logits without sorting it.
//
// Two questions: `find`, in the order of ids, and `select`, from the likeliest down. Each asks where a running sum of
// weights first exceeds a target. Weights are integers (a count, or a mass in units of 2^-40), so sums do not depend on
// the order in which threads add, and both answers are exact.
#pragma once

#include "logits.cuh"

constexpr u32 kBins = 2 * kRowThreads;
constexpr u32 kQuads = kRowThreads / 4;

// The ids that cuts have left (cuts.cuh).
struct Kept {
  u32 above, n_at;         // all above this key, and the first so many at it
  float mean;              // of largest - x
  u32 near;                // of these the ones that are nearer to it,
  u32 near_above, n_near;  // and of those that are as near all above this key, and the first so many at it
  u64 mass;
};

struct SelectScratch {
  RowScratch row;
  Kept kept;
  u32 low[kBins], high[kBins];  // halves of one 64-bit sum a bin
};

// ---- keys: the order of floats as the order of integers, -0 and +0 equal

__device__ __forceinline__ u32 key_of(float x) {
  u32 bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of(u32 key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Of the lowest finite float: -inf and the NaNs below it are never chosen.
constexpr u32 kLowestKey = 0x00800000u;

// ---- weights. `told` says whether the statistics of a strip alone tell its weight, and adds it if so.

// One each.
struct Ones {
  __device__ __forceinline__ u64 operator()(float) const { return 1; }
};

// One for each logit of this value.
struct Equals {
  float value;
  __device__ __forceinline__ u64 operator()(float x) const { return x == value; }
  __device__ __forceinline__ bool told(float2 strip, u64&) const { return strip.x < value; }
};

// e^((x - largest) / temperature) in units of 2^-40: a vocabulary of 2^23 ids cannot overflow a sum, and what rounds
// to nothing is below 2^-17 of one step of the draw.
struct Mass {
  float largest, warmth;
  static __device__ __forceinline__ u64 fixed(float mass) { return u64(mass * 1099511627776.0f + 0.5f); }
  __device__ __forceinline__ u64 operator()(float x) const { return fixed(expf((x - largest) * warmth)); }
  __device__ __forceinline__ bool told(float2 strip, u64& sum) const {
    // A strip whose largest rounds to nothing holds nothing, whatever its sum says: no id of it could be named.
    if ((*this)(strip.x) == 0) return true;
    if (warmth != 1.0f) return false;
    sum += fixed(strip.y * expf(strip.x - largest));
    return true;
  }
};

// ---- running sums over the block

struct Running {
  u64 start;  // sum of the values of earlier threads
  u64 total;  // of all
};

__device__ __forceinline__ Running running(u64 value, RowScratch* s) {
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u64 sum = value;
  for (u32 step = 1; step < 32; step *= 2) {
    u64 earlier = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += earlier;
  }
  if (lane == 31) s->sums[warp] = sum;
  __syncthreads();
  Running r = {sum - value, 0};
#pragma unroll 4
  for (u32 w = 0; w < kRowWarps; ++w) {
    u64 other = s->sums[w];
    r.total += other;
    if (w < warp) r.start += other;
  }
  __syncthreads();
  return r;
}

struct Place {
  u32 thread;
  u64 before;  // sum of the earlier ones
  u64 rest;    // of the target
};

// The thread at which the running sum exceeds `target`, or the last one that adds anything.
__device__ __forceinline__ Place place(const Running& r, u64 value, u64 target, RowScratch* s) {
  if (r.total > 0 && target >= r.total) target = r.total - 1;
  bool here = r.start <= target && target - r.start < value;
  if (here || (r.total == 0 && threadIdx.x == 0)) {
    s->thread = threadIdx.x;
    s->before = r.start;
    s->rest = target - r.start;
  }
  __syncthreads();
  return {s->thread, s->before, s->rest};
}

// ---- in the order of ids

// Strips that a quad of lanes owns when the row is cut into consecutive pieces: a multiple of four.
__device__ __forceinline__ u32 strips_per_piece(const Row& row) { return (row.n_strips + 4 * kQuads - 1) / (4 * kQuads) * 4; }

// This lane's part of the weight of its quad's piece. Each lane reads the statistics of one strip in four, then the
// quad together the strips that they do not tell: 64 contiguous bytes each.
template <class Weight>
__device__ __forceinline__ u64 piece_weight(const Row& row, const Weight& weight) {
  const u32 lane = threadIdx.x % 32, part = lane % 4, per = strips_per_piece(row);
  const u32 first = threadIdx.x / 4 * per;
  auto stats = [&](u32 at) {
    u32 strip = first + at + part;
    return at < per && strip < row.n_strips ? row.stats[strip] : make_float2(-INFINITY, 0.0f);
  };
  u64 sum = 0;
  float2 next = stats(0);
  for (u32 at = 0; at < per; at += 4) {
    float2 strip = next;
    next = stats(at + 4);  // on its way while this one is worked on
    u32 votes = __ballot_sync(0xffffffffu, !weight.told(strip, sum)) >> (lane & ~3u) & 15u;
    if (votes == 0) continue;
#pragma unroll
    for (u32 i = 0; i < 4; i += 2) {
      float4 x, y;
      if (votes >> i & 1) x = row.quarter(first + at + i, part);
      if (votes >> i & 2) y = row.quarter(first + at + i + 1, part);
      if (votes >> i & 1) sum += weight(x.x) + weight(x.y) + weight(x.z) + weight(x.w);
      if (votes >> i & 2) sum += weight(y.x) + weight(y.y) + weight(y.z) + weight(y.w);
    }
  }
  return sum;
}

// The row cut into pieces, one a quad, and weighed.
struct Pieces {
  u64 mine;  // the quad's, at its first lane; 0 elsewhere
  Running running;
};

template <class Weight>
__device__ __forceinline__ Pieces weigh(const Row& row, const Weight& weight, RowScratch* s) {
  u64 sum = piece_weight(row, weight);
  for (int step = 1; step < 4; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % 4 != 0) sum = 0;
  return {sum, running(sum, s)};
}

// The first id at which the running sum of weights exceeds `target`.
template <class Weight>
__device__ __forceinline__ u32 find(const Row& row, const Weight& weight, const Pieces& pieces, u64 target,
                                    RowScratch* s) {
  Place at = place(pieces.running, pieces.mine, target, s);
  u64 rest = at.rest;
  const u32 per = strips_per_piece(row) * kStrip;
  u32 first = at.thread / 4 * per;
  u32 end = min(first + per, row.v);
  while (end - first > 1) {
    u32 each = (end - first + kRowThreads - 1) / kRowThreads;
    u32 from = min(first + threadIdx.x * each, end), to = min(from + each, end);
    u64 sum = 0;
    for (u32 i = from; i < to; ++i) sum += weight(row.x[i]);
    at = place(running(sum, s), sum, rest, s);
    rest = at.rest;
    first += at.thread * each;
    end = min(first + each, end);
  }
  return first;
}

// ---- from the likeliest down

// What is selected from gives each of its logits to f(key, logit, how many of it): those at least that reach a key.

// Each thread's own largest logit.
struct OneEach {
  float x;
  template <class F>
  __device__ __forceinline__ void visit(u32, const F& f) const {
    f(key_of(x), x, 1);
  }
};

// The listed strips, of which those that do not reach the key `least` are passed over; all strips where there is no list.
struct Listed {
  const Row& row;
  const u32* list;
  u32 n;
  template <class F>
  __device__ __forceinline__ void visit(u32 least, const F& f) const {
    const u32 part = threadIdx.x % 4;
    // Two at a time: 32 KB on their way.
    for (u32 i = threadIdx.x / 4; i < n; i += 2 * kQuads) {
      bool wanted[2];
      float4 x[2];
#pragma unroll
      for (u32 j = 0; j < 2; ++j) {
        const u32 at = i + j * kQuads;
        u32 strip = at < n ? list ? list[at] : at : 0;
        wanted[j] = at < n && key_of(row.stats[strip].x) >= least;
        if (wanted[j]) x[j] = row.quarter(strip, part);
      }
#pragma unroll
      for (u32 j = 0; j < 2; ++j) {
        if (wanted[j]) {
          f(key_of(x[j].x), x[j].x, 1);
          f(key_of(x[j].y), x[j].y, 1);
          f(key_of(x[j].z), x[j].z, 1);
          f(key_of(x[j].w), x[j].w, 1);
        }
      }
    }
  }
};

// Lists the strips that reach the key `least`, in no order, behind the scratch.
__device__ __forceinline__ Listed list_strips(const Row& row, u32 least, SelectScratch* s) {
  u32* list = reinterpret_cast<u32*>(s + 1);
  if (threadIdx.x == 0) s->row.n_listed = 0;
  __syncthreads();
#pragma unroll 4
  for (u32 i = threadIdx.x; i < row.n_strips; i += kRowThreads) {
    if (key_of(row.stats[i].x) >= least) list[atomicAdd(&s->row.n_listed, 1u)] = i;
  }
  __syncthreads();
  return {row, list, s->row.n_listed};
}

// Adds to a sum of 64 bits by its halves, since shared memory adds 32 bits natively. The carry makes it exact.
__device__ __forceinline__ void add_wide(u32* low, u32* high, u64 v) {
  u32 old = atomicAdd(low, u32(v));
  u32 up = u32(v >> 32) + (old + u32(v) < old ? 1u : 0u);
  if (up != 0) atomicAdd(high, up);
}

// The key at which the running sum of weights, from the key `most` down to `least`, exceeds a target.
struct Selected {
  u32 key;
  u64 above;     // weight of greater keys
  u64 rest;      // of the target
  bool reached;  // else there is less in all, and the key is the last that adds anything
};

// By radix: the interval of keys is cut into 2048 bins, one of which is the next interval. Floats between the cut and
// the largest logit are mostly 2^22 to 2^24 keys apart, so two or three rounds do, and three in the worst case.
template <class Source, class Weight>
__device__ __forceinline__ Selected select(const Source& source, const Weight& weight, u32 least, u32 most, u64 target,
                                           SelectScratch* s) {
  Selected found = {most, 0, target, true};
  for (;;) {
    const u32 bits = 32 - u32(__clz(int(most - least)));
    const u32 shift = bits > 11 ? bits - 11 : 0;
    for (u32 i = threadIdx.x; i < kBins; i += kRowThreads) s->low[i] = s->high[i] = 0;
    __syncthreads();
    source.visit(least, [&](u32 key, float x, u32 n) {
      if (key < least || key > most) return;
      u32 bin = (most - key) >> shift;
      add_wide(&s->low[bin], &s->high[bin], n * weight(x));
    });
    __syncthreads();
    auto sum_of = [&](u32 bin) { return u64(s->high[bin]) << 32 | s->low[bin]; };
    u64 sum = sum_of(2 * threadIdx.x) + sum_of(2 * threadIdx.x + 1);
    Running r = running(sum, &s->row);
    found.reached = found.reached && found.rest < r.total;
    Place at = place(r, sum, found.rest, &s->row);
    u32 bin = 2 * at.thread;
    if (at.rest >= sum_of(bin)) {
      at.before += sum_of(bin);
      at.rest -= sum_of(bin);
      ++bin;
    }
    __syncthreads();  // the bins are cleared next, here or by the next selection
    found.above += at.before;
    found.rest = at.rest;
    most -= bin << shift;
    found.key = most;
    if (shift == 0) return found;
    least = max(least, most - min(most, (1u << shift) - 1));
  }
}

// A key that at least `k` logits reach, by the 1024 maxima of the threads: k of them reach it, so k logits do. About as
// many strips reach it as are needed, as long as k is well below 1024.
__device__ __forceinline__ u32 reached_by(const Row& row, u32 k, SelectScratch* s) {
  if (k > kRowThreads) return kLowestKey;
  Selected bound = select(OneEach{row.mine}, Ones{}, kLowestKey, key_of(row.largest), k - 1, s);
  return bound.reached ? bound.key : kLowestKey;
}
