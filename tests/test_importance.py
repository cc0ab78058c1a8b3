"""Criteria of importance, each against its formula computed the slow way."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from coupling_truth import Zoo, coupled, weights_of
from pruning_truth import assert_equal_outputs, randomise
from torch import Tensor, nn

import slimfast
from slimfast import models, pruning
from slimfast.pruning.coupling import couple

X = torch.randn(16, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def zoo() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Zoo(), dead=0.0)


def chain() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(inplace=True),
        nn.Conv2d(4, 3, 3),
        nn.BatchNorm2d(3),
    ]
    return randomise(nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)), dead=0.0)


class Twice(nn.Module):
    """A BatchNorm that is called twice, and has a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.last = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2)
        self.bn.register_forward_hook(lambda module, inputs, y: 2 * y + module.bias.view(1, -1, 1, 1) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(F.silu(self.bn(self.conv(x)))).mean((2, 3)))


class Unread(Twice):
    """With a BatchNorm whose output nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.unread(self.conv(x))
        return super().forward(x)


def twice(kind: type[nn.Module] = Twice) -> nn.Module:
    torch.manual_seed(0)
    return randomise(kind(), dead=0.0)


def norms(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)}


def scores(importance: pruning.Importance, model: nn.Module) -> dict[str, Tensor]:
    return {name: importance(name, module) for name, module in norms(model).items()}


def assert_scores(got: dict[str, Tensor], expected: dict[str, list[float]], rtol: float = 1e-12) -> None:
    assert got.keys() == expected.keys()
    for name, numbers in expected.items():
        expected_numbers = torch.tensor(numbers, dtype=torch.float64)
        torch.testing.assert_close(got[name], expected_numbers, rtol=rtol, atol=0)


@pytest.mark.parametrize("build", [zoo, chain, twice])
def test_coupling_is_what_disturbing_one_channel_shows(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    writers, readers = coupled(model, X)
    found = couple(model, X)
    for name in norms(model):
        written, read = ({}, {})  # type: tuple[dict[str, set], dict[str, set]]
        for layer, channels in found.writers[name]:
            pairs = enumerate(channels.tolist())
            written.setdefault(layer, set()).update((c, o) for c, o in pairs if o >= 0)
        for layer, channels in found.readers[name]:
            read.setdefault(layer, set()).update((c, i) for i, c in enumerate(channels.tolist()) if c >= 0)
        assert written == {layer: pairs for layer, pairs in writers[name].items() if pairs}, name
        assert read == {layer: pairs for layer, pairs in readers[name].items() if pairs}, name


class Through(nn.Module):
    """An operation between a BatchNorm and a layer that sees each of its results alone."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.bn, self.operation = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), operation
        self.last = nn.Linear(operation(torch.zeros(16, 4, 8, 8)).flatten(1).shape[1], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(self.bn(self.conv(x))).flatten(1))


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.cat([x[:, 2:], x, x.new_ones(16, 1, 8, 8)], 1),
        lambda x: torch.stack([x, -x], 1).reshape(16, 8, 8, 8),
        lambda x: torch.stack(x.unbind(1)[::-1], 1),
        lambda x: x.view(16, 2, 2, 8, 8).transpose(1, 2).reshape(16, 4, 8, 8),
        lambda x: x.unflatten(1, (2, 2)).swapaxes(1, 2).flatten(1, 2),
        lambda x: x.permute(0, 2, 3, 1).movedim(1, 2) * 2,
        lambda x: x.split([1, 3], 1)[0] * x.chunk(2, dim=1)[1],
        lambda x: torch.tensor_split(x, 3, 1)[0] + x.narrow(1, 2, 2),
        lambda x: x.select(1, 2).unsqueeze(1).repeat(1, 3, 1, 1),
        lambda x: x.flip(1).roll(1, 1),
        lambda x: torch.index_select(x, 1, torch.tensor([3, 0])),
        lambda x: F.channel_shuffle(F.pixel_unshuffle(x, 2), 4),
        lambda x: F.pixel_shuffle(x, 2).amax((2, 3), keepdim=True).squeeze(3).squeeze(2),
        lambda x: F.pad(x, (1, 1, 0, 0, 1, 2)),
        lambda x: F.pad(x, (1, 1, 0, 0), value=7.0),
        lambda x: F.pad(x, (1, 1, 0, 0), "constant", 7.0),
        lambda x: x * torch.sigmoid(x.mean((2, 3)))[:, :, None, None],
    ],
)
def test_coupling_through_operations(operation: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = randomise(Through(operation), dead=0.0).eval()
    [link, *more] = couple(model, X).readers["bn"]
    assert {
        (c, i) for _, channels in (link, *more) for i, c in enumerate(channels.tolist()) if c >= 0
    } == coupled(model, X)[1]["bn"]["last"]


@pytest.mark.parametrize(("build", "p"), [(zoo, 1), (zoo, 2), (zoo, 3.5), (twice, 2)])
def test_norms(build: Callable[[], nn.Module], p: float) -> None:
    """Of all weights that get a gradient from the outputs, or read the inputs, that go with a channel."""
    model = build().eval()
    writers, readers = coupled(model, X)
    of_filters: dict[str, list[float]] = {}
    of_groups: dict[str, list[float]] = {}
    for name, norm in norms(model).items():
        of_filters[name], of_groups[name] = [], []
        for channel in range(norm.num_features):
            parts = [
                weights_of(model.get_submodule(layer), output=o)
                for layer, pairs in writers[name].items()
                for c, o in pairs
                if c == channel
            ]
            of_filters[name].append(float(torch.cat(parts).abs().pow(p).sum() ** (1 / p)))
            parts += [norm.weight.detach()[channel : channel + 1], norm.bias.detach()[channel : channel + 1]]
            for layer, pairs in readers[name].items():
                module = model.get_submodule(layer)
                parts += [weights_of(module, input=i) for c, i in pairs if c == channel]
            of_groups[name].append(float(torch.cat(parts).abs().pow(p).sum() ** (1 / p)))
    assert_scores(scores(pruning.filter_norm(model, X, p), model), of_filters)
    assert_scores(scores(pruning.group_norm(model, X, p), model), of_groups)


def test_group_norm_of_a_pruned_network() -> None:
    """With selections, placements, border terms, and convolutions without inputs."""
    model = models.densenet40(10, stem=4).double()
    model = randomise(model, dead=0.4)
    model.block2[0].bn.weight.data.zero_()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    pruned = slimfast.prune(model, x).model
    got = scores(pruning.group_norm(pruned, x), pruned)
    alone = {name: (m.weight**2 + m.bias**2).sqrt().detach() for name, m in norms(pruned).items()}
    assert all(bool((got[name] > alone[name]).all()) for name in alone)


def test_fpgm() -> None:
    model = chain()
    expected = {}
    for name, conv in (("1", model[0]), ("4", model[3])):
        weight = conv.weight.detach()
        distances = [[float((f - g).square().sum().sqrt()) for g in weight] for f in weight]
        expected[name] = [sum(row) for row in distances]
    assert_scores(scores(pruning.fpgm(model, X), model), expected)


def batches(sizes: tuple[int, ...], model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    outputs = model.eval()(X).shape[1]
    xs = [torch.randn(n, *X.shape[1:], dtype=torch.float64, generator=generator) for n in sizes]
    return [(x, torch.randint(outputs, (len(x),), generator=generator)) for x in xs]


def slope(model: nn.Module, name: str, channel: int, x: Tensor, y: Tensor) -> float:
    """gamma dL/dgamma by central differences of fourth order."""
    scale = model.get_submodule(name).weight.detach()
    old, h = float(scale[channel]), 1e-3

    @torch.no_grad()
    def at(factor: float) -> float:
        scale[channel] = old * factor
        return float(F.cross_entropy(model(x), y))

    result = (8 * (at(1 + h) - at(1 - h)) - (at(1 + 2 * h) - at(1 - 2 * h))) / (12 * h)
    scale[channel] = old
    return result


@pytest.mark.parametrize("build", [zoo, twice, lambda: twice(Unread)])
def test_taylor_and_fisher_are_finite_differences(build: Callable[[], nn.Module]) -> None:
    model = build()
    data = batches((3, 2), model)
    by_batch: dict[str, list[float]] = {}
    by_sample: dict[str, list[float]] = {}
    for name, norm in norms(model).items():
        channels = range(norm.num_features)
        by_batch[name] = [sum(slope(model, name, c, *batch) ** 2 for batch in data) / 2 for c in channels]
        single = [(x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))]
        by_sample[name] = [sum(slope(model, name, c, *s) ** 2 for s in single) / 10 for c in channels]
    assert_scores(scores(pruning.taylor(model, data, F.cross_entropy), model), by_batch, rtol=1e-5)
    assert_scores(scores(pruning.fisher(model, data, F.cross_entropy), model), by_sample, rtol=1e-5)


def test_fisher_predicts_the_loss_of_a_removed_channel() -> None:
    """Where targets are drawn from the outputs, the Fisher matrix is the Hessian."""
    torch.manual_seed(0)
    model = randomise(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten()), dead=0.0).eval()
    model[1].weight.data.copy_(torch.tensor([1e-4, 2e-4, -3e-4]))
    logits = model(X).detach()
    labels = torch.distributions.Categorical(logits=logits).sample((4000,))
    data = [(X, row) for row in labels]
    got = pruning.fisher(model, data, F.cross_entropy)("1", model[1])
    for channel in range(3):
        masked = copy.deepcopy(model)
        masked[1].weight.data[channel] = 0
        p, q = logits.log_softmax(1), masked(X).detach().log_softmax(1)
        assert float(got[channel]) == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=0.05)


