"""Every operation that pruning knows, and some that it does not, as moves of a random network's writer."""

from collections.abc import Callable

from random_program import Var, Writer, call

JOINS = ("add", "cat", "mul")
_ACTIVATIONS: dict[str, list[str]] = {  # {x}: a function or method; else a module
    "ReLU": ["F.relu({x})", "nn.ReLU()", "torch.relu({x})", "{x}.relu()"],
    "ReLU6": ["nn.ReLU6()", "F.relu6({x})"],
    "LeakyReLU": ["nn.LeakyReLU(0.2)", "F.leaky_relu({x}, 0.1)", "F.leaky_relu({x}, negative_slope=0.3)"],
    "SiLU": ["nn.SiLU()", "F.silu({x})"],
    "GELU": ["nn.GELU()", "F.gelu({x}, approximate='tanh')"],
    "Hardswish": ["nn.Hardswish()", "F.hardswish({x})"],
    "Sigmoid": ["torch.sigmoid({x})", "nn.Sigmoid()", "F.sigmoid({x})", "{x}.sigmoid()"],
    "Hardsigmoid": ["F.hardsigmoid({x})", "nn.Hardsigmoid()"],
    "Tanh": ["torch.tanh({x})", "nn.Tanh()", "F.tanh({x})", "{x}.tanh()"],
    "ELU": ["F.elu({x})", "nn.ELU(0.7)", "nn.CELU(0.5)", "nn.SELU()"],
    "Softplus": ["nn.Softplus(beta=2)", "F.softplus({x})"],
    "Mish": ["nn.Mish()", "F.mish({x})"],
    "Hardtanh": ["nn.Hardtanh(-0.5, 2.0)", "F.hardtanh({x})"],
    "in-place": [
        *("F.relu({x}, inplace=True)", "nn.ReLU(inplace=True)", "F.relu_({x})", "{x}.relu_()"),
        *("nn.SiLU(inplace=True)", "F.leaky_relu_({x}, 0.1)", "nn.Hardswish(inplace=True)", "{x}.mul_(2)"),
    ],
}
_SCALARS = [
    *("2 * {x}", "1 - {x}", "{x} / 3", "-{x}", "{x} + 0.5", "{x} - 0.25", "{x} ** 2", "0.5 + {x}", "{x} * -1.5"),
    *("torch.clamp({x}, -1, 2)", "{x}.clamp(min=0.1)", "torch.add({x}, 1)", "{x}.mul(0.5)", "torch.abs({x})"),
    *("torch.square({x})", "{x}.neg()", "torch.sub(1, {x})", "{x}.div(2)", "{x}.pow(3) / 4"),
]
_UNKNOWN = [
    *("{x}.flip(1)", "torch.softmax({x}, 1)", "{x}.roll(1, 1)", "F.normalize({x}, dim=1)", "{x}.sort(1)[0]"),
    *("nn.GroupNorm(1, {c})", "nn.GroupNorm({c}, {c})", "torch.cumsum({x}, 1)", "{x}.flatten(2).view_as({x})"),
]


# Layers.


