"""Random networks of every operation: pruned equals masked. Run it to check many: python tests/random_net.py."""

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import random_ops
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_program import Program, Var, Writer, call
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import slimfast

TOLERANCE = 1e-9  # of the largest output
Sizes = tuple[Sequence[int], Sequence[int]]
_SIZES: list[Sizes] = [  # of the example image, of another
    *[((8, 10), (12, 6)), ((9, 8), (7, 11)), ((8, 6), (10, 7)), ((9, 8), (7, 11))],
    *[((12,), (9,)), ((4, 5, 6), (6, 4, 5))],
]
_BATCH = 500  # graphs per run of hypothesis, which remembers each


# The check.


@dataclass(frozen=True)
class Outcome:
    """Of one network: parameters before and after, and the largest difference relative to the largest output."""

    before: int
    after: int
    error: float
    varies: bool  # the outputs depend on the input


def check(net: nn.Module, inputs: int, sizes: Sizes, training: bool, again: bool) -> Outcome:
    """Prunes `net` and compares; AssertionError says where the two differ.

    Args:
        net: fp64; its forward takes so many `inputs`, images of 3 channels.
        sizes: of the example image, and of another.
        training: whether outputs must be equal in train mode too.
        again: prune what was pruned, and compare that too.
    """
    images = [_images(batch, size, inputs, seed) for seed, (batch, size) in enumerate(_shapes(sizes))]
    before, modes = copy.deepcopy(net.state_dict()), [module.training for module in net.modules()]
    result = slimfast.prune(net, images[0])
    assert modes == [module.training for module in net.modules()], "prune changed the mode of the original"
    assert all(map(torch.equal, before.values(), net.state_dict().values())), "prune changed the original"
    pruned = [("pruned", result.model)]
    if again:
        pruned.append(("pruned twice", slimfast.prune(result.model, images[0]).model))
    errors, varies = [], False
    for name, model in pruned:
        with explained(model):
            for x in images[1:]:
                errors.append(difference(net.eval(), model.eval(), x, f"{name}, eval mode"))
            if training:
                for network in (net, model):
                    _train(network)
                errors.append(difference(net, model, images[0], f"{name}, train mode"))
    with torch.no_grad():
        outputs = [_tensors(net.eval()(*x)) for x in (images[0], _images(3, sizes[0], inputs, 9))]
    varies = any(not torch.allclose(a, b) for a, b in zip(*outputs, strict=True))
    return Outcome(result.report.params_before, result.report.params_after, max(errors), varies)


def difference(net: nn.Module, pruned: nn.Module, images: tuple[Tensor, ...], where: str) -> float:
    """Of all outputs, relative to the largest; AssertionError if above the tolerance."""
    where += f", images {[list(image.shape) for image in images]}"
    with torch.no_grad():
        expected, got = _tensors(net(*images)), _tensors(pruned(*images))
    largest = max(float(tensor.abs().max()) for tensor in expected)
    assert all(bool(tensor.isfinite().all()) for tensor in expected), f"{where}: the network is not finite"
    worst = 0.0
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert a.shape == b.shape, f"{where}: output {i} is {list(b.shape)} instead of {list(a.shape)}"
        error = float((a - b).abs().max()) / largest
        assert error <= TOLERANCE, f"{where}: output {i} differs by {error:.1e} of the largest output {largest:.3g}"
        worst = max(worst, error)
    return worst


@contextmanager
def explained(pruned: torch.fx.GraphModule) -> Iterator[None]:
    """Adds the code of the pruned network to the message of whatever goes wrong."""
    try:
        yield
    except Exception as error:
        layers = "\n".join(f"  {name}: {module}" for name, module in pruned.named_children())
        raise AssertionError(f"{_said(error)}\n\nThe pruned network:\n{layers}\n{pruned.code.strip()}") from error


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"


def _shapes(sizes: Sizes) -> list[tuple[int, Sequence[int]]]:
    """The example, the same image size at another batch size, another image size."""
    return [(3, sizes[0]), (2, sizes[0]), (1, sizes[1])]


def _images(batch: int, size: Sequence[int], inputs: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, 3, *size, dtype=torch.float64, generator=generator) for _ in range(inputs))


def _train(net: nn.Module) -> None:
    """Train mode, but frozen BatchNorms stay frozen."""
    net.train()
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return list(outputs.values() if isinstance(outputs, dict) else outputs)


# The networks.


def network(random: Random) -> Program:
    """A network of some moves and a head for every tensor that nobody reads."""
    w = Writer(random, _SIZES[random.choice([0, 0, 1, 1, 2, 2, 3, 3, 4, 5])], 2 if random.randint(0, 9) > 8 else 1)
    random_ops.finish(w, random_ops.conv(w, w.tensors[0]))
    random_ops.chain(w)
    weighted = [move for weight, move in random_ops.MOVES for _ in range(weight)]
    for _ in range(w.integer(1, 10)):
        w.choice(weighted)(w)
    return w.program(_head(w))


