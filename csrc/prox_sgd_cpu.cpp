// ProxSGD on the CPU: every parameter of a model in one pass over memory.
#include "blocks.h"
#include "prox_sgd_op.h"

namespace slimfast {
namespace {

constexpr int64_t LINE = 64, AHEAD = 512;  // bytes: a cache line; what is asked for while the numbers before it are worked on

// Processors prefetch by themselves, but not across pages, and not where a tensor begins.
template <class T>
inline void prefetch(const T* p, const T* g, const T* m) {
  __builtin_prefetch(p, 1);
  __builtin_prefetch(g);
  __builtin_prefetch(m, 1);
}

template <class T, bool HAS_MOMENTUM, bool HAS_SLOPE>
inline void step_loop(T* __restrict p, const T* __restrict g, const T* __restrict slope, T* __restrict m, int64_t n,
                      const SgdStep<T> s) {
  auto step_one = [&](int64_t i) {
    T d = s.direction(p[i], g[i]);
    if constexpr (HAS_SLOPE) d += slope[i];
    p[i] = s.template advance<HAS_MOMENTUM>(p[i], d, m + i);
  };
  constexpr int64_t WIDTH = LINE / sizeof(T), DISTANCE = AHEAD / sizeof(T);
  int64_t i = 0;
  for (; i + WIDTH <= n; i += WIDTH) {
    prefetch(p + i + DISTANCE, g + i + DISTANCE, HAS_MOMENTUM ? m + i + DISTANCE : p);
    for (int64_t j = i; j < i + WIDTH; ++j) step_one(j);
  }
  for (; i < n; ++i) step_one(i);
}

template <class T>
SLIMFAST_SIMD void step(T* p, const T* g, T* m, int64_t n, const SgdStep<T>& s) {
  m ? step_loop<T, true, false>(p, g, nullptr, m, n, s) : step_loop<T, false, false>(p, g, nullptr, m, n, s);
}

template <class T>
SLIMFAST_SIMD void step_with(const T* slope, T* p, const T* g, T* m, int64_t n, const SgdStep<T>& s) {
  m ? step_loop<T, true, true>(p, g, slope, m, n, s) : step_loop<T, false, true>(p, g, slope, m, n, s);
}

template <Kind K, class T>
SLIMFAST_SIMD void shrink(T* p, int64_t n, const Prox& constants) {
  const Prox c = constants;
  for (int64_t i = 0; i < n; ++i) p[i] = static_cast<T>(prox_one<K>(static_cast<double>(p[i]), c));
}

// x = scale penalty'(x)
template <Kind K>
SLIMFAST_SIMD void to_slope(double* x, int64_t n, const SgdGroup& h) {
  const double lam = h.lam, shape = h.shape, scale = h.penalty_scale;
  for (int64_t i = 0; i < n; ++i) x[i] = scale * grad_one<K>(x[i], lam, shape);
}

// x = beta (x - prox(x)), the slope of the Moreau envelope
template <Kind K>
SLIMFAST_SIMD void to_envelope_slope(double* x, int64_t n, const Prox& constants, double beta) {
  const Prox c = constants;
  for (int64_t i = 0; i < n; ++i) x[i] = beta * (x[i] - prox_one<K>(x[i], c));
}

// to = (to + t from) / (1 + t)
template <class T, class From>
SLIMFAST_SIMD void draw_to(T* to, const From* from, int64_t n, double t) {
  for (int64_t i = 0; i < n; ++i)
    to[i] = static_cast<T>((static_cast<double>(to[i]) + t * static_cast<double>(from[i])) / (1 + t));
}

// Zeros where the parameters were 0.
template <class T>
SLIMFAST_SIMD void freeze(const T* __restrict before, T* __restrict x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = before[i] == 0 ? 0 : x[i];
}

// Numbers of one row of memory, from or to where they lie group by group.
template <class From>
SLIMFAST_SIMD void to_groups(double* x, const From* row, int64_t groups, int64_t inner, int64_t size) {
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < inner; ++i) x[g * size + i] = static_cast<double>(row[g * inner + i]);
}

template <class To>
SLIMFAST_SIMD void from_groups(To* row, const double* x, int64_t groups, int64_t inner, int64_t size) {
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < inner; ++i) row[g * inner + i] = static_cast<To>(x[g * size + i]);
}

// What a group's tensors share, computed once.
struct Constants {
  SgdGroup group;
  SgdStep<float> single;
  SgdStep<double> wide;
  Prox prox;
  bool has_prox, has_slope, is_plain;