def test_synflow_is_a_sum_over_paths() -> None:
    """Of products of absolute weights; what is added to a signal takes no part."""
    layers = [
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
    ]
    model = randomise(nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 2)), dead=0.0)
    x = torch.full((5, 2, 1, 1), torch.nan, dtype=torch.float64)  # only its size matters
    gains = [
        (m.weight / (m.running_var + m.eps).sqrt()).detach().abs().tolist() for m in (model[1], model[4])
    ]
    first, second, third = (model[i].weight.detach().abs().flatten(1).tolist() for i in (0, 3, 7))
    expected = {"1": [0.0] * 3, "4": [0.0] * 4}
    for i in range(2):
        for j in range(3):
            for k in range(4):
                for o in range(2):
                    path = first[j][i] * gains[0][j] * second[k][j] * gains[1][k] * third[o][k]
                    expected["1"][j] += path
                    expected["4"][k] += path
    assert_scores(scores(pruning.synflow(model, x), model), expected)


def test_synflow_is_conserved() -> None:
    """The scores of any cut add up to the same flow, in float32 networks of any depth and in pruned ones."""
    torch.manual_seed(0)
    model = models.vgg19(10)
    x = torch.randn(1, 3, 32, 32)
    for norm in norms(model).values():
        nn.init.uniform_(norm.bias)
    for network in (model, slimfast.prune(model, x, importance=pruning.random(0), ratio=0.5).model):
        sums = [float(score.sum()) for score in scores(pruning.synflow(network, x), network).values()]
        assert len(sums) == 16
        assert sums == pytest.approx([sums[0]] * 16, rel=1e-9)


