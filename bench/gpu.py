"""What bench/gpu.sh runs: checks on a GPU, then measurements, one JSON. Needs torch and triton only.

python3 bench/gpu.py --out runs/gpu/gpu.json
"""

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import slimfast
from slimfast import models
from slimfast.optim import ProxSGD
from slimfast.penalties import L1

ROOT = Path(__file__).parents[1]
NETS = {"vgg19": (3, 32), "resnet164": (3, 32), "densenet40": (3, 32)}
LAM, LR = 1e-4, 0.1


def facts(device: torch.device) -> dict[str, Any]:
    """The machine and the versions, without which a number says nothing."""
    commit = _said("git", "-C", str(ROOT), "rev-parse", "HEAD")
    driver = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "commit": commit,
        "changed_files": bool(_said("git", "-C", str(ROOT), "status", "--porcelain")),
    }


def _said(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def check_ops(device: torch.device) -> list[str]:
    """Every sample call of every op on the device, against its float64 truth; the failures."""
    sys.path.insert(0, str(ROOT / "tests"))
    from accuracy import assert_accurate, outcome, overload
    from samples import OPS

    failures, calls = [], 0
    for op in OPS:
        for label, call in op.calls.items():
            for dtype in op.dtypes:
                args = call(dtype)
                on_device = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, call(dtype))
                calls += 1
                try:
                    got = [x.cpu() for x in outcome(op, overload(op), on_device)]
                    assert_accurate(op, got, args)
                except Exception as error:  # the list is the result: one bad kernel must not hide the others
                    first = (str(error).splitlines() or [""])[0]
                    failures.append(f"{op.name} {label} {dtype}: {type(error).__name__}: {first}")
    print(f"ops: {calls} calls, {len(failures)} failures")
    return failures


def check_step(device: torch.device) -> list[str]:
    """Five ProxSGD steps on the device against the same on the CPU, both in float32."""
    torch.manual_seed(0)
    start = models.resnet164()
    twins = [start, models.resnet164().to(device)]
    twins[1].load_state_dict(start.state_dict())
    optimizers = [_ours(net) for net in twins]
    for step in range(5):
        for net, optimizer in zip(twins, optimizers, strict=True):
            _set_gradients(net, seed=step)
            optimizer.step()
    pairs = zip(twins[0].named_parameters(), twins[1].parameters(), strict=True)
    bad = [name for (name, p), q in pairs if not torch.allclose(p, q.cpu(), rtol=1e-5, atol=1e-7)]
    return [f"ProxSGD: {len(bad)} of 494 tensors differ from the CPU's, {bad[0]} first"] if bad else []


def check_deploy(device: torch.device) -> list[str]:
    """Pruned and deployed networks against float64: at most twice the RMS error of torch's eager network."""
    failures = []
    for name, (channels, size) in NETS.items():
        model = _pruned(name, channels, size)
        x = torch.randn(8, channels, size, size, generator=torch.Generator().manual_seed(1)).to(device)
        with torch.no_grad():
            truth = _moved(model, device, torch.float64)(x.double())
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                eager = _moved(model, device, dtype)(x.to(dtype)).double()
                fast = slimfast.deploy(_moved(model, device, torch.float32), x, dtype=dtype)
                for attempt in range(2):  # the second replays what the first recorded
                    error, baseline = (_rms(y.double() - truth) for y in (fast(x), eager))
                    if not error <= 2 * baseline:
                        failures.append(
                            f"deploy {name} {dtype} call {attempt}: {error:.2g}, eager {baseline:.2g}"
                        )
    return failures


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def time_steps(device: torch.device) -> dict[str, Any]:
    """A step of every net's parameters with L1 on BatchNorm scales: ours and torch's, the usual ways."""
    results = {}
    for name in NETS:
        contenders = {
            "ours": _step_of(name, device, _ours, None),
            "fused + loop": _step_of(name, device, _sgd(fused=True), _loop),
            "foreach + foreach prox": _step_of(name, device, _sgd(foreach=True), _foreach_prox),
            "fused, no penalty": _step_of(name, device, _sgd(fused=True), None),
        }
        results[name] = _microseconds(contenders, device, rounds=30, calls=20)
        print(name, {key: round(value, 1) for key, value in results[name].items()})
    return results


