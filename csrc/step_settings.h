// Whether a Python dict still holds the very objects that it held before.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

namespace slimfast {

namespace py = pybind11;

// A parameter group as it was when its Row was made. All that a Row is made of is immutable, but for tensors: while the
// dict holds the same objects, the Row holds too.
class Settings {
 public:
  bool are_those_of(PyObject* group) const {
    Py_ssize_t position = 0;
    PyObject *key, *value;
    size_t i = 0;
    for (; PyDict_Next(group, &position, &key, &value); ++i)
      if (i >= items_.size() || items_[i].first.ptr() != key || items_[i].second.ptr() != value) return false;
    return i == items_.size();
  }

  void keep(py::dict group) {
    items_.clear();
    for (auto [key, value] : group) {
      if (py::hasattr(value, "__array__")) return items_.clear();  // tensors and NumPy's numbers change in place
      items_.emplace_back(py::reinterpret_borrow<py::object>(key), py::reinterpret_borrow<py::object>(value));
    }
  }

 private:
  std::vector<std::pair<py::object, py::object>> items_;
};

}  // namespace slimfast
