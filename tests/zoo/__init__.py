"""Architectures to prune: each a small network as people write them, with plain torch modules."""

import json
from pathlib import Path

from zoo import barriers, control_flow, dense, detection, generative, mobile, plain, residual, shapes, tensors
from zoo.case import SCENARIOS as SCENARIOS
from zoo.case import Case as Case

_FAMILIES = (shapes, tensors, plain, mobile, residual, dense, detection, generative, barriers)
CASES: dict[str, Case] = {name: case for family in _FAMILIES for name, case in family.CASES.items()}
UNTRACEABLE: dict[str, Case] = control_flow.CASES  # by torch.fx
RECORDS = Path(__file__).with_name("expected.json")


def expected() -> dict[str, dict[str, int]]:
    """Parameters left after pruning: by name of the network, then by scenario."""
    records: dict[str, dict[str, int]] = json.loads(RECORDS.read_text())
    return records