def time_deploy(device: torch.device, batches: tuple[int, ...]) -> dict[str, Any]:
    """Images through the pruned nets: eager, compiled and deployed, bf16 on a GPU."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    results: dict[str, Any] = {}
    for name, (channels, size) in NETS.items():
        pruned = _pruned(name, channels, size)
        for batch in batches:
            x = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last)
            dense = _moved(models.build(name), device, dtype).to(memory_format=torch.channels_last)
            eager = _moved(pruned, device, dtype).to(memory_format=torch.channels_last)
            contenders = {"dense eager": dense, "pruned eager": eager}
            if device.type == "cuda":
                contenders["pruned compiled"] = torch.compile(eager, mode="reduce-overhead")
            contenders["ours"] = slimfast.deploy(_moved(pruned, device, dtype), x)
            with torch.no_grad():
                calls = {key: lambda net=net, x=x: net(x) for key, net in contenders.items()}
                results[f"{name}, batch {batch}"] = _microseconds(calls, device, rounds=15, calls=5)
            print(name, batch, {k: round(v, 1) for k, v in results[f"{name}, batch {batch}"].items()})
    return results


def _microseconds(
    contenders: dict[str, Callable[[], Any]], device: torch.device, rounds: int, calls: int
) -> dict[str, float]:
    """Median wall time per call, the contenders taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(rounds + 3):
        for name, call in contenders.items():
            _wait(device)
            started = time.perf_counter()
            for _ in range(calls):
                call()
            _wait(device)
            if i >= 3:
                times[name].append(1e6 * (time.perf_counter() - started) / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ours(net: nn.Module) -> torch.optim.Optimizer:
    return ProxSGD(slimfast.param_groups(net, bn=L1(LAM)), lr=LR, momentum=0.9, weight_decay=1e-4)


def _sgd(**how: bool) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda net: torch.optim.SGD(net.parameters(), lr=LR, momentum=0.9, weight_decay=1e-4, **how)


def _loop(scales: list[Tensor]) -> None:
    """Network slimming as it is usually written: the subgradient of L1, one BatchNorm after the other."""
    for weight in scales:
        weight.grad.add_(LAM * torch.sign(weight))


def _foreach_prox(scales: list[Tensor]) -> None:
    magnitudes = torch._foreach_abs(scales)
    torch._foreach_sub_(magnitudes, LR * LAM / (1 - 0.9))
    torch._foreach_clamp_min_(magnitudes, 0.0)
    torch._foreach_mul_(magnitudes, torch._foreach_sign(scales))
    torch._foreach_copy_(scales, magnitudes)


def _step_of(
    name: str, device: torch.device, make: Callable[[nn.Module], torch.optim.Optimizer], penalty: Any
) -> Callable[[], None]:
    net = models.build(name).to(device)
    _set_gradients(net, seed=0)
    optimizer = make(net)
    scales = [m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d)]

    def step() -> None:
        if penalty is not None:
            with torch.no_grad():
                penalty(scales)
        optimizer.step()

    return step


def _set_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = (1e-3 * torch.randn(p.shape, generator=generator)).to(p.device)


def _pruned(name: str, channels: int, size: int) -> nn.Module:
    """The net with random statistics and 60 % of its scales zero, pruned."""
    torch.manual_seed(0)
    net = models.build(name).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return slimfast.prune(net, torch.randn(1, channels, size, size), ratio=0.6).model


def _moved(net: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(net).eval().to(device, dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128, 1024], help="images per call")
    given = parser.parse_args()
    device = torch.device(given.device)
    parts: dict[str, Callable[[], Any]] = {
        "facts": lambda: facts(device),
        "failures": lambda: check_ops(device) + check_step(device) + check_deploy(device),
        "step_us": lambda: time_steps(device),
        "deploy_us": lambda: time_deploy(device, tuple(given.batches)),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {}
    for name, part in parts.items():  # written after each: what a later part breaks is not lost
        result[name] = part()
        given.out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(result["failures"]) or "no failures")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
