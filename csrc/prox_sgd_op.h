// What torch hands to the op prox_sgd_, as the tables of prox_sgd.h. Shared by CPU and CUDA.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "prox_sgd.h"

namespace slimfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Number number_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Number::F32;
    case ScalarType::Double: return Number::F64;
    case ScalarType::BFloat16: return Number::BF16;
    case ScalarType::Half: return Number::F16;
    default: STD_TORCH_CHECK(false, name, ": dtype must be float32, float64, bfloat16 or float16"); std::abort();
  }
}

// Whether the numbers fill their memory without gap or overlap.
inline bool is_dense(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) == 0) return true;
    else if (t.size(d) != 1) axes.emplace_back(t.stride(d), t.size(d));
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (auto [stride, size] : axes) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// Whether walking both in memory order meets the same elements.
inline bool same_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// The tensors of one call. An odd memory layout is worked on in a contiguous copy, which `copy_back` returns.
class SgdTensors {
 public:
  std::vector<SgdTensor> table;

  SgdTensors(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
             const std::vector<Tensor>& momentum_buffers, const std::vector<int64_t>& group,
             const std::vector<SgdGroup>& groups) {
    STD_TORCH_CHECK(params.size() == grads.size() && params.size() == group.size(),
                    "params, grads and group differ in length: ", params.size(), ", ", grads.size(), ", ", group.size());
    table.reserve(params.size());
    size_t used = 0;
    for (size_t i = 0; i < params.size(); ++i) {
      STD_TORCH_CHECK(group[i] >= 0 && group[i] < static_cast<int64_t>(groups.size()), "group: no hyperparameters for ", group[i]);
      const bool has_momentum = groups[group[i]].momentum != 0;
      STD_TORCH_CHECK(!has_momentum || used < momentum_buffers.size(), "momentum_buffers: fewer than parameters with momentum");
      add(params[i], grads[i], has_momentum ? &momentum_buffers[used++] : nullptr, static_cast<int32_t>(group[i]));
    }
    STD_TORCH_CHECK(used == momentum_buffers.size(), "momentum_buffers: more than parameters with momentum");
  }

  void copy_back() {
    for (auto& [to, from] : copies_) torch::stable::copy_(to, from);
  }

 private:
  std::vector<std::pair<Tensor, Tensor>> copies_;  // original, contiguous copy
  std::vector<Tensor> alive_;

  static void check(const Tensor& param, const Tensor& other, const char* name) {
    STD_TORCH_CHECK(param.sizes().equals(other.sizes()), name, ": shape differs from its parameter's");
    STD_TORCH_CHECK(param.device() == other.device(), name, ": device differs from its parameter's");
  }

  void add(Tensor param, Tensor grad, const Tensor* momentum, int32_t group) {
    check(param, grad, "grads");
    if (momentum) check(param, *momentum, "momentum_buffers");
    Tensor buffer = momentum ? *momentum : param;
    if (!is_dense(param) || !same_order(param, grad) || !same_order(param, buffer)) {
      param = writable(param);
      if (momentum) buffer = writable(buffer);
      alive_.push_back(grad = torch::stable::contiguous(grad));
    }
    table.push_back({param.mutable_data_ptr(), grad.const_data_ptr(), momentum ? buffer.mutable_data_ptr() : nullptr,
                     param.numel(), group, number_of(param, "params"), number_of(grad, "grads"),
                     number_of(buffer, "momentum_buffers")});
  }

  Tensor writable(const Tensor& original) {
    Tensor copy = torch::stable::contiguous(original);
    copies_.emplace_back(original, copy);
    return copy;
  }
};

// The op's hyperparameter lists, one entry per group, in the order of its schema.
inline std::vector<SgdGroup> sgd_groups(
    const std::vector<double>& lr, const std::vector<double>& momentum, const std::vector<double>& dampening,
    const std::vector<double>& weight_decay, const std::vector<bool>& nesterov, const std::vector<bool>& maximize,
    const std::vector<bool>& first_step, const std::vector<int64_t>& kind, const std::vector<double>& lam,
    const std::vector<double>& shape, const std::vector<double>& prox_step,
    const std::vector<double>& subgradient_scale) {
  const size_t n = lr.size();
  for (size_t size : {momentum.size(), dampening.size(), weight_decay.size(), nesterov.size(), maximize.size(),
                      first_step.size(), kind.size(), lam.size(), shape.size(), prox_step.size(), subgradient_scale.size()})
    STD_TORCH_CHECK(size == n, "hyperparameters: every list needs one entry per group, ", n, "; got ", size);
  std::vector<SgdGroup> groups;
  groups.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    STD_TORCH_CHECK(kind[i] >= 0 && kind[i] <= static_cast<int64_t>(Kind::SCAD), "kind: ", kind[i], " is none of 0 to 6");
    groups.push_back({lr[i], momentum[i], dampening[i], weight_decay[i], lam[i], shape[i], prox_step[i],
                      subgradient_scale[i], kind[i], nesterov[i], maximize[i], first_step[i]});
  }
  return groups;
}

}  // namespace slimfast
