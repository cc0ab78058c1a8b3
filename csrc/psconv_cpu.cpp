// Pre-defined sparse convolution on CPUs, and its two gradients: gathered products, a list of taps for each residue.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <memory>
#include <optional>

#include "gathered.h"
#include "psconv.h"

namespace slimfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Geometry {
  Numbers stride, padding, dilation;
};

int64_t output_size(int64_t size, int64_t kernel, const Geometry& g, int d) {
  return (size + 2 * g.padding[d] - g.dilation[d] * (kernel - 1) - 1) / g.stride[d] + 1;
}

Tensor images(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w) {
  return torch::stable::empty({n, c, h, w}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

// Numbers of images in the type of the sums, [N, H, W, C] with zeros around each image.
template <class A>
struct Padded {
  std::unique_ptr<A[]> numbers;
  int64_t height, width, pitch;  // pitch: numbers from one pixel to the next

  template <class T>
  Padded(const Tensor& x, const T* from, int64_t top, int64_t bottom, int64_t left, int64_t right)
      : height(x.size(2) + top + bottom), width(x.size(3) + left + right), pitch(odd_lines(x.size(1))) {
    const int64_t n = x.size(0), h = x.size(2), w = x.size(3), c = x.size(1), p = pitch;
    const int64_t sn = x.stride(0), sc = x.stride(1), sh = x.stride(2), sw = x.stride(3);
    numbers.reset(new A[n * height * width * p]);
    torch::stable::parallel_for(0, n * height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        A* out = numbers.get() + at(line / height, line % height, 0);
        const int64_t row = line % height - top;
        if (row < 0 || row >= h) {
          std::fill(out, out + width * p, A(0));
          continue;
        }
        const T* in = from + line / height * sn + row * sh;
        std::fill(out, out + left * p, A(0));
        out += left * p;
        std::fill(out + w * p, out + (w + right) * p, A(0));
        if (sc == 1)
          for (int64_t i = 0; i < w; ++i)
            for (int64_t j = 0; j < c; ++j) out[i * p + j] = static_cast<A>(in[i * sw + j]);
        else
          for (int64_t j = 0; j < c; ++j)
            for (int64_t i = 0; i < w; ++i) out[i * p + j] = static_cast<A>(in[i * sw + j * sc]);
      }
    });
  }

  // Pixels that are a power of two apart would share a few sets of the first cache.
  static int64_t odd_lines(int64_t channels) {
    const int64_t line = 64 / sizeof(A), lines = (channels + line - 1) / line;
    return lines < 4 ? channels : (lines | 1) * line;
  }

  int64_t at(int64_t image, int64_t row, int64_t column) const {
    return ((image * height + row) * width + column) * pitch;
  }
};

// The right matrix of a product, tile by tile.
template <class A>
struct Tiles {
  std::vector<Tile<A>> list;
  std::vector<std::unique_ptr<A[]>> numbers;

  static int64_t size(int64_t depth, int64_t columns) { return (columns + COLUMNS - 1) / COLUMNS * COLUMNS * depth; }

  // Adds the columns that share the list `taps`; column c of tap k is number(c, k).
  template <class Number>
  void add(int64_t taps, int64_t depth, const Numbers& columns, const Number& number) {
    numbers.emplace_back(new A[size(depth, columns.size())]);  // not set to zero first
    fill(numbers.back().get(), depth, columns, number);
    add_ready(taps, depth, columns, numbers.back().get());
  }

  // Adds columns that `fill` has laid out before.
  void add_ready(int64_t taps, int64_t depth, const Numbers& columns, const A* ready) {
    for (size_t first = 0; first < columns.size(); first += COLUMNS, ready += depth * COLUMNS) {
      Tile<A> tile{taps, ready, std::min<int64_t>(COLUMNS, columns.size() - first), {}, {}};
      std::copy_n(columns.begin() + first, tile.width, tile.column);
      list.push_back(tile);
    }
  }

