"""Optimizers that train to exact zeros."""

from slimfast.optim.groups import param_groups as param_groups
from slimfast.optim.prox_adamw import ProxAdamW as ProxAdamW
from slimfast.optim.prox_sgd import ProxSGD as ProxSGD
from slimfast.optim.reach import warn_if_unreachable as warn_if_unreachable
from slimfast.optim.schedules import BetaGrowth as BetaGrowth
from slimfast.optim.schedules import PenaltyRamp as PenaltyRamp
from slimfast.optim.schedules import SparsityController as SparsityController
from slimfast.optim.zeros import zero_share as zero_share
