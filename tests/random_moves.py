"""Moves of random networks: each picks a tensor and goes on from there, by an operation of every kind."""

from collections.abc import Callable

from random_joins import (
    concatenate,
    concatenate_images,
    join,
    reduced,
    residual,
    siamese,
    spatial_attention,
    squeeze_excite,
)
from random_layers import ACTIVATIONS, activation, conv, even, expressed, finish, norm
from random_program import Writer, call

JOINS = ("add", "cat", "mul")
_SCALARS = [
    *(
        "2 * {x}",
        "1 - {x}",
        "{x} / 3",
        "-{x}",
        "{x} + 0.5",
        "{x} - 0.25",
        "{x} ** 2",
        "0.5 + {x}",
        "{x} * -1.5",
    ),
    *("torch.clamp({x}, -1, 2)", "{x}.clamp(min=0.1)", "torch.add({x}, 1)", "{x}.mul(0.5)", "torch.abs({x})"),
    *("torch.square({x})", "{x}.neg()", "torch.sub({x}, 1)", "{x}.div(2)", "{x}.pow(3) / 4"),
    *("torch.exp(-{x}.abs())", "torch.sqrt({x}.abs() + 0.1)", "torch.log({x} ** 2 + 1)"),
    *("{x} / {x}.size(1)", "{x} * {x}.shape[-1] ** -0.5", "torch.mul(input={x}, other=3)"),
]
_UNKNOWN = [
    *(
        "{x}.flip(1)",
        "torch.softmax({x}, 1)",
        "{x}.roll(1, 1)",
        "F.normalize({x}, eps=0.1)",
        "{x}.sort(1)[0]",
    ),
    *("nn.GroupNorm(1, {c})", "nn.GroupNorm({c}, {c})", "nn.InstanceNorm{d}d({c})", "torch.cumsum({x}, 1)"),
    *("{x}.flatten(2).view_as({x})", "torch.softmax({x}.flatten(2), -1).view_as({x})"),
    *("torch.repeat_interleave({x}, 2, 1)", "{x}.repeat(1, 2{ones})", "torch.max({x}, 1, keepdim=True)[0]"),
    *("F.max_pool{d}d({x}, 1, return_indices=True)[0]", "{x}.max(-1, keepdim=True).values"),
    *("F.local_response_norm({x}, 3)", "{x}.unbind(1)[0].unsqueeze(1)", "{x}.mean(0, True).expand_as({x})"),
]


def chain(w: Writer) -> None:
    finish(w, conv(w, w.pick()))


def sequential(w: Writer) -> None:
    """Layers inside a container."""
    x, width = w.pick(), w.choice([4, 2, 6])
    conv1 = call(f"nn.Conv{x.dim}d", x.channels, width, 3, padding=1, bias=not w.chance(50))
    norm1 = f"nn.BatchNorm{x.dim}d({width})"
    block = w.layer("block", f"nn.Sequential({conv1}, {norm1}, {w.choice(['nn.ReLU()', 'nn.SiLU()'])})")
    w.zero_scales(f"{block}[1]")
    w.run("Sequential", f"{block}({x})")


def preact(w: Writer) -> None:
    x = norm(w, w.pick())
    conv(w, activation(w, x, fresh=True))


