// The order of every sum over k: K / 32 steps, cut into 8 slices that are summed apart from zero and added in order.
// It is the same for few rows (a warp a slice) and for many (slice after slice), so a row's result is too.
#pragma once

#include "common.cuh"

// The first of the `steps` steps that slice w of 8 adds up; slice 8 begins at the end.
__device__ __forceinline__ u32 slice_begin(u32 w, u32 steps) { return w * steps / 8; }
