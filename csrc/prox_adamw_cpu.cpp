// ProxAdamW on the CPU: every parameter of a model in one pass over memory.
#include "blocks.h"
#include "metric_prox.h"
#include "prox_adamw.h"
#include "step_tensors.h"

namespace slimfast {
namespace {

constexpr int64_t GROUP_GRAIN = 1 << 15;  // numbers per thread where groups are solved

constexpr int64_t RULES = 5, COLUMNS = 9;  // per group: whole numbers in `rules`, float64 in a row of `hyper`

// What tensors of one group at one step share, computed once.
struct Constants {
  AdamGroup group;
  double count;
  AdamStep<float> single;
  AdamStep<double> wide;

  Constants(const AdamGroup& h, double count, double grad_scale)
      : group(h), count(count), single(h, count, grad_scale), wide(h, count, grad_scale) {}
};

enum Array { PARAM, GRAD, MEAN, SQUARE, TOP, ARRAYS };
const char* const NAMES[ARRAYS] = {"params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"};

struct Row {
  void* data[ARRAYS];  // numel numbers in any order that all share; TOP null without AMSGRAD
  Number types[ARRAYS];
  int64_t numel;
  Around place;  // of the groups' dimension in memory, where the penalty is one on groups
  size_t constants;

  int64_t groups() const { return numel / (place.outer * place.inner); }
};

template <class T, bool AMSGRAD>
inline void step_loop(T* __restrict p, const T* __restrict d, T factor, T* __restrict m, T* __restrict v, T* __restrict top,
                      T* __restrict denominator, int64_t n, const AdamStep<T> s) {
  for (int64_t i = 0; i < n; ++i)
    denominator[i] = s.template advance<AMSGRAD>(p + i, factor * d[i], m + i, v + i, top + i);
}

// One step in the direction factor * d; leaves each number's lr / t behind.
template <class T>
SLIMFAST_SIMD void step(T* const* x, const T* d, T factor, T* denominator, int64_t n, const AdamStep<T>& s) {
  x[TOP] ? step_loop<T, true>(x[PARAM], d, factor, x[MEAN], x[SQUARE], x[TOP], denominator, n, s)
         : step_loop<T, false>(x[PARAM], d, factor, x[MEAN], x[SQUARE], nullptr, denominator, n, s);
}

template <Kind K, class T>
SLIMFAST_SIMD void penalised_direction(const T* p, const T* g, T factor, T* __restrict d, int64_t n, const AdamGroup& h) {
  const double lam = h.lam, shape = h.shape;
  const T scale = static_cast<T>(h.penalty_scale);
  for (int64_t i = 0; i < n; ++i)
    d[i] = std::fma(static_cast<T>(grad_one<K>(static_cast<double>(p[i]), lam, shape)), scale, factor * g[i]);
}

// The operator with a step of each number's own.
template <Kind K, class T>
SLIMFAST_SIMD void shrink(T* __restrict p, const T* __restrict denominator, int64_t n, const AdamGroup& h) {
  const double lam = h.lam, shape = h.shape, lr = h.lr * h.penalty_scale;
  for (int64_t i = 0; i < n; ++i) {
    const Prox c = prox_of<K>(lam, shape, lr / static_cast<double>(denominator[i]));
    p[i] = static_cast<T>(prox_one<K>(static_cast<double>(p[i]), c));
  }
}

template <class T>
void run_tensor(const Row& row, const AdamGroup& h, const AdamStep<T>& constants, int64_t begin, int64_t end) {
  alignas(64) T spare[ARRAYS][BLOCK], direction[BLOCK], denominator[BLOCK];
  for (int64_t i = begin; i < end; i += BLOCK) {
    const int64_t n = std::min(BLOCK, end - i);
    T* x[ARRAYS];
    for (int a = 0; a < ARRAYS; ++a) x[a] = row.data[a] ? load(row.data[a], row.types[a], i, n, spare[a]) : nullptr;
    if (h.has_subgradient()) {
      dispatch_kind(static_cast<int64_t>(h.kind), [&](auto K) {
        penalised_direction<K()>(x[PARAM], x[GRAD], constants.factor, direction, n, h);
      });
      step(x, direction, T(1), denominator, n, constants);
    } else {
      step(x, x[GRAD], constants.factor, denominator, n, constants);
    }
    if (h.has_prox())
      dispatch_kind(static_cast<int64_t>(h.kind), [&](auto K) { shrink<K()>(x[PARAM], denominator, n, h); });
    for (int a : {PARAM, MEAN, SQUARE, TOP})
      if (x[a]) store(row.data[a], row.types[a], i, n, x[a]);
  }
}

// The direction of a step; with a penalty, `slope` is its part.
template <class T>
SLIMFAST_SIMD void direct(T* __restrict d, const T* __restrict g, const double* __restrict slope, T factor, int64_t n) {
  if (slope == nullptr)
    for (int64_t i = 0; i < n; ++i) d[i] = factor * g[i];
  else
    for (int64_t i = 0; i < n; ++i) d[i] = factor * g[i] + static_cast<T>(slope[i]);
}

template <class T>
SLIMFAST_SIMD void metric_of(double* __restrict t, const T* __restrict denominator, double lr, int64_t n) {
  for (int64_t i = 0; i < n; ++i) t[i] = lr / static_cast<double>(denominator[i]);
}

// Whole groups, which are brought together for the step: it and the operator round once, and see any layout.
template <class T>
class GroupRunner {
 public:
  GroupRunner(const Row& row, const AdamGroup& h, const AdamStep<T>& step)
      : row_(row), h_(h), step_(step), n_(row.place.outer * row.place.inner), arrays_((ARRAYS + 2) * n_), wide_(2 * n_) {
    for (int a = 0; a < ARRAYS; ++a) x_[a] = row.data[a] ? arrays_.data() + a * n_ : nullptr;
  }

