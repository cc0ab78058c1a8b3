// Blocks of stored arrays in the type of the arithmetic, on the CPU.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "step_rules.h"

namespace slimfast {
namespace {  // one copy per source file: its loops come in versions per processor

constexpr int64_t BLOCK = 1024;     // numbers that stay in the L1 cache while step and penalty work on them
constexpr int64_t GRAIN = 1 << 19;  // numbers per thread: for less, waking a second thread costs more than it brings

template <class To, class From>
SLIMFAST_SIMD void convert(To* __restrict to, const From* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(from[i]);
}

// Calls f with a null pointer of the stored type.
template <class F>
void with_type(Number type, F&& f) {
  switch (type) {
    case Number::F32: return f(static_cast<float*>(nullptr));
    case Number::F64: return f(static_cast<double*>(nullptr));
    case Number::BF16: return f(static_cast<torch::headeronly::BFloat16*>(nullptr));
    case Number::F16: return f(static_cast<torch::headeronly::Half*>(nullptr));
  }
}

template <class T>
constexpr Number OWN = std::is_same_v<T, double> ? Number::F64 : Number::F32;

// A block of a stored array in the arithmetic's type: the memory itself if it has that type, else a converted copy.
template <class T>
T* load(const void* stored, Number type, int64_t begin, int64_t n, T* spare) {
  if (type == OWN<T>) return static_cast<T*>(const_cast<void*>(stored)) + begin;
  with_type(type, [&](auto* as) { convert(spare, static_cast<decltype(as)>(const_cast<void*>(stored)) + begin, n); });
  return spare;
}

template <class T>
void store(void* stored, Number type, int64_t begin, int64_t n, const T* block) {
  if (type != OWN<T>)
    with_type(type, [&](auto* as) { convert(static_cast<decltype(as)>(stored) + begin, block, n); });
}

}  // namespace
}  // namespace slimfast
