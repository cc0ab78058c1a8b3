// A GPU in plain C++, for tests: what the project's CUDA sources use of the language and of the runtime.
//
// A block's threads are fibers of one real thread; each runs until its next barrier. A block whose threads do not all reach
// the same barriers ends the process. With `backwards` the fibers take turns in the opposite order: results that depend on
// it show a missing barrier. `fail_after`: that many more allocations succeed.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __noinline__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __builtin_assume(condition) static_cast<void>(0)
#define __isGlobal(address) true
#define __ldcs(address) (*(address))

struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x, y = 1, z = 1;
  explicit dim3(unsigned blocks) : x(blocks) {}
};
inline dim3 threadIdx(0), blockIdx(0);

inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };

namespace emulation {

inline bool backwards = false, is_capturing = false;
inline int allocations = 0, launches = 0;

constexpr size_t STACK = 256 * 1024;

struct Fiber {
  ucontext_t context;
  bool is_done = false;
};
inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* running = nullptr;
inline std::function<void()> body;

inline void enter() {
  body();
  running->is_done = true;
  swapcontext(&running->context, &scheduler);
}

// All threads of a block from one barrier to the next; how many have ended.
inline size_t turn() {
  size_t done = 0;
  for (size_t i = 0; i < fibers.size(); ++i) {
    const size_t at = backwards ? fibers.size() - 1 - i : i;
    running = &fibers[at];
    threadIdx.x = static_cast<unsigned>(at);
    swapcontext(&scheduler, &running->context);
    done += running->is_done;
  }
  return done;
}

inline void run_block(char* stacks, unsigned threads) {
  fibers.assign(threads, {});
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = stacks + i * STACK;
    fibers[i].context.uc_stack.ss_size = STACK;
    makecontext(&fibers[i].context, enter, 0);
  }
  for (size_t done = 0; done != threads;) {
    done = turn();
    if (done != 0 && done != threads) {
      std::fprintf(stderr, "%zu of %u threads ended while others wait at a barrier\n", done, threads);
      std::abort();
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { swapcontext(&emulation::running->context, &emulation::scheduler); }

template <class Argument>
cudaError_t cudaLaunchKernel(void (*kernel)(Argument), dim3 grid, dim3 block, void** arguments, size_t, cudaStream_t) {
  static char* stacks = static_cast<char*>(mmap(nullptr, 1024 * emulation::STACK, PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  const auto argument = std::make_unique<Argument>(*static_cast<Argument*>(arguments[0]));
  emulation::body = [&] { kernel(*argument); };
  for (unsigned i = 0; i < grid.x; ++i) {
    blockIdx.x = emulation::backwards ? grid.x - 1 - i : i;
    emulation::run_block(stacks, block.x);
  }
  ++emulation::launches;
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t) { return "emulated error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = -1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  ++emulation::allocations;
  return (*memory = std::malloc(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulation::is_capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
