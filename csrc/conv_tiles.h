// Products of gathered numbers with tiles of filters, all sums in registers: y[r][j] = sum_k x_r[taps[k]] w[k][j], then
// bias, sum and ReLU before anything is stored. As csrc/gathered.h, for filters that are few and images that are small.
// Source of the tiling: Goto & van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SLIMFAST_X86 1
#include <immintrin.h>
#endif

namespace slimfast {
namespace {  // one copy per source file: its loops come in versions per processor

constexpr int64_t FILTERS = 16;  // of a tile
constexpr int64_t MOST_PIXELS = 12;
constexpr int64_t PART = 128;  // products of a sum that are added one after the other; longer sums round more

// Up to MOST_PIXELS pixels of up to two tiles.
template <class A>
struct Block {
  const A* x[MOST_PIXELS];  // the numbers that tap 0 of each pixel would read
  const int64_t* taps;
  int64_t count;  // of taps
  const A* w;     // [tiles][count][FILTERS]
  const A* bias;  // [tiles * FILTERS]
  const A* map;   // the first pixel's; added if it is given, and so is the residual
  const A* residual;
  A* out;
  int64_t map_pitch, residual_pitch, out_pitch;  // numbers from one pixel to the next
  int64_t pixels, width;                         // what is stored
  bool relu;
};

// Reads and writes the first n lanes alone.
struct Plain {
  template <class V, class A>
  static void load(V& lanes, const A* from, int64_t n) {
    lanes = V{};
    for (int64_t j = 0; j < int64_t(sizeof(V) / sizeof(A)); ++j)
      if (j < n) lanes[j] = from[j];
  }
  template <class V, class A>
  static void store(A* to, const V& lanes, int64_t n) {
    for (int64_t j = 0; j < int64_t(sizeof(V) / sizeof(A)); ++j)
      if (j < n) to[j] = lanes[j];
  }
};

#ifdef SLIMFAST_X86
struct Masked512 {
  template <class V>
  __attribute__((target("avx512f"))) static void load(V& lanes, const float* from, int64_t n) {
    lanes = V(_mm512_maskz_loadu_ps(mask(n), from));
  }
  template <class V>
  __attribute__((target("avx512f"))) static void store(float* to, const V& lanes, int64_t n) {
    _mm512_mask_storeu_ps(to, mask(n), __m512(lanes));
  }
  static uint16_t mask(int64_t n) { return n >= 16 ? 0xffff : (1u << n) - 1; }
};

struct Masked256 {
  template <class V>
  __attribute__((target("avx2"))) static void load(V& lanes, const float* from, int64_t n) {
    lanes = V(_mm256_maskload_ps(from, mask(n)));
  }
  template <class V>
  __attribute__((target("avx2"))) static void store(float* to, const V& lanes, int64_t n) {
    _mm256_maskstore_ps(to, mask(n), __m256(lanes));
  }
  __attribute__((target("avx2"))) static __m256i mask(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};
#endif

template <class A, int LANES, int VECTORS, int PIXELS, class Part>
[[gnu::always_inline]] inline void multiply_block(const Block<A>& b) {
  typedef A Vector __attribute__((vector_size(LANES * sizeof(A)), aligned(alignof(A)), may_alias));
  Vector sums[PIXELS][VECTORS];
  const A* w[VECTORS];
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; ++v) {
    w[v] = b.w + v * LANES / FILTERS * b.count * FILTERS + v * LANES % FILTERS;
#pragma GCC unroll 16
    for (int p = 0; p < PIXELS; ++p) sums[p][v] = *reinterpret_cast<const Vector*>(b.bias + v * LANES);
  }
  const A* x[PIXELS];
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; ++p) x[p] = b.x[p];
  Vector total[PIXELS][VECTORS];  // in memory: registers are for the sums of a part
  Vector(*kept)[VECTORS] = total;
  asm volatile("" : "+r"(kept) : : "memory");
  for (int64_t begin = 0; begin < b.count; begin += PART) {
    const int64_t end = b.count - begin > PART ? begin + PART : b.count;
    if (begin) {
#pragma GCC unroll 16
      for (int p = 0; p < PIXELS; ++p)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
          kept[p][v] = begin == PART ? sums[p][v] : kept[p][v] + sums[p][v];
          sums[p][v] = Vector{};
        }
    }
    for (int64_t k = begin; k < end; ++k) {
      const int64_t tap = b.taps[k];
      Vector column[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) column[v] = *reinterpret_cast<const Vector*>(w[v] + k * FILTERS);
#pragma GCC unroll 16
      for (int p = 0; p < PIXELS; ++p) {
        const Vector number = x[p][tap] - Vector{};  // every lane; to add 0 would be an instruction
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) sums[p][v] += number * column[v];
      }
    }
  }
  if (b.count > PART) {
#pragma GCC unroll 16
    for (int p = 0; p < PIXELS; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[p][v] += kept[p][v];
  }
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; ++p) {
    if (p >= b.pixels) break;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      const int64_t at = v * LANES, left = b.width - at;
      if (left <= 0) break;
      Vector y = sums[p][v], more;
      if (b.map) {
        Part::load(more, b.map + p * b.map_pitch + at, left);
        y += more;
      }
      if (b.residual) {
        Part::load(more, b.residual + p * b.residual_pitch + at, left);
        y += more;
      }
      if (b.relu) y = y < Vector{} ? Vector{} : y;  // not the larger one: NaN stays NaN
      Part::store(b.out + p * b.out_pitch + at, y, left);
    }
  }
}

// How one kind of processor multiplies: `pixels` at a time with half a tile, one tile, two tiles.
template <class A>
struct Multiplier {
  using Run = void (*)(const Block<A>&);
  int64_t pixels[3];
  Run run[3];
  int64_t widest;  // filters at a time
};

#ifdef SLIMFAST_X86
#define SLIMFAST_RUN(NAME, TARGET, LANES, VECTORS, PIXELS, PART)                                  \
  __attribute__((target(TARGET), flatten)) void NAME(const Block<float>& b) {                     \
    multiply_block<float, LANES, VECTORS, PIXELS, PART>(b);                                       \
  }
SLIMFAST_RUN(run_512_two, "avx512f", 16, 2, 12, Masked512)
SLIMFAST_RUN(run_512_one, "avx512f", 16, 1, 12, Masked512)
SLIMFAST_RUN(run_512_half, "avx512f,avx512vl", 8, 1, 12, Masked256)
SLIMFAST_RUN(run_256_one, "avx2,fma", 8, 2, 6, Masked256)
SLIMFAST_RUN(run_256_half, "avx2,fma", 8, 1, 12, Masked256)
#undef SLIMFAST_RUN
#endif

template <class A>
void run_plain(const Block<A>& b) {
  constexpr int LANES = 16 / sizeof(A);
  multiply_block<A, LANES, FILTERS / LANES, 3, Plain>(b);
}

template <class A>
Multiplier<A> multiplier() {
#ifdef SLIMFAST_X86
  if constexpr (sizeof(A) == 4) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
      return {{12, 12, 12}, {run_512_half, run_512_one, run_512_two}, 2 * FILTERS};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return {{12, 6, 6}, {run_256_half, run_256_one, run_256_one}, FILTERS};
  }
#endif
  return {{3, 3, 3}, {run_plain<A>, run_plain<A>, run_plain<A>}, FILTERS};
}

}  // namespace
}  // namespace slimfast
