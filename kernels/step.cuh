// What a step's kernels know of its rows, in device memory (src/backend/cuda/step.rs writes it: a block by one upload a
// step, and what changed of the table of pages).
// All of it may differ between two replays of one graph; only the addresses here are fixed.
#pragma once

#include "common.cuh"

// Positions in a page of KV cache, and in a split of attention.
constexpr u32 kPage = 32;
constexpr u32 kSplit = 256;

// One piece of decode attention: positions [256 split, 256 split + 256) for rows that hold the same pages there.
struct Item {
  u32 split;
  u32 first;  // rows[first .. first + count] are the rows
  u32 count;
  u32 unused;
};

// One piece of prefill attention: consecutive rows of one timeline.
struct Tile {
  u32 row;       // first row of the batch
  u32 count;     // rows
  u32 position;  // of the first row
  u32 pages;     // index in `pages` of the timeline's first page
};

// How a row's next token is drawn.
struct Draw {
  float u;            // in [0, 1), the middle of its interval of 2^-24 is meant
  float temperature;  // below 1e-5: the likeliest
  float top_p;        // 1: all
  u32 top_k;          // 0: all
  float min_p;        // 0: all
  float typical_p;    // 1: all
};

struct Counts {
  u32 rows;   // rows in use; the launch may have more, which do nothing that shows
  u32 items;
  u32 tiles;
  u32 unused;
};

struct Step {
  const Counts* counts;
  const int* ids;         // [N] a token, or -1 - j: what draw j of the last step chose
  const u32* positions;   // [N]
  const u32* row_pages;   // [N] index in `pages` of the row's timeline's first page
  const u64* pages;       // addresses of pages; page p of a timeline holds positions [32 p, 32 p + 32)
  const Item* items;      // decode
  const u32* item_rows;   // decode
  const Tile* tiles;      // prefill
  const Draw* draws;      // [N]
};

// An address out of memory could be one of any kind of memory; the compiler must be told that pages are global.
__device__ __forceinline__ bf16* page_elements(u64 page) {
#ifdef SQUIRE_SHIM
  return reinterpret_cast<bf16*>(page);
#else
  return static_cast<bf16*>(__cvta_global_to_generic(page));
#endif
}

// A step is uploaded before its first kernel begins: kernels may read it before after_predecessor().
__device__ __forceinline__ Item load_item(const Item* p) {
  return {load_constant(&p->split), load_constant(&p->first), load_constant(&p->count), 0};
}
__device__ __forceinline__ Tile load_tile(const Tile* p) {
  return {load_constant(&p->row), load_constant(&p->count), load_constant(&p->position), load_constant(&p->pages)};
}

// A page holds all layers: [L][keys [G, 32, D], values [G, D, 32]], bf16. Values stand transposed, so that both products
// of attention read 16 contiguous bytes a lane in the form of mma32.
__device__ __forceinline__ bf16* page_keys(u64 page, u32 layer, u32 g, u32 n_kv_heads, u32 d) {
  return page_elements(page) + (size_t(layer) * 2 * n_kv_heads + g) * kPage * d;
}
__device__ __forceinline__ bf16* page_values(u64 page, u32 layer, u32 g, u32 n_kv_heads, u32 d) {
  return page_elements(page) + (size_t(layer) * 2 * n_kv_heads + n_kv_heads + g) * kPage * d;
}
