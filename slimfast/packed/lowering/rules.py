"""Which packed op a call becomes: one line for each operation at the end, and the rule it names.

A rule returns NoOp where its op does not fit the arguments; the call then runs as the model wrote it.
"""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from slimfast.nn import (
    BorderConv2d,
    BorderPSConv2d,
    ChannelBias,
    ChannelPlace,
    ChannelSelect,
    PSConv2d,
    ShapeCarrier,
)
from slimfast.packed.lowering.activations import ACTIVATION_FUNCTIONS, ACTIVATION_MODULES
from slimfast.packed.lowering.lowered import Alias, Lowered, NoOp, Rule, shape_of
from slimfast.packed.lowering.slices import getitem
from slimfast.packed.ops import (
    Add,
    Affine,
    Concat,
    Conv,
    Fill,
    Flatten,
    Linear,
    Multiply,
    Pair,
    Place,
    Pool,
    Select,
)
from slimfast.packed.psconv import PSConv

Size: TypeAlias = int | Sequence[int]

_NO_IMAGES = NoOp("its input is not one tensor [N, C, H, W]")
_RETURNS_INDICES = NoOp("it returns indices, too")
_NO_CHANNELS = NoOp("its input is not one tensor [N, C, ...]")
_NO_FLATTEN = NoOp("only [N, ...] to [N, features], at any batch, fits")


def _are_images(*xs: object) -> bool:
    return all(len(shape_of(x)) == 4 for x in xs)


def _has_channels(x: object) -> bool:
    return len(shape_of(x)) >= 2


def _pair(size: Size) -> Pair:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.detach().double()


