"""Inference: a network as a short list of fused ops on NHWC images."""

from slimfast.packed.deployed import Deployed as Deployed
from slimfast.packed.deployed import deploy as deploy
from slimfast.packed.program import Program as Program
