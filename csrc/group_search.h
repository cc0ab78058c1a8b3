// The proximal operator of step r(u) + G ||u|| on a group of numbers, r separable, for CPU and CUDA.
//
// As ||u|| = min over s > 0 of s/2 + ||u||^2 / (2s), the minimum over u is one over the single number s = ||u||: with
// c = 1 + G/s every number is z_i(s) = prox_{step/c r}(x_i / c), and what is gained over u = 0 is
//     D(s) = sum_i [z_i (x_i - c z_i / 2) - step r(z_i)] - G s/2,   D'(s) = (G/2) (N(s)^2 / (s + G)^2 - 1),
// N(s) = c ||z(s)||. For r concave in |u|, N is nondecreasing. M(s) = N(s) - G then has its fixed points where D' = 0,
// an interval [a, b] holds one only within [M(a), M(b)], and N(a), N(b) bound D in between: the search drops every
// interval that cannot hold the best fixed point. No recursion, no memory: a thread block runs it in step.
#pragma once

#include "penalty.h"

namespace slimfast {

struct Sums {
  double squares, gains;
};

// The operator on |x| at one c: a view of the group adds up what these return.
template <Kind K, bool GAINED>
struct Shrunk {
  static constexpr bool GAINS = GAINED;
  Prox prox;  // with step / c
  double step, c, inverse_c, unit;

  SLIMFAST_HD Shrunk(int64_t kind, double lam, double shape, double step, double c, double unit)
      : prox(make_prox(kind, lam, shape, step / c)), step(step), c(c), inverse_c(1 / c), unit(unit) {}

  SLIMFAST_HD inline double number(double z) const { return prox_one<K>(z * inverse_c, prox); }

  SLIMFAST_HD inline Sums operator()(double z) const {
    const double u = number(z), length = u * unit;
    if constexpr (!GAINS) return {length * length, 0};
    return {length * length, length * ((z - 0.5 * c * u) * unit) - paid(z, u) * unit * unit};
  }

 private:
  SLIMFAST_HD inline double paid(double z, double u) const {
    if constexpr (K == Kind::LP) return u * (z - c * u) / prox.shape;  // u is stationary: no power to take
    return step * value_one<K>(u, prox.lam, prox.shape);
  }
};

// Just above 0, where c is endless: what is left of |x| there, times c.
struct Bottom {
  static constexpr bool GAINS = false;
  double slope, unit;

  SLIMFAST_HD inline Sums operator()(double z) const {
    const double left = z > slope ? (z - slope) * unit : 0;
    return {left * left, 0};
  }
};

template <Kind K>
SLIMFAST_HD inline double slope_at_zero(double lam, double shape) {
  if constexpr (K == Kind::NONE) return 0;
  if constexpr (K == Kind::L0 || K == Kind::LP) return lam > 0 ? detail::INF : 0;
  if constexpr (K == Kind::TL1) return lam * ((shape + 1) / shape);
  if constexpr (K == Kind::LOGSUM) return lam / shape;
  return lam;
}

// Whether r's operator is continuous, which makes the objective convex.
template <Kind K>
SLIMFAST_HD inline bool is_continuous(double lam, double shape, double step) {
  if constexpr (K == Kind::L0 || K == Kind::LP) return step * lam == 0;
  if constexpr (K == Kind::TL1) return 2 * (step * lam) * (shape + 1) <= shape * shape;
  if constexpr (K == Kind::MCP) return step < shape;
  if constexpr (K == Kind::SCAD) return step < shape - 1;
  if constexpr (K == Kind::LOGSUM) return step * lam <= shape * shape;
  return true;
}

// `View::sum(f)` adds f(|x_i|) up over the group, its gains where F::GAINS, and returns the same Sums to every thread.
template <Kind K, class View>
class GroupSearch {
 public:
  // pull: G; unit: a power of two that makes the squares harmless; energy: the sum of (x unit)^2; largest: how many
  // times `step` a number's own step can be, in a view that gives them steps of their own.
  SLIMFAST_HD GroupSearch(const View& view, double lam, double shape, double step, double pull, double unit, double energy,
                          double largest = 1)
      : view(view), lam(lam), shape(shape), step(step), largest(largest), pull(pull * unit), unit(unit),
        almost(1e-14 * energy), limit(1e-15 * std::sqrt(energy)) {}

