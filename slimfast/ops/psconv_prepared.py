"""Pre-defined sparse convolution for inference, whose weight is laid out once instead of at every call."""

from collections.abc import Sequence

from torch import Tensor

from slimfast.ops._register import define, register_triton
from slimfast.ops.psconv import SCHEMA, reference

PREPARE = (
    "psconv_prepare(Tensor weight, int[] out_residue, int[] in_residue, int[2] kernel_size, int kss, "
    "int period, bool boost) -> Tensor"
)


def prepare_reference(
    weight: Tensor,
    out_residue: Sequence[int],
    in_residue: Sequence[int],
    kernel_size: Sequence[int],
    kss: int,
    period: int,
    boost: bool,
) -> Tensor:
    """The packed weight as `psconv_prepared` on the same device reads it: here as it is.

    What the result holds is known to that op alone; in a file, or on another device, it has no meaning.
    """
    del out_residue, in_residue, kernel_size, kss, period, boost
    return weight.clone()


define(PREPARE, prepare_reference)
define(SCHEMA.replace("psconv(", "psconv_prepared(", 1), reference)  # all as there but the weight
register_triton("psconv_prepare", "psconv_prepare")
register_triton("psconv_prepared", "psconv_prepared")