def test_random() -> None:
    model = zoo()
    before = torch.get_rng_state()
    first, again = scores(pruning.random(3), model), pruning.random(3)
    assert all(torch.equal(again(name, m), first[name]) for name, m in reversed(norms(model).items()))
    assert torch.equal(torch.get_rng_state(), before)
    numbers = torch.cat([*first.values(), *scores(pruning.random(4), model).values()])
    assert len(numbers.unique()) == len(numbers)
    assert 0 <= float(numbers.min()) < float(numbers.max()) < 1


def test_relative() -> None:
    model = chain()
    fpgm = pruning.fpgm(model, X)
    for name, got in scores(pruning.relative(fpgm), model).items():
        torch.testing.assert_close(got, fpgm(name, model) / fpgm(name, model).mean())
    nothing = pruning.relative(lambda name, module: torch.zeros(module.num_features))
    assert nothing("1", model[1]).tolist() == [0.0] * 4


CRITERIA: dict[str, Callable[[nn.Module, list[Any]], pruning.Importance]] = {
    "filter_norm": lambda model, data: pruning.filter_norm(model, X),
    "group_norm": lambda model, data: pruning.group_norm(model, X),
    "fpgm": lambda model, data: pruning.fpgm(model, X),
    "taylor": lambda model, data: pruning.taylor(model, data, F.cross_entropy),
    "fisher": lambda model, data: pruning.fisher(model, data, F.cross_entropy),
    "synflow": lambda model, data: pruning.synflow(model, X),
}


