"""Random networks of every operation, pruned and compared; to check many: python tests/random_net.py.

random_record.json is what a run of 20,000 said: python tests/random_net.py --seed 1000000 --out ...
"""

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

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_layers import activation, conv, linear, norm
from random_moves import JOINS, MOVES
from random_program import Program, Var, Writer, call
from random_reduce import reduced
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves

import slimfast
from slimfast.graph import Cut

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
    """Of one network: parameters before and after, and the largest difference over the largest output."""

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
    errors = []
    for name, model in pruned:
        with explained(model):
            both = net.eval(), model.eval()
            errors += [difference(*both, x, f"{name}, eval mode") for x in images[1:]]
    with torch.no_grad():
        outputs = [tree_leaves(net.eval()(*x)) for x in (images[0], _images(3, sizes[0], inputs, 9))]
    varies = any(not torch.allclose(a, b) for a, b in zip(*outputs, strict=True))
    for name, model in pruned if training else []:  # last: it moves running statistics
        with explained(model):
            errors.append(difference(_training(net), _training(model), images[0], f"{name}, train mode"))
    if training:
        with explained(result.model):
            compare_gradients(_training(net), _training(result.model), result._trail.cuts, images[0])
    return Outcome(result.report.params_before, result.report.params_after, max(errors), varies)


def difference(net: nn.Module, pruned: nn.Module, images: tuple[Tensor, ...], where: str) -> float:
    """Of all outputs, relative to the largest; AssertionError if above the tolerance."""
    where += f", images {[list(image.shape) for image in images]}"
    with torch.no_grad():
        expected, structure = tree_flatten(net(*images))
        got, same_structure = tree_flatten(pruned(*images))
    assert same_structure == structure, f"{where}: the output is {same_structure} instead of {structure}"
    largest = max(float(tensor.abs().max()) for tensor in expected)
    assert all(bool(tensor.isfinite().all()) for tensor in expected), f"{where}: the network is not finite"
    worst = 0.0
    for i, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert a.shape == b.shape, f"{where}: output {i} is {list(b.shape)} instead of {list(a.shape)}"
        error = float((a - b).abs().max())
        assert error <= TOLERANCE * largest, (
            f"{where}: output {i} differs by {error:.1e}, the largest output is {largest:.3g}"
        )
        worst = max(worst, error / largest if error else 0.0)
    return worst


def compare_gradients(
    net: nn.Module, pruned: nn.Module, cuts: dict[str, Cut], images: tuple[Tensor, ...]
) -> None:
    """Of what is left of each parameter; to 1e-9, or to what rounding makes of the original's gradient.

    Behind a BatchNorm the gradient of a bias is a sum that cancels: only rounding is left of it. How much,
    the same network says with every number moved in its last digits.
    """
    originals, got = gradients(net, images), gradients(pruned, images)
    moved = [gradients(net, images, seed) for seed in range(3)]
    largest = max([float(g.abs().max()) for g in originals.values() if g.numel()], default=0.0)
    for name, gradient in got.items():
        expected = cuts[name].apply(originals[name]) if name in cuts else originals[name]
        if gradient.numel():
            rounding = max(float((other[name] - originals[name]).abs().max()) for other in moved)
            limit = TOLERANCE * float(expected.abs().max()) + 100 * rounding + 1e-13 * largest
            error = float((gradient - expected).abs().max())
            assert error <= limit, f"train mode: the gradient of {name} differs by {error:.1e}"


def gradients(net: nn.Module, images: tuple[Tensor, ...], moved: int | None = None) -> dict[str, Tensor]:
    """Of one random sum of the outputs; zeros where nothing flows. `moved` is a seed."""

    def near(x: Tensor) -> Tensor:
        if moved is None:
            return x
        generator = torch.Generator().manual_seed(moved)
        return x * (1 + 2**-50 * torch.randn(x.shape, generator=generator, dtype=x.dtype))

    net = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.data, parameter.grad = near(parameter.data), None
    weighing = torch.Generator().manual_seed(0)
    outputs = tree_leaves(net(*map(near, images)))
    weights = [near(torch.randn(y.shape, generator=weighing, dtype=y.dtype)) for y in outputs]
    trained = [(y * w).sum() for y, w in zip(outputs, weights, strict=True) if y.requires_grad]
    if trained:
        torch.stack(trained).sum().backward()
    parameters = net.named_parameters(remove_duplicate=False)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters}


