// Scalar penalties: value, gradient and proximal operator of one number, in double precision, for CPU and CUDA.
//
// Sources: L1 soft and L0 hard thresholding; Lp: Marjanovic & Solo 2012; TL1: Zhang & Xin, CMS 15(2) 2017;
// MCP: Zhang 2010, firm thresholding; SCAD: Fan & Li 2001; log-sum: Candes, Wakin & Boyd 2008.
//
// A loop over `prox_one` vectorises: selects instead of branches, a fixed number of steps where an equation has to be
// solved. Where the operator is continuous its result can be far smaller than the input; the thresholds are therefore
// kept as unevaluated sums hi + lo, so that input - threshold is right to the last bit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "simd.h"

namespace slimfast {

// The numbers are part of the ops' contract: Python and Triton use the same ones.
enum class Kind : int64_t { NONE = 0, L0 = 1, L1 = 2, LP = 3, TL1 = 4, MCP = 5, SCAD = 6, LOGSUM = 7 };

// Calls f(std::integral_constant<Kind, K>{}) for the K that `kind` names.
template <class F>
auto dispatch_kind(int64_t kind, F&& f) {
  switch (static_cast<Kind>(kind)) {
    case Kind::NONE: return f(std::integral_constant<Kind, Kind::NONE>{});
    case Kind::L0: return f(std::integral_constant<Kind, Kind::L0>{});
    case Kind::L1: return f(std::integral_constant<Kind, Kind::L1>{});
    case Kind::LP: return f(std::integral_constant<Kind, Kind::LP>{});
    case Kind::TL1: return f(std::integral_constant<Kind, Kind::TL1>{});
    case Kind::MCP: return f(std::integral_constant<Kind, Kind::MCP>{});
    case Kind::SCAD: return f(std::integral_constant<Kind, Kind::SCAD>{});
    case Kind::LOGSUM: return f(std::integral_constant<Kind, Kind::LOGSUM>{});
  }
  throw std::invalid_argument("kind: " + std::to_string(kind) + " is none of 0 to 7");
}

namespace detail {

constexpr double INF = std::numeric_limits<double>::infinity();

struct Pair {  // hi + lo, not added up
  double hi, lo;
};

SLIMFAST_HD inline Pair product(double a, double b) {
  const double hi = a * b;
  return {hi, std::isfinite(hi) ? std::fma(a, b, -hi) : 0.0};
}

SLIMFAST_HD inline Pair sum(double a, Pair b) {
  const double hi = a + b.hi, back = hi - a;
  return {hi, ((a - (hi - back)) + (b.hi - back)) + b.lo};
}

SLIMFAST_HD inline Pair quotient(Pair a, double b) {
  const double hi = a.hi / b;
  return {hi, std::isfinite(hi) ? (std::fma(-hi, b, a.hi) + a.lo) / b : 0.0};
}

// On a GPU the library's pow is a call, which costs a kernel more registers than its last digits are worth.
SLIMFAST_HD inline double power_of(double x, double exponent) {
#ifdef __CUDA_ARCH__
  return exp(exponent * log(x));
#else
  return std::pow(x, exponent);
#endif
}

// libm's exp and log do not vectorise; these do, their series in pairs rather than in one long chain.
SLIMFAST_HD inline double log_from_one(double v) {  // 1 <= v < inf
  int64_t bits, exponent, mantissa;
  std::memcpy(&bits, &v, 8);
  // v / 2^exponent lies in [sqrt(1/2), sqrt(2))
  exponent = static_cast<int64_t>(static_cast<uint64_t>(bits - 0x3fe6a09e667f3bcd) >> 52);
  mantissa = bits - (exponent << 52);
  exponent |= 0x4330000000000000;  // 2^52 + exponent as a double, without an integer conversion
  double m, e;
  std::memcpy(&m, &mantissa, 8);
  std::memcpy(&e, &exponent, 8);
  e -= 4503599627370496.0;
  const double f = (m - 1) / (m + 1), s = f * f, s2 = s * s, s4 = s2 * s2;
  const double high = ((1.0 / 11 + s * (1.0 / 13)) + s2 * (1.0 / 15 + s * (1.0 / 17))) + s4 * (1.0 / 19 + s * (1.0 / 21));
  const double series = ((1.0 / 3 + s * (1.0 / 5)) + s2 * (1.0 / 7 + s * (1.0 / 9))) + s4 * high;
  return (e * 0x1.62e42fefa39efp-1 + (e * 0x1.abc9e3b39803fp-56 + 2 * f * s * series)) + 2 * f;
}

SLIMFAST_HD inline double exp_to_one(double x) {  // -708 <= x <= 0
  const double shifted = x * 0x1.71547652b82fep0 + 6755399441055744.0, n = shifted - 6755399441055744.0;
  const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  int64_t bits;
  std::memcpy(&bits, &shifted, 8);
  bits = (bits << 52) + 0x3ff0000000000000;
  double power;
  std::memcpy(&power, &bits, 8);
  const double r2 = r * r, r4 = r2 * r2;
  const double last = (1.0 / 479001600 + r * (1.0 / 6227020800)) * r4 + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
  const double high = (1.0 / 40320 + r * (1.0 / 362880)) + last;
  const double middle = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
  return power * ((r2 * (0.5 + r * (1.0 / 6)) + r4 * (middle + r4 * high)) + r + 1);
}

}  // namespace detail

// One proximal operator with its constants: prox_one<K>(x, make_prox(K, lam, shape, step)).
struct Prox {
  Kind kind;
  double lam, shape, step;
  double threshold;        // |x| up to here becomes 0
  double shift, shift_lo;  // what a small |x| loses (TL1, log-sum: the continuous threshold)
  double knee, knee_lo;    // SCAD: |x| from which the second piece holds
  double slope;            // MCP, SCAD: of the piece that leads back to the identity
  double scale;            // Lp: the height of the jump; log-sum: step * lam
};

namespace detail {

SLIMFAST_HD inline void set_lp(Prox& p, double weight) {
  // The jump x solves x^(2-p) = 2 weight (1-p). The second line removes what rounding 2-p costs far from 1.
  const double k = 1 - p.shape, power = 2 * weight * k;
  p.scale = power_of(power, 1 / (1 + k));
  if (p.scale > 0 && std::isfinite(p.scale))
    p.scale *= 1 + (power / p.scale * power_of(p.scale, p.shape) / p.scale - 1) / (1 + k);
  p.threshold = p.scale * ((1 + k) / (2 * k));
}

SLIMFAST_HD inline void set_tl1(Prox& p, Pair weight) {
  const double a = p.shape, reach = 2 * weight.hi * (a + 1);
  const Pair tau = sum(weight.hi, {quotient(weight, a).hi, quotient(weight, a).lo + weight.lo});
  p.shift = tau.hi;
  p.shift_lo = tau.lo;
  p.threshold = reach <= a * a ? tau.hi : std::sqrt(reach) - a / 2;
}

SLIMFAST_HD inline void set_mcp(Prox& p, Pair weight) {
  const double gamma = p.shape;
  if (p.step < gamma) {
    p.shift = p.threshold = weight.hi;
    p.shift_lo = weight.lo;
    p.slope = gamma / (gamma - p.step);
  } else {
    p.threshold = p.lam * std::sqrt(gamma * p.step);
  }
}

SLIMFAST_HD inline void set_scad(Prox& p, Pair weight) {
  const double a = p.shape;
  if (weight.hi == 0) return;
  if (p.step > a + 1) {
    p.threshold = p.lam * std::sqrt(p.step * (a + 1));
    return;
  }
  p.shift = p.threshold = weight.hi;
  p.shift_lo = weight.lo;
  if (p.step < a - 1) {
    const Pair knee = sum(p.lam, weight);
    p.knee = knee.hi;
    p.knee_lo = knee.lo;
    p.slope = (a - 1) / ((a - 1) - p.step);
  } else {
    p.knee = (a + 1 + p.step) * p.lam / 2;
    p.slope = INF;
  }
}

// Where the operator jumps, |x| = u + weight / (eps + u), the objective at u is that at 0: in units of sqrt(weight)
// log(1 + u/e) - u/(e+u) = u^2/2, concave from 1 - e on, so that Newton descends. The start is right to rounding next to
// the critical e = 1, where the differences cancel.
SLIMFAST_HD inline double log_sum_jump(double eps, double weight) {
  const double unit = std::sqrt(weight), e = std::fmax(eps / unit, 1e-300), gap = 1 - e;
  double u = gap * std::sqrt(2.25 - 2 * std::log(e));
  for (int i = 0; i < 5 && gap > 1e-6; ++i) {
    const double q = e + u, excess = std::log1p(u / e) - u / q - 0.5 * u * u;
    u += excess * q * q / (u * (u - gap) * (1 + q));
  }
  return unit * (u + 1 / (e + u));
}

SLIMFAST_HD inline void set_log_sum(Prox& p, Pair weight) {
  const Pair tau = quotient(weight, p.shape);
  p.scale = weight.hi;
  p.shift = tau.hi;
  p.shift_lo = tau.lo;
  p.threshold = weight.hi <= p.shape * p.shape ? tau.hi : log_sum_jump(p.shape, weight.hi);
}

}  // namespace detail

// The operator u -> argmin 0.5 (u - x)^2 + step * penalty(u); step * lam = 0 is the identity.
SLIMFAST_HD inline Prox make_prox(int64_t kind, double lam, double shape, double step) {
  Prox p{static_cast<Kind>(kind), lam, shape, step, 0, 0, 0, detail::INF, 0, 1, 0};
  const detail::Pair weight = detail::product(step, lam);
  switch (p.kind) {
    case Kind::NONE: break;
    case Kind::L0: p.threshold = std::sqrt(2 * weight.hi); break;
    case Kind::L1: p.shift = p.threshold = weight.hi, p.shift_lo = weight.lo; break;
    case Kind::LP: detail::set_lp(p, weight.hi); break;
    case Kind::TL1: detail::set_tl1(p, weight); break;
    case Kind::MCP: detail::set_mcp(p, weight); break;
    case Kind::SCAD: detail::set_scad(p, weight); break;
    case Kind::LOGSUM: detail::set_log_sum(p, weight); break;
  }
  return p;
}

namespace detail {

// u + weight p u^(p-1) = z in units of the jump: v + beta v^-k = z / scale, k = 1 - p, beta = p / (2 k), v >= 1.
// v is concave in z, so the tangent at the threshold is an upper start; three Halley steps reach rounding for every p.
SLIMFAST_HD inline double prox_lp(double z, const Prox& p) {
  const double k = 1 - p.shape, beta = p.shape / (2 * k), target = z / p.scale;
  const double tangent = 1 + (target - (1 + k) / (2 * k)) * (2 / (1 + k));
  double v = target < tangent ? target : tangent, pull = 0;
  v = v < 1e300 ? v : 1e300;
  for (int i = 0; i < 3; ++i) {
    const double w = beta * exp_to_one(-k * log_from_one(v > 1 ? v : 1)), f = (v - target) + w;
    const double inverse = 1 / v, fall = k * w * inverse, slope = 1 - fall, bend = (1 + k) * fall * inverse;
    const double delta = f * slope / (slope * slope - 0.5 * bend * f);
    pull = w + fall * delta;  // w at v - delta: z - pull keeps the digits that v, far above 1, has lost
    v -= delta;
  }
  return z - p.scale * pull;
}

// (u - z)(a + u)^2 + tau a^2 = 0, divided by y = a + z: U^3 + B U^2 + A U = R with all digits right near the threshold,
// where U is small and the trigonometric form cancels. U^3 >= 2 s U^2 - s^2 U, so the quadratic with s in its place has
// its root at or above U, with an error of about (s - U)^2: five of them reach rounding, next to the critical weight too.
SLIMFAST_HD inline double prox_tl1(double z, const Prox& p) {
  const double a = p.shape, y = 1 / (a + z), alpha = a * y, input = z * y;
  const double A = alpha * ((a - 2 * z) * y), B = (2 * a - z) * y;
  const double R = alpha * (alpha * (((z - p.shift) - p.shift_lo) * y));
  double s = input - alpha * (alpha * (p.shift * y));
  for (int i = 0; i < 5; ++i) {
    const double P = B + 2 * s, Q = A - s * s, square = Q * Q + 4 * P * R;
    const double root = std::sqrt(square > 0 ? square : 0);
    s = Q > 0 ? 2 * R / (Q + root) : (root - Q) / (2 * P);
  }
  const double ratio = alpha / (alpha + s);
  return 2 * s < input ? s * (a + z) : z - p.shift * (ratio * ratio);
}

// (u - z)(eps + u) + weight = 0, divided by y = eps + z: U^2 + B U = R, with all digits right near the threshold.
SLIMFAST_HD inline double prox_log_sum(double z, const Prox& p) {
  const double y = 1 / (p.shape + z), B = (p.shape - z) * y;
  const double R = p.shape * y * (((z - p.shift) - p.shift_lo) * y), square = B * B + 4 * R;
  const double root = std::sqrt(square > 0 ? square : 0);
  const double u = (B > 0 ? 2 * R / (B + root) : 0.5 * (root - B)) * (p.shape + z);
  return 2 * u < z ? u : z - p.scale / (p.shape + u);
}

}  // namespace detail

// prox of one number. Never outside [0, x]; -0 becomes +0; NaN and infinities stay.
template <Kind K>
SLIMFAST_HD inline double prox_one(double x, const Prox& p) {
  const double z = x < 0 ? -x : x;
  double u = z;
  if constexpr (K == Kind::L1 || K == Kind::MCP) u = ((z - p.shift) - p.shift_lo) * p.slope;
  if constexpr (K == Kind::SCAD) {
    const double soft = (z - p.shift) - p.shift_lo, back = p.lam + ((z - p.knee) - p.knee_lo) * p.slope;
    u = z <= p.knee ? soft : back;
  }
  if constexpr (K == Kind::LP) u = detail::prox_lp(z, p);
  if constexpr (K == Kind::TL1) u = detail::prox_tl1(z, p);
  if constexpr (K == Kind::LOGSUM) u = detail::prox_log_sum(z, p);
  u = u < z ? u : z;
  u = z > p.threshold && u > 0 ? u : 0;
  return z < detail::INF ? (x < 0 ? 0.0 - u : u) : x;
}

// Derivative of the penalty at one number, 0 at 0.
template <Kind K>
SLIMFAST_HD inline double grad_one(double x, double lam, double shape) {
  const double z = x < 0 ? -x : x;
  double g = 0;
  if constexpr (K == Kind::L1) g = lam;
  if constexpr (K == Kind::LP) g = lam * shape * detail::power_of(z, shape - 1);
  if constexpr (K == Kind::TL1) g = lam * (shape / (shape + z)) * ((shape + 1) / (shape + z));
  if constexpr (K == Kind::MCP) g = lam - z / shape;
  if constexpr (K == Kind::SCAD) g = z <= lam ? lam : (lam * shape - z) / (shape - 1);
  if constexpr (K == Kind::LOGSUM) g = lam / (shape + z);
  g = g > 0 ? g : 0;
  g = x < 0 ? 0.0 - g : g;
  return x != x ? x : (z > 0 && lam > 0 ? g : 0);
}

// The penalty of one number.
template <Kind K>
SLIMFAST_HD inline double value_one(double x, double lam, double shape) {
  const double z = x < 0 ? -x : x;
  double value = 0;
  if constexpr (K == Kind::L0) value = lam;
  if constexpr (K == Kind::L1) value = lam * z;
  if constexpr (K == Kind::LP) value = lam * std::pow(z, shape);
  if constexpr (K == Kind::TL1) value = lam * (shape + 1) * (z < detail::INF ? z / (shape + z) : 1);
  if constexpr (K == Kind::MCP) {
    const double end = lam * shape, u = z < end ? z : end;
    value = u * (lam - u / (2 * shape));
  }
  if constexpr (K == Kind::SCAD) {
    const double rest = (shape - 1) * lam, beyond = z - lam, low = z < lam ? z : lam;
    const double w = beyond > 0 ? (beyond < rest ? beyond : rest) : 0;
    value = lam * low + w * (lam - w / (2 * (shape - 1)));
  }
  if constexpr (K == Kind::LOGSUM) {  // v / (y - 1) takes back what rounding y = 1 + v has changed
    const double v = z / shape, y = 1 + v;
    value = lam * (y > 1 && y < detail::INF ? detail::log_from_one(y) * (v / (y - 1)) : v);
  }
  return x != x ? x : (z > 0 && lam > 0 ? value : 0);
}

}  // namespace slimfast
