"""Training: recipes, the loop, checkpoints, the whole experiment."""

from slimfast.train.checkpoint import load_checkpoint, save_checkpoint
from slimfast.train.errors import RunError, UsageError
from slimfast.train.evaluate import accuracy, compare_outputs
from slimfast.train.loop import fit
from slimfast.train.metrics import Epoch, count_zeros
from slimfast.train.pipeline import finetune, prepare, run_all, train
from slimfast.train.progress import Display
from slimfast.train.recipe import Recipe
from slimfast.train.recipe_file import load_recipe

__all__ = [
    "Display",
    "Epoch",
    "Recipe",
    "RunError",
    "UsageError",
    "accuracy",
    "compare_outputs",
    "count_zeros",
    "finetune",
    "fit",
    "load_checkpoint",
    "load_recipe",
    "prepare",
    "run_all",
    "save_checkpoint",
    "train",
]
