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
// rounds for the bound, two or three for each cut and for the draw, 12 us; min-p alone, a list, a sum and the draw, 8 us;
// typical-p behind top-k 20 six rounds and a mean more, 19 us, and of a whole vocabulary, whose logits are read about eight
// times, 50 us. One block a row: 64 rows take no longer.
#include "cuts.cuh"

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

}  // namespace

SQUIRE_KERNEL(squire_sample, kRowThreads, 1, SampleArgs) {
  let_successor_begin();
  SelectScratch* s = shared<SelectScratch>();
  after_predecessor();
  if (blockIdx.x >= *a.rows) return;
  const Draw& draw = a.draws[blockIdx.x];
  const Row row = open_row(a.logits, a.stats, a.v, blockIdx.x, &s->row);
  const float temperature = fminf(draw.temperature, kHottest);
  // A temperature that is NaN is cold too.
  const bool drawing = row.has_distribution() && draw.temperature >= kColdest;
  const bool by_count = draw.top_k > 0 && draw.top_k < a.v, by_share = draw.min_p > 0.0f;
  const bool cut = by_count || draw.top_p < 1.0f || by_share || draw.typical_p < 1.0f;

  u32 id = 0;
  Choice choice = {row.largest, 0, 0};
  bool known = row.largest == -INFINITY;  // any id will do
  if (drawing) {
    const Mass mass = {row.largest, 1.0f / temperature};
    // What neither a number of ids nor a share of the likeliest bounds is measured by the mass of all.
    if (!by_count && (draw.top_p < 1.0f || !by_share)) {
      const Pieces pieces = weigh(row, mass, &s->row);
      choice.kept = pieces.running.total;
      known = !cut;
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
      sampled = cut || temperature != 1.0f ? float(tempered) : logprob;
    }
    a.drawn[blockIdx.x] = int(id);
    int* record = a.records + 3 * blockIdx.x;
    record[0] = int(id);
    record[1] = int(__float_as_uint(logprob));
    record[2] = int(__float_as_uint(sampled));
  }
}
