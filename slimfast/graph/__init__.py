"""Tracing a model, and the pass that takes out channels without changing what the model computes."""

from slimfast.graph.channels import Cut as Cut
from slimfast.graph.channels import name_of as name_of
from slimfast.graph.errors import GraphError as GraphError
from slimfast.graph.explain import RETAINED as RETAINED
from slimfast.graph.explain import Account as Account
from slimfast.graph.explain import explain as explain
from slimfast.graph.shrink import shrink as shrink
from slimfast.graph.trace import as_arguments as as_arguments
from slimfast.graph.trace import record_shapes as record_shapes
from slimfast.graph.trace import symbolic as symbolic
from slimfast.graph.trace import trace as trace
