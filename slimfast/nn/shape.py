"""Carries the sizes of a tensor on where nobody needs its contents any more."""

from torch import Tensor, nn

Size = int | tuple[int, ...]


def each(size: Size, dims: int) -> tuple[int, ...]:
    """A size per dimension, of one that may be given as one number."""
    return (size,) * dims if isinstance(size, int) else tuple(size)


class ShapeCarrier(nn.Module):
    """Zeros of one channel, in the size that a convolution with this window would give.

        H' = floor((H + 2 padding - dilation (kernel_size - 1) - 1) / stride) + 1
        H' = (H - 1) stride - 2 padding + dilation (kernel_size - 1) + output_padding + 1, if transposed

    It stands in for layers that lost every channel: what follows them depends on the input by its size alone.

    Args:
        kernel_size, stride, padding, dilation: int or one per image dimension, as in nn.Conv2d; the defaults
            keep the size.
        output_padding: as in nn.ConvTranspose2d, whose sizes are meant then; None: those of nn.Conv2d.
    Shapes: x [N, any, *], y [N, 1, *'].
    """

    def __init__(
        self,
        kernel_size: Size = 1,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        output_padding: Size | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.padding, self.dilation = padding, dilation
        self.output_padding = output_padding

    @property
    def keeps_size(self) -> bool:
        ones = *each(self.kernel_size, 1), *each(self.stride, 1)
        zeros = *each(self.padding, 1), *each(self.output_padding or 0, 1)
        return all(n == 1 for n in ones) and not any(zeros)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps_size:
            return x.new_zeros((x.shape[0], 1, *x.shape[2:]))
        sizes = x.shape[2:]
        window = (each(s, len(sizes)) for s in (self.kernel_size, self.stride, self.padding, self.dilation))
        numbers = zip(sizes, *window, strict=True)
        if self.output_padding is None:
            after = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers]
        else:
            extra = each(self.output_padding, len(sizes))
            after = [
                (n - 1) * s - 2 * p + d * (k - 1) + e + 1
                for (n, k, s, p, d), e in zip(numbers, extra, strict=True)
            ]
        return x.new_zeros((x.shape[0], 1, *after))

    def extra_repr(self) -> str:
        if self.keeps_size:
            return ""
        window = f"{self.kernel_size}, {self.stride}, {self.padding}, {self.dilation}"
        return window if self.output_padding is None else f"{window}, {self.output_padding}"
