// Sums and maxima of many numbers on the CPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd.h"

namespace slimfast {
namespace {  // one copy per source file: its loops come in versions per processor

constexpr int64_t LANES = 8, SUMMED = 256;  // sums run in eight lanes, whatever the processor: one result everywhere

inline double add_lanes(const double* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

inline void add_to_lanes(double* lanes, double* block, int64_t n) {  // fills the block's last lanes up with zeros
  for (; n % LANES; ++n) block[n] = 0;
  for (int64_t i = 0; i < n; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) lanes[j] += block[i + j];
}

// The largest |x|; NaN does not count.
SLIMFAST_SIMD double largest(const double* x, int64_t n) {
  double lanes[LANES] = {};
  const int64_t full = n / LANES * LANES;
  for (int64_t i = 0; i < full; i += LANES)
    for (int64_t j = 0; j < LANES; ++j) {
      const double z = std::fabs(x[i + j]);
      lanes[j] = z > lanes[j] ? z : lanes[j];
    }
  for (int64_t i = full; i < n; ++i) lanes[0] = std::fabs(x[i]) > lanes[0] ? std::fabs(x[i]) : lanes[0];
  double top = 0;
  for (double lane : lanes) top = lane > top ? lane : top;
  return top;
}

}  // namespace
}  // namespace slimfast
