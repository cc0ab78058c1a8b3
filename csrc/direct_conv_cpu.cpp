// Convolution on CPUs for narrow layers of any widths: what is before it, behind it and around it in one pass.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <optional>
#include <type_traits>
#include <vector>

#include "conv_tiles.h"
#include "simd.h"

namespace slimfast {
namespace {

using Numbers = std::vector<int64_t>;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An image batch whose channels lie side by side and whose pixels are equally far apart.
template <class T>
struct Images {
  T* numbers = nullptr;
  int64_t count = 0, channels = 0, height = 0, width = 0, pitch = 0;  // pitch: from one pixel to the next

  explicit Images(const Tensor& t)
      : numbers(static_cast<T*>(const_cast<void*>(t.const_data_ptr()))), count(t.size(0)), channels(t.size(1)),
        height(t.size(2)), width(t.size(3)), pitch(pitch_of(t)) {}

  // 0 where a tensor is laid out in another way.
  static int64_t pitch_of(const Tensor& t) {
    const int64_t n = t.size(0), c = t.size(1), h = t.size(2), w = t.size(3);
    const int64_t pitch = w > 1 ? t.stride(3) : h > 1 ? t.stride(2) : n > 1 ? t.stride(0) : c;
    const bool side_by_side = c == 1 || t.stride(1) == 1;
    const bool even = (h == 1 || t.stride(2) == w * pitch) && (n == 1 || t.stride(0) == h * w * pitch);
    return side_by_side && even ? pitch : 0;
  }

  T* at(int64_t image, int64_t row, int64_t column) const {
    return numbers + ((image * height + row) * width + column) * pitch;
  }
};

Tensor laid_out(const Tensor& t) {
  if (!t.numel() || Images<char>::pitch_of(t)) return t;
  Tensor copy = torch::stable::empty({t.size(0), t.size(1), t.size(2), t.size(3)}, t.scalar_type(), std::nullopt,
                                     t.device(), std::nullopt, torch::headeronly::MemoryFormat::ChannelsLast);
  torch::stable::copy_(copy, t);
  return copy;
}

// `channels` of each pixel in the type of the sums, after the prologue if there is one.
template <class T, class A>
SLIMFAST_SIMD void read_pixels(A* __restrict to, const T* __restrict from, int64_t pixels, int64_t channels,
                               int64_t to_pitch, int64_t from_pitch, const A* __restrict scale,
                               const A* __restrict shift) {
  if (!scale && to_pitch == channels && from_pitch == channels) channels *= pixels, pixels = 1;
  for (int64_t p = 0; p < pixels; ++p, to += to_pitch, from += from_pitch) {
    if (scale)
      for (int64_t c = 0; c < channels; ++c) {
        const A y = static_cast<A>(from[c]) * scale[c] + shift[c];
        to[c] = y < A(0) ? A(0) : y;
      }
    else
      for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<A>(from[c]);
  }
}

struct Geometry {
  Numbers kernel, stride, padding, dilation;
};

template <class T, class A>
struct Convolution {
  Images<T> out, x;
  bool relu;
  Geometry g;
  std::optional<Images<T>> residual = std::nullopt;
  std::optional<Images<A>> map = std::nullopt;
  const A *weight = nullptr, *scale = nullptr, *shift = nullptr;
  std::vector<A> bias = {};  // of every filter of every tile
  Numbers index = {};
  int64_t channels = 0;  // of x up to the last one that is read

  // One pixel of the tasks' memory stands for `step` pixels of x: those in between are read by no tap.
  int64_t step(int d) const { return g.kernel[d] == 1 ? g.stride[d] : 1; }
  int64_t extent(int d, int64_t outputs) const {
    return (outputs - 1) * g.stride[d] / step(d) + g.dilation[d] * (g.kernel[d] - 1) + 1;
  }
  bool is_direct() const {  // nothing to prepare: x is read where it is
    const bool same = std::is_same_v<T, A> && !scale && out.height == x.height && out.width == x.width;
    return same && g.kernel[0] * g.kernel[1] == 1 && g.stride[0] * g.stride[1] == 1 && !g.padding[0] && !g.padding[1];
  }

