"""The packed ops: what a program is made of, each with its torch reference and the check of its weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimfast.ops.activation import ENDINGS, NONE, Activation
from slimfast.ops.conv import conv
from slimfast.packed.op import Channels, Op

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Op):
    """y = f(conv(relu(scale x + shift), weight) + bias + conv(ones, border) + residual), f the activation.

    The inputs are x, and the residual if there is one. index [Cin] says which channels of x are read, all of
    them without one; it goes with groups = 1. border [Cout, 1, rows, columns] is what removed constant inputs
    contribute: a map that depends on the image size alone. The rest is as in slimfast.ops.conv.
    """

    kind: ClassVar[str] = "conv"
    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    index: Tensor | None = None
    border: Tensor | None = None
    activation: Activation = NONE
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def run(self, *inputs: Tensor) -> Tensor:
        x, residual = inputs[0], inputs[1] if len(inputs) > 1 else None
        return conv(
            x if self.index is None else select(x, self.index),
            self.weight,
            self.bias_for(x),
            scale=self.scale,
            shift=self.shift,
            residual=residual,
            activation=self.activation.name,
            slope=self.activation.slope,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def bias_for(self, x: Tensor) -> Tensor | None:
        """What is added for images of x's size: the bias [Cout], or with a border a map [1, Cout, H', W']."""
        if self.border is None:
            return self.bias
        ones = x.new_ones(1, 1, *x.shape[2:])
        map_of = replace(self, weight=self.border, scale=None, shift=None, index=None, border=None)
        return replace(map_of, activation=NONE, groups=1).run(ones)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1, 2)
        shape = list(self.weight.shape)
        self._require(
            len(shape) == 4 and all(shape), f"weight must be [Cout, Cin, rows, columns], got {shape}"
        )
        count, read = shape[0], shape[1] * self.groups
        self._require(count % self.groups == 0, f"groups {self.groups} does not divide {count} channels")
        self._require_vectors(read, "index")
        ends = ", ".join(ENDINGS)
        self._require(
            self.activation.name in ENDINGS, f"activation must be one of {ends}; got {self.activation.name}"
        )
        if self.index is None:
            self._require(inputs[0] in (None, read), f"reads {read} channels, got {inputs[0]}")
        else:
            self._require_indices(self.index, inputs[0])
        self._require(
            inputs[-1] in (None, count) or len(inputs) == 1, f"adds {inputs[1:]} to {count} channels"
        )
        self._require_vectors(count, "bias")
        self._require_vectors(read, "scale", "shift")
        self._require((self.scale is None) == (self.shift is None), "scale and shift must come together")
        border = None if self.border is None else list(self.border.shape)
        self._require(border in (None, [count, 1, *shape[2:]]), f"border has shape {border}, weight {shape}")
        return count


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Op):
    """y = scale x + shift per channel, then ReLU if `relu`: a BatchNorm that no convolution could take."""

    kind: ClassVar[str] = "affine"
    scale: Tensor
    shift: Tensor
    relu: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        y = torch.addcmul(self.shift, inputs[0].movedim(1, -1), self.scale).movedim(-1, 1)
        return y.relu_() if self.relu else y

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        self._require_vectors(inputs[0], "scale", "shift")
        return self.scale.numel()


@dataclass(frozen=True, eq=False, kw_only=True)
class Activate(Op):
    """y = f(x), f being `activation`, number by number; any shape."""

    kind: ClassVar[str] = "activate"
    activation: Activation

    def run(self, *inputs: Tensor) -> Tensor:
        return self.activation(inputs[0])

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        self._require(self.activation != NONE, "activation must not be none: the result is a new tensor")
        return inputs[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Multiply(Op):
    """y = a b; b may have a single pixel for each image and channel, which then is for all pixels of a."""

    kind: ClassVar[str] = "multiply"

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0] * inputs[1]

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 2)
        a, b = inputs
        self._require(a is None or b in (None, a), f"multiplies {a} channels by {b}")
        return b if a is None else a


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Op):
    """y = a + b, then ReLU if `relu`."""

    kind: ClassVar[str] = "add"
    relu: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        y = inputs[0] + inputs[1]
        return y.relu_() if self.relu else y

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 2)
        a, b = inputs
        self._require(a is None or b in (None, a), f"adds {b} channels to {a}")
        return b if a is None else a


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Op):
    """The inputs' channels one after another."""

    kind: ClassVar[str] = "concat"

    def run(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)

    def channels(self, *inputs: Channels) -> Channels:
        self._require(len(inputs) > 0, "takes at least 1 input")
        known = [count for count in inputs if count is not None]
        return sum(known) if len(known) == len(inputs) else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Select(Op):
    """y[:, j] = x[:, index[j]]."""

    kind: ClassVar[str] = "select"
    index: Tensor

    def run(self, *inputs: Tensor) -> Tensor:
        return select(inputs[0], self.index)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        self._require_indices(self.index, inputs[0])
        return self.index.numel()


