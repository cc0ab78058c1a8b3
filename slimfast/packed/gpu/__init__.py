"""How packed ops run on GPUs: merged where one kernel can compute several, in the fastest right way."""

from slimfast.packed.gpu.run import fastest as fastest
from slimfast.packed.gpu.run import merge as merge
from slimfast.packed.gpu.run import ways as ways
