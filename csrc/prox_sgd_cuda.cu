// ProxSGD on CUDA: every parameter of a model in one launch (of up to 640 tensors). All addresses travel by value in the
// kernel's argument: no table in device memory, no copy, no synchronisation, so that a CUDA graph can capture it.
#include "prox_sgd_op.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <memory>

// CPU builds of torch do not have it; a weak symbol lets this library load there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace slimfast {
namespace {

constexpr int THREADS = 256, CHUNK = 2048, MAX_TENSORS = 380, MAX_GROUPS = 16;

struct Work {
  int32_t tensor_count, group_count;
  uint32_t chunk_end[MAX_TENSORS];  // chunks of this tensor and all before it
  SgdTensor tensors[MAX_TENSORS];   // `group` counts within this launch
  SgdGroup groups[MAX_GROUPS];
  Prox prox[MAX_GROUPS];
};
static_assert(sizeof(Work) <= 32764, "a kernel's argument holds no more");

__device__ double shrink(double x, const Prox& c) {
  switch (c.kind) {
    case Kind::NONE: return x;
    case Kind::L0: return prox_one<Kind::L0>(x, c);
    case Kind::L1: return prox_one<Kind::L1>(x, c);
    case Kind::LP: return prox_one<Kind::LP>(x, c);
    case Kind::TL1: return prox_one<Kind::TL1>(x, c);
    case Kind::MCP: return prox_one<Kind::MCP>(x, c);
    case Kind::SCAD: return prox_one<Kind::SCAD>(x, c);
    case Kind::LOGSUM: return prox_one<Kind::LOGSUM>(x, c);
  }
  return x;
}

__device__ double slope(double x, const SgdGroup& h) {
  switch (h.kind) {
    case Kind::NONE:
    case Kind::L0: return 0;
    case Kind::L1: return grad_one<Kind::L1>(x, h.lam, h.shape);
    case Kind::LP: return grad_one<Kind::LP>(x, h.lam, h.shape);
    case Kind::TL1: return grad_one<Kind::TL1>(x, h.lam, h.shape);
    case Kind::MCP: return grad_one<Kind::MCP>(x, h.lam, h.shape);
    case Kind::SCAD: return grad_one<Kind::SCAD>(x, h.lam, h.shape);
    case Kind::LOGSUM: return grad_one<Kind::LOGSUM>(x, h.lam, h.shape);
  }
  return 0;
}

template <class T>
struct Update {
  SgdStep<T> step;
  const SgdGroup& h;
  const Prox& prox;

  template <bool HAS_MOMENTUM>
  __device__ void apply(T& p, T g, T& m) const {
    T d = step.direction(p, g);
    if (h.has_subgradient()) d = std::fma(static_cast<T>(slope(p, h)), static_cast<T>(h.penalty_scale), d);
    p = step.template advance<HAS_MOMENTUM>(p, d, &m);
    if (h.has_prox()) p = static_cast<T>(shrink(p, prox));
  }
};

template <class T>
__device__ T load(const void* from, Number type, int64_t i) {
  switch (type) {
    case Number::F32: return static_cast<T>(static_cast<const float*>(from)[i]);
    case Number::F64: return static_cast<T>(static_cast<const double*>(from)[i]);
    case Number::BF16: return static_cast<T>(__bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]));
    case Number::F16: return static_cast<T>(__half2float(static_cast<const __half*>(from)[i]));
  }
  return 0;
}

template <class T>
__device__ void store(void* to, Number type, int64_t i, T x) {
  switch (type) {
    case Number::F32: static_cast<float*>(to)[i] = static_cast<float>(x); break;
    case Number::F64: static_cast<double*>(to)[i] = static_cast<double>(x); break;
    case Number::BF16: static_cast<__nv_bfloat16*>(to)[i] = __float2bfloat16_rn(static_cast<float>(x)); break;
    case Number::F16: static_cast<__half*>(to)[i] = __float2half_rn(static_cast<float>(x)); break;
  }
}

template <class T>
__device__ void step_any(const SgdTensor& t, const Update<T>& update, int64_t begin, int64_t end) {
  for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
    T p = load<T>(t.param, t.param_type, i), m = t.momentum ? load<T>(t.momentum, t.momentum_type, i) : T(0);
    const T g = load<T>(t.grad, t.grad_type, i);
    t.momentum ? update.template apply<true>(p, g, m) : update.template apply<false>(p, g, m);
    store(t.param, t.param_type, i, p);
    if (t.momentum) store(t.momentum, t.momentum_type, i, m);
  }
}

