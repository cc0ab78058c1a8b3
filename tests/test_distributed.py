"""Parameters on several devices: two processes on CPUs, against one process that has everything."""

import copy
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimfast import param_groups
from slimfast.optim import ProxAdamW, ProxSGD, zero_share
from slimfast.penalties import L0, L1, L1L2, MCP, TL1, GroupLasso, GroupMCP, Penalty, SparseGroup

PROCESSES = 2
CASES: dict[str, Callable[[], None]] = {}
QUICK = ["L1 on scales", "whole filters", "input channels"]
ALTERNATING = {"method": "splitting", "splitting": "alternating"}
SETTINGS: dict[str, dict[str, Any]] = {
    "no penalty": {},
    "L1 on scales": {"bn": L1(1.0)},
    "whole filters": {"conv": GroupLasso(0.2, dim=0)},
    "input channels": {"conv": GroupLasso(0.2, dim=1)},
    "sparse input channels": {"conv": SparseGroup(L1(0.05), 0.15, dim=1)},
    "sparse filters": {"conv": SparseGroup(L0(0.002), 0.2, dim=0)},
    "sparse input channels that jump": {"conv": SparseGroup(L0(0.002), 0.1, dim=1)},
    "nonconvex input channels": {"conv": GroupMCP(0.3, 4.0, dim=1)},
    "L1 - L2": {"conv": L1L2(0.3, 0.5)},
    "step": {"conv": GroupLasso(0.5, dim=1), "prox_scale": "step"},
    "frozen": {"conv": GroupLasso(0.2, dim=1), "freeze_zeros": True},
    "subgradient": {"conv": GroupLasso(0.1, dim=1), "method": "subgradient"},
    "subgradient upwards": {
        "conv": SparseGroup(TL1(0.1, 1.0), 0.1, dim=1),
        "method": "subgradient",
        "maximize": True,
    },
    "alternating": {"bn": L1(0.3), **ALTERNATING},
    "alternating input channels": {"bn": L1(0.3), "conv": GroupLasso(0.2, dim=1), **ALTERNATING},
    "relaxed input channels": {"conv": GroupLasso(0.2, dim=1), "method": "splitting", "beta": 2.0},
    "relaxed numbers": {"conv": SparseGroup(L1(0.1), 0.1, dim=1), "method": "splitting", "beta": 2.0},
}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def network() -> nn.Module:
    """With 5 and 3 filters on two processes, and 1, which leaves one process without any."""
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 3, 2, bias=False), nn.Conv2d(3, 1, 2)
    model = nn.Sequential(convs[0], nn.BatchNorm2d(5), nn.ReLU(), convs[1], nn.BatchNorm2d(3), convs[2])
    with torch.no_grad():
        convs[0].weight[:, 1] *= 0.1
    return model.double()


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, mesh=init_device_mesh("cpu", (PROCESSES,)))
    return model


