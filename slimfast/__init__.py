"""Train convolutional networks to exact zeros, remove them without changing outputs, run the rest fast."""

from slimfast import models as models
from slimfast.files import load as load
from slimfast.files import save as save
from slimfast.graph import GraphError as GraphError
from slimfast.optim import param_groups as param_groups
from slimfast.packed import deploy as deploy
from slimfast.pruning import prune as prune
