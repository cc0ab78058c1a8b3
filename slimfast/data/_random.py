"""Random numbers that depend on their key alone, never on torch's global generator."""

import numpy as np
import torch


def require_count(name: str, value: int, least: int) -> None:
    """Raises ValueError unless ``value`` is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def generator(*key: int) -> torch.Generator:
    """A CPU generator for a key of non-negative integers; different keys give independent streams.

    torch's CPU generator keeps only 32 bits of a seed, so the key is hashed to 32 rather than packed into 64.
    """
    (state,) = np.random.SeedSequence(key).generate_state(1)
    return torch.Generator().manual_seed(int(state))