def optimizer_of(model: nn.Module, setting: dict[str, Any]) -> ProxSGD:
    rest = {key: value for key, value in setting.items() if key not in ("bn", "conv")}
    groups = param_groups(model, bn=setting.get("bn"), conv=setting.get("conv"))
    return ProxSGD(groups, lr=0.05, momentum=0.8, weight_decay=0.01, **rest)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5, seed: int = 0) -> None:
    """On the same data everywhere, so that a mean over processes is that of one."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def whole(x: Any) -> Tensor:
    return x.full_tensor() if hasattr(x, "full_tensor") else x.detach()  # type: ignore[no-any-return]


def values(model: nn.Module) -> list[Tensor]:
    return [whole(p.detach()) for p in model.parameters()]


def assert_close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def equals_one_process(setting: dict[str, Any]) -> None:
    alone, spread = network(), sharded(network())
    optimizers = optimizer_of(alone, setting), optimizer_of(spread, setting)
    for model, optimizer in zip((alone, spread), optimizers, strict=True):
        train(model, optimizer)
    assert_close(values(alone), values(spread))
    for p, q in zip(alone.parameters(), spread.parameters(), strict=True):
        for key, value in optimizers[0].state[p].items():
            assert_close(value, whole(optimizers[1].state[q][key]))
            assert optimizers[1].state[q][key].placements == q.placements  # type: ignore[attr-defined]
    for model in (alone, spread):
        assert any((x == 0).any() for x in values(model)) == makes_zeros(setting), "a penalty at work"
    assert_close(*(optimizer.penalty_value() for optimizer in optimizers))
    if "bn" in setting or "conv" in setting:
        assert zero_share(optimizers[0], "groups") == zero_share(optimizers[1], "groups")
    for optimizer in optimizers:
        optimizer.apply_prox_()
    assert_close(values(alone), values(spread))
    zeros = [[(x == 0, x.signbit() & (x == 0)) for x in values(model)] for model in (alone, spread)]
    assert_close(*zeros)


def makes_zeros(setting: dict[str, Any]) -> bool:
    return ("bn" in setting or "conv" in setting) and setting.get("method", "prox") == "prox"


for name, setting in SETTINGS.items():
    CASES[name] = lambda setting=setting: equals_one_process(setting)  # type: ignore[misc]


def distributed(
    x: Tensor, placement: Any, grad: Tensor | None = None, grad_placement: Any = None
) -> nn.Parameter:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    mesh = init_device_mesh("cpu", (PROCESSES,))
    p = nn.Parameter(distribute_tensor(x.clone(), mesh, [placement]))
    p.grad = distribute_tensor(grad, mesh, [grad_placement or placement])
    return p


@case
def adam_equals_one_process() -> None:
    alone, spread = network(), sharded(network())
    for model in (alone, spread):
        groups = param_groups(model, conv=L1(0.5))
        train(model, ProxAdamW(groups, lr=0.02, amsgrad=True))
    assert any((x == 0).any() for x in values(alone))
    assert_close(values(alone), values(spread))


@case
def placements_of_every_kind() -> None:
    """Groups along either dimension, on parameters cut along either or copied; gradients placed otherwise."""
    from torch.distributed.tensor import Replicate, Shard

    x, grad = torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kinds: list[Penalty] = [
        GroupLasso(0.4, 0),
        GroupLasso(0.4, 1),
        SparseGroup(MCP(0.2, 3.0), 0.3, 1),
        L1(0.2),
    ]
    for penalty in kinds:
        p = nn.Parameter(x.clone())
        p.grad = grad
        ProxSGD([p], lr=1.0, penalty=penalty).step()
        for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
            for other in (Shard(0), Shard(1), Replicate()):
                q = distributed(x, placement, grad, other)
                version = q._version
                ProxSGD([q], lr=1.0, penalty=penalty).step()
                assert_close(p.detach(), whole(q.detach()))
                assert q._version > version


@case
def numbers_that_are_not_finite() -> None:
    """A group with NaN becomes NaN, infinite numbers stay, others know nothing of it; zeros stay positive."""
    from torch.distributed.tensor import Shard

    x = torch.ones(4, 5)
    x[3, 0], x[3, 1], x[:, 3], x[:, 4] = torch.nan, torch.inf, 0.0, -1e-30
    p = distributed(x, Shard(0), torch.zeros(4, 5))
    ProxSGD([p], lr=0.1, penalty=GroupLasso(1.0, dim=1)).step()
    result = whole(p.detach())
    assert result[:, 0].isnan().all()
    assert torch.equal(result[:, 1], x[:, 1])
    assert_close(result[:, 2], torch.full((4,), 0.9))
    assert torch.equal(result[:, 3:], torch.zeros(4, 2))
    assert not result[:, 3:].signbit().any()


@case
def low_precision_rounds_once() -> None:
    """Gradient and threshold are each below half a unit in the last place; together they are not."""
    from torch.distributed.tensor import Shard

    ulp, ones = torch.finfo(torch.bfloat16).eps / 2, torch.ones(4, 2, dtype=torch.bfloat16)
    for kwargs in ({}, {"momentum": 0.9, "prox_scale": "step"}):
        p = distributed(ones, Shard(0), ones * (0.23 * ulp))
        ProxSGD([p], lr=1.0, penalty=GroupLasso(0.4 * ulp, dim=1), **kwargs).step()
        assert torch.equal(whole(p.detach()), ones * (1 - ulp))


@case
def a_scaler_serves_all() -> None:
    """One process's infinite gradient keeps all from stepping; added slopes are not unscaled away."""
    rank = torch.distributed.get_rank()
    for name in ("input channels", "subgradient", "alternating input channels", "no penalty"):
        plain, scaled = sharded(network()), sharded(network())
        optimizers = optimizer_of(plain, SETTINGS[name]), optimizer_of(scaled, SETTINGS[name])
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(3):
            x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            for model in (plain, scaled):
                model.zero_grad()
            plain(x).square().mean().backward()
            scaler.scale(scaled(x).square().mean()).backward()
            if step == 1:
                before, keep = values(scaled), [p.grad.to_local().clone() for p in scaled.parameters()]
                if rank == 1:
                    next(scaled.parameters()).grad.to_local().fill_(torch.inf)
                scaler.step(optimizers[1])
                scaler.update()
                assert scaler.get_scale() == 512.0
                assert all(torch.equal(a, b) for a, b in zip(before, values(scaled), strict=True))
                for p, grad in zip(scaled.parameters(), keep, strict=True):
                    p.grad.to_local().copy_(grad / 2)
            optimizers[0].step()
            scaler.step(optimizers[1])
            scaler.update()
        assert_close(values(plain), values(scaled))


