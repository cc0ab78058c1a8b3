"""The step's CUDA kernel without a GPU: csrc/prox_sgd_cuda.cu on the emulation in tests/cuda_emulation."""

import copy
import ctypes
import importlib.util
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prox_sgd_truth as sgd
import pybind11
import pytest
import torch
from accuracy import assert_accurate, outcome
from samples import NARROW, OPS
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slimfast import models
from slimfast.ops._kinds import Flag, Form, Method
from slimfast.ops.prox_sgd import SCHEMA
from slimfast.optim import ProxSGD, _plan, param_groups
from slimfast.penalties import TL1, GroupLasso

ROOT = Path(__file__).parents[1]
TORCH = Path(torch.__file__).parent
RENAMED = [
    f"-D{name}=emulated_{name}" for name in ("slimfast_prox_sgd_cuda", "slimfast_prox_sgd_cuda_serves")
]
SAMPLES = sgd.CALLS | sgd.METHODS | sgd.GROUPS
NUMBERS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "lam": 0.05, "gain": 2.0, "beta": 2.0}
QUICK = (
    "every flag",
    "all methods",
    "frozen zeros",
    "skipped step",
    "group lasso",
    "sparse groups",
    "difference",
)
OP = next(op for op in OPS if op.name == "prox_sgd_")


class Gpu:
    """The emulated one."""

    def __init__(self, library: Path) -> None:
        self.c = ctypes.CDLL(str(library))
        self.eager = torch.ops.slimfast_emulated.prox_sgd_
        self.captured = torch.ops.slimfast_emulated.prox_sgd_captured_


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("emulation") / "emulated.so"
    source, includes = (
        ROOT / "tests/cuda_emulation/prox_sgd.cpp",
        (ROOT / "tests/cuda_emulation", ROOT / "csrc"),
    )
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    command += RENAMED
    command += [*(f"-I{path}" for path in includes), "-isystem", TORCH / "include", source, "-o", target]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", TORCH / "lib/libtorch_cpu.so"]
    subprocess.run(list(map(str, command)), check=True)
    for name in ("prox_sgd_", "prox_sgd_captured_"):
        torch.library.define(f"slimfast_emulated::{name}", SCHEMA.removeprefix("prox_sgd_"))
    torch.ops.load_library(target)
    return target


@pytest.fixture
def gpu(library: Path) -> Iterator[Gpu]:
    gpu = Gpu(library)
    yield gpu
    gpu.c.set_backwards(0)
    gpu.c.set_capturing(0)


def call(
    tensors: list[tuple[int, ...]],
    dtypes: tuple[torch.dtype, ...] = (torch.float32,) * 3,
    **row: Any,
) -> tuple[Any, ...]:
    """Arguments of the op for one group, all with momentum; dtypes of parameters, gradients and states."""
    generator = torch.Generator().manual_seed(0)

    def some(dtype: torch.dtype) -> list[Tensor]:
        return [torch.randn(shape, generator=generator).to(dtype) for shape in tensors]

    plain = dict.fromkeys(sgd.Hyper._fields, 0.0) | NUMBERS | {"penalty_scale": 1.0, "group_lam": 0.02}
    numbers = torch.tensor([[row.get(name, plain[name]) for name in sgd.Hyper._fields]], dtype=torch.float64)
    method = row.get("method", Method.PROX)
    flags = Flag.HAS_MOMENTUM | row.get("flags", 0)
    rules = [int(x) for x in (row.get("kind", 2), row.get("form", 0), row.get("dim", 0), method, flags)]
    auxiliary = some(dtypes[2]) if method == Method.ALTERNATING else []
    return some(dtypes[0]), some(dtypes[1]), some(dtypes[2]), auxiliary, [0] * len(tensors), rules, numbers