  void run(int64_t group) {
    const GroupRule rule{h_.form, static_cast<int64_t>(h_.kind), h_.lam, h_.shape, h_.group_lam};
    T *direction = arrays_.data() + ARRAYS * n_, *denominator = direction + n_;
    double *p = wide_.data(), *other = p + n_;
    move(group, {PARAM, GRAD, MEAN, SQUARE, TOP}, [](auto* stored, T* x, int64_t n) { convert(x, stored, n); });
    if (h_.has_subgradient()) {
      convert(p, x_[PARAM], n_);
      std::fill_n(other, n_, 0.0);
      add_group_subgradient(p, other, n_, rule, h_.penalty_scale);
    }
    direct(direction, x_[GRAD], h_.has_subgradient() ? other : nullptr, step_.factor, n_);
    step(x_, direction, T(1), denominator, n_, step_);
    if (h_.has_prox()) {
      convert(p, x_[PARAM], n_);
      metric_of(other, denominator, h_.lr * h_.penalty_scale, n_);
      prox_in_metric(p, other, n_, rule);
      convert(x_[PARAM], p, n_);
    }
    move(group, {PARAM, MEAN, SQUARE, TOP}, [](auto* stored, T* x, int64_t n) { convert(stored, x, n); });
  }

 private:
  const Row& row_;
  const AdamGroup& h_;
  const AdamStep<T>& step_;
  int64_t n_;
  std::vector<T> arrays_;
  std::vector<double> wide_;
  T* x_[ARRAYS];

