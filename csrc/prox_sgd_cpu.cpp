// ProxSGD on the CPU: every parameter of a model in one pass over memory.
#include <memory>

#include "prox_sgd_op.h"
#include "prox_sgd_tile.h"

namespace slimfast {
namespace {

// The ordinary case: elementwise, nothing beyond the proximal operator.
template <class T>
void run_plain(const SgdTensor& t, const Constants& c, const SgdStep<T>& constants, int64_t begin, int64_t end) {
  alignas(64) T spare[3][BLOCK];
  for (int64_t i = begin; i < end; i += BLOCK) {
    const int64_t n = std::min(BLOCK, end - i);
    T* p = load(t.param, t.param_type, i, n, spare[0]);
    const T* g = load(t.grad, t.grad_type, i, n, spare[1]);
    T* m = t.momentum ? load(t.momentum, t.momentum_type, i, n, spare[2]) : nullptr;
    if (c.thresholds()) {
      step(p, g, m, n, constants, Threshold<T>(c.prox));
    } else {
      step(p, g, m, n, constants);
      if (c.has_prox) c.apply_prox(p, n);
    }
    store(t.param, t.param_type, i, n, p);
    if (m) store(t.momentum, t.momentum_type, i, n, m);
  }
}

// Numbers that stay in a core's own cache with their gradients, or enough of a row to read memory in order.
constexpr int64_t TILE = 1 << 15, ROW = 64;

// The work on one tensor comes in units that do not depend on each other: blocks of numbers, or tiles of groups.
class Units {
 public:
  Units(const SgdTensor& t, const Constants& c) : t_(t), is_grouped_(c.group.form != Form::ELEMENTWISE) {
    if (!is_grouped_ || t.numel == 0) return;
    groups_ = t.numel / (t.outer * t.inner);
    is_scaled_ = c.scales() && t.param_type == Number::F32;
    const int64_t most = std::max(BLOCK / t.inner, int64_t{1}), size = t.outer * t.inner;
    if (t.outer == 1) per_tile_ = most;
    else per_tile_ = is_scaled_ ? groups_ : std::clamp(std::max(TILE / size, (ROW - 1) / t.inner + 1), int64_t{1}, most);
  }

  bool are_scaled() const { return is_scaled_; }

  int64_t numbers() const { return is_grouped_ ? per_tile_ * t_.outer * t_.inner : BLOCK; }

  Tile operator[](int64_t i) const {
    if (!is_grouped_) return {i * BLOCK, std::min(BLOCK, t_.numel - i * BLOCK), 1, 0, 1};
    const int64_t first = i * per_tile_, count = std::min(per_tile_, groups_ - first);
    return {first * t_.inner, count * t_.inner, t_.outer, groups_ * t_.inner, t_.inner};
  }