  template <class Number>
  static void fill(A* to, int64_t depth, const Numbers& columns, const Number& number) {
    const int64_t total = columns.size(), count = (total + COLUMNS - 1) / COLUMNS;
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin * COLUMNS; first < end * COLUMNS; first += COLUMNS)
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t j = 0; j < COLUMNS; ++j)
            to[first * depth + k * COLUMNS + j] = first + j < total ? number(columns[first + j], k) : A(0);
    });
  }
};

// A tensor's numbers: asking torch for a stride takes longer than to add.
template <class T, int DIMS>
struct View {
  const T* numbers = nullptr;
  int64_t strides[DIMS] = {};

  explicit View(const Tensor* t) {
    if (!t) return;
    numbers = static_cast<const T*>(t->const_data_ptr());
    for (int d = 0; d < DIMS; ++d) strides[d] = t->size(d) == 1 ? 0 : t->stride(d);
  }

  template <class... Index>
  T operator()(Index... index) const {
    int64_t d = 0, at = 0;
    ((at += index * strides[d++]), ...);
    return numbers[at];
  }
};

template <class T, class A>
struct Ops {
  static const T* data(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }

  static constexpr ScalarType SUMS = sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float;

  // The weight as `multiply` reads it, tile after tile, filters of one residue after another.
  static Tensor prepare(const Tensor& weight, const Support& s) {
    const auto filters = Support::by_residue(s.out_residue, s.period);
    int64_t size = 0;
    for (int64_t a = 0; a < s.period; ++a) size += Tiles<A>::size(s.filters[a].size(), filters[a].size());
    Tensor result = torch::stable::empty({size}, SUMS, std::nullopt, weight.device());
    A* to = static_cast<A*>(result.mutable_data_ptr());
    const View<T, 2> w(&weight);
    for (int64_t a = 0; a < s.period; ++a) {
      const int64_t depth = s.filters[a].size();
      Tiles<A>::fill(to, depth, filters[a], [&](int64_t o, int64_t k) { return static_cast<A>(w(o, k)); });
      to += Tiles<A>::size(depth, filters[a].size());
    }
    return result;
  }