  Constants(const SgdGroup& h, double inverse_grad_scale)
      : group(h), single(h, inverse_grad_scale), wide(h, inverse_grad_scale),
        prox(make_prox(static_cast<int64_t>(h.kind), h.lam, h.shape, h.prox_step())), has_prox(h.has_prox()),
        has_slope(h.has_subgradient() || h.has_envelope()),
        is_plain(!has_slope && !h.has(FREEZE_ZEROS) && h.method != Method::ALTERNATING) {}

  Form form() const { return group.form; }
  int64_t kind() const { return static_cast<int64_t>(group.kind); }

  template <class T>
  void apply_prox(T* x, int64_t n) const {
    dispatch_kind(kind(), [&](auto K) { shrink<K()>(x, n, prox); });
  }

  void apply_prox(double* x, int64_t groups, int64_t size) const { apply_prox(x, groups * size); }

  void apply_slope(double* x, int64_t groups, int64_t size) const {
    const int64_t n = groups * size;
    dispatch_kind(kind(), [&](auto K) {
      group.has_envelope() ? to_envelope_slope<K()>(x, n, prox, group.beta) : to_slope<K()>(x, n, group);
    });
  }
};

// Whole groups of one tensor: `rows` rows of memory, `stride` apart, in each of which groups of `inner` numbers lie side
// by side. Elementwise penalties have one row.
struct Tile {
  int64_t begin, width, rows, stride, inner;

  int64_t groups() const { return width / inner; }
  int64_t size() const { return rows * inner; }
};

// A step on one tile. The penalty works on `x`, where the tile's numbers lie group by group in double precision.
template <class T>
class TileStep {
 public:
  TileStep(const SgdTensor& tensor, const Constants& constants, const SgdStep<T>& step_constants, const Tile& place,
           double* scratch)
      : t(tensor), c(constants), s(step_constants), tile(place), x(scratch) {}

  void run() {
    if (c.has_slope) {
      blocks([&](const Place& at) { spread(load(t.param, t.param_type, at.begin, at.n, spare[0]), at); });
      c.apply_slope(x, tile.groups(), tile.size());
    }
    blocks([&](const Place& at) { move(at); });
    if (!shrinks()) return;
    c.apply_prox(x, tile.groups(), tile.size());
    void* to = t.auxiliary ? t.auxiliary : t.param;
    const Number type = t.auxiliary ? t.auxiliary_type : t.param_type;
    blocks([&](const Place& at) {
      T* result = type == OWN<T> ? static_cast<T*>(to) + at.begin : spare[0];
      collect(result, at);
      store(to, type, at.begin, at.n, result);
    });
  }

 private:
  struct Place {  // up to BLOCK numbers of one row
    int64_t begin, row, column, n;
  };

  const SgdTensor& t;
  const Constants& c;
  const SgdStep<T>& s;
  const Tile tile;
  double* const x;
  alignas(64) T spare[5][BLOCK];
  alignas(64) double wide[BLOCK];

  bool shrinks() const { return t.auxiliary || c.has_prox; }

  template <class F>
  void blocks(F f) const {
    for (int64_t row = 0; row < tile.rows; ++row)
      for (int64_t column = 0; column < tile.width; column += BLOCK)
        f(Place{tile.begin + row * tile.stride + column, row, column, std::min(BLOCK, tile.width - column)});
  }

  template <class From>
  void spread(const From* from, const Place& at) {
    if (tile.rows == 1 || tile.groups() == 1) convert(x + at.row * tile.width + at.column, from, at.n);
    else to_groups(x + at.row * tile.inner, from, tile.groups(), tile.inner, tile.size());
  }

  void collect(T* to, const Place& at) const {
    if (tile.rows == 1 || tile.groups() == 1) convert(to, x + at.row * tile.width + at.column, at.n);
    else from_groups(to, x + at.row * tile.inner, tile.groups(), tile.inner, tile.size());
  }

