"""deploy: a model as a callable for inference alone."""

import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from slimfast import graph
from slimfast.packed.fuse import fuse
from slimfast.packed.lower import lower
from slimfast.packed.plan import Plan
from slimfast.packed.program import Program

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PLANS_KEPT = 8  # input shapes whose plans are kept at a time


class Deployed:
    """A network ready for inference; made by `deploy` or `slimfast.load`.

    Called like the model: NCHW images in any memory format, float32 or the deployed dtype, any batch and image size
    that the model takes. The result is a new tensor in the model's own dtype. Calls from several threads are safe.

    Attributes:
        program: the ops that run; `print(deployed.program)` shows them.
        channels: of the input images.
        dtype: in which they compute.
        output_dtype: of the result.
        device: where they compute.
    """

    def __init__(
        self,
        program: Program,
        channels: int,
        dtype: torch.dtype,
        output_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.program = program.to(device, dtype)
        self.channels = channels
        self.dtype = dtype
        self.output_dtype = output_dtype
        self.device = device
        self._plans: dict[torch.Size, Plan] = {}
        self._lock = threading.Lock()

    def __call__(self, x: Tensor) -> Any:
        """The model's result for images x [N, C, H, W].

        Raises:
            TypeError: x is no tensor.
            ValueError: x has another rank, number of channels, dtype or device than the model takes, or requires grad.
        """
        self._check(x)
        with torch.no_grad():
            packed = x.to(self.dtype, memory_format=torch.channels_last)
            result = self._plan(packed)(packed)
            return tree_map_only(Tensor, lambda y: self._fresh(y, x), result)

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape [N, {self.channels}, H, W], got {list(x.shape)}")
        if x.dtype not in (torch.float32, self.dtype):
            accepted = " or ".join(dict.fromkeys([str(torch.float32), str(self.dtype)]))
            raise ValueError(f"x must be {accepted}, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"x must be on {self.device}, where the model was deployed, got {x.device}")
        if x.requires_grad:
            raise ValueError("x requires grad, but a deployed model is for inference: pass x.detach()")

    def _plan(self, x: Tensor) -> Plan:
        with self._lock:
            if x.shape not in self._plans:
                if len(self._plans) >= _PLANS_KEPT:
                    self._plans.clear()
                self._plans[x.shape] = Plan(self.program, [x])
            return self._plans[x.shape]

    def _fresh(self, y: Tensor, x: Tensor) -> Tensor:
        """y in the model's dtype, in memory that is nobody else's."""
        y = y.to(self.output_dtype) if y.is_floating_point() else y
        shares = y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        return y.clone() if shares else y

    def __repr__(self) -> str:
        return f"Deployed({len(self.program.ops)} ops, {self.channels} channels, {self.dtype}, {self.device})"


def deploy(model: nn.Module, example_inputs: object, dtype: torch.dtype | None = None) -> Deployed:
    """Makes a model ready for inference: BatchNorm folded, passes over memory merged, images in NHWC.

    The model is copied, and the copy is in eval mode. What has no fused op runs as the model wrote it.

    Args:
        model: with one input, images; pruned or not.
        example_inputs: images [N, C, H, W], or a tuple that holds them; other batches and sizes will do as well.
        dtype: in which to compute: float64, float32, bfloat16 or float16; the model's own if None.

    Returns:
        A callable for images on the model's device.

    Raises:
        ValueError: dtype is not one of these, or example_inputs is not one tensor of rank 4.
        slimfast.GraphError: the model cannot be traced, or fails on the example inputs.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    own_dtype, device = _kind(model)
    x = _example(example_inputs, device)
    traced = graph.trace(model, x.to(own_dtype))
    for module in traced.modules():
        module.training = False
    with torch.no_grad():
        program = fuse(lower(traced))
    deployed = Deployed(program, x.shape[1], dtype or own_dtype, own_dtype, device)
    deployed(x.to(torch.float32))
    return deployed


def _kind(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Type and place of the model's numbers; float32 on the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.float32, torch.device("cpu")


def _example(example_inputs: object, device: torch.device) -> Tensor:
    arguments = graph.as_arguments(example_inputs)
    if len(arguments) != 1 or not isinstance(arguments[0], Tensor) or arguments[0].dim() != 4:
        got = ", ".join(str(list(a.shape)) if isinstance(a, Tensor) else type(a).__name__ for a in arguments)
        raise ValueError(f"example_inputs must be one tensor [N, C, H, W], got {got or 'nothing'}")
    x: Tensor = arguments[0].detach()
    if x.device != device:
        raise ValueError(f"example_inputs must be on {device}, where the model is, got {x.device}")
    return x
