"""What tests of pruning share: random statistics, comparison with the masked model, implied counts."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_flatten, tree_leaves

from slimfast import models


def randomise(model: nn.Module, dead: float, seed: int = 0) -> nn.Module:
    """fp64, random statistics, shifts and scales of each BatchNorm, a share `dead` of the scales zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.double().parameters():  # drawn in fp32: make them distinct
        parameter.data *= 1 + 1e-3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            count = module.num_features
            zero = torch.rand(count, generator=generator) < dead
            scale = torch.randn(count, generator=generator).double().masked_fill(zero, 0.0)
            module.weight.data = scale
            module.bias.data = torch.randn(count, generator=generator).double()
            module.running_mean = torch.randn(count, generator=generator).double()
            module.running_var = torch.rand(count, generator=generator).double() + 0.5
    return model


def kill(model: nn.Module, *prefixes: str) -> nn.Module:
    """Every scale of the BatchNorms below these names becomes zero."""
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and f"{name}.".startswith(tuple(f"{p}." for p in prefixes)):
            module.weight.data.zero_()
    return model


def assert_equal_outputs(masked: nn.Module, pruned: nn.Module, *inputs: Tensor) -> None:
    """Every tensor of the two outputs, to 1e-9 of its largest number, in the mode that the two are in."""
    with torch.no_grad():
        expected, structure = tree_flatten(masked(*inputs))
        got, same_structure = tree_flatten(pruned(*inputs))
    assert same_structure == structure
    for one, other in zip(expected, got, strict=True):
        assert other.shape == one.shape
        assert float((other - one).abs().max()) <= 1e-9 * float(one.abs().max())


def assert_equal_gradients(masked: nn.Module, pruned: nn.Module, *inputs: Tensor) -> None:
    """Every gradient of the pruned network, to 1e-9, against that of the same weights in the masked one."""
    for model in (masked, pruned):
        model.zero_grad()
        loss = sum((output**2).sum() for output in tree_leaves(model(*inputs)))
        if loss.requires_grad:  # else the output is constant
            loss.backward()
    originals = dict(masked.named_parameters(remove_duplicate=False))
    rounding = 1e-12 * max((_largest(p.grad) for p in originals.values() if p.grad is not None), default=0.0)
    for name, parameter in pruned.named_parameters():
        if not parameter.numel():  # of a convolution whose inputs are all constant
            continue
        original = originals[name]
        assert original.grad is not None
        index = None if parameter.shape == original.shape else _source(name, masked, pruned)
        expected = original.grad.flatten() if index is None else original.grad.flatten()[index]
        if expected.numel() == parameter.numel():  # else a layer without inputs: its bias has no known place
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            error = _largest(got.flatten() - expected)
            assert error <= 1e-9 * _largest(original.grad) + rounding, name


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _source(name: str, masked: nn.Module, pruned: nn.Module) -> Tensor | None:
    """Where the numbers of a narrowed parameter stood in the flattened original.

    Random numbers are distinct, so their values say it. Those of a bias may have changed, for constants are
    added to it, and zero scales are all alike: there the layer's weight, or the shifts, tell which channels
    are left. None: the bias of a layer without inputs, where nothing is left to tell.
    """
    path, _, kind = name.rpartition(".")
    layer = pruned.get_submodule(path)
    if kind == "weight" and isinstance(layer, _BatchNorm):
        kind = "bias"
    if kind == "bias" and isinstance(layer, nn.Linear | _ConvNd):
        return _output_channels(path, masked, pruned)
    return _positions(getattr(masked.get_submodule(path), kind), getattr(layer, kind))


def _positions(original: Tensor, narrowed: Tensor) -> Tensor:
    values, order = original.detach().flatten().sort()
    wanted = narrowed.detach().flatten()
    index = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    assert torch.equal(values[index], wanted), "a narrowed parameter holds numbers that the original has not"
    return order[index]


