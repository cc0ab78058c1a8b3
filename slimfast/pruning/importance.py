"""Importance of BatchNorm scales: what `prune` ranks them by."""

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimfast.graph import as_arguments
from slimfast.graph.modes import evaluating
from slimfast.pruning.coupling import Coupling, couple, filters, slices

Importance = Callable[[str, nn.Module], Tensor]
Batches = Iterable[tuple[object, object]]
Loss = Callable[..., Tensor]

# Numbers that are added to a signal, by the last part of their name, rather than multiplied with it.
_SHIFTS = ("bias", "running_mean", "border_weight", "fill")


def magnitude(name: str, module: nn.Module) -> Tensor:
    """|gamma|, the importance of Liu et al., "Network Slimming", 2017, section 3."""
    del name
    assert isinstance(module, _BatchNorm)
    return module.weight.detach().abs()


def random(seed: int) -> Importance:
    """Uniform in [0, 1): the baseline that any criterion must beat. The same numbers at every call.

    Args:
        seed: of all layers; a layer's numbers depend on its name, too, and on nothing else.
    """

    def importance(name: str, module: nn.Module) -> Tensor:
        assert isinstance(module, _BatchNorm)
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        return torch.rand(module.num_features, generator=generator, dtype=torch.float64)

    return importance


def filter_norm(model: nn.Module, example_inputs: object, p: float = 2) -> Importance:
    """The norm of the filter in front of each channel: (sum |w|^p)^(1/p).

    Where sums bring several filters into one channel, all their weights count. Filters of different layers
    have different sizes: see `relative` for one ranking over all of them.

    Args:
        model: computed from as it stands; left as it is.
        example_inputs: as for `prune`.
        p: a finite number > 0; 1 in the paper.

    Raises:
        ValueError: p is out of range; when called, for a BatchNorm without a filter in front of it.
        GraphError: the model cannot be traced, or fails on the example inputs.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    """
    _check_power(p)
    coupling = couple(model, example_inputs)
    scores = {name: power ** (1 / p) for name, power in _of_writers(coupling, lambda w: _power(w, p)).items()}
    return _lookup("filter_norm", scores, "or has no filter in front")


def group_norm(model: nn.Module, example_inputs: object, p: float = 2) -> Importance:
    """The norm of all weights that go with a channel: (sum |w|^p)^(1/p).

    Over the filters in front of it, gamma and beta, and in the next layers the slices of the weights that
    read the channel (of a matrix behind a flattening: all its columns).

    Args:
        model: computed from as it stands; left as it is.
        example_inputs: as for `prune`.
        p: a finite number > 0.

    Raises:
        ValueError: p is out of range; when called, for a BatchNorm that the model does not have.
        GraphError: the model cannot be traced, or fails on the example inputs.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.3.
    """
    _check_power(p)
    coupling = couple(model, example_inputs)
    written = _of_writers(coupling, lambda w: _power(w, p))
    scores = {}
    for name, module in _affine_norms(coupling.traced).items():
        power = written.get(name, torch.zeros(module.num_features, dtype=torch.float64)).clone()
        power += _power(_numbers(module.weight)[:, None], p) + _power(_numbers(module.bias)[:, None], p)
        for layer, channels in coupling.readers[name]:
            reading = _power(slices(coupling.traced.get_submodule(layer)), p)
            held = channels[: len(reading)] >= 0  # a convolution that lost all its inputs reads nothing
            power.index_add_(0, channels[: len(reading)][held], reading[held])
        scores[name] = power ** (1 / p)
    return _lookup("group_norm", scores)


def fpgm(model: nn.Module, example_inputs: object) -> Importance:
    """Distance of the filter in front of a channel to the others of its layer: sum_j ||F_c - F_j||_2.

    What lies near the layer's geometric median can be replaced by the others. Distances are comparable within
    a layer; see `relative` for one ranking over all of them.

    Args:
        model: computed from as it stands; left as it is.
        example_inputs: as for `prune`.

    Raises:
        ValueError: when called, for a BatchNorm without a filter in front of it.
        GraphError: the model cannot be traced, or fails on the example inputs.

    Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
    Acceleration", CVPR 2019, equations 4 to 6.
    """
    coupling = couple(model, example_inputs)
    return _lookup("fpgm", _of_writers(coupling, _distances), "or has no filter in front")


