"""L1 - alpha L2 of a whole tensor or optimizer group in the step: torch ops, none of which waits."""

import torch
from torch import Tensor

SUBGRADIENT, RELAXED, ALTERNATING = 1, 2, 3


class Vector:
    """Tensors that one penalty sees as one vector; `before` and `after` the step without it."""

    def __init__(self, method: int, numbers: tuple[Tensor, Tensor, Tensor], row: int) -> None:
        hyper = numbers[0]
        self.grad_scale, self.found_inf = (number.reshape(()) for number in numbers[1:])
        self.method = method
        self.lr, _, _, _, self.lam, self.alpha, _, self.scale, self.gain, self.beta = hyper[row].unbind()
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.sparse: list[Tensor] = []  # what the proximal operator is for
        self.sign = 1.0

    def add(self, param: Tensor, grad: Tensor, auxiliary: Tensor | None, maximize: bool) -> None:
        self.params.append(param)
        self.grads.append(grad)
        self.sparse.append(param if auxiliary is None else auxiliary)
        self.sign = -1.0 if maximize else 1.0

    def before(self) -> None:
        """Adds the penalty's gradient to the loss's, where the method does so."""
        if self.method not in (SUBGRADIENT, RELAXED):
            return
        x = _joined(self.params)
        if self.method == SUBGRADIENT:
            length = torch.linalg.vector_norm(x)
            pull = self.scale * self.lam * (x.sign() - self.alpha * torch.where(length > 0, x / length, 0.0))
        else:
            pull = self.beta * (x - prox(x, self.scale / self.beta * self.lam, self.alpha))
        for grad, part in zip(self.grads, _parts(self.grads, pull), strict=True):
            grad.add_(part * (self.sign * self.grad_scale))

    def after(self) -> None:
        """Applies the proximal operator, where the method does so."""
        if self.method in (SUBGRADIENT, RELAXED):
            return
        step = self.lr * self.gain * self.scale
        if self.method == ALTERNATING:
            step = step / (1 + self.beta * self.lr * self.gain)
        x = _joined(self.sparse)
        shrunk = torch.where(self.found_inf == 0, prox(x, step * self.lam, self.alpha), x)
        for sparse, part in zip(self.sparse, _parts(self.sparse, shrunk), strict=True):
            sparse.copy_(part)


def prox(x: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
    """argmin_u 0.5 ||u - x||^2 + weight (||u||_1 - alpha ||u||_2); Lou and Yan, 2018."""
    z = x.abs()
    top, first = z.max(0)
    soft = (z - weight).clamp(min=0)
    length = torch.linalg.vector_norm(soft)
    alone = torch.zeros_like(z).scatter(0, first[None], (top - (1 - alpha) * weight).clamp(min=0)[None])
    shrunk = torch.where(top > weight, soft * ((length + alpha * weight) / length), alone)
    shrunk = torch.minimum(shrunk, z)
    return torch.where(x < 0, 0.0 - shrunk, shrunk)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten().double() for x in tensors])


def _parts(tensors: list[Tensor], joined: Tensor) -> list[Tensor]:
    parts = joined.split([x.numel() for x in tensors])
    return [part.reshape(x.shape) for x, part in zip(tensors, parts, strict=True)]
