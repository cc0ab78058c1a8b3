// Loops over blocks of numbers of which a step is made, on the CPU.
#pragma once

#include <algorithm>
#include <limits>

#include "prox_sgd.h"

namespace slimfast {
namespace {

constexpr int64_t LINE = 64, AHEAD = 512;  // bytes: a cache line; what is asked for while the numbers before it are worked on

// Processors prefetch by themselves, but not across pages, and not where a tensor begins.
template <class T>
inline void prefetch(const T* p, const T* g, const T* m) {
  __builtin_prefetch(p, 1);
  __builtin_prefetch(g);
  __builtin_prefetch(m, 1);
}

// L0 and L1 in the step's own arithmetic: what is kept is decided exactly, and less a shift in two parts it is right to
// one unit in the last place.
template <class T>
struct Threshold {
  T threshold, shift, shift_lo;

  explicit Threshold(const Prox& p)
      : threshold(static_cast<T>(p.threshold)), shift(static_cast<T>(p.shift)),
        shift_lo(static_cast<T>((p.shift - static_cast<double>(shift)) + p.shift_lo)) {
    if (static_cast<double>(threshold) > p.threshold) threshold = std::nextafter(threshold, T(0));
  }

  inline T operator()(T x) const {
    const T z = std::fabs(x), left = (z - shift) - shift_lo;
    const T u = (z > threshold) & (left > 0) ? left : 0;
    return z < std::numeric_limits<T>::infinity() ? std::copysign(u, x) + 0 : x;  // -0 becomes +0
  }
};

struct Nothing {
  template <class T>
  inline T operator()(T x) const {
    return x;
  }
};

template <class T, bool HAS_MOMENTUM, bool HAS_SLOPE, class After>
inline void step_loop(T* __restrict p, const T* __restrict g, const T* __restrict slope, T* __restrict m, int64_t n,
                      const SgdStep<T> s, const After after) {
  auto step_one = [&](int64_t i) {
    T d = s.direction(p[i], g[i]);
    if constexpr (HAS_SLOPE) d += slope[i];
    return s.template advance<HAS_MOMENTUM>(p[i], d, m + i);
  };
  constexpr int64_t WIDTH = LINE / sizeof(T), DISTANCE = AHEAD / sizeof(T);
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) {
    prefetch(p + i + DISTANCE, g + i + DISTANCE, HAS_MOMENTUM ? m + i + DISTANCE : p);
    if constexpr (std::is_same_v<After, Nothing>) {
      for (int64_t j = i; j < i + WIDTH; ++j) p[j] = step_one(j);
    } else {  // two loops: in one they do not vectorise
      alignas(LINE) T x[WIDTH];
      for (int64_t j = 0; j < WIDTH; ++j) x[j] = step_one(i + j);
      for (int64_t j = 0; j < WIDTH; ++j) p[i + j] = after(x[j]);
    }
  }
  for (; i < n; ++i) p[i] = after(step_one(i));
}

template <class T, class After = Nothing>
SLIMFAST_SIMD void step(T* p, const T* g, T* m, int64_t n, const SgdStep<T>& s, const After& after = {}) {
  m ? step_loop<T, true, false>(p, g, nullptr, m, n, s, after) : step_loop<T, false, false>(p, g, nullptr, m, n, s, after);
}

template <class T>
SLIMFAST_SIMD void step_with(const T* slope, T* p, const T* g, T* m, int64_t n, const SgdStep<T>& s) {
  m ? step_loop<T, true, true>(p, g, slope, m, n, s, Nothing()) : step_loop<T, false, true>(p, g, slope, m, n, s, Nothing());
}

template <Kind K, class T>
SLIMFAST_SIMD void shrink(T* p, int64_t n, const Prox& constants) {
  const Prox c = constants;
  for (int64_t i = 0; i < n; ++i) p[i] = static_cast<T>(prox_one<K>(static_cast<double>(p[i]), c));
}

// x = scale penalty'(x)
template <Kind K>
SLIMFAST_SIMD void to_slope(double* x, int64_t n, const SgdGroup& h) {
  const double lam = h.lam, shape = h.shape, scale = h.penalty_scale;
  for (int64_t i = 0; i < n; ++i) x[i] = scale * grad_one<K>(x[i], lam, shape);
}

// x = beta (x - prox(x)), the slope of the Moreau envelope
template <Kind K>
SLIMFAST_SIMD void to_envelope_slope(double* x, int64_t n, const Prox& constants, double beta) {
  const Prox c = constants;
  for (int64_t i = 0; i < n; ++i) x[i] = beta * (x[i] - prox_one<K>(x[i], c));
}

// to = (to + t from) / (1 + t)
template <class T, class From>
SLIMFAST_SIMD void draw_to(T* to, const From* from, int64_t n, double t) {
  for (int64_t i = 0; i < n; ++i)
    to[i] = static_cast<T>((static_cast<double>(to[i]) + t * static_cast<double>(from[i])) / (1 + t));
}

// x = beta (at - x)
SLIMFAST_SIMD inline void scale_difference(const double* __restrict at, double* __restrict x, int64_t n, double beta) {
  for (int64_t i = 0; i < n; ++i) x[i] = beta * (at[i] - x[i]);
}

// Zeros where the parameters were 0.
template <class T>
SLIMFAST_SIMD void freeze(const T* __restrict before, T* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = before[i] == 0 ? 0 : x[i];
}

// Numbers of one row of memory, from or to where they lie group by group.
template <class From>
SLIMFAST_SIMD void to_groups(double* x, const From* row, int64_t groups, int64_t inner, int64_t size) {
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < inner; ++i) x[g * size + i] = static_cast<double>(row[g * inner + i]);
}

