// Penalties on groups of numbers in a diagonal metric: as ||u|| = min over s > 0 of s/2 + ||u||^2 / (2s), every s turns
// the metric into c_i / t_i with c_i = 1 + G t_i / s. With the smallest t as the unit of t this is a search of
// group_search.h, whose numbers have steps of their own.
#include "metric_prox.h"

#include <algorithm>

#include "group_search.h"
#include "lanes.h"

namespace slimfast {
namespace {

// Adds f(i) up; in blocks, so that f vectorises.
template <class F>
SLIMFAST_SIMD Sums sum_over(int64_t n, const F& function) {
  const F f = function;
  double squares[SUMMED], gains[SUMMED], square_lanes[LANES] = {}, gain_lanes[LANES] = {};
  for (int64_t begin = 0; begin < n; begin += SUMMED) {
    const int64_t count = std::min(SUMMED, n - begin);
    for (int64_t i = 0; i < count; ++i) {
      const Sums one = f(begin + i);
      squares[i] = one.squares, gains[i] = one.gains;
    }
    add_to_lanes(square_lanes, squares, count);
    add_to_lanes(gain_lanes, gains, count);
  }
  return {add_lanes(square_lanes), add_lanes(gain_lanes)};
}

template <class F>
SLIMFAST_SIMD void fill(double* x, int64_t n, const F& function) {
  const F f = function;
  for (int64_t i = 0; i < n; ++i) x[i] = f(i);
}

// The numbers of a group, and their steps over the search's own.
struct MetricView {
  const double *x, *ratio;
  int64_t n;

  template <Kind K, bool GAINS>
  Sums sum(const Shrunk<K, GAINS>& f) const {
    const double *x = this->x, *ratio = this->ratio;
    const double lam = f.prox.lam, shape = f.prox.shape, step = f.step, more = f.c - 1, unit = f.unit;
    return sum_over(n, [=](int64_t i) -> Sums {
      const double z = std::fabs(x[i]), c = 1 + more * ratio[i];
      const double u = prox_one<K>(z / c, prox_of<K>(lam, shape, step * ratio[i] / c)), length = u * unit;
      if constexpr (!GAINS) return {length * length, 0};
      double paid = 0;
      if constexpr (K == Kind::LP) paid = u * (z - c * u) / (ratio[i] * shape);  // u is stationary: no power to take
      else paid = step * value_one<K>(u, lam, shape);
      return {length * length, length * ((z - 0.5 * c * u) * unit) / ratio[i] - paid * unit * unit};
    });
  }

  Sums sum(const Bottom& f) const {
    const double *x = this->x, *ratio = this->ratio, slope = f.slope, unit = f.unit;
    return sum_over(n, [=](int64_t i) -> Sums {
      const double left = std::fabs(x[i]) - slope * ratio[i], one = left > 0 ? left * unit / ratio[i] : 0;
      return {one * one, 0};
    });
  }
};

SLIMFAST_SIMD bool has_nan(const double* x, int64_t n) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) found += x[i] != x[i];
  return found != 0;
}

template <Kind K>
void shrink(double* x, const double* t, int64_t n, double lam, double shape) {
  fill(x, n, [=](int64_t i) { return prox_one<K>(x[i], prox_of<K>(lam, shape, t[i])); });
}

// All of a group or nothing.
void keep(double* x, const double* t, int64_t n, double weight) {
  const double worth = sum_over(n, [=](int64_t i) -> Sums { return {x[i] != 0 ? x[i] * (x[i] / (2 * t[i])) : 0, 0}; }).squares;
  const bool stays = worth > weight;
  fill(x, n, [=](int64_t i) { return stays ? x[i] + 0.0 : 0.0; });
}

// The norm's operator: x s / (s + pull t) with ||x / (s + pull t)|| = 1, or 0 if that is below 1 at 0. The inverse of
// that norm is concave in s, so that Newton's steps come to the root from below.
void shorten(double* x, double* t, int64_t n, double pull, double top) {
  if (pull == 0 || top == 0) return fill(x, n, [=](int64_t i) { return x[i] + 0.0; });
  double s = 0;
  for (int64_t i = 0; i < n; ++i) {
    t[i] *= pull / top;
    s = std::fmax(s, std::fabs(x[i]) / top - t[i]);  // no term is above 1 there
  }
  const double *z = x, *pulls = t, inverse_top = 1 / top;
  auto at = [=](double s) {
    return sum_over(n, [=](int64_t i) -> Sums {
      const double inverse = 1 / (s + pulls[i]), ratio = z[i] != 0 ? z[i] * inverse_top * inverse : 0;
      return {ratio * ratio, ratio != 0 ? ratio * ratio * inverse : 0};
    });
  };
  if (!(at(0).squares > 1)) return fill(x, n, [](int64_t) { return 0.0; });
  for (int i = 0; i < 60; ++i) {
    const Sums sums = at(s);
    const double length = std::sqrt(sums.squares), step = (length - 1) * sums.squares / sums.gains;
    s += step > 0 ? step : 0;
    if (!(step > 1e-16 * s)) break;
  }
  fill(x, n, [=](int64_t i) { return z[i] != 0 ? z[i] * (s / (s + pulls[i])) : 0.0; });
}

template <Kind K>
void search(double* x, double* t, int64_t n, const GroupRule& rule, double pull, double top) {
  const double unit_t = *std::min_element(t, t + n), largest = *std::max_element(t, t + n) / unit_t;
  fill(t, n, [=](int64_t i) { return t[i] / unit_t; });
  const double unit = std::ldexp(1.0, -std::clamp(std::ilogb(top), -1000, 1000)), *z = x;
  const double energy = sum_over(n, [=](int64_t i) -> Sums { return {(z[i] * unit) * (z[i] * unit), 0}; }).squares;
  const double c = GroupSearch<K, MetricView>({x, t, n}, rule.lam, rule.shape, unit_t, pull * unit_t, unit, energy, largest).solve();
  const double lam = rule.lam, shape = rule.shape, *ratio = t;
  fill(x, n, [=](int64_t i) {
    const double own = 1 + (c - 1) * ratio[i];
    return c == 0 ? 0.0 : prox_one<K>(z[i] / own, prox_of<K>(lam, shape, unit_t * ratio[i] / own));
  });
}

}  // namespace

void prox_in_metric(double* x, double* t, int64_t n, const GroupRule& rule) {
  const double weight = (rule.form == Form::NORM ? rule.lam : rule.group_lam) * std::sqrt(static_cast<double>(n));
  const Kind kind = static_cast<Kind>(rule.kind);
  if (has_nan(x, n)) return std::fill(x, x + n, std::nan(""));
  double top = largest(x, n);
  if (rule.form == Form::NORM && kind == Kind::L0) return keep(x, t, n, weight);
  const bool is_searched = rule.form == Form::SPARSE && rule.lam != 0 && weight != 0 && kind != Kind::NONE && kind != Kind::L1;
  if (is_searched && top < detail::INF && top > 0)
    return dispatch_kind(rule.kind, [&](auto K) { search<K.value>(x, t, n, rule, weight, top); });
  if (rule.form == Form::SPARSE && rule.lam != 0) {
    dispatch_kind(rule.kind, [&](auto K) { shrink<K.value>(x, t, n, rule.lam, rule.shape); });
    top = largest(x, n);
  }
  if (top < detail::INF) shorten(x, t, n, weight, top);
}

}  // namespace slimfast
