"""The rule for each operation: one line here, and the transfer functions in the file named after its kind."""

import operator
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from slimfast.graph.channels import Call
from slimfast.graph.rules.conv import Conv
from slimfast.graph.rules.elementwise import Dropout, Elementwise, PReLU, Same
from slimfast.graph.rules.join import Add, Cat, CatAcross, Pairwise
from slimfast.graph.rules.kept import Bias, Carrier, Place, Select
from slimfast.graph.rules.linear import Linear
from slimfast.graph.rules.norm import BatchNorm
from slimfast.graph.rules.parts import Chunk, Item, PixelShuffle, PixelUnshuffle, Shuffle
from slimfast.graph.rules.psconv import PSConv
from slimfast.graph.rules.rule import Barrier, Either, Rule, Size
from slimfast.graph.rules.spatial import AvgPool, Behind, Flatten, Pad, Padded, Reduce, Spatial, Unflatten
from slimfast.nn import (
    BorderConv1d,
    BorderConv2d,
    BorderConv3d,
    BorderConvTranspose1d,
    BorderConvTranspose2d,
    BorderConvTranspose3d,
    BorderPSConv2d,
    ChannelBias,
    ChannelPlace,
    ChannelSelect,
    PSConv2d,
    ShapeCarrier,
)

Operation = type[nn.Module] | Callable | str  # a module's type, a function, or a method's name

_CONV = [nn.Conv1d, nn.Conv2d, nn.Conv3d, BorderConv1d, BorderConv2d, BorderConv3d]
_TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
_TRANSPOSED_BORDER = [BorderConvTranspose1d, BorderConvTranspose2d, BorderConvTranspose3d]
_NORM = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]
_MAX_POOL = [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d]
_ADAPTIVE = [nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d]
_ADAPTIVE_MAX = [nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d]
_ZERO_PAD = [nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d]
_CONSTANT_PAD = [nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d]
_REFLECTION_PAD = [nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d]
_REPLICATION_PAD = [nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d]
_CIRCULAR_PAD = [nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d]
_UPSAMPLE = [nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d]


def _everywhere(names: str) -> list[Operation]:
    """Functions of torch and of torch.nn.functional, and methods, of these names."""
    words = names.split()
    found = [getattr(home, name) for name in words for home in (torch, F) if hasattr(home, name)]
    return [*found, *words]


def _arithmetic(rule: Rule, names: str) -> tuple[Rule, list[Operation]]:
    """With two tensors `rule`, with a tensor and a number an operation on each element."""
    functions = [getattr(operator, name) for name in names.split() if hasattr(operator, name)]
    return Either(Elementwise(), rule), [*functions, *_everywhere(names)]


_SIGMOIDS = [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink]
_OPERATIONS: list[tuple[Rule, list[Operation]]] = [
    (Conv(), [*_CONV, *_TRANSPOSED, *_TRANSPOSED_BORDER]),
    (PSConv(), [PSConv2d, BorderPSConv2d]),
    (Linear(), [nn.Linear]),
    (BatchNorm(), [*_NORM]),
    (PReLU(), [nn.PReLU]),
    (Elementwise(), [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish]),
    (Elementwise(), [nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink, nn.Threshold, *_SIGMOIDS]),
    (Elementwise(), _everywhere("relu relu6 leaky_relu elu celu selu silu gelu mish sigmoid tanh softplus")),
    (Elementwise(), _everywhere("hardtanh hardswish hardsigmoid logsigmoid softsign clamp clip pow square")),
    (Elementwise(), [*_everywhere("abs neg exp sqrt rsqrt log"), operator.neg, operator.pow, operator.pos]),
    (Dropout(), [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout]),
    (Same(), [nn.Identity]),
    (Spatial(), [*_MAX_POOL, *_ADAPTIVE, *_ADAPTIVE_MAX, *_UPSAMPLE]),
    (Spatial(), [*_everywhere("max_pool1d max_pool2d max_pool3d"), F.interpolate, F.upsample]),
    (Spatial(), _everywhere("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")),
    (Spatial(), _everywhere("adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d")),
    (Spatial(), ["contiguous", "clone", "detach", torch.clone, torch.detach]),
    (AvgPool(), [nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, *_everywhere("avg_pool1d avg_pool2d avg_pool3d")]),
    (Pad(), [*_ZERO_PAD, *_CONSTANT_PAD, *_REFLECTION_PAD, *_REPLICATION_PAD, *_CIRCULAR_PAD, F.pad]),
    (Padded(), [nn.LPPool1d, nn.LPPool2d]),
    (Reduce(), _everywhere("mean amax amin")),
    (Either(Flatten(), Behind()), [nn.Flatten, torch.flatten, "flatten"]),
    (Either(Flatten(), Unflatten()), [torch.reshape, "view", "reshape"]),
    (Behind(), _everywhere("transpose permute squeeze unsqueeze")),
    _arithmetic(Add(), "add"),
    _arithmetic(Pairwise(), "sub mul truediv div maximum minimum"),
    (Either(Cat(), CatAcross()), [torch.cat, torch.concat]),
    (Chunk(), [torch.split, torch.chunk, "split", "chunk"]),
    (Item(), [operator.getitem]),
    (Shuffle(), [nn.ChannelShuffle, torch.channel_shuffle, F.channel_shuffle]),
    (PixelShuffle(), [nn.PixelShuffle, F.pixel_shuffle]),
    (PixelUnshuffle(), [nn.PixelUnshuffle, F.pixel_unshuffle]),
    (Size(), [getattr, "size", "dim"]),
    (Select(), [ChannelSelect]),
    (Place(), [ChannelPlace]),
    (Bias(), [ChannelBias]),
    (Carrier(), [ShapeCarrier]),
]
_RULES: dict[Operation, Rule] = {
    operation: rule for rule, operations in _OPERATIONS for operation in operations
}
_BARRIER = Barrier()


def keeps_channels(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the operation of a call has a rule by which its channels come from those of its inputs."""
    operation = type(traced.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    rule = _RULES.get(operation, _BARRIER) if node.op.startswith("call_") else _BARRIER
    flattens = isinstance(rule, Either) and any(isinstance(form, Flatten) for form in rule.forms)
    return not isinstance(rule, Barrier | Size) and not flattens


class Rulebook:
    """Finds the rule for the calls of one traced model."""

    def __init__(self, traced: fx.GraphModule) -> None:
        modules = dict(traced.named_modules(remove_duplicate=False))
        called = {
            id(m): m for m in (modules[str(n.target)] for n in traced.graph.nodes if n.op == "call_module")
        }
        holders = Counter(
            id(tensor) for module in called.values() for tensor in (*module.parameters(), *module.buffers())
        )
        for node in traced.graph.nodes:
            if node.op == "get_attr":
                holders[id(operator.attrgetter(str(node.target))(traced))] += 2
        self._holders = holders

    def rule(self, call: Call) -> Rule:
        """The rule that holds for this call; a barrier where there is none."""
        if call.node.op not in ("call_module", "call_function", "call_method"):
            return _BARRIER
        if call.module is not None and not self._is_ours(call.module):
            return _BARRIER
        operation = type(call.module) if call.module is not None else call.node.target
        rule = _RULES.get(operation, _BARRIER)
        return rule if all(rule.accepts(sibling) for sibling in call.siblings or [call]) else _BARRIER

    def _is_ours(self, module: nn.Module) -> bool:
        """Whether the module does what its type says, and may be narrowed: nobody else uses its tensors."""
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        tensors = (*module.parameters(), *module.buffers())
        return not hooked and all(self._holders[id(tensor)] == 1 for tensor in tensors)
