// Embedding: stream[i] = table[ids[i]].
//
// stream [N, C] bf16, table [V, C] bf16. One block a row. An id below 0 names the token that an earlier step drew:
// -1 - j is drawn[j], so a step can be launched before the host knows what the last one chose.
#include "common.cuh"

namespace {

struct EmbeddingArgs {
  bf16* stream;        // [N, C]
  const bf16* table;   // [V, C]
  const int* ids;      // [N]
  const int* drawn;    // what earlier steps drew
  u32 c;
  u32 v;
};

constexpr u32 kThreads = 128;

}  // namespace

SQUIRE_KERNEL(squire_embedding, kThreads, 8, EmbeddingArgs) {
  let_successor_begin();
  after_predecessor();
  int id = a.ids[blockIdx.x];
  if (id < 0) id = a.drawn[-1 - id];
  // A padded row, and one that follows a failed draw, has no id to look up; any row of the table will do.
  if (u32(id) >= a.v) id = 0;
  const bf16* from = a.table + size_t(id) * a.c;
  bf16* to = a.stream + size_t(blockIdx.x) * a.c;
  for (u32 i = threadIdx.x * 8; i < a.c; i += kThreads * 8) {
    *reinterpret_cast<Quad*>(to + i) = load_weights(from + i);
  }
}
