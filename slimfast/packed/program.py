"""The packed program: a short list of ops on NHWC tensors, each with its torch reference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimfast.ops.conv import conv

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False, kw_only=True)
class Op:
    """One step of a program: reads values by their names and makes the value `name`.

    Images are [N, C, H, W] in torch.channels_last. Subclasses hold geometry as numbers and weights as tensors.
    """

    name: str
    inputs: tuple[str, ...]

    kind: ClassVar[str]

    def run(self, *inputs: Tensor) -> Tensor:
        """The op in plain torch; never writes into its inputs."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Field name -> weights; what a file stores beside the numbers."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}

    def numbers(self) -> dict[str, Any]:
        """Field name -> value of every other field but name and inputs."""
        skipped = {"name", "inputs", *self.tensors()}
        return {
            f.name: v
            for f in fields(self)
            if f.name not in skipped and (v := getattr(self, f.name)) is not None
        }

    def to(self, device: torch.device, dtype: torch.dtype) -> "Op":
        """The op with its floating-point weights in another place and type."""
        moved = {
            k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in self.tensors().items()
        }
        return replace(self, **moved)

    def __str__(self) -> str:
        shapes = [f"{k}{list(v.shape)}" for k, v in self.tensors().items()]
        defaults = {f.name: f.default for f in fields(self)}
        numbers = [f"{k}={v}" for k, v in self.numbers().items() if v != defaults[k]]
        return f"{self.name} = {self.kind}({', '.join([*self.inputs, *shapes, *numbers])})"


@dataclass(frozen=True, eq=False, kw_only=True)
class Conv(Op):
    """y = conv(relu(scale x + shift), weight) + bias + conv(ones, border) + residual, ReLU at the end if `relu`.

    The inputs are x, and the residual if there is one. border [Cout, 1, rows, columns] is what removed constant
    inputs contribute: a map of the image size alone. The rest is as in slimfast.ops.conv.
    """

    kind: ClassVar[str] = "conv"
    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    border: Tensor | None = None
    relu: bool = False
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def run(self, *inputs: Tensor) -> Tensor:
        x, residual = inputs[0], inputs[1] if len(inputs) > 1 else None
        if self.border is not None:
            added = self.border_map(x)
            residual = added if residual is None else residual + added
        return conv(
            x,
            self.weight,
            self.bias,
            scale=self.scale,
            shift=self.shift,
            residual=residual,
            relu=self.relu,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def border_map(self, x: Tensor) -> Tensor:
        """[1, Cout, H', W']: what the removed inputs contribute to images of x's size."""
        assert self.border is not None
        ones = x.new_ones(1, 1, *x.shape[2:])
        return conv(ones, self.border, stride=self.stride, padding=self.padding, dilation=self.dilation)


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine(Op):
    """y = scale x + shift per channel, ReLU if `relu`: a BatchNorm that no convolution could take."""

    kind: ClassVar[str] = "affine"
    scale: Tensor
    shift: Tensor
    relu: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        y = torch.addcmul(self.shift, inputs[0].movedim(1, -1), self.scale).movedim(-1, 1)
        return y.relu_() if self.relu else y


@dataclass(frozen=True, eq=False, kw_only=True)
class Relu(Op):
    """y = max(x, 0), any shape."""

    kind: ClassVar[str] = "relu"

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0].relu()


@dataclass(frozen=True, eq=False, kw_only=True)
class Add(Op):
    """y = a + b, ReLU if `relu`."""

    kind: ClassVar[str] = "add"
    relu: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        y = inputs[0] + inputs[1]
        return y.relu_() if self.relu else y


