"""A step with an L1 penalty on BatchNorm scales: ProxSGD against what users write with torch's SGD."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import bandwidth
import pytest
import torch
from conftest import Compare
from steps import (
    COMMON,
    DEVICE,
    LAM,
    LR,
    NETS,
    TORCH,
    Contender,
    Step,
    batchnorm_scales,
    captured,
    check_equal,
    network,
    numbers_in,
    sgd,
    with_foreach_prox,
    with_loop,
)
from torch._inductor import cpp_builder
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.utils import fresh_cache
from torch.optim import SGD

from slimfast.optim import ProxSGD, param_groups
from slimfast.penalties import L1

Family = dict[str, Contender]
PENALISED: dict[str, tuple[str, Callable[[Contender], Step]]] = {
    "prox": (" + foreach prox", with_foreach_prox),
    "subgradient": (" + BN loop", with_loop),
    "none": ("", lambda plain: plain.step),
}
OURS = {"prox": "ProxSGD", "subgradient": "ProxSGD subgradient", "none": "ProxSGD without penalty"}
PAT = "torchao PAT on SGD fused"


def ours(name: str, method: str, capturable: bool) -> Contender:
    model = network(name)
    if method == "none":
        optimizer = ProxSGD(param_groups(model), **COMMON, capturable=capturable)
    else:
        groups = param_groups(model, bn=L1(LAM))
        optimizer = ProxSGD(groups, **COMMON, method=method, capturable=capturable)
    return Contender(model, optimizer, optimizer.step)


def family(name: str, method: str, forms: dict[str, dict[str, Any]]) -> Family:
    """Ours first, then torch's forms doing the same; on a GPU each as a CUDA graph too."""
    suffix, penalty = PENALISED[method]

    def torchs(how: dict[str, Any]) -> Contender:
        contender = sgd(network(name), **how)
        contender.step = penalty(contender)
        return contender

    found = {OURS[method]: ours(name, method, capturable=False)}
    found |= {f"SGD {form}{suffix}": torchs(how) for form, how in forms.items()}
    if DEVICE == "cuda":
        graphs = {OURS[method]: ours(name, method, capturable=True)}
        graphs |= {f"SGD {form}{suffix}": torchs(how) for form, how in forms.items()}
        for label, contender in graphs.items():
            contender.step = captured(contender.step)
            found[f"{label}, CUDA graph"] = contender
    return found


def pat(name: str) -> tuple[Family, dict[str, str]]:
    """torchao's proximal wrapper; its threshold grows with the sum of all lr, so its results are its own."""
    try:
        from torchao.prototype.pat.optim import PruneOptimizer
    except ImportError:
        return {}, {PAT: "torchao is not installed"}
    model = network(name)
    scales = batchnorm_scales(model)
    rest = [p for p in model.parameters() if all(p is not scale for scale in scales)]
    lasso = {"params": scales, "prox_type": "ProxLasso", "group_type": "ElemGrouper", "reg_lambda": LAM}
    optimizer = PruneOptimizer(SGD([{"params": rest}, lasso], **COMMON, fused=True))
    return {PAT: Contender(model, optimizer, optimizer.step)}, {}


ALL_THREADS = torch.get_num_threads()


def named(threads: int) -> str:
    return f"threads{threads}" if DEVICE == "cpu" else DEVICE


EVERY = sorted({1, ALL_THREADS}) if DEVICE == "cpu" else [ALL_THREADS]


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """torch's small ops are often faster on one thread: both are measured, the better one is the rival."""
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(ALL_THREADS)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("threads", EVERY, ids=named, indirect=True)
def test_step(compare: Compare, name: str) -> None:
    contenders: Family = {}
    for method in PENALISED:
        equals = family(name, method, TORCH)
        check_equal(list(equals.values()))
        contenders |= equals
    others, absent = pat(name)
    numbers = numbers_in(name)
    compare(
        {label: contender.step for label, contender in (contenders | others).items()},
        rounds=20 if numbers > 1e7 else 60,
        floors=bandwidth.step_floors(numbers, DEVICE),
        device=DEVICE,
        also_warm=name in ("resnet164", "densenet40"),
        absent=absent,
    )


def compiled(name: str) -> tuple[Contender, float]:
    """torch.compile of SGD's step, with momentum there and lr a tensor so that nothing compiles twice."""
    contender = sgd(network(name), foreach=True)
    contender.optimizer.param_groups[0]["lr"] = torch.tensor(LR, device=DEVICE)
    contender.step()
    contender.step = torch.compile(contender.optimizer.step)
    started = time.perf_counter()
    with fresh_cache():  # what a user waits for the first time
        contender.step()
    seconds = time.perf_counter() - started
    contender.restore()
    return contender, seconds


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Profiler record function")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("threads", EVERY, ids=named, indirect=True)
def test_compiled(compare: Compare, name: str) -> None:
    """torch.compile(SGD.step), a test of its own because compiling takes a minute.

    One compiled step serves all three forms, which therefore share their buffers.
    """
    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile finds no C++ compiler")
    step, seconds = compiled(name)
    contenders: Family = {}
    for method, (suffix, penalty) in PENALISED.items():
        equals = family(name, method, {"fused": {"fused": True}})
        both = penalty(step)
        equals[f"SGD compiled{suffix}"] = Contender(step.model, step.optimizer, both)
        if DEVICE == "cuda":
            equals[f"SGD compiled{suffix}, CUDA graph"] = Contender(
                step.model, step.optimizer, captured(both)
            )
        check_equal(list(equals.values()))
        contenders |= equals
    numbers = numbers_in(name)
    compare(
        {label: contender.step for label, contender in contenders.items()},
        rounds=15 if numbers > 1e7 else 40,
        floors=bandwidth.step_floors(numbers, DEVICE),
        device=DEVICE,
        compile_s={"SGD compiled": seconds},
    )