  // Pixels that are a power of two apart would share a few sets of the first cache.
  int64_t pitch() const {
    const int64_t line = 64 / sizeof(A), lines = (channels + line - 1) / line;
    return lines < 4 ? std::max<int64_t>(channels, 1) : (lines | 1) * line;
  }

  Numbers taps(int64_t columns, int64_t pixel) const {
    Numbers result;
    for (int64_t r = 0; r < g.kernel[0]; ++r)
      for (int64_t c = 0; c < g.kernel[1]; ++c)
        for (int64_t i : index) result.push_back((r * g.dilation[0] * columns + c * g.dilation[1]) * pixel + i);
    return result;
  }

  void run() const {
    constexpr int64_t MEMORY = 1 << 16;  // numbers of a task's memory, in the second cache
    constexpr int64_t WORK = 1 << 19;    // multiply-accumulates for which a second thread is worth its wakening
    const bool direct = is_direct();
    const int64_t columns = direct ? x.width : extent(1, out.width), pixel = direct ? std::max<int64_t>(x.pitch, 1) : pitch();
    const int64_t threads = torch::stable::get_num_threads();
    int64_t most = std::max<int64_t>(1, (MEMORY / (columns * pixel) - extent(0, 1)) / (g.stride[0] / step(0)) + 1);
    if (direct) most = std::max<int64_t>(1, MEMORY / (columns * pixel));
    const int64_t wanted = std::max((out.height + most - 1) / most, (threads + out.count - 1) / out.count);
    const int64_t rows = std::max<int64_t>(1, (out.height + wanted - 1) / wanted);  // of a task
    const int64_t bands = (out.height + rows - 1) / rows;
    const Numbers list = taps(columns, pixel);
    const int64_t filters = int64_t(bias.size()), cost = rows * out.width * int64_t(list.size()) * filters + 1;
    torch::stable::parallel_for(0, out.count * bands, std::max<int64_t>(1, WORK / cost), [&](int64_t begin, int64_t end) {
      thread_local std::vector<A> memory;
      if (!direct) memory.resize(extent(0, rows) * columns * pixel);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / bands, first = task % bands * rows, last = std::min(out.height, first + rows);
        const A* from = memory.data();
        if (direct) {
          if constexpr (std::is_same_v<T, A>) from = x.at(image, first, 0);
        } else {
          prepare(memory.data(), image, first, extent(0, last - first), columns, pixel);
        }
        multiply(from, list, image, first, last, columns, pixel);
      }
    });
  }

  // Zeros around the prepared image: they surround what the prologue makes of x.
  void prepare(A* to, int64_t image, int64_t first, int64_t rows, int64_t columns, int64_t pixel) const {
    for (int64_t r = 0; r < rows; ++r, to += columns * pixel) {
      const int64_t row = first * g.stride[0] - g.padding[0] + r * step(0);
      const int64_t left = std::min(columns, (g.padding[1] + step(1) - 1) / step(1));
      const int64_t right = std::max(left, std::min(columns, (x.width - 1 + g.padding[1]) / step(1) + 1));
      if (row < 0 || row >= x.height || left == right) {
        std::fill(to, to + columns * pixel, A(0));
        continue;
      }
      std::fill(to, to + left * pixel, A(0));
      std::fill(to + right * pixel, to + columns * pixel, A(0));
      read_pixels<T, A>(to + left * pixel, x.at(image, row, left * step(1) - g.padding[1]), right - left, channels, pixel,
                        x.pitch * step(1), scale, shift);
    }
  }

