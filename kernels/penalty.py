"""Triton device functions: value, gradient and proximal operator of the scalar penalties, in float64.

Formulas and regimes are those of ``csrc/penalty.h``. Every argument is a float64 tensor, a block or a
scalar; KIND is one of the constants below. A kernel loads, widens to float64, computes, stores ``round_to``.
"""

import triton
import triton.language as tl

NONE = tl.constexpr(0)
L0 = tl.constexpr(1)
L1 = tl.constexpr(2)
LP = tl.constexpr(3)
TL1 = tl.constexpr(4)
MCP = tl.constexpr(5)
SCAD = tl.constexpr(6)
LOGSUM = tl.constexpr(7)


@triton.jit
def prox_one(x, lam, shape, step, KIND: tl.constexpr):
    """argmin_u 0.5 (u - x)^2 + step * penalty(u): never outside [0, x], +0 at 0, NaN and infinities stay."""
    z = tl.abs(x)
    weight = step * lam
    high, low = _split_product(step, lam)
    if KIND == NONE:
        shrunk, threshold = z, weight * 0
    elif KIND == L0:
        shrunk, threshold = z, tl.sqrt(2 * weight)
    elif KIND == L1:
        shrunk, threshold = (z - high) - low, weight
    elif KIND == LP:
        shrunk, threshold = _prox_lp(z, weight, shape)
    elif KIND == TL1:
        shrunk, threshold = _prox_tl1(z, weight, high, low, shape)
    elif KIND == MCP:
        hard = step >= shape
        slope = tl.where(hard, 1.0, shape / (shape - step))
        shrunk = tl.where(hard, z, ((z - high) - low) * slope)
        threshold = tl.where(hard, lam * tl.sqrt(shape * step), weight)
    elif KIND == SCAD:
        shrunk, threshold = _prox_scad(z, weight, high, low, lam, shape, step)
    elif KIND == LOGSUM:
        shrunk, threshold = _prox_log_sum(z, weight, high, low, shape)
    shrunk = tl.where(shrunk < z, shrunk, z)
    shrunk = tl.where((z > threshold) & (shrunk > 0), shrunk, 0.0)
    return tl.where(z < float("inf"), tl.where(x < 0, 0.0 - shrunk, shrunk), x)


@triton.jit
def grad_one(x, lam, shape, KIND: tl.constexpr):
    """Derivative of the penalty, 0 at 0."""
    z = tl.abs(x)
    slope = tl.zeros_like(z)
    if KIND == L1:
        slope = slope + lam
    elif KIND == LP:
        slope = lam * shape * tl.exp((shape - 1) * tl.log(z))
    elif KIND == TL1:
        slope = lam * (shape / (shape + z)) * ((shape + 1) / (shape + z))
    elif KIND == MCP:
        slope = lam - z / shape
    elif KIND == SCAD:
        slope = tl.where(z <= lam, lam, (lam * shape - z) / (shape - 1))
    elif KIND == LOGSUM:
        slope = lam / (shape + z)
    slope = tl.where((z > 0) & (slope > 0), slope, 0.0)
    return tl.where(x == x, tl.where(x < 0, 0.0 - slope, slope), x)


@triton.jit
def value_one(x, lam, shape, KIND: tl.constexpr):
    """The penalty."""
    z = tl.abs(x)
    value = tl.zeros_like(z)
    if KIND == L0:
        value = value + lam
    elif KIND == L1:
        value = lam * z
    elif KIND == LP:
        value = lam * tl.exp(shape * tl.log(z))
    elif KIND == TL1:
        value = lam * (shape + 1) * tl.where(z < float("inf"), z / (shape + z), 1.0)
    elif KIND == MCP:
        u = tl.where(z < lam * shape, z, lam * shape)
        value = u * (lam - u / (2 * shape))
    elif KIND == SCAD:
        rest, beyond = (shape - 1) * lam, z - lam
        w = tl.where(beyond > 0, tl.where(beyond < rest, beyond, rest), 0.0)
        value = lam * tl.where(z < lam, z, lam) + w * (lam - w / (2 * (shape - 1)))
    elif KIND == LOGSUM:
        value = lam * _log1p(z / shape)
    value = tl.where((z > 0) & (value == value), value, 0.0)  # lam = 0 at infinity is 0, too
    return tl.where(x == x, value, x)


@triton.jit
def round_to(x, dtype: tl.constexpr):
    """float64 to the dtype of the memory; to the 16-bit ones through float32, as torch does."""
    if dtype == tl.float64:
        return x
    return x.to(tl.float32).to(dtype)


@triton.jit
def _upper(x):
    """x cut to 26 bits: products of two such numbers are exact.

    It also stops the compiler from fusing a product into an fma, which would count the lower half twice where
    that is subtracted next.
    """
    return (x.to(tl.int64, bitcast=True) & -134217728).to(tl.float64, bitcast=True)


@triton.jit
def _split_product(a, b):
    """a b = high + low to the last bit, whether or not the compiler fuses multiplications and additions."""
    high, a_high, b_high = _upper(a * b), _upper(a), _upper(b)
    a_low, b_low = a - a_high, b - b_high
    return high, ((a_high * b_high - high) + a_high * b_low + a_low * b_high) + a_low * b_low


