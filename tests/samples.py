"""Sample calls of every op; tests/test_ops.py runs each of them through every implementation that is present.

A new op appends one entry to OPS:

    Op(
        name="affine_conv",      # torch.ops.slimfast.<name>; slimfast/ops/<name>.py holds `reference`
        calls={"3x3": lambda dtype: (randn(2, 5, 7, 7, dtype=dtype), ..., 1, True)},
        truth=affine_conv_truth,
        error=Twice(plain_torch),
        dtypes=(torch.float32, torch.bfloat16),
        triton="affine_conv",  # slimfast/kernels/<module>.py holds `launch`; None: there is no Triton kernel
    )

`calls` make fresh arguments, the same at every call: seed what is random (`randn` here is). They are
positional; a dict at the end holds keyword-only ones. Among them must be an empty tensor and one of size 1;
add odd sizes and extreme values. Lists of tensors are fine. The first three calls go through opcheck: no NaN.
`truth` gets the same arguments with every floating-point tensor in float64 and returns what the op returns;
what the op mutates, it mutates too. It must not use the op's own code.
`implementations` are those that serve these calls.
`error` is Ulps(n): units in the last place of the result; or Twice(f): at most twice the error of plain torch
code f in the same dtype.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import basic_block_truth
import bottleneck_truth
import conv_chain_truth
import conv_truth
import direct_conv_truth
import group_truth
import penalty_truth as penalty
import pooled_truth
import prox_adamw_truth
import prox_sgd_truth
import psconv_truth
import torch
from mpmath import mpf
from torch import Tensor

Call = Callable[[torch.dtype], tuple[Any, ...]]
IMPLEMENTATIONS = ("reference", "registered", "triton")
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Ulps:
    limit: float
    double: float = 4.0  # limit in float64, where the truth itself is rounded


@dataclass(frozen=True)
class Twice:
    baseline: Callable[..., Any]


@dataclass(frozen=True)
class Op:
    name: str
    calls: Mapping[str, Call]
    truth: Callable[..., Any]
    error: Ulps | Twice
    dtypes: tuple[torch.dtype, ...] = FLOATS
    triton: str | None = None
    implementations: tuple[str, ...] = IMPLEMENTATIONS


def randn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


EXACT = {  # kind, lam, shape, step
    "none": (penalty.NONE, 0.3, 0.0, 0.7),
    "step zero": (penalty.SCAD, 0.3, 3.7, 0.0),
    "l0": (penalty.L0, 0.3, 0.0, 0.7),
    "l1": (penalty.L1, 0.3, 0.0, 0.7),
    "l1 as in training": (penalty.L1, 1e-4, 0.0, 1e-3),
    "mcp": (penalty.MCP, 0.3, 3.0, 0.7),
    "mcp steep": (penalty.MCP, 0.3, 0.7000001, 0.7),
    "mcp jump": (penalty.MCP, 0.3, 0.5, 0.7),
    "scad": (penalty.SCAD, 0.3, 3.7, 0.7),
    "scad steep": (penalty.SCAD, 0.3, 3.7000001, 2.7),
    "scad soft, then jump": (penalty.SCAD, 0.3, 3.7, 3.1),
    "scad jump": (penalty.SCAD, 0.3, 3.7, 5.0),
    "log-sum": (penalty.LOGSUM, 0.3, 0.7, 0.7),
    "log-sum as in training": (penalty.LOGSUM, 1e-4, 0.1, 1e-3),
    "log-sum critical": (penalty.LOGSUM, 0.5, 0.5, 0.5),
    "log-sum just continuous": (penalty.LOGSUM, 0.5, 0.5, 0.4999999),
    "log-sum just jumping": (penalty.LOGSUM, 0.5, 0.5, 0.5000001),
    "log-sum jump": (penalty.LOGSUM, 0.3, 0.1, 0.7),
    "log-sum near l0": (penalty.LOGSUM, 3e5, 1e-9, 0.7),
}
SOLVED = {  # those whose operator is the root of an equation
    "lam zero": (penalty.TL1, 0.0, 0.5, 0.7),
    "lp 0.02": (penalty.LP, 0.3, 0.02, 0.7),
    "lp 1/2": (penalty.LP, 1e-4, 0.5, 0.1),
    "lp 2/3": (penalty.LP, 3e10, 2 / 3, 0.7),
    "lp 0.97": (penalty.LP, 3e-15, 0.97, 0.7),
    "tl1 subcritical": (penalty.TL1, 1e-4, 0.5, 0.1),
    "tl1 critical": (penalty.TL1, 0.5, 1.0, 0.5),
    "tl1 just subcritical": (penalty.TL1, 0.5, 1.0, 0.4999999),
    "tl1 just supercritical": (penalty.TL1, 0.5, 1.0, 0.5000001),
    "tl1 supercritical": (penalty.TL1, 30.0, 0.01, 0.7),
}


def penalty_inputs(dtype: torch.dtype, kind: int, lam: float, shape: float, step: float) -> Tensor:
    """Both signs, extremes, many scales, the neighbours of every kink but not those of a jump."""
    info = torch.finfo(dtype)
    weight, jump = step * lam, penalty.jump(kind, lam, shape, step)
    kinks = {
        penalty.TL1: [weight * (1 + 1 / (shape or 1))],
        penalty.MCP: [weight, shape * lam],
        penalty.LOGSUM: [weight / (shape or 1), shape],
    }.get(kind, [weight, (1 + step) * lam, shape * lam])
    near = max(info.eps, torch.finfo(torch.float32).eps)
    centres = [abs(number) for number in (*kinks, jump or 1.0) if number]
    factors = [0.1, 0.9, 1 - near, 1 + near, 1 + 3 * near, 1.01, 1.3, 2.0, 7.0, 1e4]
    least, most = info.smallest_normal * info.eps, info.max
    if dtype == torch.bfloat16:  # Triton's interpreter does not convert subnormal ones
        least, most = 1e-15, 1e15
    extremes = [0.0, math.inf, math.nan, least, 1e4 * least, most]
    numbers = [*extremes, *(centre * factor for centre in centres for factor in factors)]
    x = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    if jump:
        x = x[~((x.double() / jump - 1).abs() <= 3 * info.eps)]
    return torch.cat([x, -x])


def penalty_calls(regimes: Mapping[str, tuple[Any, ...]], scalars: int = 4) -> dict[str, Call]:
    def call(regime: tuple[Any, ...], size: tuple[int, ...] | None) -> Call:
        def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
            x = penalty_inputs(dtype, *regime) if size is None else randn(*size, dtype=dtype)
            return x, *regime[:scalars]

        return arguments

    sizes = {"empty": (0, 3), "size 1": (), "odd sizes": (3, 1, 5), "several blocks": (1025,)}
    any_regime = next(reversed(regimes.values()))
    plain = {label: call(any_regime, size) for label, size in sizes.items()}
    return plain | {label: call(regime, None) for label, regime in regimes.items()}


def _prox_truth(x: Tensor, *scalars: float) -> Tensor:
    def finite(z: mpf, *scalars: float) -> mpf:
        return penalty.prox(z, *scalars) if z < math.inf else z

    return penalty.elementwise(finite, x, *scalars, odd=True)


NARROW = (torch.float32, torch.bfloat16, torch.float16)  # derivatives and powers lose digits in float64
OPS = [
    Op("prox", penalty_calls(EXACT), _prox_truth, Ulps(1), triton="prox"),
    Op("prox", penalty_calls(SOLVED), _prox_truth, Ulps(2, double=1000), triton="prox"),
    Op(
        "penalty_value",
        penalty_calls(EXACT | SOLVED, scalars=3),
        functools.partial(penalty.elementwise, penalty.value, odd=False),
        Ulps(1),
        NARROW,
        triton="penalty_value",
    ),
    Op(
        "penalty_grad",
        penalty_calls(EXACT | SOLVED, scalars=3),
        functools.partial(penalty.elementwise, penalty.slope, odd=True),
        Ulps(1),
        NARROW,
        triton="penalty_grad",
    ),
    Op("group_prox", group_truth.CLOSED, group_truth.prox, Ulps(1, double=64), triton="group_prox"),
    Op(
        "group_prox",
        group_truth.SEARCHED,
        group_truth.prox,
        Ulps(1, double=1000),
        (torch.float64,),
        triton="group_prox",
    ),
    Op("conv", conv_truth.CALLS, conv_truth.conv, Twice(conv_truth.conv), NARROW, triton="conv"),
    Op("direct_conv", direct_conv_truth.CALLS, direct_conv_truth.conv, Twice(direct_conv_truth.conv), NARROW),
    Op(
        "conv_into",
        conv_truth.INTO_CALLS,
        conv_truth.conv_into,
        Twice(conv_truth.conv_into),
        NARROW,
        triton="conv_into",
    ),
    Op(
        "pooled_linear",
        pooled_truth.CALLS,
        pooled_truth.pooled_linear,
        Twice(pooled_truth.pooled_linear),
        NARROW,
        triton="pooled_linear",
    ),
    Op(
        "bottleneck",
        bottleneck_truth.CALLS,
        bottleneck_truth.bottleneck,
        Twice(bottleneck_truth.bottleneck),
        NARROW,
        triton="bottleneck",
    ),
    Op(
        "basic_block",
        basic_block_truth.CALLS,
        basic_block_truth.basic_block,
        Twice(basic_block_truth.basic_block),
        NARROW,
        triton="basic_block",
    ),
    Op(
        "conv_chain",
        conv_chain_truth.CALLS,
        conv_chain_truth.conv_chain,
        Twice(conv_chain_truth.conv_chain),
        NARROW,
        triton="conv_chain",
    ),
    Op(
        "prox_adamw_",
        prox_adamw_truth.CALLS,
        prox_adamw_truth.step,
        Twice(prox_adamw_truth.step),
        NARROW,
        triton="prox_adamw",
    ),
    Op(
        "prox_adamw_",
        prox_adamw_truth.GROUP_CALLS,
        prox_adamw_truth.step,
        Twice(prox_adamw_truth.step),
        NARROW,
    ),
    Op(
        "prox_sgd_",
        prox_sgd_truth.CALLS,
        prox_sgd_truth.step,
        Twice(prox_sgd_truth.step),
        NARROW,
        triton="prox_sgd",
    ),
    Op(
        "prox_sgd_",
        prox_sgd_truth.METHODS,
        prox_sgd_truth.step,
        Twice(prox_sgd_truth.step),
        NARROW,
        triton="prox_sgd",
    ),
    Op(
        "prox_sgd_",
        prox_sgd_truth.GROUPS,
        prox_sgd_truth.step,
        Twice(prox_sgd_truth.step),
        NARROW,
        triton="prox_sgd",
    ),
    Op(
        "psconv", psconv_truth.CALLS, psconv_truth.psconv, Twice(psconv_truth.psconv), NARROW, triton="psconv"
    ),
    Op(
        "psconv_input_grad",
        psconv_truth.INPUT_GRADS,
        psconv_truth.input_grad,
        Twice(psconv_truth.input_grad),
        NARROW,
        triton="psconv_input_grad",
    ),
    Op(
        "psconv_weight_grad",
        psconv_truth.WEIGHT_GRADS,
        psconv_truth.weight_grad,
        Twice(psconv_truth.weight_grad),
        NARROW,
        triton="psconv_weight_grad",
    ),
]
