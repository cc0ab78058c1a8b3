"""Where the time of a deployed network goes, op by op, beside what the device could do at best."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slimfast.packed.choose import Run
from slimfast.packed.deployed import Deployed
from slimfast.packed.op import Op
from slimfast.packed.plan import Plan, Step

_COPIED = 2**27  # bytes: more than caches hold
_SIDE = {"cpu": (1024, 4), "cuda": (8192, 512)}  # of the matrices that are multiplied; images convolved
_AHEAD = 20_000_000  # GPU cycles, about 10 ms: all launches are enqueued before the device starts the first
_ROUNDS = 10


@dataclass(frozen=True)
class OpTime:
    """One op for the whole batch.

    Attributes:
        name, kind: as the program prints them.
        way: in which it runs.
        shape: of its result, () where that is no tensor.
        seconds: median over the rounds.
        bytes: of its weights, inputs and results; 0 for a view.
        flops: 2 for each multiply-accumulate of a convolution or matrix product, 0 for anything else.
        roofline: share of the device's best that it reaches: max(bytes / bandwidth, flops / rate) / seconds;
            above 1 where its values come from caches.
    """

    name: str
    kind: str
    way: str
    shape: tuple[int, ...]
    seconds: float
    bytes: int
    flops: int
    roofline: float


@dataclass(frozen=True)
class Profile:
    """What `profile` measured; `str()` is a readable table, `to_dict()` is JSON.

    Attributes:
        shape: of the images.
        device: they are on.
        dtype: of the computation.
        seconds: median time of one call of the network.
        bandwidth: bytes per second that a copy reads and writes.
        rate: floating-point operations per second, in this dtype, of a large matrix product or convolution,
            whichever is faster.
        ops: in the order in which they run.
        is_compiled: the network runs whole under torch.compile; the ops are timed as they run one by one.
    """

    shape: tuple[int, ...]
    device: str
    dtype: str
    seconds: float
    bandwidth: float
    rate: float
    ops: tuple[OpTime, ...]
    is_compiled: bool = False

    @property
    def in_ops(self) -> float:
        """Seconds of all ops together."""
        return sum(op.seconds for op in self.ops)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        ops = [{**vars(op), "shape": list(op.shape), "share": op.seconds / self.in_ops} for op in self.ops]
        return {**vars(self), "shape": list(self.shape), "in_ops": self.in_ops, "ops": ops}

    def table(self, most: int) -> str:
        """The slowest ops, at most this many, and the rest in one line."""
        shown = sorted(self.ops, key=lambda op: -op.seconds)
        heads = ["op", "runs as", "result", "ms", "share", "MB", "MFLOP", "of roofline"]
        rows = [heads, *(self._row(op) for op in shown[:most])]
        if rest := shown[most:]:
            seconds = sum(op.seconds for op in rest)
            sums = [f"{sum(op.bytes for op in rest) / 1e6:.2f}", f"{sum(op.flops for op in rest) / 1e6:.1f}"]
            rows.append([f"{len(rest)} more", "", "", *self._time(seconds), *sums, ""])
        widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
        cells = [
            [
                cell.ljust(w) if i < 3 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            for row in rows
        ]
        return "\n".join([self._head(), *("  ".join(row).rstrip() for row in cells), self._foot()])

    def __str__(self) -> str:
        return self.table(most=len(self.ops))

    def _row(self, op: OpTime) -> list[str]:
        flops = f"{op.flops / 1e6:.1f}" if op.flops else ""
        best = f"{100 * op.roofline:.0f} %" if op.bytes else ""
        shape = "x".join(map(str, op.shape))
        return [
            f"{op.kind} {op.name}",
            op.way,
            shape,
            *self._time(op.seconds),
            f"{op.bytes / 1e6:.2f}",
            flops,
            best,
        ]

    def _time(self, seconds: float) -> list[str]:
        return [f"{1e3 * seconds:.3f}", f"{100 * seconds / self.in_ops:.1f} %"]

    def _head(self) -> str:
        sizes = "x".join(map(str, self.shape))
        whole = " under torch.compile" if self.is_compiled else ""
        times = f"{1e3 * self.seconds:.3f} ms a call{whole}, {1e3 * self.in_ops:.3f} ms in its ops"
        return f"{sizes} on {self.device}, {self.dtype}: {times}"

    def _foot(self) -> str:
        return (
            f"roofline: {self.bandwidth / 1e9:,.1f} GB/s of a large copy, {self.rate / 1e9:,.0f} GFLOP/s of "
            "a large product; above 100 % values come from caches"
        )


@torch.no_grad()
def profile(
    deployed: Deployed,
    x: Tensor,
    rounds: int = _ROUNDS,
    progress: Callable[[float], None] = lambda share: None,
) -> Profile:
    """Times each op of a network where it stands among the others, and what the device can do at best.

    On GPUs the ops are timed between events with all launches enqueued beforehand; the whole call, which is
    one CUDA graph, is timed as it is.

    Args:
        deployed: from `slimfast.deploy` or `slimfast.load`.
        x: images [N, C, H, W] as the network takes them.
        rounds: how often everything is timed; the medians count.
        progress: told the share that is done.

    Raises:
        ValueError, TypeError, torch.OutOfMemoryError: as the network's own call; x holds no image.
    """
    if not len(x):
        raise ValueError(f"x must hold at least 1 image, got shape {list(x.shape)}")
    pieces = deployed.pieces(x)
    clock = _GpuClock() if x.is_cuda else _Clock()
    copy, products = _copy(x.device), _products(x.device, deployed.dtype)
    found = {step.op.name: _Sum(step) for step in pieces[0][0].steps}
    whole, bandwidth, rate = [], 0.0, 0.0
    for turn in range(-1, rounds):  # the first is a warm-up
        whole.append(clock.once(lambda: deployed(x)))
        for name, seconds in clock.steps(pieces).items():
            found[name].seconds.append(seconds)
        bandwidth = max(bandwidth, 2 * _COPIED / clock.once(copy))
        rate = max(rate, *(flops / clock.once(run) for run, flops in products.items()))
        progress((turn + 2) / (rounds + 1))
    _count(pieces, found, len(x))
    dtype = str(deployed.dtype).removeprefix("torch.")
    ops = tuple(total.op_time(bandwidth, rate) for total in found.values())
    return Profile(
        tuple(x.shape),
        str(x.device),
        dtype,
        statistics.median(whole[1:]),
        bandwidth,
        rate,
        ops,
        is_compiled=bool(deployed.compiled(x)),
    )


@dataclass
class _Sum:
    """What is known of one step, over all pieces of the batch."""

    step: Step
    seconds: list[float] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    bytes: int = 0
    flops: int = 0

    def op_time(self, bandwidth: float, rate: float) -> OpTime:
        seconds, op = statistics.median(self.seconds[1:]), self.step.op
        best = max(self.bytes / bandwidth, self.flops / rate) / seconds
        return OpTime(op.name, op.kind, self.step.way, self.shape, seconds, self.bytes, self.flops, best)


class _Clock:
    """Of the host."""

    def once(self, run: Callable[[], object]) -> float:
        """Seconds until the result is there."""
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def steps(self, pieces: Sequence[tuple[Plan, Tensor]]) -> dict[str, float]:
        """Seconds of each step, by the op's name, over all pieces."""
        taken: dict[str, float] = {}

        def timed(step: Step, run: Run, inputs: Sequence[Any]) -> Any:
            start = time.perf_counter()
            y = run(*inputs)
            taken[step.op.name] = taken.get(step.op.name, 0.0) + time.perf_counter() - start
            return y

        for plan, images in pieces:
            plan(images, timed)
        return taken


