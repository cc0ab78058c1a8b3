"""Inference: a network as a short list of fused ops on NHWC images."""

from slimfast.packed.build import deploy as deploy
from slimfast.packed.deployed import Deployed as Deployed
from slimfast.packed.files import load_packed as load_packed
from slimfast.packed.files import save_packed as save_packed
from slimfast.packed.program import Program as Program