  // c at the minimum, to shrink with; 0 if that is u = 0.
  SLIMFAST_HD double solve() const {
    const double top = std::sqrt(view.sum(shrunk<false>(1)).squares);
    double high = top - pull;
    if (!(high > 0)) return 0;
    const double slope = step * slope_at_zero<K>(lam, shape);
    const double bottom = slope < detail::INF ? std::sqrt(view.sum(Bottom{slope, unit}).squares) : 0;
    const double low = bottom > pull ? bottom - pull : 0;
    if (is_continuous<K>(lam, shape, step * largest)) {
      if (!(bottom > pull)) return 0;
      const Point end = polish<false>(high, low, high);
      return 1 + pull / end.s;
    }
    const Point best = search(bottom, high, top);
    if (!(best.gain > 0)) return 0;
    const Point end = polish<true>(best.s, low, high);
    return 1 + pull / (end.gain < best.gain - almost ? best.s : end.s);
  }

  template <bool GAINS>
  SLIMFAST_HD Shrunk<K, GAINS> shrunk(double c) const {
    return Shrunk<K, GAINS>(static_cast<int64_t>(K), lam, shape, step, c, unit);
  }

 private:
  struct Point {
    double s, norm, gain;  // s, N(s), D(s)
  };

  static constexpr int EVALUATIONS = 400;  // a search that has not ended by then keeps the best it has seen

  template <bool GAINS>
  SLIMFAST_HD Point at(double s) const {
    const double c = 1 + pull / s;
    const Sums sums = view.sum(shrunk<GAINS>(c));
    return {s, c * std::sqrt(sums.squares), sums.gains - 0.5 * pull * s};
  }

  // Whether [a, b] holds no fixed point of M with more than `bar`.
  SLIMFAST_HD bool hopeless(const Point& a, const Point& b, double bar) const {
    const double G = pull, low = a.norm - G > a.s ? a.norm - G : a.s, high = b.norm - G < b.s ? b.norm - G : b.s;
    const double from_a = a.gain + (high - a.s) * (b.norm / (high + G) * (b.norm / (a.s + G)) - 1) * (G / 2);
    const double from_b = b.gain + (b.s - low) * (1 - a.norm / (b.s + G) * (a.norm / (low + G))) * (G / 2);
    return low > high + 16 * limit || b.s - a.s <= 1e-15 * b.s || from_a <= bar || from_b <= bar;
  }

  // A point next to the best fixed point. Open is [left, right]; right comes down, trial by trial. Two trials behind
  // the present one are remembered: a short stack, which forgets at its far end.
  SLIMFAST_HD Point search(double bottom, double high, double top) const {
    const Point left{0, bottom, 0};
    Point best = left, right{high, top, detail::INF}, trial = left, second = left, third = left;
    for (int i = 0; i < EVALUATIONS; ++i) {
      if (hopeless(trial, right, best.gain + almost)) {
        right = trial, trial = second, second = third, third = left;
        if (trial.s >= right.s) break;
        continue;
      }
      const double middle = 0.5 * (trial.s + right.s), upper = right.norm - pull, lower = trial.norm - pull;
      double q = middle < upper ? middle : upper;
      q = q > lower ? q : lower;
      const Point point = at<true>(q);
      if (point.gain > best.gain) best = point;
      if (hopeless(point, right, best.gain + almost)) {
        right = point;
      } else {
        third = second, second = trial, trial = point;
      }
    }
    return best;
  }

  // The fixed point in [low, high] that s leads to, by secants kept inside what M leaves open. They are of (s + G) / N,
  // which for L1 is a straight line, however close to 1 the slope of M is.
  template <bool GAINS>
  SLIMFAST_HD Point polish(double s, double low, double high) const {
    double last = 0, last_height = 0, last_error = 0;
    for (int i = 0;; ++i) {
      Point point = at<GAINS>(s);
      const double image = point.norm - pull, error = image - s, height = (s + pull) / point.norm - 1;
      if (error > 0 && image > low) low = image;
      if (error < 0 && image < high) high = image;
      const bool slow = i > 0 && std::fabs(error) > 0.5 * std::fabs(last_error);
      const double slope = i > 0 && s != last ? (height - last_height) / (s - last) : 0;
      double next = slow ? 0.5 * (low + high) : slope > 0 ? s - height / slope : image;
      next = next > low ? next : low;
      next = next < high ? next : high;
      if (!(std::fabs(error) > (slow ? 1000 * limit : limit)) || i == 60) {
        if (i < 60 && !slow) point.s = next;
        return point;
      }
      last = s, last_height = height, last_error = error, s = next;
    }
  }

  View view;
  double lam, shape, step, largest, pull, unit, almost, limit;
};

}  // namespace slimfast
