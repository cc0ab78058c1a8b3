"""The tail of a network for classification: mean over the whole map, then a linear layer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops._register import define, register_triton

SCHEMA = (
    "pooled_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift, bool relu) -> Tensor"
)


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    relu: bool,
) -> Tensor:
    """The formula of `pooled_linear`; halves are computed in float32 and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide)
    if scale is not None and shift is not None:
        y = (y * scale.to(wide)[:, None, None] + shift.to(wide)[:, None, None]).relu()
    y = F.linear(y.mean((2, 3)), weight.to(wide))
    y = y if bias is None else y + bias
    return (y.relu() if relu else y).to(x.dtype)


define(SCHEMA, reference, compiled=False)
register_triton("pooled_linear", "pooled_linear")


def pooled_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Mean of each channel of NHWC images, then a linear layer, in one pass over memory.

        a = relu(scale * x + shift)          (a = x without scale and shift)
        y = mean(a, (2, 3)) weight^T + bias  (y = relu(...) if relu)

    Sums are kept in float32 (float64 for float64). Not differentiable: for inference.

    Args:
        x: [N, C, H, W], float64, float32, bfloat16 or float16, dense in torch.channels_last; or some adjacent
            channels of such images, which a GPU reads where they are.
        weight: [out, C], dtype of x.
        bias: [out], dtype of x.
        scale, shift: [C], dtype of x; both or neither.
        relu: whether the result is clamped from below at 0.

    Returns:
        [N, out].

    Raises:
        ValueError: scale without shift, or shift without scale.
        RuntimeError: shapes that do not fit, as in torch.nn.functional.linear.

    Source: Lin et al., "Network In Network", 2014, section 3.2, for the mean over the map; He et al.,
    "Identity Mappings in Deep Residual Networks", ECCV 2016, for BatchNorm and ReLU before it.
    """
    if (scale is None) != (shift is None):
        raise ValueError(f"scale and shift must be given together, got scale={scale}, shift={shift}")
    y: Tensor = torch.ops.slimfast.pooled_linear(x, weight, bias, scale, shift, relu)
    return y
