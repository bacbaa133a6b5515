// What the Rust launch layer calls, through cxx.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rust/cxx.h"

namespace shim {

// Bytes behind shared memory and around device memory that nobody may write.
constexpr size_t kGuardBytes = 256;

struct Launch;

// Runs all blocks of a launch. Throws what the checker found.
void launch(const Launch& launch, rust::Slice<const uint8_t> args);

bool has_kernel(rust::Str name);

}  // namespace shim