def conv(w: Writer, x: Var, width: int = 0, keep: bool = False, groups: int = 1, hidden: bool = False) -> Var:
    """`keep`: the image size stays. A width of 0: any."""
    geometry = _kept_window(w, x) if keep else _window(w, x)
    for label in [*_labels(geometry), *(["grouped"] if groups > 1 else [])]:
        w.count(label)
    width = width or groups * w.choice([2, 4, 3, 1, 6, 8][: 6 if groups == 1 else 3])
    kernel = geometry.pop("kernel")
    options = {**geometry, "groups": groups, "bias": w.chance(50)}
    layer = w.layer("conv", call(f"nn.Conv{x.dim}d", x.channels, width, kernel, **options))
    w.zero_filters(layer, width, x.channels // groups)
    return w.run(f"Conv{x.dim}d", f"{layer}({x})", hidden)


def _labels(geometry: dict[str, object]) -> list[str]:
    found = []
    if geometry.get("padding") == "same":
        found.append("padding same")
    if isinstance(geometry.get("padding"), tuple):
        found.append("padding (1, 0)")
    if geometry.get("dilation", 1) != 1:
        found.append("dilation")
    if geometry.get("stride", 1) != 1:
        found.append("stride")
    if geometry.get("padding_mode", "zeros") != "zeros":
        found.append(f"padding {geometry['padding_mode']}")
    return found


def _window(w: Writer, x: Var) -> dict[str, object]:
    """Kernel, stride, padding and so on that fit into both images."""
    kernel, dilation = w.choice([3, 1, 3, 5, 2]), w.choice([1, 1, 1, 1, 2])
    padding = w.choice([0, 1, 1, 2])
    if dilation * (kernel - 1) + 1 > x.least + 2 * padding:
        return {"kernel": 1, "stride": w.choice([1, 2])}
    window: dict[str, object] = {"kernel": kernel, "stride": w.choice([1, 1, 2]), "dilation": dilation}
    if padding == 1 and x.dim > 1 and w.chance(50) and dilation * (kernel - 1) + 1 <= x.least:
        return {**window, "padding": (1, *[0] * (x.dim - 1))}
    return {**window, "padding": padding, "padding_mode": _mode(w, x, padding)}


def _kept_window(w: Writer, x: Var) -> dict[str, object]:
    kernel, dilation = w.choice([3, 1, 3, 3, 5]), w.choice([1, 1, 1, 1, 2])
    padding = dilation * (kernel - 1) // 2
    window: dict[str, object] = {"kernel": kernel, "dilation": dilation, "padding": padding}
    if w.chance(20) and x.dim > 1:
        other = [1] * (x.dim - 1)
        return {"kernel": (3, *other), "padding": (1, *[0] * (x.dim - 1))}
    if w.chance(25):
        window["padding"] = "same"
    return {**window, "padding_mode": _mode(w, x, padding)}


def _mode(w: Writer, x: Var, padding: int) -> str:
    modes = ["zeros"] * 5 + ["replicate"]
    if padding < x.least:
        modes += ["reflect", "circular"]
    return w.choice(modes) if padding else "zeros"


def depthwise(w: Writer) -> None:
    x = w.pick()
    multiplier = w.choice([1, 1, 2])
    w.count(f"depthwise x{multiplier}")
    x = conv(w, x, x.channels * multiplier, w.chance(50), x.channels)
    finish(w, x)


def grouped(w: Writer) -> None:
    x = even(w, w.pick())
    groups = w.choice([g for g in (2, 4, 3) if x.channels % g == 0])
    finish(w, conv(w, x, 0, w.chance(50), groups))


def transposed(w: Writer) -> None:
    x = w.pick()
    groups = w.choice([g for g in (1, 1, 2, 4) if x.channels % g == 0])
    stride = w.choice([1, 2]) if x.largest <= 8 else 1
    kernel = w.choice([3, 2, 4, 1])
    padding = w.choice([0, 1]) if kernel + stride * (x.least - 1) > 2 else 0
    window = {"stride": stride, "padding": padding, "output_padding": w.choice([0, 1]) if stride > 1 else 0}
    width = groups * w.choice([2, 3, 1])
    options = {**window, "groups": groups, "bias": w.chance(50)}
    layer = w.layer("up", call(f"nn.ConvTranspose{x.dim}d", x.channels, width, kernel, **options))
    w.zero_filters(layer, x.channels, width // groups)
    for label in [label for label, there in (("strided", stride > 1), ("grouped", groups > 1)) if there]:
        w.count(f"ConvTranspose {label}")
    finish(w, w.run("ConvTranspose", f"{layer}({x})"))


def norm(w: Writer, x: Var, hidden: bool = False) -> Var:
    kind = w.choice(["plain"] * 9 + ["no scale", "no statistics", "frozen"])
    options = {"affine": kind != "no scale", "track_running_stats": kind != "no statistics"}
    layer = w.layer("norm", call(f"nn.BatchNorm{x.dim or 1}d", x.channels, **options))
    if kind != "no scale":
        w.zero_scales(layer)
    if kind == "frozen":
        w.freeze(layer)
    if kind != "plain":
        w.count(f"BatchNorm {kind}")
    return w.run(f"BatchNorm{x.dim or 1}d", f"{layer}({x})", hidden)


def activation(w: Writer, x: Var, hidden: bool = False, fresh: bool = False) -> Var:
    """`fresh`: nobody else has read `x`, so that it may be written into."""
    name = w.choice([kind for kind in _ACTIVATIONS if fresh or kind != "in-place"])
    y = _expressed(w, name, w.choice(_ACTIVATIONS[name]), x, hidden)
    if name == "in-place":
        w.forget(x)
    return y


def _expressed(w: Writer, op: str, form: str, x: Var, hidden: bool = False) -> Var:
    if "{x}" not in form:
        return w.apply(op, "f", form.format(c=x.channels), x, hidden)
    return w.run(op, form.format(x=x), hidden)


def finish(w: Writer, x: Var) -> Var:
    """Usually a BatchNorm and an activation behind a layer."""
    if w.chance(15):
        return x
    x = norm(w, x)
    return x if w.chance(30) else activation(w, x, fresh=True)


def even(w: Writer, x: Var, multiple: int = 2) -> Var:
    """`x`, or else a convolution of it, with a multiple of so many channels."""
    if x.channels % multiple == 0:
        return x
    return finish(w, conv(w, x, multiple * w.choice([1, 2]), keep=True))


# Moves: each picks a tensor and goes on from there.


def chain(w: Writer) -> None:
    finish(w, conv(w, w.pick()))


def preact(w: Writer) -> None:
    x = norm(w, w.pick())
    conv(w, activation(w, x, fresh=True))


def residual(w: Writer) -> None:
    x = w.pick()
    y = conv(w, x, x.channels, keep=True)
    y = norm(w, y) if w.chance(70) else y
    y = w.run("add", w.choice(["{y} + {x}", "{x} + {y}", "torch.add({x}, {y})", "{y}.add_({x})"]).format(x=x, y=y))
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
        "add": ["{x} + {y}", "torch.add({y}, {x})", "{x}.add({y})", "torch.add({x}, {y}, alpha=2)"],
        "mul": ["{x} * {y}", "torch.mul({x}, {y})", "{y}.mul({x})"],
        "sub": ["{x} - {y}", "torch.sub({y}, {x})", "{x}.sub({y})"],
        "maximum": ["torch.maximum({x}, {y})", "torch.max({y}, {x})", "torch.minimum({x}, {y})"],
    }
    op = w.choice(list(forms))
    z = w.run(op, w.choice(forms[op]).format(x=x, y=y))
    if w.chance(30):
        activation(w, z)


def concatenate(w: Writer) -> None:
    x = w.pick()
    if w.chance(30):
        axis = w.choice(range(2, 2 + x.dim))
        if x.largest <= 12:
            w.run("cat spatial", call("torch.cat", [x, partner(w, x)], axis))
        return
    others = w.like(x, channels=False)
    y = w.choice(others) if others else finish(w, conv(w, x, keep=True))
    parts = [x, y] if w.chance(80) else [y, x, x]
    form = w.choice(["torch.cat({p}, 1)", "torch.cat({p}, dim=1)", "torch.concat({p}, 1)", "torch.cat({t}, 1)"])
    if sum(part.channels for part in parts) <= 24:
        finish(w, w.run("cat", form.format(p=parts, t=tuple(parts))))


def split(w: Writer) -> None:
    x = even(w, w.pick())
    half = x.channels // 2
    rest = [w.integer(1, x.channels - 1)]
    rest.append(x.channels - rest[0])
    form = w.choice(["torch.chunk({x}, 2, 1)", "{x}.chunk(2, dim=1)", "{x}.split({half}, 1)", "{x}.split({rest}, 1)"])
    a, b = w.run_many("split", form.format(x=x, half=half, rest=rest), 2)
    if w.chance(70):
        a = finish(w, conv(w, a, keep=True))
        w.run("cat", call("torch.cat", w.choice([[a, b], [b, a]]), 1))


def cut(w: Writer) -> None:
    x = w.pick()
    at = w.integer(1, x.channels - 1) if x.channels > 1 else 1
    forms = [f"{x}[:, :{at}]", f"{x}[:, -{at}:]", f"{x}[:, ::2]", f"{x}[:, :, ...]"]
    if x.channels > at:
        forms += [f"{x}[:, {at}:]", f"{x}.narrow(1, {at}, 1)", f"{x}[:, {at}:, :]"]
    w.run("slice", w.choice(forms))


def cut_image(w: Writer) -> None:
    x = w.pick()
    if x.least < 2:
        return
    axis = w.choice(range(2, 2 + x.dim))
    if w.chance(50):
        w.run_many("split spatial", w.choice([call("torch.chunk", x, 2, axis), f"{x}.chunk(2, dim={axis})"]), 2)
    else:
        colons = ":, " * axis
        w.run("slice spatial", w.choice([f"{x}[{colons}1:]", f"{x}[..., :-1]", f"{x}[{colons}::2]"]))


def shuffle(w: Writer) -> None:
    x = even(w, w.pick())
    groups = w.choice([g for g in (2, 4, 3) if x.channels % g == 0])
    if w.chance(30):
        w.apply("ChannelShuffle", "shuffle", f"nn.ChannelShuffle({groups})", x)
        return
    n, c, *sizes = names = [w.fresh(letter) for letter in "nchwd"[: 2 + x.dim]]
    if w.chance(50):
        w.assign(", ".join(names), f"{x}.size()")
    else:
        w.assign(", ".join(names), ", ".join(f"{x}.shape[{i}]" for i in range(len(names))))
    view = "view" if x.contiguous else "reshape"
    y = w.run("channel shuffle", f"{x}.{view}({n}, {groups}, {c} // {groups}, {', '.join(sizes)})", hidden=True)
    y = w.run("channel shuffle", w.choice([f"{y}.transpose(1, 2)", f"torch.transpose({y}, 1, 2)"]), hidden=True)
    w.run("channel shuffle", f"{y}.contiguous().view({n}, {w.choice(['-1', c])}, {', '.join(sizes)})")


def pixel_shuffle(w: Writer) -> None:
    x = w.pick()
    if x.dim == 2:
        if x.largest <= 8 and w.chance(60):
            x = even(w, x, 4)
            w.run("pixel_shuffle", w.choice([call("F.pixel_shuffle", x, 2), w.layer("ps", "nn.PixelShuffle(2)") + f"({x})"]))
        elif all(n % 2 == 0 for size in x.sizes for n in size) and x.channels <= 6:
            w.run("pixel_unshuffle", call("F.pixel_unshuffle", x, 2))


def pad(w: Writer) -> None:
    x = w.pick()
    amounts = [w.choice([1, 0, 2]) for _ in range(2 * x.dim)]
    modes: list[dict[str, object]] = [{}, {"value": 1.0}, {"mode": "replicate"}]
    if x.least > 2:
        modes += [{"mode": "reflect"}, {"mode": "circular"}]
    mode = w.choice(modes)
    w.count(f"pad {mode.get('mode', mode.get('value', 'zeros'))}")
    if w.chance(25) and mode != {"mode": "circular"}:
        kind = {"replicate": "ReplicationPad", "reflect": "ReflectionPad"}.get(str(mode.get("mode")), "ConstantPad")
        value = [mode.get("value", 0.0)] if kind == "ConstantPad" else []
        w.apply("pad", "pad", call(f"nn.{kind}{x.dim}d", tuple(amounts), *value), x)
    else:
        w.run("pad", call("F.pad", x, tuple(amounts), **mode))


def pool(w: Writer) -> None:
    x = w.pick()
    if x.least < 2:
        return
    kernel = w.choice([2, 3] if x.least > 2 else [2])
    window: dict[str, object] = {"stride": w.choice([2, 1]), "padding": w.choice([0, 1]), "ceil_mode": w.chance(30)}
    kind = w.choice(["avg", "max"])
    if kind == "avg":
        window["count_include_pad"] = w.chance(50)
    if window["padding"]:
        w.count(f"{kind} pool padded")
    if w.chance(50):
        w.run(f"{kind} pool", call(f"F.{kind}_pool{x.dim}d", x, kernel, **window))
    else:
        w.apply(f"{kind} pool", "pool", call(f"nn.{kind.title()}Pool{x.dim}d", kernel, **window), x)


def adaptive_pool(w: Writer) -> None:
    x = w.pick()
    kind, size = w.choice(["avg", "max"]), w.choice([2, 3, 1])
    if w.chance(50):
        w.run("adaptive pool", call(f"F.adaptive_{kind}_pool{x.dim}d", x, size))
    else:
        w.apply("adaptive pool", "pool", f"nn.Adaptive{kind.title()}Pool{x.dim}d({size})", x)


def interpolate(w: Writer) -> None:
    x = w.pick()
    mode = w.choice(["nearest", ["linear", "bilinear", "trilinear"][x.dim - 1]])
    options: dict[str, object] = {"mode": mode} if mode == "nearest" else {"mode": mode, "align_corners": w.chance(50)}
    w.count("interpolate " + ("nearest" if mode == "nearest" else "linear"))
    others = [t for t in w.tensors if t.sizes != x.sizes]
    if others and w.chance(50):  # as feature pyramids do
        other = w.choice(others[::-1])
        keywords = ", ".join(f"{key}={value!r}" for key, value in options.items())
        x = w.run("interpolate", f"F.interpolate({x}, size={other}.shape[2:], {keywords})")
        if x.channels == other.channels:
            w.run("add", f"{x} + {other}")
    elif x.largest > 8:
        w.run("interpolate", call("F.interpolate", x, scale_factor=0.5, **options))
    elif w.chance(50):
        w.apply("interpolate", "up", call("nn.Upsample", scale_factor=2, **options), x)
    else:
        w.run("interpolate", call("F.interpolate", x, scale_factor=2, **options))


# Attention.


def squeeze_excite(w: Writer) -> None:
    x = w.pick()
    width = w.choice([2, 1, 3])
    if w.chance(50):
        s = _gate_of_layers(w, x, width)
    else:
        s = _gate_of_features(w, x, width)
    w.count("squeeze-excite")
    w.run("mul", w.choice([f"{x} * {s}", f"{s} * {x}", f"{x} * {s}.expand_as({x})"]))


def _gate_of_layers(w: Writer, x: Var, width: int) -> Var:
    """1x1 convolutions of the pooled image."""
    axes = tuple(range(2, 2 + x.dim))
    if w.chance(50):
        s = w.run("mean keepdim", w.choice([f"{x}.mean({axes}, keepdim=True)", f"torch.mean({x}, {axes}, True)"]), True)
    else:
        s = w.apply("adaptive pool", "pool", f"nn.AdaptiveAvgPool{x.dim}d(1)", x, True)
    for out in (width, x.channels):
        layer = w.layer("gate", call(f"nn.Conv{x.dim}d", s.channels, out, 1))
        s = w.run(f"Conv{x.dim}d", f"{layer}({s})", True)
        if out == width and s.channels != x.channels and w.chance(30):
            s = norm(w, s, True)
        gate = w.choice(["Sigmoid", "Hardsigmoid"]) if out == x.channels else "ReLU"
        s = _expressed(w, gate, w.choice(_ACTIVATIONS[gate]), s, True)
    return s


def _gate_of_features(w: Writer, x: Var, width: int) -> Var:
    """Matrix products of the means, viewed as an image again."""
    s = w.run("mean", f"{x}.mean({tuple(range(2, 2 + x.dim))})", True)
    s = w.run("Linear", f"{w.layer('gate', call('nn.Linear', s.channels, width))}({s})", True)
    s = w.run("ReLU", f"F.relu({s})", True)
    s = w.run("Linear", f"{w.layer('gate', call('nn.Linear', width, x.channels))}({s})", True)
    s = w.run("Sigmoid", f"torch.sigmoid({s})", True)
    ones = ", 1" * x.dim
    form = w.choice(["view", "sizes", "none", "unsqueeze"])
    w.count(f"gate by {form}")
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
    s = w.run("mean keepdim", w.choice([f"{x}.mean(1, keepdim=True)", f"torch.mean({x}, dim=1, keepdim=True)"]), True)
    if w.chance(40):
        largest = w.run("amax keepdim", f"{x}.amax(1, keepdim=True)", True)
        s = w.run("cat", call("torch.cat", [s, largest], 1), True)
    if s.channels > 1 or w.chance(50):
        s = conv(w, s, 1, keep=True, hidden=True)
    s = w.run("Sigmoid", f"torch.sigmoid({s})", True)
    w.run("mul", w.choice([f"{x} * {s}", f"{s} * {x}"]))


def reduced(w: Writer) -> None:
    """A mean or maximum over some axis, joined with the tensor again."""
    x = w.pick()
    axis = w.choice([-1, 2, tuple(range(2, 2 + x.dim))])
    op = w.choice(["mean", "amax"])
    s = w.run(f"{op} keepdim", w.choice([call(f"{x}.{op}", axis, keepdim=True), call(f"torch.{op}", x, axis, keepdim=True)]), True)
    w.run("add", w.choice([f"{x} + {s}", f"{s} + {x}"])) if w.chance(50) else w.run("sub", f"{x} - {s}")


# Small ones.


def prelu(w: Writer) -> None:
    x = w.pick()
    w.apply("PReLU", "prelu", w.choice([f"nn.PReLU({x.channels})", "nn.PReLU()"]), x)


def scalar(w: Writer) -> None:
    _expressed(w, "scalar", w.choice(_SCALARS), w.pick())


def parameter(w: Writer) -> None:
    x = w.pick()
    size = [*w.choice([[1, x.channels], [x.channels]]), *[1] * x.dim]
    if w.chance(50):
        w.run("parameter scale", f"{x} * {w.parameter('scale', *size)}")
    else:
        w.run("parameter bias", f"{x} + {w.parameter('bias', *size)}")


def identity(w: Writer) -> None:
    x = w.pick()
    form = w.choice(["nn.Identity()", "{x}.contiguous()", "{x}.clone()"])
    _expressed(w, "identity", form, x)


def turn(w: Writer) -> None:
    x = w.pick()
    if x.dim > 1:
        axes = (0, 1, 3, 2, 4)[: 2 + x.dim]
        w.run("transpose", w.choice([f"{x}.transpose(2, 3)", f"{x}.permute{axes}", f"torch.transpose({x}, -1, -2)"]))


def unknown(w: Writer) -> None:
    _expressed(w, "unknown", w.choice(_UNKNOWN).replace("{c}", str(w.tensors[-1].channels)), w.tensors[-1])


def dropout(w: Writer) -> None:
    x = w.pick()
    w.trains = False
    _expressed(w, "dropout", w.choice(["nn.Dropout(0.3)", f"nn.Dropout{x.dim}d(0.2)", "F.dropout({x}, 0.5, self.training)"]), x)


def twice(w: Writer) -> None:
    """One convolution and BatchNorm, called one after the other or on two tensors."""
    x = w.pick()
    layer = w.layer("shared", call(f"nn.Conv{x.dim}d", x.channels, x.channels, 3, padding=1, bias=w.chance(50)))
    scale = w.layer("norm", f"nn.BatchNorm{x.dim}d({x.channels})")
    w.zero_scales(scale)
    first = w.run("shared", f"{scale}({layer}({x}))")
    second = activation(w, first, fresh=True) if w.chance(60) else partner(w, x)
    w.run("shared", f"{scale}({layer}({second}))")


MOVES: list[tuple[int, Callable[[Writer], None]]] = [
    *[(8, chain), (4, preact), (5, residual), (6, join), (4, concatenate), (3, depthwise), (3, grouped)],
    *[(4, transposed), (4, split), (2, cut), (4, cut_image), (4, shuffle), (4, pixel_shuffle), (5, pad)],
    *[(5, pool), (2, adaptive_pool), (4, interpolate), (4, squeeze_excite), (3, spatial_attention)],
    *[(3, reduced), (2, prelu), (3, scalar), (3, parameter), (2, identity), (2, turn), (1, unknown)],
    *[(1, dropout), (3, twice)],
]
