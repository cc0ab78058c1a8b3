"""A network ready for inference: checks its input, plans for its shape, runs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from slimfast.packed.explain import Explanation
from slimfast.packed.out_of_memory import needs_memory
from slimfast.packed.plan import Plan, Whole, pieces, plan
from slimfast.packed.program import Program

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PLANS_KEPT = 8  # input shapes whose plans are kept at a time


class Deployed(nn.Module):
    """A network for inference alone; made by `slimfast.deploy` or `slimfast.load`.

    Called like the model: NCHW images in any memory format, float32 or the deployed dtype, any batch and
    image size that the model takes. The result is a new tensor in the model's own dtype. Threads may
    share it. `to`, `cuda`, `half` and the like move it and change the dtype of the computation.

    Attributes:
        program: the ops that run; `print(deployed.program)` shows them.
        channels: of the input images.
        dtype: of the computation.
        output_dtype: of the result.
        device: where the network is.
        autotune: whether the first call with another shape of images tries torch.compile, too; see
            `slimfast.deploy`.
        explanation: what `slimfast.deploy(..., explain=True)` found; None otherwise.
    """

    def __init__(
        self,
        program: Program,
        channels: int,
        dtype: torch.dtype,
        output_dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.program = program.to(device, dtype)
        self.channels = channels
        self.dtype = dtype
        self.output_dtype = output_dtype
        self.device = device
        self.autotune = False
        self.explanation: Explanation | None = None
        self._plans: dict[torch.Size, Callable[[Tensor], Any]] = {}
        self.eval()

    def forward(self, x: Tensor) -> Any:
        """The model's result for images x [N, C, H, W].

        Under torch.export the program runs by the references of its ops.

        Raises:
            TypeError: x is no tensor.
            ValueError: x has another rank, number of channels, dtype or device than the network takes, or
                requires grad.
            torch.OutOfMemoryError: there is not enough memory for so many images at a time.
        """
        self._check(x)
        if torch.compiler.is_exporting():
            return self._traced(x)
        with torch.no_grad(), needs_memory("x", x.shape, self.device):
            images = self._images(x)
            result = self._plan(images)(images)
            return tree_map_only(Tensor, lambda y: self._fresh(y, x), result)

    @torch.no_grad()
    def pieces(self, x: Tensor) -> list[tuple[Plan, Tensor]]:
        """How images x run: plans, each with the images that it runs on at a time. Raises as `forward`."""
        self._check(x)
        with needs_memory("x", x.shape, self.device):
            images = self._images(x)
            return pieces(self._plan(images), images)

    @torch.no_grad()
    def compiled(self, x: Tensor) -> Mapping[str, float]:
        """Seconds of "torch.compile" and "op by op" if images x run the first way, whole; {} if not.

        Raises as `forward`.
        """
        self._check(x)
        with needs_memory("x", x.shape, self.device):
            ready = self._plan(self._images(x))
        return ready.seconds if isinstance(ready, Whole) else {}

    def _images(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, memory_format=torch.channels_last)

    def _traced(self, x: Tensor) -> Any:
        """The result as an exported program shall compute it: by plain torch and slimfast's custom ops."""
        result = self.program.run(self._images(x))
        return tree_map_only(
            Tensor, lambda y: y.to(self.output_dtype) if y.is_floating_point() else y, result
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Deployed":
        like = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        if like.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {like.dtype}")
        self.program = self.program.to(like.device, like.dtype)
        self.dtype, self.device, self._plans = like.dtype, like.device, {}
        super()._apply(fn, recurse)
        return self

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dim() != 4 or x.shape[1] != self.channels:
            raise ValueError(f"x must have shape [N, {self.channels}, H, W], got {list(x.shape)}")
        if x.dtype not in (torch.float32, self.dtype):
            accepted = " or ".join(dict.fromkeys([str(torch.float32), str(self.dtype)]))
            raise ValueError(f"x must be {accepted}, got {x.dtype}")
        if x.device != self.device:
            raise ValueError(f"x must be on {self.device}, where the network is, got {x.device}")
        if x.requires_grad:
            raise ValueError("x requires grad, but a deployed network is for inference: pass x.detach()")

    def _plan(self, images: Tensor) -> Callable[[Tensor], Any]:
        ready = self._plans.get(images.shape)
        if ready is None:
            if len(self._plans) >= _PLANS_KEPT:
                self._plans.clear()
            ready = self._plans[images.shape] = plan(self.program, images, self.autotune)
        return ready

    def _fresh(self, y: Tensor, x: Tensor) -> Tensor:
        """y in the model's dtype, in memory that nobody else holds."""
        y = y.to(self.output_dtype) if y.is_floating_point() else y
        shared = y.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
        return y.clone() if shared else y

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}}

    def extra_repr(self) -> str:
        return f"{len(self.program.ops)} ops, {self.channels} input channels, {self.dtype}, {self.device}"
