"""deploy: from a model to a network ready for inference."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from slimfast import graph
from slimfast.packed.deployed import DTYPES, Deployed
from slimfast.packed.explain import explained
from slimfast.packed.fuse import merged
from slimfast.packed.lowering import lower_calls
from slimfast.packed.out_of_memory import needs_memory


def deploy(
    model: nn.Module,
    example_inputs: object,
    dtype: torch.dtype | None = None,
    *,
    explain: bool = False,
    autotune: bool = False,
) -> Deployed:
    """Makes a model ready for inference: BatchNorm folded, passes over memory merged, images in NHWC.

    The model is copied, and the copy is in eval mode. What has no packed op runs as the model wrote it.

    Args:
        model: with one input, images; pruned or not.
        example_inputs: images [N, C, H, W], or a tuple of them alone; others will do as well later.
        dtype: of the computation: float64, float32, bfloat16 or float16; the model's own if None.
        explain: the result's `explanation` says which op each module and function call became, why not a
            better one, and how each op runs for images like the example. Print it.
        autotune: the first call with a new shape of images also tries torch.compile in mode max-autotune,
            on the whole network and on a GPU on each convolution, and keeps what is fastest. Minutes for
            each shape, less where Inductor's cache on disk knows it.

    Returns:
        A callable for images on the model's device.

    Raises:
        ValueError: dtype is not one of these, or example_inputs is not one tensor of rank 4 beside the model.
        slimfast.GraphError: the model cannot be traced, or fails on the example inputs.
        torch.OutOfMemoryError: there is not enough memory for so many images at a time.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    own_dtype, device = _kind(model)
    x = _example(example_inputs, device)
    with needs_memory("example_inputs", x.shape, device):
        traced = graph.trace(model, x.to(own_dtype))
    for module in traced.modules():
        module.training = False
    with torch.no_grad():
        lowered, calls = lower_calls(traced)
        ops = merged(lowered)
    program = ops.program()
    program.check(x.shape[1])
    deployed = Deployed(program, x.shape[1], dtype or own_dtype, own_dtype, device)
    deployed.autotune = autotune
    if explain:
        x = x.to(deployed.dtype)
        [(plan, _), *_] = deployed.pieces(x)
        explanation = explained(calls, ops, plan.steps, x.shape, str(device))
        deployed.explanation = replace(explanation, compiled=deployed.compiled(x))
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
