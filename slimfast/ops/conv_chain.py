"""Several 3x3 convolutions of tiny images, one after the other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.ops._register import define, register_triton
from slimfast.ops.activation import RELU
from slimfast.ops.conv import reference as convolve

SCHEMA = "conv_chain(Tensor x, Tensor weight, Tensor bias, int[] channels, bool[] pooled) -> Tensor"
LARGEST = 16  # pixels of an image: a tile of the tensor cores has so many rows


def reference(
    x: Tensor, weight: Tensor, bias: Tensor, channels: Sequence[int], pooled: Sequence[bool]
) -> Tensor:
    """The convolutions one by one, each rounding its result to the dtype of x."""
    one = [1, 1]
    for count, halve in zip(channels, pooled, strict=True):
        inputs, size = x.shape[1], x.shape[2:]
        taps, weight = weight[: 9 * inputs * count], weight[9 * inputs * count :]
        added, bias = bias[: size.numel() * count], bias[size.numel() * count :]
        kernel = taps.view(3, 3, inputs, count).permute(3, 2, 0, 1)
        border = added.view(1, *size, count).permute(0, 3, 1, 2)
        x = convolve(x, kernel, border, None, None, None, *RELU, one, one, one, 1)
        x = F.max_pool2d(x, 2) if halve else x
    return x


define(SCHEMA, reference, compiled=False)
register_triton("conv_chain", "conv_chain")


def heaviest() -> int:
    """Bytes of one layer's weights up to which one kernel may win over a kernel per layer.

    Every program reads all weights from level-2 cache, at about 100 GB/s for one multiprocessor, where a
    kernel per layer divides them among many; it saves a launch, 2 of about 3.5 microseconds in a CUDA graph,
    which is the time of 200 KB. The last seven layers of a VGG-19 with 70 % of its channels gone have at most
    74 KB each (128 -> 32 channels), the one before 479 KB (208 -> 128): that stays a kernel of its own. At
    large batches the same bytes come from level-2 cache for each group of 64 pixels: 1024 images of 4x4
    pixels are 256 groups, at 230 KB in all 59 MB or 11 microseconds, against eight launches. Not yet
    measured: the run time measures before it uses the kernel.
    """
    return 192 * 1024


def conv_chain(
    x: Tensor, weight: Tensor, bias: Tensor, channels: Sequence[int], pooled: Sequence[bool]
) -> Tensor:
    """3x3 convolutions with ReLU on tiny NHWC images, one after the other in one pass over memory.

        y[0]   = x
        z      = relu(conv(y[i], weight[i], padding=1) + bias[i])
        y[i+1] = max over windows of 2x2 pixels of z if pooled[i], else z

    Sums are kept in float32, results in the dtype of x. Not differentiable: for inference.

    Args:
        x: [N, C, H, W], float32, bfloat16 or float16, dense in torch.channels_last; H W at most `LARGEST`,
            lest it be slow.
        weight: of each layer [3, 3, Cin, Cout], flat, one behind the other; dtype of x.
        bias: of each layer [H, W, Cout] of its own size, flat, one behind the other: what each pixel gets.
        channels: Cout of each layer; multiples of 8 are read fastest.
        pooled: of each layer, whether its result is halved, rounding down.

    Returns:
        [N, channels[-1], H', W'] in torch.channels_last.

    Raises:
        ValueError: lists of different lengths or empty, sizes of weight or bias that do not follow from them,
            or an image that pooling leaves empty.

    Source: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
    2015, table 1: stacks of 3x3 convolutions between max poolings.
    """
    if len(channels) != len(pooled) or not channels:
        raise ValueError(f"channels and pooled must name the same layers, got {channels} and {pooled}")
    inputs, (height, width), weights, biases = x.shape[1], x.shape[2:], 0, 0
    for count, halve in zip(channels, pooled, strict=True):
        weights, biases, inputs = weights + 9 * inputs * count, biases + height * width * count, count
        height, width = (height // 2, width // 2) if halve else (height, width)
    for name, tensor, expected in (("weight", weight, weights), ("bias", bias, biases)):
        if list(tensor.shape) != [expected]:
            raise ValueError(f"{name} must have shape {[expected]}, got {list(tensor.shape)}")
    if not height or not width:
        raise ValueError(f"images of {list(x.shape[2:])} are empty after {sum(pooled)} poolings")
    y: Tensor = torch.ops.slimfast.conv_chain(x, weight, bias, channels, pooled)
    return y
