// A step on blocks of numbers and on whole groups, on the CPU.
#pragma once

#include <algorithm>
#include <vector>

#include "blocks.h"
#include "group_penalty.h"
#include "prox_sgd_loops.h"

namespace slimfast {
namespace {

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

  // Whether the step's loop itself applies the operator to the numbers.
  bool thresholds() const { return has_prox && (group.kind == Kind::L0 || group.kind == Kind::L1); }

  // Whether it then only scales whole groups.
  bool scales() const {
    const bool is_scaled = group.form == Form::NORM || (group.form == Form::SPARSE && group.kind == Kind::L1);
    return has_prox && is_scaled && !has_slope && !group.has(FREEZE_ZEROS);
  }

  // The operator on the norm of a group of n numbers.
  Prox norm_prox(int64_t n) const {
    const double root = std::sqrt(static_cast<double>(n)), step = group.prox_step();
    if (group.form == Form::SPARSE) return make_prox(static_cast<int64_t>(Kind::L1), group.group_lam * root, 0, step);
    return make_prox(kind(), group.lam * root, group.shape, step);
  }

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

// A step on one tile whose groups the operator only scales, after a threshold in sparse ones: numbers stay where they are.
class ScaledStep {
 public:
  // sums: two for each column
  ScaledStep(const SgdTensor& tensor, const Constants& constants, const Tile& place, double* sums)
      : t(tensor), c(constants), tile(place), squares(sums), factors(sums + columns(place)) {}

  static int64_t columns(const Tile& tile) { return tile.rows > 1 ? tile.width : tile.groups(); }

  void run() {
    std::fill_n(squares, columns(tile), 0.0);
    for (int64_t row = 0; row < tile.rows; ++row) move(tile.begin + row * tile.stride);
    if (tile.rows > 1) add_columns();
    find_factors();
    if (tile.rows == 1) return scale_groups(param(tile.begin), factors, tile.groups(), tile.inner);
    for (int64_t g = tile.groups() - 1; g >= 0; --g) std::fill_n(factors + g * tile.inner, tile.inner, factors[g]);
    for (int64_t row = 0; row < tile.rows; ++row) scale_columns(param(tile.begin + row * tile.stride), factors, tile.width);
  }

 private:
  const SgdTensor& t;
  const Constants& c;
  const Tile tile;
  double *const squares, *const factors;
  alignas(64) float spare[2][BLOCK];

  float* param(int64_t begin) const { return static_cast<float*>(t.param) + begin; }

  // Steps one row, block by block, and adds up its squares.
  void move(int64_t begin) {
    for (int64_t i = 0; i < tile.width; i += BLOCK) {
      const int64_t n = std::min(BLOCK, tile.width - i), at = begin + i;
      float* p = param(at);
      const float* g = load(t.grad, t.grad_type, at, n, spare[0]);
      float* m = t.momentum ? load(t.momentum, t.momentum_type, at, n, spare[1]) : nullptr;
      if (c.group.form == Form::SPARSE) step(p, g, m, n, c.single, Threshold<float>(c.prox));
      else step(p, g, m, n, c.single);
      if (m) store(t.momentum, t.momentum_type, at, n, m);
      if (tile.rows > 1) add_column_squares(p, squares + i, n);
      else if (tile.groups() == 1) add_squares(p, squares, 1, n);
      else add_squares(p, squares, tile.groups(), tile.inner);
    }
  }

  void add_columns() {
    for (int64_t g = 0; g < tile.groups(); ++g) {
      double sum = 0;
      for (int64_t i = g * tile.inner; i < (g + 1) * tile.inner; ++i) sum += squares[i];
      squares[g] = sum;
    }
  }

  void find_factors() {
    const int64_t groups = tile.groups();
    const Prox prox = c.norm_prox(tile.size());
    to_norms(squares, groups);
    std::copy(squares, squares + groups, factors);
    dispatch_kind(static_cast<int64_t>(prox.kind), [&](auto K) { shrink<K()>(factors, groups, prox); });
    to_factors(squares, factors, groups);
  }
};


}  // namespace
}  // namespace slimfast
