// The host shim's runtime: fibers, barriers, collectives, launches. One block at a time on the calling thread.
#include "shim.hpp"

#include <sys/mman.h>

#include <cstdio>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bridge.hpp"
#include "squire/src/backend/cuda/emulation.rs.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__x86_64__)
// Saves what a call must preserve, and goes on where `to` was left.
extern "C" void squire_shim_switch(void** from, void* to);
asm(R"(
.text
.globl squire_shim_switch
.type squire_shim_switch, @function
squire_shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size squire_shim_switch, .-squire_shim_switch
)");
#endif

namespace shim {

thread_local Place place;

namespace {

// ---- fibers

constexpr size_t kStackBytes = 128 << 10;

struct Context {
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

void switch_to(Context& from, Context& to) {
#if defined(__x86_64__)
  squire_shim_switch(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
}

void prepare(Context& c, unsigned char* stack, void (*entry)()) {
#if defined(__x86_64__)
  auto top = reinterpret_cast<uintptr_t>(stack + kStackBytes) & ~uintptr_t(15);
  auto* sp = reinterpret_cast<void**>(top);
  *--sp = nullptr;  // where entry would return to; it never does
  *--sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  c.stack_pointer = sp;
#else
  getcontext(&c.context);
  c.context.uc_stack.ss_sp = stack;
  c.context.uc_stack.ss_size = kStackBytes;
  c.context.uc_link = nullptr;
  makecontext(&c.context, entry, 0);
#endif
}

struct Stacks {
  std::vector<unsigned char*> all;
  unsigned char* at(size_t i) {
    while (all.size() <= i) {
      void* p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw std::runtime_error("the shim cannot have a stack");
      all.push_back(static_cast<unsigned char*>(p));
    }
    return all[i];
  }
  ~Stacks() {
    for (auto* p : all) munmap(p, kStackBytes);
  }
};

struct Copy {
  void* to;
  const void* from;
  int group;
};

enum class State { Ready, AtBarrier, InCollective, Done };

struct Fiber {
  Context context;
  State state = State::Ready;
  uint3 thread{};
  const char* file = nullptr;  // of the barrier it waits at
  int line = 0;
  std::vector<Copy> copies;
  int group = 0;
};

struct Warp {
  int arrived = 0;
  const char* what = nullptr;
  int line = 0;
  size_t bytes = 0;
  // Two sets: lanes may still read one while others deposit into the next.
  unsigned char deposits[2][32 * 64];
  int turn = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<uint32_t> ready;
  Context scheduler;
  uint32_t running = 0;
  uint32_t n_done = 0;
  uint32_t n_at_barrier = 0;
  const Kernel* kernel = nullptr;
  const void* args = nullptr;
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  uint64_t random = 0;
  std::string failure;
};

thread_local Block* block;
thread_local Stacks stacks;

uint64_t draw() {
  block->random ^= block->random << 13;
  block->random ^= block->random >> 7;
  block->random ^= block->random << 17;
  return block->random;
}

Fiber& self() { return block->fibers[block->running]; }

void leave() { switch_to(self().context, block->scheduler); }

void make_ready(uint32_t i) {
  block->fibers[i].state = State::Ready;
  block->ready.push_back(i);
}

void fiber_entry() {
  block->kernel->run(block->args);
  Fiber& f = self();
  if (!f.copies.empty()) fail("a thread ends with asynchronous copies that it never waited for");
  f.state = State::Done;
  ++block->n_done;
  leave();
}

std::string describe(const Block& b) {
  std::map<std::string, int> where;
  for (const Fiber& f : b.fibers) {
    if (f.state == State::AtBarrier) ++where["at the barrier of " + std::string(f.file) + ":" + std::to_string(f.line)];
    if (f.state == State::InCollective) ++where["in a warp operation of line " + std::to_string(f.line)];
    if (f.state == State::Done) ++where["at their end"];
  }
  std::string text;
  for (const auto& [place, n] : where) text += (text.empty() ? "" : ", ") + std::to_string(n) + " " + place;
  return text;
}

// ---- kernels

Kernel*& kernels() {
  static Kernel* first = nullptr;
  return first;
}

void run_block(Block& b, const Launch& launch, uint3 index) {
  std::memset(b.shared, 0xff, b.shared_bytes + kGuardBytes);
  const uint32_t n = launch.threads;
  b.fibers.clear();
  b.fibers.resize(n);
  b.warps.assign(n / 32, Warp());
  b.ready.clear();
  b.n_done = b.n_at_barrier = 0;
  for (uint32_t i = 0; i < n; ++i) {
    b.fibers[i].thread = {i, 0, 0};
    prepare(b.fibers[i].context, stacks.at(i), fiber_entry);
    b.ready.push_back(i);
  }
  place.block = index;
  while (b.n_done < n) {
    if (b.ready.empty()) {
      if (b.n_at_barrier + b.n_done == n && b.n_at_barrier > 0) {
        b.failure = b.n_done > 0 ? "threads ended before a barrier that others wait at: "
                                 : "a barrier is divergent: ";
      } else {
        b.failure = "the block is deadlocked: ";
      }
      b.failure += describe(b);
      return;
    }
    size_t pick = size_t(draw() % b.ready.size());
    b.running = b.ready[pick];
    b.ready[pick] = b.ready.back();
    b.ready.pop_back();
    place.thread = self().thread;
    switch_to(b.scheduler, self().context);
    if (!b.failure.empty()) return;
  }
  for (size_t i = 0; i < kGuardBytes; ++i) {
    if (b.shared[b.shared_bytes + i] != 0xff) {
      b.failure = "the block wrote behind its " + std::to_string(b.shared_bytes) + " bytes of shared memory";
      return;
    }
  }
}

}  // namespace

Kernel::Kernel(const char* name, uint32_t threads, size_t args_bytes, void (*run)(const void*))
    : name(name), threads(threads), args_bytes(args_bytes), run(run), next(kernels()) {
  kernels() = this;
}

void fail(const char* why) {
  block->failure = why;
  leave();
  __builtin_unreachable();
}

void sync_block(const char* file, int line) {
  Fiber& f = self();
  f.state = State::AtBarrier;
  f.file = file;
  f.line = line;
  if (++block->n_at_barrier == block->fibers.size()) {
    for (const Fiber& other : block->fibers) {
      if (other.line != line || std::strcmp(other.file, file) != 0) {
        block->failure = "a barrier is divergent: " + describe(*block);
        leave();
      }
    }
    block->n_at_barrier = 0;
    for (uint32_t i = 0; i < block->fibers.size(); ++i) make_ready(i);
  }
  leave();
}

const unsigned char* gather_warp(const char* what, const void* deposit, size_t bytes, int line) {
  Fiber& f = self();
  Warp& w = block->warps[block->running / 32];
  const uint32_t lane = block->running % 32;
  if (w.arrived == 0) {
    w.what = what;
    w.line = line;
    w.bytes = bytes;
  } else if (w.line != line || w.bytes != bytes || std::strcmp(w.what, what) != 0) {
    static thread_local std::string text;
    text = std::string("a warp is divergent: lanes at a ") + w.what + " of line " + std::to_string(w.line) +
           " and at a " + what + " of line " + std::to_string(line);
    fail(text.c_str());
  }
  unsigned char* all = w.deposits[w.turn];
  std::memcpy(all + lane * bytes, deposit, bytes);
  f.line = line;
  f.state = State::InCollective;
  if (++w.arrived == 32) {
    w.arrived = 0;
    w.turn ^= 1;
    const uint32_t first = block->running - lane;
    for (uint32_t i = first; i < first + 32; ++i) {
      if (i != block->running) make_ready(i);
    }
    f.state = State::Ready;
    return all;
  }
  leave();
  return all;
}

void mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1};
  const unsigned char* all = gather_warp("mma", mine, sizeof mine, 0);
  auto fragment = [&](int lane, int i) {
    uint32_t v;
    std::memcpy(&v, all + size_t(lane) * sizeof mine + size_t(i) * 4, 4);
    return v;
  };
  auto half = [](uint32_t pair, int i) {
    uint32_t bits = i ? pair & 0xffff0000u : pair << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  };
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int bottom = i / 2, column = 2 * t + i % 2;
    float sum = 0.0f;
    for (int k = 0; k < 16; ++k) {
      const int quad = (k % 8) / 2, late = k / 8;
      const float a = half(fragment(4 * g + quad, 2 * late + bottom), k % 2);
      const float b = half(fragment(4 * column + quad, 4 + late), k % 2);
      sum += a * b;
    }
    d[i] += sum;
  }
}

