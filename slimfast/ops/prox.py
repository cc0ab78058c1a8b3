"""Proximal operators of the scalar penalties."""

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from slimfast.ops._kinds import Kind, check_number, check_tensor, real_pairs, rounded_like
from slimfast.ops._register import define, register_triton

SCHEMA = "prox(Tensor x, int kind, float lam, float shape, float step) -> Tensor"


def prox(x: Tensor, kind: int, lam: float, shape: float, step: float) -> Tensor:
    """argmin_u 0.5 (u - x)^2 + step * penalty(u), element by element.

    Results lie between 0 and x, ties go to 0, 0 becomes +0, NaN and infinities stay, step * lam = 0 is the
    identity. float32 results lie within 1 ulp of the exact operator (Lp, TL1: 2). Not differentiable: the
    result is detached.

    Args:
        x: any shape and strides; float32, float64, float16, bfloat16, or complex (both parts separately).
        kind: which penalty, a ``Kind``.
        lam: weight of the penalty, finite, >= 0.
        shape: p of Lp, a of TL1, gamma of MCP, a of SCAD, eps of LogSum; else unused.
        step: finite, >= 0; every regime, also where the operator jumps.

    Returns:
        A tensor with x's shape, dtype and layout.

    Raises:
        TypeError: x is no floating-point or complex tensor.
        ValueError: an unknown kind; lam or step negative or not finite.

    Source: L0, L1 (hard, soft thresholding); Lp: Marjanovic & Solo 2012; TL1: Zhang & Xin, CMS 15(2) 2017;
    MCP: firm thresholding, Zhang 2010; SCAD: Fan & Li 2001, with the regimes of steps above a - 1 added;
    LogSum: larger root of the stationarity equation, see ``slimfast.penalties.LogSum``.
    """
    check_tensor(x)
    check_number("lam", lam)
    check_number("step", step)
    out: Tensor = torch.ops.slimfast.prox(real_pairs(x.detach()), Kind(kind), lam, shape, step)
    return torch.view_as_complex(out) if x.is_complex() else out


def reference(x: Tensor, kind: int, lam: float, shape: float, step: float) -> Tensor:
    """The operator in float64, one formula per penalty, for z = |x|."""
    wide = x.double()
    z = wide.abs()
    shrunk, threshold = _OPERATORS[Kind(kind)](z, float(lam), float(shape), float(step))
    shrunk = torch.where(shrunk < z, shrunk, z)  # also where the formula overflows
    shrunk = torch.where((z > threshold) & (shrunk > 0), shrunk, 0.0)
    signed = torch.where(wide < 0, 0.0 - shrunk, shrunk)
    return rounded_like(x, torch.where(z < math.inf, signed, wide))


def _split(exact: Fraction) -> tuple[float, float]:
    """A number as hi + lo: input - hi - lo is right to the last bit, input - hi is not."""
    try:
        hi = float(exact)
    except OverflowError:
        return math.inf, 0.0
    return hi, float(exact - Fraction(hi))


def _identity(z: Tensor, lam: float, shape: float, step: float) -> tuple[Tensor, float]:
    return z, 0.0


def _hard(z: Tensor, lam: float, shape: float, step: float) -> tuple[Tensor, float]:
    return z, math.sqrt(2 * (step * lam))


def _soft(z: Tensor, lam: float, shape: float, step: float) -> tuple[Tensor, float]:
    weight, low = _split(Fraction(step) * Fraction(lam))
    return (z - weight) - low, weight


def _mcp(z: Tensor, lam: float, gamma: float, step: float) -> tuple[Tensor, float]:
    if step >= gamma:
        return z, lam * math.sqrt(gamma * step)
    soft, weight = _soft(z, lam, gamma, step)
    return soft * (gamma / (gamma - step)), weight


def _scad(z: Tensor, lam: float, a: float, step: float) -> tuple[Tensor, float]:
    if step > a + 1:
        return z, lam * math.sqrt(step * (a + 1))
    soft, weight = _soft(z, lam, a, step)
    if weight == 0:
        return z, 0.0
    if step >= a - 1:
        return torch.where(z <= (a + 1 + step) * lam / 2, soft, z), weight
    knee, low = _split((1 + Fraction(step)) * Fraction(lam))
    slope = (a - 1) / ((a - 1) - step)
    return torch.where(z <= knee, soft, lam + ((z - knee) - low) * slope), weight


