"""Tracing, out-of-place rewriting, and the layers that pruning inserts."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimfast.graph import GraphError, trace
from slimfast.nn import BorderConv2d, ChannelBias, ChannelPlace, ChannelSelect, ShapeCarrier


class Writes(nn.Module):
    """Every kind of writing into an input, and reading it afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.relu(y)
        z = z + y  # y was changed
        z += 1
        z.mul_(2)
        w = self.conv(z)
        self.relu(w)
        F.hardtanh(z, -3, 3, inplace=True)
        return torch.sigmoid_(w) - z


def test_trace_is_free_of_writes() -> None:
    model = Writes()
    x = torch.randn(2, 2, 3, 3)
    traced = trace(model, x)
    assert torch.equal(traced(x), model(x))
    names = {str(getattr(node.target, "__name__", node.target)) for node in traced.graph.nodes}
    assert not names & {"iadd", "mul_", "sigmoid_"}
    assert not traced.relu.inplace
    assert model.relu.inplace


def test_writes_that_cannot_be_followed() -> None:
    class Assigns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y[:, 0] = 0
            return y

    class ThroughView(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            flat = torch.flatten(y, 1)
            flat.relu_()
            return y

    class Fills(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 1).fill_(0)

    x = torch.randn(2, 2, 3, 3)
    for model, says in [
        (Assigns(), "Assigns.*item assignment"),
        (ThroughView(), "shares memory"),
        (Fills(), "fill_"),
    ]:
        with pytest.raises(GraphError, match=says) as caught:
            trace(model, x)
        assert "\n" not in str(caught.value)


def test_shapes_modes_and_statistics() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten())
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    traced = trace(model, torch.randn(2, 3, 9, 9))
    shapes = [node.meta["shape"] for node in traced.graph.nodes if node.op == "call_module"]
    assert shapes == [(2, 4, 4, 4), (2, 4, 4, 4), (2, 64)]
    assert all(torch.equal(tensor, before[key]) for key, tensor in traced.state_dict().items())
    assert [module.training for module in traced.children()] == [True, False, True]
    assert traced.get_submodule("0").weight is not model[0].weight


def test_dropout_follows_the_mode_whatever_mode_it_was_traced_in() -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(F.dropout2d(x, p=0.5, training=self.training), 0.5, self.training)

    class AlwaysDrops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x)

    x = torch.ones(4, 8, 5, 5)
    for mode in (False, True):
        traced = trace(Drops().train(mode), x)
        assert traced.training == mode
        assert torch.equal(traced.eval()(x), x)
        assert int((traced.train()(x) == 0).sum()) > 0
    assert int((trace(AlwaysDrops(), x).eval()(x) == 0).sum()) > 0


def test_what_cannot_be_traced() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(GraphError, match="cannot trace Branches"):
        trace(Branches(), torch.randn(2, 2))
    with pytest.raises(GraphError, match=r"Sequential fails on example_inputs of shape \[2, 5\]"):
        trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 5))
    with pytest.raises(GraphError, match="fails on example_inputs"):
        trace(nn.Sequential(nn.Linear(4, 4)), ())


def filled(conv: BorderConv2d) -> BorderConv2d:
    conv.border_weight.copy_(torch.randn_like(conv.border_weight))
    return conv.double()


