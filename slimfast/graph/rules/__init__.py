"""The rule for each operation: one line here, and the transfer functions in the file named after its kind."""

import operator
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import fx, nn

from slimfast.graph.channels import Call
from slimfast.graph.rules.elementwise import AvgPool, Dropout, Elementwise, Flatten, Mean, Pool, Same
from slimfast.graph.rules.join import Add, Cat
from slimfast.graph.rules.kept import Bias, Carrier, Place, Select
from slimfast.graph.rules.linear import Conv2d, Linear
from slimfast.graph.rules.norm import BatchNorm
from slimfast.graph.rules.rule import Barrier, Rule, Size
from slimfast.nn import BorderConv2d, ChannelBias, ChannelPlace, ChannelSelect, ShapeCarrier

Operation = type[nn.Module] | Callable | str  # a module's type, a function, or a method's name

_OPERATIONS: list[tuple[Rule, list[Operation]]] = [
    (Conv2d(), [nn.Conv2d, BorderConv2d]),
    (Linear(), [nn.Linear]),
    (BatchNorm(), [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm]),
    (Elementwise(), [nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.SiLU, nn.GELU, nn.Mish]),
    (Elementwise(), [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid]),
    (Elementwise(), [F.relu, F.relu6, F.leaky_relu, F.elu, F.silu, F.gelu, F.mish, F.sigmoid, F.tanh]),
    (Elementwise(), [F.hardtanh, F.hardswish, F.hardsigmoid, torch.relu, torch.sigmoid, torch.tanh]),
    (Elementwise(), ["relu", "sigmoid", "tanh"]),
    (Dropout(), [nn.Dropout, nn.Dropout1d, nn.Dropout2d]),
    (Same(), [nn.Identity]),
    (Pool(), [nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d]),
    (Pool(), [F.max_pool2d, torch.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d]),
    (AvgPool(), [nn.AvgPool2d, F.avg_pool2d]),
    (Mean(), [torch.mean, "mean"]),
    (Flatten(), [nn.Flatten, torch.flatten, torch.reshape, "flatten", "view", "reshape"]),
    (Add(), [operator.add, torch.add, "add"]),
    (Cat(), [torch.cat, torch.concat]),
    (Size(), [getattr, "size"]),
    (Select(), [ChannelSelect]),
    (Place(), [ChannelPlace]),
    (Bias(), [ChannelBias]),
    (Carrier(), [ShapeCarrier]),
]
_RULES: dict[Operation, Rule] = {
    operation: rule for rule, operations in _OPERATIONS for operation in operations
}
_BARRIER = Barrier()


class Rulebook:
    """Finds the rule for the calls of one traced model."""

    def __init__(self, traced: fx.GraphModule) -> None:
        modules = dict(traced.named_modules(remove_duplicate=False))
        called = [modules[str(node.target)] for node in traced.graph.nodes if node.op == "call_module"]
        holders = Counter(
            id(tensor) for module in called for tensor in (*module.parameters(), *module.buffers())
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
        return rule if rule.accepts(call) else _BARRIER

    def _is_ours(self, module: nn.Module) -> bool:
        """Whether the module does what its type says, and may be narrowed: nobody else uses its tensors."""
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        tensors = (*module.parameters(), *module.buffers())
        return not hooked and all(self._holders[id(tensor)] == 1 for tensor in tensors)