template <class To>
SLIMFAST_SIMD void from_groups(To* row, const double* x, int64_t groups, int64_t inner, int64_t size) {
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < inner; ++i) row[g * inner + i] = static_cast<To>(x[g * size + i]);
}

// Rows of groups of `inner` numbers side by side: the sums of their squares, one per group or one per column.
SLIMFAST_SIMD inline void add_squares(const float* __restrict row, double* __restrict squares, int64_t groups, int64_t inner) {
  for (int64_t g = 0; g < groups; ++g, row += inner) {
    double lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= inner; i += 8)
      for (int64_t j = 0; j < 8; ++j) lanes[j] += static_cast<double>(row[i + j]) * static_cast<double>(row[i + j]);
    for (; i < inner; ++i) lanes[i % 8] += static_cast<double>(row[i]) * static_cast<double>(row[i]);
    squares[g] += ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }
}

SLIMFAST_SIMD inline void add_column_squares(const float* __restrict row, double* __restrict squares, int64_t n) {
  for (int64_t i = 0; i < n; ++i) squares[i] += static_cast<double>(row[i]) * static_cast<double>(row[i]);
}

SLIMFAST_SIMD inline void scale_groups(float* __restrict row, const double* __restrict factors, int64_t groups, int64_t inner) {
  for (int64_t g = 0; g < groups; ++g, row += inner) {
    const double factor = factors[g];
    for (int64_t i = 0; i < inner; ++i) row[i] = static_cast<float>(static_cast<double>(row[i]) * factor + 0.0);
  }
}

SLIMFAST_SIMD inline void scale_columns(float* __restrict row, const double* __restrict factors, int64_t n) {
  for (int64_t i = 0; i < n; ++i) row[i] = static_cast<float>(static_cast<double>(row[i]) * factors[i] + 0.0);
}

// From sums of squares to norms, and from norms before and after shrinking to factors. At an infinite norm the penalty
// pulls at nothing; NaN stays.
SLIMFAST_SIMD inline void to_norms(double* squares, int64_t n) {
  for (int64_t i = 0; i < n; ++i) squares[i] = std::sqrt(squares[i]);
}

SLIMFAST_SIMD inline void to_factors(const double* __restrict norms, double* __restrict shrunk, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const double factor = shrunk[i] / norms[i], kept = norms[i] == detail::INF ? 1 : factor;
    shrunk[i] = norms[i] == 0 ? 0 : kept;
  }
}


}  // namespace
}  // namespace slimfast
