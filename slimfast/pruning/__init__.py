"""Pruning: choose scales, set them to zero, and take out what that makes constant or useless."""

from slimfast.pruning.count import Count as Count
from slimfast.pruning.count import count as count
from slimfast.pruning.prune import PruneResult as PruneResult
from slimfast.pruning.prune import prune as prune
from slimfast.pruning.report import LayerChange as LayerChange
from slimfast.pruning.report import PruneReport as PruneReport