def _padding(conv: nn.Conv2d) -> Pair | None:
    if not isinstance(conv.padding, str):
        return _pair(conv.padding)
    if conv.padding == "valid":
        return (0, 0)
    total = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    return None if any(n % 2 for n in total) else (total[0] // 2, total[1] // 2)


def _conv(node: fx.Node, module: nn.Conv2d) -> Lowered:
    x, padding = node.args[0], _padding(module)
    if not _are_images(x):
        return _NO_IMAGES
    if padding is None or module.padding_mode != "zeros":
        given = f"padding={module.padding!r}, padding_mode={module.padding_mode!r}"
        return NoOp(f"{given}; only as many zeros on both sides fit")
    assert isinstance(x, fx.Node)
    border = _wide(getattr(module, "border_weight", None))
    source, weight, ops = x.name, module.weight.detach().double(), []
    if not module.in_channels:
        assert border is not None
        ops = [Fill(name=f"{node.name}_ones", inputs=(source,), number=1.0)]
        source, weight, border = ops[0].name, border, None
    conv = Conv(
        name=node.name,
        inputs=(source,),
        weight=weight,
        bias=_wide(module.bias),
        border=border,
        stride=_pair(module.stride),
        padding=padding,
        dilation=_pair(module.dilation),
        groups=module.groups,
    )
    return [*ops, conv]


def _psconv(node: fx.Node, module: PSConv2d) -> Lowered:
    x = node.args[0]
    if not _are_images(x):
        return _NO_IMAGES
    assert isinstance(x, fx.Node)
    return [
        PSConv(
            name=node.name,
            inputs=(x.name,),
            weight=module.weight.detach().double(),
            bias=_wide(module.bias),
            border=_wide(getattr(module, "border_weight", None)),
            stride=_pair(module.stride),
            padding=_pair(module.padding),
            dilation=_pair(module.dilation),
            kernel_size=_pair(module.kernel_size),
            kss=module.kss,
            period=module.period,
            boost=module.boost,
            out_residue=module.out_residue,
            in_residue=module.in_residue,
        )
    ]


def _batch_norm(node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d | nn.SyncBatchNorm) -> Lowered:
    x, mean, var = node.args[0], _wide(module.running_mean), _wide(module.running_var)
    if not _has_channels(x):
        return _NO_CHANNELS
    if mean is None or var is None:
        return NoOp("it has no running statistics, but uses those of the batch")
    assert isinstance(x, fx.Node)
    scale = (var + module.eps).rsqrt()
    if module.weight is not None:
        scale = scale * module.weight.detach().double()
    shift = -mean * scale
    if module.bias is not None:
        shift = shift + module.bias.detach().double()
    return [Affine(name=node.name, inputs=(x.name,), scale=scale, shift=shift)]


def _channel_bias(node: fx.Node, module: ChannelBias) -> Lowered:
    x, bias = node.args[0], module.bias.double()
    if not _has_channels(x):
        return _NO_CHANNELS
    assert isinstance(x, fx.Node)
    return [Affine(name=node.name, inputs=(x.name,), scale=torch.ones_like(bias), shift=bias)]


def _linear(node: fx.Node, module: nn.Linear) -> Lowered:
    x = node.args[0]
    if len(shape_of(x)) != 2:
        return NoOp("its input is not one tensor [N, features]")
    assert isinstance(x, fx.Node)
    weight = module.weight.detach().double()
    return [Linear(name=node.name, inputs=(x.name,), weight=weight, bias=_wide(module.bias))]


def _select(node: fx.Node, module: ChannelSelect) -> Lowered:
    x = node.args[0]
    if not _has_channels(x):
        return _NO_CHANNELS
    assert isinstance(x, fx.Node)
    return [Select(name=node.name, inputs=(x.name,), index=module.index)]


def _place(node: fx.Node, module: ChannelPlace) -> Lowered:
    x = node.args[0]
    if not _has_channels(x):
        return _NO_CHANNELS
    assert isinstance(x, fx.Node)
    return [Place(name=node.name, inputs=(x.name,), index=module.index, fill=module.fill.double())]


def _multiply(node: fx.Node, x: object, other: object) -> Lowered:
    if shape_of(x) != shape_of(node):
        x, other = other, x
    pixel = (*shape_of(x)[:2], 1, 1)
    if (
        not _are_images(x, other)
        or shape_of(x) != shape_of(node)
        or shape_of(other) not in (shape_of(x), pixel)
    ):
        return NoOp("only the product of images with images, or one number for each image and channel, fits")
    assert isinstance(x, fx.Node)
    assert isinstance(other, fx.Node)
    return [Multiply(name=node.name, inputs=(x.name, other.name))]


def _nothing(node: fx.Node, x: object, *args: Any, **kwargs: Any) -> Lowered:
    del node, args, kwargs
    return Alias(x.name) if isinstance(x, fx.Node) else NoOp("its input is no value of the network")


def _add(node: fx.Node, x: object, other: object, *, alpha: float = 1) -> Lowered:
    if not (shape_of(x) and shape_of(x) == shape_of(other) and alpha == 1):
        return NoOp("only the plain sum of two tensors of the same shape fits")
    assert isinstance(x, fx.Node)
    assert isinstance(other, fx.Node)
    return [Add(name=node.name, inputs=(x.name, other.name))]


def _cat(node: fx.Node, tensors: object, dim: int = 0) -> Lowered:
    if not isinstance(tensors, tuple | list) or not _are_images(*tensors) or dim % 4 != 1:
        return NoOp("only images [N, C, H, W] side by side in dimension 1 fit")
    return [Concat(name=node.name, inputs=tuple(x.name for x in tensors))]


def _flatten(node: fx.Node, x: object, start_dim: int = 0, end_dim: int = -1) -> Lowered:
    shape = shape_of(x)
    if len(shape) < 2 or start_dim != 1 or end_dim not in (-1, len(shape) - 1):
        return _NO_FLATTEN
    assert isinstance(x, fx.Node)
    return [Flatten(name=node.name, inputs=(x.name,))]


def _view(node: fx.Node, x: object, *sizes: Any) -> Lowered:
    """x.view(n, -1), where n is computed from the batch, or x.view(-1, features)."""
    sizes = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], tuple | list) else sizes
    shape, result = shape_of(x), shape_of(node)
    if len(sizes) != 2 or len(shape) < 2 or len(result) != 2 or result[0] != shape[0]:
        return _NO_FLATTEN
    if not (isinstance(sizes[0], fx.Node) or (sizes[0] == -1 and isinstance(sizes[1], int))):
        return _NO_FLATTEN
    return _flatten(node, x, 1)


def _mean(node: fx.Node, x: object, dim: object = None, keepdim: bool = False) -> Lowered:
    if not _are_images(x) or not isinstance(dim, tuple | list) or {d % 4 for d in dim} != {2, 3}:
        return NoOp("only the mean of images [N, C, H, W] over rows and columns fits")
    assert isinstance(x, fx.Node)
    if keepdim:
        return [Pool(name=node.name, inputs=(x.name,), mean=True)]
    pool = Pool(name=f"{node.name}_pool", inputs=(x.name,), mean=True)
    return [pool, Flatten(name=node.name, inputs=(pool.name,))]


