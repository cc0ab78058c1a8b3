// Penalties on groups of numbers: proximal operators and subgradients on the CPU. Defined in group_penalty_cpu.cpp.
//
// A group of n numbers is contiguous, in double. NORM: the scalar penalty with weight lam sqrt(n) on the group's norm;
// SPARSE: the scalar penalty on each number, and group_lam sqrt(n) times the norm; DIFFERENCE: lam (||x||_1 - shape
// ||x||_2), x the whole vector. A NaN makes its whole group NaN; infinite numbers stay, and the norm then pulls at
// nothing. Zeros are +0.
#pragma once

#include "step_rules.h"

namespace slimfast {

struct GroupRule {
  Form form;
  int64_t kind;
  double lam, shape, group_lam;  // without sqrt(n): the functions multiply
};

// x = argmin_u 0.5 ||u - x||^2 + step * penalty(u), the global minimum.
void prox_group(double* x, int64_t n, const GroupRule& rule, double step);

// d += scale * penalty'(x); the norm's part is 0 where the norm is 0 or infinite.
void add_group_subgradient(const double* x, double* d, int64_t n, const GroupRule& rule, double scale);

// DIFFERENCE on a vector in several pieces: the largest |x|, then the sum of squares, then every piece in order.
double difference_top(const double* x, int64_t n);                            // NaN does not count
double difference_squares(const double* x, int64_t n, double top, double weight);  // weight = step * lam; top: of all

struct Difference {
  double top, weight;
  double factor;  // of what soft thresholding leaves
  double alone;   // > 0: only the first number of size `top` survives, with this size
};
Difference plan_difference(double top, double squares, double weight, double alpha);
// True if this piece held the survivor: later pieces then get `taken` = true.
bool prox_difference(double* x, int64_t n, const Difference& plan, bool taken);

}  // namespace slimfast