class _GpuClock(_Clock):
    """Of the device for steps."""

    def once(self, run: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def steps(self, pieces: Sequence[tuple[Plan, Tensor]]) -> dict[str, float]:
        names, events = [], [torch.cuda.Event(enable_timing=True)]

        def marked(step: Step, run: Run, inputs: Sequence[Any]) -> Any:
            y = run(*inputs)
            names.append(step.op.name)
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()
            return y

        torch.cuda.synchronize()
        torch.cuda._sleep(_AHEAD)
        events[0].record()
        for plan, images in pieces:
            plan(images, marked)
        torch.cuda.synchronize()
        taken: dict[str, float] = {}
        for name, before, after in zip(names, events, events[1:], strict=False):
            taken[name] = taken.get(name, 0.0) + before.elapsed_time(after) / 1e3
        return taken


def _count(pieces: Sequence[tuple[Plan, Tensor]], found: dict[str, _Sum], batch: int) -> None:
    """Bytes, operations and shapes, in a run of their own."""

    def counted(step: Step, run: Run, inputs: Sequence[Any]) -> Any:
        total, y = found[step.op.name], run(*inputs)
        moved = step.op.moved(inputs, y)
        total.bytes += sum(x.nbytes for x in (*moved, *(_weights(step.op) if moved else ())))
        total.flops += _flops(step.op, inputs, y)
        total.shape = (batch, *y.shape[1:]) if isinstance(y, Tensor) else ()
        return y

    for plan, images in pieces:
        plan(images, counted)


def _weights(op: Op) -> Iterator[Tensor]:
    yield from op.tensors().values()
    for part in op.inner():
        yield from _weights(part)


def _flops(op: Op, inputs: Sequence[Any], y: Any) -> int:
    weight = op.tensors().get("weight")
    if weight is not None:
        return 2 * int(y.numel()) * weight[0].numel()
    total = 0
    x: Tensor = inputs[0].to("meta") if op.inner() else torch.empty(0)
    for part in op.inner():  # one after the other, for their sizes alone
        before, x = x, part.to(x.device, x.dtype).run(x)
        total += _flops(part, [before], x)
    return total


def _copy(device: torch.device) -> Callable[[], object]:
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _products(device: torch.device, dtype: torch.dtype) -> dict[Callable[[], object], float]:
    """A large matrix product and a large convolution, which may be two libraries' work, and their FLOPs."""
    side, batch = _SIDE[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    x, weight = torch.randn(batch, 128, 32, 32, device=device), torch.randn(128, 128, 3, 3, device=device)
    x, weight = (t.to(dtype, memory_format=torch.channels_last) for t in (x, weight))
    flops = 2.0 * x.numel() * weight[0].numel()
    return {lambda: a @ b: 2.0 * side**3, lambda: F.conv2d(x, weight, None, 1, 1): flops}