void copy_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    fail("an asynchronous copy is misaligned");
  }
  auto* p = static_cast<unsigned char*>(to);
  if (p < block->shared || p + 16 > block->shared + block->shared_bytes) {
    fail("an asynchronous copy goes outside shared memory");
  }
  std::memset(to, 0xff, 16);
  self().copies.push_back({to, from, self().group});
}

void close_copies() { ++self().group; }

void await_copies(int n) {
  Fiber& f = self();
  size_t kept = 0;
  for (const Copy& c : f.copies) {
    if (c.group >= f.group - n) {
      f.copies[kept++] = c;
    } else if (c.from) {
      std::memcpy(c.to, c.from, 16);
    } else {
      std::memset(c.to, 0, 16);
    }
  }
  f.copies.resize(kept);
}

void* shared(size_t bytes, size_t alignment) {
  if (bytes > block->shared_bytes) fail("a block uses more shared memory than its launch gave it");
  if (alignment > 128) fail("shared memory is aligned to 128 bytes at most");
  return block->shared;
}

void maybe_yield() {
  if (draw() % 4 == 0) {
    make_ready(block->running);
    leave();
  }
}

void touch(const void* p) {
  static thread_local volatile unsigned char sink;
  sink = *static_cast<const volatile unsigned char*>(p);
  (void)sink;
}

