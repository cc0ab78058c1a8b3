// One step of AdamW with a penalty in Adam's diagonal metric, for one number.
//
// m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2;  t = lr / (sqrt(v) / sqrt(1 - beta2^k) + eps);
// p = (1 - lr weight_decay) p - t m / (1 - beta1^k);  p = argmin_u (u - p)^2 / (2 t) + penalty(u).
// Loshchilov & Hutter 2019; the proximal step in a diagonal metric: Becker & Fadili 2012, Yun, Lozano & Yang 2021.
#pragma once

#include "step_rules.h"

namespace slimfast {

// What a set of tensors shares: a row of the op's `hyper`, then one of its `rules`.
struct AdamGroup {
  double lr, beta1, beta2, eps, weight_decay, lam, shape, group_lam, penalty_scale;
  Kind kind;
  Form form;
  int32_t dim;
  Method method;
  int32_t flags;

  SLIMFAST_HD bool has(Flag flag) const { return (flags & flag) != 0; }
  SLIMFAST_HD bool is_penalised() const {
    return penalty_scale != 0 && ((kind != Kind::NONE && lam != 0) || (form == Form::SPARSE && group_lam != 0));
  }
  SLIMFAST_HD bool has_prox() const { return method == Method::PROX && is_penalised() && lr != 0; }
  SLIMFAST_HD bool has_subgradient() const { return method == Method::SUBGRADIENT && is_penalised(); }
  SLIMFAST_HD bool is_grouped() const { return form != Form::ELEMENTWISE && (has_prox() || has_subgradient()); }
};

// The arithmetic of torch.optim.AdamW's loop at its `count`-th step, rounding for rounding: torch fuses lerp and addcmul.
template <class T>
struct AdamStep {
  T factor, lr, share1, beta2, share2, root2, eps, decay;
  bool keeps;  // share1 is the gradient's share in m, else, where that is large, minus the old m's
  bool moves;  // lr is not 0: else 0 * inf must not reach a parameter

  SLIMFAST_HD AdamStep(const AdamGroup& h, double count, double grad_scale)
      : factor(static_cast<T>((h.has(MAXIMIZE) ? -1 : 1) / grad_scale)),
        lr(static_cast<T>(-h.lr / (1 - std::pow(h.beta1, count)))),
        share1(static_cast<T>(1 - h.beta1) < T(0.5) ? static_cast<T>(1 - h.beta1) : static_cast<T>(1 - h.beta1) - 1),
        beta2(static_cast<T>(h.beta2)),
        share2(static_cast<T>(1 - h.beta2)),
        root2(static_cast<T>(std::sqrt(1 - std::pow(h.beta2, count)))),
        eps(static_cast<T>(h.eps)),
        decay(static_cast<T>(1 - h.lr * h.weight_decay)),
        keeps(static_cast<T>(1 - h.beta1) < T(0.5)),
        moves(h.lr != 0) {}

  // p, m, v and, for AMSGRAD, top after the step; returns lr / t, the denominator.
  template <bool AMSGRAD>
  SLIMFAST_HD inline T advance(T* p, T d, T* m, T* v, T* top) const {
    *m = std::fma(share1, d - *m, keeps ? *m : d);
    *v = std::fma(share2 * d, d, *v * beta2);
    T size = *v;
    if constexpr (AMSGRAD) {
      *top = size > *top || size != size ? size : *top;
      size = *top;
    }
    const T denominator = std::sqrt(size) / root2 + eps;
    *p = moves ? *p * decay + lr * *m / denominator : *p;
    return denominator;
  }
};

}  // namespace slimfast
