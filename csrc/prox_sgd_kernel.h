// ProxSGD on a GPU: the kernel that works on a whole model. Without torch.
//
// A chunk's `team` threads share a filter and keep it in shared memory between its norm and its new value. At a time a thread
// takes two times four adjacent numbers, or eight where 16-bit types are among them, so that accesses have 16 bytes. The long
// formulas work on what is kept, one number after the other, with few registers in use.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "prox_sgd_chunks.h"

namespace slimfast {

namespace {

// What a block shares.
alignas(16) __shared__ unsigned char kept[THREADS * KEPT_BYTES];
__shared__ double sums[THREADS];
__shared__ Chunk chunk;
__shared__ SgdGroup group;
__shared__ Prox prox;
__shared__ const void* gradient;  // where the chunk's begins
__shared__ double inverse_grad_scale;

// Kinds whose operator is the root of an equation.
inline bool is_solved(Kind kind) { return kind == Kind::LP || kind == Kind::TL1 || kind == Kind::LOGSUM; }

// Calls f with the kind as a compile-time constant: loops stand inside, so that each keeps only its own kind's constants.
template <bool SOLVES, class F>
__device__ void with_kind(Kind kind, F&& f) {
  if constexpr (SOLVES) {
    if (kind == Kind::LP) f(std::integral_constant<Kind, Kind::LP>{});
    if (kind == Kind::TL1) f(std::integral_constant<Kind, Kind::TL1>{});
    if (kind == Kind::LOGSUM) f(std::integral_constant<Kind, Kind::LOGSUM>{});
  }
  if (kind == Kind::L0) f(std::integral_constant<Kind, Kind::L0>{});
  if (kind == Kind::L1) f(std::integral_constant<Kind, Kind::L1>{});
  if (kind == Kind::MCP) f(std::integral_constant<Kind, Kind::MCP>{});
  if (kind == Kind::SCAD) f(std::integral_constant<Kind, Kind::SCAD>{});
}

template <bool SOLVES>
__device__ double shrink(double x) {
  with_kind<SOLVES>(prox.kind, [&](auto K) { x = prox_one<decltype(K)::value>(x, prox); });
  return x;
}

__device__ float from_half(uint32_t bits, Number type) {
  return type == Number::BF16 ? __uint_as_float(bits << 16) : __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
}

__device__ uint32_t to_half(float x, Number type) {
  return type == Number::BF16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : __half_as_ushort(__float2half_rn(x));
}

__device__ bool is_half(Number type) { return type == Number::BF16 || type == Number::F16; }

__device__ int bytes_of(Number type) { return type == Number::F64 ? 8 : type == Number::F32 ? 4 : 2; }

struct Raw {  // eight numbers as they are stored; with 16 bits each, in the first half
  uint4 words[2];
};

__device__ void unpack(const Raw& raw, Number type, float (&x)[8]) {
  const uint32_t words[8] = {raw.words[0].x, raw.words[0].y, raw.words[0].z, raw.words[0].w,
                             raw.words[1].x, raw.words[1].y, raw.words[1].z, raw.words[1].w};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    x[i] = type == Number::F32 ? __uint_as_float(words[i]) : from_half(words[i / 2] >> (i % 2 * 16) & 0xffff, type);
}

__device__ Raw pack(const float (&x)[8], Number type) {
  uint32_t words[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (type == Number::F32) words[i] = __float_as_uint(x[i]);
    else words[i / 2] |= to_half(x[i], type) << (i % 2 * 16);
  return {{{words[0], words[1], words[2], words[3]}, {words[4], words[5], words[6], words[7]}}};
}

struct Array {
  void* numbers;  // where the chunk begins, or null
  Number type;
};

// A thread's numbers in shared memory, THREADS apart.
template <class T>
__device__ T& kept_number(int i) {
  return reinterpret_cast<T*>(kept)[i * THREADS + threadIdx.x];
}

// From parameters to what the elementwise part of the penalty adds to the gradient.
template <class T, bool SOLVES>
__device__ void keep_slopes(int count) {
  with_kind<SOLVES>(group.kind, [&](auto K) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const double x = static_cast<double>(kept_number<T>(i));
      const double slope = group.has_envelope() ? group.beta * (x - prox_one<decltype(K)::value>(x, prox))
                                                : group.penalty_scale * grad_one<decltype(K)::value>(x, group.lam, group.shape);
      kept_number<T>(i) = static_cast<T>(slope);
    }
  });
}

template <class T, bool SOLVES>
__device__ void shrink_kept(int count, double factor) {
  const auto each = [=](auto f) {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      const double x = f(static_cast<double>(kept_number<T>(i))) * factor;
      kept_number<T>(i) = x == 0 ? T(0) : static_cast<T>(x);
    }
  };
  if (group.form == Form::NORM) each([](double x) { return x; });
  else with_kind<SOLVES>(prox.kind, [=](auto K) { each([](double x) { return prox_one<decltype(K)::value>(x, prox); }); });
}

