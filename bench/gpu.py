"""What bench/gpu.sh runs besides the benchmarks: checks on a GPU, and times of layers there.

python3 bench/gpu.py checks --out runs/gpu/checks.json
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_psconv
import networks
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import slimfast
from slimfast import models
from slimfast.optim import ProxSGD
from slimfast.penalties import L1, TL1, GroupLasso, SparseGroup

ROOT = Path(__file__).parents[1]
NETS = {"vgg19": (3, 32), "resnet164": (3, 32), "densenet40": (3, 32), "mobilenet": (3, 32)}
STEPS: dict[str, dict[str, Any]] = {
    "no penalty": {},
    "L1 on scales": {"bn": L1(1e-2)},
    "TL1 on scales, nesterov": {"bn": TL1(1e-2, 1.0), "nesterov": True},
    "subgradient": {"bn": L1(1e-2), "method": "subgradient"},
    "relaxed": {"bn": L1(1e-2), "method": "splitting"},
    "alternating": {"bn": L1(1e-2), "method": "splitting", "splitting": "alternating"},
    "filters": {"conv": GroupLasso(1e-3)},
    "input channels": {"conv": GroupLasso(1e-3, dim=1)},
    "sparse filters": {"conv": SparseGroup(L1(1e-4), group_lam=1e-3)},
    "sparse filters, TL1": {"conv": SparseGroup(TL1(1e-4, 1.0), group_lam=1e-3)},
}


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


def check_steps(device: torch.device) -> list[str]:
    """Five ProxSGD steps of every kind on the device against the same on the CPU, both in float32."""
    failures = []
    for label, setting in STEPS.items():
        nets, optimizers = _twins(device, setting)
        for step in range(5):
            for net, optimizer in zip(nets, optimizers, strict=True):
                optimizer.zero_grad()
                _set_gradients(net, seed=step)
                optimizer.step()
        failures += _differences(label, *nets)
    return failures


def check_scaler(device: torch.device) -> list[str]:
    """GradScaler: a first step with an infinite gradient changes nothing, the later ones are the CPU's."""
    nets, optimizers = _twins(device, STEPS["L1 on scales"])
    scaler = torch.amp.GradScaler(device.type, init_scale=1024.0)
    scaler.scale(torch.ones((), device=device))  # makes its tensors
    start = [p.detach().clone() for p in nets[1].parameters()]
    _set_gradients(nets[1], seed=0)
    next(nets[1].parameters()).grad.fill_(torch.inf)
    scaler.step(optimizers[1])
    scaler.update()
    if not all(map(torch.equal, start, nets[1].parameters())):
        return ["GradScaler: a step with an infinite gradient changed parameters"]
    for step in range(3):
        for net in nets:
            _set_gradients(net, seed=step)
        for p in nets[1].parameters():
            p.grad *= scaler.get_scale()
        optimizers[0].step()
        scaler.step(optimizers[1])
        scaler.update()
    return _differences("GradScaler", *nets)


def check_capture(device: torch.device) -> list[str]:
    """A captured step whose numbers change between replays, against eager steps on the CPU.

    Without a GPU nothing is captured; all else is as with one.
    """
    failures = []
    for label, setting in STEPS.items():
        nets, (eager, ours) = _twins(device, setting, capturable=True)
        replay = None
        for step in range(4):
            for net in nets:
                _set_gradients(net, seed=step)
            for optimizer in (eager, ours):
                for group in optimizer.param_groups:
                    group["lr"], group["weight_decay"] = 0.1 / (1 + step), 1e-4 * step
                    group["penalty_scale"] = 1.0 + step
            eager.step()
            if step == 0:
                ours.step()
                continue
            if replay is None:
                replay = _captured(ours.step) if device.type == "cuda" else ours.step
            ours.refresh_hyperparameters()
            replay()
        failures += _differences(f"captured, {label}", *nets)
    return failures


def _captured(step: Callable[[], Any]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # on a stream of its own; nothing runs
        step()
    return graph.replay


def _twins(
    device: torch.device, setting: dict[str, Any], **kwargs: bool
) -> tuple[list[nn.Module], list[ProxSGD]]:
    """The same network on the CPU and on the device, with an optimizer each."""
    torch.manual_seed(0)
    nets = [models.densenet40(), models.densenet40().to(device)]
    nets[1].load_state_dict(nets[0].state_dict())
    rest = {key: value for key, value in setting.items() if key not in ("bn", "conv")}
    groups = [slimfast.param_groups(net, bn=setting.get("bn"), conv=setting.get("conv")) for net in nets]
    common = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    return nets, [ProxSGD(groups[0], **common, **rest), ProxSGD(groups[1], **common, **rest, **kwargs)]


def _differences(label: str, cpu: nn.Module, other: nn.Module) -> list[str]:
    pairs = list(zip(cpu.named_parameters(), other.parameters(), strict=True))
    bad = [name for (name, p), q in pairs if not torch.allclose(p, q.cpu(), rtol=1e-4, atol=1e-6)]
    return (
        [f"{label}: {len(bad)} of {len(pairs)} tensors differ from the CPU's, {bad[0]} first"] if bad else []
    )


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


def _set_gradients(net: nn.Module, seed: int) -> None:
    """Where there are gradients already, in place: captured steps read them there."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        grad = 1e-3 * torch.randn(p.shape, generator=generator)
        if p.grad is None:
            p.grad = grad.to(p.device)
        else:
            p.grad.copy_(grad)


def _pruned(name: str, channels: int, size: int) -> nn.Module:
    """The net with random statistics and 60 % of its scales zero, pruned."""
    torch.manual_seed(0)
    net = (networks.mobilenet() if name == "mobilenet" else models.build(name)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return slimfast.prune(net, torch.randn(1, channels, size, size), ratio=0.6).model


def _moved(net: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(net).eval().to(device, dtype)


CHECKS = (check_ops, check_steps, check_scaler, check_capture, check_deploy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["checks", "ops", "psconv"], help="what to do; ops is of checks")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script itself")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128, 1024], help="images per call")
    given = parser.parse_args()
    device = torch.device(given.device)
    result = {"facts": facts(device)}
    if given.part != "psconv":
        checks = CHECKS if given.part == "checks" else (check_ops,)
        result["failures"] = [failure for check in checks for failure in check(device)]
        print("\n".join(result["failures"]) or "no failures")
    else:
        result["failures"] = gpu_psconv.check(device, batch=8)
        print("\n".join(result["failures"]) or "no failures")
        result["psconv_us"] = {
            f"batch {batch}": gpu_psconv.time_layers(device, batch) for batch in given.batches
        }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