@dataclass(frozen=True, eq=False, kw_only=True)
class Place(Op):
    """y[:, c] = fill[c], plus x[:, j] where c = index[j]."""

    kind: ClassVar[str] = "place"
    index: Tensor
    fill: Tensor

    def run(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        y = self.fill.expand(x.shape[0], *x.shape[2:], -1).clone()
        if self.index.numel():
            y.index_add_(-1, self.index, x.movedim(1, -1))
        return y.movedim(-1, 1)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        self._require_vectors(None, "fill")
        self._require_indices(self.index, self.fill.numel())
        count = self.index.numel()
        self._require(not count or inputs[0] in (None, count), f"places {count} channels, got {inputs[0]}")
        return self.fill.numel()


@dataclass(frozen=True, eq=False, kw_only=True)
class Fill(Op):
    """[N, 1, H', W'] of one number, in the size that a convolution with this window makes of x."""

    kind: ClassVar[str] = "fill"
    number: float
    window: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def run(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        size = list(x.shape[2:])
        if (self.window, self.stride, self.padding) != ((1, 1), (1, 1), (0, 0)):
            geometry = zip(size, self.window, self.stride, self.padding, self.dilation, strict=True)
            size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]
        return x.new_full((x.shape[0], 1, *size), self.number)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        return 1


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool(Op):
    """Mean or maximum over windows, as nn.AvgPool2d and MaxPool2d; without a window, over the whole map."""

    kind: ClassVar[str] = "pool"
    mean: bool
    window: Pair | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def run(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        if self.window is None:
            return x.mean((2, 3), keepdim=True) if self.mean else x.amax((2, 3), keepdim=True)
        geometry = (self.window, self.stride, self.padding)
        if self.mean:
            return F.avg_pool2d(x, *geometry, self.ceil_mode, self.count_include_pad)
        return F.max_pool2d(x, *geometry, self.dilation, self.ceil_mode)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        return inputs[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Op):
    """[N, C, H, W] -> [N, C H W], channel by channel."""

    kind: ClassVar[str] = "flatten"

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0].flatten(1)

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        return None


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Op):
    """y = x weight^T + bias, then ReLU if `relu`; x [N, in], weight [out, in]."""

    kind: ClassVar[str] = "linear"
    weight: Tensor
    bias: Tensor | None = None
    relu: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        y = F.linear(inputs[0], self.weight, self.bias)
        return y.relu_() if self.relu else y

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 1)
        shape = list(self.weight.shape)
        self._require(len(shape) == 2, f"weight must be [out, in], got {shape}")
        self._require(inputs[0] in (None, shape[1]), f"reads {shape[1]} features, got {inputs[0]}")
        self._require_vectors(shape[0], "bias")
        return shape[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Op):
    """A tensor of the model itself, not of one of its layers."""

    kind: ClassVar[str] = "constant"
    tensor: Tensor

    def run(self, *inputs: Tensor) -> Tensor:
        del inputs
        return self.tensor

    def channels(self, *inputs: Channels) -> Channels:
        self._require_inputs(inputs, 0)
        return self.tensor.shape[1] if self.tensor.dim() > 1 else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Call(Op):
    """Whatever has no op of its own: a module or function, called as the model calls it.

    `arguments` puts the inputs into their places: it takes their values and returns (args, kwargs). `why`
    says what keeps it from being another op. What may look at strides gets dense NCHW tensors, unless
    `any_layout` says that it does not.
    """

    kind: ClassVar[str] = "call"
    function: Callable[..., Any]
    arguments: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    label: str
    why: str
    any_layout: bool = False
    dtype: torch.dtype = torch.float64

    def run(self, *inputs: Any) -> Any:
        if not self.any_layout:
            inputs = tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)
        args, kwargs = self.arguments(inputs)
        return packed(self.function(*args, **kwargs), self.dtype)

    def channels(self, *inputs: Channels) -> Channels:
        del inputs
        return None

    def to(self, device: torch.device, dtype: torch.dtype) -> Op:
        function = self.function.to(device, dtype) if isinstance(self.function, nn.Module) else self.function
        return replace(self, function=function, dtype=dtype)

    def __str__(self) -> str:
        return f"{self.name} = call {self.label}({', '.join(self.inputs)})"


def select(x: Tensor, index: Tensor) -> Tensor:
    """x[:, index] for x dense in channels-last order, and so is the result."""
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]).index_select(1, index)
    return rows.view(x.shape[0], *x.shape[2:], index.numel()).movedim(-1, 1)


def packed(x: Any, dtype: torch.dtype) -> Any:
    """Tensors of images in torch.channels_last, floating-point numbers in `dtype`; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    x = x.to(dtype) if x.is_floating_point() else x
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
