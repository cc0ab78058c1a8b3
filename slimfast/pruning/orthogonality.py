"""Regulariser that keeps the filters of each convolution orthonormal, so that importance adds up."""

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def orthogonality(model: nn.Module) -> Tensor:
    """Distance of the filters of all convolutions from orthonormal ones, to be added to the loss.

        sum over convolutions of ||W W^T - I||_F^2, filters as rows of W

    Where there are more filters than weights in one, they cannot all be orthogonal: there it is
    ||W^T W - I||_F^2, which differs by a constant (its gradient is the same) and can become 0.

    Args:
        model: its convolutions of any kind are used, each once; in transposed ones dimension 0 counts the
            inputs, and what reads one input is taken for the filter.

    Returns:
        a scalar, differentiable; 0 on the CPU for a model without convolutions.

    Source: Bansal et al., "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?",
    NeurIPS 2018, equation 1; for pruning: Lubana et al., "OrthoReg: Robust Network Pruning Using
    Orthonormality Regularization", 2020, whose code takes the sum of absolute values for the squared norm.
    """
    distances = [_distance(m.weight.flatten(1)) for m in model.modules() if isinstance(m, _ConvNd)]
    return torch.stack(distances).sum() if distances else torch.zeros(())


def _distance(filters: Tensor) -> Tensor:
    rows = filters if filters.shape[0] <= filters.shape[1] else filters.T
    return (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().sum()
