"""Carries the sizes of a tensor on where nobody needs its contents any more."""

from torch import Tensor, nn

Size2d = int | tuple[int, int]


def pair(size: Size2d) -> tuple[int, int]:
    """(rows, columns) of a size that may be given as one number."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class ShapeCarrier(nn.Module):
    """Zeros of one channel, in the size that a convolution with this window would give.

        H' = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1

    It stands in for layers that lost every channel: what follows them depends on the input by its size alone.

    Args:
        kernel_size, stride, padding, dilation: int or (rows, columns), as in nn.Conv2d; the defaults keep the
            size.
    Shapes: x [N, any, H, W] (any [N, any, *] with the defaults), y [N, 1, H', W'].
    """

    def __init__(
        self, kernel_size: Size2d = 1, stride: Size2d = 1, padding: Size2d = 0, dilation: Size2d = 1
    ) -> None:
        super().__init__()
        self.kernel_size = pair(kernel_size)
        self.stride = pair(stride)
        self.padding = pair(padding)
        self.dilation = pair(dilation)

    @property
    def keeps_size(self) -> bool:
        return self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps_size:
            return x.new_zeros((x.shape[0], 1, *x.shape[2:]))
        window = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in window]
        return x.new_zeros((x.shape[0], 1, *sizes))

    def extra_repr(self) -> str:
        return (
            "" if self.keeps_size else f"{self.kernel_size}, {self.stride}, {self.padding}, {self.dilation}"
        )