 private:
  const SgdTensor& t_;
  bool is_grouped_, is_scaled_ = false;
  int64_t groups_ = 0, per_tile_ = 1;
};

// The units that begin between two numbers of a tensor: whatever the threads, each unit is one thread's.
template <class T>
void run_tensor(const SgdTensor& t, const Constants& c, const SgdStep<T>& s, int64_t begin, int64_t end) {
  const Units units(t, c);
  const int64_t n = units.numbers(), first = (begin + n - 1) / n, last = (end + n - 1) / n;
  if (c.is_plain) return run_plain(t, c, s, first * n, std::min(last * n, t.numel));
  if (first >= last) return;
  if (units.are_scaled()) {
    const std::unique_ptr<double[]> sums(new double[2 * ScaledStep::columns(units[0])]);
    for (int64_t i = first; i < last; ++i) ScaledStep(t, c, units[i], sums.get()).run();
    return;
  }
  const std::unique_ptr<double[]> x(new double[n]);
  for (int64_t i = first; i < last; ++i) {
    const Tile tile = units[i];
    TileStep<T> step(t, c, s, tile, x.get());
    if (c.has_slope) step.read(), c.apply_slope(x.get(), tile.groups(), tile.size());
    step.move();
    if (c.shrinks) c.apply_prox(x.get(), tile.groups(), tile.size()), step.write();
  }
}

// Calls f with the constants of the arithmetic that the tensor's numbers take.
template <class F>
void with_arithmetic(const SgdTensor& t, const Constants& c, F&& f) {
  t.param_type == Number::F64 ? f(c.wide) : f(c.single);
}

// The tensors of one group, which the penalty sees as one vector.
void run_network(const SgdTensor* tensors, int64_t count, const Constants& c, int32_t group) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += tensors[i].group == group ? tensors[i].numel : 0;
  if (total == 0) return;
  const std::unique_ptr<double[]> x(new double[total]);
  auto each = [&](auto f) {
    double* part = x.get();
    for (int64_t i = 0; i < count; ++i) {
      const SgdTensor& t = tensors[i];
      if (t.group != group || t.numel == 0) continue;
      with_arithmetic(t, c, [&](const auto& s) { f(TileStep(t, c, s, Tile{0, t.numel, 1, 0, t.numel}, part)); });
      part += t.numel;
    }
  };
  if (c.has_slope) each([](auto&& step) { step.read(); }), c.apply_slope(x.get(), 1, total);
  each([](auto&& step) { step.move(); });
  if (c.shrinks) c.apply_prox(x.get(), 1, total), each([](auto&& step) { step.write(); });
}

// The first numbers of a tensor.
void prefetch_head(const SgdTensor& t) {
  const int64_t bytes = std::min(AHEAD, t.numel * 4);
  for (int64_t i = 0; i < bytes; i += LINE) {
    const auto at = [i](const void* memory) { return static_cast<const char*>(memory) + i; };
    prefetch(at(t.param), at(t.grad), at(t.momentum ? t.momentum : t.param));
  }
}

void run_range(const SgdTensor* tensors, int64_t count, const std::vector<Constants>& groups, int64_t begin, int64_t end) {
  constexpr int64_t NEXT = 4;
  for (int64_t i = 0, start = 0; i < count && start < end; start += tensors[i++].numel) {
    const SgdTensor& t = tensors[i];
    const int64_t from = std::max<int64_t>(begin - start, 0), to = std::min(end - start, t.numel);
    if (from >= to) continue;
    if (i + NEXT < count) prefetch_head(tensors[i + NEXT]);
    const Constants& c = groups[t.group];
    if (!c.is_network()) with_arithmetic(t, c, [&](const auto& s) { run_tensor(t, c, s, from, to); });
  }
}

void prox_sgd_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
               std::vector<Tensor> auxiliary, std::vector<int64_t> group, std::vector<int64_t> rules, Tensor hyper,
               std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  const auto groups = sgd_groups(rules, hyper);
  SgdTensors tensors(params, grads, momentum_buffers, auxiliary, group, groups);
  const Scaler scaler{scaler_number(grad_scale, "grad_scale"), scaler_number(found_inf, "found_inf")};
  slimfast_prox_sgd_cpu(tensors.table.data(), tensors.table.size(), groups.data(), groups.size(), &scaler);
  tensors.copy_back();
}

}  // namespace
}  // namespace slimfast

void slimfast_prox_sgd_cpu(const slimfast::SgdTensor* tensors, int64_t count, const slimfast::SgdGroup* groups,
                           int64_t group_count, const slimfast::Scaler* scaler) {
  if (scaler->found_inf && *scaler->found_inf != 0) return;
  const double inverse_grad_scale = scaler->grad_scale ? 1 / static_cast<double>(*scaler->grad_scale) : 1;
  std::vector<slimfast::Constants> constants;
  constants.reserve(group_count);
  for (int64_t i = 0; i < group_count; ++i) constants.emplace_back(groups[i], inverse_grad_scale);
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += tensors[i].numel;
  torch::stable::parallel_for(0, total, slimfast::GRAIN, [&](int64_t begin, int64_t end) {
    slimfast::run_range(tensors, count, constants, begin, end);
  });
  for (int32_t i = 0; i < group_count; ++i)
    if (constants[i].is_network()) slimfast::run_network(tensors, count, constants[i], i);
}

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) { m.impl("prox_sgd_", TORCH_BOX(&slimfast::prox_sgd_)); }
