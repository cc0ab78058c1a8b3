// What torch hands to the ops of the optimizer steps: checked, and brought into one memory order. For CPU and CUDA.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "step_rules.h"

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

inline void check_like(const Tensor& param, const Tensor& other, const char* name) {
  STD_TORCH_CHECK(param.sizes().equals(other.sizes()), name, ": shape differs from its parameter's");
  STD_TORCH_CHECK(param.device() == other.device(), name, ": device differs from its parameter's");
}

// The next tensor of a list that holds one for some parameters only.
inline const Tensor* take(const std::vector<Tensor>& list, size_t& used, const char* name) {
  STD_TORCH_CHECK(used < list.size(), name, ": fewer than parameters that need one");
  return &list[used++];
}

// An odd memory layout is worked on in contiguous copies; `copy_back` returns them.
class OneOrder {
 public:
  // Replaces all of them unless they are dense and a walk through memory meets the same elements in each.
  void align(const std::vector<Tensor*>& changed, Tensor& grad) {
    const Tensor first = *changed[0];
    const bool ordered = std::all_of(changed.begin(), changed.end(), [&](Tensor* t) { return same_order(first, *t); });
    if (is_dense(first) && ordered && same_order(first, grad)) return;
    for (Tensor* t : changed) {
      copies_.emplace_back(*t, torch::stable::contiguous(*t));
      *t = copies_.back().second;
    }
    alive_.push_back(grad = torch::stable::contiguous(grad));
  }

  void copy_back() {
    for (auto& [to, from] : copies_) torch::stable::copy_(to, from);
  }

 private:
  std::vector<std::pair<Tensor, Tensor>> copies_;  // original, contiguous copy
  std::vector<Tensor> alive_;
};

inline const float* scaler_number(const std::optional<Tensor>& t, const char* name) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->numel() == 1, name, ": must be one float32");
  return static_cast<const float*>(t->const_data_ptr());
}

}  // namespace slimfast