def _max_pool(
    node: fx.Node,
    x: object,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Lowered:
    if not _are_images(x):
        return _NO_IMAGES
    if return_indices:
        return _RETURNS_INDICES
    assert isinstance(x, fx.Node)
    return [
        Pool(
            name=node.name,
            inputs=(x.name,),
            mean=False,
            window=_pair(kernel_size),
            stride=_pair(stride or kernel_size),
            padding=_pair(padding),
            dilation=_pair(dilation),
            ceil_mode=ceil_mode,
        )
    ]


def _avg_pool(
    node: fx.Node,
    x: object,
    kernel_size: object,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Lowered:
    if not _are_images(x):
        return _NO_IMAGES
    if _is_size_of(kernel_size, x) and stride is None and padding == 0 and divisor_override is None:
        return _global_pool(node, x, 1, mean=True)
    if not isinstance(kernel_size, int | tuple | list):
        return NoOp("its window is computed from the input")
    if divisor_override is not None:
        return NoOp(f"divisor_override is {divisor_override}, only None fits")
    assert isinstance(x, fx.Node)
    return [
        Pool(
            name=node.name,
            inputs=(x.name,),
            mean=True,
            window=_pair(kernel_size),
            stride=_pair(stride or kernel_size),
            padding=_pair(padding),
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
        )
    ]


def _adaptive_avg_pool(node: fx.Node, x: object, output_size: object) -> Lowered:
    return _global_pool(node, x, output_size, mean=True)


def _adaptive_max_pool(
    node: fx.Node, x: object, output_size: object, return_indices: bool = False
) -> Lowered:
    return _RETURNS_INDICES if return_indices else _global_pool(node, x, output_size, mean=False)


def _global_pool(node: fx.Node, x: object, output_size: object, mean: bool) -> Lowered:
    if not _are_images(x) or output_size not in (1, (1, 1), [1, 1]):
        return NoOp(f"output_size is {output_size}, only 1 pixel of images [N, C, H, W] fits")
    assert isinstance(x, fx.Node)
    return [Pool(name=node.name, inputs=(x.name,), mean=mean)]


def _is_size_of(size: object, x: object) -> bool:
    """Whether it is x.shape[2:] or x.size()[2:]."""
    if not isinstance(size, fx.Node) or size.target is not operator.getitem:
        return False
    shape, part = size.args
    of_x = isinstance(shape, fx.Node) and shape.args[0] is x and len(shape.args) + len(shape.kwargs) <= 2
    is_shape = isinstance(shape, fx.Node) and (shape.target == "size" or shape.args[1:] == ("shape",))
    return of_x and is_shape and part == slice(2, None, None)


def _carrier(node: fx.Node, module: ShapeCarrier) -> Lowered:
    x = node.args[0]
    if not (shape_of(x) and module.keeps_size) and not (_are_images(x) and module.output_padding is None):
        return _NO_IMAGES
    assert isinstance(x, fx.Node)
    return [
        Fill(
            name=node.name,
            inputs=(x.name,),
            number=0.0,
            window=_pair(module.kernel_size),
            stride=_pair(module.stride),
            padding=_pair(module.padding),
            dilation=_pair(module.dilation),
        )
    ]


MODULES: Mapping[type[nn.Module], Rule] = {
    **ACTIVATION_MODULES,
    nn.Conv2d: _conv,
    BorderConv2d: _conv,
    PSConv2d: _psconv,
    BorderPSConv2d: _psconv,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.SyncBatchNorm: _batch_norm,
    nn.Linear: _linear,
    nn.Identity: lambda node, m: _nothing(node, node.args[0]),
    nn.Dropout: lambda node, m: _nothing(node, node.args[0]),
    nn.Dropout1d: lambda node, m: _nothing(node, node.args[0]),
    nn.Dropout2d: lambda node, m: _nothing(node, node.args[0]),
    nn.Flatten: lambda node, m: _flatten(node, node.args[0], m.start_dim, m.end_dim),
    nn.MaxPool2d: lambda node, m: _max_pool(
        node, node.args[0], m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AvgPool2d: lambda node, m: _avg_pool(
        node,
        node.args[0],
        m.kernel_size,
        m.stride,
        m.padding,
        m.ceil_mode,
        m.count_include_pad,
        m.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda node, m: _adaptive_avg_pool(node, node.args[0], m.output_size),
    nn.AdaptiveMaxPool2d: lambda node, m: _adaptive_max_pool(
        node, node.args[0], m.output_size, m.return_indices
    ),
    ChannelSelect: _select,
    ChannelPlace: _place,
    ChannelBias: _channel_bias,
    ShapeCarrier: _carrier,
}

FUNCTIONS: Mapping[Any, Rule] = {
    **ACTIVATION_FUNCTIONS,
    **dict.fromkeys([operator.mul, torch.mul, "mul"], _multiply),
    **dict.fromkeys([operator.add, torch.add, "add"], _add),
    **dict.fromkeys([torch.cat, torch.concat], _cat),
    **dict.fromkeys([torch.flatten, "flatten"], _flatten),
    **dict.fromkeys(["view", "reshape", torch.reshape], _view),
    **dict.fromkeys([torch.mean, "mean"], _mean),
    **dict.fromkeys([F.max_pool2d, torch.max_pool2d], _max_pool),
    F.avg_pool2d: _avg_pool,
    F.adaptive_avg_pool2d: _adaptive_avg_pool,
    F.adaptive_max_pool2d: _adaptive_max_pool,
    operator.getitem: getitem,
    "contiguous": _nothing,
}
