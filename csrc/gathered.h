// Matrix products whose left matrix is gathered from memory while it is multiplied: out[r][j] = sum_k x[rows[r] +
// taps[k]] w[k][j]. A convolution is one, with a row for each output pixel and a tap for each weight of a filter; so is
// the gradient of its weights, with rows and taps exchanged.
// Source of the tiling: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SLIMFAST_X86 1
#endif

namespace slimfast {

constexpr int64_t COLUMNS = 16;  // of a tile of the right matrix
constexpr int64_t MOST_ROWS = 12;
constexpr int64_t MOST_COLUMNS = 2 * COLUMNS;

// Columns of the right matrix that read the same taps.
template <class A>
struct Tile {
  int64_t taps;             // which list
  const A* w;               // [number of taps][COLUMNS]
  int64_t width;            // columns that there are
  int64_t column[COLUMNS];  // their numbers in the result
  A start[COLUMNS];         // for the caller: what is added to each
};

// Adds ROWS x (VECTORS * LANES) results to `out` [ROWS][MOST_COLUMNS], all of them in registers meanwhile.
template <class A, int LANES, int VECTORS, int ROWS>
[[gnu::always_inline]] inline void multiply_registers(const A* const* x, const int64_t* taps, int64_t count,
                                                      const A* const* w, A* out) {
  typedef A Vector __attribute__((vector_size(LANES * sizeof(A)), aligned(alignof(A)), may_alias));
  Vector sums[ROWS][VECTORS];
  const A* from[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    from[r] = x[r];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = *reinterpret_cast<Vector*>(out + r * MOST_COLUMNS + v * LANES);
  }
  for (int64_t k = 0; k < count; ++k) {
    const int64_t tap = taps[k];
    Vector column[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      column[v] = *reinterpret_cast<const Vector*>(w[v * LANES / COLUMNS] + k * COLUMNS + v * LANES % COLUMNS);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
      const Vector number = from[r][tap] - Vector{};  // every lane; to add 0 would be an instruction
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += number * column[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) *reinterpret_cast<Vector*>(out + r * MOST_COLUMNS + v * LANES) = sums[r][v];
}

// How one kind of processor multiplies: `rows` at a time, of one or `tiles` tiles.
template <class A>
struct Multiplier {
  using Run = void (*)(const A* const* x, const int64_t* taps, int64_t count, const A* const* w, A* out);
  int64_t rows, tiles;
  Run one, all;  // one tile, `tiles` of them
};

#ifdef SLIMFAST_X86
#define SLIMFAST_RUN(NAME, TARGET, LANES, VECTORS, ROWS)                                                    \
  template <class A>                                                                                        \
  __attribute__((target(TARGET))) void NAME(const A* const* x, const int64_t* taps, int64_t count,          \
                                            const A* const* w, A* out) {                                    \
    multiply_registers<A, LANES, VECTORS, ROWS>(x, taps, count, w, out);                                    \
  }
SLIMFAST_RUN(run_512_two, "avx512f", 16, 2, 12)
SLIMFAST_RUN(run_512_one, "avx512f", 16, 1, 12)
SLIMFAST_RUN(run_512_wide, "avx512f", 8, 2, 12)
SLIMFAST_RUN(run_256_one, "avx2,fma", 8, 2, 6)
SLIMFAST_RUN(run_256_wide, "avx2,fma", 4, 4, 3)
#undef SLIMFAST_RUN
#endif

template <class A>
void run_plain(const A* const* x, const int64_t* taps, int64_t count, const A* const* w, A* out) {
  constexpr int LANES = 16 / sizeof(A);
  multiply_registers<A, LANES, COLUMNS / LANES, 3>(x, taps, count, w, out);
}

template <class A>
Multiplier<A> multiplier() {
  constexpr bool SINGLE = sizeof(A) == 4;
#ifdef SLIMFAST_X86
  if (__builtin_cpu_supports("avx512f")) {
    if constexpr (SINGLE) return {12, 2, run_512_one<A>, run_512_two<A>};
    else return {12, 1, run_512_wide<A>, run_512_wide<A>};
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if constexpr (SINGLE) return {6, 1, run_256_one<A>, run_256_one<A>};
    else return {3, 1, run_256_wide<A>, run_256_wide<A>};
  }
#endif
  return {3, 1, run_plain<A>, run_plain<A>};
}

// Calls store(row, tile, results [COLUMNS]) for every row and tile; rows and taps count numbers of x.
template <class A, class Store>
void multiply(const A* x, const std::vector<int64_t>& rows, const std::vector<std::vector<int64_t>>& taps,
              const std::vector<Tile<A>>& tiles, const Store& store) {
  constexpr int64_t GROUPS = 16, DEPTH = 256;  // sums of a task and weights of a step fit into the first cache
  const Multiplier<A> m = multiplier<A>();
  std::vector<int64_t> first;  // of the tiles that are multiplied together
  for (int64_t t = 0, n = tiles.size(); t < n;) {
    first.push_back(t);
    t += m.tiles == 2 && t + 1 < n && tiles[t].taps == tiles[t + 1].taps ? 2 : 1;
  }
  first.push_back(tiles.size());
  const int64_t pairs = first.size() - 1, count = rows.size(), step = GROUPS * m.rows;
  torch::stable::parallel_for(0, (count + step - 1) / step * pairs, 1, [&](int64_t begin, int64_t end) {
    std::vector<A> memory(GROUPS * MOST_ROWS * MOST_COLUMNS);
    A* sums = memory.data();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task / pairs * step, last = std::min(count, row + step), tile = first[task % pairs];
      const int64_t together = first[task % pairs + 1] - tile;
      const std::vector<int64_t>& list = taps[tiles[tile].taps];
      const int64_t depth = list.size();
      std::fill(sums, sums + (last - row + m.rows - 1) / m.rows * m.rows * MOST_COLUMNS, A(0));
      for (int64_t k = 0; k < depth; k += DEPTH) {
        const A* w[2] = {tiles[tile].w + k * COLUMNS, tiles[tile + together - 1].w + k * COLUMNS};
        for (int64_t r = row; r < last; r += m.rows) {
          const A* from[MOST_ROWS];
          for (int64_t i = 0; i < m.rows; ++i) from[i] = x + rows[std::min(r + i, last - 1)];
          (together == 2 ? m.all : m.one)(from, list.data() + k, std::min(DEPTH, depth - k), w,
                                          sums + (r - row) * MOST_COLUMNS);
        }
      }
      for (int64_t r = row; r < last; ++r)
        for (int64_t t = 0; t < together; ++t)
          store(r, tiles[tile + t], sums + (r - row) * MOST_COLUMNS + t * COLUMNS);
    }
  });
}

}  // namespace slimfast
