"""Steps captured in a CUDA graph, without a GPU: what stays in place, is read at a replay, is refused."""

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from slimfast.ops import prox_sgd_
from slimfast.optim import ProxSGD, _batch, _tables
from slimfast.penalties import L1, MCP


class Graph:
    """Stands in for a CUDA graph: captures the calls of the op instead of running them, and replays them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self._patch = monkeypatch

    def capture(self, step: Callable[[], Any]) -> None:
        with self._patch.context() as patch:
            patch.setattr(_tables, "is_capturing", lambda: True)
            patch.setattr(_batch, "prox_sgd_", lambda *args: self.calls.append(args))
            step()

    def replay(self) -> None:
        for args in self.calls:
            prox_sgd_(*args)


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    return Graph(monkeypatch)


def optimizer_of(capturable: bool = True, **kwargs: Any) -> ProxSGD:
    groups = [
        {
            "params": [nn.Parameter(torch.linspace(-1, 1, 5)), nn.Parameter(torch.ones(2, 2))],
            "penalty": L1(0.1),
        },
        {"params": [nn.Parameter(torch.linspace(1, 2, 3))], "penalty": MCP(0.1, 3.0)},
    ]
    return ProxSGD(groups, **{"lr": 0.1, "momentum": 0.9, **kwargs}, capturable=capturable)


def parameters(optimizer: ProxSGD) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def set_gradients(*optimizers: ProxSGD) -> None:
    for optimizer in optimizers:
        for i, p in enumerate(parameters(optimizer)):
            p.grad = torch.full_like(p, i + 0.5) if p.grad is None else p.grad


def captured(graph: Graph, **kwargs: Any) -> tuple[ProxSGD, ProxSGD]:
    """Two optimizers after one step; the next step of the first is in the graph."""
    pair = optimizer_of(**kwargs), optimizer_of(capturable=False, **kwargs)
    set_gradients(*pair)
    for optimizer in pair:
        optimizer.step()
    graph.capture(pair[0].step)
    return pair


def assert_equal(a: ProxSGD, b: ProxSGD) -> None:
    for p, q in zip(parameters(a), parameters(b), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(a.state[p]["momentum_buffer"], b.state[q]["momentum_buffer"])


CHANGES: dict[str, Any] = {
    "lr": 0.01,
    "momentum": 0.5,
    "dampening": 0.3,
    "weight_decay": 0.2,
    "penalty_scale": 3.0,
    "penalty": L1(0.3),
    "prox_scale": "step",
    "beta": 7.0,
}


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("method", ["prox", "splitting"])
def test_a_replay_takes_what_was_refreshed(graph: Graph, key: str, method: str) -> None:
    ours, plain = captured(graph, method=method)
    versions = [p.detach().clone() for p in parameters(ours)]
    assert len(graph.calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(versions, parameters(ours), strict=True)), (
        "captured, not run"
    )
    for _ in range(2):
        graph.replay()
        plain.step()
    assert_equal(ours, plain)
    for optimizer in (ours, plain):
        optimizer.param_groups[0][key] = CHANGES[key]
    graph.replay()  # still the old value
    ours.refresh_hyperparameters()
    graph.replay()
    for value in (captured_value(key), CHANGES[key]):
        plain.param_groups[0][key] = value
        plain.step()
    assert_equal(ours, plain)


def captured_value(key: str) -> Any:
    return optimizer_of(capturable=False).param_groups[0][key]


def test_steps_outside_the_graph_bring_the_table_up_to_date(graph: Graph) -> None:
    ours, plain = captured(graph)
    for lr in (0.05, 0.02):
        for optimizer in (ours, plain):
            optimizer.param_groups[1]["lr"] = lr
            optimizer.step()
        graph.replay()
        plain.step()
    assert_equal(ours, plain)
    table = graph.calls[0][6]
    assert table.dtype == torch.float64
    version = table._version
    ours.step()
    assert table._version == version, "nothing changed, nothing copied"


def test_a_capture_uses_the_table_as_it_is(graph: Graph) -> None:
    """What changed after the last step is refreshed for the replay, not captured as a copy from the host."""
    ours, plain = optimizer_of(), optimizer_of(capturable=False)
    set_gradients(ours, plain)
    for optimizer in (ours, plain):
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.03
    graph.capture(ours.step)
    ours.refresh_hyperparameters()
    graph.replay()
    plain.step()
    assert_equal(ours, plain)


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_tensors_are_read_by_the_graph(graph: Graph, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.tensor([0.25])
    ours, plain = optimizer_of(**{key: value}), optimizer_of(capturable=False, **{key: value})
    set_gradients(ours, plain)
    copies: list[Any] = []
    with monkeypatch.context() as patch:
        write = _tables._write
        patch.setattr(_tables, "_write", lambda *args: (copies.append(args), write(*args)))
        for optimizer in (ours, plain):
            optimizer.step()
        copies.clear()
        graph.capture(ours.step)
    assert copies
    value.fill_(0.125)  # as a scheduler does
    for args in copies:  # these are in the graph, in front of the step
        write(*args)
    graph.replay()
    plain.step()
    assert_equal(ours, plain)
    ours.param_groups[0][key] = 0.5
    with pytest.raises(RuntimeError, match=rf"param_groups\[0\]: another tensor is {key} since a CUDA graph"):
        ours.refresh_hyperparameters()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"penalty": MCP(0.1, 3.0)}, "penalty"),
        ({"penalty": None}, "penalty"),
        ({"method": "subgradient"}, "method"),
        ({"momentum": 0.0}, "nesterov, maximize, freeze_zeros or momentum"),
        ({"nesterov": True}, "nesterov, maximize, freeze_zeros or momentum"),
        ({"freeze_zeros": True}, "nesterov, maximize, freeze_zeros or momentum"),
    ],
)
def test_what_is_part_of_the_graph_is_not_refreshed(graph: Graph, changes: dict[str, Any], name: str) -> None:
    ours, _ = captured(graph)
    ours.refresh_hyperparameters()
    ours.param_groups[0].update(changes)
    with pytest.raises(
        RuntimeError, match=rf"param_groups\[0\]: another {name}.* since a CUDA graph was captu"
    ):
        ours.refresh_hyperparameters()


def test_a_group_added_later_is_not_in_the_graph(graph: Graph) -> None:
    ours, _ = captured(graph)
    ours.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(RuntimeError, match="param_groups: from 2 to 3 since a CUDA graph was captured"):
        ours.refresh_hyperparameters()
    ours.step()
    graph.replay()  # into memory that is still there


def test_a_capture_that_would_be_wrong_later_is_refused(graph: Graph) -> None:
    ours = optimizer_of(capturable=False)
    set_gradients(ours)
    ours.step()
    with pytest.raises(RuntimeError, match="construct ProxSGD with capturable=True"):
        graph.capture(ours.step)
    for kwargs in ({}, {"momentum": 0.0}):
        fresh = optimizer_of(**kwargs)
        set_gradients(fresh)
        with pytest.raises(
            RuntimeError, match="captured in a CUDA graph before the first step; take one step"
        ):
            graph.capture(fresh.step)
        assert not fresh.state
    ours, _ = captured(graph)
    p = parameters(ours)[1]
    p.grad = None
    with pytest.raises(RuntimeError, match=r"a parameter of shape \(2, 2\) has no gradient"):
        graph.capture(ours.step)
    p.requires_grad_(False)
    graph.capture(ours.step)  # frozen on purpose


def test_a_dampened_first_step_has_a_table_of_its_own() -> None:
    ours, plain = optimizer_of(dampening=0.5), optimizer_of(capturable=False, dampening=0.5)
    for optimizer in (ours, plain):
        for late in range(2):
            set_gradients(optimizer)
            parameters(optimizer)[1].grad = None if not late else torch.ones(2, 2)
            optimizer.step()
            optimizer.step()
    assert_equal(ours, plain)


def test_capturable_survives_copies_and_is_not_in_the_state_dict() -> None:
    ours = optimizer_of()
    assert pickle.loads(pickle.dumps(ours)).capturable
    plain = optimizer_of(capturable=False)
    ours.load_state_dict(plain.state_dict())
    assert ours.capturable
    assert "capturable" not in plain.state_dict()["param_groups"][0]


def test_a_compiled_step_follows_a_tensor_lr_without_recompiling() -> None:
    lr = torch.tensor(0.1)
    ours, plain = optimizer_of(capturable=False, lr=lr), optimizer_of(capturable=False, lr=lr)
    set_gradients(ours, plain)
    ours.step()
    plain.step()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = torch.compile(ours.step, backend=counter, fullgraph=True)
    for value in (0.1, 0.05, 0.025):
        lr.fill_(value)
        step()
        plain.step()
    assert_equal(ours, plain)
    assert counter.frame_count == 1
