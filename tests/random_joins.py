"""Moves of random networks that bring tensors together or scale one by another."""

from random_layers import ACTIVATIONS, activation, conv, expressed, finish, linear, norm
from random_program import Var, Writer, call


def residual(w: Writer) -> None:
    x = w.pick()
    y = conv(w, x, x.channels, keep=True)
    y = norm(w, y) if w.chance(70) else y
    y = w.run(
        "add", w.choice(["{y} + {x}", "{x} + {y}", "torch.add({x}, {y})", "{y}.add_({x})"]).format(x=x, y=y)
    )
    if w.chance(50):
        activation(w, y)


def partner(w: Writer, x: Var) -> Var:
    """Another tensor of the same shape: one that is there, or a new branch."""
    there = w.like(x)
    if there and w.chance(70):
        return w.choice(there)
    return finish(w, conv(w, x, x.channels, keep=True))


def join(w: Writer) -> None:
    x = w.pick()
    y = partner(w, x)
    forms = {
        "add": [
            *("{x} + {y}", "torch.add({y}, {x})", "{x}.add({y})", "torch.add({x}, {y}, alpha=2)"),
            *("sum([{x}, {y}])", "torch.add({x}, other={y})"),
        ],
        "mul": ["{x} * {y}", "torch.mul({x}, {y})", "{y}.mul({x})"],
        "sub": ["{x} - {y}", "torch.sub({y}, {x})", "{x}.sub({y})"],
        "div": ["{x} / ({y}.abs() + 1)", "torch.div({x}, {y} ** 2 + 0.5)"],
        "maximum": ["torch.maximum({x}, {y})", "torch.max({y}, {x})", "torch.minimum({x}, {y})"],
        "other joins": [
            *("torch.stack([{x}, {y}]).mean(0)", "torch.stack([{x}, {y}], 1).flatten(1, 2)"),
            *("torch.where({x} > 0.1, {x}, {y})", "({x} > 0.1) * {y}", "torch.lerp({x}, {y}, 0.25)"),
            "torch.addcmul({x}, {y}, {x})",
        ],
    }
    op = w.choice(list(forms))
    z = w.run(op, w.choice(forms[op]).format(x=x, y=y))
    if w.chance(30):
        activation(w, z)


def concatenate(w: Writer) -> None:
    x = w.pick()
    others = w.like(x, channels=False)
    y = w.choice(others) if others else finish(w, conv(w, x, keep=True))
    parts = [x, y] if w.chance(80) else [y, x, x]
    forms = ["torch.cat({p}, 1)", "torch.cat({p}, dim=1)", "torch.concat({p}, 1)", "torch.cat({t}, 1)"]
    form = w.choice([*forms, "torch.cat({p}, -{back})", "torch.cat(tensors={p}, dim=1)"])
    if sum(part.channels for part in parts) <= 24:
        finish(w, w.run("cat", form.format(p=parts, t=tuple(parts), back=x.dim + 1)))


def concatenate_images(w: Writer) -> None:
    x = w.pick()
    if x.largest <= 12:
        axis = w.choice(range(2, 2 + x.dim))
        w.run("cat spatial", call("torch.cat", [x, partner(w, x)], axis))


def siamese(w: Writer) -> None:
    """Two batches go through one layer as one."""
    x = w.pick()
    both = w.run("cat batch", f"torch.cat({[x, partner(w, x)]}, 0)", hidden=True)
    both = norm(w, conv(w, both, hidden=True), hidden=True)
    w.run_many("split batch", w.choice([f"{both}.chunk(2, 0)", f"torch.chunk({both}, 2)"]), 2)


def squeeze_excite(w: Writer) -> None:
    x = w.pick()
    width = w.choice([2, 1, 3])
    s = (_gate_of_layers if w.chance(40) else _gate_of_features)(w, x, width)
    w.count("squeeze-excite")
    w.run("mul", w.choice([f"{x} * {s}", f"{s} * {x}", f"{x} * {s}.expand_as({x})"]))


