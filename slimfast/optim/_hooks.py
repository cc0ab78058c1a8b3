"""Whether a step must be seen: torch's wrapper around steps can cost as much as the step itself."""

import torch
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


def is_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether there is a hook on the step, or a profiler that would show it."""
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return True
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return True
    return not torch.compiler.is_compiling() and torch._C._autograd._profiler_enabled()