  template <class F>
  void move(int64_t group, std::initializer_list<Array> arrays, F&& f) const {
    const auto [outer, inner] = row_.place;
    for (Array a : arrays)
      if (x_[a])
        with_type(row_.types[a], [&](auto* as) {
          auto* stored = static_cast<decltype(as)>(row_.data[a]) + group * inner;
          for (int64_t o = 0; o < outer; ++o) f(stored + o * row_.groups() * inner, x_[a] + o * inner, inner);
        });
  }
};

template <class T>
void run_groups(const Row& row, const AdamGroup& h, const AdamStep<T>& step) {
  if (row.numel == 0) return;
  const int64_t grain = std::max<int64_t>(1, GROUP_GRAIN / (row.place.outer * row.place.inner));
  torch::stable::parallel_for(0, row.groups(), grain, [&](int64_t begin, int64_t end) {
    GroupRunner<T> runner(row, h, step);
    for (int64_t group = begin; group < end; ++group) runner.run(group);
  });
}

void check_group(const int64_t* rule) {
  const auto [kind, form, method] = std::tuple(static_cast<Kind>(rule[0]), static_cast<Form>(rule[1]), rule[3]);
  STD_TORCH_CHECK(rule[0] >= 0 && kind <= Kind::LOGSUM, "kind: ", rule[0], " is none of 0 to 7");
  STD_TORCH_CHECK(rule[1] >= 0 && form <= Form::SPARSE, "form: ", rule[1], " is none of 0 to 2");
  STD_TORCH_CHECK(method == 0 || method == 1, "method: ", method, " is none of 0 and 1");
  STD_TORCH_CHECK(form != Form::NORM || method == 1 || kind <= Kind::L1, "kind: ", rule[0], " has no operator with form NORM");
}

// The op's two tables. `hyper` must be on the CPU.
std::vector<AdamGroup> adam_groups(const std::vector<int64_t>& rules, const Tensor& table) {
  const int64_t n = static_cast<int64_t>(rules.size()) / RULES;
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Double && table.dim() == 2 && table.size(0) == n &&
                      table.size(1) == COLUMNS && static_cast<int64_t>(rules.size()) == n * RULES,
                  "hyper: must be float64 [", n, ", ", COLUMNS, "], with ", RULES, " rules per row");
  const Tensor hyper = torch::stable::contiguous(table);
  const double* row = static_cast<const double*>(hyper.const_data_ptr());
  std::vector<AdamGroup> groups;
  for (int64_t i = 0; i < n; ++i, row += COLUMNS) {
    const int64_t* rule = rules.data() + i * RULES;
    check_group(rule);
    groups.push_back({row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], static_cast<Kind>(rule[0]),
                      static_cast<Form>(rule[1]), static_cast<int32_t>(rule[2]), static_cast<Method>(rule[3]),
                      static_cast<int32_t>(rule[4])});
  }
  return groups;
}

// Calls f with a pointer to a stored count of steps.
template <class F>
void with_count(const Tensor& step, F&& f) {
  STD_TORCH_CHECK(step.numel() == 1, "steps: must be one number each");
  switch (number_of(step, "steps")) {
    case Number::F32: return f(static_cast<float*>(step.mutable_data_ptr()));
    case Number::F64: return f(static_cast<double*>(step.mutable_data_ptr()));
    default: STD_TORCH_CHECK(false, "steps: dtype must be float32 or float64");
  }
}

// All that one call works on.
class Work {
 public:
  std::vector<Row> rows, grouped;
  std::vector<Constants> constants;
  OneOrder order;

  Work(const std::vector<AdamGroup>& groups, double grad_scale) : groups_(groups), grad_scale_(grad_scale) {}