  void move(const Place& at) {
    T* p = load(t.param, t.param_type, at.begin, at.n, spare[0]);
    const T* g = load(t.grad, t.grad_type, at.begin, at.n, spare[1]);
    T* m = t.momentum ? load(t.momentum, t.momentum_type, at.begin, at.n, spare[2]) : nullptr;
    if (c.group.has(FREEZE_ZEROS)) std::copy(p, p + at.n, spare[4]);
    if (c.has_slope) collect(spare[3], at);
    c.has_slope ? step_with(spare[3], p, g, m, at.n, s) : step(p, g, m, at.n, s);
    T* a = t.auxiliary ? load(t.auxiliary, t.auxiliary_type, at.begin, at.n, spare[1]) : nullptr;
    if (c.group.has(FREEZE_ZEROS))
      for (T* x : {p, m, a})
        if (x) freeze(spare[4], x, at.n);
    if (a) draw_to(p, a, at.n, c.group.coupling());
    if (m) store(t.momentum, t.momentum_type, at.begin, at.n, m);
    if (a || !c.has_prox) store(t.param, t.param_type, at.begin, at.n, p);
    if (a) {
      convert(wide, a, at.n);
      draw_to(wide, p, at.n, c.group.coupling());
      spread(wide, at);
    } else if (c.has_prox) {
      spread(p, at);
    }
  }
};

// The ordinary case: elementwise, nothing beyond the proximal operator.
template <class T>
void run_plain(const SgdTensor& t, const Constants& c, const SgdStep<T>& constants, int64_t begin, int64_t end) {
  alignas(64) T spare[3][BLOCK];
  for (int64_t i = begin; i < end; i += BLOCK) {
    const int64_t n = std::min(BLOCK, end - i);
    T* p = load(t.param, t.param_type, i, n, spare[0]);
    const T* g = load(t.grad, t.grad_type, i, n, spare[1]);
    T* m = t.momentum ? load(t.momentum, t.momentum_type, i, n, spare[2]) : nullptr;
    step(p, g, m, n, constants);
    if (c.has_prox) c.apply_prox(p, n);
    store(t.param, t.param_type, i, n, p);
    if (m) store(t.momentum, t.momentum_type, i, n, m);
  }
}

// Numbers that stay in a core's own cache with their gradients, or enough of a row to read memory in order.
constexpr int64_t TILE = 1 << 15, ROW = 64;

// The work on one tensor comes in units that do not depend on each other: blocks of numbers, or tiles of groups.
class Units {
 public:
  Units(const SgdTensor& t, Form form) : t_(t), is_grouped_(form != Form::ELEMENTWISE) {
    if (!is_grouped_ || t.numel == 0) return;
    groups_ = t.numel / (t.outer * t.inner);
    const int64_t wanted = t.outer == 1 ? BLOCK / t.inner : std::max(TILE / (t.outer * t.inner), (ROW - 1) / t.inner + 1);
    per_tile_ = std::clamp(wanted, int64_t{1}, std::max(BLOCK / t.inner, int64_t{1}));
  }

  int64_t numbers() const { return is_grouped_ ? per_tile_ * t_.outer * t_.inner : BLOCK; }

  Tile operator[](int64_t i) const {
    if (!is_grouped_) return {i * BLOCK, std::min(BLOCK, t_.numel - i * BLOCK), 1, 0, 1};
    const int64_t first = i * per_tile_, count = std::min(per_tile_, groups_ - first);
    return {first * t_.inner, count * t_.inner, t_.outer, groups_ * t_.inner, t_.inner};
  }

 private:
  const SgdTensor& t_;
  bool is_grouped_;
  int64_t groups_ = 0, per_tile_ = 1;
};

// The units that begin between two numbers of a tensor: whatever the threads, each unit is one thread's.
template <class T>
void run_tensor(const SgdTensor& t, const Constants& c, const SgdStep<T>& s, int64_t begin, int64_t end) {
  const Units units(t, c.form());
  const int64_t n = units.numbers(), first = (begin + n - 1) / n, last = (end + n - 1) / n;
  if (c.is_plain) return run_plain(t, c, s, first * n, std::min(last * n, t.numel));
  thread_local std::vector<double> scratch;
  if (scratch.size() < static_cast<size_t>(n)) scratch.resize(n);
  for (int64_t i = first; i < last; ++i) TileStep<T>(t, c, s, units[i], scratch.data()).run();
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
  const double inverse_grad_scale = scaler->grad_scale ? 1 / static_cast<double>(*scaler->grad_scale) : 1;
  std::vector<slimfast::Constants> constants;
  constants.reserve(group_count);
  for (int64_t i = 0; i < group_count; ++i) constants.emplace_back(groups[i], inverse_grad_scale);
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += tensors[i].numel;
  torch::stable::parallel_for(0, total, slimfast::GRAIN, [&](int64_t begin, int64_t end) {
    slimfast::run_range(tensors, count, constants, begin, end);
  });
}

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) { m.impl("prox_sgd_", TORCH_BOX(&slimfast::prox_sgd_)); }
