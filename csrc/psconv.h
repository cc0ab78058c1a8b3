// Which taps a pre-defined sparse convolution keeps; as slimfast/ops/_psconv_pattern.py, which says more.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace slimfast {

using Numbers = std::vector<int64_t>;

struct Tap {
  int64_t channel, row, column;
  int64_t place;  // in the packed filter
};

// All h x w windows of the kernel with h w = kss, the squarest that fit.
inline std::vector<Numbers> windows(int64_t rows, int64_t columns, int64_t kss) {
  int64_t height = 0;
  for (int64_t h = 1; h <= std::min(rows, kss); ++h) {
    const bool fits = kss % h == 0 && kss / h <= columns;
    if (fits && (!height || std::abs(h - kss / h) < std::abs(height - kss / height))) height = h;
  }
  STD_TORCH_CHECK(height, "psconv: no window of kss ", kss, " taps fits into a ", rows, "x", columns, " kernel");
  const int64_t width = kss / height;
  std::vector<Numbers> result;
  for (int64_t top = 0; top + height <= rows; ++top)
    for (int64_t left = 0; left + width <= columns; ++left) {
      result.emplace_back();
      for (int64_t i = 0; i < kss; ++i) result.back().push_back((top + i / width) * columns + left + i % width);
    }
  return result;
}

// A layer's pattern, and what follows from it for filters of each residue.
struct Support {
  Numbers out_residue, in_residue;
  int64_t rows, columns, period, taps = 0;  // taps: S, of the largest filter
  std::vector<Numbers> variants;
  std::vector<std::vector<Tap>> filters;  // by residue of the filter; empty where there is none

  Support(Numbers out, Numbers in, const Numbers& kernel, int64_t kss, int64_t period, bool boost)
      : out_residue(std::move(out)), in_residue(std::move(in)), rows(kernel[0]), columns(kernel[1]), period(period) {
    STD_TORCH_CHECK(period > 0, "psconv: period must be at least 1, got ", period);
    const auto sparse = windows(rows, columns, kss);
    for (int64_t v = 0; v < period; ++v) variants.push_back(sparse[(boost ? v + period - 1 : v) % period % sparse.size()]);
    if (boost) {
      variants[0].resize(rows * columns);
      for (int64_t tap = 0; tap < rows * columns; ++tap) variants[0][tap] = tap;
    }
    filters.resize(period);
    for (const auto* residues : {&out_residue, &in_residue})
      for (int64_t r : *residues) STD_TORCH_CHECK(0 <= r && r < period, "psconv: residue ", r, " is not below ", period);
    for (int64_t o : out_residue)
      if (filters[o].empty()) fill(o);
  }

  // The channels of each residue, in order.
  static std::vector<Numbers> by_residue(const Numbers& residues, int64_t period) {
    std::vector<Numbers> result(period);
    for (size_t c = 0; c < residues.size(); ++c) result[residues[c]].push_back(c);
    return result;
  }

 private:
  void fill(int64_t residue) {
    for (size_t i = 0; i < in_residue.size(); ++i)
      for (int64_t tap : variants[(residue + in_residue[i] + 1) % period])
        filters[residue].push_back({int64_t(i), tap / columns, tap % columns, int64_t(filters[residue].size())});
    taps = std::max<int64_t>(taps, filters[residue].size());
  }
};

}  // namespace slimfast