@triton.jit
def _split_sum(a, b, low):
    """a + b + low = high + the rest, for a and b of one sign."""
    high = _upper(a + b)
    larger, smaller = tl.where(a > b, a, b), tl.where(a > b, b, a)
    return high, ((larger - high) + smaller) + low


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0: the factor x / (y - 1) takes back what rounding y = 1 + x has changed."""
    y = 1 + x
    rounded = (y > 1) & (y < float("inf"))
    return tl.where(rounded, tl.log(y) * (x / tl.where(rounded, y - 1, 1.0)), x)


@triton.jit
def _split_quotient(high, low, divisor):
    """(high + low) / divisor = quotient + the rest, for the two halves of `_split_product`."""
    quotient, upper = _upper((high + low) / divisor), _upper(divisor)
    return quotient, ((high - upper * quotient) + (low - (divisor - upper) * quotient)) / divisor


@triton.jit
def _prox_lp(z, weight, p):
    """u + weight p u^(p-1) = z in units of the jump, v + beta v^-k = z / jump, by three Halley steps."""
    k = 1 - p
    beta, start, power = p / (2 * k), (1 + k) / (2 * k), 2 * weight * k
    jump = tl.exp(tl.log(power) / (1 + k))
    better = jump * (1 + (power / jump * tl.exp(p * tl.log(jump)) / jump - 1) / (1 + k))
    jump = tl.where(better > 0, better, jump)
    target = z / jump
    tangent = 1 + (target - start) * (2 / (1 + k))
    v = tl.where(target < tangent, target, tangent)
    v = tl.where(v < 1e300, v, 1e300)
    pull = v
    for _ in tl.static_range(3):
        w = beta * tl.exp(-k * tl.log(tl.where(v > 1, v, 1.0)))
        inverse, f = 1 / v, (v - target) + w
        fall = k * w * inverse
        slope, bend = 1 - fall, (1 + k) * fall * inverse
        delta = f * slope / (slope * slope - 0.5 * bend * f)
        pull = w + fall * delta
        v = v - delta
    return z - jump * pull, jump * start


@triton.jit
def _prox_tl1(z, weight, high, low, a):
    """The cubic of ``csrc/penalty.h``, divided by a + |x| and solved by five quadratics from above."""
    quotient, quotient_low = _split_quotient(high, low, a)
    tau, tau_low = _split_sum(high, quotient, low + quotient_low)
    reach = 2 * weight * (a + 1)
    rounded = tau + tau_low
    threshold = tl.where(reach <= a * a, rounded, tl.sqrt(reach) - a / 2)
    y = 1 / (a + z)
    alpha, bound = a * y, z * y
    A, B = alpha * ((a - 2 * z) * y), (2 * a - z) * y
    R = alpha * (alpha * (((z - tau) - tau_low) * y))
    s = bound - alpha * (alpha * (rounded * y))
    for _ in range(5):
        P, Q = B + 2 * s, A - s * s
        square = Q * Q + 4 * P * R
        root = tl.sqrt(tl.where(square > 0, square, 0.0))
        s = tl.where(Q > 0, 2 * R, root - Q) / tl.where(Q > 0, Q + root, 2 * P)
    ratio = alpha / (alpha + s)
    return tl.where(2 * s < bound, s * (a + z), z - rounded * (ratio * ratio)), threshold


@triton.jit
def _prox_scad(z, weight, high, low, lam, a, step):
    hard, vertical = step > a + 1, step >= a - 1
    knee, knee_low = _split_sum(lam, high, low)
    knee, knee_low = tl.where(vertical, (a + 1 + step) * lam / 2, knee), tl.where(vertical, 0.0, knee_low)
    slope = (a - 1) / ((a - 1) - step)
    rest = tl.where(vertical, z, lam + ((z - knee) - knee_low) * slope)
    shrunk = tl.where(z - knee > knee_low, rest, (z - high) - low)
    threshold = tl.where(hard, lam * tl.sqrt(step * (a + 1)), weight)
    return tl.where(hard | (weight == 0), z, shrunk), threshold


@triton.jit
def _prox_log_sum(z, weight, high, low, eps):
    """The quadratic of ``csrc/penalty.h``, divided by eps + |x|."""
    jump = _log_sum_jump(eps, weight)  # first: it is long, and leaves one number
    tau, tau_low = _split_quotient(high, low, eps)
    threshold = tl.where(weight <= eps * eps, tau + tau_low, jump)
    y = 1 / (eps + z)
    B, R = (eps - z) * y, eps * y * (((z - tau) - tau_low) * y)
    square = B * B + 4 * R
    root = tl.sqrt(tl.where(square > 0, square, 0.0))
    u = tl.where(B > 0, 2 * R, root - B) / tl.where(B > 0, B + root, 2.0) * (eps + z)
    return tl.where(2 * u < z, u, z - weight / (eps + u)), threshold


@triton.jit
def _log_sum_jump(eps, weight):
    """The |x| at which the operator jumps, by the Newton steps of ``csrc/penalty.h``."""
    unit = tl.sqrt(weight)
    e = tl.where(eps < unit, eps / unit, 0.5)
    e = tl.where(e > 1e-300, e, 1e-300)
    gap = 1 - e
    u = gap * tl.sqrt(2.25 - 2 * tl.log(e))
    for _ in range(5):
        q = e + u
        excess = _log1p(u / e) - u / q - 0.5 * u * u
        better = u + excess * q * q / (u * (u - gap) * (1 + q))
        u = tl.where(gap > 1e-6, better, u)
    return unit * (u + 1 / (e + u))