def _lp(z: Tensor, lam: float, p: float, step: float) -> tuple[Tensor, float]:
    """u + weight p u^(p-1) = z in units of the jump x: v + beta v^-k = z / x, where v >= 1 is concave in z.

    The tangent at the threshold is therefore an upper start; three Halley steps reach rounding for every p.
    """
    k, weight = 1 - p, step * lam
    beta, start = p / (2 * k), (1 + k) / (2 * k)
    jump = (2 * weight * k) ** (1 / (1 + k))
    if 0 < jump < math.inf:  # rounding 1 + k costs digits far from 1; x^(2-p) = 2 weight k gives them back
        jump *= 1 + (2 * weight * k / jump * jump**p / jump - 1) / (1 + k)
    target = z / jump
    v = torch.minimum(target, 1 + (target - start) * (2 / (1 + k))).clamp(max=1e300)
    pull = v
    for _ in range(3):
        w = beta * v.clamp(min=1) ** -k
        f, fall = (v - target) + w, k * w / v
        slope, bend = 1 - fall, (1 + k) * fall / v
        delta = f * slope / (slope * slope - 0.5 * bend * f)
        pull = w + fall * delta
        v = v - delta
    return z - jump * pull, jump * start


def _tl1(z: Tensor, lam: float, a: float, step: float) -> tuple[Tensor, float]:
    """The largest root of (u - z)(a + u)^2 + tau a^2 = 0; tau = step lam (a+1)/a is the continuous threshold.

    Divided by y = a + z it is U^3 + B U^2 + A U = R with all digits right near tau, where the trigonometric
    form of the paper cancels. U^3 >= 2 s U^2 - s^2 U, so the quadratic with s in its place has its root at or
    above U, with an error of about (s - U)^2: five reach rounding, at the critical weight a^2 / (2a + 2) too.
    """
    tau, low = _split(Fraction(step) * Fraction(lam) * (1 + 1 / Fraction(a)))
    reach = 2 * (step * lam) * (a + 1)
    threshold = tau if reach <= a * a else math.sqrt(reach) - a / 2
    y = a + z
    alpha, bound = a / y, z / y
    A, B = alpha * ((a - 2 * z) / y), (2 * a - z) / y
    R = alpha * (alpha * (((z - tau) - low) / y))
    s = bound - alpha * (alpha * (tau / y))
    for _ in range(5):
        P, Q = B + 2 * s, A - s * s
        root = (Q * Q + 4 * P * R).clamp(min=0).sqrt()
        s = torch.where(Q > 0, 2 * R / (Q + root), (root - Q) / (2 * P))
    return torch.where(2 * s < bound, s * y, z - tau * (alpha / (alpha + s)) ** 2), threshold


def _log_sum(z: Tensor, lam: float, eps: float, step: float) -> tuple[Tensor, float]:
    """The larger root of (u - z)(eps + u) + weight = 0; tau = weight / eps is the continuous threshold.

    Divided by y = eps + z it is U^2 + B U = R with all digits right near tau.
    """
    tau, low = _split(Fraction(step) * Fraction(lam) / Fraction(eps))
    weight = step * lam
    threshold = tau if weight <= eps * eps else _log_sum_jump(eps, weight)
    y = eps + z
    B, R = (eps - z) / y, eps / y * (((z - tau) - low) / y)
    root = (B * B + 4 * R).clamp(min=0).sqrt()
    u = torch.where(B > 0, 2 * R / (B + root), (root - B) / 2) * y
    return torch.where(2 * u < z, u, z - weight / (eps + u)), threshold


def _log_sum_jump(eps: float, weight: float) -> float:
    """|x| = u + weight / (eps + u) where the objective at u is that at 0.

    In units of sqrt(weight) log(1 + u/e) - u/(e+u) = u^2/2, concave from 1 - e on, so that Newton descends.
    The start is right to rounding next to the critical e = 1, where the differences cancel.
    """
    unit = math.sqrt(weight)
    e = max(eps / unit, 1e-300)
    gap = 1 - e
    u = gap * math.sqrt(2.25 - 2 * math.log(e))
    for _ in range(5 if gap > 1e-6 else 0):
        q = e + u
        u += (math.log1p(u / e) - u / q - u * u / 2) * q * q / (u * (u - gap) * (1 + q))
    return unit * (u + 1 / (e + u))


_OPERATORS: dict[Kind, Callable[[Tensor, float, float, float], tuple[Tensor, float]]] = {
    Kind.NONE: _identity,
    Kind.L0: _hard,
    Kind.L1: _soft,
    Kind.LP: _lp,
    Kind.TL1: _tl1,
    Kind.MCP: _mcp,
    Kind.SCAD: _scad,
    Kind.LOGSUM: _log_sum,
}

define(SCHEMA, reference)
register_triton("prox", "prox")