def taylor(model: nn.Module, data: Batches, loss: Loss) -> Importance:
    """Squared first-order change of the loss when a scale becomes zero: (gamma dL/dgamma)^2, batches' mean.

    Beta is left out, unlike in the paper: removing a channel keeps what its beta contributes.

    Args:
        model: evaluated in eval mode; left as it is, gradients and buffers included.
        data: batches (inputs, targets) on the model's device; inputs: a tensor or a tuple of arguments.
        loss: (outputs, targets) -> scalar.

    Raises:
        ValueError: no batch, no affine BatchNorm, a loss that is no scalar; when called, for a BatchNorm that
            the model does not have.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8.
    """
    sums: dict[str, Tensor] = {}
    batches = 0
    for gradients in _gate_gradients("taylor", model, data, loss):
        batches += 1
        for name, gradient in gradients.items():
            sums[name] = sums.get(name, 0) + gradient.sum(0) ** 2
    return _lookup("taylor", {name: total / batches for name, total in sums.items()})


def fisher(model: nn.Module, data: Batches, loss: Loss) -> Importance:
    """Second-order increase of the loss when a scale becomes zero: sum_n (gamma dL_n/dgamma)^2 / (2 N).

    L_n is the loss of sample n of N: the empirical Fisher information stands for the Hessian.

    Args:
        model: evaluated in eval mode, where samples do not touch each other; left as it is.
        data: batches (inputs, targets) on the model's device; inputs: a tensor or a tuple of arguments.
        loss: (outputs, targets) -> scalar, the mean over the samples of a batch.

    Raises:
        ValueError: no batch, no affine BatchNorm, a loss that is no scalar; when called, for a BatchNorm that
            the model does not have.

    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, section 3;
    Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021, section 3.2.
    """
    sums: dict[str, Tensor] = {}
    samples: dict[str, int] = {}
    for gradients in _gate_gradients("fisher", model, data, loss):
        for name, gradient in gradients.items():
            count = len(gradient)  # a mean over the batch holds each sample's loss this many times too small
            sums[name] = sums.get(name, 0) + ((count * gradient) ** 2).sum(0)
            samples[name] = samples.get(name, 0) + count
    return _lookup("fisher", {name: total / (2 * samples[name]) for name, total in sums.items()})


def synflow(model: nn.Module, example_inputs: object) -> Importance:
    """Synaptic flow through the scale: |gamma| dR/d|gamma|, with R the summed output for an input of ones.

    R is that of the network whose weights are replaced by their absolute values, in eval mode and float64.
    What is added (biases, beta, running means) counts as 0, so that R is the paper's product of weights, and
    the scores of any cut through the network add up to R. No data is seen.

    Args:
        model: computed from as it stands; left as it is.
        example_inputs: of them, only sizes and types are used.

    Raises:
        ValueError: no affine BatchNorm; when called, for a BatchNorm that the model does not have.

    Source: Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow",
    NeurIPS 2020, equations 1 and 2.
    """
    own = copy.deepcopy(model).requires_grad_(False).double()
    for name, tensor in [*own.named_parameters(), *own.named_buffers()]:
        if name.rpartition(".")[2] in _SHIFTS:
            tensor.zero_()
        elif isinstance(tensor, nn.Parameter):
            tensor.abs_()
    scales = {name: module.weight for name, module in _norms_of(own, "synflow").items()}
    ones = [_ones(argument) for argument in as_arguments(example_inputs)]
    with evaluating(own), torch.enable_grad():
        for scale in scales.values():
            scale.requires_grad_(True)
        flow = sum(output.sum() for output in _tensors(own(*ones)))
        assert isinstance(flow, Tensor)
        gradients = torch.autograd.grad(flow, list(scales.values()), materialize_grads=True)
    return _lookup(
        "synflow", {name: _numbers(s * g) for (name, s), g in zip(scales.items(), gradients, strict=True)}
    )


def relative(importance: Importance) -> Importance:
    """Each score divided by the mean of its layer: makes layers of different sizes comparable.

    Args:
        importance: any, say `fpgm(model, example_inputs)`, which ranks within a layer only.
    """

    def divided(name: str, module: nn.Module) -> Tensor:
        scores = importance(name, module)
        mean = scores.mean()
        return scores / mean if mean else scores

    return divided


