// One step of momentum SGD with a penalty, for one number, and the tables that name a whole model's numbers.
//
// d = sign g / grad_scale + weight_decay p [+ penalty's slope];  m = momentum m + (1 - dampening) d;
// p = prox(p - lr (nesterov ? d + momentum m : m)).   Sutskever et al. 2013; proximal step: Parikh & Boyd 2014, 4.2.
//
// The slope is scale penalty'(p) for SUBGRADIENT and beta (p - prox(p)), that of the Moreau envelope, for RELAXED
// (Bui et al. 2021). ALTERNATING (Bui et al. 2023), with t = beta lr gain: p = (p + t a) / (1 + t), then
// a = prox((a + t p) / (1 + t)). With FREEZE_ZEROS p, m and a become 0 where p was, before all these.
#pragma once

#include "step_rules.h"

namespace slimfast {

// What a set of tensors shares: a row of the op's `hyper`, then one of its `rules`.
struct SgdGroup {
  double lr, momentum, dampening, weight_decay, lam, shape, group_lam, penalty_scale, gain, beta;
  Kind kind;
  Form form;
  int32_t dim;
  Method method;
  int32_t flags;

  SLIMFAST_HD bool has(Flag flag) const { return (flags & flag) != 0; }
  SLIMFAST_HD bool is_grouped() const { return form == Form::NORM || form == Form::SPARSE; }
  SLIMFAST_HD bool is_penalised() const {
    return kind != Kind::NONE && (lam != 0 || (form == Form::SPARSE && group_lam != 0));
  }
  SLIMFAST_HD double coupling() const { return beta * lr * gain; }

  // The step of the method's proximal operator.
  SLIMFAST_HD double prox_step() const {
    if (method == Method::RELAXED) return penalty_scale / beta;
    return lr * gain * penalty_scale / (method == Method::ALTERNATING ? 1 + coupling() : 1);
  }
  SLIMFAST_HD bool has_prox() const { return method == Method::PROX && is_penalised() && prox_step() != 0; }
  SLIMFAST_HD bool has_subgradient() const { return method == Method::SUBGRADIENT && is_penalised() && penalty_scale != 0; }
  SLIMFAST_HD bool has_envelope() const { return method == Method::RELAXED && is_penalised() && penalty_scale != 0; }
};

struct SgdTensor {
  void* param;         // numel numbers in any order that all four share
  const void* grad;
  void* momentum;      // null without momentum
  void* auxiliary;     // null unless the method is ALTERNATING
  int64_t numel;
  int64_t outer, inner;  // around the groups' dimension in memory; 1, numel for elementwise penalties
  int32_t group;
  Number param_type, grad_type, momentum_type, auxiliary_type;
};

// The arithmetic of torch.optim.SGD's loop, rounding for rounding: torch fuses `add(alpha=)` and does not fuse `mul_`.
template <class T>
struct SgdStep {
  T factor, lr, momentum, keep, weight_decay;
  bool decays, nesterov, first_step;

  SLIMFAST_HD explicit SgdStep(const SgdGroup& h, double inverse_grad_scale = 1)
      : factor(static_cast<T>(h.has(MAXIMIZE) ? -inverse_grad_scale : inverse_grad_scale)),
        lr(static_cast<T>(-h.lr)),
        momentum(static_cast<T>(h.momentum)),
        keep(static_cast<T>(1 - h.dampening)),
        weight_decay(static_cast<T>(h.weight_decay)),
        decays(h.weight_decay != 0),
        nesterov(h.has(NESTEROV)),
        first_step(h.has(FIRST_STEP)) {}

  SLIMFAST_HD inline T direction(T p, T g) const {
    g = factor * g;
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
    const slimfast::SgdTensor* tensors, int64_t count, const slimfast::SgdGroup* groups, int64_t group_count,
    const slimfast::Scaler* scaler);

// The same on a GPU, in its current stream, for tensors that it `serves`. `device_hyper`: the op's table if it is in device
// memory, else null: then the numbers in `groups` count. Missing where the library was built without CUDA.
extern "C" __attribute__((visibility("default"), weak)) void slimfast_prox_sgd_cuda(
    const slimfast::SgdTensor* tensors, int64_t count, const slimfast::SgdGroup* groups, int64_t group_count,
    const slimfast::Scaler* scaler, const double* device_hyper, int device);
extern "C" __attribute__((visibility("default"), weak)) bool slimfast_prox_sgd_cuda_serves(const slimfast::SgdTensor* tensor,
                                                                                           const slimfast::SgdGroup* group);