// How the threads of a team share a filter's numbers, or its quads: groups of four.
enum class Access : int8_t { SINGLE, QUADS, OCTETS };

// One thread's part of the work on one filter; T is the arithmetic's type.
template <class T, bool SOLVES>
class Part {
 public:
  __device__ Part()
      : lane_(threadIdx.x & (chunk.team - 1)),
        begin_(static_cast<int>(threadIdx.x) / chunk.team * chunk.size), size_(begin_ < chunk.count ? chunk.size : 0),
        slabs_((chunk.size + chunk.team * EACH<T> - 1) / (chunk.team * EACH<T>)), access_(access()) {}

  __device__ void run() const {
    const bool by_filter = group.form != Form::ELEMENTWISE && group.kind != Kind::NONE;
    const bool has_slope = group.has_subgradient() || group.has_envelope();
    const bool shrinks = group.is_penalised() && group.prox_step() != 0 && (group.method == Method::PROX || chunk.auxiliary);
    double pull = 0;
    if (has_slope) {
      keep_params();
      if (by_filter) pull = pull_of_norm(norm_of_kept(false));
      if (group.form != Form::NORM) keep_slopes<T, SOLVES>(slabs_ * EACH<T>);
    }
    for (int slab = 0; slab < slabs_; ++slab) advance(slab, has_slope, pull, shrinks);
    if (!shrinks) return;
    shrink_kept<T, SOLVES>(slabs_ * EACH<T>, by_filter ? factor_of_norm(norm_of_kept(group.form == Form::SPARSE)) : 1);
    for (int slab = 0; slab < slabs_; ++slab) store_kept(slab);
  }

 private:
  const int lane_, begin_, size_;  // `begin_` counts from the chunk's beginning
  const int slabs_;                // how often the team goes on to its next numbers
  const Access access_;

  __device__ Array param() const { return {chunk.param, chunk.param_type}; }
  __device__ Array grad() const { return {const_cast<void*>(gradient), chunk.grad_type}; }
  __device__ Array momentum() const { return {chunk.momentum, chunk.momentum_type}; }
  __device__ Array auxiliary() const { return {chunk.auxiliary, chunk.auxiliary_type}; }
  __device__ Array sparse() const { return chunk.auxiliary ? auxiliary() : param(); }  // where the operator's result goes
  __device__ double root() const { return std::sqrt(static_cast<double>(chunk.size)); }

  __device__ Access access() const {
    if constexpr (sizeof(T) == 8) return Access::SINGLE;
    bool has_half = false, has_double = false;
    uintptr_t addresses = 0;
    const auto see = [&](const Array& array) {
      if (!array.numbers) return;
      has_half |= is_half(array.type);
      has_double |= array.type == Number::F64;
      addresses |= reinterpret_cast<uintptr_t>(array.numbers);
    };
    see(param()), see(grad()), see(momentum()), see(auxiliary());
    if (has_double || addresses % 16 != 0 || chunk.size % (has_half ? 8 : 4) != 0) return Access::SINGLE;
    return has_half ? Access::OCTETS : Access::QUADS;
  }

  // Which number of the filter, or quad, is the i-th of this thread's in a slab.
  __device__ int single(int slab, int i) const { return (slab * EACH<T> + i) * chunk.team + lane_; }
  __device__ int quad(int slab, int i) const {
    return access_ == Access::OCTETS ? 2 * (slab * chunk.team + lane_) + i : (2 * slab + i) * chunk.team + lane_;
  }

  // The filter's numbers, as elements of another type if need be. Addresses from a table are generic until this is said.
  template <class Stored>
  __device__ Stored* stored(const Array& array) const {
    char* at = static_cast<char*>(array.numbers) + static_cast<int64_t>(begin_) * bytes_of(array.type);
    __builtin_assume(__isGlobal(at));
    return reinterpret_cast<Stored*>(at);
  }

  template <bool ONCE>
  __device__ Raw fetch(const Array& array, int slab) const {
    const uint4* from = stored<const uint4>(array);
    const int first = quad(slab, 0), second = quad(slab, 1);
    Raw raw{};
    if (is_half(array.type)) {
      if (4 * first < size_) raw.words[0] = ONCE ? __ldcs(from + first / 2) : from[first / 2];
    } else {
      if (4 * first < size_) raw.words[0] = ONCE ? __ldcs(from + first) : from[first];
      if (4 * second < size_) raw.words[1] = ONCE ? __ldcs(from + second) : from[second];
    }
    return raw;
  }