@contextmanager
def explained(pruned: torch.fx.GraphModule) -> Iterator[None]:
    """Adds the code of the pruned network to the message of whatever goes wrong."""
    try:
        yield
    except Exception as error:
        layers = "\n".join(f"  {name}: {module}" for name, module in pruned.named_children())
        message = f"{_said(error)}\n\nThe pruned network:\n{layers}\n{pruned.code.strip()}"
        raise AssertionError(message) from _cause(error)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"


def _cause(error: Exception) -> BaseException | None:
    """What a traceback should show beside the message."""
    return error.__cause__ if isinstance(error, AssertionError) else error


def _shapes(sizes: Sizes) -> list[tuple[int, Sequence[int]]]:
    """The example, the same image size at another batch size, another image size."""
    return [(3, sizes[0]), (2, sizes[0]), (1, sizes[1])]


def _images(batch: int, size: Sequence[int], inputs: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(batch, 3, *size, dtype=torch.float64, generator=generator) for _ in range(inputs)
    )


def _training(net: nn.Module) -> nn.Module:
    """In train mode, but frozen BatchNorms stay frozen."""
    net.train()
    for module in net.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()
    return net


# The networks.


def network(random: Random) -> Program:
    """A network of some moves and a head for every tensor that nobody reads."""
    w = Writer(random, _SIZES[random.choice([0, 0, 1, 1, 2, 2, 3, 3, 4, 5])], random.choice([1] * 9 + [2]))
    for _ in range(2):
        x = norm(w, conv(w, w.pick()), whole=False)
        activation(w, x, fresh=True)
    weighted = [move for weight, move in MOVES for _ in range(weight)]
    for _ in range(w.integer(2, 13)):
        w.choice(weighted)(w)
    if w.inputs == ["x", "z"]:
        w.count("two inputs")
    return w.program(_head(w))


def _head(w: Writer) -> str:
    """Matrix products of what the ends are pooled to; sometimes a second output beside them."""
    ends = w.ends()
    features = [_features(w, end) for end in ends]
    x = features[0]
    if len(features) > 1:
        x = w.run("cat of the head", f"torch.cat({features}, 1)", hidden=True)
    x = norm(w, linear(w, x, 4), hidden=True, whole=False)
    x = activation(w, x, hidden=True)
    if w.chance(15):
        w.count("two outputs")
        y = ends[-1]
        return w.choice([f"{x}, {y}", f"{{'y': {x}, 'features': {y}}}", f"{y}, {x}, {y}"])
    return repr(linear(w, x, 3, bias=True))


def _features(w: Writer, x: Var) -> Var:
    """[N, features] from an image of any size."""
    axes = tuple(range(2, 2 + x.dim))
    kind = w.choice(["mean", "amax", "amin", "squeeze", "flatten(2)", "flatten"])
    if kind == "flatten(2)":
        x = w.run("flatten(2)", w.choice([f"{x}.flatten(2)", f"torch.flatten({x}, 2)"]), hidden=True)
        return w.run("mean", f"{x}.mean(2)", hidden=True)
    if kind in ("mean", "amax", "amin"):
        return w.run(kind, w.choice([call(f"{x}.{kind}", axes), call(f"torch.{kind}", x, axes)]), True)
    if kind == "squeeze":
        x = w.run("mean keepdim", call(f"{x}.mean", axes, keepdim=True), True)
        return w.run("squeeze", f"{x}{''.join(f'.squeeze({axis})' for axis in axes[::-1])}", True)
    pool = w.layer("pool", f"nn.Adaptive{w.choice(['Avg', 'Max'])}Pool{x.dim}d({w.choice([1, 2])})")
    x = w.run("adaptive pool", f"{pool}({x})", True)
    form = w.choice(
        ["{x}.flatten(1)", "torch.flatten({x}, 1)", "{x}.reshape({x}.shape[0], -1)", "nn.Flatten()", "view"]
    )
    if form == "nn.Flatten()":
        return w.apply("flatten", "flat", form, x, True)
    if form == "view":
        form = "{x}.view({x}.size(0), -1)" if x.contiguous else "{x}.reshape({x}.size(0), {n})"
    return w.run("flatten", form.format(x=x, n=x.samples[0][0].numel()), True)


