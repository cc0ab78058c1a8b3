// One step of momentum SGD with a penalty, for one number, and the tables that name a whole model's numbers.
//
// d = sign g + weight_decay p [+ subgradient_scale penalty'(p)];  m = momentum m + (1 - dampening) d;
// p = prox(p - lr (nesterov ? d + momentum m : m)).   Sutskever et al. 2013; proximal step: Parikh & Boyd 2014, 4.2.
#pragma once

#include "penalty.h"

namespace slimfast {

enum class Number : int8_t { F32, F64, BF16, F16 };

// Hyperparameters that a set of tensors shares. At most one of prox_step and subgradient_scale is not 0.
struct SgdGroup {
  double lr, momentum, dampening, weight_decay;
  double lam, shape, prox_step, subgradient_scale;
  int64_t kind;
  bool nesterov, maximize;
  bool first_step;  // the momentum buffer holds nothing yet: it becomes d, whatever the dampening

  SLIMFAST_HD bool has_prox() const { return prox_step != 0 && lam != 0 && kind != 0; }
  SLIMFAST_HD bool has_subgradient() const { return subgradient_scale != 0 && lam != 0 && kind != 0; }
};

struct SgdTensor {
  void* param;       // numel numbers in any order that all three share
  const void* grad;
  void* momentum;    // null without momentum
  int64_t numel;
  int32_t group;
  Number param_type, grad_type, momentum_type;
};

// The arithmetic of torch.optim.SGD's loop, rounding for rounding: torch fuses `add(alpha=)` and does not fuse `mul_`.
template <class T>
struct SgdStep {
  T sign, lr, momentum, keep, weight_decay;
  bool decays, nesterov, first_step;

  SLIMFAST_HD explicit SgdStep(const SgdGroup& h)
      : sign(h.maximize ? T(-1) : T(1)),
        lr(static_cast<T>(-h.lr)),
        momentum(static_cast<T>(h.momentum)),
        keep(static_cast<T>(1 - h.dampening)),
        weight_decay(static_cast<T>(h.weight_decay)),
        decays(h.weight_decay != 0),
        nesterov(h.nesterov),
        first_step(h.first_step) {}

  SLIMFAST_HD inline T direction(T p, T g) const {
    g = sign * g;
    return decays ? std::fma(p, weight_decay, g) : g;
  }

  template <bool HAS_MOMENTUM>
  SLIMFAST_HD inline T advance(T p, T d, T* m) const {
    if constexpr (HAS_MOMENTUM) {
      const T next = std::fma(d, keep, momentum * *m);
      *m = first_step ? d : next;
      d = nesterov ? std::fma(*m, momentum, d) : *m;
    }
    return std::fma(d, lr, p);
  }
};

}  // namespace slimfast

// One pass over all tensors on the CPU; every kind and group index must be valid.
extern "C" __attribute__((visibility("default"))) void slimfast_prox_sgd_cpu(
    const slimfast::SgdTensor* tensors, int64_t count, const slimfast::SgdGroup* groups, int64_t group_count);