  // `prepared`: of the weight.
  static Tensor forward(const Tensor& x, const Tensor& prepared, const Tensor* bias, const Tensor* residual, bool relu,
                        const Support& s, const Geometry& g) {
    const int64_t n = x.size(0), outputs = s.out_residue.size();
    const int64_t height = output_size(x.size(2), s.rows, g, 0), width = output_size(x.size(3), s.columns, g, 1);
    STD_TORCH_CHECK(height > 0 && width > 0, "psconv: images are smaller than the kernel");
    Tensor y = images(x, n, outputs, height, width);
    const Padded<A> padded(x, data(x), g.padding[0], g.padding[0], g.padding[1], g.padding[1]);
    Numbers rows;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) rows.push_back(padded.at(i, r * g.stride[0], c * g.stride[1]));
    std::vector<Numbers> taps(s.period);
    Tiles<A> tiles;
    const auto filters = Support::by_residue(s.out_residue, s.period);
    const A* ready = static_cast<const A*>(prepared.const_data_ptr());
    for (int64_t a = 0; a < s.period; ++a) {
      for (const Tap& t : s.filters[a])
        taps[a].push_back(padded.at(0, t.row * g.dilation[0], t.column * g.dilation[1]) + t.channel);
      tiles.add_ready(a, taps[a].size(), filters[a], ready);
      ready += Tiles<A>::size(taps[a].size(), filters[a].size());
    }
    STD_TORCH_CHECK(ready == static_cast<const A*>(prepared.const_data_ptr()) + prepared.numel(),
                    "psconv_prepared: the weight was prepared for another layer");
    const View<T, 1> b(bias);
    const A least = relu ? A(0) : -std::numeric_limits<A>::infinity();
    for (Tile<A>& tile : tiles.list)
      for (int64_t j = 0; b.numbers && j < tile.width; ++j) tile.start[j] = static_cast<A>(b(tile.column[j]));
    const View<T, 4> more(residual);
    T* out = static_cast<T*>(y.mutable_data_ptr());
    const int64_t pixels = height * width;
    multiply(padded.numbers.get(), rows, taps, tiles.list, [&](int64_t row, const Tile<A>& tile, const A* sums) {
      A y[COLUMNS];
      for (int64_t j = 0; j < COLUMNS; ++j) y[j] = sums[j] + tile.start[j];
      if (more.numbers)
        for (int64_t j = 0; j < tile.width; ++j)
          y[j] += static_cast<A>(more(row / pixels, tile.column[j], row / width % height, row % width));
      for (int64_t j = 0; j < COLUMNS; ++j) y[j] = y[j] < least ? A(0) : y[j];  // a branch would guess signs
      T* pixel = out + row * outputs;
      for (int64_t j = 0; j < tile.width; ++j) pixel[tile.column[j]] = static_cast<T>(y[j]);
    });
    return y;
  }

  // Pixels of the images fall into stride x stride phases; those of one phase read the same taps.
  static Tensor input_grad(const Tensor& grad, const Tensor& weight, const Support& s, const Numbers& size,
                           const Geometry& g) {
    const int64_t n = grad.size(0), inputs = s.in_residue.size();
    Tensor x = images(grad, n, inputs, size[0], size[1]);
    int64_t before[2], after[2];
    for (int d = 0; d < 2; ++d) {
      const int64_t kernel = d ? s.columns : s.rows;
      before[d] = std::max<int64_t>(0, ((kernel - 1) * g.dilation[d] - g.padding[d] + g.stride[d] - 1) / g.stride[d]);
      after[d] = std::max<int64_t>(0, (size[d] - 1 + g.padding[d]) / g.stride[d] - grad.size(2 + d) + 1);
    }
    const Padded<A> padded(grad, data(grad), before[0], after[0], before[1], after[1]);
    for (int64_t phase = 0; phase < g.stride[0] * g.stride[1]; ++phase)
      one_phase(x, padded, weight, s, g, before, phase / g.stride[1], phase % g.stride[1]);
    return x;
  }

  static void one_phase(Tensor& x, const Padded<A>& padded, const Tensor& weight, const Support& s, const Geometry& g,
                        const int64_t* before, int64_t top, int64_t left) {
    const int64_t inputs = x.size(1), height = x.size(2), width = x.size(3);
    Numbers rows, targets;
    for (int64_t i = 0; i < x.size(0); ++i)
      for (int64_t r = top; r < height; r += g.stride[0])
        for (int64_t c = left; c < width; c += g.stride[1]) {
          rows.push_back(padded.at(i, r / g.stride[0] + before[0], c / g.stride[1] + before[1]));
          targets.push_back(((i * height + r) * width + c) * inputs);
        }
    std::vector<Numbers> taps(s.period);
    Tiles<A> tiles;
    const auto channels = Support::by_residue(s.in_residue, s.period);
    const auto place = places(s);
    const View<T, 2> w(&weight);
    for (int64_t b = 0; b < s.period; ++b) {
      Numbers filter, number;  // of each tap
      for (size_t o = 0; o < s.out_residue.size() && !channels[b].empty(); ++o) {
        const auto& variant = s.variants[(s.out_residue[o] + b + 1) % s.period];
        for (size_t k = 0; k < variant.size(); ++k) {
          const int64_t r = top + g.padding[0] - variant[k] / s.columns * g.dilation[0];
          const int64_t c = left + g.padding[1] - variant[k] % s.columns * g.dilation[1];
          if (r % g.stride[0] || c % g.stride[1]) continue;
          taps[b].push_back(padded.at(0, r / g.stride[0], c / g.stride[1]) + o);
          filter.push_back(o);
          number.push_back(k);
        }
      }
      tiles.add(b, taps[b].size(), channels[b], [&](int64_t i, int64_t k) {
        const int64_t o = filter[k], p = place[s.out_residue[o]][i] + number[k];
        return static_cast<A>(w(o, p));
      });
    }
    T* out = static_cast<T*>(x.mutable_data_ptr());
    multiply(padded.numbers.get(), rows, taps, tiles.list, [&](int64_t row, const Tile<A>& tile, const A* sums) {
      for (int64_t j = 0; j < tile.width; ++j)
        out[targets[row] + tile.column[j]] = static_cast<T>(sums[j]);
    });
  }

  // By residue of a filter, where each input channel's taps begin in the packed filter.
  static std::vector<Numbers> places(const Support& s) {
    std::vector<Numbers> result(s.period, Numbers(s.in_residue.size()));
    for (int64_t a = 0; a < s.period; ++a)
      for (auto tap = s.filters[a].rbegin(); tap != s.filters[a].rend(); ++tap) result[a][tap->channel] = tap->place;
    return result;
  }

  // For the filters of one residue: a row for each of their taps, and the pixels of the result as taps.
  static Tensor weight_grad(const Tensor& grad, const Tensor& x, const Support& s, const Geometry& g) {
    const int64_t n = grad.size(0), height = grad.size(2), width = grad.size(3), outputs = s.out_residue.size();
    Tensor result = torch::stable::new_zeros(x, {outputs, s.taps});
    const Padded<A> padded(x, data(x), g.padding[0], g.padding[0], g.padding[1], g.padding[1]);
    const Padded<A> numbers(grad, data(grad), 0, 0, 0, 0);
    Numbers pixels;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t r = 0; r < height; ++r)
        for (int64_t c = 0; c < width; ++c) pixels.push_back(padded.at(i, r * g.stride[0], c * g.stride[1]));
    const auto filters = Support::by_residue(s.out_residue, s.period);
    T* out = static_cast<T*>(result.mutable_data_ptr());
    for (int64_t a = 0; a < s.period; ++a) {
      Numbers rows;
      for (const Tap& t : s.filters[a])
        rows.push_back(padded.at(0, t.row * g.dilation[0], t.column * g.dilation[1]) + t.channel);
      Tiles<A> tiles;
      tiles.add(0, pixels.size(), filters[a],
                [&](int64_t o, int64_t p) { return numbers.numbers[p * numbers.pitch + o]; });
      multiply(padded.numbers.get(), rows, {pixels}, tiles.list, [&](int64_t row, const Tile<A>& tile, const A* sums) {
        for (int64_t j = 0; j < tile.width; ++j)
          out[tile.column[j] * s.taps + row] = static_cast<T>(sums[j]);
      });
    }
    return result;
  }
};

