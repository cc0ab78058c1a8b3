"""Pruning: choose scales, set them to zero, and take out what that makes constant or useless."""

from slimfast.pruning.count import Count as Count
from slimfast.pruning.count import count as count
from slimfast.pruning.gradual import gradual_ratios as gradual_ratios
from slimfast.pruning.gradual import prune_gradually as prune_gradually
from slimfast.pruning.importance import Importance as Importance
from slimfast.pruning.importance import filter_norm as filter_norm
from slimfast.pruning.importance import fisher as fisher
from slimfast.pruning.importance import fpgm as fpgm
from slimfast.pruning.importance import group_norm as group_norm
from slimfast.pruning.importance import magnitude as magnitude
from slimfast.pruning.importance import random as random
from slimfast.pruning.importance import relative as relative
from slimfast.pruning.importance import synflow as synflow
from slimfast.pruning.importance import taylor as taylor
from slimfast.pruning.orthogonality import orthogonality as orthogonality
from slimfast.pruning.prune import prune as prune
from slimfast.pruning.report import LayerChange as LayerChange
from slimfast.pruning.report import PruneReport as PruneReport
from slimfast.pruning.result import PruneResult as PruneResult
