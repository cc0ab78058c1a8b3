// prox_sgd_cuda.cu on an emulated GPU: as the op slimfast_emulated::prox_sgd_, which names itself slimfast and CUDA in its
// source, and as prox_sgd_captured_, with the hyperparameters in "device" memory.
#include "cuda_runtime.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#define slimfast slimfast_emulated
#define CUDA CPU
#include "../../csrc/prox_sgd_cuda.cu"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) { return *stream = nullptr, AOTI_TORCH_SUCCESS; }

namespace slimfast {
namespace {

void prox_sgd_captured_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
                        std::vector<Tensor> auxiliary, std::vector<int64_t> group, std::vector<int64_t> rules, Tensor hyper,
                        std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  step(params, grads, momentum_buffers, auxiliary, group, rules, hyper, grad_scale, found_inf, true);
}

}  // namespace
}  // namespace slimfast

STABLE_TORCH_LIBRARY_IMPL(slimfast, CUDA, m) { m.impl("prox_sgd_captured_", TORCH_BOX(&slimfast::prox_sgd_captured_)); }

#define EXPORT extern "C" __attribute__((visibility("default")))
EXPORT void set_backwards(int on) { emulation::backwards = on; }
EXPORT void set_capturing(int on) { emulation::is_capturing = on; }
EXPORT int allocations() { return emulation::allocations; }
EXPORT int launches() { return emulation::launches; }
