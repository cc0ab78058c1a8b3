// The host side of ProxSGD's step: reads every .grad in C++ and calls the op's own kernel, without lists and dispatcher.
//
// A plan serves the ordinary case: dense tensors on the CPU or one GPU whose gradient, momentum buffer and auxiliary variable
// have the parameter's shape and strides, the gradient its dtype too. On anything else, and when the optimizer's lists or states are
// no longer those that it knows, `step` changes nothing and returns False: the caller takes the op.
#include <pybind11/pybind11.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "prox_sgd.h"
#include "step_settings.h"

// at::Tensor is one pointer to its TensorImpl: the address of such a pointer is a handle for torch's C functions. None of
// these reads .grad or counts versions; declaring the two by hand saves ATen's headers, about a minute to compile.
namespace c10 {
struct TensorImpl {
  AtenTensorOpaque& grad() const;  // at::Tensor const&, in fact
};
}  // namespace c10
namespace at {
class Tensor;
}
namespace torch::autograd::impl {
void bump_version(const at::Tensor&);
}

namespace py = pybind11;

namespace slimfast {
namespace {

constexpr int64_t MAX_DIM = 8;

struct Layout {
  int64_t dim, sizes[MAX_DIM], strides[MAX_DIM];
  int32_t dtype, device, device_index;

  bool is_on_gpu() const { return device == aoti_torch_device_type_cuda(); }
  bool is_beside(const Layout& other) const { return device == other.device && device_index == other.device_index; }

  Around around(int64_t which) const { return around_dim(sizes, strides, dim, which); }
};

// Where caches are cold, a check waits for a dozen places in memory, each known only from the last one. Asked for
// in stages, a few tensors ahead, those of many tensors arrive together. A prefetch cannot fault: that words 2, 3 and 5
// of a TensorImpl lead to its storage, autograd's part and version counter may be wrong without harm.
class Prefetch {
 public:
  static void line(const void* address) { __builtin_prefetch(address); }

  static void tensor(const c10::TensorImpl* impl) {
    for (int64_t byte : {0, 64, 128, 191}) line(reinterpret_cast<const char*>(impl) + byte);
  }
  static void storage(const c10::TensorImpl* impl) { line(word(impl, 2)); }
  static void autograd(const c10::TensorImpl* impl) {
    line(word(impl, 3));
    line(word(impl, 5));
  }

 private:
  static const void* word(const c10::TensorImpl* impl, int i) { return reinterpret_cast<void* const*>(impl)[i]; }
};

// What torch's C functions tell about a tensor. They fail only for tensors without memory, which `matches` refuses.
class Handle {
 public:
  explicit Handle(AtenTensorHandle handle) : handle_(handle) {}
  explicit Handle(c10::TensorImpl* const& impl) : handle_(reinterpret_cast<AtenTensorHandle>(const_cast<c10::TensorImpl**>(&impl))) {}

  bool is_defined() const {
    bool defined = false;
    return aoti_torch_is_defined(handle_, &defined) == AOTI_TORCH_SUCCESS && defined;
  }

  std::optional<Layout> layout() const {
    int32_t layout;
    int64_t *sizes, *strides;
    Layout own;
    if (aoti_torch_get_layout(handle_, &layout) || layout != aoti_torch_layout_strided()) return {};
    if (aoti_torch_get_device_type(handle_, &own.device) || aoti_torch_get_device_index(handle_, &own.device_index)) return {};
    if (!own.is_on_gpu() && own.device != aoti_torch_device_type_cpu()) return {};
    if (aoti_torch_get_dtype(handle_, &own.dtype) || aoti_torch_get_dim(handle_, &own.dim) || own.dim > MAX_DIM) return {};
    if (aoti_torch_get_sizes(handle_, &sizes) || aoti_torch_get_strides(handle_, &strides)) return {};
    std::copy(sizes, sizes + own.dim, own.sizes);
    std::copy(strides, strides + own.dim, own.strides);
    return own;
  }

  // Memory of a tensor that has exactly this layout, else null. Empty tensors are null too.
  void* data(const Layout& expected) const {
    int32_t layout, device, index, dtype;
    int64_t dim, *sizes, *strides;
    void* data = nullptr;
    if (aoti_torch_get_layout(handle_, &layout) || layout != aoti_torch_layout_strided()) return nullptr;
    if (aoti_torch_get_device_type(handle_, &device) || device != expected.device) return nullptr;
    if (aoti_torch_get_device_index(handle_, &index) || index != expected.device_index) return nullptr;
    if (aoti_torch_get_dtype(handle_, &dtype) || dtype != expected.dtype) return nullptr;
    if (aoti_torch_get_dim(handle_, &dim) || dim != expected.dim) return nullptr;
    if (aoti_torch_get_sizes(handle_, &sizes) || !std::equal(sizes, sizes + dim, expected.sizes)) return nullptr;
    if (aoti_torch_get_strides(handle_, &strides) || !std::equal(strides, strides + dim, expected.strides)) return nullptr;
    return aoti_torch_get_data_ptr(handle_, &data) ? nullptr : data;
  }