template <bool HAS_MOMENTUM>
__device__ void step_float4(const SgdTensor& t, const Update<float>& update, int64_t begin, int64_t end) {
  auto params = static_cast<float4*>(t.param), momentum = static_cast<float4*>(t.momentum);
  auto grads = static_cast<const float4*>(t.grad);
  __builtin_assume(__isGlobal(params) && __isGlobal(grads));
  if (HAS_MOMENTUM) __builtin_assume(__isGlobal(momentum));
  for (int64_t i = begin / 4 + threadIdx.x; i < end / 4; i += THREADS) {
    float4 p = params[i], m = HAS_MOMENTUM ? momentum[i] : float4{};
    const float4 g = __ldcs(grads + i);
    update.apply<HAS_MOMENTUM>(p.x, g.x, m.x);
    update.apply<HAS_MOMENTUM>(p.y, g.y, m.y);
    update.apply<HAS_MOMENTUM>(p.z, g.z, m.z);
    update.apply<HAS_MOMENTUM>(p.w, g.w, m.w);
    params[i] = p;
    if (HAS_MOMENTUM) momentum[i] = m;
  }
}

__device__ bool takes_float4(const SgdTensor& t, int64_t end) {
  const auto addresses = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
                         reinterpret_cast<uintptr_t>(t.momentum);
  return addresses % 16 == 0 && end % 4 == 0 && t.param_type == Number::F32 && t.grad_type == Number::F32 &&
         (!t.momentum || t.momentum_type == Number::F32);
}

__global__ void __launch_bounds__(THREADS) prox_sgd_kernel(const __grid_constant__ Work work) {
  int low = 0, high = work.tensor_count - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    work.chunk_end[middle] > blockIdx.x ? high = middle : low = middle + 1;
  }
  const SgdTensor& t = work.tensors[low];
  const int64_t begin = static_cast<int64_t>(blockIdx.x - (low ? work.chunk_end[low - 1] : 0)) * CHUNK;
  const int64_t end = begin + CHUNK < t.numel ? begin + CHUNK : t.numel;
  const SgdGroup& h = work.groups[t.group];
  const Prox& prox = work.prox[t.group];
  if (t.param_type == Number::F64) {
    step_any<double>(t, {SgdStep<double>(h), h, prox}, begin, end);
  } else if (!takes_float4(t, end)) {
    step_any<float>(t, {SgdStep<float>(h), h, prox}, begin, end);
  } else if (t.momentum) {
    step_float4<true>(t, {SgdStep<float>(h), h, prox}, begin, end);
  } else {
    step_float4<false>(t, {SgdStep<float>(h), h, prox}, begin, end);
  }
}

// Collects tensors and launches whenever the kernel's argument is full.
class Launcher {
 public:
  Launcher(const SgdGroup* groups, int64_t group_count, cudaStream_t stream)
      : groups_(groups), local_(group_count, -1), stream_(stream) {}

  void add(SgdTensor tensor) {
    const int64_t chunks = (tensor.numel + CHUNK - 1) / CHUNK;
    if (chunks == 0) return;
    if (work_.tensor_count == MAX_TENSORS || (local_[tensor.group] < 0 && work_.group_count == MAX_GROUPS)) flush();
    tensor.group = local_group(tensor.group);
    work_.tensors[work_.tensor_count] = tensor;
    work_.chunk_end[work_.tensor_count++] = blocks_ += static_cast<uint32_t>(chunks);
  }

  cudaError_t flush() {
    if (blocks_) prox_sgd_kernel<<<blocks_, THREADS, 0, stream_>>>(work_);
    blocks_ = work_.tensor_count = work_.group_count = 0;
    std::fill(local_.begin(), local_.end(), -1);
    return cudaGetLastError();
  }

 private:
  Work work_{};
  const SgdGroup* groups_;
  std::vector<int32_t> local_;  // where in `work_` a group is, -1: not yet
  cudaStream_t stream_;
  uint32_t blocks_ = 0;

  int32_t local_group(int32_t group) {
    if (local_[group] < 0) {
      const SgdGroup& h = groups_[group];
      work_.groups[work_.group_count] = h;
      work_.prox[work_.group_count] = make_prox(static_cast<int64_t>(h.kind), h.lam, h.shape, h.prox_step());
      local_[group] = work_.group_count++;
    }
    return local_[group];
  }
};

void prox_sgd_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
               std::vector<Tensor> auxiliary, std::vector<int64_t> group, std::vector<int64_t> rules, Tensor hyper,
               std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  STD_TORCH_CHECK(!grad_scale && !found_inf, "grad_scale, found_inf: not there yet");
  const auto groups = sgd_groups(rules, hyper);
  SgdTensors tensors(params, grads, momentum_buffers, auxiliary, group, groups);
  if (params.empty()) return;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "slimfast: CUDA tensors, but a torch without CUDA");
  const int32_t device = params[0].get_device_index();
  torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  auto launcher = std::make_unique<Launcher>(groups.data(), groups.size(), static_cast<cudaStream_t>(stream));
  for (const SgdTensor& tensor : tensors.table) launcher->add(tensor);
  const cudaError_t error = launcher->flush();
  STD_TORCH_CHECK(error == cudaSuccess, "prox_sgd_: ", cudaGetErrorString(error));
  tensors.copy_back();
}

}  // namespace
}  // namespace slimfast

STABLE_TORCH_LIBRARY_IMPL(slimfast, CUDA, m) { m.impl("prox_sgd_", TORCH_BOX(&slimfast::prox_sgd_)); }