@pytest.mark.parametrize("criterion", CRITERIA)
@torch.no_grad()
def test_the_model_stays_as_it_was(criterion: str) -> None:
    model = zoo()
    data = batches((3, 2), model)
    with torch.enable_grad():
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    model.train()
    model.bn1.eval()
    model.bn2.weight.requires_grad_(False)
    old = copy.deepcopy(model)
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    CRITERIA[criterion](model, data)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[name]), name
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == old.get_parameter(name).requires_grad
        assert torch.equal(parameter.grad, grads[name]), name
    for name, module in model.named_modules():
        assert module.training == old.get_submodule(name).training
        assert not module._forward_hooks


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_choose(criterion: str) -> None:
    """What goes first is what the criterion says, and the outputs are those with the scales at zero."""
    model = chain().eval()
    importance = CRITERIA[criterion](model, batches((4,), model))
    flat = torch.cat(list(scores(importance, model).values()))
    assert flat.dtype == torch.float64
    assert len(flat.unique()) == 7
    result = slimfast.prune(model, X, importance=importance, ratio=0.45, min_channels=0)
    masked = copy.deepcopy(model)
    for index in flat.argsort()[:3].tolist():
        norm, channel = (masked[1], index) if index < 4 else (masked[4], index - 4)
        norm.weight.data[channel] = 0
    assert_equal_outputs(masked, result.model, X)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_an_unknown_name(criterion: str) -> None:
    model = chain()
    importance = CRITERIA[criterion](model, batches((2,), model))
    with pytest.raises(ValueError, match=f"^{criterion} has no scores for BatchNorm 'bn1'") as caught:
        slimfast.prune(zoo(), X, ratio=0.5, importance=lambda name, m: importance("bn1", m))
    assert "\n" not in str(caught.value)


def test_a_batchnorm_without_a_filter_in_front() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).double()
    for importance in (pruning.filter_norm(model, X), pruning.fpgm(model, X)):
        slimfast.prune(model, X, ratio=0.5, keep=("0",), importance=importance)
        with pytest.raises(ValueError, match=r"has no scores for BatchNorm '0': .* no filter in front"):
            slimfast.prune(model, X, ratio=0.5, importance=importance)
    assert len(pruning.group_norm(model, X)("0", model[0])) == 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: pruning.filter_norm(m, X, 0), "p must be a finite number > 0, got 0"),
        (lambda m: pruning.group_norm(m, X, torch.inf), "p must be a finite number > 0, got inf"),
        (lambda m: pruning.taylor(m, [], F.cross_entropy), "data holds no batch"),
        (lambda m: pruning.fisher(m, [], F.cross_entropy), "data holds no batch"),
        (
            lambda m: pruning.taylor(m, [(X, 0)], lambda y, _: y),
            r"loss must return a scalar, got shape \[16, 2\]",
        ),
        (lambda m: pruning.fisher(m[3], [(X, 0)], F.cross_entropy), "fisher: Conv2d has no affine BatchNorm"),
        (lambda m: pruning.taylor(m[3], [(X, 0)], F.cross_entropy), "taylor: Conv2d has no affine BatchNorm"),
        (lambda m: pruning.synflow(m[3], X), "synflow: Conv2d has no affine BatchNorm"),
    ],
)
def test_bad_arguments(call: Callable[[nn.Module], object], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        call(chain())
    assert "\n" not in str(caught.value)
