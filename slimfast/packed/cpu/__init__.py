"""How packed ops run on CPUs: through oneDNN or our own kernel, in memory that is planned once."""

from slimfast.packed.cpu.run import fastest as fastest
