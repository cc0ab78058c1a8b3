"""GradScaler within the step, state in float32 for low precision, skipped steps that leave no trace."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from slimfast.optim import ProxSGD
from slimfast.penalties import L1, GroupLasso

LOW = (torch.bfloat16, torch.float16)
EVERY_METHOD: list[dict[str, Any]] = [
    {},
    {"penalty": L1(0.1)},
    {"penalty": GroupLasso(0.01)},
    {"penalty": L1(0.1), "method": "subgradient"},
    {"penalty": L1(0.1), "method": "splitting"},
    {"penalty": L1(0.1), "method": "splitting", "splitting": "alternating"},
]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(4, n, generator=generator).to(dtype)) for n in (3, 5)]


def scaler_of(scale: float = 1024.0) -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.zeros(1))  # makes its tensors
    return scaler


def contents(optimizer: ProxSGD) -> list[Tensor]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    states = [optimizer.state[p].get(key) for p in params for key in ("momentum_buffer", "auxiliary")]
    return [x.detach().clone() for x in (*params, *states) if x is not None]


@pytest.mark.parametrize("kwargs", EVERY_METHOD)
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_training_with_a_scaler_equals_training_without(kwargs: dict[str, Any], dampening: float) -> None:
    """Bit for bit, since scales are powers of 2; through the op and the plan; gradients stay as they are."""
    kwargs = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "dampening": dampening, **kwargs}
    plain, scaled = ProxSGD(parameters(), **kwargs), ProxSGD(parameters(), **kwargs)
    scaler = scaler_of()
    for step in range(5):
        for p, q in zip(plain.param_groups[0]["params"], scaled.param_groups[0]["params"], strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad * scaler.get_scale()
        if step == 3:
            scaler.unscale_(scaled)  # as before clipping
        before = [p.grad.clone() for p in scaled.param_groups[0]["params"]]
        plain.step()
        scaler.step(scaled)
        scaler.update()
        for p, grad in zip(scaled.param_groups[0]["params"], before, strict=True):
            assert torch.equal(p.grad, grad)
    for a, b in zip(contents(plain), contents(scaled), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kwargs", EVERY_METHOD)
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("skipped", [0, 1, 3])
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_a_skipped_step_leaves_no_trace(
    kwargs: dict[str, Any], bad: float, skipped: int, dampening: float
) -> None:
    """Also the very first one, where torch's fused SGD leaves the momentum buffer uninitialised."""
    results = []
    for skip in (None, skipped):
        optimizer = ProxSGD(parameters(), lr=0.1, momentum=0.9, dampening=dampening, **kwargs)
        scaler = scaler_of()
        for step in range(4):
            attempts = [bad, 1.0] if step == skip else [1.0]
            for factor in attempts:
                for p in optimizer.param_groups[0]["params"]:
                    p.grad = p.detach().sin() * (scaler.get_scale() * factor)
                before = contents(optimizer)
                scaler.step(optimizer)
                scaler.update()
                if factor is bad:
                    after = contents(optimizer)
                    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=False))
                    assert all(x.isfinite().all() for x in after)
                    assert scaler.get_scale() == 512.0
        results.append(contents(optimizer))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fused", [None, True])
def test_a_parameter_unfrozen_later_joins_the_others(fused: bool | None) -> None:
    """torch's fused SGD raises TypeError there."""
    late, early = parameters()
    optimizer = ProxSGD([late, early], lr=0.1, momentum=0.9, fused=fused)
    twin = parameters()
    sgd = SGD(twin, lr=0.1, momentum=0.9, foreach=False)
    for step in range(4):
        for p, q in zip((late, early), twin, strict=True):
            p.grad = q.grad = None if p is late and step < 2 else torch.ones_like(p)
        optimizer.step()
        sgd.step()
    assert all(torch.equal(p, q) for p, q in zip((late, early), twin, strict=True))


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("splitting", ["relaxed", "alternating"])
def test_state_in_float32_adds_up_what_the_parameter_cannot_hold(dtype: torch.dtype, splitting: Any) -> None:
    penalty = {"penalty": L1(0.01), "method": "splitting", "splitting": splitting}
    optimizer = ProxSGD(parameters(dtype), lr=0.1, momentum=0.9, momentum_dtype=torch.float32, **penalty)
    wide = ProxSGD(
        [nn.Parameter(p.detach().float()) for p in parameters(dtype)], lr=0.1, momentum=0.9, **penalty
    )
    for step in range(3):
        for p, q in zip(optimizer.param_groups[0]["params"], wide.param_groups[0]["params"], strict=True):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to(dtype)
            q.grad = p.grad.float()
        optimizer.step()
        wide.step()
        for p, q in zip(optimizer.param_groups[0]["params"], wide.param_groups[0]["params"], strict=True):
            assert torch.equal(p, q.to(dtype))
            q.data.copy_(p)  # only the parameter is rounded
            for key, value in optimizer.state[p].items():
                assert torch.equal(value, wide.state[q][key])
                assert value.dtype == torch.float32
    assert optimizer._plan is not None, "the shortcut in C++ serves it"


def saved(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def stepped(kind: Any, **kwargs: Any) -> Any:
    optimizer = kind(parameters(torch.bfloat16), lr=0.1, momentum=0.9, **kwargs)
    for _ in range(3):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = (p.detach() * 1.234).sin()
        optimizer.step()
    return optimizer


def states(optimizer: Any) -> list[Tensor]:
    return [optimizer.state[p]["momentum_buffer"] for p in optimizer.param_groups[0]["params"]]


def test_loading_does_not_round_the_state() -> None:
    old = stepped(ProxSGD, momentum_dtype=torch.float32)
    fresh = ProxSGD(parameters(torch.bfloat16), lr=1.0)
    fresh.register_load_state_dict_pre_hook(lambda _, state: copy.deepcopy(state))
    seen: list[torch.dtype] = []
    fresh.register_load_state_dict_post_hook(lambda it: seen.extend(x.dtype for x in states(it)))
    fresh.load_state_dict(saved(old.state_dict()))
    assert fresh.param_groups[0]["momentum_dtype"] == torch.float32
    assert seen == [torch.float32] * 2
    for a, b in zip(states(old), states(fresh), strict=True):
        assert torch.equal(a, b)
        assert a is not b
    assert (states(old)[0] != states(old)[0].bfloat16()).any(), "something to lose"


def test_loading_between_dtypes_and_optimizers() -> None:
    """From SGD: widened; to SGD: rounded, as torch does it."""
    wide = ProxSGD(parameters(torch.bfloat16), lr=0.1, momentum=0.9, momentum_dtype=torch.float32)
    wide.load_state_dict(stepped(SGD).state_dict())
    assert wide.param_groups[0]["momentum_dtype"] == torch.float32
    assert [x.dtype for x in states(wide)] == [torch.float32] * 2
    sgd = SGD(parameters(torch.bfloat16), lr=0.1)
    sgd.load_state_dict(stepped(ProxSGD, momentum_dtype=torch.float32).state_dict())
    assert [x.dtype for x in states(sgd)] == [torch.bfloat16] * 2


def test_wider_parameters_keep_their_own_dtype() -> None:
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    q = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = ProxSGD([p, q], lr=0.1, momentum=0.9, momentum_dtype=torch.float32)
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    assert [x.dtype for x in states(optimizer)] == [torch.float64, torch.complex64]