template <class F>
Tensor dispatch(const Tensor& x, const F& call) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return call(Ops<float, float>{});
    case ScalarType::Double: return call(Ops<double, double>{});
    case ScalarType::Half: return call(Ops<torch::headeronly::Half, float>{});
    case ScalarType::BFloat16: return call(Ops<torch::headeronly::BFloat16, float>{});
    default: STD_TORCH_CHECK(false, "psconv: dtype must be float32, float64, float16 or bfloat16"); std::abort();
  }
}

void check(const Tensor& x, const Tensor& weight, const Support& s) {
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "psconv: weight has another dtype than the images");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(0) == int64_t(s.out_residue.size()) && weight.size(1) == s.taps,
                  "psconv: weight must have shape [", s.out_residue.size(), ", ", s.taps, "]");
}

void check_images(const Tensor& x, const Numbers& residues, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == int64_t(residues.size()), "psconv: ", name, " must be [N, ",
                  residues.size(), ", H, W]");
}

Tensor psconv_prepare(Tensor weight, Numbers out_residue, Numbers in_residue, Numbers kernel_size, int64_t kss,
                      int64_t period, bool boost) {
  const Support s(out_residue, in_residue, kernel_size, kss, period, boost);
  check(weight, weight, s);
  return dispatch(weight, [&](auto ops) { return ops.prepare(weight, s); });
}