  __device__ void put(const Array& array, int slab, const Raw& raw) const {
    uint4* to = stored<uint4>(array);
    const int first = quad(slab, 0), second = quad(slab, 1);
    if (is_half(array.type)) {
      if (4 * first < size_) to[first / 2] = raw.words[0];
    } else {
      if (4 * first < size_) to[first] = raw.words[0];
      if (4 * second < size_) to[second] = raw.words[1];
    }
  }

  __device__ T load_one(const Array& array, int i) const {
    switch (array.type) {
      case Number::F32: return static_cast<T>(stored<const float>(array)[i]);
      case Number::F64: return static_cast<T>(stored<const double>(array)[i]);
      default: return static_cast<T>(from_half(stored<const uint16_t>(array)[i], array.type));
    }
  }

  __device__ void store_one(const Array& array, int i, T x) const {
    switch (array.type) {
      case Number::F32: stored<float>(array)[i] = static_cast<float>(x); break;
      case Number::F64: stored<double>(array)[i] = static_cast<double>(x); break;
      default: stored<uint16_t>(array)[i] = static_cast<uint16_t>(to_half(static_cast<float>(x), array.type));
    }
  }

  __device__ void load(const Array& array, int slab, T (&x)[EACH<T>]) const {
    if constexpr (sizeof(T) == 4) {
      if (access_ != Access::SINGLE) return unpack(fetch<false>(array, slab), array.type, x);
    }
#pragma unroll
    for (int i = 0; i < EACH<T>; ++i) x[i] = single(slab, i) < size_ ? load_one(array, single(slab, i)) : T(0);
  }

  __device__ void store(const Array& array, int slab, const T (&x)[EACH<T>]) const {
    if constexpr (sizeof(T) == 4) {
      if (access_ != Access::SINGLE) return put(array, slab, pack(x, array.type));
    }
#pragma unroll
    for (int i = 0; i < EACH<T>; ++i)
      if (single(slab, i) < size_) store_one(array, single(slab, i), x[i]);
  }

  // Parameters, gradients, momentum and auxiliary variables: all on their way before the first is used.
  __device__ void load_all(int slab, T (&p)[EACH<T>], T (&g)[EACH<T>], T (&m)[EACH<T>], T (&a)[EACH<T>]) const {
    if constexpr (sizeof(T) == 4) {
      if (access_ != Access::SINGLE) {
        const Raw params = fetch<false>(param(), slab), grads = fetch<true>(grad(), slab);
        Raw velocity{}, sparse{};
        if (chunk.momentum) velocity = fetch<false>(momentum(), slab);
        if (chunk.auxiliary) sparse = fetch<false>(auxiliary(), slab);
        unpack(params, chunk.param_type, p);
        unpack(grads, chunk.grad_type, g);
        unpack(velocity, chunk.momentum_type, m);
        unpack(sparse, chunk.auxiliary_type, a);
        return;
      }
    }
    load(param(), slab, p);
    load(grad(), slab, g);
    if (chunk.momentum) load(momentum(), slab, m);
    if (chunk.auxiliary) load(auxiliary(), slab, a);
  }

  __device__ void keep(int slab, const T (&x)[EACH<T>]) const {
#pragma unroll
    for (int i = 0; i < EACH<T>; ++i) kept_number<T>(slab * EACH<T> + i) = x[i];
  }

  __device__ void keep_params() const {
    for (int slab = 0; slab < slabs_; ++slab) {
      T p[EACH<T>];
      load(param(), slab, p);
      keep(slab, p);
    }
  }

  // Steps on one slab and keeps what is still to be shrunk. `pull`: the slope of the filter's norm is so many times p.
  __device__ void advance(int slab, bool has_slope, double pull, bool shrinks) const {
    const SgdStep<T> step(group, inverse_grad_scale);
    T p[EACH<T>], g[EACH<T>], m[EACH<T>] = {}, a[EACH<T>] = {};
    load_all(slab, p, g, m, a);
    const bool freezes = group.has(FREEZE_ZEROS);
#pragma unroll
    for (int i = 0; i < EACH<T>; ++i) {
      const bool frozen = freezes && p[i] == T(0);
      T d = step.direction(p[i], g[i]);
      if (has_slope) {
        if (group.form != Form::NORM) d += kept_number<T>(slab * EACH<T> + i);
        d += static_cast<T>(pull * static_cast<double>(p[i]));
      }
      p[i] = chunk.momentum ? step.template advance<true>(p[i], d, &m[i]) : step.template advance<false>(p[i], d, &m[i]);
      if (frozen) p[i] = m[i] = a[i] = T(0);
    }
    if (chunk.momentum) store(momentum(), slab, m);
    if (chunk.auxiliary) {
      couple(p, a);
      store(param(), slab, p);
      shrinks ? keep(slab, a) : store(auxiliary(), slab, a);
    } else {
      shrinks ? keep(slab, p) : store(param(), slab, p);
    }
  }