 private:
  AtenTensorHandle handle_;
};

// A Python tensor, with a check that it still wraps the same TensorImpl (torch.utils.swap_tensors exchanges them).
class PyTensor {
 public:
  explicit PyTensor(py::handle tensor)
      : object_(py::reinterpret_borrow<py::object>(tensor)),
        impl_(reinterpret_cast<c10::TensorImpl*>(tensor.attr("_cdata").cast<uintptr_t>())) {
    void** words = reinterpret_cast<void**>(object_.ptr());
    slot_ = std::find(words + 2, words + 4, static_cast<void*>(impl_));
    if (slot_ == words + 4) throw py::type_error("tensors of this torch do not keep their TensorImpl behind the header");
  }

  bool is(PyObject* object) const { return object == object_.ptr() && *slot_ == impl_; }
  py::object object() const { return object_; }
  Handle handle() const { return Handle(impl_); }
  Handle grad() const { return Handle(&impl_->grad()); }
  // What the object wraps now: lives as long as the object, which impl_ does not once tensors have been swapped.
  const c10::TensorImpl* present() const { return static_cast<const c10::TensorImpl*>(*slot_); }
  const c10::TensorImpl* grad_impl() const { return reinterpret_cast<c10::TensorImpl* const&>(present()->grad()); }
  void bump_version() const { torch::autograd::impl::bump_version(reinterpret_cast<const at::Tensor&>(impl_)); }

  void prefetch() const {
    Prefetch::line(slot_);
    Prefetch::tensor(impl_);
  }

 private:
  py::object object_;
  c10::TensorImpl* impl_;
  void** slot_;  // where the object keeps its TensorImpl
};

std::optional<Number> number_of(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return Number::F32;
  if (dtype == aoti_torch_dtype_float64()) return Number::F64;
  if (dtype == aoti_torch_dtype_bfloat16()) return Number::BF16;
  if (dtype == aoti_torch_dtype_float16()) return Number::F16;
  return {};
}

// A tensor that a parameter's state may hold under a name. Its dtype may be another than the parameter's.
class Slot {
 public:
  Slot(const py::handle& state, const py::str& key) : key_(key) {
    if (state.is_none() || !state.contains(key) || state[key].is_none()) return;
    tensor_.emplace(state[key]);
    const auto layout = tensor_->handle().layout();
    const auto number = layout ? number_of(layout->dtype) : std::nullopt;
    if (!number) throw py::type_error("a state is not dense and floating-point");
    dtype_ = layout->dtype;
    number_ = *number;
  }

  explicit operator bool() const { return tensor_.has_value(); }
  const PyTensor* tensor() const { return tensor_ ? &*tensor_ : nullptr; }
  Number number() const { return number_; }

  // Memory of a tensor in the parameter's order, else null.
  void* data(const Layout& param) const {
    if (dtype_ == param.dtype) return tensor_->handle().data(param);
    Layout own = param;
    own.dtype = dtype_;
    return tensor_->handle().data(own);
  }

  bool is_stale(PyObject* state) const {
    PyObject* now = PyDict_GetItemWithError(state, key_.ptr());
    return tensor_ ? now == nullptr || !tensor_->is(now) : now != nullptr && now != Py_None;
  }

 private:
  py::str key_;
  std::optional<PyTensor> tensor_;
  int32_t dtype_ = 0;
  Number number_ = Number::F32;
};

struct Entry {
  PyTensor param;
  py::object state;  // the parameter's dict in optimizer.state, or None
  Slot momentum, auxiliary;
  Layout layout;
  Number number;
  int64_t numel;

  bool is_stale(bool has_auxiliary) const {
    if (state.is_none()) return false;
    return momentum.is_stale(state.ptr()) || (has_auxiliary && auxiliary.is_stale(state.ptr()));
  }

