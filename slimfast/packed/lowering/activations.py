"""Which activation a call is: one line for each module and function at the end."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from slimfast.ops.activation import Activation
from slimfast.packed.lowering.lowered import Lowered, NoOp, Rule, shape_of
from slimfast.packed.ops import Activate


def _activate(node: fx.Node, x: object, activation: Activation) -> Lowered:
    if not (isinstance(x, fx.Node) and shape_of(x)):
        return NoOp("its input is no tensor with dimensions")
    return [Activate(name=node.name, inputs=(x.name,), activation=activation)]


def _function(name: str) -> Rule:
    """Of an activation without parameters, as a function or a method."""

    def rule(node: fx.Node, x: object, inplace: bool = False) -> Lowered:
        del inplace
        return _activate(node, x, Activation(name))

    return rule


def _module(name: str) -> Rule:
    return lambda node, module: _activate(node, node.args[0], Activation(name))


def _leaky_relu(node: fx.Node, x: object, negative_slope: float = 0.01, inplace: bool = False) -> Lowered:
    del inplace
    return _activate(node, x, Activation("leaky_relu", float(negative_slope)))


def _elu(node: fx.Node, x: object, alpha: float = 1.0, inplace: bool = False) -> Lowered:
    del inplace
    return _activate(node, x, Activation("elu", float(alpha)))


def _gelu(node: fx.Node, x: object, approximate: str = "none") -> Lowered:
    return _activate(node, x, Activation("gelu" if approximate == "none" else "gelu_tanh"))


def _hardtanh(
    node: fx.Node, x: object, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Lowered:
    del inplace
    if (min_val, max_val) != (0, 6):
        return NoOp(f"of bounds {min_val} and {max_val}; only 0 and 6 fit")
    return _activate(node, x, Activation("relu6"))


ACTIVATION_MODULES: Mapping[type[nn.Module], Rule] = {
    nn.ReLU: _module("relu"),
    nn.ReLU6: _module("relu6"),
    nn.Sigmoid: _module("sigmoid"),
    nn.SiLU: _module("silu"),
    nn.Hardsigmoid: _module("hardsigmoid"),
    nn.Hardswish: _module("hardswish"),
    nn.Tanh: _module("tanh"),
    nn.Mish: _module("mish"),
    nn.GELU: lambda node, m: _gelu(node, node.args[0], m.approximate),
    nn.LeakyReLU: lambda node, m: _leaky_relu(node, node.args[0], m.negative_slope),
    nn.ELU: lambda node, m: _elu(node, node.args[0], m.alpha),
    nn.Hardtanh: lambda node, m: _hardtanh(node, node.args[0], m.min_val, m.max_val),
}

ACTIVATION_FUNCTIONS: Mapping[Any, Rule] = {
    **dict.fromkeys([F.relu, torch.relu, "relu"], _function("relu")),
    F.relu6: _function("relu6"),
    **dict.fromkeys([F.sigmoid, torch.sigmoid, "sigmoid"], _function("sigmoid")),
    F.silu: _function("silu"),
    F.hardsigmoid: _function("hardsigmoid"),
    F.hardswish: _function("hardswish"),
    **dict.fromkeys([F.tanh, torch.tanh, "tanh"], _function("tanh")),
    F.mish: _function("mish"),
    F.gelu: _gelu,
    F.leaky_relu: _leaky_relu,
    F.elu: _elu,
    F.hardtanh: _hardtanh,
}
