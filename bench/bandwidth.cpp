// What memory allows an optimizer step: a plain loop over flat arrays that reads three and writes two of them.
#include <cstdint>

extern "C" void read3_write2(float* __restrict p, float* __restrict m, const float* __restrict g, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    m[i] = 0.9f * m[i] + (g[i] + 1e-4f * p[i]);
    p[i] -= 1e-3f * m[i];
  }
}
