"""Inference: a network as a short list of fused ops on NHWC images."""

from slimfast.packed.build import deploy as deploy
from slimfast.packed.deployed import Deployed as Deployed
from slimfast.packed.explain import Explanation as Explanation
from slimfast.packed.export import EXPORTS as EXPORTS
from slimfast.packed.export import export_onnx as export_onnx
from slimfast.packed.export import export_package as export_package
from slimfast.packed.export import why_no_compiler as why_no_compiler
from slimfast.packed.files import load_packed as load_packed
from slimfast.packed.files import save_packed as save_packed
from slimfast.packed.out_of_memory import is_out_of_memory as is_out_of_memory
from slimfast.packed.profile import Profile as Profile
from slimfast.packed.profile import profile as profile
from slimfast.packed.program import Program as Program
