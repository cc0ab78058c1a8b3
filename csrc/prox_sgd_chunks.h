// The table that tells the blocks of prox_sgd_kernel.h what to work on. Without torch and CUDA.
//
// A block has one chunk: EACH numbers of a tensor per thread, or some filters (groups of adjacent numbers) of one.
#pragma once

#include "prox_sgd.h"

namespace slimfast {

constexpr int THREADS = 256;
constexpr int KEPT_BYTES = 128;  // of numbers that a thread keeps
constexpr int MAX_GROUPS = 16;   // optimizer groups in one launch

template <class T>
constexpr int EACH = 8;  // numbers that a thread takes at a time
template <>
constexpr int EACH<double> = 2;

struct Chunk {  // in device memory, kept as long as the optimizer's tensors stay where they are
  void *param, *momentum, *auxiliary;  // where the chunk begins, null if there is none
  int64_t offset;                      // from the tensor's beginning, in numbers: that is where its gradient goes on
  int32_t count;                       // numbers
  int32_t size;                        // of a filter; elementwise: all of them
  int32_t team;                        // threads per filter, a power of two
  int16_t tensor, group;               // in `Work`
  Number param_type, grad_type, momentum_type, auxiliary_type;
};

constexpr int MAX_TENSORS = 1536;  // in one launch; what a launch copies grows with it
struct Work {                      // the kernel's argument, by value
  const Chunk* chunks;
  Scaler scaler;
  const double* hyper;       // the op's table if it is in device memory, else null
  int32_t rows[MAX_GROUPS];  // where in it a group is
  SgdGroup groups[MAX_GROUPS];
  const void* grads[MAX_TENSORS];
};

inline int each_of(Number type) { return type == Number::F64 ? EACH<double> : EACH<float>; }

// How many threads share a filter of n numbers; 0: there is no room for it.
inline int team_of(int64_t n, Number type) {
  const int kept = KEPT_BYTES / (type == Number::F64 ? 8 : 4);
  int team = 1;
  while (team < 32 && team * each_of(type) < n) team *= 2;
  return n <= team * kept ? team : (n <= THREADS * kept ? THREADS : 0);
}

// Whether the penalty needs norms. Without a kind there is no penalty.
inline bool is_by_filter(const SgdGroup& h) { return h.form != Form::ELEMENTWISE && h.kind != Kind::NONE; }

// Whether the kernel can do this step. It decides by what stays the same from step to step.
inline bool is_served(const SgdTensor& t, const SgdGroup& h) {
  if (!is_by_filter(h)) return true;
  const bool searches = h.form == Form::SPARSE && h.kind != Kind::L1 && (h.method == Method::PROX || h.method == Method::ALTERNATING);
  return h.is_grouped() && !searches && t.outer == 1 && team_of(t.inner, t.param_type) != 0;
}

}  // namespace slimfast