@case
def checkpoints_go_round() -> None:
    """Through torch's helpers, which step the optimizer, before the first step and in the middle of a run."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    for name, full in (("alternating input channels", False), ("input channels", True)):
        options = StateDictOptions(full_state_dict=full)
        first = sharded(network())
        optimizer = optimizer_of(first, SETTINGS[name])
        before = values(first)
        get_optimizer_state_dict(first, optimizer, options=options)
        assert all(torch.equal(a, b) for a, b in zip(before, values(first), strict=True))
        train(first, optimizer, 3)
        state = copy.deepcopy(get_optimizer_state_dict(first, optimizer, options=options))
        second = sharded(network())
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        other = optimizer_of(second, SETTINGS[name])
        set_optimizer_state_dict(second, other, state, options=options)
        assert [g["penalty"] for g in other.param_groups] == [g["penalty"] for g in optimizer.param_groups]
        for model, each in ((first, optimizer), (second, other)):
            train(model, each, 3, seed=1)
        assert all(torch.equal(a, b) for a, b in zip(values(first), values(second), strict=True))


@case
def network_scope_is_refused() -> None:
    model = sharded(network())
    optimizer = optimizer_of(model, {"conv": L1L2(0.1, scope="network")})
    before = values(model)
    with pytest.raises(RuntimeError, match="needs all parameters of its group on one device") as caught:
        train(model, optimizer, 1)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))


@case
def data_parallel_processes_stay_alike() -> None:
    from torch.distributed import all_gather, get_rank
    from torch.nn.parallel import DistributedDataParallel

    alone, model = network().eval(), network().eval()
    parallel = DistributedDataParallel(model)
    setting = {"bn": L1(0.2), "conv": GroupLasso(0.2, dim=1)}
    optimizers = optimizer_of(alone, setting), optimizer_of(model, setting)
    for step in range(5):
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        for optimizer in optimizers:
            optimizer.zero_grad()
        alone(x).square().mean().backward()
        parallel(x.chunk(PROCESSES)[get_rank()]).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert_close(values(alone), values(model))
    for x in values(model):
        copies = [torch.empty_like(x) for _ in range(PROCESSES)]
        all_gather(copies, x)
        assert torch.equal(*copies)


def error_of(function: Callable[[], None]) -> str:
    try:
        function()
    except Exception:
        return traceback.format_exc()
    return ""


def process(rank: int, folder: str, names: list[str]) -> None:
    """Runs these cases; a file says what went wrong."""
    torch.set_num_threads(1)
    start = Path(folder, "start").as_uri()
    torch.distributed.init_process_group("gloo", init_method=start, rank=rank, world_size=PROCESSES)
    torch.save({name: error_of(CASES[name]) for name in names}, Path(folder, str(rank)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # a thread of gloo's that lets go of a tensor while Python shuts down aborts the process


def run(folder: Path, names: list[str]) -> None:
    """All of them in the same two processes, for it takes seconds to start those."""
    torch.multiprocessing.spawn(process, args=(str(folder), names), nprocs=PROCESSES)
    for rank in range(PROCESSES):
        for name, error in torch.load(folder / str(rank)).items():
            assert not error, f"{name}, process {rank}: {error}"


def test_groups_whole_and_cut(tmp_path: Path) -> None:
    run(tmp_path, QUICK)


@pytest.mark.long
def test_everything_else(tmp_path: Path) -> None:
    run(tmp_path, [name for name in CASES if name not in QUICK])