Tensor psconv_prepared(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual, bool relu,
                       Numbers out_residue, Numbers in_residue, Numbers kernel_size, int64_t kss, int64_t period,
                       bool boost, Numbers stride, Numbers padding, Numbers dilation) {
  const Support s(out_residue, in_residue, kernel_size, kss, period, boost);
  check_images(x, in_residue, "x");
  const int64_t outputs = out_residue.size();
  if (bias) STD_TORCH_CHECK(bias->scalar_type() == x.scalar_type() && bias->numel() == outputs,
                            "psconv: bias must have shape [", outputs, "] and the dtype of x");
  const Geometry g{stride, padding, dilation};
  if (residual) {
    check_images(*residual, out_residue, "residual");
    const bool fits = (residual->size(0) == x.size(0) || residual->size(0) == 1) &&
                      residual->size(2) == output_size(x.size(2), s.rows, g, 0) &&
                      residual->size(3) == output_size(x.size(3), s.columns, g, 1);
    STD_TORCH_CHECK(fits && residual->scalar_type() == x.scalar_type(), "psconv: residual does not fit the result");
  }
  return dispatch(x, [&](auto ops) {
    STD_TORCH_CHECK(weight.scalar_type() == ops.SUMS && weight.is_contiguous(), "psconv_prepared: weight is not prepared");
    return ops.forward(x, weight, bias ? &*bias : nullptr, residual ? &*residual : nullptr, relu, s, g);
  });
}

Tensor psconv(Tensor x, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> residual, bool relu,
              Numbers out_residue, Numbers in_residue, Numbers kernel_size, int64_t kss, int64_t period, bool boost,
              Numbers stride, Numbers padding, Numbers dilation) {
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type(), "psconv: weight has another dtype than the images");
  Tensor prepared = psconv_prepare(weight, out_residue, in_residue, kernel_size, kss, period, boost);
  return psconv_prepared(x, prepared, bias, residual, relu, out_residue, in_residue, kernel_size, kss, period, boost,
                         stride, padding, dilation);
}

Tensor psconv_input_grad(Tensor grad, Tensor weight, Numbers out_residue, Numbers in_residue, Numbers input_size,
                         Numbers kernel_size, int64_t kss, int64_t period, bool boost, Numbers stride, Numbers padding,
                         Numbers dilation) {
  const Support s(out_residue, in_residue, kernel_size, kss, period, boost);
  check(grad, weight, s);
  check_images(grad, out_residue, "grad");
  return dispatch(grad, [&](auto ops) { return ops.input_grad(grad, weight, s, input_size, {stride, padding, dilation}); });
}

Tensor psconv_weight_grad(Tensor grad, Tensor x, Numbers out_residue, Numbers in_residue, Numbers kernel_size,
                          int64_t kss, int64_t period, bool boost, Numbers stride, Numbers padding, Numbers dilation) {
  const Support s(out_residue, in_residue, kernel_size, kss, period, boost);
  check_images(grad, out_residue, "grad");
  check_images(x, in_residue, "x");
  STD_TORCH_CHECK(grad.scalar_type() == x.scalar_type(), "psconv: grad has another dtype than x");
  return dispatch(x, [&](auto ops) { return ops.weight_grad(grad, x, s, {stride, padding, dilation}); });
}

}  // namespace
}  // namespace slimfast

STABLE_TORCH_LIBRARY_IMPL(slimfast, CPU, m) {
  m.impl("psconv", TORCH_BOX(&slimfast::psconv));
  m.impl("psconv_prepare", TORCH_BOX(&slimfast::psconv_prepare));
  m.impl("psconv_prepared", TORCH_BOX(&slimfast::psconv_prepared));
  m.impl("psconv_input_grad", TORCH_BOX(&slimfast::psconv_input_grad));
  m.impl("psconv_weight_grad", TORCH_BOX(&slimfast::psconv_weight_grad));
}
