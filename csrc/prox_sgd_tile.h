// A step on blocks of numbers and on whole groups, on the CPU.
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "group_penalty.h"
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

template <class T, bool HAS_MOMENTUM, bool HAS_SLOPE>
inline void step_loop(T* __restrict p, const T* __restrict g, const T* __restrict slope, T* __restrict m, int64_t n,
                      const SgdStep<T> s) {
  auto step_one = [&](int64_t i) {
    T d = s.direction(p[i], g[i]);
    if constexpr (HAS_SLOPE) d += slope[i];
    p[i] = s.template advance<HAS_MOMENTUM>(p[i], d, m + i);
  };
  constexpr int64_t WIDTH = LINE / sizeof(T), DISTANCE = AHEAD / sizeof(T);
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) {
    prefetch(p + i + DISTANCE, g + i + DISTANCE, HAS_MOMENTUM ? m + i + DISTANCE : p);
    for (int64_t j = i; j < i + WIDTH; ++j) step_one(j);
  }
  for (; i < n; ++i) step_one(i);
}

template <class T>
SLIMFAST_SIMD void step(T* p, const T* g, T* m, int64_t n, const SgdStep<T>& s) {
  m ? step_loop<T, true, false>(p, g, nullptr, m, n, s) : step_loop<T, false, false>(p, g, nullptr, m, n, s);
}