  // x: the parameter's tensors in the order of Array, TOP's left out without AMSGRAD.
  void add(std::vector<Tensor> x, const Tensor& step, int64_t group) {
    for (size_t a = 1; a < x.size(); ++a) check_like(x[PARAM], x[a], NAMES[a]);
    std::vector<Tensor*> changed;
    for (size_t a = 0; a < x.size(); ++a)
      if (a != GRAD) changed.push_back(&x[a]);
    order.align(changed, x[GRAD]);
    Row row{};
    for (size_t a = 0; a < x.size(); ++a) {
      row.data[a] = a == GRAD ? const_cast<void*>(x[a].const_data_ptr()) : x[a].mutable_data_ptr();
      row.types[a] = number_of(x[a], NAMES[a]);
    }
    row.numel = x[PARAM].numel();
    const AdamGroup& h = groups_[group];
    STD_TORCH_CHECK(!h.is_grouped() || (h.dim >= 0 && h.dim < x[PARAM].dim()), "dim: ", h.dim, " is no dimension of a parameter");
    row.place = {1, row.numel};
    if (h.is_grouped()) row.place = around_dim(x[PARAM].sizes().data(), x[PARAM].strides().data(), x[PARAM].dim(), h.dim);
    with_count(step, [&](auto* count) { row.constants = constants_of(group, *count + 1); });
    (h.is_grouped() ? grouped : rows).push_back(row);
  }

 private:
  const std::vector<AdamGroup>& groups_;
  double grad_scale_;
  int64_t group_ = -1;

  size_t constants_of(int64_t group, double count) {
    if (group != group_ || constants.back().count != count) constants.emplace_back(groups_[group], count, grad_scale_);
    group_ = group;
    return constants.size() - 1;
  }
};

void run_range(const Work& work, int64_t begin, int64_t end) {
  int64_t start = 0;
  for (const Row& row : work.rows) {
    const int64_t from = std::max<int64_t>(begin - start, 0), to = std::min(end - start, row.numel);
    start += row.numel;
    if (from >= to) continue;
    const Constants& c = work.constants[row.constants];
    if (row.types[PARAM] == Number::F64) run_tensor(row, c.group, c.wide, from, to);
    else run_tensor(row, c.group, c.single, from, to);
  }
}

void prox_adamw_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> exp_avgs,
                 std::vector<Tensor> exp_avg_sqs, std::vector<Tensor> max_exp_avg_sqs, std::vector<Tensor> steps,
                 std::vector<int64_t> group, std::vector<int64_t> rules, Tensor hyper, std::optional<Tensor> grad_scale,
                 std::optional<Tensor> found_inf) {
  const auto groups = adam_groups(rules, hyper);
  for (size_t size : {grads.size(), exp_avgs.size(), exp_avg_sqs.size(), steps.size(), group.size()})
    STD_TORCH_CHECK(size == params.size(), "params: ", params.size(), ", but another list has ", size);
  const float *scale = scaler_number(grad_scale, "grad_scale"), *overflow = scaler_number(found_inf, "found_inf");
  if (overflow && *overflow != 0) return;
  Work work(groups, scale ? *scale : 1);
  size_t used = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    STD_TORCH_CHECK(group[i] >= 0 && group[i] < static_cast<int64_t>(groups.size()), "group: no hyperparameters for ", group[i]);
    std::vector<Tensor> x{params[i], grads[i], exp_avgs[i], exp_avg_sqs[i]};
    if (groups[group[i]].has(AMSGRAD)) x.push_back(*take(max_exp_avg_sqs, used, NAMES[TOP]));
    work.add(std::move(x), steps[i], group[i]);
  }
  STD_TORCH_CHECK(used == max_exp_avg_sqs.size(), NAMES[TOP], ": more than parameters with AMSGRAD");
  int64_t total = 0;
  for (const Row& row : work.rows) total += row.numel;
  torch::stable::parallel_for(0, total, GRAIN, [&](int64_t begin, int64_t end) { run_range(work, begin, end); });
  for (const Row& row : work.grouped) {
    const Constants& c = work.constants[row.constants];
    row.types[PARAM] == Number::F64 ? run_groups(row, c.group, c.wide) : run_groups(row, c.group, c.single);
  }
  work.order.copy_back();
  for (const Tensor& step : steps) with_count(step, [](auto* count) { *count += 1; });
}

}  // namespace
}  // namespace slimfast

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) { m.impl("prox_adamw_", TORCH_BOX(&slimfast::prox_adamw_)); }
