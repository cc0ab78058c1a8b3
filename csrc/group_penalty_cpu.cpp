// Penalties on groups of numbers, on the CPU.
#include "group_penalty.h"

#include <algorithm>

#include "group_search.h"
#include "lanes.h"

namespace slimfast {
namespace {

template <class F>
SLIMFAST_SIMD Sums sum_over(const double* x, int64_t n, const F& function) {
  const F f = function;
  double squares[SUMMED], gains[SUMMED], square_lanes[LANES] = {}, gain_lanes[LANES] = {};
  for (int64_t begin = 0; begin < n; begin += SUMMED) {
    const int64_t count = std::min(SUMMED, n - begin);
    for (int64_t i = 0; i < count; ++i) {
      const Sums one = f(std::fabs(x[begin + i]));
      squares[i] = one.squares;
      if constexpr (F::GAINS) gains[i] = one.gains;
    }
    add_to_lanes(square_lanes, squares, count);
    if constexpr (F::GAINS) add_to_lanes(gain_lanes, gains, count);
  }
  return {add_lanes(square_lanes), add_lanes(gain_lanes)};
}

template <class F>
SLIMFAST_SIMD void apply(double* x, int64_t n, const F& function) {
  const F f = function;
  for (int64_t i = 0; i < n; ++i) x[i] = f(x[i]);
}

struct Squares {
  static constexpr bool GAINS = false;
  double unit;
  inline Sums operator()(double z) const { return {(z * unit) * (z * unit), 0}; }
};

struct SoftSquares {
  static constexpr bool GAINS = false;
  double weight, unit;
  inline Sums operator()(double z) const {
    const double left = !(z <= weight) ? (z - weight) * unit : 0;
    return {left * left, 0};
  }
};

struct Scale {
  double factor;
  inline double operator()(double x) const { return x * factor + 0.0; }  // -0 becomes +0
};

struct SoftScale {  // never more than x
  double weight, factor;
  inline double operator()(double x) const {
    const double z = std::fabs(x), longer = !(z <= weight) ? (z - weight) * factor : 0 * factor;
    const double u = longer > z ? z : longer;
    return x < 0 ? 0.0 - u : u;
  }
};

template <Kind K>
struct ProxAt {
  Prox constants;
  double inverse_c;
  inline double operator()(double x) const { return prox_one<K>(x * inverse_c, constants); }
};

struct View {
  const double* x;
  int64_t n;
  template <class F>
  Sums sum(const F& f) const { return sum_over(x, n, f); }
};

double unit_of(double top) {  // the power of two that brings top into [1/2, 1)
  int exponent = 0;
  if (top > 0 && top < detail::INF) std::frexp(top, &exponent);
  return std::ldexp(1.0, -std::max(exponent, -1020));
}

// The sum of (x unit)^2, the unit 1 unless the squares would leave the range of doubles.
struct Energy {
  double unit, sum;
  bool has_nan() const { return sum != sum; }
  bool is_infinite() const { return sum == detail::INF; }
  double norm() const { return std::sqrt(sum) / unit; }
};

Energy energy_of(const double* x, int64_t n) {
  Energy energy{1, sum_over(x, n, Squares{1}).squares};
  if ((energy.sum > 1e-250 && energy.sum < 1e250) || energy.has_nan()) return energy;
  const double top = largest(x, n);
  if (top == 0 || top == detail::INF) return energy;
  energy.unit = unit_of(top);
  energy.sum = sum_over(x, n, Squares{energy.unit}).squares;
  return energy;
}

template <Kind K>
double scalar_prox(double z, double lam, double shape, double step) {
  return prox_one<K>(z, make_prox(static_cast<int64_t>(K), lam, shape, step));
}

void prox_norm(double* x, int64_t n, const GroupRule& rule, double step) {
  const Energy energy = energy_of(x, n);
  if (energy.is_infinite()) return apply(x, n, Scale{1});
  const double norm = energy.norm(), lam = rule.lam * std::sqrt(static_cast<double>(n));
  dispatch_kind(rule.kind, [&](auto K) {
    const double shrunk = scalar_prox<K.value>(norm, lam, rule.shape, step);
    apply(x, n, Scale{norm > 0 ? shrunk / norm : norm});
  });
}

// Soft thresholding, then group soft thresholding.
void shrink_norm(double* x, int64_t n, double pull) {
  const Energy energy = energy_of(x, n);
  if (energy.is_infinite()) return;
  const double norm = energy.norm();
  apply(x, n, Scale{norm > pull ? (norm - pull) / norm : norm - norm});
}

template <Kind K>
void prox_sparse(double* x, int64_t n, const GroupRule& rule, double step) {
  const double pull = step * rule.group_lam * std::sqrt(static_cast<double>(n));
  double c = 1;
  if (pull > 0 && K != Kind::NONE && K != Kind::L1) {
    const Energy energy = energy_of(x, n);
    if (energy.has_nan()) return apply(x, n, Scale{energy.sum});
    if (!energy.is_infinite())
      c = GroupSearch<K, View>({x, n}, rule.lam, rule.shape, step, pull, energy.unit, energy.sum).solve();
  }
  if (c == 0) return apply(x, n, Scale{0});
  apply(x, n, ProxAt<K>{make_prox(rule.kind, rule.lam, rule.shape, step / c), 1 / c});
  if (pull > 0 && (K == Kind::NONE || K == Kind::L1)) shrink_norm(x, n, pull);
}

template <Kind K>
struct AddSlope {
  double lam, shape, scale, along;
  inline double operator()(double x, double d) const {
    return d + scale * (grad_one<K>(x, lam, shape) + (along != 0 ? along * x : 0));
  }
};

template <class F>
SLIMFAST_SIMD void add_to(double* __restrict d, const double* __restrict x, int64_t n, const F& function) {
  const F f = function;
  for (int64_t i = 0; i < n; ++i) d[i] = f(x[i], d[i]);
}

}  // namespace

void prox_group(double* x, int64_t n, const GroupRule& rule, double step) {
  if (rule.form == Form::NORM) return prox_norm(x, n, rule, step);
  if (rule.form == Form::SPARSE)
    return dispatch_kind(rule.kind, [&](auto K) { prox_sparse<K.value>(x, n, rule, step); });
  const double top = difference_top(x, n), weight = step * rule.lam;
  const double squares = difference_squares(x, n, top, weight);
  prox_difference(x, n, plan_difference(top, squares, weight, rule.shape), false);
}

void add_group_subgradient(const double* x, double* d, int64_t n, const GroupRule& rule, double scale) {
  const Energy energy = energy_of(x, n);
  const double norm = energy.norm(), root = std::sqrt(static_cast<double>(n));
  const double inverse = norm > 0 && norm < detail::INF ? 1 / norm : norm != norm ? norm : 0;
  const int64_t L1 = static_cast<int64_t>(Kind::L1);
  if (rule.form == Form::NORM)
    return dispatch_kind(rule.kind, [&](auto K) {
      const double slope = grad_one<K.value>(norm, rule.lam * root, rule.shape);
      add_to(d, x, n, AddSlope<Kind::NONE>{0, 0, scale, slope * inverse});
    });
  const bool sparse = rule.form == Form::SPARSE;
  const double along = (sparse ? rule.group_lam * root : -rule.lam * rule.shape) * inverse;
  dispatch_kind(sparse ? rule.kind : L1, [&](auto K) {
    add_to(d, x, n, AddSlope<K.value>{rule.lam, rule.shape, scale, along});
  });
}

double difference_top(const double* x, int64_t n) { return largest(x, n); }

double difference_squares(const double* x, int64_t n, double top, double weight) {
  return sum_over(x, n, SoftSquares{weight, unit_of(top)}).squares;
}

Difference plan_difference(double top, double squares, double weight, double alpha) {
  const double length = std::sqrt(squares) / unit_of(top);
  Difference plan{top, weight, 1, 0};
  if (squares != squares) {
    plan.factor = squares;
  } else if (top < detail::INF && top > weight) {
    plan.factor = (length + alpha * weight) / length;
  } else if (top < detail::INF && top > 0 && top - (1 - alpha) * weight > 0) {
    plan.alone = top - (1 - alpha) * weight;
  }
  return plan;
}

bool prox_difference(double* x, int64_t n, const Difference& plan, bool taken) {
  if (!(plan.alone > 0)) {
    if (plan.top <= plan.weight && plan.factor == plan.factor) apply(x, n, Scale{0});
    else apply(x, n, SoftScale{plan.weight, plan.factor});
    return false;
  }
  const double* first = taken ? x + n : std::find_if(x, x + n, [&](double v) { return std::fabs(v) == plan.top; });
  const int64_t k = first - x;
  const double kept = k < n ? std::copysign(std::min(plan.alone, plan.top), x[k]) : 0;
  apply(x, n, Scale{0});
  if (k < n) x[k] = kept;
  return taken || k < n;
}

}  // namespace slimfast