def depthwise(w: Writer) -> None:
    x = w.pick()
    multiplier = w.choice([1, 2])
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
    stride = w.choice([1, 2]) if x.largest <= 12 else 1
    kernel = w.choice([3, 2, 4, 1])
    padding = w.choice([0, 1]) if kernel + stride * (x.least - 1) > 2 else 0
    window = {"stride": stride, "padding": padding, "output_padding": w.choice([0, 1]) if stride > 1 else 0}
    width = groups * w.choice([2, 3, 1])
    options = {**window, "groups": groups, "bias": not w.chance(50)}
    layer = w.layer("up", call(f"nn.ConvTranspose{x.dim}d", x.channels, width, kernel, **options))
    w.zero_weights(layer, x.channels, width // groups)
    for label in [label for label, there in (("strided", stride > 1), ("grouped", groups > 1)) if there]:
        w.count(f"ConvTranspose {label}")
    finish(w, w.run("ConvTranspose", f"{layer}({x})"))


def split(w: Writer) -> None:
    x = even(w, w.pick())
    half = x.channels // 2
    rest = [w.integer(1, x.channels - 1)]
    rest.append(x.channels - rest[0])
    forms = ["torch.chunk({x}, 2, 1)", "{x}.chunk(2, dim=1)", "{x}.split({half}, 1)", "{x}.split({rest}, 1)"]
    form = w.choice([*forms, "torch.split({x}, {rest}, dim=1)", "{x}.tensor_split(2, dim=1)"])
    a, b = w.run_many("split", form.format(x=x, half=half, rest=rest), 2)
    if w.chance(70):
        a = finish(w, conv(w, a, keep=True))
        w.run("cat", call("torch.cat", w.choice([[a, b], [b, a]]), 1))


def cut(w: Writer) -> None:
    x = w.pick()
    at = w.integer(1, x.channels - 1) if x.channels > 1 else 1
    forms = [f"{x}[:, :{at}]", f"{x}[:, -{at}:]", f"{x}[:, ::2]", f"{x}[:, :, ...]"]
    forms += [f"{x}[:, [0, -1]]", f"{x}[:, 0].unsqueeze(1)", f"{x}.select(1, {at - 1}).unsqueeze(1)"]
    if x.channels > at:
        forms += [f"{x}[:, {at}:]", f"{x}.narrow(1, {at}, 1)", f"{x}[:, {at}:, :]"]
    w.run("slice", w.choice(forms))


def cut_image(w: Writer) -> None:
    x = w.pick()
    if x.least < 2:
        return
    axis = w.choice(range(2, 2 + x.dim))
    if w.chance(50):
        w.run_many(
            "split spatial", w.choice([call("torch.chunk", x, 2, axis), f"{x}.chunk(2, dim={axis})"]), 2
        )
    else:
        colons = ":, " * axis
        w.run("slice spatial", w.choice([f"{x}[{colons}1:]", f"{x}[..., :-1]", f"{x}[{colons}::2]"]))


def shuffle(w: Writer) -> None:
    x = even(w, w.pick())
    groups = w.choice([g for g in (2, 4, 3) if x.channels % g == 0])
    if w.chance(45):
        w.apply("ChannelShuffle", "shuffle", f"nn.ChannelShuffle({groups})", x)
        return
    n, c, *sizes = names = [w.fresh(letter) for letter in "nchwd"[: 2 + x.dim]]
    if w.chance(50):
        w.assign(", ".join(names), f"{x}.size()")
    else:
        w.assign(", ".join(names), ", ".join(f"{x}.shape[{i}]" for i in range(len(names))))
    view = "view" if x.contiguous else "reshape"
    y = w.run(
        "channel shuffle", f"{x}.{view}({n}, {groups}, {c} // {groups}, {', '.join(sizes)})", hidden=True
    )
    y = w.run(
        "channel shuffle", w.choice([f"{y}.transpose(1, 2)", f"torch.transpose({y}, 1, 2)"]), hidden=True
    )
    w.run("channel shuffle", f"{y}.contiguous().view({n}, {w.choice(['-1', c])}, {', '.join(sizes)})")


def pixel_shuffle(w: Writer) -> None:
    x = w.pick()
    if x.dim == 2 and x.largest <= 8:
        x = even(w, x, 4)
        expressed(w, "pixel_shuffle", w.choice(["F.pixel_shuffle({x}, 2)", "nn.PixelShuffle(2)"]), x)


def pixel_unshuffle(w: Writer) -> None:
    x = w.pick()
    if x.dim == 2:
        if any(n % 2 for size in x.sizes for n in size):
            x = w.run("adaptive pool", call("F.adaptive_avg_pool2d", x, 4))
        if x.channels > 6:
            x = conv(w, x, w.choice([2, 3]), keep=True)
        expressed(w, "pixel_unshuffle", w.choice(["F.pixel_unshuffle({x}, 2)", "nn.PixelUnshuffle(2)"]), x)


def pad(w: Writer) -> None:
    x = w.pick()
    amounts = [w.choice([1, 0, 2]) for _ in range(2 * x.dim)]
    modes: list[dict[str, object]] = [{}, {"value": 1.0}, {"mode": "replicate"}]
    if x.least > 2:
        modes += [{"mode": "reflect"}, {"mode": "circular"}] * 2
    mode = w.choice(modes)
    w.count(f"pad {mode.get('mode', mode.get('value', 'zeros'))}")
    if w.chance(25) and mode != {"mode": "circular"}:
        kind = {"replicate": "ReplicationPad", "reflect": "ReflectionPad"}.get(
            str(mode.get("mode")), "ConstantPad"
        )
        value = [mode.get("value", 0.0)] if kind == "ConstantPad" else []
        w.apply("pad", "pad", call(f"nn.{kind}{x.dim}d", tuple(amounts), *value), x)
    else:
        w.run("pad", call("F.pad", x, tuple(amounts), **mode))


def pool(w: Writer) -> None:
    x = w.pick()
    if x.least < 2:
        return
    kernel = w.choice([2, 3] if x.least > 2 else [2])
    window: dict[str, object] = {
        "stride": w.choice([2, 1]),
        "padding": w.choice([0, 1]),
        "ceil_mode": w.chance(30),
    }
    kind = w.choice(["avg", "max"])
    if kind == "avg":
        window["count_include_pad"] = not w.chance(50)
        window["divisor_override"] = w.choice([None, None, None, 3]) if x.dim > 1 else None
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
    smooth = [["linear"], ["bilinear", "bicubic"], ["trilinear"]][x.dim - 1]
    mode = w.choice(["nearest", smooth[0], smooth[-1], "nearest-exact", "area"])
    options: dict[str, object] = {"mode": mode}
    if mode in smooth:
        options["align_corners"] = w.chance(50)
    w.count("interpolate linear" if mode in smooth else "interpolate nearest")
    others = [t for t in w.tensors if t.sizes != x.sizes]
    if others and w.chance(50):  # as feature pyramids do
        other = w.choice(others[::-1])
        keywords = ", ".join(f"{key}={value!r}" for key, value in options.items())
        x = w.run("interpolate", f"F.interpolate({x}, size={other}.shape[2:], {keywords})")
        if x.channels == other.channels:
            w.run("add", f"{x} + {other}")
    elif x.largest > 8 and x.least > 1:
        w.run("interpolate", call("F.interpolate", x, scale_factor=0.5, **options))
    elif w.chance(50):
        w.apply("interpolate", "up", call("nn.Upsample", scale_factor=2, **options), x)
    else:
        w.run("interpolate", call("F.interpolate", x, scale_factor=2, **options))


def prelu(w: Writer) -> None:
    x = w.pick()
    w.apply("PReLU", "prelu", w.choice([f"nn.PReLU({x.channels})", "nn.PReLU()"]), x)


def scalar(w: Writer) -> None:
    expressed(w, "scalar", w.choice(_SCALARS), w.pick())


def parameter(w: Writer) -> None:
    x = w.pick()
    ones = [1] * x.dim
    size = w.choice([[1, x.channels, *ones], [x.channels, *ones], [1, 1, *ones], []])
    if w.chance(50):
        w.run("parameter scale", f"{x} * {w.parameter('scale', *size)}")
    else:
        w.run("parameter bias", f"{x} + {w.parameter('bias', *size)}")


def identity(w: Writer) -> None:
    x = w.pick()
    form = w.choice(["nn.Identity()", "{x}.contiguous()", "{x}.clone()", "{x}.detach()", "{x}.double()"])
    expressed(w, "identity", form, x)


def turn(w: Writer) -> None:
    x = w.pick()
    if x.dim > 1:
        axes = (0, 1, 3, 2, 4)[: 2 + x.dim]
        forms = [f"{x}.transpose(2, 3)", f"{x}.permute{axes}", f"torch.transpose({x}, -1, -2)"]
        w.run("transpose", w.choice([*forms, f"{x}.transpose(dim0=2, dim1=3)"]))


def channels_last(w: Writer) -> None:
    """A matrix product over the channels, which are moved to the end and back."""
    x = w.pick()
    width = w.choice([3, x.channels])
    layer = w.layer("linear", w.choice([f"nn.Linear({x.channels}, {width})", f"nn.LayerNorm({x.channels})"]))
    behind = range(2, 2 + x.dim)
    y = w.run("channels last", f"{x}.permute{(0, *behind, 1)}", hidden=True)
    y = w.run("channels last", f"{layer}({y})", hidden=True)
    w.run("channels last", f"{y}.permute{(0, 1 + x.dim, *range(1, 1 + x.dim))}")


def unknown(w: Writer) -> None:
    x = w.pick()
    forms = [form for form in _UNKNOWN if x.pixels > 1 or "Norm" not in form]  # it refuses lone numbers
    expressed(w, "unknown", w.choice(forms), x)


def dropout(w: Writer) -> None:
    w.trains = False
    forms = [
        "nn.Dropout(0.3)",
        "nn.Dropout{d}d(0.2)",
        "F.dropout({x}, 0.5, self.training)",
        "nn.AlphaDropout()",
    ]
    expressed(w, "dropout", w.choice(forms), w.pick())


def twice(w: Writer) -> None:
    """A convolution and a BatchNorm called twice, on the way or on two tensors; under one name or two."""
    x = w.pick()
    constructor = call(f"nn.Conv{x.dim}d", x.channels, x.channels, 3, padding=1, bias=not w.chance(50))
    layer = w.layer("shared", constructor)
    scale = w.layer("norm", f"nn.BatchNorm{x.dim}d({x.channels})")
    w.zero_scales(scale)
    first = w.run("shared", f"{scale}({layer}({x}))")
    alike = [t for t in w.tensors if t.channels == x.channels]  # of any image size
    second = activation(w, first, fresh=True) if w.chance(60) else w.choice(alike)
    how = w.choice(["same", "alias", "tied"])
    if how == "alias":
        layer = w.layer("alias", layer)
    elif how == "tied":
        other = w.layer("tied", constructor)
        w.set_up(f"{other}.weight = {layer}.weight")
        layer = other
    w.run("shared", f"{scale}({layer}({second}))")


def functional(w: Writer) -> None:
    """A convolution with a bare parameter."""
    x = w.pick()
    w.run("F.conv", f"F.conv{x.dim}d({x}, {w.parameter('kernel', 3, x.channels, *[1] * x.dim)})")


MOVES: list[tuple[int, Callable[[Writer], None]]] = [
    *[(8, chain), (4, preact), (5, residual), (11, join), (4, concatenate), (4, depthwise), (4, grouped)],
    *[(5, transposed), (4, split), (3, cut), (5, cut_image), (5, shuffle), (4, pixel_shuffle), (9, pad)],
    *[(8, pool), (2, adaptive_pool), (4, interpolate), (6, squeeze_excite), (3, spatial_attention)],
    *[(4, reduced), (2, prelu), (3, scalar), (4, parameter), (2, identity), (2, turn), (2, unknown)],
    *[(2, dropout), (4, twice), (3, pixel_unshuffle), (2, concatenate_images), (2, siamese)],
    *[(2, sequential), (2, channels_last), (2, functional)],
]
# What the statistics count: operations, and the arguments that rules tell apart.
OPERATIONS = {
    *("Conv1d", "Conv2d", "Conv3d", "stride", "dilation", "padding same", "padding (1, 0)", "grouped"),
    *("padding reflect", "padding replicate", "padding circular", "depthwise x1", "depthwise x2", "shared"),
    *("ConvTranspose", "ConvTranspose strided", "ConvTranspose grouped", "Linear", "dropout", "identity"),
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"),
    *("BatchNorm no scale", "BatchNorm no statistics", "BatchNorm frozen", "PReLU", "scalar", *ACTIVATIONS),
    *("add", "sub", "mul", "div", "maximum", "parameter scale", "parameter bias", "cat", "cat spatial"),
    *("squeeze-excite", "spatial attention", "mean", "amax", "amin", "mean keepdim", "amax keepdim"),
    *("split", "slice", "split spatial", "slice spatial", "channel shuffle", "ChannelShuffle", "transpose"),
    *("pixel_shuffle", "pixel_unshuffle", "interpolate", "interpolate nearest", "interpolate linear"),
    *("pad", "pad zeros", "pad 1.0", "pad reflect", "pad replicate", "pad circular"),
    *("avg pool", "avg pool padded", "max pool", "max pool padded", "adaptive pool"),
    *("flatten", "flatten(2)", "view", "squeeze", "unsqueeze", "unknown", "two inputs", "two outputs"),
    *("cat of the head", "cat batch", "split batch", "Sequential", "channels last", "F.conv", "other joins"),
    "mean of all",
}