  // p = (p + t a) / (1 + t), then a = (a + t p) / (1 + t).
  __device__ void couple(T (&p)[EACH<T>], T (&a)[EACH<T>]) const {
    const double t = group.coupling(), share = 1 / (1 + t);
#pragma unroll
    for (int i = 0; i < EACH<T>; ++i) {
      p[i] = static_cast<T>((static_cast<double>(p[i]) + t * static_cast<double>(a[i])) * share);
      a[i] = static_cast<T>((static_cast<double>(a[i]) + t * static_cast<double>(p[i])) * share);
    }
  }

  __device__ void store_kept(int slab) const {
    T x[EACH<T>];
#pragma unroll
    for (int i = 0; i < EACH<T>; ++i) x[i] = kept_number<T>(slab * EACH<T> + i);
    store(sparse(), slab, x);
  }

  // Of the filter, or of what soft thresholding leaves of it. Numbers beyond its end were kept as 0.
  __device__ double norm_of_kept(bool of_soft) const {
    double square = 0;
    for (int i = 0; i < slabs_ * EACH<T>; ++i) {
      double x = static_cast<double>(kept_number<T>(i));
      if (of_soft) x = prox_one<Kind::L1>(x, prox);
      square += x * x;
    }
    return std::sqrt(total(square));
  }

  // The same bits in all threads of the team, whatever the order they run in.
  __device__ double total(double x) const {
    sums[threadIdx.x] = x;
    __syncthreads();
    for (int half = chunk.team / 2; half > 0; half /= 2) {
      if (lane_ < half) sums[threadIdx.x] += sums[threadIdx.x + half];
      __syncthreads();
    }
    const double sum = sums[threadIdx.x - lane_];
    __syncthreads();
    return sum;
  }

  __device__ double pull_of_norm(double norm) const {
    if (!(norm > 0)) return norm;  // 0, or not a number
    if (group.form == Form::SPARSE) return group.penalty_scale * group.group_lam * root() / norm;
    if (group.has_envelope()) return group.beta * ((norm - shrink<SOLVES>(norm)) / norm);
    double slope = 0;
    with_kind<SOLVES>(group.kind, [&](auto K) { slope = grad_one<decltype(K)::value>(norm, group.lam * root(), group.shape); });
    return group.penalty_scale * slope / norm;
  }

  __device__ double factor_of_norm(double norm) const {
    if (!(norm < detail::INF)) return norm != norm ? norm : 1;
    const double left = group.form == Form::NORM ? shrink<SOLVES>(norm) : norm - group.prox_step() * group.group_lam * root();
    return left > 0 ? left / norm : 0;
  }
};

// A row of the op's `hyper`.
__device__ void read_row(const double* row) {
  group.lr = row[0], group.momentum = row[1], group.dampening = row[2], group.weight_decay = row[3], group.lam = row[4];
  group.shape = row[5], group.group_lam = row[6], group.penalty_scale = row[7], group.gain = row[8], group.beta = row[9];
}

// float64 and the solved formulas need more registers; without them three blocks fit where two would.
template <bool EVERYTHING>
__global__ void __launch_bounds__(THREADS, EVERYTHING ? 2 : 3) prox_sgd_kernel(const __grid_constant__ Work work) {
  if (work.scaler.found_inf && *work.scaler.found_inf != 0) return;
  if (threadIdx.x == 0) {
    chunk = work.chunks[blockIdx.x];
    group = work.groups[chunk.group];
    if (work.hyper) read_row(work.hyper + static_cast<int64_t>(work.rows[chunk.group]) * 10);
    gradient = static_cast<const char*>(work.grads[chunk.tensor]) + chunk.offset * bytes_of(chunk.grad_type);
    inverse_grad_scale = work.scaler.grad_scale ? 1 / static_cast<double>(*work.scaler.grad_scale) : 1;
    const double root = group.form == Form::NORM ? std::sqrt(static_cast<double>(chunk.size)) : 1;
    if (group.is_penalised()) prox = make_prox(static_cast<int64_t>(group.kind), group.lam * root, group.shape, group.prox_step());
  }
  __syncthreads();
  if constexpr (EVERYTHING) {
    if (chunk.param_type == Number::F64) return Part<double, true>().run();
  }
  Part<float, EVERYTHING>().run();
}

}  // namespace
}  // namespace slimfast
