// ProxSGD on the CPU: every parameter of a model in one pass over memory.
#include "blocks.h"
#include "prox_sgd_op.h"

namespace slimfast {
namespace {

template <class T, bool HAS_MOMENTUM>
inline void step_loop(T* __restrict p, const T* __restrict d, T* __restrict m, int64_t n, const SgdStep<T> s) {
  for (int64_t i = 0; i < n; ++i) p[i] = s.template advance<HAS_MOMENTUM>(p[i], s.direction(p[i], d[i]), m + i);
}

template <class T>
SLIMFAST_SIMD void step(T* p, const T* g, T* m, int64_t n, const SgdStep<T>& s) {
  m ? step_loop<T, true>(p, g, m, n, s) : step_loop<T, false>(p, g, m, n, s);
}

template <class T, bool HAS_MOMENTUM>
inline void advance_loop(T* __restrict p, const T* __restrict d, T* __restrict m, int64_t n, const SgdStep<T> s) {
  for (int64_t i = 0; i < n; ++i) p[i] = s.template advance<HAS_MOMENTUM>(p[i], d[i], m + i);
}

template <class T>
SLIMFAST_SIMD void advance(T* p, const T* d, T* m, int64_t n, const SgdStep<T>& s) {
  m ? advance_loop<T, true>(p, d, m, n, s) : advance_loop<T, false>(p, d, m, n, s);
}

// d = direction + scale penalty'(p)
template <Kind K, class T>
SLIMFAST_SIMD void penalised_direction(const T* p, const T* g, T* __restrict d, int64_t n, const SgdStep<T>& step,
                                       const SgdGroup& h) {
  const SgdStep<T> s = step;
  const double lam = h.lam, shape = h.shape;
  const T scale = static_cast<T>(h.penalty_scale);
  for (int64_t i = 0; i < n; ++i)
    d[i] = std::fma(static_cast<T>(grad_one<K>(static_cast<double>(p[i]), lam, shape)), scale, s.direction(p[i], g[i]));
}

template <Kind K, class T>
SLIMFAST_SIMD void shrink(T* p, int64_t n, const Prox& constants) {
  const Prox c = constants;
  for (int64_t i = 0; i < n; ++i) p[i] = static_cast<T>(prox_one<K>(static_cast<double>(p[i]), c));
}

// What a group's tensors share, computed once.
struct Constants {
  SgdGroup group;
  SgdStep<float> single;
  SgdStep<double> wide;
  Prox prox;
  bool has_prox, has_subgradient;

  explicit Constants(const SgdGroup& h)
      : group(h), single(h), wide(h), prox(make_prox(static_cast<int64_t>(h.kind), h.lam, h.shape, h.prox_step())),
        has_prox(h.has_prox()), has_subgradient(h.has_subgradient()) {}
};

template <class T>
void run_tensor(const SgdTensor& t, const Constants& c, const SgdStep<T>& constants, int64_t begin, int64_t end) {
  const SgdGroup& h = c.group;
  alignas(64) T spare[4][BLOCK];
  for (int64_t i = begin; i < end; i += BLOCK) {
    const int64_t n = std::min(BLOCK, end - i);
    T* p = load(t.param, t.param_type, i, n, spare[0]);
    const T* g = load(t.grad, t.grad_type, i, n, spare[1]);
    T* m = t.momentum ? load(t.momentum, t.momentum_type, i, n, spare[2]) : nullptr;
    if (c.has_subgradient) {
      dispatch_kind(static_cast<int64_t>(h.kind), [&](auto K) { penalised_direction<K()>(p, g, spare[3], n, constants, h); });
      advance(p, spare[3], m, n, constants);
    } else {
      step(p, g, m, n, constants);
    }
    if (c.has_prox) dispatch_kind(static_cast<int64_t>(h.kind), [&](auto K) { shrink<K()>(p, n, c.prox); });
    store(t.param, t.param_type, i, n, p);
    if (m) store(t.momentum, t.momentum_type, i, n, m);
  }
}

void run_range(const SgdTensor* tensors, int64_t count, const std::vector<Constants>& groups, int64_t begin, int64_t end) {
  for (int64_t i = 0, start = 0; i < count && start < end; start += tensors[i++].numel) {
    const SgdTensor& t = tensors[i];
    const int64_t from = std::max<int64_t>(begin - start, 0), to = std::min(end - start, t.numel);
    if (from >= to) continue;
    const Constants& c = groups[t.group];
    if (t.param_type == Number::F64) run_tensor(t, c, c.wide, from, to);
    else run_tensor(t, c, c.single, from, to);
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
  const std::vector<slimfast::Constants> constants(groups, groups + group_count);
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += tensors[i].numel;
  torch::stable::parallel_for(0, total, slimfast::GRAIN, [&](int64_t begin, int64_t end) {
    slimfast::run_range(tensors, count, constants, begin, end);
  });
}

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) { m.impl("prox_sgd_", TORCH_BOX(&slimfast::prox_sgd_)); }