def _head(w: Writer) -> str:
    """Matrix products of what the ends are pooled to; sometimes a second output beside them."""
    ends = w.ends()
    features = [_features(w, end) for end in ends]
    x = features[0]
    if len(features) > 1:
        x = w.run("cat of the head", f"torch.cat({features}, 1)", hidden=True)
    layer = w.layer("head", call("nn.Linear", x.channels, 4))
    x = random_ops.norm(w, w.run("Linear", f"{layer}({x})", True), True)
    x = random_ops.activation(w, x, True)
    if w.chance(15):
        w.count("two outputs")
        return w.choice([f"{x}, {ends[-1]}", f"{{'y': {x}, 'features': {ends[-1]}}}"])
    layer = w.layer("head", call("nn.Linear", 4, 3))
    return repr(w.run("Linear", f"{layer}({x})", True))


def _features(w: Writer, x: Var) -> Var:
    """[N, features] from an image of any size."""
    axes = tuple(range(2, 2 + x.dim))
    kind = w.choice(["mean", "amax", "squeeze", "flatten"])
    if kind in ("mean", "amax"):
        return w.run(kind, w.choice([call(f"{x}.{kind}", axes), call(f"torch.{kind}", x, axes)]), True)
    if kind == "squeeze":
        x = w.run("mean keepdim", call(f"{x}.mean", axes, keepdim=True), True)
        return w.run("squeeze", f"{x}{''.join(f'.squeeze({axis})' for axis in axes[::-1])}", True)
    pool = w.layer("pool", f"nn.Adaptive{w.choice(['Avg', 'Max'])}Pool{x.dim}d({w.choice([1, 2])})")
    x = w.run("adaptive pool", f"{pool}({x})", True)
    form = w.choice(["{x}.flatten(1)", "torch.flatten({x}, 1)", "{x}.reshape({x}.shape[0], -1)", "nn.Flatten()", "view"])
    if form == "nn.Flatten()":
        return w.apply("flatten", "flat", form, x, True)
    if form == "view":
        form = "{x}.view({x}.size(0), -1)" if x.contiguous else "{x}.reshape({x}.size(0), {n})"
    return w.run("flatten", form.format(x=x, n=x.samples[0][0].numel()), True)


@st.composite
def networks(draw: st.DrawFn) -> Program:
    """Hypothesis shrinks each choice to its first possibility."""
    return network(_Choices(draw))


class _Choices(Random):
    """Lets hypothesis choose."""

    def __init__(self, draw: st.DrawFn) -> None:
        super().__init__(0)
        self._draw = draw

    def randint(self, a: int, b: int) -> int:
        return self._draw(st.integers(a, b))

    def choice(self, seq: Sequence[Any]) -> Any:
        return seq[self.randint(0, len(seq) - 1)]


# Many of them.


@dataclass
class Statistics:
    """What the checked networks were made of, and what became of them."""

    graphs: int = 0
    lost_channels: int = 0
    joined: int = 0
    trained: int = 0
    pruned_twice: int = 0
    constant_outputs: int = 0
    parameters_before: int = 0
    parameters_after: int = 0
    largest_error: float = 0.0
    containing: Counter[str] = field(default_factory=Counter)  # graphs with each operation

    def add(self, program: Program, outcome: Outcome) -> None:
        self.graphs += 1
        self.lost_channels += outcome.after < outcome.before
        self.joined += any(program.ops[op] for op in random_ops.JOINS)
        self.trained += program.checking["training"]
        self.pruned_twice += program.checking["again"]
        self.constant_outputs += not outcome.varies
        self.parameters_before += outcome.before
        self.parameters_after += outcome.after
        self.largest_error = max(self.largest_error, outcome.error)
        self.containing.update(program.ops.keys())

    def shares(self) -> dict[str, float]:
        """Of graphs with each operation, the rarest first."""
        return {op: round(n / self.graphs, 4) for op, n in sorted(self.containing.items(), key=lambda item: item[1])}


def run(graphs: int, seed: int | None = None, progress: Callable[[], object] | None = None) -> Statistics:
    """Checks so many networks; AssertionError with the simplest that fails. No seed: always the same ones."""
    statistics = Statistics()

    def pruned_equals_masked(program: Program) -> None:
        try:
            outcome = check(program.net(), **program.checking)
        except Exception as error:
            raise AssertionError(f"{_said(error)}\n\nThe network, to run in tests/:\n\n{program}") from error
        statistics.add(program, outcome)
        if progress is not None:
            progress()

    for start in range(0, graphs, _BATCH):
        test = settings(
            max_examples=min(_BATCH, graphs - start),
            deadline=None,
            database=None,
            derandomize=seed is None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large),
        )(given(networks())(pruned_equals_masked))
        (test if seed is None else hypothesis.seed(seed + start)(test))()
    return statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=20000, help="how many networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the statistics, JSON; else they are printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("networks", total=arguments.graphs)
        statistics = run(arguments.graphs, arguments.seed, lambda: bar.advance(task))
    record = {"seed": arguments.seed, **vars(statistics), "containing": statistics.shares()}
    text = json.dumps({**record, "seconds": round(time.perf_counter() - start)}, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
