// CPU kernel of the op group_prox.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "blocks.h"
#include "group_penalty.h"
#include "prox_sgd.h"

namespace slimfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Number number_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return Number::F32;
    case ScalarType::Double: return Number::F64;
    case ScalarType::BFloat16: return Number::BF16;
    case ScalarType::Half: return Number::F16;
    default: throw std::invalid_argument("x: dtype must be float32, float64, float16 or bfloat16");
  }
}

// A group's numbers lie in `outer` runs of `inner` each, `apart` numbers from one run to the next.
struct Layout {
  int64_t groups, outer, inner, apart;
  int64_t size() const { return outer * inner; }
};

// The memory is a row (outer, groups, inner): dense, and the order of its dimensions whatever it is.
Layout layout_of(const Tensor& x, int64_t dim) {
  if (dim < 0) return {1, 1, x.numel(), x.numel()};
  std::vector<int64_t> sizes, strides;
  for (int64_t d = 0; d < x.dim(); ++d) sizes.push_back(x.size(d)), strides.push_back(x.stride(d));
  const Around around = around_dim(sizes.data(), strides.data(), x.dim(), dim);
  return {sizes[dim], around.outer, around.inner, around.inner * sizes[dim]};
}

template <class T, class F>
void for_each_group(const T* in, T* out, const Layout& layout, F&& f) {
  const int64_t n = layout.size(), grain = std::max<int64_t>(1, (1 << 15) / n);
  torch::stable::parallel_for(0, layout.groups, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<double[]> wide(new double[n]);
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t o = 0; o < layout.outer; ++o)
        convert(wide.get() + o * layout.inner, in + o * layout.apart + g * layout.inner, layout.inner);
      f(wide.get(), n);
      for (int64_t o = 0; o < layout.outer; ++o)
        convert(out + o * layout.apart + g * layout.inner, wide.get() + o * layout.inner, layout.inner);
    }
  });
}

bool same_layout(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.stride(d) != b.stride(d)) return false;
  return true;
}

Tensor group_prox(const Tensor& x, int64_t form, int64_t dim, int64_t kind, double lam, double shape, double group_lam,
                  double step) {
  Tensor out = torch::stable::empty_like(x);
  if (x.numel() == 0) return out;
  const GroupRule rule{static_cast<Form>(form), kind, lam, shape, group_lam};
  Tensor from = x;
  if (rule.form == Form::DIFFERENCE) from = torch::stable::contiguous(x);  // of equals, the first in x's own order stays
  else if (!same_layout(x, out)) from = torch::stable::copy_(out, x);
  Tensor to = same_layout(from, out) ? out : torch::stable::empty_like(from);
  const Layout layout = layout_of(from, rule.form == Form::DIFFERENCE ? -1 : dim);
  with_type(number_of(x), [&](auto* as) {
    using T = std::remove_pointer_t<decltype(as)>;
    for_each_group(static_cast<const T*>(from.const_data_ptr()), static_cast<T*>(to.mutable_data_ptr()), layout,
                   [&](double* group, int64_t n) { prox_group(group, n, rule, step); });
  });
  if (to.const_data_ptr() != out.const_data_ptr()) torch::stable::copy_(out, to);
  return out;
}

}  // namespace
}  // namespace slimfast

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) { m.impl("group_prox", TORCH_BOX(&slimfast::group_prox)); }