def _gate_of_layers(w: Writer, x: Var, width: int) -> Var:
    """1x1 convolutions of the pooled image."""
    axes = tuple(range(2, 2 + x.dim))
    if w.chance(50):
        s = w.run(
            "mean keepdim",
            w.choice([f"{x}.mean({axes}, keepdim=True)", f"torch.mean({x}, {axes}, True)"]),
            True,
        )
    else:
        s = w.apply("adaptive pool", "pool", f"nn.AdaptiveAvgPool{x.dim}d(1)", x, True)
    for out in (width, x.channels):
        layer = w.layer("gate", call(f"nn.Conv{x.dim}d", s.channels, out, 1))
        s = w.run(f"Conv{x.dim}d", f"{layer}({s})", True)
        if out == width and s.channels != x.channels and w.chance(30):
            s = norm(w, s, True)
        gate = w.choice(["Sigmoid", "Hardsigmoid"]) if out == x.channels else "ReLU"
        s = expressed(w, gate, w.choice(ACTIVATIONS[gate]), s, True)
    return s


def _gate_of_features(w: Writer, x: Var, width: int) -> Var:
    """Matrix products of the means, viewed as an image again."""
    s = w.run("mean", f"{x}.mean({tuple(range(2, 2 + x.dim))})", True)
    s = linear(w, s, width)
    s = w.run("ReLU", f"F.relu({s})", True)
    s = linear(w, s, x.channels)
    s = w.run("Sigmoid", f"torch.sigmoid({s})", True)
    ones = ", 1" * x.dim
    form = w.choice(["view", "sizes", "none", "unsqueeze"])
    if form == "view":
        return w.run("view", f"{s}.view({x}.size(0), {x}.size(1){ones})", True)
    if form == "sizes":
        n, c = w.fresh("n"), w.fresh("c")
        w.assign(f"{n}, {c}", f"{s}.shape")
        return w.run("view", f"{s}.reshape({n}, {c}{ones})", True)
    if form == "none":
        return w.run("unsqueeze", f"{s}[:, :{', None' * x.dim}]", True)
    return w.run("unsqueeze", f"{s}{'.unsqueeze(-1)' * x.dim}", True)


def spatial_attention(w: Writer) -> None:
    x = w.pick()
    w.count("spatial attention")
    s = w.run(
        "mean keepdim",
        w.choice([f"{x}.mean(1, keepdim=True)", f"torch.mean({x}, dim=1, keepdim=True)"]),
        True,
    )
    if w.chance(40):
        largest = w.run("amax keepdim", f"{x}.amax(1, keepdim=True)", True)
        s = w.run("cat", call("torch.cat", [s, largest], 1), True)
    if s.channels > 1 or w.chance(50):
        s = conv(w, s, 1, keep=True, hidden=True)
    s = w.run("Sigmoid", f"torch.sigmoid({s})", True)
    w.run("mul", w.choice([f"{x} * {s}", f"{s} * {x}"]))


def reduced(w: Writer) -> None:
    """A mean or maximum over some axes, joined with the tensor again."""
    x = w.pick()
    behind = tuple(range(2, 2 + x.dim))
    axis = w.choice([-1, 2, behind, (1, *behind), 0, behind[::-1]])
    op = w.choice(["mean", "amax", "everything"])
    if op == "everything":
        w.run("mean of all", w.choice([f"{x} - {x}.mean()", f"{x} / (1 + {x}.abs().mean())"]))
        return
    forms = [call(f"{x}.{op}", axis, keepdim=True), call(f"torch.{op}", x, axis, keepdim=True)]
    s = w.run(f"{op} keepdim", w.choice([*forms, call(f"{x}.{op}", dim=axis, keepdim=True)]), hidden=True)
    if w.chance(20):
        s = w.run("add", f"{s} + {x}.amin(1, keepdim=True)", hidden=True)
    joined = w.choice(["{x} + {s}", "{s} + {x}", "{x} - {s}", "{x} * {s}"])
    w.run({"+": "add", "-": "sub", "*": "mul"}[joined[4]], joined.format(x=x, s=s))
