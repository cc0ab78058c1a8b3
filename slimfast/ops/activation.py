"""Functions that networks apply number by number: names, formulas, and which ones `conv` can end with."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Activation(NamedTuple):
    """A function by its name in torch.nn.functional.

    Attributes:
        name: a key of FUNCTIONS.
        slope: of leaky_relu below 0; alpha of elu.
    """

    name: str
    slope: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """The function of x, in a new tensor."""
        return FUNCTIONS[self.name](x, self.slope, False)

    def overwrite(self, x: Tensor) -> Tensor:
        """The function of x, in the memory of x."""
        return FUNCTIONS[self.name](x, self.slope, True)

    def __str__(self) -> str:
        return f"{self.name}({self.slope:g})" if self.slope else self.name


NONE, RELU = Activation("none"), Activation("relu")


def _gelu(x: Tensor, approximate: str, inplace: bool) -> Tensor:
    y: Tensor = (
        torch.ops.aten.gelu_(x, approximate=approximate) if inplace else F.gelu(x, approximate=approximate)
    )
    return y


# name -> function of x, slope, and whether the result takes the place of x
FUNCTIONS: Mapping[str, Callable[[Tensor, float, bool], Tensor]] = {
    "none": lambda x, slope, inplace: x,
    "relu": lambda x, slope, inplace: x.relu_() if inplace else x.relu(),
    "relu6": lambda x, slope, inplace: F.relu6(x, inplace),
    "leaky_relu": lambda x, slope, inplace: F.leaky_relu(x, slope, inplace),
    "sigmoid": lambda x, slope, inplace: x.sigmoid_() if inplace else x.sigmoid(),
    "silu": lambda x, slope, inplace: F.silu(x, inplace),
    "hardsigmoid": lambda x, slope, inplace: F.hardsigmoid(x, inplace),
    "hardswish": lambda x, slope, inplace: F.hardswish(x, inplace),
    "gelu": lambda x, slope, inplace: _gelu(x, "none", inplace),
    "gelu_tanh": lambda x, slope, inplace: _gelu(x, "tanh", inplace),
    "tanh": lambda x, slope, inplace: x.tanh_() if inplace else x.tanh(),
    "mish": lambda x, slope, inplace: F.mish(x, inplace),
    "elu": lambda x, slope, inplace: F.elu(x, slope, inplace),
}
ENDINGS = (
    "none",
    "relu",
    "relu6",
    "leaky_relu",
    "sigmoid",
    "silu",
    "hardsigmoid",
    "hardswish",
    "gelu",
    "gelu_tanh",
)


def check_ending(name: str) -> None:
    """Raises ValueError if `conv` cannot end with this function."""
    if name not in ENDINGS:
        raise ValueError(f"activation must be one of {', '.join(ENDINGS)}; got {name!r}")
