// What torch hands to the op prox_sgd_, as the tables of prox_sgd.h. Shared by CPU and CUDA.
#pragma once

#include "prox_sgd.h"
#include "step_tensors.h"

namespace slimfast {

// The tensors of one call. An odd memory layout is worked on in a contiguous copy, which `copy_back` returns.
class SgdTensors {
 public:
  std::vector<SgdTensor> table;

  SgdTensors(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
             const std::vector<Tensor>& momentum_buffers, const std::vector<Tensor>& auxiliary,
             const std::vector<int64_t>& group, const std::vector<SgdGroup>& groups) {
    STD_TORCH_CHECK(params.size() == grads.size() && params.size() == group.size(),
                    "params, grads and group differ in length: ", params.size(), ", ", grads.size(), ", ", group.size());
    table.reserve(params.size());
    size_t buffers = 0, copies = 0;
    for (size_t i = 0; i < params.size(); ++i) {
      STD_TORCH_CHECK(group[i] >= 0 && group[i] < static_cast<int64_t>(groups.size()), "group: no hyperparameters for ", group[i]);
      const SgdGroup& h = groups[group[i]];
      const Tensor* momentum = h.has(HAS_MOMENTUM) ? take(momentum_buffers, buffers, "momentum_buffers") : nullptr;
      const Tensor* sparse = h.method == Method::ALTERNATING ? take(auxiliary, copies, "auxiliary") : nullptr;
      add(params[i], grads[i], momentum, sparse, static_cast<int32_t>(group[i]), h);
    }
    STD_TORCH_CHECK(buffers == momentum_buffers.size(), "momentum_buffers: more than parameters with momentum");
    STD_TORCH_CHECK(copies == auxiliary.size(), "auxiliary: more than parameters with the method ALTERNATING");
  }

  void copy_back() { order_.copy_back(); }

 private:
  OneOrder order_;

  static Around around(const Tensor& t, int64_t dim) {
    STD_TORCH_CHECK(dim < t.dim(), "dim: ", dim, " is no dimension of a parameter that has ", t.dim());
    return around_dim(t.sizes().data(), t.strides().data(), t.dim(), dim);
  }

  void add(Tensor param, Tensor grad, const Tensor* momentum, const Tensor* sparse, int32_t group,
           const SgdGroup& h) {
    check_like(param, grad, "grads");
    if (momentum) check_like(param, *momentum, "momentum_buffers");
    if (sparse) check_like(param, *sparse, "auxiliary");
    Tensor buffer = momentum ? *momentum : param, copy = sparse ? *sparse : param;
    std::vector<Tensor*> changed{&param};
    if (momentum) changed.push_back(&buffer);
    if (sparse) changed.push_back(&copy);
    order_.align(changed, grad);
    const Around place = h.is_grouped() ? around(param, h.dim) : Around{1, param.numel()};
    table.push_back({param.mutable_data_ptr(), grad.const_data_ptr(), momentum ? buffer.mutable_data_ptr() : nullptr,
                     sparse ? copy.mutable_data_ptr() : nullptr, param.numel(), place.outer, place.inner, group,
                     number_of(param, "params"), number_of(grad, "grads"), number_of(buffer, "momentum_buffers"),
                     number_of(copy, "auxiliary")});
  }
};

inline void check_number(int64_t value, int64_t last, const char* name) {
  STD_TORCH_CHECK(value >= 0 && value <= last, name, ": ", value, " is none of 0 to ", last);
}

constexpr int64_t RULES = 5, COLUMNS = 10;  // per group: whole numbers in `rules`, float64 in a row of `hyper`

// The op's two tables. Numbers that the CPU cannot read, since `hyper` is on a GPU, are left 0.
inline std::vector<SgdGroup> sgd_groups(const std::vector<int64_t>& rules, const Tensor& table, bool is_readable = true) {
  const int64_t n = static_cast<int64_t>(rules.size()) / RULES;
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Double && table.dim() == 2 &&
                      table.size(0) == n && table.size(1) == COLUMNS && static_cast<int64_t>(rules.size()) == n * RULES,
                  "hyper: must be float64 [", n, ", ", COLUMNS, "], with ", RULES, " rules per row");
  const Tensor hyper = torch::stable::contiguous(table);
  static constexpr double UNKNOWN[COLUMNS] = {};
  std::vector<SgdGroup> groups;
  groups.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    const double* row = is_readable ? static_cast<const double*>(hyper.const_data_ptr()) + i * COLUMNS : UNKNOWN;
    const int64_t* rule = rules.data() + i * RULES;
    check_number(rule[0], static_cast<int64_t>(Kind::LOGSUM), "kind");
    check_number(rule[1], static_cast<int64_t>(Form::DIFFERENCE), "form");
    check_number(rule[2], rule[1] == 0 ? std::numeric_limits<int32_t>::max() : 1, "dim");
    check_number(rule[3], static_cast<int64_t>(Method::ALTERNATING), "method");
    groups.push_back({row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9],
                      static_cast<Kind>(rule[0]), static_cast<Form>(rule[1]), static_cast<int32_t>(rule[2]),
                      static_cast<Method>(rule[3]), static_cast<int32_t>(rule[4])});
  }
  return groups;
}

}  // namespace slimfast