// ---- the bridge

namespace {

const Kernel* find(const std::string& name) {
  for (const Kernel* k = kernels(); k; k = k->next) {
    if (name == k->name) return k;
  }
  return nullptr;
}

}  // namespace

void launch(const Launch& launch, rust::Slice<const uint8_t> args) {
  const std::string name(launch.kernel.data(), launch.kernel.size());
  const Kernel* kernel = find(name);
  if (!kernel) throw std::runtime_error(name + ": no such kernel");
  auto refuse = [&](const std::string& why) { throw std::runtime_error(name + ": " + why); };
  if (launch.threads != kernel->threads) {
    refuse("launched with " + std::to_string(launch.threads) + " threads, made for " + std::to_string(kernel->threads));
  }
  if (args.size() != kernel->args_bytes) {
    refuse("given " + std::to_string(args.size()) + " bytes of arguments, it takes " +
           std::to_string(kernel->args_bytes));
  }
  if (launch.grid_y > 65535 || launch.grid_z > 65535 || launch.threads > 1024) refuse("the launch is too large");

  // A copy, as a device has: the caller's may change.
  std::vector<uint64_t> own((args.size() + 7) / 8);
  std::memcpy(own.data(), args.data(), args.size());
  std::vector<unsigned char> shared(launch.shared + kGuardBytes + 128);
  auto unaligned = reinterpret_cast<uintptr_t>(shared.data());

  Block b;
  b.kernel = kernel;
  b.args = own.data();
  b.shared = shared.data() + (128 - unaligned % 128) % 128;
  b.shared_bytes = launch.shared;
  b.random = launch.seed * 0x9e3779b97f4a7c15ull + 0x1234567ull;
  block = &b;
  place.block_extent = {launch.threads, 1, 1};
  place.grid_extent = {launch.grid_x, launch.grid_y, launch.grid_z};
  std::vector<uint32_t> order(size_t(launch.grid_x) * launch.grid_y * launch.grid_z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = uint32_t(i);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
  for (uint32_t i : order) {
    const uint3 index = {i % launch.grid_x, i / launch.grid_x % launch.grid_y, i / launch.grid_x / launch.grid_y};
    run_block(b, launch, index);
    if (!b.failure.empty()) {
      refuse("block (" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
             "): " + b.failure);
    }
  }
  block = nullptr;
}

bool has_kernel(rust::Str name) { return find(std::string(name.data(), name.size())) != nullptr; }

}  // namespace shim
