// CPU kernels of the ops prox, penalty_value and penalty_grad.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>

#include "penalty.h"

namespace slimfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <Kind K>
struct ProxOf {
  Prox constants;
  double operator()(double x) const { return prox_one<K>(x, constants); }
};

template <Kind K>
struct ValueOf {
  double lam, shape;
  double operator()(double x) const { return value_one<K>(x, lam, shape); }
};

template <Kind K>
struct GradOf {
  double lam, shape;
  double operator()(double x) const { return grad_one<K>(x, lam, shape); }
};

template <class F>
SLIMFAST_SIMD void apply(double* x, int64_t n, const F& function) {
  const F f = function;  // a local copy: `x` cannot alias it
  for (int64_t i = 0; i < n; ++i) x[i] = f(x[i]);
}

template <class T>
SLIMFAST_SIMD void widen(const T* x, double* wide, int64_t n) {
  for (int64_t i = 0; i < n; ++i) wide[i] = static_cast<double>(x[i]);
}

template <class T>
SLIMFAST_SIMD void narrow(const double* wide, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(wide[i]);
}

// A few kilobytes at a time are widened to double and computed in cache: one loop per function, whatever the dtype.
template <class T, class F>
void map(const void* in, void* out, int64_t n, const F& function) {
  constexpr int64_t BLOCK = 512, GRAIN = 1 << 15;
  torch::stable::parallel_for(0, n, GRAIN, [&](int64_t begin, int64_t end) {
    double wide[BLOCK];
    for (int64_t i = begin; i < end; i += BLOCK) {
      const int64_t count = std::min(BLOCK, end - i);
      widen(static_cast<const T*>(in) + i, wide, count);
      apply(wide, count, function);
      narrow(wide, static_cast<T*>(out) + i, count);
    }
  });
}

bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.stride(d) != b.stride(d)) return false;
  return true;
}

template <class F>
Tensor elementwise(const Tensor& x, const F& function) {
  Tensor out = torch::stable::empty_like(x);
  const bool dense = same_layout(x, out);
  if (!dense) torch::stable::copy_(out, x);
  const void* in = dense ? x.const_data_ptr() : out.const_data_ptr();
  void* to = out.mutable_data_ptr();
  switch (x.scalar_type()) {
    case ScalarType::Float: map<float>(in, to, x.numel(), function); break;
    case ScalarType::Double: map<double>(in, to, x.numel(), function); break;
    case ScalarType::Half: map<torch::headeronly::Half>(in, to, x.numel(), function); break;
    case ScalarType::BFloat16: map<torch::headeronly::BFloat16>(in, to, x.numel(), function); break;
    default: throw std::invalid_argument("x: dtype must be float32, float64, float16 or bfloat16");
  }
  return out;
}

Tensor prox(const Tensor& x, int64_t kind, double lam, double shape, double step) {
  return dispatch_kind(kind, [&](auto K) { return elementwise(x, ProxOf<K.value>{make_prox(kind, lam, shape, step)}); });
}

Tensor penalty_value(const Tensor& x, int64_t kind, double lam, double shape) {
  return dispatch_kind(kind, [&](auto K) { return elementwise(x, ValueOf<K.value>{lam, shape}); });
}

Tensor penalty_grad(const Tensor& x, int64_t kind, double lam, double shape) {
  return dispatch_kind(kind, [&](auto K) { return elementwise(x, GradOf<K.value>{lam, shape}); });
}

}  // namespace
}  // namespace slimfast

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) {
  m.impl("prox", TORCH_BOX(&slimfast::prox));
  m.impl("penalty_value", TORCH_BOX(&slimfast::penalty_value));
  m.impl("penalty_grad", TORCH_BOX(&slimfast::penalty_grad));
}