  static constexpr int STAGES = 4;
  void prefetch(int stage) const {
    const PyTensor* buffer = momentum.tensor();
    switch (stage) {
      case 0:
        param.prefetch();
        if (buffer) buffer->prefetch();
        return Prefetch::line(state.ptr());
      case 1:
        Prefetch::storage(param.present());
        Prefetch::autograd(param.present());
        if (buffer) Prefetch::storage(buffer->present());
        if (buffer) Prefetch::line(reinterpret_cast<PyDictObject*>(state.ptr())->ma_keys);
        return;
      case 2: return Prefetch::tensor(param.grad_impl());
      default: return Prefetch::storage(param.grad_impl());
    }
  }
};

// The number of elements if they fill their memory without gap or overlap, else -1.
int64_t dense_numel(const Layout& layout) {
  std::vector<std::pair<int64_t, int64_t>> axes;  // stride, size
  for (int64_t d = 0; d < layout.dim; ++d)
    if (layout.sizes[d] == 0) return 0;
    else if (layout.sizes[d] != 1) axes.emplace_back(layout.strides[d], layout.sizes[d]);
  std::sort(axes.begin(), axes.end());
  int64_t expected = 1;
  for (auto [stride, size] : axes) {
    if (stride != expected) return -1;
    expected *= size;
  }
  return expected;
}

class StepPlan {
 public:
  // params: for each group its list of parameters; state: the optimizer's, by parameter.
  StepPlan(py::list params, py::dict state)
      : momentum_key_(interned("momentum_buffer")), auxiliary_key_(interned("auxiliary")), params_key_(interned("params")),
        state_(state) {
    states_.keep(state);
    for (size_t group = 0; group < params.size(); ++group) {
      auto list = params[group].cast<py::list>();
      lists_.push_back(list);
      std::vector<Entry> entries;
      for (size_t i = 0; i < list.size(); ++i) {
        entries.push_back(entry(list[i], state.contains(list[i]) ? py::object(state[list[i]]) : py::none()));
      }
      groups_.push_back(std::move(entries));
    }
    check_devices();
  }

  // rows: makes each group's Row, a pair of the tuples Rule and Hyper. Scaler: tensors of one number, or None.
  bool step(py::list groups, py::dict state, py::function rows, py::handle grad_scale, py::handle found_inf) {
    if (groups.size() != groups_.size() || !state.is(state_) || !states_.are_those_of(state.ptr())) return false;
    Scaler scaler{};
    if (!read_number(grad_scale, scaler.grad_scale) || !read_number(found_inf, scaler.found_inf)) return false;
    for (py::handle group : groups)
      if (!PyDict_Check(group.ptr())) return false;
    read(groups, rows);
    table_.clear();
    changed_.clear();
    for (size_t group = 0; group < groups_.size(); ++group)
      if (!gather(group, PyDict_GetItemWithError(groups[group].ptr(), params_key_.ptr()))) return false;
    if (table_.empty()) return true;
    const auto tensors = static_cast<int64_t>(table_.size()), rules = static_cast<int64_t>(hyper_.size());
    const Layout& place = changed_[0]->layout;
    if (place.is_on_gpu()) slimfast_prox_sgd_cuda(table_.data(), tensors, hyper_.data(), rules, &scaler, nullptr, place.device_index);
    else slimfast_prox_sgd_cpu(table_.data(), tensors, hyper_.data(), rules, &scaler);
    for (const Entry* entry : changed_) entry->param.bump_version();  // lets autograd notice, as after any in-place op
    return true;
  }

 private:
  py::str momentum_key_, auxiliary_key_, params_key_;
  py::dict state_;
  Settings states_;  // each parameter's dict
  std::vector<Settings> settings_;
  std::vector<py::list> lists_;
  std::vector<std::vector<Entry>> groups_;
  std::vector<SgdGroup> hyper_;
  std::vector<SgdTensor> table_;
  std::vector<const Entry*> changed_;

