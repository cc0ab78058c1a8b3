// Proximal operators in a diagonal metric, argmin_u sum_i (u_i - x_i)^2 / (2 t_i) + penalty(u), on the CPU.
#pragma once

#include "group_penalty.h"
#include "penalty.h"

namespace slimfast {

namespace detail {

// exp(log(x) / over), x > 0 and over in [1, 2]: pow does not vectorise.
inline double root(double x, double over) {
  const double y = (x < 1 ? -log_from_one(1 / x) : log_from_one(x)) / over, size = y < 0 ? -y : y;
  const double power = exp_to_one(size < 708 ? -size : -708.0);
  return y < 0 ? power : 1 / power;
}

}  // namespace detail

// make_prox for loops in which every number has a step of its own: all constants but those of LogSum are selects.
template <Kind K>
inline Prox prox_of(double lam, double shape, double step) {
  if constexpr (K != Kind::LP) return make_prox(static_cast<int64_t>(K), lam, shape, step);
  const double k = 1 - shape, jump = detail::root(2 * (step * lam) * k, 1 + k);
  return {K, lam, shape, step, jump * ((1 + k) / (2 * k)), 0, 0, 0, 0, 1, jump};
}

// One group of n numbers, NORM (of L1 and L0) or SPARSE: x becomes the operator's value. t is overwritten.
void prox_in_metric(double* x, double* t, int64_t n, const GroupRule& rule);

}  // namespace slimfast