@pytest.mark.parametrize(
    "arguments", [{"padding": 1}, {"padding": "same", "dilation": 2}, {"stride": 2, "padding": 2}]
)
@pytest.mark.parametrize("inputs", [0, 3])
def test_border_convolution(inputs: int, arguments: dict) -> None:
    conv = filled(BorderConv2d(inputs, 5, 3, **arguments))
    whole = nn.Conv2d(inputs + 1, 5, 3, **arguments).double()
    whole.weight.data = torch.cat([conv.weight.data, conv.border_weight], 1)
    whole.bias.data = conv.bias.data + 0.5
    conv.bias.data += 0.5
    for size in (6, 1, 6, 9):  # maps are kept per size
        x = torch.randn(2, inputs, size, size + 1, dtype=torch.float64)
        expected = whole(torch.cat([x, torch.ones(2, 1, size, size + 1, dtype=torch.float64)], 1))
        got = conv(x if inputs else torch.randn(2, 7, size, size + 1, dtype=torch.float64))
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_border_map_follows_its_weight() -> None:
    conv, x = filled(BorderConv2d(2, 3, 3, padding=1)), torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    first = conv(x).detach()
    conv.border_weight *= 2
    conv.bias.data *= 2
    assert torch.equal(conv(x), 2 * first)
    assert conv.float()(x.float()).dtype == torch.float32
    state = {key: 0 * tensor for key, tensor in conv.state_dict().items()}
    conv.load_state_dict(state)
    assert not conv(x.float()).any()


def test_border_convolution_survives_inference_copies_and_pickling() -> None:
    conv, x = filled(BorderConv2d(2, 3, 3, padding=1)), torch.randn(1, 2, 4, 4, dtype=torch.float64)
    with torch.inference_mode():
        expected = conv(x).clone()
    conv(x).sum().backward()  # the map kept in inference mode serves training too
    file = io.BytesIO()
    torch.save(conv, file)
    file.seek(0)
    for other in (copy.deepcopy(conv), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), expected)
        assert not other.border_weight.requires_grad


def test_border_convolution_under_autocast() -> None:
    conv, x = filled(BorderConv2d(2, 3, 3, padding=1)).float(), torch.randn(1, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        low = conv(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), conv(x), rtol=0.05, atol=0.1)


def test_border_convolution_exports() -> None:
    conv, x = filled(BorderConv2d(0, 3, 3, padding=1)), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    exported = torch.export.export(nn.Sequential(conv), (x,)).module()
    assert torch.equal(exported(x), conv(x))


def test_border_convolution_refuses_other_padding() -> None:
    with pytest.raises(ValueError, match="padding_mode \"zeros\", got 'reflect'"):
        BorderConv2d(1, 1, 3, padding=1, padding_mode="reflect")


def test_channel_layers() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(ChannelSelect(torch.tensor([2, 0]))(x), x[:, [2, 0]])
    fill = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    placed = ChannelPlace(torch.tensor([0, 1, 4]), fill)(x)
    assert torch.equal(placed[:, [0, 1, 4]], x + fill[[0, 1, 4], None, None])
    assert bool((placed[:, 2] == 3).all())
    assert bool((placed[:, 3] == 4).all())
    nothing = ChannelPlace(torch.tensor([], dtype=torch.int64), fill)(x)
    assert torch.equal(nothing, fill[:, None, None].expand(2, 5, 4, 5))
    assert torch.equal(ChannelBias(fill[:3])(x), x + fill[:3, None, None])
    assert torch.equal(ChannelBias(fill[:3])(x[:, :, 0, 0]), x[:, :, 0, 0] + fill[:3])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ChannelSelect(torch.tensor([0.5])), "index must be an int64 vector"),
        (lambda: ChannelSelect(torch.tensor([-1])), "channel numbers >= 0, got -1"),
        (lambda: ChannelPlace(torch.tensor([0, 0]), torch.zeros(2)), "distinct"),
        (lambda: ChannelPlace(torch.tensor([2]), torch.zeros(2)), "below 2"),
        (lambda: ChannelPlace(torch.tensor([0]), torch.zeros(2, 1)), "fill must be a vector"),
        (lambda: ChannelBias(torch.zeros(2, 1)), "bias must be a vector"),
    ],
)
def test_channel_layers_refuse(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    "window", [{}, {"kernel_size": 3, "padding": 1}, {"kernel_size": (5, 3), "stride": (2, 3)}]
)
def test_shape_carrier(window: dict) -> None:
    conv = nn.Conv2d(2, 7, **{"kernel_size": 1} | window)
    x = torch.randn(2, 2, 11, 8)
    got = ShapeCarrier(**window)(x)
    assert got.shape == (2, 1, *conv(x).shape[2:])
    assert not got.any()
