"""Layers of random networks, which their moves build on: convolutions, BatchNorms, activations."""

from random_program import Var, Writer, call

ACTIVATIONS: dict[str, list[str]] = {  # {x}: a function or method; else a module
    "ReLU": ["F.relu({x})", "nn.ReLU()", "torch.relu({x})", "{x}.relu()", "F.relu(input={x})"],
    "ReLU6": ["nn.ReLU6()", "F.relu6({x})"],
    "LeakyReLU": ["nn.LeakyReLU(0.2)", "F.leaky_relu({x}, 0.1)", "F.leaky_relu({x}, negative_slope=0.3)"],
    "SiLU": ["nn.SiLU()", "F.silu({x})"],
    "GELU": ["nn.GELU()", "F.gelu({x}, approximate='tanh')"],
    "Hardswish": ["nn.Hardswish()", "F.hardswish({x})"],
    "Sigmoid": ["torch.sigmoid({x})", "nn.Sigmoid()", "F.sigmoid({x})", "{x}.sigmoid()"],
    "Hardsigmoid": ["F.hardsigmoid({x})", "nn.Hardsigmoid()"],
    "Tanh": ["torch.tanh({x})", "nn.Tanh()", "F.tanh({x})", "{x}.tanh()"],
    "ELU": ["F.elu({x})", "nn.ELU(0.7)", "nn.CELU(0.5)", "nn.SELU()"],
    "Softplus": ["nn.Softplus(beta=2)", "F.softplus({x})", "nn.LogSigmoid()", "F.softsign({x})"],
    "shrink": ["nn.Softshrink(0.2)", "nn.Tanhshrink()", "nn.Threshold(0.1, 2.0)", "nn.Hardshrink(0.3)"],
    "Mish": ["nn.Mish()", "F.mish({x})"],
    "Hardtanh": ["nn.Hardtanh(-0.5, 2.0)", "F.hardtanh({x})"],
    "in-place": [
        *("F.relu({x}, inplace=True)", "nn.ReLU(inplace=True)", "F.relu_({x})", "{x}.relu_()"),
        *("nn.SiLU(inplace=True)", "F.leaky_relu_({x}, 0.1)", "nn.Hardswish(inplace=True)", "{x}.mul_(2)"),
    ],
}


def conv(w: Writer, x: Var, width: int = 0, keep: bool = False, groups: int = 1, hidden: bool = False) -> Var:
    """`keep`: the image size stays. A width of 0: any."""
    geometry = _kept_window(w, x) if keep else _window(w, x)
    for label in [*_labels(geometry), *(["grouped"] if groups > 1 else [])]:
        w.count(label)
    width = width or groups * w.choice([2, 4, 3, 1, 6, 8][: 6 if groups == 1 else 3])
    kernel = geometry.pop("kernel")
    options = {**geometry, "groups": groups, "bias": not w.chance(50)}
    layer = w.layer("conv", call(f"nn.Conv{x.dim}d", x.channels, width, kernel, **options))
    w.zero_weights(layer, width, x.channels // groups)
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
    if padding == 0 and w.chance(15):
        return {**window, "padding": "valid"}
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


def linear(w: Writer, x: Var, width: int, bias: bool | None = None) -> Var:
    bias = not w.chance(20) if bias is None else bias
    layer = w.layer("linear", call("nn.Linear", x.channels, width, bias=bias))
    w.zero_weights(layer, width, x.channels)
    return w.run("Linear", f"{layer}({x})", hidden=True)


def norm(w: Writer, x: Var, hidden: bool = False, whole: bool = True) -> Var:
    """`whole`: it may lose every channel."""
    kinds = ["plain"] * 9 + ["no scale", "frozen"]
    if x.pixels > 1:  # else there may be one value per channel, which torch refuses
        kinds.append("no statistics")
    kind = w.choice(kinds)
    options = {"affine": kind != "no scale", "track_running_stats": kind != "no statistics"}
    layer = w.layer("norm", call(f"nn.BatchNorm{x.dim or 1}d", x.channels, **options))
    if kind != "no scale":
        w.zero_scales(layer, whole)
    if kind == "frozen":
        w.freeze(layer)
    if kind != "plain":
        w.count(f"BatchNorm {kind}")
    return w.run(f"BatchNorm{x.dim or 1}d", f"{layer}({x})", hidden)


def activation(w: Writer, x: Var, hidden: bool = False, fresh: bool = False) -> Var:
    """`fresh`: nobody else has read `x`, so that it may be written into."""
    kinds = [kind for kind in ACTIVATIONS if fresh or kind != "in-place"]
    name = w.choice([*["ReLU"] * 5, *kinds])  # as most networks do; makes constants exactly 0
    y = expressed(w, name, w.choice(ACTIVATIONS[name]), x, hidden)
    if name == "in-place":
        w.forget(x)
    return y


def expressed(w: Writer, op: str, form: str, x: Var, hidden: bool = False) -> Var:
    """A `form` in {x}, or the constructor of a module."""
    code = form.format(x=x, c=x.channels, d=x.dim, ones=", 1" * x.dim)
    return w.run(op, code, hidden) if "{x}" in form else w.apply(op, "f", code, x, hidden)


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
