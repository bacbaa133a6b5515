// Sampling: the token that a draw chooses from a row of logits, by the rules of src/backend/ops/sample.rs.
//
// logits [R, V] f32, stats [R, ceil(V/16)], draws [R]; one block a row. What it writes into `drawn` the next step's
// embedding reads, so no token passes by the host.
//
// V = 151,936: the statistics are 76 KB, the logits 608 KB, both in L2, of which one SM reads about 64 bytes a clock.
// Predicted on an H200 at 1.8 GHz:
//   opening the row: 76 KB from L2, once more from L1                                        2 us
//   a round of `select` over few strips: six barriers, two dependent loads, ten shuffles     1,200 clocks, 0.7 us
//   a `find`: the statistics from L1 in ten dependent rounds, then 640 logits                1.5 us
//   all logits at a temperature that is not 1: 9,500 clocks of reading                       5.5 us
// So greedy, and temperature 1 without cuts, 3.5 us; temperature 0.7 without cuts 9 us; top-k 20 and top-p 0.95: three
// rounds for the bound, two or three for each cut and for the draw, 12 us. One block a row: 64 rows take no longer.
#include "select.cuh"
#include "step.cuh"

namespace {

struct SampleArgs {
  const float* logits;  // [R, V]
  const float2* stats;  // [R, ceil(V/16)]
  const u32* rows;      // how many rows are in use; the others do nothing
  const Draw* draws;    // [R]
  int* drawn;           // [R]
  int* records;         // [R][id, log-prob, log-prob it was drawn with]
  u32 v;
  u32 unused;
};

constexpr float kColdest = 1e-5f;
constexpr float kHottest = 1e6f;

// A draw stands for the middle of its interval of 2^-24: a draw of 0 must not give the first id whatever its mass.
__device__ __forceinline__ u64 target_of(float u, u64 mass) {
  return u64((double(u) + 0.5 / 16777216.0) * double(mass));
}

// What a logit weighs in a selection: one where ids are counted, else its mass.
struct CountOrMass {
  bool counts;
  Mass mass;
  __device__ __forceinline__ u64 operator()(float x) const { return counts ? 1 : mass(x); }
};

// The nth of the ids that have this logit, and the mass that it was drawn among.
struct Choice {
  float value;
  u32 nth;
  u64 kept;
};

// Cuts to the likeliest, then draws from the likeliest down. What a cut keeps are all above a key and the first of those
// at it; how many is known by their mass alone, since the next target lies below that. `all` is the mass of all ids,
// needed where top_k cuts nothing.
__device__ __forceinline__ Choice draw_among_kept(const Row& row, const Mass& mass, Draw draw, u64 all,
                                                  float temperature, SelectScratch* s) {
  const u32 top_k = draw.top_k > 0 && draw.top_k < row.v ? draw.top_k : 0;
  const float top_p = max(draw.top_p, 0.0f);
  const u32 most = key_of(row.largest);
  u32 least;
  if (top_k > 0) {
    least = reached_by(row, top_k, s);
  } else {
    // Ids below (1 - top_p) / V cannot be needed, since all of them together have less than 1 - top_p. A tenth lower,
    // so that roundings cannot lose one.
    float share = 0.9f * (1.0f - top_p) * float(all) * 0x1p-40f / float(row.v);
    least = max(key_of(row.largest + temperature * logf(share)), kLowestKey);
  }
  const Listed strips = list_strips(row, least, s);

  Choice choice = {0.0f, 0, all};
  enum { kTopK, kTopP, kDraw };
  for (int stage = top_k > 0 ? kTopK : kTopP; stage <= kDraw; ++stage) {
    if (stage == kTopP && !(draw.top_p < 1.0f)) continue;
    u64 target;
    if (stage == kTopK) {
      target = top_k - 1;
    } else if (stage == kTopP) {
      u64 wanted = u64(ceil(double(top_p) * double(choice.kept)));
      target = wanted > 0 ? wanted - 1 : 0;
    } else {
      target = target_of(draw.u, choice.kept);
    }
    const Selected last = select(strips, CountOrMass{stage == kTopK, mass}, least, most, target, s);
    choice.value = value_of(last.key);
    const u64 each = mass(choice.value);
    if (stage == kTopK) {
      u64 above = 0;
      strips.visit(last.key, [&](float x) {
        u32 key = key_of(x);
        if (key > last.key && key <= most) above += mass(x);
      });
      choice.kept = row_total(above, s->row.sums) + (last.rest + 1) * each;
    } else {
      choice.nth = u32(last.rest / each);
      if (stage == kTopP) choice.kept = last.above + (u64(choice.nth) + 1) * each;
    }
    least = last.key;
  }
  return choice;
}

}  // namespace

SQUIRE_KERNEL(squire_sample, kRowThreads, 1, SampleArgs) {
  let_successor_begin();
  SelectScratch* s = shared<SelectScratch>();
  after_predecessor();
  if (blockIdx.x >= *a.rows) return;
  const Draw draw = a.draws[blockIdx.x];
  const Row row = open_row(a.logits, a.stats, a.v, blockIdx.x, &s->row);
  const float temperature = fminf(draw.temperature, kHottest);
  // A temperature that is NaN is cold too.
  const bool drawing = row.has_distribution() && draw.temperature >= kColdest;
  const bool by_count = draw.top_k > 0 && draw.top_k < a.v, by_mass = draw.top_p < 1.0f;

  u32 id = 0;
  Choice choice = {row.largest, 0, 0};
  bool known = row.largest == -INFINITY;  // any id will do
  if (drawing) {
    const Mass mass = {row.largest, 1.0f / temperature};
    if (!by_count) {
      const Pieces pieces = weigh(row, mass, &s->row);
      choice.kept = pieces.running.total;
      known = !by_mass;
      if (known) id = find(row, mass, pieces, target_of(draw.u, choice.kept), &s->row);
    }
    if (!known) choice = draw_among_kept(row, mass, draw, choice.kept, temperature, s);
  }
  if (!known) {
    const Equals equals = {choice.value};
    id = find(row, equals, weigh(row, equals, &s->row), choice.nth, &s->row);
  }
  if (threadIdx.x == 0) {
    const float x = row.x[id];
    const float logprob = row.logprob(x);
    float sampled = row.has_distribution() ? 0.0f : logprob;
    if (drawing) {
      double tempered = (double(x) - double(row.largest)) / double(temperature) - log(double(choice.kept) * 0x1p-40);
      sampled = by_count || by_mass || temperature != 1.0f ? float(tempered) : logprob;
    }
    a.drawn[blockIdx.x] = int(id);
    int* record = a.records + 3 * blockIdx.x;
    record[0] = int(id);
    record[1] = int(__float_as_uint(logprob));
    record[2] = int(__float_as_uint(sampled));
  }
}
