"""Refuses tensors of sizes for which a network was not traced."""

from collections.abc import Sequence

from torch import Tensor, nn


class SizeCheck(nn.Module):
    """y = x, if least[d] <= x.shape[d] <= most[d] and multiple[d] divides x.shape[d], for every dimension d.

    It stands in front of networks that do one thing or another depending on the size of their input, of which
    only what they do at such sizes is known.

    Args:
        least: int per dimension.
        most: int per dimension; None: no limit.
        multiple: int per dimension, at least 1.
    Errors: ValueError for a tensor of another size.
    """

    def __init__(self, least: Sequence[int], most: Sequence[int | None], multiple: Sequence[int]) -> None:
        super().__init__()
        self.least, self.most, self.multiple = tuple(least), tuple(most), tuple(multiple)

    def forward(self, x: Tensor) -> Tensor:
        if not self._accepts(x):
            sizes = f"{self.extra_repr()}, not {list(x.shape)}"
            raise ValueError(f"the network was traced for inputs of sizes {sizes}")
        return x

    def _accepts(self, x: Tensor) -> bool:
        if x.dim() != len(self.least):
            return False
        return all(
            least <= size and (most is None or size <= most) and size % multiple == 0
            for size, least, most, multiple in zip(x.shape, self.least, self.most, self.multiple, strict=True)
        )

    def extra_repr(self) -> str:
        return f"[{', '.join(map(_words, self.least, self.most, self.multiple))}]"


def _words(least: int, most: int | None, multiple: int) -> str:
    if least == most:
        return str(least)
    words = [f">= {least}"] if least > 1 else []
    words += [f"<= {most}"] if most is not None else []
    words += [f"a multiple of {multiple}"] if multiple > 1 else []
    return " and ".join(words) or "any"