def _lookup(criterion: str, scores: Mapping[str, Tensor], or_else: str = "") -> Importance:
    def importance(name: str, module: nn.Module) -> Tensor:
        del module
        if name not in scores:
            reason = f"is not in the model that it was computed from {or_else}".rstrip()
            raise ValueError(f"{criterion} has no scores for BatchNorm {name!r}: it {reason}")
        return scores[name]

    return importance


def _check_power(p: float) -> None:
    if not 0 < p < math.inf:
        raise ValueError(f"p must be a finite number > 0, got {p}")


def _power(rows: Tensor, p: float) -> Tensor:
    """sum |w|^p of each row."""
    return (rows.abs() ** p).sum(1)


def _distances(rows: Tensor) -> Tensor:
    """Of each row, the sum of its distances to the others."""
    return torch.cdist(rows, rows).sum(1)


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _of_writers(coupling: Coupling, score: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """For each BatchNorm with filters in front, the sum over its writers of their filters' scores."""
    layers = {layer for links in coupling.writers.values() for layer, _ in links}
    scores = {layer: score(filters(coupling.traced.get_submodule(layer))) for layer in layers}
    found: dict[str, Tensor] = {}
    for name, links in coupling.writers.items():
        for layer, channels in links:
            mine = torch.where(channels >= 0, scores[layer][channels.clamp(min=0)], 0.0)
            found[name] = found.get(name, 0) + mine
    return found


def _affine_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    named = model.named_modules()
    return {name: m for name, m in named if isinstance(m, _BatchNorm) and m.weight is not None}


def _norms_of(model: nn.Module, criterion: str) -> dict[str, _BatchNorm]:
    norms = _affine_norms(model)
    if not norms:
        raise ValueError(f"{criterion}: {type(model).__name__} has no affine BatchNorm")
    return norms


def _gate_gradients(
    criterion: str, model: nn.Module, data: Batches, loss: Loss
) -> Iterator[dict[str, Tensor]]:
    """Per batch, by BatchNorm, dL/dg float64 [N, C], where sample n's scale is multiplied by g[n] = 1.

    Each is gamma dL/dgamma, split up by samples.
    """
    own = copy.deepcopy(model).requires_grad_(False)
    gates: dict[str, Tensor] = {}
    for name, module in _norms_of(own, criterion).items():
        module.register_forward_hook(_Gate(name, gates), prepend=True)
    batches = 0
    with evaluating(own):
        for inputs, targets in data:
            gates.clear()
            with torch.enable_grad():
                value = loss(own(*as_arguments(inputs)), targets)
                if value.numel() != 1:
                    raise ValueError(f"loss must return a scalar, got shape {list(value.shape)}")
                found = torch.autograd.grad(value, list(gates.values()), materialize_grads=True)
            yield {name: _numbers(gradient) for name, gradient in zip(gates, found, strict=True)}
            batches += 1
    if not batches:
        raise ValueError(f"data holds no batch, {criterion} needs one")


class _Gate:
    """Forward hook: y = g (y - beta) + beta, with the same g [N, C] at every call of the layer."""

    def __init__(self, name: str, gates: dict[str, Tensor]) -> None:
        self._name, self._gates = name, gates

    def __call__(self, module: _BatchNorm, inputs: object, y: Tensor) -> Tensor:
        if self._name not in self._gates:
            self._gates[self._name] = y.new_ones(y.shape[:2], requires_grad=True)
        gate, size = self._gates[self._name], [1] * (y.dim() - 2)
        beta = module.bias.to(y.dtype).view(1, -1, *size)
        return gate.view(*gate.shape, *size) * (y - beta) + beta


def _ones(argument: object) -> object:
    """One sample of ones in float64; what is no floating-point tensor stays."""
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return torch.ones_like(argument[:1], dtype=torch.float64)
    return argument


def _tensors(outputs: object) -> Iterator[Tensor]:
    """The tensors in what a model returns."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        yield from _tensors(list(outputs.values()))
    elif isinstance(outputs, tuple | list):
        for output in outputs:
            yield from _tensors(output)
