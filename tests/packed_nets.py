"""Small networks for tests of packed ops, and the ops that become of them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import slimfast
from slimfast import graph
from slimfast.nn import BorderConv2d
from slimfast.packed.fuse import fuse
from slimfast.packed.lowering import lower
from slimfast.packed.op import Op

X = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """A forward function over named layers with random numbers in them."""

    def __init__(self, run: Callable[["Net", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                for buffer in (b for b in module.buffers() if b.is_floating_point()):
                    nn.init.uniform_(buffer, 0.5, 2.0)
            if isinstance(module, BorderConv2d):
                nn.init.normal_(module.border_weight)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(inputs: int = 4, outputs: int = 4, **rest: int | bool) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, **{"padding": 1, **rest})  # type: ignore[arg-type]


def bn(channels: int = 4) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def ops_of(net: nn.Module, x: Tensor = X) -> tuple[Op, ...]:
    """The merged ops, after checking that they compute what the net does, in every way that they can run."""
    with torch.no_grad():
        program = fuse(lower(graph.trace(net, x)))
        program.check(x.shape[1])
        for batch in (x, x[:1], x[:, :, :3, :4].contiguous()):
            expected = net(batch)
            torch.testing.assert_close(program.run(batch), expected, rtol=1e-12, atol=1e-12)
            deployed = slimfast.deploy(net, x, dtype=torch.float32)
            torch.testing.assert_close(deployed(batch.float()), expected, rtol=1e-4, atol=1e-4)
    return program.ops


def kinds(net: nn.Module) -> list[str]:
    return [op.kind for op in ops_of(net)]