  static py::str interned(const char* name) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)); }

  const Layout* place() const {  // of any parameter
    for (const auto& entries : groups_)
      if (!entries.empty()) return &entries[0].layout;
    return nullptr;
  }

  void check_devices() const {
    for (const auto& entries : groups_)
      for (const Entry& entry : entries)
        if (!entry.layout.is_beside(*place())) throw py::type_error("parameters are on several devices");
    if (place() && place()->is_on_gpu() && !slimfast_prox_sgd_cuda) throw py::type_error("this build has no CUDA kernels");
  }

  // Where a tensor keeps its one float32; null for None.
  bool read_number(py::handle tensor, const float*& number) const {
    if (tensor.is_none()) return true;
    const PyTensor one(tensor);
    const auto layout = one.handle().layout();
    if (!layout || !place() || !layout->is_beside(*place()) || number_of(layout->dtype) != Number::F32 || dense_numel(*layout) != 1) return false;
    number = static_cast<const float*>(one.handle().data(*layout));
    return number != nullptr;
  }

  Entry entry(py::handle param, py::handle state) const {
    PyTensor tensor(param);
    const auto layout = tensor.handle().layout();
    const auto number = layout ? number_of(layout->dtype) : std::nullopt;
    if (!number || dense_numel(*layout) < 0) throw py::type_error("a parameter is not dense and floating-point");
    if (!state.is_none() && !PyDict_Check(state.ptr())) throw py::type_error("a parameter's state is no dict");
    return {std::move(tensor), py::reinterpret_borrow<py::object>(state), Slot(state, momentum_key_),
            Slot(state, auxiliary_key_), *layout, *number, dense_numel(*layout)};
  }

  void read(const py::list& groups, const py::function& rows) {
    bool is_known = !settings_.empty();
    for (size_t i = 0; is_known && i < settings_.size(); ++i) is_known = settings_[i].are_those_of(groups[i].ptr());
    if (is_known) return;
    settings_.clear();
    hyper_.clear();
    for (py::handle row : rows()) hyper_.push_back(parse(row));
    settings_.resize(groups.size());
    for (size_t i = 0; i < settings_.size(); ++i) settings_[i].keep(groups[i]);
  }

  static SgdGroup parse(py::handle row) {
    PyObject *rule = PyTuple_GET_ITEM(row.ptr(), 0), *hyper = PyTuple_GET_ITEM(row.ptr(), 1);
    auto whole = [&](int i) { return static_cast<int32_t>(PyLong_AsLong(PyTuple_GET_ITEM(rule, i))); };
    auto number = [&](int i) { return PyFloat_AsDouble(PyTuple_GET_ITEM(hyper, i)); };
    return {number(0), number(1), number(2), number(3), number(4), number(5), number(6), number(7), number(8), number(9),
            static_cast<Kind>(whole(0)), static_cast<Form>(whole(1)), whole(2), static_cast<Method>(whole(3)), whole(4)};
  }

  bool gather(size_t group, PyObject* list) {
    const auto& entries = groups_[group];
    if (list == nullptr || list != lists_[group].ptr() || PyList_GET_SIZE(list) != static_cast<Py_ssize_t>(entries.size())) return false;
    constexpr int64_t AHEAD = 4;  // tensors between two stages
    const int64_t n = static_cast<int64_t>(entries.size());
    for (int64_t i = -Entry::STAGES * AHEAD; i < n; ++i) {
      for (int stage = 0; stage < Entry::STAGES; ++stage) {
        const int64_t later = i + (Entry::STAGES - stage) * AHEAD;
        if (later >= 0 && later < n) entries[later].prefetch(stage);
      }
      if (i >= 0 && !add(entries[i], PyList_GET_ITEM(list, i), static_cast<int32_t>(group))) return false;
    }
    return true;
  }

  // Enters a parameter that has a gradient into the table; false where only the op can serve it.
  bool add(const Entry& entry, PyObject* param, int32_t group) {
    const SgdGroup& h = hyper_[group];
    const bool has_momentum = h.has(HAS_MOMENTUM), has_auxiliary = h.method == Method::ALTERNATING;
    if (!entry.param.is(param) || entry.is_stale(has_auxiliary)) return false;
    const Handle grad = entry.param.grad();
    if (!grad.is_defined() || entry.numel == 0) return true;
    if ((has_momentum && !entry.momentum) || (has_auxiliary && !entry.auxiliary)) return false;
    if (h.is_grouped() && h.dim >= entry.layout.dim) return false;
    const Around around = h.is_grouped() ? entry.layout.around(h.dim) : Around{1, entry.numel};
    const SgdTensor row{entry.param.handle().data(entry.layout), grad.data(entry.layout),
                        has_momentum ? entry.momentum.data(entry.layout) : nullptr,
                        has_auxiliary ? entry.auxiliary.data(entry.layout) : nullptr,
                        entry.numel, around.outer, around.inner, group,
                        entry.number, entry.number, entry.momentum.number(), entry.auxiliary.number()};
    if (entry.layout.is_on_gpu() && !slimfast_prox_sgd_cuda_serves(&row, &h)) return false;
    if (!row.param || !row.grad || (has_momentum && !row.momentum) || (has_auxiliary && !row.auxiliary)) return false;
    table_.push_back(row);
    changed_.push_back(&entry);
    return true;
  }
};

}  // namespace
}  // namespace slimfast

PYBIND11_MODULE(_plan, m) {
  py::class_<slimfast::StepPlan>(m, "StepPlan")
      .def(py::init<py::list, py::dict>(), py::arg("params"), py::arg("state"))
      .def("step", &slimfast::StepPlan::step, py::arg("groups"), py::arg("state"), py::arg("rows"), py::arg("grad_scale") = py::none(),
           py::arg("found_inf") = py::none());
}
