"""The gradient of a pre-defined sparse convolution with respect to its images: the product transposed."""

from collections.abc import Sequence

from slimfast.kernels._psconv_blocks import Layer, Taps, plan
from slimfast.kernels.psconv import gathered, multiply, price, shapes
from torch import Tensor


def launch(
    grad: Tensor,
    weight: Tensor,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The op `psconv_input_grad`; channels in place are taken as they are, as in `psconv`."""
    layer = Layer.of(out_residue, in_residue, kernel_size, kss, period, boost)
    reached = phases(kernel_size, stride, padding, dilation)
    how = plan(layer, shapes(grad.dtype), price, grad.device, reached)
    if weight.shape != how.weight_shape or grad.shape[1] != len(out_residue):
        raise RuntimeError(
            f"psconv_input_grad: weight {list(weight.shape)}, grad {list(grad.shape)} do not fit"
        )
    geometry = (input_size, kernel_size, stride, padding, dilation)
    right = gathered(weight, how.weight.flatten(), grad.dtype)
    return multiply(grad, right, None, None, False, how, *geometry, transposed=True)


def phases(
    kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[Taps, ...]:
    """Taps that reach the pixels whose (row, column) modulo the stride is (0, 0), (0, 1), ..., for each."""
    reached = [
        [[t for t in range(k) if (phase + p - t * d) % s == 0] for phase in range(s)]
        for k, s, p, d in zip(kernel_size, stride, padding, dilation, strict=True)
    ]
    return tuple(
        tuple(row * kernel_size[1] + column for row in rows for column in columns)
        for rows in reached[0]
        for columns in reached[1]
    )
