"""Triton device functions that the kernels of ``prox_sgd_`` share, and the numbers in its tables."""

import triton
import triton.language as tl

NUM_WARPS = 8
MAXNREG = 255  # without a limit ptxas aims at an occupancy, and spills a few bytes to reach it
NESTEROV = tl.constexpr(1)  # flags, see csrc/step_rules.h
MAXIMIZE = tl.constexpr(2)
FIRST_STEP = tl.constexpr(4)
FREEZE_ZEROS = tl.constexpr(8)
HAS_MOMENTUM = tl.constexpr(16)
PENALISED = tl.constexpr(32)  # own flag: this row's penalty is the launch's
PROX = tl.constexpr(0)  # methods
SUBGRADIENT = tl.constexpr(1)
RELAXED = tl.constexpr(2)
ALTERNATING = tl.constexpr(3)


@triton.jit
def array(address_ptr, TYPE: tl.constexpr, ALIGNMENT: tl.constexpr):
    """The address in the table as a pointer."""
    return tl.multiple_of(tl.load(address_ptr).to(tl.pointer_type(tl.dtype(TYPE))), ALIGNMENT)


@triton.jit
def descend(p, g, m, pull, hyper_ptr, flags):
    """torch.optim.SGD's step with the penalty's gradient `pull`: parameter and momentum."""
    WIDE: tl.constexpr = p.dtype
    lr, momentum = tl.load(hyper_ptr).to(WIDE), tl.load(hyper_ptr + 1).to(WIDE)
    keep, weight_decay = (1 - tl.load(hyper_ptr + 2)).to(WIDE), tl.load(hyper_ptr + 3).to(WIDE)
    d = tl.where(flags & MAXIMIZE != 0, -g, g)
    d = tl.where(weight_decay != 0, d + weight_decay * p, d) + pull
    m = tl.where(flags & FIRST_STEP != 0, d, momentum * m + keep * d)
    d = tl.where(flags & HAS_MOMENTUM != 0, tl.where(flags & NESTEROV != 0, d + momentum * m, m), d)
    return p - lr * d, m


@triton.jit
def couple(p, a, hyper_ptr):
    """For ALTERNATING p = (p + t a) / (1 + t), then a = (a + t p) / (1 + t) in float64; and 1 + t."""
    t = tl.load(hyper_ptr + 9) * tl.load(hyper_ptr) * tl.load(hyper_ptr + 8)
    p = ((p.to(tl.float64) + t * a) / (1 + t)).to(p.dtype)
    return p, (a + t * p.to(tl.float64)) / (1 + t), 1 + t
