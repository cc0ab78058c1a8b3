"""Architectures to prune: each a small network as people write them, with plain torch modules."""

from zoo import barriers, control_flow, dense, detection, generative, mobile, plain, residual, shapes, tensors
from zoo.case import SCENARIOS as SCENARIOS
from zoo.case import Case as Case

_FAMILIES = (shapes, tensors, plain, mobile, residual, dense, detection, generative, barriers)
CASES: dict[str, Case] = {name: case for family in _FAMILIES for name, case in family.CASES.items()}
UNTRACEABLE: dict[str, Case] = control_flow.CASES  # by torch.fx
