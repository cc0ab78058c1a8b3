"""Optimizers that train to exact zeros."""

from slimfast.optim.groups import param_groups as param_groups
from slimfast.optim.prox_sgd import ProxSGD as ProxSGD
from slimfast.optim.reach import warn_if_unreachable as warn_if_unreachable
