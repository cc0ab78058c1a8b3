// ProxSGD on CUDA: every parameter of a model in one launch of prox_sgd_kernel.h.
//
// What stays the same from step to step is a table in device memory. Gradients' addresses and, unless they are in device
// memory already, hyperparameters travel by value in the kernel's argument: a step copies, allocates and waits for nothing,
// and a CUDA graph can capture it.
#include "prox_sgd_kernel.h"
#include "prox_sgd_op.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>

// CPU builds of torch do not have it; a weak symbol lets this library load there.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace slimfast {
namespace {

constexpr size_t KEPT_TABLES = 8;

void check(cudaError_t error) { STD_TORCH_CHECK(error == cudaSuccess, "prox_sgd_: ", cudaGetErrorString(error)); }

class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_));
    if (device != before_) check(cudaSetDevice(device));
  }
  ~OnDevice() { cudaSetDevice(before_); }

 private:
  int before_;
};

// What tensors have in common with themselves a step earlier.
bool is_same(const SgdTensor& a, const SgdTensor& b) {
  return a.param == b.param && a.momentum == b.momentum && a.auxiliary == b.auxiliary && a.numel == b.numel &&
         a.outer == b.outer && a.inner == b.inner && a.group == b.group && a.param_type == b.param_type &&
         a.grad_type == b.grad_type && a.momentum_type == b.momentum_type && a.auxiliary_type == b.auxiliary_type;
}

struct Launch {  // consecutive tensors whose gradients and groups one kernel argument can hold
  int64_t first_tensor, tensors, first_chunk, chunks;
  bool has_doubles;
  std::vector<int32_t> groups;  // those that occur, in the order that `Chunk::group` counts
};

// Chunks and launches for a list of tensors.
class Plan {
 public:
  std::vector<Chunk> chunks;
  std::vector<Launch> launches;

  Plan(const SgdTensor* tensors, int64_t count, const SgdGroup* groups) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t group = tensors[i].group;
      if (launches.empty() || launches.back().tensors == MAX_TENSORS ||
          (position(group) == MAX_GROUPS && launches.back().groups.size() == MAX_GROUPS))
        launches.push_back({i, 0, static_cast<int64_t>(chunks.size()), 0, false, {}});
      Launch& launch = launches.back();
      const size_t at = std::min(position(group), launch.groups.size());
      if (at == launch.groups.size()) launch.groups.push_back(group);
      add(tensors[i], groups[group], static_cast<int16_t>(launch.tensors++), static_cast<int16_t>(at));
      launch.has_doubles |= tensors[i].param_type == Number::F64;
      launch.chunks = static_cast<int64_t>(chunks.size()) - launch.first_chunk;
    }
  }

 private:
  size_t position(int32_t group) const {  // MAX_GROUPS: not among those of the last launch
    const auto& known = launches.back().groups;
    const auto found = std::find(known.begin(), known.end(), group);
    return found == known.end() ? MAX_GROUPS : found - known.begin();
  }

  void add(const SgdTensor& t, const SgdGroup& h, int16_t tensor, int16_t group) {
    const bool by_filter = is_by_filter(h);
    const int32_t size = static_cast<int32_t>(by_filter ? t.inner : 0), team = by_filter ? team_of(size, t.param_type) : THREADS;
    const int64_t length = by_filter ? static_cast<int64_t>(THREADS / team) * size : THREADS * each_of(t.param_type);
    for (int64_t begin = 0; begin < t.numel; begin += length) {
      const int32_t n = static_cast<int32_t>(std::min(length, t.numel - begin));
      chunks.push_back({moved(t.param, t.param_type, begin), moved(t.momentum, t.momentum_type, begin),
                        moved(t.auxiliary, t.auxiliary_type, begin), begin, n, by_filter ? size : n, team, tensor, group,
                        t.param_type, t.grad_type, t.momentum_type, t.auxiliary_type});
    }
  }

  static void* moved(void* array, Number type, int64_t numbers) {
    const int64_t bytes = type == Number::F64 ? 8 : type == Number::F32 ? 4 : 2;
    return array ? static_cast<char*>(array) + numbers * bytes : nullptr;
  }
};

// A plan with its chunks in device memory.
class Table {
 public:
  bool is_captured = false;  // a graph may replay it for ever

