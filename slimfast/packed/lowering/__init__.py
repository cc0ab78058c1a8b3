"""From a traced model to packed ops: a rule for each kind of call."""

from slimfast.packed.lowering.lower import LoweredCall as LoweredCall
from slimfast.packed.lowering.lower import lower as lower
from slimfast.packed.lowering.lower import lower_calls as lower_calls