@dataclass(frozen=True, eq=False, kw_only=True)
class Concat(Op):
    """The inputs' channels one after another."""

    kind: ClassVar[str] = "concat"

    def run(self, *inputs: Tensor) -> Tensor:
        return torch.cat(inputs, dim=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Select(Op):
    """y[:, j] = x[:, index[j]]."""

    kind: ClassVar[str] = "select"
    index: Tensor

    def run(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        rows = x.movedim(1, -1).reshape(-1, x.shape[1]).index_select(1, self.index)
        return rows.view(x.shape[0], *x.shape[2:], self.index.numel()).movedim(-1, 1)


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


@dataclass(frozen=True, eq=False, kw_only=True)
class Fill(Op):
    """[N, 1, H', W'] of one number, in the size that a convolution with this window makes of x."""

    kind: ClassVar[str] = "fill"
    value: float
    window: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def run(self, *inputs: Tensor) -> Tensor:
        x = inputs[0]
        size = x.shape[2:]
        if self.window != (1, 1) or self.stride != (1, 1) or self.padding != (0, 0):
            geometry = zip(size, self.window, self.stride, self.padding, self.dilation, strict=True)
            size = torch.Size((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry)
        return x.new_full((x.shape[0], 1, *size), self.value)


@dataclass(frozen=True, eq=False, kw_only=True)
class Pool(Op):
    """Maximum or mean over windows, as torch.nn.MaxPool2d and AvgPool2d; with window None, over the whole map."""

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
        if self.mean:
            return F.avg_pool2d(
                x, self.window, self.stride, self.padding, self.ceil_mode, self.count_include_pad
            )
        return F.max_pool2d(x, self.window, self.stride, self.padding, self.dilation, self.ceil_mode)


@dataclass(frozen=True, eq=False, kw_only=True)
class Flatten(Op):
    """[N, C, H, W] -> [N, C H W], channel by channel."""

    kind: ClassVar[str] = "flatten"

    def run(self, *inputs: Tensor) -> Tensor:
        return inputs[0].flatten(1)


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Op):
    """y = x weight^T + bias, ReLU if `relu`; x [N, in], weight [out, in]."""

    kind: ClassVar[str] = "linear"
    weight: Tensor
    bias: Tensor | None = None
    relu: bool = False

    def run(self, *inputs: Tensor) -> Tensor:
        y = F.linear(inputs[0], self.weight, self.bias)
        return y.relu_() if self.relu else y


@dataclass(frozen=True, eq=False, kw_only=True)
class Constant(Op):
    """A tensor of the model itself, not of one of its layers."""

    kind: ClassVar[str] = "constant"
    value: Tensor

    def run(self, *inputs: Tensor) -> Tensor:
        del inputs
        return self.value


@dataclass(frozen=True, eq=False, kw_only=True)
class Call(Op):
    """Whatever has no op of its own: a module or function called as the model calls it, on plain NCHW tensors.

    `arguments` puts the inputs into their places: it takes their values and returns (args, kwargs).
    """

    kind: ClassVar[str] = "call"
    function: Callable[..., Any]
    arguments: Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]
    label: str
    dtype: torch.dtype = torch.float64

    def run(self, *inputs: Any) -> Any:
        args, kwargs = self.arguments([_plain(x) for x in inputs])
        return packed(self.function(*args, **kwargs), self.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> Op:
        function = self.function.to(device, dtype) if isinstance(self.function, nn.Module) else self.function
        return replace(self, function=function, dtype=dtype)

    def __str__(self) -> str:
        return f"{self.name} = call {self.label}({', '.join(self.inputs)})"


def _plain(x: Any) -> Any:
    return x.contiguous() if isinstance(x, Tensor) else x


def packed(x: Any, dtype: torch.dtype) -> Any:
    """A tensor of images in torch.channels_last, floating-point numbers in `dtype`; anything else as it is."""
    if not isinstance(x, Tensor):
        return x
    x = x.to(dtype) if x.is_floating_point() else x
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


KINDS: Mapping[str, type[Op]] = {
    op.kind: op
    for op in (Conv, Affine, Relu, Add, Concat, Select, Place, Fill, Pool, Flatten, Linear, Constant)
}


@dataclass(frozen=True, eq=False)
class Program:
    """Ops in the order in which they run; `str()` prints them, one per line.

    Attributes:
        inputs: names of the arguments.
        ops: each reads arguments and results of ops before it.
        output: name of the result.
    """

    inputs: tuple[str, ...]
    ops: tuple[Op, ...]
    output: str

    def run(self, *arguments: Any) -> Any:
        """The result, by the references of the ops."""
        values = dict(zip(self.inputs, arguments, strict=True))
        for op in self.ops:
            values[op.name] = op.run(*(values[name] for name in op.inputs))
        return values[self.output]

    def to(self, device: torch.device, dtype: torch.dtype) -> "Program":
        """The program with its floating-point weights in another place and type."""
        return replace(self, ops=tuple(op.to(device, dtype) for op in self.ops))

    def __str__(self) -> str:
        return "\n".join([f"inputs {', '.join(self.inputs)}", *map(str, self.ops), f"output {self.output}"])
