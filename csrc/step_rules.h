// What the optimizer steps have in common: the numbers that name a penalty's form, a method, a stored type.
#pragma once

#include "penalty.h"

namespace slimfast {

enum class Number : int8_t { F32, F64, BF16, F16 };

enum class Form : int32_t { ELEMENTWISE = 0, NORM = 1, SPARSE = 2, DIFFERENCE = 3 };
enum class Method : int32_t { PROX = 0, SUBGRADIENT = 1, RELAXED = 2, ALTERNATING = 3 };
enum Flag : int32_t { NESTEROV = 1, MAXIMIZE = 2, FIRST_STEP = 4, FREEZE_ZEROS = 8, HAS_MOMENTUM = 16, AMSGRAD = 32 };

// GradScaler's one-element tensors, null without it.
struct Scaler {
  const float *grad_scale, *found_inf;
};

struct Around {
  int64_t outer, inner;
};

// A dense tensor's memory around a dimension: the product of the sizes with larger strides, and of those with smaller.
inline Around around_dim(const int64_t* sizes, const int64_t* strides, int64_t dims, int64_t dim) {
  Around around{1, 1};
  for (int64_t d = 0; d < dims; ++d)
    if (d != dim && sizes[d] != 1) (sizes[dim] != 1 && strides[d] > strides[dim] ? around.outer : around.inner) *= sizes[d];
  return around;
}

}  // namespace slimfast