def both_ways(gpu: Gpu, function: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """What the op changes; the same bits in whatever order blocks and threads run."""
    twin = copy.deepcopy(args)
    results = outcome(OP, function, args)
    gpu.c.set_backwards(1)
    for one, other in zip(results, outcome(OP, function, twin), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())
    gpu.c.set_backwards(0)
    return results


def check(gpu: Gpu, args: tuple[Any, ...]) -> None:
    before = copy.deepcopy(args)
    assert_accurate(OP, both_ways(gpu, gpu.eager, args), before)


def dtypes_of(label: str) -> list[Any]:
    return [
        pytest.param(
            label, dtype, marks=[] if dtype == torch.float32 and label in QUICK else pytest.mark.long
        )
        for dtype in NARROW
    ]


@pytest.mark.parametrize(("label", "dtype"), [param for label in SAMPLES for param in dtypes_of(label)])
def test_every_sample_step(gpu: Gpu, label: str, dtype: torch.dtype) -> None:
    args = SAMPLES[label](dtype)
    before, twin = copy.deepcopy(args), copy.deepcopy(args)
    results = both_ways(gpu, gpu.eager, args)
    assert_accurate(OP, results, before)
    for one, other in zip(results, outcome(OP, gpu.captured, twin), strict=True):
        assert torch.equal(one, other), "hyperparameters read from device memory give other bits"
    assert all(torch.equal(a, b) for a, b in zip(args[1], before[1], strict=True)), "a gradient changed"


@pytest.mark.long
@pytest.mark.parametrize("form", [Form.NORM, Form.SPARSE])
@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("size", [1, 7, 16, 144, 257, 576, 1025, 4608, 8192, 8193])
def test_filters_of_any_size(gpu: Gpu, size: int, method: Method, form: Form) -> None:
    check(gpu, call([(11 if size < 300 else 3, size)], method=method, form=form))


@pytest.mark.long
@pytest.mark.parametrize("kind", range(8))
@pytest.mark.parametrize("method", Method)
def test_every_kind(gpu: Gpu, kind: int, method: Method) -> None:
    shape = {3: 0.5, 4: 0.5, 5: 3.0, 6: 3.7, 7: 0.1}.get(kind, 0.0)
    check(gpu, call([(11, 50), (3,)], kind=kind, shape=shape, method=method))
    check(gpu, call([(3, 50)], kind=kind, shape=shape, method=method, form=Form.NORM))


HALF, SINGLE, DOUBLE, BRAIN = torch.float16, torch.float32, torch.float64, torch.bfloat16


@pytest.mark.long
@pytest.mark.parametrize(
    "dtypes",
    [
        (BRAIN, BRAIN, SINGLE),
        (HALF, HALF, SINGLE),
        (BRAIN, SINGLE, HALF),
        (SINGLE, HALF, BRAIN),
    ],
    ids=str,
)
@pytest.mark.parametrize("form", [Form.ELEMENTWISE, Form.NORM])
def test_mixed_dtypes(gpu: Gpu, dtypes: tuple[torch.dtype, ...], form: Form) -> None:
    check(gpu, call([(5, 1000), (4, 7)], dtypes, form=form, method=Method.ALTERNATING))


@pytest.mark.long
def test_double_precision(gpu: Gpu) -> None:
    for form in (Form.ELEMENTWISE, Form.NORM, Form.SPARSE):
        args = call([(5, 1000), (4, 4097)], (DOUBLE,) * 3, form=form)
        truth = copy.deepcopy(args)
        sgd.step(*truth)
        for result, exact in zip(
            both_ways(gpu, gpu.eager, args), tree_leaves((truth[0], truth[2])), strict=True
        ):
            torch.testing.assert_close(result, exact, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("form", [Form.ELEMENTWISE, Form.NORM])
def test_odd_addresses_and_memory_formats(gpu: Gpu, form: Form) -> None:
    args = call([(8, 12, 3, 3), (8, 16, 5, 5)], form=form, method=Method.SUBGRADIENT)
    args[0][0] = args[0][0].contiguous(memory_format=torch.channels_last)
    args[2][0] = args[2][0].contiguous(memory_format=torch.channels_last)
    shifted = torch.empty(args[0][1].numel() + 1)[1:].view_as(args[0][1]).copy_(args[0][1])
    check(gpu, ([args[0][0], shifted], *args[1:]))


def test_launches_and_allocations(gpu: Gpu) -> None:
    """One launch for a model, two for more than an argument holds; no allocation from the second step on."""
    for count, launches in ((1, 1), (50, 1)):
        args = call([(3,)] * count)
        for allocations in (1, 0):
            before = gpu.c.launches(), gpu.c.allocations()
            gpu.eager(*args)
            assert gpu.c.launches() - before[0] == launches
            assert gpu.c.allocations() - before[1] == allocations
            args[1][:] = [torch.ones(3) for _ in args[1]]  # new gradients change no table


@pytest.mark.long
def test_more_tensors_than_one_launch_holds(gpu: Gpu) -> None:
    args = call([(3,)] * 1537)
    before = gpu.c.launches()
    gpu.eager(*args)
    assert gpu.c.launches() - before == 2
    assert not torch.equal(args[0][-1], call([(3,)] * 1537)[0][-1])


def test_more_groups_than_one_launch_holds(gpu: Gpu) -> None:
    args = call([(5,)] * 40)
    rules, hyper = args[5] * 40, args[6].repeat(40, 1)
    hyper[:, 0] = torch.linspace(0, 1, 40)
    check(gpu, (*args[:4], list(range(40)), rules, hyper))
    launches = gpu.c.launches()
    gpu.eager(*args[:4], list(range(40)), rules, hyper)
    assert gpu.c.launches() - launches == 3


def test_a_capture_needs_numbers_on_the_gpu_and_a_step_before(gpu: Gpu) -> None:
    args = call([(5,), (7,)])
    gpu.c.set_capturing(1)
    with pytest.raises(
        RuntimeError, match="hyper: on the CPU, so a graph's replays would repeat today's numbers"
    ):
        gpu.eager(*args)
    with pytest.raises(RuntimeError, match="take one step before the capture"):
        gpu.captured(*args)
    gpu.c.set_capturing(0)
    gpu.captured(*args)
    gpu.c.set_capturing(1)
    gpu.captured(*args)
    gpu.c.set_capturing(0)
    others = [call([(n,)]) for n in range(1, 20)]
    for other in others:
        gpu.eager(*other)
    allocations = gpu.c.allocations()
    gpu.captured(*args)  # a graph may hold its table: it was never thrown out
    gpu.eager(*others[-1])
    assert gpu.c.allocations() == allocations
    gpu.eager(*others[0])
    assert gpu.c.allocations() == allocations + 1


@pytest.fixture
def plan(library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The step plan's module, to which tensors on the CPU are on the GPU."""
    name = f"_plan{sysconfig.get_config_var('EXT_SUFFIX')}"
    target, built = library.parent / name, ROOT / "slimfast/_lib"
    if not target.exists():
        libraries = ["-Wl,--no-as-needed", library, built / "libslimfast.so"]
        libraries += [
            TORCH / "lib/libtorch_cpu.so",
            TORCH / "lib/libc10.so",
            f"-Wl,-rpath,{library.parent}:{built}",
        ]
        python = ["-isystem", sysconfig.get_paths()["include"], "-isystem", pybind11.get_include()]
        switch = "-Daoti_torch_device_type_cuda=aoti_torch_device_type_cpu"
        command = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", switch, *RENAMED]
        command += [
            *python,
            "-isystem",
            TORCH / "include",
            ROOT / "csrc/step_plan.cpp",
            "-o",
            target,
            *libraries,
        ]
        subprocess.run(list(map(str, command)), check=True)
    spec = importlib.util.spec_from_file_location("_plan", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(_plan, "_compiled", lambda: module)
    return module


@pytest.mark.long
@pytest.mark.usefixtures("plan")
def test_the_plan_takes_a_model_in_one_launch(gpu: Gpu) -> None:
    torch.manual_seed(0)
    model = models.densenet40()
    twin = copy.deepcopy(model)
    groups = [param_groups(net, bn=TL1(1e-2, 0.5), conv=GroupLasso(1e-3)) for net in (model, twin)]
    ours, theirs = (ProxSGD(group, lr=0.1, momentum=0.9, method="splitting") for group in groups)
    for step in range(4):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        launches = gpu.c.launches()
        ours.step()
        assert gpu.c.launches() - launches == (1 if step else 0)  # the first step makes the states, by the op
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_plan, "build", lambda *_: None)
            theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.usefixtures("plan")
def test_the_plan_leaves_to_the_op_what_the_kernel_does_not_serve(gpu: Gpu) -> None:
    p = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = ProxSGD([p], lr=0.1, momentum=0.9, penalty=GroupLasso(0.1, dim=1))
    for _ in range(3):
        p.grad = torch.ones_like(p)
        launches = gpu.c.launches()
        optimizer.step()
        assert gpu.c.launches() == launches