  Table(const SgdTensor* tensors, int64_t count, const SgdGroup* groups, int device)
      : device_(device), tensors_(tensors, tensors + count), plan_(tensors, count, groups) {
    for (int64_t i = 0; i < count; ++i) forms_.push_back(is_by_filter(groups[tensors[i].group]));
    const size_t bytes = std::max<size_t>(plan_.chunks.size(), 1) * sizeof(Chunk);
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes));
    chunks_.reset(static_cast<Chunk*>(memory));
    check(cudaMemcpy(memory, plan_.chunks.data(), plan_.chunks.size() * sizeof(Chunk), cudaMemcpyHostToDevice));
    plan_.chunks = {};
  }

  bool serves(const SgdTensor* tensors, int64_t count, const SgdGroup* groups, int device) const {
    if (device != device_ || count != static_cast<int64_t>(tensors_.size())) return false;
    for (int64_t i = 0; i < count; ++i)
      if (!is_same(tensors[i], tensors_[i]) || is_by_filter(groups[tensors[i].group]) != forms_[i]) return false;
    return true;
  }

  void launch(const SgdTensor* tensors, const SgdGroup* groups, const Scaler& scaler, const double* hyper,
              cudaStream_t stream) const {
    for (const Launch& part : plan_.launches) {
      if (part.chunks == 0) continue;
      Work work;
      work.chunks = chunks_.get() + part.first_chunk;
      work.scaler = scaler;
      work.hyper = hyper;
      bool needs_everything = part.has_doubles;
      for (size_t i = 0; i < part.groups.size(); ++i) {
        work.rows[i] = part.groups[i];
        work.groups[i] = groups[part.groups[i]];
        needs_everything |= is_solved(work.groups[i].kind);
      }
      for (int64_t i = 0; i < part.tensors; ++i) work.grads[i] = tensors[part.first_tensor + i].grad;
      void* arguments[] = {&work};
      check(cudaLaunchKernel(needs_everything ? &prox_sgd_kernel<true> : &prox_sgd_kernel<false>, dim3(static_cast<unsigned>(part.chunks)),
                             dim3(THREADS), arguments, 0, stream));
    }
  }

 private:
  struct Free {
    void operator()(Chunk* memory) const { cudaFree(memory); }  // waits for kernels that still read it
  };

  int device_;
  std::vector<SgdTensor> tensors_;
  std::vector<bool> forms_;
  Plan plan_;
  std::unique_ptr<Chunk, Free> chunks_;
};

// The latest tables, the last used first.
class Tables {
 public:
  Table& find(const SgdTensor* tensors, int64_t count, const SgdGroup* groups, int device, bool is_capturing) {
    const auto found = std::find_if(tables_.begin(), tables_.end(),
                                    [&](const auto& table) { return table->serves(tensors, count, groups, device); });
    if (found != tables_.end()) {
      std::rotate(tables_.begin(), found, found + 1);
    } else {
      STD_TORCH_CHECK(!is_capturing, "prox_sgd_: tensors that it has not met before; take one step before the capture");
      make_room();
      tables_.insert(tables_.begin(), std::make_unique<Table>(tensors, count, groups, device));
    }
    return *tables_.front();
  }

 private:
  std::vector<std::unique_ptr<Table>> tables_;

  void make_room() {
    const auto is_free = [](const auto& table) { return !table->is_captured; };
    if (std::count_if(tables_.begin(), tables_.end(), is_free) < static_cast<int64_t>(KEPT_TABLES)) return;
    tables_.erase(std::next(std::find_if(tables_.rbegin(), tables_.rend(), is_free)).base());
  }
};

// Tensors that this kernel does not serve, and the op that does: Triton's, or plain torch.
class Others {
 public:
  Others(const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& momentum_buffers,
         const std::vector<Tensor>& auxiliary, const std::vector<int64_t>& group, const std::vector<SgdGroup>& groups)
      : all_{&params, &grads, &momentum_buffers, &auxiliary}, all_group_(&group), groups_(&groups) {}

  void visit(size_t i, bool is_ours) {
    const SgdGroup& h = (*groups_)[(*all_group_)[i]];
    const size_t momentum = h.has(HAS_MOMENTUM) ? momentum_++ : 0, auxiliary = h.method == Method::ALTERNATING ? auxiliary_++ : 0;
    if (is_ours) return;
    lists_[0].push_back((*all_[0])[i]);
    lists_[1].push_back((*all_[1])[i]);
    if (h.has(HAS_MOMENTUM)) lists_[2].push_back((*all_[2])[momentum]);
    if (h.method == Method::ALTERNATING) lists_[3].push_back((*all_[3])[auxiliary]);
    group_.push_back((*all_group_)[i]);
  }

