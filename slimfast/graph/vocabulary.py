"""The closed list of what a saved network may be made of: no other name is saved or loaded."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import slimfast.nn as own

_WINDOW = "kernel_size stride padding"
_CONV = f"in_channels out_channels {_WINDOW} dilation groups bias padding_mode"
_TRANSPOSED = f"in_channels out_channels {_WINDOW} output_padding groups bias dilation padding_mode"
_PSCONV = f"in_channels out_channels {_WINDOW} dilation bias kss period boost out_residue in_residue"
_NORM = "num_features eps momentum affine track_running_stats"
_MAX_POOL = f"{_WINDOW} dilation return_indices ceil_mode"
_AVG_POOL = f"{_WINDOW} ceil_mode count_include_pad"

# Constructor arguments by type. One that is a buffer of the module is taken from the stored tensors.
_LAYERS: list[tuple[str, list[type[nn.Module]]]] = [
    (_CONV, [nn.Conv1d, nn.Conv2d, nn.Conv3d, own.BorderConv1d, own.BorderConv2d, own.BorderConv3d]),
    (_TRANSPOSED, [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]),
    (_TRANSPOSED, [own.BorderConvTranspose1d, own.BorderConvTranspose2d, own.BorderConvTranspose3d]),
    (_PSCONV, [own.PSConv2d, own.BorderPSConv2d]),
    ("in_features out_features bias", [nn.Linear]),
    (_NORM, [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm]),
    (_NORM, [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d]),
    ("num_groups num_channels eps affine", [nn.GroupNorm]),
    ("normalized_shape eps elementwise_affine bias", [nn.LayerNorm]),
    ("inplace", [nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid]),
    ("negative_slope inplace", [nn.LeakyReLU]),
    ("alpha inplace", [nn.ELU, nn.CELU]),
    ("approximate", [nn.GELU]),
    ("beta threshold", [nn.Softplus]),
    ("min_val max_val inplace", [nn.Hardtanh]),
    ("num_parameters", [nn.PReLU]),
    ("dim", [nn.Softmax, nn.LogSoftmax]),
    ("", [nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softsign, nn.Identity]),
    ("p inplace", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout]),
    (_MAX_POOL, [nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d]),
    (_AVG_POOL, [nn.AvgPool1d]),
    (_AVG_POOL + " divisor_override", [nn.AvgPool2d, nn.AvgPool3d]),
    ("output_size", [nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d]),
    ("output_size return_indices", [nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d]),
    ("start_dim end_dim", [nn.Flatten]),
    ("size scale_factor mode align_corners recompute_scale_factor", [nn.Upsample]),
    ("padding", [nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.CircularPad1d, nn.CircularPad2d]),
    ("padding", [nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReplicationPad1d, nn.ReplicationPad2d]),
    ("padding value", [nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d]),
    ("upscale_factor", [nn.PixelShuffle]),
    ("downscale_factor", [nn.PixelUnshuffle]),
    ("groups", [nn.ChannelShuffle]),
    ("index", [own.ChannelSelect]),
    ("index fill", [own.ChannelPlace]),
    ("bias", [own.ChannelBias]),
    ("kernel_size stride padding dilation output_padding", [own.ShapeCarrier]),
]
MODULES: dict[type[nn.Module], tuple[str, ...]] = {
    kind: tuple(arguments.split()) for arguments, kinds in _LAYERS for kind in kinds
}
TAKES_TENSORS = (own.ChannelSelect, own.ChannelPlace, own.ChannelBias)

_OPERATOR = "add sub mul truediv floordiv mod pow neg matmul getitem iadd isub imul itruediv"
_TORCH = """
    abs add adaptive_avg_pool1d amax avg_pool1d bmm cat chunk clamp concat cos div exp flatten log
    amin channel_shuffle log_softmax matmul max_pool2d maximum mean minimum mul neg permute pow relu relu_
    reshape rsqrt sigmoid sin softmax split sqrt square squeeze stack sub sum tanh transpose unsqueeze where
"""
_FUNCTIONAL = """
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    avg_pool2d avg_pool3d celu dropout elu gelu glu hardsigmoid hardswish hardtanh interpolate leaky_relu
    log_softmax logsigmoid max_pool1d max_pool2d max_pool3d mish normalize pad pixel_shuffle pixel_unshuffle
    relu relu6 selu sigmoid silu softmax softplus softsign tanh
"""
_METHODS = """
    abs add add_ amax amin chunk clamp clamp_ clone contiguous dim div div_ exp expand expand_as flatten float
    log matmul mean mul mul_ neg permute pow relu relu_ repeat reshape reshape_as rsqrt sigmoid sigmoid_ size
    softmax split sqrt squeeze sub sub_ sum tanh tanh_ transpose type_as unflatten unsqueeze view view_as
"""
METHODS: frozenset[str] = frozenset(_METHODS.split())
ATTRIBUTES: frozenset[str] = frozenset({"shape", "dtype", "device", "ndim"})  # for the function getattr


def _table(prefix: str, home: Any, names: str) -> dict[str, Callable[..., Any]]:
    return {f"{prefix}.{name}": getattr(home, name) for name in names.split()}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_table("operator", operator, _OPERATOR),
    **_table("torch", torch, _TORCH),
    **_table("torch.nn.functional", F, _FUNCTIONAL),
    "getattr": getattr,
}
FUNCTION_NAMES: dict[Callable[..., Any], str] = {call: name for name, call in reversed(FUNCTIONS.items())}
MODULE_NAMES: dict[str, type[nn.Module]] = {
    f"{kind.__module__.partition('.')[0]}.nn.{kind.__name__}": kind for kind in MODULES
}
TYPE_NAMES: dict[type[nn.Module], str] = {kind: name for name, kind in MODULE_NAMES.items()}
