"""A batch that does not fit into memory is one clear line, on any device."""

import pytest
import torch
from packed_nets import Net, X, conv
from torch import Tensor

import slimfast
from slimfast.packed.out_of_memory import is_out_of_memory

ON_A_GPU = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139 GiB\nof which"
FITS_NOT = (
    r"^{} of shape \[3, 4, 6, 5\] does not fit: cpu has not enough memory for 3 images at a time; give fewer$"
)


@torch.fx.wrap
def hungry(x: Tensor, how: str) -> Tensor:
    """Runs out of memory, or breaks, from the second image on."""
    if len(x) > 1 and how == "gpu":
        raise torch.OutOfMemoryError(ON_A_GPU)
    if len(x) > 1 and how == "cpu":
        return torch.empty(2**59, dtype=torch.uint8)
    if len(x) > 1:
        raise RuntimeError("broken")
    return x


@pytest.mark.parametrize("how", ["gpu", "cpu"])
def test_call_and_deploy(how: str) -> None:
    net = Net(lambda n, x: hungry(n.a(x), how), a=conv())
    ready = slimfast.deploy(net, X[:1])
    with pytest.raises(torch.OutOfMemoryError, match=FITS_NOT.format("x")):
        ready(X)
    with pytest.raises(torch.OutOfMemoryError, match=FITS_NOT.format("x")):
        ready.pieces(X)
    torch.testing.assert_close(ready(X[:1]), net(X[:1]).detach())  # which still works afterwards
    with pytest.raises(torch.OutOfMemoryError, match=FITS_NOT.format("example_inputs")):
        slimfast.deploy(net, X)


def test_other_errors_stay_what_they_are() -> None:
    net = Net(lambda n, x: hungry(n.a(x), "not at all"), a=conv())
    with pytest.raises(RuntimeError, match=r"^broken$"):
        slimfast.deploy(net, X[:1])(X)
    with pytest.raises(slimfast.GraphError, match=r"broken"):
        slimfast.deploy(net, X)
    assert not is_out_of_memory(RuntimeError("memory"))
    assert is_out_of_memory(MemoryError())