  void step(const std::vector<int64_t>& rules, const Tensor& hyper, const std::optional<Tensor>& grad_scale,
            const std::optional<Tensor>& found_inf) const {
    if (group_.empty()) return;
    using torch::stable::detail::from;
    std::array<StableIValue, 9> stack{from(lists_[0]), from(lists_[1]), from(lists_[2]), from(lists_[3]), from(group_),
                                      from(rules), from(hyper), from(grad_scale), from(found_inf)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("slimfast::prox_sgd_others_", "", stack.data(), TORCH_ABI_VERSION));
  }

 private:
  const std::vector<Tensor>* all_[4];
  const std::vector<int64_t>* all_group_;
  const std::vector<SgdGroup>* groups_;
  std::vector<Tensor> lists_[4];
  std::vector<int64_t> group_;
  size_t momentum_ = 0, auxiliary_ = 0;
};

void step(const std::vector<Tensor>& params, const std::vector<Tensor>& grads, const std::vector<Tensor>& momentum_buffers,
          const std::vector<Tensor>& auxiliary, const std::vector<int64_t>& group, const std::vector<int64_t>& rules,
          const Tensor& hyper, const std::optional<Tensor>& grad_scale, const std::optional<Tensor>& found_inf, bool on_device) {
  if (params.empty()) return;
  const int32_t device = params[0].get_device_index();
  const Tensor numbers = torch::stable::contiguous(hyper);
  const auto groups = sgd_groups(rules, numbers, !on_device);
  SgdTensors tensors(params, grads, momentum_buffers, auxiliary, group, groups);
  const Scaler scaler{scaler_number(grad_scale, "grad_scale"), scaler_number(found_inf, "found_inf")};
  std::vector<SgdTensor> ours;
  Others others(params, grads, momentum_buffers, auxiliary, group, groups);
  for (size_t i = 0; i < params.size(); ++i) {
    const SgdTensor& row = tensors.table[i];
    const bool served = is_served(row, groups[row.group]);
    others.visit(i, served);
    if (served) ours.push_back(row);
  }
  slimfast_prox_sgd_cuda(ours.data(), ours.size(), groups.data(), groups.size(), &scaler,
                         on_device ? static_cast<const double*>(numbers.const_data_ptr()) : nullptr, device);
  tensors.copy_back();
  others.step(rules, hyper, grad_scale, found_inf);
}

void prox_sgd_(std::vector<Tensor> params, std::vector<Tensor> grads, std::vector<Tensor> momentum_buffers,
               std::vector<Tensor> auxiliary, std::vector<int64_t> group, std::vector<int64_t> rules, Tensor hyper,
               std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
  step(params, grads, momentum_buffers, auxiliary, group, rules, hyper, grad_scale, found_inf, hyper.is_cuda());
}

}  // namespace
}  // namespace slimfast

bool slimfast_prox_sgd_cuda_serves(const slimfast::SgdTensor* tensor, const slimfast::SgdGroup* group) {
  return slimfast::is_served(*tensor, *group);
}

void slimfast_prox_sgd_cuda(const slimfast::SgdTensor* tensors, int64_t count, const slimfast::SgdGroup* groups,
                            int64_t /*group_count*/, const slimfast::Scaler* scaler, const double* device_hyper, int device) {
  using namespace slimfast;
  static std::mutex mutex;
  static Tables* tables = new Tables;  // never destroyed: at exit the driver may be gone before it
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream, "slimfast: CUDA tensors, but a torch without CUDA");
  const OnDevice guard(device);
  void* current = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &current));
  const auto stream = static_cast<cudaStream_t>(current);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status));
  const bool is_capturing = status != cudaStreamCaptureStatusNone;
  STD_TORCH_CHECK(!is_capturing || device_hyper,
                  "hyper: on the CPU, so a graph's replays would repeat today's numbers; put it on the GPU");
  const std::lock_guard lock(mutex);
  Table& table = tables->find(tensors, count, groups, device, is_capturing);
  table.is_captured |= is_capturing;
  table.launch(tensors, groups, *scaler, device_hyper, stream);
}

STABLE_TORCH_LIBRARY_IMPL(slimfast, CUDA, m) { m.impl("prox_sgd_", TORCH_BOX(&slimfast::prox_sgd_)); }