def networks() -> st.SearchStrategy[Program]:
    """Hypothesis shrinks each choice to its first possibility."""
    return st.randoms(note_method_calls=False, use_true_random=False).map(network)


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
        self.joined += any(program.ops[op] for op in JOINS)
        self.trained += program.checking["training"]
        self.pruned_twice += program.checking["again"]
        self.constant_outputs += not outcome.varies
        self.parameters_before += outcome.before
        self.parameters_after += outcome.after
        self.largest_error = max(self.largest_error, outcome.error)
        self.containing.update(program.ops.keys())

    def shares(self) -> dict[str, float]:
        """Of graphs with each operation, the rarest first."""
        return {
            op: round(n / self.graphs, 4)
            for op, n in sorted(self.containing.items(), key=lambda item: item[1])
        }


def run(graphs: int, seed: int, progress: Callable[[], object] | None = None) -> Statistics:
    """Checks so many networks, the same for the same seed; AssertionError with the first that fails."""
    statistics, failed = Statistics(), []

    def pruned_equals_masked(program: Program) -> None:
        failed[:] = [program]
        statistics.add(program, check(program.net(), **program.checking))
        failed.clear()
        if progress is not None:
            progress()

    for start in range(0, graphs, _BATCH):
        test = settings(
            max_examples=min(_BATCH, graphs - start),
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            phases=(Phase.generate,),
            suppress_health_check=(HealthCheck.too_slow,),
        )(given(networks())(pruned_equals_masked))
        try:
            hypothesis.seed(seed + start)(test)()
        except Exception as error:
            if not failed:
                raise  # the network could not even be drawn
            raise AssertionError(explanation(failed[0])) from _cause(error)
    return statistics


def explanation(failing: Program) -> str:
    """The failing network made small: what is unequal, what it was pruned to, and source that shows it."""
    error = failure(failing)
    if error is None:
        raise AssertionError(f"fails once, but not again:\n\n{failing}")
    kind = _kind(error)

    def fails_likewise(program: Program) -> bool:
        found = failure(program) if _is_sound(program) else None
        return found is not None and _kind(found) == kind

    program = reduced(failing, fails_likewise)
    return f"{_said(failure(program) or error)}\n\nThe network, to run in tests/:\n\n{program}"


def failure(program: Program) -> Exception | None:
    """What the check of the network raises."""
    try:
        check(program.net(), **program.checking)
    except Exception as error:  # pruning may fail in any way
        return error
    return None


def _kind(error: Exception) -> str:
    """What reduction must not change: unequal outputs stay that, a crash stays one of its type."""
    return type(_cause(error) or error).__name__


def _is_sound(program: Program) -> bool:
    """Whether the network itself runs on every size: reduced source need not."""
    try:
        net = program.net().eval()
        for batch, size in _shapes(program.checking["sizes"]):
            net(*_images(batch, size, program.checking["inputs"], 0))
    except Exception:  # it is the user's code here, which may fail in any way
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=20000, help="how many networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where to write the statistics, JSON; else they are printed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    columns = (
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("networks", total=arguments.graphs)
        statistics = run(arguments.graphs, arguments.seed, lambda: bar.advance(task))
    record = {
        "seed": arguments.seed,
        "torch": torch.__version__,
        **vars(statistics),
        "containing": statistics.shares(),
    }
    text = json.dumps({**record, "seconds": round(time.perf_counter() - start)}, indent=1) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