def _output_channels(path: str, masked: nn.Module, pruned: nn.Module) -> Tensor | None:
    """Of a narrowed convolution or linear layer, the numbers that its outputs had."""
    original, narrowed = masked.get_submodule(path), pruned.get_submodule(path)
    if not narrowed.weight.numel():
        return None
    places = _positions(original.weight, narrowed.weight).view(narrowed.weight.shape)
    first, second, *_ = torch.unravel_index(places, original.weight.shape)
    if not isinstance(narrowed, _ConvTransposeNd):
        return first.flatten(1)[:, 0]
    group = first // (original.in_channels // original.groups)  # weight [inputs, outputs of one group, ...]
    outputs = group * original.weight.shape[1] + second
    return outputs.flatten(2)[:: narrowed.in_channels // narrowed.groups, :, 0].flatten()


def parameters_implied(name: str, model: nn.Module) -> int:
    """The number of parameters that must be left, from the zero scales alone; no use is made of the pass."""
    return _COUNTS[name](model)


def _live(module: nn.Module) -> Tensor:
    assert isinstance(module, nn.BatchNorm2d)
    return module.weight.detach() != 0


def _any(masks: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(masks)).any(0)


def _vgg19(model: nn.Module) -> int:
    total, width = 0, 3
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            left = int(_live(module).sum())
            total = (
                total + 9 * width * left + 2 * left if left else 0
            )  # a dead layer: all before it is gone too
            width = left
    return total + 10 * width + 10


def _resnet164(model: nn.Module) -> int:
    final = _live(model.bn)
    total = 2 * int(final.sum()) + 10 * int(final.sum()) + 10 + 3 * 9 * 16
    for stage in (model.layer1, model.layer2, model.layer3):
        wanted = final if stage is model.layer3 else torch.ones(len(stage[0].conv3.weight), dtype=torch.bool)
        for number in reversed(range(len(stage))):
            block, out = stage[number], int(wanted.sum())
            a, b, c = (int(_live(norm).sum()) for norm in (block.bn1, block.bn2, block.bn3))
            if c:  # else the branch is constant
                total += 2 * c + c * out
                total += 2 * b + 9 * b * c if b else 0
                total += 2 * a + a * b if a and b else 0
            if number:
                wanted = wanted | _live(block.bn1) if b and c else wanted
            else:
                total += len(block.bn1.weight) * out  # the shortcut reads everything
    return total


def _densenet40(model: nn.Module) -> int:
    final = _live(model.bn)
    total = 12 * int(final.sum()) + 10
    wanted = final
    stages = [(model.block3, model.transition2), (model.block2, model.transition1), (model.block1, None)]
    for block, transition in stages:
        for layer in reversed(block):
            width = layer.bn.num_features
            wanted, appended = wanted[:width], int(wanted[width:].sum())
            if appended:
                left = int(_live(layer.bn).sum())
                total += 2 * left + 9 * left * appended
                wanted = wanted | _live(layer.bn)
        if transition is None:
            return total + 3 * 9 * int(wanted.sum())
        left = _live(transition.bn)
        total += 2 * int(left.sum()) + int(left.sum()) * int(wanted.sum())
        wanted = left
    raise AssertionError("the first block has no transition")


def _resnet18(model: nn.Module) -> int:
    stream = _live(model.bn1)
    total = 3 * 49 * int(stream.sum()) + 2 * int(stream.sum())
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        for block in stage:
            read, inner, outer = int(stream.sum()), int(_live(block.bn1).sum()), _live(block.bn2)
            left = int(outer.sum())
            if left:
                total += 9 * inner * left + 2 * left
                total += 9 * read * inner + 2 * inner
            if block.downsample is not None:
                stream = _live(block.downsample[1])
                total += read * int(stream.sum()) + 2 * int(stream.sum())
            stream = stream | outer
    return total + int(stream.sum()) * len(model.fc.weight) + len(model.fc.bias)


_COUNTS: dict[str, Callable[[nn.Module], int]] = {
    "vgg19": _vgg19,
    "resnet164": _resnet164,
    "densenet40": _densenet40,
    "resnet18": _resnet18,
}
# One whole layer and one whole block of each.
DEAD_PARTS: dict[str, tuple[str, ...]] = {
    "vgg19": ("features.4", "features.28", "features.31", "features.34", "features.37"),
    "resnet164": ("layer1.4.bn2", "layer2.7.bn1", "layer2.9.bn3", "layer3.5"),
    "densenet40": ("block1.3", "block2"),
    "resnet18": ("layer1.0.bn1", "layer2.1.bn2", "layer3.1"),
}


def masked_model(name: str) -> nn.Module:
    """The paper's network with random statistics, 70 % of the scales zero, and its dead parts."""
    torch.manual_seed(0)
    return kill(randomise(models.build(name, num_classes=10), dead=0.7), *DEAD_PARTS[name])