  void multiply(const A* from, const Numbers& list, int64_t image, int64_t first, int64_t last, int64_t columns,
                int64_t pixel) const {
    const Multiplier<A> m = multiplier<A>();
    const int64_t pixels = (last - first) * out.width, count = list.size();
    const int64_t down = g.stride[0] / step(0) * columns * pixel, across = g.stride[1] / step(1) * pixel;
    Block<A> b{};
    b.taps = list.data(), b.count = count;
    for (int64_t filter = 0; filter < out.channels; filter += m.widest) {
      b.width = std::min(m.widest, out.channels - filter);
      const int size = b.width > FILTERS ? 2 : b.width > FILTERS / 2 ? 1 : 0;
      b.w = weight + filter * count, b.bias = bias.data() + filter;
      for (int64_t p = 0; p < pixels; p += m.pixels[size]) {
        b.pixels = std::min(m.pixels[size], pixels - p);
        int64_t row = p / out.width, column = p % out.width;
        for (int64_t i = 0; i < m.pixels[size]; ++i) {
          b.x[i] = from + row * down + column * across;
          if (i + 1 < b.pixels && ++column == out.width) ++row, column = 0;
        }
        store(m.run[size], b, image, first, p, filter);
      }
    }
  }

  void store(void (*run)(const Block<A>&), Block<A>& b, int64_t image, int64_t first, int64_t p, int64_t filter) const {
    T* to = out.at(image, first, p) + filter;
    const T* more = residual ? residual->at(residual->count == 1 ? 0 : image, first, p) + filter : nullptr;
    b.map = map ? map->at(0, first, p) + filter : nullptr;
    b.map_pitch = map ? map->pitch : 0;
    if constexpr (std::is_same_v<T, A>) {
      b.residual = more, b.residual_pitch = residual ? residual->pitch : 0;
      b.out = to, b.out_pitch = out.pitch, b.relu = relu;
      run(b);
    } else {
      A sums[MOST_PIXELS * 2 * FILTERS];
      b.out = sums, b.out_pitch = 2 * FILTERS;
      run(b);
      for (int64_t i = 0; i < b.pixels; ++i)
        for (int64_t j = 0; j < b.width; ++j) {
          A y = sums[i * 2 * FILTERS + j];
          if (more) y += static_cast<A>(more[i * residual->pitch + j]);
          to[i * out.pitch + j] = static_cast<T>(relu && y < A(0) ? A(0) : y);
        }
    }
  }
};

// Numbers of a parameter, side by side.
Tensor in_order(const Tensor& t, const char* name, ScalarType type, int64_t count) {
  STD_TORCH_CHECK(t.scalar_type() == type && t.numel() == count, "direct_conv: ", name, " must have ", count,
                  " numbers in the type of the sums");
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

void check_size(const Tensor& t, const char* name, const Tensor& like, ScalarType type) {
  bool fits = t.dim() == 4 && (t.size(0) == 1 || t.size(0) == like.size(0)) && t.scalar_type() == type;
  for (int d = 1; d < 4; ++d) fits = fits && t.size(d) == like.size(d);
  STD_TORCH_CHECK(fits, "direct_conv: ", name, " does not fit the result");
}

Numbers read_channels(const Tensor* index, int64_t channels) {
  Numbers result(index ? index->numel() : channels);
  if (index) {
    const Tensor list = in_order(*index, "index", ScalarType::Long, index->numel());
    std::copy_n(static_cast<const int64_t*>(list.const_data_ptr()), result.size(), result.begin());
  } else {
    for (int64_t i = 0; i < channels; ++i) result[i] = i;
  }
  for (int64_t i : result)
    STD_TORCH_CHECK(0 <= i && i < channels, "direct_conv: index ", i, " is not in [0, ", channels, ")");
  return result;
}

// The optional arguments of the op.
struct Extras {
  const Tensor *bias, *scale, *shift, *index, *residual;
};

template <class T, class A>
void run(const Tensor& out, const Tensor& x, const Tensor& weight, const Extras& e, bool relu, const Geometry& g) {
  constexpr ScalarType SUMS = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;
  const auto numbers = [](const Tensor& t) { return static_cast<const A*>(t.const_data_ptr()); };
  Convolution<T, A> c{Images<T>(out), Images<T>(x), relu, g};
  c.index = read_channels(e.index, c.x.channels);
  for (int64_t i : c.index) c.channels = std::max(c.channels, i + 1);
  const int64_t tiles = (c.out.channels + FILTERS - 1) / FILTERS, taps = g.kernel[0] * g.kernel[1] * c.index.size();
  const Tensor w = in_order(weight, "weight", SUMS, tiles * taps * FILTERS);
  c.weight = numbers(w);
  STD_TORCH_CHECK(!e.scale == !e.shift, "direct_conv: scale and shift must come together");
  const Tensor scale = e.scale ? in_order(*e.scale, "scale", SUMS, c.x.channels) : w;  // w: kept for nothing
  const Tensor shift = e.shift ? in_order(*e.shift, "shift", SUMS, c.x.channels) : w;
  if (e.scale) c.scale = numbers(scale), c.shift = numbers(shift);
  c.bias.assign(tiles * FILTERS, A(0));
  Tensor map = w, residual = w;
  if (e.bias && e.bias->dim() == 4) {
    check_size(*e.bias, "bias", out, SUMS);
    STD_TORCH_CHECK(e.bias->size(0) == 1, "direct_conv: a map of biases must be one image");
    c.map.emplace(map = laid_out(*e.bias));
  } else if (e.bias) {
    std::copy_n(numbers(in_order(*e.bias, "bias", SUMS, c.out.channels)), c.out.channels, c.bias.begin());
  }
  if (e.residual) {
    check_size(*e.residual, "residual", out, x.scalar_type());
    c.residual.emplace(residual = laid_out(*e.residual));
  }
  c.run();
}

void check_geometry(const Tensor& out, const Tensor& x, const Geometry& g) {
  for (const Numbers* pair : {&g.kernel, &g.stride, &g.padding, &g.dilation})
    STD_TORCH_CHECK(pair->size() == 2, "direct_conv: kernel_size, stride, padding and dilation must have two numbers");
  for (int d = 0; d < 2; ++d) {
    const bool positive = g.kernel[d] > 0 && g.stride[d] > 0 && g.padding[d] >= 0 && g.dilation[d] > 0;
    STD_TORCH_CHECK(positive, "direct_conv: kernel_size, stride and dilation must be positive, padding not negative");
    const int64_t last = x.size(2 + d) + 2 * g.padding[d] - g.dilation[d] * (g.kernel[d] - 1) - 1;
    STD_TORCH_CHECK(last >= 0 && out.size(2 + d) == last / g.stride[d] + 1, "direct_conv: out does not fit the images");
  }
}

void direct_conv(Tensor out, Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> scale,
               std::optional<Tensor> shift, std::optional<Tensor> index, std::optional<Tensor> residual, bool relu,
               Numbers kernel, Numbers stride, Numbers padding, Numbers dilation) {
  STD_TORCH_CHECK(x.dim() == 4 && out.dim() == 4 && x.size(0) == out.size(0) && x.scalar_type() == out.scalar_type(),
                  "direct_conv: out must be a batch like x, of its dtype");
  const Geometry g{kernel, stride, padding, dilation};
  check_geometry(out, x, g);
  if (!out.numel()) return;
  const auto pointer = [](const std::optional<Tensor>& t) { return t ? &*t : nullptr; };
  const Extras extras{pointer(bias), pointer(scale), pointer(shift), pointer(index), pointer(residual)};
  const Tensor to = laid_out(out), from = laid_out(x);
  const auto call = [&](auto stored, auto sum) {
    run<decltype(stored), decltype(sum)>(to, from, weight, extras, relu, g);
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: call(float{}, float{}); break;
    case ScalarType::Double: call(double{}, double{}); break;
    case ScalarType::Half: call(torch::headeronly::Half{}, float{}); break;
    case ScalarType::BFloat16: call(torch::headeronly::BFloat16{}, float{}); break;
    default: STD_TORCH_CHECK(false, "direct_conv: dtype must be float32, float64, float16 or bfloat16");
  }
  if (!Images<char>::pitch_of(out)) torch::stable::copy_(out, to);
}

}  // namespace
}  // namespace slimfast

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) { m.impl("direct_conv", TORCH_BOX(&slimfast::direct_conv)); }