template <class T>
SLIMFAST_SIMD void step_with(const T* slope, T* p, const T* g, T* m, int64_t n, const SgdStep<T>& s) {
  m ? step_loop<T, true, true>(p, g, slope, m, n, s) : step_loop<T, false, true>(p, g, slope, m, n, s);
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

// What a group's tensors share, computed once.
struct Constants {
  SgdGroup group;
  SgdStep<float> single;
  SgdStep<double> wide;
  Prox prox;
  bool has_prox, has_slope, shrinks, is_plain;

  Constants(const SgdGroup& h, double inverse_grad_scale)
      : group(h), single(h, inverse_grad_scale), wide(h, inverse_grad_scale),
        prox(make_prox(static_cast<int64_t>(h.kind), h.lam, h.shape, h.prox_step())), has_prox(h.has_prox()),
        has_slope(h.has_subgradient() || h.has_envelope()),
        shrinks(has_prox || h.method == Method::ALTERNATING),
        is_plain(!has_slope && !h.has(FREEZE_ZEROS) && (!shrinks || (has_prox && h.form == Form::ELEMENTWISE))) {}

  // One vector across tensors.
  bool is_network() const { return group.form == Form::DIFFERENCE && group.dim == 1 && !is_plain; }

  // Elementwise.
  template <class T>
  void apply_prox(T* x, int64_t n) const {
    dispatch_kind(kind(), [&](auto K) { shrink<K()>(x, n, prox); });
  }

  // Groups of `size` numbers, one after the other.
  void apply_prox(double* x, int64_t groups, int64_t size) const {
    if (group.form == Form::ELEMENTWISE) return apply_prox(x, groups * size);
    for (double* end = x + groups * size; x < end; x += size) prox_group(x, size, rule(), group.prox_step());
  }

  // From numbers to the penalty's slope there.
  void apply_slope(double* x, int64_t groups, int64_t size) const {
    const int64_t n = groups * size;
    if (group.form == Form::ELEMENTWISE) return apply_elementwise_slope(x, n);
    const std::vector<double> at(x, x + n);
    GroupRule added = rule();
    if (!group.has_envelope()) {
      std::fill(x, x + n, 0.0);
    } else if (group.form == Form::SPARSE) {  // only the numbers are split, the norm enters as it is
      apply_elementwise_slope(x, n);
      added.kind = static_cast<int64_t>(Kind::NONE);
    } else {
      apply_prox(x, groups, size);
      return scale_difference(at.data(), x, n, group.beta);
    }
    for (int64_t i = 0; i < n; i += size) add_group_subgradient(&at[i], x + i, size, added, group.penalty_scale);
  }

 private:
  int64_t kind() const { return static_cast<int64_t>(group.kind); }
  GroupRule rule() const { return {group.form, kind(), group.lam, group.shape, group.group_lam}; }

  void apply_elementwise_slope(double* x, int64_t n) const {
    dispatch_kind(kind(), [&](auto K) {
      group.has_envelope() ? to_envelope_slope<K()>(x, n, prox, group.beta) : to_slope<K()>(x, n, group);
    });
  }
};

// Whole groups of one tensor: `rows` rows of memory, `stride` apart, in each of which groups of `inner` numbers lie side
// by side. Elementwise penalties have one row.
struct Tile {
  int64_t begin, width, rows, stride, inner;

  int64_t groups() const { return width / inner; }
  int64_t size() const { return rows * inner; }
};

// A step on one tile. The penalty works on `x`, where the tile's numbers lie group by group in double precision.
template <class T>
class TileStep {
 public:
  TileStep(const SgdTensor& tensor, const Constants& constants, const SgdStep<T>& step_constants, const Tile& place,
           double* scratch)
      : t(tensor), c(constants), s(step_constants), tile(place), x(scratch) {}

  void read() {
    blocks([&](const Place& at) { spread(load(t.param, t.param_type, at.begin, at.n, spare[0]), at); });
  }

  // Finds the penalty's slope in `x`, leaves there what the proximal operator is for.
  void move() {
    blocks([&](const Place& at) { move(at); });
  }

  void write() {
    void* to = t.auxiliary ? t.auxiliary : t.param;
    const Number type = t.auxiliary ? t.auxiliary_type : t.param_type;
    blocks([&](const Place& at) {
      T* result = type == OWN<T> ? static_cast<T*>(to) + at.begin : spare[0];
      collect(result, at);
      store(to, type, at.begin, at.n, result);
    });
  }

 private:
  struct Place {  // up to BLOCK numbers of one row
    int64_t begin, row, column, n;
  };

  const SgdTensor& t;
  const Constants& c;
  const SgdStep<T>& s;
  const Tile tile;
  double* const x;
  alignas(64) T spare[5][BLOCK];
  alignas(64) double wide[BLOCK];

  template <class F>
  void blocks(F f) const {
    for (int64_t row = 0; row < tile.rows; ++row)
      for (int64_t column = 0; column < tile.width; column += BLOCK)
        f(Place{tile.begin + row * tile.stride + column, row, column, std::min(BLOCK, tile.width - column)});
  }

  template <class From>
  void spread(const From* from, const Place& at) {
    if (tile.rows == 1 || tile.groups() == 1) convert(x + at.row * tile.width + at.column, from, at.n);
    else to_groups(x + at.row * tile.inner, from, tile.groups(), tile.inner, tile.size());
  }

  void collect(T* to, const Place& at) const {
    if (tile.rows == 1 || tile.groups() == 1) convert(to, x + at.row * tile.width + at.column, at.n);
    else from_groups(to, x + at.row * tile.inner, tile.groups(), tile.inner, tile.size());
  }

  void move(const Place& at) {
    T* p = load(t.param, t.param_type, at.begin, at.n, spare[0]);
    const T* g = load(t.grad, t.grad_type, at.begin, at.n, spare[1]);
    T* m = t.momentum ? load(t.momentum, t.momentum_type, at.begin, at.n, spare[2]) : nullptr;
    if (c.group.has(FREEZE_ZEROS)) std::copy(p, p + at.n, spare[4]);
    if (c.has_slope) collect(spare[3], at);
    c.has_slope ? step_with(spare[3], p, g, m, at.n, s) : step(p, g, m, at.n, s);
    T* a = t.auxiliary ? load(t.auxiliary, t.auxiliary_type, at.begin, at.n, spare[1]) : nullptr;
    if (c.group.has(FREEZE_ZEROS))
      for (T* x : {p, m, a})
        if (x) freeze(spare[4], x, at.n);
    if (a) draw_to(p, a, at.n, c.group.coupling());
    if (m) store(t.momentum, t.momentum_type, at.begin, at.n, m);
    if (a || !c.has_prox) store(t.param, t.param_type, at.begin, at.n, p);
    if (a) {
      convert(wide, a, at.n);
      draw_to(wide, p, at.n, c.group.coupling());
      spread(wide, at);
    } else if (c.has_prox) {
      spread(p, at);
    }
  }
};

}  // namespace
}  // namespace slimfast
