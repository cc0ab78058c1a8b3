"""The tail of a network as one op: where the pattern holds, where it must not, and which way runs."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from packed_nets import Net, bn, conv
from torch import Tensor, nn

from slimfast import graph
from slimfast.nn import ChannelSelect
from slimfast.packed.choose import quickest
from slimfast.packed.fuse import fuse
from slimfast.packed.gpu.tail import PooledLinear, find_tails
from slimfast.packed.lowering import lower
from slimfast.packed.op import Op

X = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = X.contiguous(memory_format=torch.channels_last)
INDEX = torch.tensor([2, 0])


def ops_of(run: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> tuple[Op, ...]:
    """The ops with tails, after checking that they compute the same in every way."""
    with torch.no_grad():
        program = fuse(lower(graph.trace(Net(run, **layers), X)))
        changed = find_tails(program)
        changed.check(4)
        for x in (X, X[:, :, :1, :1], X[:0]):
            values = {"x": x}
            for op in changed.ops:
                inputs = [values[name] for name in op.inputs]
                runs = op.ways(inputs[0]) if isinstance(op, PooledLinear) else {"torch": op.run}
                for way in runs.values():
                    values[op.name] = way(*inputs)
                    torch.testing.assert_close(values[op.name], op.run(*inputs), rtol=1e-12, atol=1e-12)
            expected = program.run(x)
            torch.testing.assert_close(values[changed.output], expected, rtol=1e-12, atol=1e-12)
    return changed.ops


def head(n: Net, x: Tensor) -> Tensor:
    y: Tensor = n.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
    return y


def test_mean_and_linear() -> None:
    [op] = ops_of(head, fc=nn.Linear(4, 7))
    assert isinstance(op, PooledLinear)
    assert op.scale is op.index is None
    assert not op.relu


def test_relu_behind() -> None:
    [op] = ops_of(lambda n, x: head(n, x).relu(), fc=nn.Linear(4, 7, bias=False))
    assert isinstance(op, PooledLinear)
    assert op.relu


def test_batch_norm_and_relu_before() -> None:
    [op] = ops_of(lambda n, x: head(n, n.b(x).relu()), b=bn(), fc=nn.Linear(4, 7))
    assert isinstance(op, PooledLinear)
    assert op.scale is not None


def test_picked_channels() -> None:
    layers = {"s": ChannelSelect(INDEX), "b": bn(2), "fc": nn.Linear(2, 7)}
    [op] = ops_of(lambda n, x: head(n, n.b(n.s(x)).relu()), **layers)
    assert isinstance(op, PooledLinear)
    assert op.index is not None
    [op] = ops_of(lambda n, x: head(n, n.s(x)), s=ChannelSelect(INDEX), fc=nn.Linear(2, 7))
    assert isinstance(op, PooledLinear)
    assert op.index is not None


def test_channels_picked_twice_stay_picked() -> None:
    select = ChannelSelect(torch.tensor([1, 1]))
    ops = ops_of(lambda n, x: head(n, n.s(x)), s=select, fc=nn.Linear(2, 7))
    assert [op.kind for op in ops] == ["select", "pooled_linear"]


def _maximum(n: Net, x: Tensor) -> Tensor:
    y: Tensor = n.fc(torch.flatten(F.max_pool2d(x, (6, 5)), 1))
    return y


def _pooled_twice(n: Net, x: Tensor) -> Tensor:
    y = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
    z: Tensor = n.fc(y) + y
    return z


def _windows(n: Net, x: Tensor) -> Tensor:
    y: Tensor = n.fc(torch.flatten(F.avg_pool2d(x, (6, 5)), 1))
    return y


@pytest.mark.parametrize("run", [_maximum, _pooled_twice, _windows])
def test_what_is_no_tail(run: Callable[[Net, Tensor], Tensor]) -> None:
    with torch.no_grad():
        program = fuse(lower(graph.trace(Net(run, fc=nn.Linear(4, 4)), X)))
    assert find_tails(program).ops == program.ops


def test_many_classes_are_no_tail() -> None:
    assert "linear" in [op.kind for op in ops_of(head, fc=nn.Linear(4, 129))]


def test_batch_norm_with_another_reader_or_without_relu_stays() -> None:
    def shared(n: Net, x: Tensor) -> Tensor:
        y = n.b(x).relu()
        return head(n, y) + y.mean((2, 3))

    assert ops_of(shared, b=bn(), fc=nn.Linear(4, 4))[0].kind == "affine"
    kinds = [op.kind for op in ops_of(lambda n, x: head(n, n.b(x)), b=bn(), fc=nn.Linear(4, 4))]
    assert kinds == ["affine", "pooled_linear"]


def test_the_quicker_way_is_chosen() -> None:
    op = ops_of(lambda n, x: head(n, n.a(x)), a=conv(4, 4), fc=nn.Linear(4, 7))[-1]
    assert isinstance(op, PooledLinear)
    ways = op.ways(X)
    for name, way in ways.items():
        assert quickest(ways, [X], lambda run, _, way=way: 1.0 if run is way else 2.0) is way, name


def test_weights_that_do_not_fit_are_refused() -> None:
    op = PooledLinear(name="y", inputs=("x",), weight=torch.zeros(3, 4))
    with pytest.raises(ValueError, match="pooled_linear y: reads 4 channels, got 5"):
        op.channels(5)
    with pytest.raises(ValueError, match=r"pooled_linear y: weight must be \[out, in\], got \[3\]"):
        PooledLinear(name="y", inputs=("x",), weight=torch.zeros(3)).channels(3)
